/* A volume on a device in memory, with one disk open, for tests that look at the device behind its back. All in fibers. */
#ifndef VOLFIX_H
#define VOLFIX_H
#include "common/bdev.h"
#include "vmfs/internal.h"

struct volfix {
    const char *path; /* of the disk */
    struct gr_loop *loop;
    struct gr_mem *mem;
    struct gr_bdev *dev;
    struct gr_chan *raw; /* the device */
    struct vmfs *v;
    struct vmfs_disk *d;
    struct gr_chan *ch;
};

/* Format @bytes of memory as "ds1", join it, make the thin disk @path (kept, not copied) of @size bytes and open it. */
void volfix_make(struct volfix *f, uint64_t bytes, const char *path, uint64_t size, bool data_crc, const struct vmfs_join_opts *o);
void volfix_join(struct volfix *f, const struct vmfs_join_opts *o);
void volfix_open(struct volfix *f);
void volfix_close(struct volfix *f);
/* Close the disk, leave and come again: map and data come from the device. */
void volfix_again(struct volfix *f, const struct vmfs_join_opts *o);
/* The end of it, after a check that must find the volume sound. */
void volfix_unmake(struct volfix *f);
/* Where the tree @t of the disk has the piece at @off; 0: nowhere. */
uint64_t volfix_place(struct volfix *f, struct mtree *t, uint64_t off);
/* One bit of byte @byte of the unit at @addr is another. */
void volfix_flip(struct volfix *f, uint64_t addr, size_t byte);
#endif
