/* A repository with one disk in memory that is backed up into it, for tests: every point's content is remembered as a hash. */
#ifndef REPO_RIG_H
#define REPO_RIG_H
#include "backup-proxy/point.h"
#include "backup-proxy/store.h"
#include "tests/lib/test.h"

#define RIG_POINTS 64
struct repo_rig {
    struct gr_loop *loop;
    struct bp_repo *repo;
    char *dir;
    struct gr_mem *mem;
    struct gr_bdev *bdev;
    struct gr_chan *chan;
    uint64_t size, rnd;
    struct bp_change changes[256]; /* since the last backup */
    size_t n_changes, at;
    struct {
        char id[BP_POINT_ID_MAX];
        uint8_t hash[32];
        bool gone;
    } point[RIG_POINTS];
    unsigned points;
};
/* All in a fiber. @name: directory below the test's own. */
void rig_open(struct repo_rig *g, struct gr_loop *loop, const char *name, uint64_t size, uint64_t seed);
void rig_close(struct repo_rig *g);
/* Write @len pseudo-random bytes (half of them compressible) at @off, multiples of 4096. */
void rig_write(struct repo_rig *g, uint64_t off, size_t len);
/* Back the disk up as @name, in full or from the newest point. Returns 0 or the code; the point is remembered. */
int rig_backup(struct repo_rig *g, const char *name, bool full, struct gr_err *err);
/* SHA-256 of the whole content of a point, read through its bdev. */
int rig_hash(struct repo_rig *g, const char *id, uint8_t ret[32]);
/* 1 when the i-th point reads exactly as it was, 0 when it reads otherwise, negative code when it cannot be read. */
int rig_check(struct repo_rig *g, unsigned i);
#endif
