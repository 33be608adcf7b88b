/* Checkpoint: the state of this host goes home.
 *
 *   capture   at one instant [sync]: new versions of all changed nodes and blobs get their places, interior nodes and blobs their bytes, images of all
 *             changed home blocks are made, the pending records become the last frame they cover
 *   phase 1   leaves get their bytes, as they were at the capture (due.h); that frame, nodes and blobs are written and flushed
 *   phase 2   the images go into the journal and are flushed: from here on recovery starts behind them
 *   phase 3   the images are written home and flushed        phase 4   the journal's tail moves */
#include "common/seam.h"
#include "vmfs/evacuate.h"
#include "vmfs/loss.h"
#include "vmfs/pool.h"
#include "vmfs/region.h"

struct chunk { /* contiguous units to be written */
    uint64_t addr;
    uint32_t units, used;
    uint8_t *buf;
    struct chunk *next;
};
struct ckpt {
    struct vmfs *v;
    uint64_t number;
    struct chunk *chunks, *filling[VMFS_DEVICES_MAX + 1]; /* the newest that was begun for what is near each device; last: near none */
    bool later;           /* leaves get their bytes behind the capture (due.h) */
    struct gr_buf images; /* struct vmfs_image_disk[] */
    unsigned n_images;
    struct vcut cut;
    uint64_t next_off;
    int error;
};
#define CHUNK_UNITS 256u
#define WRITE_UNITS 64u /* of a chunk at a time */

/* ---- capture: places ---- */
/* Take over a reserved run as a chunk to be filled. */
static struct chunk *chunk_add(struct ckpt *c, uint64_t addr, uint32_t units)
{
    struct chunk *k = gr_zalloc(sizeof *k);
    uint8_t *buf = k ? vunits_alloc(units) : NULL;
    if (!buf) {
        free(k);
        space_unreserve(c->v, addr, units);
        return NULL;
    }
    *k = (struct chunk){ addr, units, 0, buf, c->chunks };
    c->chunks = k;
    return k;
}

static bool has_room(const struct chunk *k, uint32_t units)
{
    return k && k->units - k->used >= units;
}

/* A chunk with room for @units near device @near: the one that is being filled, a new run, any that has room, or, when free space is in splinters, one
 * of the runs kept for this. */
static struct chunk *chunk_for(struct ckpt *c, unsigned near, uint32_t units)
{
    uint32_t got = 0;
    if (has_room(c->filling[near], units))
        return c->filling[near];
    uint64_t addr = space_take_steady(c->v, near, GR_MAX(CHUNK_UNITS, units), units, &got);
    for (unsigned i = 0; !addr && i <= VMFS_DEVICES_MAX; i++)
        if (has_room(c->filling[i], units))
            return c->filling[i];
    if (!addr) {
        addr = space_pool_take(c->v, units);
        got = units;
    }
    struct chunk *k = addr ? chunk_add(c, addr, got) : NULL;
    return k ? c->filling[near] = k : NULL;
}

/* Whoever points to what lies at @addr is put near it, if that is a device with tables: when one of those is lost for good, the maps of what lies on the
 * others are not lost with it (rescue.c). Near others nothing is put: they may be lost while all goes on, and their maps are then still of use. */
static unsigned near_what(const struct vmfs *v, uint64_t addr)
{
    unsigned dev = vmfs_addr_dev(addr);
    return addr && v->sb.n_devices > 1 && dev < v->sb.n_devices && vdev_has_tables(v, dev) ? dev : SPACE_ANYWHERE;
}

static unsigned near_node(const struct vmfs *v, const struct mnode *n)
{
    uint64_t addr = 0;
    for (unsigned i = 0; !addr && i < VMFS_FANOUT; i++) {
        const struct mchild *k = &n->child[i];
        const struct mentry *e = &n->ent[i];
        if (n->level)
            addr = k->mem ? k->mem->ptr.addr : k->ptr.addr;
        else if (!e->px)
            addr = e->addr;
        for (unsigned p = 0; !n->level && e->px && !addr && p < VMFS_BLOCK_PIECES; p++)
            addr = e->px->addr[p];
    }
    return near_what(v, addr);
}

/* @units contiguous units near @near: their address and where to put the bytes. */
static uint8_t *place(struct ckpt *c, unsigned near, uint32_t units, uint64_t *ret_addr)
{
    struct chunk *k = chunk_for(c, near, units);
    if (!k) {
        c->error = -GR_ENOSPACE;
        return NULL;
    }
    *ret_addr = k->addr + k->used;
    uint8_t *p = k->buf + (size_t)k->used * VMFS_UNIT;
    k->used += units;
    space_used(c->v, *ret_addr, units);
    return p;
}

static void chunks_trim(struct ckpt *c)
{
    for (struct chunk *k = c->chunks; k; k = k->next)
        if (k->used < k->units) {
            space_unreserve(c->v, k->addr + k->used, k->units - k->used);
            k->units = k->used;
        }
}

/* ---- capture: trees ---- */
static void node_capture(struct ckpt *c, struct vobj *o, struct mnode *n, uint64_t parent_snap, uint64_t first)
{
    uint64_t addr, end = first + mnode_span(n->level);
    if (!n->dirty || c->error)
        return;
    for (unsigned i = 0; n->level && i < VMFS_FANOUT; i++)
        if (n->child[i].mem)
            node_capture(c, o, n->child[i].mem, parent_snap, first + i * mnode_span(n->level - 1u));
    uint32_t units = mnode_units(n);
    uint8_t *p = place(c, near_node(c->v, n), units, &addr);
    if (!p)
        return;
    if (n->level || !c->later)
        mnode_encode(c->v, n, addr, p);
    else
        due_add(c->v, n, addr, p);
    if (n->ptr.addr && !held_by_ancestors(o, parent_snap, n->ptr.birth, end))
        space_freed(c->v, n->ptr.addr, n->ptr.units, 1, c->number);
    n->ptr = (struct mptr){ addr, n->birth, units };
    mnode_set_dirty(c->v, n, false);
    c->v->stats.node_bytes += (uint64_t)units * VMFS_UNIT;
}

static void image_add(struct ckpt *c, uint64_t addr_a, uint64_t addr_b, const void *block)
{
    struct vmfs_image_disk *d;
    if (gr_buf_zero(&c->images, sizeof *d) < 0) {
        c->error = -ENOMEM;
        return;
    }
    d = (struct vmfs_image_disk *)(c->images.data + c->images.len - sizeof *d);
    d->addr_a = gr_le64_of(addr_a);
    d->addr_b = gr_le64_of(addr_b);
    memcpy(d->block, block, VMFS_UNIT);
    journal_expect_images(c->v, ++c->n_images); /* at once: what is freed while others are captured is held against it */
}

/* Changed leaves of @n's subtree get their new places ahead of the capture, at most *left of them. */
static void leaves_clean(struct ckpt *c, struct vobj *o, struct mnode *n, uint64_t parent_snap, uint64_t first, unsigned *left)
{
    for (unsigned i = 0; i < VMFS_FANOUT && *left && !c->error; i++) {
        struct mnode *k = n->child[i].mem;
        uint64_t at = first + i * mnode_span(n->level - 1u);
        if (!k || !k->dirty)
            continue;
        if (k->level) {
            leaves_clean(c, o, k, parent_snap, at, left);
        } else {
            node_capture(c, o, k, parent_snap, at);
            --*left;
        }
    }
}

static void object_clean(struct ckpt *c, struct vobj *o, unsigned *left)
{
    for (size_t i = 0; i < o->n_snaps && *left; i++)
        if (o->snaps[i]->tree.root.mem && o->snaps[i]->tree.root.mem->dirty)
            leaves_clean(c, o, o->snaps[i]->tree.root.mem, o->snaps[i]->parent, 0, left);
    if (o->live.root.mem && o->live.root.mem->dirty)
        leaves_clean(c, o, o->live.root.mem, o->parent_snap, 0, left);
}

static void blob_capture(struct ckpt *c, struct vobj *o)
{
    gr_auto_buf struct gr_buf b = { 0 };
    struct vinode *ino = &o->ino;
    if (vobj_blob_encode(o, &b) < 0) {
        c->error = -ENOMEM;
        return;
    }
    if (ino->blob_addr)
        space_freed(c->v, ino->blob_addr, ino->blob_units, 1, c->number);
    ino->blob_addr = 0;
    ino->blob_units = 0;
    ino->blob_bytes = (uint32_t)b.len;
    memset(ino->inline_blob, 0, sizeof ino->inline_blob);
    if (b.len <= sizeof ino->inline_blob) {
        if (b.len)
            memcpy(ino->inline_blob, b.data, b.len);
        return;
    }
    uint32_t units = (uint32_t)((b.len + sizeof(struct vmfs_hdr_disk) + VMFS_UNIT - 1) / VMFS_UNIT);
    uint64_t addr;
    uint8_t *p = place(c, near_what(c->v, o->live.root.mem ? o->live.root.mem->ptr.addr : o->live.root.ptr.addr), units, &addr);
    if (!p)
        return;
    memcpy(p + sizeof(struct vmfs_hdr_disk), b.data, b.len);
    vhdr_seal(c->v, p, VMFS_T_BLOB, units, addr, ino->block_generation + 1, c->v->slot);
    ino->blob_addr = addr;
    ino->blob_units = units;
}

static void object_capture(struct ckpt *c, struct vobj *o)
{
    struct vmfs *v = c->v;
    uint8_t block[VMFS_UNIT] __attribute__((aligned(8)));
    if (!o->dirty || c->error)
        return;
    for (size_t i = 0; i < o->n_snaps; i++)
        if (o->snaps[i]->tree.root.mem)
            node_capture(c, o, o->snaps[i]->tree.root.mem, o->snaps[i]->parent, 0);
    if (o->live.root.mem)
        node_capture(c, o, o->live.root.mem, o->parent_snap, 0);
    if (o->ino.type)
        blob_capture(c, o);
    o->ino.block_generation++;
    uint32_t index = (uint32_t)o->id;
    vinode_encode(v, &o->ino, vhome_addr(&v->sb.inodes, index, 0, 0), block);
    image_add(c, vhome_addr(&v->sb.inodes, index, 0, 0), vhome_addr(&v->sb.inodes, index, 0, 1), block);
    vobj_clean(o);
}

/* ---- capture: regions, foreign frees ---- */
/* The list of shared units gets a new place. */
static void shares_capture(struct ckpt *c, struct vregion *r)
{
    struct vmfs *v = c->v;
    if (!r->shares_dirty || c->error)
        return;
    r->shares_dirty = false;
    if (r->shares_addr)
        space_freed(v, r->shares_addr, r->shares_units, 1, c->number);
    r->shares_addr = 0;
    r->shares_units = share_blob_units(r);
    r->shares_bytes = (uint32_t)(r->n_shares * sizeof(struct vmfs_share_disk));
    if (!r->shares_units)
        return;
    uint8_t *p = place(c, near_what(c->v, r->first), r->shares_units, &r->shares_addr);
    if (!p)
        return;
    share_blob_encode(r, p);
    vhdr_seal(v, p, VMFS_T_BLOB, r->shares_units, r->shares_addr, r->hdr_generation + 1, v->slot);
}

static void region_capture(struct ckpt *c, struct vregion *r)
{
    struct vmfs *v = c->v;
    union {
        struct vmfs_region_disk h;
        struct vmfs_bitmap_disk b;
    } u;
    if (!r->dirty)
        return;
    uint32_t index = r->index;
    const struct vtable *t = space_table(v, &index);
    r->dirty = false;
    memset(&u, 0, sizeof u);
    vlock_put(&r->lock, &u.h.lock);
    u.h.units = gr_le32_of(r->units);
    u.h.free_units = gr_le32_of(r->free_used);
    u.h.shares_addr = gr_le64_of(r->shares_addr);
    u.h.shares_bytes = gr_le32_of(r->shares_bytes);
    u.h.shares_units = gr_le32_of(r->shares_units);
    vhdr_seal(v, &u, VMFS_T_REGION, 1, vhome_addr(t, index, 0, 0), ++r->hdr_generation, v->slot);
    image_add(c, vhome_addr(t, index, 0, 0), vhome_addr(t, index, 0, 1), &u);
    v->sp.images--;
    r->bm_generation++;
    for (uint32_t k = 0; k < v->sb.bitmap_blocks; k++) {
        if (!(r->dirty_blocks[k / 64] >> (k % 64) & 1))
            continue;
        r->dirty_blocks[k / 64] &= ~(1ull << (k % 64));
        v->sp.images--;
        memset(&u, 0, sizeof u);
        for (uint32_t i = 0; i < VMFS_BITMAP_BITS && k * VMFS_BITMAP_BITS + i < r->units; i += 8) {
            uint32_t at = k * VMFS_BITMAP_BITS + i;
            u.b.bits[i / 8] = (uint8_t)(r->used[at / 64] >> (at % 64));
        }
        uint64_t a = vhome_addr(t, index, 1 + k, 0);
        vhdr_seal(v, &u, VMFS_T_BITMAP, 1, a, r->bm_generation, v->slot);
        image_add(c, a, vhome_addr(t, index, 1 + k, 1), &u);
    }
}

static void foreign_capture(struct ckpt *c)
{
    struct vmfs *v = c->v;
    struct vspace *s = &v->sp;
    union {
        struct vmfs_aux_disk a;
        uint8_t bytes[VMFS_UNIT];
    } u;
    if (!s->foreign_dirty)
        return;
    memset(&u, 0, sizeof u);
    if (s->aux_blob_addr)
        space_freed(v, s->aux_blob_addr, s->aux_blob_units, 1, c->number);
    s->aux_blob_addr = 0;
    size_t here = GR_MIN(s->n_foreign, (size_t)VMFS_AUX_RUNS), more = s->n_foreign - here;
    for (size_t i = 0; i < here; i++)
        u.a.runs[i] = (struct vmfs_run_disk){ gr_le64_of(s->foreign[i].addr), gr_le64_of(s->foreign[i].units) };
    if (more) {
        size_t bytes = more * sizeof(struct vmfs_run_disk);
        s->aux_blob_units = (uint32_t)((bytes + sizeof(struct vmfs_hdr_disk) + VMFS_UNIT - 1) / VMFS_UNIT);
        uint8_t *p = place(c, SPACE_ANYWHERE, s->aux_blob_units, &s->aux_blob_addr);
        if (!p)
            return;
        struct vmfs_run_disk *d = (struct vmfs_run_disk *)(p + sizeof(struct vmfs_hdr_disk));
        for (size_t i = 0; i < more; i++)
            d[i] = (struct vmfs_run_disk){ gr_le64_of(s->foreign[here + i].addr), gr_le64_of(s->foreign[here + i].units) };
        vhdr_seal(v, p, VMFS_T_BLOB, s->aux_blob_units, s->aux_blob_addr, v->aux_generation + 1, v->slot);
        u.a.blob_addr = gr_le64_of(s->aux_blob_addr);
        u.a.blob_bytes = gr_le32_of((uint32_t)bytes);
        u.a.blob_units = gr_le32_of(s->aux_blob_units);
    }
    u.a.n_runs = gr_le32_of((uint32_t)s->n_foreign);
    vhdr_seal(v, &u, VMFS_T_AUX, 1, vhome_addr(&v->sb.slots, v->slot, 1, 0), ++v->aux_generation, v->slot);
    image_add(c, vhome_addr(&v->sb.slots, v->slot, 1, 0), vhome_addr(&v->sb.slots, v->slot, 1, 1), &u);
    s->foreign_dirty = false;
}

/* ---- for evacuate.c ---- */
uint8_t *ckpt_take(struct ckpt *c, uint64_t addr, uint32_t units)
{
    struct chunk *k = chunk_add(c, addr, units);
    if (!k) {
        c->error = -ENOMEM;
        return NULL;
    }
    k->used = units;
    space_used(c->v, addr, units);
    return k->buf;
}
void ckpt_image(struct ckpt *c, uint64_t addr_a, uint64_t addr_b, const void *block) { image_add(c, addr_a, addr_b, block); }
void ckpt_fail(struct ckpt *c, int code) { c->error = code; }
uint64_t ckpt_number(const struct ckpt *c) { return c->number; }
struct vmfs *ckpt_volume(const struct ckpt *c) { return c->v; }

static void capture(struct ckpt *c)
{
    struct vmfs *v = c->v;
    c->number = ++v->ckpt_started;
    if (v->sp.evac)
        evac_capture(c);
    for (unsigned h = 0; h < VOBJ_HASH; h++)
        for (struct vobj *o = v->objs[h]; o; o = o->hash_next)
            object_capture(c, o);
    for (struct vregion *r = v->sp.regions; r; r = r->next)
        shares_capture(c, r); /* may give an old list back to a region that others lease */
    foreign_capture(c);
    chunks_trim(c);
    for (struct vregion *r = v->sp.regions; r; r = r->next)
        region_capture(c, r);
    if (!c->error)
        c->error = journal_cut(v, false, &c->cut);
    c->next_off = v->j.head_off;
}

/* ---- before: what capture must not have to wait for ---- */
static bool late_writes(struct vmfs *v)
{
    for (unsigned h = 0; h < VOBJ_HASH; h++)
        for (struct vobj *o = v->objs[h]; o; o = o->hash_next)
            if (o->late) {
                disk_wait_late(o);
                return true;
            }
    return false;
}

void ckpt_lease_foreign(struct vmfs *v)
{
    uint32_t n = space_n_regions(v); /* the volume may grow meanwhile */
    uint8_t *tried = v->sp.n_foreign ? gr_zalloc(n) : NULL;
    for (size_t i = 0; tried && i < v->sp.n_foreign && ckpt_images_due(v) < v->j.units / 8 && journal_holds_images(v, 2); i++) { /* the rest: next time */
        uint32_t index = space_region_index(v, v->sp.foreign[i].addr);
        if (index >= n || tried[index])
            continue;
        tried[index] = 1;
        if (!v->sp.by_index[index] && space_lease(v, index, NULL) != 0)
            continue;
        if (v->sp.by_index[index] && !v->replaying)
            space_foreign_return(v, v->sp.by_index[index]); /* what waited for room in the journal */
        i = SIZE_MAX; /* the list changed: from the start */
    }
    free(tried);
}

static uint64_t units_wanted(struct vmfs *v)
{
    uint64_t n = v->dirty_nodes * leaf_units_max(v) + v->sp.n_foreign / 200 + 2 * CHUNK_UNITS; /* runs, so take plenty */
    for (const struct vregion *r = v->sp.regions; r; r = r->next)
        n += r->shares_dirty ? share_blob_units(r) : 0;
    for (unsigned h = 0; h < VOBJ_HASH; h++)
        for (struct vobj *o = v->objs[h]; o; o = o->hash_next)
            if (o->dirty)
                n += 1 + (o->n_snaps + o->n_ents) / 16;
    return n;
}

/* Room for so many units. Where nothing can be leased, or nobody can read whose it is, there is the pool: a checkpoint that only tried again would keep
 * all waiting for as long as a header cannot be read. */
static int room_for(struct vmfs *v, uint64_t units)
{
    space_steady(v, CHUNK_UNITS);
    space_pool_fill(v);
    int r = space_ensure(v, units);
    return r == -ENOMEM || r == -GR_EFENCED ? r : 0;
}

static int prepare(struct vmfs *v)
{
    ckpt_lease_foreign(v);
    for (;;) {
        int r = room_for(v, units_wanted(v));
        if (r < 0)
            return r;
        if (late_writes(v))
            continue;
        gr_fmutex_lock(&v->j.write_lock); /* from here to the capture nothing suspends, unless somebody else had the lock */
        bool again = false;
        for (unsigned h = 0; h < VOBJ_HASH && !again; h++)
            for (struct vobj *o = v->objs[h]; o; o = o->hash_next)
                again |= o->late > 0;
        if (!again)
            return 0;
        gr_fmutex_unlock(&v->j.write_lock);
    }
}

/* ---- phases ---- */
static void chunks_done(struct ckpt *c)
{
    for (struct chunk *k = c->chunks, *next; k; k = next) {
        next = k->next;
        free(k->buf);
        free(k);
    }
    c->chunks = NULL;
}

static int write_chunks(struct ckpt *c)
{
    int r = 0;
    for (struct chunk *k = c->chunks; r == 0 && k; k = k->next)
        for (uint32_t at = 0, n; r == 0 && at < k->used; at += n) {
            n = GR_MIN(k->used - at, WRITE_UNITS);
            r = vdev_write(c->v, k->addr + at, n, k->buf + (size_t)at * VMFS_UNIT, 0);
            gr_fiber_yield(); /* a device that answers at once (page cache, tmpfs) never suspends us: guests' I/O has its turn here */
        }
    return r;
}

/* The capture holds the loop: so most leaves are written before it, a few at a time. Those that change again meanwhile are written
 * again; writers wait their turn (journal_room), one each per batch, so there are fewer every time. */
#define CLEAN_BATCH 64u
#define CLEAN_SLICE 4u /* get their bytes at once, for others have their turn in between: a leaf of splits takes 20 us */
#define CLEAN_ENOUGH 256u
/* How many of a batch were there. */
static unsigned clean_batch(struct ckpt *c)
{
    struct vmfs *v = c->v;
    unsigned left = 0, done = 0;
    while (!left && done < CLEAN_BATCH && !c->error) {
        left = CLEAN_SLICE;
        v->leaves_moved++;
        for (unsigned h = 0; h < VOBJ_HASH && left; h++)
            for (struct vobj *o = v->objs[h]; o && left; o = o->hash_next)
                object_clean(c, o, &left);
        done += CLEAN_SLICE - left;
        gr_fiber_yield();
    }
    return done;
}

static int clean_leaves(struct vmfs *v)
{
    int r = 0;
    for (size_t rounds = v->dirty_nodes / CLEAN_BATCH * 2; r == 0 && rounds-- > 0 && v->dirty_nodes > CLEAN_ENOUGH && !v->fenced;) {
        struct ckpt c = { .v = v, .number = v->ckpt_started + 1 };
        unsigned done = 0;
        v->ckpt_cleaning = true;
        r = room_for(v, CLEAN_BATCH * leaf_units_max(v) + 2 * CHUNK_UNITS);
        if (r == 0)
            done = clean_batch(&c);
        chunks_trim(&c);
        if (r == 0 && (r = write_chunks(&c)) < 0)
            vmfs_fence(v, "map nodes cannot be written: %s", gr_code_text(r));
        chunks_done(&c);
        gr_fqueue_wake_all(&v->j.room_q);
        if (!done || c.error) /* nothing but interior nodes, or no room: the capture does the rest */
            break;
    }
    v->ckpt_cleaning = false;
    gr_fqueue_wake_all(&v->j.room_q);
    return r;
}

static int write_homes(struct ckpt *c)
{
    struct vmfs_image_disk *d = (struct vmfs_image_disk *)c->images.data;
    uint8_t *block = vunits_alloc(1);
    int r = block ? 0 : -ENOMEM;
    for (unsigned copy = 0; r == 0 && copy < 2; copy++) {
        for (unsigned i = 0; r == 0 && i < c->n_images; i++) {
            uint64_t addr = gr_le64_get(copy ? d[i].addr_b : d[i].addr_a);
            memcpy(block, d[i].block, VMFS_UNIT);
            vhdr_move(block, 1, addr);
            r = vdev_write(c->v, addr, 1, block, 0);
            if (i % 32 == 31)
                gr_fiber_yield();
        }
        if (r == 0 && copy == 0) /* another host that recovers must find one copy whole, whatever the power cut tore */
            r = journal_flush(c->v, c->v->j.durable_seq);
    }
    free(block);
    return r;
}

static bool unloadable(const struct vsnap *s)
{
    return s->tree.root.mem && !s->open && !s->tree.root.mem->dirty;
}

/* Snapshots' trees are on disk now: no need to share memory with the live head. What nobody shares is freed by parts, which takes tens of milliseconds
 * when it is much. */
static void snapshots_unload(struct vmfs *v)
{
    struct mnode **gone = NULL;
    size_t n = 0, cap = 0;
    for (unsigned h = 0; h < VOBJ_HASH; h++)
        for (struct vobj *o = v->objs[h]; o; o = o->hash_next)
            for (size_t i = 0; i < o->n_snaps; i++)
                cap += unloadable(o->snaps[i]);
    if (!cap || !(gone = gr_alloc(cap * sizeof *gone))) /* then with the next checkpoint */
        return;
    for (unsigned h = 0; h < VOBJ_HASH; h++)
        for (struct vobj *o = v->objs[h]; o; o = o->hash_next)
            for (size_t i = 0; i < o->n_snaps; i++) {
                struct mchild *root = &o->snaps[i]->tree.root;
                if (!unloadable(o->snaps[i]))
                    continue;
                gone[n++] = root->mem;
                *root = (struct mchild){ .ptr = root->mem->ptr };
            }
    while (n)
        mnode_put_by_parts(v, gone[--n]);
    free(gone);
}

static int write_out(struct ckpt *c)
{
    struct vmfs *v = c->v;
    struct vjournal *j = &v->j;
    uint64_t covers = c->cut.seq, last = covers;
    int r = journal_write_cut(v, &c->cut);
    gr_fmutex_unlock(&j->write_lock);
    due_make_all(v);
    if (r == 0)
        r = write_chunks(c);
    if (r == 0)
        r = journal_flush(v, covers);
    if (r == 0)
        r = journal_write_images(v, (struct vmfs_image_disk *)c->images.data, c->n_images, covers, &last);
    if (r == 0)
        r = journal_flush(v, last);
    if (r < 0)
        return r;
    j->sealed_seq = GR_MAX(j->sealed_seq, covers);
    v->ckpt_writing = false; /* not earlier: a leaf read again has forgotten which of its records are not sealed yet */
    snapshots_unload(v);
    r = write_homes(c);
    if (r == 0)
        r = journal_flush(v, last);
    if (r < 0)
        return r;
    v->ckpt_done = c->number; /* not earlier: other hosts look at what is home, and see by it that something was freed */
    space_reclaim(v);
    v->me.tail_seq = j->tail_seq = covers + 1;
    v->me.tail_off = j->tail_off = c->next_off;
    r = vslot_write_mine(v, NULL);
    j->used = (uint32_t)((j->head_off + j->units - j->tail_off) % j->units);
    v->stats.checkpoints++;
    return r;
}

static bool anything_to_do(struct vmfs *v)
{
    if (v->sp.evac || v->j.n_pending || v->j.used || v->sp.foreign_dirty || v->dirty_nodes)
        return true;
    for (struct vregion *r = v->sp.regions; r; r = r->next)
        if (r->dirty)
            return true;
    if (!v->replaying && space_waiting(v))
        return true;
    for (unsigned h = 0; h < VOBJ_HASH; h++)
        for (struct vobj *o = v->objs[h]; o; o = o->hash_next)
            if (o->dirty)
                return true;
    return false;
}

int ckpt_run(struct vmfs *v)
{
    struct ckpt c = { .v = v, .later = true };
    gr_fmutex_lock(&v->ckpt_lock);
    int r = v->fenced ? -GR_EFENCED : 0;
    v->ckpt_writing = true;
    if (r == 0 && anything_to_do(v)) {
        r = clean_leaves(v);
        if (r == 0)
            r = prepare(v);
        if (r == 0) {
            uint64_t began_ns = gr_loop_now_ns(v->loop);
            capture(&c);
            r = c.error;
            v->stats.capture_ns_max = GR_MAX(v->stats.capture_ns_max, gr_loop_now_ns(v->loop) - began_ns);
            if (r == 0) {
                r = write_out(&c);
            } else {
                due_forget(v);
                gr_fmutex_unlock(&v->j.write_lock);
            }
            if (r < 0)
                vmfs_fence(v, "a checkpoint failed: %s", gr_code_text(r));
        }
    }
    chunks_done(&c);
    gr_buf_done(&c.images);
    free(c.cut.buf);
    v->ckpt_writing = r < 0 && !v->fenced; /* what it has written already waits for the one that tries again: nothing of it is sealed */
    gr_fmutex_unlock(&v->ckpt_lock);
    gr_fqueue_wake_all(&v->j.room_q);
    map_evict(v);
    if (r == 0 && v->joined) {
        space_watch(v);
        space_tend(v);
    }
    return r;
}

int vmfs_checkpoint(struct vmfs *v, struct gr_err *err)
{
    int r = ckpt_run(v);
    return r < 0 ? gr_fail(err, r, "datastore '%s': %s", v->sb.name, v->fenced ? v->fence_reason : gr_code_text(r)) : 0;
}

static void auto_work(void *arg)
{
    struct vmfs *v = arg;
    ckpt_run(v);
    v->ckpt_running_auto = false;
    v->ckpt_rounds++;
    gr_fqueue_wake_all(&v->j.room_q);
    if (--v->background == 0)
        gr_fqueue_wake_all(&v->background_q);
}

int ckpt_background(struct vmfs *v)
{
    if (v->ckpt_running_auto || v->fenced || v->replaying)
        return 0;
    v->ckpt_running_auto = true;
    v->background++;
    int r = gr_fiber_start(v->loop, auto_work, v);
    if (r < 0) {
        v->ckpt_running_auto = false;
        v->background--;
    }
    return r;
}

/* Nodes that get a new place give their old one back, wherever that is. */
uint64_t ckpt_images_due(const struct vmfs *v)
{
    return GR_MIN(v->sp.images + 2 * v->dirty_nodes, v->sp.images_max) + v->dirty_objects;
}

/* Random writes touch a leaf each, so the seldomer it comes the less is written for the map. But what is dirty cannot be thrown out of memory,
 * and needs room on the device. */
#define DIRTY_FEW 2048u
static bool too_dirty(const struct vmfs *v)
{
    if (v->dirty_nodes > v->max_dirty_nodes || v->dirty_nodes <= DIRTY_FEW)
        return v->dirty_nodes > v->max_dirty_nodes;
    return v->map_bytes > v->map_limit || space_free_units(v) / 4 < v->dirty_nodes * leaf_units_max(v);
}

void ckpt_kick(struct vmfs *v)
{
    if (v->j.used + ckpt_images_due(v) > v->j.units / 2 || too_dirty(v))
        ckpt_background(v);
}
