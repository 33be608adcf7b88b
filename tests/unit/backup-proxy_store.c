/* Property: whatever the history of writes, zeroes, growth and shrinking, every restore point gives back exactly the image of its
 * instant, whichever points came before and after. The oracle is a plain copy of the image per point. */
#include "backup-proxy/point.h"
#include "backup-proxy/store.h"
#include "backup-proxy/tree.h"
#include "backup-proxy/walk.h"
#include "common/cleanup.h"
#include "common/fiber.h"
#include "tests/lib/test.h"
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#define SPAN (6u << 20)    /* bytes that change around each hot place */
#define MAX_POINTS 12
struct world {
    struct gr_loop *loop;
    struct bp_repo *repo;
    struct gr_mem *mem;
    struct gr_bdev *bdev;
    struct gr_chan *chan;
    uint64_t size, rnd;
    uint64_t hot[3]; /* places of the disk where things happen */
    uint8_t *shadow; /* of the hot places */
    struct bp_change *changes;
    size_t n_changes, at;
    struct {
        char id[BP_POINT_ID_MAX];
        uint8_t *image;
        uint64_t size;
    } point[MAX_POINTS];
    unsigned points;
};

static uint8_t *shadow_at(struct world *w, uint64_t off)
{
    for (unsigned i = 0; i < 3; i++)
        if (off - w->hot[i] < SPAN)
            return w->shadow + (size_t)i * SPAN + (off - w->hot[i]);
    return NULL;
}
static void fill(struct world *w, uint8_t *p, size_t len)
{
    unsigned kind = (unsigned)(test_rand(&w->rnd) % 4);
    uint64_t few = test_rand(&w->rnd) % 6; /* repeated contents, so that deduplication has work */
    for (size_t i = 0; i < len; i++)
        p[i] = kind == 0 ? (uint8_t)test_rand(&w->rnd) : kind == 1 ? (uint8_t)(few * 31 + i % 251) : kind == 2 ? (uint8_t)(i / 97 + few) : 0;
}
static int change_order(const void *a, const void *b)
{
    const struct bp_change *x = a, *y = b;
    return x->off < y->off ? -1 : x->off > y->off;
}
/* Apply random writes and zeroes; the list of changes is what a perfect differ would tell. */
static void mutate(struct world *w)
{
    unsigned n = 1 + (unsigned)(test_rand(&w->rnd) % 40);
    size_t pieces = 3 * SPAN / 4096;
    uint8_t *mark = calloc(pieces, 1);
    for (unsigned i = 0; i < n; i++) {
        unsigned h = (unsigned)(test_rand(&w->rnd) % 3);
        uint64_t in = test_rand(&w->rnd) % (SPAN / 4096) * 4096;
        size_t len = (size_t)(1 + test_rand(&w->rnd) % (test_rand(&w->rnd) % 4 ? 6 : 300)) * 4096;
        len = GR_MIN(len, (size_t)(SPAN - in));
        if (w->hot[h] + in >= w->size)
            continue;
        len = (size_t)GR_MIN((uint64_t)len, w->size - w->hot[h] - in);
        uint8_t *p = w->shadow + (size_t)h * SPAN + in;
        bool zero = test_rand(&w->rnd) % 4 == 0;
        if (zero)
            memset(p, 0, len);
        else
            fill(w, p, len);
        assert_int_equal(gr_pwrite(w->chan, p, len, w->hot[h] + in, 0), 0);
        for (size_t k = 0; k * 4096 < len; k++)
            mark[(h * (size_t)SPAN + in) / 4096 + k] = zero ? 2 : 1;
    }
    w->n_changes = 0;
    for (size_t i = 0; i < pieces; i++) {
        if (!mark[i])
            continue;
        uint64_t off = w->hot[i * 4096 / SPAN] + i * 4096 % SPAN;
        struct bp_change *last = w->n_changes ? &w->changes[w->n_changes - 1] : NULL;
        if (last && last->off + last->len == off && last->zero == (mark[i] == 2))
            last->len += 4096;
        else
            w->changes[w->n_changes++] = (struct bp_change){off, 4096, mark[i] == 2};
    }
    qsort(w->changes, w->n_changes, sizeof *w->changes, change_order);
    free(mark);
}
static int next_change(void *arg, struct bp_change *ret, struct gr_err *err)
{
    struct world *w = arg;
    if (w->at == w->n_changes)
        return 0;
    *ret = w->changes[w->at++];
    return 1;
}
static int next_extent(void *arg, struct bp_change *ret, struct gr_err *err)
{
    struct bp_walk *walk = arg;
    struct gr_extent e;
    int r;
    while ((r = bp_walk_next(walk, &e)) > 0 && e.flags)
        ;
    if (r > 0)
        *ret = (struct bp_change){e.off, e.len, false};
    return r;
}

static void backup(struct world *w, bool full)
{
    struct bp_lease *lease = NULL;
    struct bp_walk walk;
    struct gr_err err = {0};
    struct bp_ref root;
    struct bp_store_stats st;
    struct bp_point parent = {.doc = NULL};
    struct bp_point_disk pd = {.size = 0};
    assert_int_equal(bp_lease_take(w->repo, BP_LEASE_WRITER, "", &lease, &err), 0);
    if (w->points) {
        assert_int_equal(bp_point_load(w->repo, w->point[w->points - 1].id, &parent, &err), 0);
        assert_int_equal(bp_point_disk(&parent, 0, &pd, &err), 0);
    }
    bp_walk_init(&walk, w->chan, w->size, NULL);
    w->at = 0;
    struct bp_store_job job = {.repo = w->repo, .lease = lease, .src = w->chan, .size = w->size, .parent = pd.root, .parent_size = pd.size,
                               .incremental = !full, .next = full ? next_extent : next_change, .next_arg = full ? (void *)&walk : w};
    int r = bp_store_disk(&job, &root, &st, &err);
    if (r < 0)
        fail_msg("store: %s", err.text);
    if (!full)
        assert_true(st.read <= st.changed + 4096);
    json_t *doc = json_pack("{s:[{s:s,s:s,s:I,s:o}]}", "disks", "name", "d", "path", "ds/d", "size", (json_int_t)w->size, "root", bp_ref_json(&root));
    r = bp_point_publish(w->repo, lease, "ds/d", 1700000000, doc, w->point[w->points].id, &err);
    if (r < 0)
        fail_msg("publish: %s", err.text);
    json_decref(doc);
    bp_point_done(&parent);
    bp_lease_drop(lease);
    uint8_t *copy = malloc(3 * SPAN);
    memcpy(copy, w->shadow, 3 * SPAN);
    w->point[w->points].image = copy;
    w->point[w->points++].size = w->size;
}

static void check_point(struct world *w, unsigned i)
{
    struct gr_bdev *b = NULL;
    struct gr_chan *ch = NULL;
    struct gr_err err = {0};
    struct gr_geometry g;
    static uint8_t buf[1u << 20];
    if (bp_point_open(w->loop, w->repo, w->point[i].id, NULL, &b, &err) < 0)
        fail_msg("open %s: %s", w->point[i].id, err.text);
    assert_int_equal(gr_bdev_geometry(b, &g), 0);
    assert_int_equal(g.size, w->point[i].size);
    assert_int_equal(gr_chan_open(b, w->loop, &ch), 0);
    for (unsigned h = 0; h < 3; h++)
        for (uint64_t off = 0; off < SPAN && w->hot[h] + off < g.size; off += sizeof buf) {
            size_t n = (size_t)GR_MIN((uint64_t)sizeof buf, g.size - w->hot[h] - off);
            assert_int_equal(gr_pread(ch, buf, n, w->hot[h] + off), 0);
            if (memcmp(buf, w->point[i].image + (size_t)h * SPAN + off, n))
                fail_msg("point %u of %u differs near %llu", i, w->points, (unsigned long long)(w->hot[h] + off));
        }
    struct bp_walk walk; /* and nothing but zeros outside the hot places */
    struct gr_extent e;
    bp_walk_init(&walk, ch, g.size, NULL);
    int r;
    uint64_t sum = 0;
    while ((r = bp_walk_next(&walk, &e)) > 0) {
        sum += e.len;
        if (e.flags)
            continue;
        assert_non_null(shadow_at(w, e.off));
        assert_non_null(shadow_at(w, e.off + e.len - 1));
    }
    assert_int_equal(r, 0);
    assert_int_equal(sum, g.size);
    gr_chan_close(ch);
    gr_bdev_put(b);
}

static void resize(struct world *w)
{
    gr_chan_close(w->chan);
    gr_bdev_put(w->bdev);
    uint64_t old = w->size;
    static const uint64_t sizes[] = {9ull << 20, (300ull << 20) + 1536, 17ull << 30, (1ull << 40) + 4096 * 5};
    w->size = sizes[test_rand(&w->rnd) % 4];
    struct gr_mem *m = gr_mem_new(w->size);
    struct gr_bdev *b = NULL;
    struct gr_chan *ch = NULL;
    assert_int_equal(gr_bdev_mem_open(w->loop, m, &b), 0);
    assert_int_equal(gr_chan_open(b, w->loop, &ch), 0);
    for (unsigned h = 0; h < 3; h++) {
        uint64_t end = GR_MIN(old, w->size), off = w->hot[h];
        size_t keep = off >= end ? 0 : (size_t)GR_MIN((uint64_t)SPAN, end - off);
        memset(w->shadow + (size_t)h * SPAN + keep, 0, SPAN - keep); /* cut off, or new */
        if (keep)
            assert_int_equal(gr_pwrite(ch, w->shadow + (size_t)h * SPAN, keep, off, 0), 0);
    }
    gr_mem_free(w->mem);
    w->mem = m;
    w->bdev = b;
    w->chan = ch;
}

static int history(void *arg)
{
    struct world *w = arg;
    struct gr_err err = {0};
    gr_auto_free char *dir = test_path("repo");
    gr_auto_free char *rm = gr_asprintf("rm -rf '%s'", dir);
    assert_int_equal(system(rm), 0);
    assert_int_equal(bp_repo_create(dir, &err), 0);
    assert_int_equal(bp_repo_open(dir, &w->repo, &err), 0);
    w->size = 300ull << 20;
    w->hot[0] = 0;
    w->hot[1] = (256ull << 20) - (SPAN / 2);      /* across the border of a node */
    w->hot[2] = (16ull << 30) - (SPAN / 2) + 4096; /* and of one a level higher */
    w->mem = gr_mem_new(w->size);
    w->shadow = calloc(3, SPAN);
    w->changes = malloc(3 * SPAN / 4096 * sizeof *w->changes);
    assert_int_equal(gr_bdev_mem_open(w->loop, w->mem, &w->bdev), 0);
    assert_int_equal(gr_chan_open(w->bdev, w->loop, &w->chan), 0);
    unsigned n = 4 + (unsigned)(test_rand(&w->rnd) % (MAX_POINTS - 4));
    for (unsigned i = 0; i < n; i++) {
        if (i && test_rand(&w->rnd) % 3 == 0)
            resize(w);
        mutate(w);
        backup(w, i == 0 || test_rand(&w->rnd) % 5 == 0);
    }
    for (unsigned i = 0; i < w->points; i++)
        check_point(w, i);
    for (unsigned i = 0; i < w->points; i++)
        free(w->point[i].image);
    gr_chan_close(w->chan);
    gr_bdev_put(w->bdev);
    gr_mem_free(w->mem);
    bp_repo_close(w->repo);
    free(w->shadow);
    free(w->changes);
    return 0;
}
static void histories(void **state)
{
    uint64_t seed = test_seed();
    struct gr_loop *loop = NULL;
    assert_int_equal(gr_loop_new(NULL, &loop, NULL), 0);
    for (unsigned i = 0; i < test_cases(3); i++) {
        struct world w = {.loop = loop, .rnd = seed + i};
        print_message("history of seed %llu\n", (unsigned long long)(seed + i));
        assert_int_equal(gr_fiber_run(loop, history, &w), 0);
    }
    gr_loop_free(loop);
}
TEST_MAIN(TEST(histories))
