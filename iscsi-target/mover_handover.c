/* Connections that go on in another process. {"mover-connections":[{"fd","peer","how","from":hex of the address,"phase":"greeting|options|serving",
 * "left-ms":of the negotiation,"tls","structured","no-zeroes","options":answered so far,"contexts":[{"id","base"?:token}],"contexts-of"?,
 * "export"?,"uuid","size","writable","unread"?:base64,"unsent"?:{"fd":of a file}}], "mover-gates":[{"fd"}], "mover-rest-ns":when they came to rest (CLOCK_MONOTONIC)}
 *
 * At rest nothing is at work for a connection, and the next byte that is read begins a message: what has come of that is carried. Answers that
 * the client has not taken yet are carried in a file; by then it had a moment to take them. */
#include "common/b64.h"
#include "common/cleanup.h"
#include "iscsi-target/handover.h"
#include "iscsi-target/mover_int.h"
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#define STRANGERS_MS 500u /* that handshakes under way have to end */
#define NEGOTIATE_MS 500u /* that options have; who is slower is cut */
#define TAKE_MS 300u      /* that clients have to take what they asked for */
#define UNSENT_MAX (UINT64_C(1) << 30)

/* ---- coming to rest ---- */

int mover_next(struct mover_conn *c, size_t n, uint64_t deadline_ns, uint64_t stall_ms)
{
    struct mover_io *io = &c->io;
    uint64_t late_ns = 0;
    for (;;) {
        while (c->server->resting && !io->error && !io->left) {
            c->rests = true;
            io->reader = gr_fiber_self();
            gr_fiber_suspend();
            io->reader = NULL;
        }
        c->rests = false;
        if (io->error || io->left)
            return io->left ? -ECANCELED : io->error;
        size_t have = io->in_len - io->in_pos;
        if (have >= n)
            return 1;
        if (have && stall_ms && !late_ns)
            late_ns = gr_loop_now_ns(io->loop) + stall_ms * 1000000;
        int64_t got = mover_io_more(io, late_ns ? late_ns : deadline_ns);
        if (got == 0)
            return have ? -EPIPE : 0;
        if (got < 0 && got != -EINTR)
            return (int)got;
    }
}

/* One that is not at rest. Those that negotiate have less time, and are cut. */
static const struct mover_conn *restless(const struct mover_server *s, bool patient)
{
    for (const struct mover_conn *c = s->conns; c; c = c->next)
        if (!c->io.error && (!c->rests || c->in_flight != c->queued) && (patient || !c->negotiating))
            return c;
    return NULL;
}

static bool unsent(const struct mover_server *s)
{
    for (const struct mover_conn *c = s->conns; c; c = c->next)
        if (c->io.head)
            return true;
    return false;
}

int mover_server_rest(struct mover_server *s, uint64_t timeout_ms, struct gr_err *err)
{
    const struct mover_conn *busy;
    mover_gate_rest(s, STRANGERS_MS);
    uint64_t began = gr_loop_now_ns(s->loop), now = began;
    s->resting = true;
    for (struct mover_conn *c = s->conns; c; c = c->next)
        mover_io_call(&c->io);
    while ((busy = restless(s, now - began < NEGOTIATE_MS * UINT64_C(1000000))) && now - began < timeout_ms * 1000000) {
        gr_fiber_sleep_ms(1);
        now = gr_loop_now_ns(s->loop);
    }
    if (busy) {
        gr_fail(err, -EBUSY, "%s, which uses %s over the data mover, did not come to rest: a request of it is still under way", busy->peer,
                busy->name ? busy->name : "nothing yet");
        mover_server_resume(s);
        return -EBUSY;
    }
    for (began = now; unsent(s) && now - began < TAKE_MS * UINT64_C(1000000); now = gr_loop_now_ns(s->loop))
        gr_fiber_sleep_ms(1);
    s->rest_ns = now;
    return 0;
}

void mover_server_resume(struct mover_server *s)
{
    s->resting = false;
    for (struct mover_conn *c = s->conns; c; c = c->next)
        if (c->rests)
            gr_fiber_wake(c->io.reader);
    mover_gate_resume(s);
}

/* Copied first: while @fn waits, connections come and go. */
int mover_server_each_export(const struct mover_server *s, int (*fn)(void *arg, const char *name, const char *peer), void *arg)
{
    struct named {
        char *name, peer[sizeof(s->conns->peer)];
    } *list = gr_zalloc((s->stats.connections + 1) * sizeof(*list));
    unsigned n = 0;
    int r = list ? 0 : -ENOMEM;
    for (const struct mover_conn *c = s->conns; c && r == 0; c = c->next) {
        if (!c->exp.bdev || c->io.error)
            continue;
        list[n].name = gr_strdup(c->name);
        memcpy(list[n].peer, c->peer, sizeof(c->peer));
        r = list[n++].name ? 0 : -ENOMEM;
    }
    for (unsigned i = 0; i < n && r == 0; i++)
        r = fn(arg, list[i].name, list[i].peer);
    while (n)
        free(list[--n].name);
    free(list);
    return r;
}

/* ---- describing ---- */

static void hex_of(const void *p, size_t n, char *ret)
{
    for (size_t i = 0; i < n; i++)
        snprintf(ret + 2 * i, 3, "%02x", ((const uint8_t *)p)[i]);
}

/* What waits to be sent, in a file. */
static int save_unsent(const struct mover_io *io, struct tgt_heritage *h)
{
    gr_auto_close int file = memfd_create("granary-unsent", MFD_CLOEXEC);
    if (file < 0)
        return -errno;
    for (const struct mover_out *o = io->head; o; o = o->next) {
        for (int i = o == io->head ? io->head_iov : 0; i < o->iovcnt; i++) {
            size_t skip = o == io->head && i == io->head_iov ? io->head_off : 0, len = o->iov[i].iov_len - skip;
            if (write(file, (const uint8_t *)o->iov[i].iov_base + skip, len) != (ssize_t)len)
                return -ENOMEM;
        }
    }
    return tgt_heritage_keep(h, file);
}

static json_t *describe_contexts(const struct mover_conn *c)
{
    json_t *list = json_array();
    for (unsigned i = 0; i < c->n_ctx; i++) {
        char token[GR_BOOKMARK_TEXT];
        gr_bookmark_format(&c->ctx[i].base, token);
        json_array_append_new(list, json_pack("{s:I,s:s*}", "id", (json_int_t)c->ctx[i].id, "base", c->ctx[i].changed ? token : NULL));
    }
    return list;
}

static json_t *describe(struct mover_conn *c, struct tgt_heritage *h)
{
    char from[2 * sizeof(c->addr) + 1], uuid[37];
    uint64_t now = gr_loop_now_ns(c->server->loop);
    int fd = tgt_heritage_keep(h, c->io.fd), waits = fd < 0 || !c->io.head ? 0 : save_unsent(&c->io, h);
    size_t unread = c->io.in_len - c->io.in_pos;
    gr_auto_free char *text = unread ? gr_b64_encode(c->io.in + c->io.in_pos, unread) : NULL;
    if (fd < 0 || waits < 0 || (unread && !text))
        return NULL;
    hex_of(&c->addr, sizeof(c->addr), from);
    gr_uuid_format(c->geo.uuid, uuid);
    const char *phase = !c->negotiating ? "serving" : c->tls || c->greeted ? "options" : "greeting";
    json_t *o = json_pack("{s:i,s:s,s:s,s:s,s:s,s:I,s:b,s:b,s:b,s:I,s:o,s:s*,s:s*,s:s,s:I,s:b,s:s*}", "fd", fd, "peer", c->peer, "how", c->how, "from",
                          from, "phase", phase, "left-ms", (json_int_t)(c->deadline_ns > now ? (c->deadline_ns - now) / 1000000 : 0), "tls", c->tls,
                          "structured", c->structured, "no-zeroes", c->no_zeroes, "options", (json_int_t)c->n_options, "contexts",
                          describe_contexts(c), "contexts-of", c->meta_name, "export", c->negotiating ? NULL : c->name, "uuid", uuid, "size",
                          (json_int_t)c->geo.size, "writable", c->exp.writable, "unread", text);
    if (o && c->io.head)
        json_object_set_new(o, "unsent", json_pack("{s:i}", "fd", waits));
    return o;
}

/* It has proved something: the gate that holds its other end, or its own socket, lives on. */
int mover_server_bequeath(struct mover_server *s, struct tgt_heritage *h)
{
    json_t *list = json_array();
    int r = 0, fd;
    bool gated = false;
    for (struct mover_conn *c = s->conns; c; c = c->next) {
        if (!c->rests || c->io.error)
            continue;
        if (json_array_append_new(list, describe(c, h)) < 0) {
            r = -ENOMEM;
            continue;
        }
        gated |= c->tls;
        c->io.left = true;
        mover_io_fail(&c->io, -ECANCELED); /* not a byte more goes out from here; its fiber ends */
    }
    json_object_set_new(h->doc, "mover-connections", list);
    json_object_set_new(h->doc, "mover-rest-ns", json_integer((json_int_t)s->rest_ns));
    for (unsigned i = 0; (fd = mover_old_gate_at(s, i)) >= 0; i++)
        r = GR_MIN(r, tgt_heritage_add(h, "mover-gates", fd));
    mover_old_gates_drop(s);
    gr_auto_close int gate = gated ? mover_gate_leave(s) : -1;
    return gate < 0 ? r : GR_MIN(r, tgt_heritage_add(h, "mover-gates", gate));
}

/* ---- going on ---- */

static uint64_t number(json_t *o, const char *key)
{
    json_int_t n = json_integer_value(json_object_get(o, key));
    return n > 0 ? (uint64_t)n : 0;
}

static const char *text_of(json_t *o, const char *key)
{
    const char *s = json_string_value(json_object_get(o, key));
    return s ? s : "";
}

static void bytes_of(const char *hex, void *ret, size_t n)
{
    for (size_t i = 0; i < n && hex[0] && hex[1]; i++, hex += 2) {
        char two[3] = {hex[0], hex[1], 0};
        ((uint8_t *)ret)[i] = (uint8_t)strtoul(two, NULL, 16);
    }
}

static int load_unread(struct mover_io *io, const char *text)
{
    gr_auto_buf struct gr_buf b = {0};
    if (gr_b64_decode(text, strlen(text), &b) < 0 || b.len > MOVER_IN_SIZE)
        return -GR_EFORMAT;
    memcpy(io->in, b.data ? b.data : "", b.len);
    io->in_len = b.len;
    return 0;
}

static int load_unsent(struct mover_io *io, int file)
{
    struct stat st;
    if (fstat(file, &st) < 0 || (uint64_t)st.st_size > UNSENT_MAX)
        return -GR_EFORMAT;
    gr_auto_free uint8_t *p = gr_alloc((size_t)st.st_size + 1);
    if (!p)
        return -ENOMEM;
    return pread(file, p, (size_t)st.st_size, 0) == st.st_size ? mover_io_send_copy(io, p, (size_t)st.st_size) : -EIO;
}

static int load_contexts(struct mover_conn *c, json_t *list)
{
    json_t *o;
    size_t i;
    json_array_foreach(list, i, o)
    {
        const char *base = json_string_value(json_object_get(o, "base"));
        struct mover_context ctx = {.id = (uint32_t)number(o, "id"), .changed = base != NULL};
        if (i == MOVER_MAX_CONTEXTS || (base && gr_bookmark_parse(base, &ctx.base) < 0))
            return -GR_EFORMAT;
        c->ctx[c->n_ctx++] = ctx;
    }
    const char *of = text_of(c->inherited, "contexts-of");
    c->meta_name = *of ? gr_strdup(of) : NULL;
    return *of && !c->meta_name ? -ENOMEM : 0;
}

/* The export as it was: the same disk or snapshot, of the size and with the rights that its client was told. */
static int reopen(struct mover_conn *c, struct gr_err *err)
{
    json_t *o = c->inherited;
    const char *name = text_of(o, "export");
    char uuid[37];
    int r = mover_export_open(c, name, err);
    if (r < 0)
        return r;
    gr_uuid_format(c->geo.uuid, uuid);
    if (strcmp(uuid, text_of(o, "uuid")) != 0)
        return gr_fail(err, -ESTALE, "%s is not what it was", name);
    c->geo.size = number(o, "size");
    c->exp.writable = json_is_true(json_object_get(o, "writable")) && !c->geo.read_only; /* it was decided when it was opened */
    return 0;
}

int mover_conn_go_on(struct mover_conn *c, struct gr_err *err)
{
    int r = load_contexts(c, json_object_get(c->inherited, "contexts"));
    if (r < 0)
        gr_fail(err, r, "its contexts cannot be taken over: %s", gr_code_text(r));
    if (r == 0 && !c->negotiating)
        r = reopen(c, err);
    c->server->lost += r < 0;
    json_decref(gr_take(c->inherited));
    gr_fqueue_wake_all(&c->server->ended);
    return r;
}

/* Its fiber has not begun yet. */
static void fill(struct mover_conn *c, json_t *o)
{
    const char *phase = text_of(o, "phase");
    snprintf(c->peer, sizeof(c->peer), "%s", text_of(o, "peer"));
    snprintf(c->how, sizeof(c->how), "%s", text_of(o, "how"));
    c->deadline_ns = gr_loop_now_ns(c->server->loop) + number(o, "left-ms") * 1000000;
    c->tls = json_is_true(json_object_get(o, "tls"));
    c->structured = json_is_true(json_object_get(o, "structured"));
    c->no_zeroes = json_is_true(json_object_get(o, "no-zeroes"));
    c->n_options = (unsigned)number(o, "options");
    c->greets = true;
    c->greeted = strcmp(phase, "greeting") != 0;
    c->inherited = json_incref(o);
    if (strcmp(phase, "serving") == 0) {
        c->negotiating = false;
        c->server->stats.negotiating--;
    }
}

static int inherit_one(struct mover_server *s, struct tgt_heritage *h, json_t *o)
{
    struct sockaddr_storage from = {0};
    struct mover_conn *c = NULL;
    json_t *unsent_file = json_object_get(o, "unsent");
    gr_auto_close int file = unsent_file ? tgt_heritage_take_fd(h, unsent_file) : -1;
    int fd = tgt_heritage_take_fd(h, o);
    bytes_of(text_of(o, "from"), &from, sizeof(from));
    int r = fd < 0 ? -EBADF : mover_conn_new(s, fd, &from, sizeof(from), &c);
    if (r < 0)
        return r;
    fill(c, o);
    r = load_unread(&c->io, text_of(o, "unread"));
    if (r == 0 && unsent_file)
        r = load_unsent(&c->io, file);
    if (r < 0)
        mover_io_fail(&c->io, r);
    return r;
}

static bool opening(const struct mover_server *s)
{
    for (const struct mover_conn *c = s->conns; c; c = c->next)
        if (c->inherited)
            return true;
    return false;
}

int mover_server_inherit(struct mover_server *s, struct tgt_heritage *h)
{
    json_t *list = json_object_get(h->doc, "mover-connections"), *o;
    int fd;
    size_t i;
    s->lost = 0;
    for (i = 0; (fd = tgt_heritage_take(h, "mover-gates", i)) >= 0; i++)
        (void)mover_gate_keep_old(s, fd);
    json_array_foreach(list, i, o)
    {
        int r = inherit_one(s, h, o);
        s->lost += r < 0;
        if (r < 0)
            mover_log(s, MOVER_LOG_WARN, "data mover: %s is not taken over: %s", text_of(o, "peer"), gr_code_text(r));
    }
    while (opening(s))
        gr_fqueue_wait(&s->ended);
    if (i)
        mover_log(s, MOVER_LOG_INFO, "data mover: %zu connections taken over, %u lost; they were silent for %llu ms", i - s->lost, s->lost,
                  (unsigned long long)(gr_loop_now_ns(s->loop) - number(h->doc, "mover-rest-ns")) / 1000000);
    return (int)s->lost;
}
