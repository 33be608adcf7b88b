/* The catalogue: what is in a repository, in SQLite (catalogue.db), for quick listing and searching. A cache: every row comes from a
 * manifest and is checked against that file's size, time and inode before it is shown; deleted or damaged, it is made anew, and
 * says the same as before. Nothing that decides about data reads it. Functions block. */
#ifndef BP_CATALOGUE_H
#define BP_CATALOGUE_H
#include "backup-proxy/repo.h"
#include <jansson.h>
struct bp_catalogue;
/* Open or make it, and bring it up to date with the manifests. Where it cannot be written (read-only repository) it lives in memory.
 * A file that fails quick_check or holds a foreign schema is set aside as catalogue.db.bad. */
int bp_catalogue_open(struct bp_repo *r, struct bp_catalogue **ret, struct gr_err *err);
/* Forget everything and read all manifests; returns how many points. */
int bp_catalogue_rebuild(struct bp_repo *r, struct gr_err *err);
/* Points in order of name and time, as an array of {"point","name","time","kind","consistency","size","read","changed","stored",
 * "duration","state":"ok|damaged",…}. @name: only of that backup, NULL all. */
int bp_catalogue_list(struct bp_catalogue *c, const char *name, json_t **ret, struct gr_err *err);
/* Points whose name, disk paths or VM configuration contain @text (no wildcards, case-insensitive for ASCII). */
int bp_catalogue_find(struct bp_catalogue *c, const char *text, json_t **ret, struct gr_err *err);
void bp_catalogue_close(struct bp_catalogue *c); /* NULL allowed */
/* One row of a listing from a manifest. */
json_t *bp_point_summary(json_t *doc);
#endif
