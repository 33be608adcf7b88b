/* The live head of a disk as a gr_bdev. Reads and overwrites in place run without a fiber; everything else is sequential code. */
#include "common/seam.h"
#include "vmfs/loss.h"
#include "vmfs/keys.h"
#include "vmfs/notes.h"
#include "vmfs/rescue.h"

struct vmfs_disk *disk_of(struct gr_chan *ch)
{
    return gr_container_of(ch->bdev, struct vmfs_disk, bdev);
}

struct dop *disk_op_new(struct vobj *o, struct gr_bio *bio)
{
    struct vmfs *v = o->v;
    struct dop *op = v->free_dops;
    if (op)
        v->free_dops = op->next;
    else if (!(op = gr_alloc(sizeof *op)))
        return NULL;
    memset(op, 0, offsetof(struct dop, kid_inline));
    op->o = o;
    op->v = v;
    op->bio = bio;
    ticket_open(v, &op->ticket);
    return op;
}

void disk_op_leave(struct dop *op)
{
    if (op->left)
        return;
    op->left = true;
    ticket_close(op->v, &op->ticket);
    range_leave(op->o, &op->range);
}

void disk_op_end(struct dop *op, int status)
{
    struct vmfs *v = op->v;
    struct gr_bio *bio = op->bio;
    struct vobj *o = op->o;
    disk_op_leave(op);
    op->next = v->free_dops;
    v->free_dops = op;
    if (status == 0)
        ahead_settled(o);
    gr_bio_end(bio, status);
}

void disk_op_finish(struct dop *op, int r, bool durable)
{
    disk_op_leave(op);
    if (r == 0)
        r = durable ? journal_commit(op->v) : journal_append(op->v); /* nothing that is acknowledged ends with this process */
    disk_op_end(op, r);
}

/* ---- what is done for nobody ---- */
static void pass_granted(struct vrange *r)
{
    struct dpass *p = ((struct dop *)r->arg)->bio->arg;
    if (p->fiber)
        gr_fiber_wake(p->fiber);
}

static void pass_ended(struct gr_bio *bio)
{
    ((struct dpass *)bio->arg)->ended = true;
}

struct dop *disk_pass_begin(struct dpass *p, struct vobj *o, uint64_t first, uint64_t end, bool moves)
{
    *p = (struct dpass){ .bio = { .op = GR_OP_WRITE, .off = first * VMFS_PIECE, .len = (end - first) * VMFS_PIECE, .done = pass_ended, .arg = p } };
    struct dop *op = disk_op_new(o, &p->bio);
    if (!op)
        return NULL;
    op->range.first = first;
    op->range.end = end;
    op->range.moves = moves;
    op->range.grant = pass_granted;
    op->range.arg = op;
    range_enter(o, &op->range);
    p->fiber = gr_fiber_self();
    while (!op->range.granted)
        gr_fiber_suspend();
    return op;
}

/* ---- overwriting in place ---- */
/* May [first, end) be overwritten where it lies? Then the runs are in @runs. -1: no (or the map is not in memory). */
static int in_place_runs(const struct dop *op, struct run *runs, unsigned max)
{
    struct vobj *o = op->o;
    unsigned n = 0;
    struct mnode *leaf = NULL;
    if (vcrc_kept(o->v))
        return -1;
    for (uint64_t p = op->range.first; p < op->range.end; p++) {
        if (p == op->range.first || p % VMFS_LEAF_PIECES == 0)
            if (mtree_peek(&o->live, p, &leaf) < 0 || !leaf)
                return -1;
        const struct mentry *e = &leaf->ent[p % VMFS_LEAF_PIECES / VMFS_BLOCK_PIECES];
        struct mpiece m = ment_piece(e, (unsigned)(p % VMFS_BLOCK_PIECES));
        if (m.state != VMFS_P_DATA || m.birth != op->range.epoch || e->seq > o->v->j.sealed_seq || space_leaving(o->v, m.addr))
            return -1;
        if (n && runs[n - 1].addr + runs[n - 1].count == m.addr) {
            runs[n - 1].count++;
        } else {
            if (n == max)
                return -1;
            runs[n++] = (struct run){ m.addr, 1 };
        }
    }
    return (int)n;
}

static void commit_then_end(void *arg)
{
    struct dop *op = arg;
    disk_op_leave(op);
    disk_op_end(op, journal_commit(op->v));
}

static void in_place_put(struct dop *op)
{
    struct vmfs *v = op->o->v;
    if (--op->kids)
        return;
    if (op->iov != op->iov_inline)
        free(op->iov);
    if (op->sealed.iov_base)
        vbounce_put(v, op->sealed.iov_base, op->bio->len);
    journal_data_written(op->o, op->status == 0 ? op->devs : 0); /* who is told that it failed relies on nothing */
    if (op->status == 0 && v->fenced)
        op->status = -GR_EFENCED;
    if (op->status == 0 && (op->bio->flags & GR_BIO_FUA)) {
        op->status = gr_fiber_start(v->loop, commit_then_end, op);
        if (op->status == 0)
            return;
    }
    disk_op_end(op, op->status);
}

static void in_place_kid_done(struct gr_bio *kid)
{
    struct dop *op = kid->arg;
    if (kid->status < 0 && op->status == 0)
        op->status = kid->status;
    if (kid->status < 0)
        vloss_suspect(op->v, op->devs);
    in_place_put(op);
}

/* The bytes of an encrypted disk as they go to the device. False: no buffer for them now. */
static bool seal(struct dop *op)
{
    struct gr_bio *bio = op->bio;
    const struct vcipher *c = op->o->cipher;
    uint8_t *b = vbounce_get(op->v, bio->len);
    if (!b)
        return false;
    gr_iov_get(bio->iov, bio->iovcnt, 0, b, bio->len);
    vcipher_encrypt_range(c, vcipher_key(c, op->range.epoch), bio->off, b, bio->len);
    op->sealed = (struct iovec){ b, bio->len };
    return true;
}

static bool write_in_place(struct dop *op)
{
    struct run runs[DOP_KIDS];
    struct gr_bio *bio = op->bio;
    struct vmfs *v = op->o->v;
    int n = (bio->flags & GR_BIO_ATOMIC) ? -1 : in_place_runs(op, runs, DOP_KIDS);
    if (n < 0)
        return false;
    op->iov = bio->iovcnt * n <= DOP_IOV ? op->iov_inline : gr_alloc((size_t)bio->iovcnt * (size_t)n * sizeof *op->iov);
    if (!op->iov)
        return false;
    if (op->o->cipher && !seal(op)) {
        if (op->iov != op->iov_inline)
            free(op->iov);
        return false;
    }
    const struct iovec *src = op->sealed.iov_base ? &op->sealed : bio->iov;
    int srccnt = op->sealed.iov_base ? 1 : bio->iovcnt;
    struct iovec *iov = op->iov;
    uint64_t at = 0, skip = bio->off % VMFS_PIECE;
    op->kids = 1;
    v->stats.writes_in_place++;
    for (int i = 0; i < n; i++) {
        struct gr_bio *k = &op->kid_inline[i];
        memset(k, 0, sizeof *k);
        k->op = GR_OP_WRITE;
        k->off = vmfs_addr_unit(runs[i].addr) * VMFS_UNIT + skip;
        k->len = GR_MIN(bio->len - at, runs[i].count * (uint64_t)VMFS_UNIT - skip);
        if (n == 1) {
            k->iov = src;
            k->iovcnt = srccnt;
        } else {
            k->iov = iov;
            k->iovcnt = gr_iov_slice(src, srccnt, at, k->len, iov);
            iov += k->iovcnt;
        }
        at += k->len;
        skip = 0;
        k->done = in_place_kid_done;
        k->arg = op;
        op->kids++;
        op->devs |= (uint32_t)1 << vmfs_addr_dev(runs[i].addr);
        gr_submit(v->dev[vmfs_addr_dev(runs[i].addr)].ch, k);
    }
    in_place_put(op);
    return true;
}

static void write_granted(struct vrange *r)
{
    struct dop *op = r->arg;
    if (op->o->v->fenced)
        disk_op_end(op, -GR_EFENCED);
    else if (!write_in_place(op) && !disk_redirect(op))
        disk_change_start(op);
}

static void change_granted(struct vrange *r)
{
    struct dop *op = r->arg;
    if (op->o->v->fenced)
        disk_op_end(op, -GR_EFENCED);
    else
        disk_change_start(op);
}

static void change(struct vobj *o, struct gr_bio *bio)
{
    struct dop *op = disk_op_new(o, bio);
    if (!op) {
        gr_bio_end(bio, -ENOMEM);
        return;
    }
    op->range.first = bio->off / VMFS_PIECE;
    op->range.end = (bio->off + bio->len + VMFS_PIECE - 1) / VMFS_PIECE;
    op->range.grant = bio->op == GR_OP_WRITE ? write_granted : change_granted;
    op->range.arg = op;
    if (!(bio->flags & GR_BIO_FUA))
        ahead_write(o);
    range_enter(o, &op->range);
}

/* ---- flush ---- */
static void flush_work(void *arg)
{
    struct gr_bio *bio = arg;
    gr_bio_end(bio, journal_commit(bio->layer[0]));
}

static void flush(struct vobj *o, struct gr_bio *bio)
{
    struct vmfs *v = o->v;
    const struct vjournal *j = &v->j;
    ahead_flush(o);
    if (v->fenced) {
        gr_bio_end(bio, -GR_EFENCED);
        return;
    }
    if (!j->committing && !j->n_pending && j->data_flushed == j->data_written && j->durable_seq + 1 == j->next_seq) {
        gr_bio_end(bio, 0); /* nothing was written since the last one */
        return;
    }
    bio->layer[0] = v;
    int r = gr_fiber_start(v->loop, flush_work, bio);
    if (r < 0)
        gr_bio_end(bio, r);
}

/* ---- scrub: sealed before it is admitted, for what is admitted must not wait for a checkpoint ---- */
static void scrub_work(void *arg)
{
    struct gr_bio *bio = arg;
    struct vmfs_disk *d = disk_of(bio->layer[0]);
    int r = d->o ? vcrc_kept(d->o->v) ? -EOPNOTSUPP : journal_seal(d->o->v) : -GR_EFENCED;
    if (r == 0 && (d->gone || !d->o)) /* it went while we waited */
        r = -GR_EFENCED;
    if (r < 0 || bio->len == 0)
        gr_bio_end(bio, r);
    else
        change(d->o, bio);
}

static void scrub(struct gr_chan *ch, struct gr_bio *bio)
{
    bio->layer[0] = ch;
    int r = gr_fiber_start(ch->loop, scrub_work, bio);
    if (r < 0)
        gr_bio_end(bio, r);
}

/* Nothing is written to it, by whomever. */
static bool only_read(const struct vobj *o)
{
    return vobj_template(o) || o->v->rescue;
}

static void disk_submit(struct gr_chan *ch, struct gr_bio *bio)
{
    struct vmfs_disk *d = disk_of(ch);
    struct vobj *o = d->o;
    if (d->gone || !o) {
        gr_bio_end(bio, -GR_EFENCED);
        return;
    }
    if (vkeys_locked(o)) {
        gr_bio_end(bio, -ENOKEY);
        return;
    }
    if (o->behind) {
        gr_bio_end(bio, bio->op == GR_OP_FLUSH ? 0 : -GR_EBEHIND);
        return;
    }
    if (o->lost && bio->op != GR_OP_READ && bio->op != GR_OP_EXTENTS) { /* no flush of it means anything until somebody has taken notice */
        gr_bio_end(bio, -EIO);
        return;
    }
    switch (bio->op) {
    case GR_OP_READ:
        tree_read(o, &o->live, bio);
        return;
    case GR_OP_WRITE:
    case GR_OP_UNMAP:
    case GR_OP_WRITE_ZEROES:
    case GR_OP_COMPARE_WRITE:
        if (bio->len == 0 || only_read(o))
            gr_bio_end(bio, bio->len ? -GR_EREADONLY : 0);
        else
            change(o, bio);
        return;
    case GR_OP_SCRUB:
        if (only_read(o))
            gr_bio_end(bio, -GR_EREADONLY);
        else
            scrub(ch, bio);
        return;
    case GR_OP_FLUSH:
        flush(o, bio);
        return;
    case GR_OP_EXTENTS:
        tree_extents(o, &o->live, o->lineage, o->epoch, bio);
        return;
    case GR_OP_COPY:
        if (only_read(o))
            gr_bio_end(bio, -GR_EREADONLY);
        else
            disk_copy(ch, bio);
        return;
    }
    gr_bio_end(bio, -EOPNOTSUPP);
}

static void shape(uint64_t size, uint32_t physical_block, const struct vmfs_lun *lun, const uint8_t uuid[16], struct gr_geometry *ret)
{
    *ret = (struct gr_geometry){ .size = size, .logical_block = 512, .physical_block = physical_block, .unmap_granule = VMFS_PIECE,
                                 .optimal_io = VMFS_BLOCK, .atomic_bytes = 1u << 20, .thin = true,
                                 .read_only = lun->flags & (VMFS_LUN_READ_ONLY | VMFS_LUN_TEMPLATE), .removable = lun->flags & VMFS_LUN_REMOVABLE,
                                 .limit_iops = lun->iops, .limit_bytes = lun->bytes_per_s, .limit_burst_ms = lun->burst_ms };
    memcpy(ret->uuid, uuid, 16);
}

void vmfs_stat_geometry(const struct vmfs_stat *st, struct gr_geometry *ret)
{
    shape(st->size, st->physical_block, &st->lun, st->uuid, ret);
}

static int disk_geometry(struct gr_bdev *bdev, struct gr_geometry *ret)
{
    struct vmfs_disk *d = gr_container_of(bdev, struct vmfs_disk, bdev);
    if (d->gone || !d->o)
        return -GR_EFENCED;
    struct vmfs_lun lun = vobj_lun(d->o);
    uint64_t size = d->o->ino.type == VMFS_FILE ? (d->o->ino.size + 511) & ~511ull : d->o->ino.size; /* whole sectors of a file */
    shape(size, vobj_physical_block(d->o), &lun, d->o->ino.uuid, ret);
    ret->read_only |= only_read(d->o);
    ret->in_memory = vdev_all_in_memory(d->o->v);
    return 0;
}

static void disk_close(struct gr_bdev *bdev)
{
    struct vmfs_disk *d = gr_container_of(bdev, struct vmfs_disk, bdev);
    if (d->o) {
        vkeys_close(d->o);
        d->o->handle = NULL;
    }
    free(d->path);
    free(d);
}

static int attr_get(struct gr_bdev *bdev, const char *key, void **ret, struct gr_err *err)
{
    struct vmfs_disk *d = gr_container_of(bdev, struct vmfs_disk, bdev);
    for (size_t i = 0; d->o && i < d->o->n_attrs; i++) {
        const struct vattr *a = &d->o->attrs[i];
        if (strcmp(a->key, key) != 0)
            continue;
        void *copy = gr_alloc(a->len + 1);
        if (!copy)
            return gr_fail(err, -ENOMEM, "out of memory");
        memcpy(copy, a->val, a->len);
        *ret = copy;
        return (int)a->len;
    }
    return gr_fail(err, -ENOENT, "'%s' has no attribute '%s'", bdev->name, key);
}

int disk_attr_do(struct vmfs_disk *d, const char *key, const void *val, size_t len, struct gr_err *err)
{
    struct gr_bdev *bdev = &d->bdev;
    size_t kl = strlen(key), total = (sizeof(struct vmfs_rec_attr_disk) + kl + len + 3) & ~3ul;
    if (!d->o || d->gone)
        return gr_fail(err, -GR_EFENCED, "'%s' is no longer ours", bdev->name);
    if (strcmp(key, VMFS_ATTR_KEYS) == 0)
        return gr_fail(err, -EINVAL, "'%s': attribute '%s' is the volume's own", bdev->name, key);
    if (kl == 0 || kl > 32 || len > 65536)
        return gr_fail(err, -EINVAL, "'%s': attribute '%s' of %zu bytes is too long", bdev->name, key, len);
    struct vmfs_rec_attr_disk *rec = gr_zalloc(total);
    if (!rec)
        return gr_fail(err, -ENOMEM, "out of memory");
    rec->r.type = gr_le16_of(VMFS_R_ATTR);
    rec->key_len = gr_le16_of((uint16_t)kl);
    rec->val_len = gr_le32_of((uint32_t)len);
    memcpy(rec->bytes, key, kl);
    if (len)
        memcpy(rec->bytes + kl, val, len);
    int r = record_do(d->o, rec, total, err);
    free(rec);
    return r;
}

int disk_attr_record(struct vmfs_disk *d, const char *key, const void *val, size_t len, struct gr_err *err)
{
    int r = d->o && !d->gone ? vrescue_refuse(d->o->v, err) : 0;
    if (r < 0)
        return r;
    if (d->o && !d->gone)
        journal_room(d->o->v);
    return disk_attr_do(d, key, val, len, err);
}

static int attr_set(struct gr_bdev *bdev, const char *key, const void *val, size_t len, struct gr_err *err)
{
    struct vmfs_disk *d = gr_container_of(bdev, struct vmfs_disk, bdev);
    if (d->o && !d->gone)
        journal_room(d->o->v);
    int r = disk_attr_do(d, key, val, len, err); /* of a disk that is rescued, too: those are the target's, and end with the process */
    if (r == 0 && (r = journal_commit(d->o->v)) < 0)
        gr_fail(err, r, "'%s': the attribute is not durable: %s", bdev->name, gr_code_text(r));
    return r;
}

int vmfs_set_lun(struct vmfs_disk *d, const struct vmfs_lun *lun, struct gr_err *err)
{
    struct vmfs_lun_disk val = { .flags = gr_le32_of(lun->flags), .iops = gr_le32_of(lun->iops), .bytes_per_s = gr_le64_of(lun->bytes_per_s),
                                 .burst_ms = gr_le32_of(lun->burst_ms) };
    bool any = lun->flags || lun->iops || lun->bytes_per_s;
    int r = d->o ? vrescue_refuse(d->o->v, err) : 0;
    if (r == 0 && lun->flags & VMFS_LUN_TEMPLATE && d->o)
        r = vkept_on(d->o->v, err);
    if (r == 0)
        r = attr_set(&d->bdev, VMFS_ATTR_LUN, &val, any ? sizeof val : 0, err);
    if (r == 0)
        gr_bdev_event(&d->bdev, GR_EVENT_PRESENTED);
    return r;
}

static int exclusive(struct gr_bdev *bdev, struct gr_err *err)
{
    const struct vmfs_disk *d = gr_container_of(bdev, struct vmfs_disk, bdev);
    const struct vobj *o = d->o;
    if (!o || d->gone)
        return gr_fail(err, -GR_EFENCED, "'%s' is no longer ours", d->bdev.name);
    if (vcrc_kept(o->v))
        return gr_fail(err, -EOPNOTSUPP, "'%s' lies on a datastore with data CRCs, where what was overwritten stays on the device until its place is used again",
                       d->bdev.name);
    for (size_t i = 0; i < o->n_snaps; i++)
        if (!(o->snaps[i]->flags & VMFS_SNAP_HIDDEN))
            return gr_fail(err, -EBUSY, "'%s' shares blocks with its snapshot '%s'", d->bdev.name, o->snaps[i]->name);
    if (o->n_snaps)
        return gr_fail(err, -EBUSY, "'%s' shares blocks with a snapshot that is still being deleted", d->bdev.name);
    if (o->origin_object)
        return gr_fail(err, -EBUSY, "'%s' shares blocks with the disk it was cloned from", d->bdev.name);
    return d->o->copied ? disk_unshared(d->o, err) : 0;
}

const struct gr_bdev_ops vmfs_disk_ops = {
    .type = "vmfs disk",
    .submit = disk_submit,
    .geometry = disk_geometry,
    .close = disk_close,
    .attr_get = attr_get,
    .attr_set = attr_set,
    .exclusive = exclusive,
};
