#include "iscsi-target/isns.h"
#include "common/buf.h"
#include "common/cleanup.h"
#include "common/seam.h"
#include "iscsi-target/target_int.h"
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>

#define PORT "3205"
#define LOOK_MS 3000u        /* how often it is looked whether there are other targets */
#define REFRESH_NS 240000000000ull /* registered anew: servers forget after 10 minutes or more */
#define TIMEOUT_MS 5000       /* for a whole conversation, so that a server that drips holds nothing up */

struct address { /* of a portal: IPv6, or IPv4 mapped into it */
    uint8_t ip[16];
    uint16_t port;
};
/* One conversation, on a thread of the pool: everything in it is its own. */
struct talk {
    char *host, *port, *entity;
    char **names, **aliases;
    size_t n;
    struct address portals[TGT_PORTALS];
    unsigned n_portals;
    bool off; /* take us off */
    uint64_t deadline_ns;
    char text[200];
};
struct tgt_isns {
    struct tgt_server *s;
    char *host, *port, *entity;
    char *known; /* names registered, a line each, and portals; NULL: none */
    uint64_t known_ns;
    int registered;
    bool stop, ended, complained;
    struct gr_fqueue wake;
};

/* ---- addresses ---- */
static bool take_address(const struct sockaddr_storage *ss, struct address *ret)
{
    static const uint8_t mapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
    if (ss->ss_family == AF_INET6) {
        const struct sockaddr_in6 *in = (const void *)ss;
        memcpy(ret->ip, &in->sin6_addr, 16);
        ret->port = ntohs(in->sin6_port);
        return true;
    }
    const struct sockaddr_in *in = (const void *)ss;
    memcpy(ret->ip, mapped, 12);
    memcpy(ret->ip + 12, &in->sin_addr, 4);
    ret->port = ntohs(in->sin_port);
    return ss->ss_family == AF_INET;
}

static bool mapped4(const uint8_t ip[16]) { return !memcmp(ip, "\0\0\0\0\0\0\0\0\0\0\xff\xff", 12); }
static bool any_address(const uint8_t ip[16]) { return !memcmp(ip + (mapped4(ip) ? 12 : 0), "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", mapped4(ip) ? 4 : 16); }
static bool loopback(const uint8_t ip[16]) { return mapped4(ip) ? ip[12] == 127 : !memcmp(ip, "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\1", 16); }

/* What of a portal others can reach: a wildcard is the address by which we reach the server; loopback is for a server on it. */
static bool reachable(struct address *a, const struct address *mine)
{
    if (any_address(a->ip))
        memcpy(a->ip, mine->ip, 16);
    return !loopback(a->ip) || loopback(mine->ip);
}

/* ---- the conversation (thread of the pool) ---- */
static int left_ms(const struct talk *t)
{
    const struct gr_world *w = gr_world_real();
    uint64_t now = w->mono_ns(w->arg);
    return now < t->deadline_ns ? (int)((t->deadline_ns - now) / 1000000) + 1 : 0;
}

static int dial(struct talk *t, struct address *ret_mine)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *list = NULL;
    struct sockaddr_storage ss;
    socklen_t len = sizeof ss;
    int g = getaddrinfo(t->host, t->port, &hints, &list), r = -EHOSTUNREACH;
    if (g) {
        snprintf(t->text, sizeof t->text, "%s", gai_strerror(g));
        return -EINVAL;
    }
    gr_auto_close int fd = -1;
    for (const struct addrinfo *a = list; a && r < 0; a = a->ai_next) {
        gr_closep(&fd);
        fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        r = fd >= 0 && (connect(fd, a->ai_addr, a->ai_addrlen) == 0 || errno == EINPROGRESS) ? 0 : -errno;
        struct pollfd p = {.fd = fd, .events = POLLOUT};
        int e = 0;
        socklen_t n = sizeof e;
        if (!r && poll(&p, 1, left_ms(t)) != 1)
            r = -ETIMEDOUT;
        if (!r && (getsockopt(fd, SOL_SOCKET, SO_ERROR, &e, &n) < 0 || e))
            r = -(e ? e : errno);
    }
    freeaddrinfo(list);
    if (!r && (getsockname(fd, (struct sockaddr *)&ss, &len) < 0 || !take_address(&ss, ret_mine)))
        r = -EADDRNOTAVAIL;
    return r < 0 ? r : gr_take_fd(&fd);
}

static int transfer(const struct talk *t, int fd, uint8_t *p, size_t len, bool out)
{
    while (len) {
        struct pollfd w = {.fd = fd, .events = out ? POLLOUT : POLLIN};
        if (poll(&w, 1, left_ms(t)) != 1)
            return -ETIMEDOUT;
        ssize_t n = out ? send(fd, p, len, MSG_NOSIGNAL) : recv(fd, p, len, 0);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -ECONNRESET;
        p += n;
        len -= (size_t)n;
    }
    return 0;
}

static int exchange(struct talk *t, int fd, struct tgt_isns_msg *m, uint16_t function, uint16_t transaction)
{
    tgt_isns_end(m);
    int r = transfer(t, fd, m->bytes, m->len, true);
    if (!r)
        r = transfer(t, fd, m->bytes, ISNS_HEADER, false);
    if (!r && (r = tgt_isns_payload(m->bytes)) >= 0) {
        m->len = ISNS_HEADER + (size_t)r;
        r = transfer(t, fd, m->bytes + ISNS_HEADER, (size_t)r, false);
    }
    if (r < 0)
        return r;
    int status = tgt_isns_status(m->bytes, m->len, function, transaction);
    if (status > 0)
        snprintf(t->text, sizeof t->text, "it refuses with iSNS status %d", status);
    return status > 0 ? -EACCES : status;
}

static void head(const struct talk *t, struct tgt_isns_msg *m, bool replace, uint16_t transaction)
{
    tgt_isns_begin(m, t->off ? ISNS_DEV_DEREG : ISNS_DEV_ATTR_REG, replace, transaction);
    tgt_isns_text(m, ISNS_NAME, t->names[0]); /* who asks: one of the nodes */
    if (!t->off)
        tgt_isns_text(m, ISNS_ENTITY, t->entity);
    tgt_isns_bytes(m, ISNS_DELIMITER, NULL, 0);
    tgt_isns_text(m, ISNS_ENTITY, t->entity);
    if (!t->off)
        tgt_isns_number(m, ISNS_PROTOCOL, 2); /* iSCSI */
}

/* As many messages as it takes; the first replaces what was registered. */
static int register_all(struct talk *t, int fd, const struct address *mine, struct tgt_isns_msg *m)
{
    uint16_t transaction = 1;
    int r = 0;
    for (size_t i = 0; !r && i < t->n; transaction++) {
        head(t, m, transaction == 1, transaction);
        for (unsigned p = 0; transaction == 1 && p < t->n_portals; p++) {
            struct address a = t->portals[p];
            if (!reachable(&a, mine))
                continue;
            tgt_isns_bytes(m, ISNS_PORTAL_IP, a.ip, sizeof a.ip);
            tgt_isns_number(m, ISNS_PORTAL_PORT, a.port);
        }
        while (i < t->n && m->len < ISNS_PAYLOAD_MAX / 2) {
            tgt_isns_text(m, ISNS_NAME, t->names[i]);
            tgt_isns_number(m, ISNS_NODE_TYPE, 1); /* target */
            tgt_isns_text(m, ISNS_ALIAS, t->aliases[i]);
            i++;
        }
        r = m->full ? -E2BIG : exchange(t, fd, m, ISNS_DEV_ATTR_REG, transaction);
    }
    return r;
}

static int talk_work(void *arg)
{
    struct talk *t = arg;
    const struct gr_world *w = gr_world_real();
    struct address mine;
    t->deadline_ns = w->mono_ns(w->arg) + TIMEOUT_MS * 1000000ull;
    gr_auto_close int fd = dial(t, &mine);
    gr_auto_free struct tgt_isns_msg *m = gr_alloc(sizeof *m);
    if (fd < 0 || !m)
        return fd < 0 ? fd : -ENOMEM;
    if (!t->off)
        return register_all(t, fd, &mine, m);
    head(t, m, false, 1);
    return exchange(t, fd, m, ISNS_DEV_DEREG, 1);
}

/* ---- what there is to register ---- */
static void talk_done(struct talk *t)
{
    for (size_t i = 0; i < t->n; i++) {
        free(t->names[i]);
        free(t->aliases[i]);
    }
    free(t->names);
    free(t->aliases);
}

struct collect {
    struct tgt_isns *i;
    struct talk *t;
    struct gr_buf lines;
};

static int each(void *arg, const char *disk)
{
    struct collect *c = arg;
    struct talk *t = c->t;
    char name[TGT_NAME_MAX + 1];
    struct tgt_access *a = c->i->s->access;
    if (tgt_access_refresh(a, disk, NULL) < 0 || tgt_access_masked(a, disk) || tgt_name_of(disk, name) < 0)
        return 0;
    char **names = gr_realloc(t->names, (t->n + 1) * sizeof *names);
    t->names = names ? names : t->names;
    char **aliases = gr_realloc(t->aliases, (t->n + 1) * sizeof *aliases);
    t->aliases = aliases ? aliases : t->aliases;
    if (!names || !aliases || gr_buf_printf(&c->lines, "%s\n", name) < 0)
        return -ENOMEM;
    names[t->n] = gr_strdup(name);
    aliases[t->n] = gr_asprintf("%.250s", disk);
    t->n++;
    return names[t->n - 1] && aliases[t->n - 1] ? 0 : -ENOMEM;
}

static void take_portals(const struct tgt_server *s, struct talk *t)
{
    for (unsigned p = 0; p < s->n_portals; p++) {
        struct sockaddr_storage ss;
        socklen_t len = sizeof ss;
        if (getsockname(s->portals[p].fd, (struct sockaddr *)&ss, &len) == 0 && take_address(&ss, &t->portals[t->n_portals]))
            t->n_portals++;
    }
}

static int list_portals(struct collect *c, const struct tgt_server *s)
{
    int r = 0;
    for (unsigned p = 0; p < s->n_portals && !r; p++)
        r = gr_buf_printf(&c->lines, "%s\n", s->portals[p].name);
    return r;
}

static void complain(struct tgt_isns *i, const struct talk *t, int r)
{
    if (!i->complained)
        tgt_note(i->s, 4, "iSNS server %s:%s: %s; it is tried again", i->host, i->port, t->text[0] ? t->text : gr_code_text(r));
    i->complained = true;
    i->registered = -1;
}

/* Bring the server up to date. */
static void update(struct tgt_isns *i, bool off)
{
    struct talk t = {.host = i->host, .port = i->port, .entity = i->entity, .off = off};
    struct collect c = {i, &t, {0}};
    int r = i->s->dir.list(i->s->dir.arg, each, &c, NULL);
    if (r == 0)
        r = list_portals(&c, i->s);
    uint64_t now = gr_loop_now_ns(i->s->loop);
    bool same = i->known && c.lines.data && !strcmp(i->known, c.lines.data);
    if (r == 0 && t.n == 0 && i->known) { /* the name that is known there speaks for us */
        t.off = true;
        t.names = gr_zalloc(sizeof *t.names);
        t.aliases = gr_zalloc(sizeof *t.aliases);
        if (t.names && t.aliases && (t.names[0] = gr_asprintf("%.*s", (int)strcspn(i->known, "\n"), i->known)))
            t.n = 1;
    }
    bool due = t.off ? i->known != NULL : t.n && (!same || i->registered < 0 || now - i->known_ns > REFRESH_NS);
    if (r == 0 && due) {
        take_portals(i->s, &t);
        r = gr_fiber_work(talk_work, &t);
        if (r < 0 && !off) {
            complain(i, &t, r);
        } else if (r == 0) {
            free(i->known);
            i->known = t.off ? NULL : gr_buf_take(&c.lines);
            i->known_ns = now;
            i->registered = t.off ? 0 : (int)t.n;
            i->complained = false;
        }
    }
    gr_buf_done(&c.lines);
    talk_done(&t);
}

static void isns_fiber(void *arg)
{
    struct tgt_isns *i = arg;
    while (!i->stop) {
        update(i, false);
        if (!i->stop)
            (void)gr_fqueue_wait_ms(&i->wake, LOOK_MS);
    }
    update(i, true);
    i->ended = true;
    gr_fqueue_wake_all(&i->wake);
}

static void isns_free(struct tgt_isns *i)
{
    free(i->host);
    free(i->port);
    free(i->entity);
    free(i->known);
    free(i);
}

int tgt_isns_start(struct tgt_server *s, const char *server, const char *entity, struct tgt_isns **ret, struct gr_err *err)
{
    bool bracket = server[0] == '[';
    const char *end = bracket ? strchr(server, ']') : strrchr(server, ':');
    const char *port = bracket && end ? (end[1] == ':' ? end + 2 : end[1] ? NULL : PORT) : bracket ? NULL : end ? end + 1 : PORT;
    size_t len = bracket && end ? (size_t)(end - server - 1) : end && !bracket ? (size_t)(end - server) : strlen(server);
    uint64_t number;
    if (!port || !len || len > 255 || gr_parse_u64(port, 1, 65535, &number, NULL) < 0)
        return gr_fail(err, -EINVAL, "iSNS server '%s' is not HOST[:PORT] or [ADDRESS][:PORT]", server);
    struct tgt_isns *i = gr_zalloc(sizeof *i);
    if (!i)
        return gr_fail(err, -ENOMEM, "iSNS: out of memory");
    i->s = s;
    i->host = gr_asprintf("%.*s", (int)len, server + bracket);
    i->port = gr_strdup(port);
    i->entity = gr_strdup(entity);
    int r = i->host && i->port && i->entity ? gr_fiber_start(s->loop, isns_fiber, i) : -ENOMEM;
    if (r < 0) {
        isns_free(i);
        return gr_fail(err, r, "iSNS: out of memory");
    }
    *ret = i;
    return 0;
}

void tgt_isns_stop(struct tgt_isns *i)
{
    if (!i)
        return;
    i->stop = true;
    gr_fqueue_wake_all(&i->wake);
    while (!i->ended)
        gr_fqueue_wait(&i->wake);
    isns_free(i);
}

void tgt_isns_look(struct tgt_isns *i)
{
    if (i)
        gr_fqueue_wake_all(&i->wake);
}

int tgt_isns_registered(const struct tgt_isns *i)
{
    return i->registered;
}
