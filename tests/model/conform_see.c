/* What the devices did, as steps of the order. */
#include "tests/model/conform_int.h"

const void *conform_block(const struct conform *c, uint64_t addr)
{
    static const uint8_t none[VMFS_UNIT];
    const void *p = gr_mem_page(c->mem[vmfs_addr_dev(addr)], vmfs_addr_unit(addr) * VMFS_UNIT, false);
    return p ? p : none;
}
static uint64_t generation(const void *b)
{
    return gr_le64_get(((const struct vmfs_hdr_disk *)b)->generation);
}
static struct vlock lock_in(const void *b)
{
    struct vlock l;
    vlock_get((const struct vmfs_lock_disk *)((const uint8_t *)b + sizeof(struct vmfs_hdr_disk)), &l);
    return l;
}
int conform_slot_in(const struct conform *c, const void *b, unsigned slot, struct vslot *ret)
{
    return vslot_decode(&c->sb, b, vhome_addr(&c->sb.slots, slot, 0, 0), ret, NULL);
}
/* Entry of a table that @addr lies in; *ret_sub: which unit of it. */
static int entry(const struct vtable *t, uint64_t base, uint64_t addr, unsigned *ret_sub)
{
    if (addr < base || addr >= base + (uint64_t)t->entries * t->stride)
        return -1;
    *ret_sub = (unsigned)((addr - base) % t->stride);
    return (int)((addr - base) / t->stride);
}

static int object(struct conform *c, const struct vtable *t, unsigned index)
{
    uint64_t a = vhome_addr(t, index, 0, 0);
    for (unsigned i = 0; i < c->n_objects; i++)
        if (c->object[i].addr_a == a)
            return (int)i;
    if (c->n_objects == OBJECTS)
        return -1;
    c->object[c->n_objects] = (struct object){ .addr_a = a, .addr_b = vhome_addr(t, index, 0, 1) };
    return (int)c->n_objects++;
}

/* The lock as it is on the device now, for an object that is seen for the first time or was just written. */
static void set_lock(struct conform *c, unsigned k, const struct vlock *l)
{
    struct m_disk *d = m_disk(&c->m, c->st, k);
    struct vslot s;
    bool held = l->holder && l->holder <= c->m.slots && conform_slot_in(c, conform_block(c, vhome_addr(&c->sb.slots, l->holder - 1, 0, 0)), l->holder - 1, &s) == 0;
    d->lock = held ? l->holder : 0;
    d->valid = held && s.generation == l->generation;
}

static void slot_cas(struct conform *c, unsigned p, unsigned slot, const struct vslot *now, bool done)
{
    struct m_take *t = m_take(&c->m, c->st, p, slot);
    bool claims = now->state == VMFS_SLOT_HOST;
    bool mine = m_slot(&c->m, c->st, slot)->key == p + 1;
    if (!done) { /* sent again, and done already; or another was quicker, and then the order has it so, too */
        if (!mine && t->same_block && (claims || t->phase == MT_SECOND))
            conform_refuse(c, NULL, "a slot that did not change since it was read miscompared");
        else if (!mine && (claims || t->phase == MT_SECOND))
            *t = (struct m_take){ 0 };
        return;
    }
    if (claims && now->lost.devices && m_proc(&c->m, c->st, p)->slot == slot + 1) { /* what was lost with a device: as any write of its own slot */
        conform_step(c, M_TAIL, p, slot, 0);
        return;
    }
    conform_step(c, claims ? M_CLAIM : M_MARK, p, slot, 0);
    if (!c->error[0] && now->state != VMFS_SLOT_FREE && m_slot(&c->m, c->st, slot)->key != p + 1)
        conform_refuse(c, &(struct m_act){ claims ? M_CLAIM : M_MARK, (uint8_t)p, (uint8_t)slot, 0, 0 }, "it was done, and the slot was another than it had read");
    if (!c->error[0] && now->state != VMFS_SLOT_FREE && now->nonce != c->host[p].key)
        conform_refuse(c, &(struct m_act){ M_MARK, (uint8_t)p, (uint8_t)slot, 0, 0 }, "the slot names another key than its own");
}

static void slot_write(struct conform *c, unsigned p, unsigned slot, const struct vslot *now)
{
    bool own = m_proc(&c->m, c->st, p)->slot == slot + 1;
    conform_step(c, now->state != VMFS_SLOT_FREE ? M_TAIL : own ? M_LEAVE : M_FREE, p, slot, 0);
}

/* An answer may arrive when the slot has just been given up. One answer more never ejects anybody, so it need not be explored. */
static void answered(struct conform *c, unsigned p, unsigned slot)
{
    if (m_proc(&c->m, c->st, p)->charge & 1u << slot || !(c->host[p].charges & 1u << slot)) {
        conform_step(c, M_ANSWER, p, slot, 0);
        return;
    }
    m_slot(&c->m, c->st, slot)->asked = 0;
    for (unsigned q = 0; q < c->m.procs; q++)
        m_take(&c->m, c->st, q, slot)->standing = 0;
}

static void alarm_seen(struct conform *c, unsigned p, unsigned slot, const struct gr_bio *bio, const struct vmfs_alarm_disk *d, bool done)
{
    bool quiet = gr_le64_get(d->asked) == gr_le64_get(d->answered);
    const struct m_take *t = m_take(&c->m, c->st, p, slot);
    if (m_proc(&c->m, c->st, p)->status == MP_OVER)
        return; /* it has left, asking: nobody will look at that */
    if (bio->op == GR_OP_READ) {
        if (t->phase == MT_ASKED || (t->phase == MT_SILENT && !t->ejected))
            conform_step(c, M_LOOK, p, slot, 0);
        bool mine = m_proc(&c->m, c->st, p)->charge & 1u << slot;
        if (t->phase == MT_READ && t->state != MS_FREE && !quiet && !mine) /* somebody else has asked already */
            conform_step(c, M_ASK, p, slot, 0);
    } else if (bio->op == GR_OP_COMPARE_WRITE && done && quiet) {
        answered(c, p, slot);
    } else if (bio->op == GR_OP_COMPARE_WRITE && done && t->phase != MT_ASKED) {
        conform_step(c, M_ASK, p, slot, 0);
    }
}

static void lock_cas(struct conform *c, unsigned p, unsigned k, const struct vlock *l, bool done)
{
    struct m_hold *h = m_hold(&c->m, c->st, p, k);
    if (!done) {
        if (h->phase == MK_VOID)
            *h = (struct m_hold){ 0 };
        return;
    }
    conform_step(c, M_LOCK, p, k, 0);
    if (!c->error[0] && (h->phase != MK_OPEN || l->holder != m_proc(&c->m, c->st, p)->slot))
        conform_refuse(c, &(struct m_act){ M_LOCK, (uint8_t)p, (uint8_t)k, 0, 0 }, "it was done, and the lock was another than it had read");
    set_lock(c, k, l);
}

/* A home block is written: by its holder, who may give it up with that, or by who replays the holder's slot. */
static void object_write(struct conform *c, unsigned p, unsigned k, const void *b, bool second)
{
    const struct vlock l = lock_in(b);
    struct object *o = &c->object[k];
    struct m_proc *q = m_proc(&c->m, c->st, p);
    struct m_hold *h = m_hold(&c->m, c->st, p, k);
    struct m_act act = { M_HOME, (uint8_t)p, (uint8_t)k, 0, 0 };
    if (second) {
        o->b_generation = generation(b);
    } else if (l.holder == 0 && h->phase >= MK_OPEN) {
        if (o->b_generation + 1 != generation(b))
            conform_refuse(c, &(struct m_act){ M_RELEASE_A, (uint8_t)p, (uint8_t)k, 0, 0 }, "its second copy was not written just before");
        conform_step(c, M_RELEASE_B, p, k, 0);
        conform_step(c, M_RELEASE_A, p, k, 0);
    } else if (h->phase >= MK_OPEN && l.holder == q->slot) {
        return; /* its own, brought home */
    } else if (l.holder && l.holder <= c->m.slots && m_take(&c->m, c->st, p, l.holder - 1)->phase == MT_REPLAY) {
        act.a = (uint8_t)(l.holder - 1);
        conform_step(c, M_HOME, p, act.a, k);
    } else {
        conform_refuse(c, &act, "a home block is written by who neither holds it nor replays its holder's slot");
    }
}

static void on_object(struct conform *c, unsigned p, const struct vtable *t, int index, unsigned sub, bool second, const struct gr_bio *bio, const void *b, bool done)
{
    unsigned before = c->n_objects;
    int k = sub == 0 ? object(c, t, (unsigned)index) : -1;
    if (k < 0)
        return;
    if (c->n_objects != before && bio->op == GR_OP_READ) {
        const struct vlock l = lock_in(b);
        set_lock(c, (unsigned)k, &l);
    }
    const struct vlock l = lock_in(b);
    if (bio->op == GR_OP_COMPARE_WRITE)
        lock_cas(c, p, (unsigned)k, &l, done);
    else if (bio->op == GR_OP_WRITE)
        object_write(c, p, (unsigned)k, b, second);
    else if (second && (m_hold(&c->m, c->st, p, (unsigned)k)->same || !(m_proc(&c->m, c->st, p)->reg & 1)))
        return; /* says nothing new, or to somebody who is ejected from the first device already */
    else if ((!second || generation(b) >= generation(conform_block(c, c->object[k].addr_a))) && m_hold(&c->m, c->st, p, (unsigned)k)->phase <= MK_COUNTS && m_proc(&c->m, c->st, p)->status == MP_JOINED)
        conform_step(c, M_READ_LOCK, p, (unsigned)k, 0);
}

static void on_slot(struct conform *c, unsigned p, unsigned slot, unsigned sub, const struct gr_bio *bio, const void *b, bool done)
{
    struct vslot now;
    if (sub == 2) {
        alarm_seen(c, p, slot, bio, b, done);
        return;
    }
    if (sub != 0 || conform_slot_in(c, b, slot, &now) < 0)
        return;
    if (bio->op == GR_OP_READ && m_proc(&c->m, c->st, p)->status != MP_OVER)
        conform_step(c, M_READ_SLOT, p, slot, 0);
    else if (bio->op == GR_OP_READ)
        return; /* it has left */
    else if (bio->op == GR_OP_COMPARE_WRITE)
        slot_cas(c, p, slot, &now, done);
    else
        slot_write(c, p, slot, &now);
}

/* In the one area or in its mirror. */
static bool in_journal(const struct vslot *s, uint64_t addr)
{
    return addr - s->journal_addr < s->journal_units || (s->journal_mirror && addr - s->journal_mirror < s->journal_units);
}

/* In a journal: read by who replays its slot, written by who has it. */
static void on_journal(struct conform *c, unsigned p, unsigned slot, const struct gr_bio *bio)
{
    unsigned phase = m_take(&c->m, c->st, p, slot)->phase;
    if (bio->op == GR_OP_READ && phase == MT_MARKED)
        conform_step(c, M_READ_JOURNAL, p, slot, 0);
    else if (bio->op == GR_OP_WRITE && m_proc(&c->m, c->st, p)->slot != slot + 1 && phase != MT_REPLAY)
        conform_refuse(c, &(struct m_act){ M_RECORD, (uint8_t)p, 0, 0, 0 }, "a journal is written by who has the slot, or replays it");
}

void conform_unit(struct conform *c, unsigned p, uint64_t addr, const struct gr_bio *bio, const void *b, bool done)
{
    const struct vsuper *sb = &c->sb;
    unsigned sub, own = m_proc(&c->m, c->st, p)->status;
    int i;
    bool follows = (i = entry(&sb->slots, sb->slots.addr_b, addr, &sub)) >= 0; /* the second copy: written behind the first, read after it */
    bool first = m_proc(&c->m, c->st, p)->reg & 1; /* it may read the second copy when it was ejected from the first device already */
    if (follows && first && sub == 0 && bio->op == GR_OP_READ && own != MP_OVER && !m_take(&c->m, c->st, p, (unsigned)i)->same_block &&
        generation(b) >= generation(conform_block(c, vhome_addr(&sb->slots, (unsigned)i, 0, 0))))
        conform_step(c, M_READ_SLOT, p, (unsigned)i, 0);
    if ((i = entry(&sb->slots, sb->slots.addr_a, addr, &sub)) >= 0)
        on_slot(c, p, (unsigned)i, sub, bio, b, done);
    else if ((i = entry(&sb->inodes, sb->inodes.addr_a, addr, &sub)) >= 0)
        on_object(c, p, &sb->inodes, i, sub, false, bio, b, done);
    else if ((i = entry(&sb->inodes, sb->inodes.addr_b, addr, &sub)) >= 0)
        on_object(c, p, &sb->inodes, i, sub, true, bio, b, done);
    for (unsigned s = 0; s < c->m.slots; s++) {
        struct vslot now;
        if (conform_slot_in(c, conform_block(c, vhome_addr(&sb->slots, s, 0, 0)), s, &now) == 0 && in_journal(&now, addr))
            on_journal(c, p, s, bio);
    }
    if (bio->op == GR_OP_WRITE && own != MP_JOINED && own != MP_JOINING && !follows)
        conform_refuse(c, &(struct m_act){ M_DATA, (uint8_t)p, 0, 0, 0 }, "a device has done a write of a process that has left or was ejected");
}
