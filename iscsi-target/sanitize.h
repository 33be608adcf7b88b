/* SANITIZE (SBC-4 4.11 and 5.31): every block that a logical unit owns is overwritten where it lies (GR_OP_SCRUB).
 *
 * The work is the unit's, not the command's: it goes on when the command is aborted, the session ends or the unit is reset, and, where
 * the device keeps attributes, after a restart of the daemon, from its beginning, at the next login. While it runs, commands that need
 * the medium get NOT READY with the progress. It is paced (TGT_SANITIZE_RATE), so that other disks keep the device.
 * Refused while a snapshot or a clone shares blocks. Space that the disk gave back earlier is not its any more, and not overwritten.
 *
 * OVERWRITE writes a pattern to all blocks; BLOCK ERASE overwrites what is owned with zeros and gives it back; CRYPTO ERASE does
 * the same, for there is no key whose loss would be enough.
 *
 * Attribute "sanitize" of the disk: struct tgt_sanitize_record. Thread rule: as target.h. */
#ifndef TGT_SANITIZE_H
#define TGT_SANITIZE_H
#include "common/endian.h"
#include "iscsi-target/target_int.h"

#define TGT_SANITIZE_RATE (160u << 20) /* bytes per second */
#define TGT_SANITIZE_PATTERN 4096u     /* bytes: a pattern is at most a block */

enum tgt_sanitize_action { TGT_SANITIZE_OVERWRITE = 1, TGT_SANITIZE_BLOCK_ERASE = 2, TGT_SANITIZE_CRYPTO_ERASE = 3, TGT_SANITIZE_EXIT_FAILURE = 0x1f };
enum tgt_sanitize_flags { TGT_SANITIZE_INVERT = 1, TGT_SANITIZE_AUSE = 2, TGT_SANITIZE_FAILED = 4 };
struct tgt_sanitize_record { /* the pattern follows */
    uint8_t version, action, count, flags; /* version 1 */
    gr_le32 pattern_len;
} __attribute__((packed));
GR_SIZE(struct tgt_sanitize_record, 8);

/* What stands in the way of a command of these flags: 0, or a sense; *ret_progress: 0 to 65535, -1 none. */
uint32_t tgt_sanitize_bars(const struct tgt_lu *lu, const struct tgt_cmd *cmd, int *ret_progress);
/* (fiber) Go on with what the device remembers. */
int tgt_sanitize_load(struct tgt_lu *lu, struct gr_err *err);
/* (fiber) Does its work have the unit to itself? Waits while that is about to begin. */
bool tgt_sanitize_alone(const struct tgt_lu *lu);
void tgt_sanitize_free(struct tgt_lu *lu); /* not while it runs */
#endif
