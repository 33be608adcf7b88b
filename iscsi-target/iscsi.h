/* iSCSI on the wire (RFC 7143): the 48-byte basic header segment (BHS) and what its fields mean.
 *
 * OFFSET SIZE  (all numbers big-endian)
 *   0  1   opcode (bits 5..0), 0x40: immediate delivery
 *   1  1   flags; 0x80 is F (final) in every PDU that has it
 *   4  1   TotalAHSLength in 4-byte words     5  3   DataSegmentLength in bytes (padded to 4 on the wire)
 *   8  8   LUN (login: ISID 6 bytes, TSIH 2 bytes)
 *  16  4   Initiator Task Tag                20  4   TTT, EDTL, referenced tag, CID
 *  24  4   CmdSN (to the target) or StatSN   28  4   ExpStatSN or ExpCmdSN
 *  32  4   MaxCmdSN (from the target) or the first 4 of 16 CDB bytes
 *  36 12   by opcode
 * Then AHS, header digest (4, when negotiated), data, padding, data digest (4, when negotiated). Digests are CRC32C and go
 * on the wire least significant byte first (RFC 7143 13.1, RFC 3720 B.4). */
#ifndef TGT_ISCSI_H
#define TGT_ISCSI_H
#include "common/endian.h"
#include <stdbool.h>
#include <string.h>

#define TGT_BHS_LEN 48u
#define TGT_TAG_NONE 0xffffffffu
#define TGT_MAX_DSL 262144u /* MaxRecvDataSegmentLength that we declare */
#define TGT_ISID_LEN 6u

enum tgt_opcode {
    TGT_OP_NOP_OUT = 0x00,
    TGT_OP_SCSI_CMD = 0x01,
    TGT_OP_TMF = 0x02,
    TGT_OP_LOGIN = 0x03,
    TGT_OP_TEXT = 0x04,
    TGT_OP_DATA_OUT = 0x05,
    TGT_OP_LOGOUT = 0x06,
    TGT_OP_SNACK = 0x10,
    TGT_OP_NOP_IN = 0x20,
    TGT_OP_SCSI_RSP = 0x21,
    TGT_OP_TMF_RSP = 0x22,
    TGT_OP_LOGIN_RSP = 0x23,
    TGT_OP_TEXT_RSP = 0x24,
    TGT_OP_DATA_IN = 0x25,
    TGT_OP_LOGOUT_RSP = 0x26,
    TGT_OP_R2T = 0x31,
    TGT_OP_ASYNC = 0x32,
    TGT_OP_REJECT = 0x3f,
};
#define TGT_IMMEDIATE 0x40u
#define TGT_FINAL 0x80u
#define TGT_CONTINUE 0x40u      /* C of login and text */
#define TGT_LOGIN_TRANSIT 0x80u /* T of login */
#define TGT_CMD_READ 0x40u      /* SCSI command flags */
#define TGT_CMD_WRITE 0x20u

enum tgt_reject { /* RFC 7143 11.17.1 */
    TGT_REJECT_DATA_DIGEST = 0x02,
    TGT_REJECT_SNACK = 0x03,
    TGT_REJECT_PROTOCOL = 0x04,
    TGT_REJECT_UNSUPPORTED = 0x05,
    TGT_REJECT_IMMEDIATE = 0x06,
    TGT_REJECT_TASK = 0x07,
    TGT_REJECT_INVALID = 0x09,
    TGT_REJECT_LONG = 0x0a,
    TGT_REJECT_LOGIN = 0x0c,
};
/* Login status: class << 8 | detail (RFC 7143 11.13.5). */
enum tgt_login_status {
    TGT_LOGIN_OK = 0x0000,
    TGT_LOGIN_MOVED = 0x0101,
    TGT_LOGIN_INITIATOR = 0x0200,
    TGT_LOGIN_AUTH = 0x0201,
    TGT_LOGIN_FORBIDDEN = 0x0202,
    TGT_LOGIN_NOT_FOUND = 0x0203,
    TGT_LOGIN_VERSION = 0x0205,
    TGT_LOGIN_TOO_MANY = 0x0206,
    TGT_LOGIN_MISSING = 0x0207,
    TGT_LOGIN_NO_SESSION_TYPE = 0x0209,
    TGT_LOGIN_NO_SESSION = 0x020a,
    TGT_LOGIN_INVALID_DURING = 0x020b,
    TGT_LOGIN_TARGET = 0x0300,
    TGT_LOGIN_UNAVAILABLE = 0x0301,
    TGT_LOGIN_RESOURCES = 0x0302,
};
enum tgt_tmf {
    TGT_TMF_ABORT_TASK = 1,
    TGT_TMF_ABORT_TASK_SET = 2,
    TGT_TMF_CLEAR_ACA = 3,
    TGT_TMF_CLEAR_TASK_SET = 4,
    TGT_TMF_LUN_RESET = 5,
    TGT_TMF_WARM_RESET = 6,
    TGT_TMF_COLD_RESET = 7,
    TGT_TMF_REASSIGN = 8,
};
enum tgt_tmf_response {
    TGT_TMF_DONE = 0,
    TGT_TMF_NO_TASK = 1,
    TGT_TMF_NO_LUN = 2,
    TGT_TMF_ALLEGIANT = 3, /* its connection lives */
    TGT_TMF_NO_REASSIGN = 4,
    TGT_TMF_UNSUPPORTED = 5,
    TGT_TMF_REJECTED = 255,
};

/* The LUN field says 0, in peripheral or in flat addressing (SAM-5 4.7.7). */
static inline bool tgt_bhs_lun0(const uint8_t *b)
{
    return !(gr_get_be64(b + 8) & ~0x4000000000000000ull);
}
static inline unsigned tgt_bhs_opcode(const uint8_t *b) { return b[0] & 0x3fu; }
static inline bool tgt_bhs_immediate(const uint8_t *b) { return b[0] & TGT_IMMEDIATE; }
static inline unsigned tgt_bhs_ahs_len(const uint8_t *b) { return b[4] * 4u; }
static inline uint32_t tgt_bhs_dsl(const uint8_t *b) { return gr_get_be24(b + 5); }
static inline uint32_t tgt_bhs_itt(const uint8_t *b) { return gr_get_be32(b + 16); }
static inline uint32_t tgt_bhs_ttt(const uint8_t *b) { return gr_get_be32(b + 20); } /* also EDTL, referenced tag */
static inline uint32_t tgt_bhs_cmdsn(const uint8_t *b) { return gr_get_be32(b + 24); }
static inline uint32_t tgt_pad4(uint32_t len) { return (0u - len) & 3u; }
/* Serial number arithmetic (RFC 1982): a < b. */
static inline bool tgt_sn_lt(uint32_t a, uint32_t b) { return (int32_t)(a - b) < 0; }
/* Start a PDU from the target: zeroed, opcode, flags, tags. */
static inline void tgt_bhs_start(uint8_t *b, enum tgt_opcode op, uint8_t flags, uint32_t itt, uint32_t dsl)
{
    memset(b, 0, TGT_BHS_LEN);
    b[0] = (uint8_t)op;
    b[1] = flags;
    gr_put_be24(b + 5, dsl);
    gr_put_be32(b + 16, itt);
}
static inline void tgt_bhs_sns(uint8_t *b, uint32_t statsn, uint32_t expcmdsn, uint32_t maxcmdsn)
{
    gr_put_be32(b + 24, statsn);
    gr_put_be32(b + 28, expcmdsn);
    gr_put_be32(b + 32, maxcmdsn);
}
/* Digest as four wire bytes. */
static inline void tgt_digest_put(uint8_t *p, uint32_t crc) { gr_put_le32(p, crc); }
static inline uint32_t tgt_digest_get(const uint8_t *p) { return gr_get_le32(p); }
#endif
