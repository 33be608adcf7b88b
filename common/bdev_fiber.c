/* Requests from a fiber: submit, suspend until done. */
#include "common/bdev.h"
#include "common/fiber_int.h"
#include <assert.h>

static void wake(struct gr_bio *bio)
{
    gr_fdone_set(bio->arg);
}

int gr_submit_wait(struct gr_chan *ch, struct gr_bio *bio)
{
    struct gr_fdone d = {.fiber = gr_fiber_self()};

    assert(d.fiber && gr_fiber_loop() == ch->loop);
    bio->done = wake;
    bio->arg = &d;
    gr_submit(ch, bio);
    gr_fdone_wait(&d);
    return bio->status;
}

static uint64_t iov_len(const struct iovec *iov, int iovcnt)
{
    uint64_t len = 0;

    for (int i = 0; i < iovcnt; i++)
        len += iov[i].iov_len;
    return len;
}

int gr_preadv(struct gr_chan *ch, const struct iovec *iov, int iovcnt, uint64_t off)
{
    struct gr_bio bio = {.op = GR_OP_READ, .off = off, .len = iov_len(iov, iovcnt), .iov = iov, .iovcnt = iovcnt};

    return gr_submit_wait(ch, &bio);
}

int gr_pwritev(struct gr_chan *ch, const struct iovec *iov, int iovcnt, uint64_t off, uint32_t flags)
{
    struct gr_bio bio = {.op = GR_OP_WRITE, .flags = flags, .off = off, .len = iov_len(iov, iovcnt), .iov = iov, .iovcnt = iovcnt};

    return gr_submit_wait(ch, &bio);
}

int gr_pread(struct gr_chan *ch, void *buf, size_t len, uint64_t off)
{
    return gr_preadv(ch, &(struct iovec){buf, len}, 1, off);
}

static void *unconst(const void *p)
{
    return (void *)(uintptr_t)p; /* iovec has no const form; a write's buffer is only read */
}

int gr_pwrite(struct gr_chan *ch, const void *buf, size_t len, uint64_t off, uint32_t flags)
{
    return gr_pwritev(ch, &(struct iovec){unconst(buf), len}, 1, off, flags);
}

int gr_flush(struct gr_chan *ch)
{
    struct gr_bio bio = {.op = GR_OP_FLUSH};

    return gr_submit_wait(ch, &bio);
}

int gr_unmap(struct gr_chan *ch, uint64_t off, uint64_t len, uint32_t flags)
{
    struct gr_bio bio = {.op = GR_OP_UNMAP, .flags = flags, .off = off, .len = len};

    return gr_submit_wait(ch, &bio);
}

int gr_write_zeroes(struct gr_chan *ch, uint64_t off, uint64_t len, uint32_t flags)
{
    struct gr_bio bio = {.op = GR_OP_WRITE_ZEROES, .flags = flags, .off = off, .len = len};

    return gr_submit_wait(ch, &bio);
}

int gr_compare_write(struct gr_chan *ch, uint64_t off, const void *cmp, const void *wr, size_t len, uint64_t *ret_miscompare_off)
{
    struct iovec iov = {unconst(cmp), len}, iov2 = {unconst(wr), len};
    struct gr_bio bio = {.op = GR_OP_COMPARE_WRITE, .off = off, .len = len, .iov = &iov, .iovcnt = 1, .iov2 = &iov2, .iovcnt2 = 1};

    int r = gr_submit_wait(ch, &bio);
    if (r == -GR_EMISCOMPARE && ret_miscompare_off)
        *ret_miscompare_off = bio.miscompare_off;
    return r;
}

int gr_extents(struct gr_chan *ch, uint64_t off, uint64_t len, const struct gr_bookmark *base, struct gr_extent *out, unsigned max,
               unsigned *ret_n)
{
    struct gr_bio bio = {.op = GR_OP_EXTENTS, .off = off, .len = len, .base = base, .extents = out, .max_extents = max};

    int r = gr_submit_wait(ch, &bio);
    if (r < 0)
        return r;
    *ret_n = bio.n_extents;
    return 0;
}
