/* Sessions of the iSCSI source: resolve, connect, log in, and ask the logical unit what it is. */
#include "backup-proxy/source_iscsi_int.h"
#include "common/buf.h"
#include "common/cleanup.h"
#include "common/endian.h"
#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#define MAX_PIECE (512u << 10) /* bytes of one READ */

struct answer { /* of one command or of the log-in */
    bool done;
    int status;
    struct scsi_task *task;
};

static void on_answer(struct iscsi_context *ctx, int status, void *data, void *arg)
{
    struct answer *a = arg;
    a->done = true;
    a->status = status;
}

static void on_command(struct iscsi_context *ctx, int status, void *data, void *arg)
{
    on_answer(ctx, status, data, arg);
}

/* libiscsi's last sentence, its first line only. */
struct reason {
    char text[200];
};
static struct reason reason_of(struct iscsi_context *ctx)
{
    struct reason r;
    const char *e = iscsi_get_error(ctx);
    snprintf(r.text, sizeof(r.text), "%.*s", e ? (int)strcspn(e, "\r\n") : 0, e ? e : "");
    for (char *p = r.text; *p; p++) /* the target may have had a hand in it */
        if ((unsigned char)*p < 32 || *p == 127)
            *p = '?';
    if (!r.text[0])
        snprintf(r.text, sizeof(r.text), "no reason given");
    return r;
}
#define reason(ctx) (reason_of(ctx).text)

static int socket_error(int fd)
{
    int e = 0;
    socklen_t len = sizeof(e);
    return getsockopt(fd, SOL_SOCKET, SO_ERROR, &e, &len) < 0 || !e ? -ECONNRESET : -e;
}

/* Drive libiscsi until @a is answered. */
static int drive(struct san_source *src, struct san_session *s, struct answer *a, uint64_t deadline_ns, struct gr_err *err)
{
    while (!a->done) {
        uint64_t now = gr_loop_now_ns(src->loop);
        int fd = iscsi_get_fd(s->ctx), ev = iscsi_which_events(s->ctx);
        if (fd < 0)
            return gr_fail(err, -ECONNRESET, "connection lost: %s", reason(s->ctx));
        int64_t left = now < deadline_ns ? (int64_t)((deadline_ns - now) / 1000000) + 1 : 0;
        int got = left ? gr_fiber_wait_fd(fd, ev ? ev : POLLIN, left) : -ETIMEDOUT;
        if (got < 0)
            return gr_fail(err, got, "the target stays silent");
        if (got & (POLLERR | POLLHUP)) {
            int e = socket_error(fd);
            return gr_fail(err, e, "%s", gr_code_text(e));
        }
        if (iscsi_service(s->ctx, got) < 0)
            return gr_fail(err, -ECONNREFUSED, "%s", reason(s->ctx));
    }
    return 0;
}

/* Send a command built by libiscsi and wait. On success a->task is the caller's to free; on failure the session is gone. */
static int ask(struct san_source *src, struct san_session *s, struct scsi_task *task, struct answer *a, uint64_t deadline_ns, struct gr_err *err)
{
    if (!task)
        return gr_fail(err, -ENOMEM, "no command: %s", reason(s->ctx));
    int r = drive(src, s, a, deadline_ns, err);
    if (r < 0) {
        san_hang_up(s); /* now: it ends the command, whose callback writes to *a */
        scsi_free_scsi_task(task);
        return r;
    }
    a->task = task;
    return 0;
}

struct lookup {
    const char *portal;
    char numeric[128];
};

/* On a worker thread: "HOST[:PORT]" to a numeric portal, so that libiscsi's own resolver call cannot block the loop. */
static int lookup(void *arg)
{
    struct lookup *l = arg;
    char host[256];
    const char *p = l->portal, *end, *port = "3260";
    if (*p == '[') {
        end = strchr(++p, ']');
        if (end && end[1] == ':')
            port = end + 2;
    } else {
        end = strchr(p, ':');
        if (end)
            port = end + 1;
        else
            end = p + strlen(p);
    }
    if (!end || end == p || (size_t)(end - p) >= sizeof(host))
        return -EINVAL;
    snprintf(host, sizeof(host), "%.*s", (int)(end - p), p);
    port = strncmp(port, ",", 1) ? port : "3260";
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *list = NULL;
    char digits[8], text[64], service[16];
    snprintf(digits, sizeof(digits), "%.*s", (int)strspn(port, "0123456789"), port);
    if (getaddrinfo(host, digits, &hints, &list))
        return -EHOSTUNREACH;
    int r = getnameinfo(list->ai_addr, list->ai_addrlen, text, sizeof(text), service, sizeof(service), NI_NUMERICHOST | NI_NUMERICSERV);
    if (!r)
        snprintf(l->numeric, sizeof(l->numeric), list->ai_family == AF_INET6 ? "[%s]:%s" : "%s:%s", text, service);
    freeaddrinfo(list);
    return r ? -EHOSTUNREACH : 0;
}

static int capacity(struct san_source *src, struct san_session *s, struct san_unit *u, uint64_t deadline_ns, struct gr_err *err)
{
    struct answer a = {0};
    int r = ask(src, s, iscsi_readcapacity16_task(s->ctx, s->lun, on_command, &a), &a, deadline_ns, err);
    if (r < 0)
        return r;
    const struct scsi_data *d = &a.task->datain;
    if (a.status != SCSI_STATUS_GOOD || d->size < 32) {
        r = gr_fail(err, -GR_EPROTO, "no READ CAPACITY(16): %s", reason(s->ctx));
    } else {
        uint64_t last = gr_get_be64(d->data);
        u->block = gr_get_be32(d->data + 8);
        u->lbpme = d->data[14] & 0x80;
        u->lbprz = d->data[14] & 0x40;
        if ((u->block != 512 && u->block != 4096) || last >= INT64_MAX / u->block)
            r = gr_fail(err, -GR_EPROTO, "a last block of %llu and blocks of %u bytes make no sense", (unsigned long long)last, u->block);
        else
            u->size = (last + 1) * u->block;
    }
    scsi_free_scsi_task(a.task);
    return r;
}

/* Optional VPD pages: what a target does not know is left at its default. */
static int vpd(struct san_source *src, struct san_session *s, int page, uint8_t *out, size_t max, size_t *ret_len, uint64_t deadline_ns,
               struct gr_err *err)
{
    struct answer a = {0};
    *ret_len = 0;
    int r = ask(src, s, iscsi_inquiry_task(s->ctx, s->lun, 1, page, (int)max, on_command, &a), &a, deadline_ns, err);
    if (r < 0)
        return r;
    const struct scsi_data *d = &a.task->datain;
    if (a.status == SCSI_STATUS_GOOD && d->size >= 4 && d->data[1] == page) {
        *ret_len = GR_MIN((size_t)d->size, GR_MIN(max, 4 + (size_t)gr_get_be16(d->data + 2)));
        memcpy(out, d->data, *ret_len);
    }
    scsi_free_scsi_task(a.task);
    return 0;
}

static int examine(struct san_source *src, struct san_session *s, struct san_unit *u, uint64_t deadline_ns, struct gr_err *err)
{
    uint8_t limits[64];
    size_t n = 0;
    int r = capacity(src, s, u, deadline_ns, err);
    if (r >= 0)
        r = vpd(src, s, 0x83, u->id, 255, &u->id_len, deadline_ns, err);
    if (r >= 0)
        r = vpd(src, s, 0xb0, limits, sizeof(limits), &n, deadline_ns, err);
    if (r < 0)
        return r;
    u->max_piece = MAX_PIECE;
    uint64_t most = n >= 12 ? (uint64_t)gr_get_be32(limits + 8) * u->block : 0; /* MAXIMUM TRANSFER LENGTH; 0: not told */
    if (most && most < u->max_piece)
        u->max_piece = (uint32_t)most;
    return 0;
}

static int log_in(struct san_source *src, struct san_session *s, const struct iscsi_url *url, const char *portal, uint64_t deadline_ns,
                  struct gr_err *err)
{
    const char *user = src->chap_user ? src->chap_user : url->user, *secret = src->chap_secret ? src->chap_secret : url->passwd;
    iscsi_set_noautoreconnect(s->ctx, 1);
    iscsi_set_timeout(s->ctx, 0);
    if (iscsi_set_targetname(s->ctx, url->target) || iscsi_set_session_type(s->ctx, ISCSI_SESSION_NORMAL) ||
        iscsi_set_header_digest(s->ctx, ISCSI_HEADER_DIGEST_NONE_CRC32C) ||
        (user[0] && iscsi_set_initiator_username_pwd(s->ctx, user, secret)))
        return gr_fail(err, -EINVAL, "%s", reason(s->ctx));
    struct answer a = {0};
    if (iscsi_full_connect_async(s->ctx, portal, url->lun, on_answer, &a))
        return gr_fail(err, -ECONNREFUSED, "%s", reason(s->ctx));
    int r = drive(src, s, &a, deadline_ns, err);
    if (r >= 0 && a.status != SCSI_STATUS_GOOD) {
        struct reason why = reason_of(s->ctx);
        bool auth = strstr(why.text, "uthentication") || strstr(why.text, "uthoriz");
        r = gr_fail(err, auth ? -GR_EAUTH : -ECONNREFUSED, "log-in failed: %s", why.text);
    }
    if (r < 0)
        san_hang_up(s); /* while the callback's *a is there */
    return r;
}

void san_hang_up(struct san_session *s)
{
    if (s->ctx)
        iscsi_destroy_context(s->ctx);
    s->ctx = NULL;
    gr_closep(&s->watch_fd);
}

static int dial(struct san_source *src, struct san_session *s, struct san_unit *u, const struct iscsi_url *url, struct gr_err *err)
{
    uint64_t deadline_ns = gr_loop_now_ns(src->loop) + src->timeout_ms * 1000000;
    struct lookup l = {.portal = url->portal};
    int r = gr_fiber_work(lookup, &l);
    if (r < 0)
        return gr_fail(err, r, "the portal %s has no address", url->portal);
    s->lun = url->lun;
    s->ctx = iscsi_create_context(src->initiator);
    if (!s->ctx)
        return gr_fail(err, -ENOMEM, "out of memory");
    r = log_in(src, s, url, l.numeric, deadline_ns, err);
    if (r >= 0)
        r = examine(src, s, u, deadline_ns, err);
    if (r < 0)
        return r;
    s->lib_fd = iscsi_get_fd(s->ctx);
    s->watch_fd = fcntl(s->lib_fd, F_DUPFD_CLOEXEC, 3);
    return s->watch_fd < 0 ? gr_fail(err, -errno, "cannot watch the socket: %s", gr_code_text(-errno)) : 0;
}

int san_dial(struct san_source *src, struct san_session *ret, struct san_unit *ret_unit, struct gr_err *err)
{
    struct san_session s = {.watch_fd = -1};
    struct san_unit u = {0};
    struct iscsi_context *parser = iscsi_create_context(src->initiator); /* owns the parsed URL, outlives the session's context */
    if (!parser)
        return gr_fail(err, -ENOMEM, "out of memory");
    struct iscsi_url *url = iscsi_parse_full_url(parser, src->url);
    int r = url ? dial(src, &s, &u, url, err) : gr_fail(err, -EINVAL, "not an iSCSI URL: %s", reason(parser));
    if (url)
        iscsi_destroy_url(url);
    iscsi_destroy_context(parser);
    if (r < 0) {
        san_hang_up(&s);
        return r;
    }
    *ret = s;
    *ret_unit = u;
    return 0;
}

/* The URL without a secret: for messages. "iscsi://user%secret@host/…" → "iscsi://host/…" */
static void url_text(const char *url, char out[128])
{
    const char *rest = strstr(url, "://") ? strstr(url, "://") + 3 : url, *at = strchr(rest, '@'), *slash = strchr(rest, '/');
    if (at && (!slash || at < slash))
        rest = at + 1;
    snprintf(out, 128, "iscsi://%.*s", (int)GR_MIN(strcspn(rest, "?"), (size_t)110), rest);
}

static int fill(struct san_source *src, const struct bp_iscsi_opts *o, struct gr_err *err)
{
    gr_auto_buf struct gr_buf secret = {0};
    int r = o->chap_secret_file ? gr_secret_read(o->chap_secret_file, &secret, err) : 0;
    if (r < 0)
        return r;
    src->url = gr_strdup(o->url);
    src->initiator = gr_strdup(o->initiator ? o->initiator : "iqn.2026-01.granary:proxy");
    src->chap_user = o->chap_user ? gr_strdup(o->chap_user) : NULL;
    src->chap_secret = secret.data ? gr_strdup(secret.data) : NULL;
    if (secret.data)
        explicit_bzero(secret.data, secret.len);
    if (!src->url || !src->initiator || (o->chap_user && !src->chap_user) || (secret.data && !src->chap_secret))
        return gr_fail(err, -ENOMEM, "out of memory");
    src->timeout_ms = o->timeout_ms ? o->timeout_ms : 30000;
    src->reconnects = o->reconnects ? o->reconnects : 12;
    return 0;
}

int bp_source_iscsi_open(struct gr_loop *loop, const struct bp_iscsi_opts *opts, struct gr_bdev **ret, struct gr_err *err)
{
    char name[128];
    url_text(opts->url, name);
    struct san_source *src = gr_zalloc(sizeof(*src));
    if (!src)
        return gr_fail(err, -ENOMEM, "out of memory");
    src->loop = loop;
    src->session.watch_fd = -1;
    int r = fill(src, opts, err);
    if (r >= 0)
        r = san_dial(src, &src->session, &src->unit, err);
    if (r < 0) {
        san_source_free(src);
        return gr_prefix(err, r, "%s", name);
    }
    san_source_ready(src, name);
    *ret = &src->bdev;
    return 0;
}
