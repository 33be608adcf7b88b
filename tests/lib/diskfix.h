/* A disk that a host has open, as a target has it: with a channel, and told of events. All in fibers. */
#ifndef DISKFIX_H
#define DISKFIX_H
#include "common/bdev.h"
#include "vmfs/vmfs.h"

struct diskfix {
    struct vmfs_disk *d;
    struct gr_chan *ch;
    struct gr_listener listener;
    unsigned told; /* how often that little space is left */
};

/* Open the disk @path of @v, which must work. @told goes on counting. */
void diskfix_open(struct diskfix *f, struct vmfs *v, const char *path);
void diskfix_close(struct diskfix *f);
#endif
