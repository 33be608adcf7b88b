/* Directories and regular files by the number of their object, for who shows a datastore as a file system (snapshot/fs.h): the namespace one
 * name at a time, owners, modes and times, content of any length.
 *
 * Who looks sees the tree as it is between two changes of names, by whatever host. A change of names is durable when it returns. Files are
 * locked by who has them open (vmfs_open_id); nothing here asks another host for anything: -GR_ELOCKED names its slot.
 *
 * The volume was made with VMFS_INCOMPAT_FILES (vmfs_files_kept()). Thread rule as vmfs.h. Times are nanoseconds since 1970. */
#ifndef VMFS_FILES_H
#define VMFS_FILES_H
#include "vmfs/vmfs.h"

#define VMFS_ROOT_ID 1u
#define VMFS_FILE_MAX (1ull << 50) /* bytes: as a disk */

struct vmfs_posix {
    uint32_t mode, uid, gid; /* mode: 07777 */
    int64_t atime_ns, mtime_ns, ctime_ns;
};
struct vmfs_node {
    uint64_t id;
    enum vmfs_type type;
    uint64_t size, used; /* bytes */
    bool has_posix;      /* false: made by a command, and nobody has said whose it is */
    struct vmfs_posix posix;
    int64_t made_s;      /* when the object was made, seconds since 1970 */
    int owner_slot;      /* of another living host: what is told of size, use and posix is as of its last checkpoint. -1: nobody, or this host */
    bool here;           /* this host holds its lock */
};
bool vmfs_files_kept(const struct vmfs *v); /* any context */
/* @name in directory @dir, or with "" the object @dir itself. -ENOENT, -ENOTDIR. */
int vmfs_look(struct vmfs *v, uint64_t dir, const char *name, struct vmfs_node *ret, struct gr_err *err);
/* fn(arg, name, id, type) for every entry, all of one instant; it may not suspend. A negative result ends it. */
int vmfs_list(struct vmfs *v, uint64_t dir, int (*fn)(void *arg, const char *name, uint64_t id, enum vmfs_type type), void *arg, struct gr_err *err);
/* New directory or empty file; a file is held by this host afterwards. -EEXIST with *ret_id of what is there, -EINVAL: no name. */
int vmfs_make(struct vmfs *v, uint64_t dir, const char *name, enum vmfs_type type, const struct vmfs_posix *posix, uint64_t *ret_id, struct gr_err *err);
/* What a change of names left without one: a file is held by this host, and lives on until vmfs_file_end(), or this host ends, and whoever
 * has it open says so (struct vmfs_join_opts.in_use). */
struct vmfs_lost {
    uint64_t id; /* 0: nothing */
    int owner_slot; /* -GR_ELOCKED: who must give the file @id up first */
};
/* Remove an empty directory (@dir_wanted) or a file; not a disk: -EPERM. @meant: the object that is meant, -ESTALE if the name leads elsewhere; 0: any. */
int vmfs_unlink(struct vmfs *v, uint64_t dir, const char *name, bool dir_wanted, uint64_t meant, int64_t now_ns, struct vmfs_lost *lost, struct gr_err *err);
/* Would all paths below the directory be at most VMFS_PATH_MAX bytes long, if its own had @path_len? 0; -ENAMETOOLONG names what would not. */
int vmfs_path_fits(struct vmfs *v, uint64_t dir, size_t path_len, struct gr_err *err);
enum vmfs_move_flags { VMFS_MOVE_KEEP = 1, VMFS_MOVE_SWAP = 2 }; /* -EEXIST when the new name is taken; both names swap what they name */
/* @meant: what is replaced, or 0, as above. */
int vmfs_move(struct vmfs *v, uint64_t from_dir, const char *from, uint64_t to_dir, const char *to, unsigned flags, uint64_t meant, int64_t now_ns,
              struct vmfs_lost *lost, struct gr_err *err);
int vmfs_dir_set_posix(struct vmfs *v, uint64_t dir, const struct vmfs_posix *posix, struct gr_err *err);

/* As vmfs_open() and vmfs_release(), by number; also of a file without a name. @what: for messages. */
int vmfs_open_id(struct vmfs *v, uint64_t id, const char *what, struct vmfs_disk **ret, int *ret_owner_slot, struct gr_err *err);
int vmfs_release_id(struct vmfs *v, uint64_t id, const char *what, struct gr_err *err);
/* An open file or disk as it is now. */
void vmfs_disk_node(struct vmfs_disk *d, struct vmfs_node *ret);
/* Of an open file: any length; what is behind it is gone. With the device when it returns, durable after a flush. Of writers at work a
 * growing file needs no notice; to make it shorter waits for them. A cut of power may leave zeros where a shorter length would be. */
int vmfs_file_resize(struct vmfs_disk *d, uint64_t size, struct gr_err *err);
int vmfs_file_set_posix(struct vmfs_disk *d, const struct vmfs_posix *posix, struct gr_err *err);
/* Nobody has the file without a name open any more: its keys are destroyed if it is encrypted, and its space comes back. Another host may have been
 * quicker: 0. */
int vmfs_file_end(struct vmfs *v, uint64_t id, struct gr_err *err);
#endif
