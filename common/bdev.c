/* gr_bdev: references, events, channels, and the checks in front of every request. */
#include "common/bdev.h"
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* done() may submit the next request, whose done() may come inside the call, and so on; deeper than this they go
 * through the loop, so that a chain of any length needs little stack. */
enum { MAX_NESTING = 16 };
static _Thread_local unsigned nesting;

void gr_bdev_init(struct gr_bdev *bdev, const struct gr_bdev_ops *ops, const char *name)
{
    bdev->ops = ops;
    bdev->refs = 1;
    bdev->listeners = NULL;
    bdev->fence = NULL;
    bdev->geometry_gen = 1;
    snprintf(bdev->name, sizeof(bdev->name), "%s", name);
}

struct gr_bdev *gr_bdev_get(struct gr_bdev *bdev)
{
    __atomic_add_fetch(&bdev->refs, 1, __ATOMIC_RELAXED);
    return bdev;
}

void gr_bdev_put(struct gr_bdev *bdev)
{
    if (bdev && __atomic_sub_fetch(&bdev->refs, 1, __ATOMIC_ACQ_REL) == 0)
        bdev->ops->close(bdev);
}

int gr_bdev_geometry(struct gr_bdev *bdev, struct gr_geometry *ret)
{
    struct gr_geometry geometry = {0};

    int r = bdev->ops->geometry(bdev, &geometry);
    if (r < 0)
        return r;
    if (!geometry.logical_block || (geometry.logical_block & (geometry.logical_block - 1)))
        return -EINVAL;
    *ret = geometry;
    return 0;
}

void gr_bdev_listen(struct gr_bdev *bdev, struct gr_listener *l)
{
    l->next = bdev->listeners;
    bdev->listeners = l;
}

void gr_bdev_unlisten(struct gr_bdev *bdev, struct gr_listener *l)
{
    struct gr_listener **p = &bdev->listeners;

    while (*p && *p != l)
        p = &(*p)->next;
    if (*p)
        *p = l->next;
}

void gr_bdev_event(struct gr_bdev *bdev, enum gr_event ev)
{
    __atomic_add_fetch(&bdev->geometry_gen, 1, __ATOMIC_RELEASE);
    for (struct gr_listener *l = bdev->listeners, *next; l; l = next) {
        next = l->next; /* a listener may take itself off */
        l->fn(l->arg, ev);
    }
}

/* ---- channels ---- */
static void run_put_off(void *arg)
{
    struct gr_chan *ch = arg;
    struct gr_bio *bio = ch->put_off_head;

    ch->put_off_head = ch->put_off_tail = NULL;
    while (bio) {
        struct gr_bio *next = bio->next;
        gr_submit(ch, bio);
        bio = next;
    }
}

int gr_chan_open(struct gr_bdev *bdev, struct gr_loop *loop, struct gr_chan **ret)
{
    struct gr_chan *ch = gr_zalloc(sizeof(*ch));

    if (!ch)
        return -ENOMEM;
    ch->bdev = gr_bdev_get(bdev);
    ch->loop = loop;
    ch->refs = 1;
    ch->put_off = (struct gr_defer){.fn = run_put_off, .arg = ch};
    int r = bdev->ops->chan_open ? bdev->ops->chan_open(bdev, ch) : 0;
    if (r < 0) {
        gr_bdev_put(bdev);
        free(ch);
        return r;
    }
    *ret = ch;
    return 0;
}

void gr_chan_close(struct gr_chan *ch)
{
    if (!ch || --ch->refs)
        return;
    assert(!ch->put_off_head);
    if (ch->bdev->ops->chan_close)
        ch->bdev->ops->chan_close(ch);
    gr_loop_defer_cancel(ch->loop, &ch->put_off);
    gr_bdev_put(ch->bdev);
    free(ch);
}

/* ---- requests ---- */
static bool iov_adds_up(const struct iovec *iov, int n, uint64_t len)
{
    if (n < 0 || (n && !iov))
        return false;
    for (int i = 0; i < n; i++) {
        if (iov[i].iov_len > len)
            return false;
        len -= iov[i].iov_len;
    }
    return len == 0;
}

static int check_op(const struct gr_geometry *g, const struct gr_bio *bio)
{
    switch (bio->op) {
    case GR_OP_FLUSH:
        return 0;
    case GR_OP_READ:
        return iov_adds_up(bio->iov, bio->iovcnt, bio->len) ? 0 : -EINVAL;
    case GR_OP_EXTENTS:
        return bio->extents && bio->max_extents ? 0 : -EINVAL;
    case GR_OP_WRITE:
        if ((bio->flags & GR_BIO_ATOMIC) && bio->len > g->atomic_bytes)
            return -EOPNOTSUPP;
        if (!iov_adds_up(bio->iov, bio->iovcnt, bio->len))
            return -EINVAL;
        break;
    case GR_OP_COMPARE_WRITE:
        if (!iov_adds_up(bio->iov, bio->iovcnt, bio->len) || !iov_adds_up(bio->iov2, bio->iovcnt2, bio->len))
            return -EINVAL;
        break;
    case GR_OP_UNMAP:
        if (!g->unmap_granule)
            return -EOPNOTSUPP;
        break;
    case GR_OP_WRITE_ZEROES:
    case GR_OP_SCRUB:
        break;
    case GR_OP_COPY:
        if (!bio->copy_src || (bio->copy_src_off & (g->logical_block - 1)))
            return -EINVAL;
        break;
    }
    return g->read_only ? -GR_EREADONLY : 0;
}

static int check(struct gr_chan *ch, const struct gr_bio *bio)
{
    unsigned gen = __atomic_load_n(&ch->bdev->geometry_gen, __ATOMIC_ACQUIRE);
    const struct gr_geometry *g = &ch->geometry;

    if (ch->geometry_gen != gen) {
        int r = gr_bdev_geometry(ch->bdev, &ch->geometry);
        if (r < 0)
            return r;
        ch->geometry_gen = gen;
    }
    if (bio->op != GR_OP_FLUSH) {
        if ((bio->off | bio->len) & (g->logical_block - 1))
            return -GR_ERANGE;
        if (bio->off > g->size || bio->len > g->size - bio->off)
            return -GR_ERANGE;
    }
    return check_op(g, bio);
}

void gr_submit(struct gr_chan *ch, struct gr_bio *bio)
{
    if (nesting >= MAX_NESTING) {
        bio->next = NULL;
        if (ch->put_off_tail)
            ch->put_off_tail->next = bio;
        else
            ch->put_off_head = bio;
        ch->put_off_tail = bio;
        gr_loop_defer(ch->loop, &ch->put_off);
        return;
    }
    nesting++;
    bio->n_extents = 0;
    bio->miscompare_off = 0;
    bio->bad_off = 0;
    int r = check(ch, bio);
    if (r < 0 || (!bio->len && bio->op != GR_OP_FLUSH))
        gr_bio_end(bio, r);
    else
        ch->bdev->ops->submit(ch, bio);
    nesting--; /* @ch may be gone: done() was free to close it */
}
