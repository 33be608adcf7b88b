/* What hosts that share a datastore on a LUN rely on when one of them is lost: PREEMPT AND ABORT is answered when nothing of it is with the
 * device any more; what waited for its turn is asked again whether it may; COMPARE AND WRITE excludes the plain writes of others. */
#include "iscsi-target/pr.h"
#include "iscsi-target/scsi.h"
#include "common/cleanup.h"
#include "tests/lib/inisess.h"
#include <string.h>
#include <time.h>
#include <unistd.h>

#define LOST_KEY 0x1057u
#define LIVE_KEY 0x11feu
#define BLOCK 4096u
static struct tgtfix fix;

static uint64_t ms(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

static void login(struct ini *i, const char *name)
{
    static const char keys[] = "InitialR2T=No\0ImmediateData=Yes";
    assert_int_equal(ini_connect(i, "127.0.0.1", fix.port), 0);
    assert_int_equal(ini_login(i, name, TGTFIX_SLOW, keys, sizeof keys), 0);
    assert_int_equal(i->login_status, 0);
    inix_ready(i);
}

static uint8_t reserve_out(struct ini *i, enum tgt_pr_action action, uint8_t type, uint64_t key, uint64_t new_key)
{
    uint8_t cdb[10] = {0x5f, (uint8_t)action, type, [8] = 24}, list[24] = {0};
    struct ini_result r;
    gr_put_be64(list, key);
    gr_put_be64(list + 8, new_key);
    assert_int_equal(ini_cmd(i, cdb, 10, list, sizeof list, NULL, 0, &r), 0);
    return r.status;
}

/* A write of one physical block that is not waited for. */
static void send_write(struct ini *i, uint32_t lba, const uint8_t *data)
{
    uint8_t b[TGT_BHS_LEN], cdb[10];
    inix_rw_cdb(cdb, true, lba, BLOCK / 512);
    ini_cmd_bhs(i, b, cdb, 10, TGT_FINAL | TGT_CMD_WRITE, BLOCK);
    assert_int_equal(ini_send(i, b, data, BLOCK), 0);
}

static uint8_t answer(struct ini *i)
{
    uint8_t b[TGT_BHS_LEN];
    inix_expect(i, b, TGT_OP_SCSI_RSP);
    inix_take_status(i, b);
    return b[3];
}

static void check_bytes(uint64_t off, uint8_t want)
{
    uint8_t bytes[BLOCK];
    memset(bytes, want, sizeof bytes);
    const uint8_t *page = gr_mem_page(fix.mem, off, true);
    assert_memory_equal(page, bytes, BLOCK);
}

/* Two hosts with registrations, the first of which has the reservation. */
static void two_registered(struct ini *lost, struct ini *live)
{
    login(lost, INISESS_NAME ":lost");
    login(live, INISESS_NAME ":live");
    assert_int_equal(reserve_out(lost, PR_REGISTER, 0, 0, LOST_KEY), 0);
    assert_int_equal(reserve_out(live, PR_REGISTER, 0, 0, LIVE_KEY), 0);
    assert_int_equal(reserve_out(lost, PR_RESERVE, PR_EA_RO, LOST_KEY, 0), 0);
}

static void ejected_writes_are_over(void **state)
{
    struct ini lost, live;
    uint8_t data[BLOCK];
    memset(data, 'l', sizeof data);
    two_registered(&lost, &live);
    uint64_t start = ms();
    send_write(&lost, 0, data);
    usleep(50000); /* it is with the device */
    assert_int_equal(reserve_out(&live, PR_PREEMPT_ABORT, PR_EA_RO, LIVE_KEY, LOST_KEY), 0);
    assert_true(ms() - start >= TGTFIX_SLOW_MS - 20);
    check_bytes(0, 'l'); /* from now on nothing of it comes any more */
    send_write(&lost, 8, data);
    assert_int_equal(answer(&lost), 2); /* registrations preempted */
    send_write(&lost, 8, data);
    assert_int_equal(answer(&lost), TGT_CONFLICT);
    ini_close(&lost);
    ini_close(&live);
    tgtfix_wait_sessions(&fix, 0);
}

/* Also of a session that is gone: its connection broke while the device worked. */
static void orphans_are_waited_for(void **state)
{
    struct ini lost, live;
    uint8_t data[BLOCK];
    memset(data, 'o', sizeof data);
    two_registered(&lost, &live);
    uint64_t start = ms();
    send_write(&lost, 16, data);
    usleep(50000);
    ini_close(&lost);
    tgtfix_wait_sessions(&fix, 1);
    assert_int_equal(reserve_out(&live, PR_PREEMPT_ABORT, PR_EA_RO, LIVE_KEY, LOST_KEY), 0);
    assert_true(ms() - start >= TGTFIX_SLOW_MS - 20);
    check_bytes(16 * 512, 'o');
    ini_close(&live);
    tgtfix_wait_sessions(&fix, 0);
}

/* A compare-and-write of one block, not waited for. */
static void send_compare(struct ini *i, uint32_t lba, uint8_t was, uint8_t to)
{
    uint8_t b[TGT_BHS_LEN], cdb[16] = {0x89, [13] = 1}, data[1024];
    gr_put_be64(cdb + 2, lba);
    memset(data, was, 512);
    memset(data + 512, to, 512);
    ini_cmd_bhs(i, b, cdb, 16, TGT_FINAL | TGT_CMD_WRITE, sizeof data);
    assert_int_equal(ini_send(i, b, data, sizeof data), 0);
}

/* The write came second, and is there in the end; it is not lost between comparing and writing, however the device does that. */
static void compares_exclude_writes(void **state)
{
    struct ini a, b;
    uint8_t data[BLOCK];
    memset(data, 'w', sizeof data);
    login(&a, INISESS_NAME ":a");
    login(&b, INISESS_NAME ":b");
    uint64_t start = ms();
    send_compare(&a, 24, 0, 'c');
    usleep(50000);
    send_write(&b, 24, data);
    assert_int_equal(answer(&a), 0);
    assert_int_equal(answer(&b), 0);
    assert_true(ms() - start >= 2 * TGTFIX_SLOW_MS - 20); /* one after the other */
    check_bytes(24 * 512, 'w');
    ini_close(&a);
    ini_close(&b);
    tgtfix_wait_sessions(&fix, 0);
}

/* Waiting behind a compare-and-write while the unit is reserved: by then it may not. */
static void waiting_is_asked_again(void **state)
{
    struct ini a, stranger, live;
    uint8_t data[BLOCK];
    memset(data, 's', sizeof data);
    login(&a, INISESS_NAME ":a");
    login(&stranger, INISESS_NAME ":stranger");
    login(&live, INISESS_NAME ":live");
    assert_int_equal(reserve_out(&live, PR_REGISTER, 0, 0, LIVE_KEY), 0);
    send_compare(&a, 32, 0, 'c');
    usleep(50000);
    send_write(&stranger, 32, data);
    usleep(50000);
    assert_int_equal(reserve_out(&live, PR_RESERVE, PR_EA_RO, LIVE_KEY, 0), 0);
    assert_int_equal(answer(&a), 0); /* it was with the device already */
    assert_int_equal(answer(&stranger), TGT_CONFLICT);
    const uint8_t *page = gr_mem_page(fix.mem, 32 * 512, true);
    assert_int_equal(page[0], 'c');
    assert_int_equal(page[600], 0);
    ini_close(&a);
    ini_close(&stranger);
    ini_close(&live);
    tgtfix_wait_sessions(&fix, 0);
}

static void protect(struct ini *i, bool on)
{
    const uint8_t sense[6] = {0x1a, 0x08, 0x0a, [4] = 16}, cdb[6] = {0x15, 0x10, [4] = 16};
    uint8_t list[16];
    struct ini_result r;
    assert_int_equal(ini_cmd(i, sense, 6, NULL, 0, list, sizeof list, &r), 0);
    assert_int_equal(r.status, 0);
    list[0] = list[2] = 0;
    list[4 + 4] = (uint8_t)((list[4 + 4] & ~0x08) | (on ? 0x08 : 0));
    assert_int_equal(ini_cmd(i, cdb, 6, list, sizeof list, NULL, 0, &r), 0);
    assert_int_equal(r.status, 0);
}

/* The same, while it becomes write protected. */
static void protected_while_it_waits(void **state)
{
    struct ini a, late, live;
    uint8_t data[BLOCK];
    memset(data, 's', sizeof data);
    login(&a, INISESS_NAME ":a");
    login(&late, INISESS_NAME ":late");
    login(&live, INISESS_NAME ":live");
    send_compare(&a, 56, 0, 'c');
    usleep(50000);
    send_write(&late, 56, data);
    usleep(50000);
    protect(&live, true);
    assert_int_equal(answer(&a), 0);
    assert_int_equal(answer(&late), TGT_CHECK);
    const uint8_t *page = gr_mem_page(fix.mem, 56 * 512, true);
    assert_int_equal(page[0], 'c');
    assert_int_equal(page[600], 0);
    protect(&live, false);
    ini_close(&a);
    ini_close(&late);
    ini_close(&live);
    tgtfix_wait_sessions(&fix, 0);
}

/* The target descriptor of the unit of @i in a list of EXTENDED COPY. */
static void describe(struct ini *i, uint8_t d[32])
{
    static const uint8_t ids[6] = {0x12, 1, 0x83, 0, 255};
    uint8_t in[255];
    struct ini_result r;
    assert_int_equal(ini_cmd(i, ids, 6, NULL, 0, in, sizeof in, &r), 0);
    uint32_t at = 4;
    while ((in[at + 1] & 0x3f) != 3 || in[at + 3] != 16)
        at += 4u + in[at + 3];
    d[0] = 0xe4;
    memcpy(d + 4, in + at, 4 + 16);
    d[29] = 2; /* of 512 bytes */
}

/* A copy meets the same as a write: it does not land behind the sanitizing of the unit. */
static void copies_meet_sanitize(void **state)
{
    const uint8_t sanitize[10] = {0x48, 0x81, [8] = 8}, zeros[8] = {1, [3] = 4}, copy[16] = {0x83, [13] = 16 + 2 * 32 + 28};
    uint8_t list[16 + 2 * 32 + 28] = {[3] = 2 * 32, [11] = 28};
    struct ini from, to;
    struct ini_result r;
    tgtfix_login(&fix, &from, INISESS_NAME ":copies");
    login(&to, INISESS_NAME ":copies");
    describe(&from, list + 16);
    describe(&to, list + 16 + 32);
    uint8_t *segment = list + 16 + 2 * 32;
    segment[0] = 2;
    segment[3] = 0x18;
    segment[7] = 1;
    segment[11] = 8;
    assert_int_equal(ini_cmd(&from, copy, 16, list, sizeof list, NULL, 0, &r), 0);
    assert_int_equal(r.status, 0);
    assert_int_equal(ini_cmd(&to, sanitize, 10, zeros, sizeof zeros, NULL, 0, &r), 0);
    assert_int_equal(r.status, 0);
    uint64_t start = ms();
    assert_int_equal(ini_cmd(&from, copy, 16, list, sizeof list, NULL, 0, &r), 0);
    assert_int_equal(r.status, TGT_CHECK);
    assert_int_equal(INI_KEY(r), 0x0a);
    assert_true(ms() - start < TGTFIX_SLOW_MS);
    ini_close(&from);
    ini_close(&to);
}

/* WRITE AND VERIFY of one physical block, not waited for. */
static void send_verified(struct ini *i, uint32_t lba, const uint8_t *data)
{
    uint8_t b[TGT_BHS_LEN], cdb[10];
    inix_rw_cdb(cdb, true, lba, BLOCK / 512);
    cdb[0] = 0x2e;
    cdb[1] = 0x02; /* the bytes are compared */
    ini_cmd_bhs(i, b, cdb, 10, TGT_FINAL | TGT_CMD_WRITE, BLOCK);
    assert_int_equal(ini_send(i, b, data, BLOCK), 0);
}

static int slow_reads(void **state)
{
    fix = (struct tgtfix){.slow_reads = true};
    tgtfix_start(&fix);
    return 0;
}

/* What it verifies is what it wrote, and not what another wrote meanwhile. */
static void verifies_its_own(void **state)
{
    struct ini a, b;
    uint8_t one[BLOCK], two[BLOCK];
    memset(one, '1', sizeof one);
    memset(two, '2', sizeof two);
    login(&a, INISESS_NAME ":a");
    login(&b, INISESS_NAME ":b");
    send_verified(&a, 64, one);
    usleep(50000);
    send_write(&b, 64, two);
    assert_int_equal(answer(&a), 0);
    assert_int_equal(answer(&b), 0);
    check_bytes(64 * 512, '2');
    ini_close(&a);
    ini_close(&b);
    tgtfix_wait_sessions(&fix, 0);
}

/* It still waits behind a compare-and-write when its session ends: its turn comes together with a later write's, and it is not carried out. */
static void dropped_before_its_turn(void **state)
{
    struct ini a, lost, live;
    uint8_t old[BLOCK], data[BLOCK];
    memset(old, 'o', sizeof old);
    memset(data, 'n', sizeof data);
    login(&a, INISESS_NAME ":a");
    login(&lost, INISESS_NAME ":lost");
    login(&live, INISESS_NAME ":live");
    send_compare(&a, 40, 0, 'c');
    usleep(50000);
    send_verified(&lost, 40, old);
    usleep(50000);
    ini_close(&lost);
    tgtfix_wait_sessions(&fix, 2);
    send_write(&live, 40, data);
    assert_int_equal(answer(&a), 0);
    assert_int_equal(answer(&live), 0);
    send_compare(&live, 40, 'n', 'e'); /* behind whatever is with the device there */
    assert_int_equal(answer(&live), 0);
    ini_close(&a);
    ini_close(&live);
    tgtfix_wait_sessions(&fix, 0);
}

static void send_abort(struct ini *i, uint32_t itt)
{
    uint8_t b[TGT_BHS_LEN];
    tgt_bhs_start(b, TGT_OP_TMF, TGT_FINAL | TGT_TMF_ABORT_TASK, ++i->itt, 0);
    b[0] |= TGT_IMMEDIATE;
    gr_put_be32(b + 20, itt);
    gr_put_be32(b + 24, i->cmdsn);
    gr_put_be32(b + 28, i->expstatsn);
    gr_put_be32(b + 32, i->cmdsn - 1);
    assert_int_equal(ini_send(i, b, NULL, 0), 0);
}

/* As initiators do when a device is slow: they abort the command, then they reset the unit. Each is answered when the write is over, not just the first. */
static void all_functions_wait(void **state)
{
    struct ini a, other;
    uint8_t data[BLOCK], b[TGT_BHS_LEN], response = 255;
    memset(data, 'w', sizeof data);
    login(&a, INISESS_NAME ":a");
    login(&other, INISESS_NAME ":other");
    uint64_t start = ms();
    send_write(&a, 48, data);
    usleep(50000);
    send_abort(&a, a.itt);
    usleep(50000);
    assert_int_equal(ini_tmf(&other, TGT_TMF_LUN_RESET, 0, 0, &response), 0);
    assert_int_equal(response, TGT_TMF_DONE);
    assert_true(ms() - start >= TGTFIX_SLOW_MS - 20);
    check_bytes(48 * 512, 'w');
    inix_expect(&a, b, TGT_OP_TMF_RSP);
    assert_int_equal(b[2], TGT_TMF_DONE);
    ini_close(&a);
    ini_close(&other);
    tgtfix_wait_sessions(&fix, 0);
}

/* All that can be told, while the initiator is idle. */
static const uint16_t attentions[] = {TGT_UA_MODE_CHANGED, TGT_UA_INQUIRY_CHANGED, TGT_UA_CAPACITY, TGT_UA_MEDIUM_CHANGED, TGT_UA_THRESHOLD, TGT_UA_ACCESS_CHANGED,
                                      TGT_UA_LUNS_CHANGED, TGT_UA_RESET, TGT_UA_CLEARED, TGT_UA_RES_RELEASED, TGT_UA_RES_PREEMPTED, TGT_UA_REG_PREEMPTED};

static int tell_all(struct tgtfix *f, void *arg)
{
    (void)arg;
    for (size_t i = 0; i < GR_ARRAY_LEN(attentions); i++)
        tgt_lu_ua(f->server->sessions->lu, NULL, attentions[i]);
    return 0;
}

static void attentions_are_not_lost(void **state)
{
    struct ini i;
    struct ini_result r;
    const uint8_t ready[6] = {0};
    login(&i, INISESS_NAME ":idle");
    tgtfix_call(&fix, tell_all, NULL);
    for (size_t k = 0; k < GR_ARRAY_LEN(attentions); k++) {
        assert_int_equal(ini_cmd(&i, ready, 6, NULL, 0, NULL, 0, &r), 0);
        assert_int_equal(r.status, 2);
        assert_int_equal(INI_KEY(r), 6);
        assert_int_equal(INI_ASC(r), attentions[k]);
    }
    assert_int_equal(ini_cmd(&i, ready, 6, NULL, 0, NULL, 0, &r), 0);
    assert_int_equal(r.status, 0);
    ini_close(&i);
    tgtfix_wait_sessions(&fix, 0);
}

TGTFIX_MAIN(NULL, NULL, TGTFIX_CASE(ejected_writes_are_over), TGTFIX_CASE(orphans_are_waited_for), TGTFIX_CASE(compares_exclude_writes),
            TGTFIX_CASE(waiting_is_asked_again), TGTFIX_CASE(protected_while_it_waits), TGTFIX_CASE(copies_meet_sanitize),
            {"verifies_its_own", verifies_its_own, slow_reads, tgtfix_teardown, &fix},
            TGTFIX_CASE(dropped_before_its_turn), TGTFIX_CASE(all_functions_wait), TGTFIX_CASE(attentions_are_not_lost))
