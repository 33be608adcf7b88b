#include "backup-proxy/fs_cache.h"
#include "common/cleanup.h"
#include "common/fiber.h"
#include "common/seam.h"
#include <string.h>

#define BUCKETS 1024u
#define AHEAD_MAX 8u /* blocks being read ahead at once */

struct block {
    struct fs_cache *cache;
    uint64_t index;
    uint8_t *data;
    size_t len;
    unsigned refs;
    bool loading;
    int status;
    struct gr_fqueue waiters;
    struct block *hash_next, *newer, *older; /* LRU list of all blocks */
};
struct fs_cache {
    struct gr_loop *loop;
    struct gr_chan *chan;
    uint64_t size;
    unsigned max_blocks, n_blocks, ahead;
    struct gr_fqueue idle; /* waits for ahead == 0 */
    struct block *buckets[BUCKETS];
    struct block *newest, *oldest;
    uint64_t wait_ns;
};

int fs_cache_new(struct gr_loop *loop, struct gr_bdev *bdev, size_t max_bytes, struct fs_cache **ret, struct gr_err *err)
{
    struct gr_geometry g = {0};
    int rc = gr_bdev_geometry(bdev, &g);
    if (rc < 0)
        return gr_fail(err, rc, "%s: cannot learn its size: %s", bdev->name, gr_code_text(rc));
    struct fs_cache *c = gr_zalloc(sizeof *c);
    if (!c)
        return gr_fail(err, -ENOMEM, "%s: out of memory", bdev->name);
    c->loop = loop;
    c->size = g.size;
    c->max_blocks = GR_MAX(8u, (unsigned)(max_bytes / FS_CACHE_BLOCK));
    rc = gr_chan_open(bdev, loop, &c->chan);
    if (rc < 0) {
        free(c);
        return gr_fail(err, rc, "%s: cannot open a channel: %s", bdev->name, gr_code_text(rc));
    }
    *ret = c;
    return 0;
}

uint64_t fs_cache_size(const struct fs_cache *c)
{
    return c->size;
}

uint64_t fs_cache_wait_ns(const struct fs_cache *c)
{
    return c->wait_ns;
}

/* ---- list and table ---- */
static void lru_remove(struct fs_cache *c, struct block *b)
{
    *(b->newer ? &b->newer->older : &c->newest) = b->older;
    *(b->older ? &b->older->newer : &c->oldest) = b->newer;
    b->newer = b->older = NULL;
}

static void lru_push(struct fs_cache *c, struct block *b)
{
    b->older = c->newest;
    b->newer = NULL;
    *(c->newest ? &c->newest->newer : &c->oldest) = b;
    c->newest = b;
}

static struct block *find(struct fs_cache *c, uint64_t index)
{
    struct block *b = c->buckets[index % BUCKETS];
    while (b && b->index != index)
        b = b->hash_next;
    return b;
}

static void drop(struct fs_cache *c, struct block *b)
{
    struct block **p = &c->buckets[b->index % BUCKETS];
    while (*p != b)
        p = &(*p)->hash_next;
    *p = b->hash_next;
    lru_remove(c, b);
    c->n_blocks--;
    free(b->data);
    free(b);
}

static void evict(struct fs_cache *c)
{
    for (struct block *b = c->oldest; b && c->n_blocks >= c->max_blocks;) {
        struct block *newer = b->newer;
        if (b->refs == 0 && !b->loading)
            drop(c, b);
        b = newer;
    }
}

/* A new block in state loading, with one reference; NULL: out of memory. */
static struct block *make(struct fs_cache *c, uint64_t index)
{
    evict(c);
    struct block *b = gr_zalloc(sizeof *b);
    uint64_t off = index * FS_CACHE_BLOCK;
    size_t len = (size_t)GR_MIN((uint64_t)FS_CACHE_BLOCK, c->size - off);
    uint8_t *data = b ? gr_alloc_aligned(4096, FS_CACHE_BLOCK) : NULL;
    if (!data) {
        free(b);
        return NULL;
    }
    *b = (struct block){.cache = c, .index = index, .data = data, .len = len, .refs = 1, .loading = true};
    b->hash_next = c->buckets[index % BUCKETS];
    c->buckets[index % BUCKETS] = b;
    lru_push(c, b);
    c->n_blocks++;
    return b;
}

static void put(struct fs_cache *c, struct block *b)
{
    if (--b->refs == 0 && b->status < 0 && !b->loading)
        drop(c, b); /* an error is not kept: the next reader tries again */
}

static void load(struct fs_cache *c, struct block *b)
{
    b->status = gr_pread(c->chan, b->data, b->len, b->index * FS_CACHE_BLOCK);
    b->loading = false;
    gr_fqueue_wake_all(&b->waiters);
}

/* ---- reading ---- */
static int get(struct fs_cache *c, uint64_t index, struct block **ret)
{
    struct block *b = find(c, index);
    if (b) {
        b->refs++;
        lru_remove(c, b);
        lru_push(c, b);
        if (!b->loading) {
            *ret = b;
            return 0;
        }
    }
    uint64_t start = gr_loop_now_ns(c->loop);
    if (b) {
        while (b->loading)
            gr_fqueue_wait(&b->waiters);
    } else {
        b = make(c, index);
        if (!b)
            return -ENOMEM;
        load(c, b);
    }
    c->wait_ns += gr_loop_now_ns(c->loop) - start;
    int rc = b->status;
    if (rc < 0) {
        put(c, b);
        return rc;
    }
    *ret = b;
    return 0;
}

int fs_cache_read(struct fs_cache *c, void *buf, size_t len, uint64_t off)
{
    if (len > c->size || off > c->size - len)
        return -GR_ERANGE;
    for (size_t at = 0; at < len;) {
        uint64_t pos = off + at;
        struct block *b = NULL;
        int rc = get(c, pos / FS_CACHE_BLOCK, &b);
        if (rc < 0)
            return rc;
        size_t in = (size_t)(pos % FS_CACHE_BLOCK), n = GR_MIN(len - at, b->len - in);
        memcpy((uint8_t *)buf + at, b->data + in, n);
        put(c, b);
        at += n;
    }
    return 0;
}

static void load_ahead(void *arg)
{
    struct block *b = arg;
    struct fs_cache *c = b->cache;
    load(c, b);
    put(c, b);
    if (--c->ahead == 0)
        gr_fqueue_wake_all(&c->idle);
}

void fs_cache_ahead(struct fs_cache *c, uint64_t off, uint64_t len)
{
    if (off >= c->size || len == 0)
        return;
    uint64_t last = (off + GR_MIN(len, c->size - off) - 1) / FS_CACHE_BLOCK;
    for (uint64_t i = off / FS_CACHE_BLOCK; i <= last && c->ahead < AHEAD_MAX; i++) {
        if (find(c, i))
            continue;
        struct block *b = make(c, i);
        if (!b)
            return;
        c->ahead++;
        if (gr_fiber_start(c->loop, load_ahead, b) < 0) {
            b->loading = false;
            b->status = -ENOMEM;
            gr_fqueue_wake_all(&b->waiters);
            put(c, b);
            c->ahead--;
            return;
        }
    }
}

void fs_cache_free(struct fs_cache *c)
{
    if (!c)
        return;
    while (c->ahead)
        gr_fqueue_wait(&c->idle);
    while (c->newest)
        drop(c, c->newest);
    gr_chan_close(c->chan);
    free(c);
}
