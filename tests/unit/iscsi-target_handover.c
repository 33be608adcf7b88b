/* A server takes the place of another while initiators work (iscsi-target/handover.h): nothing is lost, repeated or noticed. Both are in
 * one process here; e2e 232 has two, of a datastore. */
#include "common/cleanup.h"
#include "iscsi-target/handover.h"
#include "tests/lib/inisess.h"
#include "tests/lib/test.h"
#include "tests/lib/witness.h"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static struct tgtfix fix = {.redirect = "10.1.2.3:3260"};

static int give(struct tgt_server *old, struct gr_loop *loop, struct tgt_heritage *ret, struct gr_err *err)
{
    struct tgt_heritage mine = {0};
    int pair[2];
    int r = tgt_server_rest(old, 3000, err);
    if (!r) {
        gr_fiber_sleep_ms(3); /* a daemon has more to end, meanwhile requests come */
        r = tgt_server_bequeath(old, &mine, err);
    }
    if (r < 0)
        return r;
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
    r = tgt_heritage_send(loop, pair[0], &mine, err);
    if (!r)
        r = tgt_heritage_recv(loop, pair[1], ret, err);
    close(pair[0]);
    close(pair[1]);
    tgt_heritage_free(&mine);
    return r;
}

/* On the loop: 0, or the failure to come to rest. */
static int hand_over(struct tgtfix *f, void *arg)
{
    struct gr_err err = {0};
    struct tgt_server *old = f->server, *new = NULL;
    struct tgt_heritage h = {0};
    (void)arg;
    int r = give(old, f->loop, &h, &err);
    if (r == -EBUSY)
        return r;
    if (!r)
        r = tgtfix_server(f, &new, &err);
    if (!r)
        r = tgt_server_inherit_portals(new, &h, &err);
    tgt_server_free(old);
    if (!r)
        r = tgt_server_inherit_sessions(new, &h);
    tgt_heritage_free(&h);
    if (r < 0)
        fprintf(stderr, "hand_over: %s\n", gr_err_text(&err, r));
    f->server = new;
    return r;
}

static void *hand_over_thread(void *arg)
{
    *(int *)arg = tgtfix_call(&fix, hand_over, NULL);
    return NULL;
}

/* Idle sessions: numbers, parameters, digests, attentions and reservations go on. */
static void idle(void **state)
{
    static const char keys[] = "HeaderDigest=CRC32C\0DataDigest=CRC32C\0InitialR2T=No\0ImmediateData=Yes\0MaxRecvDataSegmentLength=65536";
    static uint8_t out[20480], in[20480];
    uint8_t cdb[10], prout[10] = {0x5f, 0, [8] = 24}, prin[10] = {0x5e, 0, [8] = 64}, list[24] = {0}, tur[6] = {0}, response = 99;
    struct ini a, b;
    struct ini_result r;
    assert_int_equal(ini_connect(&a, "127.0.0.1", fix.port), 0);
    assert_int_equal(ini_login(&a, INISESS_NAME ":a", TGTFIX_TARGET, keys, sizeof keys), 0);
    inix_ready(&a);
    tgtfix_login(&fix, &b, INISESS_NAME ":b");
    inix_ready(&b);
    assert_int_equal(ini_tmf(&a, TGT_TMF_LUN_RESET, TGT_TAG_NONE, 0, &response), 0); /* the other is to be told */
    inix_ready(&a);
    inix_pattern(out, sizeof out, 3);
    inix_rw_cdb(cdb, true, 40, 40);
    assert_int_equal(ini_cmd(&a, cdb, 10, out, sizeof out, NULL, 0, &r), 0);
    gr_put_be64(list + 8, 0x1234);
    assert_int_equal(ini_cmd(&a, prout, 10, list, 24, NULL, 0, &r), 0); /* registered, not kept over a power loss */
    assert_int_equal(r.status, 0);
    for (int k = 0; k < 3; k++)
        assert_int_equal(tgtfix_call(&fix, hand_over, NULL), 0);
    inix_rw_cdb(cdb, false, 40, 40);
    assert_int_equal(ini_cmd(&a, cdb, 10, NULL, 0, in, sizeof in, &r), 0);
    assert_int_equal(r.status, 0);
    assert_memory_equal(in, out, sizeof in);
    assert_int_equal(ini_cmd(&a, prin, 10, NULL, 0, in, 64, &r), 0);
    assert_int_equal(gr_get_be32(in + 4), 8);
    assert_int_equal(gr_get_be64(in + 8), 0x1234);
    assert_int_equal(ini_cmd(&b, tur, 6, NULL, 0, NULL, 0, &r), 0);
    assert_int_equal(INI_KEY(r), 6);
    assert_int_equal(ini_cmd(&b, tur, 6, NULL, 0, NULL, 0, &r), 0);
    assert_int_equal(r.status, 0);
    assert_int_equal(ini_logout(&a), 0);
    ini_close(&a);
    ini_close(&b);
    tgtfix_wait_sessions(&fix, 0);
}

/* What the fixture's disk and its sessions have counted, as lun.stat and session.list tell it: [disk, sessions]. On the loop. */
static int ask_stats(struct tgtfix *f, void *arg)
{
    json_t **ret = arg, *lun = NULL, *sessions = NULL;
    struct gr_rpc_server *rpc = NULL;
    int r = gr_rpc_server_new(f->loop, &rpc);
    if (!r)
        r = gr_rpc_server_add(rpc, tgt_service, f->server);
    if (!r)
        r = gr_rpc_local(rpc, "lun.stat", json_pack("{s:s}", "disk", "t/disk"), NULL, NULL, &lun, NULL);
    if (!r)
        r = gr_rpc_local(rpc, "session.list", NULL, NULL, NULL, &sessions, NULL);
    gr_rpc_server_free(rpc);
    *ret = json_pack("{s:O,s:o}", "disk", json_array_get(lun, 0), "sessions", sessions);
    json_decref(lun);
    return r;
}

static json_t *stats(void)
{
    json_t *o = NULL;
    assert_int_equal(tgtfix_call(&fix, ask_stats, &o), 0);
    return o;
}

/* Counters and histograms of sessions, and of those that have ended, go on where they were; so do the numbers of sessions. */
static void statistics(void **state)
{
    static uint8_t out[8192], in[8192];
    uint8_t cdb[10];
    struct ini gone, here, none;
    struct ini_result r;
    tgtfix_login(&fix, &gone, INISESS_NAME ":gone");
    inix_ready(&gone);
    inix_rw_cdb(cdb, true, 0, 16);
    for (int k = 0; k < 5; k++)
        assert_int_equal(ini_cmd(&gone, cdb, 10, out, sizeof out, NULL, 0, &r), 0);
    assert_int_equal(ini_logout(&gone), 0);
    ini_close(&gone);
    tgtfix_wait_sessions(&fix, 0);
    tgtfix_login(&fix, &here, INISESS_NAME ":here");
    inix_ready(&here);
    inix_rw_cdb(cdb, false, 0, 16);
    for (int k = 0; k < 7; k++)
        assert_int_equal(ini_cmd(&here, cdb, 10, NULL, 0, in, sizeof in, &r), 0);
    json_t *before = stats();
    for (int k = 0; k < 2; k++)
        assert_int_equal(tgtfix_call(&fix, hand_over, NULL), 0);
    json_t *after = stats();
    json_object_del(json_array_get(json_object_get(before, "sessions"), 0), "age");
    json_object_del(json_array_get(json_object_get(after, "sessions"), 0), "age");
    assert_true(json_equal(before, after));
    json_t *disk = json_object_get(after, "disk");
    assert_int_equal(json_integer_value(json_object_get(disk, "writes")), 5);
    assert_int_equal(json_integer_value(json_object_get(disk, "read-bytes")), 7 * 8192);
    assert_int_equal(json_integer_value(json_object_get(json_object_get(disk, "read-latency"), "count")), 7);
    assert_int_equal(ini_cmd(&here, cdb, 10, NULL, 0, in, sizeof in, &r), 0);
    tgtfix_login(&fix, &none, INISESS_NAME ":new");
    json_decref(before);
    before = stats();
    assert_int_equal(json_integer_value(json_object_get(json_object_get(before, "disk"), "reads")), 8);
    json_t *list = json_object_get(before, "sessions");
    assert_int_equal(json_array_size(list), 2);
    assert_int_not_equal(json_integer_value(json_object_get(json_array_get(list, 0), "id")), json_integer_value(json_object_get(json_array_get(list, 1), "id")));
    json_decref(before);
    json_decref(after);
    ini_close(&none);
    ini_close(&here);
    tgtfix_wait_sessions(&fix, 0);
}

/* Commands in the socket and in the buffer, a header cut in the middle, and a write whose data come behind other commands. */
static void in_the_stream(void **state)
{
    static uint8_t out[16384];
    uint8_t b[TGT_BHS_LEN], r2t[TGT_BHS_LEN], cdb[10];
    struct ini i;
    inix_pattern(out, sizeof out, 9);
    tgtfix_login(&fix, &i, INISESS_NAME ":a");
    inix_ready(&i);
    assert_int_equal(inix_send_rw(&i, i.cmdsn, 0x10, true, 0, 16), 0);
    inix_expect(&i, r2t, TGT_OP_R2T);
    pthread_t thread;
    int result = -1;
    assert_int_equal(pthread_create(&thread, NULL, hand_over_thread, &result), 0);
    usleep(100000);                                                   /* coming to rest, for want of the write's data */
    assert_int_equal(inix_send_rw(&i, i.cmdsn, 0x11, false, 0, 8), 0); /* it must be read past this */
    inix_rw_cdb(cdb, true, 64, 8);
    ini_cmd_bhs(&i, b, cdb, 10, TGT_FINAL | TGT_CMD_WRITE, 4096); /* and this, which brings data of its own */
    gr_put_be32(b + 16, 0x12);
    assert_int_equal(ini_send(&i, b, out + 8192, 4096), 0);
    assert_int_equal(inix_send_out(&i, r2t, 0, 0, 4096, false, out), 0);
    usleep(20000);
    ini_cmd_bhs(&i, b, (uint8_t[6]){0}, 6, TGT_FINAL, 0);
    gr_put_be32(b + 16, 0x13);
    assert_int_equal(inix_send_out(&i, r2t, 1, 4096, 4096, true, out), 0);
    assert_int_equal(ini_send_raw(&i, b, 17), 0); /* a piece of the next */
    pthread_join(thread, NULL);
    assert_int_equal(result, 0);
    assert_int_equal(ini_send_raw(&i, b + 17, TGT_BHS_LEN - 17), 0);
    inix_good(&i, 0x10);
    assert_int_equal(inix_expect(&i, b, TGT_OP_DATA_IN), 4096);
    assert_int_equal(tgt_bhs_itt(b), 0x11);
    assert_memory_equal(inix_seg, out, 4096);
    inix_take_status(&i, b);
    inix_good(&i, 0x12);
    inix_good(&i, 0x13);
    inisess_check_disk(&fix, 0, out, 16);
    inisess_check_disk(&fix, 64, out + 8192, 8);
    ini_close(&i);
    tgtfix_wait_sessions(&fix, 0);
}

/* A session of several connections; one command waits for another that is still to come on the other connection. */
static void several_connections(void **state)
{
    struct ini a, b;
    pthread_t thread;
    int result = -1;
    LEAD(&a, TGTFIX_TARGET, KEYS_ERL0);
    assert_int_equal(JOIN(&b, &a, 1, TGTFIX_TARGET), 0);
    inix_ready(&a);
    uint32_t sn = a.cmdsn;
    assert_int_equal(inix_send_rw(&b, sn + 1, 0x21, false, 8, 8), 0); /* held */
    usleep(20000);
    assert_int_equal(pthread_create(&thread, NULL, hand_over_thread, &result), 0);
    usleep(50000);
    assert_int_equal(inix_send_rw(&a, sn, 0x20, false, 0, 8), 0);
    pthread_join(thread, NULL);
    assert_int_equal(result, 0);
    uint8_t p[TGT_BHS_LEN];
    inix_expect(&a, p, TGT_OP_DATA_IN);
    inix_take_status(&a, p);
    inix_expect(&b, p, TGT_OP_DATA_IN);
    inix_take_status(&b, p);
    assert_int_equal(inix_send_rw(&b, sn + 2, 0x22, false, 16, 8), 0);
    inix_expect(&b, p, TGT_OP_DATA_IN);
    assert_int_equal(tgt_bhs_itt(p), 0x22);
    ini_close(&a);
    ini_close(&b);
    tgtfix_wait_sessions(&fix, 0);
}

/* One that never sends its data: it is named, and everything goes on as before, what was left unread included. */
static void no_rest(void **state)
{
    static uint8_t out[8192];
    uint8_t r2t[TGT_BHS_LEN], b[TGT_BHS_LEN];
    struct ini i, j;
    pthread_t thread;
    int result = 0;
    tgtfix_login(&fix, &i, INISESS_NAME ":slow");
    tgtfix_login(&fix, &j, INISESS_NAME ":other");
    inix_ready(&i);
    inix_ready(&j);
    assert_int_equal(inix_send_rw(&i, i.cmdsn, 0x10, true, 0, 16), 0);
    inix_expect(&i, r2t, TGT_OP_R2T);
    assert_int_equal(pthread_create(&thread, NULL, hand_over_thread, &result), 0);
    usleep(100000);
    assert_int_equal(inix_send_rw(&j, j.cmdsn, 0x30, false, 0, 8), 0); /* left in its socket */
    assert_int_equal(inix_send_rw(&i, i.cmdsn, 0x11, false, 0, 8), 0); /* parked */
    inix_silent(&j, 100);
    pthread_join(thread, NULL);
    assert_int_equal(result, -EBUSY);
    inix_expect(&j, b, TGT_OP_DATA_IN);
    inix_expect(&i, b, TGT_OP_DATA_IN);
    assert_int_equal(tgt_bhs_itt(b), 0x11);
    inix_take_status(&i, b);
    assert_int_equal(inix_send_out(&i, r2t, 0, 0, 8192, true, out), 0);
    inix_good(&i, 0x10);
    ini_close(&i);
    ini_close(&j);
    tgtfix_wait_sessions(&fix, 0);
}

/* Again and again under load, with verification. */
static void under_load(void **state)
{
    struct witness *w = witness_start(&fix);
    unsigned rounds = test_cases(60);
    for (unsigned k = 0; k < rounds; k++) {
        assert_int_equal(tgtfix_call(&fix, hand_over, NULL), 0);
        usleep(3000);
    }
    witness_stop(w);
    tgtfix_wait_sessions(&fix, 0);
}

TGTFIX_MAIN(NULL, NULL,
    TGTFIX_CASE(idle), TGTFIX_CASE(statistics), TGTFIX_CASE(in_the_stream), TGTFIX_CASE(several_connections), TGTFIX_CASE(no_rest), TGTFIX_CASE(under_load))
