/* Slots: who is here, who is gone. A life lock (byte lock of device 0, key = slot) is held by the process itself; getting
 * another slot's proves that its process and its in-flight I/O are gone. A stopped process still holds it. */
#include "common/seam.h"
#include "vmfs/internal.h"

int vslot_read(struct vmfs *v, unsigned slot, struct vslot *ret, struct gr_err *err)
{
    uint8_t *block = vunits_alloc(1);
    int r = block ? vhome_read(v, &v->sb.slots, slot, 0, VMFS_T_SLOT, block, err) : -ENOMEM;
    if (r == 1)
        r = gr_fail(err, -GR_ECORRUPT, "slot %u was never written", slot);
    if (r == 0)
        r = vslot_decode(&v->sb, block, vhome_addr(&v->sb.slots, slot, 0, 0), ret, err);
    free(block);
    return r;
}

static int slot_write(struct vmfs *v, unsigned slot, struct vslot *s, struct gr_err *err)
{
    uint8_t *block = vunits_alloc(1);
    if (!block)
        return gr_fail(err, -ENOMEM, "out of memory");
    s->block_generation++;
    vslot_encode(v, s, slot, vhome_addr(&v->sb.slots, slot, 0, 0), block);
    int r = vhome_write(v, &v->sb.slots, slot, 0, block, err);
    free(block);
    return r;
}

int vslot_write_mine(struct vmfs *v, struct gr_err *err)
{
    return slot_write(v, v->slot, &v->me, err);
}

bool vlock_mine(const struct vmfs *v, const struct vlock *l)
{
    return l->holder == v->slot + 1 && l->generation == v->me.generation;
}

int vlock_counts(struct vmfs *v, const struct vlock *l, struct gr_err *err)
{
    struct vslot s;
    if (l->holder == 0)
        return 0;
    if (l->holder == v->slot + 1)
        return l->generation == v->me.generation;
    int r = vslot_read(v, l->holder - 1, &s, err);
    if (r < 0)
        return r;
    return (s.state == VMFS_SLOT_HOST || s.state == VMFS_SLOT_REPLAYING) && s.generation == l->generation;
}

static int life_lock(struct vmfs *v, unsigned slot)
{
    struct gr_bdev *d = v->dev[0].bdev;
    return d->ops->trylock ? d->ops->trylock(d, slot) : -EOPNOTSUPP;
}
static void life_unlock(struct vmfs *v, unsigned slot)
{
    struct gr_bdev *d = v->dev[0].bdev;
    if (d->ops->unlock)
        d->ops->unlock(d, slot);
}

/* A second look at the volume, as the dead host: same devices, its slot. */
static struct vmfs *stand_in(struct vmfs *v, unsigned slot, const struct vslot *s)
{
    struct vmfs *r = gr_zalloc(sizeof *r);
    if (!r)
        return NULL;
    r->loop = v->loop;
    memcpy(r->dev, v->dev, sizeof r->dev);
    r->n_dev = v->n_dev;
    r->sb = v->sb;
    r->role = VMFS_HOST;
    r->slot = slot;
    r->me = *s;
    r->opts.warn = v->opts.warn;
    r->opts.warn_arg = v->opts.warn_arg;
    r->max_leaves = SIZE_MAX;
    return r;
}

/* Life lock of @slot is held by us: bring its state home and free it. */
static int recover_locked(struct vmfs *v, unsigned slot, struct vslot *s, struct gr_err *err)
{
    int r = 0;
    if (s->state != VMFS_SLOT_READER) {
        struct vmfs *d = stand_in(v, slot, s);
        if (!d)
            return gr_fail(err, -ENOMEM, "out of memory");
        d->me.state = VMFS_SLOT_REPLAYING;
        r = vslot_write_mine(d, err);
        if (r == 0)
            r = replay_run(d, err);
        if (r < 0)
            gr_prefix(err, r, "slot %u of host '%s' cannot be recovered", slot, s->host_name);
        *s = d->me;
        v->stats.replays++;
        v->stats.replayed_records += d->stats.replayed_records;
        v->stats.dropped_pieces += d->stats.dropped_pieces;
        vmfs_abandon_state(d);
        free(d);
    }
    if (r < 0)
        return r;
    s->state = VMFS_SLOT_FREE;
    s->n_pins = 0;
    s->generation++;
    r = slot_write(v, slot, s, err);
    if (r == 0) {
        v->stats.takeovers++;
        vmfs_warn(v, "datastore '%s': recovered slot %u of host '%s', which was gone", v->sb.name, slot, s->host_name);
    }
    return r;
}

/* 1 recovered, 0 nothing to do or it lives. */
static int recover_slot(struct vmfs *v, unsigned slot, struct gr_err *err)
{
    struct vslot s;
    if (v->joined && slot == v->slot)
        return 0;
    int r = vslot_read(v, slot, &s, err);
    if (r < 0 || s.state == VMFS_SLOT_FREE)
        return r;
    if (life_lock(v, slot) < 0)
        return 0;
    r = vslot_read(v, slot, &s, err);
    if (r == 0 && s.state != VMFS_SLOT_FREE && (r = vmfs_refresh(v, err)) == 0) { /* it may have used regions we never heard of */
        r = recover_locked(v, slot, &s, err);
        r = r < 0 ? r : 1;
        if (r == 1 && v->joined)
            ns_resume(v); /* what it was removing is ours to go on with */
    }
    life_unlock(v, slot);
    return r;
}

int vslot_recover_holder(struct vmfs *v, unsigned slot, uint64_t generation, struct gr_err *err)
{
    struct vslot s;
    int r = vslot_read(v, slot, &s, err);
    if (r < 0)
        return r;
    if (s.generation != generation || s.state == VMFS_SLOT_FREE)
        return 1; /* its locks are void already */
    return recover_slot(v, slot, err);
}

int vmfs_recover(struct vmfs *v, struct gr_err *err)
{
    int n = 0;
    for (unsigned i = 0; i < v->sb.slots.entries; i++) {
        int r = recover_slot(v, i, err);
        if (r < 0)
            return r;
        n += r;
    }
    return n;
}

/* Make the free slot @i ours. 1: done; 0: somebody was faster. */
static int claim(struct vmfs *v, unsigned i, struct gr_err *err)
{
    const struct gr_world *w = gr_loop_world(v->loop);
    struct vslot s;
    if (life_lock(v, i) < 0)
        return 0;
    int r = vslot_read(v, i, &s, err);
    if (r == 0 && s.state == VMFS_SLOT_FREE) {
        s.state = v->role == VMFS_READER ? VMFS_SLOT_READER : VMFS_SLOT_HOST;
        s.generation++;
        s.n_pins = 0;
        s.version = VMFS_VERSION;
        w->random(w->arg, &s.nonce, sizeof s.nonce);
        memcpy(s.host_uuid, v->opts.host_uuid, 16);
        snprintf(s.host_name, sizeof s.host_name, "%s", v->host_name);
        snprintf(s.portal, sizeof s.portal, "%s", v->portal);
        snprintf(s.address, sizeof s.address, "%s", v->address);
        v->slot = i;
        v->me = s;
        r = vslot_write_mine(v, err);
        v->joined = r == 0;
    }
    if (!v->joined)
        life_unlock(v, i);
    return r < 0 ? r : v->joined;
}

/* A host's earlier slot first: initiators know its target ports by the number. */
int vslot_claim(struct vmfs *v, struct gr_err *err)
{
    unsigned used = 0;
    for (int pass = 0; pass < 2; pass++) {
        for (unsigned i = 0; i < v->sb.slots.entries; i++) {
            struct vslot s;
            int r = vslot_read(v, i, &s, err);
            if (r < 0)
                return r;
            used += pass && s.state != VMFS_SLOT_FREE;
            if (s.state != VMFS_SLOT_FREE || (!pass && memcmp(s.host_uuid, v->opts.host_uuid, 16) != 0))
                continue;
            r = claim(v, i, err);
            if (r)
                return r < 0 ? r : 0;
        }
    }
    return gr_fail(err, -GR_ELOCKED, "datastore '%s': all %u slots are taken (%u by hosts that live)", v->sb.name, v->sb.slots.entries, used);
}

unsigned vmfs_own_slot(const struct vmfs *v)
{
    return v->slot;
}

int vslot_free_mine(struct vmfs *v, struct gr_err *err)
{
    v->me.state = VMFS_SLOT_FREE;
    v->me.n_pins = 0;
    v->me.generation++;
    int r = vslot_write_mine(v, err);
    vslot_forget(v);
    return r;
}

void vslot_forget(struct vmfs *v)
{
    if (v->joined)
        life_unlock(v, v->slot);
    v->joined = false;
}

int vmfs_slots(struct vmfs *v, void (*fn)(void *arg, const struct vmfs_slot_info *s), void *arg, struct gr_err *err)
{
    static const char *const names[] = { "free", "host", "reader", "replaying" };
    for (unsigned i = 0; i < v->sb.slots.entries; i++) {
        struct vslot s;
        struct vmfs_slot_info n = { .slot = i, .self = v->joined && i == v->slot };
        int r = vslot_read(v, i, &s, err);
        if (r < 0)
            return r;
        n.generation = s.generation;
        n.state = names[s.state];
        n.alive = n.self;
        if (!n.self && s.state != VMFS_SLOT_FREE) {
            n.alive = life_lock(v, i) < 0;
            if (!n.alive)
                life_unlock(v, i);
        }
        memcpy(n.host_uuid, s.host_uuid, 16);
        snprintf(n.host_name, sizeof n.host_name, "%s", s.host_name);
        snprintf(n.portal, sizeof n.portal, "%s", s.portal);
        snprintf(n.address, sizeof n.address, "%s", s.address);
        fn(arg, &n);
    }
    return 0;
}
