#include "common/link.h"
#include "common/buf.h"
#include "common/cleanup.h"
#include "common/helper.h"
#include "common/link_ipc.h"
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define PROOF_MS 5000u   /* what a stranger gets for his proof */
#define PROVING 32u      /* strangers who are asked for it at once */
#define NOTES_EVERY_NS 1000000000ull /* strangers do not fill the log */

struct dialling { /* on the stack of who dials */
    uint64_t number;
    struct gr_fqueue done;
    bool answered;
    int fd; /* -1: it failed */
    uint8_t channel[GR_LINK_CHANNEL_LEN];
    char why[LINK_REASON];
    struct dialling *next;
};
struct gr_link {
    struct gr_link_opts o;
    struct gr_helper process;
    struct link_msg in, out;
    int listener;
    uint64_t last_number, noted_ns, unnoted;
    unsigned proving; /* fibers */
    bool ending;
    struct dialling *dialling;
    struct gr_fqueue changed;
};
struct stranger {
    struct gr_link *l;
    int fd;
    uint32_t slot, gen, spawn;
    uint8_t channel[GR_LINK_CHANNEL_LEN];
    struct gr_link_peer peer;
};

static int say(struct gr_link *l, enum link_msg_type type, int fd)
{
    return l->process.sock < 0 ? -EAGAIN : link_msg_send(l->process.sock, &l->out, type, fd, MSG_DONTWAIT);
}

static void refuse(struct gr_link *l, const char *from, const char *why)
{
    uint64_t now = gr_loop_now_ns(l->o.loop);
    if (l->noted_ns && now - l->noted_ns < NOTES_EVERY_NS) {
        l->unnoted++;
        return;
    }
    gr_auto_free char *text = gr_asprintf("a link from %s was refused: %s (and %llu others)", from, why, (unsigned long long)l->unnoted);
    if (text)
        l->o.note(l->o.arg, 4, text);
    l->noted_ns = now;
    l->unnoted = 0;
}

/* ---- proofs ---- */
static int transfer(int fd, void *bytes, size_t len, bool out, uint64_t timeout_ms)
{
    uint64_t end = gr_loop_now_ns(gr_fiber_loop()) + timeout_ms * 1000000ull;
    for (uint8_t *p = bytes; len;) {
        ssize_t n = out ? send(fd, p, len, MSG_NOSIGNAL | MSG_DONTWAIT) : recv(fd, p, len, MSG_DONTWAIT);
        uint64_t now = gr_loop_now_ns(gr_fiber_loop());
        if (n > 0) {
            p += n;
            len -= (size_t)n;
        } else if (n == 0) {
            return -ECONNRESET;
        } else if (errno != EAGAIN && errno != EINTR) {
            return -errno;
        } else if (now >= end || gr_fiber_wait_fd(fd, out ? POLLOUT : POLLIN, (int64_t)((end - now) / 1000000 + 1)) < 0) {
            return -ETIMEDOUT;
        }
    }
    return 0;
}

/* NULL, or why he stays out. */
static const char *ask(struct stranger *s, struct gr_err *err)
{
    struct gr_link *l = s->l;
    const uint8_t *ours = gr_link_key_public(l->o.key);
    struct gr_link_proof p;
    if (transfer(s->fd, &p, sizeof(p), false, PROOF_MS) < 0)
        return "it proved nothing";
    memcpy(s->peer.volume, p.volume, sizeof(p.volume));
    memcpy(s->peer.key, p.key, sizeof(p.key));
    if (memcmp(p.magic, GR_LINK_MAGIC, sizeof(p.magic)) != 0)
        return "it speaks another protocol or version";
    int r = l->o.admit ? l->o.admit(l->o.arg, &s->peer, err) : gr_fail(err, -GR_EAUTH, "nobody is let in here");
    if (r < 0)
        return gr_err_text(err, r);
    if (!gr_link_proves(&p, true, s->channel, ours))
        return "its signature is wrong";
    if (gr_link_prove(l->o.key, false, p.volume, s->channel, p.key, &p) < 0 || transfer(s->fd, &p, sizeof(p), true, PROOF_MS) < 0)
        return "it is gone";
    return NULL;
}

static void stranger_main(void *arg)
{
    struct stranger *s = arg;
    struct gr_link *l = s->l;
    struct gr_err err = {0};
    const char *why = l->ending ? "we end" : ask(s, &err);
    if (why) {
        refuse(l, s->peer.from, why);
    } else if (!l->ending) {
        if (s->spawn == l->process.spawn) {
            l->out.slot = s->slot;
            l->out.gen = s->gen;
            (void)say(l, LINK_KNOWN, -1);
        }
        l->o.comes(l->o.arg, gr_take_fd(&s->fd), &s->peer);
    }
    gr_closep(&s->fd);
    free(s);
    l->proving--;
    gr_fqueue_wake_all(&l->changed);
}

static void from_text(const struct sockaddr_storage *a, char ret[64])
{
    char host[48];
    socklen_t len = a->ss_family == AF_INET6 ? sizeof(struct sockaddr_in6) : sizeof(struct sockaddr_in);
    if (getnameinfo((const struct sockaddr *)a, len, host, sizeof(host), NULL, 0, NI_NUMERICHOST) != 0)
        snprintf(host, sizeof(host), "an unknown address");
    snprintf(ret, 64, "%s", host);
}

/* Takes *fd unless false is returned: the process broke the protocol. */
static bool stranger_comes(struct gr_link *l, int *fd)
{
    struct stranger *s = *fd >= 0 && l->proving < PROVING ? gr_zalloc(sizeof(*s)) : NULL;
    if (*fd < 0)
        return false;
    if (!s)
        return true; /* closed: his connection ends */
    s->l = l;
    s->slot = l->in.slot;
    s->gen = l->in.gen;
    s->spawn = l->process.spawn;
    memcpy(s->channel, l->in.u.open.channel, sizeof(s->channel));
    from_text(&l->in.u.open.from, s->peer.from);
    s->fd = gr_take_fd(fd);
    if (gr_fiber_start(l->o.loop, stranger_main, s) < 0) {
        gr_closep(&s->fd);
        free(s);
        return true;
    }
    l->proving++;
    return true;
}

/* ---- the process ---- */
static struct dialling *find_dialling(struct gr_link *l, uint64_t number)
{
    struct dialling *d = l->dialling;
    while (d && d->number != number)
        d = d->next;
    return d;
}

static void answer(struct dialling *d, int fd, const char *why)
{
    if (d->answered) {
        gr_closep(&fd);
        return;
    }
    d->answered = true;
    d->fd = fd;
    snprintf(d->why, sizeof(d->why), "%s", why);
    gr_fqueue_wake_all(&d->done);
}

static bool message(struct gr_link *l, int *fd)
{
    struct dialling *d = l->in.dial ? find_dialling(l, l->in.dial) : NULL;
    char from[64];
    switch (l->in.type) {
    case LINK_PONG:
        gr_helper_pong(&l->process);
        return true;
    case LINK_OPEN:
        if (!l->in.dial)
            return stranger_comes(l, fd);
        if (d && *fd >= 0) {
            memcpy(d->channel, l->in.u.open.channel, sizeof(d->channel));
            answer(d, gr_take_fd(fd), "");
        }
        return *fd < 0 || !d;
    case LINK_FAILED:
    case LINK_TURNED_AWAY:
        if (!memchr(l->in.u.reason.text, 0, LINK_REASON) || !gr_utf8_ok(l->in.u.reason.text, strlen(l->in.u.reason.text)))
            return false;
        from_text(&l->in.u.reason.from, from);
        if (d)
            answer(d, -1, l->in.u.reason.text);
        else if (l->in.type == LINK_TURNED_AWAY)
            refuse(l, from, l->in.u.reason.text);
        return true;
    default:
        return false;
    }
}

static void readable(void *arg)
{
    struct gr_link *l = arg;
    for (int i = 0; i < 64 && l->process.sock >= 0; i++) {
        gr_auto_close int fd = -1;
        int r = link_msg_recv(l->process.sock, &l->in, &fd);
        if (r == -EAGAIN)
            return;
        if (r <= 0 || !message(l, &fd)) {
            gr_helper_lose(&l->process, r == 0 ? NULL : "it broke the protocol");
            return;
        }
    }
}

static int begin(void *arg)
{
    struct gr_link *l = arg;
    return l->listener < 0 ? 0 : say(l, LINK_LISTEN, l->listener);
}

static void ping(void *arg)
{
    (void)say(arg, LINK_PING, -1);
}

static void lost(void *arg)
{
    struct gr_link *l = arg;
    for (struct dialling *d = l->dialling; d; d = d->next)
        answer(d, -1, "the link process ended");
}

static void ended(void *arg)
{
    struct gr_link *l = arg;
    gr_fqueue_wake_all(&l->changed);
}

static void note(void *arg, int level, const char *text)
{
    struct gr_link *l = arg;
    l->o.note(l->o.arg, level, text);
}

int gr_link_new(const struct gr_link_opts *opts, struct gr_link **ret, struct gr_err *err)
{
    struct gr_link *l = gr_zalloc(sizeof(*l));
    if (!l)
        return gr_fail(err, -ENOMEM, "link: out of memory");
    l->o = *opts;
    l->listener = -1;
    const struct gr_helper_opts o = {.loop = opts->loop, .what = "link process", .name = "granary-link", .flag = LINK_FLAG, .exe = opts->exe, .arg = l,
                                     .begin = begin, .readable = readable, .ping = ping, .lost = lost, .ended = ended, .note = note};
    int r = gr_helper_start(&l->process, &o, err);
    if (r < 0) {
        free(l);
        return r;
    }
    *ret = l;
    return 0;
}

void gr_link_free(struct gr_link *l)
{
    if (!l)
        return;
    l->ending = true;
    gr_helper_stop(&l->process);
    while (l->proving || l->dialling || l->process.pid > 0)
        gr_fqueue_wait(&l->changed);
    gr_closep(&l->listener);
    free(l);
}

/* ---- addresses ---- */
static int parse(const char *text, struct addrinfo **ret, struct gr_err *err)
{
    const char *colon = strrchr(text, ':');
    struct addrinfo hints = {.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV, .ai_socktype = SOCK_STREAM};
    size_t n = colon ? (size_t)(colon - text) : 0;
    bool v6 = n >= 2 && text[0] == '[' && text[n - 1] == ']';
    gr_auto_free char *host = gr_asprintf("%.*s", (int)(v6 ? n - 2 : n), v6 ? text + 1 : text);
    if (!host)
        return gr_fail(err, -ENOMEM, "out of memory");
    if (!n || (!v6 && strchr(host, ':')) || getaddrinfo(host, colon + 1, &hints, ret) != 0)
        return gr_fail(err, -GR_EUSAGE, "\"%.100s\" is not ADDRESS:PORT with a numeric address (IPv6 in brackets)", text);
    return 0;
}

static bool wildcard(const struct sockaddr *a)
{
    if (a->sa_family == AF_INET6)
        return IN6_IS_ADDR_UNSPECIFIED(&((const struct sockaddr_in6 *)(const void *)a)->sin6_addr);
    return ((const struct sockaddr_in *)(const void *)a)->sin_addr.s_addr == INADDR_ANY;
}

static int bind_to(const struct addrinfo *a, uint16_t *ret_port, int *ret_fd, struct gr_err *err)
{
    gr_auto_close int fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    struct sockaddr_storage at = {0};
    socklen_t len = sizeof(at);
    int on = 1;
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) < 0 || bind(fd, a->ai_addr, a->ai_addrlen) < 0 || listen(fd, 64) < 0 ||
        getsockname(fd, (struct sockaddr *)&at, &len) < 0)
        return gr_fail(err, -errno, "%s", gr_code_text(-errno));
    *ret_port = ntohs(at.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&at)->sin6_port : ((struct sockaddr_in *)&at)->sin_port);
    *ret_fd = gr_take_fd(&fd);
    return 0;
}

int gr_link_listen(struct gr_link *l, const char *address, uint16_t *ret_port, struct gr_err *err)
{
    struct addrinfo *a = NULL;
    int r = parse(address, &a, err);
    if (r < 0)
        return r;
    if (wildcard(a->ai_addr))
        r = gr_fail(err, -GR_EUSAGE, "%s is no address by which other hosts reach this one: name one", address);
    else if (l->listener >= 0)
        r = gr_fail(err, -EEXIST, "there is an address for links already");
    else
        r = bind_to(a, ret_port, &l->listener, err);
    freeaddrinfo(a);
    if (r == 0)
        (void)say(l, LINK_LISTEN, l->listener); /* the next process is told when it starts */
    return r < 0 ? gr_prefix(err, r, "cannot listen for links on %s", address) : 0;
}

/* ---- dialling ---- */
static int reach(const char *address, uint64_t timeout_ms, int *ret_fd, struct gr_err *err)
{
    struct addrinfo *a = NULL;
    int r = parse(address, &a, err), e = 0;
    socklen_t len = sizeof(e);
    if (r < 0)
        return r;
    gr_auto_close int fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    r = fd >= 0 && (connect(fd, a->ai_addr, a->ai_addrlen) == 0 || errno == EINPROGRESS) ? 0 : -errno;
    freeaddrinfo(a);
    if (r == 0 && gr_fiber_wait_fd(fd, POLLOUT, (int64_t)timeout_ms) < 0)
        r = -ETIMEDOUT;
    if (r == 0 && (getsockopt(fd, SOL_SOCKET, SO_ERROR, &e, &len) < 0 || e))
        r = e ? -e : -errno;
    if (r < 0)
        return gr_fail(err, r, "%s", gr_code_text(r));
    *ret_fd = gr_take_fd(&fd);
    return 0;
}

/* Have the process speak TLS over @tcp. */
static int secure(struct gr_link *l, int tcp, struct dialling *d, uint64_t timeout_ms, struct gr_err *err)
{
    d->number = ++l->last_number;
    d->fd = -1;
    d->next = l->dialling;
    l->dialling = d;
    l->out.dial = d->number;
    int r = say(l, LINK_DIAL, tcp);
    l->out.dial = 0;
    if (r < 0)
        answer(d, -1, "the link process is not there");
    if (!d->answered && gr_fqueue_wait_ms(&d->done, timeout_ms) < 0 && !d->answered)
        snprintf(d->why, sizeof(d->why), "it does not answer");
    struct dialling **q = &l->dialling;
    while (*q != d)
        q = &(*q)->next;
    *q = d->next;
    gr_fqueue_wake_all(&l->changed);
    return d->fd >= 0 ? 0 : gr_fail(err, d->answered ? -ECONNREFUSED : -ETIMEDOUT, "%s", d->why);
}

static int prove_both(const struct gr_link *l, int fd, const uint8_t *channel, const uint8_t *volume, const uint8_t *theirs, uint64_t timeout_ms,
                      struct gr_err *err)
{
    struct gr_link_proof p;
    if (gr_link_prove(l->o.key, true, volume, channel, theirs, &p) < 0)
        return gr_fail(err, -EIO, "the proof cannot be signed");
    int r = transfer(fd, &p, sizeof(p), true, timeout_ms);
    if (r == 0)
        r = transfer(fd, &p, sizeof(p), false, timeout_ms);
    if (r == -ECONNRESET)
        return gr_fail(err, -GR_EAUTH, "it does not let this host in; its log says why");
    if (r < 0)
        return gr_fail(err, r, "%s", gr_code_text(r));
    if (memcmp(p.key, theirs, GR_LINK_KEY_LEN) != 0 || memcmp(p.volume, volume, 16) != 0 ||
        !gr_link_proves(&p, false, channel, gr_link_key_public(l->o.key)))
        return gr_fail(err, -GR_EAUTH, "somebody else answers there");
    return 0;
}

int gr_link_dial(struct gr_link *l, const char *address, const uint8_t volume[16], const uint8_t theirs[GR_LINK_KEY_LEN], uint64_t timeout_ms,
                 int *ret_fd, struct gr_err *err)
{
    struct dialling d = {0};
    gr_auto_close int tcp = -1;
    int r = l->ending ? gr_fail(err, -ECONNREFUSED, "we end") : reach(address, timeout_ms, &tcp, err);
    if (r == 0)
        r = secure(l, tcp, &d, timeout_ms, err);
    gr_auto_close int fd = r == 0 ? d.fd : -1;
    if (r == 0)
        r = prove_both(l, fd, d.channel, volume, theirs, timeout_ms, err);
    if (r < 0)
        return gr_prefix(err, r, "link to %s", address);
    *ret_fd = gr_take_fd(&fd);
    return 0;
}
