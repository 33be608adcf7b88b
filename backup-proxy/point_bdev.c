/* A disk of a restore point as a read-only bdev: restore, export, verify by reading, file-level access all come through here.
 * Each request is one job on the thread pool. A small cache of nodes and extents, under a mutex, serves neighbours. */
#include "backup-proxy/point.h"
#include "backup-proxy/tree.h"
#include "backup-proxy/walk.h"
#include "common/cleanup.h"
#include <pthread.h>
#include <string.h>

#define NODES 256u
#define EXTENTS 64u
#define CODECS 8u
struct node_slot {
    uint64_t first_unit;
    unsigned level;
    struct bp_node *node; /* NULL: empty */
};
struct extent_slot {
    struct bp_ref ref; /* raw == 0: empty */
    uint8_t *raw;
};
struct point_bdev {
    struct gr_bdev bdev;
    struct bp_repo *repo;
    struct bp_lease *lease;
    struct bp_ref root;
    uint64_t size;
    uint8_t uuid[16];
    pthread_mutex_t lock;
    struct node_slot nodes[NODES];
    struct extent_slot extents[EXTENTS];
    struct bp_codec codecs[CODECS]; /* free ones have ->cap or contexts kept; taken ones are NULLed by use[] */
    bool in_use[CODECS];
};
struct point_job {
    struct point_bdev *p;
    struct gr_bio *bio;
    struct bp_codec *codec, own;
    uint8_t raw[REPO_UNIT];
    struct bp_node node;
    struct bp_unit unit;
};

/* ---- caches ---- */
static struct bp_codec *codec_take(struct point_job *j)
{
    struct bp_codec *c = &j->own;
    pthread_mutex_lock(&j->p->lock);
    for (unsigned i = 0; i < CODECS; i++)
        if (!j->p->in_use[i]) {
            j->p->in_use[i] = true;
            c = &j->p->codecs[i];
            break;
        }
    pthread_mutex_unlock(&j->p->lock);
    return c;
}
static void codec_give(struct point_job *j)
{
    if (j->codec == &j->own) {
        bp_codec_done(&j->own);
        return;
    }
    pthread_mutex_lock(&j->p->lock);
    j->p->in_use[j->codec - j->p->codecs] = false;
    pthread_mutex_unlock(&j->p->lock);
}
static struct node_slot *node_slot(struct point_bdev *p, unsigned level, uint64_t first)
{
    return &p->nodes[(first / bp_tree_span(level + 1) * 7 + level * 37) % NODES];
}
/* Node of @level that covers @unit: what is asked of it is copied out under the lock. Returns 1 found, 0 not cached. */
static int cached_child(struct point_job *j, unsigned level, uint64_t first, unsigned slot, struct bp_ref *ret_child)
{
    struct node_slot *s = node_slot(j->p, level, first);
    int found = 0;
    pthread_mutex_lock(&j->p->lock);
    if (s->node && s->level == level && s->first_unit == first) {
        found = 1;
        if (level)
            *ret_child = s->node->child[slot];
        else
            j->unit = s->node->unit[slot];
    }
    pthread_mutex_unlock(&j->p->lock);
    return found;
}
static void node_keep(struct point_bdev *p, const struct bp_node *n)
{
    struct node_slot *s = node_slot(p, n->level, n->first_unit);
    pthread_mutex_lock(&p->lock);
    if (!s->node)
        s->node = gr_alloc(sizeof *s->node);
    if (s->node) {
        *s->node = *n;
        s->level = n->level;
        s->first_unit = n->first_unit;
    }
    pthread_mutex_unlock(&p->lock);
}
/* j->unit := what @unit holds; *ret_skip: when it is empty because a whole subtree is, units up to there are empty too. */
static int unit_find(struct point_job *j, uint64_t unit, uint64_t *ret_skip)
{
    struct bp_ref ref = j->p->root;
    *ret_skip = unit + 1;
    j->unit.n = 0;
    if (ref.raw == 0) {
        *ret_skip = UINT64_MAX;
        return 0;
    }
    for (unsigned level = bp_tree_levels(j->p->size); level-- > 0;) {
        uint64_t first = unit & ~(bp_tree_span(level + 1) - 1);
        unsigned slot = (unsigned)(unit / bp_tree_span(level) % REPO_FANOUT);
        struct bp_ref child = {0};
        if (!cached_child(j, level, first, slot, &child)) {
            int r = bp_node_read(j->p->repo, j->codec, &ref, level, first, &j->node, NULL);
            if (r < 0)
                return r;
            node_keep(j->p, &j->node);
            if (level)
                child = j->node.child[slot];
            else
                j->unit = j->node.unit[slot];
        }
        if (level && child.raw == 0) {
            *ret_skip = (unit / bp_tree_span(level) + 1) * bp_tree_span(level);
            return 0;
        }
        ref = child;
    }
    return 0;
}
static int extent_get(struct point_job *j, const struct bp_ref *ref)
{
    struct extent_slot *s = &j->p->extents[(ref->pack ^ ref->off / REPO_ALIGN) % EXTENTS];
    bool hit = false;
    pthread_mutex_lock(&j->p->lock);
    if (s->ref.raw == ref->raw && s->ref.pack == ref->pack && s->ref.off == ref->off) {
        memcpy(j->raw, s->raw, ref->raw);
        hit = true;
    }
    pthread_mutex_unlock(&j->p->lock);
    if (hit)
        return 0;
    int r = bp_extent_read(j->p->repo, j->codec, REPO_DATA, ref, j->raw, NULL);
    if (r < 0)
        return r;
    pthread_mutex_lock(&j->p->lock);
    if (!s->raw)
        s->raw = gr_alloc(REPO_UNIT);
    if (s->raw) {
        memcpy(s->raw, j->raw, ref->raw);
        s->ref = *ref;
    }
    pthread_mutex_unlock(&j->p->lock);
    return 0;
}

/* ---- requests ---- */
/* Bytes [in, in+len) of the unit in j->unit. */
static int unit_read(struct point_job *j, uint8_t *buf, size_t len, size_t in)
{
    memset(buf, 0, len);
    for (unsigned i = 0; i < j->unit.n; i++) {
        const struct bp_part *p = &j->unit.part[i];
        size_t from = (size_t)p->first * REPO_PIECE, end = from + (size_t)p->count * REPO_PIECE;
        size_t a = GR_MAX(from, in), b = GR_MIN(end, in + len);
        if (a >= b)
            continue;
        int r = extent_get(j, &p->ref);
        if (r < 0)
            return r;
        memcpy(buf + (a - in), j->raw + (size_t)p->src * REPO_PIECE + (a - from), b - a);
    }
    return 0;
}
static int job_read(struct point_job *j)
{
    uint64_t off = j->bio->off, skip;
    for (int i = 0; i < j->bio->iovcnt; i++) {
        uint8_t *buf = j->bio->iov[i].iov_base;
        size_t left = j->bio->iov[i].iov_len;
        while (left > 0) {
            size_t in = off % REPO_UNIT, n = GR_MIN(left, REPO_UNIT - in);
            int r = unit_find(j, off / REPO_UNIT, &skip);
            if (r == 0)
                r = unit_read(j, buf, n, in);
            if (r < 0)
                return r;
            buf += n;
            off += n;
            left -= n;
        }
    }
    return 0;
}
/* One run that begins at *off, in whole pieces or more; moves *off behind it. */
static int next_extent(struct point_job *j, uint64_t *off, uint64_t end, struct gr_extent *ret)
{
    uint64_t skip, unit = *off / REPO_UNIT;
    int r = unit_find(j, unit, &skip);
    if (r < 0)
        return r;
    uint64_t piece = *off % REPO_UNIT / REPO_PIECE, to = REPO_PIECES;
    bool data = false;
    for (unsigned i = 0; i < j->unit.n && !data; i++) {
        const struct bp_part *p = &j->unit.part[i];
        if (piece < p->first) {
            to = p->first;
            break;
        }
        if (piece < (uint64_t)p->first + p->count) {
            data = true;
            to = (uint64_t)p->first + p->count;
        }
    }
    uint64_t stop = j->unit.n ? unit * REPO_UNIT + to * REPO_PIECE : skip > end / REPO_UNIT ? end : skip * REPO_UNIT;
    stop = GR_MIN(stop, end);
    *ret = (struct gr_extent){.off = *off, .len = stop - *off, .changed = true};
    if (!data)
        ret->flags = GR_EXTENT_ZERO | GR_EXTENT_HOLE;
    *off = stop;
    return 0;
}
static int job_extents(struct point_job *j)
{
    struct gr_bio *b = j->bio;
    uint64_t off = b->off, end = b->off + b->len;
    unsigned n = 0;
    while (off < end) {
        struct gr_extent e;
        int r = next_extent(j, &off, end, &e);
        if (r < 0)
            return r;
        if (n > 0 && b->extents[n - 1].flags == e.flags)
            b->extents[n - 1].len += e.len;
        else if (n < b->max_extents)
            b->extents[n++] = e;
        else
            break;
    }
    b->n_extents = n;
    return 0;
}
static int job_work(void *arg)
{
    struct point_job *j = arg;
    j->codec = codec_take(j);
    int r = j->bio->op == GR_OP_READ ? job_read(j) : j->bio->base ? -EOPNOTSUPP : job_extents(j);
    codec_give(j);
    return r;
}
static void job_done(void *arg, int result)
{
    struct point_job *j = arg;
    struct gr_bio *bio = j->bio;
    free(j);
    gr_bio_end(bio, result);
}
static void point_submit(struct gr_chan *ch, struct gr_bio *bio)
{
    struct point_job *j = NULL;
    int r = 0;
    if (bio->op == GR_OP_READ || bio->op == GR_OP_EXTENTS) {
        j = gr_alloc(sizeof *j);
        if (j) {
            j->p = gr_container_of(ch->bdev, struct point_bdev, bdev);
            j->bio = bio;
            j->own = (struct bp_codec){0};
            r = gr_loop_work(ch->loop, job_work, job_done, j);
        }
        if (j && r == 0)
            return;
        free(j);
        r = -ENOMEM;
    } else if (bio->op != GR_OP_FLUSH) {
        r = -GR_EREADONLY;
    }
    gr_bio_end(bio, r);
}
static int point_geometry(struct gr_bdev *bdev, struct gr_geometry *ret)
{
    const struct point_bdev *p = gr_container_of(bdev, struct point_bdev, bdev);
    *ret = (struct gr_geometry){
        .size = p->size, .logical_block = 512, .physical_block = REPO_PIECE, .optimal_io = REPO_UNIT, .read_only = true, .thin = true};
    memcpy(ret->uuid, p->uuid, 16);
    return 0;
}
static void point_close(struct gr_bdev *bdev)
{
    struct point_bdev *p = gr_container_of(bdev, struct point_bdev, bdev);
    for (unsigned i = 0; i < NODES; i++)
        free(p->nodes[i].node);
    for (unsigned i = 0; i < EXTENTS; i++)
        free(p->extents[i].raw);
    for (unsigned i = 0; i < CODECS; i++)
        bp_codec_done(&p->codecs[i]);
    bp_lease_drop(p->lease);
    pthread_mutex_destroy(&p->lock);
    free(p);
}
static const struct gr_bdev_ops point_ops = {.type = "point", .submit = point_submit, .geometry = point_geometry, .close = point_close};

int bp_point_open(struct gr_loop *loop, struct bp_repo *r, const char *id, const char *disk, struct gr_bdev **ret, struct gr_err *err)
{
    (void)loop;
    struct bp_point point = {.doc = NULL};
    struct bp_point_disk d;
    struct bp_lease *lease = NULL;
    int rc = bp_lease_take(r, BP_LEASE_READER, id, &lease, err); /* first: the point cannot go while we look */
    if (rc == 0)
        rc = bp_point_load(r, id, &point, err);
    if (rc == 0)
        rc = bp_point_find_disk(&point, disk, &d, err);
    struct point_bdev *p = rc == 0 ? gr_zalloc(sizeof *p) : NULL;
    if (rc == 0 && !p)
        rc = gr_fail(err, -ENOMEM, "out of memory");
    if (rc < 0) {
        bp_point_done(&point);
        bp_lease_drop(lease);
        return rc;
    }
    gr_auto_free char *name = gr_asprintf("%s:%s", id, d.name);
    gr_bdev_init(&p->bdev, &point_ops, name ? name : id);
    pthread_mutex_init(&p->lock, NULL);
    p->repo = r;
    p->lease = lease;
    p->root = d.root;
    p->size = d.size;
    bp_point_done(&point);
    *ret = &p->bdev;
    return 0;
}
