/* A random workload on a volume, every step told to the oracle: data fibers on several disks at once, and fibers that make,
 * snapshot, clone, revert, rename and remove them meanwhile. */
#ifndef CRASH_WORK_H
#define CRASH_WORK_H
#include "tests/lib/crash_oracle.h"

struct crash_work {
    struct orc orc;
    struct vmfs *v;
    uint64_t rng;
    unsigned data_fibers, admin_fibers, ops; /* ops: of each fiber */
    uint64_t kek;  /* not 0: some disks are encrypted with this key, and change their keys */
    bool reserved; /* disks are thick and eager, too: the device must have room for all they are promised */
    unsigned running, groups, names;
    uint64_t writes, flushes, snapshots, clones, reverts, removes, renames, deletes, resizes, compares, thick, eager, stale; /* stale: reads that were wrong */
    uint64_t no_space, owned /* clones that are none any more */, copies, encrypted, rekeys, rewrites, defragments, defragmented /* KiB */;
    char why[256];
    struct gr_fqueue done;
    struct gr_fmutex copying; /* a copy holds two disks */
};
/* Run until all fibers are through (fiber). 0, or -1 and why. */
int crash_work_run(struct crash_work *w);
#endif
