/* Clones: a thousand of one image, what they cost; origins that are deleted before them; clones that get blocks of their own while they are
 * written, stopped and begun again; what a delete and a revert write, however much is freed. */
#include "tests/lib/test.h"
#include "common/cleanup.h"
#include "snapshot/snapshot.h"
#include "vmfs/internal.h"
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

struct site {
    struct gr_mem *mem;
    struct gr_bdev *base, *dev;
    struct vmfs *v;
    struct vmfs_disk *d; /* "gold" */
    struct gr_chan *ch;
};

static void attach(struct site *s)
{
    struct vmfs_join_opts o = { .role = VMFS_HOST, .host_name = "clones" };
    assert_int_equal(gr_bdev_mem_open(gr_fiber_loop(), s->mem, &s->base), 0);
    assert_int_equal(gr_bdev_record_open(gr_fiber_loop(), s->base, &s->dev), 0);
    OK(vmfs_join(gr_fiber_loop(), &s->dev, 1, &o, &s->v, &err));
}

static void close_disk(struct vmfs_disk *d, struct gr_chan *ch)
{
    if (ch)
        gr_chan_close(ch);
    vmfs_close(d);
}

static void gold_close(struct site *s) { close_disk(gr_take(s->d), gr_take(s->ch)); }

static void detach(struct site *s, bool crash)
{
    gold_close(s);
    if (crash)
        vmfs_abandon(s->v);
    else
        OK(vmfs_leave(s->v, &err));
    gr_bdev_put(s->dev);
    gr_bdev_put(s->base);
}

static void site_make(struct site *s, uint64_t size)
{
    struct vmfs_format_opts f = { .name = "ds" };
    struct gr_bdev *b;
    s->mem = gr_mem_new(size);
    assert_int_equal(gr_bdev_mem_open(gr_fiber_loop(), s->mem, &b), 0);
    OK(vmfs_format(gr_fiber_loop(), &b, 1, &f, &err));
    gr_bdev_put(b);
    attach(s);
}

static void open_disk(struct site *s, const char *name, struct vmfs_disk **d, struct gr_chan **ch)
{
    OK(vmfs_open(s->v, name, d, NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(*d), gr_fiber_loop(), ch), 0);
}

static void gold_open(struct site *s) { open_disk(s, "gold", &s->d, &s->ch); }

static void site_begin(struct site *s, uint64_t volume, uint64_t disk, enum vmfs_provision provision)
{
    site_make(s, volume);
    OK(vmfs_create(s->v, "gold", VMFS_DISK, disk, provision, &err));
    gold_open(s);
}

static void site_end(struct site *s)
{
    detach(s, false);
    gr_mem_free(s->mem);
}

static void line(void *arg, const char *text)
{
    (void)arg;
    print_message("check: %s\n", text);
}

static void sound(struct site *s)
{
    struct vmfs_check_report rep;
    OK(vmfs_check(s->v, line, NULL, &rep, &err));
}

static void settle(struct site *s)
{
    assert_int_equal(vmfs_settle(s->v, 20000), 0);
    OK(vmfs_checkpoint(s->v, &err));
}

static uint64_t free_bytes(struct site *s)
{
    struct vmfs_info i;
    vmfs_info(s->v, &i);
    return i.free;
}

/* Bytes written since the request number @from. */
static uint64_t written(struct site *s, size_t from, uint64_t *ret_data)
{
    struct gr_record *r = gr_bdev_record(s->dev);
    uint64_t sum = 0;
    for (size_t i = from; i < gr_record_count(r); i++) {
        const struct gr_record_entry *e = gr_record_at(r, i);
        sum += e->op == GR_OP_WRITE ? e->len : 0;
        if (ret_data && e->op == GR_OP_WRITE && e->len >= VMFS_UNIT && memcmp(e->data, "gold data", 9) == 0)
            *ret_data += e->len;
    }
    return sum;
}

static size_t now(struct site *s) { return gr_record_count(gr_bdev_record(s->dev)); }

static void fill(struct gr_chan *ch, uint64_t off, uint64_t len, unsigned stamp)
{
    uint8_t *b = calloc(1, len);
    for (uint64_t i = 0; i < len; i += VMFS_UNIT) {
        memcpy(b + i, "gold data", 10);
        gr_put_le64(b + i + 16, off + i);
        gr_put_le32(b + i + 24, stamp);
    }
    assert_int_equal(gr_pwrite(ch, b, len, off, 0), 0);
    free(b);
}

static void holds(struct gr_chan *ch, uint64_t off, uint64_t len, unsigned stamp)
{
    uint8_t *b = malloc(len);
    assert_int_equal(gr_pread(ch, b, len, off), 0);
    for (uint64_t i = 0; i < len; i += VMFS_UNIT)
        if (memcmp(b + i, "gold data", 10) || gr_get_le64(b + i + 16) != off + i || gr_get_le32(b + i + 24) != stamp)
            fail_msg("byte %llu is not what was written (%u)", (unsigned long long)(off + i), stamp);
    free(b);
}

static int count_hidden(void *arg, const char *name, const struct vmfs_stat *st)
{
    (void)name;
    (void)st;
    ++*(unsigned *)arg;
    return 0;
}

/* ---- a thousand ---- */
#define MANY 1000u
#define IMAGE (24ull << 20)
static int thousand_fn(void *arg)
{
    struct site s = { 0 };
    (void)arg;
    site_begin(&s, 512 << 20, 64 << 20, VMFS_THIN);
    settle(&s);
    uint64_t empty = free_bytes(&s);
    fill(s.ch, 0, IMAGE, 1);
    OK(snap_create(&s.d, 1, "one", &err));
    settle(&s);
    uint64_t before = free_bytes(&s);
    char names[MANY][24];
    const char *paths[MANY];
    for (unsigned i = 0; i < MANY; i++) {
        snprintf(names[i], sizeof names[i], "vdi/desk-%04u", i);
        paths[i] = names[i];
    }
    size_t at = now(&s);
    uint64_t t = gr_loop_now_ns(gr_fiber_loop());
    unsigned made = 0;
    OK(snap_clone_many(s.d, "one", paths, MANY, &made, NULL, &err));
    uint64_t bytes = written(&s, at, NULL), ns = gr_loop_now_ns(gr_fiber_loop()) - t, space = before - free_bytes(&s);
    print_message("# %u clones in %.3f s, %.1f KiB written and %.1f KiB of space for each\n", made, (double)ns / 1e9, (double)bytes / made / 1024,
                  (double)space / made / 1024);
    assert_int_equal(made, MANY);
    assert_true(bytes / made <= 65536 && space / made <= 65536);
    const char *again[] = { "vdi/new", "vdi/desk-0007" };
    assert_int_equal(snap_clone_many(s.d, "one", again, 2, &made, NULL, NULL), -EEXIST);
    const char *twice[] = { "vdi/new", "vdi/new" };
    FAILS(-EEXIST, "named twice", snap_clone_many(s.d, "one", twice, 2, &made, NULL, &err));
    struct vmfs_stat st;
    assert_int_equal(vmfs_stat(s.v, "vdi/new", &st, NULL), -ENOENT); /* all or none */
    sound(&s);
    /* the image goes first */
    detach(&s, false);
    attach(&s);
    OK(vmfs_remove(s.v, "gold", &err));
    settle(&s);
    sound(&s);
    detach(&s, true); /* and nobody has to remember it */
    attach(&s);
    settle(&s);
    struct vmfs_disk *d;
    struct gr_chan *ch;
    open_disk(&s, names[500], &d, &ch);
    holds(ch, 0, IMAGE, 1);
    fill(ch, 0, 1 << 20, 2);
    close_disk(d, ch);
    at = now(&s);
    for (unsigned i = 0; i < MANY - 1; i++)
        OK(vmfs_remove(s.v, names[i], &err));
    settle(&s);
    print_message("# deleting a clone: %.1f KiB written\n", (double)written(&s, at, NULL) / (MANY - 1) / 1024);
    open_disk(&s, names[MANY - 1], &d, &ch);
    holds(ch, 0, IMAGE, 1);
    close_disk(d, ch);
    sound(&s);
    assert_true(free_bytes(&s) < empty - IMAGE / 2); /* the last one needs it */
    OK(vmfs_remove(s.v, names[MANY - 1], &err));
    settle(&s);
    sound(&s);
    assert_true(free_bytes(&s) > empty - (2 << 20));
    unsigned kept = 0;
    OK(vmfs_hidden(s.v, count_hidden, &kept, &err));
    assert_int_equal(kept, 0); /* nor an inode */
    site_end(&s);
    return 0;
}
static void thousand(void **state)
{
    (void)state;
    test_in_fiber(thousand_fn, NULL);
}

/* ---- another disk takes the name ---- */
static int keep_name(void *arg, const char *name, const struct vmfs_stat *st)
{
    (void)st;
    snprintf(arg, 32, "%s", name);
    return 0;
}

static int replaced_fn(void *arg)
{
    struct site s = { 0 };
    char name[32] = "";
    (void)arg;
    site_begin(&s, 96 << 20, 16 << 20, VMFS_THIN);
    OK(vmfs_create(s.v, "new", VMFS_DISK, 16 << 20, VMFS_THIN, &err));
    fill(s.ch, 0, 1 << 20, 1);
    OK(snap_create(&s.d, 1, "one", &err));
    OK(snap_clone(s.d, "one", "c", &err));
    OK(snap_protect(s.d, "one", "ops", "", &err));
    detach(&s, false);
    attach(&s);
    FAILS(-GR_ELOCKED, "protected by ops", ns_replace(s.v, "new", "gold", &err));
    gold_open(&s);
    OK(snap_unprotect(s.d, "one", &err));
    detach(&s, false);
    attach(&s);
    OK(ns_replace(s.v, "new", "gold", &err));
    settle(&s);
    sound(&s);
    OK(vmfs_hidden(s.v, keep_name, name, &err));
    assert_string_equal(name, "gold"); /* it is kept for the clone, and has a name to be shown */
    struct vmfs_disk *c;
    struct gr_chan *ch;
    open_disk(&s, "c", &c, &ch);
    holds(ch, 0, 1 << 20, 1);
    close_disk(c, ch);
    site_end(&s);
    return 0;
}
static void replaced(void **state)
{
    (void)state;
    test_in_fiber(replaced_fn, NULL);
}

/* ---- detach ---- */
struct writer {
    struct gr_chan *ch;
    bool stop, ended;
    unsigned stamp;
};
static void write_on(void *arg)
{
    struct writer *w = arg;
    while (!w->stop) {
        w->stamp++;
        fill(w->ch, 2 << 20, 256 << 10, w->stamp);
        gr_fiber_sleep_ms(1);
    }
    w->ended = true;
}

static int give_up(void *arg, uint64_t bytes, struct gr_err *err)
{
    return bytes >= *(uint64_t *)arg ? gr_fail(err, -GR_ECANCELED, "enough for now") : 0;
}

static int detach_fn(void *arg)
{
    struct site s = { 0 };
    (void)arg;
    site_begin(&s, 256 << 20, 64 << 20, VMFS_THIN);
    settle(&s);
    uint64_t empty = free_bytes(&s);
    fill(s.ch, 0, 12 << 20, 1);
    fill(s.ch, 16 << 20, 8 << 20, 1); /* a leaf that will have nothing but holes */
    fill(s.ch, (40 << 20) + 8192, 4096, 1); /* and reserved pieces around this one */
    assert_int_equal(gr_unmap(s.ch, 16 << 20, 8 << 20, 0), 0);
    OK(snap_create(&s.d, 1, "one", &err));
    OK(snap_clone(s.d, "one", "c", &err));
    struct vmfs_disk *c;
    struct gr_chan *ch;
    open_disk(&s, "c", &c, &ch);
    OK(snap_create(&c, 1, "mine", &err));
    struct gr_err why = { 0 };
    assert_int_equal(vmfs_detach(c, &(struct vmfs_detach){ 0 }, NULL, &why), -EBUSY); /* the snapshot shares, too */
    assert_non_null(strstr(why.text, "mine"));
    OK(snap_delete(c, "mine", false, &err));
    OK(snap_settle(c, &err));
    close_disk(c, ch);
    OK(vmfs_remove(s.v, "c", &err));
    OK(snap_clone(s.d, "one", "c", &err));
    open_disk(&s, "c", &c, &ch);
    uint64_t some = 4 << 20, copied = 0, more = 0;
    assert_int_equal(vmfs_detach(c, &(struct vmfs_detach){ give_up, &some }, &copied, &why), -GR_ECANCELED);
    assert_true(copied >= some && copied < (8 << 20));
    assert_int_equal(gr_flush(ch), 0);
    close_disk(c, ch);
    detach(&s, true);
    attach(&s);
    gold_open(&s);
    sound(&s);
    open_disk(&s, "c", &c, &ch);
    struct writer w = { .ch = ch, .stamp = 100 };
    gr_fiber_start(gr_fiber_loop(), write_on, &w);
    OK(vmfs_detach(c, &(struct vmfs_detach){ 0 }, &more, &err));
    w.stop = true;
    while (!w.ended)
        gr_fiber_sleep_ms(1);
    print_message("# detach: %llu KiB, then %llu KiB copied\n", (unsigned long long)copied / 1024, (unsigned long long)more / 1024);
    assert_true(more <= (12 << 20) + 4096 - copied);
    struct vmfs_stat st;
    vmfs_disk_stat(c, &st);
    assert_true(!st.origin_id && st.unique == st.reachable);
    sound(&s);
    OK(vmfs_detach(c, &(struct vmfs_detach){ 0 }, &more, &err)); /* again: nothing */
    assert_int_equal(more, 0);
    close_disk(c, ch);
    detach(&s, true);
    attach(&s);
    OK(vmfs_remove(s.v, "gold", &err));
    settle(&s);
    sound(&s);
    open_disk(&s, "c", &c, &ch);
    holds(ch, 0, 2 << 20, 1);
    holds(ch, 2 << 20, 256 << 10, w.stamp);
    holds(ch, (2 << 20) + (256 << 10), (10 << 20) - (256 << 10), 1);
    holds(ch, (40 << 20) + 8192, 4096, 1);
    close_disk(c, ch);
    assert_true(free_bytes(&s) > empty - (14 << 20) && free_bytes(&s) < empty - (11 << 20)); /* what it is, once */
    OK(vmfs_remove(s.v, "c", &err));
    settle(&s);
    sound(&s);
    assert_true(free_bytes(&s) > empty - (1 << 20));
    site_end(&s);
    return 0;
}
static void detached(void **state)
{
    (void)state;
    test_in_fiber(detach_fn, NULL);
}

/* ---- three hosts ---- */
struct party {
    struct gr_bdev *dev;
    struct vmfs *v;
    struct party *all;
    unsigned asked; /* to go on with a removal */
};

static void pass_on(void *arg, uint64_t id, unsigned slot)
{
    struct party *me = arg;
    for (unsigned i = 0; i < 3; i++)
        if (me->all[i].v && vmfs_own_slot(me->all[i].v) == slot) {
            me->all[i].asked++;
            vmfs_resume_object(me->all[i].v, id);
        }
}

static void no_word(void *arg, const char *text)
{
    (void)arg;
    (void)text;
}

static int hand_over_fn(void *arg)
{
    struct vmfs_format_opts f = { .name = "ds" };
    struct gr_mem *mem = gr_mem_new(128 << 20);
    struct party p[3] = { 0 };
    struct vmfs_disk *gold, *c;
    unsigned kept = 0;
    (void)arg;
    for (unsigned i = 0; i < 3; i++) {
        struct vmfs_join_opts o = { .role = VMFS_HOST, .host_name = (const char *[]){ "a", "b", "c" }[i], .address = "unix:/a/daemon", .resume = pass_on, .warn = no_word, .warn_arg = &p[i] };
        assert_int_equal(gr_bdev_mem_open(gr_fiber_loop(), mem, &p[i].dev), 0);
        if (i == 0)
            OK(vmfs_format(gr_fiber_loop(), &p[i].dev, 1, &f, &err));
        OK(vmfs_join(gr_fiber_loop(), &p[i].dev, 1, &o, &p[i].v, &err));
        p[i].all = p;
    }
    OK(vmfs_create(p[0].v, "gold", VMFS_DISK, 16 << 20, VMFS_THIN, &err));
    OK(vmfs_open(p[0].v, "gold", &gold, NULL, &err));
    OK(snap_create(&gold, 1, "one", &err));
    OK(snap_clone(gold, "one", "c1", &err));
    OK(snap_clone(gold, "one", "c2", &err));
    for (unsigned i = 1; i < 3; i++) { /* of host b while a has the image, and c looks on */
        OK(vmfs_release(p[0].v, i == 1 ? "c1" : "c2", &err));
        OK(vmfs_open(p[1].v, i == 1 ? "c1" : "c2", &c, NULL, &err));
        vmfs_close(c);
        OK(vmfs_remove(p[1].v, i == 1 ? "c1" : "c2", &err));
        struct snap_info info = { .clones = 9 };
        for (unsigned tries = 0; tries < 1000 && info.clones != 2 - i; tries++) {
            OK(snap_find(gold, "one", &info, &err));
            gr_fiber_sleep_ms(10);
        }
        assert_int_equal(info.clones, 2 - i);
        assert_int_equal(p[0].asked, i);
        assert_int_equal(p[1].asked + p[2].asked, 0);
    }
    vmfs_close(gold);
    OK(vmfs_hidden(p[2].v, count_hidden, &kept, &err));
    assert_int_equal(kept, 0);
    for (unsigned i = 0; i < 3; i++) {
        struct vmfs *v = p[i].v;
        p[i].v = NULL;
        OK(vmfs_leave(v, &err));
        gr_bdev_put(p[i].dev);
    }
    gr_mem_free(mem);
    return 0;
}
static void handed_over(void **state)
{
    (void)state;
    test_in_fiber(hand_over_fn, NULL);
}

/* ---- promote ---- */
static void snap_holds(struct vmfs_disk *d, const char *name, uint64_t off, uint64_t len, unsigned stamp)
{
    struct gr_bdev *b;
    struct gr_chan *ch;
    OK(snap_open(d, name, &b, &err));
    assert_int_equal(gr_chan_open(b, gr_fiber_loop(), &ch), 0);
    holds(ch, off, len, stamp);
    gr_chan_close(ch);
    gr_bdev_put(b);
}

static int count_fn(void *arg, const struct snap_info *i)
{
    (void)i;
    ++*(unsigned *)arg;
    return 0;
}

/* Before, or after: each disk reads as it did, and the snapshots are with the one or the other. */
static void either_way(struct site *s, unsigned *ret_after)
{
    struct vmfs_disk *c;
    struct gr_chan *ch;
    unsigned n_gold = 0, n_clone = 0;
    sound(s);
    gold_open(s);
    open_disk(s, "c", &c, &ch);
    OK(snap_list(s->d, count_fn, &n_gold, &err));
    OK(snap_list(c, count_fn, &n_clone, &err));
    assert_true((n_gold == 3 && n_clone == 0) || (n_gold == 1 && n_clone == 2));
    holds(s->ch, 0, 1 << 20, 3);
    holds(s->ch, 1 << 20, 1 << 20, 1);
    holds(ch, 0, 512 << 10, 1);
    holds(ch, 512 << 10, 256 << 10, 2);
    holds(ch, 768 << 10, (1 << 20) + (256 << 10), 4);
    snap_holds(n_clone ? c : s->d, "s1", 0, 2 << 20, 1);
    snap_holds(n_clone ? c : s->d, "s2", 512 << 10, 512 << 10, 2);
    snap_holds(s->d, "s3", 0, 1 << 20, 3);
    FAILS(-GR_ELOCKED, "ops", snap_delete(n_clone ? c : s->d, "s1", false, &err));
    close_disk(c, ch);
    *ret_after += n_clone != 0;
}

static void promote_make(struct site *s)
{
    struct vmfs_disk *c;
    struct gr_chan *ch;
    site_begin(s, 96 << 20, 16 << 20, VMFS_THIN);
    fill(s->ch, 0, 2 << 20, 1);
    OK(snap_create(&s->d, 1, "s1", &err));
    OK(snap_protect(s->d, "s1", "ops", "", &err));
    fill(s->ch, 512 << 10, 512 << 10, 2);
    OK(snap_create(&s->d, 1, "s2", &err));
    fill(s->ch, 0, 1 << 20, 3);
    OK(snap_create(&s->d, 1, "s3", &err));
    OK(snap_clone(s->d, "s2", "c", &err));
    open_disk(s, "c", &c, &ch);
    fill(ch, 768 << 10, (1 << 20) + (256 << 10), 4);
    close_disk(c, ch);
    detach(s, false);
    attach(s);
}

/* A cut before each write of it. */
static int promote_fn(void *arg)
{
    struct site s = { 0 };
    unsigned after = 0, cuts = 0;
    (void)arg;
    promote_make(&s);
    gold_open(&s);
    struct vmfs_disk *c, *other;
    struct gr_chan *ch;
    open_disk(&s, "c", &c, &ch);
    struct gr_mem *was = gr_mem_new(96 << 20);
    for (uint64_t off = 0; off < 96 << 20; off += VMFS_UNIT) {
        const void *page = gr_mem_page(s.mem, off, false);
        if (page)
            memcpy(gr_mem_page(was, off, true), page, VMFS_UNIT);
    }
    size_t from = now(&s);
    OK(snap_clone(s.d, "s1", "other", &err));
    FAILS(-EBUSY, "other clones", snap_promote(c, &err));
    OK(vmfs_remove(s.v, "other", &err));
    settle(&s);
    OK(snap_promote(c, &err));
    struct gr_record *rec = gr_bdev_record(s.dev);
    size_t to = gr_record_count(rec);
    for (size_t cut = from; cut <= to; cut++) {
        const struct gr_record_entry *e = cut > from ? gr_record_at(rec, cut - 1) : NULL;
        if (e && e->op == GR_OP_WRITE)
            for (uint64_t i = 0; i < e->len; i += VMFS_UNIT)
                memcpy(gr_mem_page(was, e->off + i, true), e->data + i, VMFS_UNIT);
        else if (e)
            continue;
        struct site t = { .mem = was };
        /* what it changes is changed on a copy */
        t.mem = gr_mem_new(96 << 20);
        for (uint64_t off = 0; off < 96 << 20; off += VMFS_UNIT)
            if (gr_mem_page(was, off, false))
                memcpy(gr_mem_page(t.mem, off, true), gr_mem_page(was, off, false), VMFS_UNIT);
        attach(&t);
        settle(&t);
        either_way(&t, &after);
        site_end(&t);
        cuts++;
    }
    print_message("# promote: %u cuts, after %u of them it was done\n", cuts, after);
    assert_true(after > 0 && after < cuts);
    gr_mem_free(was);
    /* the other disk may go; what is left is whole, and gives all back */
    close_disk(c, ch);
    gold_close(&s);
    either_way(&s, &after);
    FAILS(-EINVAL, "no clone", (open_disk(&s, "c", &other, &ch), snap_promote(other, &err)));
    OK(snap_unprotect(other, "s1", &err));
    gold_close(&s);
    OK(vmfs_remove(s.v, "gold", &err));
    settle(&s);
    sound(&s);
    OK(snap_delete(other, "s1", false, &err));
    OK(snap_settle(other, &err));
    sound(&s);
    holds(ch, 512 << 10, 256 << 10, 2);
    close_disk(other, ch);
    site_end(&s);
    return 0;
}
static void promoted(void **state)
{
    (void)state;
    test_in_fiber(promote_fn, NULL);
}

/* What is counted ahead of the instant at which both stand still is right at it, whatever was written between; only what was is counted again. */
static int ahead_fn(void *arg)
{
    struct site s = { 0 };
    uint64_t rng = test_seed(), size = 400ull << 20, all = 0, with = 0;
    struct vmfs_disk *c;
    struct gr_chan *ch;
    unsigned again = 0;
    (void)arg;
    site_begin(&s, 1 << 30, size, VMFS_THIN);
    for (uint64_t off = 0; off < size; off += 4 << 20)
        fill(s.ch, off, 64 << 10, 1);
    OK(snap_create(&s.d, 1, "one", &err));
    OK(snap_clone(s.d, "one", "c", &err));
    open_disk(&s, "c", &c, &ch);
    for (uint64_t off = 0; off < size; off += 8 << 20)
        fill(ch, off, VMFS_UNIT * (1 + test_rand(&rng) % 16), 2);
    OK(vmfs_checkpoint(s.v, &err));
    for (unsigned round = 0; round < 10; round++) {
        struct usage_notes notes = { 0 };
        struct vticket ticket;
        struct vsnap *one = vobj_snap_named(s.d->o, "one");
        ticket_open(s.v, &ticket);
        OK(usage_lost_ahead(c->o, &c->o->live, s.d->o, one, &notes, &err));
        assert_int_equal(notes.n, 50);
        for (unsigned i = 0; i < 5; i++) {
            uint64_t off = test_rand(&rng) % (size / VMFS_UNIT - 16) * VMFS_UNIT;
            if (i % 2)
                assert_int_equal(gr_unmap(ch, off, 64 << 10, 0), 0);
            else
                fill(ch, off / (8 << 20) * (8 << 20), 64 << 10, 3);
        }
        if (round % 2)
            OK(vmfs_checkpoint(s.v, &err));
        OK(usage_lost(c->o, &c->o->live, s.d->o, one, NULL, &all, &err));
        OK(usage_lost(c->o, &c->o->live, s.d->o, one, &notes, &with, &err));
        assert_int_equal(all, with);
        assert_in_range(notes.taken, 50 - 10, 50); /* a write may lie in two leaves, or find all its blocks to be its own */
        again += 50 - (unsigned)notes.taken;
        ticket_close(s.v, &ticket);
        usage_notes_done(&notes);
        OK(vmfs_checkpoint(s.v, &err));
    }
    assert_true(again > 5);
    close_disk(c, ch);
    site_end(&s);
    return 0;
}
static void counted_ahead(void **state)
{
    (void)state;
    test_in_fiber(ahead_fn, NULL);
}

/* As many snapshots as a disk may have in practice: both disks stand still for a time that grows with their number, not with its cube. */
#define CHAIN 3000u
static int chain_fn(void *arg)
{
    struct site s = { 0 };
    struct vmfs_disk *c;
    struct gr_chan *ch;
    struct snap_info info;
    char name[16];
    (void)arg;
    site_begin(&s, 256 << 20, 16 << 20, VMFS_THIN);
    for (unsigned i = 0; i < CHAIN; i++) {
        snprintf(name, sizeof name, "s%u", i);
        OK(snap_create(&s.d, 1, name, &err));
    }
    OK(snap_expire(s.d, "s7", 12345, &err));
    OK(snap_expire(s.d, "s2999", 54321, &err));
    struct gr_bdev *b = vmfs_bdev(s.d);
    OK(snap_find(s.d, "s8", &info, &err));
    char key[33];
    snap_text_key(info.id, key);
    OK(b->ops->attr_set(b, key, "before the upgrade", 18, &err));
    OK(snap_clone(s.d, "s2998", "c", &err));
    open_disk(&s, "c", &c, &ch);
    clock_t began = clock(); /* of this process, whatever else the machine does */
    OK(snap_promote(c, &err));
    double took = (double)(clock() - began) / CLOCKS_PER_SEC;
    print_message("# promote with %u snapshots: %.2f s\n", CHAIN, took);
    assert_true(took < 3);
    unsigned n = 0;
    OK(snap_list(c, count_fn, &n, &err));
    assert_int_equal(n, CHAIN - 1);
    OK(snap_find(c, "s7", &info, &err));
    assert_int_equal(info.expires_s, 12345);
    OK(snap_find(s.d, "s2999", &info, &err));
    assert_int_equal(info.expires_s, 54321);
    gr_auto_free void *text = NULL;
    b = vmfs_bdev(c);
    assert_int_equal(b->ops->attr_get(b, key, &text, NULL), 18); /* what it is for goes with it */
    close_disk(c, ch);
    sound(&s);
    site_end(&s);
    return 0;
}
static void chained(void **state)
{
    (void)state;
    test_in_fiber(chain_fn, NULL);
}

/* What a copy shares with the origin it shares with its heir: that may not overwrite it where it lies. */
static int heir_fn(void *arg)
{
    struct site s = { 0 };
    struct vmfs_disk *copy, *c;
    struct gr_chan *copy_ch, *ch;
    (void)arg;
    site_begin(&s, 96 << 20, 16 << 20, VMFS_THIN);
    fill(s.ch, 0, 1 << 20, 1);
    OK(vmfs_create(s.v, "copy", VMFS_DISK, 16 << 20, VMFS_THIN, &err));
    open_disk(&s, "copy", &copy, &copy_ch);
    struct gr_bio bio = { .op = GR_OP_COPY, .len = 1 << 20, .copy_src = s.ch };
    assert_int_equal(gr_submit_wait(copy_ch, &bio), 0);
    OK(snap_create(&s.d, 1, "s", &err));
    OK(snap_clone(s.d, "s", "c", &err));
    open_disk(&s, "c", &c, &ch);
    OK(snap_promote(c, &err));
    gold_close(&s);
    OK(vmfs_remove(s.v, "gold", &err));
    settle(&s);
    OK(snap_delete(c, "s", false, &err));
    OK(snap_settle(c, &err));
    bio = (struct gr_bio){ .op = GR_OP_SCRUB, .len = 1 << 20 };
    assert_int_equal(gr_submit_wait(ch, &bio), -EBUSY);
    holds(copy_ch, 0, 1 << 20, 1);
    holds(ch, 0, 1 << 20, 1);
    close_disk(copy, copy_ch);
    close_disk(c, ch);
    sound(&s);
    site_end(&s);
    return 0;
}
static void heir_shares(void **state)
{
    (void)state;
    test_in_fiber(heir_fn, NULL);
}

/* ---- what a delete writes ---- */
#define HUGE_DISK (100ull << 30)
static int delete_fn(void *arg)
{
    struct site s = { 0 };
    (void)arg;
    site_begin(&s, 240ull << 30, HUGE_DISK, VMFS_THICK); /* none of it is memory: reserved space is not written */
    OK(snap_create(&s.d, 1, "full", &err));
    OK(vmfs_resize(s.d, 65536, true, &err)); /* the live disk lets go of all of it */
    fill(s.ch, 0, 65536, 7);
    settle(&s);
    uint64_t before = free_bytes(&s), data = 0, t = gr_loop_now_ns(gr_fiber_loop());
    size_t at = now(&s);
    OK(snap_delete(s.d, "full", false, &err));
    uint64_t gone = gr_loop_now_ns(gr_fiber_loop()) - t;
    OK(snap_settle(s.d, &err));
    uint64_t ns = gr_loop_now_ns(gr_fiber_loop()) - t, freed = free_bytes(&s) - before, bytes = written(&s, at, &data);
    print_message("# %.1f GiB freed in %.2f s (gone from the list after %.2f ms), %.2f MiB written, %llu of them data\n", (double)freed / (1 << 30),
                  (double)ns / 1e9, (double)gone / 1e6, (double)bytes / (1 << 20), (unsigned long long)data);
    assert_true(freed > HUGE_DISK - (1ull << 30));
    assert_true(bytes <= 64 << 20 && data == 0);
    sound(&s);
    site_end(&s);
    return 0;
}
static void deleted(void **state)
{
    (void)state;
    test_in_fiber(delete_fn, NULL);
}

#define SNAPS 1000u
static int any_fn(void *arg)
{
    struct site s = { 0 };
    uint64_t rng = test_seed(), longest = 0, bytes = 0, data = 0;
    (void)arg;
    site_begin(&s, 256 << 20, 64 << 20, VMFS_THIN);
    fill(s.ch, 0, 256 << 10, 1); /* little, for all of it is checked a thousand times */
    for (unsigned i = 0; i < SNAPS; i++) {
        char name[16];
        snprintf(name, sizeof name, "s%u", i);
        OK(snap_create(&s.d, 1, name, &err));
        fill(s.ch, test_rand(&rng) % 64 * VMFS_UNIT, VMFS_UNIT, 2 + i);
    }
    settle(&s);
    for (unsigned i = 0; i < 20; i++) { /* any of them */
        char name[16];
        snprintf(name, sizeof name, "s%u", (unsigned)(i * 37 + test_rand(&rng) % 37));
        size_t at = now(&s);
        OK(snap_delete(s.d, name, false, &err));
        OK(snap_settle(s.d, &err));
        bytes += written(&s, at, &data);
    }
    for (unsigned i = 0; i < 10; i++) {
        char name[16];
        snprintf(name, sizeof name, "s%u", 800 + (unsigned)(test_rand(&rng) % 200));
        uint64_t t = gr_loop_now_ns(gr_fiber_loop());
        OK(snap_revert(s.d, name, &err));
        t = gr_loop_now_ns(gr_fiber_loop()) - t;
        longest = GR_MAX(longest, t);
    }
    print_message("# of %u snapshots: a delete writes %.0f KiB, %llu of them data; the longest of 10 reverts took %.2f ms\n", SNAPS, (double)bytes / 20 / 1024,
                  (unsigned long long)data, (double)longest / 1e6);
    assert_int_equal(data, 0);
    assert_true(longest < 1000000000ull); /* 50 ms; but who knows what else this machine does */
    settle(&s);
    sound(&s);
    site_end(&s);
    return 0;
}
static void any_of_many(void **state)
{
    (void)state;
    test_in_fiber(any_fn, NULL);
}

TEST_MAIN(TEST(thousand), TEST(replaced), TEST(detached), TEST(handed_over), TEST(promoted), TEST(counted_ahead), TEST(chained), TEST(heir_shares), TEST(deleted), TEST(any_of_many))
