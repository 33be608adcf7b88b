#include "tests/lib/repo_rig.h"
#include "backup-proxy/walk.h"
#include "common/cleanup.h"
#include "common/fiber.h"
#include <nettle/sha2.h>
#include <string.h>

void rig_open(struct repo_rig *g, struct gr_loop *loop, const char *name, uint64_t size, uint64_t seed)
{
    struct gr_err err = {0};
    *g = (struct repo_rig){.loop = loop, .size = size, .rnd = seed};
    g->dir = test_path(name);
    gr_auto_free char *rm = gr_asprintf("rm -rf '%s'", g->dir);
    assert_int_equal(system(rm), 0);
    if (bp_repo_create(g->dir, &err) < 0 || bp_repo_open(g->dir, &g->repo, &err) < 0)
        fail_msg("%s", err.text);
    g->mem = gr_mem_new(size);
    assert_int_equal(gr_bdev_mem_open(loop, g->mem, &g->bdev), 0);
    assert_int_equal(gr_chan_open(g->bdev, loop, &g->chan), 0);
}
void rig_close(struct repo_rig *g)
{
    gr_chan_close(g->chan);
    gr_bdev_put(g->bdev);
    gr_mem_free(g->mem);
    bp_repo_close(g->repo);
    free(g->dir);
}
static int change_order(const void *a, const void *b)
{
    const struct bp_change *x = a, *y = b;
    return x->off < y->off ? -1 : x->off > y->off;
}
void rig_write(struct repo_rig *g, uint64_t off, size_t len)
{
    gr_auto_free uint8_t *p = malloc(len);
    for (size_t i = 0; i < len; i++)
        p[i] = i & 4096 ? (uint8_t)(i / 64) : (uint8_t)test_rand(&g->rnd);
    assert_int_equal(gr_pwrite(g->chan, p, len, off, 0), 0);
    assert_true(g->n_changes < 256);
    g->changes[g->n_changes++] = (struct bp_change){off, len, false};
}
static int next_change(void *arg, struct bp_change *ret, struct gr_err *err)
{
    struct repo_rig *g = arg;
    if (g->at == g->n_changes)
        return 0;
    *ret = g->changes[g->at++];
    return 1;
}
static int next_all(void *arg, struct bp_change *ret, struct gr_err *err)
{
    struct bp_walk *w = arg;
    struct gr_extent e;
    int r;
    while ((r = bp_walk_next(w, &e)) > 0 && e.flags)
        ;
    *ret = (struct bp_change){e.off, e.len, false};
    return r;
}
static int content_hash(struct gr_chan *ch, uint64_t size, uint8_t ret[32])
{
    struct sha256_ctx c;
    gr_auto_free uint8_t *buf = malloc(1u << 20);
    sha256_init(&c);
    for (uint64_t off = 0; off < size; off += 1u << 20) {
        size_t n = (size_t)GR_MIN((uint64_t)(1u << 20), size - off);
        int r = gr_pread(ch, buf, n, off);
        if (r < 0)
            return r;
        sha256_update(&c, n, buf);
    }
    sha256_digest(&c, 32, ret);
    return 0;
}
int rig_backup(struct repo_rig *g, const char *name, bool full, struct gr_err *err)
{
    struct bp_lease *lease = NULL;
    struct bp_walk walk;
    struct bp_ref root;
    struct bp_store_stats st;
    struct bp_point parent = {.doc = NULL};
    struct bp_point_disk pd = {.size = 0};
    char id[BP_POINT_ID_MAX];
    int r = bp_lease_take(g->repo, BP_LEASE_WRITER, "", &lease, err);
    if (r == 0 && (r = bp_point_newest(g->repo, name, id, err)) > 0) {
        r = bp_point_load(g->repo, id, &parent, err);
        if (r == 0)
            r = bp_point_disk(&parent, 0, &pd, err);
    } else if (r == 0) {
        full = true;
    }
    qsort(g->changes, g->n_changes, sizeof g->changes[0], change_order);
    g->at = 0;
    bp_walk_init(&walk, g->chan, g->size, NULL);
    struct bp_store_job job = {.repo = g->repo, .lease = lease, .src = g->chan, .size = g->size, .parent = pd.root, .parent_size = pd.size,
                               .incremental = !full, .next = full ? next_all : next_change, .next_arg = full ? (void *)&walk : g};
    if (r == 0)
        r = bp_store_disk(&job, &root, &st, err);
    if (r == 0) {
        json_t *doc = json_pack("{s:s,s:[{s:s,s:s,s:I,s:o}]}", "kind", full ? "full" : "incremental", "disks", "name", "d", "path", "ds/d", "size",
                                (json_int_t)g->size, "root", bp_ref_json(&root));
        assert_true(g->points < RIG_POINTS);
        r = bp_point_publish(g->repo, lease, name, 1700000000 + 3600 * (int64_t)g->points, doc, g->point[g->points].id, err);
        json_decref(doc);
    }
    if (r == 0) {
        assert_int_equal(content_hash(g->chan, g->size, g->point[g->points].hash), 0);
        g->points++;
        g->n_changes = 0;
    }
    bp_point_done(&parent);
    bp_lease_drop(lease);
    return r;
}
int rig_hash(struct repo_rig *g, const char *id, uint8_t ret[32])
{
    struct gr_bdev *b = NULL;
    struct gr_chan *ch = NULL;
    struct gr_geometry geo;
    int r = bp_point_open(g->loop, g->repo, id, NULL, &b, NULL);
    if (r == 0)
        r = gr_bdev_geometry(b, &geo);
    if (r == 0)
        r = gr_chan_open(b, g->loop, &ch);
    if (r == 0)
        r = content_hash(ch, geo.size, ret);
    gr_chan_close(ch);
    gr_bdev_put(b);
    return r;
}
int rig_check(struct repo_rig *g, unsigned i)
{
    uint8_t hash[32];
    int r = rig_hash(g, g->point[i].id, hash);
    return r < 0 ? r : !memcmp(hash, g->point[i].hash, 32);
}
