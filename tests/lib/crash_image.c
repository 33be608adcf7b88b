#include "tests/lib/crash_image.h"
#include "common/cleanup.h"
#include "common/iov.h"
#include "tests/lib/test.h"
#include <stdlib.h>
#include <string.h>

#define PAGE 4096u
#define LOCKS_MAX 64u

struct page {
    unsigned refs;
    uint8_t data[PAGE];
};
struct crash_image {
    uint64_t size, races;
    size_t n_pages;
    struct page **page;
    struct {
        uint64_t key;
        const void *owner;
    } lock[LOCKS_MAX];
};

struct crash_image *crash_image_new(uint64_t size)
{
    struct crash_image *img = calloc(1, sizeof *img);
    assert_non_null(img);
    img->size = size;
    img->n_pages = (size_t)(size / PAGE);
    img->page = calloc(img->n_pages, sizeof *img->page);
    assert_non_null(img->page);
    return img;
}

struct crash_image *crash_image_copy(const struct crash_image *from)
{
    struct crash_image *img = crash_image_new(from->size);
    memcpy(img->page, from->page, img->n_pages * sizeof *img->page);
    for (size_t i = 0; i < img->n_pages; i++)
        if (img->page[i])
            img->page[i]->refs++;
    return img;
}

static void page_put(struct page *p)
{
    if (p && --p->refs == 0)
        free(p);
}

void crash_image_free(struct crash_image *img)
{
    if (!img)
        return;
    for (size_t i = 0; i < img->n_pages; i++)
        page_put(img->page[i]);
    free(img->page);
    free(img);
}

uint64_t crash_image_size(const struct crash_image *img) { return img->size; }
uint64_t crash_image_races(const struct crash_image *img) { return img->races; }

static uint8_t *own(struct crash_image *img, size_t i)
{
    struct page *old = img->page[i];
    if (old && old->refs == 1)
        return old->data;
    struct page *p = calloc(1, sizeof *p);
    assert_non_null(p);
    p->refs = 1;
    if (old) {
        memcpy(p->data, old->data, PAGE);
        old->refs--;
    }
    img->page[i] = p;
    return p->data;
}

void crash_image_write(struct crash_image *img, uint64_t off, const void *data, size_t len)
{
    const uint8_t *from = data;
    while (len) {
        size_t at = off % PAGE, n = GR_MIN(len, PAGE - at);
        memcpy(own(img, off / PAGE) + at, from, n);
        from += n;
        off += n;
        len -= n;
    }
}

void crash_image_zero(struct crash_image *img, uint64_t off, uint64_t len)
{
    while (len) {
        size_t at = off % PAGE, n = GR_MIN(len, (uint64_t)(PAGE - at));
        if (n == PAGE) {
            page_put(img->page[off / PAGE]);
            img->page[off / PAGE] = NULL;
        } else if (img->page[off / PAGE]) {
            memset(own(img, off / PAGE) + at, 0, n);
        }
        off += n;
        len -= n;
    }
}

void crash_image_read(const struct crash_image *img, uint64_t off, void *data, size_t len)
{
    uint8_t *to = data;
    while (len) {
        size_t at = off % PAGE, n = GR_MIN(len, PAGE - at);
        const struct page *p = img->page[off / PAGE];
        if (p)
            memcpy(to, p->data + at, n);
        else
            memset(to, 0, n);
        to += n;
        off += n;
        len -= n;
    }
}

/* ---- as a device ---- */
struct image_bdev {
    struct gr_bdev base;
    struct gr_loop *loop;
    struct crash_image *img;
    uint64_t rng;
    struct gr_bio *queue;
    struct gr_timer timer;
};

static void iov_read(const struct crash_image *img, const struct gr_bio *bio)
{
    uint64_t off = bio->off;
    for (int i = 0; i < bio->iovcnt; i++) {
        crash_image_read(img, off, bio->iov[i].iov_base, bio->iov[i].iov_len);
        off += bio->iov[i].iov_len;
    }
}

static void iov_write(struct crash_image *img, uint64_t off, const struct iovec *iov, int n)
{
    for (int i = 0; i < n; i++) {
        crash_image_write(img, off, iov[i].iov_base, iov[i].iov_len);
        off += iov[i].iov_len;
    }
}

static int compare_write(struct crash_image *img, struct gr_bio *bio)
{
    uint8_t *now = malloc(bio->len);
    assert_non_null(now);
    crash_image_read(img, bio->off, now, bio->len);
    size_t same = gr_iov_diff(bio->iov, bio->iovcnt, 0, now, bio->len);
    free(now);
    if (same < bio->len) {
        bio->miscompare_off = same;
        return -GR_EMISCOMPARE;
    }
    iov_write(img, bio->off, bio->iov2, bio->iovcnt2);
    return 0;
}

static void finish(struct image_bdev *b, struct gr_bio *bio)
{
    int r = 0;
    switch (bio->op) {
    case GR_OP_READ:
        iov_read(b->img, bio);
        break;
    case GR_OP_WRITE:
        iov_write(b->img, bio->off, bio->iov, bio->iovcnt);
        break;
    case GR_OP_UNMAP:
    case GR_OP_WRITE_ZEROES:
        crash_image_zero(b->img, bio->off, bio->len);
        break;
    case GR_OP_COMPARE_WRITE:
        r = compare_write(b->img, bio);
        break;
    case GR_OP_FLUSH:
        break;
    case GR_OP_EXTENTS:
    case GR_OP_SCRUB:
    case GR_OP_COPY:
        r = -EOPNOTSUPP;
        break;
    }
    gr_bio_end(bio, r);
}

static void arm(struct image_bdev *b)
{
    if (b->queue && !b->timer.heap_pos)
        gr_timer_arm(b->loop, &b->timer, test_rand(&b->rng) % 200000);
}

static void fire(void *arg)
{
    struct image_bdev *b = arg;
    struct gr_bio *ready = NULL, **p = &b->queue;
    while (*p) {
        struct gr_bio *bio = *p;
        if (test_rand(&b->rng) % 3 == 0) {
            p = &bio->next;
            continue;
        }
        *p = bio->next;
        bio->next = ready;
        ready = bio;
    }
    while (ready) {
        struct gr_bio *bio = ready;
        ready = bio->next;
        finish(b, bio);
    }
    arm(b);
}

static bool changes(const struct gr_bio *bio) { return bio->op != GR_OP_READ && bio->op != GR_OP_FLUSH && bio->op != GR_OP_EXTENTS; }

static void submit(struct gr_chan *ch, struct gr_bio *bio)
{
    struct image_bdev *b = (struct image_bdev *)ch->bdev;
    if (!b->rng) {
        finish(b, bio);
        return;
    }
    for (const struct gr_bio *q = b->queue; q && changes(bio); q = q->next)
        if (changes(q) && !(q->op == GR_OP_COMPARE_WRITE && bio->op == q->op) && q->off < bio->off + bio->len && bio->off < q->off + q->len)
            b->img->races++;
    bio->next = b->queue;
    b->queue = bio;
    arm(b);
}

static int geometry(struct gr_bdev *bdev, struct gr_geometry *ret)
{
    *ret = (struct gr_geometry){ .size = ((struct image_bdev *)bdev)->img->size, .logical_block = 512, .physical_block = PAGE,
                                 .unmap_granule = 512, .optimal_io = PAGE, .thin = true };
    return 0;
}

static int trylock(struct gr_bdev *bdev, uint64_t key)
{
    struct crash_image *img = ((struct image_bdev *)bdev)->img;
    unsigned slot = LOCKS_MAX;
    for (unsigned i = 0; i < LOCKS_MAX; i++) {
        if (!img->lock[i].owner)
            slot = i;
        else if (img->lock[i].key == key)
            return -EBUSY;
    }
    assert_true(slot < LOCKS_MAX);
    img->lock[slot].key = key;
    img->lock[slot].owner = bdev;
    return 0;
}

static void unlock(struct gr_bdev *bdev, uint64_t key)
{
    struct crash_image *img = ((struct image_bdev *)bdev)->img;
    for (unsigned i = 0; i < LOCKS_MAX; i++)
        if (img->lock[i].owner == bdev && img->lock[i].key == key)
            img->lock[i].owner = NULL;
}

static void close_image(struct gr_bdev *bdev)
{
    struct image_bdev *b = (struct image_bdev *)bdev;
    for (unsigned i = 0; i < LOCKS_MAX; i++)
        if (b->img->lock[i].owner == bdev)
            b->img->lock[i].owner = NULL;
    assert_null(b->queue);
    gr_timer_cancel(b->loop, &b->timer);
    free(b);
}

static const struct gr_bdev_ops ops = { .type = "crash image", .submit = submit, .geometry = geometry, .close = close_image,
                                        .trylock = trylock, .unlock = unlock };

int crash_image_open(struct gr_loop *loop, struct crash_image *img, uint64_t seed, struct gr_bdev **ret)
{
    struct image_bdev *b = calloc(1, sizeof *b);
    if (!b)
        return -ENOMEM;
    gr_bdev_init(&b->base, &ops, "crash image");
    b->loop = loop;
    b->img = img;
    b->rng = seed;
    b->timer.fn = fire;
    b->timer.arg = b;
    *ret = &b->base;
    return 0;
}
