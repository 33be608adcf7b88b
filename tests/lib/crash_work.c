#include "tests/lib/crash_work.h"
#include "common/cleanup.h"
#include "tests/lib/test.h"
#include "vmfs/internal.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SECTOR 512u

static uint64_t rnd(struct crash_work *w, uint64_t n) { return test_rand(&w->rng) % n; }

static void wrong(struct crash_work *w, const char *what, int r)
{
    if (!w->why[0])
        snprintf(w->why, sizeof w->why, "%s: %s", what, gr_code_text(r));
}

static struct orc_disk *pick(struct crash_work *w, unsigned admin, unsigned of)
{
    struct orc_disk *live[64];
    unsigned n = 0;
    for (size_t i = 0; i < w->orc.n_disks && n < 64; i++)
        if (w->orc.disk[i]->d && w->orc.disk[i]->number % of == admin)
            live[n++] = w->orc.disk[i];
    return n ? live[rnd(w, n)] : NULL;
}

static uint64_t size_of(struct orc_disk *d)
{
    struct vmfs_stat st;
    vmfs_disk_stat(d->d, &st);
    return st.size;
}

/* ---- data ---- */
struct span {
    uint64_t off, len; /* bytes */
};

/* A random range within a window and the disk. */
static struct span random_range(struct crash_work *w, struct orc_disk *d, uint64_t granule, uint64_t max)
{
    uint64_t base = orc_window_off((unsigned)rnd(w, ORC_WINDOWS)), end = GR_MIN(base + ORC_WINDOW_SECTORS * SECTOR, size_of(d));
    if (rnd(w, 3) == 0)
        end = GR_MIN(end, base + 16384); /* often the same few pieces */
    uint64_t units = end > base ? (end - base) / granule : 0;
    if (!units)
        return (struct span){ 0, granule };
    uint64_t first = rnd(w, units), n = 1 + rnd(w, GR_MIN(max, units - first));
    return (struct span){ base + first * granule, n * granule };
}

static int write_stamp(struct crash_work *w, struct orc_disk *d, struct span s, uint32_t flags)
{
    uint8_t *buf = aligned_alloc(4096, (s.len + 4095) & ~4095ull);
    uint32_t stamp = ++w->orc.stamps;
    for (uint64_t i = 0; i < s.len / SECTOR; i++)
        orc_fill(buf + i * SECTOR, d, s.off / SECTOR + i, stamp);
    size_t op = orc_op_add(&w->orc, d, (struct orc_op){ .first = s.off / SECTOR, .n = s.len / SECTOR, .stamp = stamp, .fua = flags & GR_BIO_FUA });
    int r = gr_pwrite(d->ch, buf, s.len, s.off, flags);
    free(buf);
    if (r == 0)
        orc_op_ack(&w->orc, d, op);
    w->no_space += r == -GR_ENOSPACE;
    if (r < 0 && r != -GR_ENOSPACE)
        wrong(w, "write", r);
    w->writes++;
    return r;
}

static void do_flush(struct crash_work *w, struct orc_disk *d)
{
    uint64_t t = orc_tick(&w->orc);
    int r = gr_flush(d->ch);
    if (r < 0)
        wrong(w, "flush", r);
    else
        orc_flushed(&w->orc, d, t);
    w->flushes++;
}

static void do_zero(struct crash_work *w, struct orc_disk *d, bool unmap)
{
    struct span s = random_range(w, d, unmap ? 4096 : SECTOR, unmap ? 32 : 100);
    if (unmap && rnd(w, 8) == 0) { /* all of it, or nearly */
        s.off = rnd(w, 4) * 4096;
        s.len = size_of(d) / 4096 * 4096 - s.off;
    }
    size_t op = orc_op_add(&w->orc, d, (struct orc_op){ .first = s.off / SECTOR, .n = s.len / SECTOR });
    int r = unmap ? gr_unmap(d->ch, s.off, s.len, 0) : gr_write_zeroes(d->ch, s.off, s.len, 0);
    if (r == 0)
        orc_op_ack(&w->orc, d, op);
    w->no_space += r == -GR_ENOSPACE;
    if (r < 0 && r != -GR_ENOSPACE)
        wrong(w, unmap ? "unmap" : "write zeroes", r);
}

/* Read a range, compare with what may be seen now. */
static int do_read(struct crash_work *w, struct orc_disk *d, struct span s, uint8_t *buf)
{
    uint64_t since = orc_tick(&w->orc);
    int r = gr_pread(d->ch, buf, s.len, s.off);
    uint64_t now = orc_tick(&w->orc);
    if (r < 0)
        wrong(w, "read", r);
    for (uint64_t i = 0; r == 0 && i < s.len / SECTOR; i++) {
        uint64_t sector = s.off / SECTOR + i;
        int64_t stamp = orc_stamp(buf + i * SECTOR, sector);
        int slot = orc_slot(sector);
        if (stamp < 0 || (slot >= 0 && !orc_visible(d, (unsigned)slot, (uint32_t)stamp, since, now))) {
            if (!w->why[0])
                snprintf(w->why, sizeof w->why, "disk d%u: sector %llu reads as stamp %lld, which it may not", d->number, (unsigned long long)sector,
                         (long long)stamp);
            w->stale++;
            return -1;
        }
    }
    return r;
}

static void do_compare_write(struct crash_work *w, struct orc_disk *d)
{
    struct span s = random_range(w, d, SECTOR, 16);
    uint8_t *old = aligned_alloc(4096, 8192), *new = aligned_alloc(4096, 8192);
    uint32_t stamp = ++w->orc.stamps;
    if (do_read(w, d, s, old) == 0) {
        for (uint64_t i = 0; i < s.len / SECTOR; i++)
            orc_fill(new + i * SECTOR, d, s.off / SECTOR + i, stamp);
        size_t op = orc_op_add(&w->orc, d, (struct orc_op){ .first = s.off / SECTOR, .n = s.len / SECTOR, .stamp = stamp, .fua = true });
        int r = gr_compare_write(d->ch, s.off, old, new, s.len, NULL);
        if (r == 0)
            orc_op_ack(&w->orc, d, op);
        else if (r == -GR_EMISCOMPARE)
            d->op[op].dead = true;
        else if (r != -GR_ENOSPACE)
            wrong(w, "compare and write", r);
        w->compares++;
    }
    free(old);
    free(new);
}

static void data_step(struct crash_work *w, struct orc_disk *d)
{
    uint8_t *buf;
    struct span s;
    uint64_t k = rnd(w, 100);
    if (k < 30) {
        write_stamp(w, d, random_range(w, d, 4096, 16), rnd(w, 12) == 0 ? GR_BIO_FUA : 0);
    } else if (k < 40) {
        s = random_range(w, d, 65536, 2);
        if (s.len >= 65536)
            write_stamp(w, d, s, 0);
    } else if (k < 58) {
        write_stamp(w, d, random_range(w, d, SECTOR, 20), rnd(w, 12) == 0 ? GR_BIO_FUA : 0);
    } else if (k < 68) { /* write, flush, overwrite the same spot, often once more */
        s = random_range(w, d, rnd(w, 2) ? 4096 : SECTOR, 8);
        if (write_stamp(w, d, s, 0) == 0)
            do_flush(w, d);
        if (rnd(w, 2))
            gr_fiber_sleep_ms(25);
        for (uint64_t n = 1 + rnd(w, 3); n; n--)
            write_stamp(w, d, s, 0);
    } else if (k < 73) {
        do_zero(w, d, true);
    } else if (k < 78) {
        do_zero(w, d, false);
    } else if (k < 83) {
        do_compare_write(w, d);
    } else if (k < 90) {
        do_flush(w, d);
    } else if (k < 96) {
        s = random_range(w, d, SECTOR, 100);
        buf = aligned_alloc(4096, 65536);
        do_read(w, d, s, buf);
        free(buf);
    } else {
        gr_fiber_sleep_ms(rnd(w, 30));
    }
}

static void ended(struct crash_work *w)
{
    if (--w->running == 0)
        gr_fqueue_wake_all(&w->done);
}

static void data_fiber(void *arg)
{
    struct crash_work *w = arg;
    for (unsigned i = 0; i < w->ops && !w->why[0]; i++) {
        struct orc_disk *d = pick(w, 0, 1);
        if (!d) {
            gr_fiber_sleep_ms(1);
            continue;
        }
        gr_frwlock_read(&d->lock);
        if (d->d)
            data_step(w, d);
        gr_frwlock_unlock(&d->lock);
    }
    ended(w);
}

/* ---- disks ---- */
static int attach(struct crash_work *w, struct orc_disk *d)
{
    struct gr_err err = { 0 };
    int r = vmfs_open(w->v, d->renamed.ack ? d->name2 : d->name, &d->d, NULL, &err);
    if (r == 0)
        r = gr_chan_open(vmfs_bdev(d->d), gr_fiber_loop(), &d->ch);
    if (r < 0)
        wrong(w, gr_err_text(&err, r), r);
    return r;
}

static void create(struct crash_work *w)
{
    struct orc_disk *d = orc_disk_add(&w->orc, NULL, ORC_SIZE);
    struct gr_err err = { 0 };
    uint64_t kind = w->reserved ? rnd(w, 8) : 0;
    enum vmfs_provision provision = kind == 7 || (w->reserved && w->orc.n_disks == 1) ? VMFS_EAGER : kind > 2 ? VMFS_THICK : VMFS_THIN;
    d->made.submit = orc_tick(&w->orc);
    bool encrypted = w->kek && rnd(w, 4);
    int r = encrypted ? vmfs_create_encrypted(w->v, d->name, ORC_SIZE, provision, 4096, w->kek, &err)
                      : vmfs_create(w->v, d->name, VMFS_DISK, ORC_SIZE, provision, &err);
    w->encrypted += encrypted;
    w->thick += provision == VMFS_THICK;
    w->eager += d->eager = provision == VMFS_EAGER;
    if (r < 0) {
        wrong(w, gr_err_text(&err, r), r);
        return;
    }
    d->made.ack = orc_tick(&w->orc);
    attach(w, d);
}

static void detach(struct orc_disk *d)
{
    gr_chan_close(d->ch);
    vmfs_close(d->d);
    d->ch = NULL;
    d->d = NULL;
}

static void remove_disk(struct crash_work *w, struct orc_disk *d)
{
    struct gr_err err = { 0 };
    gr_frwlock_write(&d->lock);
    detach(d);
    uint64_t submit = orc_tick(&w->orc);
    d->removed.submit = submit;
    int r = vmfs_remove(w->v, d->renamed.ack ? d->name2 : d->name, &err);
    if (r == 0) {
        d->removed.ack = orc_tick(&w->orc);
        w->removes++;
    } else if (r == -EBUSY) { /* a snapshot of it is being read */
        d->removed.submit = 0;
        attach(w, d);
    } else {
        wrong(w, gr_err_text(&err, r), r);
    }
    gr_frwlock_unlock(&d->lock);
}

static void rename_disk(struct crash_work *w, struct orc_disk *d)
{
    struct gr_err err = { 0 };
    if (d->renamed.submit)
        return;
    d->renamed.submit = orc_tick(&w->orc);
    int r = vmfs_rename(w->v, d->name, d->name2, &err);
    if (r < 0)
        wrong(w, gr_err_text(&err, r), r);
    else
        d->renamed.ack = orc_tick(&w->orc);
    w->renames++;
}

/* ---- snapshots ---- */
static void remember(struct crash_work *w, struct orc_disk *d, struct orc_snap *s)
{
    struct gr_err err = { 0 };
    struct gr_bdev *b;
    struct gr_geometry g;
    uint32_t *values = malloc(ORC_SLOTS * sizeof *values);
    int r = snap_open(d->d, s->name, &b, &err);
    if (r < 0) {
        wrong(w, gr_err_text(&err, r), r);
        free(values);
        return;
    }
    gr_bdev_geometry(b, &g);
    r = orc_read(b, g.size, values, w->why);
    gr_bdev_put(b);
    if (r < 0) { /* of a host that is dead by now, too: then nobody knows */
        free(values);
        return;
    }
    for (unsigned i = 0; i < ORC_SLOTS && !w->why[0]; i++)
        if (!orc_visible(d, i, values[i], s->made.submit, s->made.ack))
            snprintf(w->why, sizeof w->why, "snapshot '%s' of d%u: slot %u shows stamp %u, not of its instant", s->name, d->number, i, values[i]);
    s->size = g.size;
    s->values = values;
}

static void snapshot(struct crash_work *w, unsigned admin)
{
    struct orc_disk *d[3] = { pick(w, admin, w->admin_fibers) };
    unsigned n = d[0] ? 1 : 0;
    for (uint64_t more = rnd(w, 3); more && n; more--) {
        struct orc_disk *x = pick(w, admin, w->admin_fibers);
        bool twice = false;
        for (unsigned i = 0; i < n; i++)
            twice |= d[i] == x;
        if (!twice)
            d[n++] = x;
    }
    struct vmfs_disk *handle[3];
    struct orc_snap *s[3];
    struct gr_err err = { 0 };
    char name[ORC_NAME];
    snprintf(name, sizeof name, "s%u", ++w->names);
    unsigned group = ++w->groups;
    uint64_t t = orc_tick(&w->orc);
    for (unsigned i = 0; i < n; i++) {
        s[i] = orc_snap_add(d[i], name);
        s[i]->made.submit = t;
        s[i]->group = n > 1 ? group : 0;
        handle[i] = d[i]->d;
    }
    int r = n ? snap_create(handle, n, name, &err) : 0;
    if (r < 0)
        wrong(w, gr_err_text(&err, r), r);
    t = orc_tick(&w->orc);
    for (unsigned i = 0; r == 0 && i < n; i++)
        s[i]->made.ack = t;
    for (unsigned i = 0; r == 0 && i < n; i++)
        remember(w, d[i], s[i]);
    w->snapshots += n;
}

static struct orc_snap *pick_snap(struct crash_work *w, struct orc_disk *d)
{
    struct orc_snap *live[64];
    unsigned n = 0;
    for (size_t i = 0; i < d->n_snaps && n < 64; i++)
        if (d->snap[i]->made.ack && d->snap[i]->values && !d->snap[i]->deleted.submit)
            live[n++] = d->snap[i];
    return n ? live[rnd(w, n)] : NULL;
}

static void delete_snap(struct crash_work *w, struct orc_disk *d, struct orc_snap *s)
{
    struct gr_err err = { 0 };
    s->deleted.submit = orc_tick(&w->orc);
    int r = snap_delete(d->d, s->name, false, &err);
    if (r < 0)
        wrong(w, gr_err_text(&err, r), r);
    s->deleted.ack = orc_tick(&w->orc);
    w->deletes++;
}

static void revert(struct crash_work *w, struct orc_disk *d, struct orc_snap *s)
{
    struct gr_err err = { 0 };
    gr_frwlock_write(&d->lock);
    size_t op = orc_op_add(&w->orc, d, (struct orc_op){ .n = ORC_SIZE / SECTOR, .values = s->values, .size = s->size, .fua = true });
    int r = snap_revert(d->d, s->name, &err);
    if (r < 0)
        wrong(w, gr_err_text(&err, r), r);
    else
        orc_op_ack(&w->orc, d, op);
    gr_frwlock_unlock(&d->lock);
    w->reverts++;
}

/* It gets its own copies of what it shares with its origin, while it is written. */
static void own(struct crash_work *w, struct orc_disk *d)
{
    struct gr_err err = { 0 };
    struct vmfs_stat st;
    gr_frwlock_read(&d->lock);
    int r = d->d ? vmfs_detach(d->d, &(struct vmfs_detach){ 0 }, NULL, &err) : -EBUSY;
    if (r == 0) {
        vmfs_disk_stat(d->d, &st);
        w->owned++;
        if (st.origin_id)
            wrong(w, "it is still a clone", -EINVAL);
    } else if (r != -GR_ENOSPACE && r != -EBUSY) { /* a snapshot of it was taken */
        wrong(w, gr_err_text(&err, r), r);
    }
    gr_frwlock_unlock(&d->lock);
}

static void clone(struct crash_work *w, struct orc_disk *d, struct orc_snap *s)
{
    struct gr_err err = { 0 };
    struct orc_disk *c = orc_disk_add(&w->orc, s->values, s->size);
    c->eager = d->eager;
    c->made.submit = orc_tick(&w->orc);
    int r = snap_clone(d->d, s->name, c->name, &err);
    if (r < 0) {
        wrong(w, gr_err_text(&err, r), r);
        return;
    }
    c->made.ack = orc_tick(&w->orc);
    attach(w, c);
    w->clones++;
    if (rnd(w, 2))
        own(w, c);
}

/* A copy that shares, from the same place of another disk, which is held still meanwhile; small, or whole windows. */
static void copy_range(struct crash_work *w, struct orc_disk *s, struct orc_disk *d)
{
    struct span x = random_range(w, d, 4096, 32);
    uint64_t size = GR_MIN(size_of(s), size_of(d)) / 4096 * 4096;
    if (rnd(w, 3) == 0)
        x = (struct span){ rnd(w, 2) ? 0 : rnd(w, size / 4096) * 4096, size };
    if (x.off >= size)
        return;
    x.len = GR_MIN(x.len, size - x.off);
    uint32_t *values = malloc(ORC_SLOTS * sizeof *values);
    if (orc_read(vmfs_bdev(s->d), size_of(s), values, w->why) < 0) {
        free(values);
        return;
    }
    size_t op = orc_op_add(&w->orc, d, (struct orc_op){ .first = x.off / SECTOR, .n = x.len / SECTOR, .copied = values });
    d->eager |= s->eager; /* its zeros are data, too */
    struct gr_bio bio = { .op = GR_OP_COPY, .off = x.off, .len = x.len, .copy_src = s->ch, .copy_src_off = x.off };
    int r = gr_submit_wait(d->ch, &bio);
    if (r == 0)
        orc_op_ack(&w->orc, d, op);
    w->copies += r == 0;
    w->no_space += r == -GR_ENOSPACE;
    if (r < 0 && r != -GR_ENOSPACE && r != -EOPNOTSUPP) /* refused half-way: some of it is there */
        wrong(w, "copy", r);
}

static void copy(struct crash_work *w)
{
    struct orc_disk *s = pick(w, 0, 1), *d = pick(w, 0, 1);
    if (!s || !d || s == d)
        return;
    gr_fmutex_lock(&w->copying);
    gr_frwlock_write(&s->lock);
    gr_frwlock_read(&d->lock);
    if (s->d && d->d)
        copy_range(w, s, d);
    gr_frwlock_unlock(&d->lock);
    gr_frwlock_unlock(&s->lock);
    gr_fmutex_unlock(&w->copying);
}

static void resize(struct crash_work *w, struct orc_disk *d)
{
    struct gr_err err = { 0 };
    gr_frwlock_write(&d->lock);
    uint64_t now = size_of(d), next = now == ORC_SIZE ? ORC_SIZE_SMALL : ORC_SIZE;
    struct orc_op x = { .size = next, .fua = true };
    if (next < now) {
        x.first = next / SECTOR;
        x.n = (now - next) / SECTOR;
    }
    size_t op = orc_op_add(&w->orc, d, x);
    int r = vmfs_resize(d->d, next, true, &err);
    w->no_space += r == -GR_ENOSPACE;
    if (r < 0 && r != -GR_ENOSPACE) /* the rest of the last piece is written, and some of what is cut off may be gone */
        wrong(w, gr_err_text(&err, r), r);
    else if (r == 0)
        orc_op_ack(&w->orc, d, op);
    gr_frwlock_unlock(&d->lock);
    w->resizes++;
}

/* Another data key, and perhaps all that is old written anew. */
static void rekey(struct crash_work *w, struct orc_disk *d)
{
    struct gr_err err = { 0 };
    struct vmfs_stat st;
    unsigned left;
    gr_frwlock_read(&d->lock);
    if (d->d) {
        vmfs_disk_stat(d->d, &st);
        int r = !st.key_id ? 0 : rnd(w, 4) ? vmfs_keys_rotate(d->d, w->kek, &err) : vmfs_keys_rewrap(d->d, w->kek, &err);
        w->rekeys += st.key_id && r == 0;
        bool all = st.key_id && rnd(w, 2);
        if (r == 0 && all)
            r = vmfs_keys_rewrite(d->d, NULL, NULL, &left, &err);
        w->rewrites += all && r == 0;
        if (r < 0 && r != -GR_ENOSPACE && r != -EBUSY) /* too many keys, no room; a device that leaves */
            wrong(w, gr_err_text(&err, r), r);
    }
    gr_frwlock_unlock(&d->lock);
}

/* Pieces are put behind each other, now and then until it is told to stop. */
static int stop_perhaps(void *arg, uint64_t done, uint64_t all, struct gr_err *err)
{
    struct crash_work *w = arg;
    (void)done;
    (void)all;
    gr_fiber_sleep_ms(rnd(w, 2));
    return rnd(w, 8) ? 0 : gr_fail(err, -GR_ECANCELED, "enough");
}

static void defragment(struct crash_work *w, struct orc_disk *d)
{
    struct vmfs_defrag_opts o = { .progress = rnd(w, 2) ? stop_perhaps : NULL, .arg = w };
    struct vmfs_defrag_report rep = { 0 };
    struct gr_err err = { 0 };
    gr_frwlock_read(&d->lock);
    int r = d->d ? vmfs_defragment(d->d, &o, &rep, &err) : 0;
    gr_frwlock_unlock(&d->lock);
    if (r < 0 && r != -GR_ENOSPACE && r != -GR_ECANCELED)
        wrong(w, gr_err_text(&err, r), r);
    if (rep.bad)
        wrong(w, "defragment: it does not return what was written", -EIO);
    w->defragments++;
    w->defragmented += rep.moved >> 10;
}

/* It has more regions than it needs, and another host asks for them. */
static void give_back(struct crash_work *w)
{
    struct gr_err err = { 0 };
    for (uint64_t n = rnd(w, 4); n > 0 && space_lease_any(w->v, NULL) == 0; n--)
        ;
    int r = vmfs_regions_recall(w->v, &err);
    if (r < 0)
        wrong(w, gr_err_text(&err, r), r);
}

static void admin_step(struct crash_work *w, unsigned admin)
{
    struct orc_disk *d = pick(w, admin, w->admin_fibers);
    struct orc_snap *s = d ? pick_snap(w, d) : NULL;
    unsigned live = 0;
    for (size_t i = 0; i < w->orc.n_disks; i++)
        live += w->orc.disk[i]->d != NULL;
    uint64_t k = rnd(w, 100);
    if (!d || (k < 6 && live < 6))
        create(w);
    else if (k < 35)
        snapshot(w, admin);
    else if (k < 55 && s)
        delete_snap(w, d, s);
    else if (k < 62 && s)
        revert(w, d, s);
    else if (k < 70 && s && live < 7)
        clone(w, d, s);
    else if (k < 76 && live > 2)
        remove_disk(w, d);
    else if (k < 80)
        rename_disk(w, d);
    else if (k < 85)
        resize(w, d);
    else if (k < 88)
        vmfs_checkpoint(w->v, NULL);
    else if (k < 91)
        give_back(w);
    else if (k < 94 && w->kek)
        rekey(w, d);
    else if (k < 98)
        copy(w);
    else
        gr_fiber_sleep_ms(rnd(w, 40));
    d = pick(w, admin, w->admin_fibers);
    if (d && rnd(w, 3) == 0)
        defragment(w, d);
}

struct admin {
    struct crash_work *w;
    unsigned number;
};
static void admin_fiber(void *arg)
{
    struct admin *a = arg;
    for (unsigned i = 0; i < a->w->ops / 4 && !a->w->why[0]; i++) {
        admin_step(a->w, a->number);
        gr_fiber_sleep_ms(rnd(a->w, 8));
    }
    ended(a->w);
    free(a);
}

int crash_work_run(struct crash_work *w)
{
    for (unsigned i = 0; i < 3; i++)
        create(w);
    w->running = w->data_fibers + w->admin_fibers;
    for (unsigned i = 0; i < w->data_fibers; i++)
        gr_fiber_start(gr_fiber_loop(), data_fiber, w);
    for (unsigned i = 0; i < w->admin_fibers; i++) {
        struct admin *a = malloc(sizeof *a);
        *a = (struct admin){ w, i };
        gr_fiber_start(gr_fiber_loop(), admin_fiber, a);
    }
    while (w->running)
        gr_fqueue_wait(&w->done);
    for (size_t i = 0; i < w->orc.n_disks; i++)
        if (w->orc.disk[i]->d)
            detach(w->orc.disk[i]);
    return w->why[0] ? -1 : 0;
}
