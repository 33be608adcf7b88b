/* A layer that counts what reaches the device below: requests and bytes. */
#ifndef BENCH_COUNTED_H
#define BENCH_COUNTED_H
#include "common/bdev_layer.h"
#include "common/iov.h"
#include <stdlib.h>

struct counts {
    uint64_t reads, read_bytes, writes, write_bytes, flushes, forced, unmapped; /* forced: durable by themselves, which a device may flush for */
    uint64_t marked_read, marked_written, copied; /* bytes of pieces of 4 KiB that begin with the mark; copied by the device itself */
};
struct counted {
    struct gr_layer l;
    struct counts n;
    uint64_t mark; /* eight bytes that data begins with; 0: none */
    bool drop;     /* what is written and begins with the mark is counted in @dropped alone and goes nowhere; else its pieces are counted */
    uint64_t dropped;
};

static inline uint64_t counted_marked(const struct counted *c, const struct gr_bio *bio)
{
    uint64_t first, bytes = 0;
    for (size_t off = 0; off < bio->len; off += 4096) {
        gr_iov_get(bio->iov, bio->iovcnt, off, &first, sizeof first);
        bytes += first == c->mark ? 4096 : 0;
    }
    return bytes;
}

static void counted_read(struct gr_bio *low)
{
    struct gr_layer_req *req = low->arg;
    struct counted *c = (struct counted *)gr_layer_of(req->ch);
    c->n.marked_read += low->status == 0 ? counted_marked(c, low) : 0;
    gr_layer_end(req, low->status);
}

static void counted_submit(struct gr_chan *ch, struct gr_bio *bio)
{
    struct counted *c = (struct counted *)gr_layer_of(ch);
    uint64_t first = 0;
    if (bio->op == GR_OP_WRITE && c->mark)
        gr_iov_get(bio->iov, bio->iovcnt, 0, &first, sizeof first);
    if (c->drop && c->mark && first == c->mark) {
        c->dropped += bio->len;
        gr_bio_end(bio, 0);
        return;
    }
    c->n.reads += bio->op == GR_OP_READ;
    c->n.read_bytes += bio->op == GR_OP_READ ? bio->len : 0;
    c->n.writes += bio->op == GR_OP_WRITE || bio->op == GR_OP_COMPARE_WRITE;
    c->n.write_bytes += bio->op == GR_OP_WRITE || bio->op == GR_OP_COMPARE_WRITE ? bio->len : 0;
    c->n.flushes += bio->op == GR_OP_FLUSH;
    c->n.forced += (bio->flags & GR_BIO_FUA) || bio->op == GR_OP_COMPARE_WRITE;
    c->n.unmapped += bio->op == GR_OP_UNMAP ? bio->len : 0;
    c->n.copied += bio->op == GR_OP_COPY ? bio->len : 0;
    c->n.marked_written += bio->op == GR_OP_WRITE && c->mark ? counted_marked(c, bio) : 0;
    struct gr_layer_req *req = gr_layer_req_get(ch, bio);
    if (!req) {
        gr_bio_end(bio, -ENOMEM);
        return;
    }
    if (bio->op == GR_OP_READ && c->mark)
        req->low.done = counted_read;
    gr_layer_send(req);
}

static void counted_close(struct gr_bdev *b)
{
    gr_layer_done((struct gr_layer *)b);
}

/* @c is the caller's memory, alive until it is put. */
static inline struct gr_bdev *counted_over(struct counted *c, struct gr_bdev *lower)
{
    static const struct gr_bdev_ops ops = { .type = "counted", GR_LAYER_OPS, .submit = counted_submit, .close = counted_close, .chan_close = gr_layer_chan_close };
    *c = (struct counted){ 0 };
    gr_layer_init(&c->l, &ops, lower);
    return &c->l.base;
}
#endif
