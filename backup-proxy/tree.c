/* Writing a map: the path from the root to the unit under work is held in memory; leaving a node writes it, when it changed,
 * and puts its place into the node above. */
#include "backup-proxy/tree.h"
#include "common/cleanup.h"
#include "common/seam.h"
#include <string.h>

struct bp_tree {
    struct bp_repo *repo;
    struct bp_packer *packer;
    struct bp_codec codec;
    unsigned levels, base_levels;
    struct bp_ref base; /* used while the path is empty */
    uint64_t units, base_units, pieces;
    struct bp_node *node[REPO_MAX_LEVELS]; /* by level; held ones are the path, from the top down to `depth` */
    bool dirty[REPO_MAX_LEVELS];
    unsigned low; /* lowest level held; levels: nothing is held */
    uint64_t written;
    uint8_t raw[REPO_UNIT], encoded[BP_ENCODED_MAX];
};

static uint64_t node_units(unsigned level)
{
    return bp_tree_span(level + 1);
}

int bp_tree_new(struct bp_repo *r, struct bp_packer *packer, const struct bp_ref *base, uint64_t base_size, uint64_t size,
                struct bp_tree **ret, struct gr_err *err)
{
    struct bp_tree *t = gr_zalloc(sizeof *t);
    if (!t)
        return gr_fail(err, -ENOMEM, "out of memory");
    t->repo = r;
    t->packer = packer;
    t->levels = t->low = bp_tree_levels(size);
    t->base_levels = bp_tree_levels(base_size);
    t->base = *base;
    t->units = size / REPO_UNIT + (size % REPO_UNIT != 0);
    t->pieces = size / REPO_PIECE + (size % REPO_PIECE != 0);
    t->base_units = base_size / REPO_UNIT + (base_size % REPO_UNIT != 0);
    for (unsigned i = 0; i < t->levels; i++)
        if (!(t->node[i] = gr_alloc(sizeof *t->node[i]))) {
            bp_tree_free(t);
            return gr_fail(err, -ENOMEM, "out of memory");
        }
    *ret = t;
    return 0;
}
void bp_tree_free(struct bp_tree *t)
{
    if (!t)
        return;
    for (unsigned i = 0; i < REPO_MAX_LEVELS; i++)
        free(t->node[i]);
    bp_codec_done(&t->codec);
    free(t);
}
uint64_t bp_tree_nodes(const struct bp_tree *t)
{
    return t->written;
}

/* Write the lowest held node if it changed and put its place into the one above, or into *ret_root from the top. */
static int leave(struct bp_tree *t, struct bp_ref *ret_root, struct gr_err *err)
{
    unsigned l = t->low;
    struct bp_node *n = t->node[l];
    struct bp_ref ref = {0};
    t->low = l + 1;
    if (!t->dirty[l])
        return 0;
    int len = bp_node_encode(n, t->raw, sizeof t->raw);
    if (len < 0)
        return gr_fail(err, len, "cannot encode a map node");
    if (len > 0) {
        int n_enc = bp_extent_encode(&t->codec, REPO_MAP, t->raw, (uint32_t)len, NULL, 1, t->encoded);
        if (n_enc < 0)
            return gr_fail(err, n_enc, "cannot encode a map node");
        int r = bp_packer_add(t->packer, t->encoded, (size_t)n_enc, &ref, err);
        if (r == 0 && bp_packer_full(t->packer))
            r = bp_packer_flush(t->packer, err);
        if (r < 0)
            return r;
        t->written++;
    }
    if (l + 1 == t->levels) {
        *ret_root = ref;
        return 0;
    }
    t->node[l + 1]->child[n->first_unit / node_units(l) % REPO_FANOUT] = ref;
    t->dirty[l + 1] = true;
    return 0;
}

static void node_empty(struct bp_node *n, unsigned level, uint64_t first)
{
    memset(n, 0, sizeof *n);
    n->level = level;
    n->first_unit = first;
}
/* The top node of a base tree that was lower or higher than this one. */
static int enter_top(struct bp_tree *t, struct gr_err *err)
{
    unsigned top = t->levels - 1;
    struct bp_node *n = t->node[top];
    node_empty(n, top, 0);
    t->dirty[top] = false;
    t->low = top;
    if (t->base.raw == 0)
        return 0;
    if (t->base_levels < t->levels) {
        if (t->base_levels == top) {
            n->child[0] = t->base;
            t->dirty[top] = true;
            return 0;
        }
        for (unsigned l = top; l > t->base_levels; l--) { /* more than one level higher: empty nodes in between */
            t->dirty[l] = true;
            node_empty(t->node[l - 1], l - 1, 0);
            t->low = l - 1;
        }
        t->node[t->base_levels]->child[0] = t->base;
        t->dirty[t->base_levels] = true;
        return 0;
    }
    struct bp_ref ref = t->base;
    for (unsigned l = t->base_levels - 1; l > top; l--) {
        int r = bp_node_read(t->repo, &t->codec, &ref, l, 0, n, err);
        if (r < 0)
            return r;
        ref = n->child[0];
        if (ref.raw == 0) {
            node_empty(n, top, 0);
            t->dirty[top] = true;
            return 0;
        }
    }
    t->dirty[top] = t->base_levels > t->levels; /* it becomes a root */
    return bp_node_read(t->repo, &t->codec, &ref, top, 0, n, err);
}
/* Hold the path down to the node of @level over @unit. */
static int seek(struct bp_tree *t, uint64_t unit, unsigned level, struct gr_err *err)
{
    struct bp_ref none;
    int r = 0;
    if (t->low == t->levels)
        r = enter_top(t, err);
    while (r == 0 && (t->low < level || unit - t->node[t->low]->first_unit >= node_units(t->low)))
        r = leave(t, &none, err);
    while (r == 0 && t->low > level) {
        unsigned l = t->low - 1;
        uint64_t first = unit & ~(node_units(l) - 1);
        const struct bp_ref *ref = &t->node[l + 1]->child[first / node_units(l) % REPO_FANOUT];
        if (ref->raw)
            r = bp_node_read(t->repo, &t->codec, ref, l, first, t->node[l], err);
        else
            node_empty(t->node[l], l, first);
        if (r == 0) {
            t->dirty[l] = false;
            t->low = l;
        }
    }
    return r;
}

/* Take pieces [first, first+count) out of @u, keeping what lies on both sides. */
static void unit_cut(struct bp_unit *u, unsigned first, unsigned count)
{
    struct bp_unit out = {0};
    unsigned end = first + count;
    for (unsigned i = 0; i < u->n; i++) {
        struct bp_part p = u->part[i], q = p;
        unsigned p_end = p.first + p.count;
        if (p_end <= first || p.first >= end) {
            out.part[out.n++] = p;
            continue;
        }
        if (p.first < first) {
            q.count = (uint8_t)(first - p.first);
            out.part[out.n++] = q;
        }
        if (p_end > end) {
            q.first = (uint8_t)end;
            q.count = (uint8_t)(p_end - end);
            q.src = (uint8_t)(p.src + (end - p.first));
            out.part[out.n++] = q;
        }
    }
    *u = out;
}
static void unit_insert(struct bp_unit *u, const struct bp_part *p)
{
    unsigned at = 0;
    while (at < u->n && u->part[at].first < p->first)
        at++;
    memmove(&u->part[at + 1], &u->part[at], (u->n - at) * sizeof u->part[0]);
    u->part[at] = *p;
    u->n++;
}
int bp_tree_set(struct bp_tree *t, uint64_t unit, unsigned first, unsigned count, const struct bp_ref *ref, struct gr_err *err)
{
    if (unit >= t->units || count == 0 || first >= REPO_PIECES || count > REPO_PIECES - first ||
        (ref && (ref->raw % REPO_PIECE || ref->raw / REPO_PIECE < count)))
        return gr_fail(err, -GR_ERANGE, "unit %llu lies outside the map", (unsigned long long)unit);
    int r = seek(t, unit, 0, err);
    if (r < 0)
        return r;
    struct bp_unit *u = &t->node[0]->unit[unit % REPO_FANOUT];
    if (ref && u->n == 1 && count == REPO_PIECES && u->part[0].count == count && !u->part[0].src && u->part[0].ref.pack == ref->pack &&
        u->part[0].ref.off == ref->off)
        return 0; /* as before: the path stays shared */
    if (!ref && u->n == 0)
        return 0;
    unit_cut(u, first, count);
    if (ref) {
        struct bp_part p = {.first = (uint8_t)first, .count = (uint8_t)count, .ref = *ref};
        unit_insert(u, &p);
    }
    t->dirty[0] = true;
    return 0;
}
int bp_tree_get(struct bp_tree *t, uint64_t unit, struct bp_unit *ret, struct gr_err *err)
{
    if (unit >= t->units)
        return gr_fail(err, -GR_ERANGE, "unit %llu lies outside the map", (unsigned long long)unit);
    int r = seek(t, unit, 0, err);
    if (r == 0)
        *ret = t->node[0]->unit[unit % REPO_FANOUT];
    return r;
}
int bp_tree_clear(struct bp_tree *t, uint64_t from, uint64_t to, struct gr_err *err)
{
    while (from < to) {
        unsigned level = 0;
        while (level + 1 < t->levels && !(from % bp_tree_span(level + 1)) && to - from >= bp_tree_span(level + 1))
            level++;
        int r = seek(t, from, level, err);
        if (r < 0)
            return r;
        struct bp_node *n = t->node[level];
        unsigned slot = (unsigned)(from / bp_tree_span(level) % REPO_FANOUT);
        if (level ? n->child[slot].raw : n->unit[slot].n) {
            if (level)
                n->child[slot] = (struct bp_ref){0};
            else
                n->unit[slot].n = 0;
            t->dirty[level] = true;
        }
        from += bp_tree_span(level);
    }
    return 0;
}
/* Forget what lies behind the new, smaller end. */
static int shrink(struct bp_tree *t, struct gr_err *err)
{
    uint64_t limit = node_units(t->levels - 1);
    unsigned last = (unsigned)(t->pieces % REPO_PIECES);
    int r = 0;
    if (t->base_units >= t->units && t->base.raw && last)
        r = bp_tree_set(t, t->units - 1, last, REPO_PIECES - last, NULL, err);
    return r == 0 && t->base_units > t->units ? bp_tree_clear(t, t->units, GR_MIN(t->base_units, limit), err) : r;
}
int bp_tree_finish(struct bp_tree *t, struct bp_ref *ret_root, struct gr_err *err)
{
    struct bp_ref root = t->base;
    int r = shrink(t, err);
    if (r == 0 && t->low == t->levels && t->base_levels != t->levels && t->base.raw)
        r = enter_top(t, err);
    while (r == 0 && t->low < t->levels)
        r = leave(t, &root, err);
    if (r == 0)
        *ret_root = root;
    return r;
}
