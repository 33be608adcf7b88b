/* One session: resolve, connect, log in, follow redirects. */
#include "common/bdev_iscsi_int.h"
#include "common/cleanup.h"
#include "common/endian.h"
#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

struct outcome { /* of connecting, of the log-in */
    bool done;
    int status;
};

static void on_outcome(struct iscsi_context *ctx, int status, void *data, void *arg)
{
    struct outcome *o = arg;

    o->done = true;
    o->status = status;
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

    return getsockopt(fd, SOL_SOCKET, SO_ERROR, &e, &len) < 0 || !e || e == EPIPE ? -ECONNRESET : -e;
}

/* Drive libiscsi until @o is there. -ECONNRESET: the target cut the connection off. */
static int drive(struct isc_dev *d, struct isc_session *s, const struct outcome *o, uint64_t deadline_ns, struct gr_err *err)
{
    while (!o->done) {
        uint64_t now = gr_loop_now_ns(d->loop);
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
        if (iscsi_service(s->ctx, got) < 0 && !o->done)
            return gr_fail(err, -ECONNRESET, "connection lost: %s", reason(s->ctx));
    }
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
            end = p + strcspn(p, ",");
    }
    if (!end || end == p || (size_t)(end - p) >= sizeof(host))
        return -EINVAL;
    snprintf(host, sizeof(host), "%.*s", (int)(end - p), p);
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *list = NULL;
    char digits[8], text[64], service[16];
    snprintf(digits, sizeof(digits), "%.*s", (int)GR_MIN(strspn(port, "0123456789"), sizeof(digits) - 1), port);
    if (getaddrinfo(host, digits, &hints, &list))
        return -EHOSTUNREACH;
    int r = getnameinfo(list->ai_addr, list->ai_addrlen, text, sizeof(text), service, sizeof(service), NI_NUMERICHOST | NI_NUMERICSERV);
    if (!r)
        snprintf(l->numeric, sizeof(l->numeric), list->ai_family == AF_INET6 ? "[%s]:%s" : "%s:%s", text, service);
    freeaddrinfo(list);
    return r ? -EHOSTUNREACH : 0;
}

static void set_isid(struct iscsi_context *ctx, const uint8_t isid[6])
{
    if (isid[0] >= 0x80)
        (void)iscsi_set_isid_random(ctx, gr_get_be24(isid + 1), gr_get_be16(isid + 4));
    else if (isid[0] >= 0x40)
        (void)iscsi_set_isid_en(ctx, gr_get_be24(isid + 1), gr_get_be16(isid + 4));
    else
        (void)iscsi_set_isid_oui(ctx, gr_get_be24(isid), gr_get_be24(isid + 3));
}

static int prepare(struct isc_dev *d, struct isc_session *s, const struct iscsi_url *url, struct gr_err *err)
{
    const char *user = d->chap_user ? d->chap_user : url->user, *secret = d->chap_secret ? d->chap_secret : url->passwd;

    s->ctx = iscsi_create_context(d->initiator);
    if (!s->ctx)
        return gr_fail(err, -ENOMEM, "out of memory");
    iscsi_set_noautoreconnect(s->ctx, 1);
    iscsi_set_timeout(s->ctx, 0);
    set_isid(s->ctx, d->isid);
    if (iscsi_set_targetname(s->ctx, url->target) || iscsi_set_session_type(s->ctx, ISCSI_SESSION_NORMAL) ||
        iscsi_set_header_digest(s->ctx, ISCSI_HEADER_DIGEST_NONE_CRC32C) ||
        (user[0] && iscsi_set_initiator_username_pwd(s->ctx, user, secret)) ||
        (user[0] && d->target_user && iscsi_set_target_username_pwd(s->ctx, d->target_user, d->target_secret)))
        return gr_fail(err, -EINVAL, "%s", reason(s->ctx));
    return 0;
}

static int log_in(struct isc_dev *d, struct isc_session *s, const char *portal, uint64_t deadline_ns, int *ret_status, struct gr_err *err)
{
    struct outcome o = {0};

    if (iscsi_connect_async(s->ctx, portal, on_outcome, &o))
        return gr_fail(err, -ECONNREFUSED, "%s", reason(s->ctx));
    int r = drive(d, s, &o, deadline_ns, err);
    if (r < 0 || o.status != SCSI_STATUS_GOOD) {
        r = r < 0 ? r : gr_fail(err, -ECONNREFUSED, "%s", reason(s->ctx));
        isc_hang_up(s); /* while the callback's outcome is there */
        return r;
    }
    o = (struct outcome){0};
    if (iscsi_login_async(s->ctx, on_outcome, &o))
        return gr_fail(err, -ECONNREFUSED, "%s", reason(s->ctx));
    r = drive(d, s, &o, deadline_ns, err);
    if (r >= 0 && o.status != SCSI_STATUS_GOOD && o.status != SCSI_STATUS_REDIRECT) {
        struct reason why = reason_of(s->ctx);
        bool auth = strstr(why.text, "uthentication") || strstr(why.text, "uthoriz");
        r = gr_fail(err, auth ? -GR_EAUTH : -ECONNREFUSED, "log-in failed: %s", why.text);
    }
    if (r < 0)
        isc_hang_up(s);
    *ret_status = o.status;
    return r;
}

void isc_hang_up(struct isc_session *s)
{
    if (s->ctx)
        iscsi_destroy_context(s->ctx);
    s->ctx = NULL;
    gr_closep(&s->watch_fd);
}

/* From one portal to the next until one takes us. */
static int follow(struct isc_dev *d, struct isc_session *s, const struct iscsi_url *url, struct gr_err *err)
{
    uint64_t deadline_ns = gr_loop_now_ns(d->loop) + d->timeout_ms * 1000000;
    char portal[256];

    if (d->patience_ms && d->down_since_ns)
        deadline_ns = GR_MIN(deadline_ns, d->down_since_ns + d->patience_ms * 1000000);
    snprintf(portal, sizeof(portal), "%s", url->portal);
    for (int hop = 0; hop <= ISCSI_REDIRECTS; hop++) {
        struct lookup l = {.portal = portal};
        int status = SCSI_STATUS_ERROR, r = gr_fiber_work(lookup, &l);
        if (r < 0)
            return gr_fail(err, r, "the portal %s%s has no address", portal, hop ? ", which the target sends us to," : "");
        r = prepare(d, s, url, err);
        if (r >= 0)
            r = log_in(d, s, l.numeric, deadline_ns, &status, err);
        if (r < 0)
            return hop ? gr_prefix(err, r, "sent to the portal %s", portal) : r;
        if (status == SCSI_STATUS_GOOD)
            return 0;
        const char *to = iscsi_get_target_address(s->ctx);
        snprintf(portal, sizeof(portal), "%s", to ? to : "");
        for (char *p = portal; *p; p++)
            if ((unsigned char)*p < 33 || *p == 127)
                *p = '?';
        isc_hang_up(s);
        if (!portal[0])
            return gr_fail(err, -GR_EPROTO, "the target sends us to another portal and does not say where");
    }
    return gr_fail(err, -ELOOP, "the target sends us from portal to portal, %d times", ISCSI_REDIRECTS);
}

static int dial(struct isc_dev *d, struct isc_session *s, const struct iscsi_url *url, struct gr_err *err)
{
    if (!d->url_secret && (url->passwd[0] || (url->user[0] && !d->chap_user)))
        return gr_fail(err, -EINVAL, "no user or secret belongs into the URL: secrets come by file");
    int r = follow(d, s, url, err);
    if (r < 0)
        return r;
    s->lun = url->lun;
    s->lib_fd = iscsi_get_fd(s->ctx);
    s->watch_fd = fcntl(s->lib_fd, F_DUPFD_CLOEXEC, 3);
    return s->watch_fd < 0 ? gr_fail(err, -errno, "cannot watch the socket: %s", gr_code_text(-errno)) : 0;
}

int isc_dial(struct isc_dev *d, struct isc_session *ret, struct gr_err *err)
{
    struct isc_session s = {.watch_fd = -1};
    struct iscsi_context *parser = iscsi_create_context(d->initiator); /* owns the parsed URL, outlives the session's context */

    if (!parser)
        return gr_fail(err, -ENOMEM, "out of memory");
    struct iscsi_url *url = iscsi_parse_full_url(parser, d->url);
    int r = url ? dial(d, &s, url, err) : gr_fail(err, -EINVAL, "not an iSCSI URL: %s", reason(parser));
    if (url)
        iscsi_destroy_url(url);
    iscsi_destroy_context(parser);
    if (r < 0) {
        isc_hang_up(&s);
        return r;
    }
    *ret = s;
    return 0;
}

void isc_url_text(const char *url, char out[128])
{
    const char *rest = strstr(url, "://") ? strstr(url, "://") + 3 : url, *at = strchr(rest, '@'), *slash = strchr(rest, '/');

    if (at && (!slash || at < slash))
        rest = at + 1;
    snprintf(out, 128, "iscsi://%.*s", (int)GR_MIN(strcspn(rest, "?"), (size_t)110), rest);
}
