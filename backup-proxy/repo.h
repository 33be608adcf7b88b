/* A repository: a directory that holds restore points. docs/format-repository.md tells its layout and its write order.
 *
 * Every process that works in it holds a lease, a file locked for the life of the process; what belongs to a lease that nobody
 * holds any more is cleaned up by whoever comes next. Functions here block on file I/O; those marked "thread-safe" may be
 * called on the pool. */
#ifndef BP_REPO_H
#define BP_REPO_H
#include "backup-proxy/repo_format.h"
#include "common/err.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct bp_repo;
/* Make @path a repository; an existing empty directory is taken, anything else refused. */
int bp_repo_create(const char *path, struct gr_err *err);
/* -ENOENT: there is none; -GR_EFORMAT: the directory is something else; -GR_EVERSION. */
int bp_repo_open(const char *path, struct bp_repo **ret, struct gr_err *err);
void bp_repo_close(struct bp_repo *r); /* NULL allowed */
const char *bp_repo_path(const struct bp_repo *r); /* absolute */
const uint8_t *bp_repo_uuid(const struct bp_repo *r);
int bp_repo_dirfd(const struct bp_repo *r);

/* ---- leases ---- */
enum bp_lease_kind { BP_LEASE_READER, BP_LEASE_WRITER };
struct bp_lease;
/* @point: what a reader reads (its id), "" for a writer. */
int bp_lease_take(struct bp_repo *r, enum bp_lease_kind kind, const char *point, struct bp_lease **ret, struct gr_err *err);
void bp_lease_drop(struct bp_lease *l); /* NULL allowed */
const char *bp_lease_id(const struct bp_lease *l);
struct bp_lease_info {
    char id[37];
    enum bp_lease_kind kind;
    uint64_t epoch;
    char point[512];
};
/* Call fn for every living lease; dead ones are removed on the way. A negative return of fn ends the walk. */
int bp_lease_each(struct bp_repo *r, int (*fn)(void *arg, const struct bp_lease_info *info), void *arg, struct gr_err *err);
/* Remove temporary packs and manifests of leases that nobody holds; returns how many files. */
int bp_repo_sweep(struct bp_repo *r, struct gr_err *err);
/* Collection epoch (gc.h). */
int bp_repo_epoch(struct bp_repo *r, uint64_t *ret, struct gr_err *err);
int bp_repo_epoch_set(struct bp_repo *r, uint64_t epoch, struct gr_err *err);

/* ---- extents ---- */
/* Where an extent lies, and what must be found there. raw == 0: none. */
struct bp_ref {
    uint64_t pack;
    uint32_t off, stored, raw; /* bytes */
    uint8_t hash[32];
};
void bp_ref_encode(const struct bp_ref *ref, struct ref_disk *ret);
void bp_ref_decode(const struct ref_disk *d, struct bp_ref *ret);
void bp_sha256(const void *p, size_t len, uint8_t ret[32]);
/* Scratch memory of one reader or writer of extents; zero-initialised. */
struct bp_codec {
    void *zc, *zd;  /* zstd contexts */
    uint8_t *buf;
    size_t cap;
};
void bp_codec_done(struct bp_codec *c);
/* Room for an encoded extent of at most one unit: header, payload, padding. */
#define BP_ENCODED_MAX (64u + REPO_UNIT + 8u)
/* Encode @raw bytes into @out (BP_ENCODED_MAX; offset and CRC of the header are set by the pack writer); zstd @level, or raw when
 * that does not shrink. @hash may be NULL: computed. Returns the length. Thread-safe with an own @c. */
int bp_extent_encode(struct bp_codec *c, enum repo_kind kind, const void *raw, uint32_t len, const uint8_t *hash, int level, uint8_t *out);
/* Read the extent @ref into @raw (ref->raw bytes), checking header, CRC and hash. -GR_ECORRUPT with the cause, -ENOENT: no such
 * pack. Thread-safe with an own @c. */
int bp_extent_read(struct bp_repo *r, struct bp_codec *c, enum repo_kind kind, const struct bp_ref *ref, void *raw, struct gr_err *err);
/* 1 when the pack holds, intact as stored (header, CRC), an extent with this hash at pack:off; fills *ret. Else 0. Thread-safe. */
int bp_extent_probe(struct bp_repo *r, struct bp_codec *c, uint64_t pack, uint32_t off, uint32_t stored, const uint8_t hash[32],
                    struct bp_ref *ret);

/* ---- packs ---- */
#define BP_PACK_BYTES (64u << 20)
struct bp_packer; /* writes extents into packs of its own lease */
int bp_packer_new(struct bp_repo *r, const struct bp_lease *l, struct bp_packer **ret, struct gr_err *err);
/* Append an encoded extent; *ret is where it will be. */
int bp_packer_add(struct bp_packer *p, uint8_t *encoded, size_t len, struct bp_ref *ret, struct gr_err *err);
/* The bytes so far need room: 1 when bp_packer_flush() should be called (it blocks; may run on the pool). */
int bp_packer_full(const struct bp_packer *p);
int bp_packer_flush(struct bp_packer *p, struct gr_err *err);
/* Flush, sync, seal and publish the open pack, if any; its hashes go to the index. Blocks. */
int bp_packer_seal(struct bp_packer *p, struct gr_err *err);
uint64_t bp_packer_bytes(const struct bp_packer *p); /* written or pending in all packs */
void bp_packer_free(struct bp_packer *p);            /* an unsealed pack is deleted; NULL allowed */
/* Entries of a sealed pack, checked; fn < 0 ends. -GR_ECORRUPT: not sealed or damaged. */
int bp_pack_each(struct bp_repo *r, uint64_t id, int (*fn)(void *arg, const struct trailer_entry_disk *e), void *arg, struct gr_err *err);
/* Ids of all packs; fn < 0 ends. */
int bp_pack_list(struct bp_repo *r, int (*fn)(void *arg, uint64_t id, uint64_t bytes), void *arg, struct gr_err *err);
int bp_pack_remove(struct bp_repo *r, uint64_t id, struct gr_err *err);
void bp_pack_name(uint64_t id, char out[64]); /* "packs/xx/….pack" */

/* ---- dedupe ---- */
/* Extent with this hash that may be used by a point made under a writer's lease: 1 and *ret, or 0. Thread-safe. */
int bp_dedupe_find(struct bp_repo *r, struct bp_codec *c, const uint8_t hash[32], uint32_t raw, struct bp_ref *ret);
void bp_dedupe_add(struct bp_repo *r, const struct bp_ref *ref); /* best effort; one thread at a time */
/* Condemned packs: to be collected, not to be used by new points (gc.h). */
int bp_condemn(struct bp_repo *r, uint64_t pack, struct gr_err *err);
int bp_condemned(struct bp_repo *r, uint64_t pack); /* 1 or 0. Thread-safe. */
int bp_condemn_clear(struct bp_repo *r, uint64_t pack);

/* ---- files of the repository ---- */
/* Write @path (relative) anew: temporary file of @lease_id, fsync, rename without replacing, fsync of the directory. -EEXIST. */
int bp_repo_publish(struct bp_repo *r, const char *lease_id, const char *path, const void *data, size_t len, struct gr_err *err);
int bp_repo_sync_dir(struct bp_repo *r, const char *dir, struct gr_err *err);
#endif
