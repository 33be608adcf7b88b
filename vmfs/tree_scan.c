/* Looking through trees: batches of nodes of one level, in order. While one batch is looked at the next one is being read; neighbours on a device
 * are one request. What a batch needs of the level below is a sequence of batches again, so that no more than two batches a level are held. */
#include "vmfs/tree_scan.h"
#include "common/seam.h"
#include <stdlib.h>

#define BATCH_UNITS 2048u /* 8 MiB: a batch that needs so many is full */
#define REQUEST_UNITS 64u /* 256 KiB */
#define GAP_UNITS 4u      /* between two nodes: to read them for nothing costs less than another request */
#define YIELD_LEAVES 64u

struct ref { /* a node of one of the trees */
    struct mnode *mem;  /* a reference; NULL: not loaded */
    struct mptr ptr;    /* addr 0 and no mem: nothing was ever written there */
    uint8_t level;      /* below that of its batch: the root of a lower tree, on its way down */
    const uint8_t *raw; /* a leaf as read */
};
struct item {
    uint64_t piece;
    struct mnode *parent; /* of the node in the tree: held by the batch above, NULL for the root */
    unsigned child;
    struct ref r[2];      /* tree, base */
};
struct want { /* a node that is read */
    uint64_t addr;
    uint32_t units;
    unsigned read; /* which request brings it */
    struct ref *ref;
    struct item *item;
    uint8_t *at;
};
struct batch {
    unsigned level, n, cap;
    struct item *item;
    struct want *want;
    struct vreading *read;
    unsigned n_want, n_read;
    size_t want_units;
    uint8_t *bytes;
    struct vreads set;
};
struct places { /* where the children of a batch have got to */
    const struct batch *up;
    unsigned i, child;
};

/* ---- which nodes ---- */
static bool ref_empty(const struct ref *r)
{
    return !r->mem && !r->ptr.addr;
}

static uint64_t place_of(const struct vmfs *v, const struct ref *r)
{
    const struct mptr *p = r->mem ? &r->mem->ptr : &r->ptr;
    return moved_addr(v, p->addr, p->units, NULL);
}

static bool same(const struct vmfs *v, const struct ref *a, const struct ref *b)
{
    if (a->mem && a->mem == b->mem)
        return true;
    return !(a->mem && a->mem->dirty) && !(b->mem && b->mem->dirty) && place_of(v, a) && place_of(v, a) == place_of(v, b);
}

static bool wanted(const struct tscan *s, const struct item *it, unsigned level)
{
    const struct ref *a = &it->r[0], *b = &it->r[1];
    if (!s->base)
        return !ref_empty(a) && (a->mem ? a->mem->birth : a->ptr.birth) > s->since;
    if (ref_empty(a) && ref_empty(b))
        return false;
    return a->level < level || b->level < level || !same(s->o->v, a, b);
}

static struct ref ref_of(const struct mchild *c, unsigned level)
{
    return (struct ref){ .mem = c->mem, .ptr = c->mem ? c->mem->ptr : c->ptr, .level = (uint8_t)level };
}

/* The child of @r in a batch of @level; its memory is not referenced yet. */
static struct ref child_of(const struct ref *r, unsigned level, unsigned child)
{
    if (r->level <= level && child == 0)
        return (struct ref){ .mem = r->mem, .ptr = r->ptr, .level = r->level };
    if (r->level <= level || !r->mem)
        return (struct ref){ .level = (uint8_t)level };
    return ref_of(&r->mem->child[child], level);
}

/* The next child that is to be looked at. */
static bool next_item(const struct tscan *s, struct places *p, unsigned level, struct item *ret)
{
    uint64_t span = mnode_span(level);
    for (; p->i < p->up->n; p->i++, p->child = 0) {
        const struct item *up = &p->up->item[p->i];
        if (s->first > up->piece && p->child < (s->first - up->piece) / span)
            p->child = (unsigned)GR_MIN((s->first - up->piece) / span, (uint64_t)VMFS_FANOUT);
        while (p->child < VMFS_FANOUT) {
            unsigned c = p->child++;
            *ret = (struct item){ up->piece + c * span, up->r[0].level > level ? up->r[0].mem : NULL, c, { child_of(&up->r[0], level, c), child_of(&up->r[1], level, c) } };
            if (ret->piece >= s->end) {
                p->i = p->up->n;
                return false;
            }
            if (wanted(s, ret, level))
                return true;
        }
    }
    return false;
}

/* ---- batches ---- */
static void batch_clear(struct tscan *s, struct batch *b)
{
    vdev_reads_wait(&b->set);
    for (unsigned i = 0; i < b->n; i++)
        for (unsigned t = 0; t < 2; t++)
            mnode_put(s->o->v, b->item[i].r[t].mem);
    free(b->want);
    free(b->read);
    free(b->bytes);
    b->want = NULL;
    b->read = NULL;
    b->bytes = NULL;
    b->n = b->n_want = b->n_read = 0;
    b->want_units = 0;
}

static void batch_done(struct tscan *s, struct batch *b)
{
    batch_clear(s, b);
    free(b->item);
    b->item = NULL;
}

static bool to_read(const struct ref *r, unsigned level)
{
    return !r->mem && r->ptr.addr && r->level == level;
}

static void batch_add(struct batch *b, const struct item *it)
{
    struct item *to = &b->item[b->n++];
    *to = *it;
    for (unsigned t = 0; t < 2; t++) {
        if (to->r[t].mem)
            mnode_get(to->r[t].mem);
        if (to_read(&to->r[t], b->level)) {
            b->n_want++;
            b->want_units += to->r[t].ptr.units;
        }
    }
}

static int by_addr(const void *a, const void *b)
{
    const struct want *x = a, *y = b;
    return x->addr < y->addr ? -1 : x->addr > y->addr;
}

/* How many wanted nodes from @first on one request brings, and the units of that. */
static unsigned request_of(const struct want *w, unsigned n, uint32_t *ret_units)
{
    uint64_t end = w->addr + w->units;
    unsigned k = 1;
    for (; k < n && w[k].addr <= end + GAP_UNITS && w[k].addr + w[k].units <= w->addr + REQUEST_UNITS; k++)
        end = GR_MAX(end, w[k].addr + w[k].units);
    *ret_units = (uint32_t)(end - w->addr);
    return k;
}

static int list_wanted(struct tscan *s, struct batch *b)
{
    unsigned n = 0;
    b->want = gr_alloc(b->n_want * sizeof *b->want);
    b->read = gr_alloc(b->n_want * sizeof *b->read);
    if (!b->want || !b->read)
        return -ENOMEM;
    for (unsigned i = 0; i < b->n; i++)
        for (unsigned t = 0; t < 2; t++) {
            struct ref *r = &b->item[i].r[t];
            if (to_read(r, b->level))
                b->want[n++] = (struct want){ .addr = place_of(s->o->v, r), .units = r->ptr.units, .ref = r, .item = &b->item[i] };
        }
    qsort(b->want, n, sizeof *b->want, by_addr);
    return 0;
}

/* The reads of a batch are begun. */
static int batch_read(struct tscan *s, struct batch *b)
{
    uint32_t units = 0, all = 0;
    int r = list_wanted(s, b);
    if (r < 0)
        return r;
    for (unsigned i = 0; i < b->n_want; all += units)
        i += request_of(&b->want[i], b->n_want - i, &units);
    if (!(b->bytes = gr_alloc_aligned(VMFS_UNIT, (size_t)all * VMFS_UNIT)))
        return -ENOMEM;
    uint8_t *at = b->bytes;
    for (unsigned i = 0; i < b->n_want; at += (size_t)units * VMFS_UNIT) {
        struct want *first = &b->want[i];
        for (unsigned n = request_of(first, b->n_want - i, &units); n; n--, i++) {
            b->want[i].read = b->n_read;
            b->want[i].at = at + (b->want[i].addr - first->addr) * VMFS_UNIT;
        }
        vdev_read_begin(s->o->v, &b->set, &b->read[b->n_read++], first->addr, units, at);
    }
    s->o->v->stats.scan_nodes += b->n_want;
    s->o->v->stats.scan_reads += b->n_read;
    return 0;
}

/* The next batch, if there is one, is filled and its reads are begun. */
static int batch_begin(struct tscan *s, struct places *p, struct batch *b)
{
    struct item it;
    unsigned cap = GR_MAX(1u, GR_MIN(s->ahead, TSCAN_AHEAD));
    if (cap > b->cap || !b->item) {
        free(b->item);
        b->cap = cap;
        if (!(b->item = gr_alloc(cap * sizeof *b->item)))
            return -ENOMEM;
    }
    while (b->n < cap && b->want_units < BATCH_UNITS && next_item(s, p, b->level, &it))
        batch_add(b, &it);
    return b->n_want ? batch_read(s, b) : 0;
}

/* ---- nodes as they come ---- */
static int node_of(struct tscan *s, struct ref *r, const uint8_t *raw, unsigned level, struct mnode **ret, struct gr_err *err)
{
    return mnode_decode(s->o->v, raw, r->ptr.units, place_of(s->o->v, r), level, ret, err);
}

/* Kept where it belongs, if that is still so and there is room. */
static void keep(struct tscan *s, const struct item *it, struct mnode *n)
{
    struct vmfs *v = s->o->v;
    struct mchild *c = it->parent ? &it->parent->child[it->child] : NULL;
    if (!c || c->mem || c->ptr.addr != n->ptr.addr || v->map_bytes > v->map_limit)
        return;
    n->loaded = ++v->map_loads;
    c->mem = mnode_get(n);
}

/* The reads have ended: inner nodes are decoded; leaves when it is their turn. */
static int batch_end(struct tscan *s, struct batch *b, struct gr_err *err)
{
    struct vmfs *v = s->o->v;
    vdev_reads_wait(&b->set);
    for (unsigned i = 0; i < b->n_want; i++) {
        struct want *w = &b->want[i];
        int r = b->read[w->read].status;
        if (r < 0 && (r = vdev_read(v, w->addr, w->units, w->at)) < 0) /* alone: its neighbours' damage is not its own */
            return gr_fail(err, r, "device %u unit %llu: cannot read a map node: %s", vmfs_addr_dev(w->addr), (unsigned long long)vmfs_addr_unit(w->addr),
                           gr_code_text(r));
        w->ref->raw = w->at;
    }
    for (unsigned i = 0; b->level && i < b->n_want; i++) {
        struct want *w = &b->want[i];
        int r = node_of(s, w->ref, w->at, b->level, &w->ref->mem, err);
        if (r < 0)
            return r;
        if (w->ref == &w->item->r[0])
            keep(s, w->item, w->ref->mem);
    }
    return 0;
}

static int look_at(struct tscan *s, struct item *it, struct gr_err *err)
{
    struct mnode *leaf[2] = { 0 };
    int r = 0;
    for (unsigned t = 0; r == 0 && t < 2; t++) {
        if (it->r[t].mem)
            leaf[t] = mnode_get(it->r[t].mem);
        else if (it->r[t].raw)
            r = node_of(s, &it->r[t], it->r[t].raw, 0, &leaf[t], err);
    }
    if (r == 0) {
        s->leaves++;
        s->o->v->stats.scan_leaves++;
        r = s->leaf(s->arg, it->piece, leaf[0], leaf[1]);
        if (r > 0 && leaf[0])
            keep(s, it, leaf[0]);
    }
    mnode_put(s->o->v, leaf[0]);
    mnode_put(s->o->v, leaf[1]);
    return r;
}

static int look_at_all(struct tscan *s, struct batch *b, struct gr_err *err)
{
    int r = 0;
    for (unsigned i = 0; r == 0 && i < b->n; i++) {
        r = look_at(s, &b->item[i], err);
        if (r == 0 && i % YIELD_LEAVES == YIELD_LEAVES - 1)
            gr_fiber_yield();
    }
    return r;
}

static int below(struct tscan *s, const struct batch *up, struct gr_err *err)
{
    struct places p = { up, 0, 0 };
    struct batch two[2] = { { .level = up->level - 1 }, { .level = up->level - 1 } }, *now = &two[0], *next = &two[1];
    int r = batch_begin(s, &p, now);
    while (r == 0 && now->n) {
        if (s->ahead > 1)
            r = batch_begin(s, &p, next);
        if (r == 0)
            r = batch_end(s, now, err);
        if (r == 0)
            r = now->level ? below(s, now, err) : look_at_all(s, now, err);
        batch_clear(s, now);
        if (r == 0 && !next->n)
            r = batch_begin(s, &p, next);
        struct batch *was = now;
        now = next;
        next = was;
    }
    batch_done(s, &two[0]);
    batch_done(s, &two[1]);
    return r;
}

int tscan_run(struct tscan *s, struct gr_err *err)
{
    static const struct mtree none;
    const struct mtree *a = s->tree, *b = s->base ? s->base : &none;
    struct item root = { .r = { ref_of(&a->root, a->level), ref_of(&b->root, b->level) } };
    struct batch top = { .level = GR_MAX(a->level, b->level), .cap = 1, .item = gr_alloc(sizeof *top.item) };
    int r = top.item ? 0 : -ENOMEM;
    s->leaves = 0;
    if (r == 0 && wanted(s, &root, top.level))
        batch_add(&top, &root);
    if (r == 0 && top.n_want)
        r = batch_read(s, &top);
    if (r == 0)
        r = batch_end(s, &top, err);
    if (r == 0 && top.n)
        r = below(s, &top, err);
    batch_done(s, &top);
    return r == -ENOMEM ? gr_fail(err, r, "out of memory for the map") : r;
}
