/* The server: portals, start and end, releases. */
#include "common/buf.h"
#include "common/cleanup.h"
#include "common/seam.h"
#include "iscsi-target/scsi.h"
#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#define TICK_NS (5ull * 1000000000)
#define DEFAULT_PORT "3260"

void tgt_note(struct tgt_server *s, int level, const char *fmt, ...)
{
    char text[1024];
    va_list ap;
    if (!s->opts.note)
        return;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    s->opts.note(s->opts.note_arg, level, text);
}

static void tick(void *arg)
{
    struct tgt_server *s = arg;
    struct tgt_sess *next;
    for (struct tgt_sess *o = s->sessions; o; o = next) {
        next = o->next;
        tgt_sess_tick(o);
    }
    gr_timer_arm(s->loop, &s->tick, TICK_NS);
}

int tgt_server_new(const struct tgt_server_opts *opts, struct tgt_server **ret, struct gr_err *err)
{
    struct tgt_server *s = gr_zalloc(sizeof *s);
    if (!s)
        return gr_fail(err, -ENOMEM, "iSCSI target: out of memory");
    s->loop = opts->loop;
    s->opts = *opts;
    s->dir = opts->dir;
    s->tick = (struct gr_timer){.fn = tick, .arg = s};
    int r = tgt_access_open(opts->access_path, &s->access, err);
    if (!r)
        r = tgt_login_start(s, err);
    if (r < 0) {
        tgt_access_free(s->access);
        free(s->login);
        free(s);
        return r;
    }
    gr_timer_arm(s->loop, &s->tick, TICK_NS);
    *ret = s;
    return 0;
}

static void close_portals(struct tgt_server *s)
{
    for (unsigned i = 0; i < s->n_portals; i++) {
        if (s->portals[i].fd >= 0)
            close(s->portals[i].fd);
        s->portals[i].fd = -1;
    }
}

static void cut_all(struct tgt_server *s, const char *why)
{
    while (s->sessions)
        tgt_sess_close(s->sessions, why);
}

void tgt_server_free(struct tgt_server *s)
{
    if (!s)
        return;
    s->stopping = true;
    tgt_login_free(s);
    close_portals(s);
    cut_all(s, "the target is shut down");
    while (s->busy_fibers) /* sessions whose tasks are with the device, commands and lookups in fibers */
        gr_fqueue_wait(&s->changed);
    gr_timer_cancel(s->loop, &s->tick);
    gr_loop_defer_cancel(s->loop, &s->share_turn);
    tgt_lu_free_all(s);
    tgt_pool_done(&s->pool);
    tgt_access_free(s->access);
    free(s);
}

int tgt_server_shutdown(struct tgt_server *s, uint64_t timeout_ms)
{
    uint64_t deadline = gr_loop_now_ns(s->loop) + timeout_ms * 1000000;
    s->stopping = true;
    tgt_login_stop(s);
    close_portals(s);
    for (struct tgt_sess *o = s->sessions; o; o = o->next)
        tgt_sess_ask_logout(o);
    while (s->sessions) {
        uint64_t now = gr_loop_now_ns(s->loop);
        if (now >= deadline)
            break;
        if (gr_fqueue_wait_ms(&s->changed, (deadline - now) / 1000000 + 1) == -ETIMEDOUT)
            break;
    }
    unsigned cut = s->n_sessions;
    cut_all(s, "the target is shut down");
    return (int)cut;
}

/* ---- portals ---- */

static int split(const char *portal, char host[256], char port[16], struct gr_err *err)
{
    const char *colon = strrchr(portal, ':'), *close_bracket = strrchr(portal, ']');
    const char *h = portal, *end = portal + strlen(portal);
    snprintf(port, 16, "%s", DEFAULT_PORT);
    if (*portal == '[') {
        if (!close_bracket || (close_bracket[1] && close_bracket[1] != ':'))
            return gr_fail(err, -EINVAL, "portal '%s' is not HOST:PORT or [ADDRESS]:PORT", portal);
        h++;
        end = close_bracket;
        colon = close_bracket[1] ? close_bracket + 1 : NULL;
    } else if (colon) {
        end = colon;
    }
    uint64_t number;
    if (colon && gr_parse_u64(colon + 1, 0, 65535, &number, NULL) < 0)
        return gr_fail(err, -EINVAL, "portal '%s': '%s' is not a port", portal, colon + 1);
    if (colon)
        snprintf(port, 16, "%u", (unsigned)number);
    if ((size_t)(end - h) >= 256)
        return gr_fail(err, -EINVAL, "portal '%.60s…': the host name is too long", portal);
    snprintf(host, 256, "%.*s", (int)(end - h), h);
    return 0;
}

static int open_socket(const struct addrinfo *ai)
{
    int one = 1, fd = socket(ai->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return -errno;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (ai->ai_family == AF_INET6)
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof one);
    if (bind(fd, ai->ai_addr, ai->ai_addrlen) < 0 || listen(fd, 512) < 0) {
        int e = errno;
        close(fd);
        return -e;
    }
    return fd;
}

void tgt_local_address(int fd, char ret[64])
{
    struct sockaddr_storage ss = {0};
    socklen_t len = sizeof ss;
    char text[INET6_ADDRSTRLEN] = "";
    getsockname(fd, (struct sockaddr *)&ss, &len);
    if (ss.ss_family == AF_INET6) {
        const struct sockaddr_in6 *in = (const void *)&ss;
        inet_ntop(AF_INET6, &in->sin6_addr, text, sizeof text);
        snprintf(ret, 64, "[%s]:%u", text, ntohs(in->sin6_port));
        return;
    }
    const struct sockaddr_in *in = (const void *)&ss;
    inet_ntop(AF_INET, &in->sin_addr, text, sizeof text);
    snprintf(ret, 64, "%s:%u", text, ntohs(in->sin_port));
}

/* Fill in what the socket is bound to. */
static uint16_t describe(struct tgt_portal *p)
{
    struct sockaddr_storage ss = {0};
    socklen_t len = sizeof ss;
    char text[INET6_ADDRSTRLEN] = "";
    getsockname(p->fd, (struct sockaddr *)&ss, &len);
    if (ss.ss_family == AF_INET6) {
        const struct sockaddr_in6 *in = (const void *)&ss;
        struct in6_addr shown = IN6_IS_ADDR_UNSPECIFIED(&in->sin6_addr) ? in6addr_loopback : in->sin6_addr;
        inet_ntop(AF_INET6, &shown, text, sizeof text);
        p->loopback = IN6_IS_ADDR_LOOPBACK(&in->sin6_addr);
        snprintf(p->text, sizeof p->text, "[%s]:%u", text, ntohs(in->sin6_port));
        return ntohs(in->sin6_port);
    }
    const struct sockaddr_in *in = (const void *)&ss;
    struct in_addr shown = in->sin_addr;
    if (shown.s_addr == htonl(INADDR_ANY))
        shown.s_addr = htonl(INADDR_LOOPBACK);
    inet_ntop(AF_INET, &shown, text, sizeof text);
    p->loopback = ntohl(in->sin_addr.s_addr) >> 24 == 127;
    snprintf(p->text, sizeof p->text, "%s:%u", text, ntohs(in->sin_port));
    return ntohs(in->sin_port);
}

static int bind_portal(const char *portal, struct tgt_portal *p, struct gr_err *err)
{
    char host[256], port[16];
    struct addrinfo hints = {.ai_flags = AI_PASSIVE | AI_NUMERICSERV, .ai_socktype = SOCK_STREAM}, *list = NULL;
    int r = split(portal, host, port, err);
    if (r < 0)
        return r;
    bool any = !host[0] || !strcmp(host, "*");
    if (any)
        hints.ai_family = AF_INET;
    r = getaddrinfo(any ? NULL : host, port, &hints, &list);
    if (r)
        return gr_fail(err, -EINVAL, "portal '%s': %s", portal, gai_strerror(r));
    r = -EADDRNOTAVAIL;
    for (struct addrinfo *ai = list; ai && r < 0; ai = ai->ai_next)
        r = open_socket(ai);
    freeaddrinfo(list);
    if (r < 0)
        return gr_fail(err, r, "portal '%s': cannot listen: %s", portal, strerror(-r));
    p->fd = r;
    return 0;
}

static int portal_add(struct tgt_server *s, const struct tgt_portal *p)
{
    s->portals[s->n_portals++] = *p;
    int r = tgt_login_listen(s, s->n_portals - 1);
    if (r < 0)
        close(s->portals[--s->n_portals].fd);
    return r;
}

int tgt_server_adopt(struct tgt_server *s, int fd, unsigned flags, struct gr_err *err)
{
    struct tgt_portal p = {.fd = fd, .flags = flags};
    if (s->n_portals >= TGT_PORTALS) {
        close(fd);
        return gr_fail(err, -ENOSPC, "%u portals are open, no more are allowed", s->n_portals);
    }
    describe(&p);
    return portal_add(s, &p);
}

int tgt_server_listen(struct tgt_server *s, const char *portal, unsigned flags, uint16_t *ret_port, struct gr_err *err)
{
    struct tgt_portal p = {.fd = -1, .flags = flags};
    if (s->n_portals >= TGT_PORTALS)
        return gr_fail(err, -ENOSPC, "portal '%s': %u portals are open, no more are allowed", portal, s->n_portals);
    int r = bind_portal(portal, &p, err);
    if (r < 0)
        return r;
    uint16_t port = describe(&p);
    if (!p.loopback && !(flags & TGT_PORTAL_INSECURE) && !tgt_access_any(s->access)) {
        close(p.fd);
        return gr_fail(err, -GR_EAUTH,
                       "portal '%s' is not a loopback address and no disk has an access list or CHAP: set them with "
                       "'granary lun acl' or 'granary lun chap', or say --insecure", portal);
    }
    r = portal_add(s, &p);
    if (r < 0)
        return gr_fail(err, r, "portal '%s': the login process cannot be told: %s", portal, gr_code_text(r));
    if (ret_port)
        *ret_port = port;
    return 0;
}

const char *tgt_server_portal(struct tgt_server *s)
{
    return s->n_portals ? s->portals[0].text : NULL;
}

char *tgt_server_url(struct tgt_server *s, const char *disk)
{
    char name[TGT_NAME_MAX + 1];
    gr_auto_free char *other = s->dir.portal ? s->dir.portal(s->dir.arg, disk) : NULL;
    const char *portal = other ? other : tgt_server_portal(s);
    if (!portal || tgt_name_of(disk, name) < 0)
        return NULL;
    return gr_asprintf("iscsi://%s/%s/0", portal, name);
}

unsigned tgt_server_sessions(struct tgt_server *s, const char *disk)
{
    struct tgt_lu *lu = disk ? tgt_lu_find(s, disk) : NULL;
    return disk ? (lu ? lu->n_sessions : 0) : s->n_sessions;
}

static void lu_forget(struct tgt_server *s, struct tgt_lu *lu)
{
    for (struct tgt_lu **p = &s->lus; *p; p = &(*p)->next) {
        if (*p != lu)
            continue;
        *p = lu->next;
        tgt_pr_free(lu);
        free(lu);
        return;
    }
}

int tgt_server_release(struct tgt_server *s, const char *disk, bool only_idle, struct gr_err *err)
{
    struct tgt_lu *lu = tgt_lu_find(s, disk);
    if (!lu)
        return 0;
    if (lu->releasing)
        return gr_fail(err, -EBUSY, "disk '%s' is already being released", disk);
    for (struct tgt_sess *o = s->sessions; o && only_idle; o = o->next)
        if (o->lu == lu)
            return gr_fail(err, -EBUSY, "disk '%s' is in use by initiator %s (%s)", disk, o->initiator, o->address);
    lu->releasing = true;
    struct tgt_sess *next;
    for (struct tgt_sess *o = s->sessions; o; o = next) {
        next = o->next;
        if (o->lu == lu)
            tgt_sess_close(o, "the disk is released");
    }
    while (lu->users)
        gr_fqueue_wait(&s->changed);
    lu_forget(s, lu);
    return 0;
}
