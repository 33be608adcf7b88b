/* Reading a guest's file systems out of an image: the parent's side of granary-fsread (fs_proto.h). The parser runs in
 * that sandboxed helper only; a helper that crashes, breaks the protocol or uses up its time is killed, the request that
 * it was serving fails with -EIO (or -ETIMEDOUT), and the next request starts a new one.
 * Thread rule: fibers of the loop given at fs_reader_open; requests of several fibers queue. */
#ifndef FS_READER_H
#define FS_READER_H
#include "backup-proxy/fs_cache.h"
#include "backup-proxy/fs_proto.h"

struct fs_reader;
struct fs_reader_opts {
    const char *helper;   /* path of granary-fsread; NULL: beside this program, or in ../libexec/granary */
    uint64_t budget_ms;   /* helper time of one request, the image's own delays not counted; 0: 4000 */
    size_t cache_bytes;   /* 0: 64 MiB */
};
/* @bdev: the image (a reference is taken). Fast: nothing is read yet. */
int fs_reader_open(struct gr_loop *loop, struct gr_bdev *bdev, const struct fs_reader_opts *opts, struct fs_reader **ret,
                   struct gr_err *err);
void fs_reader_free(struct fs_reader *r); /* fiber; ends the helper; NULL allowed */
struct fs_cache *fs_reader_cache(struct fs_reader *r); /* borrowed: the image's bytes */
const char *fs_reader_name(const struct fs_reader *r);
int fs_reader_pid(const struct fs_reader *r); /* of the helper, 0: none runs (tests kill it) */

/* One volume of the disk (partition, logical volume, or the whole disk). */
struct fs_vol {
    uint32_t id;
    char name[64];           /* "part1", "lv-group-volume", "whole": a valid file name, unique on the disk */
    int status;              /* 0: `info` tells the file system; -ENODEV: none known; other: why it cannot be opened */
    char why[FS_TEXT_MAX + 1];
    struct fs_opened info;
    struct fs_volume *def;
};
/* Find the volumes and try to open each; done once, later calls give the same. A volume that cannot be opened is still
 * there, with its status. @ret_table: "gpt", "mbr" or "none". Errors: the image cannot be read, the helper fails. */
int fs_reader_scan(struct fs_reader *r, const struct fs_vol **ret, unsigned *ret_n, const char **ret_table, struct gr_err *err);

/* @vol from fs_reader_scan with status 0. Inodes are the guest's. @err may be NULL everywhere. */
int fs_reader_stat(struct fs_reader *r, const struct fs_vol *vol, uint64_t inode, struct fs_attr *ret, struct gr_err *err);
/* Calls on(arg, entry) for each entry; a negative return is given back at the end. Names have passed fs_name_ok. */
int fs_reader_list(struct fs_reader *r, const struct fs_vol *vol, uint64_t inode, int (*on)(void *arg, const struct fs_entry *e),
                   void *arg, struct gr_err *err);
int fs_reader_link(struct fs_reader *r, const struct fs_vol *vol, uint64_t inode, char ret[FS_LINK_MAX + 1], struct gr_err *err);
/* At most FS_DATA_MAX bytes through the helper; the count, short only at the end of the file. */
int64_t fs_reader_read(struct fs_reader *r, const struct fs_vol *vol, uint64_t inode, uint64_t off, void *buf, size_t len,
                       struct gr_err *err);
/* Where the file's bytes lie, from @off on: new memory in *ret_runs (checked: sorted, inside the volume), complete for
 * [off, *ret_end). Returns the count, or -EOPNOTSUPP: read through the helper. */
int fs_reader_map(struct fs_reader *r, const struct fs_vol *vol, uint64_t inode, uint64_t off, struct fs_run **ret_runs,
                  uint64_t *ret_end, struct gr_err *err);
#endif
