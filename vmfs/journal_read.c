/* Reading a journal back: the frames from the tail on, as recovery and the check need them. */
#include "vmfs/internal.h"

/* Frames are small and there may be thousands: read many at once. */
#define WINDOW_UNITS 256u
struct window {
    uint8_t *buf;
    uint64_t off;
    uint32_t units; /* of the journal that are in it, from @off on */
};
struct reader { /* of a journal in one area or two */
    struct vmfs *v;
    struct window w[2];
    uint64_t off, seq;  /* of the next frame */
    uint32_t total;     /* units of those before it */
    uint32_t previous;  /* CRC of the one before it; total 0: of none */
};

static int window_fill(struct vmfs *v, unsigned copy, struct window *w, uint64_t off)
{
    struct vjournal *j = &v->j;
    uint32_t units = (uint32_t)GR_MIN((uint64_t)WINDOW_UNITS, j->units - off);
    w->units = 0;
    int r = vdev_read(v, j->addr[copy] + off, units, w->buf);
    if (r < 0 && units > 1) /* what cannot be read may lie behind the last frame */
        r = vdev_read(v, j->addr[copy] + off, units = 1, w->buf);
    if (r == 0)
        *w = (struct window){ w->buf, off, units };
    return r;
}

/* @units of the journal, round its end if need be. */
static int units_read(struct reader *s, unsigned copy, uint64_t off, uint32_t units, uint8_t *to)
{
    struct vjournal *j = &s->v->j;
    struct window *w = &s->w[copy];
    int r = 0;
    while (r == 0 && units) {
        if (off < w->off || off >= w->off + w->units)
            r = window_fill(s->v, copy, w, off);
        if (r == 0) {
            uint32_t n = (uint32_t)GR_MIN((uint64_t)units, w->off + w->units - off);
            memcpy(to, w->buf + (size_t)(off - w->off) * VMFS_UNIT, (size_t)n * VMFS_UNIT);
            to += (size_t)n * VMFS_UNIT;
            units -= n;
            off = (off + n) % j->units;
        }
    }
    return r;
}

/* The next frame as it is in one area. -ENOENT: it is not there. */
static int frame_read(struct reader *s, unsigned copy, struct vframe *ret, uint8_t **ret_buf)
{
    struct vmfs *v = s->v;
    struct vjournal *j = &v->j;
    uint8_t *buf = vunits_alloc(1);
    int r = buf ? units_read(s, copy, s->off, 1, buf) : -ENOMEM;
    struct vmfs_frame_disk *f = (struct vmfs_frame_disk *)buf;
    if (r == 0 && (gr_le32_get(f->hdr.magic) != VMFS_MAGIC || gr_le16_get(f->hdr.type) != VMFS_T_FRAME || gr_le64_get(f->seq) != s->seq ||
                   gr_le64_get(f->hdr.generation) != v->me.generation))
        r = -ENOENT;
    uint32_t units = r == 0 ? gr_le32_get(f->hdr.units) : 0;
    /* a frame behind one that was written again after a recovery is not its successor, though its number fits */
    if (r == 0 && (units == 0 || units > j->units - s->total || (s->total && gr_le32_get(f->previous) != s->previous)))
        r = -ENOENT;
    if (r == 0 && units > 1) {
        uint8_t *all = vunits_alloc(units);
        r = all ? units_read(s, copy, s->off, units, all) : -ENOMEM;
        free(buf);
        buf = all;
        f = (struct vmfs_frame_disk *)buf;
    }
    if (r == 0 && vhdr_check(v->sb.uuid, buf, VMFS_T_FRAME, units, s->off, NULL) < 0)
        r = -ENOENT;
    if (r == 0 && gr_le32_get(f->payload) > (size_t)units * VMFS_UNIT - sizeof *f)
        r = -ENOENT;
    if (r < 0) {
        free(buf);
        return r;
    }
    *ret = (struct vframe){ .seq = s->seq, .off = s->off, .watermark = gr_le64_get(f->watermark), .covers = gr_le64_get(f->covers), .units = units,
                            .kind = gr_le32_get(f->kind), .n_records = gr_le32_get(f->n_records), .part = gr_le32_get(f->part),
                            .parts = gr_le32_get(f->parts), .payload = gr_le32_get(f->payload), .crc = gr_le32_get(f->hdr.crc32c),
                            .previous = gr_le32_get(f->previous) };
    *ret_buf = buf;
    return 0;
}

/* The next frame: of the first area that has it. -ENOENT: none has. One that cannot be read is as good as none while the other can: a write is
 * acknowledged when its frame is in both. */
static int frame_find(struct reader *s, struct vframe *ret, uint8_t **ret_buf, unsigned *ret_copy)
{
    int r = -EIO;
    for (unsigned copy = 0; copy < s->v->j.n_copies; copy++) {
        int c = frame_read(s, copy, ret, ret_buf);
        *ret_copy = copy;
        if (c == 0 || c == -ENOMEM)
            return c;
        r = copy == 0 || c == -ENOENT ? c : r;
    }
    return r;
}

static int reader_begin(struct vmfs *v, struct reader *s, struct gr_err *err)
{
    *s = (struct reader){ .v = v, .off = v->j.tail_off, .seq = v->j.tail_seq };
    for (unsigned copy = 0; copy < v->j.n_copies; copy++)
        if (!(s->w[copy].buf = vunits_alloc(WINDOW_UNITS)))
            return gr_fail(err, -ENOMEM, "out of memory");
    return 0;
}

static void reader_next(struct reader *s, const struct vframe *f)
{
    s->total += f->units;
    s->off = (s->off + f->units) % s->v->j.units;
    s->seq++;
    s->previous = f->crc;
}

static void reader_end(struct reader *s)
{
    free(s->w[0].buf);
    free(s->w[1].buf);
}

/* 1: it is there; 0: that was the last one. */
static int next_frame(struct reader *s, struct vframe *f, uint8_t **buf, unsigned *copy, struct gr_err *err)
{
    int r = frame_find(s, f, buf, copy);
    if (r < 0 && r != -ENOENT)
        return gr_fail(err, r, "slot %u: the journal cannot be read at unit %llu: %s", s->v->slot, (unsigned long long)s->off, gr_code_text(r));
    return r == 0;
}

int journal_scan(struct vmfs *v, int (*fn)(void *arg, const struct vframe *f, const uint8_t *payload), void *arg, struct vframe *ret_last,
                 struct gr_err *err)
{
    struct reader s;
    struct vframe f;
    uint8_t *buf;
    unsigned copy;
    memset(ret_last, 0, sizeof *ret_last);
    int r = reader_begin(v, &s, err);
    while (r == 0 && (r = next_frame(&s, &f, &buf, &copy, err)) > 0) {
        r = fn(arg, &f, buf + sizeof(struct vmfs_frame_disk));
        free(buf);
        if (r == 0)
            *ret_last = f;
        reader_next(&s, &f);
    }
    reader_end(&s);
    return r;
}

/* Is the frame, which is whole in the first area, in the second, too? */
static bool in_second(struct reader *s, const struct vframe *f, const uint8_t *buf)
{
    struct vframe g;
    uint8_t *other = NULL;
    bool same = frame_read(s, 1, &g, &other) == 0 && g.units == f->units && memcmp(other, buf, (size_t)f->units * VMFS_UNIT) == 0;
    free(other);
    return same;
}

int journal_mend(struct vmfs *v, struct gr_err *err)
{
    struct reader s;
    struct vframe f;
    uint8_t *buf;
    unsigned copy;
    int r = reader_begin(v, &s, err);
    while (r == 0 && v->j.n_copies > 1 && (r = next_frame(&s, &f, &buf, &copy, err)) > 0) {
        r = copy == 0 && in_second(&s, &f, buf) ? 0 : journal_put(v, copy ? 1 : 2, f.off, f.units, buf);
        if (r < 0)
            gr_fail(err, r, "slot %u: the journal cannot be made whole at unit %llu: %s", v->slot, (unsigned long long)f.off, gr_code_text(r));
        free(buf);
        reader_next(&s, &f);
    }
    reader_end(&s);
    if (r == 0 && (r = vdev_flush(v)) < 0)
        gr_fail(err, r, "slot %u: the journal cannot be made durable: %s", v->slot, gr_code_text(r));
    return r;
}
