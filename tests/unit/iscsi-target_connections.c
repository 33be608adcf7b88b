/* Several connections to a session (RFC 7143 4.2.2, 6.3.4, 11.14): one order of commands over all, allegiance, logout and
 * reinstatement of one, and the target's own request to leave. */
#include "common/cleanup.h"
#include "common/crc.h"
#include "tests/lib/inisess.h"
#include "tests/lib/test.h"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static struct tgtfix fix;

static int teardown(void **state)
{
    (void)state;
    tgtfix_stop(&fix);
    return 0;
}

static int shut_down(struct tgtfix *f, void *arg)
{
    (void)arg;
    return tgt_server_shutdown(f->server, 3000);
}

static void *shut_down_thread(void *arg)
{
    *(int *)arg = tgtfix_call(&fix, shut_down, NULL);
    return NULL;
}

/* The target shuts down: every connection is asked to log out, and whoever does is not cut. */
static void asked_to_leave(void **state)
{
    struct ini c[2], b;
    uint8_t p[TGT_BHS_LEN];
    pthread_t thread;
    int cut = -1;
    LEAD(&c[0], TGTFIX_TARGET, KEYS_ERL0);
    assert_int_equal(JOIN(&c[1], &c[0], 1, TGTFIX_TARGET), 0);
    assert_int_equal(pthread_create(&thread, NULL, shut_down_thread, &cut), 0);
    for (unsigned k = 0; k < 2; k++) {
        inix_expect(&c[k], p, TGT_OP_ASYNC);
        assert_int_equal(p[36], 1);
        assert_int_equal(gr_get_be16(p + 42), 3);
        inix_take_status(&c[k], p);
    }
    assert_true(ini_connect(&b, "127.0.0.1", fix.port) < 0 || ini_login(&b, INISESS_NAME ":late", TGTFIX_TARGET, NULL, 0) < 0); /* nobody new */
    ini_close(&b);
    inix_ready(&c[0]); /* what is there is served to the end */
    for (uint16_t k = 2; k-- > 0;)
        assert_int_equal(inix_logout(&c[k], 1, k), 0);
    pthread_join(thread, NULL);
    assert_int_equal(cut, 0);
    ini_close(&c[0]);
    ini_close(&c[1]);
}

/* ---- several connections ---- */

static void connections(void **state)
{
    struct ini c[9];
    uint8_t b[TGT_BHS_LEN];
    LEAD(&c[0], TGTFIX_TARGET, KEYS_ERL0);
    assert_string_equal(ini_key(&c[0], "MaxConnections"), "8");
    for (uint16_t k = 1; k < 8; k++)
        assert_int_equal(JOIN(&c[k], &c[0], k, TGTFIX_TARGET), 0);
    assert_int_equal(JOIN(&c[8], &c[0], 8, TGTFIX_TARGET), TGT_LOGIN_TOO_MANY);
    ini_close(&c[8]);
    struct ini other = c[0];
    other.tsih = (uint16_t)(c[0].tsih + 7);
    assert_int_equal(JOIN(&c[8], &other, 8, TGTFIX_TARGET), TGT_LOGIN_NO_SESSION);
    ini_close(&c[8]);
    assert_int_equal(JOIN(&c[8], &c[0], 8, TGTFIX_SLOW), TGT_LOGIN_NO_SESSION); /* the session is of another target */
    ini_close(&c[8]);
    tgtfix_wait_sessions(&fix, 1);
    /* one order over all connections: the later ones come first and wait */
    uint32_t sn = c[0].cmdsn;
    for (uint32_t k = 7; k > 0; k--)
        assert_int_equal(inix_send_rw(&c[k], sn + k, 100 + k, false, k, 1), 0);
    for (uint32_t k = 1; k < 8; k++)
        inix_silent(&c[k], 10);
    assert_int_equal(inix_send_rw(&c[0], sn, 100, false, 0, 1), 0);
    for (uint32_t k = 0; k < 8; k++) {
        inix_expect(&c[k], b, TGT_OP_DATA_IN);
        assert_int_equal(tgt_bhs_itt(b), 100 + k);
        inix_take_status(&c[k], b);
    }
    /* requests that are not commands wait for their turn too */
    sn += 8;
    tgt_bhs_start(b, TGT_OP_NOP_OUT, TGT_FINAL, 200, 0);
    gr_put_be32(b + 20, TGT_TAG_NONE);
    gr_put_be32(b + 24, sn + 1);
    assert_int_equal(ini_send(&c[1], b, "ping", 4), 0);
    inix_silent(&c[1], 30);
    assert_int_equal(inix_send_rw(&c[2], sn, 201, false, 0, 1), 0);
    inix_expect(&c[2], b, TGT_OP_DATA_IN);
    assert_int_equal(inix_expect(&c[1], b, TGT_OP_NOP_IN), 4);
    assert_memory_equal(inix_seg, "ping", 4);
    assert_int_equal(gr_get_be32(b + 28), sn + 2);
    /* one leaves by itself, one is sent away by another, one that is not there */
    assert_int_equal(inix_logout(&c[7], 1, 7), 0);
    assert_int_equal(inix_logout(&c[0], 1, 6), 0);
    assert_int_equal(inix_logout(&c[0], 1, 6), 1);
    assert_int_equal(ini_recv(&c[6], b, inix_seg, sizeof inix_seg), -EPIPE);
    assert_int_equal(inix_logout(&c[0], 2, 5), 2); /* recovery was not agreed on */
    for (uint16_t k = 0; k < 6; k++)
        c[k].cmdsn = sn + 2;
    inix_ready(&c[5]);
    /* a login with the CID of a living connection takes its place */
    ini_close(&c[6]);
    c[0].cmdsn = c[5].cmdsn;
    assert_int_equal(JOIN(&c[6], &c[0], 5, TGTFIX_TARGET), 0);
    assert_int_equal(ini_recv(&c[5], b, inix_seg, sizeof inix_seg), -EPIPE);
    inix_ready(&c[6]);
    tgtfix_wait_sessions(&fix, 1);
    /* level 0: with one connection that breaks the session ends */
    ini_close(&c[1]);
    tgtfix_wait_sessions(&fix, 0);
    for (unsigned k = 0; k < 8; k++)
        ini_close(&c[k]);
    LEAD(&c[0], TGTFIX_TARGET, KEYS_ERL0);
    assert_int_equal(JOIN(&c[1], &c[0], 1, TGTFIX_TARGET), 0);
    assert_int_equal(inix_logout(&c[1], 0, 1), 0); /* the whole session, through either */
    tgtfix_wait_sessions(&fix, 0);
    ini_close(&c[0]);
    ini_close(&c[1]);
}

/* A task belongs to the connection its command came by. */
static void allegiance(void **state)
{
    struct ini a, b;
    uint8_t p[TGT_BHS_LEN], q[TGT_BHS_LEN];
    static uint8_t out[8192];
    inix_pattern(out, sizeof out, 1);
    LEAD(&a, TGTFIX_TARGET, KEYS_ERL1);
    assert_int_equal(JOIN(&b, &a, 1, TGTFIX_TARGET), 0);
    assert_int_equal(inix_send_rw(&a, a.cmdsn - 0, 50, true, 0, 16), 0);
    inix_expect(&a, p, TGT_OP_R2T);
    assert_int_equal(inix_send_out(&b, p, 0, 0, 4096, false, out), 0); /* by the wrong one: ignored */
    inix_silent(&b, 30);
    inix_snack(&b, 0, 50, TGT_TAG_NONE, 0, 0);
    inix_expect(&b, q, TGT_OP_REJECT);
    inix_take_status(&b, q);
    assert_int_equal(inix_send_out(&a, p, 0, 0, 4096, false, out), 0);
    assert_int_equal(inix_send_out(&a, p, 1, 4096, 4096, true, out), 0);
    inix_good(&a, 50);
    inisess_check_disk(&fix, 0, out, 16);
    ini_close(&a);
    ini_close(&b);
    tgtfix_wait_sessions(&fix, 0);
}

#define CASE(f) {#f, f, tgtfix_setup, teardown, &fix}
TGTFIX_MAIN(NULL, NULL,
    CASE(connections), CASE(allegiance), CASE(asked_to_leave))
