/* Free space: regions leased from the volume (region.c), units taken (space.c) and given back (frees.c, discard.c), runs kept ready (pool.c), regions that
 * go to other hosts (recall.c). Part of vmfs/internal.h. Thread rule: the loop of the volume. */
#ifndef VMFS_SPACE_H
#define VMFS_SPACE_H
#include "common/fiber.h"
#include "vmfs/busy.h"
#include "vmfs/homeblock.h"

struct gr_err;
struct vmfs;
struct vmfs_region_disk;
struct vobj;
struct vfree { /* units freed in memory, not yet reusable */
    uint64_t addr;
    uint32_t units;
    uint64_t seq;
    uint64_t ticket; /* reusable when every ticket below this number is closed */
    bool given_up;   /* the device may be told */
};
struct vforeign { /* units freed here, of a region leased elsewhere, or one that waits for room in the journal */
    uint64_t addr, units;
    bool given_up; /* as in struct vfree */
};
struct vshare { /* units of a region with more owners than one */
    uint32_t at, units, more;
};
struct vregion { /* a region leased by this host */
    uint32_t index;
    uint64_t first; /* address of its first unit */
    uint32_t units;
    struct vlock lock;
    uint64_t hdr_generation, bm_generation;
    uint64_t *used;    /* logical: what a checkpoint persists */
    struct vbusy busy; /* used, or in flight, or freed but not yet reusable */
    uint32_t free_used; /* units clear in used */
    bool dirty, closed; /* closed: its device leaves, nothing is taken from it, and its free units do not count */
    bool giving;        /* it is being given back (recall.c): nothing is taken from it */
    uint64_t *dirty_blocks; /* bitmap blocks that differ from home */
    struct vshare *shares;  /* ascending, apart */
    size_t n_shares, cap_shares;
    bool shares_dirty;
    uint64_t shares_addr;   /* of the blob at home */
    uint32_t shares_bytes, shares_units;
    struct vregion *next;
};
/* Units of a device that leaves or has left, and where they lie now: ascending, apart. */
struct vmove {
    uint64_t from, to;
    uint32_t units;
};
struct vmoved {
    struct vmove *e;
    size_t n, cap;
};
struct evac; /* evacuate.c */
#define VSPACE_POOL 4096u
struct vspace {
    struct vregion *regions;     /* leased here, newest first */
    struct vregion **by_index;   /* [n_regions] or NULL */
    uint64_t free_busy, free_used, free_blocks; /* sums over the regions leased here */
    uint64_t share_units;          /* that their lists of shared units take */
    uint64_t images, images_max;   /* home blocks of these regions: changed, and all */
    uint8_t *tried;              /* [n_regions] not 0: known to be leased by another, full, or damaged */
    uint32_t n_indexed;          /* entries of the two */
    struct vregion *current;     /* allocating from */
    uint64_t frag_addr;          /* fragment block being filled */
    uint32_t frag_left;
    struct vfreeq {
        struct vfree *e; /* FIFO */
        size_t first, n, cap;
    } freeq[3]; /* by kind; and what was a foreign free, as kind 1 */
    struct vmfs_run { uint64_t addr; uint64_t units; } pool[VSPACE_POOL]; /* runs kept for checkpoints */
    unsigned n_pool;
    uint64_t pool_units, pool_sure, pool_leaves; /* all; those that surely find use, whatever the nodes; as leaves of the longest */
    struct vdiscard {            /* discard.c: reusable, but still busy: the device is told first */
        struct vmfs_run *run;
        size_t n;
        uint64_t units;          /* with those it is being told of */
        bool running;
    } discard;
    struct vforeign *foreign;
    size_t n_foreign, cap_foreign;
    uint64_t foreign_units;      /* in all */
    uint64_t foreign_ticket;     /* as in struct vfree: of the newest */
    bool foreign_dirty;
    uint64_t aux_blob_addr;      /* where the foreign frees that do not fit the aux block are */
    uint32_t aux_blob_units;
    uint64_t next_ticket;
    struct vticket *oldest, *newest;
    struct vmoved moved[VMFS_DEVICES_MAX];
    struct evac *evac;           /* a device is being emptied here */
    bool recounting;             /* stale devices are counted anew: what is freed there meanwhile is listed */
    uint32_t moves;              /* how often addresses were settled anew */
    bool any_moved;
    uint64_t free_elsewhere;     /* free units of regions not leased here that can be had, as of their last checkpoint and of the last look */
    struct gr_fmutex lease_lock; /* a region comes or goes; taken after ckpt_lock */
    /* recall.c */
    struct gr_fmutex give_lock;  /* one fiber gives regions back; taken before ckpt_lock */
    unsigned stay;               /* somebody relies on what is leased here: nothing is given back */
    uint64_t taken, taken_before; /* units, since the last checkpoint and before it, and since something was given back */
    bool asking, tending;        /* a fiber asks the others; looks after what is idle */
    bool asked_got, asked_well;  /* the last one that asked got something, and it was worth asking */
    uint64_t asked_ns, looked_ns, unrecovered_ns; /* it ended then; the last look at what is free elsewhere; that a host could not be recovered */
};
struct vticket { /* somebody may still read units freed after now */
    uint64_t number;
    struct vticket *prev, *next;
};

int space_init(struct vmfs *v, struct gr_err *err);
void space_done(struct vmfs *v);
int space_regions_added(struct vmfs *v, const struct vsuper *s); /* the volume is as @s says now, which is larger. 0; -ENOMEM [sync] */
/* Regions of this volume containing @addr; NULL when not leased here. [sync] */
struct vregion *space_region(struct vmfs *v, uint64_t addr);
uint32_t space_region_index(const struct vmfs *v, uint64_t addr);
bool space_addr_ok(const struct vmfs *v, uint64_t addr, uint64_t units); /* inside the regions of one device (rule 7) [sync] */
uint32_t space_n_regions(const struct vmfs *v);
/* Free units of a region, as of its last checkpoint when others lease it (fiber). */
int space_region_free(struct vmfs *v, uint32_t index, uint64_t *ret, struct gr_err *err);
/* The table that has the header and the bitmap of region *@index, which becomes the index in there [sync]. */
const struct vtable *space_table(const struct vmfs *v, uint32_t *index);
uint64_t space_region_first(const struct vmfs *v, uint32_t index, uint32_t *ret_units); /* its address */
/* Lease one more region with free units (any), or the region @index. -ENOSPC: none can be had. */
int space_lease_any(struct vmfs *v, struct gr_err *err);
bool space_low(const struct vmfs *v); /* it is nearly full, or was and has not recovered: space_watch() has something to do [sync] */
void space_watch(struct vmfs *v); /* tell who uses the volume when it is nearly full. [sync] */
int space_lease(struct vmfs *v, uint32_t index, struct gr_err *err);
int space_ensure(struct vmfs *v, uint64_t units); /* lease until so many are free here; -GR_ENOSPACE */
/* Reserve units [sync]: they are busy until space_used() or space_unreserve(). 0 = none (ask space_ensure and try again). */
uint64_t space_take_block(struct vmfs *v);                       /* 16 units, aligned */
uint64_t space_take_run(struct vmfs *v, uint32_t want, uint32_t *ret_got); /* 1..want contiguous; for metadata and odd pieces */
/* The same for metadata of disks, at least @least units: on devices that hold tables, if there is room there, and of those on @near when that is one of
 * them [sync]. space_steady(): lease some there. */
#define SPACE_ANYWHERE VMFS_DEVICES_MAX /* near no device more than another */
uint64_t space_take_steady(struct vmfs *v, unsigned near, uint32_t want, uint32_t least, uint32_t *ret_got);
void space_steady(struct vmfs *v, uint32_t want);
uint64_t space_take_piece(struct vmfs *v);                       /* 1 unit, packed in arrival order */
void space_unreserve(struct vmfs *v, uint64_t addr, uint32_t units);
/* Apply [sync]: units become / stop being part of the logical state. @kind/@seq: see struct vfree. */
uint32_t space_used(struct vmfs *v, uint64_t addr, uint32_t units); /* how many were not used before */
void space_freed(struct vmfs *v, uint64_t addr, uint32_t units, uint32_t kind, uint64_t seq);
#define SPACE_GIVEN_UP 2u /* with kind: unmapped or deleted, not replaced */
#define SPACE_RETURNED 4u /* with kind 1: it was freed a while ago, in a region that was leased elsewhere */
bool discard_wanted(const struct vmfs *v, uint64_t addr, uint32_t units); /* the device is to be told of them [sync] */
/* Units that may be used again stay busy until their device has been told: true. false: it is not told [sync]. */
bool discard_take(struct vmfs *v, uint64_t addr, uint32_t units);
/* A free that an earlier holder of this slot left. 0; -ENOMEM, -GR_ECORRUPT [sync] */
int space_foreign_take(struct vmfs *v, uint64_t addr, uint64_t units);
/* One more owner of units that are in use [sync]. 0; -ENOMEM. */
int space_share(struct vmfs *v, uint64_t addr, uint32_t units);
/* Has the unit more owners than one? 1, 0, or -EAGAIN: its region is not leased here [sync]. */
int space_shared(struct vmfs *v, uint64_t addr);
/* How many images of home blocks the next checkpoint may have to put into the journal. */
uint64_t ckpt_images_due(const struct vmfs *v);
void space_touch(struct vmfs *v, struct vregion *r, uint32_t at, uint32_t units); /* its header, and the bitmap of these units, go home [sync] */
void space_reclaim(struct vmfs *v); /* pending frees that became reusable [sync] */
bool space_pending(const struct vmfs *v); /* are there any frees that did not yet? [sync] */
bool space_waiting(const struct vmfs *v); /* any of regions leased here that wait on the list of foreign frees for room in the journal? [sync] */
uint64_t space_free_units(const struct vmfs *v); /* here, and to be had elsewhere */
uint64_t space_free_here(const struct vmfs *v);
uint64_t space_meta_reserve(const struct vmfs *v); /* units kept back for metadata and deletes, */
uint64_t space_meta_base(const struct vmfs *v);    /* without the leaves that promised overwrites will need */
bool space_nothing_kept(const struct vmfs *v, uint64_t addr); /* its device leaves, or its region goes: nothing is kept ready there [sync] */
uint64_t space_promised_room(const struct vmfs *v); /* of what is free, leased here and not kept back: what could be promised to thick disks [sync] */
void space_giving(struct vmfs *v, struct vregion *r, bool on); /* nothing is taken from it, and nothing kept ready there [sync] */
uint64_t space_can_spare(const struct vmfs *v, const struct vregion *r); /* free units of it, with what is only kept ready there [sync] */
void space_detach(struct vmfs *v, struct vregion *r); /* it is not leased here any more; freed [sync] */
uint32_t space_listed_free(const struct vmfs_region_disk *h, uint32_t units); /* free units its header tells [sync] */
uint64_t space_all_units(const struct vmfs *v);    /* of the devices in use */
void ticket_open(struct vmfs *v, struct vticket *t);
void ticket_close(struct vmfs *v, struct vticket *t);
void space_close(struct vmfs *v);                 /* regions of devices that leave are closed, those of others open [sync] */
int space_left(struct vmfs *v, struct vregion *r, uint32_t at, uint32_t units); /* they lie elsewhere now. 0; -ENOMEM [sync] */
void space_forget(struct vmfs *v, unsigned dev);  /* it is gone, and its regions with it [sync] */
uint64_t space_unsettled(const struct vmfs *v, unsigned dev); /* units of it that are taken, but not yet used nor waiting to be free [sync] */

/* ---------- recall.c: regions go to whoever needs them ---------- */
/* Nothing more can be leased, and a write of @o, admitted at @epoch, needs some: others are asked to give back what they do not need. True: try
 * again; false: they were asked a moment ago, have nothing, or the write is late (fiber). */
bool space_ask(struct vmfs *v, const struct vobj *o, uint64_t epoch);
/* @more units are to be promised to thick disks, beyond what is: so much is leased here, or the others are asked for it. 0; -GR_ENOSPACE (fiber). */
int space_back(struct vmfs *v, uint64_t more);
bool space_has(const struct vmfs *v, uint64_t units); /* so many for metadata are leased here [sync] */
int space_some(struct vmfs *v, uint64_t units); /* so many for metadata are leased here, or others are asked for them. 0; -GR_ENOSPACE (fiber) */
void space_promised(struct vmfs *v); /* a disk came here: what it was promised is leased, in the background [sync] */
int space_look(struct vmfs *v, struct gr_err *err); /* how much is free elsewhere is read anew (fiber) */
void space_tend(struct vmfs *v); /* behind a checkpoint: what is idle is given back, once in a while others' headers are read [sync] */
#endif
