/* Logical units where nothing fences a lost host (superblock: ONE_HOST): one host at a time, and nobody takes over by himself.
 *
 * Whoever joins finds every slot given back, or is refused with the name of the host that has not: a silent host may be gone, or sleep and go
 * on. Two exceptions: an earlier start of this very home, whose lock says that it is gone, and a host that the administrator names as gone
 * (vmfs_join_opts.gone). Both are asked first all the same, and one that answers lives: a home may have been copied, a person may err.
 *
 * Two that join at once: each claims a slot and then looks at all the others; so one of them at least sees the other, and goes. The same
 * slot for both is refused by the compare-and-write; units that have none, or none that is atomic, get a second look some time later.
 *
 * Who was declared gone and goes on after all finds out at its next look at its slot (life.c), and gives the volume up. What it had under
 * way until then reaches the device: that is what the administrator answers for. */
#include "vmfs/internal.h"

bool valone_found(struct vmfs *v)
{
    for (unsigned i = 0; i < v->n_dev; i++) {
        struct vsuper *s = v->dev[i].bdev->fence ? gr_zalloc(sizeof *s) : NULL;
        bool found = s && vsuper_read(v, i, s, NULL) == 0 && s->incompat & VMFS_INCOMPAT_ONE_HOST;
        free(s);
        if (found)
            return true;
    }
    return false;
}

bool valone_declared_gone(const struct vmfs *v, const struct vslot *s)
{
    return v->opts.gone && strcmp(v->opts.gone, s->host_name) == 0;
}

bool valone_lost(struct vmfs *v)
{
    struct vslot s;
    if (!v->joined || vslot_read(v, v->slot, &s, NULL) < 0 || v->me.state != VMFS_SLOT_HOST) /* we are just giving it back */
        return false;
    return s.state != VMFS_SLOT_HOST || s.generation != v->me.generation || s.nonce != v->life.key;
}

/* Take over from the host that is said to be gone. */
static int recover_declared(struct vmfs *v, struct gr_err *err)
{
    unsigned found = 0;
    for (unsigned i = 0; i < v->sb.slots.entries; i++) {
        struct vslot s;
        int r = vslot_read(v, i, &s, err);
        if (r < 0)
            return r;
        if (s.state == VMFS_SLOT_FREE || !valone_declared_gone(v, &s))
            continue;
        found++;
        r = vmfs_recover_slot(v, i, err);
        if (r == 0)
            r = gr_fail(err, -GR_ELOCKED, "datastore '%s': host '%s' is not gone, it has just answered: leave the datastore there, or end the host", v->sb.name,
                        s.host_name);
        if (r < 0)
            return r;
    }
    return found ? 0 : gr_fail(err, -ENOENT, "datastore '%s': no host '%s' has a place there: nothing is to be recovered", v->sb.name, v->opts.gone);
}

static int refuse_others(struct vmfs *v, struct gr_err *err)
{
    for (unsigned i = 0; i < v->sb.slots.entries; i++) {
        struct vslot s;
        int r = v->joined && i == v->slot ? 1 : vslot_read(v, i, &s, err);
        if (r < 0)
            return r;
        if (r == 1 || s.state == VMFS_SLOT_FREE)
            continue;
        if (vlife_shows(v, i, &s))
            return gr_fail(err, -GR_ELOCKED, "datastore '%s' is for one host at a time, and host '%s' is at work on it: leave it there first", v->sb.name, s.host_name);
        return gr_fail(err, -GR_ELOCKED,
                       "datastore '%s' is for one host at a time; host '%s' has not given its place back and does not answer, but nothing can prove that it is "
                       "gone: if it is off for certain, take over with: granary datastore recover %s --host %s",
                       v->sb.name, s.host_name, v->sb.name, s.host_name);
    }
    return 0;
}

/* Had this host a slot here before? Its own is nobody else's. */
static int was_here(struct vmfs *v, struct gr_err *err)
{
    for (unsigned i = 0; i < v->sb.slots.entries; i++) {
        struct vslot s;
        int r = vslot_read(v, i, &s, err);
        if (r < 0)
            return r;
        if (memcmp(s.host_uuid, v->opts.host_uuid, 16) == 0)
            return 1;
    }
    return 0;
}

int valone_join(struct vmfs *v, struct gr_err *err)
{
    if (v->role == VMFS_READER)
        return gr_fail(err, -EOPNOTSUPP, "datastore '%s' is for one host at a time: read it through that host, over iSCSI or its data mover", v->sb.name);
    int r = v->opts.gone ? recover_declared(v, err) : 0;
    if (r == 0)
        r = vslot_recover_own(v, err);
    if (r >= 0)
        r = refuse_others(v, err);
    int known = r == 0 ? was_here(v, err) : r;
    if (known >= 0)
        r = vslot_claim(v, err);
    if (known < 0 || r < 0)
        return known < 0 ? known : r;
    if (known == 0) {
        gr_fiber_sleep_ms(2 * vlife_look_ms(v));
        if (valone_lost(v)) {
            vslot_forget(v);
            return gr_fail(err, -GR_ELOCKED, "datastore '%s' is for one host at a time, and another joins at the same moment: try again", v->sb.name);
        }
    }
    r = refuse_others(v, err);
    if (r < 0)
        vslot_free_mine(v, NULL);
    return r;
}
