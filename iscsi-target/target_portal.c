/* Portals: opened, closed and taken over while sessions work. The login process listens; this one binds, and keeps the sockets for the login
 * process that comes after a lost one, and for the heir of an upgrade. */
#include "common/cleanup.h"
#include "common/fiber.h"
#include "common/seam.h"
#include "iscsi-target/target_int.h"
#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#define DEFAULT_PORT 3260u

void tgt_portals_close(struct tgt_server *s)
{
    while (s->n_portals)
        close(s->portals[--s->n_portals].fd);
}

const struct tgt_portal *tgt_portal_of(const struct tgt_server *s, uint32_t id)
{
    for (unsigned i = 0; i < s->n_portals; i++)
        if (s->portals[i].id == id)
            return &s->portals[i];
    return NULL;
}

/* ---- addresses ---- */
struct address {
    bool v6;
    uint8_t ip[16]; /* IPv4: the first 4 */
    uint16_t port;
};

/* Where the socket is bound, or, of a connection, what its peer reached. */
static struct address local_address(int fd)
{
    struct sockaddr_storage ss = {0};
    socklen_t len = sizeof ss;
    struct address a = {0};
    getsockname(fd, (struct sockaddr *)&ss, &len);
    a.v6 = ss.ss_family == AF_INET6;
    if (a.v6) {
        const struct sockaddr_in6 *in = (const void *)&ss;
        memcpy(a.ip, &in->sin6_addr, 16);
        a.port = ntohs(in->sin6_port);
    } else {
        const struct sockaddr_in *in = (const void *)&ss;
        memcpy(a.ip, &in->sin_addr, 4);
        a.port = ntohs(in->sin_port);
    }
    return a;
}

static bool is_any(const struct address *a)
{
    static const uint8_t zero[16];
    return !memcmp(a->ip, zero, a->v6 ? 16 : 4);
}

static bool is_loopback(const struct address *a)
{
    return a->v6 ? !memcmp(a->ip, &in6addr_loopback, 16) : a->ip[0] == 127;
}

static void address_text(const struct address *a, char ret[64])
{
    char text[INET6_ADDRSTRLEN] = "";
    inet_ntop(a->v6 ? AF_INET6 : AF_INET, a->ip, text, sizeof text);
    snprintf(ret, 64, a->v6 ? "[%s]:%u" : "%s:%u", text, a->port);
}

static bool reached_through(const struct tgt_portal *p, const struct address *reached)
{
    struct address bound = local_address(p->fd);
    return bound.v6 == reached->v6 && bound.port == reached->port && (is_any(&bound) || !memcmp(bound.ip, reached->ip, sizeof bound.ip));
}

/* What the socket is bound to; a wildcard is shown as the loopback. */
static uint16_t describe(struct tgt_portal *p)
{
    struct address a = local_address(p->fd);
    p->loopback = is_loopback(&a);
    if (is_any(&a))
        memcpy(a.ip, a.v6 ? in6addr_loopback.s6_addr : (const uint8_t[16]){127, 0, 0, 1}, 16);
    address_text(&a, p->text);
    return a.port;
}

/* ---- opening ---- */
/* The parts of "HOST:PORT", "[V6]:PORT" or "HOST"; @ret_shown: HOST as it was written, for messages and names. */
static int split(const char *portal, char host[256], char ret_shown[260], unsigned *ret_port, struct gr_err *err)
{
    const char *colon = strrchr(portal, ':'), *close_bracket = strrchr(portal, ']');
    const char *h = portal, *end = portal + strlen(portal);
    uint64_t number = DEFAULT_PORT;
    if (*portal == '[') {
        if (!close_bracket || (close_bracket[1] && close_bracket[1] != ':'))
            return gr_fail(err, -EINVAL, "portal '%s' is not HOST:PORT or [ADDRESS]:PORT", portal);
        h++;
        end = close_bracket;
        colon = close_bracket[1] ? close_bracket + 1 : NULL;
    } else if (colon) {
        end = colon;
    }
    if (colon && gr_parse_u64(colon + 1, 0, 65535, &number, NULL) < 0)
        return gr_fail(err, -EINVAL, "portal '%s': '%s' is not a port", portal, colon + 1);
    if ((size_t)(end - h) >= 256)
        return gr_fail(err, -EINVAL, "portal '%.60s…': the host name is too long", portal);
    snprintf(host, 256, "%.*s", (int)(end - h), h);
    snprintf(ret_shown, 260, h == portal ? "%s" : "[%s]", host);
    *ret_port = (unsigned)number;
    return 0;
}

struct resolve {
    const char *host; /* "" or "*": every IPv4 address */
    char port[16];
    struct addrinfo *list;
};

/* On a thread of the pool: a name server may take its time, and initiators work meanwhile. */
static int resolve_work(void *arg)
{
    struct resolve *q = arg;
    bool any = !q->host[0] || !strcmp(q->host, "*");
    struct addrinfo hints = {.ai_flags = AI_PASSIVE | AI_NUMERICSERV, .ai_socktype = SOCK_STREAM, .ai_family = any ? AF_INET : AF_UNSPEC};
    return getaddrinfo(any ? NULL : q->host, q->port, &hints, &q->list);
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

static int bind_portal(const char *portal, const char *host, unsigned port, struct gr_err *err)
{
    struct resolve q = {.host = host};
    snprintf(q.port, sizeof q.port, "%u", port);
    int r = gr_fiber_work(resolve_work, &q);
    if (r)
        return gr_fail(err, -EINVAL, "portal '%s': %s", portal, gai_strerror(r));
    r = -EADDRNOTAVAIL;
    for (struct addrinfo *ai = q.list; ai && r < 0; ai = ai->ai_next)
        r = open_socket(ai);
    freeaddrinfo(q.list);
    return r < 0 ? gr_fail(err, r, "portal '%s': cannot listen: %s", portal, strerror(-r)) : r;
}

/* Takes the socket. */
static int portal_add(struct tgt_server *s, struct tgt_portal *p, struct gr_err *err)
{
    int r = s->n_portals < TGT_PORTALS ? 0 : gr_fail(err, -ENOSPC, "portal '%s': %u portals are open, no more are allowed", p->name, s->n_portals);
    if (r == 0 && (s->stopping || s->resting))
        r = gr_fail(err, -EBUSY, "portal '%s': the target is about to end or to be replaced", p->name);
    p->id = s->next_portal;
    if (r == 0 && (r = tgt_login_listen(s, p)) < 0)
        gr_fail(err, r, "portal '%s': the login process cannot be told: %s", p->name, gr_code_text(r));
    if (r < 0) {
        close(p->fd);
        return r;
    }
    s->next_portal++;
    s->portals[s->n_portals++] = *p;
    tgt_note(s, 6, "portal %s is open", p->name);
    return 0;
}

int tgt_server_adopt(struct tgt_server *s, int fd, unsigned flags, const char *name, struct gr_err *err)
{
    struct tgt_portal p = {.fd = fd, .flags = flags};
    describe(&p);
    if (name) {
        snprintf(p.name, sizeof p.name, "%s", name);
    } else {
        struct address bound = local_address(fd);
        address_text(&bound, p.name);
    }
    return portal_add(s, &p, err);
}

static struct tgt_portal *portal_named(struct tgt_server *s, const char *name)
{
    for (unsigned i = 0; i < s->n_portals; i++)
        if (!strcmp(s->portals[i].name, name) || !strcmp(s->portals[i].text, name))
            return &s->portals[i];
    return NULL;
}

struct ruled {
    struct tgt_server *s;
    bool any;
};

static int find_ruled(void *arg, const char *disk)
{
    struct ruled *f = arg;
    f->any = tgt_access_refresh(f->s->access, disk, NULL) == 0 && tgt_access_ruled(f->s->access, disk);
    return f->any ? -ECANCELED : 0;
}

/* Has any disk a list or CHAP? One is enough, for ever: a datastore that is missing at a start must not keep the others from being served. */
static int any_rules(struct tgt_server *s, struct gr_err *err)
{
    struct ruled f = {.s = s};
    if (tgt_access_any(s->access))
        return 1;
    int r = s->dir.list(s->dir.arg, find_ruled, &f, err);
    if (!f.any)
        return GR_MIN(r, 0);
    r = tgt_access_seen(s->access, err);
    return r < 0 ? r : 1;
}

int tgt_server_listen(struct tgt_server *s, const char *portal, unsigned flags, uint16_t *ret_port, struct gr_err *err)
{
    char host[256], shown[260];
    unsigned number;
    int r = split(portal, host, shown, &number, err);
    if (r < 0)
        return r;
    struct tgt_portal p = {.flags = flags | (number ? 0 : TGT_PORTAL_ANY_PORT)};
    snprintf(p.name, sizeof p.name, "%s:%u", shown, number);
    if (portal_named(s, p.name))
        return gr_fail(err, -EEXIST, "portal '%s' is open already", p.name);
    p.fd = bind_portal(portal, host, number, err);
    if (p.fd < 0)
        return p.fd;
    uint16_t port = describe(&p);
    snprintf(p.name, sizeof p.name, "%s:%u", shown, port);
    r = p.loopback || (flags & TGT_PORTAL_INSECURE) ? 1 : any_rules(s, err);
    if (r <= 0) {
        close(p.fd);
        return r < 0 ? r : gr_fail(err, -GR_EAUTH,
                       "portal '%s' is not a loopback address and no disk has an access list or CHAP: set them with "
                       "'granary lun acl' or 'granary lun chap', or start with --insecure", portal);
    }
    r = portal_add(s, &p, err);
    if (r == 0 && ret_port)
        *ret_port = port;
    return r;
}

/* ---- telling ---- */
const char *tgt_server_portal(struct tgt_server *s)
{
    for (unsigned i = 0; i < s->n_portals; i++)
        if (!(s->portals[i].flags & TGT_PORTAL_MULTIPATH))
            return s->portals[i].text;
    return NULL;
}

void tgt_told_address(struct tgt_server *s, int fd, char ret[64])
{
    struct address reached = local_address(fd);
    const char *other = tgt_server_portal(s);
    for (unsigned i = 0; i < s->n_portals; i++)
        if (reached_through(&s->portals[i], &reached))
            other = NULL;
    if (other)
        snprintf(ret, 64, "%s", other);
    else
        address_text(&reached, ret);
}

static bool sess_through(const struct tgt_sess *o, const struct tgt_portal *p)
{
    for (const struct tgt_conn *c = o->conns; c; c = c->next) {
        struct address reached = local_address(c->fd);
        if (reached_through(p, &reached))
            return true;
    }
    return false;
}

static unsigned n_sessions(const struct tgt_server *s, const struct tgt_portal *p)
{
    unsigned n = 0;
    for (const struct tgt_sess *o = s->sessions; o; o = o->next)
        n += sess_through(o, p);
    return n;
}

bool tgt_server_portal_at(const struct tgt_server *s, unsigned i, struct tgt_portal_info *ret)
{
    if (i >= s->n_portals)
        return false;
    const struct tgt_portal *p = &s->portals[i];
    *ret = (struct tgt_portal_info){.name = p->name, .flags = p->flags, .sessions = n_sessions(s, p), .loopback = p->loopback};
    return true;
}

/* ---- closing ---- */
static unsigned n_redirecting(const struct tgt_server *s)
{
    unsigned n = 0;
    for (unsigned i = 0; i < s->n_portals; i++)
        n += !(s->portals[i].flags & TGT_PORTAL_MULTIPATH);
    return n;
}

int tgt_server_unlisten(struct tgt_server *s, const char *portal, unsigned *ret_sessions, struct gr_err *err)
{
    char host[256], name[TGT_SHOWN];
    unsigned number;
    int r = split(portal, host, name, &number, err);
    if (r < 0)
        return r;
    size_t n = strlen(name);
    snprintf(name + n, sizeof name - n, ":%u", number);
    struct tgt_portal *p = portal_named(s, name);
    if (!p)
        return gr_fail(err, -ENOENT, "portal '%s' is not open: 'granary portal list' tells which are", name);
    if (s->stopping || s->resting)
        return gr_fail(err, -EBUSY, "portal '%s': the target is about to end or to be replaced", p->name);
    if (!(p->flags & TGT_PORTAL_MULTIPATH) && n_redirecting(s) == 1)
        return gr_fail(err, -EBUSY, "portal '%s' is the last by which initiators find their disks: add another before it is removed", p->name);
    if (ret_sessions)
        *ret_sessions = n_sessions(s, p);
    shutdown(p->fd, SHUT_RDWR); /* refuses from now on, whoever holds the socket too */
    tgt_login_unlisten(s, p->id);
    close(p->fd);
    tgt_note(s, 6, "portal %s is closed", p->name);
    memmove(p, p + 1, (size_t)(s->portals + --s->n_portals - p) * sizeof *p);
    return 0;
}
