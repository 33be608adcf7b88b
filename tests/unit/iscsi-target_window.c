/* Long reads from memory: only a few of a session are read before they are sent; all are answered, and what is given up while it waits is gone.
 * Where answers are kept until they are acknowledged, nothing waits for that. */
#include "common/cleanup.h"
#include "iscsi-target/target_int.h"
#include "tests/lib/inisess.h"
#include <string.h>
#include <unistd.h>

#define MIB (1u << 20)
#define READS 24u
#define WIDE "MaxRecvDataSegmentLength=262144\0MaxBurstLength=1048576"
static struct tgtfix fix;
static uint8_t pattern[READS * 4096];

static int buffers(struct tgtfix *f, void *arg)
{
    size_t *most = arg;
    for (struct tgt_sess *s = f->server->sessions; s; s = s->next)
        *most = GR_MAX(*most, s->buf_bytes);
    return 0;
}

static size_t held(void)
{
    size_t most = 0;
    assert_int_equal(tgtfix_call(&fix, buffers, &most), 0);
    return most;
}

/* READS reads of 1 MiB, of which nothing is received yet. */
static void ask(struct ini *i, uint32_t itts[READS])
{
    for (uint32_t k = 0; k < READS; k++) {
        uint8_t b[TGT_BHS_LEN], cdb[10];
        inix_rw_cdb(cdb, false, k * (MIB / 512), MIB / 512);
        ini_cmd_bhs(i, b, cdb, 10, TGT_FINAL | TGT_CMD_READ, MIB);
        itts[k] = gr_get_be32(b + 16);
        assert_int_equal(ini_send(i, b, NULL, 0), 0);
    }
    usleep(200000); /* the socket is full */
}

/* Receive all Data-In of what was asked for, but for the one given up. */
static void collect(struct ini *i, const uint32_t itts[READS], uint32_t given_up)
{
    uint32_t got[READS] = {0}, open = READS - (given_up < READS);
    while (open) {
        uint8_t b[TGT_BHS_LEN];
        int n = ini_recv(i, b, inix_seg, sizeof inix_seg);
        assert_true(n >= 0);
        if ((b[0] & 0x3f) == TGT_OP_TMF_RSP) {
            assert_int_equal(b[2], 0);
            inix_take_status(i, b);
            continue;
        }
        assert_int_equal(b[0] & 0x3f, TGT_OP_DATA_IN);
        uint32_t k = 0, off = gr_get_be32(b + 40);
        while (k < READS && itts[k] != gr_get_be32(b + 16))
            k++;
        assert_true(k < READS && k != given_up && off == got[k]);
        if (!off)
            assert_memory_equal(inix_seg, pattern + (size_t)k * 4096, 4096);
        got[k] += (uint32_t)n;
        if (b[1] & 0x01) {
            assert_int_equal(b[3], 0);
            assert_int_equal(got[k], MIB);
            inix_take_status(i, b);
            open--;
        }
    }
}

static void fill(struct ini *i)
{
    inix_pattern(pattern, sizeof pattern, 7);
    for (uint32_t k = 0; k < READS; k++) {
        uint8_t cdb[10];
        struct ini_result r;
        inix_rw_cdb(cdb, true, k * (MIB / 512), 8);
        assert_int_equal(ini_cmd(i, cdb, 10, pattern + (size_t)k * 4096, 4096, NULL, 0, &r), 0);
        assert_int_equal(r.status, 0);
    }
}

static void few_are_read_ahead(void **state)
{
    (void)state;
    struct ini i;
    uint32_t itts[READS];
    inisess_lead(&fix, &i, TGTFIX_TARGET, WIDE, sizeof WIDE);
    fill(&i);
    ask(&i, itts);
    assert_in_range(held(), MIB, TGT_WINDOW_BYTES);
    collect(&i, itts, READS);
    assert_int_equal(held(), 0);
    ini_close(&i);
}

static void one_that_waits_is_given_up(void **state)
{
    (void)state;
    struct ini i;
    uint32_t itts[READS];
    uint8_t b[TGT_BHS_LEN] = {TGT_OP_TMF | 0x40, 0x81};
    inisess_lead(&fix, &i, TGTFIX_TARGET, WIDE, sizeof WIDE);
    fill(&i);
    ask(&i, itts);
    gr_put_be32(b + 16, i.itt++);
    gr_put_be32(b + 20, itts[READS / 2]);
    gr_put_be32(b + 24, i.cmdsn);
    gr_put_be32(b + 28, i.expstatsn);
    gr_put_be32(b + 32, i.cmdsn - READS / 2);
    assert_int_equal(ini_send(&i, b, NULL, 0), 0);
    collect(&i, itts, READS / 2);
    assert_int_equal(held(), 0);
    ini_close(&i);
}

static void kept_answers_hold_nothing_up(void **state)
{
    (void)state;
    static const char keys[] = WIDE "\0ErrorRecoveryLevel=1";
    struct ini i;
    uint32_t itts[READS];
    inisess_lead(&fix, &i, TGTFIX_TARGET, keys, sizeof keys);
    fill(&i);
    ask(&i, itts);
    collect(&i, itts, READS); /* nothing is acknowledged on the way: no request follows */
    ini_close(&i);
}

TGTFIX_MAIN(NULL, NULL, TGTFIX_CASE(few_are_read_ahead), TGTFIX_CASE(one_that_waits_is_given_up), TGTFIX_CASE(kept_answers_hold_nothing_up))
