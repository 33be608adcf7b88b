/* The mover's gate: who is let in, what ends it, and what storaged believes of it. With a file "lies" in the working directory this program
 * is a gate that lies. */
#include "common/buf.h"
#include "common/cleanup.h"
#include "iscsi-target/gate_ipc.h"
#include "iscsi-target/gate_nego.h"
#include "common/packet.h"
#include "common/sandbox.h"
#include "tests/lib/nbdc.h"
#include "tests/lib/test.h"
#include "tests/lib/tlsc.h"
#include "tests/lib/tlsproof.h"
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define TLS13 "NORMAL:-VERS-ALL:+VERS-TLS1.3"
#define TLS12 "NORMAL:-VERS-ALL:+VERS-TLS1.2"
#define PSK13 TLS13 ":+ECDHE-PSK:+DHE-PSK"
#define PSK12 "NORMAL:-VERS-ALL:+VERS-TLS1.2:-KX-ALL:+ECDHE-PSK"
#define SIZE (16u << 20)

struct world {
    struct gr_loop *loop;
    struct mover_server *server;
    struct mover_opts opts;
    struct gr_mem *mem;
    struct gr_bdev *disk;
    char *pki, *other, *bare, *key;
    char last[512];
    unsigned refusals, lies, restarts, signatures; /* signatures: as many as there may be */
    void (*body)(struct world *w);
};

static int dir_open(void *arg, const char *name, struct mover_export *ret, struct gr_err *err)
{
    struct world *w = arg;
    *ret = (struct mover_export){.bdev = gr_bdev_get(w->disk), .writable = true};
    return 0;
}

static void on_log(void *arg, enum mover_log_level level, const char *text)
{
    struct world *w = arg;
    snprintf(w->last, sizeof(w->last), "%s", text);
    w->refusals += strstr(text, "refused: ") != NULL;
    w->lies += strstr(text, "broke the protocol") != NULL;
    w->restarts += strstr(text, "starting another") != NULL;
}

static int run(void *arg)
{
    struct world *w = arg;
    struct gr_err err = {0};
    w->mem = gr_mem_new(SIZE);
    assert_int_equal(gr_bdev_mem_open(w->loop, w->mem, &w->disk), 0);
    w->opts.dir = (struct mover_dir){.arg = w, .open = dir_open};
    w->opts.log = on_log;
    w->opts.log_arg = w;
    if (mover_server_new(w->loop, &w->opts, &w->server, &err) < 0)
        fail_msg("%s", err.text);
    w->body(w);
    mover_server_stop(w->server);
    assert_int_equal(w->disk->refs, 1);
    gr_bdev_put(w->disk);
    gr_mem_free(w->mem);
    return 0;
}

/* A CA with its certificates, another one, and a key file; made once. */
static void credentials(struct world *w)
{
    w->pki = test_path("pki");
    w->other = test_path("other");
    gr_auto_free char *psk = test_path("keys");
    struct gr_err err = {0};
    if (access(psk, F_OK) < 0) {
        if (mover_pki_ensure(w->pki, NULL, 0, &err) < 0 || mover_pki_ensure(w->other, NULL, 0, &err) < 0 || mover_psk_make(psk, "alice", &err) < 0)
            fail_msg("%s", err.text);
    }
    struct gr_buf b = {0};
    assert_int_equal(gr_secret_read(psk, &b, &err), 0);
    b.data[strcspn(b.data, "\n")] = 0;
    w->key = gr_strdup(strchr(b.data, ':') + 1);
    gr_buf_done(&b);
    w->opts.pki_dir = w->pki;
    w->opts.psk_file = gr_take(psk);
}

static void world_done(struct world *w)
{
    free(w->pki);
    free(w->other);
    free(w->key);
    free((char *)(uintptr_t)w->opts.psk_file);
}

static void in_world(struct world *w)
{
    credentials(w);
    assert_int_equal(gr_loop_new(NULL, &w->loop, NULL), 0);
    assert_int_equal(gr_fiber_run(w->loop, run, w), 0);
    gr_loop_free(w->loop);
    world_done(w);
}

static void with_gate(struct mover_opts opts, void (*body)(struct world *w))
{
    struct world w = {.opts = opts, .body = body};
    in_world(&w);
}

static void with_signatures(unsigned n, void (*body)(struct world *w))
{
    struct world w = {.signatures = n, .body = body};
    in_world(&w);
}

/* ---- who is let in ---- */

static bool comes_in(struct world *w, const char *priority, const char *cert_dir, const char *user, const char *hex)
{
    struct tlsc c;
    tlsc_connect(&c, w->server);
    bool in = tlsc_shake(&c, priority, cert_dir, user, hex) && tlsc_alive(&c);
    tlsc_close(&c);
    return in;
}

static void proofs(struct world *w)
{
    struct mover_stats st;
    char wrong[65];
    snprintf(wrong, sizeof(wrong), "%s", w->key);
    wrong[0] = wrong[0] == '0' ? '1' : '0';
    assert_true(comes_in(w, TLS13, w->pki, NULL, NULL));
    assert_true(comes_in(w, TLS12, w->pki, NULL, NULL));
    mover_server_stats(w->server, &st);
    assert_int_equal(st.signatures, 2);
    assert_int_equal(w->refusals, 0);
    assert_true(comes_in(w, PSK13, NULL, "alice", w->key));
    assert_true(comes_in(w, PSK12, NULL, "alice", w->key));
    mover_server_stats(w->server, &st);
    assert_int_equal(st.signatures, 2);

    static const char *const priorities[] = {TLS13, TLS12};
    for (unsigned i = 0; i < 2; i++) {
        assert_false(comes_in(w, priorities[i], w->other, NULL, NULL));
        assert_false(comes_in(w, priorities[i], NULL, NULL, NULL));
    }
    assert_false(comes_in(w, PSK13, NULL, "alice", wrong));
    assert_false(comes_in(w, PSK12, NULL, "alice", wrong));
    assert_false(comes_in(w, PSK13, NULL, "mallory", w->key));
    assert_false(comes_in(w, "NORMAL:-VERS-ALL:+VERS-TLS1.1", w->pki, NULL, NULL));
    gr_fiber_sleep_ms(20);
    assert_int_equal(w->refusals, 8);
    mover_server_stats(w->server, &st);
    assert_int_equal(st.refused, 8);
    assert_int_equal(st.accepted, 12);
    assert_int_equal(st.connections, 0);
}

/* ---- bytes, both ways, with little room ---- */

static void ask_read(struct tlsc *c, uint64_t cookie, uint64_t off, uint32_t len)
{
    uint8_t rq[28];
    gr_put_be32(rq, NBD_REQUEST_MAGIC);
    gr_put_be16(rq + 4, 0);
    gr_put_be16(rq + 6, NBD_CMD_READ);
    gr_put_be64(rq + 8, cookie);
    gr_put_be64(rq + 16, off);
    gr_put_be32(rq + 24, len);
    assert_true(tlsc_send(c, rq, sizeof(rq)));
}

static void go(struct tlsc *c, struct world *w, const char *priority)
{
    uint8_t data[64], option[16 + sizeof(data)], answer[4096];
    tlsc_connect(c, w->server);
    assert_true(tlsc_shake(c, priority, w->pki, NULL, NULL));
    size_t n = nbdc_name_info(data, "ds/disk", 0), got = 0;
    gr_put_be64(option, NBD_OPTS_MAGIC);
    gr_put_be32(option + 8, NBD_OPT_GO);
    gr_put_be32(option + 12, (uint32_t)n);
    memcpy(option + 16, data, n);
    assert_true(tlsc_send(c, option, 16 + n));
    while (got < 3 * 20 + 12 + 14) { /* two infos and an acknowledgement */
        ssize_t r = tlsc_recv(c, answer + got, sizeof(answer) - got);
        assert_true(r > 0);
        got += (size_t)r;
    }
    assert_int_equal(gr_get_be32(answer + got - 8), NBD_REP_ACK);
}

static void get(struct tlsc *c, void *buf, size_t len)
{
    for (size_t got = 0; got < len;) {
        ssize_t r = tlsc_recv(c, (uint8_t *)buf + got, len - got);
        if (r <= 0)
            fail_msg("the server went away: %s", r ? gnutls_strerror((int)r) : "good-bye");
        got += (size_t)r;
    }
}

/* Many reads are asked for before one answer is taken, so that every buffer on the way is full; then all of it is right. */
static void bytes(struct world *w)
{
    static const char *const priorities[] = {TLS13, TLS12};
    uint8_t *page = NULL;
    for (uint64_t off = 0; off < SIZE; off += 4096) {
        page = gr_mem_page(w->mem, off, true);
        gr_put_be64(page, off);
        gr_put_be64(page + 4088, ~off);
    }
    gr_auto_free uint8_t *buf = malloc(1 << 20);
    for (unsigned p = 0; p < 2; p++) {
        struct tlsc c;
        go(&c, w, priorities[p]);
        for (unsigned i = 0; i < 16; i++)
            ask_read(&c, i, i << 20, 1 << 20);
        gr_fiber_sleep_ms(100);
        bool seen[16] = {0};
        for (unsigned i = 0; i < 16; i++) {
            uint8_t head[16];
            get(&c, head, sizeof(head));
            uint64_t cookie = gr_get_be64(head + 8);
            assert_int_equal(gr_get_be32(head), NBD_SIMPLE_REPLY_MAGIC);
            assert_true(cookie < 16 && !seen[cookie]);
            seen[cookie] = true;
            get(&c, buf, 1 << 20);
            for (uint32_t k = 0; k < 1 << 20; k += 4096)
                assert_true(gr_get_be64(buf + k) == (cookie << 20) + k && gr_get_be64(buf + k + 4088) == ~((cookie << 20) + k));
        }
        /* one that says good-bye with a request under way gets its answer, then ours */
        ask_read(&c, 7, 4096, 4096);
        assert_true(gnutls_bye(c.session, GNUTLS_SHUT_WR) >= 0);
        get(&c, buf, 16 + 4096);
        assert_true(gr_get_be64(buf + 16) == 4096);
        assert_int_equal(tlsc_recv(&c, buf, 1), 0);
        tlsc_close(&c);
    }
}

/* One that asks and never takes anything is cut off; others do not notice. */
static void takes_nothing(struct world *w)
{
    struct tlsc c, d;
    struct mover_stats st;
    go(&c, w, TLS13);
    go(&d, w, TLS13);
    for (unsigned i = 0; i < 16; i++)
        ask_read(&c, i, i << 20, 1 << 20);
    uint64_t start = gr_loop_now_ns(w->loop);
    do {
        uint8_t answer[16 + 4096];
        ask_read(&d, 1, 0, 4096);
        get(&d, answer, sizeof(answer));
        gr_fiber_sleep_ms(10);
        mover_server_stats(w->server, &st);
    } while (st.connections > 1 && gr_loop_now_ns(w->loop) - start < UINT64_C(4000000000));
    assert_int_equal(st.connections, 1);
    tlsc_close(&c);
    tlsc_close(&d);
}

/* ---- strangers ---- */

static void slow(struct world *w)
{
    static const uint8_t hello[] = {0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3};
    struct tlsc c;
    tlsc_connect(&c, w->server);
    uint64_t start = gr_loop_now_ns(w->loop), ms = 0;
    bool open = true;
    for (size_t i = 0; open && ms < 5000; i++) { /* a byte every 20 ms, for ever */
        uint8_t b = i < sizeof(hello) ? hello[i] : 0;
        open = send(c.fd, &b, 1, MSG_NOSIGNAL) == 1;
        gr_fiber_sleep_ms(20);
        ms = (gr_loop_now_ns(w->loop) - start) / 1000000;
    }
    assert_true(ms >= 200 && ms < 2000);
    tlsc_close(&c);
    gr_fiber_sleep_ms(20);
    assert_non_null(strstr(w->last, "in time"));
}

static bool is_open(int fd)
{
    uint8_t b;
    ssize_t n = recv(fd, &b, 1, MSG_PEEK | MSG_DONTWAIT);
    return n > 0 || (n < 0 && errno == EAGAIN);
}

/* Of one address 16 at once: the seventeenth takes the place of the first. */
static void too_many_of_one(struct world *w)
{
    int fd[24];
    struct mover_stats st;
    for (unsigned i = 0; i < 24; i++) {
        fd[i] = nbdc_connect(w->server);
        nbdc_hello(fd[i], 3);
    }
    gr_fiber_sleep_ms(50);
    mover_server_stats(w->server, &st);
    assert_int_equal(st.strangers, 16);
    assert_int_equal(st.connections, 16);
    assert_int_equal(st.refused, 8);
    for (unsigned i = 0; i < 24; i++)
        assert_int_equal(is_open(fd[i]), i >= 8);
    assert_true(comes_in(w, TLS13, w->pki, NULL, NULL)); /* and who has a certificate still comes in */
    for (unsigned i = 0; i < 24; i++)
        close(fd[i]);
}

/* ---- the end of the gate ---- */

static int gate_pid(void) /* 0: none */
{
    gr_auto_free char *path = gr_asprintf("/proc/self/task/%d/children", (int)getpid());
    gr_auto_fclose FILE *f = fopen(path, "re");
    int pid = 0;
    assert_non_null(f);
    return fscanf(f, "%d", &pid) == 1 ? pid : 0;
}

/* The beginning of a message without end: GnuTLS would wait for the end of it. */
static void endless(struct world *w)
{
    struct tlsc c;
    uint8_t record[5 + 4096] = {22, 3, 1, 16, 0, 1, 0x80, 0, 0};
    unsigned sent = 0;
    tlsc_connect(&c, w->server);
    while (sent < (1u << 20) && send(c.fd, record, sizeof(record), MSG_NOSIGNAL) == (ssize_t)sizeof(record)) {
        memset(record + 5, 0, 4);
        sent += 4096;
        gr_fiber_sleep_ms(1);
    }
    assert_true(sent < (256u << 10));
    for (unsigned i = 0; i < 2000 && !w->refusals; i++)
        gr_fiber_sleep_ms(1);
    assert_non_null(strstr(w->last, "it sent more than a TLS handshake has"));
    close(c.fd);
    assert_true(comes_in(w, TLS13, w->pki, NULL, NULL));
}

static void killed(struct world *w)
{
    struct tlsc c;
    struct mover_stats st;
    uint8_t byte;
    go(&c, w, TLS13);
    int before = gate_pid();
    kill(before, SIGKILL);
    assert_true(tlsc_recv(&c, &byte, 1) < 0);
    tlsc_close(&c);
    for (unsigned i = 0; i < 100 && (gate_pid() == before || !gate_pid()); i++)
        gr_fiber_sleep_ms(10);
    assert_int_equal(w->restarts, 1);
    mover_server_stats(w->server, &st);
    assert_int_equal(st.connections, 0);
    assert_true(comes_in(w, TLS12, w->pki, NULL, NULL));
}

/* ---- a gate that lies ---- */

#define LIES 23
#define TWO_SIGNATURES 19 /* the only one that is given so many */
static void say(struct gate_msg *m, enum gate_msg_type type, int fd)
{
    (void)gate_msg_send(GR_IPC_FD, m, type, fd, 0);
}

/* A handshake that was seen once, with another signature of the same by now. */
static void old_proof(struct gate_msg *m, int fd)
{
    gr_auto_buf struct gr_buf seen = {0};
    if (gr_file_read("seen", sizeof(struct tlsproof), &seen, NULL) < 0)
        return;
    const struct tlsproof *p = (const struct tlsproof *)(const void *)seen.data;
    memcpy(m->u.sign.digest, p->digest, sizeof(m->u.sign.digest));
    say(m, GATE_SIGN, -1);
    for (size_t at = 0; at < p->len; at += m->u.proof.len) {
        m->u.proof.len = (uint32_t)GR_MIN(p->len - at, (size_t)GATE_PROOF_PIECE);
        memcpy(m->u.proof.bytes, p->said + at, m->u.proof.len);
        say(m, GATE_PROOF, -1);
    }
    memset(&m->u, 0, sizeof(m->u));
    m->u.proven.proof = GATE_BY_CERTIFICATE;
    say(m, GATE_PROVEN, fd);
}

/* What it says of proofs. */
static void lie_of_proofs(int which, struct gate_msg *m, int fd)
{
    switch (which) {
    case 16: /* by a key that there is not */
    case 17: /* by another one's */
        snprintf(m->u.key.user, sizeof(m->u.key.user), "%s", which == 16 ? "mallory" : "alice");
        say(m, GATE_KEY, -1);
        memset(&m->u, 0, sizeof(m->u));
        m->u.proven.proof = GATE_BY_KEY;
        snprintf(m->u.proven.name, sizeof(m->u.proven.name), "mallory");
        say(m, GATE_PROVEN, fd);
        break;
    case 18: /* before anything was signed */
        m->u.proof.len = 1;
        say(m, GATE_PROOF, -1);
        break;
    case TWO_SIGNATURES: /* of two at once */
        say(m, GATE_SIGN, -1);
        m->slot = 1;
        say(m, GATE_OPENED, -1);
        say(m, GATE_SIGN, -1);
        m->u.proof.len = 1;
        say(m, GATE_PROOF, -1);
        m->slot = 0;
        say(m, GATE_PROOF, -1);
        break;
    case 20: /* without an end */
        say(m, GATE_SIGN, -1);
        m->u.proof.len = GATE_PROOF_PIECE;
        for (unsigned i = 0; i <= GATE_PROOF_MAX / GATE_PROOF_PIECE; i++)
            say(m, GATE_PROOF, -1);
        break;
    case 21: /* none at all */
        say(m, GATE_SIGN, -1);
        memset(&m->u, 0, sizeof(m->u));
        m->u.proven.proof = GATE_BY_CERTIFICATE;
        say(m, GATE_PROVEN, fd);
        break;
    case 22:
        old_proof(m, fd);
        break;
    }
}

/* Claims one thing that storaged must not believe, then waits for its end. */
static int lie(int which)
{
    static struct gate_msg m, start;
    int pair[2], file = -1, pipes[2];
    struct pollfd ready = {.fd = GR_IPC_FD, .events = POLLIN};
    poll(&ready, 1, 10000);
    (void)gate_msg_recv(GR_IPC_FD, &start, &file);
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) < 0 || pipe(pipes) < 0)
        return 1;
    m.gen = 1;
    if (which != 0 && which != 9)
        say(&m, GATE_OPENED, -1);
    memset(&m.u, 0, sizeof(m.u));
    lie_of_proofs(which, &m, pair[0]);
    m.u.proven.proof = GATE_BY_CERTIFICATE;
    switch (which) {
    case 0: /* nobody came */
    case 1: /* nothing was signed for him */
        say(&m, GATE_PROVEN, pair[0]);
        break;
    case 2: /* he came twice */
        say(&m, GATE_OPENED, -1);
        break;
    case 3: /* two signatures */
        say(&m, GATE_SIGN, -1);
        say(&m, GATE_SIGN, -1);
        break;
    case 4: /* no key was asked for */
        m.u.proven.proof = GATE_BY_KEY;
        say(&m, GATE_PROVEN, pair[0]);
        break;
    case 5: /* two users */
    case 6: /* one without an end */
        memset(m.u.key.user, 'a', which == 5 ? 3 : sizeof(m.u.key.user));
        say(&m, GATE_KEY, -1);
        m.u.key.user[0] = 'b';
        say(&m, GATE_KEY, -1);
        break;
    case 7: /* no socket, another kind of one, a name that is no text, a proof that is none */
    case 8:
    case 10:
    case 11:
        say(&m, GATE_SIGN, -1);
        memset(&m.u, 0, sizeof(m.u));
        m.u.proven.proof = which == 11 ? 77 : GATE_BY_CERTIFICATE;
        if (which == 10)
            snprintf(m.u.proven.name, sizeof(m.u.proven.name), "evil\n<0>granary-storaged: all is well");
        say(&m, GATE_PROVEN, which == 7 ? -1 : which == 8 ? pipes[0] : pair[0]);
        break;
    case 9: /* a place that there is not */
        m.slot = GATE_SLOTS;
        say(&m, GATE_OPENED, -1);
        break;
    case 12: /* somebody else's slot */
        m.gen = 2;
        say(&m, GATE_ENDED, -1);
        break;
    case 13: /* a reason without an end */
        memset(&m.u, 'x', sizeof(m.u));
        say(&m, GATE_ENDED, -1);
        break;
    case 14: /* what only storaged says */
        say(&m, GATE_ANSWER, -1);
        break;
    case 15: /* half a message */
        (void)gr_packet_send(GR_IPC_FD, &m, 12, -1, 0);
        break;
    }
    for (;;)
        pause();
}

static void lies(struct world *w)
{
    struct mover_stats st;
    for (unsigned i = 0; i < 2000 && w->lies < 1; i++)
        gr_fiber_sleep_ms(1);
    mover_server_stats(w->server, &st);
    assert_int_equal(w->lies, 1);
    assert_int_equal(st.connections, 0);
    assert_true(st.signatures <= w->signatures);
}

static void see_one(void)
{
    struct tlsproof_id server, client;
    gr_auto_free char *pki = test_path("pki");
    gr_auto_free struct tlsproof *p = malloc(sizeof(*p));
    tlsproof_load(&server, pki, "server");
    tlsproof_load(&client, pki, "client");
    const struct tlsproof_id *chain = &client;
    tlsproof_shake(p, &server, &chain, 1, TLS13, TLS13);
    assert_int_equal(gr_file_replace("seen", p, sizeof(*p), 0600, NULL), 0);
    tlsproof_done(&server);
    tlsproof_done(&client);
}

static void t_lies(void **state)
{
    struct world w = {0};
    credentials(&w); /* made, if no other test has */
    world_done(&w);
    see_one();
    for (int i = 0; i < LIES; i++) {
        char text[8];
        snprintf(text, sizeof(text), "%d", i);
        assert_int_equal(gr_file_replace("lies", text, strlen(text), 0600, NULL), 0);
        with_signatures(i == TWO_SIGNATURES ? 2 : 1, lies);
    }
    unlink("lies");
    unlink("seen");
}

static void t_proofs(void **state)
{
    with_gate((struct mover_opts){0}, proofs);
}
static void t_bytes(void **state)
{
    with_gate((struct mover_opts){0}, bytes);
}
static void t_takes_nothing(void **state)
{
    with_gate((struct mover_opts){.stall_timeout_ms = 300}, takes_nothing);
}
static void t_slow(void **state)
{
    with_gate((struct mover_opts){.negotiate_timeout_ms = 300}, slow);
}
static void t_too_many_of_one(void **state)
{
    with_gate((struct mover_opts){0}, too_many_of_one);
}
static void t_endless(void **state)
{
    with_gate((struct mover_opts){0}, endless);
}
static void t_killed(void **state)
{
    with_gate((struct mover_opts){0}, killed);
}

int main(int argc, char **argv)
{
    gr_auto_buf struct gr_buf which = {0};
    uint64_t n = 0;
    if (argc == 2 && !strcmp(argv[1], GATE_FLAG) && gr_file_read("lies", 8, &which, NULL) >= 0 && gr_parse_u64(which.data, 0, LIES, &n, NULL) >= 0)
        return lie((int)n);
    int r = mover_gate_main(argc, argv);
    if (r >= 0)
        return r;
    if (chdir(test_dir()) < 0)
        return 1;
    const struct CMUnitTest tests[] = {TEST(t_proofs), TEST(t_bytes), TEST(t_takes_nothing), TEST(t_slow), TEST(t_too_many_of_one),
                                       TEST(t_endless), TEST(t_killed), TEST(t_lies)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
