/* COMPARE_WRITE on a file: read, compare, write durably, under a byte-range lock that every process using the file in
 * this way respects. The lock belongs to the open file, so requests through one handle also keep a list of their own. */
#include "common/bdev_file_int.h"
#include "common/iov.h"
#include <fcntl.h>
#include <stdlib.h>

#define RETRY_MIN_NS UINT64_C(50000)
#define RETRY_MAX_NS UINT64_C(2000000)
#define GIVE_UP_NS UINT64_C(30000000000) /* a holder keeps the lock for two I/Os; this one is stopped or stuck */
enum { MAX_LEN = 1 << 20, BUFFER_ALIGN = 4096 };

struct file_caw {
    struct gr_chan *ch;
    struct gr_bio *bio;
    struct gr_fio fio;
    struct gr_timer timer;
    struct iovec iov;
    uint64_t started_ns, retry_ns;
    size_t done;
    bool writing;
    struct file_caw *next; /* in file_bdev.compares, while it holds its range */
    uint8_t *buf;          /* bio->len bytes */
};

static void unlock(struct file_caw *c)
{
    struct file_bdev *b = file_of(c->ch);

    pthread_mutex_lock(&b->lock);
    struct file_caw **p = &b->compares;
    while (*p != c)
        p = &(*p)->next;
    *p = c->next;
    file_lock_range(b, FILE_COMPARE_BASE + c->bio->off, c->bio->len, F_UNLCK);
    pthread_mutex_unlock(&b->lock);
}

/* Lock the range: 0, -EBUSY, or another failure. */
static int try_lock(struct file_caw *c)
{
    struct file_bdev *b = file_of(c->ch);
    int r = 0;

    pthread_mutex_lock(&b->lock);
    for (const struct file_caw *o = b->compares; o; o = o->next)
        if (o->bio->off < c->bio->off + c->bio->len && c->bio->off < o->bio->off + o->bio->len)
            r = -EBUSY;
    if (r == 0)
        r = file_lock_range(b, FILE_COMPARE_BASE + c->bio->off, c->bio->len, F_WRLCK);
    if (r == 0) {
        c->next = b->compares;
        b->compares = c;
    }
    pthread_mutex_unlock(&b->lock);
    return r;
}

static void finish(struct file_caw *c, int status)
{
    struct gr_bio *bio = c->bio;

    free(c->buf);
    free(c);
    gr_bio_end(bio, status);
}

static void step(struct file_caw *c)
{
    c->fio.off = c->bio->off + c->done;
    c->iov = (struct iovec){c->buf + c->done, c->bio->len - c->done};
    file_issue(file_of(c->ch), c->ch, &c->fio);
}

static void io_done(struct gr_fio *fio)
{
    struct file_caw *c = fio->arg;
    struct gr_bio *bio = c->bio;

    if (fio->res == -EINTR) {
        step(c);
        return;
    }
    int64_t n = fio->res;
    if (n > 0 && (size_t)n < bio->len - c->done)
        n &= ~(int64_t)(file_of(c->ch)->logical_block - 1); /* a direct transfer goes on at a block */
    if (n <= 0) {
        int code = n < 0 ? file_code(n) : -GR_EMEDIUM;
        if (c->writing)
            file_latch_write(file_of(c->ch), code);
        unlock(c);
        finish(c, code);
        return;
    }
    c->done += (size_t)n;
    if (c->done < bio->len) {
        step(c);
        return;
    }
    if (c->writing) {
        unlock(c);
        finish(c, 0);
        return;
    }
    size_t same = gr_iov_diff(bio->iov, bio->iovcnt, 0, c->buf, bio->len);
    if (same < bio->len) {
        bio->miscompare_off = same;
        unlock(c);
        finish(c, -GR_EMISCOMPARE);
        return;
    }
    gr_iov_get(bio->iov2, bio->iovcnt2, 0, c->buf, bio->len);
    c->writing = true;
    c->done = 0;
    c->fio.op = GR_FOP_WRITE;
    c->fio.rw_flags = RWF_DSYNC;
    step(c);
}

static void attempt(void *arg)
{
    struct file_caw *c = arg;
    struct gr_loop *loop = c->ch->loop;

    int r = try_lock(c);
    if (r == 0) {
        step(c);
        return;
    }
    if (r == -EBUSY) {
        r = gr_loop_now_ns(loop) - c->started_ns > GIVE_UP_NS ? -ETIMEDOUT : gr_timer_arm(loop, &c->timer, c->retry_ns);
        c->retry_ns = c->retry_ns * 2 < RETRY_MAX_NS ? c->retry_ns * 2 : RETRY_MAX_NS;
        if (r == 0)
            return;
    }
    finish(c, r);
}

void file_compare_write(struct gr_chan *ch, struct gr_bio *bio)
{
    struct file_bdev *b = file_of(ch);
    int failed = b->flush_error;

    if (failed) {
        gr_bio_end(bio, failed);
        return;
    }
    struct file_caw *c = bio->len <= MAX_LEN ? gr_zalloc(sizeof(*c)) : NULL;
    if (!c || !(c->buf = gr_alloc_aligned(BUFFER_ALIGN, bio->len))) {
        free(c);
        gr_bio_end(bio, bio->len <= MAX_LEN ? -ENOMEM : -EINVAL);
        return;
    }
    c->ch = ch;
    c->bio = bio;
    c->started_ns = gr_loop_now_ns(ch->loop);
    c->retry_ns = RETRY_MIN_NS;
    c->timer = (struct gr_timer){.fn = attempt, .arg = c};
    c->fio = (struct gr_fio){.op = GR_FOP_READ, .fd = b->fd, .iov = &c->iov, .iovcnt = 1, .done = io_done, .arg = c};
    attempt(c);
}
