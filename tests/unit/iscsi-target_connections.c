/* Several connections to a session (RFC 7143 4.2.2, 6.3.4, 11.14): one order of commands over all, allegiance, logout and
 * reinstatement of one, the fence before the response to a task management function, and the target's own request to leave. */
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

/* ---- the response fence ---- */

static void tmf_send(struct ini *i, unsigned function, uint32_t ref_itt)
{
    uint8_t b[TGT_BHS_LEN];
    tgt_bhs_start(b, TGT_OP_TMF, (uint8_t)(TGT_FINAL | function), ++i->itt, 0);
    b[0] |= TGT_IMMEDIATE;
    gr_put_be32(b + 20, ref_itt);
    gr_put_be32(b + 24, i->cmdsn);
    gr_put_be32(b + 28, i->expstatsn);
    assert_int_equal(ini_send(i, b, NULL, 0), 0);
}

static void tmf_answered(struct ini *i, unsigned response)
{
    uint8_t b[TGT_BHS_LEN];
    inix_expect(i, b, TGT_OP_TMF_RSP);
    assert_int_equal(tgt_bhs_itt(b), i->itt);
    assert_int_equal(b[2], response);
    inix_take_status(i, b);
}

/* The target asks what has arrived: the answer acknowledges all up to i->expstatsn. */
static void pinged(struct ini *i, uint8_t *b)
{
    inix_expect(i, b, TGT_OP_NOP_IN);
    assert_int_equal(tgt_bhs_itt(b), TGT_TAG_NONE);
    assert_int_not_equal(tgt_bhs_ttt(b), TGT_TAG_NONE);
}

static void pong(struct ini *i, const uint8_t *ping)
{
    uint8_t b[TGT_BHS_LEN];
    tgt_bhs_start(b, TGT_OP_NOP_OUT, TGT_FINAL, TGT_TAG_NONE, 0);
    b[0] |= TGT_IMMEDIATE;
    gr_put_be32(b + 20, tgt_bhs_ttt(ping));
    gr_put_be32(b + 24, i->cmdsn);
    gr_put_be32(b + 28, i->expstatsn);
    assert_int_equal(ini_send(i, b, NULL, 0), 0);
}

static void read_one(struct ini *i, uint32_t cmdsn)
{
    uint8_t b[TGT_BHS_LEN];
    assert_int_equal(inix_send_rw(i, cmdsn, 100 + cmdsn, false, 0, 1), 0);
    inix_expect(i, b, TGT_OP_DATA_IN);
    inix_take_status(i, b);
}

static void response_fence(void **state)
{
    static const unsigned functions[] = {TGT_TMF_ABORT_TASK_SET, TGT_TMF_CLEAR_TASK_SET, TGT_TMF_LUN_RESET, TGT_TMF_WARM_RESET};
    struct ini a, b;
    uint8_t p[TGT_BHS_LEN], first[TGT_BHS_LEN];
    LEAD(&a, TGTFIX_TARGET, KEYS_ERL0);
    assert_int_equal(JOIN(&b, &a, 1, TGTFIX_TARGET), 0);
    for (unsigned k = 0; k < 4; k++) {
        read_one(&b, a.cmdsn++); /* a status that we have and have not acknowledged */
        tmf_send(&a, functions[k], TGT_TAG_NONE);
        pinged(&b, first);
        inix_silent(&a, 20);
        b.expstatsn--;
        pong(&b, first); /* not that one yet */
        inix_silent(&a, 20);
        b.expstatsn++;
        pong(&b, first);
        tmf_answered(&a, TGT_TMF_DONE);
        /* and nothing overtakes the response */
        pinged(&a, first);
        assert_int_equal(inix_send_rw(&b, a.cmdsn++, 7, false, 0, 1), 0);
        inix_silent(&b, 20);
        pong(&a, first);
        assert_true(ini_recv(&b, p, inix_seg, sizeof inix_seg) >= 0); /* data, or a unit attention */
        assert_int_equal(tgt_bhs_itt(p), 7);
        inix_take_status(&b, p);
        b.cmdsn = a.cmdsn;
        inix_ready(&b);
        a.cmdsn = b.cmdsn;
    }
    /* one whose statuses are all acknowledged holds nothing up; neither does a function that ends one task */
    pong(&b, first);
    pong(&a, first);
    inix_silent(&b, 20);
    tmf_send(&a, TGT_TMF_ABORT_TASK_SET, TGT_TAG_NONE);
    tmf_answered(&a, TGT_TMF_DONE);
    pinged(&a, p);
    pong(&a, p);
    read_one(&b, a.cmdsn++);
    tmf_send(&a, TGT_TMF_ABORT_TASK, 4711);
    tmf_answered(&a, TGT_TMF_NO_TASK);
    /* the session may end meanwhile */
    tmf_send(&a, TGT_TMF_LUN_RESET, TGT_TAG_NONE);
    pinged(&b, p);
    ini_close(&a);
    tgtfix_wait_sessions(&fix, 0);
    ini_close(&b);
}

/* Connections that end hold nothing up. */
static void fence_ends(void **state)
{
    struct ini a, b, c;
    uint8_t p[TGT_BHS_LEN];
    LEAD(&a, TGTFIX_TARGET, KEYS_ERL2);
    assert_int_equal(JOIN(&b, &a, 1, TGTFIX_TARGET), 0);
    assert_int_equal(JOIN(&c, &a, 2, TGTFIX_TARGET), 0);
    read_one(&b, a.cmdsn++);
    read_one(&c, a.cmdsn++);
    tmf_send(&a, TGT_TMF_ABORT_TASK_SET, TGT_TAG_NONE);
    pinged(&b, p);
    ini_close(&b);
    inix_silent(&a, 20); /* there is another one */
    pinged(&c, p);
    ini_close(&c);
    tmf_answered(&a, TGT_TMF_DONE);
    /* who has the response and leaves without acknowledging it */
    assert_int_equal(JOIN(&b, &a, 3, TGTFIX_TARGET), 0);
    tmf_send(&a, TGT_TMF_ABORT_TASK_SET, TGT_TAG_NONE);
    pinged(&b, p);
    pong(&b, p);
    tmf_answered(&a, TGT_TMF_DONE);
    assert_int_equal(inix_send_rw(&b, a.cmdsn, 7, false, 0, 1), 0);
    inix_silent(&b, 20);
    ini_close(&a);
    inix_expect(&b, p, TGT_OP_DATA_IN);
    ini_close(&b);
    tgtfix_wait_sessions(&fix, 0);
}

/* A task whose data is on its way is not aborted: the function is answered behind its status. */
static void fence_behind_data(void **state)
{
    enum { BLOCKS = 16384 };
    struct ini a, b;
    uint8_t p[TGT_BHS_LEN];
    int small = 65536;
    for (unsigned k = 0; k < 2; k++) {
        LEAD(&a, TGTFIX_TARGET, KEYS_ERL0);
        assert_int_equal(JOIN(&b, &a, 1, TGTFIX_TARGET), 0);
        struct ini *by = k ? &a : &b;
        assert_int_equal(setsockopt(b.fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small), 0);
        assert_int_equal(inix_send_rw(&b, a.cmdsn++, 9, false, 0, BLOCKS), 0);
        assert_int_equal(recv(b.fd, p, 1, MSG_PEEK), 1);
        b.cmdsn = a.cmdsn;
        tmf_send(by, k ? TGT_TMF_LUN_RESET : TGT_TMF_ABORT_TASK, 9);
        inix_silent(&a, 50);
        uint32_t got = 0;
        do {
            got += (uint32_t)inix_expect(&b, p, TGT_OP_DATA_IN);
        } while (!(p[1] & 1));
        assert_int_equal(got, BLOCKS * INIX_BLOCK);
        inix_take_status(&b, p);
        if (k) {
            pinged(&b, p);
            pong(&b, p);
        }
        tmf_answered(by, k ? TGT_TMF_DONE : TGT_TMF_NO_TASK);
        ini_close(&a);
        ini_close(&b);
        tgtfix_wait_sessions(&fix, 0);
    }
}

#define CASE(f) {#f, f, tgtfix_setup, teardown, &fix}
TGTFIX_MAIN(NULL, NULL,
    CASE(connections), CASE(allegiance), CASE(response_fence), CASE(fence_ends), CASE(fence_behind_data), CASE(asked_to_leave))
