/* Recovery of a slot: images of the last complete checkpoint go home, then the records behind it are applied in order. Data
 * of frames above the durable watermark of the last frame is believed only if its CRC agrees: such a frame was never
 * flushed, and after a power cut its data may not have reached the device. */
#include "common/seam.h"
#include "vmfs/loss.h"
#include "vmfs/rescue.h"

struct scan {
    struct vmfs *v;
    uint64_t covers;       /* of the last complete image set; 0: none */
    uint64_t set_covers;   /* of the set being collected */
    uint32_t set_parts, set_seen;
    struct gr_buf set, complete;
    uint64_t watermark;
    uint32_t stale; /* devices of which images did not go home */
    struct gr_err *err;
};

static int collect(void *arg, const struct vframe *f, const uint8_t *payload)
{
    struct scan *s = arg;
    if (f->kind != VMFS_FRAME_IMAGES)
        return 0;
    if (f->n_records > f->payload / sizeof(struct vmfs_image_disk))
        return gr_fail(s->err, -GR_ECORRUPT, "journal frame %llu: rule 7", (unsigned long long)f->seq);
    if (f->part == 0) {
        s->set.len = 0;
        s->set_seen = 0;
        s->set_covers = f->covers;
        s->set_parts = f->parts;
    }
    if (f->covers != s->set_covers || f->part != s->set_seen || f->parts != s->set_parts)
        return 0;
    if (gr_buf_add(&s->set, payload, f->n_records * sizeof(struct vmfs_image_disk)) < 0)
        return gr_fail(s->err, -ENOMEM, "out of memory");
    if (++s->set_seen == s->set_parts) {
        struct gr_buf t = s->complete;
        s->complete = s->set;
        s->set = t;
        s->covers = s->set_covers;
    }
    return 0;
}

/* An image goes home unless what is there is as new or newer (somebody else went on from it). */
static int image_home(struct vmfs *v, const struct vmfs_image_disk *d, int copy, struct gr_err *err)
{
    const struct vmfs_hdr_disk *h = (const struct vmfs_hdr_disk *)d->block;
    uint64_t addr = gr_le64_get(copy ? d->addr_b : d->addr_a);
    uint8_t *now = vunits_alloc(1);
    const struct vmfs_hdr_disk *n = (const struct vmfs_hdr_disk *)now;
    int r = now ? vdev_read(v, addr, 1, now) : -ENOMEM;
    if (r == 0 && (vhdr_check(v->sb.uuid, now, gr_le16_get(h->type), 1, addr, NULL) < 0 ||
                   gr_le64_get(n->generation) < gr_le64_get(h->generation))) {
        memcpy(now, d->block, VMFS_UNIT);
        vhdr_move(now, 1, addr);
        r = vdev_write(v, addr, 1, now, 0);
    }
    free(now);
    return r < 0 ? gr_fail(err, r, "slot %u: a block cannot be brought home: %s", v->slot, gr_code_text(r)) : 0;
}

static bool lost_here(const struct vmfs *v, unsigned dev)
{
    return v->me.lost.devices >> dev & 1;
}

/* Is it a block of a device that is missing, or whose tables are not believed any more? Those of a missing one are stale from then on. */
static bool goes_nowhere(struct scan *s, const struct vmfs_image_disk *d)
{
    const struct vmfs *v = s->v;
    unsigned dev = vmfs_addr_dev(gr_le64_get(d->addr_a));
    if (dev >= v->sb.n_devices || vdev_emptied(v, dev) || !(vdev_missing(v, dev) || vdev_stale(v, dev) || lost_here(v, dev)))
        return false;
    if (gr_le16_get(((const struct vmfs_hdr_disk *)d->block)->type) == VMFS_T_SUPER)
        return vdev_missing(v, dev); /* device 0's counts */
    s->stale |= (uint32_t)1 << dev;
    return true;
}

static int images_home(struct scan *s)
{
    const struct vmfs_image_disk *d = (const struct vmfs_image_disk *)s->complete.data;
    size_t n = s->complete.len / sizeof *d;
    int r = 0;
    for (size_t i = 0; r == 0 && i < n; i++)
        r = vhdr_check(s->v->sb.uuid, d[i].block, gr_le16_get(((const struct vmfs_hdr_disk *)d[i].block)->type), 1, gr_le64_get(d[i].addr_a), s->err);
    for (int copy = 0; r == 0 && copy < 2; copy++) {
        for (size_t i = 0; r == 0 && i < n; i++)
            r = goes_nowhere(s, &d[i]) ? 0 : image_home(s->v, &d[i], copy, s->err);
        if (r == 0 && n) /* one copy at a time: a power cut never tears both */
            r = vdev_flush(s->v);
    }
    return r;
}

/* ---- lists of foreign frees ---- */
struct aux { /* a slot's list */
    struct vmfs_aux_disk *a;
    uint8_t *blob;
    uint64_t generation, blob_addr;
    uint32_t n, blob_units;
    bool missing; /* what does not fit the block lies on a device that is missing */
};

static void aux_done(struct aux *x)
{
    free(x->a);
    free(x->blob);
}

static int aux_read(struct vmfs *v, unsigned slot, struct aux *x, struct gr_err *err)
{
    *x = (struct aux){ .a = vunits_alloc(1) };
    int r = x->a ? vhome_read(v, &v->sb.slots, slot, 1, VMFS_T_AUX, x->a, err) : -ENOMEM;
    if (r != 0)
        return r < 0 ? r : 0;
    uint64_t addr = gr_le64_get(x->a->blob_addr);
    x->n = gr_le32_get(x->a->n_runs);
    x->generation = gr_le64_get(x->a->hdr.generation);
    if (x->n <= VMFS_AUX_RUNS)
        return 0;
    uint32_t units = x->blob_units = gr_le32_get(x->a->blob_units);
    if (!space_addr_ok(v, addr, units) || units > VMFS_BLOB_UNITS_MAX || (uint64_t)units * VMFS_UNIT < (x->n - VMFS_AUX_RUNS) * sizeof(struct vmfs_run_disk))
        return gr_fail(err, -GR_ECORRUPT, "slot %u: rule 7: list of foreign frees", slot);
    addr = moved_addr(v, addr, units, NULL);
    if (vmfs_addr_dev(addr) < v->sb.n_devices && vdev_no_data(v, vmfs_addr_dev(addr))) {
        x->missing = true;
        x->n = VMFS_AUX_RUNS;
        x->blob_addr = addr;
        return 0;
    }
    x->blob = vunits_alloc(units);
    x->blob_addr = addr;
    r = x->blob ? vdev_read(v, addr, units, x->blob) : -ENOMEM;
    if (r == -EIO && v->rescue) {
        free(gr_take(x->blob));
        x->missing = true;
        x->n = VMFS_AUX_RUNS;
        return 0;
    }
    return r == 0 ? vblock_check(v, x->blob, VMFS_T_BLOB, units, addr, err) : r;
}

static int aux_each(const struct aux *x, int (*fn)(void *arg, uint64_t addr, uint64_t units), void *arg)
{
    int r = 0;
    for (uint32_t i = 0; r >= 0 && i < x->n; i++) {
        const struct vmfs_run_disk *d = i < VMFS_AUX_RUNS ? &x->a->runs[i]
                                                          : (const struct vmfs_run_disk *)(x->blob + sizeof(struct vmfs_hdr_disk)) + (i - VMFS_AUX_RUNS);
        r = fn(arg, gr_le64_get(d->addr), gr_le64_get(d->units));
    }
    return r < 0 ? r : 0;
}

int foreign_read(struct vmfs *v, unsigned slot, int (*fn)(void *arg, uint64_t addr, uint64_t units), void *arg, struct gr_err *err)
{
    struct aux x;
    int r = aux_read(v, slot, &x, err);
    if (r == 0)
        r = aux_each(&x, fn, arg);
    aux_done(&x);
    return r;
}

static int foreign_one(void *arg, uint64_t addr, uint64_t units)
{
    struct vmfs *v = arg;
    return space_addr_ok(v, addr, units) ? space_foreign_take(v, addr, units) : -GR_ERANGE;
}

int foreign_load(struct vmfs *v, struct gr_err *err)
{
    struct aux x;
    int r = aux_read(v, v->slot, &x, err);
    v->aux_generation = x.generation ? x.generation : v->aux_generation;
    if (x.missing) /* such units stay taken, which is safe; and listed, until the list changes */
        vmfs_warn(v, "datastore '%s': a list of space that slot %u gave back lies on device %u, which is missing: what it names stays taken, unless the datastore is joined with "
                  "that device before, until 'granary datastore check %s --repair'", v->sb.name, v->slot, vmfs_addr_dev(x.blob_addr), v->sb.name);
    if (x.blob) {
        v->sp.aux_blob_addr = x.blob_addr;
        v->sp.aux_blob_units = x.blob_units;
    }
    if (r == 0 && (r = aux_each(&x, foreign_one, v)) == -GR_ERANGE)
        r = gr_fail(err, -GR_ECORRUPT, "slot %u: rule 7: a foreign free outside the regions", v->slot);
    aux_done(&x);
    return r;
}

/* ---- records ---- */
static int load_trees(struct vobj *o, const struct vmfs_rec_map_disk *d, struct gr_err *err)
{
    uint64_t piece = gr_le64_get(d->piece), birth = gr_le64_get(d->birth);
    int r = 0;
    for (struct vsnap *s = vobj_snap(o, o->parent_snap); r == 0 && s && s->epoch >= birth; s = vobj_snap(o, s->parent))
        r = mtree_load(o, &s->tree, piece, err);
    return r < 0 ? r : mtree_load(o, &o->live, piece, err);
}

/* A record of something on a device that is missing or was lost. 1: it is not applied, for its data was not durable when that was lost; 0: it is,
 * and *doubt tells whether its data is to be looked at. */
static int replay_absent(struct vmfs *v, const struct vmfs_rec_map_disk *d, uint64_t seq, bool *doubt, struct gr_err *err)
{
    unsigned dev = vmfs_addr_dev(gr_le64_get(d->addr));
    bool data = gr_le32_get(d->state) == VMFS_P_DATA && !(gr_le16_get(d->r.flags) & VMFS_RF_TRUSTED);
    if (gr_le32_get(d->state) == VMFS_P_HOLE || dev >= v->sb.n_devices)
        return 0;
    if (lost_here(v, dev)) {
        *doubt = false;
        if (data && seq > v->me.lost.seq) {
            v->stats.dropped_pieces += gr_le32_get(d->count);
            return 1;
        }
    } else if (vrescue_lost(v, dev) || vdev_emptied(v, dev)) {
        *doubt = false; /* it cannot be read, now as it was or before */
    } else if (vdev_missing(v, dev) && data && *doubt) {
        return gr_fail(err, -EIO, "its journal tells of data on device %u, which is missing, and only that can tell whether it was written: join it with that device first", dev);
    }
    return vdev_missing(v, dev) ? vloss_mark(v, dev, false, err) : 0; /* its bitmap does not say so */
}

/* Which pieces of the record's data are really there? Runs of good ones are applied. */
static int replay_map(struct vobj *o, const struct vmfs_rec_map_disk *d, uint64_t seq, bool doubt, struct gr_err *err)
{
    uint32_t count = gr_le32_get(d->count);
    uint64_t addr = gr_le64_get(d->addr), piece = gr_le64_get(d->piece);
    int r = replay_absent(o->v, d, seq, &doubt, err);
    if (r != 0)
        return r < 0 ? r : 0;
    r = load_trees(o, d, err);
    if (r < 0)
        return r;
    if (!doubt || gr_le32_get(d->state) != VMFS_P_DATA || (gr_le16_get(d->r.flags) & VMFS_RF_TRUSTED))
        return record_apply(o, d, seq, err);
    size_t len = gr_le32_get(d->r.len);
    uint8_t *buf = vunits_alloc(count);
    struct vmfs_rec_map_disk *one = gr_alloc(len);
    r = buf && one ? vdev_read(o->v, addr, count, buf) : -ENOMEM;
    if (one) {
        memcpy(one, d, len);
        one->r.flags = gr_le16_of(VMFS_RF_TRUSTED);
    }
    for (uint32_t i = 0; r == 0 && i < count;) {
        uint32_t n = 0;
        while (i + n < count && gr_crc32c(0, buf + (size_t)(i + n) * VMFS_UNIT, VMFS_UNIT) == gr_le32_get(d->crc[i + n]))
            n++;
        if (n) {
            one->piece = gr_le64_of(piece + i);
            one->addr = gr_le64_of(addr + i);
            one->count = gr_le32_of(n);
            memcpy(one->crc, d->crc + i, n * sizeof d->crc[0]); /* a record has one for each of its pieces */
            r = record_apply(o, one, seq, err);
        } else {
            o->v->stats.dropped_pieces++;
            n = 1;
        }
        i += n;
    }
    free(one);
    free(buf);
    return r;
}

struct apply {
    struct vmfs *v;
    uint64_t after, watermark;
    struct gr_err *err;
};

/* The object, if the dead host had it to the end: *ret, or NULL. */
static int object_of(struct vmfs *v, uint64_t id, struct vobj **ret, struct gr_err *err)
{
    struct vobj *seen;
    if ((*ret = vobj_find(v, id)))
        return 0;
    int r = vobj_peek(v, id, &seen, err);
    if (r < 0)
        return r == -ENOENT ? 0 : vrescue_skip(v, id, r);
    bool mine = vlock_mine(v, &seen->ino.lock);
    vobj_free(seen);
    return mine ? vobj_hold(v, id, 0, ret, NULL, err) : 0; /* given up since */
}

static int replay_record(struct apply *a, const struct vmfs_rec_disk *d, uint64_t seq)
{
    struct vmfs *v = a->v;
    struct vobj *o;
    uint64_t id = gr_le64_get(d->object);
    int r = vrescue_skipped(v, id) ? 1 : object_of(v, id, &o, a->err);
    if (r != 0 || !o)
        return r < 0 ? r : 0;
    if (o->ino.lock.token != gr_le64_get(d->token))
        return 0; /* somebody had it in between */
    v->stats.replayed_records++;
    if (gr_le16_get(d->type) == VMFS_R_MAP) {
        const struct vmfs_rec_map_disk *m = (const struct vmfs_rec_map_disk *)d;
        if (gr_le32_get(d->len) < sizeof *m)
            return gr_fail(a->err, -GR_ECORRUPT, "journal frame %llu: rule 7", (unsigned long long)seq);
        return vrescue_skip(v, id, replay_map(o, m, seq, seq > a->watermark, a->err));
    }
    return vrescue_skip(v, id, record_apply(o, d, seq, a->err));
}

static int replay_frame(void *arg, const struct vframe *f, const uint8_t *payload)
{
    struct apply *a = arg;
    uint32_t at = 0;
    if (f->kind != VMFS_FRAME_RECORDS || f->seq <= a->after)
        return 0;
    while (at < f->payload) {
        const struct vmfs_rec_disk *d = (const struct vmfs_rec_disk *)(payload + at);
        if (f->payload - at < sizeof *d || gr_le32_get(d->len) < sizeof *d || gr_le32_get(d->len) > f->payload - at)
            return gr_fail(a->err, -GR_ECORRUPT, "journal frame %llu: rule 7: a record's length", (unsigned long long)f->seq);
        int r = replay_record(a, d, f->seq);
        if (r < 0)
            return r;
        at += gr_le32_get(d->len);
    }
    return 0;
}

/* What its host lost with devices: their tables are stale, and who has lost writes says so from now on. It was not ejected from one that is missing:
 * who has that open sees to it (shut_out.c). */
static int losses_marked(struct vmfs *v, uint32_t stale, struct gr_err *err)
{
    int r = 0;
    stale |= v->me.lost.devices;
    for (unsigned i = 1; r == 0 && i < v->sb.n_devices; i++) {
        bool not_ejected = v->life.fences && vdev_missing(v, i);
        if (not_ejected || stale >> i & 1)
            r = vloss_mark(v, i, not_ejected, err);
    }
    return r;
}

static int objects_marked(struct vmfs *v, struct gr_err *err)
{
    int r = 0;
    for (unsigned i = 0; r == 0 && i < v->me.lost.n; i++) {
        struct vobj *o;
        r = object_of(v, v->me.lost.objects[i], &o, err);
        if (r == 0 && o && (r = vloss_poison(o, v->me.lost.devices)) < 0)
            gr_fail(err, r, "out of memory");
    }
    return r;
}

int replay_run(struct vmfs *v, struct gr_err *err)
{
    struct gr_err local = { 0 };
    struct scan s = { .v = v, .err = err ? err : &local };
    struct vframe last = { 0 };
    v->replaying = true;
    journal_start(v);
    int r = journal_mend(v, s.err);
    if (r == 0)
        r = journal_scan(v, collect, &s, &last, s.err);
    if (r == 0)
        r = images_home(&s);
    if (r == 0)
        r = vmfs_refresh(v, s.err); /* there may have been superblocks among them */
    if (r == 0)
        r = losses_marked(v, s.stale, s.err);
    if (r == 0)
        r = space_init(v, s.err);
    if (r == 0)
        r = foreign_load(v, s.err);
    if (r == 0 && last.units) /* what is applied knows how much room is left */
        v->j.used = (uint32_t)((last.off + last.units + v->j.units - v->j.tail_off) % v->j.units);
    struct apply a = { v, s.covers, last.watermark, s.err };
    if (r == 0) {
        struct vframe again;
        r = journal_scan(v, replay_frame, &a, &again, s.err);
    }
    if (r == 0)
        r = objects_marked(v, s.err);
    gr_buf_done(&s.set);
    gr_buf_done(&s.complete);
    if (r == 0 && last.units) {
        struct vjournal *j = &v->j;
        j->next_seq = last.seq + 1;
        j->last_crc = last.crc;
        j->head_off = (last.off + last.units) % j->units;
        j->durable_seq = j->written_seq = last.seq;
        j->replay_watermark = last.watermark;
        j->sealed_seq = j->written_watermark = 0;
    }
    if (r == 0) {
        for (unsigned h = 0; h < VOBJ_HASH; h++)
            for (struct vobj *o = v->objs[h]; o; o = o->hash_next)
                quota_give_back(o);
        r = ckpt_run(v);
        if (r < 0)
            gr_fail(s.err, r, "slot %u: the recovered state cannot be written: %s", v->slot, v->fenced ? v->fence_reason : gr_code_text(r));
    }
    v->replaying = false;
    return r;
}
