/* One guest file system, parsed by libtsk (CPL-1.0): part of the program granary-fsread only. Nothing else of Granary
 * may reference this file, so that libtsk is linked into no other program. */
#ifndef FSREAD_TSK_H
#define FSREAD_TSK_H
#include "backup-proxy/fs_parts.h"

struct fsread_fs;
struct fsread_text {
    char text[FS_TEXT_MAX + 1];
};
/* Open the file system on volume @vol of @img (both borrowed until fsread_close). -ENODEV: none that we know. Else a
 * negative errno with a sentence in @why. */
int fsread_open(const struct fs_image *img, const struct fs_volume *vol, struct fs_opened *ret_info, struct fsread_fs **ret,
                struct fsread_text *why);
void fsread_close(struct fsread_fs *fs);
/* What libtsk says about the last failure; borrowed until the next call. */
const char *fsread_why(void);
/* Entries of directory @inode, without ".", ".." and deleted ones. emit: 0 or a negative errno that ends the listing. */
int fsread_list(struct fsread_fs *fs, uint64_t inode, int (*emit)(void *arg, const struct fs_entry *e), void *arg);
int fsread_stat(struct fsread_fs *fs, uint64_t inode, struct fs_attr *ret);
/* Target of a symbolic link; borrowed until the next call. -EINVAL: no link. */
int fsread_link(struct fsread_fs *fs, uint64_t inode, const char **ret);
/* Up to @len bytes at @off; the count, 0 at the end. */
int64_t fsread_read(struct fsread_fs *fs, uint64_t inode, uint64_t off, void *buf, size_t len);
/* Where the bytes of a plain file lie: fills up to @max runs that cover [off, *ret_end). Returns their count, or
 * -EOPNOTSUPP when the file must be read with fsread_read (compressed, resident in its inode). */
int fsread_map(struct fsread_fs *fs, uint64_t inode, uint64_t off, struct fs_run *out, unsigned max, uint64_t *ret_end);
#endif
