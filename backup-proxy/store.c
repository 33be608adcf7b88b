#include "backup-proxy/store.h"
#include "backup-proxy/pipe.h"
#include "backup-proxy/tree.h"
#include "backup-proxy/walk.h"
#include "common/cleanup.h"
#include <string.h>

#define SLOT_PIECES 256u /* 1 MiB */
#define SLOT_SEGS 64u
#define LANES 8u
#define RECENT 16384u
#define DEFAULT_LEVEL 3

/* Pieces of one unit that become one extent. */
enum seg_fate { SEG_ZERO, SEG_NEW, SEG_KNOWN, SEG_TWIN };
struct seg {
    uint64_t unit;
    unsigned first, count; /* pieces */
    unsigned at;           /* first piece in the slot's buffer */
    enum seg_fate fate;
    unsigned twin;         /* TWIN: earlier seg of the slot with the same bytes */
    struct bp_ref base;    /* what the parent has for the whole unit; raw == 0: unknown */
    struct bp_ref ref;     /* KNOWN, later NEW too: where it is */
    uint8_t hash[32];
    uint32_t enc_at, enc_len;
};
struct slot {
    struct store *s;
    bool zero;             /* a run of zeros instead of segs */
    uint64_t z_from, z_to; /* pieces */
    unsigned n, pieces;
    struct seg seg[SLOT_SEGS];
    struct bp_codec codec;
    uint8_t *buf, *enc;
};
struct change { /* in pieces */
    uint64_t from, to;
    bool zero;
};
struct store {
    const struct bp_store_job *job;
    struct bp_packer *data, *map;
    struct bp_tree *tree, *view; /* view: the parent's map, read only; NULL: no parent */
    uint64_t pieces;
    struct change queue[3];
    unsigned q_at, q_n;
    uint64_t taken; /* pieces below are dealt with */
    struct bp_ref *recent;
    struct bp_store_stats stats;
    struct gr_err work_err; /* of the commit running on the pool */
};

/* ---- what is to be done ---- */
static void queue_add(struct store *s, uint64_t from, uint64_t to, bool zero)
{
    from = GR_MAX(from, s->taken);
    if (from >= to)
        return;
    s->queue[s->q_n++] = (struct change){from, to, zero};
    s->taken = to;
}
/* A disk that shrank into the middle of a piece: the parent's bytes behind the end must not stay. */
static bool cut_piece(struct store *s)
{
    if (s->job->incremental && s->job->parent_size > s->job->size && s->job->size % REPO_PIECE)
        queue_add(s, s->pieces - 1, s->pieces, false);
    return s->q_n > 0;
}
/* Whole pieces: data grows to them, zeros shrink to them and leave their torn edges to be read. */
static int queue_fill(struct store *s, struct gr_err *err)
{
    struct bp_change c;
    s->q_at = s->q_n = 0;
    while (s->q_n == 0) {
        int r = s->job->next(s->job->next_arg, &c, err);
        if (r < 0 || (r == 0 && !cut_piece(s)))
            return r;
        if (r == 0)
            return 1;
        if (c.len == 0 || c.off >= s->job->size)
            continue; /* behind the end of a disk that shrank */
        uint64_t end = c.off + GR_MIN(c.len, s->job->size - c.off);
        uint64_t a = c.off / REPO_PIECE, b = (end + REPO_PIECE - 1) / REPO_PIECE;
        uint64_t za = (c.off + REPO_PIECE - 1) / REPO_PIECE, zb = end == s->job->size ? b : end / REPO_PIECE;
        s->stats.changed += end - c.off;
        if (c.zero && za < zb) {
            queue_add(s, a, za, false);
            queue_add(s, za, zb, true);
            queue_add(s, zb, b, false);
        } else {
            queue_add(s, a, b, false);
        }
    }
    return 1;
}
static int base_of(struct store *s, struct seg *g, struct gr_err *err)
{
    struct bp_unit u;
    g->base = (struct bp_ref){0};
    if (!s->view || g->count != REPO_PIECES || g->unit >= (s->job->parent_size + REPO_UNIT - 1) / REPO_UNIT)
        return 0;
    int r = bp_tree_get(s->view, g->unit, &u, err);
    if (r == 0 && u.n == 1 && u.part[0].count == REPO_PIECES && u.part[0].src == 0)
        g->base = u.part[0].ref;
    return r;
}
static int store_next(void *arg, void *slot, struct gr_err *err)
{
    struct store *s = arg;
    struct slot *t = slot;
    t->s = s;
    t->n = t->pieces = 0;
    t->zero = false;
    if (s->job->cancel && *s->job->cancel)
        return gr_fail(err, -GR_ECANCELED, "ended by a signal");
    while (t->n < SLOT_SEGS && t->pieces < SLOT_PIECES) {
        int r = s->q_at < s->q_n ? 1 : queue_fill(s, err);
        if (r <= 0)
            return r < 0 ? r : t->n > 0;
        struct change *c = &s->queue[s->q_at];
        if (c->zero) {
            if (t->n > 0)
                return 1;
            t->zero = true;
            t->z_from = c->from;
            t->z_to = c->to;
            s->q_at++;
            return 1;
        }
        struct seg *g = &t->seg[t->n];
        g->unit = c->from / REPO_PIECES;
        g->first = (unsigned)(c->from % REPO_PIECES);
        g->count = (unsigned)GR_MIN(c->to - c->from, (uint64_t)(REPO_PIECES - g->first));
        if (g->count > SLOT_PIECES - t->pieces)
            return 1;
        g->at = t->pieces;
        r = base_of(s, g, err);
        if (r < 0)
            return r;
        t->n++;
        t->pieces += g->count;
        c->from += g->count;
        if (c->from == c->to)
            s->q_at++;
    }
    return 1;
}

/* ---- bytes ---- */
static int store_load(void *arg, void *slot, struct gr_err *err)
{
    struct store *s = arg;
    struct slot *t = slot;
    for (unsigned i = 0, k; i < t->n; i = k) {
        uint64_t from = t->seg[i].unit * REPO_PIECES + t->seg[i].first, end = from + t->seg[i].count;
        for (k = i + 1; k < t->n && t->seg[k].unit * REPO_PIECES + t->seg[k].first == end; k++)
            end += t->seg[k].count;
        uint8_t *p = t->buf + (size_t)t->seg[i].at * REPO_PIECE;
        size_t room = (size_t)(end - from) * REPO_PIECE, len = (size_t)GR_MIN((uint64_t)room, s->job->size - from * REPO_PIECE);
        int r = gr_pread(s->job->src, p, len, from * REPO_PIECE);
        if (r < 0)
            return gr_fail(err, r, "%s: cannot read %zu bytes at %llu: %s", s->job->src->bdev->name, len,
                           (unsigned long long)from * REPO_PIECE, gr_code_text(r));
        memset(p + len, 0, room - len);
        s->stats.read += len;
    }
    return 0;
}

static bool twin_find(const struct slot *t, unsigned i, unsigned *ret)
{
    for (unsigned k = 0; k < i; k++)
        if (t->seg[k].fate == SEG_NEW && t->seg[k].count == t->seg[i].count && !memcmp(t->seg[k].hash, t->seg[i].hash, 32)) {
            *ret = k;
            return true;
        }
    return false;
}
static int store_work(void *slot)
{
    struct slot *t = slot;
    struct bp_repo *repo = t->s->job->repo;
    uint32_t enc = 0;
    for (unsigned i = 0; i < t->n; i++) {
        struct seg *g = &t->seg[i];
        const uint8_t *p = t->buf + (size_t)g->at * REPO_PIECE;
        uint32_t len = g->count * REPO_PIECE;
        g->fate = SEG_ZERO;
        if (bp_is_zero(p, len))
            continue;
        bp_sha256(p, len, g->hash);
        g->fate = SEG_TWIN;
        if (twin_find(t, i, &g->twin))
            continue;
        g->fate = SEG_KNOWN;
        if (g->base.raw == len && !memcmp(g->base.hash, g->hash, 32) && !bp_condemned(repo, g->base.pack) &&
            bp_extent_probe(repo, &t->codec, g->base.pack, g->base.off, g->base.stored, g->hash, &g->ref))
            continue;
        if (bp_dedupe_find(repo, &t->codec, g->hash, len, &g->ref))
            continue;
        g->fate = SEG_NEW;
        int n = bp_extent_encode(&t->codec, REPO_DATA, p, len, g->hash, t->s->job->level ? t->s->job->level : DEFAULT_LEVEL, t->enc + enc);
        if (n < 0)
            return n;
        g->enc_at = enc;
        g->enc_len = (uint32_t)n;
        enc += (uint32_t)n;
    }
    return 0;
}

/* ---- packs and map, in order, one slot at a time, on the pool ---- */
static struct bp_ref *recent_of(struct store *s, const uint8_t hash[32])
{
    return &s->recent[gr_get_le32(hash + 4) % RECENT];
}
static int seg_place(struct store *s, struct slot *t, struct seg *g, struct gr_err *err)
{
    if (g->fate == SEG_TWIN)
        g->ref = t->seg[g->twin].ref;
    struct bp_ref *known = recent_of(s, g->hash);
    if (g->fate == SEG_NEW && known->raw == g->count * REPO_PIECE && !memcmp(known->hash, g->hash, 32)) {
        g->ref = *known;
        g->fate = SEG_KNOWN;
    }
    if (g->fate != SEG_NEW) {
        s->stats.deduped += (uint64_t)g->count * REPO_PIECE;
        return 0;
    }
    int r = bp_packer_add(s->data, t->enc + g->enc_at, g->enc_len, &g->ref, err);
    if (r == 0)
        *known = g->ref;
    return r;
}
static int zero_run(struct store *s, uint64_t from, uint64_t to, struct gr_err *err)
{
    uint64_t a = (from + REPO_PIECES - 1) / REPO_PIECES, b = to / REPO_PIECES;
    if (a > b || from / REPO_PIECES == (to - 1) / REPO_PIECES)
        return bp_tree_set(s->tree, from / REPO_PIECES, (unsigned)(from % REPO_PIECES), (unsigned)(to - from), NULL, err);
    int r = 0;
    if (from % REPO_PIECES)
        r = bp_tree_set(s->tree, from / REPO_PIECES, (unsigned)(from % REPO_PIECES), REPO_PIECES - (unsigned)(from % REPO_PIECES), NULL, err);
    if (r == 0)
        r = bp_tree_clear(s->tree, a, b, err);
    if (r == 0 && to % REPO_PIECES)
        r = bp_tree_set(s->tree, b, 0, (unsigned)(to % REPO_PIECES), NULL, err);
    return r;
}
static int commit_work(void *arg)
{
    struct slot *t = arg;
    struct store *s = t->s;
    struct gr_err *err = &s->work_err;
    if (t->zero)
        return zero_run(s, t->z_from, t->z_to, err);
    for (unsigned i = 0; i < t->n; i++) {
        struct seg *g = &t->seg[i];
        int r = g->fate == SEG_ZERO ? 0 : seg_place(s, t, g, err);
        if (r == 0)
            r = bp_tree_set(s->tree, g->unit, g->first, g->count, g->fate == SEG_ZERO ? NULL : &g->ref, err);
        if (r < 0)
            return r;
    }
    return bp_packer_full(s->data) ? bp_packer_flush(s->data, err) : 0;
}
static int store_commit(void *arg, void *slot, struct gr_err *err)
{
    struct store *s = arg;
    struct slot *t = slot;
    s->work_err = (struct gr_err){0};
    int r = gr_fiber_work(commit_work, t);
    if (r < 0) {
        *err = s->work_err;
        return r;
    }
    if (s->job->progress && t->n > 0)
        s->job->progress(s->job->progress_arg, GR_MIN((t->seg[t->n - 1].unit + 1) * (uint64_t)REPO_UNIT, s->job->size), s->job->size);
    return 0;
}

/* ---- the whole ---- */
static int finish_work(void *arg)
{
    struct store *s = arg;
    int r = bp_packer_seal(s->data, &s->work_err); /* data is durable before a map names it */
    return r < 0 ? r : bp_packer_seal(s->map, &s->work_err);
}
static int store_run(struct store *s, struct bp_ref *ret_root, struct gr_err *err)
{
    static const struct bp_pipe_ops ops = {store_next, store_load, store_work, store_commit};
    struct slot *slots = gr_zalloc(LANES * sizeof *slots);
    int r = slots ? 0 : -ENOMEM;
    for (unsigned i = 0; r == 0 && i < LANES; i++) {
        slots[i].buf = gr_alloc_aligned(4096, SLOT_PIECES * REPO_PIECE);
        slots[i].enc = gr_alloc(SLOT_PIECES * REPO_PIECE + SLOT_SEGS * 128 + BP_ENCODED_MAX);
        if (!slots[i].buf || !slots[i].enc)
            r = -ENOMEM;
    }
    r = r < 0 ? gr_fail(err, r, "out of memory for %u workers", LANES) : bp_pipe_run(&ops, s, slots, sizeof *slots, LANES, err);
    for (unsigned i = 0; slots && i < LANES; i++) {
        free(slots[i].buf);
        free(slots[i].enc);
        bp_codec_done(&slots[i].codec);
    }
    free(slots);
    if (r == 0)
        r = bp_tree_finish(s->tree, ret_root, err);
    if (r == 0 && (r = gr_fiber_work(finish_work, s)) < 0)
        *err = s->work_err;
    return r;
}
static int store_open(struct store *s, struct gr_err *err)
{
    static const struct bp_ref none;
    const struct bp_store_job *j = s->job;
    s->pieces = (j->size + REPO_PIECE - 1) / REPO_PIECE;
    s->recent = gr_zalloc(RECENT * sizeof *s->recent);
    if (!s->recent)
        return gr_fail(err, -ENOMEM, "out of memory");
    int r = bp_packer_new(j->repo, j->lease, &s->data, err);
    if (r == 0)
        r = bp_packer_new(j->repo, j->lease, &s->map, err);
    if (r == 0)
        r = bp_tree_new(j->repo, s->map, j->incremental ? &j->parent : &none, j->incremental ? j->parent_size : j->size, j->size, &s->tree, err);
    if (r == 0 && !j->incremental && j->parent.raw)
        r = bp_tree_new(j->repo, NULL, &j->parent, j->parent_size, j->parent_size, &s->view, err);
    return r;
}
int bp_store_disk(const struct bp_store_job *job, struct bp_ref *ret_root, struct bp_store_stats *ret_stats, struct gr_err *err)
{
    gr_auto_free struct store *s = gr_zalloc(sizeof *s);
    struct bp_ref root = {0};
    struct gr_err local = {0};
    if (!err)
        err = &local;
    if (!s)
        return gr_fail(err, -ENOMEM, "out of memory");
    s->job = job;
    int r = store_open(s, err);
    if (r == 0)
        r = store_run(s, &root, err);
    if (r == 0) {
        s->stats.stored = bp_packer_bytes(s->data);
        s->stats.map = bp_packer_bytes(s->map);
        *ret_stats = s->stats;
        *ret_root = root;
    }
    bp_tree_free(s->tree);
    bp_tree_free(s->view);
    bp_packer_free(s->data);
    bp_packer_free(s->map);
    free(s->recent);
    return r;
}
