/* An opened image as a read-only bdev. Each request is one job on the thread pool: tables are read from the file as they are
 * needed (the page cache keeps them), so that the size of an image costs no memory. */
#include "backup-proxy/vmdk_image.h"
#include "backup-proxy/walk.h"
#include "common/buf.h"
#include "common/cleanup.h"
#include <isa-l/igzip_lib.h>
#include <string.h>

struct vmdk_job {
    struct vmdk_image *m;
    struct gr_bio *bio;
    uint64_t gt_index; /* which table is in gt; UINT64_MAX: none */
    gr_le32 gt[VMDK_GT_ENTRIES];
    uint8_t *packed, *grain; /* for compressed grains; made when first needed */
    uint64_t grain_index;    /* which grain is in grain[]; UINT64_MAX: none */
    struct inflate_state inflate;
};

/* Where grain @g lies: byte offset in the file, 0 for one that reads as zeros. */
static int locate(struct vmdk_job *j, uint64_t g, uint64_t *ret)
{
    const struct vmdk_sparse *s = &j->m->sp;
    uint64_t t = g / s->gt_entries;
    if (t >= s->gd_len)
        return -GR_ERANGE;
    *ret = 0;
    if (s->gd[t] == 0)
        return 0;
    if (j->gt_index != t) {
        int r = gr_file_pread(j->m->seg[0].fd, j->gt, (size_t)s->gt_entries * 4, (uint64_t)s->gd[t] * VMDK_SECTOR);
        if (r < 0)
            return r;
        j->gt_index = t;
    }
    uint64_t e = gr_le32_get(j->gt[g % s->gt_entries]);
    if (e == 0 || (e == 1 && (s->flags & VMDK_F_ZERO_GRAIN)))
        return 0;
    if (e * VMDK_SECTOR < s->overhead || e * VMDK_SECTOR >= s->file_size)
        return -GR_ECORRUPT;
    *ret = e * VMDK_SECTOR;
    return 0;
}

/* Inflate the grain at byte @at into j->grain; rules 6 and 7. */
static int inflate_grain(struct vmdk_job *j, uint64_t g, uint64_t at)
{
    const struct vmdk_sparse *s = &j->m->sp;
    uint8_t mark[VMDK_GRAIN_MARKER];
    if (j->grain_index == g)
        return 0;
    if (!j->grain) {
        j->grain = gr_alloc(s->grain);
        j->packed = gr_alloc(2 * (size_t)s->grain);
        if (!j->grain || !j->packed)
            return -ENOMEM;
    }
    j->grain_index = UINT64_MAX;
    int r = gr_file_pread(j->m->seg[0].fd, mark, sizeof mark, at);
    if (r < 0)
        return r;
    uint32_t size = gr_get_le32(mark + 8);
    if (gr_get_le64(mark) != g * (s->grain / VMDK_SECTOR) || size == 0 || size >= 2 * (uint64_t)s->grain)
        return -GR_ECORRUPT;
    r = gr_file_pread(j->m->seg[0].fd, j->packed, size, at + VMDK_GRAIN_MARKER);
    if (r < 0)
        return r;
    isal_inflate_init(&j->inflate);
    j->inflate.crc_flag = ISAL_ZLIB;
    j->inflate.next_in = j->packed;
    j->inflate.avail_in = size;
    j->inflate.next_out = j->grain;
    j->inflate.avail_out = s->grain;
    r = isal_inflate_stateless(&j->inflate);
    uint64_t want = GR_MIN((uint64_t)s->grain, s->capacity - g * s->grain);
    if (r != ISAL_DECOMP_OK || j->inflate.block_state != ISAL_BLOCK_FINISH || j->inflate.total_out < want)
        return -GR_ECORRUPT;
    memset(j->grain + j->inflate.total_out, 0, s->grain - j->inflate.total_out);
    j->grain_index = g;
    return 0;
}

static int read_sparse(struct vmdk_job *j, uint8_t *buf, size_t len, uint64_t off)
{
    const struct vmdk_sparse *s = &j->m->sp;
    while (len > 0) {
        uint64_t g = off / s->grain, in = off % s->grain, at = 0;
        size_t n = GR_MIN(len, (size_t)(s->grain - in));
        int r = locate(j, g, &at);
        if (r < 0)
            return r;
        if (at == 0)
            memset(buf, 0, n);
        else if (!s->compressed)
            r = gr_file_pread(j->m->seg[0].fd, buf, n, at + in);
        else if ((r = inflate_grain(j, g, at)) == 0)
            memcpy(buf, j->grain + in, n);
        if (r < 0)
            return r;
        buf += n;
        off += n;
        len -= n;
    }
    return 0;
}
static struct vmdk_seg *seg_of(struct vmdk_image *m, uint64_t off)
{
    for (unsigned i = 0; i < m->n_seg; i++)
        if (off - m->seg[i].off < m->seg[i].len)
            return &m->seg[i];
    return NULL;
}
static int read_range(struct vmdk_job *j, uint8_t *buf, size_t len, uint64_t off)
{
    while (len > 0) {
        const struct vmdk_seg *s = seg_of(j->m, off);
        if (!s)
            return -GR_ERANGE;
        uint64_t left = s->off + s->len - off;
        size_t n = left < len ? (size_t)left : len;
        int r = 0;
        if (s->kind == VMDK_SEG_SPARSE)
            r = read_sparse(j, buf, n, off);
        else if (s->kind == VMDK_SEG_FLAT)
            r = gr_file_pread(s->fd, buf, n, s->file_off + (off - s->off));
        else
            memset(buf, 0, n);
        if (r < 0)
            return r;
        buf += n;
        off += n;
        len -= n;
    }
    return 0;
}

/* Extent that begins at @off: its kind, and where that kind ends at the least. */
static int extent_at(struct vmdk_job *j, uint64_t off, uint64_t end, struct gr_extent *ret)
{
    const struct vmdk_seg *s = seg_of(j->m, off);
    if (!s)
        return -GR_ERANGE;
    *ret = (struct gr_extent){.off = off, .len = GR_MIN(end, s->off + s->len) - off, .changed = true};
    if (s->kind == VMDK_SEG_ZERO)
        ret->flags = GR_EXTENT_ZERO;
    if (s->kind != VMDK_SEG_SPARSE)
        return 0;
    const struct vmdk_sparse *sp = &j->m->sp;
    uint64_t g = off / sp->grain, at = 0, span = sp->grain;
    if (sp->gd[g / sp->gt_entries] == 0)
        span = (uint64_t)sp->grain * (sp->gt_entries - g % sp->gt_entries);
    int r = locate(j, g, &at);
    if (r < 0)
        return r;
    if (at == 0)
        ret->flags = GR_EXTENT_ZERO | GR_EXTENT_HOLE;
    ret->len = GR_MIN(ret->len, span - off % sp->grain);
    return 0;
}
static int list_extents(struct vmdk_job *j)
{
    struct gr_bio *b = j->bio;
    uint64_t off = b->off, end = b->off + b->len;
    unsigned n = 0;
    while (off < end) {
        struct gr_extent e;
        int r = extent_at(j, off, end, &e);
        if (r < 0)
            return r;
        if (n > 0 && b->extents[n - 1].flags == e.flags) {
            b->extents[n - 1].len += e.len;
        } else {
            if (n == b->max_extents)
                break;
            b->extents[n++] = e;
        }
        off += e.len;
    }
    b->n_extents = n;
    return 0;
}

static int job_work(void *arg)
{
    struct vmdk_job *j = arg;
    uint64_t off = j->bio->off;
    if (j->bio->op == GR_OP_EXTENTS)
        return j->bio->base ? -EOPNOTSUPP : list_extents(j);
    for (int i = 0; i < j->bio->iovcnt; i++) {
        int r = read_range(j, j->bio->iov[i].iov_base, j->bio->iov[i].iov_len, off);
        if (r < 0)
            return r;
        off += j->bio->iov[i].iov_len;
    }
    return 0;
}
static void job_done(void *arg, int result)
{
    struct vmdk_job *j = arg;
    struct gr_bio *bio = j->bio;
    free(j->grain);
    free(j->packed);
    free(j);
    gr_bio_end(bio, result);
}

static void vmdk_submit(struct gr_chan *ch, struct gr_bio *bio)
{
    if (bio->op == GR_OP_FLUSH) {
        gr_bio_end(bio, 0);
        return;
    }
    if (bio->op != GR_OP_READ && bio->op != GR_OP_EXTENTS) {
        gr_bio_end(bio, -GR_EREADONLY);
        return;
    }
    struct vmdk_job *j = gr_zalloc(sizeof *j);
    if (!j) {
        gr_bio_end(bio, -ENOMEM);
        return;
    }
    j->m = gr_container_of(ch->bdev, struct vmdk_image, bdev);
    j->bio = bio;
    j->gt_index = j->grain_index = UINT64_MAX;
    int r = gr_loop_work(ch->loop, job_work, job_done, j);
    if (r < 0) {
        free(j);
        gr_bio_end(bio, r);
    }
}
static int vmdk_geometry(struct gr_bdev *bdev, struct gr_geometry *ret)
{
    const struct vmdk_image *m = gr_container_of(bdev, struct vmdk_image, bdev);
    *ret = (struct gr_geometry){
        .size = m->size, .logical_block = VMDK_SECTOR, .physical_block = 4096, .optimal_io = VMDK_GRAIN, .read_only = true, .thin = true};
    return 0;
}
static void vmdk_close(struct gr_bdev *bdev)
{
    struct vmdk_image *m = gr_container_of(bdev, struct vmdk_image, bdev);
    for (unsigned i = 0; i < m->n_seg; i++)
        if (m->seg[i].fd >= 0)
            close(m->seg[i].fd);
    free(m->sp.gd);
    free(m);
}
const struct gr_bdev_ops vmdk_ops = {.type = "vmdk", .submit = vmdk_submit, .geometry = vmdk_geometry, .close = vmdk_close};
