/* The numbers that tell how much space each tree has (vmfs/usage.h), counted again: what each owns while the trees are walked, the rest by
 * holding each tree against the one it grew from, where they are not the same. */
#include "vmfs/check.h"

struct pair {
    struct chk *c;
    uint64_t object, snap;          /* of the tree; snapshot 0: the live head */
    uint64_t before_parent;         /* the time of the parent begins */
    uint64_t used, lost;
    uint64_t base;                  /* used by the parent */
    struct mptr now, was;           /* roots */
    unsigned level_now, level_was;
};

static struct mnode *load(struct pair *p, const struct mptr *ptr, unsigned level)
{
    struct gr_err err = { 0 };
    struct mnode *n = NULL;
    if (!ptr->addr)
        return NULL;
    void *buf = vunits_alloc(ptr->units);
    int r = buf ? chk_read(p->c, ptr->addr, ptr->units, buf) : -ENOMEM;
    if (r == 0)
        r = mnode_decode(p->c->v, buf, ptr->units, ptr->addr, level, &n, &err);
    free(buf);
    if (r < 0)
        p->c->blind = true; /* the walk of the tree says so */
    return n;
}

static struct mpiece piece_at(const struct mnode *leaf, unsigned i)
{
    return leaf ? ment_piece(&leaf->ent[i / VMFS_BLOCK_PIECES], i % VMFS_BLOCK_PIECES) : (struct mpiece){ .state = VMFS_P_HOLE };
}

static void leaf_pair(struct pair *p, const struct mnode *now, const struct mnode *was)
{
    for (unsigned i = 0; i < VMFS_LEAF_PIECES; i++) {
        struct mpiece a = piece_at(now, i), b = piece_at(was, i);
        bool has = a.state != VMFS_P_HOLE, had = b.state != VMFS_P_HOLE, same = has && had && a.addr == b.addr && a.birth == b.birth;
        p->used += has - (uint64_t)had;
        p->lost += had && !same && b.birth > p->before_parent;
    }
}

/* Subtrees of one place. */
static void node_pair(struct pair *p, const struct mptr *now, const struct mptr *was, unsigned level)
{
    static const struct mptr none;
    if (now->addr == was->addr || p->c->blind)
        return;
    if (++p->c->steps % 64 == 0)
        gr_fiber_yield();
    bool taller = level > p->level_was; /* than the parent ever was: its root is below the first child */
    struct mnode *a = load(p, now, level), *b = taller ? NULL : load(p, was, level);
    if (level == 0)
        leaf_pair(p, a, b);
    for (unsigned i = 0; level && i < VMFS_FANOUT; i++)
        node_pair(p, a ? &a->child[i].ptr : &none, taller ? (i ? &none : was) : b ? &b->child[i].ptr : &none, level - 1);
    mnode_put(p->c->v, a);
    mnode_put(p->c->v, b);
}

static void verify(struct pair *p, const struct vusage *says, uint64_t own)
{
    char of[40] = "";
    p->used = p->base;
    node_pair(p, &p->now, &p->was, GR_MAX(p->level_now, p->level_was));
    if (p->snap)
        snprintf(of, sizeof of, ", snapshot %llu", (unsigned long long)p->snap);
    if (p->c->blind || (says->used == p->used && says->lost == p->lost && says->own == own))
        return;
    chk_error(p->c, "object %llu%s: it says that it uses %llu units, owns %llu and has lost %llu; counted are %llu, %llu and %llu",
              (unsigned long long)p->object, of, (unsigned long long)says->used, (unsigned long long)says->own,
              (unsigned long long)says->lost, (unsigned long long)p->used, (unsigned long long)own, (unsigned long long)p->lost);
    chk_fix(p->c, (struct chk_fix){ .kind = CHK_FIX_USAGE, .id = p->object });
}

static uint64_t before(struct chk_obj *o, const struct chk_snap *s)
{
    const struct chk_snap *p = chk_snap(o, s->parent);
    return p ? p->epoch : o->origin_object ? o->origin_epoch : 0;
}

/* @s: NULL is the live head. */
static void tree_verify(struct chk *c, struct chk_obj *o, struct chk_snap *s)
{
    struct chk_snap *parent = chk_snap(o, s ? s->parent : o->parent_snap);
    struct chk_obj *origin = !parent && o->origin_object ? chk_find(c, o->origin_object) : NULL;
    struct pair p = { .c = c, .object = o->id, .snap = s ? s->id : 0, .before_parent = parent ? before(o, parent) : UINT64_MAX };
    if (origin && (origin->bad || !origin->counted))
        origin = NULL; /* counted from nothing, then */
    struct chk_snap *base = parent ? parent : origin ? chk_snap(origin, o->origin_snap) : NULL;
    p.now = s ? s->root : o->root;
    p.level_now = s ? s->level : o->level;
    p.was = base ? base->root : (struct mptr){ 0 };
    p.level_was = base ? base->level : p.level_now;
    p.base = base ? base->use.used : 0;
    verify(&p, s ? &s->use : &o->use, s ? s->own_found : o->own_found);
}

static bool half_given_back(const struct chk_obj *o)
{
    for (size_t i = 0; i < o->n_snaps; i++)
        if ((o->snaps[i].flags & VMFS_SNAP_DELETING) && o->snaps[i].cursor)
            return true;
    return false;
}

static bool ending(const struct chk_obj *o)
{
    const struct chk_snap *last = o->n_snaps ? &o->snaps[o->n_snaps - 1] : NULL;
    return !o->root.addr && last && last->id == o->parent_snap && (last->flags & VMFS_SNAP_DELETING);
}

void chk_usage(struct chk *c)
{
    for (size_t k = 0; k < c->n_objs && !c->failed && !c->blind; k++) {
        struct chk_obj *o = &c->objs[k];
        uint64_t own = o->own_found;
        if (o->bad || o->type == VMFS_DIR || !o->counted || half_given_back(o) || ending(o))
            continue;
        for (size_t i = 0; i < o->n_snaps; i++) {
            tree_verify(c, o, &o->snaps[i]);
            own += o->snaps[i].own_found;
        }
        tree_verify(c, o, NULL);
        if (c->blind || own == o->used_units)
            continue;
        chk_error(c, "object %llu: it says that it holds %llu units; it is %llu", (unsigned long long)o->id, (unsigned long long)o->used_units,
                  (unsigned long long)own);
        chk_fix(c, (struct chk_fix){ .kind = CHK_FIX_USAGE, .id = o->id });
    }
}
