/* Opening an NBD source: connect, TLS, contexts, and checks of what the server claims to be. */
#include "backup-proxy/source_nbd_int.h"
#include "common/cleanup.h"
#include "common/fiber.h"
#include <poll.h>
#include <string.h>

#define CONTEXT_CHANGED "granary:changed:"

struct opening {
    struct nbd_source *src;
    const struct bp_nbd_opts *opts;
    struct gr_fiber *fiber;
    uint64_t deadline_ns;
};

static bool uri_has_tls(const char *uri)
{
    return !strncmp(uri, "nbds://", 7) || !strncmp(uri, "nbds+", 5);
}

/* The URI without what may be secret or long: for messages. */
static void uri_text(const char *uri, char out[128])
{
    size_t n = strcspn(uri, "?");
    snprintf(out, 128, "%.*s", (int)GR_MIN(n, (size_t)120), uri);
}

static int set_up(struct nbd_conn *c, const struct opening *o, struct gr_err *err)
{
    const struct bp_nbd_opts *p = o->opts;
    c->h = nbd_create();
    if (!c->h)
        return nbd_source_lib_fail(err, -ENOMEM, "libnbd");
    bool ok = nbd_set_uri_allow_local_file(c->h, true) == 0 && nbd_add_meta_context(c->h, NBD_ALLOCATION) == 0;
    if (ok && o->src->changed_context)
        ok = nbd_add_meta_context(c->h, o->src->changed_context) == 0;
    if (ok && p->cert_dir)
        ok = nbd_set_tls_certificates(c->h, p->cert_dir) == 0;
    if (ok && p->psk_file)
        ok = nbd_set_tls_psk_file(c->h, p->psk_file) == 0;
    if (ok && p->psk_user)
        ok = nbd_set_tls_username(c->h, p->psk_user) == 0;
    return ok ? 0 : nbd_source_lib_fail(err, -EINVAL, "NBD options");
}

struct dial {
    struct nbd_handle *h;
    const char *uri;
    struct gr_err *err;
};
static int dial(void *arg) /* on a worker thread: resolves the host name, reads certificates */
{
    struct dial *d = arg;
    return nbd_aio_connect_uri(d->h, d->uri) < 0 ? nbd_source_lib_fail(d->err, -ECONNREFUSED, "cannot connect") : 0;
}

static void ignore(void *arg, int events)
{
}

/* Drive the handshake to its end. */
static int handshake(struct nbd_conn *c, const struct opening *o, struct gr_err *err)
{
    struct gr_loop *loop = o->src->loop;
    while (!nbd_aio_is_ready(c->h)) {
        if (nbd_aio_is_dead(c->h) || nbd_aio_is_closed(c->h))
            return nbd_source_lib_fail(err, -ECONNREFUSED, "negotiation failed");
        uint64_t now = gr_loop_now_ns(loop);
        unsigned d = nbd_aio_get_direction(c->h);
        int ev = (d & LIBNBD_AIO_DIRECTION_READ ? POLLIN : 0) | (d & LIBNBD_AIO_DIRECTION_WRITE ? POLLOUT : 0);
        int64_t left = now < o->deadline_ns ? (int64_t)((o->deadline_ns - now) / 1000000) + 1 : 0;
        int got = left && ev ? gr_fiber_wait_fd(nbd_aio_get_fd(c->h), ev, left) : -ETIMEDOUT;
        if (got < 0)
            return gr_fail(err, got, "the server stays silent in the negotiation");
        int r = 0;
        if ((d & LIBNBD_AIO_DIRECTION_READ) && (got & (POLLIN | POLLHUP | POLLERR)))
            r = nbd_aio_notify_read(c->h);
        else if (d & LIBNBD_AIO_DIRECTION_WRITE)
            r = nbd_aio_notify_write(c->h);
        if (r < 0)
            return nbd_source_lib_fail(err, nbd_get_errno() == EACCES ? -GR_EAUTH : -ECONNREFUSED, "negotiation failed");
    }
    return 0;
}

static int connect_one(struct nbd_conn *c, const struct opening *o, struct gr_err *err)
{
    int r = set_up(c, o, err);
    if (r < 0)
        return r;
    struct dial d = {c->h, o->opts->uri, err};
    r = gr_fiber_work(dial, &d);
    if (r >= 0)
        r = handshake(c, o, err);
    if (r < 0)
        return r;
    if (o->opts->require_tls && nbd_get_tls_negotiated(c->h) != 1)
        return gr_fail(err, -GR_EAUTH, "the server does not speak TLS");
    c->watch = (struct gr_watch){.fn = ignore, .arg = c, .fd = nbd_aio_get_fd(c->h)};
    r = gr_watch_add(o->src->loop, &c->watch);
    if (r < 0)
        return gr_fail(err, r, "cannot watch the socket: %s", gr_code_text(r));
    c->watching = true;
    return 0;
}

/* What the server says about the export, believed only as far as it makes sense. */
static int examine(struct nbd_source *src, struct nbd_handle *h, struct gr_err *err)
{
    int64_t size = nbd_get_size(h), min = nbd_get_block_size(h, LIBNBD_SIZE_MINIMUM),
            preferred = nbd_get_block_size(h, LIBNBD_SIZE_PREFERRED);
    if (size < 0)
        return gr_fail(err, -GR_EPROTO, "the server tells no possible size");
    uint32_t block = min <= 512 ? 512 : 4096;
    if (min > 4096 || (min > 0 && (min & (min - 1))))
        return gr_fail(err, -GR_EPROTO, "the server's smallest block of %lld bytes is not supported", (long long)min);
    if ((uint64_t)size % block)
        return gr_fail(err, -GR_EPROTO, "the size of %lld bytes is not a multiple of %u", (long long)size, block);
    src->has_allocation = nbd_can_meta_context(h, NBD_ALLOCATION) == 1;
    src->geo = (struct gr_geometry){
        .size = (uint64_t)size,
        .logical_block = block,
        .physical_block = 4096,
        .optimal_io = preferred >= 4096 && preferred <= (1 << 20) ? (uint32_t)preferred : 65536,
        .read_only = true,
        .thin = src->has_allocation,
        .rotational = nbd_is_rotational(h) == 1,
    };
    if (src->changed_context && nbd_can_meta_context(h, src->changed_context) != 1)
        return gr_fail(err, -ENOENT, "the server cannot tell what changed since %s", src->changed_context + strlen(CONTEXT_CHANGED));
    return 0;
}

static int open_all(struct opening *o, struct gr_err *err)
{
    struct nbd_source *src = o->src;
    unsigned want = GR_MIN(o->opts->connections ? o->opts->connections : 1u, (unsigned)NBD_MAX_CONNS);
    src->conns = gr_zalloc(want * sizeof(*src->conns));
    if (!src->conns)
        return gr_fail(err, -ENOMEM, "out of memory");
    src->n_conns = 1;
    int r = connect_one(&src->conns[0], o, err);
    if (r >= 0)
        r = examine(src, src->conns[0].h, err);
    if (r < 0)
        return r;
    if (nbd_can_multi_conn(src->conns[0].h) != 1)
        want = 1;
    while (src->n_conns < want) {
        struct nbd_conn *c = &src->conns[src->n_conns++];
        r = connect_one(c, o, err);
        if (r < 0)
            return r;
        if ((uint64_t)nbd_get_size(c->h) != src->geo.size ||
            (src->changed_context && nbd_can_meta_context(c->h, src->changed_context) != 1) ||
            (nbd_can_meta_context(c->h, NBD_ALLOCATION) == 1) != src->has_allocation)
            return gr_fail(err, -GR_EPROTO, "the server tells another thing on each connection");
    }
    return 0;
}

int bp_source_nbd_open(struct gr_loop *loop, const struct bp_nbd_opts *opts, struct gr_bdev **ret, struct gr_err *err)
{
    char name[128];
    uri_text(opts->uri, name);
    if (opts->require_tls && !uri_has_tls(opts->uri))
        return gr_fail(err, -GR_EAUTH, "%s: TLS is required, so the URI must begin with nbds", name);
    struct nbd_source *src = gr_zalloc(sizeof(*src));
    if (!src)
        return gr_fail(err, -ENOMEM, "out of memory");
    src->loop = loop;
    src->timeout_ms = opts->timeout_ms ? opts->timeout_ms : 60000;
    int r = 0;
    if (opts->base) {
        char token[GR_BOOKMARK_TEXT];
        gr_bookmark_format(opts->base, token);
        src->base = *opts->base;
        src->changed_context = gr_asprintf(CONTEXT_CHANGED "%s", token);
        r = src->changed_context ? 0 : gr_fail(err, -ENOMEM, "out of memory");
    }
    struct opening o = {.src = src, .opts = opts, .deadline_ns = gr_loop_now_ns(loop) + src->timeout_ms * 1000000};
    if (r >= 0)
        r = open_all(&o, err);
    if (r < 0) {
        nbd_source_free(src);
        return gr_prefix(err, r, "%s", name);
    }
    nbd_source_ready(src, name);
    *ret = &src->bdev;
    return 0;
}
