/* An initiator that breaks every rule, over real sockets, against the whole target: after each case the target still serves,
 * and answers are the defined ones. */
#include "common/cleanup.h"
#include "iscsi-target/scsi.h"
#include "tests/lib/test.h"
#include "tests/lib/tgtfix.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static struct tgtfix fix;
#define NAME "iqn.2026-11.local.granary:hostile"

static int setup(void **state)
{
    (void)state;
    memset(&fix, 0, sizeof fix);
    fix.login_timeout_ms = 1500;
    fix.per_address = 40;
    fix.max_half_open = 64;
    fix.redirect = "10.1.2.3:3260";
    tgtfix_start(&fix);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    tgtfix_stop(&fix);
    return 0;
}

/* Eat unit attentions. */
static void ready(struct ini *i)
{
    uint8_t tur[6] = {0};
    struct ini_result r;
    do
        assert_int_equal(ini_cmd(i, tur, 6, NULL, 0, NULL, 0, &r), 0);
    while (r.status == 2);
}

static void login(struct ini *i)
{
    tgtfix_login(&fix, i, NAME);
    ready(i);
}

/* Whatever comes next: a Reject, an answer, or the end of the connection; never silence when @must. */
static int next_op(struct ini *i, uint8_t *b, int timeout_ms)
{
    static uint8_t seg[262144];
    i->timeout_ms = timeout_ms;
    int r = ini_recv(i, b, seg, sizeof seg);
    i->timeout_ms = 5000;
    return r < 0 ? r : (int)tgt_bhs_opcode(b);
}

static void opcode_sweep(void **state)
{
    uint8_t b[TGT_BHS_LEN], rsp[TGT_BHS_LEN];
    for (unsigned op = 0; op < 64; op++) {
        for (unsigned f = 0; f < 3; f++) {
            struct ini i;
            login(&i);
            memset(b, f == 2 ? 0xff : 0, sizeof b);
            b[0] = (uint8_t)(op | (f ? TGT_IMMEDIATE : 0));
            b[1] = (uint8_t)(f == 1 ? 0x80 : f == 2 ? 0xff : 0);
            b[4] = 0;
            gr_put_be32(b + 16, 77);
            gr_put_be32(b + 24, i.cmdsn);
            assert_int_equal(ini_send(&i, b, NULL, 0), 0);
            int r = next_op(&i, rsp, 20);
            bool known = op <= 6 || op == 0x10;
            if (!known)
                assert_int_equal(r, TGT_OP_REJECT);
            ini_close(&i);
            if (op < 4) { /* before login: the connection ends */
                assert_int_equal(ini_connect(&i, "127.0.0.1", fix.port), 0);
                b[0] = (uint8_t)(op == 3 ? 0x10 : op);
                assert_int_equal(ini_send(&i, b, NULL, 0), 0);
                assert_int_equal(next_op(&i, rsp, 2000), -EPIPE);
                ini_close(&i);
            }
        }
    }
    tgtfix_alive(&fix);
}

static void lengths(void **state)
{
    uint8_t b[TGT_BHS_LEN], rsp[TGT_BHS_LEN];
    static uint8_t big[300000];
    struct ini i;
    for (unsigned op = 0; op < 7; op++) {
        login(&i); /* 16 MiB announced */
        tgt_bhs_start(b, (enum tgt_opcode)op, TGT_FINAL, 5, 0xffffff);
        b[0] |= TGT_IMMEDIATE;
        assert_int_equal(ini_send_raw(&i, b, sizeof b), 0);
        assert_int_equal(next_op(&i, rsp, 2000), -EPIPE);
        ini_close(&i);
        login(&i); /* the longest AHS, of unknown type */
        tgt_bhs_start(b, (enum tgt_opcode)op, TGT_FINAL, 5, 0);
        b[0] |= TGT_IMMEDIATE;
        b[4] = 255;
        assert_int_equal(ini_send_raw(&i, b, sizeof b), 0);
        assert_int_equal(ini_send_raw(&i, big, 1020), 0);
        next_op(&i, rsp, 50);
        ini_close(&i);
        login(&i); /* cut off in the middle */
        tgt_bhs_start(b, (enum tgt_opcode)op, TGT_FINAL, 5, 200000);
        assert_int_equal(ini_send_raw(&i, b, sizeof b), 0);
        assert_int_equal(ini_send_raw(&i, big, 1000), 0);
        ini_close(&i);
    }
    /* before login */
    for (unsigned len = 8188; len <= 8193; len++) {
        assert_int_equal(ini_connect(&i, "127.0.0.1", fix.port), 0);
        tgt_bhs_start(b, TGT_OP_LOGIN, 0x87, 5, len);
        memset(big, 'a', len);
        (void)!ini_send(&i, b, big, len); /* it may be gone before all is sent */
        int r = next_op(&i, rsp, 2000);
        assert_int_equal(r, len > 8192 ? -EPIPE : TGT_OP_LOGIN_RSP);
        if (r >= 0)
            assert_int_equal(gr_get_be16(rsp + 36), TGT_LOGIN_INITIATOR);
        ini_close(&i);
    }
    tgtfix_alive(&fix);
    tgtfix_wait_sessions(&fix, 0);
}

static void sequence_numbers(void **state)
{
    uint8_t b[TGT_BHS_LEN], c[TGT_BHS_LEN], tur[6] = {0}, rsp[TGT_BHS_LEN];
    struct ini i;
    login(&i);
    ini_cmd_bhs(&i, b, tur, 6, TGT_FINAL, 0);
    gr_put_be32(b + 24, i.cmdsn - 2); /* below the window */
    assert_int_equal(ini_send(&i, b, NULL, 0), 0);
    gr_put_be32(b + 24, i.maxcmdsn + 1); /* above it */
    assert_int_equal(ini_send(&i, b, NULL, 0), 0);
    assert_int_equal(next_op(&i, rsp, 100), -ETIMEDOUT);
    i.cmdsn--;
    ini_cmd_bhs(&i, b, tur, 6, TGT_FINAL, 0);
    ini_cmd_bhs(&i, c, tur, 6, TGT_FINAL, 0);
    assert_int_equal(ini_send(&i, c, NULL, 0), 0); /* the later one first: it waits */
    assert_int_equal(next_op(&i, rsp, 100), -ETIMEDOUT);
    assert_int_equal(ini_send(&i, b, NULL, 0), 0);
    assert_int_equal(next_op(&i, rsp, 1000), TGT_OP_SCSI_RSP);
    assert_int_equal(tgt_bhs_itt(rsp), tgt_bhs_itt(b));
    assert_int_equal(next_op(&i, rsp, 1000), TGT_OP_SCSI_RSP);
    assert_int_equal(tgt_bhs_itt(rsp), tgt_bhs_itt(c));
    ini_close(&i);
    /* across 2^32 */
    assert_int_equal(ini_connect(&i, "127.0.0.1", fix.port), 0);
    i.cmdsn = 0xfffffffe;
    assert_int_equal(ini_login(&i, NAME, TGTFIX_TARGET, NULL, 0), 0);
    for (int k = 0; k < 6; k++)
        ready(&i);
    assert_int_equal(ini_logout(&i), 0);
    ini_close(&i);
    /* a tag twice, and the reserved one */
    login(&i);
    uint8_t wr[10] = {0x2a, 0, 0, 0, 0, 0, 0, 0, 8, 0};
    ini_cmd_bhs(&i, b, wr, 10, TGT_FINAL | TGT_CMD_WRITE, 4096);
    assert_int_equal(ini_send(&i, b, NULL, 0), 0);
    assert_int_equal(next_op(&i, rsp, 1000), TGT_OP_R2T);
    gr_put_be32(b + 24, i.cmdsn++);
    assert_int_equal(ini_send(&i, b, NULL, 0), 0);
    assert_int_equal(next_op(&i, rsp, 1000), TGT_OP_REJECT);
    assert_int_equal(rsp[2], TGT_REJECT_TASK);
    gr_put_be32(b + 16, TGT_TAG_NONE);
    gr_put_be32(b + 24, i.cmdsn++);
    assert_int_equal(ini_send(&i, b, NULL, 0), 0);
    assert_int_equal(next_op(&i, rsp, 1000), TGT_OP_REJECT);
    ini_close(&i);
    tgtfix_alive(&fix);
}

/* A write of 8 KiB without data, answered by an R2T. */
static void open_write(struct ini *i, uint8_t *r2t, uint32_t len)
{
    uint8_t b[TGT_BHS_LEN], wr[10] = {0x2a, 0, 0, 0, 0, 0, 0, (uint8_t)(len / 512 >> 8), (uint8_t)(len / 512), 0};
    ini_cmd_bhs(i, b, wr, 10, TGT_FINAL | TGT_CMD_WRITE, len);
    assert_int_equal(ini_send(i, b, NULL, 0), 0);
    assert_int_equal(next_op(i, r2t, 1000), TGT_OP_R2T);
    assert_int_equal(gr_get_be32(r2t + 44), len);
}

static void data_out(struct ini *i, const uint8_t *r2t, uint32_t ttt, uint32_t off, uint32_t len, uint32_t sn, bool final)
{
    static uint8_t data[65536];
    uint8_t b[TGT_BHS_LEN];
    tgt_bhs_start(b, TGT_OP_DATA_OUT, final ? TGT_FINAL : 0, tgt_bhs_itt(r2t), 0);
    gr_put_be32(b + 20, ttt);
    gr_put_be32(b + 36, sn);
    gr_put_be32(b + 40, off);
    assert_int_equal(ini_send(i, b, data, len), 0);
}

static void expect_sense(struct ini *i, unsigned key)
{
    uint8_t b[TGT_BHS_LEN], seg[256];
    int r = ini_recv(i, b, seg, sizeof seg);
    assert_true(r >= 20);
    assert_int_equal(tgt_bhs_opcode(b), TGT_OP_SCSI_RSP);
    assert_int_equal(b[3], TGT_CHECK);
    assert_int_equal(seg[4] & 15, key);
}

static void data_out_rules(void **state)
{
    uint8_t r2t[TGT_BHS_LEN], rsp[TGT_BHS_LEN];
    struct ini i;
    login(&i);
#define TTT gr_get_be32(r2t + 20)
    open_write(&i, r2t, 8192); /* a forged TTT is nobody's */
    data_out(&i, r2t, TTT ^ 1, 0, 8192, 0, true);
    expect_sense(&i, 0xb);
    open_write(&i, r2t, 8192);
    data_out(&i, r2t, TTT, 4096, 4096, 0, true); /* a hole */
    expect_sense(&i, 0xb);
    open_write(&i, r2t, 8192);
    data_out(&i, r2t, TTT, 0, 4096, 1, false); /* DataSN */
    expect_sense(&i, 0xb);
    open_write(&i, r2t, 8192);
    data_out(&i, r2t, TTT, 0, 8704, 0, true); /* more than asked for */
    expect_sense(&i, 0xb);
    open_write(&i, r2t, 8192);
    data_out(&i, r2t, TTT, 0xfffff000u, 8192, 0, true);
    expect_sense(&i, 0xb);
    open_write(&i, r2t, 8192);
    data_out(&i, r2t, TTT, 0, 4096, 0, true); /* ends early */
    expect_sense(&i, 0xb);
    open_write(&i, r2t, 8192);
    data_out(&i, r2t, TTT, 0, 8192, 0, false); /* does not end */
    expect_sense(&i, 0xb);
    data_out(&i, r2t, TTT, 0, 8192, 0, true); /* of a command that is no more: ignored */
    open_write(&i, r2t, 8192);
    uint8_t response = 99;
    assert_int_equal(ini_tmf(&i, TGT_TMF_ABORT_TASK, tgt_bhs_itt(r2t), 0, &response), 0);
    assert_int_equal(response, TGT_TMF_DONE);
    data_out(&i, r2t, TTT, 0, 8192, 0, true); /* after the abort */
    open_write(&i, r2t, 8192);                /* odd pieces are fine */
    data_out(&i, r2t, TTT, 0, 5793, 0, false);
    data_out(&i, r2t, TTT, 5793, 2399, 1, true);
    assert_int_equal(next_op(&i, rsp, 1000), TGT_OP_SCSI_RSP);
    assert_int_equal(rsp[3], 0);
    ini_close(&i);
    tgtfix_alive(&fix);
}

static void unsolicited_rules(void **state)
{
    static uint8_t data[262144];
    uint8_t b[TGT_BHS_LEN], wr[10] = {0x2a, 0, 0, 0, 0, 0, 0, 1, 0, 0}, rsp[TGT_BHS_LEN];
    struct ini i;
    login(&i);
    ini_cmd_bhs(&i, b, wr, 10, TGT_FINAL | TGT_CMD_WRITE, 131072); /* more immediate data than FirstBurst */
    assert_int_equal(ini_send(&i, b, data, 131072), 0);
    expect_sense(&i, 0xb);
    wr[8] = 1;
    wr[7] = 0;
    ini_cmd_bhs(&i, b, wr, 10, TGT_FINAL | TGT_CMD_WRITE, 512); /* more than EDTL */
    assert_int_equal(ini_send(&i, b, data, 1024), 0);
    expect_sense(&i, 0xb);
    ini_cmd_bhs(&i, b, wr, 10, TGT_FINAL, 512); /* data without W */
    assert_int_equal(ini_send(&i, b, data, 512), 0);
    expect_sense(&i, 0xb);
    wr[7] = 1;
    wr[8] = 0;
    ini_cmd_bhs(&i, b, wr, 10, TGT_CMD_WRITE, 131072); /* F=0: 4 KiB now, the rest of FirstBurst unsolicited */
    assert_int_equal(ini_send(&i, b, data, 4096), 0);
    data_out(&i, b, TGT_TAG_NONE, 4096, 61440, 0, true);
    assert_int_equal(next_op(&i, rsp, 1000), TGT_OP_R2T);
    assert_int_equal(gr_get_be32(rsp + 40), 65536);
    data_out(&i, rsp, gr_get_be32(rsp + 20), 65536, 65536, 0, true);
    assert_int_equal(next_op(&i, rsp, 1000), TGT_OP_SCSI_RSP);
    assert_int_equal(rsp[3], 0);
    ini_cmd_bhs(&i, b, wr, 10, TGT_CMD_WRITE, 131072);
    assert_int_equal(ini_send(&i, b, data, 4096), 0);
    data_out(&i, b, TGT_TAG_NONE, 4096, 61952, 0, true); /* beyond FirstBurst */
    expect_sense(&i, 0xb);
    ini_close(&i);
    tgtfix_alive(&fix);
}

/* Every operation code with hostile CDBs: each gets an answer. */
static void cdb_sweep(void **state)
{
    uint64_t seed = test_seed();
    struct ini i;
    login(&i);
    for (unsigned op = 0; op < 256; op++) {
        for (unsigned v = 0; v < 12; v++) {
            uint8_t cdb[16], in[4096], out[512] = {0};
            struct ini_result r;
            for (unsigned k = 0; k < 16; k++)
                cdb[k] = v == 0 ? 0 : v == 1 ? 0xff : (uint8_t)test_rand(&seed);
            cdb[0] = (uint8_t)op;
            if (v > 5) /* service actions that exist */
                cdb[1] &= 0x1f;
            uint32_t n = v % 3 == 2 ? 512 : 0;
            for (unsigned k = 0; k < n; k++)
                out[k] = (uint8_t)test_rand(&seed);
            if (op == 0x1b || op == 0x16 || (op & 0xfe) == 0x5e || op == 0x15 || op == 0x55)
                continue; /* their effects last; they have tests of their own */
            assert_int_equal(ini_cmd(&i, cdb, 16, n ? out : NULL, n, n ? NULL : in, n ? 0 : sizeof in, &r), 0);
        }
    }
    ini_close(&i);
    tgtfix_alive(&fix);
}

static void scsi_edges(void **state)
{
    struct ini i;
    struct ini_result r;
    static uint8_t in[65536], out[65536];
    login(&i);
    uint8_t rd16[16] = {0x88, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 8};
    assert_int_equal(ini_cmd(&i, rd16, 16, NULL, 0, in, 4096, &r), 0); /* wraps at 2^64 */
    assert_int_equal(INI_ASC(r), 0x2100);
    uint8_t unmap[10] = {0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0};
    memset(out, 0xff, 24);
    assert_int_equal(ini_cmd(&i, unmap, 10, out, 24, NULL, 0, &r), 0); /* the list lies about its length */
    assert_int_equal(INI_KEY(r), 5);
    for (unsigned page = 0; page < 256; page++) {
        for (unsigned alloc = 0; alloc < 24; alloc += 5) {
            uint8_t inq[6] = {0x12, 1, (uint8_t)page, 0, (uint8_t)alloc, 0};
            memset(in, 0xee, 64);
            assert_int_equal(ini_cmd(&i, inq, 6, NULL, 0, in, 64, &r), 0);
            assert_true(r.in_len <= alloc);
        }
    }
    uint8_t xcopy[16] = {0x83, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 76};
    memset(out, 0, sizeof out); /* a LU that this initiator is not logged in to */
    gr_put_be16(out + 2, 32);
    gr_put_be32(out + 8, 28);
    out[16] = 0xe4;
    out[16 + 4] = 1;
    out[16 + 5] = 3;
    out[16 + 7] = 16;
    memset(out + 24, 0x6a, 16);
    out[48] = 2;
    out[51] = 0x18;
    out[59] = 8;
    assert_int_equal(ini_cmd(&i, xcopy, 16, out, 76, NULL, 0, &r), 0);
    assert_int_equal(r.status, TGT_CHECK);
    uint8_t wr[10] = {0x2a, 0, 0, 0, 0, 0, 0, 0, 8, 0};
    assert_int_equal(ini_cmd(&i, wr, 10, out, 1024, NULL, 0, &r), 0); /* EDTL below the CDB's length */
    assert_int_equal(r.status, 0);
    assert_int_equal(r.flags & 0x06, 0x04);
    assert_int_equal(r.residual, 3072);
    assert_int_equal(ini_cmd(&i, wr, 10, out, 8192, NULL, 0, &r), 0); /* and above */
    assert_int_equal(r.flags & 0x06, 0x02);
    assert_int_equal(r.residual, 4096);
    uint8_t luns[12] = {0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 15};
    assert_int_equal(ini_cmd(&i, luns, 12, NULL, 0, in, 64, &r), 0);
    assert_int_equal(r.status, TGT_CHECK);
    uint8_t sel[6] = {0x15, 0x10, 0, 0, 24, 0}; /* a mode page that runs over its list */
    memset(out, 0, 24);
    out[4] = 0x0a;
    out[5] = 200;
    assert_int_equal(ini_cmd(&i, sel, 6, out, 24, NULL, 0, &r), 0);
    assert_int_equal(INI_KEY(r), 5);
    ini_close(&i);
    tgtfix_alive(&fix);
}

/* ---- resets, replaced sessions, a slow device ---- */

static int release_only_idle(struct tgtfix *f, void *arg)
{
    return tgt_server_release(f->server, "t/disk", arg != NULL, NULL);
}

static void reset_with_sessions(void **state)
{
    struct ini a, b;
    struct ini_result r;
    uint8_t tur[6] = {0}, response = 99, r2t[TGT_BHS_LEN];
    tgtfix_login(&fix, &a, NAME ":a");
    tgtfix_login(&fix, &b, NAME ":b");
    ready(&a);
    ready(&b);
    open_write(&a, r2t, 4096);
    assert_int_equal(ini_tmf(&b, TGT_TMF_LUN_RESET, TGT_TAG_NONE, 0, &response), 0);
    assert_int_equal(response, TGT_TMF_DONE);
    assert_int_equal(ini_cmd(&a, tur, 6, NULL, 0, NULL, 0, &r), 0);
    assert_int_equal(INI_KEY(r), 6);
    assert_int_equal(INI_ASC(r), 0x2903);
    for (unsigned fn = 0; fn < 128; fn++) {
        if (fn == TGT_TMF_COLD_RESET)
            continue;
        assert_int_equal(ini_tmf(&a, fn, 1, 1, &response), 0);
    }
    assert_int_equal(tgtfix_call(&fix, release_only_idle, &fix), -EBUSY);
    assert_int_equal(ini_tmf(&a, TGT_TMF_COLD_RESET, TGT_TAG_NONE, 0, &response), 0);
    tgtfix_wait_sessions(&fix, 0);
    ini_close(&a);
    ini_close(&b);
    tgtfix_alive(&fix);
}

static void replaced_sessions(void **state)
{
    struct ini a, b;
    uint8_t rsp[TGT_BHS_LEN];
    login(&a);
    login(&b); /* the same name and ISID: the first ends */
    tgtfix_wait_sessions(&fix, 1);
    assert_int_equal(next_op(&a, rsp, 2000), -EPIPE);
    ini_close(&a);
    ready(&b);
    assert_int_equal(tgtfix_call(&fix, release_only_idle, NULL), 0);
    tgtfix_wait_sessions(&fix, 0);
    ini_close(&b);
    /* starts of a VM: an older one may not come back, a newer one ends the older */
    static const char vm[] = "iqn.2026-11.local.granary:vm-00000000-0000-4000-8000-000000000001:";
    char name[128];
    snprintf(name, sizeof name, "%s2", vm);
    tgtfix_login(&fix, &a, name);
    snprintf(name, sizeof name, "%s1", vm);
    assert_int_equal(ini_connect(&b, "127.0.0.1", fix.port), 0);
    assert_int_equal(ini_login(&b, name, TGTFIX_TARGET, NULL, 0), 0);
    assert_int_equal(b.login_status, TGT_LOGIN_FORBIDDEN);
    ini_close(&b);
    snprintf(name, sizeof name, "%s3", vm);
    tgtfix_login(&fix, &b, name);
    assert_int_equal(next_op(&a, rsp, 2000), -EPIPE);
    ini_close(&a);
    ini_close(&b);
    tgtfix_alive(&fix);
}

static void login_slow(struct ini *i, const char *name)
{
    static const char keys[] = "InitialR2T=No\0ImmediateData=Yes";
    assert_int_equal(ini_connect(i, "127.0.0.1", fix.port), 0);
    assert_int_equal(ini_login(i, name, TGTFIX_SLOW, keys, sizeof keys), 0);
    assert_int_equal(i->login_status, 0);
    ready(i);
}

static uint64_t ms(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

static void in_flight(void **state)
{
    uint8_t b[TGT_BHS_LEN], wr[10] = {0x2a, 0, 0, 0, 0, 0, 0, 0, 8, 0}, rd[10] = {0x28, 0, 0, 0, 0, 0, 0, 0, 8, 0}, rsp[TGT_BHS_LEN], response = 99;
    static uint8_t old[4096], new[4096], in[4096];
    struct ini i, j;
    struct ini_result r;
    memset(old, 'o', sizeof old);
    memset(new, 'n', sizeof new);
    login_slow(&i, NAME);
    login_slow(&j, NAME ":other");
    uint64_t start = ms();
    ini_cmd_bhs(&i, b, wr, 10, TGT_FINAL | TGT_CMD_WRITE, 4096);
    assert_int_equal(ini_send(&i, b, old, 4096), 0);
    usleep(50000);
    ini_close(&i); /* its write is still with the device */
    tgtfix_wait_sessions(&fix, 1);
    assert_int_equal(ini_cmd(&j, wr, 10, new, 4096, NULL, 0, &r), 0); /* the same blocks: waits for the orphan */
    assert_int_equal(r.status, 0);
    assert_true(ms() - start >= 2 * TGTFIX_SLOW_MS - 20);
    assert_int_equal(ini_cmd(&j, rd, 10, NULL, 0, in, 4096, &r), 0);
    assert_memory_equal(in, new, sizeof in);
    start = ms(); /* an abort is answered when the device has answered */
    ini_cmd_bhs(&j, b, wr, 10, TGT_FINAL | TGT_CMD_WRITE, 4096);
    assert_int_equal(ini_send(&j, b, new, 4096), 0);
    usleep(20000);
    assert_int_equal(ini_tmf(&j, TGT_TMF_ABORT_TASK, j.itt, j.cmdsn - 1, &response), 0);
    assert_int_equal(response, TGT_TMF_DONE);
    assert_true(ms() - start >= TGTFIX_SLOW_MS - 20);
    ini_cmd_bhs(&j, b, wr, 10, TGT_FINAL | TGT_CMD_WRITE, 4096); /* logout in the middle */
    assert_int_equal(ini_send(&j, b, new, 4096), 0);
    assert_int_equal(ini_logout(&j), 0);
    assert_int_equal(next_op(&j, rsp, 1000), -EPIPE);
    ini_close(&j);
    tgtfix_alive(&fix);
}

/* ---- many and slow connections ---- */

static void half_open(void **state)
{
    static int fds[300];
    struct ini probe;
    uint8_t rsp[TGT_BHS_LEN];
    for (int k = 0; k < 300; k++) { /* far more than may be open: each makes room for the next */
        struct ini i;
        assert_int_equal(ini_connect(&i, "127.0.0.1", fix.port), 0);
        if (k % 2)
            ini_send_raw(&i, "\x43", 1);
        fds[k] = i.fd;
    }
    tgtfix_alive(&fix); /* in the middle of it */
    for (int k = 0; k < 300; k++)
        close(fds[k]);
    assert_int_equal(ini_connect(&probe, "127.0.0.1", fix.port), 0); /* a byte now and then does not prolong the deadline */
    int ended = 0;
    for (int k = 0; k < 40 && !ended; k++) {
        usleep(100000);
        ended = ini_send_raw(&probe, "C", 1) < 0 || (k > 20 && next_op(&probe, rsp, 10) == -EPIPE);
    }
    assert_true(ended);
    ini_close(&probe);
    tgtfix_alive(&fix);
}

/* Many logins at once, each sent before any is answered: all come through. */
static void login_storm(void **state)
{
    enum { N = 30 };
    static struct ini all[N];
    for (int round = 0; round < 10; round++) {
        for (int k = 0; k < N; k++) {
            uint8_t b[TGT_BHS_LEN];
            char keys[256];
            int len = snprintf(keys, sizeof keys, NAME ":storm%d%cTargetName=" TGTFIX_TARGET, k, 0) + 1;
            char text[300] = "InitiatorName=";
            memcpy(text + 14, keys, (size_t)len);
            assert_int_equal(ini_connect(&all[k], "127.0.0.1", fix.port), 0);
            tgt_bhs_start(b, TGT_OP_LOGIN, 0x87, 1, 0);
            b[0] |= TGT_IMMEDIATE;
            assert_int_equal(ini_send(&all[k], b, text, (uint32_t)len + 14), 0);
        }
        for (int k = 0; k < N; k++) {
            uint8_t b[TGT_BHS_LEN];
            assert_int_equal(next_op(&all[k], b, 5000), TGT_OP_LOGIN_RSP);
            assert_int_equal(gr_get_be16(b + 36), 0);
            assert_int_equal(b[1], 0x87);
            ini_close(&all[k]);
        }
    }
    tgtfix_wait_sessions(&fix, 0);
}

static void never_reads(void **state)
{
    uint8_t b[TGT_BHS_LEN], rd[10] = {0x28, 0, 0, 0, 0, 0, 0, 0, 128, 0};
    struct ini i;
    login(&i);
    int small = 4096, sent = 0;
    setsockopt(i.fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    for (int k = 0; k < 20000; k++) { /* pings and reads until the target stops reading */
        if (k % 2) {
            tgt_bhs_start(b, TGT_OP_NOP_OUT, TGT_FINAL, (uint32_t)(k + 100000), 0);
            b[0] |= TGT_IMMEDIATE;
            gr_put_be32(b + 20, TGT_TAG_NONE);
        } else {
            ini_cmd_bhs(&i, b, rd, 10, TGT_FINAL | TGT_CMD_READ, 65536);
        }
        if (send(i.fd, b, sizeof b, MSG_DONTWAIT | MSG_NOSIGNAL) != sizeof b)
            break;
        sent++;
    }
    tgtfix_alive(&fix);
    ini_close(&i);
    tgtfix_wait_sessions(&fix, 0);
    tgtfix_alive(&fix);
}

/* Text requests of a normal session: its own target, nobody else's; unknown keys; continuations. */
static void text_requests(void **state)
{
    static const struct {
        const char *text;
        uint32_t len;
        const char *answer;
    } cases[] = {{"SendTargets=All", 16, "TargetName=" TGTFIX_TARGET},
                 {"SendTargets=", 13, "TargetName=" TGTFIX_TARGET},
                 {"SendTargets=iqn.other", 22, "SendTargets=Reject"},
                 {"X-what=1", 9, "X-what=NotUnderstood"}};
    uint8_t b[TGT_BHS_LEN], rsp[TGT_BHS_LEN];
    char seg[4096];
    struct ini i;
    login(&i);
    for (unsigned k = 0; k < sizeof cases / sizeof cases[0]; k++) {
        tgt_bhs_start(b, TGT_OP_TEXT, TGT_CONTINUE, 900 + k, 0); /* the first four bytes, then the rest */
        b[0] |= TGT_IMMEDIATE;
        gr_put_be32(b + 20, TGT_TAG_NONE);
        assert_int_equal(ini_send(&i, b, cases[k].text, 4), 0);
        assert_int_equal(ini_recv(&i, rsp, seg, sizeof seg), 0);
        b[1] = TGT_FINAL;
        gr_put_be32(b + 20, gr_get_be32(rsp + 20));
        assert_int_equal(ini_send(&i, b, cases[k].text + 4, cases[k].len - 4), 0);
        int n = ini_recv(&i, rsp, seg, sizeof seg);
        assert_true(n > 0);
        assert_int_equal(tgt_bhs_opcode(rsp), TGT_OP_TEXT_RSP);
        assert_string_equal(seg, cases[k].answer);
        if (k == 0) {
            char want[64];
            snprintf(want, sizeof want, "TargetAddress=127.0.0.1:%s,1", fix.port);
            assert_string_equal(seg + strlen(seg) + 1, want);
        }
    }
    tgt_bhs_start(b, TGT_OP_TEXT, TGT_CONTINUE, 990, 0); /* without end */
    b[0] |= TGT_IMMEDIATE;
    int r = TGT_OP_TEXT_RSP;
    memset(seg, 'a', sizeof seg);
    for (int k = 0; k < 10 && r == TGT_OP_TEXT_RSP; k++) {
        assert_int_equal(ini_send(&i, b, seg, 2048), 0);
        r = next_op(&i, rsp, 1000);
    }
    assert_int_equal(r, TGT_OP_REJECT);
    ini_close(&i);
    tgtfix_alive(&fix);
}

static void redirect_and_v6(void **state)
{
    struct ini i;
    assert_int_equal(ini_connect(&i, "127.0.0.1", fix.port), 0);
    assert_int_equal(ini_login(&i, NAME, "iqn.2026-11.local.granary:t:elsewhere", NULL, 0), 0);
    assert_int_equal(i.login_status, TGT_LOGIN_MOVED);
    assert_string_equal(ini_key(&i, "TargetAddress"), "10.1.2.3:3260");
    ini_close(&i);
    assert_int_equal(ini_connect(&i, "127.0.0.1", fix.port), 0);
    assert_int_equal(ini_login(&i, NAME, "iqn.2026-11.local.granary:t:nothing", NULL, 0), 0);
    assert_int_equal(i.login_status, TGT_LOGIN_NOT_FOUND);
    ini_close(&i);
    assert_int_equal(ini_connect(&i, "::1", fix.port2), 0);
    assert_int_equal(ini_login(&i, NAME, TGTFIX_TARGET, NULL, 0), 0);
    assert_int_equal(i.login_status, 0);
    ready(&i);
    assert_int_equal(ini_logout(&i), 0);
    ini_close(&i);
}

static void digests(void **state)
{
    static const char keys[] = "HeaderDigest=CRC32C\0DataDigest=CRC32C\0InitialR2T=No\0ImmediateData=Yes\0MaxRecvDataSegmentLength=65536";
    static uint8_t out[100 * 512], in[100 * 512];
    uint8_t wr[10] = {0x2a, 0, 0, 0, 0, 9, 0, 0, 100, 0}, rd[10] = {0x28, 0, 0, 0, 0, 9, 0, 0, 100, 0}, b[TGT_BHS_LEN], rsp[TGT_BHS_LEN];
    struct ini i;
    struct ini_result r;
    for (unsigned k = 0; k < sizeof out; k++)
        out[k] = (uint8_t)(k * 31 >> 3);
    for (int bad = 0; bad < 3; bad++) {
        assert_int_equal(ini_connect(&i, "127.0.0.1", fix.port), 0);
        assert_int_equal(ini_login(&i, NAME, TGTFIX_TARGET, keys, sizeof keys), 0);
        assert_int_equal(i.header_digest + i.data_digest, 2);
        ready(&i);
        assert_int_equal(ini_cmd(&i, wr, 10, out, sizeof out, NULL, 0, &r), 0);
        assert_int_equal(r.status, 0);
        memset(in, 0, sizeof in);
        assert_int_equal(ini_cmd(&i, rd, 10, NULL, 0, in, sizeof in, &r), 0);
        assert_memory_equal(in, out, sizeof in);
        ini_cmd_bhs(&i, b, wr, 10, TGT_FINAL | TGT_CMD_WRITE, 512);
        if (bad == 1) { /* a wrong header digest */
            gr_put_be24(b + 5, 0);
            assert_int_equal(ini_send_raw(&i, b, TGT_BHS_LEN), 0);
            assert_int_equal(ini_send_raw(&i, "abcd", 4), 0);
            assert_int_equal(next_op(&i, rsp, 2000), -EPIPE);
        } else if (bad == 2) { /* a wrong data digest: told, and the session ends */
            i.data_digest = 0;
            assert_int_equal(ini_send(&i, b, out, 512), 0);
            assert_int_equal(ini_send_raw(&i, "abcd", 4), 0);
            i.data_digest = 1;
            assert_int_equal(next_op(&i, rsp, 2000), TGT_OP_REJECT);
            assert_int_equal(rsp[2], TGT_REJECT_DATA_DIGEST);
            assert_int_equal(next_op(&i, rsp, 2000), -EPIPE);
        }
        ini_close(&i);
    }
    tgtfix_alive(&fix);
}

/* Random bytes and mutated PDUs, byte by byte or in one piece. */
static void noise(void **state)
{
    uint64_t seed = test_seed();
    unsigned cases = test_cases(300);
    for (unsigned n = 0; n < cases; n++) {
        struct ini i;
        uint8_t buf[1024];
        size_t len = test_rand(&seed) % sizeof buf;
        for (size_t k = 0; k < len; k++)
            buf[k] = (uint8_t)test_rand(&seed);
        if (test_rand(&seed) % 3) {
            login(&i);
            for (size_t k = 0; k + TGT_BHS_LEN <= len; k += TGT_BHS_LEN) { /* plausible headers, hostile fields */
                static const uint8_t ops[] = {0, 1, 1, 1, 2, 4, 5, 5, 6, 0x10};
                buf[k] = (uint8_t)(ops[test_rand(&seed) % sizeof ops] | (test_rand(&seed) & 0x40));
                buf[k + 4] = (uint8_t)(test_rand(&seed) % 8 ? 0 : 1);
                gr_put_be24(buf + k + 5, test_rand(&seed) % 4 ? 0 : (uint32_t)(test_rand(&seed) % 600));
                gr_put_be32(buf + k + 24, i.cmdsn + (uint32_t)(test_rand(&seed) % 3));
                if (test_rand(&seed) % 2)
                    memset(buf + k + 8, 0, 8);
                gr_put_be32(buf + k + 16, (uint32_t)(test_rand(&seed) % 4));
                if (buf[k + 32] == 0x1b || buf[k + 32] == 0x16 || buf[k + 32] == 0x5f || buf[k + 32] == 0x15 || buf[k + 32] == 0x55)
                    buf[k + 32] = 0x88;
            }
        } else {
            assert_int_equal(ini_connect(&i, "127.0.0.1", fix.port), 0);
        }
        ini_send_raw(&i, buf, len);
        ini_close(&i);
    }
    tgtfix_alive(&fix);
    tgtfix_wait_sessions(&fix, 0);
}

/* TEST_FILTER in the environment: only the test of that name. */
TGTFIX_MAIN(setup, teardown,
    TEST(opcode_sweep), TEST(lengths), TEST(sequence_numbers), TEST(data_out_rules), TEST(unsolicited_rules), TEST(cdb_sweep),
    TEST(scsi_edges), TEST(reset_with_sessions), TEST(replaced_sessions), TEST(in_flight), TEST(half_open), TEST(login_storm),
    TEST(never_reads), TEST(text_requests), TEST(redirect_and_v6), TEST(digests), TEST(noise))
