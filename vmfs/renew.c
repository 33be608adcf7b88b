/* Writing anew what a disk has of earlier times, while it is in use: range by range behind the same locks as its users' writes, so that none of
 * theirs is lost. What was written anew is young, so whoever begins again goes on where the last one was. */
#include "common/seam.h"
#include "vmfs/internal.h"
#include <assert.h>

#define RENEW_PIECES 64u /* looked at, and written, at once */

static bool is_old(const struct vrenew *w, const struct mpiece *m)
{
    return (m->state == VMFS_P_DATA || (w->all && m->state != VMFS_P_HOLE)) && m->birth < w->from;
}

static struct mpiece piece_at(const struct mnode *leaf, uint64_t piece)
{
    return ment_piece(&leaf->ent[piece % VMFS_LEAF_PIECES / VMFS_BLOCK_PIECES], (unsigned)(piece % VMFS_BLOCK_PIECES));
}

/* The first run of old pieces in [*piece, end) of one leaf, all with data or all without: its length, and *piece where it begins. 0: none. */
static uint32_t old_run(const struct vrenew *w, const struct mnode *leaf, uint64_t *piece, uint64_t end, bool *ret_data)
{
    uint32_t n = 0;
    struct mpiece m = { 0 };
    while (*piece < end && (m = piece_at(leaf, *piece), !is_old(w, &m)))
        (*piece)++;
    *ret_data = m.state == VMFS_P_DATA;
    for (; *piece + n < end && n < RENEW_PIECES; n++) {
        m = piece_at(leaf, *piece + n);
        if (!is_old(w, &m) || (m.state == VMFS_P_DATA) != *ret_data)
            break;
    }
    return n;
}

/* Admitted: what is old in [first, end) of one leaf is read and written; what has no data needs no unit. */
static int renew_range(struct vrenew *w, struct dop *op, uint64_t first, uint64_t end)
{
    struct vobj *o = op->o;
    uint8_t *buf = vunits_alloc(RENEW_PIECES);
    int r = buf ? 0 : -ENOMEM;
    while (r == 0 && first < end) {
        struct mnode *leaf;
        bool data = false;
        journal_room_for(op);
        r = o->v->fenced ? -GR_EFENCED : mtree_load(o, &o->live, first, NULL);
        if (r < 0 || mtree_peek(&o->live, first, &leaf) < 0)
            continue;
        uint32_t n = leaf ? old_run(w, leaf, &first, end, &data) : 0;
        if (!n)
            break;
        struct iovec iov = { buf, (size_t)n * VMFS_PIECE };
        if (!data) {
            r = disk_clear_pieces(op, first, first + n);
        } else if ((r = tree_read_wait(o, &o->live, buf, iov.iov_len, first * VMFS_PIECE)) == 0) {
            r = disk_write_pieces(op, first * VMFS_PIECE, iov.iov_len, &iov, 1, false);
            w->done += n;
        }
        first += n;
    }
    free(buf);
    return r;
}

static int renew_pass(struct vrenew *w, struct vobj *o, uint64_t first, uint64_t end)
{
    struct dpass p;
    struct dop *op = disk_pass_begin(&p, o, first, end, false);
    if (!op)
        return -ENOMEM;
    disk_op_finish(op, op->v->fenced ? -GR_EFENCED : renew_range(w, op, first, end), false);
    assert(p.ended);
    return p.bio.status;
}

int disk_renew(struct vrenew *w, struct gr_err *err)
{
    struct vobj *o = w->d->o;
    int r = 0;
    for (uint64_t piece = 0; r == 0;) {
        struct mnode *leaf;
        bool data;
        r = mtree_next(o, &o->live, piece, 0, &piece, err);
        if (r < 0 || piece == UINT64_MAX)
            break;
        r = mtree_load(o, &o->live, piece, err);
        if (r < 0 || mtree_peek(&o->live, piece, &leaf) < 0)
            continue;
        uint64_t at = piece, end = (piece / VMFS_LEAF_PIECES + 1) * VMFS_LEAF_PIECES;
        uint32_t n = leaf ? old_run(w, leaf, &piece, end, &data) : 0;
        if (!n) {
            r = w->leaf && leaf ? w->leaf(w, at, leaf, err) : 0;
            piece = end;
            gr_fiber_yield();
        } else if ((r = renew_pass(w, o, piece, piece + n)) < 0) {
            gr_fail(err, r, "it cannot be written anew: %s", gr_code_text(r));
        } else {
            piece = at; /* the rest of the leaf, and then the leaf itself */
            r = w->progress ? w->progress(w->arg, w->done, err) : 0;
        }
        if (r == 0 && (w->d->gone || w->d->o != o || o->v->fenced))
            r = gr_fail(err, -GR_EFENCED, "it is no longer ours");
    }
    return r;
}
