/* What layers (fault, delay, record) have in common: a lower bdev, its channel beside each of ours, and one request of
 * their own for each that they pass on. Layers only. */
#ifndef GR_BDEV_LAYER_H
#define GR_BDEV_LAYER_H
#include "common/bdev.h"

struct gr_layer {
    struct gr_bdev base;
    struct gr_bdev *lower;
    struct gr_listener listener; /* passes the lower's events up */
};
struct gr_layer_req {
    struct gr_bio low;           /* a copy of the request above, sent to the lower channel */
    struct gr_bio *up;
    struct gr_chan *ch;          /* ours */
    struct gr_layer_req *next;
    struct gr_timer timer;       /* for the layer's use, as the rest */
    size_t index;
};
struct gr_layer_chan {
    struct gr_chan *low;
    struct gr_layer_req *free;   /* kept for the next requests */
    struct gr_layer_req *held;   /* for the layer's use */
};
static inline struct gr_layer *gr_layer_of(const struct gr_chan *ch)
{
    return (struct gr_layer *)ch->bdev;
}
static inline struct gr_layer_chan *gr_layer_chan_of(const struct gr_chan *ch)
{
    return ch->priv;
}
/* Fill in @l, which the caller allocated and may embed as first member; takes a reference on @lower. */
void gr_layer_init(struct gr_layer *l, const struct gr_bdev_ops *ops, struct gr_bdev *lower);
void gr_layer_done(struct gr_layer *l); /* gives the reference back; not the memory */
/* The operations that every layer passes down. */
int gr_layer_geometry(struct gr_bdev *bdev, struct gr_geometry *ret);
int gr_layer_chan_open(struct gr_bdev *bdev, struct gr_chan *ch);
void gr_layer_chan_close(struct gr_chan *ch);
int gr_layer_trylock(struct gr_bdev *bdev, uint64_t key);
void gr_layer_unlock(struct gr_bdev *bdev, uint64_t key);
int gr_layer_attr_get(struct gr_bdev *bdev, const char *key, void **ret, struct gr_err *err);
int gr_layer_attr_set(struct gr_bdev *bdev, const char *key, const void *val, size_t len, struct gr_err *err);
int gr_layer_exclusive(struct gr_bdev *bdev, struct gr_err *err);
#define GR_LAYER_OPS                                                                                                  \
    .geometry = gr_layer_geometry, .chan_open = gr_layer_chan_open, .trylock = gr_layer_trylock, .unlock = gr_layer_unlock, \
    .attr_get = gr_layer_attr_get, .attr_set = gr_layer_attr_set, .exclusive = gr_layer_exclusive
/* A request of the layer for @bio: low is a copy of it, done by gr_layer_done_up unless changed. NULL: out of memory. */
struct gr_layer_req *gr_layer_req_get(struct gr_chan *ch, struct gr_bio *bio);
void gr_layer_req_put(struct gr_layer_req *req);
void gr_layer_send(struct gr_layer_req *req); /* to the lower channel */
/* End the request above with @status, with low's results, and put @req. */
void gr_layer_end(struct gr_layer_req *req, int status);
void gr_layer_done_up(struct gr_bio *low);
#endif
