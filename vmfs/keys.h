/* Keys of encrypted disks, inside vmfs/ and for what snapshots are made of. The volume's loop; in a fiber unless marked [sync]. */
#ifndef VMFS_KEYS_H
#define VMFS_KEYS_H
#include "vmfs/internal.h"

#define VMFS_ATTR_KEYS "keys"

/* Read and check the block of keys of @o; write it in place (durable when it returns 0; held disks only). */
int vkeys_read(struct vobj *o, struct vkeys *ret, struct gr_err *err);
int vkeys_write(struct vobj *o, struct vkeys *k, struct gr_err *err);
int vkeys_decode(const struct vmfs *v, const void *block, uint64_t at, struct vkeys *ret, struct gr_err *err); /* [sync] */
bool vkeys_where(const struct vobj *o, unsigned copy, uint64_t *ret); /* address of copy 0 or 1, as written; false: not encrypted [sync] */
/* One more data key, from epoch @from on; all of them wrapped with another key. -ENOKEY: a key-encryption key is not here. [sync] */
int vkeys_add(struct vmfs *v, struct vkeys *k, uint64_t kek_id, uint64_t from, struct gr_err *err);
int vkeys_rewrap(struct vmfs *v, struct vkeys *k, uint64_t kek_id, struct gr_err *err);
/* o->cipher, for an encrypted disk, anew from @k [sync]; unless it is there, from the block. -ENOKEY: the key is not here, or was destroyed. */
int vkeys_unlock(struct vobj *o, const struct vkeys *k, struct gr_err *err);
int vkeys_open(struct vobj *o, struct gr_err *err);
void vkeys_close(struct vobj *o); /* zeroed when the last read ends [sync] */
static inline bool vkeys_locked(const struct vobj *o) { return o->ino.key_id && !o->cipher; } /* nothing can be read or written [sync] */

/* A block of keys for a disk that is about to be made: a fresh data key; for a clone, with those of @origin up to @epoch before it. */
struct vkeys_new {
    struct vmfs *v;
    uint64_t addr[2], key_id;
    bool taken;
};
int vkeys_make(struct vmfs *v, uint64_t kek_id, struct vobj *origin, uint64_t epoch, struct vkeys_new *ret, struct gr_err *err);
int vkeys_take(struct vkeys_new *n, struct vobj *o); /* the object has it from now on [sync] */
void vkeys_made(struct vkeys_new *n, int r);         /* the object is there, or (@r < 0) came to nothing [sync] */
void vkeys_free(struct vobj *o);                     /* the inode is given back [sync] */
/* Keys that none of the disk's data needs any more go. -EAGAIN: it changes too much meanwhile, they stay. */
int vkeys_forget_unneeded(struct vmfs_disk *d, struct gr_err *err);
/* The keys of a held disk are overwritten, durably: what it held is lost. 0 also when it is not encrypted. -EBUSY: on a device that leaves. */
int vkeys_destroy(struct vobj *o, struct gr_err *err);
#endif
