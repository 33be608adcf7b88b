/* Free space: regions leased from the volume, units taken and given back (space.c, share.c, discard.c). Thread rule: the loop of the volume. */
#ifndef VMFS_SPACE_H
#define VMFS_SPACE_H
#include <stdbool.h>
#include <stdint.h>

struct gr_err;
struct vmfs;
struct vmfs_region_disk;
struct vregion;
struct vsuper;
struct vtable;
struct vticket;
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
void space_watch(struct vmfs *v); /* tell who uses the volume when it is nearly full. [sync] */
int space_lease(struct vmfs *v, uint32_t index, struct gr_err *err);
int space_ensure(struct vmfs *v, uint64_t units); /* lease until so many are free here; -GR_ENOSPACE */
/* Reserve units [sync]: they are busy until space_used() or space_unreserve(). 0 = none (ask space_ensure and try again). */
uint64_t space_take_block(struct vmfs *v);                       /* 16 units, aligned */
uint64_t space_take_run(struct vmfs *v, uint32_t want, uint32_t *ret_got); /* 1..want contiguous; for metadata and odd pieces */
/* The same for metadata of disks, at least @least units: on devices that hold tables, if there is room there [sync]. space_steady(): lease some there. */
uint64_t space_take_steady(struct vmfs *v, uint32_t want, uint32_t least, uint32_t *ret_got);
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
#endif
