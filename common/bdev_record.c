/* Records what reaches a device, with the bytes, for those who ask what a power cut could have left of it. For one loop. */
#include "common/bdev_layer.h"
#include "common/iov.h"
#include <stdlib.h>

struct gr_record {
    struct gr_record_entry *entries;
    size_t n, cap;
    uint64_t ticks; /* of submissions and completions */
};
struct record_bdev {
    struct gr_layer layer;
    struct gr_record record;
};

static struct gr_record_entry *entry_add(struct gr_record *r)
{
    if (r->n == r->cap) {
        size_t cap = r->cap ? r->cap * 2 : 256;
        struct gr_record_entry *e = gr_realloc(r->entries, cap * sizeof(*e));
        if (!e)
            return NULL;
        r->entries = e;
        r->cap = cap;
    }
    struct gr_record_entry *e = &r->entries[r->n++];
    *e = (struct gr_record_entry){.submitted = ++r->ticks};
    return e;
}

static void record_done(struct gr_bio *low)
{
    struct gr_layer_req *req = low->arg;
    struct gr_record *r = &((struct record_bdev *)req->ch->bdev)->record;
    struct gr_record_entry *e = &r->entries[req->index];

    /* One that failed may have done anything up to the whole: it stays "not completed". */
    if (low->status == 0)
        e->completed = ++r->ticks;
    if (low->status == -GR_EMISCOMPARE) { /* nothing was written */
        e->op = GR_OP_READ;
        e->len = 0;
        free(e->data);
        e->data = NULL;
    }
    gr_layer_end(req, low->status);
}

static void record_submit(struct gr_chan *ch, struct gr_bio *bio)
{
    struct gr_record *r = &((struct record_bdev *)ch->bdev)->record;
    bool compare = bio->op == GR_OP_COMPARE_WRITE, bytes = compare || bio->op == GR_OP_WRITE;

    if (bio->op == GR_OP_COPY || bio->op == GR_OP_SCRUB) { /* the bytes are not seen here: the caller reads and writes */
        gr_bio_end(bio, -EOPNOTSUPP);
        return;
    }
    struct gr_layer_req *req = gr_layer_req_get(ch, bio);
    if (!req) {
        gr_bio_end(bio, -ENOMEM);
        return;
    }
    if (bio->op != GR_OP_READ && bio->op != GR_OP_EXTENTS) {
        uint8_t *data = bytes ? gr_alloc(bio->len) : NULL;
        struct gr_record_entry *e = bytes && !data ? NULL : entry_add(r);
        if (!e) {
            free(data);
            gr_layer_end(req, -ENOMEM);
            return;
        }
        if (bytes)
            gr_iov_get(compare ? bio->iov2 : bio->iov, compare ? bio->iovcnt2 : bio->iovcnt, 0, data, bio->len);
        e->op = compare ? GR_OP_WRITE : bio->op;
        e->flags = bio->flags | (compare ? GR_BIO_FUA | GR_BIO_ATOMIC : 0);
        e->off = bio->off;
        e->len = bio->op == GR_OP_FLUSH ? 0 : bio->len;
        e->data = data;
        req->index = (size_t)(e - r->entries);
        req->low.done = record_done;
    }
    gr_layer_send(req);
}

static void record_close(struct gr_bdev *bdev)
{
    struct record_bdev *b = (struct record_bdev *)bdev;

    gr_layer_done(&b->layer);
    for (size_t i = 0; i < b->record.n; i++)
        free(b->record.entries[i].data);
    free(b->record.entries);
    free(b);
}

static const struct gr_bdev_ops record_ops = {
    .type = "record", .submit = record_submit, .close = record_close, .chan_close = gr_layer_chan_close, GR_LAYER_OPS};

int gr_bdev_record_open(struct gr_loop *loop, struct gr_bdev *lower, struct gr_bdev **ret)
{
    struct record_bdev *b = gr_zalloc(sizeof(*b));

    (void)loop;
    if (!b)
        return -ENOMEM;
    gr_layer_init(&b->layer, &record_ops, lower);
    *ret = &b->layer.base;
    return 0;
}

struct gr_record *gr_bdev_record(struct gr_bdev *record_bdev)
{
    return &((struct record_bdev *)record_bdev)->record;
}

size_t gr_record_count(const struct gr_record *r)
{
    return r->n;
}

const struct gr_record_entry *gr_record_at(const struct gr_record *r, size_t i)
{
    return i < r->n ? &r->entries[i] : NULL;
}

int gr_record_note(struct gr_record *r, const char *note, void *arg)
{
    struct gr_record_entry *e = entry_add(r);

    if (!e)
        return -ENOMEM;
    e->op = GR_OP_EXTENTS;
    e->note = note;
    e->note_arg = arg;
    e->completed = e->submitted;
    return 0;
}
