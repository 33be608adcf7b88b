/* What becomes of each piece of a write that cannot go in place, decided at one instant: where it stays, where it goes, and the records of that. */
#include "common/seam.h"
#include "vmfs/broken.h"
#include "vmfs/internal.h"

void plan_begin(struct plan *p, struct dop *op)
{
    p->op = op;
    p->parts = p->few;
    p->n = 0;
    p->cap = PLAN_FEW;
    p->growth = 0;
}

void plan_end(struct plan *p)
{
    if (p->parts != p->few)
        free(p->parts);
}

static int part_add(struct plan *p, struct part x)
{
    struct part *last = p->n ? &p->parts[p->n - 1] : NULL;
    struct vmfs *v = p->op->o->v;
    if (last && space_region_index(v, last->addr) != space_region_index(v, x.addr))
        last = NULL; /* one record changes the bits of one region */
    if (last && !x.reserve && !last->reserve && last->in_place == x.in_place && last->own_unit == x.own_unit && last->addr + last->count == x.addr &&
        last->piece + last->count == x.piece && x.piece % VMFS_LEAF_PIECES) {
        last->count += x.count;
        return 0;
    }
    if (p->n == p->cap) {
        struct part *a = gr_realloc(p->parts == p->few ? NULL : p->parts, p->cap * 2 * sizeof *a);
        if (!a)
            return -ENOMEM;
        if (p->parts == p->few)
            memcpy(a, p->few, sizeof p->few);
        p->parts = a;
        p->cap *= 2;
    }
    p->parts[p->n++] = x;
    return 0;
}

void plan_drop(struct plan *p)
{
    for (size_t i = 0; i < p->n; i++)
        if (!p->parts[i].in_place && !p->parts[i].own_unit && !p->parts[i].reserve)
            space_unreserve(p->op->o->v, p->parts[i].addr, p->parts[i].count);
        else if (p->parts[i].reserve)
            space_unreserve(p->op->o->v, p->parts[i].addr, VMFS_BLOCK_PIECES);
    p->n = 0;
}

/* Does the piece lie where the write may overwrite it, or has a reserved unit of its own? */
static bool keeps_place(const struct dop *op, const struct mentry *e, const struct mpiece *m, bool atomic)
{
    if ((m->birth != op->range.epoch && !VMFS_BROKEN(IN_PLACE)) || (m->state != VMFS_P_HOLE && space_leaving(op->o->v, m->addr)))
        return false;
    return m->state == VMFS_P_RESERVED || (m->state == VMFS_P_DATA && !atomic && (!vcrc_kept(op->o->v) || VMFS_BROKEN(IN_PLACE)) && e->seq <= op->o->v->j.sealed_seq);
}

bool plan_keeps_all(const struct dop *op, uint64_t first, uint64_t end, bool atomic, bool *ret_own, bool *ret_data)
{
    bool all = true;
    *ret_own = *ret_data = true;
    for (uint64_t piece = first; piece < end && *ret_own; piece++) {
        struct mnode *leaf;
        const struct mentry *e = NULL;
        struct mpiece m = { 0 };
        if (mtree_peek(&op->o->live, piece, &leaf) == 0 && leaf) {
            e = &leaf->ent[piece % VMFS_LEAF_PIECES / VMFS_BLOCK_PIECES];
            m = ment_piece(e, (unsigned)(piece % VMFS_BLOCK_PIECES));
        }
        *ret_data &= m.state == VMFS_P_DATA;
        if (e && keeps_place(op, e, &m, atomic))
            continue;
        all = false;
        *ret_own = e && m.state == VMFS_P_DATA && m.birth == op->range.epoch;
    }
    return all;
}

/* New place for pieces [piece, piece+n) of one block. */
static int plan_new(struct plan *p, const struct mentry *e, uint64_t piece, uint32_t n)
{
    struct vmfs *v = p->op->o->v;
    bool never_written = !e || (!e->px && !e->addr);
    if (n == VMFS_BLOCK_PIECES || never_written) {
        uint64_t a = space_take_block(v);
        if (a) {
            uint64_t block = piece - piece % VMFS_BLOCK_PIECES;
            if (n < VMFS_BLOCK_PIECES) {
                int r = part_add(p, (struct part){ .piece = block, .addr = a, .count = VMFS_BLOCK_PIECES, .reserve = true });
                if (r < 0) {
                    space_unreserve(v, a, VMFS_BLOCK_PIECES);
                    return r;
                }
            }
            int r = part_add(p, (struct part){ .piece = piece, .addr = a + (piece - block), .count = n, .own_unit = n < VMFS_BLOCK_PIECES });
            if (r < 0 && n == VMFS_BLOCK_PIECES) /* else the plan has it */
                space_unreserve(v, a, VMFS_BLOCK_PIECES);
            return r;
        }
    }
    v->stats.splits += !never_written;
    for (uint32_t i = 0; i < n; i++) {
        uint64_t a = space_take_piece(v);
        int r = a ? part_add(p, (struct part){ .piece = piece + i, .addr = a, .count = 1 }) : -EAGAIN;
        if (r < 0) {
            if (a)
                space_unreserve(v, a, 1);
            return r;
        }
    }
    return 0;
}

int plan_make(struct plan *p, uint64_t first, uint64_t end, bool atomic)
{
    struct vobj *o = p->op->o;
    for (uint64_t piece = first; piece < end;) {
        struct mnode *leaf;
        if (mtree_peek(&o->live, piece, &leaf) < 0)
            return -EAGAIN;
        const struct mentry *e = leaf ? &leaf->ent[piece % VMFS_LEAF_PIECES / VMFS_BLOCK_PIECES] : NULL;
        uint64_t block_end = GR_MIN(end, piece - piece % VMFS_BLOCK_PIECES + VMFS_BLOCK_PIECES);
        uint32_t n = 0;
        while (e && piece + n < block_end) { /* a leading stretch that keeps its place */
            struct mpiece m = ment_piece(e, (unsigned)((piece + n) % VMFS_BLOCK_PIECES));
            if (!keeps_place(p->op, e, &m, atomic))
                break;
            bool data = m.state == VMFS_P_DATA;
            int r = part_add(p, (struct part){ .piece = piece + n, .addr = m.addr, .count = 1, .in_place = data, .own_unit = !data });
            if (r < 0)
                return r;
            n++;
        }
        uint32_t from = n;
        while (piece + n < block_end) {
            struct mpiece m = { 0 };
            if (e)
                m = ment_piece(e, (unsigned)((piece + n) % VMFS_BLOCK_PIECES));
            if (e && keeps_place(p->op, e, &m, atomic))
                break;
            n++;
        }
        if (n > from) {
            int r = plan_new(p, e, piece + from, n - from);
            if (r < 0)
                return r;
        }
        piece += n;
    }
    return 0;
}

int64_t plan_growth(const struct plan *p)
{
    struct vobj *o = p->op->o;
    int64_t taken = 0, replaced = 0;
    for (size_t i = 0; i < p->n; i++) {
        const struct part *x = &p->parts[i];
        if (x->in_place || x->own_unit)
            continue;
        taken += x->count;
        for (uint32_t k = 0; k < x->count && !x->reserve; k++) {
            struct mnode *leaf;
            uint64_t piece = x->piece + k;
            if (mtree_peek(&o->live, piece, &leaf) < 0 || !leaf)
                continue;
            struct mpiece m = ment_piece(&leaf->ent[piece % VMFS_LEAF_PIECES / VMFS_BLOCK_PIECES], (unsigned)(piece % VMFS_BLOCK_PIECES));
            replaced += m.state != VMFS_P_HOLE && !held_by_ancestors(o, o->parent_snap, m.birth, piece + 1);
        }
    }
    int64_t more = taken - replaced;
    return more > 0 ? more - (int64_t)GR_MIN((uint64_t)more, o->reserved_units) : more;
}

uint32_t plan_devs(const struct plan *p)
{
    uint32_t devs = 0;
    for (size_t i = 0; i < p->n; i++)
        devs |= p->parts[i].reserve ? 0 : (uint32_t)1 << vmfs_addr_dev(p->parts[i].addr);
    return devs;
}

static bool block_empty(struct vobj *o, uint64_t piece)
{
    struct mnode *leaf;
    if (mtree_peek(&o->live, piece, &leaf) < 0 || !leaf)
        return true;
    const struct mentry *e = &leaf->ent[piece % VMFS_LEAF_PIECES / VMFS_BLOCK_PIECES];
    return !e->px && !e->addr;
}

int plan_record(struct plan *p, uint64_t first, const uint32_t *crc, bool durable)
{
    struct dop *op = p->op;
    int r = 0;
    for (size_t i = 0; r == 0 && i < p->n; i++) {
        const struct part *x = &p->parts[i];
        if (x->in_place)
            continue;
        op->o->v->stats.writes_redirected++;
        if (x->reserve && !block_empty(op->o, x->piece)) {
            space_unreserve(op->o->v, x->addr, x->count); /* a neighbour gave the block its run meanwhile: our pieces stand alone */
            continue;
        }
        const uint32_t *its = crc && !x->reserve ? crc + (x->piece - first) : NULL;
        if (x->reserve)
            r = record_map(op->o, x->piece, x->count, x->addr, op->range.epoch, VMFS_P_RESERVED, NULL);
        else if (durable)
            r = record_durable(op->o, x->piece, x->count, x->addr, op->range.epoch, its);
        else
            r = record_map(op->o, x->piece, x->count, x->addr, op->range.epoch, VMFS_P_DATA, its);
    }
    return r;
}

