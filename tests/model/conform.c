#include "tests/model/conform.h"
#include "tests/model/order.h"
#include "vmfs/internal.h"
#include <stdio.h>
#include <stdlib.h>

#define PROCS 30u   /* at once; a key is a number of 5 bits */
#define OBJECTS 255u /* inodes and regions that are touched */
struct chost {
    struct sim_host *sim;
    struct gr_bdev *path[VMFS_DEVICES_MAX];
    uint64_t key;
    char home[80];
    bool known;       /* its process has begun */
    unsigned charges; /* slots it has ever answered for, or was about to */
};
struct object {
    uint64_t addr_a, addr_b;
    uint64_t b_generation; /* of the second copy, as last written by whoever has it */
};
struct conform {
    struct sim *sim;
    struct gr_mem *mem[VMFS_DEVICES_MAX];
    unsigned n_dev, n_objects;
    struct vsuper sb;
    struct model m;
    uint8_t *st;
    struct chost host[PROCS];
    struct object object[OBJECTS];
    uint64_t steps;
    void (*on_eject)(void *arg, struct sim_host *victim);
    void *on_eject_arg;
    char error[400];
};

static void refuse(struct conform *c, const struct m_act *a, const char *why)
{
    char text[160] = "";
    if (c->error[0])
        return;
    if (a)
        model_say(a, text, sizeof text);
    snprintf(c->error, sizeof c->error, "%.3f s: %s: %s", (double)sim_now_ns(c->sim) / 1e9, text, why);
}

/* It answers for what it has, and for what it is about to take. */
static void note_charges(struct conform *c, unsigned p)
{
    const struct m_proc *q = m_proc(&c->m, c->st, p);
    c->host[p].charges |= q->charge;
    for (unsigned s = 0; s < c->m.slots; s++) {
        const struct m_take *t = m_take(&c->m, c->st, p, s);
        if (t->phase == MT_SECOND || (t->phase == MT_READ && t->state == MS_FREE && q->status == MP_JOINING))
            c->host[p].charges |= 1u << s;
    }
}

/* A step that was done. */
static void step(struct conform *c, unsigned kind, unsigned p, unsigned a, unsigned d)
{
    struct m_act act = { (uint8_t)kind, (uint8_t)p, (uint8_t)a, (uint8_t)d, 0 };
    const char *why = NULL;
    int r = c->error[0] ? 1 : model_step(&c->m, c->st, act, &why);
    c->steps++;
    note_charges(c, p);
    if (r != 1)
        refuse(c, &act, why ? why : "the order does not allow it");
}

static int proc_of(const struct conform *c, const struct sim_host *h)
{
    for (unsigned i = 0; i < PROCS; i++)
        if (c->host[i].sim == h)
            return (int)i;
    return -1;
}

/* ---- what is on the devices ---- */
static const void *block(const struct conform *c, uint64_t addr)
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
static int slot_in(const struct conform *c, const void *b, unsigned slot, struct vslot *ret)
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
    bool held = l->holder && l->holder <= c->m.slots && slot_in(c, block(c, vhome_addr(&c->sb.slots, l->holder - 1, 0, 0)), l->holder - 1, &s) == 0;
    d->lock = held ? l->holder : 0;
    d->valid = held && s.generation == l->generation;
}

/* ---- requests ---- */
static void slot_cas(struct conform *c, unsigned p, unsigned slot, const struct vslot *now, bool done)
{
    struct m_take *t = m_take(&c->m, c->st, p, slot);
    bool claims = now->state == VMFS_SLOT_HOST;
    bool mine = m_slot(&c->m, c->st, slot)->key == p + 1;
    if (!done) { /* sent again, and done already; or another was quicker, and then the order has it so, too */
        if (!mine && t->same_block && (claims || t->phase == MT_SECOND))
            refuse(c, NULL, "a slot that did not change since it was read miscompared");
        else if (!mine && (claims || t->phase == MT_SECOND))
            *t = (struct m_take){ 0 };
        return;
    }
    step(c, claims ? M_CLAIM : M_MARK, p, slot, 0);
    if (!c->error[0] && now->state != VMFS_SLOT_FREE && m_slot(&c->m, c->st, slot)->key != p + 1)
        refuse(c, &(struct m_act){ claims ? M_CLAIM : M_MARK, (uint8_t)p, (uint8_t)slot, 0, 0 }, "it was done, and the slot was another than it had read");
    if (!c->error[0] && now->state != VMFS_SLOT_FREE && now->nonce != c->host[p].key)
        refuse(c, &(struct m_act){ M_MARK, (uint8_t)p, (uint8_t)slot, 0, 0 }, "the slot names another key than its own");
}

static void slot_write(struct conform *c, unsigned p, unsigned slot, const struct vslot *now)
{
    bool own = m_proc(&c->m, c->st, p)->slot == slot + 1;
    step(c, now->state != VMFS_SLOT_FREE ? M_TAIL : own ? M_LEAVE : M_FREE, p, slot, 0);
}

/* An answer may arrive when the slot has just been given up. One answer more never ejects anybody, so it need not be explored. */
static void answered(struct conform *c, unsigned p, unsigned slot)
{
    if (m_proc(&c->m, c->st, p)->charge & 1u << slot || !(c->host[p].charges & 1u << slot)) {
        step(c, M_ANSWER, p, slot, 0);
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
            step(c, M_LOOK, p, slot, 0);
        bool mine = m_proc(&c->m, c->st, p)->charge & 1u << slot;
        if (t->phase == MT_READ && t->state != MS_FREE && !quiet && !mine) /* somebody else has asked already */
            step(c, M_ASK, p, slot, 0);
    } else if (bio->op == GR_OP_COMPARE_WRITE && done && quiet) {
        answered(c, p, slot);
    } else if (bio->op == GR_OP_COMPARE_WRITE && done && t->phase != MT_ASKED) {
        step(c, M_ASK, p, slot, 0);
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
    step(c, M_LOCK, p, k, 0);
    if (!c->error[0] && (h->phase != MK_OPEN || l->holder != m_proc(&c->m, c->st, p)->slot))
        refuse(c, &(struct m_act){ M_LOCK, (uint8_t)p, (uint8_t)k, 0, 0 }, "it was done, and the lock was another than it had read");
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
            refuse(c, &(struct m_act){ M_RELEASE_A, (uint8_t)p, (uint8_t)k, 0, 0 }, "its second copy was not written just before");
        step(c, M_RELEASE_B, p, k, 0);
        step(c, M_RELEASE_A, p, k, 0);
    } else if (h->phase >= MK_OPEN && l.holder == q->slot) {
        return; /* its own, brought home */
    } else if (l.holder && l.holder <= c->m.slots && m_take(&c->m, c->st, p, l.holder - 1)->phase == MT_REPLAY) {
        act.a = (uint8_t)(l.holder - 1);
        step(c, M_HOME, p, act.a, k);
    } else {
        refuse(c, &act, "a home block is written by who neither holds it nor replays its holder's slot");
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
    else if ((!second || generation(b) >= generation(block(c, c->object[k].addr_a))) && m_hold(&c->m, c->st, p, (unsigned)k)->phase <= MK_COUNTS && m_proc(&c->m, c->st, p)->status == MP_JOINED)
        step(c, M_READ_LOCK, p, (unsigned)k, 0);
}

static void on_slot(struct conform *c, unsigned p, unsigned slot, unsigned sub, const struct gr_bio *bio, const void *b, bool done)
{
    struct vslot now;
    if (sub == 2) {
        alarm_seen(c, p, slot, bio, b, done);
        return;
    }
    if (sub != 0 || slot_in(c, b, slot, &now) < 0)
        return;
    if (bio->op == GR_OP_READ && m_proc(&c->m, c->st, p)->status != MP_OVER)
        step(c, M_READ_SLOT, p, slot, 0);
    else if (bio->op == GR_OP_READ)
        return; /* it has left */
    else if (bio->op == GR_OP_COMPARE_WRITE)
        slot_cas(c, p, slot, &now, done);
    else
        slot_write(c, p, slot, &now);
}

/* In a journal: read by who replays its slot, written by who has it. */
static void on_journal(struct conform *c, unsigned p, unsigned slot, const struct gr_bio *bio)
{
    unsigned phase = m_take(&c->m, c->st, p, slot)->phase;
    if (bio->op == GR_OP_READ && phase == MT_MARKED)
        step(c, M_READ_JOURNAL, p, slot, 0);
    else if (bio->op == GR_OP_WRITE && m_proc(&c->m, c->st, p)->slot != slot + 1 && phase != MT_REPLAY)
        refuse(c, &(struct m_act){ M_RECORD, (uint8_t)p, 0, 0, 0 }, "a journal is written by who has the slot, or replays it");
}

static void on_unit(struct conform *c, unsigned p, uint64_t addr, const struct gr_bio *bio, const void *b, bool done)
{
    const struct vsuper *sb = &c->sb;
    unsigned sub, own = m_proc(&c->m, c->st, p)->status;
    int i;
    bool follows = (i = entry(&sb->slots, sb->slots.addr_b, addr, &sub)) >= 0; /* the second copy: written behind the first, read after it */
    bool first = m_proc(&c->m, c->st, p)->reg & 1; /* it may read the second copy when it was ejected from the first device already */
    if (follows && first && sub == 0 && bio->op == GR_OP_READ && own != MP_OVER && !m_take(&c->m, c->st, p, (unsigned)i)->same_block &&
        generation(b) >= generation(block(c, vhome_addr(&sb->slots, (unsigned)i, 0, 0))))
        step(c, M_READ_SLOT, p, (unsigned)i, 0);
    if ((i = entry(&sb->slots, sb->slots.addr_a, addr, &sub)) >= 0)
        on_slot(c, p, (unsigned)i, sub, bio, b, done);
    else if ((i = entry(&sb->inodes, sb->inodes.addr_a, addr, &sub)) >= 0)
        on_object(c, p, &sb->inodes, i, sub, false, bio, b, done);
    else if ((i = entry(&sb->inodes, sb->inodes.addr_b, addr, &sub)) >= 0)
        on_object(c, p, &sb->inodes, i, sub, true, bio, b, done);
    for (unsigned s = 0; s < c->m.slots; s++) {
        struct vslot now;
        if (slot_in(c, block(c, vhome_addr(&sb->slots, s, 0, 0)), s, &now) == 0 && addr >= now.journal_addr && addr < now.journal_addr + now.journal_units)
            on_journal(c, p, s, bio);
    }
    if (bio->op == GR_OP_WRITE && own != MP_JOINED && own != MP_JOINING && !follows)
        refuse(c, &(struct m_act){ M_DATA, (uint8_t)p, 0, 0, 0 }, "a device has done a write of a process that has left or was ejected");
}

static void request(void *arg, struct sim_host *h, struct gr_bdev *path, const struct gr_bio *bio, int status)
{
    struct conform *c = arg;
    int p = proc_of(c, h);
    unsigned d = 0, off = 0;
    if (p < 0 || !c->host[p].known || c->error[0] || (status != 0 && status != -GR_EMISCOMPARE))
        return;
    if (bio->op != GR_OP_READ && bio->op != GR_OP_WRITE && bio->op != GR_OP_COMPARE_WRITE)
        return;
    while (d < c->n_dev && c->host[p].path[d] != path)
        d++;
    if (!(m_proc(&c->m, c->st, (unsigned)p)->reg & 1u << d))
        refuse(c, &(struct m_act){ M_DATA, (uint8_t)p, 0, 0, 0 }, "a device has done a request of a process that was ejected");
    bool swap = bio->op == GR_OP_COMPARE_WRITE;
    const struct iovec *iov = swap ? bio->iov2 : bio->iov;
    uint64_t unit = bio->off / VMFS_UNIT;
    for (int i = 0; i < (swap ? bio->iovcnt2 : bio->iovcnt); i++)
        for (off = 0; off + VMFS_UNIT <= iov[i].iov_len; off += VMFS_UNIT)
            on_unit(c, (unsigned)p, vmfs_addr(d, unit++), bio, (const uint8_t *)iov[i].iov_base + off, status == 0);
}

/* ---- fences ---- */
static void ejected(struct conform *c, unsigned p, unsigned d, uint64_t key)
{
    const char *why = "nothing it knows says so";
    struct m_act act = { M_EJECT, (uint8_t)p, 0, (uint8_t)d, 0 };
    for (unsigned s = 0; s < c->m.slots; s++) {
        struct m_take *t = m_take(&c->m, c->st, p, s);
        struct vslot now;
        if (!t->key || c->host[t->key - 1u].key != key)
            continue;
        bool same_home = slot_in(c, block(c, vhome_addr(&c->sb.slots, s, 0, 0)), s, &now) == 0 && now.nonce == key &&
                         strcmp(c->host[t->key - 1u].home, c->host[p].home) == 0;
        m_slot(&c->m, c->st, s)->home = same_home ? m_proc(&c->m, c->st, p)->host + 1u : 0;
        act.a = (uint8_t)s;
        if (model_step(&c->m, c->st, act, &why) == 1) {
            if (c->on_eject && d == 0)
                c->on_eject(c->on_eject_arg, c->host[t->key - 1u].sim);
            return;
        }
    }
    refuse(c, &act, why);
}

static int proc_new(struct conform *c, struct sim_host *h)
{
    const char *why;
    for (unsigned p = 0; p < PROCS; p++) {
        m_head(c->st)->restarts = 0;
        model_step(&c->m, c->st, (struct m_act){ M_NOTICE, (uint8_t)p, 0, 0, 0 }, &why);
        if (model_step(&c->m, c->st, (struct m_act){ M_START, (uint8_t)p, 0, 0, 0 }, &why) != 1)
            continue;
        c->host[p] = (struct chost){ .sim = h };
        return (int)p;
    }
    refuse(c, NULL, "more processes at once than are watched");
    return -1;
}

void conform_host(struct conform *c, struct sim_host *h, struct gr_bdev *const *paths, const char *home)
{
    int p = proc_new(c, h);
    if (p < 0)
        return;
    memcpy(c->host[p].path, paths, c->n_dev * sizeof *paths);
    snprintf(c->host[p].home, sizeof c->host[p].home, "%s", home);
}

static void fence(void *arg, struct sim_host *h, struct gr_bdev *path, enum sim_fence what, uint64_t key)
{
    struct conform *c = arg;
    int p = proc_of(c, h);
    unsigned d = 0;
    if (p < 0)
        return;
    while (d < c->n_dev && c->host[p].path[d] != path)
        d++;
    if (what == SIM_EJECTED) {
        ejected(c, (unsigned)p, d, key);
    } else if (what == SIM_ENTERED) {
        c->host[p].key = key;
        c->host[p].known = true;
        step(c, M_ENTER, (unsigned)p, 0, d);
    } else {
        m_proc(&c->m, c->st, (unsigned)p)->reg &= ~(1u << d);
    }
}

/* ---- the whole ---- */
struct conform *conform_new(struct sim *s, struct gr_mem *const *mem, unsigned n)
{
    struct conform *c = calloc(1, sizeof *c);
    if (!c)
        return NULL;
    c->sim = s;
    c->n_dev = n;
    memcpy(c->mem, mem, n * sizeof *mem);
    if (vsuper_decode(block(c, vmfs_addr(0, VMFS_SUPER_A)), &c->sb, NULL) < 0) {
        free(c);
        return NULL;
    }
    c->m = (struct model){ .hosts = 1, .procs = PROCS, .slots = (uint8_t)c->sb.slots.entries, .disks = OBJECTS, .devices = (uint8_t)n, .observed = true,
                           .restarts = 1, .looks = c->sb.timing == VMFS_TIMING_FAST ? 30 : 20 };
    model_layout(&c->m);
    c->st = calloc(1, c->m.size);
    if (!c->st) {
        free(c);
        return NULL;
    }
    model_begin(&c->m, c->st);
    sim_watch(s, &(struct sim_watcher){ request, fence, c });
    return c;
}

void conform_free(struct conform *c)
{
    if (!c)
        return;
    sim_watch(c->sim, NULL);
    free(c->st);
    free(c);
}

void conform_on_eject(struct conform *c, void (*fn)(void *arg, struct sim_host *victim), void *arg)
{
    c->on_eject = fn;
    c->on_eject_arg = arg;
}

const char *conform_error(const struct conform *c)
{
    return c->error[0] ? c->error : NULL;
}

uint64_t conform_steps(const struct conform *c)
{
    return c->steps;
}

bool conform_ejected(const struct conform *c, const struct sim_host *h)
{
    int p = proc_of(c, h);
    return p >= 0 && c->host[p].known && m_proc(&c->m, c->st, (unsigned)p)->reg != (1u << c->n_dev) - 1;
}

unsigned conform_phase(const struct conform *c, const struct sim_host *h)
{
    int p = proc_of(c, h);
    unsigned far = 0;
    for (unsigned s = 0; p >= 0 && s < c->m.slots; s++)
        far = GR_MAX(far, m_take(&c->m, c->st, (unsigned)p, s)->phase);
    return far;
}
