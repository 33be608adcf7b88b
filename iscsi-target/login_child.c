/* The login process: owns the listening sockets and every connection that has not logged in. No secret, no datastore, no
 * file: it is sandboxed (seccomp, no new privileges, nobody's uid when started as root, no core dump, capped memory and
 * descriptors) before it reads the first byte from a stranger. All memory is static; the number of logins under way is
 * limited in total and per address (strangers.h), and each has one deadline for the whole login. */
#include "common/cleanup.h"
#include "common/iov.h"
#include "iscsi-target/login_ipc.h"
#include "common/sandbox.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define DISCOVERY_MS 60000u /* a discovery session may last so long */
#define MEMORY_LIMIT (256ull << 20)
#define STRANGERS_NICE 15 /* who is logged in goes first */

struct login_conn {
    int fd; /* -1: free */
    uint32_t gen, portal;
    uint64_t deadline_ms;
    char address[64], local[64];
    bool loopback;
    bool in_full;     /* discovery session in full feature phase */
    bool close_after; /* when what is being sent is out */
    /* receiving: first the header, then the padded data segment */
    uint32_t got, want;
    uint8_t bhs[TGT_BHS_LEN];
    uint8_t data[TGT_LOGIN_DSL + 4];
    /* sending */
    uint32_t tx_len, tx_off;
    struct tgt_login login; /* the answer being sent is its rsp and out_buf: nothing is read meanwhile */
};
/* The parent holds a slot and a question for each: login_parent.c. */
_Static_assert(sizeof(struct login_conn) + TGT_LOGIN_PARENT_BYTES <= TGT_LOGIN_BYTES, "a connection that is not logged in");
struct login_process {
    int epoll, parent;
    struct {
        int fd; /* -1: free */
        uint32_t portal;
    } listeners[TGT_PORTALS];
    uint32_t timeout_ms, next_gen;
    uint32_t deaf; /* the turn to answer when no login is under way any more, 0: none */
    struct gr_strangers strangers;
    struct tgt_msg msg;
    struct login_conn conns[TGT_SLOTS_MAX];
};

enum { TAG_PARENT = 1u << 20, TAG_LISTENER = 1u << 21 };

static uint64_t now_ms(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

static uint32_t slot_of(const struct login_process *p, const struct login_conn *c)
{
    return (uint32_t)(c - p->conns);
}

static void tell(struct login_process *p, const struct login_conn *c, enum tgt_msg_type type, int fd)
{
    p->msg.slot = c ? slot_of(p, c) : 0;
    p->msg.gen = c ? c->gen : 0;
    if (tgt_msg_send(p->parent, &p->msg, type, fd, 0) < 0)
        _exit(0); /* the parent is gone */
}

static void drop(struct login_process *p, struct login_conn *c)
{
    close(c->fd); /* leaves epoll with it */
    c->fd = -1;
    gr_strangers_remove(&p->strangers, slot_of(p, c));
    tell(p, c, TGT_MSG_GONE, -1);
}

static void watch(struct login_process *p, struct login_conn *c, uint32_t events)
{
    struct epoll_event ev = {.events = events, .data.u32 = slot_of(p, c)};
    epoll_ctl(p->epoll, EPOLL_CTL_MOD, c->fd, &ev);
}

static void act(struct login_process *p, struct login_conn *c, enum tgt_login_act a);

/* Push out what waits; false: the connection is gone. */
static bool push(struct login_process *p, struct login_conn *c)
{
    while (c->tx_off < c->tx_len) {
        static uint8_t none[4];
        uint32_t text = (uint32_t)c->login.out.len;
        struct iovec whole[3] = {{c->login.rsp, TGT_BHS_LEN}, {c->login.out_buf, text}, {none, tgt_pad4(text)}}, left[3];
        struct msghdr msg = {.msg_iov = left, .msg_iovlen = (size_t)gr_iov_rest(whole, 3, c->tx_off, left, 3)};
        ssize_t n = sendmsg(c->fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN) {
            watch(p, c, EPOLLOUT);
            return true;
        }
        if (n <= 0) {
            drop(p, c);
            return false;
        }
        c->tx_off += (uint32_t)n;
    }
    if (c->close_after) {
        shutdown(c->fd, SHUT_WR);
        drop(p, c);
        return false;
    }
    watch(p, c, EPOLLIN);
    return true;
}

static void reply(struct login_process *p, struct login_conn *c, bool close_after)
{
    uint32_t len = (uint32_t)c->login.out.len;
    if (len != tgt_bhs_dsl(c->login.rsp)) {
        drop(p, c);
        return;
    }
    c->tx_len = TGT_BHS_LEN + len + tgt_pad4(len);
    c->tx_off = 0;
    c->close_after = close_after;
    if (!c->in_full && c->login.discovery && tgt_bhs_opcode(c->login.rsp) == TGT_OP_LOGIN_RSP && (c->login.rsp[1] & 0x83) == 0x83) {
        c->in_full = true;
        c->deadline_ms = now_ms() + DISCOVERY_MS;
    }
    push(p, c);
}

static void hand_over(struct login_process *p, struct login_conn *c)
{
    const struct tgt_login *l = &c->login;
    struct tgt_msg *m = &p->msg;
    if (l->out.len > sizeof m->u.hand_over.text) {
        drop(p, c);
        return;
    }
    memset(&m->u.hand_over, 0, sizeof m->u.hand_over);
    m->u.hand_over.params = l->nego.params;
    memcpy(m->u.hand_over.isid, l->isid, TGT_ISID_LEN);
    m->u.hand_over.cid = l->cid;
    m->u.hand_over.itt = l->itt;
    m->u.hand_over.cmdsn = l->cmdsn;
    m->u.hand_over.statsn = l->statsn - 1; /* of the answer that the parent sends */
    m->u.hand_over.flags = l->rsp[1];
    memcpy(m->u.hand_over.address, c->address, sizeof c->address);
    m->u.hand_over.text_len = (uint32_t)l->out.len;
    memcpy(m->u.hand_over.text, l->out_buf, l->out.len);
    /* the parent's copy keeps the socket alive: closing ours would not take it out of the epoll set */
    epoll_ctl(p->epoll, EPOLL_CTL_DEL, c->fd, NULL);
    tell(p, c, TGT_MSG_HAND_OVER, c->fd);
    close(c->fd);
    c->fd = -1;
    gr_strangers_remove(&p->strangers, slot_of(p, c));
}

static void ask(struct login_process *p, struct login_conn *c)
{
    struct tgt_msg *m = &p->msg;
    memset(&m->u.ask, 0, sizeof m->u.ask);
    memcpy(m->u.ask.initiator, c->login.initiator, sizeof m->u.ask.initiator);
    memcpy(m->u.ask.target, c->login.target, sizeof m->u.ask.target);
    m->u.ask.discovery = c->login.discovery;
    memcpy(m->u.ask.isid, c->login.isid, TGT_ISID_LEN);
    m->u.ask.tsih = c->login.tsih;
    m->u.ask.cid = c->login.cid;
    m->u.ask.portal = c->portal;
    m->u.ask.loopback = c->loopback;
    memcpy(m->u.ask.address, c->address, sizeof c->address);
    memcpy(m->u.ask.local, c->local, sizeof c->local);
    tell(p, c, TGT_MSG_ASK, -1);
}

static void verify(struct login_process *p, struct login_conn *c)
{
    struct tgt_msg *m = &p->msg;
    const struct tgt_login *l = &c->login;
    memset(&m->u.chap_verify, 0, sizeof m->u.chap_verify);
    memcpy(m->u.chap_verify.name, l->chap_name, sizeof m->u.chap_verify.name);
    memcpy(m->u.chap_verify.response, l->chap_response, sizeof m->u.chap_verify.response);
    m->u.chap_verify.response_len = l->chap_response_len;
    m->u.chap_verify.mutual = l->mutual;
    if (l->mutual) {
        m->u.chap_verify.id = l->mutual_id;
        m->u.chap_verify.challenge_len = l->mutual_challenge_len;
        memcpy(m->u.chap_verify.challenge, l->mutual_challenge, l->mutual_challenge_len);
    }
    tell(p, c, TGT_MSG_CHAP_VERIFY, -1);
}

static void list(struct login_process *p, struct login_conn *c)
{
    memcpy(p->msg.u.list.target, c->login.list_target, sizeof p->msg.u.list.target);
    p->msg.u.list.off = c->login.list_off;
    p->msg.u.list.room = tgt_login_list_room(&c->login);
    tell(p, c, TGT_MSG_LIST, -1);
}

static void act(struct login_process *p, struct login_conn *c, enum tgt_login_act a)
{
    if (a == TGT_ACT_ASK || a == TGT_ACT_CHAP_START || a == TGT_ACT_CHAP_VERIFY || a == TGT_ACT_LIST)
        watch(p, c, 0); /* nothing is read while the parent thinks */
    switch (a) {
    case TGT_ACT_REPLY:
        reply(p, c, false);
        return;
    case TGT_ACT_FAIL:
        reply(p, c, true);
        return;
    case TGT_ACT_CLOSE:
        drop(p, c);
        return;
    case TGT_ACT_ASK:
        ask(p, c);
        return;
    case TGT_ACT_CHAP_START:
        p->msg.u.chap_start.algs = c->login.chap_algs;
        tell(p, c, TGT_MSG_CHAP_START, -1);
        return;
    case TGT_ACT_CHAP_VERIFY:
        verify(p, c);
        return;
    case TGT_ACT_HAND_OVER:
        hand_over(p, c);
        return;
    case TGT_ACT_LIST:
        list(p, c);
        return;
    }
}

/* One piece of a request. Exactly one PDU is read at a time, so no byte behind a login is ever held here. */
static void receive(struct login_process *p, struct login_conn *c)
{
    uint8_t *to = c->want <= TGT_BHS_LEN && c->got < TGT_BHS_LEN ? c->bhs + c->got : c->data + (c->got - TGT_BHS_LEN);
    ssize_t n = recv(c->fd, to, c->want - c->got, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0) {
        drop(p, c);
        return;
    }
    c->got += (uint32_t)n;
    if (c->got < c->want)
        return;
    uint32_t dsl = tgt_bhs_dsl(c->bhs);
    if (c->want == TGT_BHS_LEN && dsl) {
        if (dsl > TGT_LOGIN_DSL || tgt_bhs_ahs_len(c->bhs)) {
            drop(p, c);
            return;
        }
        c->want += dsl + tgt_pad4(dsl);
        return;
    }
    c->got = 0;
    c->want = TGT_BHS_LEN;
    act(p, c, tgt_login_pdu(&c->login, c->bhs, c->data, dsl));
}

static void address_text(const struct sockaddr_storage *ss, char ret[64])
{
    char text[INET6_ADDRSTRLEN] = "?";
    memset(ret, 0, 64);
    if (ss->ss_family == AF_INET) {
        const struct sockaddr_in *in = (const void *)ss;
        inet_ntop(AF_INET, &in->sin_addr, text, sizeof text);
        snprintf(ret, 64, "%s:%u", text, ntohs(in->sin_port));
    } else if (ss->ss_family == AF_INET6) {
        const struct sockaddr_in6 *in = (const void *)ss;
        inet_ntop(AF_INET6, &in->sin6_addr, text, sizeof text);
        snprintf(ret, 64, "[%s]:%u", text, ntohs(in->sin6_port));
    }
}

static void describe(struct login_conn *c, const struct sockaddr_storage *peer, const struct sockaddr_storage *local)
{
    c->loopback = false;
    address_text(peer, c->address);
    address_text(local, c->local);
    if (local->ss_family == AF_INET)
        c->loopback = ntohl(((const struct sockaddr_in *)(const void *)local)->sin_addr.s_addr) >> 24 == 127;
    else if (local->ss_family == AF_INET6)
        c->loopback = IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)(const void *)local)->sin6_addr);
}

static void accept_one(struct login_process *p, uint32_t listener)
{
    struct sockaddr_storage peer = {0}, local = {0};
    socklen_t len = sizeof peer, local_len = sizeof local;
    int one = 1;
    int fd = accept4(p->listeners[listener].fd, (struct sockaddr *)&peer, &len, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0)
        return;
    getsockname(fd, (struct sockaddr *)&local, &local_len);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct in6_addr from;
    gr_peer_of(&peer, &from);
    int leaver = gr_strangers_room(&p->strangers, &from);
    if (leaver >= 0)
        drop(p, &p->conns[leaver]);
    struct login_conn *c = NULL;
    for (uint32_t i = 0; i < TGT_SLOTS_MAX && !c; i++)
        if (p->conns[i].fd < 0)
            c = &p->conns[i];
    struct epoll_event ev = {.events = EPOLLIN, .data.u32 = c ? slot_of(p, c) : 0};
    if (!c || epoll_ctl(p->epoll, EPOLL_CTL_ADD, fd, &ev) < 0) {
        close(fd);
        return;
    }
    c->fd = fd;
    c->gen = ++p->next_gen;
    c->portal = p->listeners[listener].portal;
    describe(c, &peer, &local);
    c->deadline_ms = now_ms() + p->timeout_ms;
    c->in_full = c->close_after = false;
    c->got = 0;
    c->want = TGT_BHS_LEN;
    c->tx_len = c->tx_off = 0;
    tgt_login_init(&c->login);
    gr_strangers_add(&p->strangers, slot_of(p, c), &from);
}

static void add_listener(struct login_process *p, uint32_t portal, int fd)
{
    uint32_t i = 0;
    while (i < TGT_PORTALS && p->listeners[i].fd >= 0)
        i++;
    struct epoll_event ev = {.events = EPOLLIN, .data.u32 = TAG_LISTENER | i};
    if (i == TGT_PORTALS || epoll_ctl(p->epoll, EPOLL_CTL_ADD, fd, &ev) < 0) {
        close(fd);
        return;
    }
    p->listeners[i].fd = fd;
    p->listeners[i].portal = portal;
}

static void close_listener(struct login_process *p, uint32_t i)
{
    if (p->listeners[i].fd < 0)
        return;
    epoll_ctl(p->epoll, EPOLL_CTL_DEL, p->listeners[i].fd, NULL); /* the parent's copy may keep it in the set */
    close(p->listeners[i].fd);
    p->listeners[i].fd = -1;
}

static void remove_listener(struct login_process *p, uint32_t portal)
{
    for (uint32_t i = 0; i < TGT_PORTALS; i++)
        if (p->listeners[i].portal == portal)
            close_listener(p, i);
    for (uint32_t i = 0; i < TGT_SLOTS_MAX; i++)
        if (p->conns[i].fd >= 0 && p->conns[i].portal == portal)
            drop(p, &p->conns[i]);
}

/* Who comes now waits in the socket for whoever listens next. */
static void go_deaf(struct login_process *p, uint32_t turn)
{
    for (uint32_t i = 0; i < TGT_PORTALS; i++)
        close_listener(p, i);
    p->deaf = turn;
}

static void tell_quiet(struct login_process *p)
{
    p->msg.u.deaf.turn = p->deaf;
    p->deaf = 0;
    tell(p, NULL, TGT_MSG_QUIET, -1);
}

static void answered(struct login_process *p, struct login_conn *c, const struct tgt_msg *m)
{
    struct tgt_login *l = &c->login;
    switch (m->type) {
    case TGT_MSG_ASKED:
        act(p, c, tgt_login_asked(l, m->u.asked.status, m->u.asked.need_chap, m->u.asked.group, m->u.asked.alias, m->u.asked.address));
        return;
    case TGT_MSG_CHALLENGE:
        act(p, c, tgt_login_challenge(l, m->u.challenge.alg, (uint8_t)m->u.challenge.id, m->u.challenge.bytes, m->u.challenge.len));
        return;
    case TGT_MSG_VERIFIED:
        act(p, c, tgt_login_verified(l, m->u.verified.status, m->u.verified.name, m->u.verified.response, m->u.verified.len));
        return;
    case TGT_MSG_LISTED:
        act(p, c, tgt_login_listed(l, m->u.listed.text, m->u.listed.len, m->u.listed.more));
        return;
    default:
        return;
    }
}

static void from_parent(struct login_process *p)
{
    static struct tgt_msg m; /* too large for the stack of a process that counts its memory */
    int fd = -1;
    int r = tgt_msg_recv(p->parent, &m, &fd);
    if (r == -EAGAIN)
        return;
    if (r <= 0)
        _exit(0);
    if (m.type == TGT_MSG_LISTEN && fd >= 0) {
        p->deaf = 0;
        add_listener(p, m.u.listen.portal, fd);
    } else if (m.type == TGT_MSG_CONFIG) {
        p->strangers.max = GR_MIN(m.u.config.max_half_open, TGT_SLOTS_MAX);
        p->strangers.per_address = m.u.config.per_address;
        p->timeout_ms = m.u.config.timeout_ms;
    } else if (m.type == TGT_MSG_UNLISTEN) {
        remove_listener(p, m.u.listen.portal);
    } else if (m.type == TGT_MSG_DEAF) {
        go_deaf(p, m.u.deaf.turn);
    } else if (m.type == TGT_MSG_PING) {
        tell(p, NULL, TGT_MSG_PONG, -1);
    } else if (m.slot < TGT_SLOTS_MAX && p->conns[m.slot].fd >= 0 && p->conns[m.slot].gen == m.gen) {
        answered(p, &p->conns[m.slot], &m);
    }
}

static void expire(struct login_process *p)
{
    uint64_t now = now_ms();
    for (uint32_t i = 0; p->strangers.n && i < TGT_SLOTS_MAX; i++)
        if (p->conns[i].fd >= 0 && now >= p->conns[i].deadline_ms)
            drop(p, &p->conns[i]);
}

/* The system calls that the loop above makes. */
static int confine(void)
{
    static const struct gr_call calls[] = {
        {SCMP_SYS(epoll_wait)}, {SCMP_SYS(epoll_pwait)}, {SCMP_SYS(epoll_ctl)}, {SCMP_SYS(accept4)}, {SCMP_SYS(recvfrom)},
        {SCMP_SYS(recvmsg)}, {SCMP_SYS(sendto)}, {SCMP_SYS(sendmsg)}, {SCMP_SYS(close)}, {SCMP_SYS(shutdown)}, {SCMP_SYS(getsockname)},
        {SCMP_SYS(clock_gettime)}, {SCMP_SYS(exit_group)}, {SCMP_SYS(exit)}, {SCMP_SYS(rt_sigreturn)}, {SCMP_SYS(restart_syscall)},
        {SCMP_SYS(setsockopt), {{1, SCMP_CMP_EQ, IPPROTO_TCP}}}};
    return gr_confine(calls, GR_ARRAY_LEN(calls));
}

static struct login_process *process_new(void)
{
    static struct login_process proc; /* the process's one object; static, so that its memory is bounded from the start */
    struct login_process *p = &proc;
    p->parent = GR_IPC_FD;
    p->epoll = epoll_create1(EPOLL_CLOEXEC);
    for (uint32_t i = 0; i < TGT_PORTALS; i++)
        p->listeners[i].fd = -1;
    for (uint32_t i = 0; i < TGT_SLOTS_MAX; i++)
        p->conns[i].fd = -1;
    p->strangers.max = TGT_SLOTS_MAX;
    p->strangers.per_address = 64;
    p->timeout_ms = 15000;
    struct epoll_event ev = {.events = EPOLLIN, .data.u32 = TAG_PARENT};
    if (p->epoll < 0 || epoll_ctl(p->epoll, EPOLL_CTL_ADD, p->parent, &ev) < 0)
        return NULL;
    return p;
}

int tgt_login_main(int argc, char **argv)
{
    if (argc != 2 || strcmp(argv[1], TGT_LOGIN_FLAG) != 0)
        return -1;
    const struct gr_sandbox rights = {"granary-login", STRANGERS_NICE, TGT_SLOTS_MAX + 64, MEMORY_LIMIT};
    struct login_process *p = gr_sandbox(&rights) < 0 ? NULL : process_new();
    if (!p || confine() != 0)
        return 1;
    uint64_t next_check = 0;
    for (;;) {
        struct epoll_event ev[64];
        int n = epoll_wait(p->epoll, ev, (int)GR_ARRAY_LEN(ev), p->strangers.n ? 250 : -1);
        for (int i = 0; i < n; i++) {
            uint32_t tag = ev[i].data.u32;
            if (tag == TAG_PARENT) {
                from_parent(p);
            } else if (tag & TAG_LISTENER) {
                accept_one(p, tag & ~(uint32_t)TAG_LISTENER);
            } else if (p->conns[tag].fd >= 0) {
                struct login_conn *c = &p->conns[tag];
                if (ev[i].events & EPOLLOUT)
                    push(p, c);
                else if (ev[i].events & EPOLLIN)
                    receive(p, c);
                else
                    drop(p, c); /* error or hang-up */
            }
        }
        if (p->strangers.n && now_ms() >= next_check) {
            expire(p);
            next_check = now_ms() + 250;
        }
        if (p->deaf && !p->strangers.n)
            tell_quiet(p);
    }
}
