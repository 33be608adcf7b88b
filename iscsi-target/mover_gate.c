/* storaged's side of the gate: starts it, signs for it, takes over those who have proved themselves there. Everything it says is checked, it
 * talks to strangers: also who proved himself, as far as that can be seen from here (mover_proof.h, docs/mover.md). */
#include "common/buf.h"
#include "common/cleanup.h"
#include "common/helper.h"
#include "iscsi-target/mover_int.h"
#include <string.h>

/* A gate in wrong hands could ask for signatures without end: after a burst they come at this rate, which is more than it can use, and each
 * stranger's in his turn. */
#define SIGN_BURST 64u
#define SIGN_EVERY_NS UINT64_C(200000)

struct stranger {
    bool there, wants_signature, was_signed, was_named, was_keyed;
    uint32_t gen;
    struct sockaddr_storage addr;
    uint8_t digest[GATE_DIGEST_LEN];
    struct gate_answer signature; /* of @digest; length 0: not made yet */
    char user[GATE_NAME_MAX + 1];
};
struct mover_gate {
    struct mover_server *s;
    struct gr_helper process;
    bool deaf;
    struct gate_msg in, out;
    unsigned n_strangers;
    uint64_t signed_until_ns; /* up to which moment signatures are used up */
    uint32_t turn;            /* who is looked at first */
    struct gr_timer sign_timer;
    struct gr_buf proof; /* pieces that have come */
    uint32_t proof_slot; /* of whom */
    struct stranger strangers[GATE_SLOTS];
};

static int say(struct mover_gate *g, enum gate_msg_type type, int fd)
{
    if (g->process.sock < 0)
        return -EAGAIN;
    return gate_msg_send(g->process.sock, &g->out, type, fd, MSG_DONTWAIT); /* a full queue: that handshake times out */
}

static void forget(struct mover_gate *g, struct stranger *c)
{
    g->n_strangers -= c->there;
    if (g->proof_slot == (uint32_t)(c - g->strangers))
        gr_buf_done(&g->proof);
    memset(c, 0, sizeof(*c));
}

/* ---- the process ---- */

static int begin(void *arg)
{
    struct mover_gate *g = arg;
    const struct mover_opts *o = &g->s->opts;
    memset(&g->out, 0, sizeof(g->out));
    gr_auto_close int file = mover_creds_file(g->s->creds, &g->out);
    if (file < 0)
        return file;
    g->out.u.start.max_connections = o->max_connections;
    g->out.u.start.max_strangers = o->max_negotiating;
    g->out.u.start.per_address = MOVER_PER_ADDRESS;
    g->out.u.start.negotiate_ms = (uint32_t)GR_MIN(o->negotiate_timeout_ms, (uint64_t)UINT32_MAX);
    g->out.u.start.stall_ms = (uint32_t)GR_MIN(o->stall_timeout_ms, (uint64_t)UINT32_MAX);
    int r = say(g, GATE_START, file);
    for (const struct mover_listen *l = g->s->listens; l && r == 0; l = l->next)
        r = say(g, GATE_LISTEN, l->acceptor.fd);
    return r;
}

static void ping(void *arg)
{
    say(arg, GATE_PING, -1);
}

static void lost(void *arg)
{
    struct mover_gate *g = arg;
    for (unsigned i = 0; i < GATE_SLOTS; i++)
        forget(g, &g->strangers[i]);
}

static void ended(void *arg)
{
    struct mover_gate *g = arg;
    gr_fqueue_wake_all(&g->s->ended);
}

static void note(void *arg, int level, const char *text)
{
    struct mover_gate *g = arg;
    mover_log(g->s, MOVER_LOG_WARN, "data mover: %s", text);
}

/* ---- what it asks for ---- */

static void answer(struct mover_gate *g, uint32_t slot)
{
    g->out.slot = slot;
    g->out.gen = g->strangers[slot].gen;
    say(g, GATE_ANSWER, -1);
    explicit_bzero(&g->out.u.answer, sizeof(g->out.u.answer));
}

static void sign_some(void *arg)
{
    struct mover_gate *g = arg;
    uint64_t now = gr_loop_now_ns(g->s->loop);
    g->signed_until_ns = GR_MAX(g->signed_until_ns, now);
    for (uint32_t n = 0; n < GATE_SLOTS; n++) {
        struct stranger *c = &g->strangers[g->turn % GATE_SLOTS];
        if (c->wants_signature && g->signed_until_ns - now > SIGN_BURST * SIGN_EVERY_NS) {
            (void)gr_timer_arm(g->s->loop, &g->sign_timer, SIGN_EVERY_NS);
            return;
        }
        if (c->wants_signature) {
            c->wants_signature = false;
            g->signed_until_ns += SIGN_EVERY_NS;
            g->s->stats.signatures++;
            mover_creds_sign(g->s->creds, c->digest, &c->signature);
            g->out.u.answer = c->signature;
            answer(g, g->turn % GATE_SLOTS);
        }
        g->turn++;
    }
}

static bool on_sign(struct mover_gate *g, struct stranger *c)
{
    if (c->was_signed) /* a handshake needs one */
        return false;
    c->was_signed = c->wants_signature = true;
    memcpy(c->digest, g->in.u.sign.digest, sizeof(c->digest));
    sign_some(g);
    return true;
}

static bool on_key(struct mover_gate *g, struct stranger *c)
{
    const char *user = g->in.u.key.user;
    if (!memchr(user, 0, sizeof(g->in.u.key.user)) || (c->was_named && strcmp(c->user, user) != 0))
        return false;
    memcpy(c->user, user, sizeof(c->user));
    mover_creds_key(g->s->creds, user, &g->out.u.answer);
    c->was_named = true;
    c->was_keyed = g->out.u.answer.len > 0;
    answer(g, g->in.slot);
    return true;
}

/* ---- what it tells ---- */

static bool on_opened(struct mover_gate *g, struct stranger *c)
{
    if (c->there)
        return false;
    memset(c, 0, sizeof(*c));
    c->there = true;
    c->gen = g->in.gen;
    c->addr = g->in.u.opened.addr;
    g->n_strangers++;
    g->s->stats.accepted++;
    return true;
}

static bool is_local_stream(int fd)
{
    int domain = 0, type = 0;
    socklen_t a = sizeof(domain), b = sizeof(type);
    return getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &a) == 0 && getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &b) == 0 &&
           domain == AF_UNIX && type == SOCK_STREAM;
}

static bool readable_text(const char *s, size_t size)
{
    const char *end = memchr(s, 0, size);
    return end && (end == s || gr_utf8_ok(s, (size_t)(end - s)));
}

/* Pieces come without anything in between, and then PROVEN. */
static bool on_proof(struct mover_gate *g, struct stranger *c)
{
    uint32_t len = g->in.u.proof.len;
    if (!c->signature.len || !len || len > GATE_PROOF_PIECE || g->proof.len + len > GATE_PROOF_MAX || (g->proof.len && g->proof_slot != g->in.slot))
        return false;
    g->proof_slot = g->in.slot;
    return gr_buf_add(&g->proof, g->in.u.proof.bytes, len) == 0;
}

/* Who is it, by what the handshake itself says? As mover_cas_vouch(). */
static int vouch(struct mover_gate *g, const struct stranger *c, char ret_name[GATE_NAME_MAX + 1], struct gr_err *err)
{
    struct mover_proof proof;
    gr_auto_buf struct gr_buf said = g->proof;
    g->proof = (struct gr_buf){0};
    if (!said.len || g->proof_slot != (uint32_t)(c - g->strangers))
        return gr_fail(err, -GR_EPROTO, "the gate does not tell of the handshake");
    int r = mover_proof_read((const uint8_t *)said.data, said.len, c->digest, &c->signature, &proof, err);
    return r < 0 ? r : mover_cas_vouch(mover_creds_cas(g->s->creds), &proof, ret_name, err);
}

/* By a key that was given to it for him: nothing more can be known here. False: it lies. */
static bool by_key(struct mover_gate *g, const struct stranger *c, char ret_name[GATE_NAME_MAX + 1])
{
    snprintf(ret_name, GATE_NAME_MAX + 1, "%s", c->user);
    return g->in.u.proven.proof == GATE_BY_KEY && c->was_keyed && !strcmp(g->in.u.proven.name, c->user);
}

static bool on_proven(struct mover_gate *g, struct stranger *who, int *fd)
{
    struct mover_server *s = g->s;
    struct gr_err err = {0};
    bool by_certificate = g->in.u.proven.proof == GATE_BY_CERTIFICATE;
    char name[GATE_NAME_MAX + 1] = "";
    int r = 0;
    if (*fd < 0 || !is_local_stream(*fd) || !readable_text(g->in.u.proven.name, sizeof(g->in.u.proven.name)) || g->in.u.proven.no_zeroes > 1 ||
        !(by_certificate || by_key(g, who, name)))
        return false;
    if (by_certificate)
        r = vouch(g, who, name, &err);
    struct sockaddr_storage addr = who->addr;
    if (r < 0)
        mover_refuse(s, &addr, sizeof(addr), gr_err_text(&err, r));
    if (r == -GR_EPROTO)
        return false;
    forget(g, who);
    if (r < 0)
        return true; /* that client alone; his end of the socket closes */
    struct mover_conn *c;
    if (g->process.stopping || mover_conn_new(s, gr_take_fd(fd), &addr, sizeof(addr), &c) < 0)
        return true;
    c->tls = true;
    c->no_zeroes = g->in.u.proven.no_zeroes != 0;
    c->deadline_ns -= GR_MIN((uint64_t)g->in.u.proven.spent_ms, s->opts.negotiate_timeout_ms) * 1000000;
    snprintf(c->how, sizeof(c->how), "TLS, %s %s", by_certificate ? "certificate of" : "key of", name[0] ? name : "somebody");
    return true;
}

static bool on_ended(struct mover_gate *g, struct stranger *c)
{
    const char *reason = g->in.u.ended.reason;
    if (!readable_text(reason, sizeof(g->in.u.ended.reason)))
        return false;
    if (reason[0])
        mover_refuse(g->s, &c->addr, sizeof(c->addr), reason);
    forget(g, c);
    return true;
}

static bool on_turned_away(struct mover_gate *g)
{
    if (!readable_text(g->in.u.turned_away.reason, sizeof(g->in.u.turned_away.reason)))
        return false;
    mover_refuse(g->s, &g->in.u.turned_away.addr, sizeof(g->in.u.turned_away.addr), g->in.u.turned_away.reason);
    return true;
}

/* False: it broke the protocol. */
static bool message(struct mover_gate *g, int *fd)
{
    if (g->in.type == GATE_PONG) {
        gr_helper_pong(&g->process);
        return true;
    }
    if (g->in.type == GATE_IS_DEAF) {
        g->deaf = true;
        return true;
    }
    if (g->in.type == GATE_TURNED_AWAY)
        return on_turned_away(g);
    struct stranger *c = g->in.slot < GATE_SLOTS ? &g->strangers[g->in.slot] : NULL;
    if (c && g->in.type == GATE_OPENED)
        return on_opened(g, c);
    if (!c || !c->there || c->gen != g->in.gen)
        return false;
    switch (g->in.type) {
    case GATE_SIGN:
        return on_sign(g, c);
    case GATE_KEY:
        return on_key(g, c);
    case GATE_PROOF:
        return on_proof(g, c);
    case GATE_PROVEN:
        return on_proven(g, c, fd);
    case GATE_ENDED:
        return on_ended(g, c);
    default:
        return false;
    }
}

static void readable(void *arg)
{
    struct mover_gate *g = arg;
    for (int i = 0; i < 64 && g->process.sock >= 0; i++) {
        gr_auto_close int fd = -1;
        int r = gate_msg_recv(g->process.sock, &g->in, &fd);
        if (r == -EAGAIN)
            return;
        if (r <= 0 || !message(g, &fd)) {
            gr_helper_lose(&g->process, r == 0 ? NULL : "it broke the protocol"); /* when it is gone, its end is told */
            return;
        }
    }
}

/* ---- the mover's ---- */

int mover_gate_start(struct mover_server *s, struct gr_err *err)
{
    struct mover_gate *g = gr_zalloc(sizeof(*g));
    if (!g)
        return gr_fail(err, -ENOMEM, "out of memory");
    g->s = s;
    g->sign_timer = (struct gr_timer){.fn = sign_some, .arg = g};
    const struct gr_helper_opts o = {.loop = s->loop, .what = "gate", .name = "granary-gate", .flag = GATE_FLAG, .exe = s->opts.gate_exe,
                                      .arg = g, .begin = begin, .readable = readable, .ping = ping, .lost = lost, .ended = ended, .note = note};
    int r = gr_helper_start(&g->process, &o, err);
    if (r < 0) {
        free(g);
        return r;
    }
    s->gate = g;
    return 0;
}

void mover_gate_listen(struct mover_server *s, int fd)
{
    (void)say(s->gate, GATE_LISTEN, fd); /* the next gate is told when it starts */
}

int mover_gate_adopt(struct mover_server *s, int fd)
{
    return say(s->gate, GATE_ADOPT, fd);
}

unsigned mover_gate_strangers(const struct mover_server *s)
{
    return s->gate ? s->gate->n_strangers : 0;
}

void mover_gate_rest(struct mover_server *s, uint64_t timeout_ms)
{
    struct mover_gate *g = s->gate;
    uint64_t deadline = gr_loop_now_ns(s->loop) + timeout_ms * 1000000;
    if (!g)
        return;
    g->deaf = false;
    (void)say(g, GATE_DEAF, -1);
    while ((!g->deaf || g->n_strangers) && g->process.sock >= 0 && gr_loop_now_ns(s->loop) < deadline)
        gr_fiber_sleep_ms(1);
}

void mover_gate_resume(struct mover_server *s)
{
    for (const struct mover_listen *l = s->gate ? s->listens : NULL; l; l = l->next)
        (void)say(s->gate, GATE_LISTEN, l->acceptor.fd);
}

int mover_gate_leave(struct mover_server *s)
{
    struct mover_gate *g = s->gate;
    if (!g || g->process.sock < 0)
        return -1;
    (void)say(g, GATE_RETIRE, -1);
    int sock = gr_helper_leave(&g->process);
    gr_timer_cancel(s->loop, &g->sign_timer);
    free(g);
    s->gate = NULL;
    return sock;
}

void mover_gate_close(struct mover_server *s)
{
    if (!s->gate)
        return;
    gr_helper_last(&s->gate->process);
    (void)say(s->gate, GATE_STOP, -1);
}

void mover_gate_free(struct mover_server *s)
{
    struct mover_gate *g = s->gate;
    if (!g)
        return;
    while (g->process.pid > 0 && gr_fqueue_wait_ms(&s->ended, GATE_LEAVE_MS) == 0) {
    }
    gr_helper_stop(&g->process);
    while (g->process.pid > 0) /* reaped by the loop */
        gr_fqueue_wait(&s->ended);
    gr_timer_cancel(s->loop, &g->sign_timer);
    gr_buf_done(&g->proof);
    free(g);
    s->gate = NULL;
}
