/* What layers have in common. */
#include "common/bdev_layer.h"
#include <stdlib.h>

static void pass_up(void *arg, enum gr_event ev)
{
    gr_bdev_event(arg, ev);
}

/* ---- the lower one's fence ---- */
static struct gr_bdev *lower_of(struct gr_bdev *bdev)
{
    return ((struct gr_layer *)bdev)->lower;
}
static int fence_enter(struct gr_bdev *bdev, uint64_t key, struct gr_err *err)
{
    return lower_of(bdev)->fence->enter(lower_of(bdev), key, err);
}
static int fence_leave(struct gr_bdev *bdev, struct gr_err *err)
{
    return lower_of(bdev)->fence->leave(lower_of(bdev), err);
}
static int fence_eject(struct gr_bdev *bdev, uint64_t key, struct gr_err *err)
{
    return lower_of(bdev)->fence->eject(lower_of(bdev), key, err);
}
static int fence_keys(struct gr_bdev *bdev, uint64_t *keys, unsigned max, unsigned *ret_n, struct gr_err *err)
{
    return lower_of(bdev)->fence->keys(lower_of(bdev), keys, max, ret_n, err);
}
static int fence_clear(struct gr_bdev *bdev, struct gr_err *err)
{
    return lower_of(bdev)->fence->clear(lower_of(bdev), err);
}
static int fence_persists(struct gr_bdev *bdev, struct gr_err *err)
{
    struct gr_bdev *lower = lower_of(bdev);

    return lower->fence->persists ? lower->fence->persists(lower, err) : 0;
}
static const struct gr_fence_ops layer_fence = {
    .enter = fence_enter, .leave = fence_leave, .eject = fence_eject, .keys = fence_keys, .clear = fence_clear, .persists = fence_persists,
};

void gr_layer_init(struct gr_layer *l, const struct gr_bdev_ops *ops, struct gr_bdev *lower)
{
    gr_bdev_init(&l->base, ops, lower->name);
    l->lower = gr_bdev_get(lower);
    l->base.fence = lower->fence ? &layer_fence : NULL;
    l->listener = (struct gr_listener){.fn = pass_up, .arg = l};
    gr_bdev_listen(lower, &l->listener);
}

void gr_layer_done(struct gr_layer *l)
{
    gr_bdev_unlisten(l->lower, &l->listener);
    gr_bdev_put(l->lower);
}

int gr_layer_geometry(struct gr_bdev *bdev, struct gr_geometry *ret)
{
    return gr_bdev_geometry(((struct gr_layer *)bdev)->lower, ret);
}

int gr_layer_chan_open(struct gr_bdev *bdev, struct gr_chan *ch)
{
    struct gr_layer_chan *lc = gr_zalloc(sizeof(*lc));

    if (!lc)
        return -ENOMEM;
    int r = gr_chan_open(((struct gr_layer *)bdev)->lower, ch->loop, &lc->low);
    if (r < 0)
        free(lc);
    else
        ch->priv = lc;
    return r;
}

void gr_layer_chan_close(struct gr_chan *ch)
{
    struct gr_layer_chan *lc = ch->priv;

    while (lc->free) {
        struct gr_layer_req *req = lc->free;
        lc->free = req->next;
        free(req);
    }
    gr_chan_close(lc->low);
    free(lc);
}

int gr_layer_trylock(struct gr_bdev *bdev, uint64_t key)
{
    struct gr_bdev *lower = ((struct gr_layer *)bdev)->lower;

    return lower->ops->trylock ? lower->ops->trylock(lower, key) : -EOPNOTSUPP;
}

void gr_layer_unlock(struct gr_bdev *bdev, uint64_t key)
{
    struct gr_bdev *lower = ((struct gr_layer *)bdev)->lower;

    if (lower->ops->unlock)
        lower->ops->unlock(lower, key);
}

int gr_layer_attr_get(struct gr_bdev *bdev, const char *key, void **ret, struct gr_err *err)
{
    struct gr_bdev *lower = ((struct gr_layer *)bdev)->lower;

    if (!lower->ops->attr_get)
        return gr_fail(err, -EOPNOTSUPP, "'%s' keeps no attributes", lower->name);
    return lower->ops->attr_get(lower, key, ret, err);
}

int gr_layer_attr_set(struct gr_bdev *bdev, const char *key, const void *val, size_t len, struct gr_err *err)
{
    struct gr_bdev *lower = ((struct gr_layer *)bdev)->lower;

    if (!lower->ops->attr_set)
        return gr_fail(err, -EOPNOTSUPP, "'%s' keeps no attributes", lower->name);
    return lower->ops->attr_set(lower, key, val, len, err);
}

int gr_layer_exclusive(struct gr_bdev *bdev, struct gr_err *err)
{
    struct gr_bdev *lower = ((struct gr_layer *)bdev)->lower;

    return lower->ops->exclusive ? lower->ops->exclusive(lower, err) : 0;
}

/* ---- requests ---- */
struct gr_layer_req *gr_layer_req_get(struct gr_chan *ch, struct gr_bio *bio)
{
    struct gr_layer_chan *lc = ch->priv;
    struct gr_layer_req *req = lc->free;

    if (req)
        lc->free = req->next;
    else if (!(req = gr_alloc(sizeof(*req))))
        return NULL;
    req->low = *bio;
    req->low.done = gr_layer_done_up;
    req->low.arg = req;
    req->low.next = NULL;
    req->up = bio;
    req->ch = ch;
    req->next = NULL;
    req->timer = (struct gr_timer){0};
    /* A copy within one stack of layers: the source's lower channel, so that the lower sees both of its own. */
    if (bio->op == GR_OP_COPY && bio->copy_src->bdev->ops == ch->bdev->ops)
        req->low.copy_src = gr_layer_chan_of(bio->copy_src)->low;
    return req;
}

void gr_layer_req_put(struct gr_layer_req *req)
{
    struct gr_layer_chan *lc = req->ch->priv;

    req->next = lc->free;
    lc->free = req;
}

void gr_layer_send(struct gr_layer_req *req)
{
    gr_submit(gr_layer_chan_of(req->ch)->low, &req->low);
}

void gr_layer_end(struct gr_layer_req *req, int status)
{
    struct gr_bio *up = req->up;

    up->n_extents = req->low.n_extents;
    up->miscompare_off = req->low.miscompare_off;
    up->bad_off = req->low.bad_off;
    gr_layer_req_put(req);
    gr_bio_end(up, status);
}

void gr_layer_done_up(struct gr_bio *low)
{
    gr_layer_end(low->arg, low->status);
}
