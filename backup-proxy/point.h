/* Restore points: one manifest file each, written last, so that a point is there only when all of it is.
 *
 * A point's id is NAME/STAMP: NAME is what was backed up ("ds1/web01"), STAMP the UTC time ("20261122T080041Z", with -2, -3 … when
 * two fall into one second). Files: points/NAME/STAMP.point with NAME percent-encoded; pruned ones move to removed/ until a
 * collection finds no reader of theirs. */
#ifndef BP_POINT_H
#define BP_POINT_H
#include "backup-proxy/repo.h"
#include "common/bdev.h"
#include <jansson.h>

#define BP_POINT_ID_MAX 512
#define BP_MANIFEST_MAX (16u << 20) /* bytes */

/* One disk of a manifest, as read. Strings are borrowed from the document. */
struct bp_point_disk {
    const char *name;     /* unique within the point */
    const char *path;     /* "ds1/web01/root" */
    const char *bookmark; /* "uuid:lineage:epoch" or "" */
    uint64_t size;        /* bytes */
    struct bp_ref root;
    json_t *doc;
};
struct bp_point {
    char id[BP_POINT_ID_MAX];
    json_t *doc;
};
/* 0 when @name can be a backup's name: 1..200 bytes UTF-8, no '@', ':' or control character, no empty, "." or ".." part. */
int bp_name_check(const char *name, struct gr_err *err);
json_t *bp_ref_json(const struct bp_ref *ref);

/* Publish @doc (borrowed; its "point", "name", "stamp" and "time" are set here) under @name at wall time @time_s. */
int bp_point_publish(struct bp_repo *r, const struct bp_lease *l, const char *name, int64_t time_s, json_t *doc, char ret_id[BP_POINT_ID_MAX],
                     struct gr_err *err);
/* Read the point @id (exact). -ENOENT; -GR_ECORRUPT: its checksum or form is wrong. Free with bp_point_done. */
int bp_point_load(struct bp_repo *r, const char *id, struct bp_point *ret, struct gr_err *err);
void bp_point_done(struct bp_point *p);
size_t bp_point_disks(const struct bp_point *p);
int bp_point_disk(const struct bp_point *p, size_t i, struct bp_point_disk *ret, struct gr_err *err);
/* By name, number from 0, or NULL when there is only one. */
int bp_point_find_disk(const struct bp_point *p, const char *disk, struct bp_point_disk *ret, struct gr_err *err);

/* Ids of all visible points, sorted by name, then time: an array of strings. @name NULL: of all names. */
int bp_point_ids(struct bp_repo *r, const char *name, json_t **ret, struct gr_err *err);
/* Ids of pruned points that a collection has not yet forgotten. */
int bp_point_removed_ids(struct bp_repo *r, json_t **ret, struct gr_err *err);
int bp_point_load_removed(struct bp_repo *r, const char *id, struct bp_point *ret, struct gr_err *err);
/* File name below the repository of a visible point; new memory, NULL when the id is malformed. */
char *bp_point_file(const char *id);
/* Hide a point: it is gone from listings, durably; its space is a collection's business. */
int bp_point_remove(struct bp_repo *r, const char *id, struct gr_err *err);
int bp_point_forget(struct bp_repo *r, const char *id, struct gr_err *err); /* delete a removed one's file */
/* Newest point of @name: 1 and its id, 0 when there is none. */
int bp_point_newest(struct bp_repo *r, const char *name, char ret_id[BP_POINT_ID_MAX], struct gr_err *err);
/* What people write: "NAME/STAMP", "NAME/latest" or "NAME" (the newest), with ":DISK" behind it when @ret_disk is not NULL (new
 * memory or NULL). -ENOENT names what is missing. */
int bp_point_resolve(struct bp_repo *r, const char *text, char ret_id[BP_POINT_ID_MAX], char **ret_disk, struct gr_err *err);

/* A disk of a point as a read-only bdev with extents. Holds a reader's lease on the point while open, so that no collection
 * takes its data. @r is borrowed and must outlive it. */
int bp_point_open(struct gr_loop *loop, struct bp_repo *r, const char *id, const char *disk, struct gr_bdev **ret, struct gr_err *err);
#endif
