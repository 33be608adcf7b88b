/* Defragmenting: what random writes between snapshots left in splinters is put one behind the other again, while the disk is in use.
 *
 * Only where a piece lies changes. Its birth stays, and with it what counts as changed, which data key it has (and so its bytes on the device, for
 * the cipher goes by its place in the disk), and whether it may be overwritten where it lies. Only what the live head alone has is moved: what a
 * snapshot, a clone or a copy has, too, would have to change in all of them at once, so it stays where it is.
 *
 * A window is copied without holding anybody up; a write admitted there meanwhile is seen (struct vwatch) and wins. Then the window is admitted like
 * a write, what it has is held against what was copied, and ordinary map records name the new places. They carry the CRC of each piece, so a
 * replay believes none whose copy did not reach the device, and what lay at the old place is free when the record is durable and all
 * have ended who may read there: as with any write. */
#include "common/seam.h"
#include "vmfs/loss.h"
#include "vmfs/pace.h"

#define WINDOW 256u              /* pieces: 1 MiB, within one leaf */
#define GAIN 4u                  /* runs that a window must have more than it needs, or moving it is not worth it */
#define TRIES 3u                 /* of a window that is written meanwhile */
#define COMMIT_BYTES (16ull << 20) /* what was let go of can be used again after so much */
#define BUSY_SHARE 4u            /* then the pass waits so many times as long as it took */
#define WAIT_MS 100u
#define NOWHERE (1ull << 63)     /* places that are still to be taken count from here */

struct place {
    uint64_t addr, birth, to;
    uint32_t crc; /* of the copy */
    enum vmfs_piece_state state;
    bool moves, bad; /* bad: not what it was; its place stays reserved until the write of the window has ended */
};
struct last { /* the last piece that lies anywhere */
    uint64_t piece, addr; /* addr 0: none yet */
};
struct defrag {
    struct vmfs_disk *d;
    struct vobj *o;
    struct vmfs *v;
    const struct vmfs_defrag_opts *opts;
    struct vmfs_defrag_report *rep;
    struct last was, now; /* before this pass, and behind it */
    uint64_t all;         /* bytes to look at */
    uint64_t began_ns, uncommitted;
    struct vpace pace;
    struct vwatch watch;
    uint64_t first;       /* the window */
    uint32_t n, n_moves;
    struct place p[WINDOW];
    uint64_t base;        /* where its pieces go to */
    struct vread run[WINDOW];
    uint8_t *buf;
};

static int usable(const struct defrag *g, struct gr_err *err)
{
    if (g->d->gone || g->d->o != g->o || g->v->fenced)
        return gr_fail(err, -GR_EFENCED, "it is no longer ours");
    return g->v->leaving ? gr_fail(err, -GR_ECANCELED, "this host leaves the datastore") : 0;
}

/* ---- looking ---- */
/* [sync] Nobody but the live head has it, and it is here. */
static bool alone(struct vobj *o, const struct mpiece *m)
{
    if (m->state == VMFS_P_HOLE || vdev_no_data(o->v, vmfs_addr_dev(m->addr)))
        return false;
    if (frozen_since(o, m->birth) || (o->origin_object && m->birth <= o->origin_epoch))
        return false;
    int shared = space_shared(o->v, m->addr);
    return shared == 0 || (shared == -EAGAIN && !o->copied);
}

/* Can they be read in one go, with what lies between them in the disk or without? */
static bool behind(const struct last *l, uint64_t piece, uint64_t addr)
{
    return l->addr && addr > l->addr && addr - l->addr <= piece - l->piece;
}

/* Runs of the window, the one at its beginning not counted when it goes on from @l, which moves on. @moved: as they would lie. */
static unsigned runs_of(const struct defrag *g, bool moved, struct last *l)
{
    unsigned n = 0;
    for (uint32_t i = 0; i < g->n; i++) {
        const struct place *p = &g->p[i];
        if (p->state == VMFS_P_HOLE)
            continue;
        uint64_t at = moved && p->moves ? p->to : p->addr;
        n += !behind(l, g->first + i, at);
        *l = (struct last){ g->first + i, at };
    }
    return n;
}

/* [sync] Pieces [first, first+n) of a leaf, where they lie and which may move: densely, in their order. */
static int look(struct defrag *g, uint64_t first, uint32_t n)
{
    struct mnode *leaf;
    if (mtree_peek(&g->o->live, first, &leaf) < 0)
        return -EAGAIN;
    g->first = first;
    g->n = n;
    g->n_moves = 0;
    for (uint32_t i = 0; i < n; i++) {
        struct mpiece m = { .state = VMFS_P_HOLE };
        if (leaf)
            m = ment_piece(&leaf->ent[(first + i) % VMFS_LEAF_PIECES / VMFS_BLOCK_PIECES], (unsigned)((first + i) % VMFS_BLOCK_PIECES));
        g->p[i] = (struct place){ .addr = m.addr, .birth = m.birth, .crc = m.crc, .state = m.state, .moves = alone(g->o, &m) };
        if (g->p[i].moves)
            g->p[i].to = NOWHERE + g->n_moves++;
    }
    return 0;
}

/* [sync] How many runs less there would be. */
static unsigned gain(const struct defrag *g)
{
    struct last was = { 0 }, now = { 0 };
    unsigned before = runs_of(g, false, &was), after = runs_of(g, true, &now);
    return before - GR_MIN(before, after);
}

/* ---- room ---- */
static int no_room(const struct defrag *g, struct gr_err *err)
{
    const struct vmfs *v = g->v;
    return gr_fail(err, -GR_ENOSPACE,
                   "it needs %u KiB for the moment, and datastore '%s' has %llu MiB free, of which %llu MiB are kept back: make room first",
                   g->n_moves * (VMFS_PIECE >> 10), v->sb.name, (unsigned long long)(space_free_units(v) * VMFS_UNIT >> 20),
                   (unsigned long long)((space_meta_reserve(v) + v->reserved_units) * VMFS_UNIT >> 20));
}

/* [sync] What was promised stays free beside @n units: what was let go of is not yet. */
static bool beside_promises(const struct vmfs *v, uint32_t n)
{
    return !v->reserved_units || space_free_here(v) + v->sp.pool_units >= n + space_meta_reserve(v) + v->reserved_units;
}

/* A run of @n units, reserved. 1: there is none so long; it takes nothing of what is kept back for anybody. */
static int take(struct defrag *g, uint32_t n, uint64_t *ret, struct gr_err *err)
{
    struct vmfs *v = g->v;
    uint64_t epoch = g->o->epoch;
    int r = space_free_units(v) < n + space_meta_reserve(v) + v->reserved_units ? -GR_ENOSPACE : disk_room(g->o, n, epoch);
    if (r == -GR_ENOSPACE && epoch != g->o->epoch)
        return -EAGAIN; /* a snapshot came: it was not asked again */
    for (unsigned tries = 0; r == 0; tries++) {
        uint32_t got = 0;
        uint64_t addr = beside_promises(v, n) ? space_take_run(v, n, &got) : 0;
        if (addr && got == n) {
            *ret = addr;
            return 0;
        }
        if (addr)
            space_unreserve(v, addr, got);
        if (tries || space_lease_any(v, NULL) < 0) /* not all that other hosts may need */
            return v->fenced ? -GR_EFENCED : 1;
    }
    return r == -GR_ENOSPACE ? no_room(g, err) : gr_fail(err, r, "no room can be made: %s", gr_code_text(r));
}

/* ---- copying ---- */
/* [sync] It stays where it is. */
static void keep(struct defrag *g, struct place *p)
{
    p->moves = false;
    space_unreserve(g->v, p->to, 1);
}

static uint8_t *bytes_of(const struct defrag *g, const struct place *p)
{
    return g->buf + (p->to - g->base) * VMFS_UNIT;
}

static bool copies(const struct place *p)
{
    return p->moves && p->state == VMFS_P_DATA;
}

/* The data, as it lies on the device, to where it is written from. What has none is zeros there. *ret_bad: bytes that are not what they were. */
static int read_pieces(struct defrag *g, uint64_t *ret_bad)
{
    unsigned n = 0;
    int r = 0;
    memset(g->buf, 0, (size_t)g->n_moves * VMFS_UNIT);
    for (uint32_t i = 0; i < g->n; i++) {
        const struct place *p = &g->p[i];
        struct vread *last = n ? &g->run[n - 1] : NULL;
        if (!copies(p))
            continue;
        if (last && last->addr + last->units == p->addr && (uint8_t *)last->buf + (size_t)last->units * VMFS_UNIT == bytes_of(g, p))
            last->units++;
        else
            g->run[n++] = (struct vread){ .addr = p->addr, .units = 1, .buf = bytes_of(g, p) };
    }
    vdev_read_all(g->v, g->run, n);
    for (uint32_t i = 0, k = 0; i < g->n; i++) {
        struct place *p = &g->p[i];
        if (!copies(p))
            continue;
        while (bytes_of(g, p) >= (uint8_t *)g->run[k].buf + (size_t)g->run[k].units * VMFS_UNIT)
            k++;
        uint32_t crc = gr_crc32c(0, bytes_of(g, p), VMFS_UNIT);
        int status = g->run[k].status;
        if (status == -ENOMEM || status == -GR_EFENCED)
            r = status;
        if (status < 0 || (vcrc_kept(g->v) && crc != p->crc)) {
            p->bad = true;
            *ret_bad += VMFS_PIECE;
        }
        p->crc = crc;
    }
    return r;
}

static int write_pieces(struct defrag *g)
{
    struct vmfs *v = g->v;
    unsigned dev = vmfs_addr_dev(g->base);
    int r = v->fenced ? -GR_EFENCED : 0;
    if (r == 0)
        r = gr_pwrite(v->dev[dev].ch, g->buf, (size_t)g->n_moves * VMFS_UNIT, vmfs_addr_unit(g->base) * VMFS_UNIT, 0);
    journal_data_written(g->o, 0); /* nobody was told that it is there: a device that is lost takes nothing of anybody's with it */
    return r < 0 ? vloss_look(v, (uint32_t)1 << dev, r) : 0;
}

/* ---- moving ---- */
/* [sync] As it was copied, and still nobody else's. */
static bool same(struct defrag *g, uint32_t i, struct mnode *leaf)
{
    const struct place *p = &g->p[i];
    uint64_t piece = g->first + i;
    struct mpiece m = { .state = VMFS_P_HOLE };
    if (leaf)
        m = ment_piece(&leaf->ent[piece % VMFS_LEAF_PIECES / VMFS_BLOCK_PIECES], (unsigned)(piece % VMFS_BLOCK_PIECES));
    return m.addr == p->addr && m.birth == p->birth && m.state == p->state && alone(g->o, &m);
}

/* [sync] One record: pieces from @i on that are alike. */
static int move_run(struct defrag *g, uint32_t i, uint32_t n)
{
    const struct place *p = &g->p[i];
    uint32_t crc[WINDOW];
    for (uint32_t k = 0; k < n; k++)
        crc[k] = p[k].crc;
    int r = record_map(g->o, g->first + i, n, p->to, p->birth, p->state, p->state == VMFS_P_DATA ? crc : NULL);
    if (r == 0) {
        g->rep->moved += (uint64_t)n * VMFS_PIECE;
        g->uncommitted += (uint64_t)n * VMFS_PIECE;
    }
    return r;
}

/* [sync] Admitted, and the path is in memory: what is as it was copied lies elsewhere from now on. */
static int move_pieces(struct defrag *g)
{
    struct mnode *leaf;
    int r = mtree_peek(&g->o->live, g->first, &leaf);
    for (uint32_t i = 0; i < g->n; i++)
        if (g->p[i].moves && (r < 0 || g->p[i].bad || g->watch.hit || !same(g, i, leaf)))
            keep(g, &g->p[i]);
    for (uint32_t i = 0, n; i < g->n; i += n) {
        const struct place *p = &g->p[i];
        n = 1;
        if (!p->moves)
            continue;
        while (i + n < g->n && p[n].moves && p[n].birth == p->birth && p[n].state == p->state && p[n].to == p->to + n)
            n++;
        if (r == 0)
            r = move_run(g, i, n);
        if (r < 0)
            space_unreserve(g->v, p->to, n);
    }
    return r;
}

static int publish(struct defrag *g)
{
    struct vobj *o = g->o;
    struct dpass pass;
    struct mnode *leaf;
    struct dop *op = disk_pass_begin(&pass, o, g->first, g->first + g->n, true);
    int r = op ? 0 : -ENOMEM;
    while (r == 0 && !g->v->fenced) {
        journal_room_for(op);
        r = mtree_load(o, &o->live, g->first, NULL);
        if (r == 0 && !disk_nodes_fit(o))
            r = -EAGAIN; /* others took the runs for what becomes dirty: whoever takes a place for the window waits for more, nobody waits for him */
        if (r == 0 && mtree_peek(&o->live, g->first, &leaf) == 0 && (journal_has_room(g->v) || dop_late(op)))
            break; /* a leaf in splinters is a record for each piece */
    }
    if (r == 0 && g->v->fenced)
        r = -GR_EFENCED;
    g->watch.hit |= r < 0; /* then all of it stays where it is */
    int moved = move_pieces(g);
    if (op)
        disk_op_end(op, 0);
    return r < 0 ? r : moved;
}

/* Look once more, behind all writes that were admitted, and see from then on to those that come. 1: there is nothing to gain any more, or more
 * than there is room for. */
static int watch(struct defrag *g, uint64_t first, uint32_t n, uint32_t room)
{
    struct vobj *o = g->o;
    struct dpass pass;
    struct dop *op = disk_pass_begin(&pass, o, first, first + n, true);
    int r = op ? -EAGAIN : -ENOMEM;
    while (r == -EAGAIN && (r = g->v->fenced ? -GR_EFENCED : mtree_load(o, &o->live, first, NULL)) == 0)
        r = look(g, first, n);
    g->watch = (struct vwatch){ first, first + n, false };
    o->watch = &g->watch;
    if (op)
        disk_op_end(op, 0);
    return r < 0 ? r : g->n_moves > room || gain(g) < GAIN;
}

/* Copy the window and move it, to @room units reserved at g->base. 1: it stays as it is. */
static int window_copy(struct defrag *g, uint64_t first, uint32_t n, uint32_t room)
{
    struct vticket ticket;
    uint64_t bad = 0;
    ticket_open(g->v, &ticket); /* where its pieces lie nobody else's will lie before we are through */
    int r = watch(g, first, n, room);
    uint32_t used = r == 0 ? g->n_moves : 0;
    space_unreserve(g->v, g->base + used, room - used);
    for (uint32_t i = 0; r == 0 && i < n; i++)
        g->p[i].to = g->p[i].moves ? g->base + (g->p[i].to - NOWHERE) : 0;
    if (r == 0) {
        r = read_pieces(g, &bad); /* nothing has suspended since they were looked at */
        r = r < 0 ? r : write_pieces(g);
        g->watch.hit |= r < 0;
        int moved = publish(g);
        r = r < 0 ? r : moved;
    }
    g->o->watch = NULL;
    ticket_close(g->v, &ticket);
    if (r == 0 && !g->watch.hit)
        g->rep->bad += bad;
    return r != 0 ? r : g->watch.hit;
}

static uint64_t owned(const struct defrag *g)
{
    uint64_t n = 0;
    for (uint32_t i = 0; i < g->n; i++)
        n += g->p[i].state != VMFS_P_HOLE;
    return n * VMFS_PIECE;
}

static int look_at(struct defrag *g, uint64_t first, uint32_t n, struct gr_err *err)
{
    int r;
    while ((r = look(g, first, n)) == -EAGAIN)
        if ((r = mtree_load(g->o, &g->o->live, first, err)) < 0)
            return r;
    return r;
}

/* What was let go of can be used again. */
static int commit(struct defrag *g, struct gr_err *err)
{
    int r = g->uncommitted ? journal_commit(g->v) : 0;
    g->uncommitted = 0;
    return r < 0 ? gr_fail(err, r, "it is not durable: %s", g->v->fence_reason) : 0;
}

/* The window, or where no run of free space is so long, its halves. */
static int window_move(struct defrag *g, uint64_t first, uint32_t n, struct gr_err *err)
{
    int r = 0;
    for (unsigned tries = 0; r == 0; tries++) {
        if ((r = usable(g, err)) < 0 || (r = look_at(g, first, n, err)) < 0)
            return r;
        uint32_t room = g->n_moves;
        if (gain(g) < GAIN)
            return 0;
        journal_room(g->v);
        r = take(g, room, &g->base, err);
        if (r == 1 && g->uncommitted) { /* of what was let go of there may be one */
            if ((r = commit(g, err)) == 0)
                r = take(g, room, &g->base, err);
        }
        if (r == 1 && n > VMFS_BLOCK_PIECES) {
            r = window_move(g, first, n / 2, err);
            return r < 0 ? r : window_move(g, first + n / 2, n - n / 2, err);
        }
        if (r == 1) {
            g->rep->splinters += owned(g);
            return 0;
        }
        if (r == 0 && (r = window_copy(g, first, n, room)) == 0)
            return 0;
        if (r < 0 && r != -EAGAIN)
            return err->code ? r : gr_fail(err, r, "its pieces cannot be moved: %s", gr_code_text(r));
        if (tries + 1 == TRIES) {
            g->rep->busy += owned(g);
            return 0;
        }
        r = 0;
    }
    return r;
}

/* ---- all of it ---- */
/* Behind a window that was moved in @took_ns (0: it was not): tell, and wait as long as the rate says, and longer while users are at work. */
static int pause_between(struct defrag *g, uint64_t took_ns, struct gr_err *err)
{
    struct gr_loop *loop = g->v->loop;
    const struct vmfs_defrag_opts *x = g->opts;
    uint64_t now = gr_loop_now_ns(loop), due = x->rate ? g->began_ns + (uint64_t)((double)g->rep->moved / (double)x->rate * 1e9) : 0;
    if (vpace_busy(g->v, &g->pace))
        due = GR_MAX(due, now + BUSY_SHARE * took_ns);
    gr_fiber_yield();
    for (;;) {
        int r = usable(g, err);
        if (r == 0 && x->progress)
            r = x->progress(x->arg, GR_MIN(g->rep->bytes, g->all), g->all, err);
        now = gr_loop_now_ns(loop);
        if (r != 0 || now >= due)
            return r;
        gr_fiber_sleep_ms((unsigned)GR_MIN((due - now) / 1000000 + 1, (uint64_t)WAIT_MS));
    }
}

/* One window: counted as it was, moved where that is worth it, and counted again. */
static int window_do(struct defrag *g, uint64_t first, uint32_t n, struct gr_err *err)
{
    int r = look_at(g, first, n, err);
    if (r < 0)
        return r;
    struct vmfs_defrag_report *rep = g->rep;
    bool worth = gain(g) >= GAIN;
    rep->bytes += owned(g);
    rep->runs_before += runs_of(g, false, &g->was);
    for (uint32_t i = 0; i < n; i++)
        rep->shared += g->p[i].state != VMFS_P_HOLE && !g->p[i].moves ? VMFS_PIECE : 0;
    if (worth && g->opts->dry_run)
        rep->moved += (uint64_t)g->n_moves * VMFS_PIECE;
    else if (worth && (r = window_move(g, first, n, err)) == 0)
        r = look_at(g, first, n, err);
    rep->runs += runs_of(g, worth && g->opts->dry_run, &g->now);
    return r;
}

static int pass(struct defrag *g, struct gr_err *err)
{
    struct vobj *o = g->o;
    int r = 0;
    for (uint64_t piece = 0; r == 0;) {
        r = mtree_next(o, &o->live, piece, 0, &piece, err);
        if (r < 0 || piece == UINT64_MAX)
            break;
        uint64_t first = piece - piece % WINDOW, moved = g->rep->moved, began = gr_loop_now_ns(g->v->loop);
        r = window_do(g, first, WINDOW, err);
        if (r == 0 && g->uncommitted >= COMMIT_BYTES)
            r = commit(g, err);
        if (r == 0)
            r = pause_between(g, moved == g->rep->moved ? 0 : gr_loop_now_ns(g->v->loop) - began, err);
        piece = first + WINDOW;
    }
    int e = r == -GR_EFENCED ? 0 : commit(g, r == 0 ? err : NULL);
    return r < 0 ? r : e;
}

static int refused(const struct vmfs_disk *d, struct gr_err *err)
{
    const struct vobj *o = d->o;
    if (!o || d->gone || o->v->fenced)
        return gr_fail(err, -GR_EFENCED, "it is no longer ours");
    if (o->ino.type != VMFS_DISK)
        return gr_fail(err, -EINVAL, "it is a file, not a disk");
    if (o->lost)
        return gr_fail(err, -EIO, "writes of it were lost with a device, and nobody has accepted that yet");
    return o->defragmenting ? gr_fail(err, -EBUSY, "it is being defragmented already") : 0;
}

int vmfs_defragment(struct vmfs_disk *d, const struct vmfs_defrag_opts *opts, struct vmfs_defrag_report *ret, struct gr_err *err)
{
    struct gr_err scratch = { 0 };
    *ret = (struct vmfs_defrag_report){ 0 };
    err = err ? err : &scratch;
    int r = refused(d, err);
    struct defrag *g = r == 0 ? gr_zalloc(sizeof *g) : NULL;
    uint8_t *buf = g ? vunits_alloc(WINDOW) : NULL;
    if (buf) {
        struct vobj *o = d->o;
        struct vmfs *v = o->v;
        *g = (struct defrag){ .d = d, .o = o, .v = v, .opts = opts, .rep = ret, .buf = buf };
        g->all = (o->counted ? o->use.used : o->ino.used_units) * VMFS_PIECE;
        g->began_ns = gr_loop_now_ns(v->loop);
        vpace_begin(v, &g->pace);
        o->defragmenting = true;
        v->background++; /* nobody leaves the volume meanwhile */
        r = pass(g, err);
        o->defragmenting = false;
        if (--v->background == 0)
            gr_fqueue_wake_all(&v->background_q);
    } else if (r == 0) {
        r = gr_fail(err, -ENOMEM, "out of memory");
    }
    free(buf);
    free(g);
    return r < 0 ? gr_prefix(err, r, "'%s'", d->bdev.name) : r;
}
