/* Every tree: each node read and decoded with all its rules, each unit said to belong to one logical place.
 *
 * Whose is a unit? A tree that grew from a snapshot shares what was born in that snapshot's time or before. So the unit named
 * at a piece with a birth belongs to the oldest snapshot of the tree's past whose epoch is not older than the birth, or to the
 * tree itself. All trees that share it must come to the same answer, and the owner must name the unit, too. */
#include "common/seam.h"
#include "vmfs/check.h"

enum { PRINT_DATA = 1, PRINT_NODE = 2 }; /* nodes: + level */
struct chk_tree {
    struct chk *c;
    struct chk_obj *o;
    struct chk_snap *s; /* NULL: live head */
    uint64_t epoch, cursor, end; /* end: pieces a tree of this size may hold */
    uint64_t cached_birth; /* last answer of owner() */
    struct chk_owner {
        struct chk_obj *o;
        struct chk_snap *s;
    } cached;
};

static struct chk_owner owner(struct chk_tree *t, uint64_t birth)
{
    struct chk_owner w = { t->o, t->s };
    uint64_t id = t->s ? t->s->parent : t->o->parent_snap;
    if (t->cached.o && t->cached_birth == birth)
        return t->cached;
    for (struct chk_obj *o = t->o; o;) {
        struct chk_snap *s;
        bool older = false;
        while ((s = chk_snap(o, id)) && !(older = birth > s->epoch)) {
            w = (struct chk_owner){ o, s };
            id = s->parent < s->id ? s->parent : 0;
        }
        if (older || !o->origin_object || birth > o->origin_epoch)
            break;
        id = o->origin_snap;
        o = chk_find(t->c, o->origin_object); /* each clone is newer than its origin: chk_links() proves it */
    }
    t->cached_birth = birth;
    t->cached = w;
    return w;
}

static const char *tree_name(const struct chk_tree *t, char out[80])
{
    if (t->s)
        snprintf(out, 80, "object %llu, snapshot %llu", (unsigned long long)t->o->id, (unsigned long long)t->s->id);
    else
        snprintf(out, 80, "object %llu", (unsigned long long)t->o->id);
    return out;
}

/* What [first, end) is, for chk_reach(). */
static struct chk_use use_of(struct chk_tree *t, uint64_t first, uint64_t end, uint64_t birth, unsigned kind)
{
    struct chk_owner w = owner(t, birth);
    uint64_t who = w.s ? w.s->id : 0;
    struct chk_use u = { .print = chk_print(w.o->id, who << 8 | kind, first, birth) };
    /* behind the cursor of a snapshot that is being given back, its successor is responsible */
    bool given_back = w.s && (w.s->flags & VMFS_SNAP_DELETING) && end <= w.s->cursor;
    u.owned = (w.o == t->o && w.s == t->s) || given_back;
    if (kind == PRINT_DATA && w.o == t->o && w.s == t->s && t->c->pass == 0)
        ++*(w.s ? &w.s->own_found : &w.o->own_found);
    return u;
}

static void piece_walk(struct chk_tree *t, uint64_t piece, const struct mpiece *p, uint64_t node_birth)
{
    char name[80], at[40];
    if (p->birth > node_birth && p->birth <= t->epoch)
        chk_error_once(t->c, "%s: piece %llu was born in epoch %llu, after its leaf (%llu)", tree_name(t, name), (unsigned long long)piece,
                  (unsigned long long)p->birth, (unsigned long long)node_birth);
    if (p->birth > t->epoch)
        chk_error_once(t->c, "%s: piece %llu was born in epoch %llu, after the tree's (%llu)", tree_name(t, name), (unsigned long long)piece,
                  (unsigned long long)p->birth, (unsigned long long)t->epoch);
    if (p->state == VMFS_P_HOLE || piece < t->cursor)
        return;
    if (p->state == VMFS_P_DATA && p->birth < t->o->key_from)
        chk_error_once(t->c, "%s: piece %llu was born in epoch %llu, before the oldest key of the disk (%llu)", tree_name(t, name),
                  (unsigned long long)piece, (unsigned long long)p->birth, (unsigned long long)t->o->key_from);
    if (piece >= t->end)
        chk_error_once(t->c, "%s: piece %llu lies behind the end", tree_name(t, name), (unsigned long long)piece);
    struct chk_use u = use_of(t, piece, piece + 1, p->birth, PRINT_DATA);
    u.data = true;
    enum chk_reached r = chk_reach(t->c, p->addr, 1, &u);
    if (r == CHK_CONFLICT)
        chk_error(t->c, "%s: piece %llu: %s is also in use for something else", tree_name(t, name), (unsigned long long)piece, chk_unit(p->addr, at));
    t->c->rep.pieces += r == CHK_NEW;
    t->c->rep.shared_pieces += r == CHK_AGAIN || r == CHK_FULL;
}

/* What is lost with a node: of which disk, from where to where. */
static void lost_tell(struct chk_tree *t, const struct mptr *ptr, unsigned level, uint64_t first, const char *why)
{
    char name[VMFS_PATH_MAX + 80], of[40] = "";
    uint64_t end = GR_MIN(first + mnode_span(level), t->end);
    if (t->c->pass)
        return;
    vobj_name(t->c->v, t->o->id, name, sizeof name);
    if (t->s)
        snprintf(of, sizeof of, ", snapshot %llu", (unsigned long long)t->s->id);
    chk_unread(t->c, ptr->addr, "object %llu%s ('%.300s'): bytes %llu to %llu cannot be read: %s", (unsigned long long)t->o->id, of, name,
              (unsigned long long)first * VMFS_PIECE, (unsigned long long)end * VMFS_PIECE, why);
}

static struct mnode *node_load(struct chk_tree *t, const struct mptr *ptr, unsigned level, uint64_t first)
{
    struct chk *c = t->c;
    struct gr_err err = { 0 };
    struct mnode *n = NULL;
    char at[40];
    void *buf = vunits_alloc(ptr->units);
    int r = buf ? chk_read(c, ptr->addr, ptr->units, buf) : -ENOMEM;
    if (r < 0)
        gr_fail(&err, r, "%s: %s", chk_unit(ptr->addr, at), gr_code_text(r));
    else
        r = mnode_decode(c->v, buf, ptr->units, ptr->addr, level, &n, &err);
    free(buf);
    if (r < 0) {
        lost_tell(t, ptr, level, first, gr_err_text(&err, r));
        c->blind = true;
    }
    return n;
}

static void node_walk(struct chk_tree *t, const struct mptr *ptr, unsigned level, uint64_t first);

static void children_walk(struct chk_tree *t, struct mnode *n, uint64_t first)
{
    char name[80];
    uint64_t span = n->level ? mnode_span(n->level - 1u) : 0;
    for (unsigned i = 0; n->level && i < VMFS_FANOUT; i++) {
        const struct mptr *p = &n->child[i].ptr;
        if (p->birth > n->birth)
            chk_error_once(t->c, "%s: node of level %u at piece %llu: child %u was born in epoch %llu, after it (%llu)", tree_name(t, name), n->level,
                      (unsigned long long)first, i, (unsigned long long)p->birth, (unsigned long long)n->birth);
        if (p->addr)
            node_walk(t, p, n->level - 1u, first + i * span);
    }
    for (unsigned i = 0; !n->level && i < VMFS_LEAF_PIECES; i++) {
        struct mpiece p = ment_piece(&n->ent[i / VMFS_BLOCK_PIECES], i % VMFS_BLOCK_PIECES);
        if (p.state != VMFS_P_HOLE || p.birth)
            piece_walk(t, first + i, &p, n->birth);
    }
}

/* A node of which this pass does not remember whether all below it was walked: its owner walks it; who shares it only where the owner, which is
 * being given back, does not any more. That they name the same node is found out in the pass that remembers it. */
static bool goes_down(struct chk_tree *t, const struct chk_use *u, uint64_t first, uint64_t birth)
{
    struct chk_owner w = owner(t, birth);
    return u->owned || (w.s && (w.s->flags & VMFS_SNAP_DELETING) && first < w.s->cursor);
}

static void node_walk(struct chk_tree *t, const struct mptr *ptr, unsigned level, uint64_t first)
{
    struct chk *c = t->c;
    char name[80], at[40];
    uint64_t end = first + mnode_span(level);
    if (end <= t->cursor || c->failed || c->crowded)
        return; /* given back already */
    struct chk_use u = use_of(t, first, end, ptr->birth, PRINT_NODE + level);
    u.full = first >= t->cursor;
    enum chk_reached r = chk_reach(c, ptr->addr, ptr->units, &u);
    if (r == CHK_CONFLICT)
        chk_error(c, "%s: node of level %u at piece %llu: %s is also in use for something else", tree_name(t, name), level,
                  (unsigned long long)first, chk_unit(ptr->addr, at));
    c->blind |= r == CHK_CONFLICT || r == CHK_NOWHERE; /* what is below it is not looked at */
    if (r == CHK_CONFLICT || r == CHK_NOWHERE || r == CHK_FULL || (r == CHK_OUTSIDE && !goes_down(t, &u, first, ptr->birth)))
        return;
    if (ptr->birth > t->epoch)
        chk_error_once(c, "%s: node of level %u at piece %llu was born in epoch %llu, after the tree's (%llu)", tree_name(t, name), level,
                  (unsigned long long)first, (unsigned long long)ptr->birth, (unsigned long long)t->epoch);
    c->rep.nodes += r != CHK_OUTSIDE;
    if (++c->steps % 64 == 0)
        gr_fiber_yield();
    struct mnode *n = node_load(t, ptr, level, first);
    if (!n)
        return;
    if (n->birth != ptr->birth)
        chk_error_once(c, "%s: node of level %u at piece %llu says birth %llu, the pointer to it %llu", tree_name(t, name), level,
                  (unsigned long long)first, (unsigned long long)n->birth, (unsigned long long)ptr->birth);
    children_walk(t, n, first);
    mnode_put(c->v, n);
}

static void tree_walk(struct chk *c, struct chk_obj *o, struct chk_snap *s)
{
    const struct mptr *root = s ? &s->root : &o->root;
    uint64_t size = s ? s->size : o->size;
    struct chk_tree t = { .c = c, .o = o, .s = s, .epoch = s ? s->epoch : o->epoch };
    t.cursor = s && (s->flags & VMFS_SNAP_DELETING) ? s->cursor : 0;
    t.end = (size + VMFS_BLOCK - 1) / VMFS_BLOCK * VMFS_BLOCK_PIECES;
    if (root->addr)
        node_walk(&t, root, s ? s->level : o->level, 0);
}

/* Origins before their clones, older snapshots before newer ones: a shared node is walked by its owner first. */
static void object_walk(struct chk *c, struct chk_obj *o)
{
    for (size_t i = 0; i < o->n_snaps; i++)
        tree_walk(c, o, &o->snaps[i]);
    tree_walk(c, o, NULL);
}

static unsigned depth(struct chk *c, const struct chk_obj *o)
{
    unsigned n = 0;
    while (o && o->origin_object && n < 1000) {
        o = chk_find(c, o->origin_object);
        n++;
    }
    return n;
}

void chk_trees(struct chk *c)
{
    unsigned deepest = 0;
    for (size_t i = 0; i < c->n_objs; i++) {
        struct chk_obj *o = &c->objs[i];
        c->rep.objects += c->pass == 0;
        deepest = GR_MAX(deepest, depth(c, o));
    }
    for (unsigned d = 0; d <= deepest; d++)
        for (size_t i = 0; i < c->n_objs && !c->failed; i++)
            if (c->objs[i].type != VMFS_DIR && !c->objs[i].bad && depth(c, &c->objs[i]) == d)
                object_walk(c, &c->objs[i]);
}
