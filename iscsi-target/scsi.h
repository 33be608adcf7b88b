/* SCSI commands (SPC-4/5, SBC-3/4): one table row each, looked up by operation code and service action. */
#ifndef TGT_SCSI_H
#define TGT_SCSI_H
#include "iscsi-target/target_int.h"

#define TGT_WRITE_SAME_MAX 0x200000u       /* blocks of one WRITE SAME */
#define TGT_CAW_MAX 255u                   /* blocks of one COMPARE AND WRITE */
#define TGT_OPTIMAL_TRANSFER (8u << 20) /* bytes: few commands for who copies a disk; requests of that length are none too many */

enum tgt_scsi_status { TGT_GOOD = 0x00, TGT_CHECK = 0x02, TGT_CONDITION_MET = 0x04, TGT_BUSY = 0x08, TGT_CONFLICT = 0x18, TGT_FULL = 0x28 };
/* Sense: key << 16 | ASC << 8 | ASCQ. */
enum tgt_sense {
    TGT_SENSE_INVALID_OPCODE = 0x052000,
    TGT_SENSE_LBA_RANGE = 0x052100,
    TGT_SENSE_INVALID_CDB = 0x052400,
    TGT_SENSE_NO_LUN = 0x052500,
    TGT_SENSE_INVALID_PARAM = 0x052600,
    TGT_SENSE_RELEASE_INVALID = 0x052604,
    TGT_SENSE_COPY_TARGETS = 0x052606,
    TGT_SENSE_COPY_DESC_TYPE = 0x052607,
    TGT_SENSE_COPY_SEGMENTS = 0x052608,
    TGT_SENSE_COPY_SEG_TYPE = 0x052609,
    TGT_SENSE_PARAM_LENGTH = 0x051a00,
    TGT_SENSE_SAVE_UNSUPPORTED = 0x053900,
    TGT_SENSE_PR_RESOURCES = 0x055504,
    TGT_SENSE_WRITE_PROTECTED = 0x072700,
    TGT_SENSE_MISCOMPARE = 0x0e1d00,
    TGT_SENSE_SEQUENCE = 0x052c00,
    TGT_SENSE_COPY_ABORTED = 0x0a0000,
    TGT_SENSE_COPY_UNREACHABLE = 0x0a0802,
    TGT_SENSE_DATA_PHASE = 0x0b4b00,
    TGT_SENSE_UNEXPECTED_DATA = 0x0b0c0c,
    TGT_SENSE_NOT_ENOUGH_DATA = 0x0b0c0d,
    TGT_SENSE_INTERNAL = 0x044400,
    TGT_SENSE_NOT_READY = 0x020400,
    TGT_SENSE_STOPPED = 0x020402,
    TGT_SENSE_STANDBY = 0x02040b,
    TGT_SENSE_NO_MEDIUM = 0x023a00,
    TGT_SENSE_SANITIZING = 0x02041b,
    TGT_SENSE_READ_ERROR = 0x031100,
    TGT_SENSE_SANITIZE_FAILED = 0x033103,
    TGT_SENSE_MEDIUM_REMOVAL = 0x055302,
};
enum tgt_ua {
    TGT_UA_RESET = 0x2903,
    TGT_UA_MODE_CHANGED = 0x2a01,
    TGT_UA_RES_PREEMPTED = 0x2a03,
    TGT_UA_RES_RELEASED = 0x2a04,
    TGT_UA_REG_PREEMPTED = 0x2a05,
    TGT_UA_ACCESS_CHANGED = 0x2a06,
    TGT_UA_CAPACITY = 0x2a09,
    TGT_UA_CLEARED = 0x2f00,
    TGT_UA_THRESHOLD = 0x3807,
    TGT_UA_INQUIRY_CHANGED = 0x3f03,
    TGT_UA_LUNS_CHANGED = 0x3f0e,
    TGT_UA_MEDIUM_CHANGED = 0x2800,
};
enum tgt_cmd_flags {
    CMD_UA_OK = 1,      /* not stopped by a unit attention */
    CMD_NO_LUN = 2,     /* answers for a LUN that is not there */
    CMD_WRITES = 4,     /* refused on write-protected media */
    CMD_FIBER = 8,      /* may suspend: runs in a fiber */
    CMD_RES6_OK = 16,   /* allowed under another's RESERVE(6) */
    CMD_PR_READ = 32,   /* persistent reservations (SPC-4 table 69): like READ */
    CMD_PR_WRITE = 64,  /* like WRITE */
    CMD_MEDIUM = 128,   /* transfers or names blocks */
    CMD_READY = 256,    /* needs a medium that is loaded and not being sanitized */
    CMD_STANDBY_OK = 1024, /* answered by a unit in standby */
    CMD_CALM = 512,     /* refused while the medium is being sanitized, but not for its absence */
};
enum tgt_out_kind { OUT_NONE, OUT_BLOCKS, OUT_CAW, OUT_VERIFY, OUT_SAME, OUT_LEN8, OUT_LEN16, OUT_LEN32_5, OUT_LEN32_10, OUT_LEN24 };
struct tgt_cmd {
    uint8_t op;
    int8_t sa;         /* -1: none */
    uint8_t len;       /* bytes of the CDB */
    uint16_t flags;
    uint8_t out;       /* enum tgt_out_kind */
    uint8_t usage[16]; /* CDB usage map of REPORT SUPPORTED OPERATION CODES; byte 0 is the operation code */
    void (*run)(struct tgt_task *t);
};
extern const struct tgt_cmd tgt_cmds[];
extern const unsigned tgt_n_cmds;
/* The row of @cdb; NULL: not supported, *ret_sense says why. */
const struct tgt_cmd *tgt_scsi_lookup(const uint8_t *cdb, uint32_t *ret_sense);
/* Bytes that the command wants from the initiator by its CDB; UINT64_MAX: the CDB is invalid. */
uint64_t tgt_scsi_out_total(const struct tgt_lu *lu, const struct tgt_cmd *cmd, const uint8_t *cdb);
uint64_t tgt_cdb_lba(const uint8_t *cdb);
uint32_t tgt_cdb_blocks(const uint8_t *cdb);
/* All data is here: check state and run. */
void tgt_scsi_execute(struct tgt_task *t);
/* Run again after a wait for a buffer. */
void tgt_scsi_resume(struct tgt_task *t);
/* What stands in the way of a command @cmd of @sess: 0, a status, or sense << 8; *ret_progress: of what is under way, 0 to 65535, -1: nothing is. */
uint32_t tgt_scsi_refusal(const struct tgt_lu *lu, const struct tgt_sess *sess, const struct tgt_cmd *cmd, int *ret_progress);
/* The unit may have changed while @t waited for its turn (reservations, write protection, a SANITIZE): asked again when it goes to the device.
 * False: it is answered. */
bool tgt_scsi_still_admitted(struct tgt_task *t);
void tgt_scsi_fiber(struct tgt_task *t);

/* ---- answers ---- */
void tgt_good(struct tgt_task *t);
void tgt_status(struct tgt_task *t, uint8_t status);
void tgt_check(struct tgt_task *t, uint32_t sense);
void tgt_check_info(struct tgt_task *t, uint32_t sense, uint64_t information);
void tgt_check_field(struct tgt_task *t, uint32_t sense, bool in_cdb, unsigned byte); /* with a field pointer */
void tgt_check_code(struct tgt_task *t, int code); /* from a negative code */
uint32_t tgt_code_sense(int code);                 /* the sense of one */
/* Encode sense data; the number of bytes. */
uint8_t tgt_sense_encode(uint8_t *p, bool descriptor, uint32_t sense, const uint64_t *information, int field, bool field_in_cdb);
/* Answer with parameter data: zeroed memory of @len bytes in the task's buffer, NULL (answered) when out of memory. */
uint8_t *tgt_in_buf(struct tgt_task *t, uint32_t len);
/* Good, with the first min(len, alloc) bytes of the buffer. */
void tgt_in_data(struct tgt_task *t, uint32_t len, uint32_t alloc);

void tgt_lu_naa(const struct tgt_lu *lu, uint8_t naa[16]); /* NAA designator of VPD 83 */

/* ---- the rows' functions ---- */
bool tgt_check_range(struct tgt_task *t, uint64_t lba, uint64_t blocks); /* false: answered */
/* Take the range [off, off+len) for a fiber; waits. False: a reservation came meanwhile, and @t is answered. */
bool tgt_fiber_range(struct tgt_task *t, uint64_t off, uint64_t len, bool excl);

void tgt_run_test_unit_ready(struct tgt_task *t);
void tgt_run_request_sense(struct tgt_task *t);
void tgt_run_inquiry(struct tgt_task *t);
void tgt_run_mode_select(struct tgt_task *t);
void tgt_run_mode_sense(struct tgt_task *t);
void tgt_run_reserve6(struct tgt_task *t);
void tgt_run_release6(struct tgt_task *t);
void tgt_run_start_stop(struct tgt_task *t);
void tgt_run_prevent(struct tgt_task *t);
void tgt_run_send_diagnostic(struct tgt_task *t);
void tgt_run_read_capacity10(struct tgt_task *t);
void tgt_run_read_capacity16(struct tgt_task *t);
void tgt_run_read(struct tgt_task *t);
void tgt_run_write(struct tgt_task *t);
void tgt_run_write_atomic(struct tgt_task *t);
void tgt_run_orwrite(struct tgt_task *t);
void tgt_run_compare_write(struct tgt_task *t);
void tgt_run_write_verify(struct tgt_task *t);
void tgt_run_verify(struct tgt_task *t);
void tgt_run_prefetch(struct tgt_task *t);
void tgt_run_sync_cache(struct tgt_task *t);
void tgt_run_write_same(struct tgt_task *t);
void tgt_run_unmap(struct tgt_task *t);
void tgt_run_get_lba_status(struct tgt_task *t);
void tgt_run_sanitize(struct tgt_task *t);
void tgt_run_read_defect(struct tgt_task *t);
void tgt_run_report_luns(struct tgt_task *t);
void tgt_run_report_opcodes(struct tgt_task *t);
void tgt_run_report_tmf(struct tgt_task *t);
void tgt_run_report_tpg(struct tgt_task *t);
void tgt_run_pr_in(struct tgt_task *t);
void tgt_run_pr_out(struct tgt_task *t);
void tgt_run_extended_copy(struct tgt_task *t);
void tgt_run_copy_status(struct tgt_task *t);
void tgt_run_copy_operating(struct tgt_task *t);

/* ---- reservations: pr.c ---- */
/* May @sess run a command of these flags? 0, or TGT_CONFLICT. */
uint8_t tgt_pr_check(const struct tgt_lu *lu, const struct tgt_sess *sess, unsigned flags);
bool tgt_pr_any(const struct tgt_lu *lu); /* registrations exist */
void tgt_pr_told(struct tgt_sess *sess, uint16_t ua); /* its initiator hears this unit attention */
/* What a session does not know the outcome of, for a process that takes over; NULL: there is nothing of that kind, or no memory. New reference. */
json_t *tgt_pr_unsure_save(const struct tgt_unsure *u);
void tgt_pr_unsure_load(struct tgt_unsure *u, json_t *doc); /* none: absent, or not understood */
int tgt_pr_load(struct tgt_lu *lu, struct gr_err *err); /* (fiber) what APTPL kept */
/* All of it, for a process that takes over; NULL: none. New reference. */
json_t *tgt_pr_describe(const struct tgt_lu *lu);
int tgt_pr_adopt(struct tgt_lu *lu, json_t *doc);
void tgt_pr_free(struct tgt_lu *lu);
void tgt_copies_free(struct tgt_lu *lu);
#endif
