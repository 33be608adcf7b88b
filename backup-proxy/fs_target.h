/* The place where a restore puts files: a new tree that cannot be left. Private to fs_extract.c. */
#ifndef FS_TARGET_H
#define FS_TARGET_H
#include "backup-proxy/fs_proto.h"
#include "common/err.h"

struct fs_target {
    int parent;        /* the directory that will hold the result */
    char *parent_path; /* absolute */
    char *name;        /* of the result */
    char *temp;        /* its name until it is whole: "." NAME ".granary-XXXXXXXX" */
};
/* Decide where @out is; @guest_name is used when it is an existing directory. -EEXIST: the result exists already. */
int fs_target_open(struct fs_target *t, const char *out, const char *guest_name, struct gr_err *err);
void fs_target_done(struct fs_target *t);
char *fs_target_temp_path(const struct fs_target *t); /* absolute; new memory */
/* Make everything below the temporary name durable and rename it into place. */
int fs_target_publish(struct fs_target *t, struct gr_err *err);

/* Descriptor of @path (one or more names) below @dirfd, never through a symbolic link and never out of @dirfd. */
int fs_target_at(int dirfd, const char *path, int flags, unsigned mode);
/* Owner, mode and times of a new file or directory behind @fd. */
int fs_target_attr(int fd, const struct fs_attr *a, bool keep_ids, bool keep_special);
int fs_target_link(int dirfd, const char *name, const char *target, const struct fs_attr *a, bool keep_ids);
/* Second name of a file that is already there at @path below @root. */
int fs_target_hard(int root, const char *path, int dirfd, const char *name);
/* Remove @name below @dirfd with all below it, never following a link. -ENOENT is no error. */
int fs_target_remove(int dirfd, const char *name);
#endif
