/* Codec of map nodes. */
#include "backup-proxy/tree.h"
#include "common/cleanup.h"
#include "common/seam.h"
#include <string.h>

uint64_t bp_tree_span(unsigned level)
{
    return (uint64_t)1 << (6 * level);
}
unsigned bp_tree_levels(uint64_t size)
{
    uint64_t units = size / REPO_UNIT + (size % REPO_UNIT != 0);
    unsigned levels = 1;
    while (levels < REPO_MAX_LEVELS && bp_tree_span(levels) < units)
        levels++;
    return levels;
}

static size_t put_ref(uint8_t *out, const struct bp_ref *ref)
{
    struct ref_disk d;
    bp_ref_encode(ref, &d);
    memcpy(out, &d, sizeof d);
    return sizeof d;
}
int bp_node_encode(const struct bp_node *n, uint8_t *out, size_t room)
{
    struct node_header_disk h = {.magic = gr_le32_of(NODE_MAGIC), .level = (uint8_t)n->level, .version = 1, .first_unit = gr_le64_of(n->first_unit)};
    size_t len = sizeof h;
    unsigned used = 0;
    if (room < REPO_NODE_MAX)
        return -EINVAL;
    for (unsigned i = 0; i < REPO_FANOUT; i++) {
        unsigned parts = n->level ? 0 : n->unit[i].n;
        if (n->level ? n->child[i].raw == 0 : parts == 0)
            continue;
        struct node_slot_disk s = {.slot = (uint8_t)i, .parts = (uint8_t)parts};
        memcpy(out + len, &s, sizeof s);
        len += sizeof s;
        used++;
        if (n->level) {
            len += put_ref(out + len, &n->child[i]);
            continue;
        }
        for (unsigned k = 0; k < parts; k++) {
            const struct bp_part *p = &n->unit[i].part[k];
            struct node_part_disk d = {p->first, p->count, p->src, 0};
            memcpy(out + len, &d, sizeof d);
            len += sizeof d;
            len += put_ref(out + len, &p->ref);
        }
    }
    h.count = gr_le16_of((uint16_t)used);
    memcpy(out, &h, sizeof h);
    return used ? (int)len : 0;
}

struct cursor {
    const uint8_t *p;
    size_t left;
};
static int take(struct cursor *c, void *out, size_t len)
{
    if (c->left < len)
        return -GR_ECORRUPT;
    memcpy(out, c->p, len);
    c->p += len;
    c->left -= len;
    return 0;
}
static int take_ref(struct cursor *c, struct bp_ref *ret)
{
    struct ref_disk d;
    if (take(c, &d, sizeof d) < 0)
        return -GR_ECORRUPT;
    bp_ref_decode(&d, ret);
    return ret->raw == 0 || ret->raw > REPO_UNIT || ret->stored == 0 || ret->stored > REPO_UNIT ? -GR_ECORRUPT : 0;
}
static int take_unit(struct cursor *c, unsigned parts, struct bp_unit *ret)
{
    unsigned next = 0;
    if (parts == 0 || parts > REPO_PIECES)
        return -GR_ECORRUPT;
    for (unsigned k = 0; k < parts; k++) {
        struct node_part_disk d;
        struct bp_part *p = &ret->part[k];
        if (take(c, &d, sizeof d) < 0 || take_ref(c, &p->ref) < 0 || p->ref.raw % REPO_PIECE)
            return -GR_ECORRUPT;
        if (d.first < next || d.first >= REPO_PIECES || d.count == 0 || d.count > REPO_PIECES - d.first || d.src > p->ref.raw / REPO_PIECE ||
            d.count > p->ref.raw / REPO_PIECE - d.src)
            return -GR_ECORRUPT;
        p->first = d.first;
        p->count = d.count;
        p->src = d.src;
        next = d.first + d.count;
    }
    ret->n = parts;
    return 0;
}
int bp_node_decode(const uint8_t *in, size_t len, unsigned level, uint64_t first_unit, struct bp_node *ret, struct gr_err *err)
{
    struct cursor c = {in, len};
    struct node_header_disk h;
    int next = 0;
    if (take(&c, &h, sizeof h) < 0 || gr_le32_get(h.magic) != NODE_MAGIC || h.version != 1)
        return gr_fail(err, -GR_ECORRUPT, "a map node has no valid header");
    if (h.level != level || gr_le64_get(h.first_unit) != first_unit)
        return gr_fail(err, -GR_ECORRUPT, "a map node for level %u, unit %llu stands where level %u, unit %llu belongs", h.level,
                       (unsigned long long)gr_le64_get(h.first_unit), level, (unsigned long long)first_unit);
    memset(ret, 0, sizeof *ret);
    ret->level = level;
    ret->first_unit = first_unit;
    for (unsigned k = 0; k < gr_le16_get(h.count); k++) {
        struct node_slot_disk s;
        if (take(&c, &s, sizeof s) < 0 || s.slot < next || s.slot >= REPO_FANOUT)
            return gr_fail(err, -GR_ECORRUPT, "slots of a map node are out of order");
        next = s.slot + 1;
        int r = level ? (s.parts ? -GR_ECORRUPT : take_ref(&c, &ret->child[s.slot])) : take_unit(&c, s.parts, &ret->unit[s.slot]);
        if (r < 0)
            return gr_fail(err, r, "slot %u of a map node (level %u, unit %llu) is malformed", s.slot, level, (unsigned long long)first_unit);
    }
    return c.left ? gr_fail(err, -GR_ECORRUPT, "a map node has %zu bytes too many", c.left) : 0;
}
int bp_node_read(struct bp_repo *r, struct bp_codec *c, const struct bp_ref *ref, unsigned level, uint64_t first_unit, struct bp_node *ret,
                 struct gr_err *err)
{
    gr_auto_free uint8_t *raw = gr_alloc(ref->raw ? ref->raw : 1);
    if (!raw)
        return gr_fail(err, -ENOMEM, "out of memory");
    int rc = bp_extent_read(r, c, REPO_MAP, ref, raw, err);
    return rc < 0 ? rc : bp_node_decode(raw, ref->raw, level, first_unit, ret, err);
}

struct walk {
    struct bp_repo *r;
    struct bp_codec *c;
    uint64_t from, to;
    const struct bp_walk_ops *ops;
    void *arg;
};
static int walk_node(struct walk *w, const struct bp_ref *ref, unsigned level, uint64_t first, struct gr_err *err)
{
    int rc = w->ops->node ? w->ops->node(w->arg, ref, level, first) : 1;
    if (rc <= 0)
        return rc;
    gr_auto_free struct bp_node *n = gr_alloc(sizeof *n);
    if (!n)
        return gr_fail(err, -ENOMEM, "out of memory");
    rc = bp_node_read(w->r, w->c, ref, level, first, n, err);
    if (rc < 0)
        return rc;
    uint64_t span = bp_tree_span(level);
    for (unsigned i = 0; rc >= 0 && i < REPO_FANOUT; i++) {
        uint64_t at = first + i * span;
        if (at >= w->to || w->to == 0)
            break;
        if (at + span <= w->from)
            continue;
        if (level && n->child[i].raw)
            rc = walk_node(w, &n->child[i], level - 1, at, err);
        else if (!level && n->unit[i].n && w->ops->unit)
            rc = w->ops->unit(w->arg, at, &n->unit[i]);
    }
    return rc < 0 ? rc : 0;
}
int bp_tree_walk(struct bp_repo *r, struct bp_codec *c, const struct bp_ref *root, uint64_t size, uint64_t from, uint64_t to,
                 const struct bp_walk_ops *ops, void *arg, struct gr_err *err)
{
    struct walk w = {r, c, from, to, ops, arg};
    return root->raw == 0 ? 0 : walk_node(&w, root, bp_tree_levels(size) - 1, 0, err);
}
