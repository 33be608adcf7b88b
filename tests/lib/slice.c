#include "tests/lib/slice.h"
#include "common/bdev_layer.h"
#include <stdlib.h>

struct slice {
    struct gr_layer layer;
    uint64_t off, size;
};

static void submit(struct gr_chan *ch, struct gr_bio *bio)
{
    struct gr_layer_req *req = gr_layer_req_get(ch, bio);
    if (!req) {
        gr_bio_end(bio, -ENOMEM);
        return;
    }
    req->low.off += bio->op == GR_OP_FLUSH ? 0 : ((const struct slice *)ch->bdev)->off;
    gr_layer_send(req);
}

static int geometry(struct gr_bdev *bdev, struct gr_geometry *ret)
{
    int r = gr_layer_geometry(bdev, ret);
    ret->size = ((const struct slice *)bdev)->size;
    return r;
}

static void close_slice(struct gr_bdev *bdev)
{
    gr_layer_done((struct gr_layer *)bdev);
    free(bdev);
}

static const struct gr_bdev_ops slice_ops = { .type = "slice", .submit = submit, .geometry = geometry, .close = close_slice,
                                              .chan_open = gr_layer_chan_open, .chan_close = gr_layer_chan_close,
                                              .trylock = gr_layer_trylock, .unlock = gr_layer_unlock };

int slice_open(struct gr_bdev *lower, uint64_t off, uint64_t size, struct gr_bdev **ret)
{
    struct slice *s = calloc(1, sizeof *s);
    if (!s)
        return -ENOMEM;
    gr_layer_init(&s->layer, &slice_ops, lower);
    s->off = off;
    s->size = size;
    *ret = &s->layer.base;
    return 0;
}
