/* File-level restore: copies one file or a tree out of a guest's file system into a directory of this host. What the
 * guest's bytes say never reaches outside of the new file or tree: it is made under a temporary name, each step resolved
 * beneath it without following a symbolic link (openat2), and renamed into place when it is whole. */
#ifndef FS_EXTRACT_H
#define FS_EXTRACT_H
#include "backup-proxy/fs_reader.h"

struct fs_extract_result {
    uint64_t files, dirs, links, bytes;
    uint64_t skipped; /* device nodes, sockets, what cannot be read; each was told to note() */
};
struct fs_extract_opts {
    bool keep_ids;     /* set the guest's owner and group (needs root) */
    bool keep_special; /* keep set-user-id and set-group-id bits; else they are cleared */
    /* Something is left out: its path in the guest and why. May be NULL. */
    void (*note)(void *arg, const char *path, const char *why);
    /* About to make the temporary @path (absolute): a caller that records it can have it removed after a kill with
     * fs_extract_undo. A negative return ends the restore. May be NULL. */
    int (*begin)(void *arg, const char *path, struct gr_err *err);
    void (*progress)(void *arg, uint64_t bytes); /* so far; may be NULL */
    void *arg;
};
/* Fiber. @path: "part1/etc/passwd" (a volume and a path in it), or "/etc/passwd", which must exist on one volume of the disk
 * only. @out: an existing directory (the name is kept), or a name that does not exist yet. 0: all of it is there, durable;
 * -GR_EPARTIAL: something was skipped, the rest is there; other: nothing is there. */
int fs_extract(struct fs_reader *r, const char *path, const char *out, const struct fs_extract_opts *opts,
               struct fs_extract_result *ret, struct gr_err *err);
/* Remove what a killed restore left at @path, as given to begin(). A missing one is no error. */
int fs_extract_undo(const char *path, struct gr_err *err);
#endif
