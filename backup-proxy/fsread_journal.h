/* The journal of an ext3/ext4 file system that was not unmounted (jbd2): what a mount would write back, found without
 * writing. A backup of a guest without an agent is such a file system; without its journal the newest files are missing.
 * Runs inside the sandboxed reader: the image is hostile. Needs libc only.
 *
 * Format (all big-endian): block 0 of the journal is its superblock; then a ring of transactions, each descriptor and
 * revoke blocks (tags and the blocks they tell about) and one commit block. A transaction without its commit block never
 * happened. Fast commits are not looked at. */
#ifndef FSREAD_JOURNAL_H
#define FSREAD_JOURNAL_H
#include "backup-proxy/fs_parts.h"

struct fsread_overlay; /* blocks of the file system whose newest content is in the journal */
/* Read the journal of the ext file system on @vol with @block_size, whose journal file lies at @runs[0..n_runs) (in volume
 * bytes, complete). Returns the number of blocks in *ret (0: nothing to replay, *ret is NULL), -EINVAL: no valid journal,
 * or another negative errno. Free with fsread_overlay_free. */
int fsread_journal_load(const struct fs_image *img, const struct fs_volume *vol, uint32_t block_size, const struct fs_run *runs,
                        unsigned n_runs, struct fsread_overlay **ret);
void fsread_overlay_free(struct fsread_overlay *o); /* NULL allowed */
/* @buf holds [off, off+len) of the volume as it is: put in what the journal knows better. 0 or a negative errno. */
int fsread_overlay_apply(const struct fsread_overlay *o, uint8_t *buf, size_t len, uint64_t off);
/* Does the journal know better about any byte of [off, off+len)? */
bool fsread_overlay_touches(const struct fsread_overlay *o, uint64_t off, uint64_t len);
#endif
