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
#include <time.h>
#include <unistd.h>

static struct tgtfix fix = {.redirect = "10.1.2.3:3260", .store = true};

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

static int is_here(struct tgtfix *f, void *arg)
{
    f->elsewhere.here = arg != NULL;
    return 0;
}

/* Another host was quicker, and has the disk: whose portal leads to the owner goes there, and does not stand by. */
static void taken_by_another(void **state)
{
    const char *port[2] = {fix.port, fix.port3};
    const uint8_t tur[6] = {0};
    struct ini i[2];
    struct ini_result r;
    uint8_t b[TGT_BHS_LEN];
    tgtfix_call(&fix, is_here, &fix);
    for (int k = 0; k < 2; k++) {
        assert_int_equal(ini_connect(&i[k], "127.0.0.1", port[k]), 0);
        assert_int_equal(ini_login(&i[k], k ? INISESS_NAME ":b" : INISESS_NAME ":a", TGTFIX_ELSEWHERE, NULL, 0), 0);
        inix_ready(&i[k]);
    }
    assert_int_equal(tgtfix_call(&fix, hand_over, NULL), 0);
    for (int k = 0; k < 2; k++) {
        assert_int_equal(ini_cmd(&i[k], tur, 6, NULL, 0, NULL, 0, &r), 0);
        assert_int_equal(r.status, 0);
    }
    tgtfix_call(&fix, is_here, NULL);
    assert_int_equal(tgtfix_call(&fix, hand_over, NULL), 1);
    assert_int_equal(ini_recv(&i[0], b, NULL, 0), -EPIPE);
    assert_int_equal(ini_cmd(&i[1], tur, 6, NULL, 0, NULL, 0, &r), 0);
    assert_int_equal(r.status, 2);
    assert_int_equal(INI_ASC(r), 0x040b);
    for (int k = 0; k < 2; k++)
        ini_close(&i[k]);
    tgtfix_wait_sessions(&fix, 0);
}

static int two_answers_lost(struct tgtfix *f, void *arg)
{
    f->elsewhere.lost = 2;
    return 0;
}

/* What the disk's owner was asked to do and nobody heard of is the same one when it comes again, to whoever serves then. */
static void unsure(void **state)
{
    const uint8_t prout[10] = {0x5f, 0, [8] = 24};
    uint8_t list[24] = {0};
    struct ini a, b;
    struct ini_result r;
    assert_int_equal(ini_connect(&a, "127.0.0.1", fix.port3), 0);
    assert_int_equal(ini_login(&a, INISESS_NAME ":a", TGTFIX_ELSEWHERE, NULL, 0), 0);
    tgtfix_login(&fix, &b, INISESS_NAME ":b"); /* at the owner */
    gr_put_be64(list + 8, 0x1234);
    tgtfix_call(&fix, two_answers_lost, NULL);
    assert_int_equal(ini_cmd(&a, prout, 10, list, 24, NULL, 0, &r), 0);
    assert_int_equal(r.status, 8);
    assert_int_equal(tgtfix_call(&fix, hand_over, NULL), 0);
    assert_int_equal(ini_cmd(&a, prout, 10, list, 24, NULL, 0, &r), 0);
    assert_int_equal(r.status, 0);
    assert_int_equal(ini_cmd(&a, prout, 10, list, 24, NULL, 0, &r), 0);
    assert_int_equal(r.status, 0x18); /* another one: who is registered gives his key */
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

/* Acknowledge, as the target asks by a NOP-In. */
static void pong(struct ini *i)
{
    uint8_t ping[TGT_BHS_LEN], b[TGT_BHS_LEN];
    inix_expect(i, ping, TGT_OP_NOP_IN);
    tgt_bhs_start(b, TGT_OP_NOP_OUT, TGT_FINAL, TGT_TAG_NONE, 0);
    b[0] |= TGT_IMMEDIATE;
    gr_put_be32(b + 20, tgt_bhs_ttt(ping));
    gr_put_be32(b + 24, i->cmdsn);
    gr_put_be32(b + 28, i->expstatsn);
    assert_int_equal(ini_send(i, b, NULL, 0), 0);
}

/* The response to a function that ends tasks is not acknowledged yet: until it is nothing may overtake it, in no process. */
static void behind_a_fence(void **state)
{
    struct ini a, b;
    uint8_t p[TGT_BHS_LEN];
    pthread_t thread;
    int result = -1;
    LEAD(&a, TGTFIX_TARGET, KEYS_ERL0);
    assert_int_equal(JOIN(&b, &a, 1, TGTFIX_TARGET), 0);
    inix_ready(&a);
    tgt_bhs_start(p, TGT_OP_TMF, TGT_FINAL | TGT_TMF_ABORT_TASK_SET, 0x30, 0);
    p[0] |= TGT_IMMEDIATE;
    gr_put_be32(p + 20, TGT_TAG_NONE);
    gr_put_be32(p + 24, a.cmdsn);
    gr_put_be32(p + 28, a.expstatsn);
    assert_int_equal(ini_send(&a, p, NULL, 0), 0);
    b.cmdsn = a.cmdsn;
    pong(&b); /* what it was told at the login has come */
    inix_expect(&a, p, TGT_OP_TMF_RSP);
    inix_take_status(&a, p);
    assert_int_equal(pthread_create(&thread, NULL, hand_over_thread, &result), 0);
    usleep(50000);
    assert_int_equal(inix_send_rw(&b, a.cmdsn, 0x31, false, 0, 8), 0);
    inix_silent(&b, 50);
    assert_int_equal(result, -1);
    pong(&a);
    inix_expect(&b, p, TGT_OP_DATA_IN);
    inix_take_status(&b, p);
    pthread_join(thread, NULL);
    assert_int_equal(result, 0);
    ini_close(&a);
    ini_close(&b);
    tgtfix_wait_sessions(&fix, 0);
}

/* Answers that are not acknowledged: SNACK has them sent again by whoever is there, as they were. */
static void kept_answers(void **state)
{
    static uint8_t out[40960], in[40960];
    uint8_t got[10][TGT_BHS_LEN], sense[TGT_BHS_LEN], tmf[TGT_BHS_LEN], b[TGT_BHS_LEN], cdb[10], said[64];
    struct ini i;
    struct ini_result r;
    inix_pattern(out, sizeof out, 4);
    for (uint32_t k = 0; k < 80; k++) /* no block is like another */
        gr_put_be32(out + k * INIX_BLOCK, k);
    LEAD(&i, TGTFIX_TARGET, KEYS_ERL1);
    inix_rw_cdb(cdb, true, 500, 80);
    assert_int_equal(ini_cmd(&i, cdb, 10, out, sizeof out, NULL, 0, &r), 0);
    uint32_t sn = i.cmdsn, stuck = i.expstatsn;
    assert_int_equal(inix_send_rw(&i, sn, 70, false, 500, 80), 0);
    for (unsigned k = 0; k < 10; k++)
        assert_int_equal(inix_expect(&i, got[k], TGT_OP_DATA_IN), 4096);
    inix_rw_cdb(cdb, false, 0xfffffff0, 1); /* behind the end */
    ini_cmd_bhs(&i, b, cdb, 10, TGT_FINAL | TGT_CMD_READ, 512);
    gr_put_be32(b + 16, 71);
    gr_put_be32(b + 24, sn + 1);
    gr_put_be32(b + 28, stuck);
    assert_int_equal(ini_send(&i, b, NULL, 0), 0);
    int said_len = inix_expect(&i, sense, TGT_OP_SCSI_RSP);
    assert_true(said_len > 2 && said_len <= (int)sizeof said);
    memcpy(said, inix_seg, (size_t)said_len);
    tgt_bhs_start(b, TGT_OP_TMF, TGT_FINAL | TGT_TMF_ABORT_TASK_SET, 800, 0);
    b[0] |= TGT_IMMEDIATE;
    gr_put_be32(b + 24, sn + 2);
    gr_put_be32(b + 28, stuck);
    assert_int_equal(ini_send(&i, b, NULL, 0), 0);
    inix_expect(&i, tmf, TGT_OP_TMF_RSP);
    for (int k = 0; k < 2; k++)
        assert_int_equal(tgtfix_call(&fix, hand_over, NULL), 0);
    i.expstatsn = stuck;
    inix_snack(&i, 0, 70, TGT_TAG_NONE, 3, 3);
    for (unsigned k = 3; k < 6; k++) {
        assert_int_equal(inix_expect(&i, b, TGT_OP_DATA_IN), 4096);
        assert_memory_equal(b, got[k], 28);
        assert_memory_equal(b + 36, got[k] + 36, 12);
        assert_memory_equal(inix_seg, out + 4096 * k, 4096);
    }
    inix_snack(&i, 1, TGT_TAG_NONE, TGT_TAG_NONE, gr_get_be32(got[9] + 24), 3); /* the three answers */
    inix_expect(&i, b, TGT_OP_TMF_RSP); /* what is of no command goes first */
    assert_memory_equal(b, tmf, 28);
    assert_int_equal(inix_expect(&i, b, TGT_OP_DATA_IN), 4096);
    assert_memory_equal(b, got[9], 28);
    assert_memory_equal(inix_seg, out + 9 * 4096, 4096);
    assert_int_equal(inix_expect(&i, b, TGT_OP_SCSI_RSP), said_len);
    assert_memory_equal(b, sense, 28);
    assert_memory_equal(b + 36, sense + 36, 12);
    assert_memory_equal(inix_seg, said, said_len);
    inix_snack(&i, 3, 70, 0xabcd, 0, 0); /* all of it anew */
    memset(in, 0, sizeof in);
    for (unsigned k = 0; k < 10; k++) {
        assert_int_equal(inix_expect(&i, b, TGT_OP_DATA_IN), 4096);
        memcpy(in + gr_get_be32(b + 40), inix_seg, 4096);
    }
    assert_memory_equal(in, out, sizeof in);
    inix_expect(&i, b, TGT_OP_SCSI_RSP);
    inix_take_status(&i, b); /* all of them */
    inix_snack(&i, 0, 70, TGT_TAG_NONE, 0, 0);
    inix_expect(&i, b, TGT_OP_REJECT);
    assert_int_equal(b[2], TGT_REJECT_SNACK);
    inix_take_status(&i, b);
    i.cmdsn = sn + 2;
    inix_ready(&i);
    /* it never acknowledges anything, and keeps more than is carried */
    stuck = i.expstatsn;
    for (uint32_t k = 0; k < 300; k++) {
        i.expstatsn = stuck;
        assert_int_equal(inix_send_rw(&i, i.cmdsn, 1000 + k, false, 500, 80), 0);
        for (unsigned n = 0; n < 10; n++)
            inix_expect(&i, b, TGT_OP_DATA_IN);
    }
    assert_int_equal(inix_send_rw(&i, i.cmdsn, 1300, false, 524, 8), 0);
    inix_expect(&i, b, TGT_OP_DATA_IN);
    for (uint32_t k = 0; k < 70; k++) {
        tgt_bhs_start(b, TGT_OP_NOP_OUT, TGT_FINAL, 2000 + k, 0);
        b[0] |= TGT_IMMEDIATE;
        gr_put_be32(b + 20, TGT_TAG_NONE);
        gr_put_be32(b + 24, i.cmdsn);
        gr_put_be32(b + 28, stuck);
        assert_int_equal(ini_send(&i, b, NULL, 0), 0);
        inix_expect(&i, b, TGT_OP_NOP_IN);
    }
    assert_int_equal(tgtfix_call(&fix, hand_over, NULL), 0);
    i.expstatsn = stuck;
    inix_snack(&i, 0, 1299, TGT_TAG_NONE, 0, 1);
    assert_int_equal(inix_expect(&i, b, TGT_OP_DATA_IN), 4096);
    assert_memory_equal(inix_seg, out, 4096);
    inix_snack(&i, 0, 1300, TGT_TAG_NONE, 0, 1);
    assert_int_equal(inix_expect(&i, b, TGT_OP_DATA_IN), 4096);
    assert_memory_equal(inix_seg, out + 12288, 4096);
    ini_close(&i);
    tgtfix_wait_sessions(&fix, 0);
}

/* The connection of a command is lost (recovery level 2), and the server is another one before it is reassigned. */
static void reassigned(void **state)
{
    static uint8_t out[40960], in[40960];
    uint8_t b[TGT_BHS_LEN], cdb[10];
    struct ini a, c;
    struct ini_result r;
    inix_pattern(out, sizeof out, 5);
    for (uint32_t k = 0; k < 80; k++)
        gr_put_be32(out + k * INIX_BLOCK, k);
    LEAD(&a, TGTFIX_TARGET, KEYS_ERL2);
    inix_rw_cdb(cdb, true, 1000, 80);
    assert_int_equal(ini_cmd(&a, cdb, 10, out, sizeof out, NULL, 0, &r), 0);
    assert_int_equal(inix_send_rw(&a, a.cmdsn, 80, false, 1000, 80), 0);
    for (unsigned k = 0; k < 4; k++) {
        inix_expect(&a, b, TGT_OP_DATA_IN);
        memcpy(in + gr_get_be32(b + 40), inix_seg, 4096);
    }
    ini_close(&a); /* its only connection */
    usleep(20000);
    for (int k = 0; k < 2; k++)
        assert_int_equal(tgtfix_call(&fix, hand_over, NULL), 0);
    assert_int_equal(inisess_open(&fix, &c, &a, 1, TGTFIX_TARGET, "MaxRecvDataSegmentLength=8192", 30), 0);
    c.cmdsn = a.cmdsn;
    assert_int_equal(inix_reassign(&c, 4711, 0), TGT_TMF_NO_TASK);
    assert_int_equal(inix_reassign(&c, 80, 4), TGT_TMF_DONE);
    for (uint32_t at = 4 * 4096; at < sizeof in;) {
        int len = inix_expect(&c, b, TGT_OP_DATA_IN);
        assert_int_equal(gr_get_be32(b + 40), at);
        memcpy(in + at, inix_seg, (size_t)len);
        at += (uint32_t)len;
    }
    assert_int_equal(b[1] & 1, 1);
    inix_take_status(&c, b);
    assert_memory_equal(in, out, sizeof in);
    inix_ready(&c);
    ini_close(&c);
    usleep(20000);
    assert_int_equal(tgtfix_call(&fix, hand_over, NULL), 0);
    tgtfix_wait_sessions(&fix, 0); /* nobody comes back: not for ever */
}

static void *late_thread(void *arg)
{
    struct ini *i = arg;
    (void)ini_login(i, INISESS_NAME ":late", TGTFIX_TARGET, NULL, 0);
    return NULL;
}

/* The first start of a virtual machine. */
static void *start_thread(void *arg)
{
    struct ini *i = arg;
    (void)ini_login(i, INISESS_NAME ":vm-6f0dc1a5-3b8e-4b2e-9d0c-2b1f7b6f4a11:1", TGTFIX_TARGET, NULL, 0);
    return NULL;
}

static void ready_and_gone(struct ini *i)
{
    assert_int_equal(i->login_status, 0);
    inix_ready(i);
    assert_int_equal(ini_logout(i), 0);
    ini_close(i);
}

/* One that never sends its data: it is named, and everything goes on as before, what was left unread included. */
static void no_rest(void **state)
{
    static uint8_t out[8192];
    uint8_t r2t[TGT_BHS_LEN], b[TGT_BHS_LEN];
    struct ini i, j, late;
    pthread_t thread, other;
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
    assert_int_equal(ini_connect(&late, "127.0.0.1", fix.port), 0);
    late.login_status = 0xffff;
    assert_int_equal(pthread_create(&other, NULL, late_thread, &late), 0); /* it comes in, after all */
    inix_silent(&j, 100);
    pthread_join(thread, NULL);
    assert_int_equal(result, -EBUSY);
    pthread_join(other, NULL);
    ready_and_gone(&late);
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

static uint64_t ms(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

static int login_first(struct ini *i)
{
    static const char keys[] = "InitiatorName=" INISESS_NAME ":half\0TargetName=" TGTFIX_TARGET "\0SessionType=Normal\0AuthMethod=None";
    assert_int_equal(ini_connect(i, "127.0.0.1", fix.port), 0);
    return ini_login_request(i, 0, 1, 1, keys, sizeof keys);
}

/* A login that is under way ends with who began it; who comes meanwhile waits for the next. */
static void logins_under_way(void **state)
{
    struct ini half, late;
    pthread_t thread, other;
    int result = -1;
    uint8_t byte;
    assert_int_equal(login_first(&half) & 0x83, 0x81);
    assert_int_equal(pthread_create(&thread, NULL, hand_over_thread, &result), 0);
    usleep(100000);
    assert_int_equal(result, -1);
    assert_int_equal(ini_connect(&late, "127.0.0.1", fix.port), 0);
    late.login_status = 0xffff;
    assert_int_equal(pthread_create(&other, NULL, late_thread, &late), 0);
    usleep(100000);
    assert_int_equal(late.login_status, 0xffff); /* neither answered nor cut */
    assert_int_equal(recv(late.fd, &byte, 1, MSG_DONTWAIT | MSG_PEEK), -1);
    assert_int_equal(errno, EAGAIN);
    assert_int_equal(ini_login_request(&half, 1, 3, 1, "MaxRecvDataSegmentLength=65536", 31) & 0x83, 0x83);
    pthread_join(thread, NULL);
    assert_int_equal(result, 0);
    pthread_join(other, NULL);
    ready_and_gone(&half);
    ready_and_gone(&late);
    tgtfix_wait_sessions(&fix, 0);
}

/* Nothing of it is in the login process any more, and what makes it a session waits for the store. */
static void half_a_session(void **state)
{
    struct ini i;
    pthread_t thread;
    fix.store_ms = 300;
    assert_int_equal(ini_connect(&i, "127.0.0.1", fix.port), 0);
    i.login_status = 0xffff;
    assert_int_equal(pthread_create(&thread, NULL, start_thread, &i), 0);
    usleep(100000);
    assert_int_equal(i.login_status, 0xffff);
    assert_int_equal(tgtfix_call(&fix, hand_over, NULL), 0);
    pthread_join(thread, NULL);
    fix.store_ms = 0;
    ready_and_gone(&i);
    tgtfix_wait_sessions(&fix, 0);
}

/* One that only stands in the door does not hold it up for long. */
static void stranger(void **state)
{
    struct ini idle;
    uint8_t byte;
    assert_int_equal(ini_connect(&idle, "127.0.0.1", fix.port), 0);
    usleep(50000);
    uint64_t began = ms();
    assert_int_equal(tgtfix_call(&fix, hand_over, NULL), 0);
    assert_true(ms() - began < 4000);
    assert_true(recv(idle.fd, &byte, 1, 0) <= 0);
    ini_close(&idle);
}

static int slow_looks(struct tgtfix *f, void *arg)
{
    f->elsewhere.look_ms = arg ? 300 : 0;
    return 0;
}

/* Who knocks while sessions are taken over comes behind them: it gets no number that one of them has. */
static void behind_the_sessions(void **state)
{
    struct ini old, half, late;
    pthread_t thread, other;
    int result = -1;
    assert_int_equal(ini_connect(&old, "127.0.0.1", fix.port3), 0);
    assert_int_equal(ini_login(&old, INISESS_NAME ":a", TGTFIX_ELSEWHERE, NULL, 0), 0);
    tgtfix_call(&fix, slow_looks, &fix);
    assert_int_equal(login_first(&half) & 0x83, 0x81);
    assert_int_equal(pthread_create(&thread, NULL, hand_over_thread, &result), 0);
    usleep(50000);
    assert_int_equal(ini_connect(&late, "127.0.0.1", fix.port), 0);
    late.login_status = 0xffff;
    assert_int_equal(pthread_create(&other, NULL, late_thread, &late), 0);
    usleep(50000);
    ini_close(&half);
    pthread_join(thread, NULL);
    assert_int_equal(result, 0);
    pthread_join(other, NULL);
    assert_int_equal(late.login_status, 0);
    tgtfix_call(&fix, slow_looks, NULL);
    json_t *told = stats(), *list = json_object_get(told, "sessions");
    assert_int_equal(json_array_size(list), 2);
    assert_int_not_equal(json_integer_value(json_object_get(json_array_get(list, 0), "id")), json_integer_value(json_object_get(json_array_get(list, 1), "id")));
    json_decref(told);
    ini_close(&old);
    ready_and_gone(&late);
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
    TGTFIX_CASE(idle), TGTFIX_CASE(taken_by_another), TGTFIX_CASE(unsure), TGTFIX_CASE(statistics), TGTFIX_CASE(in_the_stream), TGTFIX_CASE(several_connections), TGTFIX_CASE(behind_a_fence), TGTFIX_CASE(kept_answers), TGTFIX_CASE(reassigned), TGTFIX_CASE(no_rest), TGTFIX_CASE(logins_under_way), TGTFIX_CASE(half_a_session), TGTFIX_CASE(stranger), TGTFIX_CASE(behind_the_sessions), TGTFIX_CASE(under_load))
