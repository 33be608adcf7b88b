/* Access states by ownership (SPC-4 5.15.2): a disk of another host on the portal that never redirects, and how it becomes active. */
#include "common/b64.h"
#include "common/cleanup.h"
#include "tests/lib/inisess.h"
#include "tests/lib/test.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define STANDBY 0x040b
#define CHANGED 0x2a06
#define BUSY 8
static struct tgtfix fix = {.redirect = "10.1.2.3:3260", .store = true};

static int teardown(void **state)
{
    (void)state;
    tgtfix_stop(&fix);
    return 0;
}

static int now_here(struct tgtfix *f, void *arg)
{
    (void)arg;
    f->elsewhere.here = true;
    return 0;
}

static int now_gone(struct tgtfix *f, void *arg)
{
    (void)arg;
    f->elsewhere.gone = true;
    return 0;
}

static int grown(struct tgtfix *f, void *arg)
{
    (void)arg;
    f->elsewhere.size = 2 * TGTFIX_SIZE;
    return 0;
}

static unsigned login(struct ini *i, const char *port, const char *initiator)
{
    assert_int_equal(ini_connect(i, "127.0.0.1", port), 0);
    assert_true(ini_login(i, initiator, TGTFIX_ELSEWHERE, NULL, 0) >= 0);
    return i->login_status;
}

static struct ini_result command(struct ini *i, const uint8_t *cdb, unsigned len, void *in, uint32_t in_len)
{
    struct ini_result res;
    assert_int_equal(ini_cmd(i, cdb, len, NULL, 0, in, in_len, &res), 0);
    return res;
}

static void expect_sense(struct ini *i, const uint8_t *cdb, unsigned len, uint32_t in_len, unsigned key, unsigned asc)
{
    uint8_t in[512];
    struct ini_result res = command(i, cdb, len, in_len ? in : NULL, in_len);
    assert_int_equal(res.status, 2);
    assert_int_equal(INI_KEY(res), key);
    assert_int_equal(INI_ASC(res), asc);
}

static const uint8_t ready[6] = {0}, rtpg[12] = {0xa3, 0x0a, [9] = 255}, read10[10] = {0x28, [8] = 1}, capacity[10] = {0x25};

static void no_more_ua(struct ini *i)
{
    assert_int_equal(command(i, ready, 6, NULL, 0).status, 0);
}

/* The states that the target reports, by group. -1: that group is not there. */
static void states(struct ini *i, int *ret_own, int *ret_other)
{
    uint8_t p[255];
    struct ini_result res = command(i, rtpg, 12, p, sizeof p);
    assert_int_equal(res.status, 0);
    assert_int_equal(gr_get_be32(p), res.in_len - 4);
    *ret_own = *ret_other = -1;
    for (unsigned k = 4; k < res.in_len; k += 12) {
        assert_int_equal(p[k + 7], 1);
        assert_int_equal(gr_get_be16(p + k + 10), gr_get_be16(p + k + 2));
        *(gr_get_be16(p + k + 2) == 7 ? ret_own : ret_other) = p[k] & 15;
    }
}

static void portals(void **state)
{
    struct ini i;
    assert_int_equal(login(&i, fix.port, INISESS_NAME ":a"), 0x0101); /* the first one redirects */
    ini_close(&i);
    assert_int_equal(login(&i, fix.port3, INISESS_NAME ":a"), 0);
    assert_string_equal(ini_key(&i, "TargetPortalGroupTag"), "7");
    struct ini j;
    assert_int_equal(login(&j, fix.port, INISESS_NAME ":b"), 0x0101); /* also while the other one serves it */
    ini_close(&j);
    ini_close(&i);
    tgtfix_wait_sessions(&fix, 0);
}

/* What a unit in standby tells, and what it does not do. */
static void tells(void **state)
{
    static const uint8_t inquiry[6] = {0x12, [4] = 96}, ports[6] = {0x12, 1, 0x83, [4] = 255}, luns[12] = {0xa0, [9] = 64}, mode[6] = {0x1a, [2] = 0x3f, [4] = 255};
    static const uint8_t capacity16[16] = {0x9e, 0x10, [13] = 32};
    static const uint8_t refused[][16] = {{0x2a, [8] = 1}, {0x35}, {0x88, [13] = 1}, {0x42}, {0x1b}, {0x16}, {0x1e}, {0x9e, 0x12, [13] = 24}, {0x8f}};
    struct ini i;
    uint8_t p[255];
    int own, other;
    assert_int_equal(login(&i, fix.port3, INISESS_NAME ":a"), 0);
    assert_int_equal(command(&i, inquiry, 6, p, 96).status, 0);
    assert_int_equal(p[0], 0);
    assert_int_equal(p[5] & 0x30, 0x10); /* TPGS: implicit */
    struct ini_result res = command(&i, ports, 6, p, sizeof p);
    assert_int_equal(res.status, 0);
    bool group = false;
    for (unsigned k = 4; k + 4 <= res.in_len; k += 4u + p[k + 3])
        group = group || ((p[k + 1] & 15) == 5 && gr_get_be16(p + k + 6) == 7);
    assert_true(group);
    assert_int_equal(command(&i, luns, 12, p, 64).status, 0);
    assert_int_equal(command(&i, mode, 6, p, 255).status, 0);
    assert_int_equal(command(&i, capacity, 10, p, 8).status, 0);
    assert_int_equal(gr_get_be32(p), TGTFIX_SIZE / 512 - 1);
    assert_int_equal(command(&i, capacity16, 16, p, 32).status, 0);
    states(&i, &own, &other);
    assert_int_equal(own, 2);
    assert_int_equal(other, 0);
    expect_sense(&i, ready, 6, 0, 2, STANDBY);
    expect_sense(&i, read10, 10, 512, 2, STANDBY);
    for (size_t k = 0; k < GR_ARRAY_LEN(refused); k++)
        expect_sense(&i, refused[k], refused[k][0] >> 5 == 0 ? 6 : refused[k][0] >> 5 == 4 ? 16 : 10, 0, 2, STANDBY);
    ini_close(&i);
    tgtfix_wait_sessions(&fix, 0);
}

/* The owner is gone: who asks for the states learns that this one is active now, the others by a unit attention. */
static void becomes_active(void **state)
{
    struct ini a, b, late;
    uint8_t in[512], out[512];
    int own, other;
    assert_int_equal(login(&a, fix.port3, INISESS_NAME ":a"), 0);
    assert_int_equal(login(&b, fix.port3, INISESS_NAME ":b"), 0);
    expect_sense(&a, ready, 6, 0, 2, STANDBY);
    expect_sense(&b, ready, 6, 0, 2, STANDBY);
    tgtfix_call(&fix, now_here, NULL);
    states(&a, &own, &other);
    assert_int_equal(own, 0);
    assert_int_equal(other, 2);
    inix_pattern(out, sizeof out, 1);
    static const uint8_t write10[10] = {0x2a, [8] = 1};
    struct ini_result res;
    assert_int_equal(ini_cmd(&a, write10, 10, out, 512, NULL, 0, &res), 0);
    assert_int_equal(res.status, 0);
    expect_sense(&b, ready, 6, 0, 6, CHANGED);
    assert_int_equal(command(&b, read10, 10, in, 512).status, 0);
    assert_memory_equal(in, out, 512);
    assert_int_equal(login(&late, fix.port, INISESS_NAME ":c"), 0); /* no redirect any more */
    no_more_ua(&late);
    ini_close(&a);
    ini_close(&b);
    ini_close(&late);
    tgtfix_wait_sessions(&fix, 0);
}

/* An initiator that only sends commands finds it active, too. */
static void found_by_commands(void **state)
{
    struct ini i;
    uint8_t in[512];
    assert_int_equal(login(&i, fix.port3, INISESS_NAME ":a"), 0);
    tgtfix_call(&fix, now_here, NULL);
    struct ini_result res;
    unsigned refused = 0;
    for (;; usleep(20000)) {
        res = command(&i, read10, 10, in, 512);
        if (res.status == 0)
            break;
        assert_true(INI_ASC(res) == STANDBY || INI_ASC(res) == CHANGED);
        assert_true(++refused < 200);
    }
    assert_true(refused >= 2); /* in standby, then told of the change */
    ini_close(&i);
    tgtfix_wait_sessions(&fix, 0);
}

/* ---- reservations: the owner has them ---- */
static struct ini_result reserve_list(struct ini *i, unsigned action, unsigned type, uint64_t key, uint64_t new_key, uint8_t flags, uint32_t len)
{
    const uint8_t cdb[10] = {0x5f, (uint8_t)action, (uint8_t)type, [8] = (uint8_t)len};
    uint8_t list[24] = {[20] = flags};
    struct ini_result res;
    gr_put_be64(list, key);
    gr_put_be64(list + 8, new_key);
    assert_int_equal(ini_cmd(i, cdb, 10, list, len, NULL, 0, &res), 0);
    return res;
}

static uint8_t reserve(struct ini *i, unsigned action, unsigned type, uint64_t key, uint64_t new_key)
{
    return reserve_list(i, action, type, key, new_key, 0, 24).status;
}

/* PERSISTENT RESERVE IN: the keys, or of whom the reservation is; how many bytes. */
static uint32_t reservations(struct ini *i, unsigned action, uint64_t ret[4])
{
    const uint8_t cdb[10] = {0x5e, (uint8_t)action, [8] = 64};
    uint8_t in[64] = {0};
    struct ini_result res = command(i, cdb, 10, in, sizeof in);
    assert_int_equal(res.status, 0);
    for (unsigned k = 0; k < 4; k++)
        ret[k] = gr_get_be64(in + 8 + 8 * k);
    return gr_get_be32(in + 4);
}

static int owner_is_mute(struct tgtfix *f, void *arg)
{
    f->elsewhere.mute = true;
    return 0;
}

static void owner_has_reservations(void **state)
{
    struct ini a, b;
    uint8_t in[512];
    uint64_t v[4];
    assert_int_equal(login(&a, fix.port3, INISESS_NAME ":a"), 0); /* its path ends in standby */
    tgtfix_login(&fix, &b, INISESS_NAME ":b");                    /* at the owner */
    assert_int_equal(reserve(&a, 0, 0, 0, 0xa1), 0);
    assert_int_equal(reserve(&a, 0, 0, 0xbad, 0xa2), 0x18);
    assert_int_equal(reservations(&b, 0, v), 8);
    assert_true(v[0] == 0xa1);
    assert_int_equal(reserve(&a, 1, 6, 0xa1, 0), 0);
    assert_int_equal(command(&b, read10, 10, in, 512).status, 0x18);
    assert_int_equal(reservations(&a, 1, v), 16);
    assert_true(v[0] == 0xa1);
    static const uint8_t full[10] = {0x5e, 3, [8] = 255}, abilities[10] = {0x5e, 2, [8] = 8};
    uint8_t status[255] = {0};
    assert_int_equal(command(&a, full, 10, status, 255).status, 0);
    assert_memory_equal(status + 8 + 28, INISESS_NAME ":a,i,0x", strlen(INISESS_NAME ":a,i,0x"));
    assert_int_equal(command(&a, abilities, 10, status, 8).status, 0);
    assert_int_equal(gr_get_be16(status), 8);
    /* what is wrong is said as the owner says it */
    struct ini_result res = reserve_list(&a, 0, 0, 0xa1, 0xa2, 0x08, 24);
    assert_int_equal(res.status, 2);
    assert_int_equal(INI_ASC(res), 0x2600);
    res = reserve_list(&a, 0, 0, 0xa1, 0xa2, 0, 20);
    assert_int_equal(INI_ASC(res), 0x1a00);
    res = reserve_list(&a, 2, 5, 0xa1, 0, 0, 24);
    assert_int_equal(INI_ASC(res), 0x2604);
    /* who is preempted is told on his path, wherever it ends */
    assert_int_equal(reserve(&b, 6, 0, 0, 0xb1), 0);
    assert_int_equal(reserve(&b, 5, 6, 0xb1, 0xa1), 0);
    for (int k = 0; k < 200; k++) {
        res = command(&a, ready, 6, NULL, 0);
        if (INI_KEY(res) == 6)
            break;
        assert_int_equal(INI_ASC(res), STANDBY);
        usleep(10000);
    }
    assert_int_equal(INI_KEY(res), 6);
    assert_int_equal(INI_ASC(res), 0x2a05);
    assert_int_equal(reservations(&a, 0, v), 8);
    assert_true(v[0] == 0xb1);
    /* its owner is silent: later */
    tgtfix_call(&fix, owner_is_mute, NULL);
    assert_int_equal(command(&a, full, 10, status, 255).status, BUSY);
    assert_int_equal(reserve(&a, 6, 0, 0, 0xa1), BUSY);
    ini_close(&a);
    ini_close(&b);
    tgtfix_wait_sessions(&fix, 0);
}

static int two_answers_lost(struct tgtfix *f, void *arg)
{
    (void)arg;
    f->elsewhere.lost = 2;
    return 0;
}

static int answer_lost(struct tgtfix *f, void *arg)
{
    f->elsewhere.dies = arg != NULL;
    f->elsewhere.lost = 1;
    return 0;
}

/* What the owner did, and said in vain, is not done again, whoever the owner is by then. */
static void answers_are_lost(void **state)
{
    struct ini a, b;
    uint64_t v[4];
    assert_int_equal(login(&a, fix.port3, INISESS_NAME ":a"), 0);
    tgtfix_login(&fix, &b, INISESS_NAME ":b");
    assert_int_equal(reserve(&b, 6, 0, 0, 0xb1), 0);
    tgtfix_call(&fix, answer_lost, NULL);
    assert_int_equal(reserve(&a, 0, 0, 0, 0xa1), 0);
    tgtfix_call(&fix, answer_lost, NULL);
    assert_int_equal(reserve(&a, 4, 6, 0xa1, 0xb1), 0);
    struct ini_result res = command(&b, ready, 6, NULL, 0);
    assert_int_equal(INI_ASC(res), 0x2a05);
    no_more_ua(&b);
    assert_int_equal(reservations(&b, 0, v), 8);
    assert_true(v[0] == 0xa1);
    /* as often as it is asked: its initiator is told to come again, and that is the same one */
    tgtfix_call(&fix, two_answers_lost, NULL);
    assert_int_equal(reserve(&a, 0, 0, 0xa1, 0xa2), BUSY);
    assert_int_equal(reserve(&a, 0, 0, 0xa1, 0xa2), 0);
    assert_int_equal(reserve(&a, 0, 0, 0xa1, 0xa2), 0x18); /* but this is another one */
    tgtfix_call(&fix, two_answers_lost, NULL);
    assert_int_equal(reserve(&a, 0, 0, 0xa2, 0), BUSY);
    assert_int_equal(reserve(&a, 0, 0, 0, 0xa3), 0); /* not that one */
    assert_int_equal(reserve(&a, 0, 0, 0xa2, 0), 0x18);
    /* more than are remembered */
    for (unsigned k = 0; k < 40; k++)
        assert_int_equal(reserve(&a, 0, 0, 0xa3 + k, 0xa4 + k), 0);
    tgtfix_call(&fix, answer_lost, NULL);
    assert_int_equal(reserve(&a, 3, 0, 0xa3 + 40, 0), 0); /* CLEAR: none is left */
    assert_int_equal(reservations(&b, 0, v), 0);
    /* the owner is gone with its answer, and the disk is owned here */
    assert_int_equal(reserve(&a, 0, 0, 0, 0xa1), 0);
    tgtfix_call(&fix, answer_lost, &fix);
    assert_int_equal(reserve(&a, 0, 0, 0xa1, 0xa2), 0);
    res = command(&a, ready, 6, NULL, 0);
    assert_int_equal(INI_ASC(res), CHANGED);
    no_more_ua(&a);
    assert_int_equal(reservations(&a, 0, v), 8);
    assert_true(v[0] == 0xa2);
    ini_close(&a);
    ini_close(&b);
    tgtfix_wait_sessions(&fix, 0);
}

/* Whose registration was taken away meanwhile, and who was told so, means it anew: that it was done before is no answer. */
static void lost_before_preempted(void **state)
{
    struct ini a, b;
    uint64_t v[4];
    assert_int_equal(login(&a, fix.port3, INISESS_NAME ":a"), 0);
    tgtfix_login(&fix, &b, INISESS_NAME ":b");
    assert_int_equal(reserve(&a, 0, 0, 0, 0xa1), 0);
    assert_int_equal(reserve(&b, 0, 0, 0, 0xb1), 0);
    tgtfix_call(&fix, two_answers_lost, NULL);
    assert_int_equal(reserve(&a, 1, 1, 0xa1, 0), BUSY);
    assert_int_equal(reserve(&b, 4, 1, 0xb1, 0xa1), 0); /* the holder, and his registration */
    unsigned waited = 0;
    struct ini_result res;
    do {
        usleep(10000);
        res = command(&a, ready, 6, NULL, 0);
    } while (INI_KEY(res) != 6 && ++waited < 500);
    assert_int_equal(INI_ASC(res), 0x2a05);
    assert_int_equal(reserve(&a, 1, 1, 0xa1, 0), 0x18);
    assert_int_equal(reservations(&a, 1, v), 16);
    assert_true(v[0] == 0xb1);
    ini_close(&a);
    ini_close(&b);
    tgtfix_wait_sessions(&fix, 0);
}

/* RESERVE(6) is for the path that the owner serves; what is only answered again was done before somebody had it. */
static void beside_reserve6(void **state)
{
    static const uint8_t reserve6[6] = {0x16}, release6[6] = {0x17};
    struct ini a, b;
    uint64_t v[4];
    assert_int_equal(login(&a, fix.port3, INISESS_NAME ":a"), 0);
    tgtfix_login(&fix, &b, INISESS_NAME ":b");
    assert_int_equal(reserve(&a, 0, 0, 0, 0xa1), 0);
    assert_int_equal(command(&b, reserve6, 6, NULL, 0).status, 0x18); /* somebody is registered */
    tgtfix_call(&fix, two_answers_lost, NULL);
    assert_int_equal(reserve(&a, 0, 0, 0xa1, 0), BUSY); /* nobody is any more, which its initiator does not know */
    expect_sense(&a, reserve6, 6, 0, 2, STANDBY);
    expect_sense(&a, release6, 6, 0, 2, STANDBY);
    assert_int_equal(command(&b, reserve6, 6, NULL, 0).status, 0);
    assert_int_equal(reserve(&a, 0, 0, 0xa1, 0), 0); /* so it was */
    assert_int_equal(reserve(&a, 0, 0, 0, 0xa2), 0x18);
    tgtfix_call(&fix, two_answers_lost, NULL);
    assert_int_equal(reserve(&a, 0, 0, 0, 0xa2), BUSY); /* a conflict that nobody heard of is not remembered */
    assert_int_equal(command(&b, release6, 6, NULL, 0).status, 0);
    assert_int_equal(reserve(&a, 0, 0, 0, 0xa2), 0);
    assert_int_equal(reservations(&b, 0, v), 8);
    ini_close(&a);
    ini_close(&b);
    tgtfix_wait_sessions(&fix, 0);
}

static int store_takes(struct tgtfix *f, void *arg)
{
    f->store_held = arg != NULL;
    return 0;
}

static int storing(struct tgtfix *f, void *arg)
{
    return (int)f->storing;
}

/* Another host asks for a registration, and gives that up. On the loop. */
static int given_up(struct tgtfix *f, void *arg)
{
    char *path = test_path("peer.sock");
    struct gr_rpc_server *rpc = NULL;
    struct gr_rpc_client *c = NULL;
    uint8_t list[24] = {0};
    assert_int_equal(gr_rpc_server_new(f->loop, &rpc), 0);
    assert_int_equal(gr_rpc_server_add(rpc, tgt_host_methods, f->server), 0);
    assert_int_equal(gr_rpc_server_listen(rpc, path, NULL), 0);
    assert_int_equal(gr_rpc_connect(f->loop, path, &c, NULL), 0);
    gr_put_be64(list + 8, 0xa1);
    gr_auto_free char *data = gr_b64_encode(list, sizeof list);
    json_t *params = json_pack("{s:s,s:s,s:s,s:s,s:s,s:s}", "disk", "t/disk", "initiator", INISESS_NAME ":a", "isid", "800000000001", "cdb", "5f000000000000001800",
                               "data", data, "id", "0000000000000077");
    int r = gr_rpc_call(c, "lun.reserve", params, NULL, NULL, 200, NULL, NULL);
    gr_rpc_client_free(c);
    gr_fiber_sleep_ms(20); /* the owner hears of it */
    f->store_held = false;
    gr_rpc_server_free(rpc);
    free(path);
    return r;
}

/* What was given up while it waited at the owner is not done when its turn comes: its initiator may have asked for something else since. */
static void given_up_in_time(void **state)
{
    const uint8_t cdb[10] = {0x5f, 6, [8] = 24};
    uint8_t list[24] = {0}, bhs[TGT_BHS_LEN];
    struct ini b;
    uint64_t v[4];
    tgtfix_login(&fix, &b, INISESS_NAME ":b");
    tgtfix_call(&fix, store_takes, &fix);
    gr_put_be64(list + 8, 0xb1);
    ini_cmd_bhs(&b, bhs, cdb, 10, TGT_FINAL | TGT_CMD_WRITE, sizeof list);
    assert_int_equal(ini_send(&b, bhs, list, sizeof list), 0);
    for (int k = 0; !tgtfix_call(&fix, storing, NULL); k++) {
        assert_true(k < 5000);
        usleep(2000);
    }
    assert_int_equal(tgtfix_call(&fix, given_up, NULL), -ETIMEDOUT);
    assert_true(ini_recv(&b, bhs, list, sizeof list) >= 0);
    assert_int_equal(tgt_bhs_opcode(bhs), TGT_OP_SCSI_RSP);
    assert_int_equal(bhs[3], 0);
    assert_int_equal(reservations(&b, 0, v), 8);
    assert_true(v[0] == 0xb1);
    ini_close(&b);
    tgtfix_wait_sessions(&fix, 0);
}

static int lookups(struct tgtfix *f, void *arg)
{
    return (int)f->elsewhere.lookups;
}

static uint64_t now_ms(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

static int slow_to_hear(struct tgtfix *f, void *arg)
{
    f->elsewhere.look_ms = 1000;
    return (int)f->elsewhere.lookups;
}

/* To hear who owns a disk takes long: those who ask are told together, and other units do not wait for it. */
static void slow_owner(void **state)
{
    static const uint8_t abilities[10] = {0x5e, 2, [8] = 8};
    struct ini i, other;
    uint8_t bhs[TGT_BHS_LEN], data[64];
    assert_int_equal(login(&i, fix.port3, INISESS_NAME ":a"), 0);
    tgtfix_login(&fix, &other, INISESS_NAME ":b");
    int before = tgtfix_call(&fix, slow_to_hear, NULL);
    const unsigned n = 200; /* more than there are fibers */
    for (unsigned k = 0; k < n; k++) {
        ini_cmd_bhs(&i, bhs, rtpg, 12, TGT_CMD_READ, sizeof data);
        assert_int_equal(ini_send(&i, bhs, NULL, 0), 0);
    }
    usleep(200000); /* all of them are there */
    uint64_t began = now_ms();
    for (unsigned k = 0; k < 20; k++)
        assert_int_equal(command(&other, abilities, 10, data, 8).status, 0);
    assert_true(now_ms() - began < 700);
    unsigned answered = 0;
    while (answered < n) {
        assert_true(ini_recv(&i, bhs, data, sizeof data) >= 0);
        answered += tgt_bhs_opcode(bhs) == TGT_OP_SCSI_RSP || bhs[1] & 1;
    }
    assert_in_range(tgtfix_call(&fix, lookups, NULL) - before, 1, 5);
    ini_close(&i);
    ini_close(&other);
    tgtfix_wait_sessions(&fix, 0);
}

static int small_elsewhere(struct tgtfix *f, void *arg)
{
    f->elsewhere.size = TGTFIX_SIZE / 2;
    f->elsewhere.look_ms = 600;
    f->store_ms = 1000;
    return 0;
}

/* What was heard of a disk that is being opened here by now is old. */
static void heard_too_late(void **state)
{
    struct ini i, owner, late;
    uint8_t bhs[TGT_BHS_LEN], data[64];
    tgtfix_login(&fix, &owner, INISESS_NAME ":b");
    assert_int_equal(reserve(&owner, 6, 0, 0, 0xb1), 0); /* what is kept is stored anew when the disk is opened, which takes its time */
    assert_int_equal(login(&i, fix.port3, INISESS_NAME ":a"), 0);
    tgtfix_call(&fix, small_elsewhere, NULL);
    ini_cmd_bhs(&i, bhs, rtpg, 12, TGT_CMD_READ, sizeof data);
    assert_int_equal(ini_send(&i, bhs, NULL, 0), 0);
    usleep(100000);
    tgtfix_call(&fix, now_here, NULL);
    assert_int_equal(login(&late, fix.port, INISESS_NAME ":c"), 0);
    assert_int_equal(command(&late, capacity, 10, data, 8).status, 0);
    assert_int_equal(gr_get_be32(data), TGTFIX_SIZE / 512 - 1);
    ini_close(&i);
    ini_close(&owner);
    ini_close(&late);
    tgtfix_wait_sessions(&fix, 0);
}

/* Looks that nobody waits for are made once a second at most. */
static void looks_are_few(void **state)
{
    struct ini i;
    assert_int_equal(login(&i, fix.port3, INISESS_NAME ":a"), 0);
    int before = tgtfix_call(&fix, lookups, NULL);
    for (int k = 0; k < 500; k++)
        expect_sense(&i, ready, 6, 0, 2, STANDBY);
    assert_in_range(tgtfix_call(&fix, lookups, NULL) - before, 1, 3);
    ini_close(&i);
    tgtfix_wait_sessions(&fix, 0);
}

static void changes_elsewhere(void **state)
{
    struct ini i;
    uint8_t p[8];
    int own, other;
    assert_int_equal(login(&i, fix.port3, INISESS_NAME ":a"), 0);
    tgtfix_call(&fix, grown, NULL);
    states(&i, &own, &other);
    expect_sense(&i, capacity, 10, 8, 6, 0x2a09);
    assert_int_equal(command(&i, capacity, 10, p, 8).status, 0);
    assert_int_equal(gr_get_be32(p), 2 * TGTFIX_SIZE / 512 - 1);
    tgtfix_call(&fix, now_gone, NULL); /* deleted by its owner: the session ends */
    uint8_t bhs[TGT_BHS_LEN], data[64];
    ini_cmd_bhs(&i, bhs, rtpg, 12, TGT_CMD_READ, 64);
    assert_int_equal(ini_send(&i, bhs, NULL, 0), 0);
    int r;
    do
        r = ini_recv(&i, bhs, data, sizeof data);
    while (r >= 0);
    assert_int_equal(r, -EPIPE);
    ini_close(&i);
    tgtfix_wait_sessions(&fix, 0);
}

/* Which start of a VM is the latest is known where the disk is: its sessions come again when that changed. */
static void incarnations(void **state)
{
    struct ini vm, other;
    int own, theirs;
    assert_int_equal(login(&vm, fix.port3, "iqn.2026-11.local.granary:vm-00112233-4455-6677-8899-aabbccddeeff:4"), 0);
    assert_int_equal(login(&other, fix.port3, INISESS_NAME ":a"), 0);
    tgtfix_call(&fix, now_here, NULL);
    states(&other, &own, &theirs);
    assert_int_equal(own, 0);
    tgtfix_wait_sessions(&fix, 1);
    ini_close(&vm);
    assert_int_equal(login(&vm, fix.port3, "iqn.2026-11.local.granary:vm-00112233-4455-6677-8899-aabbccddeeff:4"), 0);
    no_more_ua(&vm);
    ini_close(&vm);
    ini_close(&other);
    tgtfix_wait_sessions(&fix, 0);
}

#define CASE(f) {#f, f, tgtfix_setup, teardown, &fix}
TGTFIX_MAIN(NULL, NULL,
    CASE(portals), CASE(tells), CASE(becomes_active), CASE(found_by_commands), CASE(owner_has_reservations), CASE(answers_are_lost), CASE(lost_before_preempted), CASE(beside_reserve6), CASE(given_up_in_time), CASE(looks_are_few), CASE(slow_owner), CASE(heard_too_late), CASE(changes_elsewhere),
    CASE(incarnations))
