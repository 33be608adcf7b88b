/* An open file of a guest. Plain files are read straight from the image by their runs, so that only compressed ones and
 * the smallest ones pass through the helper. Fibers of the reader's loop. */
#ifndef FS_FILE_H
#define FS_FILE_H
#include "backup-proxy/fs_reader.h"
struct fs_file;
/* @attr: of the file (inode and size are used). Cheap: the runs are asked for at the first read. Borrowed: @r, @vol. */
int fs_file_open(struct fs_reader *r, const struct fs_vol *vol, const struct fs_attr *attr, struct fs_file **ret, struct gr_err *err);
/* No read may be under way. NULL allowed. */
void fs_file_close(struct fs_file *f);
/* Read up to @len bytes at @off: the count, short only at the end of the file (0 behind it), or a negative code. */
int64_t fs_file_read(struct fs_file *f, void *buf, size_t len, uint64_t off, struct gr_err *err);
#endif
