/* A file's requests: transfers in pieces where they must be (unaligned memory under O_DIRECT, short transfers), flush,
 * holes and zeros, extents. */
#include "common/bdev_file_int.h"
#include "common/iov.h"
#include "common/loop_int.h"
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <unistd.h>

enum {
    BOUNCE_SMALL = 64 << 10, /* bytes; kept by the channel */
    BOUNCE_MAX = 1 << 20,    /* bytes of one bounced transfer */
    MAX_FREE_BOUNCE = 16,
    ZERO_LEN = 64 << 10,     /* bytes of zeros there are */
    ZERO_IOVS = 8,           /* of them in one write */
    BUFFER_ALIGN = 4096,
    LONG = 256 << 10,        /* bytes of a transfer */
    BURST = 4,               /* transfers in a turn */
};
static const uint8_t zeros[ZERO_LEN] __attribute__((aligned(BUFFER_ALIGN)));

int file_chan_open(struct gr_bdev *bdev, struct gr_chan *ch)
{
    (void)bdev;
    ch->priv = gr_zalloc(sizeof(struct file_chan));
    return ch->priv ? 0 : -ENOMEM;
}

void file_chan_close(struct gr_chan *ch)
{
    struct file_chan *fc = ch->priv;

    while (fc->free_reqs) {
        struct file_req *req = fc->free_reqs;
        fc->free_reqs = req->next;
        free(req);
    }
    while (fc->free_bounce) {
        void *p = fc->free_bounce;
        fc->free_bounce = *(void **)p;
        free(p);
    }
    free(fc);
}

void file_issue(struct file_bdev *b, struct gr_chan *ch, struct gr_fio *fio)
{
    if (b->in_memory) {
        gr_loop_file_io_now(ch->loop, fio);
    } else {
        gr_loop_file_io(ch->loop, fio);
    }
}

/* ---- request memory ---- */
static struct file_req *req_get(struct gr_chan *ch, struct gr_bio *bio)
{
    struct file_chan *fc = ch->priv;
    struct file_req *req = fc->free_reqs;

    if (req)
        fc->free_reqs = req->next;
    else if (!(req = gr_alloc(sizeof(*req))))
        return NULL;
    req->fio.fd = file_of(ch)->fd;
    req->fio.rw_flags = 0;
    req->fio.aside = false;
    req->fio.soon = file_of(ch)->direct;
    req->fio.arg = req;
    req->ch = ch;
    req->bio = bio;
    req->done = 0;
    req->piece = 0;
    req->bounce = NULL;
    return req;
}

static uint8_t *bounce_get(struct file_chan *fc, size_t len)
{
    if (len > BOUNCE_SMALL)
        return gr_alloc_aligned(BUFFER_ALIGN, len);
    void *p = fc->free_bounce;
    if (!p)
        return gr_alloc_aligned(BUFFER_ALIGN, BOUNCE_SMALL);
    fc->free_bounce = *(void **)p;
    fc->n_free_bounce--;
    return p;
}

static void bounce_put(struct file_req *req)
{
    struct file_chan *fc = req->ch->priv;

    if (!req->bounce)
        return;
    if (req->piece > BOUNCE_SMALL || fc->n_free_bounce == MAX_FREE_BOUNCE) {
        free(req->bounce);
    } else {
        *(void **)req->bounce = fc->free_bounce;
        fc->free_bounce = req->bounce;
        fc->n_free_bounce++;
    }
    req->bounce = NULL;
}

static void req_end(struct file_req *req, int status)
{
    struct file_chan *fc = req->ch->priv;
    struct gr_bio *bio = req->bio;

    bounce_put(req);
    req->next = fc->free_reqs;
    fc->free_reqs = req;
    gr_bio_end(bio, status);
}

/* ---- READ and WRITE ---- */
static void rw_step(struct file_req *req);

/* May the kernel have this memory as it is? */
static bool aligned(const struct file_bdev *b, const struct gr_bio *bio)
{
    if (!b->direct)
        return true;
    if (bio->iovcnt > IOV_MAX)
        return false;
    for (int i = 0; i < bio->iovcnt; i++)
        if (((uintptr_t)bio->iov[i].iov_base & (b->mem_align - 1)) || (bio->iov[i].iov_len & (b->logical_block - 1)))
            return false;
    return true;
}

static void rw_fail(struct file_req *req, int code)
{
    if (req->bio->op == GR_OP_WRITE && (req->bio->flags & GR_BIO_FUA))
        file_latch_write(file_of(req->ch), code);
    req_end(req, code);
}

/* Do many come in one turn of the loop? */
static bool in_bursts(struct gr_chan *ch)
{
    struct file_chan *fc = ch->priv;
    uint64_t turn = gr_loop_turns(ch->loop);

    if (turn != fc->turn) {
        fc->turn = turn;
        fc->asked_before = fc->asked;
        fc->asked = 0;
    }
    fc->asked++;
    return fc->asked > BURST || fc->asked_before > BURST;
}

/* Copying from or to a file in memory is done at once, or, where there are many in a turn, with all that the loop's next entry into the kernel takes; long
 * transfers by the ring's workers: on other cores, while the loop sends and receives. */
static void rw_issue(struct file_req *req)
{
    struct file_bdev *b = file_of(req->ch);
    bool is_long = req->bio->len - req->done >= LONG;

    req->fio.aside = b->in_memory && is_long;
    bool together = !(req->bio->flags & GR_BIO_ALONE) && b->in_entry && gr_loop_engine(req->ch->loop) == GR_ENGINE_URING && in_bursts(req->ch);
    if (is_long || together)
        gr_loop_file_io(req->ch->loop, &req->fio);
    else
        file_issue(b, req->ch, &req->fio);
}

static void rw_done(struct gr_fio *fio)
{
    struct file_req *req = fio->arg;
    struct file_bdev *b = file_of(req->ch);
    struct gr_bio *bio = req->bio;

    if (fio->res < 0) {
        if (fio->res == -EINTR)
            rw_issue(req);
        else
            rw_fail(req, file_code(fio->res));
        return;
    }
    uint64_t n = (uint64_t)fio->res;
    if (n > bio->len - req->done)
        n = bio->len - req->done;
    if (bio->op == GR_OP_READ && req->bounce)
        gr_iov_put(bio->iov, bio->iovcnt, req->done, req->bounce, (size_t)n);
    uint64_t at = bio->off + req->done + n;
    if (bio->op == GR_OP_READ && at == b->end && b->end < b->size && b->size - b->end < b->logical_block) {
        /* the odd tail of a read-only file reads as zeros up to its last block's end */
        gr_iov_zero(bio->iov, bio->iovcnt, req->done + n, (size_t)(bio->len - req->done - n));
        n = bio->len - req->done;
    }
    if (b->direct && n < bio->len - req->done)
        n &= ~(uint64_t)(b->logical_block - 1);
    req->done += n;
    bounce_put(req);
    if (req->done == bio->len)
        req_end(req, 0);
    else if (n == 0)
        rw_fail(req, -GR_EMEDIUM); /* the file ends inside the device: somebody cut it */
    else
        rw_step(req);
}

static void rw_step(struct file_req *req)
{
    struct file_bdev *b = file_of(req->ch);
    struct gr_bio *bio = req->bio;
    struct gr_fio *fio = &req->fio;
    uint64_t left = bio->len - req->done;

    fio->off = bio->off + req->done;
    if (!aligned(b, bio)) {
        req->piece = left < BOUNCE_MAX ? (size_t)left : BOUNCE_MAX;
        req->bounce = bounce_get(req->ch->priv, req->piece);
        if (!req->bounce) {
            rw_fail(req, -ENOMEM);
            return;
        }
        if (bio->op == GR_OP_WRITE)
            gr_iov_get(bio->iov, bio->iovcnt, req->done, req->bounce, req->piece);
        req->iov[0] = (struct iovec){req->bounce, req->piece};
        fio->iov = req->iov;
        fio->iovcnt = 1;
    } else if (req->done) {
        /* as many as fit here: what is left over is the next step's */
        fio->iov = req->iov;
        fio->iovcnt = gr_iov_rest(bio->iov, bio->iovcnt, req->done, req->iov, (int)(sizeof(req->iov) / sizeof(req->iov[0])));
    } else {
        fio->iov = bio->iov;
        fio->iovcnt = bio->iovcnt;
    }
    rw_issue(req);
}

static void rw_start(struct file_req *req)
{
    int failed = file_of(req->ch)->flush_error;

    if (failed && (req->bio->flags & GR_BIO_FUA)) { /* nothing is durable any more */
        req_end(req, failed);
        return;
    }
    req->fio.op = req->bio->op == GR_OP_READ ? GR_FOP_READ : GR_FOP_WRITE;
    req->fio.rw_flags = req->bio->op == GR_OP_WRITE && (req->bio->flags & GR_BIO_FUA) ? RWF_DSYNC : 0;
    req->fio.done = rw_done;
    rw_step(req);
}

/* ---- FLUSH, also behind an UNMAP or WRITE_ZEROES with FUA ---- */
static void flush_done(struct gr_fio *fio)
{
    struct file_req *req = fio->arg;
    struct file_bdev *b = file_of(req->ch);

    if (fio->res < 0)
        file_latch(b, file_code(fio->res));
    req_end(req, b->flush_error);
}

static void flush_start(struct file_req *req)
{
    struct file_bdev *b = file_of(req->ch);

    if (b->flush_error) {
        req_end(req, b->flush_error);
        return;
    }
    req->fio.op = GR_FOP_FDATASYNC;
    req->fio.rw_flags = 0;
    req->fio.done = flush_done;
    file_issue(b, req->ch, &req->fio);
}

static void end_or_flush(struct file_req *req)
{
    if (req->bio->flags & GR_BIO_FUA)
        flush_start(req);
    else
        req_end(req, 0);
}

/* ---- UNMAP and WRITE_ZEROES ---- */
static void zero_write_step(struct file_req *req);

static void zero_write_done(struct gr_fio *fio)
{
    struct file_req *req = fio->arg;
    struct gr_bio *bio = req->bio;

    if (fio->res <= 0) {
        req_end(req, fio->res ? file_code(fio->res) : -GR_EMEDIUM);
        return;
    }
    req->done += (uint64_t)fio->res;
    if (req->done < bio->len)
        zero_write_step(req);
    else
        end_or_flush(req);
}

static void zero_write_step(struct file_req *req)
{
    uint64_t left = req->bio->len - req->done;
    int n = 0;

    for (; n < ZERO_IOVS && left; n++) {
        size_t len = left < ZERO_LEN ? (size_t)left : ZERO_LEN;
        req->iov[n] = (struct iovec){(void *)(uintptr_t)zeros, len};
        left -= len;
    }
    req->fio.op = GR_FOP_WRITE;
    req->fio.rw_flags = 0;
    req->fio.off = req->bio->off + req->done;
    req->fio.iov = req->iov;
    req->fio.iovcnt = n;
    req->fio.done = zero_write_done;
    file_issue(file_of(req->ch), req->ch, &req->fio);
}


static void allocate_done(struct gr_fio *fio)
{
    struct file_req *req = fio->arg;
    struct file_bdev *b = file_of(req->ch);

    if (fio->res == -EOPNOTSUPP && req->bio->op == GR_OP_WRITE_ZEROES) {
        b->no_zero_range = true;
        zero_write_step(req);
    } else if (fio->res == -EINTR) {
        file_issue(b, req->ch, fio);
    } else if (fio->res < 0) {
        req_end(req, file_code(fio->res));
    } else {
        end_or_flush(req);
    }
}

static void zero_start(struct file_req *req)
{
    struct file_bdev *b = file_of(req->ch);
    struct gr_bio *bio = req->bio;
    bool punch = b->can_punch && (bio->op == GR_OP_UNMAP || (bio->flags & GR_BIO_MAY_UNMAP));

    if (!punch && b->no_zero_range) {
        zero_write_step(req);
        return;
    }
    req->fio.op = GR_FOP_FALLOCATE;
    req->fio.rw_flags = FALLOC_FL_KEEP_SIZE | (punch ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE);
    req->fio.off = bio->off;
    req->fio.len = bio->len;
    req->fio.done = allocate_done;
    if (bio->len >= LONG) /* to free the pages of a file in memory takes as long as to copy them; a ring leaves that to its workers */
        gr_loop_file_io(req->ch->loop, &req->fio);
    else
        file_issue(b, req->ch, &req->fio);
}

/* ---- EXTENTS ---- */
int file_extents(struct file_bdev *b, struct gr_bio *bio)
{
    uint64_t end = bio->off + bio->len, mask = b->logical_block - 1;

    if (bio->base)
        return -EOPNOTSUPP;
    for (uint64_t at = bio->off; at < end && bio->n_extents < bio->max_extents;) {
        off_t data = b->node ? (off_t)at : lseek(b->fd, (off_t)at, SEEK_DATA);
        bool hole = false;
        uint64_t to = end;
        if (data < 0 && errno == ENXIO) { /* no data up to the end of the file */
            hole = true;
        } else if (data >= 0 && ((uint64_t)data & ~mask) > at) {
            hole = true;
            to = (uint64_t)data & ~mask;
        } else if (data >= 0 && !b->node) {
            off_t next = lseek(b->fd, (off_t)at, SEEK_HOLE);
            if (next >= 0 && (((uint64_t)next + mask) & ~mask) > at)
                to = ((uint64_t)next + mask) & ~mask;
        }
        if (to > end)
            to = end;
        uint32_t flags = hole ? GR_EXTENT_ZERO | GR_EXTENT_HOLE : GR_EXTENT_DATA;
        struct gr_extent *last = bio->n_extents ? &bio->extents[bio->n_extents - 1] : NULL;
        if (last && last->flags == flags)
            last->len += to - at;
        else
            bio->extents[bio->n_extents++] = (struct gr_extent){.off = at, .len = to - at, .flags = flags, .changed = true};
        at = to;
    }
    return 0;
}

void file_submit(struct gr_chan *ch, struct gr_bio *bio)
{
    struct file_bdev *b = file_of(ch);

    if (bio->op == GR_OP_EXTENTS || bio->op == GR_OP_COPY || bio->op == GR_OP_SCRUB) {
        gr_bio_end(bio, bio->op != GR_OP_EXTENTS ? -EOPNOTSUPP : file_extents(b, bio));
        return;
    }
    if (bio->op == GR_OP_COMPARE_WRITE) {
        file_compare_write(ch, bio);
        return;
    }
    struct file_req *req = req_get(ch, bio);
    if (!req) {
        gr_bio_end(bio, -ENOMEM);
        return;
    }
    switch (bio->op) {
    case GR_OP_READ:
    case GR_OP_WRITE:
        rw_start(req);
        break;
    case GR_OP_FLUSH:
        flush_start(req);
        break;
    case GR_OP_UNMAP:
    case GR_OP_WRITE_ZEROES:
        zero_start(req);
        break;
    case GR_OP_COMPARE_WRITE:
    case GR_OP_EXTENTS:
    case GR_OP_COPY:
    case GR_OP_SCRUB:
        break;
    }
}
