/* Limits of a unit beside the fair shares between units: what waited for its limit waits for its share, too. */
#include "iscsi-target/scsi.h"
#include "tests/lib/inisess.h"
#include <string.h>
#include <unistd.h>

#define COMMANDS 200
#define SHARE 128 /* commands of one unit that are with its device at once */
static struct tgtfix fix;

static int setup(void **state)
{
    (void)state;
    fix = (struct tgtfix){.store = true, .slow_reads = true, .limit_iops = 1};
    tgtfix_start(&fix);
    return 0;
}

static int waiting(struct tgtfix *f, void *arg)
{
    int n = 0;
    for (const struct tgt_task *t = tgt_lu_find(f->server, "t/slow")->limit.waiters; t; t = t->wait_next)
        n++;
    return n;
}

/* How many have begun when the limit has gone. */
static int lift(struct tgtfix *f, void *arg)
{
    f->limit_iops = 0;
    gr_bdev_event(tgt_lu_find(f->server, "t/slow")->bdev, GR_EVENT_PRESENTED);
    return (int)f->server->sessions->running;
}

static void share_of_limited(void **state)
{
    static const uint8_t read10[10] = {0x28, [8] = 1};
    uint8_t bhs[TGT_BHS_LEN], data[512];
    struct ini i;
    assert_int_equal(ini_connect(&i, "127.0.0.1", fix.port), 0);
    assert_int_equal(ini_login(&i, INISESS_NAME ":a", TGTFIX_SLOW, NULL, 0), 0);
    inix_ready(&i);
    for (int k = 0; k < COMMANDS; k++) {
        ini_cmd_bhs(&i, bhs, read10, 10, TGT_FINAL | TGT_CMD_READ, sizeof data);
        assert_int_equal(ini_send(&i, bhs, NULL, 0), 0);
    }
    for (int k = 0; tgtfix_call(&fix, waiting, NULL) < COMMANDS * 3 / 4; k++) {
        assert_true(k < 500);
        usleep(10000);
    }
    assert_in_range(tgtfix_call(&fix, lift, NULL), 1, SHARE);
    for (int answered = 0; answered < COMMANDS;) {
        assert_true(ini_recv(&i, bhs, data, sizeof data) >= 0);
        answered += tgt_bhs_opcode(bhs) == TGT_OP_SCSI_RSP || bhs[1] & 1;
        assert_int_equal(bhs[3], 0);
    }
    ini_close(&i);
}

TGTFIX_MAIN(NULL, NULL, {"share_of_limited", share_of_limited, setup, tgtfix_teardown, &fix})
