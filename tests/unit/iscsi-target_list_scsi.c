/* The list of bad inputs (docs/iscsi-hostile.md), 44 to 50: SCSI. Every case runs beside a session that must not notice. */
#include "common/cleanup.h"
#include "iscsi-target/scsi.h"
#include "tests/lib/inix.h"
#include "tests/lib/test.h"
#include "tests/lib/witness.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define NAME "iqn.2026-11.local.granary:scsi"
static struct tgtfix fix;
static struct witness *witness;
static struct ini session;
static uint8_t out[131072], in[65536];

static int setup(void **state)
{
    (void)state;
    memset(&fix, 0, sizeof fix);
    tgtfix_start(&fix);
    witness = witness_start(&fix);
    tgtfix_login(&fix, &session, NAME);
    inix_ready(&session);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    ini_close(&session);
    tgtfix_wait_sessions(&fix, 1);
    witness_stop(witness);
    tgtfix_alive(&fix);
    tgtfix_stop(&fix);
    return 0;
}

static struct ini_result send_list(const uint8_t *cdb, unsigned cdb_len, const void *list, uint32_t len)
{
    struct ini_result r;
    assert_int_equal(ini_cmd(&session, cdb, cdb_len, list, len, NULL, 0, &r), 0);
    return r;
}

static void refused(const struct ini_result *r)
{
    assert_int_equal(r->status, 2);
    assert_true(INI_KEY(*r) == 5 || INI_KEY(*r) == 0x0a);
}

static uint32_t own_naa(uint8_t naa[16])
{
    static const uint8_t ids[6] = {0x12, 1, 0x83, 0, 255};
    struct ini_result r;
    assert_int_equal(ini_cmd(&session, ids, 6, NULL, 0, in, 255, &r), 0);
    memcpy(naa, in + 8, 16);
    return r.in_len > 24;
}

/* EXTENDED COPY parameters: @targets of ours, @segments from 0 to 8 blocks further. */
static uint32_t copy_list(unsigned targets, unsigned segments, uint16_t blocks, uint64_t from, uint64_t to)
{
    uint8_t naa[16];
    uint8_t *p = out + 16;
    assert_true(own_naa(naa));
    memset(out, 0, sizeof out);
    gr_put_be16(out + 2, (uint16_t)(targets * 32));
    gr_put_be32(out + 8, segments * 28);
    for (unsigned k = 0; k < targets; k++, p += 32) {
        p[0] = 0xe4;
        p[4] = 1;
        p[5] = 3;
        p[7] = 16;
        memcpy(p + 8, naa, 16);
        p[28] = 0;
        gr_put_be24(p + 29, 512);
    }
    for (unsigned k = 0; k < segments; k++, p += 28) {
        p[0] = 2;
        p[3] = 0x18;
        gr_put_be16(p + 10, blocks);
        gr_put_be64(p + 12, from);
        gr_put_be64(p + 20, to);
    }
    return (uint32_t)(p - out);
}

static struct ini_result copy(uint32_t len)
{
    uint8_t cdb[16] = {0x83};
    gr_put_be32(cdb + 10, len);
    return send_list(cdb, 16, out, len);
}

static void i44_extended_copy(void **state)
{
    struct ini_result r = copy(copy_list(1, 1, 8, 0, 4)); /* onto itself, overlapping: done or refused, not hung */
    assert_true(r.status == 0 || r.status == 2);
    r = copy(copy_list(1, 1, 8, 0, 64));
    assert_int_equal(r.status, 0);
    r = copy(copy_list(1, 1, 8, TGTFIX_SIZE / 512 - 4, 0)); /* beyond the end */
    refused(&r);
    r = copy(copy_list(1, 1, 8, UINT64_MAX - 3, 0));
    refused(&r);
    r = copy(copy_list(1, 1, 8, 0, UINT64_MAX - 3));
    refused(&r);
    r = copy(copy_list(1, 2000, 1, 0, 64)); /* more segments than may be */
    refused(&r);
    r = copy(copy_list(2000, 1, 1, 0, 64)); /* and targets */
    refused(&r);
    uint32_t len = copy_list(1, 1, 8, 0, 64);
    memset(out + 16 + 8, 0x6a, 16); /* a LU that is not, or not this initiator's */
    r = copy(len);
    assert_int_equal(r.status, 2);
    len = copy_list(1, 1, 8, 0, 64);
    gr_put_be16(out + 16 + 32 + 4, 9); /* names target 9 of 1 */
    r = copy(len);
    refused(&r);
    len = copy_list(1, 1, 8, 0, 64);
    for (unsigned at = 0; at < 16; at++) { /* lengths that lie */
        uint8_t kept = out[at];
        out[at] = 0xff;
        r = copy(len);
        assert_true(r.status == 0 || r.status == 2);
        out[at] = kept;
    }
    for (uint32_t cut = 0; cut < len; cut++) { /* cut off anywhere */
        r = copy(cut);
        assert_true(cut == 0 ? r.status == 0 : r.status == 2);
    }
}

/* Every service action of the opcodes that have some, with every list length; the reservation's own effects are undone. */
static void i45_service_actions(void **state)
{
    static const uint8_t ops[] = {0x5e, 0x5f, 0x83, 0x84, 0x9e, 0xa3, 0xa4, 0x48, 0x7f, 0x9f};
    for (size_t k = 0; k < GR_ARRAY_LEN(ops); k++) {
        for (unsigned sa = 0; sa < 32; sa++) {
            for (unsigned v = 0; v < 6; v++) {
                uint8_t cdb[16] = {ops[k], (uint8_t)sa};
                struct ini_result r;
                uint32_t n = v == 0 ? 0 : v == 1 ? 8 : v == 2 ? 24 : v == 3 ? 28 : v == 4 ? 300 : 4096;
                if (ops[k] == 0x48 && sa)
                    continue; /* SANITIZE: tests of its own */
                memset(out, v & 1 ? 0xff : 0, n);
                gr_put_be32(cdb + 5, ops[k] == 0x5f ? n : 0);
                if (ops[k] == 0x83)
                    gr_put_be32(cdb + 10, n);
                bool data_out = ops[k] == 0x5f || ops[k] == 0x83 || ops[k] == 0xa4 || ops[k] == 0x48;
                assert_int_equal(ini_cmd(&session, cdb, 16, data_out && n ? out : NULL, data_out ? n : 0, data_out ? NULL : in, data_out ? 0 : 4096, &r), 0);
            }
        }
    }
    /* SPEC_I_PT with TransportIDs whose lengths lie */
    for (unsigned v = 0; v < 40; v++) {
        uint8_t cdb[10] = {0x5f, 0};
        memset(out, 0, 4096);
        gr_put_be64(out + 8, 1);
        out[20] = 0x08;
        gr_put_be32(out + 24, v % 5 == 0 ? 0xffffffff : v % 5 == 1 ? 0 : v * 13);
        out[28] = (uint8_t)(v % 2 ? 0x45 : 0x05);
        gr_put_be16(out + 30, (uint16_t)(v % 3 ? 0xfffc : v));
        gr_put_be32(cdb + 5, 28 + v * 9);
        struct ini_result r = send_list(cdb, 10, out, 28 + v * 9);
        assert_int_equal(r.status, 2);
    }
    static const uint8_t keys[10] = {0x5e, 0, [8] = 255};
    struct ini_result r;
    assert_int_equal(ini_cmd(&session, keys, 10, NULL, 0, in, 255, &r), 0);
    assert_int_equal(r.status, 0);
    assert_int_equal(gr_get_be32(in + 4), 0); /* nobody is registered */
}

static void i46_unmap_lists(void **state)
{
    for (uint32_t len = 0; len <= 40; len++) {
        for (unsigned v = 0; v < 4; v++) {
            uint8_t cdb[10] = {0x42, 0, 0, 0, 0, 0, 0, 0, (uint8_t)len};
            memset(out, 0, 64);
            gr_put_be16(out, (uint16_t)(v == 0 ? len - 2 : v == 1 ? 0xffff : 22));
            gr_put_be16(out + 2, (uint16_t)(v == 3 ? 0xfff0 : v == 2 ? len - 8 : 16));
            gr_put_be64(out + 8, 128);
            gr_put_be32(out + 16, 8);
            struct ini_result r = send_list(cdb, 10, len ? out : NULL, len);
            assert_true(r.status == 0 || INI_KEY(r) == 5);
        }
    }
    static const struct {
        uint64_t lba;
        uint32_t blocks;
    } bad[] = {{TGTFIX_SIZE / 512, 1}, {TGTFIX_SIZE / 512 - 1, 2}, {UINT64_MAX, 1}, {UINT64_MAX, UINT32_MAX}, {0, UINT32_MAX}};
    for (size_t k = 0; k < GR_ARRAY_LEN(bad); k++) {
        static const uint8_t cdb[10] = {0x42, 0, 0, 0, 0, 0, 0, 0, 24};
        memset(out, 0, 24);
        gr_put_be16(out, 22);
        gr_put_be16(out + 2, 16);
        gr_put_be64(out + 8, bad[k].lba);
        gr_put_be32(out + 16, bad[k].blocks);
        struct ini_result r = send_list(cdb, 10, out, 24);
        assert_int_equal(INI_KEY(r), 5);
        assert_int_equal(INI_ASC(r), 0x2100);
    }
}

/* Every command that answers with data, with every allocation length: no byte beyond it, and none that was in the buffer before. A long
 * read first fills the target's buffers with a pattern that no such answer holds. */
static void i47_allocation_lengths(void **state)
{
    static const struct {
        uint8_t cdb[16];
        uint8_t at, width;
    } cmds[] = {{{0x03}, 4, 1},         {{0x12}, 3, 2},          {{0x12, 1, 0}, 3, 2},     {{0x12, 1, 0x80}, 3, 2}, {{0x12, 1, 0x83}, 3, 2},
                {{0x12, 1, 0x86}, 3, 2}, {{0x12, 1, 0xb0}, 3, 2}, {{0x12, 1, 0xb1}, 3, 2},  {{0x12, 1, 0xb2}, 3, 2}, {{0x1a, 0, 0x3f}, 4, 1},
                {{0x5a, 0, 0x3f}, 7, 2}, {{0x5e, 0}, 7, 2},       {{0x5e, 1}, 7, 2},        {{0x5e, 2}, 7, 2},       {{0x5e, 3}, 7, 2},
                {{0x84, 3}, 10, 4},      {{0x9e, 0x10}, 10, 4},   {{0x9e, 0x12}, 10, 4},    {{0xa0}, 6, 4},          {{0xa3, 0x0a}, 6, 4},
                {{0xa3, 0x0c}, 6, 4},    {{0xa3, 0x0d}, 6, 4},    {{0x37}, 7, 2},           {{0xb7}, 6, 4}};
    uint8_t pattern[10];
    struct ini_result r;
    memset(out, 0x5a, 65536);
    inix_rw_cdb(pattern, true, 0, 128);
    assert_int_equal(ini_cmd(&session, pattern, 10, out, 65536, NULL, 0, &r), 0);
    for (size_t k = 0; k < GR_ARRAY_LEN(cmds); k++) {
        for (uint32_t alloc = 0; alloc < 256; alloc += alloc < 40 ? 1 : 37) {
            uint8_t cdb[16];
            inix_rw_cdb(cdb, false, 0, 128);
            assert_int_equal(ini_cmd(&session, cdb, 10, NULL, 0, in, 65536, &r), 0);
            assert_int_equal(in[65535], 0x5a);
            memcpy(cdb, cmds[k].cdb, 16);
            if (cmds[k].width == 1)
                cdb[cmds[k].at] = (uint8_t)alloc;
            else if (cmds[k].width == 2)
                gr_put_be16(cdb + cmds[k].at, (uint16_t)alloc);
            else
                gr_put_be32(cdb + cmds[k].at, alloc);
            memset(in, 0xee, 4096);
            assert_int_equal(ini_cmd(&session, cdb, 16, NULL, 0, in, 4096, &r), 0);
            assert_true(r.in_len <= alloc);
            for (uint32_t n = 0, run = 0; n < r.in_len; n++) {
                run = in[n] == 0x5a ? run + 1 : 0;
                assert_true(run < 4); /* a stale buffer would show the pattern */
            }
            for (uint32_t n = (uint32_t)r.in_len; n < 4096; n++)
                assert_int_equal(in[n], 0xee);
        }
    }
}

static void i48_mode_select(void **state)
{
    for (unsigned ten = 0; ten < 2; ten++) {
        for (uint32_t len = 0; len <= 64; len++) {
            for (unsigned v = 0; v < 4; v++) {
                uint8_t cdb[10] = {(uint8_t)(ten ? 0x55 : 0x15), 0x10};
                uint32_t head = ten ? 8 : 4;
                cdb[ten ? 8 : 4] = (uint8_t)len;
                memset(out, 0, 256);
                if (v & 1)
                    out[ten ? 7 : 3] = 0xff; /* block descriptors beyond the list */
                out[head] = (uint8_t)(v & 2 ? 0x4a : 0x0a);
                out[head + 1] = (uint8_t)(v & 2 ? 0xff : 200);
                struct ini_result r = send_list(cdb, ten ? 10 : 6, len ? out : NULL, len);
                assert_true(len == 0 ? r.status == 0 : r.status == 2 || len <= head);
            }
        }
    }
}

/* All ways to say a LUN (SAM-5 4.7): 0 in each of them is ours, everything else is not there. */
static void i49_lun_fields(void **state)
{
    static const struct {
        uint8_t lun[8];
        bool ours;
    } cases[] = {{{0}, true},           {{0, 1}, false},       {{0x40, 0}, true}, {{0x40, 1}, false}, {{0x80, 0}, false},
                 {{0xc0, 0}, false},    {{0, 0, 0, 1}, false}, {{0x3f, 0}, false}, {{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, false},
                 {{0xd2, 0, 0, 1}, false}, {{0, 0, 0, 0, 0, 0, 0, 9}, false}};
    for (size_t k = 0; k < GR_ARRAY_LEN(cases); k++) {
        for (unsigned inquiry = 0; inquiry < 2; inquiry++) {
            uint8_t b[TGT_BHS_LEN], cdb[6] = {(uint8_t)(inquiry ? 0x12 : 0), 0, 0, 0, (uint8_t)(inquiry ? 36 : 0)};
            ini_cmd_bhs(&session, b, cdb, 6, (uint8_t)(TGT_FINAL | (inquiry ? TGT_CMD_READ : 0)), inquiry ? 36 : 0);
            memcpy(b + 8, cases[k].lun, 8);
            assert_int_equal(ini_send(&session, b, NULL, 0), 0);
            int n = ini_recv(&session, b, inix_seg, sizeof inix_seg);
            assert_true(n >= 0);
            if (inquiry) { /* peripheral qualifier 3: not capable */
                assert_int_equal(tgt_bhs_opcode(b), TGT_OP_DATA_IN);
                assert_int_equal(inix_seg[0], cases[k].ours ? 0 : 0x7f);
            } else {
                assert_int_equal(b[3], cases[k].ours ? 0 : 2);
                if (!cases[k].ours)
                    assert_int_equal(gr_get_be16(inix_seg + 2 + 12), 0x2500);
            }
        }
    }
}

static void i50_ends_of_the_disk(void **state)
{
    static const uint8_t ops[] = {0x88, 0x8a, 0x89, 0x8b, 0x8e, 0x8f, 0x90, 0x91, 0x93, 0x9c};
    static const struct {
        uint64_t lba;
        uint32_t blocks;
    } at[] = {{TGTFIX_SIZE / 512, 1}, {TGTFIX_SIZE / 512 - 1, 2}, {UINT64_MAX, 1}, {UINT64_MAX - 1, 8}, {1ull << 63, 1}, {0, UINT32_MAX}};
    for (size_t k = 0; k < GR_ARRAY_LEN(ops); k++) {
        for (size_t a = 0; a < GR_ARRAY_LEN(at); a++) {
            uint8_t cdb[16] = {ops[k]};
            struct ini_result r;
            gr_put_be64(cdb + 2, at[a].lba);
            if (ops[k] == 0x89)
                cdb[13] = (uint8_t)at[a].blocks;
            else if (ops[k] == 0x9c)
                gr_put_be16(cdb + 12, (uint16_t)at[a].blocks);
            else
                gr_put_be32(cdb + 10, at[a].blocks);
            bool reads = ops[k] == 0x88;
            assert_int_equal(ini_cmd(&session, cdb, 16, reads ? NULL : out, reads ? 0 : 512, reads ? in : NULL, reads ? 512 : 0, &r), 0);
            assert_int_equal(r.status, 2);
            assert_int_equal(INI_KEY(r), 5);
        }
    }
}

#define CASE(f) {#f, f, setup, teardown, NULL}
TGTFIX_MAIN(NULL, NULL,
    CASE(i44_extended_copy), CASE(i45_service_actions), CASE(i46_unmap_lists), CASE(i47_allocation_lengths), CASE(i48_mode_select),
    CASE(i49_lun_fields), CASE(i50_ends_of_the_disk))
