/* The block map in memory: trees of nodes shared between the live head and snapshots by reference, copied on the way down to
 * a change (path copying), loaded on demand. */
#include "common/seam.h"
#include "vmfs/internal.h"

#define LOADED_LAST 64u /* leaves */

static size_t node_size(unsigned level)
{
    return level ? offsetof(struct mnode, child) + sizeof(struct mchild) * VMFS_FANOUT : sizeof(struct mnode);
}

/* What hangs on an entry counts for the cache, too: of a leaf of splits that is five times the leaf. */
static uint32_t entry_bytes(const struct mentry *e)
{
    return (uint32_t)((e->px ? sizeof *e->px : 0) + (e->crc ? VMFS_BLOCK_PIECES * sizeof *e->crc : 0));
}

static void set_hanging(struct vmfs *v, struct mnode *n, uint32_t bytes)
{
    v->map_bytes = v->map_bytes - n->hanging + bytes;
    if (n->dirty)
        v->dirty_hanging = v->dirty_hanging - n->hanging + bytes;
    n->hanging = bytes;
}

void mnode_count(struct vmfs *v, struct mnode *n)
{
    uint32_t bytes = 0;
    for (unsigned i = 0; !n->level && i < VMFS_FANOUT; i++)
        bytes += entry_bytes(&n->ent[i]);
    set_hanging(v, n, bytes);
}

void mnode_set_dirty(struct vmfs *v, struct mnode *n, bool dirty)
{
    if (n->dirty == dirty)
        return;
    if (dirty)
        due_make(v, n);
    n->dirty = dirty;
    v->dirty_nodes += dirty ? 1 : (size_t)-1;
    v->dirty_hanging += dirty ? n->hanging : -(size_t)n->hanging;
}

struct mnode *mnode_new(struct vmfs *v, unsigned level)
{
    struct mnode *n = gr_zalloc(node_size(level));
    if (!n)
        return NULL;
    n->refs = 1;
    n->level = (uint8_t)level;
    n->used = true;
    v->map_bytes += node_size(level);
    return n;
}

struct mnode *mnode_get(struct mnode *n)
{
    n->refs++;
    return n;
}

void mnode_put(struct vmfs *v, struct mnode *n)
{
    if (!n || --n->refs)
        return;
    due_make(v, n);
    mnode_set_dirty(v, n, false);
    if (n->level) {
        for (unsigned i = 0; i < VMFS_FANOUT; i++)
            mnode_put(v, n->child[i].mem);
    } else {
        for (unsigned i = 0; i < VMFS_FANOUT; i++) {
            free(n->ent[i].px);
            free(n->ent[i].crc);
        }
    }
    v->map_bytes -= node_size(n->level) + n->hanging;
    free(n);
}

void mtree_done(struct vmfs *v, struct mtree *t)
{
    mnode_put(v, t->root.mem);
    t->root.mem = NULL;
}

struct dropped {
    struct vmfs *v;
    struct mnode *root;
};

#define LEAVES_AT_ONCE 16u /* are freed: of splits each is 130 pieces of memory */
void mnode_put_by_parts(struct vmfs *v, struct mnode *n)
{
    unsigned freed = 0;
    for (unsigned i = 0; n->level && n->refs == 1 && i < VMFS_FANOUT; i++) {
        struct mnode *k = n->child[i].mem;
        if (!k)
            continue;
        n->child[i].mem = NULL;
        if (k->level)
            mnode_put_by_parts(v, k);
        else
            mnode_put(v, k);
        if (n->level == 1 && ++freed % LEAVES_AT_ONCE == 0)
            gr_fiber_yield();
    }
    mnode_put(v, n);
    gr_fiber_yield();
}

static void drop_work(void *arg)
{
    struct dropped *d = arg;
    struct vmfs *v = d->v;
    mnode_put_by_parts(v, d->root);
    free(d);
    if (--v->background == 0)
        gr_fqueue_wake_all(&v->background_q);
}

void mtree_drop(struct vmfs *v, struct mtree *t)
{
    struct dropped *d = t->root.mem && v->joined ? gr_alloc(sizeof *d) : NULL;
    if (d) {
        *d = (struct dropped){ v, t->root.mem };
        v->background++;
        if (gr_fiber_start(v->loop, drop_work, d) == 0) {
            t->root.mem = NULL;
            return;
        }
        v->background--;
        free(d);
    }
    mtree_done(v, t);
}

void mtree_share(struct mtree *dst, const struct mtree *src)
{
    *dst = *src;
    if (dst->root.mem)
        mnode_get(dst->root.mem);
}

uint64_t mnode_span(unsigned level)
{
    return (uint64_t)VMFS_LEAF_PIECES << (7 * level);
}

unsigned mtree_level_for(uint64_t pieces)
{
    unsigned level = 1;
    while (level < VMFS_MAX_LEVEL && mnode_span(level) < pieces)
        level++;
    return level;
}

static unsigned child_index(unsigned level, uint64_t piece)
{
    return (unsigned)(piece / mnode_span(level - 1) % VMFS_FANOUT);
}

/* Walk down as far as memory goes. Returns the slot where the walk ended: its node is in memory (level 0 reached), or it
 * must be loaded, or it is empty. *ret_parent is the node holding the slot (NULL: the root slot). */
static struct mchild *descend(struct mtree *t, uint64_t piece, struct mnode **ret_parent)
{
    struct mchild *c = &t->root;
    struct mnode *parent = NULL;
    for (unsigned level = t->level; c->mem && level; level--) { /* by count: a look at the leaf's own level would wait for memory that is not needed yet */
        parent = c->mem;
        parent->used = true;
        c = &parent->child[child_index(level, piece)];
    }
    if (ret_parent)
        *ret_parent = parent;
    return c;
}

int mtree_peek(struct mtree *t, uint64_t piece, struct mnode **ret)
{
    if (piece >= mnode_span(t->level)) {
        *ret = NULL;
        return 0;
    }
    struct mchild *c = descend(t, piece, NULL);
    if (!c->mem && c->ptr.addr)
        return -EAGAIN;
    if (c->mem)
        c->mem->used = true;
    *ret = c->mem;
    return 0;
}

static int load_slot(struct vmfs *v, struct mchild *c, struct mnode *parent, unsigned level, struct gr_err *err)
{
    struct mptr ptr = c->ptr;
    struct mnode *n = NULL;
    void *buf = vunits_alloc(ptr.units);
    if (!buf)
        return gr_fail(err, -ENOMEM, "out of memory for the map");
    if (parent)
        mnode_get(parent);
    int r = vdev_read(v, ptr.addr, ptr.units, buf);
    if (r < 0)
        gr_fail(err, r, "device %u unit %llu: cannot read a map node: %s", vmfs_addr_dev(ptr.addr),
                (unsigned long long)vmfs_addr_unit(ptr.addr), gr_code_text(r));
    else
        r = mnode_decode(v, buf, ptr.units, ptr.addr, level, &n, err);
    free(buf);
    if (r == 0)
        n->loaded = ++v->map_loads;
    if (r == 0 && !c->mem && c->ptr.addr == ptr.addr)
        c->mem = n;
    else
        mnode_put(v, n);
    mnode_put(v, parent);
    return r;
}

/* Load the slot where the walk to @piece ends; at most one node. */
static int load_one(struct vobj *o, struct mtree *t, uint64_t piece, struct gr_err *err)
{
    struct mnode *parent;
    struct mchild *c = descend(t, piece, &parent);
    if (c->mem || !c->ptr.addr)
        return 0;
    return load_slot(o->v, c, parent, parent ? parent->level - 1u : t->level, err);
}

int mtree_load(struct vobj *o, struct mtree *t, uint64_t piece, struct gr_err *err)
{
    struct mnode *leaf;
    int r = 0;
    if (mtree_peek(t, piece, &leaf) == 0)
        return 0;
    gr_fmutex_lock(&o->load_lock);
    while (r == 0 && mtree_peek(t, piece, &leaf) == -EAGAIN)
        r = load_one(o, t, piece, err);
    gr_fmutex_unlock(&o->load_lock);
    map_evict(o->v);
    return r;
}

int mtree_load_root(struct vobj *o, struct mtree *t, struct gr_err *err)
{
    int r = 0;
    gr_fmutex_lock(&o->load_lock);
    if (!slot_empty(&t->root) && !t->root.mem)
        r = load_slot(o->v, &t->root, NULL, t->level, err);
    gr_fmutex_unlock(&o->load_lock);
    return r;
}

struct mchild *mtree_slot(struct mtree *t, unsigned level, uint64_t piece, bool *ret_absent)
{
    struct mchild *c = &t->root;
    unsigned l = t->level;
    *ret_absent = false;
    if (piece >= mnode_span(t->level) || level > l) {
        *ret_absent = true;
        return NULL;
    }
    while (l > level) {
        if (slot_empty(c)) {
            *ret_absent = true;
            return NULL;
        }
        if (!c->mem)
            return NULL;
        c = &c->mem->child[piece / mnode_span(l - 1) % VMFS_FANOUT];
        l--;
    }
    return c;
}


int mtree_next(struct vobj *o, struct mtree *t, uint64_t piece, uint64_t since, uint64_t *ret, struct gr_err *err)
{
    for (;;) {
        struct mchild *c = &t->root;
        struct mnode *parent = NULL;
        unsigned level = t->level;
        if (piece >= mnode_span(t->level)) {
            *ret = UINT64_MAX;
            return 0;
        }
        while (c->mem && level && slot_birth(c) > since) {
            parent = c->mem;
            c = &parent->child[child_index(level, piece)];
            level--;
        }
        if ((!c->mem && !c->ptr.addr) || slot_birth(c) <= since) {
            piece = (piece / mnode_span(level) + 1) * mnode_span(level); /* nothing below: on to the next subtree */
            continue;
        }
        if (level == 0) {
            *ret = piece;
            return 0;
        }
        gr_fmutex_lock(&o->load_lock);
        int r = load_one(o, t, piece, err);
        gr_fmutex_unlock(&o->load_lock);
        if (r < 0)
            return r;
    }
}

static void mark_dirty(struct vmfs *v, struct mnode *n, uint64_t birth)
{
    mnode_set_dirty(v, n, true);
    if (birth > n->birth)
        n->birth = birth;
}

void mtree_grow(struct vmfs *v, struct mtree *t, unsigned level, uint64_t birth)
{
    while (t->level < level) {
        if (t->root.mem || t->root.ptr.addr) {
            struct mnode *n = mnode_new(v, t->level + 1u);
            if (!n)
                return;
            n->child[0] = t->root;
            mark_dirty(v, n, birth); /* a node of its own: no snapshot has it, however old what is below */
            t->root = (struct mchild){ .mem = n };
        }
        t->level++;
    }
}

/* A copy of what is there, if anything is. False: out of memory. */
static bool copy_of(const void *from, size_t len, void **ret)
{
    if (from && (*ret = gr_alloc(len)))
        memcpy(*ret, from, len);
    return !from || *ret;
}

static struct mnode *node_copy(struct vmfs *v, const struct mnode *n)
{
    struct mnode *c = mnode_new(v, n->level);
    if (!c)
        return NULL;
    c->birth = n->birth;
    c->ptr = n->ptr; /* what it replaces: the capture frees it unless a snapshot holds it */
    if (n->level) {
        memcpy(c->child, n->child, sizeof n->child[0] * VMFS_FANOUT);
        for (unsigned i = 0; i < VMFS_FANOUT; i++)
            if (c->child[i].mem)
                mnode_get(c->child[i].mem);
        return c;
    }
    memcpy(c->ent, n->ent, sizeof n->ent);
    for (unsigned i = 0; i < VMFS_FANOUT; i++) {
        c->ent[i].px = NULL;
        c->ent[i].crc = NULL;
    }
    for (unsigned i = 0; i < VMFS_FANOUT; i++)
        if (!copy_of(n->ent[i].px, sizeof *n->ent[i].px, (void **)&c->ent[i].px) ||
            !copy_of(n->ent[i].crc, VMFS_BLOCK_PIECES * sizeof *n->ent[i].crc, (void **)&c->ent[i].crc)) {
            mnode_put(v, c);
            return NULL;
        }
    mnode_count(v, c);
    return c;
}

/* A copy of @n for the live tree. The place of @n on disk is given back when the copy is written, if it is the live tree's to give
 * back: a holder in memory alone (a snapshot that is all but gone, a diff) does not keep it. */
static struct mnode *live_copy(struct vobj *o, const struct mnode *n, uint64_t piece)
{
    struct mnode *c = node_copy(o->v, n);
    uint64_t end = (piece / mnode_span(n->level) + 1) * mnode_span(n->level);
    if (c && n->ptr.addr && !held_by_ancestors(o, o->parent_snap, n->ptr.birth, end))
        c->ptr = n->ptr;
    return c;
}

static struct mnode *slot_make(struct vmfs *v, struct mchild *c, unsigned level)
{
    c->mem = mnode_new(v, level);
    if (c->mem)
        c->mem->ptr = (struct mptr){ 0 };
    return c->mem;
}

/* @copy takes the place of what the slot has. */
static struct mnode *slot_set(struct vmfs *v, struct mchild *c, struct mnode *copy)
{
    if (copy) {
        mnode_put(v, c->mem);
        c->mem = copy;
    }
    return copy;
}

/* The newest snapshot has a leaf of the live head in memory, too, that lies on disk as it is: from now on the snapshot has it there alone, as after a
 * checkpoint, and it need not be copied. Else the first write behind a snapshot to each leaf takes a leaf's memory, and the map is in memory twice. */
static bool leaf_taken_over(struct vobj *o, const struct mnode *leaf, uint64_t piece)
{
    struct vsnap *s = leaf->refs == 2 && !leaf->dirty && !o->v->ckpt_writing ? vobj_snap(o, o->parent_snap) : NULL;
    struct mnode *parent;
    if (!s || (s->flags & VMFS_SNAP_DELETING) || piece >= mnode_span(s->tree.level))
        return false;
    struct mchild *c = descend(&s->tree, piece, &parent);
    if (c->mem != leaf || !parent || parent->refs > 1) /* others look at the node that has it */
        return false;
    *c = (struct mchild){ .ptr = leaf->ptr };
    return true;
}

/* What the slot of the live tree has, for it alone. */
static struct mnode *slot_own(struct vobj *o, struct mchild *c, uint64_t piece)
{
    struct mnode *n = c->mem;
    if (n->refs > 1 && n->level == 0 && leaf_taken_over(o, n, piece))
        n->refs--;
    return n->refs > 1 ? slot_set(o->v, c, live_copy(o, n, piece)) : n;
}

struct mnode *mtree_own(struct vobj *o, struct mtree *t, uint64_t piece, uint64_t birth)
{
    struct vmfs *v = o->v;
    struct mchild *c = &t->root;
    for (unsigned level = t->level;; level--) {
        struct mnode *n = c->mem ? slot_own(o, c, piece) : slot_make(v, c, level);
        if (!n)
            return NULL;
        mark_dirty(v, n, birth);
        if (level == 0)
            return n;
        c = &n->child[child_index(level, piece)];
    }
}

/* The path of the oldest tree of a late write, before and after. */
struct late_path {
    unsigned level; /* of its root */
    struct mnode *was[VMFS_MAX_LEVEL + 1]; /* referenced */
    uint64_t was_at[VMFS_MAX_LEVEL + 1];   /* its address when it was as on disk; else 0 */
    struct mnode *now[VMFS_MAX_LEVEL + 1];
};

static struct mnode *late_first(struct vmfs *v, struct mtree *t, const struct late *l, struct late_path *p)
{
    struct mchild *c = &t->root;
    p->level = t->level;
    for (unsigned level = t->level;; level--) {
        p->was[level] = c->mem ? mnode_get(c->mem) : NULL;
        p->was_at[level] = c->mem && !c->mem->dirty ? c->mem->ptr.addr : 0;
        bool older = c->mem && c->mem->birth <= l->before; /* trees from before the write may have it, too */
        struct mnode *n = !c->mem ? slot_make(v, c, level) : older ? slot_set(v, c, node_copy(v, c->mem)) : c->mem;
        if (!n)
            return NULL;
        p->now[level] = n;
        mark_dirty(v, n, l->birth);
        if (level == 0)
            return n;
        c = &n->child[child_index(level, l->piece)];
    }
}

/* A later tree: from where it has what the oldest one had, it gets what that has now. Its other nodes are its own, or
 * shared among the later ones. NULL: no leaf of its own. */
static int late_next(struct vmfs *v, struct mtree *t, const struct late *l, const struct late_path *p, uint64_t epoch, struct mnode **ret)
{
    struct mchild *c = &t->root;
    *ret = NULL;
    for (unsigned level = t->level;; level--) {
        if (level <= p->level) {
            bool same = p->was[level] ? c->mem == p->was[level] : slot_empty(c);
            same |= p->was_at[level] && slot_addr(c) == p->was_at[level] && !(c->mem && c->mem->dirty);
            if (c->mem == p->now[level])
                return 0;
            if (same) {
                mnode_put(v, c->mem);
                c->mem = mnode_get(p->now[level]);
                return 0;
            }
        }
        if (!c->mem && !slot_make(v, c, level))
            return -ENOMEM;
        mark_dirty(v, c->mem, c->mem->birth ? l->birth : epoch);
        if (level == 0) {
            *ret = c->mem;
            return 0;
        }
        c = &c->mem->child[child_index(level, l->piece)];
    }
}

int mtree_own_late(struct vobj *o, const struct late *l, struct mnode **ret_leaves)
{
    struct late_path p = { 0 };
    ret_leaves[0] = late_first(o->v, l->tree[0], l, &p);
    int r = ret_leaves[0] ? 0 : -ENOMEM;
    for (unsigned i = 1; r == 0 && i < l->n; i++)
        r = late_next(o->v, l->tree[i], l, &p, l->epoch[i], &ret_leaves[i]);
    for (unsigned i = 0; i <= VMFS_MAX_LEVEL; i++)
        mnode_put(o->v, p.was[i]);
    for (unsigned i = 2; r == 0 && i < l->n; i++)
        for (unsigned k = 1; k < i; k++)
            if (ret_leaves[i] == ret_leaves[k])
                ret_leaves[i] = NULL;
    return r;
}

static struct mpieces *explode(struct mentry *e)
{
    if (e->px)
        return e->px;
    struct mpieces *px = gr_zalloc(sizeof *px);
    if (!px)
        return NULL;
    for (unsigned i = 0; i < VMFS_BLOCK_PIECES; i++) {
        struct mpiece p = ment_piece(e, i);
        px->addr[i] = p.addr;
        px->birth[i] = p.birth;
    }
    e->px = px;
    e->addr = 0;
    e->run = MRUN_UNKNOWN;
    return px;
}

/* Back to an EXTENT where all is alike: one run, one birth, holes never written. */
static void implode(struct mentry *e)
{
    uint64_t base = 0, birth = 0;
    for (unsigned i = 0; i < VMFS_BLOCK_PIECES; i++) {
        if (!((e->written | e->zero) >> i & 1)) {
            if (e->px->birth[i])
                return;
            continue;
        }
        if (base && (e->px->addr[i] - i != base || e->px->birth[i] != birth))
            return;
        base = e->px->addr[i] - i;
        birth = e->px->birth[i];
    }
    if (base && (e->written | e->zero) != 0xffff)
        return; /* not a whole run: some of its units may belong to others */
    free(e->px);
    e->px = NULL;
    e->addr = base;
    e->birth = birth;
}

struct block_change {
    unsigned first, n; /* pieces within the block */
    uint64_t addr, birth;
    enum vmfs_piece_state state;
    const uint32_t *crc; /* NULL: none */
};

static void set_bits(struct mentry *e, const struct block_change *c)
{
    uint16_t mask = (uint16_t)(((1u << c->n) - 1u) << c->first);
    e->written = (uint16_t)((e->written & ~mask) | (c->state & 1 ? mask : 0));
    e->zero = (uint16_t)((e->zero & ~mask) | (c->state & 2 ? mask : 0));
    for (unsigned i = 0; e->crc && i < c->n; i++)
        e->crc[c->first + i] = c->crc ? c->crc[i] : 0;
}

static int block_set(struct mentry *e, const struct block_change *c)
{
    if (c->n == VMFS_BLOCK_PIECES && c->state != VMFS_P_HOLE) {
        free(e->px);
        e->px = NULL;
        e->addr = c->addr;
        e->birth = c->birth;
        set_bits(e, c);
        return 0;
    }
    if (!e->px && e->addr && e->birth == c->birth && c->state != VMFS_P_HOLE && e->addr + c->first == c->addr) {
        set_bits(e, c); /* the block's own run: only the state changes */
        return 0;
    }
    if (!explode(e))
        return -ENOMEM;
    for (unsigned i = c->first; i < c->first + c->n; i++) {
        struct mpiece old = ment_piece(e, i);
        uint64_t birth = c->birth;
        if (c->state == VMFS_P_HOLE && old.state != VMFS_P_DATA)
            birth = old.state == VMFS_P_RESERVED ? 0 : old.birth; /* it read as zeros before: nothing changes */
        e->px->addr[i] = c->state == VMFS_P_HOLE ? 0 : c->addr + (i - c->first);
        e->px->birth[i] = birth;
    }
    set_bits(e, c);
    e->run = MRUN_UNKNOWN;
    implode(e);
    return 0;
}

/* Make sure that the change cannot fail half-way. */
static int block_prepare(struct mentry *e, const struct block_change *c)
{
    if (c->crc && !e->crc && !(e->crc = gr_zalloc(VMFS_BLOCK_PIECES * sizeof *e->crc)))
        return -ENOMEM;
    if (e->px || (c->n == VMFS_BLOCK_PIECES && c->state != VMFS_P_HOLE))
        return 0;
    bool in_run = e->addr && e->birth == c->birth && c->state != VMFS_P_HOLE && e->addr + c->first == c->addr;
    return in_run || explode(e) ? 0 : -ENOMEM;
}

int mleaf_set(struct vmfs *v, struct mnode *leaf, const struct map_change *m, void (*dropped)(void *arg, uint64_t piece, const struct mpiece *old),
              void *arg)
{
    for (uint32_t done = 0; done < m->count;) {
        uint64_t piece = m->piece + done, addr = m->state == VMFS_P_HOLE ? m->addr : m->addr + done;
        unsigned at = (unsigned)(piece % VMFS_LEAF_PIECES), b = at / VMFS_BLOCK_PIECES;
        bool kept = m->state == VMFS_P_DATA && vcrc_kept(v);
        struct block_change c = { at % VMFS_BLOCK_PIECES, 0, addr, m->birth, m->state, kept ? m->crc + done : NULL };
        struct mentry *e = &leaf->ent[b];
        c.n = GR_MIN(m->count - done, VMFS_BLOCK_PIECES - c.first);
        uint32_t before = entry_bytes(e);
        int r = block_prepare(e, &c);
        if (r < 0)
            return r;
        bool empty = !e->px && !e->addr;
        for (unsigned i = 0; dropped && !empty && i < c.n; i++) {
            struct mpiece old = ment_piece(e, c.first + i);
            if (old.state != VMFS_P_HOLE && (m->state == VMFS_P_HOLE || old.addr != addr + i))
                dropped(arg, piece + i, &old);
        }
        if ((r = block_set(e, &c)) < 0)
            return r;
        set_hanging(v, leaf, leaf->hanging + entry_bytes(e) - before);
        e->seq = GR_MAX(e->seq, m->seq);
        done += c.n;
    }
    return 0;
}

/* Drop clean leaves nobody used since the last sweep. Those that came last stay, whatever the limit: an operation that needs several at once would else
 * throw out the one with the other for ever, when all that is not written yet is above the limit. */
static void evict_below(struct vmfs *v, struct mnode *n)
{
    for (unsigned i = 0; i < VMFS_FANOUT && v->map_bytes > v->map_limit; i++) {
        struct mchild *c = &n->child[i];
        if (!c->mem)
            continue;
        if (c->mem->level) {
            evict_below(v, c->mem);
        } else if (c->mem->refs == 1 && n->refs == 1 && !c->mem->dirty && !c->mem->used && v->map_loads - c->mem->loaded >= LOADED_LAST) {
            c->ptr = c->mem->ptr;
            mnode_put(v, c->mem);
            c->mem = NULL;
        } else {
            c->mem->used = false;
        }
    }
}

void map_evict(struct vmfs *v)
{
    if (v->ckpt_writing)
        return; /* clean nodes may not have reached the device yet */
    for (unsigned pass = 0; pass < 2 && v->map_bytes > v->map_limit; pass++)
        for (unsigned h = 0; h < VOBJ_HASH; h++)
            for (struct vobj *o = v->objs[h]; o; o = o->hash_next) {
                if (o->live.root.mem)
                    evict_below(v, o->live.root.mem);
                for (size_t i = 0; i < o->n_snaps; i++)
                    if (o->snaps[i]->tree.root.mem)
                        evict_below(v, o->snaps[i]->tree.root.mem);
            }
}
