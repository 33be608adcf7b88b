/* Faults by rule: failing, hanging, swallowed and torn requests. Rules are for one loop's thread. */
#include "common/bdev_layer.h"
#include "common/iov.h"
#include <stdlib.h>
#include <string.h>

struct rule {
    struct gr_fault_rule spec;
    unsigned hits;
    struct rule *next;
};
struct fault_bdev {
    struct gr_layer layer;
    struct rule *rules; /* in the order they were added; the first that fires decides */
};

static bool concerns(const struct gr_fault_rule *s, const struct gr_bio *bio)
{
    if (s->op != bio->op)
        return false;
    if (!s->len || bio->op == GR_OP_FLUSH)
        return true;
    return bio->off < s->off ? s->off - bio->off < bio->len : bio->off - s->off < s->len;
}

static const struct gr_fault_rule *find(struct fault_bdev *f, const struct gr_bio *bio)
{
    const struct gr_fault_rule *fires = NULL;

    for (struct rule *r = f->rules; r && !fires; r = r->next) {
        if (!concerns(&r->spec, bio))
            continue;
        unsigned hit = r->hits;
        if (r->hits < UINT32_MAX)
            r->hits++;
        if (hit >= r->spec.after && (!r->spec.count || hit - r->spec.after < r->spec.count))
            fires = &r->spec;
    }
    return fires;
}

static void torn_done(struct gr_bio *low)
{
    struct gr_layer_req *req = low->arg;

    free((void *)(uintptr_t)low->iov);
    gr_layer_end(req, low->status < 0 ? low->status : (int)req->index);
}

/* Only the first bytes of the write, or of what is to be zeros, get to the lower device. */
static void tear(struct gr_layer_req *req, const struct gr_fault_rule *rule)
{
    struct gr_bio *bio = req->up;
    int n = bio->iovcnt ? bio->iovcnt : 1;
    struct iovec *iov = gr_alloc((size_t)n * sizeof(*iov));

    if (!iov) {
        gr_layer_end(req, -ENOMEM);
        return;
    }
    uint64_t left = rule->torn_bytes;
    int used = 0;
    for (int i = 0; i < bio->iovcnt && left; i++) {
        iov[used] = bio->iov[i];
        if (iov[used].iov_len > left)
            iov[used].iov_len = (size_t)left;
        left -= iov[used++].iov_len;
    }
    req->low.iov = iov;
    req->low.iovcnt = used;
    req->low.len = rule->torn_bytes;
    req->low.done = torn_done;
    req->index = (size_t)rule->code;
    gr_layer_send(req);
}

static bool can_tear(const struct gr_bio *bio)
{
    return bio->op == GR_OP_WRITE || bio->op == GR_OP_WRITE_ZEROES;
}

static void fault_submit(struct gr_chan *ch, struct gr_bio *bio)
{
    const struct gr_fault_rule *rule = find((struct fault_bdev *)ch->bdev, bio);
    struct gr_layer_req *req = gr_layer_req_get(ch, bio);

    if (!req) {
        gr_bio_end(bio, -ENOMEM);
        return;
    }
    if (!rule) {
        gr_layer_send(req);
    } else if (rule->hang) {
        req->next = gr_layer_chan_of(ch)->held;
        gr_layer_chan_of(ch)->held = req;
    } else if (rule->torn_bytes && can_tear(bio) && rule->torn_bytes < bio->len) {
        tear(req, rule);
    } else if (rule->torn_bytes && can_tear(bio)) {
        gr_layer_send(req); /* shorter than the tear: whole */
    } else {
        gr_layer_end(req, rule->swallow ? 0 : rule->code);
    }
}

static void fault_chan_close(struct gr_chan *ch)
{
    struct gr_layer_chan *lc = gr_layer_chan_of(ch);

    while (lc->held) {
        struct gr_layer_req *req = lc->held;
        lc->held = req->next;
        gr_layer_end(req, -GR_ECANCELED);
    }
    gr_layer_chan_close(ch);
}

void gr_bdev_fault_clear(struct gr_bdev *fault)
{
    struct fault_bdev *f = (struct fault_bdev *)fault;

    while (f->rules) {
        struct rule *r = f->rules;
        f->rules = r->next;
        free(r);
    }
}

static void fault_close(struct gr_bdev *bdev)
{
    gr_bdev_fault_clear(bdev);
    gr_layer_done((struct gr_layer *)bdev);
    free(bdev);
}

static const struct gr_bdev_ops fault_ops = {
    .type = "fault", .submit = fault_submit, .close = fault_close, .chan_close = fault_chan_close, GR_LAYER_OPS};

int gr_bdev_fault_add(struct gr_bdev *fault, const struct gr_fault_rule *rule)
{
    struct fault_bdev *f = (struct fault_bdev *)fault;
    struct gr_geometry g;

    if (fault->ops != &fault_ops || rule->code > 0 || (!rule->code && !rule->hang && !rule->swallow && !rule->torn_bytes))
        return -EINVAL;
    int r = gr_bdev_geometry(fault, &g);
    if (r < 0)
        return r;
    if (rule->torn_bytes & (g.logical_block - 1))
        return -EINVAL;
    struct rule *new = gr_zalloc(sizeof(*new));
    if (!new)
        return -ENOMEM;
    new->spec = *rule;
    struct rule **p = &f->rules;
    while (*p)
        p = &(*p)->next;
    *p = new;
    return 0;
}

int gr_bdev_fault_open(struct gr_loop *loop, struct gr_bdev *lower, struct gr_bdev **ret)
{
    struct fault_bdev *f = gr_zalloc(sizeof(*f));

    (void)loop;
    if (!f)
        return -ENOMEM;
    gr_layer_init(&f->layer, &fault_ops, lower);
    *ret = &f->layer.base;
    return 0;
}
