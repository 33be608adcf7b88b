/* Reading a journal back: the frames from the tail on, as recovery and the check need them. */
#include "vmfs/internal.h"

/* Frames are small and there may be thousands: read many at once. */
#define WINDOW_UNITS 256u
struct window {
    uint8_t *buf;
    uint64_t off;
    uint32_t units; /* of the journal that are in it, from @off on */
};

static int window_fill(struct vmfs *v, struct window *w, uint64_t off)
{
    struct vjournal *j = &v->j;
    uint32_t units = (uint32_t)GR_MIN((uint64_t)WINDOW_UNITS, j->units - off);
    w->units = 0;
    int r = vdev_read(v, j->addr + off, units, w->buf);
    if (r < 0 && units > 1) /* what cannot be read may lie behind the last frame */
        r = vdev_read(v, j->addr + off, units = 1, w->buf);
    if (r == 0)
        *w = (struct window){ w->buf, off, units };
    return r;
}

/* @units of the journal, round its end if need be. */
static int units_read(struct vmfs *v, struct window *w, uint64_t off, uint32_t units, uint8_t *to)
{
    struct vjournal *j = &v->j;
    int r = 0;
    while (r == 0 && units) {
        if (off < w->off || off >= w->off + w->units)
            r = window_fill(v, w, off);
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

static int frame_read(struct vmfs *v, struct window *w, uint64_t off, uint64_t seq, struct vframe *ret, uint8_t **ret_buf)
{
    struct vjournal *j = &v->j;
    uint8_t *buf = vunits_alloc(1);
    int r = buf ? units_read(v, w, off, 1, buf) : -ENOMEM;
    struct vmfs_frame_disk *f = (struct vmfs_frame_disk *)buf;
    if (r == 0 && (gr_le32_get(f->hdr.magic) != VMFS_MAGIC || gr_le16_get(f->hdr.type) != VMFS_T_FRAME || gr_le64_get(f->seq) != seq ||
                   gr_le64_get(f->hdr.generation) != v->me.generation))
        r = -ENOENT;
    uint32_t units = r == 0 ? gr_le32_get(f->hdr.units) : 0;
    if (r == 0 && (units == 0 || units > j->units))
        r = -ENOENT;
    if (r == 0 && units > 1) {
        uint8_t *all = vunits_alloc(units);
        r = all ? units_read(v, w, off, units, all) : -ENOMEM;
        free(buf);
        buf = all;
        f = (struct vmfs_frame_disk *)buf;
    }
    if (r == 0 && vhdr_check(v->sb.uuid, buf, VMFS_T_FRAME, units, off, NULL) < 0)
        r = -ENOENT;
    if (r == 0 && gr_le32_get(f->payload) > (size_t)units * VMFS_UNIT - sizeof *f)
        r = -ENOENT;
    if (r < 0) {
        free(buf);
        return r;
    }
    *ret = (struct vframe){ .seq = seq, .off = off, .watermark = gr_le64_get(f->watermark), .covers = gr_le64_get(f->covers), .units = units,
                            .kind = gr_le32_get(f->kind), .n_records = gr_le32_get(f->n_records), .part = gr_le32_get(f->part),
                            .parts = gr_le32_get(f->parts), .payload = gr_le32_get(f->payload), .crc = gr_le32_get(f->hdr.crc32c),
                            .previous = gr_le32_get(f->previous) };
    *ret_buf = buf;
    return 0;
}

/* The frames from the tail on, until one is not there. */
static int scan(struct vmfs *v, struct window *w, int (*fn)(void *arg, const struct vframe *f, const uint8_t *payload), void *arg,
                struct vframe *ret_last, struct gr_err *err)
{
    struct vjournal *j = &v->j;
    uint64_t off = j->tail_off, seq = j->tail_seq;
    uint32_t total = 0;
    for (;;) {
        struct vframe f;
        uint8_t *buf = NULL;
        int r = frame_read(v, w, off, seq, &f, &buf);
        /* a frame behind one that was written again after a recovery is not its successor, though its number fits */
        if (r == -ENOENT || (r == 0 && (f.units > j->units - total || (total && f.previous != ret_last->crc)))) {
            free(buf);
            return 0;
        }
        if (r < 0)
            return gr_fail(err, r, "slot %u: the journal cannot be read at unit %llu: %s", v->slot, (unsigned long long)off, gr_code_text(r));
        r = fn ? fn(arg, &f, buf + sizeof(struct vmfs_frame_disk)) : 0;
        free(buf);
        if (r < 0)
            return r;
        *ret_last = f;
        total += f.units;
        off = (off + f.units) % j->units;
        seq++;
    }
}

int journal_scan(struct vmfs *v, int (*fn)(void *arg, const struct vframe *f, const uint8_t *payload), void *arg, struct vframe *ret_last,
                 struct gr_err *err)
{
    struct window w = { .buf = vunits_alloc(WINDOW_UNITS) };
    memset(ret_last, 0, sizeof *ret_last);
    int r = w.buf ? scan(v, &w, fn, arg, ret_last, err) : gr_fail(err, -ENOMEM, "out of memory");
    free(w.buf);
    return r;
}
