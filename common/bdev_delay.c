/* A slow device: each request waits before it reaches the lower one. */
#include "common/bdev_layer.h"
#include <stdlib.h>

struct delay_bdev {
    struct gr_layer layer;
    uint64_t read_ns, write_ns, flush_ns;
};

static void due(void *arg)
{
    gr_layer_send(arg);
}

static uint64_t wait_of(const struct delay_bdev *d, enum gr_op op)
{
    switch (op) {
    case GR_OP_READ:
    case GR_OP_EXTENTS:
        return d->read_ns;
    case GR_OP_FLUSH:
        return d->flush_ns;
    case GR_OP_WRITE:
    case GR_OP_UNMAP:
    case GR_OP_WRITE_ZEROES:
    case GR_OP_COMPARE_WRITE:
    case GR_OP_SCRUB:
    case GR_OP_COPY:
        break;
    }
    return d->write_ns;
}

static void delay_submit(struct gr_chan *ch, struct gr_bio *bio)
{
    uint64_t wait_ns = wait_of((const struct delay_bdev *)ch->bdev, bio->op);
    struct gr_layer_req *req = gr_layer_req_get(ch, bio);

    if (!req) {
        gr_bio_end(bio, -ENOMEM);
        return;
    }
    if (!wait_ns) {
        gr_layer_send(req);
        return;
    }
    req->timer.fn = due;
    req->timer.arg = req;
    int r = gr_timer_arm(ch->loop, &req->timer, wait_ns);
    if (r < 0)
        gr_layer_end(req, r);
}

static void delay_close(struct gr_bdev *bdev)
{
    gr_layer_done((struct gr_layer *)bdev);
    free(bdev);
}

static const struct gr_bdev_ops delay_ops = {
    .type = "delay", .submit = delay_submit, .close = delay_close, .chan_close = gr_layer_chan_close, GR_LAYER_OPS};

int gr_bdev_delay_open(struct gr_loop *loop, struct gr_bdev *lower, uint64_t read_ns, uint64_t write_ns, uint64_t flush_ns, struct gr_bdev **ret)
{
    struct delay_bdev *d = gr_zalloc(sizeof(*d));

    (void)loop;
    if (!d)
        return -ENOMEM;
    gr_layer_init(&d->layer, &delay_ops, lower);
    d->read_ns = read_ns;
    d->write_ns = write_ns;
    d->flush_ns = flush_ns;
    *ret = &d->layer.base;
    return 0;
}
