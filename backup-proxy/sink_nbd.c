/* A writable disk behind NBD, for restores onto a host whose daemon owns the disk. Requests go one at a time through libnbd's
 * blocking calls on the thread pool: a restore is bound by the disk at the other end, not by this. */
#include "backup-proxy/job.h"
#include "common/cleanup.h"
#include "common/fiber.h"
#include "common/seam.h"
#include <libnbd.h>
#include <pthread.h>
#include <string.h>

struct sink {
    struct gr_bdev bdev;
    struct nbd_handle *nbd;
    pthread_mutex_t lock;
    uint64_t size;
    bool can_zero;
};
struct sink_job {
    struct sink *s;
    struct gr_bio *bio;
};

static int lib_code(void)
{
    int e = nbd_get_errno();
    return e > 0 ? -e : -EIO;
}
static int zero_range(struct sink *s, uint64_t off, uint64_t len, uint32_t flags)
{
    static const uint8_t zeros[1u << 16];
    int r = 0;
    while (r == 0 && len > 0) {
        uint64_t n = GR_MIN(len, (uint64_t)(s->can_zero ? 1u << 30 : sizeof zeros));
        if (s->can_zero)
            r = nbd_zero(s->nbd, n, off, flags & GR_BIO_MAY_UNMAP ? 0 : LIBNBD_CMD_FLAG_NO_HOLE) < 0 ? lib_code() : 0;
        else
            r = nbd_pwrite(s->nbd, zeros, n, off, 0) < 0 ? lib_code() : 0;
        off += n;
        len -= n;
    }
    return r;
}
static int transfer(struct sink *s, struct gr_bio *b)
{
    uint64_t off = b->off;
    for (int i = 0; i < b->iovcnt; i++) {
        int r = b->op == GR_OP_READ ? nbd_pread(s->nbd, b->iov[i].iov_base, b->iov[i].iov_len, off, 0)
                                    : nbd_pwrite(s->nbd, b->iov[i].iov_base, b->iov[i].iov_len, off, 0);
        if (r < 0)
            return lib_code();
        off += b->iov[i].iov_len;
    }
    return 0;
}
static int sink_work(void *arg)
{
    struct sink_job *j = arg;
    struct gr_bio *b = j->bio;
    int r = -EOPNOTSUPP;
    pthread_mutex_lock(&j->s->lock);
    if (b->op == GR_OP_READ || b->op == GR_OP_WRITE)
        r = transfer(j->s, b);
    else if (b->op == GR_OP_WRITE_ZEROES || b->op == GR_OP_UNMAP)
        r = zero_range(j->s, b->off, b->len, b->op == GR_OP_UNMAP ? GR_BIO_MAY_UNMAP : b->flags);
    if (b->op == GR_OP_FLUSH || (r == 0 && (b->flags & GR_BIO_FUA)))
        r = nbd_flush(j->s->nbd, 0) < 0 ? lib_code() : 0;
    pthread_mutex_unlock(&j->s->lock);
    return r;
}
static void sink_done(void *arg, int result)
{
    struct sink_job *j = arg;
    struct gr_bio *bio = j->bio;
    free(j);
    gr_bio_end(bio, result);
}
static void sink_submit(struct gr_chan *ch, struct gr_bio *bio)
{
    struct sink_job *j = gr_alloc(sizeof *j);
    int r = -ENOMEM;
    if (j) {
        *j = (struct sink_job){gr_container_of(ch->bdev, struct sink, bdev), bio};
        r = gr_loop_work(ch->loop, sink_work, sink_done, j);
    }
    if (r < 0) {
        free(j);
        gr_bio_end(bio, r);
    }
}
static int sink_geometry(struct gr_bdev *bdev, struct gr_geometry *ret)
{
    const struct sink *s = gr_container_of(bdev, struct sink, bdev);
    *ret = (struct gr_geometry){.size = s->size, .logical_block = 512, .physical_block = 4096, .unmap_granule = 4096, .optimal_io = 65536};
    return 0;
}
static void sink_close(struct gr_bdev *bdev)
{
    struct sink *s = gr_container_of(bdev, struct sink, bdev);
    (void)nbd_shutdown(s->nbd, 0);
    nbd_close(s->nbd);
    pthread_mutex_destroy(&s->lock);
    free(s);
}
static const struct gr_bdev_ops sink_ops = {.type = "nbd-sink", .submit = sink_submit, .geometry = sink_geometry, .close = sink_close};

struct dial {
    struct nbd_handle *nbd;
    const char *uri;
    char text[256];
    int64_t size;
};
static int dial_work(void *arg)
{
    struct dial *d = arg;
    (void)nbd_set_uri_allow_local_file(d->nbd, true);
    if (nbd_connect_uri(d->nbd, d->uri) < 0 || (d->size = nbd_get_size(d->nbd)) < 0) {
        snprintf(d->text, sizeof d->text, "%s", nbd_get_error());
        return lib_code();
    }
    return 0;
}
int bp_sink_nbd_open(struct gr_loop *loop, const char *uri, struct gr_bdev **ret, struct gr_err *err)
{
    (void)loop;
    struct sink *s = gr_zalloc(sizeof *s);
    struct dial d = {.nbd = s ? nbd_create() : NULL, .uri = uri};
    if (!d.nbd) {
        free(s);
        return gr_fail(err, -ENOMEM, "out of memory");
    }
    int r = gr_fiber_work(dial_work, &d);
    if (r == 0 && nbd_is_read_only(d.nbd) != 0)
        r = -GR_EREADONLY;
    if (r < 0) {
        nbd_close(d.nbd);
        free(s);
        return gr_fail(err, r, "%.*s: cannot open for writing: %s", (int)strcspn(uri, "?"), uri, d.text[0] ? d.text : gr_code_text(r));
    }
    s->nbd = d.nbd;
    s->size = (uint64_t)d.size;
    s->can_zero = nbd_can_zero(d.nbd) > 0;
    pthread_mutex_init(&s->lock, NULL);
    gr_bdev_init(&s->bdev, &sink_ops, "restore target");
    *ret = &s->bdev;
    return 0;
}
