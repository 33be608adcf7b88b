/* A bdev that reads zeros and swallows writes. */
#include "common/bdev.h"
#include "common/iov.h"
#include <stdlib.h>

struct null_bdev {
    struct gr_bdev base;
    uint64_t size; /* bytes */
};

static void null_submit(struct gr_chan *ch, struct gr_bio *bio)
{
    int r = 0;

    (void)ch;
    switch (bio->op) {
    case GR_OP_READ:
        gr_iov_zero(bio->iov, bio->iovcnt, 0, bio->len);
        break;
    case GR_OP_EXTENTS:
        if (bio->base) {
            r = -EOPNOTSUPP;
            break;
        }
        bio->extents[0] = (struct gr_extent){.off = bio->off, .len = bio->len, .flags = GR_EXTENT_ZERO | GR_EXTENT_HOLE, .changed = true};
        bio->n_extents = 1;
        break;
    case GR_OP_COMPARE_WRITE:
        for (uint64_t at = 0; at < bio->len; at++) {
            uint8_t b;
            gr_iov_get(bio->iov, bio->iovcnt, at, &b, 1);
            if (b) {
                bio->miscompare_off = at;
                r = -GR_EMISCOMPARE;
                break;
            }
        }
        break;
    case GR_OP_SCRUB:
    case GR_OP_COPY:
        r = -EOPNOTSUPP;
        break;
    case GR_OP_WRITE:
    case GR_OP_FLUSH:
    case GR_OP_UNMAP:
    case GR_OP_WRITE_ZEROES:
        break;
    }
    gr_bio_end(bio, r);
}

static int null_geometry(struct gr_bdev *bdev, struct gr_geometry *ret)
{
    const struct null_bdev *n = (const struct null_bdev *)bdev;

    *ret = (struct gr_geometry){.size = n->size, .logical_block = 512, .physical_block = 4096, .unmap_granule = 512, .optimal_io = 4096, .thin = true};
    return 0;
}

static void null_close(struct gr_bdev *bdev)
{
    free(bdev);
}

static const struct gr_bdev_ops null_ops = {.type = "null", .submit = null_submit, .geometry = null_geometry, .close = null_close};

int gr_bdev_null_open(struct gr_loop *loop, uint64_t size, struct gr_bdev **ret)
{
    struct null_bdev *n = gr_zalloc(sizeof(*n));

    (void)loop;
    if (!n)
        return -ENOMEM;
    gr_bdev_init(&n->base, &null_ops, "null");
    n->size = size & ~(uint64_t)511;
    *ret = &n->base;
    return 0;
}
