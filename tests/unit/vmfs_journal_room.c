/* A small journal of a volume with many regions: what was admitted before it is full fits, too, with all that it changes. */
#include "common/seam.h"
#include "tests/lib/test.h"
#include "vmfs/internal.h"
#include "vmfs/pool.h"
#include <stdlib.h>

#define UNITS 128u   /* of the journal */
#define REGIONS 36u  /* two images each: they fit, but not behind a journal that is half full */

struct site {
    struct gr_mem *mem;
    struct gr_bdev *base, *dev;
    struct vmfs *v;
    struct vmfs_disk *d[2];
    struct gr_chan *ch[2];
    unsigned next, running;
    struct gr_fqueue ended;
};

static void make(struct site *s)
{
    struct vmfs_format_opts f = { .name = "ds1", .journal_units = UNITS };
    struct vmfs_join_opts o = { .role = VMFS_HOST, .host_name = "room" };
    *s = (struct site){ .mem = gr_mem_new(512ull << 20) };
    assert_int_equal(gr_bdev_mem_open(gr_fiber_loop(), s->mem, &s->base), 0);
    assert_int_equal(gr_bdev_delay_open(gr_fiber_loop(), s->base, 0, 1000000, 0, &s->dev), 0);
    OK(vmfs_format(gr_fiber_loop(), &s->base, 1, &f, &err));
    OK(vmfs_join(gr_fiber_loop(), &s->dev, 1, &o, &s->v, &err));
    for (unsigned i = 0; i < 2; i++) {
        OK(vmfs_create(s->v, i ? "b" : "a", VMFS_DISK, 64 << 20, VMFS_THIN, &err));
        OK(vmfs_open(s->v, i ? "b" : "a", &s->d[i], NULL, &err));
        assert_int_equal(gr_chan_open(vmfs_bdev(s->d[i]), gr_fiber_loop(), &s->ch[i]), 0);
    }
}

static void unmake(struct site *s)
{
    struct vmfs_check_report rep;
    OK(vmfs_check(s->v, NULL, NULL, &rep, &err));
    for (unsigned i = 0; i < 2; i++) {
        gr_chan_close(s->ch[i]);
        vmfs_close(s->d[i]);
    }
    OK(vmfs_leave(s->v, &err));
    gr_bdev_put(s->dev);
    gr_bdev_put(s->base);
    gr_mem_free(s->mem);
}

static int put(struct site *s, unsigned disk, uint64_t off, size_t len, int byte, uint32_t flags)
{
    uint8_t *b = aligned_alloc(4096, len);
    memset(b, byte, len);
    int r = gr_pwrite(s->ch[disk], b, len, off, flags);
    free(b);
    return r;
}

/* A block of disk a in each of the regions. */
static void spread(struct site *s)
{
    s->v->sp.stay = 1; /* none is given back */
    for (unsigned n = 0; n < REGIONS; n++) {
        assert_int_equal(space_lease_any(s->v, NULL), 0);
        s->v->sp.current = s->v->sp.regions; /* the newest */
        assert_int_equal(put(s, 0, (uint64_t)n * VMFS_BLOCK, VMFS_BLOCK, 1, 0), 0);
    }
    OK(vmfs_checkpoint(s->v, &err));
}

/* All or nothing, so it goes elsewhere, and its place is free. */
static void move_fiber(void *arg)
{
    struct site *s = arg;
    assert_int_equal(put(s, 0, (uint64_t)s->next++ * VMFS_BLOCK, VMFS_PIECE, 2, GR_BIO_ATOMIC), 0);
    s->running--;
    gr_fqueue_wake_all(&s->ended);
}

/* A few more records are let in. */
static bool has_room(struct vmfs *v)
{
    v->j.used += 3;
    bool room = journal_has_room(v);
    v->j.used -= 3;
    return room;
}

static int admitted_fn(void *arg)
{
    struct site s;
    unsigned records = 0;
    (void)arg;
    make(&s);
    spread(&s);
    s.v->ckpt_running_auto = true; /* no other checkpoint comes in between */
    for (; has_room(s.v) && records < UNITS; records++)
        assert_int_equal(put(&s, 1, 0, VMFS_PIECE, (int)records, 0), 0);
    for (; s.running < REGIONS; s.running++)
        assert_int_equal(gr_fiber_start(gr_fiber_loop(), move_fiber, &s), 0);
    gr_fiber_sleep_ms(50); /* those that were admitted have ended */
    print_message("%u records, then %u of %u were admitted; %u units of %u are used, %llu images due of %llu\n", records, REGIONS - s.running, REGIONS, s.v->j.used, UNITS,
                  (unsigned long long)ckpt_images_due(s.v), (unsigned long long)s.v->sp.images_max);
    assert_true(s.running < REGIONS);
    OK(vmfs_checkpoint(s.v, &err));
    s.v->ckpt_running_auto = false;
    gr_fqueue_wake_all(&s.v->j.room_q);
    while (s.running)
        gr_fqueue_wait(&s.ended);
    OK(vmfs_checkpoint(s.v, &err));
    unmake(&s);
    return 0;
}
static void admitted(void **state) { (void)state; test_in_fiber(admitted_fn, NULL); }

#define FREED (2 * VMFS_LEAF_PIECES)
/* Nothing is free but what disk a gives back now, and that waits on the list of foreign frees: the journal had no room for images just then. The others
 * were asked a moment ago. A checkpoint makes room, and a write waits for it. */
static int waiting_fn(void *arg)
{
    struct site s;
    uint32_t got;
    (void)arg;
    make(&s);
    struct vmfs *v = s.v;
    struct vobj *o = s.d[0]->o;
    for (uint64_t off = 0; off < FREED * (uint64_t)VMFS_PIECE; off += 1 << 20)
        assert_int_equal(put(&s, 0, off, 1 << 20, 1, 0), 0);
    assert_int_equal(put(&s, 1, 0, VMFS_PIECE, 1, 0), 0);
    for (unsigned i = 0; i < 3; i++) {
        OK(vmfs_checkpoint(v, &err));
        gr_fiber_sleep_ms(20);
    }
    space_pool_fill(v);
    while (space_lease_any(v, NULL) == 0)
        ;
    while (space_take_run(v, 4096, &got))
        ;
    OK(mtree_load(o, &o->live, 0, &err));
    OK(mtree_load(o, &o->live, VMFS_LEAF_PIECES, &err));
    journal_expect_images(v, UNITS);
    for (unsigned i = 0; i < 2; i++)
        assert_int_equal(record_map(o, i * (uint64_t)VMFS_LEAF_PIECES, VMFS_LEAF_PIECES, 0, o->epoch, VMFS_P_HOLE, NULL), 0);
    v->j.coming = 0;
    assert_int_equal(v->sp.foreign_units, FREED);
    v->sp.asked_ns = gr_loop_now_ns(v->loop);
    v->sp.asked_well = false;
    assert_int_equal(put(&s, 1, 1 << 20, 1 << 20, 2, 0), 0);
    assert_int_equal(v->sp.foreign_units, 0);
    unmake(&s);
    return 0;
}
static void waiting(void **state) { (void)state; test_in_fiber(waiting_fn, NULL); }

TEST_MAIN(TEST(admitted), TEST(waiting))
