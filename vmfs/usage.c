/* Space of each tree, kept up to date by what changes maps. */
#include "vmfs/internal.h"

static struct mpiece piece_at(const struct mnode *leaf, uint64_t piece)
{
    unsigned at = (unsigned)(piece % VMFS_LEAF_PIECES);
    if (!leaf)
        return (struct mpiece){ .state = VMFS_P_HOLE };
    return ment_piece(&leaf->ent[at / VMFS_BLOCK_PIECES], at % VMFS_BLOCK_PIECES);
}

static bool same_unit(const struct mpiece *a, const struct mpiece *b)
{
    return a->state != VMFS_P_HOLE && b->state != VMFS_P_HOLE && a->addr == b->addr && a->birth == b->birth;
}

uint64_t usage_before(struct vobj *o, const struct vsnap *s)
{
    const struct vsnap *p = vobj_snap(o, s->parent);
    return p ? p->epoch : o->origin_object ? o->origin_epoch : 0;
}

/* The snapshot a tree grew from, and the one before. */
struct past {
    uint64_t id;
    struct vsnap *s, *p;
    uint64_t before_s, before_p; /* epochs at which their times begin */
};

static struct past past_of(struct vobj *o, uint64_t id)
{
    struct past t = { .id = id, .s = vobj_snap(o, id) };
    if (t.s) {
        t.before_s = usage_before(o, t.s);
        t.p = vobj_snap(o, t.s->parent);
        t.before_p = t.p ? usage_before(o, t.p) : 0;
    }
    return t;
}

/* Whose is a unit of the live head that was born then? (Not the origin's.) */
static struct vusage *owner(struct vobj *o, uint64_t birth)
{
    struct vusage *u = &o->use;
    for (struct vsnap *s = vobj_snap(o, o->parent_snap); s && birth <= s->epoch; s = vobj_snap(o, s->parent))
        u = &s->use;
    return u;
}

/* A tree with @use that grew from @t, and all that grew from the tree, let go of a unit. */
static void let_go(struct vobj *o, struct vusage *use, const struct past *t, uint64_t piece, uint64_t birth)
{
    if (!held_by_ancestors(o, t->id, birth, piece + 1))
        owner(o, birth)->own--;
    else if (t->s && (t->s->flags & VMFS_SNAP_DELETING) && piece < t->s->cursor)
        t->s->passed += t->p && birth > t->before_p; /* the walk that gives @s back was here already */
    else if (t->s) /* what is behind the cursor of the one before is @s' own by now */
        use->lost += birth > (t->p && (t->p->flags & VMFS_SNAP_DELETING) && piece < t->p->cursor ? t->before_p : t->before_s);
}

void usage_map(struct vobj *o, const struct mnode *leaf, const struct usage_change *c)
{
    if (!o->counted)
        return;
    struct past t = past_of(o, o->parent_snap);
    for (uint64_t p = c->piece; p < c->piece + c->count; p++) {
        struct mpiece old = piece_at(leaf, p);
        if (old.state == VMFS_P_HOLE)
            continue;
        o->use.used--;
        let_go(o, &o->use, &t, p, old.birth);
    }
    if (c->owned) {
        o->use.used += c->count;
        o->use.own += c->count;
    }
}

int usage_map_late(struct vobj *o, struct mtree *const *tree, struct vusage *const *use, unsigned n, uint64_t parent, const struct usage_change *c)
{
    struct mnode *leaf;
    if (!o->counted)
        return 0;
    for (unsigned i = 0; i < n; i++)
        if (mtree_peek(tree[i], c->piece, &leaf) < 0)
            return -EAGAIN;
    struct past t = past_of(o, parent);
    for (uint64_t p = c->piece; p < c->piece + c->count; p++)
        for (unsigned i = 0; i < n; i++) {
            (void)mtree_peek(tree[i], p, &leaf);
            struct mpiece old = piece_at(leaf, p);
            use[i]->used += c->owned;
            if (old.state == VMFS_P_HOLE)
                continue;
            use[i]->used--;
            bool again = false; /* an older tree had it, too */
            for (unsigned k = 0; k < i && !again; k++) {
                (void)mtree_peek(tree[k], p, &leaf);
                struct mpiece older = piece_at(leaf, p);
                again = same_unit(&older, &old);
            }
            if (!again)
                let_go(o, use[0], &t, p, old.birth);
        }
    if (c->owned)
        use[0]->own += c->count;
    return 0;
}

void usage_frozen(struct vobj *o, struct vsnap *s, bool end)
{
    s->use = o->use;
    o->use = (struct vusage){ .used = end ? 0 : s->use.used, .lost = end ? s->use.own : 0 };
}

void usage_reverted(struct vobj *o, const struct vsnap *s)
{
    o->use = (struct vusage){ .used = s->use.used };
}

void usage_freed(struct vobj *o, struct vsnap *s, const struct vmfs_rec_counts_disk *n)
{
    uint64_t units = gr_le64_get(n->units);
    s->use.own -= units;
    s->passed += gr_le64_get(n->passed);
    for (uint32_t i = 0; i < gr_le32_get(n->n_lost); i++) {
        struct vsnap *t = vobj_snap(o, gr_le64_get(n->lost[i].snap));
        (t ? &t->use : &o->use)->lost += gr_le64_get(n->lost[i].units);
    }
    if (o->parent_snap == s->id)
        o->use.lost -= units;
    for (size_t i = 0; i < o->n_snaps; i++)
        if (o->snaps[i]->parent == s->id)
            o->snaps[i]->use.lost -= units;
}

static void inherit(struct vusage *use, const struct vsnap *s)
{
    use->own += s->use.own;
    use->lost = s->use.lost + s->passed;
}

void usage_dropped(struct vobj *o, const struct vsnap *s)
{
    if (o->parent_snap == s->id)
        inherit(&o->use, s);
    for (size_t i = 0; i < o->n_snaps; i++)
        if (o->snaps[i]->parent == s->id)
            inherit(&o->snaps[i]->use, s);
}

void usage_unknown(struct vobj *o)
{
    o->counted = false;
}

uint64_t usage_unique(struct vobj *o, const struct vsnap *s)
{
    const struct vsnap *child = NULL;
    unsigned lines = o->parent_snap == s->id && !o->dying;
    uint64_t lost = lines ? o->use.lost : s->use.own; /* nothing grew from it: all that is its own */
    for (size_t i = 0; i < o->n_snaps; i++)
        if (o->snaps[i]->parent == s->id) {
            child = o->snaps[i];
            lost = child->use.lost + child->passed;
            lines++;
        }
    return s->clones || lines > 1 ? 0 : lost;
}

/* ---- once, for disks that have no numbers ---- */
struct count {
    struct vobj *o;
    struct mtree *tree;
    struct vusage *use;
    struct vsnap *parent;
    uint64_t before, before_parent; /* the time of the tree begins; of its parent */
    struct usage_notes *take, *give; /* leaves that were counted earlier; that are counted now. NULL: none */
    size_t at;                       /* in @take */
};

void usage_notes_done(struct usage_notes *n)
{
    free(n->leaf);
    memset(n, 0, sizeof *n);
}

/* Where the leaf lies, unless it is going to lie elsewhere: 0. */
static uint64_t leaf_addr(const struct count *c, uint64_t piece)
{
    bool absent;
    const struct mchild *s = mtree_slot(c->tree, 0, piece, &absent);
    return !s || (s->mem && s->mem->dirty) ? 0 : s->mem ? s->mem->ptr.addr : s->ptr.addr;
}

/* Was it counted, and is it what it was? */
static bool known(struct count *c, uint64_t piece)
{
    struct usage_notes *n = c->take;
    uint64_t addr = n ? leaf_addr(c, piece) : 0;
    while (n && c->at < n->n && n->leaf[c->at].piece < piece)
        c->at++;
    if (!addr || c->at == n->n || n->leaf[c->at].piece != piece || n->leaf[c->at].addr != addr)
        return false;
    c->use->lost += n->leaf[c->at].lost;
    n->taken++;
    return true;
}

static int note(struct count *c, uint64_t piece, uint64_t lost)
{
    struct usage_notes *n = c->give;
    uint64_t addr = n ? leaf_addr(c, piece) : 0;
    if (!addr)
        return 0;
    if (n->n == n->cap) {
        size_t cap = n->cap ? n->cap * 2 : 256;
        struct usage_note *l = gr_realloc(n->leaf, cap * sizeof *l);
        if (!l)
            return -ENOMEM;
        n->leaf = l;
        n->cap = cap;
    }
    n->leaf[n->n++] = (struct usage_note){ piece, addr, (uint32_t)lost };
    return 0;
}

static void count_leaf(struct count *c, const struct mnode *now, const struct mnode *was, uint64_t first)
{
    for (uint64_t p = first; p < first + VMFS_LEAF_PIECES; p++) {
        struct mpiece a = piece_at(now, p), b = piece_at(was, p);
        c->use->used += (a.state != VMFS_P_HOLE) - (uint64_t)(b.state != VMFS_P_HOLE);
        c->use->own += a.state != VMFS_P_HOLE && a.birth > c->before;
        c->use->lost += b.state != VMFS_P_HOLE && b.birth > c->before_parent && !same_unit(&a, &b);
    }
}

/* What is not younger than the parent is as there. */
static int count_tree(struct count *c, struct gr_err *err)
{
    struct vobj *o = c->o;
    uint64_t piece = 0, since = c->parent ? c->parent->epoch : 0;
    *c->use = (struct vusage){ .used = c->parent ? c->parent->use.used : 0 };
    for (;;) {
        struct mnode *now = NULL, *was = NULL;
        int r = mtree_next(o, c->tree, piece, since, &piece, err);
        if (r < 0 || piece == UINT64_MAX)
            return r;
        piece -= piece % VMFS_LEAF_PIECES;
        if (known(c, piece)) {
            piece += VMFS_LEAF_PIECES;
            if (c->take->taken % 256 == 0)
                gr_fiber_yield();
            continue;
        }
        while (mtree_peek(c->tree, piece, &now) < 0 || (c->parent && mtree_peek(&c->parent->tree, piece, &was) < 0))
            if ((r = mtree_load(o, c->tree, piece, err)) < 0 || (c->parent && (r = mtree_load(o, &c->parent->tree, piece, err)) < 0))
                return r;
        uint64_t lost = c->use->lost;
        count_leaf(c, now, was, piece);
        if (note(c, piece, c->use->lost - lost) < 0)
            return gr_fail(err, -ENOMEM, "out of memory");
        piece += VMFS_LEAF_PIECES;
        gr_fiber_yield();
    }
}

static int count_one(struct vobj *o, struct mtree *tree, struct vusage *use, uint64_t parent, struct gr_err *err)
{
    struct count c = { .o = o, .tree = tree, .use = use, .parent = vobj_snap(o, parent) };
    c.before = c.parent ? c.parent->epoch : o->origin_object ? o->origin_epoch : 0;
    c.before_parent = c.parent ? usage_before(o, c.parent) : UINT64_MAX;
    return count_tree(&c, err);
}

static int count_lost(struct count *c, struct vobj *parent_of, struct vsnap *parent, uint64_t *ret, struct gr_err *err)
{
    struct vusage use;
    c->use = &use;
    c->parent = parent;
    c->before = parent->epoch;
    c->before_parent = usage_before(parent_of, parent);
    int r = count_tree(c, err);
    if (r == 0)
        *ret = use.lost;
    return r;
}

int usage_lost(struct vobj *o, struct mtree *tree, struct vobj *parent_of, struct vsnap *parent, struct usage_notes *notes, uint64_t *ret, struct gr_err *err)
{
    struct count c = { .o = o, .tree = tree, .take = notes };
    return count_lost(&c, parent_of, parent, ret, err);
}

int usage_lost_ahead(struct vobj *o, struct mtree *tree, struct vobj *parent_of, struct vsnap *parent, struct usage_notes *notes, struct gr_err *err)
{
    struct count c = { .o = o, .tree = tree, .give = notes };
    uint64_t lost;
    return count_lost(&c, parent_of, parent, &lost, err);
}

static int count_all(struct vobj *o, struct gr_err *err)
{
    uint64_t own = 0;
    int r = 0;
    for (size_t i = 0; r == 0 && i < o->n_snaps; i++) { /* parents come before those that grew from them */
        struct vsnap *s = o->snaps[i];
        s->passed = 0;
        if ((r = count_one(o, &s->tree, &s->use, s->parent, err)) == 0)
            own += s->use.own;
    }
    if (r == 0)
        r = count_one(o, &o->live, &o->use, o->parent_snap, err);
    if (r < 0)
        return r;
    o->ino.used_units = own + o->use.own;
    o->counted = true;
    vobj_touch(o);
    return 0;
}

static bool half_given_back(const struct vobj *o)
{
    for (size_t i = 0; i < o->n_snaps; i++)
        if ((o->snaps[i]->flags & VMFS_SNAP_DELETING) && o->snaps[i]->cursor)
            return true;
    return false;
}

int usage_recount(struct vobj *o, struct gr_err *err)
{
    while (o->counting)
        gr_fqueue_wait(&o->settled);
    if (o->walker || o->dying || half_given_back(o))
        return gr_fail(err, -EBUSY, "object %llu: something of it is being given back", (unsigned long long)o->id);
    o->counting = o->walker = true; /* nothing is given back meanwhile, */
    o->users++;                     /* and nobody gives it up */
    disk_freeze(o);
    int r = count_all(o, err);
    disk_thaw(o);
    o->users--;
    o->counting = o->walker = false;
    gr_fqueue_wake_all(&o->settled);
    reap_kick(o);
    return r;
}

void usage_ready(struct vobj *o)
{
    struct gr_err err = { 0 };
    while (o->counting)
        gr_fqueue_wait(&o->settled);
    if (o->counted || o->opens || o->handle)
        return;
    int r = usage_recount(o, &err);
    if (r < 0 && r != -EBUSY)
        vmfs_warn(o->v, "object %llu: its space cannot be counted: %s", (unsigned long long)o->id, gr_err_text(&err, r));
}
