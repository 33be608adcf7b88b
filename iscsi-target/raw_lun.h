/* A regular file or block device node as a logical unit: the bytes of common/bdev.h's file, and what an array keeps for a LUN beside them.
 *
 *   identity   a uuid made when it is added (VPD 83)
 *   store      reservations (APTPL), incarnations, sanitize: one file each in a directory of the home, state/luns/UUID/KEY, mode 0600,
 *              replaced atomically and durable before an attribute is set
 *   claim      one process serves the bytes (gr_bdev_file_claim, O_EXCL): two would keep separate reservations
 *   threshold  GR_EVENT_THRESHOLD when the file system under a file with holes is nearly full
 *
 * Requests go to the file as they are, without a copy. Thread rule: as bdev.h. */
#ifndef TGT_RAW_LUN_H
#define TGT_RAW_LUN_H
#include "common/bdev.h"

#define TGT_RAW_LOW_PERCENT 10u /* less free than this in the file system: GR_EVENT_THRESHOLD, once until there is clearly more */

struct tgt_raw_limits { /* as in struct gr_geometry; 0: none */
    uint32_t iops, burst_ms;
    uint64_t bytes;
};
struct tgt_raw_opts {
    const char *file;        /* absolute path */
    const char *store;       /* directory of attributes, made when missing */
    uint8_t uuid[16];
    bool read_only;
    struct tgt_raw_limits limits;
    bool create;             /* the file must not exist: it is made, of @size bytes */
    uint64_t size;
};
/* (fiber) Open and claim it. -GR_ELOCKED or -EBUSY: in use by somebody else; -EINVAL: nothing to serve in it. What was created is durable. */
int tgt_raw_bdev_open(struct gr_loop *loop, const struct tgt_raw_opts *opts, struct gr_bdev **ret, struct gr_err *err);
/* What it looks like, without claiming it: somebody else serves it. */
int tgt_raw_bdev_peek(struct gr_loop *loop, const struct tgt_raw_opts *opts, struct gr_geometry *ret);
/* (fiber) Let a file grow to @size bytes, durably; announces GR_EVENT_RESIZED. */
int tgt_raw_bdev_grow(struct gr_loop *loop, struct gr_bdev *bdev, uint64_t size, struct gr_err *err);
/* What initiators are held to from now on; announces GR_EVENT_PRESENTED. */
void tgt_raw_bdev_limit(struct gr_bdev *bdev, const struct tgt_raw_limits *limits);
/* (fiber) Look at the room there is. 1: it has become short, and who listens was told (@ret_room says how short); 0: nothing new. */
int tgt_raw_bdev_watch(struct gr_bdev *bdev, struct gr_file_room *ret_room);

/* ---- raw_store.c: directories of attributes; (fiber), what blocks runs in the pool ---- */
int tgt_raw_store_make(const char *dir, struct gr_err *err);
int tgt_raw_store_get(const char *dir, const char *key, void **ret, struct gr_err *err); /* as gr_bdev_ops.attr_get */
int tgt_raw_store_set(const char *dir, const char *key, const void *val, size_t len, struct gr_err *err);
int tgt_raw_store_remove(const char *dir, struct gr_err *err); /* with all that is in it; 0 when it is not there */
#endif
