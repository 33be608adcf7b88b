/* Inside the file system service: a datastore shown to the kernel as a file system. Only snapshot/mnt_*.c include it.
 *
 * A mount is a connection of /dev/fuse. `granary-mount` makes and holds it, the service reads it: its requests run as fibers here, and data goes
 * from the kernel to the volume without another process between. Numbers of nodes are those of the volume's objects, so nothing has to be kept
 * for a node, and the next process of the service can go on with the connection.
 *
 * Nothing is cached in the kernel but pages of mapped files: names and attributes are asked for each time, reads and writes come here (FOPEN_DIRECT_IO).
 * A file is used under its lock in the volume, which one host has (the lease): mnt_hold() gets it, if need be from the host that has it now
 * (mnt_peer.c), which then invalidates mapped pages, writes home what it has, and lets go. So all hosts see one file.
 *
 * Thread rule: as snapshot/service.h. */
#ifndef SNAPSHOT_MNT_INT_H
#define SNAPSHOT_MNT_INT_H
#include "snapshot/service_int.h"
#include "vmfs/files.h"
#include <linux/fuse.h>

#define MNT_IO_MAX (1u << 20)   /* bytes of one read or write */
#define MNT_PATIENCE_MS 30000u  /* how long an operation waits for a datastore that is being joined anew, or for another host to let go */
#define MNT_IDLE_MS 1000u       /* a closed file stays ours so long, for who opens it again; less than vmfs_file_write() waits for it */
#define MNT_OBJ_HASH 256u
#define MNT_BUF (MNT_IO_MAX + 4096u) /* bytes: the sectors around a read or write that is not aligned */
#define MNT_BUFS 8u
#define MNT_LOOKED 64u /* threads whose last look is known */

/* ---- what is open (mnt_obj.c) ---- */
struct mnt_lock { /* of a process of this host (mnt_lock.c) */
    struct mnt_lock *next;
    const struct mnt_mount *mount;
    uint64_t owner, start, end; /* bytes, inclusive */
    bool exclusive, flock;
    uint32_t pid;
};
struct mnt_obj { /* an object that mounts have open, or that was until a moment ago */
    struct mnt_obj *next;
    struct mnt_vol *vol;
    uint64_t id;
    enum vmfs_type type;
    unsigned opens; /* descriptors */
    unsigned busy;  /* operations that rely on the lease */
    unsigned users; /* everybody who has a pointer to it */
    struct vmfs_disk *disk; /* ours: we have the lease. NULL: we do not */
    struct gr_chan *ch;
    struct snap_handle *handle; /* disks: in place of a lease */
    bool writing;               /* disks: handle->mounted counts us */
    bool lost;    /* has no name: ends when nobody has it open */
    bool changing; /* the lease is being taken or given up */
    bool yielding; /* … given up, and the kernel is about to forget pages: writes of mapped pages are let through, and reads after a while */
    unsigned cached_reads; /* reads since the kernel was last told to forget pages: it may have some */
    struct gr_fqueue wake;
    struct gr_frwlock data; /* whoever changes whole sectors inside its length shares it; else alone */
    struct vmfs_posix posix; /* while the lease is ours */
    bool has_posix, posix_dirty;
    struct mnt_lock *locks;
    struct gr_fqueue lock_wake;
    bool alone; /* no other host had a lock of it since the lease is ours, so none has */
    uint64_t idle_since_ns;
    uint64_t given_ns; /* then it was given up because another host asked: that is first. 0: not */
};
struct mnt_vol {
    struct snap_ds *ds;
    struct mnt_obj *objs[MNT_OBJ_HASH];
    unsigned fibers;
    bool tidying;
};
/* The table's entry of @id, made when there is none; with a reference. NULL: out of memory. */
struct mnt_obj *mnt_obj_get(struct snap_ds *ds, uint64_t id, enum vmfs_type type);
struct mnt_obj *mnt_obj_find(const struct snap_ds *ds, uint64_t id); /* no reference; NULL */
void mnt_obj_put(struct mnt_obj *o);
/* Have the lease for an operation (fiber): 0 and o->disk, o->ch are good until mnt_drop(). */
enum mnt_use { MNT_PLAIN, MNT_READ, MNT_WRITEBACK /* of a mapped page */ };
int mnt_hold(struct mnt_obj *o, enum mnt_use use, struct gr_err *err);
void mnt_drop(struct mnt_obj *o);
/* Give the lease up, when operations have ended and pages are forgotten. 0: another host can have it, and operations here wait a moment for that.
 * -EAGAIN, ask again. */
int mnt_give_up(struct mnt_obj *o, struct gr_err *err);
/* One more, one less descriptor. A file without a name that nobody has open ends after MNT_IDLE_MS. */
void mnt_opened(struct mnt_obj *o);
void mnt_closed(struct mnt_obj *o);
int mnt_posix_flush(struct mnt_obj *o, struct gr_err *err); /* lease held */
int64_t mnt_now_ns(void);

/* ---- mounts, requests (mnt_session.c) ---- */
struct mnt_dir { /* an open directory: its entries as they were at once */
    struct mnt_dir *next;
    uint64_t fh;
    struct mnt_name {
        uint64_t id;
        enum vmfs_type type;
        char *name;
    } *ents;
    size_t n, cap;
};
struct mnt_open { /* a descriptor */
    struct mnt_open *next;
    uint64_t fh;
    struct mnt_obj *o;
    bool append; /* O_APPEND */
};
struct mnt_path { /* where a directory or disk was last seen: for what goes by paths */
    struct mnt_path *next;
    uint64_t id, parent;
    char name[];
};
struct mnt_looked { /* the folder that a thread was last told a name leads to: the kernel takes it that this is what goes when it is removed or replaced */
    uint32_t pid; /* 0: none */
    uint64_t dir, id;
    char name[VMFS_NAME_MAX + 1];
};
struct mnt_mount {
    struct mnt_mount *next;
    struct snap_svc *s;
    struct snap_ds *ds;
    char ds_name[VMFS_VOLUME_NAME_MAX + 1];
    char *dir, *prefix; /* where it is mounted; folder of the datastore that is its root */
    uint64_t root;
    uint32_t uid, gid; /* whose objects are that nobody has given to somebody */
    int fd, holder;    /* /dev/fuse; the socket to who holds it */
    struct gr_watch watch, holder_watch;
    bool watching, over, ending;
    unsigned under_way;
    struct mnt_req *reqs;
    struct mnt_dir *dirs;
    struct mnt_open *opens[MNT_OBJ_HASH]; /* by fh */
    uint64_t next_fh; /* of no descriptor that a former process gave out */
    struct mnt_path *paths[MNT_OBJ_HASH];
    struct mnt_looked looked[MNT_LOOKED]; /* by pid */
    void *bufs[MNT_BUFS]; /* free ones, of MNT_BUF bytes, for data of requests */
    unsigned n_bufs;
    struct gr_fmutex telling; /* one word to the holder at a time */
    struct gr_fqueue wake;
};
struct mnt_req {
    struct mnt_req *next;
    struct mnt_mount *m;
    struct fuse_in_header h;
    void (*serve)(struct mnt_req *r);
    void *body; /* behind the header; of a write: its parameters only */
    size_t len;
    void *data; /* of a write, aligned */
    bool interrupted, begun; /* begun: the datastore is joined for it */
    bool again;  /* it may have been done already, and not been answered */
    bool repeat; /* this host lost its place in the datastore meanwhile: once more when it is back */
    struct gr_fqueue *waits; /* woken when interrupted */
};
void *mnt_buf_get(struct mnt_mount *m); /* aligned to 4096; NULL: out of memory */
void mnt_buf_put(struct mnt_mount *m, void *buf); /* NULL allowed */
uint64_t mnt_id(const struct mnt_mount *m, uint64_t node); /* number of the object of a node */
uint64_t mnt_node(const struct mnt_mount *m, uint64_t id);
void mnt_reply(struct mnt_req *r, const void *data, size_t len);
void mnt_reply2(struct mnt_req *r, const void *data, size_t len, const void *more, size_t more_len);
void mnt_fail(struct mnt_req *r, int code); /* negative code; 0: an empty answer */
/* Join the datastore if need be, for the time of one request; who waits for other processes ends it meanwhile. */
int mnt_begin(struct mnt_req *r, struct gr_err *err);
void mnt_end(struct mnt_req *r);
/* A connection of /dev/fuse, from which the first request is yet to come unless @again. Takes @fd and @holder, also on failure. */
struct mnt_mount_opts {
    const char *name; /* DATASTORE[/FOLDER] */
    const char *dir;
    uint32_t uid, gid;
    int fd, holder;
    bool again;
    const void *kept; /* locks: frames of mnt_keep.c */
    size_t kept_len;
};
int mnt_op_serve(struct snap_op *op);
int mnt_mount_start(struct snap_svc *s, const struct mnt_mount_opts *o, struct gr_err *err);
void mnt_readable(void *arg, int events); /* of gr_watch: take requests from the kernel */
int mnt_join(struct mnt_mount *m, struct gr_err *err); /* for one request; snap_ds_put() ends it (fiber) */
void mnt_end_soon(struct mnt_mount *m); /* the kernel has ended it, or its holder has [any context] */
/* Tell the kernel to forget the pages of @id, in all mounts of @ds; what was changed in them comes back as writes meanwhile (fiber). */
int mnt_forget_pages(struct snap_ds *ds, uint64_t id);

/* ---- operations by opcode: mnt_names.c, mnt_dir.c, mnt_attr.c, mnt_file.c, mnt_data.c, mnt_lock.c. A request with fewer bytes than @min is refused. ---- */
struct mnt_op {
    void (*serve)(struct mnt_req *r);
    size_t min;
};
void mnt_op_lookup(struct mnt_req *r);
void mnt_op_getattr(struct mnt_req *r);
void mnt_op_setattr(struct mnt_req *r);
void mnt_op_mknod(struct mnt_req *r);
void mnt_op_mkdir(struct mnt_req *r);
void mnt_op_create(struct mnt_req *r);
void mnt_op_unlink(struct mnt_req *r);
void mnt_op_rmdir(struct mnt_req *r);
void mnt_op_rename(struct mnt_req *r);
void mnt_op_rename2(struct mnt_req *r);
void mnt_op_opendir(struct mnt_req *r);
void mnt_op_readdir(struct mnt_req *r);
void mnt_op_releasedir(struct mnt_req *r);
void mnt_op_statfs(struct mnt_req *r);
void mnt_op_getxattr(struct mnt_req *r);
void mnt_op_listxattr(struct mnt_req *r);
void mnt_op_open(struct mnt_req *r);
void mnt_op_read(struct mnt_req *r);
void mnt_op_write(struct mnt_req *r);
void mnt_op_flush(struct mnt_req *r);
void mnt_op_release(struct mnt_req *r);
void mnt_op_fsync(struct mnt_req *r);
void mnt_op_fallocate(struct mnt_req *r);
void mnt_op_lseek(struct mnt_req *r);
void mnt_op_getlk(struct mnt_req *r);
void mnt_op_setlk(struct mnt_req *r);
void mnt_op_setlkw(struct mnt_req *r);
/* What a node looks like to the kernel; of one that another host has, as that host says (fiber). */
int mnt_attr(struct mnt_mount *m, const struct vmfs_node *n, struct fuse_attr *ret, struct gr_err *err);
int mnt_attr_of(struct mnt_mount *m, uint64_t id, struct fuse_attr *ret, struct gr_err *err);
/* An entry of a directory. */
int mnt_entry(struct mnt_mount *m, const struct vmfs_node *n, struct fuse_entry_out *ret, struct gr_err *err);
bool mnt_is_own(uint64_t dir, const char *name); /* Granary's own: not shown */
/* The object of a request about descriptor @fh, with a reference; also of one that a former process gave out. */
int mnt_obj_of(struct mnt_req *r, uint64_t fh, struct mnt_obj **ret);
/* Open the disk @o, or for writing, too. -EBUSY when it is used elsewhere, and the log says by whom. */
int mnt_disk_open(struct mnt_mount *m, struct mnt_obj *o, bool write, struct gr_err *err);
/* The lease is held: it will have an owner; its content has changed. */
void mnt_own_posix(struct mnt_mount *m, struct mnt_obj *o);
void mnt_changed(struct mnt_mount *m, struct mnt_obj *o);
/* A descriptor with open(2)'s @flags: 0 and its number. */
int mnt_open(struct mnt_mount *m, uint64_t id, uint32_t flags, uint64_t *ret_fh, struct gr_err *err);
void mnt_close(struct mnt_mount *m, uint64_t fh);
/* Path inside the datastore of a directory or disk that was looked up; new memory, NULL: not known (any more). */
char *mnt_path_of(const struct mnt_mount *m, uint64_t id);
void mnt_path_seen(struct mnt_mount *m, uint64_t id, uint64_t parent, const char *name);
void mnt_paths_free(struct mnt_mount *m);
void mnt_opens_free(struct mnt_mount *m); /* all descriptors are closed (fiber) */
void mnt_dirs_free(struct mnt_mount *m);

/* ---- locks (mnt_lock.c) ---- */
/* Locks of @owner end: those of files (flock) or of ranges (fiber). */
void mnt_locks_drop(struct mnt_obj *o, struct mnt_mount *m, uint64_t owner, bool flock);
void mnt_locks_free(struct mnt_obj *o, const struct mnt_mount *m); /* of a mount; NULL: all */
/* Who holds @m keeps its locks of @o, as they are now, for the next daemon (mnt_keep.c, fiber); and they come back from it. */
int mnt_locks_keep(const struct mnt_obj *o, struct mnt_mount *m);
int mnt_locks_restore(struct mnt_mount *m, const void *frames, size_t len);
bool mnt_kept_whole(const void *frames, size_t len); /* no frame is cut short [any context] */
/* A lock here that conflicts with @want; NULL. */
const struct mnt_lock *mnt_lock_conflict(const struct mnt_obj *o, const struct mnt_lock *want);

/* ---- other hosts (mnt_peer.c, fibers) ---- */
int mnt_peer_yield(struct snap_ds *ds, uint64_t id, int slot, struct gr_err *err); /* 0: it has let go, or is gone: try again */
/* @n, which another host owns, as that host knows it now, or as it is at home if nobody owns it any more. */
int mnt_peer_look(struct snap_ds *ds, struct vmfs_node *n, struct gr_err *err);
/* Any other host's lock that conflicts: 1 and *ret. *ret_any: there are locks elsewhere, of whatever kind. */
int mnt_peer_locks(struct snap_ds *ds, uint64_t id, const struct mnt_lock *want, struct mnt_lock *ret, bool *ret_any, struct gr_err *err);
/* Who else has the nameless @id open? 1: somebody, who ends it. */
int mnt_peer_leave_to(struct snap_ds *ds, uint64_t id, struct gr_err *err);
/* Name of the host in @slot. */
void mnt_peer_name(struct snap_ds *ds, int slot, char ret[64]);
#endif
