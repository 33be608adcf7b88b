/* Commands and requests that wait and that are done. */
#include "common/bdev_iscsi_int.h"
#include "common/cleanup.h"
#include "common/iov.h"
#include <stdlib.h>

/* ---- lists ---- */
void isc_unlink(struct isc_list *l, struct isc_sub *s)
{
    *(s->prev ? &s->prev->next : &l->head) = s->next;
    *(s->next ? &s->next->prev : &l->tail) = s->prev;
    s->prev = s->next = NULL;
}

void isc_insert(struct isc_list *l, struct isc_sub *s)
{
    struct isc_sub *after = l->tail;

    while (after && after->seq > s->seq)
        after = after->prev;
    s->prev = after;
    s->next = after ? after->next : l->head;
    *(after ? &after->next : &l->head) = s;
    *(s->next ? &s->next->prev : &l->tail) = s;
}

void isc_enqueue(struct isc_dev *d, struct isc_sub *s)
{
    s->seq = d->seq++;
    isc_insert(&d->waiting, s);
    gr_loop_defer(d->loop, &d->kick); /* many requests of one turn go out together */
}

/* ---- requests that are done ---- */
void isc_run_done(void *arg)
{
    struct isc_chan *c = arg;
    struct isc_req *list = c->head;

    c->head = c->tail = NULL;
    while (list) {
        struct isc_req *r = list;
        struct gr_bio *bio = r->bio;
        int status = r->status;
        list = r->next;
        free(r);
        gr_bio_end(bio, status); /* the last one may close the channel: it is not touched after that */
    }
}

static void sub_free(struct isc_sub *s)
{
    free(s->bounce);
    free(s->seen);
    free(s->iov);
    free(s);
}

static void req_done(struct isc_req *r)
{
    struct isc_chan *c = r->ch->priv;

    r->next = NULL;
    *(c->tail ? &c->tail->next : &c->head) = r;
    c->tail = r;
    gr_loop_defer(r->ch->loop, &c->complete);
}

void isc_again(struct isc_sub *s)
{
    isc_insert(&s->dev->waiting, s);
    gr_loop_defer(s->dev->loop, &s->dev->kick);
}

int isc_add_flush(struct isc_req *r, struct isc_sub *then)
{
    struct isc_dev *d = gr_container_of(r->ch->bdev, struct isc_dev, bdev);
    struct isc_sub *f = d->flush_error ? NULL : gr_zalloc(sizeof(*f));

    if (!f)
        return d->flush_error ? d->flush_error : -ENOMEM;
    *f = (struct isc_sub){.dev = d, .req = r, .kind = ISC_FLUSH, .then = then};
    r->pending++;
    isc_enqueue(d, f);
    return 0;
}

/* Nobody knows what of it is durable: final. */
static bool unknown_fate(int status)
{
    return status < 0 && status != -GR_EFENCED && status != -GR_ENOSPACE && status != -GR_EREADONLY && status != -GR_ERANGE;
}

void isc_finish(struct isc_sub *s, int status)
{
    struct isc_dev *d = s->dev;
    struct isc_req *r = s->req;

    if (status >= 0 && s->kind == ISC_READ && s->bounce)
        gr_iov_put(r->bio->iov, r->bio->iovcnt, s->off - r->bio->off, s->bounce, s->len);
    bool durable = s->kind == ISC_FLUSH || (s->kind == ISC_WRITE && (r->bio->flags & GR_BIO_FUA));
    if (durable && unknown_fate(status) && !d->flush_error)
        d->flush_error = status;
    if (status < 0 && r->status >= 0)
        r->status = status;
    if (s->then && status >= 0)
        isc_again(s->then);
    else if (s->then)
        isc_finish(s->then, status);
    sub_free(s);
    if (--r->pending)
        return;
    bool flush = r->status >= 0 && r->then_flush;
    r->then_flush = false;
    if (flush)
        r->status = isc_add_flush(r, NULL);
    if (!r->pending)
        req_done(r);
}

void isc_fail_waiting(struct isc_dev *d, int code)
{
    struct isc_list all = d->waiting;

    d->waiting = (struct isc_list){0};
    while (all.head) {
        struct isc_sub *s = all.head;
        isc_unlink(&all, s);
        s->req->then_flush = false;
        isc_finish(s, code);
    }
}
