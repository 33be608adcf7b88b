/* Negotiation of one connection: greeting, options, and the selection of an export and of metadata contexts. */
#include "common/cleanup.h"
#include "iscsi-target/mover_int.h"
#include <string.h>

#define LIST_MAX (16u << 20) /* bytes of one listing */

enum step { STEP_NEXT, STEP_SERVE, STEP_LEFT }; /* what an option handler wants; negative: give the connection up */

struct option {
    uint32_t code;
    size_t len;
    uint8_t *data;
};

static int reply(struct mover_conn *c, uint32_t option, uint32_t type, const void *data, size_t len)
{
    struct nbd_rep_wire w = {gr_be64_of(NBD_REP_MAGIC), gr_be32_of(option), gr_be32_of(type), gr_be32_of((uint32_t)len)};
    gr_auto_buf struct gr_buf b = {0};
    if (gr_buf_add(&b, &w, sizeof(w)) < 0 || gr_buf_add(&b, data ? data : "", len) < 0)
        return -ENOMEM;
    return mover_io_send_copy(&c->io, b.data, b.len);
}

static int reply_text(struct mover_conn *c, uint32_t option, uint32_t type, const char *text)
{
    size_t len = strlen(text);
    return reply(c, option, type, text, GR_MIN(len, (size_t)NBD_MAX_STRING));
}

/* ---- exports ---- */

static void on_event(void *arg, enum gr_event ev)
{
    struct mover_conn *c = arg;
    switch (ev) {
    case GR_EVENT_RESIZED:
    case GR_EVENT_THRESHOLD:
        return;
    case GR_EVENT_PRESENTED: /* a client cannot be told: it asks again when it comes back */
    case GR_EVENT_REVERTED:
    case GR_EVENT_FENCED:
    case GR_EVENT_EJECTED:
    case GR_EVENT_MOVING:
    case GR_EVENT_GONE:
        mover_io_fail(&c->io, -ESHUTDOWN);
        return;
    }
}

static void set_flags(struct mover_conn *c)
{
    unsigned f = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_CAN_MULTI_CONN | NBD_FLAG_SEND_CACHE;
    if (c->exp.writable) {
        f |= NBD_FLAG_SEND_FUA | NBD_FLAG_SEND_WRITE_ZEROES;
        if (c->geo.unmap_granule)
            f |= NBD_FLAG_SEND_TRIM;
    } else {
        f |= NBD_FLAG_READ_ONLY;
    }
    if (c->structured)
        f |= NBD_FLAG_SEND_DF;
    if (c->geo.rotational)
        f |= NBD_FLAG_ROTATIONAL;
    c->tx_flags = (uint16_t)f;
}

int mover_export_open(struct mover_conn *c, const char *name, struct gr_err *err)
{
    free(c->name);
    c->name = gr_strdup(name); /* before the open: mover_server_drop() must see who is on the way */
    if (!c->name)
        return gr_fail(err, -ENOMEM, "out of memory");
    const struct mover_dir *dir = &c->server->opts.dir;
    int r = dir->open(dir->arg, name, &c->exp, err);
    if (r < 0) {
        c->exp = (struct mover_export){0};
        return r;
    }
    c->listener = (struct gr_listener){.fn = on_event, .arg = c};
    gr_bdev_listen(c->exp.bdev, &c->listener);
    c->listening = true;
    r = gr_bdev_geometry(c->exp.bdev, &c->geo);
    if (r >= 0)
        r = gr_chan_open(c->exp.bdev, c->server->loop, &c->chan);
    if (r < 0)
        (void)gr_fail(err, r, "%s: cannot be opened: %s", name, gr_code_text(r));
    else if (c->io.error)
        r = gr_fail(err, c->io.error, "%s: the connection ended meanwhile", name);
    else if (c->geo.size > INT64_MAX || !c->geo.logical_block)
        r = gr_fail(err, -EINVAL, "%s: has no size that NBD can tell", name);
    if (r < 0) {
        mover_export_close(c);
        return r;
    }
    c->exp.writable = c->exp.writable && !c->geo.read_only;
    set_flags(c);
    return 0;
}

void mover_export_close(struct mover_conn *c)
{
    if (c->listening)
        gr_bdev_unlisten(c->exp.bdev, &c->listener);
    c->listening = false;
    gr_chan_close(c->chan);
    c->chan = NULL;
    gr_bdev_put(c->exp.bdev);
    c->exp = (struct mover_export){0};
    free(c->name);
    c->name = NULL;
}

static int refuse_export(struct mover_conn *c, uint32_t option, int code, const struct gr_err *err)
{
    return reply_text(c, option, code == -ENOENT ? NBD_REP_ERR_UNKNOWN : NBD_REP_ERR_POLICY, gr_err_text(err, code));
}

/* ---- options ---- */

static int opt_export_name(struct mover_conn *c, const struct option *o, struct gr_err *err)
{
    char name[NBD_MAX_STRING + 1];
    if (mover_opt_name(o->data, o->len, name) < 0)
        return gr_fail(err, -GR_EPROTO, "NBD_OPT_EXPORT_NAME with a name that is none"); /* the option has no error reply */
    int r = mover_export_open(c, name, err);
    if (r < 0)
        return r;
    uint8_t msg[8 + 2 + 124] = {0};
    gr_put_be64(msg, c->geo.size);
    gr_put_be16(msg + 8, c->tx_flags);
    r = mover_io_send_copy(&c->io, msg, c->no_zeroes ? 10 : sizeof(msg));
    return r < 0 ? r : STEP_SERVE;
}

static int send_infos(struct mover_conn *c, uint32_t option, const struct mover_opt_info *want)
{
    uint8_t e[12], b[14];
    gr_put_be16(e, NBD_INFO_EXPORT);
    gr_put_be64(e + 2, c->geo.size);
    gr_put_be16(e + 10, c->tx_flags);
    uint32_t preferred = c->geo.optimal_io;
    if (preferred < 4096 || preferred > (1u << 20) || (preferred & (preferred - 1)))
        preferred = 65536;
    gr_put_be16(b, NBD_INFO_BLOCK_SIZE);
    gr_put_be32(b + 2, c->exp.writable ? c->geo.logical_block : 1);
    gr_put_be32(b + 6, preferred);
    gr_put_be32(b + 10, MOVER_MAX_REQUEST);
    int r = reply(c, option, NBD_REP_INFO, e, sizeof(e));
    if (r >= 0)
        r = reply(c, option, NBD_REP_INFO, b, sizeof(b));
    char text[2 + NBD_MAX_STRING];
    if (r >= 0 && want->want_name) {
        size_t n = strlen(want->name);
        gr_put_be16(text, NBD_INFO_NAME);
        memcpy(text + 2, want->name, n);
        r = reply(c, option, NBD_REP_INFO, text, 2 + n);
    }
    if (r >= 0 && want->want_description && c->exp.description[0]) {
        size_t n = strnlen(c->exp.description, sizeof(c->exp.description));
        gr_put_be16(text, NBD_INFO_DESCRIPTION);
        memcpy(text + 2, c->exp.description, n);
        r = reply(c, option, NBD_REP_INFO, text, 2 + n);
    }
    return r;
}

static int opt_info_go(struct mover_conn *c, const struct option *o)
{
    gr_auto_free struct mover_opt_info *want = gr_alloc(sizeof(*want));
    if (!want)
        return -ENOMEM;
    if (mover_opt_parse_info(o->data, o->len, want) < 0)
        return reply_text(c, o->code, NBD_REP_ERR_INVALID, "malformed request");
    struct gr_err err = {0};
    int r = mover_export_open(c, want->name, &err);
    if (r < 0)
        return refuse_export(c, o->code, r, &err);
    r = send_infos(c, o->code, want);
    if (r >= 0)
        r = reply(c, o->code, NBD_REP_ACK, NULL, 0);
    if (r >= 0 && o->code == NBD_OPT_GO)
        return STEP_SERVE;
    mover_export_close(c);
    return r;
}

static int list_add(void *ctx, const char *name, const char *description)
{
    struct gr_buf *b = ctx;
    size_t n = strlen(name), d = description ? strlen(description) : 0;
    if (n > NBD_MAX_STRING || d > NBD_MAX_STRING || b->len > LIST_MAX)
        return n > NBD_MAX_STRING || d > NBD_MAX_STRING ? 0 : -ENOSPC;
    struct nbd_rep_wire w = {gr_be64_of(NBD_REP_MAGIC), gr_be32_of(NBD_OPT_LIST), gr_be32_of(NBD_REP_SERVER),
                             gr_be32_of((uint32_t)(4 + n + d))};
    gr_be32 len = gr_be32_of((uint32_t)n);
    int r = gr_buf_add(b, &w, sizeof(w));
    if (r >= 0)
        r = gr_buf_add(b, &len, sizeof(len));
    if (r >= 0)
        r = gr_buf_add(b, name, n);
    return r >= 0 && d ? gr_buf_add(b, description, d) : r;
}

static int opt_list(struct mover_conn *c, const struct option *o)
{
    const struct mover_dir *dir = &c->server->opts.dir;
    if (o->len)
        return reply_text(c, o->code, NBD_REP_ERR_INVALID, "NBD_OPT_LIST takes no data");
    if (!dir->list)
        return reply_text(c, o->code, NBD_REP_ERR_POLICY, "listing is not allowed here");
    gr_auto_buf struct gr_buf b = {0};
    struct gr_err err = {0};
    int r = dir->list(dir->arg, list_add, &b, &err);
    if (r < 0)
        return reply_text(c, o->code, NBD_REP_ERR_POLICY, gr_err_text(&err, r));
    r = b.len ? mover_io_send_copy(&c->io, b.data, b.len) : 0;
    return r < 0 ? r : reply(c, o->code, NBD_REP_ACK, NULL, 0);
}

/* It is the gate that starts TLS (gate_nego.c). */
static int opt_starttls(struct mover_conn *c, const struct option *o)
{
    return c->tls ? reply_text(c, o->code, NBD_REP_ERR_INVALID, "TLS is on already")
                  : reply_text(c, o->code, NBD_REP_ERR_UNSUP, "TLS is not set up on this server");
}

/* ---- metadata contexts ---- */

struct bases {
    struct mover_conn *conn;
    uint32_t option;
    int status;
};

static int send_context(struct mover_conn *c, uint32_t option, uint32_t id, const char *prefix, const char *name)
{
    gr_auto_buf struct gr_buf b = {0};
    gr_be32 w = gr_be32_of(id);
    if (gr_buf_add(&b, &w, sizeof(w)) < 0 || gr_buf_printf(&b, "%s%s", prefix, name) < 0)
        return -ENOMEM;
    return reply(c, option, NBD_REP_META_CONTEXT, b.data, b.len);
}

static int base_add(void *ctx, const char *name, const char *description)
{
    struct bases *b = ctx;
    if (strlen(name) > NBD_MAX_STRING - sizeof(MOVER_CONTEXT_CHANGED))
        return 0;
    b->status = send_context(b->conn, b->option, 0, MOVER_CONTEXT_CHANGED, name);
    return b->status;
}

/* Can the open export tell what changed since @base_name? Then fill @ret. */
static int resolve_changed(struct mover_conn *c, const char *base_name, struct gr_bookmark *ret)
{
    const struct mover_dir *dir = &c->server->opts.dir;
    struct gr_err err = {0};
    if (gr_bookmark_parse(base_name, ret) < 0) {
        if (!dir->resolve_base)
            return -ENOENT;
        int r = dir->resolve_base(dir->arg, c->name, base_name, ret, &err);
        if (r < 0)
            return r;
    }
    if (!c->geo.size)
        return 0;
    struct gr_extent e;
    unsigned n = 0;
    return gr_extents(c->chan, 0, GR_MIN(c->geo.size, (uint64_t)c->geo.logical_block), ret, &e, 1, &n);
}

static int set_query(struct mover_conn *c, uint32_t option, const char *q)
{
    struct mover_context ctx = {.id = c->n_ctx + 1};
    size_t prefix = strlen(MOVER_CONTEXT_CHANGED);
    if (c->n_ctx == MOVER_MAX_CONTEXTS)
        return 0; /* not selected: the client sees that no answer comes */
    if (!strncmp(q, MOVER_CONTEXT_CHANGED, prefix)) {
        ctx.changed = true;
        if (resolve_changed(c, q + prefix, &ctx.base) < 0)
            return 0;
    } else if (strcmp(q, "base:allocation")) {
        return 0;
    }
    c->ctx[c->n_ctx++] = ctx;
    return send_context(c, option, ctx.id, q, "");
}

static int list_query(struct mover_conn *c, uint32_t option, const char *q)
{
    const struct mover_dir *dir = &c->server->opts.dir;
    int r = 0;
    if (!q || !strcmp(q, "base:") || !strcmp(q, "base:allocation"))
        r = send_context(c, option, 0, "base:allocation", "");
    if (r >= 0 && dir->list_bases && (!q || !strcmp(q, "granary:") || !strcmp(q, MOVER_CONTEXT_CHANGED))) {
        struct bases b = {.conn = c, .option = option};
        struct gr_err err = {0};
        (void)dir->list_bases(dir->arg, c->name, base_add, &b, &err); /* an export that cannot tell its bases lists none */
        r = b.status;
    }
    struct gr_bookmark base;
    size_t prefix = strlen(MOVER_CONTEXT_CHANGED);
    if (r >= 0 && q && !strncmp(q, MOVER_CONTEXT_CHANGED, prefix) && q[prefix] && resolve_changed(c, q + prefix, &base) >= 0)
        r = send_context(c, option, 0, q, "");
    return r;
}

static int opt_meta(struct mover_conn *c, const struct option *o)
{
    gr_auto_free struct mover_opt_meta *m = gr_alloc(sizeof(*m));
    if (!m)
        return -ENOMEM;
    bool set = o->code == NBD_OPT_SET_META_CONTEXT;
    if (set)
        c->n_ctx = 0;
    if (!c->structured)
        return reply_text(c, o->code, NBD_REP_ERR_INVALID, "structured replies must be negotiated first");
    if (mover_opt_parse_meta(o->data, o->len, m) < 0)
        return reply_text(c, o->code, NBD_REP_ERR_INVALID, "malformed request");
    struct gr_err err = {0};
    int r = mover_export_open(c, m->name, &err);
    if (r < 0)
        return refuse_export(c, o->code, r, &err);
    if (!set && !m->n_queries)
        r = list_query(c, o->code, NULL);
    size_t pos = m->first;
    char query[NBD_MAX_STRING + 1];
    for (uint32_t i = 0; r >= 0 && i < GR_MIN(m->n_queries, 256u); i++) {
        r = mover_opt_next_query(o->data, o->len, &pos, query);
        if (r >= 0)
            r = set ? set_query(c, o->code, query) : list_query(c, o->code, query);
    }
    mover_export_close(c);
    if (r >= 0 && set) {
        free(c->meta_name);
        c->meta_name = gr_strdup(m->name);
        r = c->meta_name ? 0 : -ENOMEM;
    }
    return r < 0 ? r : reply(c, o->code, NBD_REP_ACK, NULL, 0);
}

static int handle(struct mover_conn *c, const struct option *o, struct gr_err *err)
{
    switch (o->code) {
    case NBD_OPT_EXPORT_NAME:
        return opt_export_name(c, o, err);
    case NBD_OPT_ABORT:
        (void)reply(c, o->code, NBD_REP_ACK, NULL, 0);
        return STEP_LEFT;
    case NBD_OPT_LIST:
        return opt_list(c, o);
    case NBD_OPT_STARTTLS:
        return opt_starttls(c, o);
    case NBD_OPT_INFO:
    case NBD_OPT_GO:
        return opt_info_go(c, o);
    case NBD_OPT_STRUCTURED_REPLY:
        if (o->len)
            return reply_text(c, o->code, NBD_REP_ERR_INVALID, "NBD_OPT_STRUCTURED_REPLY takes no data");
        c->structured = true;
        return reply(c, o->code, NBD_REP_ACK, NULL, 0);
    case NBD_OPT_LIST_META_CONTEXT:
    case NBD_OPT_SET_META_CONTEXT:
        return opt_meta(c, o);
    default:
        return reply_text(c, o->code, NBD_REP_ERR_UNSUP, "unknown option");
    }
}

static int one_option(struct mover_conn *c, struct gr_err *err)
{
    uint8_t head[sizeof(struct nbd_opt_wire)];
    int r = mover_next(c, sizeof(head), c->deadline_ns, 0);
    if (r == 0)
        return STEP_LEFT;
    if (r > 0)
        r = mover_io_read(&c->io, head, sizeof(head), 0);
    if (r < 0)
        return gr_fail(err, r, "connection lost between options: %s", gr_code_text(r));
    uint32_t len = gr_get_be32(head + 12);
    struct option o = {.code = gr_get_be32(head + 8), .len = len};
    if (gr_get_be64(head) != NBD_OPTS_MAGIC)
        return gr_fail(err, -GR_EPROTO, "option without its magic number");
    if (len > MOVER_MAX_OPTION_SKIP || (len > MOVER_MAX_OPTION && o.code == NBD_OPT_EXPORT_NAME))
        return gr_fail(err, -GR_EPROTO, "option %u with %u bytes of data", o.code, len);
    if (len > MOVER_MAX_OPTION) {
        r = mover_io_skip(&c->io, len, c->deadline_ns);
        return r < 0 ? gr_fail(err, r, "connection lost in option %u", o.code)
                     : reply_text(c, o.code, NBD_REP_ERR_TOO_BIG, "option data is limited to 64 KiB");
    }
    gr_auto_free uint8_t *data = gr_alloc(len + 1u);
    if (!data)
        return gr_fail(err, -ENOMEM, "out of memory");
    r = mover_io_read(&c->io, data, len, c->deadline_ns);
    if (r < 0)
        return gr_fail(err, r, "connection lost in option %u: %s", o.code, gr_code_text(r));
    o.data = data;
    r = handle(c, &o, err);
    if (r < 0 && err && !err->code)
        return gr_fail(err, r, "option %u: %s", o.code, gr_code_text(r));
    return r;
}

/* 0, 1 when it was only a port check, or the error. */
static int greet(struct mover_conn *c, struct gr_err *err)
{
    uint8_t hello[18], flags[4];
    gr_put_be64(hello, NBD_MAGIC);
    gr_put_be64(hello + 8, NBD_OPTS_MAGIC);
    gr_put_be16(hello + 16, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
    int r = c->greets ? 0 : mover_io_send_copy(&c->io, hello, sizeof(hello));
    c->greets = true;
    if (r >= 0)
        r = mover_next(c, sizeof(flags), c->deadline_ns, 0);
    if (r == 0 || r == -EPIPE)
        return 1;
    if (r > 0)
        r = mover_io_read(&c->io, flags, sizeof(flags), 0);
    if (r < 0)
        return gr_fail(err, r, "no answer to the greeting: %s", gr_code_text(r));
    uint32_t f = gr_get_be32(flags);
    if ((f & ~(uint32_t)(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES)) || !(f & NBD_FLAG_FIXED_NEWSTYLE))
        return gr_fail(err, -GR_EPROTO, "client flags %#x: not a fixed newstyle client", f);
    c->no_zeroes = f & NBD_FLAG_NO_ZEROES;
    c->greeted = true;
    return 0;
}

int mover_negotiate(struct mover_conn *c, struct gr_err *err)
{
    int r = c->tls || c->greeted ? 0 : greet(c, err);
    if (r)
        return r;
    for (; c->n_options < MOVER_MAX_OPTIONS; c->n_options++) {
        r = one_option(c, err);
        if (r == STEP_SERVE) {
            if (!c->meta_name || strcmp(c->meta_name, c->name))
                c->n_ctx = 0;
            return 0;
        }
        if (r == STEP_LEFT)
            return 1;
        if (r >= 0)
            r = mover_io_drain(&c->io, c->deadline_ns);
        if (r < 0) {
            return err && err->code ? r : gr_fail(err, r, "connection lost in the negotiation: %s", gr_code_text(r));
        }
    }
    return gr_fail(err, -GR_EPROTO, "more than %d options", MOVER_MAX_OPTIONS);
}
