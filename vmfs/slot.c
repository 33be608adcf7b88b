/* Slots: a host's place in the volume. Taking one, giving it back, and recovering that of a host that is gone. */
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

int vslot_write(struct vmfs *v, unsigned slot, struct vslot *s, struct gr_err *err)
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
    return vslot_write(v, v->slot, &v->me, err);
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
    if (l->holder > v->sb.slots.entries) /* of somebody, or of nobody: who can tell? */
        return gr_fail(err, -GR_ECORRUPT, "rule 7: a lock names slot %u of %u", l->holder - 1, v->sb.slots.entries);
    int r = vslot_read(v, l->holder - 1, &s, err);
    if (r < 0)
        return r;
    return (s.state == VMFS_SLOT_HOST || s.state == VMFS_SLOT_REPLAYING) && s.generation == l->generation;
}

/* Change the slot's block, which was read as @s, if nobody else did meanwhile. -GR_EMISCOMPARE: somebody did. */
static int slot_swap(struct vmfs *v, unsigned slot, const struct vslot *was, struct vslot *s, struct gr_err *err)
{
    uint64_t a = vhome_addr(&v->sb.slots, slot, 0, 0), b = vhome_addr(&v->sb.slots, slot, 0, 1);
    uint8_t *raw = vunits_alloc(1), *new = vunits_alloc(1);
    struct vslot now;
    int r = raw && new ? vdev_read(v, a, 1, raw) : -ENOMEM;
    if (r == 0 && vslot_decode(&v->sb, raw, a, &now, NULL) == 0 && now.block_generation > was->block_generation)
        r = -GR_EMISCOMPARE;
    if (r == 0) {
        s->block_generation = was->block_generation + 1;
        vslot_encode(v, s, slot, a, new);
        r = vdev_swap(v, a, raw, new);
        if (r == -GR_EMISCOMPARE && vdev_read(v, a, 1, raw) == 0 && memcmp(raw, new, VMFS_UNIT) == 0)
            r = 0; /* our own write whose answer was lost */
    }
    if (r == 0) {
        vhdr_move(new, 1, b);
        r = vdev_write(v, b, 1, new, GR_BIO_FUA);
    }
    free(raw);
    free(new);
    return r < 0 && r != -GR_EMISCOMPARE ? gr_fail(err, r, "slot %u cannot be written: %s", slot, gr_code_text(r)) : r;
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
    r->features = v->features;
    r->life.alone = v->life.alone;
    r->life.fences = v->life.fences;
    r->slot = slot;
    r->me = *s;
    r->opts.warn = v->opts.warn;
    r->opts.warn_arg = v->opts.warn_arg;
    r->rescue = v->rescue;
    r->map_limit = SIZE_MAX;
    return r;
}

/* Recovered as @d: who has lost writes. */
static void tell_lost(struct vmfs *d)
{
    for (unsigned i = 0; i < d->me.lost.n && i < 16; i++) {
        char name[VMFS_PATH_MAX + 80];
        vobj_name(d, d->me.lost.objects[i], name, sizeof name);
        vmfs_warn(d, "'%s' has lost writes with a device, and refuses all but reads: 'granary datastore accept-loss %s' uses it again", name, name);
    }
    if (d->me.lost.n > 16)
        vmfs_warn(d, "datastore '%s': %u more have lost writes: 'granary datastore check %s' lists them", d->sb.name, d->me.lost.n - 16, d->sb.name);
}

/* Nothing of who answered for @slot, read as @s, reaches the devices any more: bring its state home and free it. 1; 0: somebody else
 * does. */
static int recover_ended(struct vmfs *v, unsigned slot, struct vslot *s, struct gr_err *err)
{
    struct vslot was = *s;
    int r = 0;
    s->nonce = v->life.key; /* it is for us to answer */
    if (s->state == VMFS_SLOT_READER) {
        s->state = VMFS_SLOT_FREE;
        s->n_pins = 0;
        s->generation++;
        r = slot_swap(v, slot, &was, s, err);
        return r == -GR_EMISCOMPARE ? 0 : r < 0 ? r : 1;
    }
    s->state = VMFS_SLOT_REPLAYING;
    if ((r = vlife_answer_for(v, slot)) == 0)
        r = slot_swap(v, slot, &was, s, err);
    struct vmfs *d = r == 0 ? stand_in(v, slot, s) : NULL;
    if (r == 0 && !d)
        r = gr_fail(err, -ENOMEM, "out of memory");
    if (d) {
        r = replay_run(d, err);
        if (r < 0)
            gr_prefix(err, r, "slot %u of host '%s' cannot be recovered", slot, s->host_name);
        else
            tell_lost(d);
        *s = d->me;
        v->stats.replays++;
        v->stats.replayed_records += d->stats.replayed_records;
        v->stats.dropped_pieces += d->stats.dropped_pieces;
        vmfs_abandon_state(d);
        free(d);
    }
    if (r == 0) {
        s->state = VMFS_SLOT_FREE;
        s->n_pins = 0;
        s->generation++;
        s->lost = (struct vlost){ 0 };
        r = vslot_write(v, slot, s, err);
    }
    if (r == 0)
        r = vmfs_refresh(v, err); /* it may say that a device is lost */
    vlife_answer_no_more(v, slot);
    return r == -GR_EMISCOMPARE ? 0 : r < 0 ? r : 1;
}

static void tell_recovered(struct vmfs *v, unsigned slot, const struct vslot *s)
{
    struct vmfs_ending e;
    char how[96] = "";
    if (vmfs_ending(v, slot, &e) && e.asked)
        snprintf(how, sizeof how, ": it was asked %.1f s ago, and ejected %.1f s ago", (double)e.asked_ms / 1e3, (double)e.ejected_ms / 1e3);
    vmfs_warn(v, "datastore '%s': recovered slot %u of host '%s', which was gone%s", v->sb.name, slot, s->host_name, how);
}

/* 1 recovered, 0 nothing to do, or it lives, or somebody else does it. */
static int recover_slot(struct vmfs *v, unsigned slot, struct gr_err *err)
{
    struct vslot s, now;
    if (v->joined && slot == v->slot)
        return 0;
    int r = vslot_read(v, slot, &s, err);
    if (r < 0 || s.state == VMFS_SLOT_FREE)
        return r;
    r = vmfs_refresh(v, err); /* it is ejected from all devices it may have, or not at all */
    if (r < 0)
        return r;
    if (v->life.fences && !vlife_own(v, &s) && (r = vdev_all_here(v, "nobody can be shut out of it, so no host is taken over from", err)) < 0)
        return r;
    unsigned n_dev = v->n_dev;
    r = vlife_end(v, slot, &s, err);
    if (r < 0)
        return r == -EBUSY ? 0 : r;
    r = vslot_read(v, slot, &now, err);
    if (r == 0 && v->n_dev != n_dev)
        r = gr_fail(err, -EAGAIN, "datastore '%s': a device was added meanwhile", v->sb.name);
    if (r == 0 && now.state != VMFS_SLOT_FREE && now.generation == s.generation && now.nonce == s.nonce &&
        (r = vmfs_refresh(v, err)) == 0) { /* it may have used regions we never heard of */
        r = recover_ended(v, slot, &now, err);
        if (r == 1) {
            v->stats.takeovers++;
            tell_recovered(v, slot, &s);
            if (v->joined)
                ns_resume(v); /* what it was removing is ours to go on with */
        }
    }
    vlife_end_done(v, slot);
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

int vmfs_recover_slot(struct vmfs *v, unsigned slot, struct gr_err *err)
{
    return slot < v->sb.slots.entries ? recover_slot(v, slot, err) : 0;
}

int vslot_recover_own(struct vmfs *v, struct gr_err *err)
{
    for (unsigned i = 0; i < v->sb.slots.entries; i++) {
        struct vslot s;
        int r = vslot_read(v, i, &s, err);
        if (r == 0 && s.state != VMFS_SLOT_READER && memcmp(s.host_uuid, v->opts.host_uuid, 16) == 0)
            r = recover_slot(v, i, err);
        if (r < 0)
            return r;
    }
    return 0;
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
    struct vslot s, was;
    if (vlife_claim(v, i) < 0)
        return 0;
    int r = vslot_read(v, i, &s, err);
    if (r == 0 && s.state == VMFS_SLOT_FREE && (r = vlife_answer_for(v, i)) == 0) {
        was = s;
        s.state = v->role == VMFS_READER ? VMFS_SLOT_READER : VMFS_SLOT_HOST; /* under the generation that it was freed with, which nobody had */
        s.n_pins = 0;
        s.version = VMFS_VERSION;
        s.nonce = v->life.key;
        memcpy(s.host_uuid, v->opts.host_uuid, 16);
        snprintf(s.host_name, sizeof s.host_name, "%s", v->host_name);
        snprintf(s.portal, sizeof s.portal, "%s", v->portal);
        snprintf(s.address, sizeof s.address, "%s", v->address);
        memcpy(s.link_key, v->link_key, sizeof s.link_key);
        s.features = v->features;
        s.lost = (struct vlost){ 0 };
        v->slot = i;
        r = slot_swap(v, i, &was, &s, err);
        v->me = s;
        v->joined = r == 0;
    }
    if (!v->joined) {
        vlife_answer_no_more(v, i);
        vlife_unclaim(v, i);
    }
    return r == -GR_EMISCOMPARE ? 0 : r < 0 ? r : v->joined;
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
        vlife_unclaim(v, v->slot);
    v->joined = false;
}

static int slot_look(struct vmfs *v, unsigned slot, bool ask, struct vmfs_slot_info *ret, struct gr_err *err)
{
    static const char *const names[] = { "free", "host", "reader", "replaying" };
    struct vslot s;
    if (slot >= v->sb.slots.entries)
        return gr_fail(err, -GR_ERANGE, "datastore '%s' has %u slots", v->sb.name, v->sb.slots.entries);
    int r = vslot_read(v, slot, &s, err);
    if (r < 0)
        return r;
    *ret = (struct vmfs_slot_info){ .slot = slot, .self = v->joined && slot == v->slot, .generation = s.generation, .state = names[s.state] };
    ret->alive = ret->self || (ask && s.state != VMFS_SLOT_FREE && vlife_shows(v, slot, &s));
    memcpy(ret->host_uuid, s.host_uuid, 16);
    snprintf(ret->host_name, sizeof ret->host_name, "%s", s.host_name);
    snprintf(ret->portal, sizeof ret->portal, "%s", s.portal);
    snprintf(ret->address, sizeof ret->address, "%s", s.address);
    memcpy(ret->link_key, s.link_key, sizeof ret->link_key);
    return 0;
}

int vmfs_slot(struct vmfs *v, unsigned slot, struct vmfs_slot_info *ret, struct gr_err *err)
{
    return slot_look(v, slot, true, ret, err);
}

int vmfs_slot_peek(struct vmfs *v, unsigned slot, struct vmfs_slot_info *ret, struct gr_err *err)
{
    return slot_look(v, slot, false, ret, err);
}

int vmfs_link_known(struct vmfs *v, const uint8_t key[32], char ret_host[64], struct gr_err *err)
{
    static const uint8_t none[32];
    bool asked_for_none = memcmp(key, none, sizeof none) == 0;
    for (unsigned i = 0; i < v->sb.slots.entries && !asked_for_none; i++) {
        struct vslot s;
        int r = vslot_read(v, i, &s, err);
        if (r < 0)
            return r;
        if (s.state != VMFS_SLOT_HOST || memcmp(s.link_key, key, sizeof s.link_key) != 0)
            continue;
        snprintf(ret_host, 64, "%s", s.host_name);
        return 0;
    }
    return gr_fail(err, -ENOENT, "datastore '%s': no host that has joined it has that key", v->sb.name);
}

/* Who is silent is asked for seconds: all at once. */
struct roll_call {
    struct vmfs *v;
    struct vmfs_slot_info *infos;
    unsigned next, asking;
    int r;
    struct gr_err *err;
    struct gr_fqueue over;
};

static void call_fiber(void *arg)
{
    struct roll_call *c = arg;
    struct gr_err err = { 0 };
    unsigned i = c->next++;
    int r = vmfs_slot(c->v, i, &c->infos[i], &err);
    if (r < 0 && c->r == 0) {
        c->r = r;
        if (c->err)
            *c->err = err;
    }
    c->asking--;
    gr_fqueue_wake_all(&c->over);
}

int vmfs_slots(struct vmfs *v, void (*fn)(void *arg, const struct vmfs_slot_info *s), void *arg, struct gr_err *err)
{
    unsigned n = v->sb.slots.entries;
    struct roll_call c = { .v = v, .infos = gr_alloc(n * sizeof *c.infos), .err = err };
    if (!c.infos)
        return gr_fail(err, -ENOMEM, "out of memory");
    for (unsigned i = 0; i < n && c.r == 0; i++) {
        c.asking++;
        int r = gr_fiber_start(v->loop, call_fiber, &c);
        if (r < 0) {
            c.asking--;
            c.r = gr_fail(err, r, "out of memory");
        }
    }
    while (c.asking)
        gr_fqueue_wait(&c.over);
    for (unsigned i = 0; i < n && c.r == 0; i++)
        fn(arg, &c.infos[i]);
    free(c.infos);
    return c.r;
}
