/* Inside vmfs_check(): one look at a volume's home state.
 *
 *   check_homeblock.c   copies the home blocks at one instant: slots, lists of foreign frees, regions, inodes
 *   check_walk.c   walks every tree and says which unit belongs to what
 *   check_space.c  remembers what was reached, by unit, and compares with the bitmaps
 *   check_usage.c  counts again how much space each tree has
 *   check_names.c  directories, links between objects, counters
 *   check_repair.c what can be mended without guessing
 *   recount.c      tables of a device that was lost, made anew from what was reached */
#ifndef VMFS_CHECK_H
#define VMFS_CHECK_H
#include "vmfs/internal.h"

struct chk_snap {
    uint64_t id, parent, epoch, cursor;
    uint64_t size;
    uint32_t flags, clones, clones_found;
    struct mptr root;
    uint8_t level;
    struct vusage use;
    uint64_t own_found;
};
struct chk_ent {
    uint64_t id;
    uint16_t type;
};
struct chk_obj {
    uint64_t id;
    uint16_t type;
    uint32_t n_snapshots; /* as the inode says */
    uint64_t size, used_units;
    uint64_t blob_addr;
    uint32_t blob_bytes, blob_units;
    uint64_t key_id;     /* as the inode says */
    uint64_t keys_at[2]; /* as the blob says; 0: it names none */
    uint64_t key_from;   /* epoch of its oldest data key */
    bool decoded, bad;
    bool lost; /* it has lost writes with a device */
    unsigned links; /* directory entries that name it */
    /* directories */
    struct chk_ent *ents;
    size_t n_ents;
    /* content */
    uint64_t epoch, parent_snap, origin_object, origin_snap, origin_epoch;
    struct mptr root;
    uint8_t level;
    struct chk_snap *snaps;
    size_t n_snaps;
    bool counted;
    struct vusage use; /* of the live head */
    uint64_t own_found;
};
/* A region, as its home blocks say. */
struct chk_region {
    uint64_t first; /* address */
    uint32_t units;
    uint32_t free_units; /* as the header says */
    bool stable;         /* leased here or by nobody: compared */
    bool fresh;          /* never written: all free */
    bool stale;          /* its tables are not believed: what was reached is what is used */
    uint64_t *used;      /* stale: a bit for each unit, and */
    struct vshare *found; /* those with several owners */
    size_t n_found;
    uint8_t *bits;       /* copy of the bitmap; NULL: all free */
    uint32_t *mark;      /* per unit, made when one is reached; see check_space.c */
    uint64_t *wide;      /* the same, stale: nothing else says which units have several owners */
    uint64_t shares_addr;
    uint32_t shares_bytes, shares_units, n_shares;
    struct vshare *shares; /* units with more owners than one, as its list says */
    struct chk_owned {
        uint32_t unit;
        bool owned; /* that tree names it itself */
        uint64_t print;
    } *owned; /* namings of such units */
    size_t n_owned, cap_owned;
};
/* What mends a broken rule. */
enum chk_fix_kind {
    CHK_FIX_LEAK,      /* units [addr, addr + n) are given back */
    CHK_FIX_USE,       /* units [addr, addr + n) are allocated */
    CHK_FIX_COUNT,     /* the header of region n is written anew */
    CHK_FIX_LOCK,      /* region n is nobody's: its lock names a slot that there is not */
    CHK_FIX_OWNERS,    /* the unit at addr has n owners; its list says value + 1 */
    CHK_FIX_SNAPSHOTS, /* the snapshots of object id are counted anew */
    CHK_FIX_USAGE,     /* the space of object id is counted anew */
    CHK_FIX_CLONES,    /* snapshot n of object id has value clones */
    CHK_FIX_ENTRY,     /* directory id: its entry for object value goes */
    CHK_FIX_TYPE,      /* directory id: its entry for object value says type n */
    CHK_FIX_UNNAMED,   /* object id, of type n, gets a name */
};
struct chk_fix {
    enum chk_fix_kind kind;
    uint64_t addr, id, n, value;
};
struct chk {
    struct vmfs *v;
    struct vmfs_check_report rep;
    struct gr_buf lines; /* text, NUL, text, NUL, … */
    uint64_t n_lines, repaired, skipped_regions;
    bool others;   /* other hosts live: what they change meanwhile may look wrong */
    bool blind;    /* part of a tree could not be read: what is below it is not known */
    bool stale;    /* so are regions of devices that were lost */
    int failed;    /* the check itself cannot go on (out of memory, fenced) */
    struct chk_region *regions;
    uint32_t n_regions;
    struct vmfs_run *foreign; /* units on lists of foreign frees */
    size_t n_foreign, cap_foreign;
    struct chk_obj *objs; /* by index of the inode, ascending */
    size_t n_objs, cap_objs;
    uint64_t steps;
    /* What units are is remembered for some regions at a time, [from, to): trees are walked once for each such pass. */
    uint32_t from, to;
    unsigned pass;
    struct chk_pass { /* what was told before it began */
        struct vmfs_check_report rep;
        size_t lines, n_fixes;
        uint64_t n_lines;
        bool blind;
    } before;
    uint32_t narrow;  /* so many regions in the next pass; 0: as many as their marks allow */
    size_t owned_bytes; /* of namings, in this pass */
    bool crowded;     /* they are too many: it is done again, with fewer regions */
    struct chk_early *early; /* what is no tree's, reached at the beginning of each pass */
    size_t n_early, cap_early;
    uint32_t *damaged; /* inodes that cannot be read: what names them names something */
    size_t n_damaged, cap_damaged;
    bool repair; /* remember what mends what is found */
    struct chk_fix *fixes;
    size_t n_fixes, cap_fixes;
    size_t memory; /* bytes that grew with the volume: the most of all looks */
};

/* A broken rule: one line, counted. */
void chk_error(struct chk *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* The same of what every pass comes by: told by the first. */
void chk_error_once(struct chk *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Behind chk_error(): this mends it. */
void chk_fix(struct chk *c, struct chk_fix f);
/* Something at @addr could not be looked at: an error, unless its device is missing. */
/* vdev_read(), counted. */
int chk_read(struct chk *c, uint64_t addr, uint32_t units, void *buf);
void chk_unread(struct chk *c, uint64_t addr, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* Something to be told that is no error. */
void chk_note(struct chk *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
int chk_nomem(struct chk *c); /* remember it; -ENOMEM */

/* check_homeblock.c: the checkpoint lock is held for chk_home(). */
int chk_home(struct chk *c);
int chk_supers(struct chk *c);
int chk_shares(struct chk *c); /* lists of shared units; the lock may be free */
int chk_blobs(struct chk *c); /* blobs that do not fit their inode; the lock may be free */

/* check_space.c */
enum chk_reached { CHK_NEW, CHK_AGAIN, CHK_FULL, CHK_CONFLICT, CHK_OUTSIDE /* not of this pass */, CHK_NOWHERE /* in no region: told */ };
struct chk_use {
    uint64_t print; /* fingerprint of what the unit is: same print, same thing */
    bool owned;     /* named by the tree whose time it was born in */
    bool full;      /* nodes: all below is walked now */
    bool data;      /* may have several owners */
};
uint64_t chk_print(uint64_t a, uint64_t b, uint64_t c, uint64_t d);
struct chk_early {
    uint64_t addr;
    uint32_t units;
    uint64_t print;
    char what[72];
};
/* Units that are no tree's: @print says what they are, and the text in words. */
void chk_early(struct chk *c, uint64_t addr, uint32_t units, uint64_t print, const char *fmt, ...) __attribute__((format(printf, 5, 6)));
/* [addr, addr+units) is what @use says. */
enum chk_reached chk_reach(struct chk *c, uint64_t addr, uint32_t units, const struct chk_use *use);
struct chk_region *chk_region_of(struct chk *c, uint64_t addr, uint32_t units); /* NULL: not inside one region */
void chk_foreign(struct chk *c);    /* lists of foreign frees, before the first pass */
bool chk_pass_begin(struct chk *c); /* the next regions; false: there are no more */
size_t chk_memory(const struct chk *c); /* check.c: bytes that grow with the volume, now */
void chk_pass_end(struct chk *c);   /* what was reached is compared, and forgotten */
const char *chk_unit(uint64_t addr, char out[40]); /* "device 0 unit 5" */

/* check_keys.c: the block of keys of an encrypted disk */
void chk_keys(struct chk *c, struct chk_obj *o);

/* check_walk.c */
void chk_trees(struct chk *c);

/* check_usage.c: after chk_trees() */
void chk_usage(struct chk *c);

/* check_names.c */
struct chk_obj *chk_find(struct chk *c, uint64_t id); /* NULL: no such object */
struct chk_snap *chk_snap(struct chk_obj *o, uint64_t id);
void chk_names(struct chk *c);
void chk_lost(struct chk *c); /* tell which disks and files have lost writes with a device */
void chk_links(struct chk *c);
bool chk_damaged(const struct chk *c, uint64_t id); /* its inode cannot be read */

/* recount.c: regions of devices that were lost. What was found goes home (no lock held), and the devices are used again: how many; negative. */
int recount_share(struct chk_region *r, struct vshare s); /* behind the others. 0; -ENOMEM */
int recount_install(struct chk *c, struct gr_err *err);

/* check_repair.c: mend what one look found, no lock held. How much was mended; negative: it cannot go on. */
int64_t chk_mend(struct chk *c, struct gr_err *err);
#endif
