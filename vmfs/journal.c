/* The journal of one host: a ring of frames, written in order, made durable in groups.
 *
 * journal_append() writes a frame with all records so far; a write is acknowledged after it. One round of journal_commit() serves
 * everybody who asked before it began: a frame, if there are records, and one device flush. A frame carries the watermark: the newest frame known durable when it was written. On replay, data of frames up to
 * the last frame's watermark is trusted; newer data is checked by CRC. So a piece may be overwritten in place only when its
 * record is *sealed*: a durable frame's watermark covers it. */
#include "common/seam.h"
#include "vmfs/rescue.h"

#define COMMIT_AFTER_NS 500000000ull /* records wait at most so long for somebody's flush */
#define SEAL_AFTER_NS 20000000ull

uint64_t journal_seq(const struct vmfs *v)
{
    return v->j.next_seq;
}

static size_t pending_limit(const struct vmfs *v)
{
    return GR_MIN((size_t)1 << 20, (size_t)v->j.units * VMFS_UNIT / 16);
}

static void timer_fired(void *arg);

static void arm(struct vmfs *v, uint64_t ns)
{
    struct vjournal *j = &v->j;
    if (j->stopping || v->replaying || j->timer_fiber || (j->timer.heap_pos && ns))
        return;
    if (j->timer.heap_pos)
        gr_timer_cancel(v->loop, &j->timer); /* sooner than it was set to */
    j->timer.fn = timer_fired;
    j->timer.arg = v;
    gr_timer_arm(v->loop, &j->timer, ns);
}

int journal_add(struct vmfs *v, const void *rec, size_t len)
{
    struct vjournal *j = &v->j;
    int r = gr_buf_add(&j->pending, rec, len);
    if (r < 0)
        return r;
    j->n_pending++;
    j->last_record_seq = j->next_seq;
    arm(v, j->pending.len > pending_limit(v) ? 0 : COMMIT_AFTER_NS);
    return 0;
}

void journal_data_written(struct vobj *o, uint32_t devs)
{
    o->data_written = ++o->v->j.data_written;
    for (unsigned i = 0; devs; i++, devs >>= 1)
        if (devs & 1)
            o->data_on[i] = o->data_written;
}

static uint64_t images_units(uint64_t n)
{
    return n + n / 8 + 2; /* with the headers of their frames */
}

/* What is there when the images that are on their way are, too: they stay until the checkpoint behind theirs has ended. */
static uint64_t taken(const struct vjournal *j)
{
    return (uint64_t)j->used + j->coming;
}

/* And all images there can be: what was admitted before may change many regions yet, and in a small journal with many regions that is more than a
 * quarter of it. */
static uint64_t at_most(const struct vmfs *v)
{
    uint64_t images = GR_MIN(v->sp.images_max + v->dirty_objects, ckpt_images_due(v) + VMFS_LEAF_PIECES);
    return taken(&v->j) + GR_MIN(images_units(images), v->j.units / 2ull + v->j.units / 4);
}

bool journal_holds_images(const struct vmfs *v, unsigned more)
{
    uint32_t for_records = v->replaying ? 0 : v->j.units / 8;
    return taken(&v->j) + images_units(ckpt_images_due(v) + more + 1) + for_records <= v->j.units - 2u;
}

static bool full(const struct vmfs *v)
{
    return taken(&v->j) + ckpt_images_due(v) > v->j.units / 2 + v->j.units / 4 || at_most(v) > v->j.units - 2;
}

bool journal_has_room(const struct vmfs *v)
{
    return v->replaying || (!full(v) && v->j.pending.len <= pending_limit(v));
}

/* Wait for room: a frame's worth of records, and a journal that is not too full. An admitted write that became late (a snapshot
 * was taken meanwhile) does not wait: the checkpoint that makes room waits for it. */
static void wait_room(struct vmfs *v, const struct dop *op)
{
    struct vjournal *j = &v->j;
    while (!v->fenced && !v->replaying && !(op && dop_late(op)) &&
           (full(v) || j->pending.len > pending_limit(v))) {
        if (full(v))
            ckpt_background(v);
        if (j->pending.len <= pending_limit(v)) {
            gr_fqueue_wait(&j->room_q);
        } else if (op) {
            arm(v, 0);
            gr_fqueue_wait(&j->commit_q);
        } else {
            journal_commit(v);
        }
    }
    ckpt_kick(v);
    if (!v->fenced && v->ckpt_cleaning && !v->replaying && !(op && dop_late(op)))
        gr_fqueue_wait(&j->room_q); /* one turn per batch: else the checkpoint never catches up */
}

void journal_room(struct vmfs *v)
{
    wait_room(v, NULL);
}

void journal_room_for(const struct dop *op)
{
    wait_room(op->o->v, op);
}

static int cut_frame(struct vmfs *v, enum vmfs_frame_kind kind, const void *payload, size_t len, uint32_t n, uint64_t covers, uint32_t part,
                     uint32_t parts, struct vcut *ret)
{
    struct vjournal *j = &v->j;
    uint32_t units = (uint32_t)((sizeof(struct vmfs_frame_disk) + len + VMFS_UNIT - 1) / VMFS_UNIT);
    if (units > j->units - j->used - 1)
        return -GR_ENOSPACE;
    uint8_t *buf = vunits_alloc(units);
    if (!buf)
        return -ENOMEM;
    /* Recovery's own frames vouch for no more than the dead host's did: cut short, the next recovery must doubt the same data. */
    uint64_t watermark = v->replaying ? j->replay_watermark : j->durable_seq;
    struct vmfs_frame_disk *f = (struct vmfs_frame_disk *)buf;
    f->seq = gr_le64_of(j->next_seq);
    f->watermark = gr_le64_of(watermark);
    f->kind = gr_le32_of(kind);
    f->n_records = gr_le32_of(n);
    f->payload = gr_le32_of((uint32_t)len);
    f->covers = gr_le64_of(covers);
    f->part = gr_le32_of(part);
    f->parts = gr_le32_of(parts);
    f->previous = gr_le32_of(j->last_crc);
    if (len)
        memcpy(buf + sizeof *f, payload, len);
    vhdr_seal(v, buf, VMFS_T_FRAME, units, j->head_off, v->me.generation, v->slot);
    j->last_crc = gr_le32_get(f->hdr.crc32c);
    *ret = (struct vcut){ buf, units, j->next_seq, j->head_off, watermark };
    j->next_seq++;
    j->head_off = (j->head_off + units) % j->units;
    j->used += units;
    return 0;
}

int journal_cut(struct vmfs *v, bool force, struct vcut *ret)
{
    struct vjournal *j = &v->j;
    *ret = (struct vcut){ .seq = j->next_seq - 1, .off = j->head_off };
    if (!j->n_pending && !force)
        return 0;
    int r = cut_frame(v, VMFS_FRAME_RECORDS, j->pending.data, j->pending.len, j->n_pending, 0, 0, 1, ret);
    if (r == 0) {
        j->pending.len = 0;
        j->n_pending = 0;
        gr_fqueue_wake_all(&j->commit_q); /* somebody may have waited for room in it */
    }
    return r;
}

int journal_put(struct vmfs *v, unsigned copies, uint64_t off, uint32_t units, void *buf)
{
    struct vjournal *j = &v->j;
    uint32_t first = (uint32_t)GR_MIN((uint64_t)units, j->units - off);
    struct vread w[VDEV_WRITES_MAX];
    unsigned n = 0;
    for (unsigned k = 0; k < j->n_copies; k++) {
        if (!(copies >> k & 1))
            continue;
        w[n++] = (struct vread){ .addr = j->addr[k] + off, .units = first, .buf = buf };
        if (first < units)
            w[n++] = (struct vread){ .addr = j->addr[k], .units = units - first, .buf = (uint8_t *)buf + (size_t)first * VMFS_UNIT };
    }
    return vdev_write_all(v, w, n);
}

int journal_write_cut(struct vmfs *v, struct vcut *c)
{
    struct vjournal *j = &v->j;
    if (!c->buf)
        return 0;
    int r = journal_put(v, (1u << j->n_copies) - 1, c->off, c->units, c->buf);
    free(c->buf);
    c->buf = NULL;
    if (r < 0) {
        vmfs_fence(v, "the journal cannot be written: %s", gr_code_text(r));
        return r;
    }
    j->written_watermark = GR_MAX(j->written_watermark, c->watermark);
    j->written_seq = c->seq;
    v->stats.journal_frames++;
    v->stats.journal_bytes += (uint64_t)c->units * VMFS_UNIT;
    return 0;
}

int journal_flush(struct vmfs *v, uint64_t seq)
{
    struct vjournal *j = &v->j;
    uint64_t watermark = j->written_watermark, data = j->data_written;
    int r = vdev_flush(v);
    if (r < 0) {
        vmfs_fence(v, "a device flush failed: %s", gr_code_text(r));
        return r;
    }
    j->flushed_ns = gr_loop_now_ns(v->loop);
    j->data_flushed = GR_MAX(j->data_flushed, data);
    j->durable_seq = GR_MAX(j->durable_seq, seq);
    j->sealed_seq = GR_MAX(j->sealed_seq, watermark);
    space_reclaim(v);
    return 0;
}

static bool rest_is_for_checkpoint(const struct vjournal *j)
{
    return taken(j) > j->units - j->units / 8;
}

/* A frame for what is pending. write_lock is held. */
static int write_pending(struct vmfs *v, bool seal, struct vcut *c)
{
    int r = v->fenced ? -GR_EFENCED : journal_cut(v, seal, c);
    return r < 0 ? r : journal_write_cut(v, c);
}

/* A frame for what is pending, and a flush. @seal: a frame even when nothing is pending, so that its watermark gets there. */
static int commit_round(struct vmfs *v, bool seal)
{
    struct vjournal *j = &v->j;
    struct vcut c;
    gr_fmutex_lock(&j->write_lock);
    int r = write_pending(v, seal, &c);
    gr_fmutex_unlock(&j->write_lock);
    if (r == 0 && (j->data_flushed < j->data_written || j->durable_seq < c.seq))
        r = journal_flush(v, c.seq);
    return r;
}

int journal_commit(struct vmfs *v)
{
    struct vjournal *j = &v->j;
    uint64_t mine = ++j->asked;
    v->stats.flushes++;
    while (j->done < mine && !v->fenced) {
        if (j->committing) {
            gr_fqueue_wait(&j->commit_q);
            continue;
        }
        if (j->n_pending && rest_is_for_checkpoint(j)) {
            ckpt_kick(v);
            gr_fqueue_wait(&j->room_q);
            continue;
        }
        j->committing = true;
        uint64_t up_to = j->asked;
        int r = commit_round(v, false);
        j->committing = false;
        if (r < 0)
            vmfs_fence(v, "the journal cannot go on: %s", gr_code_text(r));
        else
            j->done = GR_MAX(j->done, up_to);
        gr_fqueue_wake_all(&j->commit_q);
    }
    if (v->fenced)
        return -GR_EFENCED;
    if (j->last_record_seq > j->sealed_seq)
        arm(v, SEAL_AFTER_NS);
    return 0;
}

/* Of those with records. */
static uint64_t newest_frame(const struct vjournal *j)
{
    return j->next_seq - !j->n_pending;
}

int journal_append(struct vmfs *v)
{
    struct vjournal *j = &v->j;
    uint64_t mine = newest_frame(j);
    gr_fmutex_lock(&j->write_lock);
    if (j->written_seq < mine)
        gr_fiber_yield(); /* what else has come meanwhile goes into the same frame */
    while (j->written_seq < mine && !v->fenced) {
        if (rest_is_for_checkpoint(j)) {
            gr_fmutex_unlock(&j->write_lock);
            ckpt_kick(v);
            gr_fqueue_wait(&j->room_q);
            gr_fmutex_lock(&j->write_lock);
            continue;
        }
        struct vcut c;
        int r = write_pending(v, false, &c);
        if (r < 0)
            vmfs_fence(v, "the journal cannot go on: %s", gr_code_text(r));
    }
    gr_fmutex_unlock(&j->write_lock);
    return v->fenced ? -GR_EFENCED : 0;
}

static void appends_end(struct vjournal *j, int r)
{
    while (j->appends && (r < 0 || j->appends->seq <= j->written_seq)) {
        struct vappend *a = j->appends;
        j->appends = a->next;
        a->done(a, r);
    }
}

static void append_work(void *arg)
{
    struct vmfs *v = arg;
    while (v->j.appends)
        appends_end(&v->j, journal_append(v));
    v->j.appending = false;
    if (--v->background == 0)
        gr_fqueue_wake_all(&v->background_q);
}

void journal_append_later(struct vmfs *v, struct vappend *a)
{
    struct vjournal *j = &v->j;
    a->next = NULL;
    a->seq = newest_frame(j);
    if (!j->appends)
        j->appends_end = &j->appends;
    *j->appends_end = a;
    j->appends_end = &a->next;
    if (j->appending)
        return;
    int r = gr_fiber_start(v->loop, append_work, v);
    if (r < 0) {
        appends_end(j, r);
        return;
    }
    j->appending = true;
    v->background++;
}

/* Nobody else is committing. */
static int seal_round(struct vmfs *v)
{
    struct vjournal *j = &v->j;
    uint64_t up_to = j->asked;
    j->committing = true;
    int r = commit_round(v, true);
    j->committing = false;
    if (r == 0)
        j->done = GR_MAX(j->done, up_to);
    gr_fqueue_wake_all(&j->commit_q);
    return r;
}

static int seal(struct vmfs *v, uint64_t last, bool patient)
{
    struct vjournal *j = &v->j;
    int r = 0;
    while (r == 0 && j->sealed_seq < last && !v->fenced) {
        if (j->committing) {
            gr_fqueue_wait(&j->commit_q);
        } else if (!rest_is_for_checkpoint(j)) {
            r = seal_round(v);
        } else if (patient) {
            ckpt_kick(v);
            gr_fqueue_wait(&j->room_q);
        } else {
            r = -EAGAIN;
        }
    }
    return v->fenced ? -GR_EFENCED : r;
}

int journal_seal(struct vmfs *v)
{
    uint64_t last = v->j.last_record_seq;
    int r = journal_commit(v);
    return r < 0 ? r : seal(v, last, true);
}

int journal_try_seal(struct vmfs *v)
{
    return seal(v, v->j.last_record_seq, false);
}

/* Nobody flushed for a while: do it. Nothing comes any more: seal, so that the next overwrites go in place. While guests write and flush their
 * own flushes do both, and one of ours between them would cost the device as much as theirs. */
static void timer_work(void *arg)
{
    struct vmfs *v = arg;
    struct vjournal *j = &v->j;
    uint64_t quiet_ns = gr_loop_now_ns(v->loop) - j->flushed_ns;
    bool unflushed = j->n_pending || j->durable_seq < j->last_record_seq;
    if (unflushed && quiet_ns < COMMIT_AFTER_NS && j->pending.len <= pending_limit(v)) {
        j->timer_fiber = false;
        arm(v, COMMIT_AFTER_NS - quiet_ns);
        if (--v->background == 0)
            gr_fqueue_wake_all(&v->background_q);
        return;
    }
    if (unflushed)
        journal_commit(v);
    if (!j->stopping && !v->fenced && j->last_record_seq > j->sealed_seq && !j->committing && taken(j) < j->units - j->units / 4)
        (void)seal_round(v); /* a failure that counts has given the volume up */
    j->timer_fiber = false;
    if (j->n_pending)
        arm(v, COMMIT_AFTER_NS);
    if (--v->background == 0)
        gr_fqueue_wake_all(&v->background_q);
}

static void timer_fired(void *arg)
{
    struct vmfs *v = arg;
    if (v->j.stopping || v->fenced)
        return;
    v->j.timer_fiber = true;
    v->background++;
    if (gr_fiber_start(v->loop, timer_work, v) < 0) {
        v->j.timer_fiber = false;
        v->background--;
    }
}

/* All frames get their numbers at once, behind one with the records that are pending: a record's number is that of the frame being
 * filled (journal_seq), so no other frame may take it. */
static int cut_images(struct vmfs *v, const struct vmfs_image_disk *images, unsigned n, uint64_t covers, unsigned per, struct vcut *cut,
                      unsigned parts)
{
    int r = journal_cut(v, false, &cut[0]);
    for (unsigned p = 0; r == 0 && p < parts; p++) {
        unsigned first = p * per, count = GR_MIN(per, n - first);
        r = cut_frame(v, VMFS_FRAME_IMAGES, images + first, count * sizeof *images, count, covers, p, parts, &cut[p + 1]);
    }
    return r;
}

void journal_expect_images(struct vmfs *v, unsigned n)
{
    v->j.coming = (uint32_t)images_units(n);
}

int journal_write_images(struct vmfs *v, const struct vmfs_image_disk *images, unsigned n, uint64_t covers, uint64_t *ret_seq)
{
    struct vjournal *j = &v->j;
    unsigned per = GR_MAX(1u, GR_MIN(60u, j->units / 16)), parts = n ? (n + per - 1) / per : 1;
    struct vcut *cut = gr_zalloc((parts + 1) * sizeof *cut);
    if (!cut)
        return -ENOMEM;
    gr_fmutex_lock(&j->write_lock);
    int r = cut_images(v, images, n, covers, per, cut, parts);
    j->coming = 0;
    for (unsigned p = 0; r == 0 && p <= parts; p++) {
        r = journal_write_cut(v, &cut[p]);
        if (r == 0)
            *ret_seq = cut[p].seq;
    }
    gr_fmutex_unlock(&j->write_lock);
    for (unsigned p = 0; p <= parts; p++)
        free(cut[p].buf);
    free(cut);
    return r;
}

void journal_start(struct vmfs *v)
{
    struct vjournal *j = &v->j;
    j->n_copies = 0;
    const uint64_t at[] = { v->me.journal_addr, v->me.journal_mirror };
    for (unsigned i = 0; i < GR_ARRAY_LEN(at); i++)
        if (at[i] && !vrescue_lost(v, vmfs_addr_dev(at[i])))
            j->addr[j->n_copies++] = at[i];
    j->units = v->me.journal_units;
    j->tail_seq = v->me.tail_seq;
    j->tail_off = v->me.tail_off;
    j->head_off = j->tail_off;
    j->next_seq = j->tail_seq;
    j->used = 0;
    j->durable_seq = j->sealed_seq = j->written_watermark = j->replay_watermark = j->written_seq = j->next_seq - 1;
    j->last_record_seq = 0;
}

void journal_stop(struct vmfs *v)
{
    v->j.stopping = true;
    gr_timer_cancel(v->loop, &v->j.timer);
    gr_fqueue_wake_all(&v->j.room_q);
    gr_fqueue_wake_all(&v->j.commit_q);
}
