/* Links between hosts: who comes in, who does not, and what strangers and the death of the link process do. */
#include "common/cleanup.h"
#include "common/link.h"
#include "common/link_ipc.h"
#include "tests/lib/test.h"
#include <arpa/inet.h>
#include <gnutls/gnutls.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define PRIORITY "NORMAL:-VERS-ALL:+VERS-TLS1.3:+ECDHE-PSK"
#define KNOWN "Granary hosts prove who they are inside"
static const uint8_t volume[16] = {1, 2, 3}, another_volume[16] = {9};

struct end {
    struct gr_link *link;
    struct gr_link_key *key;
    char address[64];
    uint16_t port;
    const uint8_t *lets_in; /* the one key it knows */
    int came;               /* what has come, -1 */
    struct gr_link_peer who;
    unsigned asked, notes;
    char last[300];
};

static int admit(void *arg, const struct gr_link_peer *peer, struct gr_err *err)
{
    struct end *e = arg;
    e->asked++;
    if (memcmp(peer->volume, volume, 16) != 0)
        return gr_fail(err, -ENOENT, "no such volume here");
    if (!e->lets_in || memcmp(peer->key, e->lets_in, GR_LINK_KEY_LEN) != 0)
        return gr_fail(err, -GR_EAUTH, "no host has that key");
    return 0;
}

static void comes(void *arg, int fd, const struct gr_link_peer *peer)
{
    struct end *e = arg;
    gr_closep(&e->came);
    e->came = fd;
    e->who = *peer;
}

static void note(void *arg, int level, const char *text)
{
    struct end *e = arg;
    e->notes++;
    snprintf(e->last, sizeof(e->last), "%s", text);
}

static void end_new(struct end *e, const char *name)
{
    struct gr_err err = {0};
    uint16_t port = 0;
    gr_auto_free char *path = test_path(name);
    *e = (struct end){.came = -1};
    if (gr_link_key_open(path, &e->key, &err) < 0)
        fail_msg("%s", err.text);
    const struct gr_link_opts o = {.loop = gr_fiber_loop(), .key = e->key, .arg = e, .admit = admit, .comes = comes, .note = note};
    if (gr_link_new(&o, &e->link, &err) < 0 || gr_link_listen(e->link, "127.0.0.1:0", &port, &err) < 0)
        fail_msg("%s", err.text);
    e->port = port;
    snprintf(e->address, sizeof(e->address), "127.0.0.1:%u", port);
}

static void end_free(struct end *e)
{
    gr_link_free(e->link);
    gr_link_key_free(e->key);
    gr_closep(&e->came);
}

static int dial(struct end *from, const struct end *to, const uint8_t *expected, const uint8_t *vol, int *ret_fd, struct gr_err *err)
{
    return gr_link_dial(from->link, to->address, vol, expected, 2000, ret_fd, err);
}

static void say(int fd, const void *p, size_t len)
{
    for (size_t at = 0; at < len;) {
        ssize_t n = send(fd, (const uint8_t *)p + at, len - at, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n > 0)
            at += (size_t)n;
        else
            assert_true(n < 0 && errno == EAGAIN && gr_fiber_wait_fd(fd, POLLOUT, 5000) > 0);
    }
}

static size_t hear(int fd, void *p, size_t len)
{
    size_t at = 0;
    while (at < len) {
        ssize_t n = recv(fd, (uint8_t *)p + at, len - at, MSG_DONTWAIT);
        if (n == 0 || (n < 0 && errno != EAGAIN))
            break;
        if (n > 0)
            at += (size_t)n;
        else if (gr_fiber_wait_fd(fd, POLLIN, 5000) < 0)
            break;
    }
    return at;
}

/* ---- who comes in ---- */
static void await_came(struct end *e)
{
    for (int i = 0; i < 500 && e->came < 0; i++)
        gr_fiber_sleep_ms(5);
    assert_true(e->came >= 0);
}

struct pour {
    int fd;
    size_t len;
    bool done;
};

static void pour(void *arg)
{
    struct pour *p = arg;
    gr_auto_free uint8_t *bytes = gr_alloc(p->len);
    for (size_t i = 0; i < p->len; i++)
        bytes[i] = (uint8_t)(i * 7 + i / 4096);
    say(p->fd, bytes, p->len);
    p->done = true;
}

static int let_in(void *arg)
{
    struct end a, b;
    struct gr_err err = {0};
    int fd = -1;
    end_new(&a, "a");
    end_new(&b, "b");
    b.lets_in = gr_link_key_public(a.key);
    if (dial(&a, &b, gr_link_key_public(b.key), volume, &fd, &err) < 0)
        fail_msg("%s", err.text);
    await_came(&b);
    assert_memory_equal(b.who.key, gr_link_key_public(a.key), GR_LINK_KEY_LEN);
    assert_string_equal(b.who.from, "127.0.0.1");
    char text[16];
    say(fd, "there", 5);
    assert_int_equal(hear(b.came, text, 5), 5);
    assert_memory_equal(text, "there", 5);
    say(b.came, "and back", 8);
    assert_int_equal(hear(fd, text, 8), 8);
    /* much, against back-pressure: the reader starts late */
    struct pour p = {.fd = fd, .len = 20u << 20};
    assert_int_equal(gr_fiber_start(gr_fiber_loop(), pour, &p), 0);
    gr_fiber_sleep_ms(100);
    assert_false(p.done);
    gr_auto_free uint8_t *got = gr_alloc(p.len);
    assert_int_equal(hear(b.came, got, p.len), p.len);
    for (size_t i = 0; i < p.len; i++)
        if (got[i] != (uint8_t)(i * 7 + i / 4096))
            fail_msg("byte %zu", i);
    /* an end shows at the other side, after what was said */
    say(b.came, "bye", 3);
    gr_closep(&b.came);
    assert_int_equal(hear(fd, text, 16), 3);
    close(fd);
    assert_int_equal(b.notes, 0);
    end_free(&a);
    end_free(&b);
    return 0;
}

static int kept_out(void *arg)
{
    struct end a, b, c;
    struct gr_err err = {0};
    int fd = -1;
    end_new(&a, "a");
    end_new(&b, "b");
    end_new(&c, "c");
    b.lets_in = gr_link_key_public(c.key);
    assert_int_equal(dial(&a, &b, gr_link_key_public(b.key), volume, &fd, &err), -GR_EAUTH);
    assert_non_null(strstr(b.last, "no host has that key"));
    /* known, but of another volume */
    assert_int_equal(dial(&c, &b, gr_link_key_public(b.key), another_volume, &fd, &err), -GR_EAUTH);
    /* known, but who answers is not whom it looks for; the other end cannot use what it signed for somebody else either */
    assert_int_equal(dial(&c, &b, gr_link_key_public(a.key), volume, &fd, &err), -GR_EAUTH);
    assert_int_equal(b.came, -1);
    /* nobody listens; nonsense */
    snprintf(a.address, sizeof(a.address), "127.0.0.1:1");
    assert_int_equal(dial(&c, &a, gr_link_key_public(a.key), volume, &fd, &err), -ECONNREFUSED);
    snprintf(a.address, sizeof(a.address), "host.example:1");
    assert_int_equal(dial(&c, &a, gr_link_key_public(a.key), volume, &fd, &err), -GR_EUSAGE);
    uint16_t port;
    assert_int_equal(gr_link_listen(c.link, "127.0.0.1:0", &port, &err), -EEXIST);
    assert_int_equal(gr_link_listen(c.link, "0.0.0.0:0", &port, &err), -GR_EUSAGE);
    assert_int_equal(gr_link_listen(c.link, "[::]:0", &port, &err), -GR_EUSAGE);
    assert_int_equal(gr_link_listen(c.link, "somewhere", &port, &err), -GR_EUSAGE);
    /* and who may, may */
    assert_int_equal(dial(&c, &b, gr_link_key_public(b.key), volume, &fd, &err), 0);
    close(fd);
    end_free(&a);
    end_free(&b);
    end_free(&c);
    return 0;
}

/* ---- proofs ---- */
static void proofs(void **state)
{
    struct gr_link_key *a = NULL, *b = NULL, *again = NULL;
    struct gr_link_proof p, q;
    struct stat st;
    struct gr_err err = {0};
    uint8_t channel[GR_LINK_CHANNEL_LEN] = {7}, other[GR_LINK_CHANNEL_LEN] = {8};
    gr_auto_free char *pa = test_path("key-a"), *pb = test_path("key-b");
    assert_int_equal(gr_link_key_open(pa, &a, &err), 0);
    assert_int_equal(gr_link_key_open(pb, &b, &err), 0);
    assert_int_equal(gr_link_key_open(pa, &again, &err), 0);
    assert_memory_equal(gr_link_key_public(a), gr_link_key_public(again), GR_LINK_KEY_LEN);
    assert_memory_not_equal(gr_link_key_public(a), gr_link_key_public(b), GR_LINK_KEY_LEN);
    assert_int_equal(stat(pa, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_int_equal(gr_link_prove(a, true, volume, channel, gr_link_key_public(b), &p), 0);
    assert_true(gr_link_proves(&p, true, channel, gr_link_key_public(b)));
    assert_false(gr_link_proves(&p, false, channel, gr_link_key_public(b))); /* thrown back */
    assert_false(gr_link_proves(&p, true, other, gr_link_key_public(b)));    /* passed on over another channel */
    assert_false(gr_link_proves(&p, true, channel, gr_link_key_public(a)));  /* meant for somebody else */
    for (size_t i = 0; i < sizeof(p) * 8; i++) {
        q = p;
        ((uint8_t *)&q)[i / 8] ^= (uint8_t)(1u << i % 8);
        if (gr_link_proves(&q, true, channel, gr_link_key_public(b)))
            fail_msg("bit %zu does not matter", i);
    }
    gr_link_key_free(again);
    again = NULL;
    assert_int_equal(chmod(pa, 0644), 0);
    assert_int_equal(gr_link_key_open(pa, &again, &err), -EPERM);
    assert_int_equal(chmod(pa, 0600), 0);
    assert_int_equal(truncate(pa, 20), 0);
    assert_int_equal(gr_link_key_open(pa, &again, &err), -GR_EFORMAT);
    gr_link_key_free(a);
    gr_link_key_free(b);
}

/* ---- strangers ---- */
static int tcp_to(const struct end *e)
{
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons(e->port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    assert_true(connect(fd, (struct sockaddr *)&in, sizeof(in)) == 0 || errno == EINPROGRESS);
    assert_true(gr_fiber_wait_fd(fd, POLLOUT, 2000) > 0);
    return fd;
}

/* A stranger who speaks TLS and then says @len bytes; what he hears. */
static size_t tls_stranger(const struct end *e, const void *bytes, size_t len, void *ret, size_t max)
{
    int fd = tcp_to(e);
    gnutls_session_t s;
    gnutls_psk_client_credentials_t psk;
    const gnutls_datum_t key = {(uint8_t *)(uintptr_t)KNOWN, sizeof(KNOWN) - 1};
    gnutls_init(&s, GNUTLS_CLIENT | GNUTLS_NONBLOCK);
    gnutls_psk_allocate_client_credentials(&psk);
    gnutls_psk_set_client_credentials(psk, "granary", &key, GNUTLS_PSK_KEY_RAW);
    gnutls_priority_set_direct(s, PRIORITY, NULL);
    gnutls_credentials_set(s, GNUTLS_CRD_PSK, psk);
    gnutls_transport_set_int(s, fd);
    int r;
    while ((r = gnutls_handshake(s)) == GNUTLS_E_AGAIN)
        gr_fiber_wait_fd(fd, POLLIN, 2000);
    assert_int_equal(r, 0);
    while (gnutls_record_send(s, bytes, len) == GNUTLS_E_AGAIN)
        gr_fiber_wait_fd(fd, POLLOUT, 2000);
    ssize_t n;
    while ((n = gnutls_record_recv(s, ret, max)) == GNUTLS_E_AGAIN)
        if (gr_fiber_wait_fd(fd, POLLIN, 8000) < 0)
            break;
    gnutls_deinit(s);
    gnutls_psk_free_client_credentials(psk);
    close(fd);
    return n > 0 ? (size_t)n : 0;
}

static int strangers(void *arg)
{
    struct end a, b;
    struct gr_err err = {0};
    struct gr_link_proof p = {0};
    uint8_t heard[256];
    int fd = -1, many[100];
    end_new(&a, "a");
    end_new(&b, "b");
    b.lets_in = gr_link_key_public(a.key);
    /* what is no proof; one whose magic is another version's; a known key with a wrong signature */
    assert_int_equal(tls_stranger(&b, "GRP1 and so on, for longer than a proof is, so that all of it is there to be looked at; and it is text, not a proof of anything at all.",
                                  130, heard, sizeof(heard)), 0);
    memcpy(p.magic, "GRLINK2\n", 8);
    assert_int_equal(tls_stranger(&b, &p, sizeof(p), heard, sizeof(heard)), 0);
    assert_int_equal(b.asked, 0);
    memcpy(p.magic, GR_LINK_MAGIC, 8);
    memcpy(p.volume, volume, 16);
    memcpy(p.key, b.lets_in, GR_LINK_KEY_LEN);
    assert_int_equal(tls_stranger(&b, &p, sizeof(p), heard, sizeof(heard)), 0);
    assert_int_equal(b.asked, 1);
    assert_int_equal(b.came, -1);
    /* what is no TLS */
    fd = tcp_to(&b);
    say(fd, "GET / HTTP/1.1\r\n\r\n", 18);
    (void)hear(fd, heard, sizeof(heard));
    close(fd);
    /* many who say nothing: of one address 16 stay, and who is a host comes in beside them */
    for (size_t i = 0; i < GR_ARRAY_LEN(many); i++)
        many[i] = tcp_to(&b);
    gr_fiber_sleep_ms(300);
    unsigned closed = 0;
    for (size_t i = 0; i < GR_ARRAY_LEN(many); i++) {
        struct pollfd pf = {.fd = many[i], .events = POLLIN};
        closed += poll(&pf, 1, 0) == 1;
    }
    assert_true(closed >= GR_ARRAY_LEN(many) - 16);
    fd = -1;
    if (dial(&a, &b, gr_link_key_public(b.key), volume, &fd, &err) < 0)
        fail_msg("%s", err.text);
    await_came(&b);
    close(fd);
    for (size_t i = 0; i < GR_ARRAY_LEN(many); i++)
        close(many[i]);
    end_free(&a);
    end_free(&b);
    return 0;
}

/* ---- the process dies ---- */
static int child_of(const char *name)
{
    gr_auto_free char *line = gr_asprintf("pgrep -P %d -x %s", (int)getpid(), name);
    FILE *f = popen(line, "r");
    int pid = 0;
    assert_non_null(f);
    if (fscanf(f, "%d", &pid) != 1)
        pid = 0;
    pclose(f);
    return pid;
}

static int killed(void *arg)
{
    struct end a, b;
    struct gr_err err = {0};
    int fd = -1;
    char text[8];
    end_new(&b, "b");
    int pid = 0;
    for (int i = 0; i < 200 && pid == 0; i++) { /* it has that name when it is on its way */
        gr_fiber_sleep_ms(20);
        pid = child_of("granary-link");
    }
    end_new(&a, "a");
    b.lets_in = gr_link_key_public(a.key);
    assert_int_equal(dial(&a, &b, gr_link_key_public(b.key), volume, &fd, &err), 0);
    await_came(&b);
    assert_true(pid > 0);
    kill(pid, SIGKILL);
    assert_int_equal(hear(fd, text, 1), 0); /* its streams end */
    close(fd);
    fd = -1;
    for (int i = 0; i < 100 && fd < 0; i++) { /* and another is there, at the same address */
        if (dial(&a, &b, gr_link_key_public(b.key), volume, &fd, &err) < 0)
            gr_fiber_sleep_ms(50);
    }
    assert_true(fd >= 0);
    close(fd);
    end_free(&a);
    end_free(&b);
    return 0;
}

static void t_let_in(void **state)
{
    test_in_fiber(let_in, NULL);
}

static void t_kept_out(void **state)
{
    test_in_fiber(kept_out, NULL);
}

static void t_strangers(void **state)
{
    test_in_fiber(strangers, NULL);
}

static void t_killed(void **state)
{
    test_in_fiber(killed, NULL);
}

int main(int argc, char **argv)
{
    int r = gr_link_main(argc, argv);
    if (r >= 0)
        return r;
    const struct CMUnitTest tests[] = {TEST(proofs), TEST(t_let_in), TEST(t_kept_out), TEST(t_strangers), TEST(t_killed)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
