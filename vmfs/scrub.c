/* Reading everything once, while the volume is in use: what nobody has read for long may have rotted.
 *
 * Metadata is read by the check, both copies. Data is read tree by tree, in slices: a slice holds a ticket, so that no unit it looked up is used
 * again under it, and a view of its own of the object, which shares nodes with the object in memory where this host holds it, so that nobody
 * waits for it. Of each tree what was born since the one before it is read, so a unit that snapshots and clones share is read once.
 * What looks wrong is looked up and read again before it is told: another host may have changed its disk meanwhile. */
#include "common/seam.h"
#include "vmfs/rescue.h"

#define BATCH 256u               /* pieces that are read at once */
#define SLICE_LEAVES 256u        /* a slice ends behind so many leaves, */
#define SLICE_BYTES (64ull << 20) /* or so much data */
#define SAVE_NS (60ull * 1000000000ull)
#define WAIT_MS 200u
#define LIVE UINT64_MAX /* cursor: behind the snapshots */

struct one { /* a piece */
    uint64_t piece, addr;
    uint32_t crc;
};
struct scrub {
    struct vmfs *v;
    const struct vmfs_scrub_opts *o;
    struct vmfs_scrub_report *rep;
    struct vscrub now; /* as it goes into the superblock */
    uint64_t all, started_ns, saved_ns, here; /* here: bytes read by this call, of metadata, too */
    uint64_t object;                          /* whose data is read */
    uint64_t live_since; /* of the live head under way; 0: not known any more */
    uint64_t slice_bytes;
    unsigned slice_leaves;
    struct one one[BATCH];
    unsigned n;
    uint8_t *buf;
    struct vread run[BATCH];
};

/* ---- what an object has, to look at ---- */
static void share_tree(struct vmfs *v, struct mtree *mine, const struct mtree *its)
{
    mtree_done(v, mine);
    mtree_share(mine, its);
}

/* The ticket is open. An object that is held here is as it is in memory. */
static int view_open(struct vmfs *v, uint64_t id, struct vobj **ret, struct gr_err *err)
{
    int r = vobj_peek(v, id, ret, err);
    if (r < 0)
        return r;
    struct vobj *held = vobj_find(v, id), *o = *ret;
    if (!held)
        return 0;
    share_tree(v, &o->live, &held->live);
    for (size_t i = 0; i < o->n_snaps; i++) {
        struct vsnap *s = vobj_snap(held, o->snaps[i]->id);
        if (s)
            share_tree(v, &o->snaps[i]->tree, &s->tree);
        if (s && s->cursor > o->snaps[i]->cursor)
            o->snaps[i]->cursor = s->cursor;
        o->snaps[i]->flags |= s ? s->flags : VMFS_SNAP_DELETING;
        if (!s)
            o->snaps[i]->cursor = UINT64_MAX; /* gone since */
    }
    return 0;
}

/* What is older is another tree's, which is read, too. One that is being given back is not relied on. */
static uint64_t read_since(struct vobj *o, uint64_t parent)
{
    struct vsnap *s = vobj_snap(o, parent);
    while (s && (s->flags & VMFS_SNAP_DELETING))
        s = vobj_snap(o, s->parent);
    return s ? s->epoch : o->origin_object ? o->origin_epoch : 0;
}

static struct mtree *tree_of(struct vobj *o, uint64_t snap)
{
    struct vsnap *s = snap == LIVE ? NULL : vobj_snap(o, snap);
    return snap == LIVE ? &o->live : s ? &s->tree : NULL;
}

/* ---- telling ---- */
static void __attribute__((format(printf, 2, 3))) tell(struct scrub *s, const char *fmt, ...)
{
    char text[GR_ERR_TEXT];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    if (s->o->line)
        s->o->line(s->o->arg, text);
    vmfs_warn(s->v, "%s", text);
}

static void tell_piece(struct scrub *s, uint64_t snap, const struct one *p, int why)
{
    char name[VMFS_PATH_MAX + 80], which[64] = "";
    vobj_name(s->v, s->object, name, sizeof name);
    if (snap != LIVE)
        snprintf(which, sizeof which, ", snapshot number %llu,", (unsigned long long)snap);
    tell(s, "'%.300s'%s at byte %llu: device %u ('%.200s') %s at its byte %llu", name, which, (unsigned long long)p->piece * VMFS_PIECE,
         vmfs_addr_dev(p->addr), s->v->dev[vmfs_addr_dev(p->addr)].bdev->name, why == -EIO ? "cannot be read" : "does not return what was written",
         (unsigned long long)vmfs_addr_unit(p->addr) * VMFS_UNIT);
}

/* ---- reading ---- */
/* 0: as it was written; -GR_ECORRUPT; -EIO: the device does not read it. */
static int piece_try(struct scrub *s, const struct one *p, uint8_t *buf)
{
    int r = vdev_read(s->v, p->addr, 1, buf);
    if (r < 0)
        return r == -GR_EFENCED ? r : -EIO;
    return vcrc_kept(s->v) && gr_crc32c(0, buf, VMFS_PIECE) != p->crc ? -GR_ECORRUPT : 0;
}

/* Is it still where it was said to be? */
static bool still_there(struct scrub *s, uint64_t snap, const struct one *p)
{
    struct vobj *o;
    struct mnode *leaf = NULL;
    bool same = false;
    if (view_open(s->v, s->object, &o, NULL) < 0)
        return false;
    struct mtree *t = tree_of(o, snap);
    if (t && mtree_load(o, t, p->piece, NULL) == 0 && mtree_peek(t, p->piece, &leaf) == 0 && leaf) {
        struct mpiece m = ment_piece(&leaf->ent[p->piece % VMFS_LEAF_PIECES / VMFS_BLOCK_PIECES], (unsigned)(p->piece % VMFS_BLOCK_PIECES));
        same = m.state == VMFS_P_DATA && moved_addr(s->v, m.addr, 1, NULL) == p->addr && m.crc == p->crc;
    }
    vobj_free(o);
    return same;
}

static int piece_bad(struct scrub *s, uint64_t snap, const struct one *p)
{
    uint8_t *buf = vunits_alloc(1);
    int r = buf ? piece_try(s, p, buf) : -ENOMEM;
    free(buf);
    if (r == 0 || r == -ENOMEM || r == -GR_EFENCED || !still_there(s, snap, p))
        return r == -ENOMEM || r == -GR_EFENCED ? r : 0;
    s->now.bad_pieces++;
    tell_piece(s, snap, p, r);
    return 0;
}

/* The pieces gathered, all at once; runs of a device that lie behind each other are one request. */
static unsigned batch_read(struct scrub *s)
{
    unsigned n = 0;
    for (unsigned i = 0, k; i < s->n; i = k) {
        for (k = i + 1; k < s->n && s->one[k].addr == s->one[i].addr + (k - i);)
            k++;
        s->run[n++] = (struct vread){ .addr = s->one[i].addr, .units = k - i, .buf = s->buf + (size_t)i * VMFS_UNIT };
    }
    vdev_read_all(s->v, s->run, n);
    return n;
}

static int batch(struct scrub *s, uint64_t snap)
{
    unsigned n = batch_read(s), i = 0;
    int r = s->v->fenced ? -GR_EFENCED : 0;
    for (unsigned b = 0; r == 0 && b < n; b++)
        for (unsigned k = 0; r == 0 && k < s->run[b].units; k++, i++) {
            const uint8_t *data = s->buf + (size_t)i * VMFS_UNIT;
            if (s->run[b].status < 0 || (vcrc_kept(s->v) && gr_crc32c(0, data, VMFS_PIECE) != s->one[i].crc))
                r = piece_bad(s, snap, &s->one[i]);
        }
    s->now.bytes += (uint64_t)s->n * VMFS_PIECE;
    s->here += (uint64_t)s->n * VMFS_PIECE;
    s->slice_bytes += (uint64_t)s->n * VMFS_PIECE;
    s->n = 0;
    return r;
}

/* ---- a slice ---- */
static bool slice_full(const struct scrub *s)
{
    uint64_t bytes = s->o->rate ? GR_MIN(SLICE_BYTES, GR_MAX(s->o->rate / 4, (uint64_t)BATCH * VMFS_PIECE)) : SLICE_BYTES;
    return s->slice_bytes >= bytes || s->slice_leaves >= SLICE_LEAVES;
}

/* [sync] From the leaf with @piece: what is to be read. The piece behind. */
static uint64_t gather(struct scrub *s, const struct mnode *leaf, uint64_t piece, uint64_t since)
{
    uint64_t end = (piece / VMFS_LEAF_PIECES + 1) * VMFS_LEAF_PIECES;
    for (; leaf && piece < end && s->n < BATCH; piece++) {
        struct mpiece m = ment_piece(&leaf->ent[piece % VMFS_LEAF_PIECES / VMFS_BLOCK_PIECES], (unsigned)(piece % VMFS_BLOCK_PIECES));
        uint64_t addr = m.state == VMFS_P_DATA && m.birth > since ? moved_addr(s->v, m.addr, 1, NULL) : 0;
        if (addr && !vdev_no_data(s->v, vmfs_addr_dev(addr)))
            s->one[s->n++] = (struct one){ piece, addr, m.crc };
    }
    return leaf ? piece : end;
}

/* A tree from the cursor on: 1 done, 0 the slice is full. A node that cannot be read was told by the check. */
static int tree_read_on(struct scrub *s, struct vobj *o, struct mtree *t, uint64_t since)
{
    while (!slice_full(s)) {
        struct mnode *leaf;
        uint64_t piece = s->now.piece;
        int r = mtree_next(o, t, piece, since, &piece, NULL);
        if (r < 0 || piece == UINT64_MAX)
            return r == -ENOMEM || r == -GR_EFENCED ? r : 1;
        r = mtree_load(o, t, piece, NULL);
        if (r == -ENOMEM || r == -GR_EFENCED)
            return r;
        if (r == 0 && mtree_peek(t, piece, &leaf) < 0)
            continue;
        s->slice_leaves += piece % VMFS_LEAF_PIECES == 0;
        s->now.piece = gather(s, r == 0 ? leaf : NULL, piece, since);
        if (s->n && (r = batch(s, s->now.snapshot)) < 0)
            return r;
    }
    return 0;
}

/* The trees of an object from the cursor on, oldest first. */
static int trees_read_on(struct scrub *s, struct vobj *o)
{
    for (size_t i = 0; i < o->n_snaps; i++) {
        struct vsnap *p = o->snaps[i];
        if (p->id < s->now.snapshot)
            continue;
        if (p->id > s->now.snapshot)
            s->now.piece = 0;
        s->now.snapshot = p->id;
        s->now.piece = GR_MAX(s->now.piece, p->flags & VMFS_SNAP_DELETING ? p->cursor : 0);
        int r = s->now.piece == UINT64_MAX ? 1 : tree_read_on(s, o, &p->tree, read_since(o, p->parent));
        if (r != 1)
            return r;
        s->now.snapshot++;
        s->now.piece = 0;
    }
    uint64_t since = read_since(o, o->parent_snap);
    if (s->now.snapshot != LIVE) {
        s->now.snapshot = LIVE;
        s->now.piece = 0;
        s->live_since = since;
    }
    return tree_read_on(s, o, &o->live, GR_MIN(since, s->live_since)); /* a snapshot that was taken meanwhile has not been read */
}

/* 1: the object is done; 0: there is more. */
static int slice(struct scrub *s)
{
    struct vmfs *v = s->v;
    struct vticket ticket;
    struct vobj *o = NULL;
    s->slice_bytes = s->slice_leaves = 0;
    ticket_open(v, &ticket);
    int r = view_open(v, s->object, &o, NULL);
    if (r < 0)
        r = r == -ENOMEM || r == -GR_EFENCED ? r : 1; /* gone, or told by the check */
    else
        r = trees_read_on(s, o);
    vobj_free(o);
    ticket_close(v, &ticket);
    space_reclaim(v);
    return r;
}

/* ---- all of them ---- */
/* The id of the object in entry @index; 0: none that has data. *ret_used: bytes it holds. */
static int object_at(struct vmfs *v, uint32_t index, uint64_t *ret_id, uint64_t *ret_used)
{
    uint8_t *block = vunits_alloc(1);
    struct vinode i;
    int r = block ? vhome_read(v, &v->sb.inodes, index, 0, VMFS_T_INODE, block, NULL) : -ENOMEM;
    *ret_id = *ret_used = 0;
    if (r == 0 && vinode_decode(&v->sb, block, vhome_addr(&v->sb.inodes, index, 0, 0), &i, NULL) == 0 && (i.type == VMFS_DISK || i.type == VMFS_FILE)) {
        *ret_id = i.id;
        *ret_used = i.used_units * VMFS_UNIT;
    }
    free(block);
    return r == -ENOMEM || r == -GR_EFENCED ? r : 0; /* a block that is damaged was told by the check */
}

/* How far it is, and its result, for whoever goes on or asks. Not while the list of devices changes: they are the same blocks. */
static int save(struct scrub *s, struct gr_err *err)
{
    struct vmfs *v = s->v;
    struct vobj *root;
    s->saved_ns = gr_loop_now_ns(v->loop);
    for (unsigned d = 0; d < v->sb.n_devices; d++)
        if (vdev_missing(v, d))
            return 0;
    gr_fmutex_lock(&v->member_lock);
    int r = ns_begin_bare(v, &root, err);
    if (r == 0) {
        r = vmfs_refresh(v, err);
        struct vsuper n = v->sb;
        n.generation++;
        n.scrub = s->now;
        if (r == 0 && !v->sp.evac && (r = vsuper_write_all(v, &n, err)) == 0)
            vsuper_ours(v, &n);
        r = ns_end(v, r, err);
        r = r == -EAGAIN ? 0 : r; /* another host wrote it meanwhile: the next time */
    }
    gr_fmutex_unlock(&v->member_lock);
    return r;
}

/* Between two slices: tell, save, and wait for as long as the rate says. Not 0: stop. */
static int pause_between(struct scrub *s, struct gr_err *err)
{
    struct vmfs *v = s->v;
    for (;;) {
        int r = s->o->progress ? s->o->progress(s->o->arg, GR_MIN(s->now.bytes, s->all), s->all, err) : 0;
        uint64_t now = gr_loop_now_ns(v->loop), due = s->o->rate ? s->started_ns + (uint64_t)((double)s->here / (double)s->o->rate * 1e9) : 0;
        if (r == 0 && now - s->saved_ns > SAVE_NS)
            r = save(s, err);
        if (r != 0 || due <= now)
            return r;
        gr_fiber_sleep_ms(GR_MIN((due - now) / 1000000 + 1, (uint64_t)WAIT_MS));
    }
}

static int data_read(struct scrub *s, struct gr_err *err)
{
    struct vmfs *v = s->v;
    int r = 0;
    for (uint32_t i = 0; r == 0 && i < v->sb.inodes.entries; i++) {
        uint64_t id, used;
        r = object_at(v, i, &id, &used);
        s->all += used;
    }
    if (r == 0)
        r = pause_between(s, err);
    while (r == 0 && s->now.object < v->sb.inodes.entries) {
        uint64_t used;
        if ((r = object_at(v, (uint32_t)s->now.object, &s->object, &used)) == 0)
            r = s->object ? slice(s) : 1;
        if (r == 1) {
            s->now.object++;
            s->now.snapshot = s->now.piece = 0;
            r = 0;
        }
        if (r == 0 && s->object)
            r = pause_between(s, err);
    }
    return r;
}

static int metadata_read(struct scrub *s, struct gr_err *err)
{
    struct vmfs_check_report rep = { 0 };
    struct gr_err why = { 0 };
    int r = vmfs_check(s->v, s->o->line, s->o->arg, &rep, &why);
    s->now.errors = rep.errors;
    s->rep->repaired = rep.repaired;
    s->rep->metadata = rep.read;
    s->here += rep.read; /* the look is of one instant, and what is freed meanwhile waits for it: so data pays for it, at the rate */
    return r < 0 && !rep.errors ? gr_fail(err, r, "%s", why.text) : 0;
}

static int scrub(struct scrub *s, struct gr_err *err)
{
    struct vmfs *v = s->v;
    const struct gr_world *w = gr_loop_world(v->loop);
    s->started_ns = s->saved_ns = gr_loop_now_ns(v->loop);
    s->rep->resumed = !s->o->restart && v->sb.scrub.started_s && !v->sb.scrub.ended_s;
    s->now = s->rep->resumed ? v->sb.scrub : (struct vscrub){ .started_s = (uint64_t)w->wall_s(w->arg) };
    int r = metadata_read(s, err);
    if (r == 0)
        r = data_read(s, err);
    if (r == 0)
        s->now.ended_s = (uint64_t)w->wall_s(w->arg);
    if (r != -GR_EFENCED && r != -ENOMEM) {
        struct gr_err why = { 0 };
        int saved = save(s, &why);
        if (r == 0 && saved < 0)
            r = gr_fail(err, saved, "%s", why.text);
    }
    s->rep->bytes = s->now.bytes;
    s->rep->bad_pieces = s->now.bad_pieces;
    s->rep->errors = s->now.errors;
    if (r < 0)
        return err && err->code ? r : gr_fail(err, r, "datastore '%s' cannot be scrubbed: %s", v->sb.name, v->fenced ? v->fence_reason : gr_code_text(r));
    if (s->now.bad_pieces || s->now.errors)
        return gr_fail(err, -GR_ECORRUPT, "datastore '%s': %llu pieces of data and %llu rules of its metadata are broken", v->sb.name,
                       (unsigned long long)s->now.bad_pieces, (unsigned long long)s->now.errors);
    return 0;
}

int vmfs_scrub(struct vmfs *v, const struct vmfs_scrub_opts *opts, struct vmfs_scrub_report *ret, struct gr_err *err)
{
    if (v->role != VMFS_HOST)
        return gr_fail(err, -GR_EREADONLY, "this host joined datastore '%s' for reading only: only a host can scrub it", v->sb.name);
    if (v->rescue)
        return vrescue_refuse(v, err);
    if (v->scrubbing)
        return gr_fail(err, -EBUSY, "datastore '%s' is being scrubbed here already", v->sb.name);
    struct scrub *s = gr_zalloc(sizeof *s);
    uint8_t *buf = s ? vunits_alloc(BATCH) : NULL;
    int r = -ENOMEM;
    *ret = (struct vmfs_scrub_report){ 0 };
    if (buf) {
        *s = (struct scrub){ .v = v, .o = opts, .rep = ret, .buf = buf };
        v->scrubbing = true;
        r = scrub(s, err);
        v->scrubbing = false;
    } else {
        gr_fail(err, r, "out of memory");
    }
    free(buf);
    free(s);
    return r;
}
