/* What the files that use libtsk share. Private to them (fsread_tsk.c, fsread_list.c). */
#ifndef FSREAD_INT_H
#define FSREAD_INT_H
#include "backup-proxy/fsread_tsk.h"
#include <tsk/libtsk.h>

struct fsread_overlay;
struct fsread_fs {
    TSK_IMG_INFO img; /* first: libtsk hands it back to volume_read */
    const struct fs_image *disk;
    const struct fs_volume *vol;
    TSK_FS_INFO *fs;
    TSK_FS_FILE *file; /* the last one used stays open: reads come in rows */
    uint64_t file_inode;
    bool old_ext; /* ext2 of revision 0 */
    bool recover; /* ext: its journal has what is not yet in place */
    struct fsread_overlay *journal;
    char link[FS_LINK_MAX + 1];
};
bool fsread_is_fat(const struct fsread_fs *f);
bool fsread_is_ntfs(const struct fsread_fs *f);
/* Attributes of an inode as libtsk read it (@m may be NULL or of a free inode: the type stays unknown). */
void fsread_attr_of(const struct fsread_fs *f, const TSK_FS_META *m, uint64_t inode, struct fs_attr *a);
/* Make f->file the inode's. -EIO, -ESTALE: a free inode. */
int fsread_use(struct fsread_fs *f, uint64_t inode);
#endif
