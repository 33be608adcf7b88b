/* Reading trees: bytes, extents, what changed since. */
#include "common/seam.h"
#include "vmfs/loss.h"
#include "vmfs/keys.h"
#include "vmfs/tree_scan.h"

/* ---- segments: runs of a request that are contiguous on a device, or zeros ---- */
struct seg {
    uint64_t addr; /* of the first piece; 0: zeros */
    size_t off, len; /* bytes of the request */
    size_t skip;     /* bytes into the first piece */
    int key;         /* of an encrypted disk: that of its pieces */
};
struct rkid { /* the read of one */
    struct gr_bio bio; /* first member */
    size_t off;        /* bytes of the request */
    int key;           /* negative: zeros, not read */
    unsigned dev;
};
#define SEGS_INLINE 8
#define IOV_INLINE 16
#define WANT_INLINE 4
struct rop { /* one READ */
    struct rop *next; /* pool; first member */
    struct vobj *o;
    struct mtree *t;
    struct gr_bio *bio;
    struct vcipher *cipher; /* a reference; NULL: not encrypted */
    struct vticket ticket;
    unsigned kids, n_kid; /* under way; entries of @kid, some for zeros */
    int status;
    struct rkid *kid;
    struct iovec *iov;
    struct vcrc_want *want; /* of each piece; NULL: nothing to compare with */
    struct rkid kid_inline[SEGS_INLINE];
    struct iovec iov_inline[IOV_INLINE];
    struct vcrc_want want_inline[WANT_INLINE];
};

/* Segments of [off, off+len): how many, or -EAGAIN when the map must be loaded (at *ret_piece). @out may be NULL to count. @want: what each
 * piece must be, or NULL. */
static int segments(const struct rop *rop, uint64_t off, size_t len, struct seg *out, unsigned max, struct vcrc_want *want, uint64_t *ret_piece)
{
    const struct vmfs *v = rop->o->v;
    struct mtree *t = rop->t;
    unsigned n = 0;
    struct seg cur = { 0 };
    struct mnode *leaf = NULL;
    uint64_t piece = off / VMFS_PIECE, end = (off + len + VMFS_PIECE - 1) / VMFS_PIECE;
    size_t skip = off % VMFS_PIECE, at = 0;
    bool fresh = true;
    for (; piece < end; piece++) {
        if (fresh || piece % VMFS_LEAF_PIECES == 0) {
            if (mtree_peek(t, piece, &leaf) < 0) {
                *ret_piece = piece;
                return -EAGAIN;
            }
        }
        struct mpiece p = { 0 };
        if (leaf)
            p = ment_piece(&leaf->ent[piece % VMFS_LEAF_PIECES / VMFS_BLOCK_PIECES], (unsigned)(piece % VMFS_BLOCK_PIECES));
        uint64_t addr = p.state == VMFS_P_DATA ? moved_addr(v, p.addr, 1, NULL) : 0; /* trees that nobody else knows are not settled */
        if (!addr && p.state == VMFS_P_DATA)
            return -GR_ECORRUPT;
        if (want)
            *want++ = (struct vcrc_want){ addr, p.crc };
        size_t take = GR_MIN(len - at, VMFS_PIECE - skip);
        int key = addr && rop->cipher ? vcipher_key(rop->cipher, p.birth) : 0;
        if (key < 0)
            return key;
        bool joins = !fresh && (addr ? cur.addr && cur.key == key && cur.addr + (cur.skip + cur.len) / VMFS_PIECE == addr : cur.addr == 0);
        if (joins) {
            cur.len += take;
        } else {
            if (!fresh) {
                if (n < max)
                    out[n] = cur;
                n++;
            }
            cur = (struct seg){ addr, at, take, skip, key };
        }
        fresh = false;
        at += take;
        skip = 0;
    }
    if (n < max)
        out[n] = cur;
    return (int)n + 1;
}

static void rop_free(struct rop *r)
{
    ticket_close(r->o->v, &r->ticket);
    vcipher_put(r->cipher);
    if (r->kid != r->kid_inline)
        free(r->kid);
    if (r->iov != r->iov_inline)
        free(r->iov);
    if (r->want != r->want_inline)
        free(r->want);
    struct vmfs *v = r->o->v;
    r->next = v->free_rops;
    v->free_rops = r;
}

static void rop_put(struct rop *r)
{
    if (--r->kids)
        return;
    struct gr_bio *bio = r->bio;
    int status = r->status;
    if (status == 0 && r->want)
        status = vcrc_verify(r->o, bio, r->want);
    for (unsigned i = 0; status == 0 && r->cipher && i < r->n_kid; i++)
        if (r->kid[i].key >= 0)
            vcipher_decrypt_iov(r->cipher, r->kid[i].key, bio->off + r->kid[i].off, r->kid[i].bio.iov, r->kid[i].bio.iovcnt, r->kid[i].bio.len);
    rop_free(r);
    gr_bio_end(bio, status);
}

static void kid_done(struct gr_bio *kid)
{
    struct rop *r = kid->arg;
    if (kid->status < 0 && r->status == 0)
        r->status = kid->status;
    if (kid->status < 0)
        vloss_suspect(r->o->v, (uint32_t)1 << gr_container_of(kid, struct rkid, bio)->dev);
    rop_put(r);
}

static int read_segments(struct rop *r, const struct seg *s, unsigned n)
{
    struct gr_bio *bio = r->bio;
    struct vmfs *v = r->o->v;
    size_t iov_max = (size_t)bio->iovcnt + n * 2;
    r->kid = n <= SEGS_INLINE ? r->kid_inline : gr_alloc(n * sizeof *r->kid);
    r->iov = iov_max <= IOV_INLINE ? r->iov_inline : gr_alloc(((size_t)bio->iovcnt + 2) * n * sizeof *r->iov);
    if (!r->kid || !r->iov)
        return -ENOMEM;
    struct iovec *iov = r->iov;
    r->kids = 1;
    r->n_kid = n;
    for (unsigned i = 0; i < n; i++) {
        r->kid[i].off = s[i].off;
        r->kid[i].key = s[i].addr ? s[i].key : -1;
        if (!s[i].addr) {
            gr_iov_zero(bio->iov, bio->iovcnt, s[i].off, s[i].len);
            continue;
        }
        struct gr_bio *k = &r->kid[i].bio;
        memset(k, 0, sizeof *k);
        k->op = GR_OP_READ;
        k->off = vmfs_addr_unit(s[i].addr) * VMFS_UNIT + s[i].skip;
        k->len = s[i].len;
        k->iov = iov;
        k->iovcnt = gr_iov_slice(bio->iov, bio->iovcnt, s[i].off, s[i].len, iov);
        iov += k->iovcnt;
        k->done = kid_done;
        k->arg = r;
        r->kid[i].dev = vmfs_addr_dev(s[i].addr);
        r->kids++;
        if (vdev_no_data(v, vmfs_addr_dev(s[i].addr)))
            gr_bio_end(k, -EIO);
        else
            gr_submit(v->dev[vmfs_addr_dev(s[i].addr)].ch, k);
    }
    rop_put(r);
    return 0;
}

/* 0 under way (or done), -EAGAIN: load at *ret_piece first, else an error. */
static int read_try(struct rop *r, uint64_t *ret_piece)
{
    if (vkeys_locked(r->o))
        return -ENOKEY;
    if (r->cipher != r->o->cipher) { /* the map is looked at as it is now, so the keys are, too: there may be another since the last try */
        vcipher_put(r->cipher);
        r->cipher = vcipher_get(r->o->cipher);
    }
    struct seg inline_segs[32], *s = inline_segs;
    unsigned max = GR_ARRAY_LEN(inline_segs);
    int n = segments(r, r->bio->off, r->bio->len, s, max, r->want, ret_piece);
    if (n < 0)
        return n;
    if ((unsigned)n > max) {
        s = gr_alloc((size_t)n * sizeof *s);
        if (!s)
            return -ENOMEM;
        n = segments(r, r->bio->off, r->bio->len, s, (unsigned)n, r->want, ret_piece);
    }
    n = n < 0 ? n : read_segments(r, s, (unsigned)n);
    if (s != inline_segs)
        free(s);
    return n;
}

static void read_fail(struct rop *r, int status)
{
    struct gr_bio *bio = r->bio;
    rop_free(r);
    gr_bio_end(bio, status);
}

static void read_slow(void *arg)
{
    struct rop *r = arg;
    uint64_t piece = 0;
    int rc;
    while ((rc = read_try(r, &piece)) == -EAGAIN)
        if ((rc = mtree_load(r->o, r->t, piece, NULL)) < 0)
            break;
    if (rc < 0)
        read_fail(r, rc);
}

void tree_read(struct vobj *o, struct mtree *t, struct gr_bio *bio)
{
    struct vmfs *v = o->v;
    struct rop *r = v->free_rops;
    uint64_t piece;
    if (vcrc_kept(v) && (bio->off | bio->len) % VMFS_PIECE) {
        vcrc_read_part(o, t, bio);
        return;
    }
    if (r)
        v->free_rops = r->next;
    else if (!(r = gr_alloc(sizeof *r))) {
        gr_bio_end(bio, -ENOMEM);
        return;
    }
    r->o = o;
    r->t = t;
    r->bio = bio;
    r->status = 0;
    r->kid = r->kid_inline;
    r->iov = r->iov_inline;
    r->want = !vcrc_kept(v) ? NULL : bio->len <= WANT_INLINE * VMFS_PIECE ? r->want_inline : gr_alloc(bio->len / VMFS_PIECE * sizeof *r->want);
    r->cipher = NULL;
    r->n_kid = 0;
    ticket_open(v, &r->ticket);
    v->stats.reads++;
    int rc = !bio->len ? -ENODATA : vcrc_kept(v) && !r->want ? -ENOMEM : read_try(r, &piece);
    if (rc == -EAGAIN)
        rc = gr_fiber_start(v->loop, read_slow, r);
    if (rc < 0)
        read_fail(r, rc == -ENODATA ? 0 : rc);
}

struct waiter {
    struct gr_fiber *fiber;
    bool done;
};
static void wait_done(struct gr_bio *bio)
{
    struct waiter *w = bio->arg;
    w->done = true;
    gr_fiber_wake(w->fiber);
}

int tree_read_wait(struct vobj *o, struct mtree *t, void *buf, uint64_t len, uint64_t off)
{
    struct iovec iov = { buf, len };
    struct waiter w = { gr_fiber_self(), false };
    struct gr_bio bio = { .op = GR_OP_READ, .off = off, .len = len, .iov = &iov, .iovcnt = 1, .done = wait_done, .arg = &w };
    tree_read(o, t, &bio);
    while (!w.done)
        gr_fiber_suspend();
    return bio.status;
}

/* ---- lineages ---- */
int lineage_since(struct vobj *o, uint64_t lineage, uint64_t epoch, const struct gr_bookmark *base, uint64_t *ret_since, struct gr_err *err)
{
    for (size_t hops = 0; hops <= o->n_lineages; hops++) {
        if (lineage == base->lineage) {
            if (base->epoch > epoch)
                break; /* a later point of a line that was left by a revert */
            *ret_since = base->epoch;
            return 0;
        }
        size_t i = 0;
        while (i < o->n_lineages && o->lineages[i].lineage != lineage)
            i++;
        if (i == o->n_lineages)
            break;
        lineage = o->lineages[i].parent;
        epoch = o->lineages[i].epoch;
    }
    return gr_fail(err, -ENOENT, "the base is not in the past of this disk (another disk, or a line that a revert left)");
}

/* ---- extents ---- */
#define EXTENTS_A_LEAF 256u /* are expected until it is known how many there are */
struct walk {
    struct tscan scan;
    struct mtree *of, tree; /* a share of its nodes: stays as it is */
    uint64_t next;     /* piece: described up to here */
    struct gr_bio *bio;
    struct vticket ticket;
};

static void extent_of(const struct mpiece *p, bool has_base, uint64_t since, struct gr_extent *ret)
{
    ret->flags = p->state == VMFS_P_DATA ? GR_EXTENT_DATA : p->state == VMFS_P_HOLE ? GR_EXTENT_ZERO | GR_EXTENT_HOLE : GR_EXTENT_ZERO;
    ret->changed = !has_base || (p->state != VMFS_P_RESERVED && p->birth > since);
    if (!ret->changed)
        ret->flags = 0;
}

/* Add [off, off+len): joined with the last one where alike. False: no room for it. */
static bool extent_add(struct gr_bio *bio, struct gr_extent e)
{
    if (bio->n_extents) {
        struct gr_extent *last = &bio->extents[bio->n_extents - 1];
        if (last->flags == e.flags && last->changed == e.changed && last->off + last->len == e.off) {
            last->len += e.len;
            return true;
        }
    }
    if (bio->n_extents == bio->max_extents)
        return false;
    bio->extents[bio->n_extents++] = e;
    return true;
}

/* Nothing is mapped, or nothing has changed, up to piece @end. False: full. */
static bool gap_extent(struct walk *w, uint64_t end)
{
    bool has_base = w->bio->base;
    struct gr_extent e = { w->next * VMFS_PIECE, (end - w->next) * VMFS_PIECE, has_base ? 0 : GR_EXTENT_ZERO | GR_EXTENT_HOLE, !has_base };
    if (end > w->next && !extent_add(w->bio, e))
        return false;
    w->next = GR_MAX(w->next, end);
    return true;
}

/* All pieces of the block are alike. */
static bool uniform(const struct mentry *e)
{
    return !e->px && (e->written == 0 || e->written == 0xffff) && (e->zero == 0 || e->zero == 0xffff);
}

static int leaf_extents(void *arg, uint64_t piece, const struct mnode *leaf, const struct mnode *base)
{
    struct walk *w = arg;
    struct gr_bio *bio = w->bio;
    uint64_t end = GR_MIN(piece + VMFS_LEAF_PIECES, w->scan.end);
    if (base || !gap_extent(w, piece))
        return 1;
    while (w->next < end) {
        unsigned at = (unsigned)(w->next % VMFS_LEAF_PIECES), i = at % VMFS_BLOCK_PIECES;
        const struct mentry *e = &leaf->ent[at / VMFS_BLOCK_PIECES];
        uint64_t n = uniform(e) ? GR_MIN(VMFS_BLOCK_PIECES - i, end - w->next) : 1;
        struct mpiece p = ment_piece(e, i);
        struct gr_extent x = { .off = w->next * VMFS_PIECE, .len = n * VMFS_PIECE };
        extent_of(&p, bio->base, w->scan.since, &x);
        if (!extent_add(bio, x))
            return 1;
        w->next += n;
    }
    uint64_t room = bio->max_extents - bio->n_extents, each = bio->n_extents / w->scan.leaves + 1;
    w->scan.ahead = (unsigned)GR_MAX(GR_MIN(room / each, (uint64_t)TSCAN_AHEAD), 1u);
    return 0;
}

/* The root stays in memory, and with it what is above the leaves (tscan_run), for there is one scan after the other. */
static int walk_extents(struct walk *w)
{
    struct tscan *s = &w->scan;
    struct gr_bio *bio = w->bio;
    int r = mtree_load_root(s->o, w->of, NULL);
    if (r < 0)
        return r;
    mtree_share(&w->tree, w->of);
    s->tree = &w->tree;
    s->first = w->next = bio->off / VMFS_PIECE;
    s->end = (bio->off + bio->len + VMFS_PIECE - 1) / VMFS_PIECE;
    s->leaf = leaf_extents;
    s->arg = w;
    s->ahead = GR_MAX(bio->max_extents / EXTENTS_A_LEAF, 1u);
    bio->n_extents = 0;
    r = tscan_run(s, NULL);
    if (r == 0)
        gap_extent(w, s->end);
    mtree_done(s->o->v, &w->tree);
    return GR_MIN(r, 0);
}

static void trim_to(struct gr_bio *bio)
{
    if (!bio->n_extents)
        return;
    struct gr_extent *first = &bio->extents[0], *last = &bio->extents[bio->n_extents - 1];
    if (first->off < bio->off) {
        first->len -= bio->off - first->off;
        first->off = bio->off;
    }
    if (last->off + last->len > bio->off + bio->len)
        last->len = bio->off + bio->len - last->off;
}

static void extents_work(void *arg)
{
    struct walk *w = arg;
    struct gr_bio *bio = w->bio;
    int r = walk_extents(w);
    trim_to(bio);
    ticket_close(w->scan.o->v, &w->ticket);
    free(w);
    gr_bio_end(bio, r);
}

void tree_extents(struct vobj *o, struct mtree *t, uint64_t lineage, uint64_t epoch, struct gr_bio *bio)
{
    uint64_t since = 0;
    int r = bio->base ? lineage_since(o, lineage, epoch, bio->base, &since, NULL) : 0;
    struct walk *w = r == 0 ? gr_alloc(sizeof *w) : NULL;
    if (w) {
        *w = (struct walk){ .scan = { .o = o, .since = since }, .of = t, .bio = bio };
        ticket_open(o->v, &w->ticket);
        r = gr_fiber_start(o->v->loop, extents_work, w);
        if (r < 0) {
            ticket_close(o->v, &w->ticket);
            free(w);
        }
    } else if (r == 0) {
        r = -ENOMEM;
    }
    if (r < 0)
        gr_bio_end(bio, r);
}

/* ---- loading for a change ---- */
static bool loaded_for(struct vobj *o, uint64_t piece, uint64_t birth)
{
    struct mnode *leaf;
    for (struct vsnap *s = vobj_snap(o, o->parent_snap); s && s->epoch >= birth; s = vobj_snap(o, s->parent))
        if (mtree_peek(&s->tree, piece, &leaf) < 0)
            return false;
    return mtree_peek(&o->live, piece, &leaf) == 0;
}

static int load_for(struct vobj *o, uint64_t piece, uint64_t birth, struct gr_err *err)
{
    int r = 0;
    for (struct vsnap *s = vobj_snap(o, o->parent_snap); r == 0 && s && s->epoch >= birth; s = vobj_snap(o, s->parent)) {
        struct mnode *leaf;
        if (mtree_peek(&s->tree, piece, &leaf) < 0)
            return mtree_load(o, &s->tree, piece, err); /* suspended: look again from the start */
    }
    return mtree_load(o, &o->live, piece, err);
}

int map_load_for(struct vobj *o, uint64_t piece, uint32_t count, uint64_t birth, struct gr_err *err)
{
    uint64_t last = piece + count - 1;
    for (;;) {
        bool all = true;
        for (uint64_t p = piece; all && p <= last; p = (p / VMFS_LEAF_PIECES + 1) * VMFS_LEAF_PIECES)
            if (!loaded_for(o, p, birth)) {
                int r = load_for(o, p, birth, err);
                if (r < 0)
                    return r;
                all = false;
            }
        if (all)
            return 0;
    }
}
