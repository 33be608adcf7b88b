/* Giving back what only a deleted snapshot needed.
 *
 * The snapshot's tree is walked beside the trees that grew from it (its successors), and pruned where a subtree is not newer
 * than the snapshot before it, or is the very same node in a successor. A unit goes free when it was born after the snapshot
 * before, and no successor has it at the same place. The cursor moves with every record, because overwrites of the live head
 * ask it who is responsible for a unit (held_by_ancestors): behind the cursor they are, before it this walk is. */
#include "common/seam.h"
#include "vmfs/broken.h"
#include "vmfs/internal.h"
#include "vmfs/notes.h"
#include "vmfs/pace.h"

#define REAP_RUNS 4096u
#define SUCC_MAX 64u
struct reap {
    struct vobj *o;
    struct vsnap *s;
    uint64_t prev_epoch, before_prev; /* epochs at which the times of the snapshot and of its parent begin */
    struct reap_counts {              /* for the record, vmfs/usage.h */
        bool on, passes;              /* there is one successor; and a parent, of whose own it may have lost some */
        uint64_t units, passed;
        struct mtree *tree[SUCC_MAX]; /* that grew from the successor */
        uint64_t snap[SUCC_MAX], lost[SUCC_MAX];
        unsigned n;
    } k;
    struct mtree *succ[SUCC_MAX];
    unsigned n_succ;
    uint64_t cursor;
    struct vmfs_rec_free_disk *rec;
    uint32_t n_runs;
    bool unsure; /* the next leaf has changes that a replay might doubt */
    uint32_t shape; /* o->shape when these trees were found */
};
#define REST_SHARE 5u /* while users are at work the walk rests so many times as long as it took */

static void free_run(struct reap *w, uint64_t addr, uint32_t units)
{
    struct vmfs_run_disk *last = w->n_runs ? &w->rec->runs[w->n_runs - 1] : NULL;
    if (last && gr_le64_get(last->addr) + gr_le64_get(last->units) == addr)
        last->units = gr_le64_of(gr_le64_get(last->units) + units);
    else
        w->rec->runs[w->n_runs++] = (struct vmfs_run_disk){ gr_le64_of(addr), gr_le64_of(units) };
}

static size_t counts_put(struct reap_counts *k, struct vmfs_rec_counts_disk *d)
{
    uint32_t n = 0;
    for (unsigned i = 0; i < k->n; i++) {
        if (k->lost[i])
            d->lost[n++] = (struct vmfs_rec_lost_disk){ gr_le64_of(k->snap[i]), gr_le64_of(k->lost[i]) };
        k->lost[i] = 0;
    }
    d->units = gr_le64_of(k->units);
    d->passed = gr_le64_of(k->passed);
    d->n_lost = gr_le32_of(n);
    d->reserved = gr_le32_of(0);
    k->units = k->passed = 0;
    return sizeof *d + n * sizeof d->lost[0];
}

static int move_cursor(struct reap *w)
{
    struct vmfs_rec_free_disk *d = w->rec;
    if (w->cursor == w->s->cursor && !w->n_runs)
        return 0;
    size_t len = sizeof *d + w->n_runs * sizeof d->runs[0];
    memset(&d->r, 0, sizeof d->r);
    d->r.type = gr_le16_of(VMFS_R_SNAP_FREE);
    if (w->o->counted && w->k.on) {
        d->r.flags = gr_le16_of(VMFS_RF_COUNTED);
        len += counts_put(&w->k, (void *)(d->runs + w->n_runs));
    }
    d->id = gr_le64_of(w->s->id);
    d->cursor = gr_le64_of(w->cursor);
    d->n_runs = gr_le32_of(w->n_runs);
    d->reserved = gr_le32_of(0);
    int r = record_do(w->o, d, len, NULL);
    w->n_runs = 0;
    return r;
}

enum step { STEP_SKIP, STEP_DOWN, STEP_LOAD };

/* Has a tree that grew from the successor, of which @d is the node, one of its own there, perhaps with changes? */
static enum step look_further(struct reap *w, unsigned level, const struct mchild *d, struct mtree **ret_tree)
{
    bool absent;
    for (unsigned i = 0; i < w->k.n; i++) {
        struct mchild *e = mtree_slot(w->k.tree[i], level, w->cursor, &absent);
        if (!e && !absent) {
            *ret_tree = w->k.tree[i];
            return STEP_LOAD;
        }
        if (!e || !slot_same(d, e))
            return STEP_DOWN;
    }
    return STEP_SKIP;
}

/* What to do with the snapshot's node of @level at the cursor. *ret_tree: which tree misses the path (STEP_LOAD). */
static enum step look(struct reap *w, unsigned level, struct mtree **ret_tree)
{
    bool absent;
    struct mchild *c = mtree_slot(&w->s->tree, level, w->cursor, &absent);
    if (absent)
        return STEP_SKIP;
    if (!c) {
        *ret_tree = &w->s->tree;
        return STEP_LOAD;
    }
    if (slot_empty(c) || slot_birth(c) <= (w->k.passes ? w->before_prev : w->prev_epoch))
        return STEP_SKIP;
    bool young = slot_birth(c) > w->prev_epoch, changed = false; /* in the successor */
    for (unsigned k = 0; k < w->n_succ; k++) {
        struct mchild *d = mtree_slot(w->succ[k], level, w->cursor, &absent);
        if (!d && !absent) {
            *ret_tree = w->succ[k];
            return STEP_LOAD;
        }
        if (d && slot_same(c, d))
            return young && w->k.on ? look_further(w, level, d, ret_tree) : STEP_SKIP;
        changed |= !d || slot_empty(d) || slot_birth(d) > w->s->epoch;
    }
    return young || changed ? STEP_DOWN : STEP_SKIP;
}

/* Nodes of the snapshot that end at the cursor are done with: free them unless a successor still names them. */
static void free_finished(struct reap *w, unsigned from_level)
{
    uint64_t last = w->cursor - 1;
    for (unsigned level = from_level; level <= w->s->tree.level && w->cursor % mnode_span(level) == 0; level++) {
        bool absent, named = false;
        struct mchild *c = mtree_slot(&w->s->tree, level, last, &absent);
        if (!c || slot_empty(c) || slot_birth(c) <= w->prev_epoch || !slot_addr(c))
            continue;
        for (unsigned k = 0; k < w->n_succ; k++) {
            struct mchild *d = mtree_slot(w->succ[k], level, last, &absent);
            named |= d && slot_addr(d) == slot_addr(c);
        }
        if (!named)
            free_run(w, slot_addr(c), c->mem ? c->mem->ptr.units : c->ptr.units);
    }
}

/* The successor keeps piece @p of a leaf, and it is its own from now on. */
static void lost_further(struct reap *w, unsigned i, const struct mpiece *p, struct mnode *const *further)
{
    for (unsigned k = 0; k < w->k.n; k++) {
        struct mpiece q = { 0 };
        if (further[k])
            q = ment_piece(&further[k]->ent[i / VMFS_BLOCK_PIECES], i % VMFS_BLOCK_PIECES);
        w->k.lost[k] += q.state == VMFS_P_HOLE || q.addr != p->addr || q.birth != p->birth;
    }
}

static void free_pieces(struct reap *w, const struct mnode *leaf, struct mnode *const *others, unsigned n, struct mnode *const *further)
{
    for (unsigned i = 0; i < VMFS_LEAF_PIECES; i++) {
        unsigned b = i / VMFS_BLOCK_PIECES, at = i % VMFS_BLOCK_PIECES;
        struct mpiece p = ment_piece(&leaf->ent[b], at);
        bool old = p.birth <= w->prev_epoch, named = p.state == VMFS_P_HOLE || (old && !(w->k.passes && p.birth > w->before_prev));
        for (unsigned k = 0; !named && k < n && !VMFS_BROKEN(DELETED); k++) {
            struct mpiece q = { 0 };
            if (others[k])
                q = ment_piece(&others[k]->ent[b], at);
            named = q.state != VMFS_P_HOLE && q.addr == p.addr && q.birth == p.birth; /* else another owner of the same units */
        }
        if (!named && old) {
            w->k.passed++;
        } else if (!named && !VMFS_BROKEN(LEAKED)) {
            free_run(w, p.addr, 1);
            w->k.units++;
        } else if (p.state != VMFS_P_HOLE && !old) {
            lost_further(w, i, &p, further);
        }
    }
}

/* Has the leaf changes that are not durable? Replay may find their data missing and take them back; what such a change took
 * the place of must not be freed by a record that is believed. */
static bool not_durable(const struct vmfs *v, const struct mnode *leaf)
{
    for (unsigned i = 0; leaf && i < VMFS_FANOUT; i++)
        if (leaf->ent[i].seq > v->j.durable_seq)
            return true;
    return false;
}

/* The leaf at the cursor. 0 done, -EAGAIN: *ret_tree must be loaded. */
static int reap_leaf(struct reap *w, struct mtree **ret_tree)
{
    struct mnode *leaf, *others[SUCC_MAX], *further[SUCC_MAX];
    *ret_tree = &w->s->tree;
    if (mtree_peek(&w->s->tree, w->cursor, &leaf) < 0)
        return -EAGAIN;
    for (unsigned k = 0; k < w->n_succ; k++) {
        *ret_tree = w->succ[k];
        if (mtree_peek(w->succ[k], w->cursor, &others[k]) < 0)
            return -EAGAIN;
        w->unsure |= not_durable(w->o->v, others[k]);
    }
    for (unsigned k = 0; k < w->k.n; k++) {
        *ret_tree = w->k.tree[k];
        if (mtree_peek(w->k.tree[k], w->cursor, &further[k]) < 0)
            return -EAGAIN;
        w->unsure |= not_durable(w->o->v, further[k]);
    }
    w->unsure |= not_durable(w->o->v, leaf);
    if (w->unsure)
        return -EAGAIN;
    if (leaf)
        free_pieces(w, leaf, others, w->n_succ, further);
    w->cursor = (w->cursor / VMFS_LEAF_PIECES + 1) * VMFS_LEAF_PIECES;
    free_finished(w, 0);
    return 0;
}

/* Was the node of @t on the way to the cursor that is not in memory on a device that was replaced? Then there is no such node any more. */
static bool went_with_device(const struct reap *w, struct mtree *t)
{
    const struct vmfs *v = w->o->v;
    const struct mchild *c = NULL;
    bool absent;
    for (unsigned level = 0; !c && level <= t->level; level++)
        c = mtree_slot(t, level, w->cursor, &absent);
    uint64_t addr = c && !c->mem ? moved_addr(v, c->ptr.addr, 1, NULL) : 0;
    return addr && vdev_emptied(v, vmfs_addr_dev(addr));
}

/* One move: skips as far as it can, then one leaf. 0 moved; 1 finished; -ENODEV: it was to go on where nothing is any more. */
static int reap_step(struct reap *w)
{
    struct mtree *missing = NULL;
    uint64_t end = mnode_span(w->s->tree.level);
    unsigned level = w->s->tree.level;
    while (w->cursor < end) {
        enum step s = look(w, level, &missing);
        if (s == STEP_LOAD)
            break;
        if (s == STEP_SKIP) {
            w->cursor = (w->cursor / mnode_span(level) + 1) * mnode_span(level);
            free_finished(w, level + 1);
            level = w->s->tree.level;
            if (w->n_runs > GR_MIN(REAP_RUNS - 16, w->o->v->j.units / 16))
                return move_cursor(w);
            continue;
        }
        if (level == 0) {
            if (reap_leaf(w, &missing) == 0)
                return move_cursor(w);
            break;
        }
        level--;
    }
    int r = move_cursor(w); /* before anything can suspend */
    if (r < 0 || w->cursor >= end)
        return r < 0 ? r : 1;
    if (w->unsure)
        return 0;
    struct gr_err err = { 0 };
    r = mtree_load(w->o, missing, w->cursor, &err);
    if (r == -EIO && w->o->dying && went_with_device(w, missing))
        return -ENODEV;
    if (r < 0)
        vmfs_warn(w->o->v, "a deleted snapshot cannot be given back: %s", gr_err_text(&err, r));
    return r;
}

static void further_add(struct reap_counts *k, uint64_t snap, struct mtree *tree)
{
    if (k->n == SUCC_MAX) { /* too many to be counted on the way */
        k->on = k->passes = false;
        k->n = 0;
    }
    if (!k->on)
        return;
    k->snap[k->n] = snap;
    k->tree[k->n++] = tree;
}

/* With @next, a snapshot, as the successor, or 0: the live head, or none. */
static void counts_begin(struct reap *w, const struct vsnap *before, uint64_t next)
{
    struct vobj *o = w->o;
    memset(&w->k, 0, sizeof w->k);
    w->k.on = o->counted && w->n_succ < 2;
    w->k.passes = w->k.on && before && w->n_succ;
    if (next && o->parent_snap == next)
        further_add(&w->k, 0, &o->live);
    for (size_t i = 0; next && i < o->n_snaps; i++)
        if (o->snaps[i]->parent == next)
            further_add(&w->k, o->snaps[i]->id, &o->snaps[i]->tree);
}

static void successors(struct reap *w)
{
    struct vobj *o = w->o;
    struct vsnap *before = vobj_snap(o, w->s->parent);
    w->prev_epoch = usage_before(o, w->s);
    w->before_prev = before ? usage_before(o, before) : 0;
    uint64_t next = 0; /* id of the successor, when it is a snapshot */
    w->n_succ = 0;
    if (o->parent_snap == w->s->id)
        w->succ[w->n_succ++] = &o->live;
    for (size_t i = 0; i < o->n_snaps && w->n_succ < SUCC_MAX; i++)
        if (o->snaps[i]->parent == w->s->id) {
            w->succ[w->n_succ++] = &o->snaps[i]->tree;
            next = o->snaps[i]->id;
        }
    counts_begin(w, before, next);
}

/* Find the snapshot @id, and what grew from it: with a thousand snapshots a walk through as many places in memory, so only when something has changed.
 * False: it is gone. */
static bool look_around(struct reap *w, uint64_t id)
{
    if (w->s && w->shape == w->o->shape)
        return true;
    w->shape = w->o->shape;
    w->s = vobj_snap(w->o, id);
    if (w->s)
        successors(w);
    return w->s;
}

static int drop(struct vobj *o, uint64_t id)
{
    struct vmfs_rec_snap_disk d = { .id = gr_le64_of(id) };
    d.r.type = gr_le16_of(VMFS_R_SNAP_DROP);
    return record_do(o, &d, sizeof d, NULL);
}

/* Under a load that never pauses the disk is held for one flush. */
static int make_sure(struct reap *w, unsigned *tries)
{
    struct vobj *o = w->o;
    uint64_t id = w->s->id;
    bool hold = ++*tries > 16;
    if (hold)
        disk_freeze(o);
    int r = journal_commit(o->v);
    w->unsure = false;
    if (hold) {
        if (r == 0 && look_around(w, id) && !o->late) {
            w->cursor = w->s->cursor;
            r = reap_step(w);
        }
        disk_thaw(o);
        w->unsure = false;
    }
    return r;
}

/* What is freed may lie in any region: does the journal hold images of all? */
static bool holds_any(const struct vmfs *v)
{
    uint64_t all = v->sp.images_max + v->dirty_objects, due = ckpt_images_due(v);
    return journal_holds_images(v, (unsigned)(all - GR_MIN(due, all)));
}

/* Behind a step that began then. Nobody rests when somebody waits for the end. */
static void rest(struct vobj *o, struct vpace *pace, uint64_t began_ns)
{
    vpace_rest(o->v, pace, gr_loop_now_ns(o->v->loop) - began_ns, REST_SHARE, &o->settled);
}

static int reap_snapshot(struct vobj *o, uint64_t id, struct vpace *pace)
{
    unsigned tries = 0;
    struct reap w = { .o = o, .rec = gr_alloc(sizeof *w.rec + (REAP_RUNS + VMFS_LEAF_PIECES + 64 + 2 + SUCC_MAX) * sizeof w.rec->runs[0]) };
    int r = w.rec ? 0 : -ENOMEM;
    while (r == 0) {
        uint64_t began = gr_loop_now_ns(o->v->loop);
        if (!holds_any(o->v) && o->v->j.used + ckpt_images_due(o->v) > o->v->j.units / 4 && (r = ckpt_run(o->v)) < 0)
            break;
        journal_room(o->v); /* behind it: the images of that checkpoint are in the journal now */
        if (!look_around(&w, id) || o->v->fenced || o->v->leaving) {
            r = -ECANCELED;
            break;
        }
        if (o->late || (w.s->tree.root.mem && w.s->tree.root.mem->dirty)) { /* it must lie on disk, as it is */
            r = ckpt_run(o->v);
            rest(o, pace, began);
            continue;
        }
        w.cursor = w.s->cursor;
        w.unsure = false;
        began = gr_loop_now_ns(o->v->loop); /* not what it waited for others */
        r = reap_step(&w);
        if (r == 0 && w.unsure)
            r = make_sure(&w, &tries);
        else
            tries = 0;
        rest(o, pace, began);
    }
    free(w.rec);
    if (r == 1)
        r = drop(o, id);
    return r;
}

/* A reader elsewhere pins the snapshot, or nobody can tell: 1. One that is gone is recovered. */
static int pinned(struct vobj *o, uint64_t snap)
{
    struct vmfs *v = o->v;
    uint64_t id = o->id;
    for (unsigned i = 0; i < v->sb.slots.entries; i++) {
        struct vslot s;
        if (vslot_read(v, i, &s, NULL) < 0)
            return 1;
        if (s.state == VMFS_SLOT_FREE)
            continue;
        for (unsigned p = 0; p < s.n_pins; p++)
            if (s.pins[p].snapshot == snap && (s.pins[p].object == id || vobj_was_of(o, s.pins[p].object))) {
                if (i != v->slot)
                    vslot_recover_holder(v, i, s.generation, NULL);
                return 1;
            }
    }
    return 0;
}

/* Two lines that grew from a snapshot share units born before it, and only the snapshot tells either that they are not its own
 * to free: such a branch point stays (hidden) until one line is gone. */
static unsigned lines_from(const struct vobj *o, const struct vsnap *s)
{
    unsigned n = o->parent_snap == s->id && !o->dying;
    for (size_t i = 0; i < o->n_snaps; i++)
        n += o->snaps[i]->parent == s->id;
    return n;
}

/* One that is begun, else one whose end is home already, else any. */
static struct vsnap *next_to_reap(struct vobj *o)
{
    struct vsnap *next = NULL;
    for (size_t i = 0; i < o->n_snaps; i++)
        if (o->snaps[i]->flags & VMFS_SNAP_DELETING && o->snaps[i]->cursor)
            return o->snaps[i]; /* one at a time */
    for (size_t i = 0; i < o->n_snaps && !(next && next->home); i++) {
        struct vsnap *s = o->snaps[i];
        if (s->flags & VMFS_SNAP_DELETING && !(next && !s->home) && !s->open && !s->clones && lines_from(o, s) < 2)
            next = s;
    }
    return next;
}

/* Dying, and all its content is given back. */
static bool empty(const struct vobj *o)
{
    return o->dying && !o->n_snaps && slot_empty(&o->live.root);
}

bool reap_parked(struct vobj *o)
{
    bool begun = o->dying && !o->walker && o->n_snaps && slot_empty(&o->live.root);
    for (size_t i = 0; begun && i < o->n_snaps; i++)
        begun = o->snaps[i]->flags & VMFS_SNAP_DELETING;
    return begun && !next_to_reap(o);
}

/* Readers elsewhere can see the end of all that are being deleted by now: one checkpoint for however many. */
static int bring_home(struct vobj *o)
{
    for (size_t i = 0; i < o->n_snaps; i++)
        o->snaps[i]->said = o->snaps[i]->flags & VMFS_SNAP_DELETING;
    int r = ckpt_run(o->v);
    for (size_t i = 0; r == 0 && i < o->n_snaps; i++)
        o->snaps[i]->home |= o->snaps[i]->said;
    return r;
}

static void reap_all(struct vobj *o)
{
    struct vmfs *v = o->v;
    struct vpace pace;
    vpace_begin(v, &pace);
    o->reap_error = 0;
    while (!v->fenced && !v->leaving) {
        struct vsnap *s = next_to_reap(o);
        if (!s)
            return;
        uint64_t id = s->id;
        if (!s->cursor) { /* a reader pins, then looks whether it is being deleted; so that must be home before pins are looked for */
            uint64_t began = gr_loop_now_ns(v->loop);
            if (!s->home && (o->reap_error = bring_home(o)) < 0)
                return;
            rest(o, &pace, began);
            if (pinned(o, id)) {
                gr_fiber_sleep_ms(200);
                continue;
            }
        }
        s = vobj_snap(o, id);
        if (!s || (!s->cursor && s->open)) /* opened meanwhile */
            continue;
        int r = reap_snapshot(o, id, &pace);
        if (r == -ENODEV) /* what it names is found to be nobody's (check --repair) */
            r = drop(o, id);
        if (r < 0) {
            o->reap_error = r;
            return;
        }
    }
}

static void reap_work(void *arg)
{
    struct vobj *o = arg;
    struct vmfs *v = o->v;
    reap_all(o);
    int r = empty(o) && !v->fenced && !v->leaving ? ns_bury(o) : -ECANCELED;
    if (r < 0) {
        uint64_t id = o->id;
        o->walker = false;
        gr_fqueue_wake_all(&o->settled);
        if (r == -EAGAIN)
            reap_kick(o);
        if (!v->leaving && reap_parked(o) && ckpt_run(v) == 0)
            (void)vobj_release_idle(v, id, NULL); /* whoever has its clones may need it */
    }
    if (--v->background == 0)
        gr_fqueue_wake_all(&v->background_q);
}

void reap_kick(struct vobj *o)
{
    struct vmfs *v = o->v;
    if (o->walker || v->fenced || v->leaving || v->replaying || v->rescue || (!next_to_reap(o) && !empty(o)))
        return;
    o->walker = true;
    v->background++;
    if (gr_fiber_start(v->loop, reap_work, o) < 0) {
        o->walker = false;
        v->background--;
    }
}

bool reap_pending(struct vobj *o)
{
    return o->walker || next_to_reap(o);
}

static bool settling(struct vmfs *v)
{
    if (v->fenced || v->leaving)
        return false;
    for (unsigned h = 0; h < VOBJ_HASH; h++)
        for (struct vobj *o = v->objs[h]; o; o = o->hash_next)
            if ((o->dying && !reap_parked(o)) || reap_pending(o))
                return true;
    return v->resuming;
}

int vmfs_settle(struct vmfs *v, uint64_t timeout_ms)
{
    uint64_t deadline = gr_loop_now_ns(v->loop) + timeout_ms * 1000000;
    int r = 0;
    v->settling++;
    while (r == 0 && settling(v)) {
        if (gr_loop_now_ns(v->loop) >= deadline)
            r = -ETIMEDOUT;
        else
            gr_fiber_sleep_ms(5);
    }
    v->settling--;
    return r;
}
