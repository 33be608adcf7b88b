/* A read-only gr_bdev over NBD, through libnbd's asynchronous calls.
 *
 * Each connection is one libnbd handle whose socket the loop watches. libnbd runs callbacks inside its own calls, with the
 * handle locked, so they only note what happened; requests complete from a deferred call. What the server says is checked
 * here: the chunks of a read must cover it exactly once, block status must move on and stay inside the question, a server
 * that stays silent with requests in flight is given up. A broken connection fails what it carried and all that follows. */
#include "backup-proxy/source_nbd_int.h"
#include "common/cleanup.h"
#include <poll.h>
#include <stdio.h>
#include <string.h>

#define MAX_PIECE (UINT64_C(4) << 20)   /* bytes of one READ */
#define MAX_STATUS (UINT64_C(1) << 30)  /* bytes of one BLOCK_STATUS */

static void conn_update(struct nbd_conn *c)
{
    if (!c->watching)
        return;
    unsigned d = nbd_aio_get_direction(c->h);
    int ev = (d & LIBNBD_AIO_DIRECTION_READ ? POLLIN : 0) | (d & LIBNBD_AIO_DIRECTION_WRITE ? POLLOUT : 0);
    if (ev != c->watch.events)
        (void)gr_watch_set(c->src->loop, &c->watch, ev);
}

static void conn_arm(struct nbd_conn *c)
{
    if (c->subs)
        (void)gr_timer_arm(c->src->loop, &c->silence, c->src->timeout_ms * 1000000);
    else
        gr_timer_cancel(c->src->loop, &c->silence);
}

static void sub_unlink(struct nbd_sub *s)
{
    *(s->prev ? &s->prev->next : &s->conn->subs) = s->next;
    if (s->next)
        s->next->prev = s->prev;
    s->conn->in_flight--;
}

/* ---- completion ---- */

static void scatter(const struct gr_bio *bio, uint64_t at, const uint8_t *p, size_t len)
{
    for (int i = 0; i < bio->iovcnt && len; i++) {
        size_t n = bio->iov[i].iov_len;
        if (at >= n) {
            at -= n;
            continue;
        }
        n = GR_MIN(n - (size_t)at, len);
        memcpy((uint8_t *)bio->iov[i].iov_base + at, p, n);
        p += n;
        len -= n;
        at = 0;
    }
}

static int chunk_order(const void *a, const void *b)
{
    const struct nbd_range *x = a, *y = b;
    return x->off < y->off ? -1 : x->off > y->off;
}

/* Do the chunks cover the piece exactly once? */
static bool covered(struct nbd_sub *s)
{
    struct nbd_range *r = s->chunks ? s->chunks : &s->first;
    uint64_t at = s->off;
    if (s->n_chunks > 1)
        qsort(r, s->n_chunks, sizeof(*r), chunk_order);
    for (size_t i = 0; i < s->n_chunks; i++) {
        if (r[i].off != at || r[i].len > s->len - (at - s->off))
            return false;
        at += r[i].len;
    }
    return at == s->off + s->len;
}

static void sub_end(struct nbd_sub *s, int status)
{
    struct nbd_req *r = s->req;
    if (status >= 0 && r->bio->op == GR_OP_READ) {
        if (!covered(s))
            status = -GR_EPROTO;
        else if (s->bounce)
            scatter(r->bio, s->off - r->bio->off, s->bounce, s->len);
    }
    if (status < 0 && r->status >= 0)
        r->status = status;
    free(s->bounce);
    free(s->chunks);
    free(s);
    if (--r->pending)
        return;
    struct gr_bio *bio = r->bio;
    status = r->status;
    if (status >= 0 && bio->op == GR_OP_EXTENTS)
        status = bio->n_extents ? 0 : -GR_EPROTO;
    free(r);
    gr_bio_end(bio, status);
}

static void run_done(void *arg)
{
    struct nbd_source *src = arg;
    struct nbd_sub *list = src->done;
    src->done = src->done_tail = NULL;
    while (list) {
        struct nbd_sub *s = list;
        list = s->next;
        sub_end(s, s->status); /* the last one may close the source: nothing of it is touched after that */
    }
}

static void to_done(struct nbd_sub *s, int status)
{
    struct nbd_source *src = s->conn->src;
    sub_unlink(s);
    s->status = status;
    s->next = NULL;
    if (src->done_tail)
        src->done_tail->next = s;
    else
        src->done = s;
    src->done_tail = s;
    gr_loop_defer(src->loop, &src->complete);
}

/* Give the connection up: everything it carries ends with @code. */
static void conn_break(struct nbd_conn *c, int code)
{
    if (!c->broken)
        c->broken = code;
    gr_timer_cancel(c->src->loop, &c->silence);
    if (c->watching)
        gr_watch_del(c->src->loop, &c->watch);
    c->watching = false;
    nbd_close(c->h); /* from here on libnbd touches no buffer of ours */
    c->h = NULL;
    while (c->subs)
        to_done(c->subs, c->broken);
}

static int lib_errno(int e)
{
    return e > 0 && e < 4096 ? -e : -EIO;
}

/* libnbd's callbacks: the handle is locked, so nothing but notes. */
static int on_complete(void *arg, int *error)
{
    struct nbd_sub *s = arg;
    int status = *error ? lib_errno(*error) : s->bad;
    to_done(s, status);
    s->conn->progress = true;
    return 1; /* retire it */
}

static int on_chunk(void *arg, const void *buf, size_t count, uint64_t off, unsigned status, int *error)
{
    struct nbd_sub *s = arg;
    if (status == LIBNBD_READ_ERROR)
        return 0;
    struct nbd_range r = {off, count};
    s->conn->progress = true;
    if (!s->n_chunks++) {
        s->first = r;
        return 0;
    }
    /* a chunk below 512 bytes helps nobody: bounds the list, and with it memory */
    if (s->n_chunks > s->len / 512 + 2) {
        s->n_chunks--;
        s->bad = -GR_EPROTO;
        return 0;
    }
    if (s->n_chunks > s->cap_chunks) {
        size_t cap = s->cap_chunks ? s->cap_chunks * 2 : 16;
        struct nbd_range *list = gr_realloc(s->chunks, cap * sizeof(*list));
        if (!list) {
            s->n_chunks--;
            s->bad = -ENOMEM;
            return 0;
        }
        s->chunks = list;
        s->cap_chunks = cap;
        if (s->n_chunks == 2)
            list[0] = s->first;
    }
    s->chunks[s->n_chunks - 1] = r;
    return 0;
}

static uint32_t extent_flags(bool changed_context, uint32_t f)
{
    if (changed_context)
        return (f & 2 ? GR_EXTENT_ZERO : 0) | (f & 4 ? GR_EXTENT_HOLE | GR_EXTENT_ZERO : 0);
    return (f & 2 ? GR_EXTENT_ZERO : 0) | ((f & 3) == 3 ? GR_EXTENT_HOLE : 0);
}

static int on_extents(void *arg, const char *context, uint64_t off, uint32_t *entries, size_t n_entries, int *error)
{
    struct nbd_sub *s = arg;
    struct nbd_source *src = s->conn->src;
    struct gr_bio *bio = s->req->bio;
    bool changed = bio->base;
    s->conn->progress = true;
    if (strcmp(context, changed ? src->changed_context : NBD_ALLOCATION) || bio->n_extents)
        return 0;
    uint64_t at = s->off, end = s->off + s->len;
    if (off != at)
        s->bad = -GR_EPROTO;
    for (size_t i = 0; !s->bad && i + 1 < n_entries && at < end; i += 2) {
        uint32_t len = entries[i], f = entries[i + 1];
        if (!len) {
            s->bad = -GR_EPROTO; /* would be asked again for ever */
            break;
        }
        struct gr_extent e = {.off = at, .len = GR_MIN((uint64_t)len, end - at), .flags = extent_flags(changed, f),
                              .changed = !changed || (f & 1)};
        struct gr_extent *last = bio->n_extents ? &bio->extents[bio->n_extents - 1] : NULL;
        if (last && last->flags == e.flags && last->changed == e.changed)
            last->len += e.len;
        else if (bio->n_extents == bio->max_extents)
            break;
        else
            bio->extents[bio->n_extents++] = e;
        at += e.len;
    }
    return 0;
}

/* ---- the socket ---- */

static void after_io(struct nbd_conn *c)
{
    if (nbd_aio_is_dead(c->h) || nbd_aio_is_closed(c->h)) {
        conn_break(c, -ECONNRESET);
        return;
    }
    if (c->progress) {
        c->progress = false;
        conn_arm(c);
    }
    conn_update(c);
}

static void on_socket(void *arg, int events)
{
    struct nbd_conn *c = arg;
    unsigned d = nbd_aio_get_direction(c->h);
    if ((d & LIBNBD_AIO_DIRECTION_READ) && (events & (POLLIN | POLLHUP | POLLERR)))
        (void)nbd_aio_notify_read(c->h);
    else if ((d & LIBNBD_AIO_DIRECTION_WRITE) && (events & (POLLOUT | POLLHUP | POLLERR)))
        (void)nbd_aio_notify_write(c->h);
    else if (events & (POLLHUP | POLLERR)) {
        conn_break(c, -ECONNRESET);
        return;
    }
    after_io(c);
}

static void on_silence(void *arg)
{
    conn_break(arg, -ETIMEDOUT);
}

/* ---- requests ---- */

static struct nbd_conn *pick(struct nbd_source *src)
{
    struct nbd_conn *best = NULL;
    for (unsigned i = 0; i < src->n_conns; i++)
        if (!src->conns[i].broken && (!best || src->conns[i].in_flight < best->in_flight))
            best = &src->conns[i];
    return best;
}

static void issue(struct nbd_req *r, uint64_t off, uint64_t len, uint8_t *direct)
{
    struct nbd_source *src = r->src;
    struct nbd_conn *c = pick(src);
    struct nbd_sub *s = c ? gr_zalloc(sizeof(*s)) : NULL;
    bool reading = r->bio->op == GR_OP_READ;
    if (s && reading && !direct)
        s->bounce = gr_alloc((size_t)len);
    if (!s || (reading && !direct && !s->bounce)) {
        free(s);
        if (r->status >= 0)
            r->status = c ? -ENOMEM : src->conns[0].broken;
        r->failed++;
        return;
    }
    s->req = r;
    s->conn = c;
    s->off = off;
    s->len = len;
    s->next = c->subs;
    if (s->next)
        s->next->prev = s;
    c->subs = s;
    c->in_flight++;
    nbd_completion_callback done = {.callback = on_complete, .user_data = s};
    int64_t cookie;
    if (reading)
        cookie = nbd_aio_pread_structured(c->h, direct ? direct : s->bounce, (size_t)len, off,
                                          (nbd_chunk_callback){.callback = on_chunk, .user_data = s}, done, 0);
    else
        cookie = nbd_aio_block_status(c->h, len, off, (nbd_extent_callback){.callback = on_extents, .user_data = s}, done, 0);
    if (cookie < 0)
        to_done(s, lib_errno(nbd_get_errno()));
    else if (c->in_flight == 1)
        conn_arm(c);
    after_io(c);
}

static void submit_read(struct nbd_req *r)
{
    struct gr_bio *bio = r->bio;
    uint64_t piece = r->src->max_piece, n = (bio->len + piece - 1) / piece;
    r->pending = (unsigned)n;
    for (uint64_t at = 0; at < bio->len; at += piece)
        issue(r, bio->off + at, GR_MIN(piece, bio->len - at), bio->iovcnt == 1 ? (uint8_t *)bio->iov[0].iov_base + at : NULL);
}

static void submit_extents(struct nbd_req *r)
{
    struct gr_bio *bio = r->bio;
    r->pending = 1;
    issue(r, bio->off, GR_MIN(bio->len, MAX_STATUS), NULL);
}

/* A server without base:allocation: everything is data. */
static void blind_extents(struct gr_bio *bio)
{
    bio->extents[0] = (struct gr_extent){.off = bio->off, .len = bio->len, .changed = true};
    bio->n_extents = 1;
    gr_bio_end(bio, 0);
}

static void source_submit(struct gr_chan *ch, struct gr_bio *bio)
{
    struct nbd_source *src = gr_container_of(ch->bdev, struct nbd_source, bdev);
    if (bio->op != GR_OP_READ && bio->op != GR_OP_EXTENTS) {
        gr_bio_end(bio, bio->op == GR_OP_FLUSH ? 0 : -GR_EREADONLY);
        return;
    }
    if (bio->op == GR_OP_EXTENTS) {
        bio->n_extents = 0;
        if (bio->base && (!src->changed_context || memcmp(bio->base, &src->base, sizeof(src->base)))) {
            gr_bio_end(bio, -EOPNOTSUPP);
            return;
        }
        if (!bio->base && !src->has_allocation) {
            blind_extents(bio);
            return;
        }
    }
    struct nbd_req *r = gr_zalloc(sizeof(*r));
    if (!r) {
        gr_bio_end(bio, -ENOMEM);
        return;
    }
    r->src = src;
    r->bio = bio;
    if (bio->op == GR_OP_READ)
        submit_read(r);
    else
        submit_extents(r);
    /* pieces that never went out; the others complete later, never inside this call */
    r->pending -= r->failed;
    if (!r->pending) {
        int status = r->status;
        free(r);
        gr_bio_end(bio, status);
    }
}

static int source_geometry(struct gr_bdev *b, struct gr_geometry *ret)
{
    *ret = gr_container_of(b, struct nbd_source, bdev)->geo;
    return 0;
}

void nbd_source_free(struct nbd_source *src)
{
    for (unsigned i = 0; i < src->n_conns; i++) {
        struct nbd_conn *c = &src->conns[i];
        gr_timer_cancel(src->loop, &c->silence);
        if (c->watching)
            gr_watch_del(src->loop, &c->watch);
        if (c->h && nbd_aio_is_ready(c->h))
            (void)nbd_aio_disconnect(c->h, 0); /* goes out at once when the socket takes it; else the server sees a reset */
        nbd_close(c->h);
    }
    gr_loop_defer_cancel(src->loop, &src->complete);
    free(src->conns);
    free(src->changed_context);
    free(src);
}

static void source_close(struct gr_bdev *b)
{
    nbd_source_free(gr_container_of(b, struct nbd_source, bdev));
}

static const struct gr_bdev_ops source_ops = {
    .type = "nbd",
    .submit = source_submit,
    .geometry = source_geometry,
    .close = source_close,
};

void nbd_source_ready(struct nbd_source *src, const char *name)
{
    gr_bdev_init(&src->bdev, &source_ops, name);
    src->complete = (struct gr_defer){.fn = run_done, .arg = src};
    uint64_t max = MAX_PIECE;
    for (unsigned i = 0; i < src->n_conns; i++) {
        struct nbd_conn *c = &src->conns[i];
        int64_t server_max = nbd_get_block_size(c->h, LIBNBD_SIZE_MAXIMUM);
        if (server_max > 0 && (uint64_t)server_max < max)
            max = GR_MAX((uint64_t)server_max, (uint64_t)src->geo.logical_block);
        c->src = src;
        c->silence = (struct gr_timer){.fn = on_silence, .arg = c};
        c->watch.fn = on_socket;
        conn_update(c);
    }
    src->max_piece = max / src->geo.logical_block * src->geo.logical_block;
}

int nbd_source_lib_fail(struct gr_err *err, int code, const char *what)
{
    char text[256];
    const char *e = nbd_get_error();
    snprintf(text, sizeof(text), "%s", e ? e : "no reason given");
    for (char *p = text; *p; p++) /* the server may have had a hand in it */
        if ((unsigned char)*p < 32 || *p == 127)
            *p = '?';
    return gr_fail(err, code, "%s: %s", what, text);
}
