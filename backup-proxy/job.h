/* Jobs: one backup, one restore, and what dead jobs left behind.
 *
 * A job sees storage only through struct bp_env: the methods of the storage service (snapshot/service.h) and of the host agent
 * (hv/hostd.h), whether they answer on a socket or in this process, and a way to open a disk or snapshot here. Everything a job
 * does to the world outside the repository is recorded as an intent first, so that the next job or command can undo it.
 * Thread rule: fibers of env->loop. */
#ifndef BP_JOB_H
#define BP_JOB_H
#include "backup-proxy/repo.h"
#include "common/bdev.h"
#include "common/home.h"
#include <jansson.h>

struct bp_env {
    struct gr_loop *loop;
    struct gr_home *home;
    void *arg;
    /* Call a method; takes the reference of @params. @on_part may be NULL. */
    int (*storage)(void *arg, const char *method, json_t *params, int (*on_part)(void *part_arg, json_t *part), void *part_arg,
                   json_t **ret, struct gr_err *err);
    /* The same of the host agent. -ENOENT: none runs. */
    int (*host)(void *arg, const char *method, json_t *params, json_t **ret, struct gr_err *err);
    bool (*daemon)(void *arg); /* storage is served by a daemon, so that network transports exist */
    /* Open "DS/PATH" (write) or "DS/PATH@SNAP" (read) in this process. With a daemon only snapshots. */
    int (*open_local)(void *arg, const char *name, struct gr_bdev **ret, struct gr_err *err);
    bool encrypt; /* disks that are made are encrypted */
    bool cancel; /* set by whoever wants the job to end early and in order */
    void (*progress)(void *arg, const char *what, uint64_t done, uint64_t total); /* may be NULL */
    void (*warn)(void *arg, const char *text);                                    /* may be NULL */
};

struct bp_backup_spec {
    const char *repo;      /* made when missing */
    const char *vm;        /* "DS/NAME", or NULL: plain disks */
    const char *const *disks; /* "DS/PATH" each */
    unsigned n_disks;
    const char *name;      /* name of the backup; NULL: the VM's, or the first disk's */
    const char *transport; /* "san", "lan", "local"; NULL: san with a daemon, else local */
    bool full;             /* read everything */
    int level;             /* zstd; 0: 3 */
    bool no_quiesce;       /* do not freeze the guest */
};
/* *ret: {"name","point","time","kind":"full|incremental","cause","consistency","transport","size","read","changed","stored","deduped",
 * "frozen-ms","duration","disks":[…]}. -GR_ELOCKED: another job backs up the same name into this repository. */
int bp_backup(struct bp_env *env, const struct bp_backup_spec *spec, json_t **ret, struct gr_err *err);

/* Restore one disk of @point ("NAME[/STAMP]:DISK" resolved by the caller into id and disk) as the new disk @target. -EEXIST. */
int bp_restore_disk(struct bp_env *env, struct bp_repo *repo, const char *id, const char *disk, const char *target, json_t **ret,
                    struct gr_err *err);
/* Restore the whole point as the new VM @target ("DS/NEWNAME"): its disks, a configuration with a new name and uuid. -EEXIST. */
int bp_restore_vm(struct bp_env *env, struct bp_repo *repo, const char *id, const char *target, json_t **ret, struct gr_err *err);

/* Undo what jobs that died have left: snapshots, half-made disks and VMs; temporary files of @repo (may be NULL). Returns how many
 * intents were settled. What cannot be undone now (storage away) stays recorded and is warned about. */
int bp_recover(struct bp_env *env, struct bp_repo *repo, struct gr_err *err);

/* Delete a snapshot that a job took; one that is gone is a success. A session of ours on it may be closed, but not noticed by the
 * daemon yet, so "in use" is tried again for some seconds. */
int bp_drop_snapshot(struct bp_env *env, const char *disk, const char *snapshot, struct gr_err *err);

/* The part of it that needs no storage: half-made trees of file restores. */
int bp_recover_files(struct gr_home *home, struct gr_err *err);
/* Undo the restore of the intent @id ("restore-UUID") of this process. */
int bp_undo_restore(struct bp_env *env, const char *id, struct gr_err *err);

/* A disk behind an nbd(s):// URL, writable: WRITE, WRITE_ZEROES, UNMAP, FLUSH and READ, one request at a time. Fiber. */
int bp_sink_nbd_open(struct gr_loop *loop, const char *uri, struct gr_bdev **ret, struct gr_err *err);
#endif
