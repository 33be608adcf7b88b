/* Directories of a guest, kept whole in memory while they are in use and a while longer. Fibers of the reader's loop. */
#ifndef FS_DIR_H
#define FS_DIR_H
#include "backup-proxy/fs_reader.h"

struct fs_dirent {
    struct fs_attr attr;
    const char *name; /* NUL-terminated, valid as long as the directory is held */
};
struct fs_dir {
    const struct fs_vol *vol;
    uint64_t inode;
    struct fs_dirent *entries; /* in the guest's order */
    uint32_t n;
    /* private */
    char *names;
    uint32_t *table; /* open hash of entry index + 1 */
    uint32_t table_len;
    unsigned refs;
    struct fs_dir *newer, *older, *hash_next;
};
struct fs_dirs; /* the directories of one reader */
int fs_dirs_new(struct fs_reader *r, struct fs_dirs **ret);
void fs_dirs_free(struct fs_dirs *d); /* none may be held */
/* The directory @inode; release with fs_dir_put. */
int fs_dir_get(struct fs_dirs *d, const struct fs_vol *vol, uint64_t inode, struct fs_dir **ret, struct gr_err *err);
void fs_dir_put(struct fs_dirs *d, struct fs_dir *dir); /* NULL allowed */
/* The entry called @name, the first if there are several; NULL: none. */
const struct fs_dirent *fs_dir_find(const struct fs_dir *dir, const char *name);
/* Follow @path ("/etc/passwd", "etc//passwd", "") from the root of @vol; symbolic links are not followed, ".." is refused.
 * -ENOENT, -ENOTDIR name the part that failed. */
int fs_dir_walk(struct fs_dirs *d, const struct fs_vol *vol, const char *path, struct fs_attr *ret, struct gr_err *err);
#endif
