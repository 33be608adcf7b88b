/* The key-encryption keys of a home: conf/keys/NUMBER.key, 32 bytes as one line of base64, mode 0600; conf/keys.json names the one that
 * new disks get. They are read when they are needed and kept nowhere. Blocking; any context. */
#ifndef SNAPSHOT_KEYFILE_H
#define SNAPSHOT_KEYFILE_H
#include "common/home.h"

#define SNAP_KEY_BYTES 32u
#define SNAP_KEY_TEXT 17u /* of its number: 16 hexadecimal digits and a NUL */
void snap_key_format(uint64_t id, char ret[SNAP_KEY_TEXT]);
int snap_key_parse(const char *text, uint64_t *ret, struct gr_err *err); /* -GR_EUSAGE */
/* The key @id: 0; -ENOKEY when this home has none or its file cannot be used. For struct vmfs_join_opts, @arg a struct gr_home. */
int snap_key_find(void *arg, uint64_t id, uint8_t ret[SNAP_KEY_BYTES]);
/* A key from a file anywhere (-EPERM: others can read it), into the home; a new one. *ret its number. Durable. */
int snap_key_import(struct gr_home *home, const char *file, uint64_t *ret, struct gr_err *err);
int snap_key_make(struct gr_home *home, uint64_t *ret, struct gr_err *err);
/* A copy in a new file of mode 0600; -EEXIST. */
int snap_key_export(struct gr_home *home, uint64_t id, const char *file, struct gr_err *err);
int snap_key_delete(struct gr_home *home, uint64_t id, struct gr_err *err);
/* The one that new disks get; -ENOKEY: there is none, and how to make one. */
int snap_key_current(struct gr_home *home, uint64_t *ret, struct gr_err *err);
int snap_key_use(struct gr_home *home, uint64_t id, struct gr_err *err); /* -ENOKEY: not here */
/* Call fn(arg, id, when it was made here) for each; a negative return ends it. */
int snap_key_each(struct gr_home *home, int (*fn)(void *arg, uint64_t id, int64_t made_s), void *arg, struct gr_err *err);
#endif
