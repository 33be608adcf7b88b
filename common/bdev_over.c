/* Memory over a device, for those who are to change nothing there. What was written is read from memory, all else from below; without a device
 * below whoever opened it says what there is. Changes are made one behind the other, each in a fiber, for parts of pages are read first. */
#include "common/bdev.h"
#include "common/fiber.h"
#include "common/iov.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define PAGE 4096u
#define COMPARE_MAX (1u << 20)

struct over {
    struct gr_bdev base;
    struct gr_over_opts o;
    struct gr_mem *mem;
    struct gr_fmutex changing;
};
struct request {
    struct gr_chan *ch;
    struct gr_bio *bio, low;
};

static struct over *over_of(const struct gr_chan *ch)
{
    return (struct over *)ch->bdev;
}

/* ---- reading ---- */
/* The page at @off as it is now. */
static int page_read(struct gr_chan *ch, uint64_t off, void *buf)
{
    struct over *b = over_of(ch);
    const void *page = gr_mem_page(b->mem, off, false);
    if (page) {
        memcpy(buf, page, PAGE);
        return 0;
    }
    if (b->o.below)
        return gr_pread(ch->priv, buf, PAGE, off);
    return b->o.miss ? b->o.miss(b->o.arg, off, buf) : -EIO;
}

/* Does all of [off, off + len) come from below? */
static bool untouched(struct over *b, uint64_t off, uint64_t len)
{
    for (uint64_t at = off / PAGE * PAGE; at < off + len; at += PAGE)
        if (gr_mem_page(b->mem, at, false))
            return false;
    return true;
}

static int read_pages(struct gr_chan *ch, struct gr_bio *bio)
{
    uint8_t page[PAGE];
    int r = 0;
    for (uint64_t at = 0, n; r == 0 && at < bio->len; at += n) {
        uint64_t off = bio->off + at, in = off % PAGE;
        n = PAGE - in < bio->len - at ? PAGE - in : bio->len - at;
        r = page_read(ch, off - in, page);
        if (r == 0)
            gr_iov_put(bio->iov, bio->iovcnt, at, page + in, n);
        else if (r == -EIO)
            bio->bad_off = at + 1;
    }
    return r;
}

static void passed(struct gr_bio *low)
{
    struct request *q = low->arg;
    struct gr_bio *bio = q->bio;
    int r = low->status;
    bio->bad_off = low->bad_off;
    free(q);
    gr_bio_end(bio, r);
}

/* ---- changing: the lock is held ---- */
static int write_pages(struct gr_chan *ch, const struct gr_bio *bio, const struct iovec *iov, int iovcnt, bool zeroes)
{
    struct over *b = over_of(ch);
    uint8_t page[PAGE];
    int r = 0;
    for (uint64_t at = 0, n; r == 0 && at < bio->len; at += n) {
        uint64_t off = bio->off + at, in = off % PAGE;
        n = PAGE - in < bio->len - at ? PAGE - in : bio->len - at;
        r = n == PAGE ? 0 : page_read(ch, off - in, page);
        uint8_t *to = r == 0 ? gr_mem_page(b->mem, off, true) : NULL;
        if (r == 0 && !to)
            r = -ENOMEM;
        if (r < 0)
            break;
        if (n < PAGE)
            memcpy(to, page, PAGE);
        if (zeroes)
            memset(to + in, 0, n);
        else
            gr_iov_get(iov, iovcnt, at, to + in, n);
    }
    return r;
}

static int compare_write(struct gr_chan *ch, struct gr_bio *bio)
{
    uint8_t *is = bio->len <= COMPARE_MAX ? gr_alloc(bio->len) : NULL;
    struct iovec all = {is, bio->len};
    struct gr_bio reading = {.op = GR_OP_READ, .off = bio->off, .len = bio->len, .iov = &all, .iovcnt = 1};
    int r = is ? read_pages(ch, &reading) : bio->len <= COMPARE_MAX ? -ENOMEM : -GR_ERANGE;
    size_t same = r == 0 ? gr_iov_diff(bio->iov, bio->iovcnt, 0, is, bio->len) : 0;
    if (r == 0 && same < bio->len) {
        bio->miscompare_off = same;
        r = -GR_EMISCOMPARE;
    }
    if (r == 0)
        r = write_pages(ch, bio, bio->iov2, bio->iovcnt2, false);
    free(is);
    return r;
}

static int change(struct gr_chan *ch, struct gr_bio *bio)
{
    struct over *b = over_of(ch);
    gr_fmutex_lock(&b->changing);
    int r = bio->op == GR_OP_COMPARE_WRITE ? compare_write(ch, bio) : write_pages(ch, bio, bio->iov, bio->iovcnt, bio->op != GR_OP_WRITE);
    gr_fmutex_unlock(&b->changing);
    return r;
}

static void work(void *arg)
{
    struct request *q = arg;
    struct gr_bio *bio = q->bio;
    int r = bio->op == GR_OP_READ ? read_pages(q->ch, bio) : change(q->ch, bio);
    free(q);
    gr_bio_end(bio, r);
}

static void over_submit(struct gr_chan *ch, struct gr_bio *bio)
{
    struct over *b = over_of(ch);
    if (bio->op == GR_OP_FLUSH || (bio->len == 0 && bio->op != GR_OP_EXTENTS)) {
        gr_bio_end(bio, 0);
        return;
    }
    if (bio->op == GR_OP_EXTENTS || bio->op == GR_OP_SCRUB || bio->op == GR_OP_COPY || bio->op == GR_OP_UNMAP) {
        gr_bio_end(bio, -EOPNOTSUPP);
        return;
    }
    struct request *q = gr_alloc(sizeof(*q));
    if (!q) {
        gr_bio_end(bio, -ENOMEM);
        return;
    }
    *q = (struct request){.ch = ch, .bio = bio};
    if (bio->op == GR_OP_READ && b->o.below && untouched(b, bio->off, bio->len)) {
        q->low = (struct gr_bio){.op = GR_OP_READ, .off = bio->off, .len = bio->len, .iov = bio->iov, .iovcnt = bio->iovcnt, .done = passed, .arg = q};
        gr_submit(ch->priv, &q->low);
        return;
    }
    int r = gr_fiber_start(ch->loop, work, q);
    if (r < 0) {
        free(q);
        gr_bio_end(bio, r);
    }
}

static int over_geometry(struct gr_bdev *bdev, struct gr_geometry *ret)
{
    struct over *b = (struct over *)bdev;
    int r = 0;
    *ret = (struct gr_geometry){.logical_block = 512, .physical_block = PAGE, .in_memory = true};
    if (b->o.below)
        r = gr_bdev_geometry(b->o.below, ret);
    ret->size = b->o.size;
    ret->unmap_granule = ret->atomic_bytes = 0;
    ret->thin = ret->read_only = false;
    return r;
}

static int over_chan_open(struct gr_bdev *bdev, struct gr_chan *ch)
{
    struct over *b = (struct over *)bdev;
    struct gr_chan *low = NULL;
    int r = b->o.below ? gr_chan_open(b->o.below, ch->loop, &low) : 0;
    ch->priv = low;
    return r;
}

static void over_chan_close(struct gr_chan *ch)
{
    gr_chan_close(ch->priv);
}

static int over_trylock(struct gr_bdev *bdev, uint64_t key)
{
    struct gr_bdev *below = ((struct over *)bdev)->o.below;
    return below && below->ops->trylock ? below->ops->trylock(below, key) : 0;
}

static void over_unlock(struct gr_bdev *bdev, uint64_t key)
{
    struct gr_bdev *below = ((struct over *)bdev)->o.below;
    if (below && below->ops->unlock)
        below->ops->unlock(below, key);
}

static void over_close(struct gr_bdev *bdev)
{
    struct over *b = (struct over *)bdev;
    gr_bdev_put(b->o.below);
    gr_mem_free(b->mem);
    free(b);
}

static const struct gr_bdev_ops over_ops = {
    .type = "memory over a device", .submit = over_submit, .geometry = over_geometry, .close = over_close, .chan_open = over_chan_open,
    .chan_close = over_chan_close, .trylock = over_trylock, .unlock = over_unlock,
};

int gr_bdev_over_open(struct gr_loop *loop, const struct gr_over_opts *opts, struct gr_bdev **ret)
{
    struct over *b = gr_zalloc(sizeof(*b));
    (void)loop;
    if (!b)
        return -ENOMEM;
    b->o = *opts;
    b->mem = gr_mem_new(opts->size);
    if (!b->mem) {
        free(b);
        return -ENOMEM;
    }
    gr_bdev_init(&b->base, &over_ops, opts->below ? opts->below->name : opts->name);
    if (b->o.below)
        gr_bdev_get(b->o.below);
    b->o.name = NULL;
    *ret = &b->base;
    return 0;
}
