/* TLS policy, certificates and key files of the data mover, against clients that break the rules; what good clients see is
 * tried with stock ones (tests/e2e/141-mover-tls.sh). */
#include "common/buf.h"
#include "common/cleanup.h"
#include "tests/lib/nbdc.h"
#include "tests/lib/test.h"
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

static int no_export(void *arg, const char *name, struct mover_export *ret, struct gr_err *err)
{
    fail_msg("a client without TLS reached the directory");
    return -ENOENT;
}

struct run {
    struct gr_loop *loop;
    struct mover_opts opts;
    void (*body)(struct mover_server *s);
};

static int run(void *arg)
{
    struct run *r = arg;
    struct mover_server *s = NULL;
    struct gr_err err = {0};
    r->opts.dir.open = no_export;
    if (mover_server_new(r->loop, &r->opts, &s, &err) < 0)
        fail_msg("%s", err.text);
    r->body(s);
    mover_server_stop(s);
    return 0;
}

static void with_server(struct mover_opts opts, void (*body)(struct mover_server *s))
{
    struct run r = {.opts = opts, .body = body};
    assert_int_equal(gr_loop_new(NULL, &r.loop, NULL), 0);
    assert_int_equal(gr_fiber_run(r.loop, run, &r), 0);
    gr_loop_free(r.loop);
}

static void plain_clients(struct mover_server *s)
{
    static const uint32_t options[] = {NBD_OPT_LIST, NBD_OPT_STRUCTURED_REPLY, NBD_OPT_GO, NBD_OPT_INFO, NBD_OPT_SET_META_CONTEXT, 4711};
    struct nbdc_rep rep;
    int fd = nbdc_connect(s);
    nbdc_hello(fd, 3);
    for (size_t i = 0; i < GR_ARRAY_LEN(options); i++)
        assert_int_equal(nbdc_ask(fd, options[i], "x", 1, &rep), NBD_REP_ERR_TLS_REQD);
    assert_int_equal(nbdc_ask(fd, NBD_OPT_STARTTLS, "x", 1, &rep), NBD_REP_ERR_INVALID);
    nbdc_option(fd, NBD_OPT_EXPORT_NAME, "ds/disk", 7);
    assert_true(nbdc_closed(fd));
    close(fd);
}

/* After STARTTLS nothing but a handshake is understood: neither options, nor noise, nor silence. */
static void no_handshake(struct mover_server *s)
{
    uint64_t seed = test_seed();
    for (unsigned i = 0; i < test_cases(30); i++) {
        struct nbdc_rep rep;
        uint8_t noise[600];
        int fd = nbdc_connect(s);
        nbdc_hello(fd, 3);
        assert_int_equal(nbdc_ask(fd, NBD_OPT_STARTTLS, NULL, 0, &rep), NBD_REP_ACK);
        for (size_t k = 0; k < sizeof(noise); k++)
            noise[k] = (uint8_t)test_rand(&seed);
        if (i % 3 == 0)
            memcpy(noise, "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 11); /* begins like a ClientHello */
        if (i % 3 == 1)
            nbdc_option(fd, NBD_OPT_GO, "\0\0\0\7ds/disk\0\0", 13);
        else
            nbdc_send(fd, noise, sizeof(noise));
        shutdown(fd, SHUT_WR);
        uint8_t sink[256];
        while (recv(fd, sink, sizeof(sink), MSG_DONTWAIT) > 0 || !nbdc_closed(fd)) {
        }
        close(fd);
    }
    struct nbdc_rep rep;
    int fd = nbdc_connect(s);
    nbdc_hello(fd, 3);
    assert_int_equal(nbdc_ask(fd, NBD_OPT_STARTTLS, NULL, 0, &rep), NBD_REP_ACK);
    assert_true(nbdc_closed(fd)); /* by the deadline of the negotiation */
    close(fd);
    struct mover_stats st;
    gr_fiber_sleep_ms(5);
    mover_server_stats(s, &st);
    assert_int_equal(st.connections, 0);
}

static unsigned mode_of(const char *dir, const char *name)
{
    gr_auto_free char *path = gr_asprintf("%s/%s", dir, name);
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    return st.st_mode & 07777;
}

static void certificates(void **state)
{
    gr_auto_free char *dir = test_path("pki"), *client = test_path("client"), *psk = test_path("keys");
    static const char *const hosts[] = {"store.example", "2001:db8::1"};
    struct gr_err err = {0};
    assert_int_equal(mover_pki_ensure(dir, hosts, 2, &err), 0);
    assert_int_equal(mover_pki_make_ca(dir, "again", &err), -EEXIST);
    assert_int_equal(mover_pki_make_client(dir, "proxy", client, &err), 0);
    assert_int_equal(mover_pki_make_client(dir, "", client, &err), -EINVAL);
    static const char *const keys[] = {"ca-key.pem", "server-key.pem", "client-key.pem"};
    for (int i = 0; i < 3; i++)
        assert_int_equal(mode_of(dir, keys[i]), 0600);
    assert_int_equal(mode_of(client, "client-key.pem"), 0600);
    assert_int_equal(mover_psk_make(psk, "alice", &err), 0);
    assert_int_equal(mover_psk_make(psk, "alice", &err), -EEXIST);
    assert_int_equal(mover_psk_make("/nonexistent/x", "a:b", &err), -EINVAL);
    struct mover_opts o = {.pki_dir = dir, .psk_file = psk, .negotiate_timeout_ms = 200};
    with_server(o, plain_clients);
    with_server(o, no_handshake);
}

static void bad_credentials(void **state)
{
    gr_auto_free char *dir = test_path("bad"), *psk = test_path("bad.psk"), *cert = test_path("bad/server-cert.pem");
    struct gr_loop *loop = NULL;
    struct mover_server *s = NULL;
    struct gr_err err = {0};
    assert_int_equal(gr_loop_new(NULL, &loop, NULL), 0);
    struct mover_opts o = {0};
    assert_int_equal(mover_server_new(loop, &o, &s, &err), -EINVAL);
    assert_int_equal(mover_pki_ensure(dir, NULL, 0, &err), 0);
    o.pki_dir = dir;
    assert_int_equal(gr_file_replace(cert, "nonsense", 8, 0644, &err), 0);
    assert_int_equal(mover_server_new(loop, &o, &s, &err), -GR_EFORMAT);
    assert_non_null(strstr(err.text, "server-cert.pem"));
    static const char *const lines[] = {"", "# only a comment\n", "alice\n", "alice:\n", "alice:zz\n", ":00112233445566778899aabbccddeeff\n",
                                        "alice:0011\n", "alice:00112233445566778899aabbccddeefg\n", "alice:00112233445566778899aabbccddeef\n"};
    o = (struct mover_opts){.psk_file = psk};
    for (size_t i = 0; i < GR_ARRAY_LEN(lines); i++) {
        assert_int_equal(gr_file_replace(psk, lines[i], strlen(lines[i]), 0600, &err), 0);
        assert_true(mover_server_new(loop, &o, &s, &err) < 0);
        assert_null(s);
    }
    gr_loop_free(loop);
}

static void urls(void **state)
{
    gr_auto_free char *a = mover_url("[::1]:10809", "ds/web 01@näc", "/etc/a&b/pki"), *b = mover_url("h:1", "ds/a?b#c%d", NULL);
    assert_string_equal(a, "nbds://[::1]:10809/ds/web%2001%40n%C3%A4c?tls-certificates=/etc/a%26b/pki");
    assert_string_equal(b, "nbd://h:1/ds/a%3Fb%23c%25d");
}

int main(int argc, char **argv)
{
    int r = mover_gate_main(argc, argv);
    if (r >= 0)
        return r;
    const struct CMUnitTest tests[] = {TEST(certificates), TEST(bad_credentials), TEST(urls)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
