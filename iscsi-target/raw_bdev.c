/* The device of a raw LUN: a file's requests pass through, geometry and attributes are its own. */
#include "iscsi-target/raw_lun.h"
#include "common/bdev_layer.h"
#include "common/buf.h"
#include "common/cleanup.h"
#include "common/fiber.h"
#include "common/seam.h"
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

struct raw_bdev {
    struct gr_layer layer;
    uint8_t uuid[16];
    struct tgt_raw_limits limits;
    char *store;
    bool low; /* the file system is nearly full, and that was told */
};

static struct raw_bdev *raw_of(struct gr_bdev *bdev)
{
    return (struct raw_bdev *)bdev;
}

/* Nothing of the request is ours, so it needs no copy. */
static void raw_submit(struct gr_chan *ch, struct gr_bio *bio)
{
    gr_submit(gr_layer_chan_of(ch)->low, bio);
}

static int raw_geometry(struct gr_bdev *bdev, struct gr_geometry *ret)
{
    const struct raw_bdev *b = raw_of(bdev);
    int r = gr_layer_geometry(bdev, ret);
    if (r < 0)
        return r;
    memcpy(ret->uuid, b->uuid, 16);
    ret->limit_iops = b->limits.iops;
    ret->limit_bytes = b->limits.bytes;
    ret->limit_burst_ms = b->limits.burst_ms;
    return 0;
}

static void raw_close(struct gr_bdev *bdev)
{
    struct raw_bdev *b = raw_of(bdev);
    gr_layer_done(&b->layer);
    free(b->store);
    free(b);
}

static int raw_attr_get(struct gr_bdev *bdev, const char *key, void **ret, struct gr_err *err)
{
    return tgt_raw_store_get(raw_of(bdev)->store, key, ret, err);
}

static int raw_attr_set(struct gr_bdev *bdev, const char *key, const void *val, size_t len, struct gr_err *err)
{
    return tgt_raw_store_set(raw_of(bdev)->store, key, val, len, err);
}

static const struct gr_bdev_ops raw_ops = {
    .type = "raw-lun",
    .submit = raw_submit,
    .geometry = raw_geometry,
    .close = raw_close,
    .chan_open = gr_layer_chan_open,
    .chan_close = gr_layer_chan_close,
    .attr_get = raw_attr_get,
    .attr_set = raw_attr_set,
};

static int flush(struct gr_loop *loop, struct gr_bdev *bdev, struct gr_err *err)
{
    struct gr_chan *ch = NULL;
    int r = gr_chan_open(bdev, loop, &ch);
    if (r == 0)
        r = gr_flush(ch);
    gr_chan_close(ch);
    return r < 0 ? gr_fail(err, r, "'%s': cannot be made durable: %s", bdev->name, gr_code_text(r)) : 0;
}

/* A new file; whoever finds one there leaves it alone. */
static int make_file(const struct tgt_raw_opts *o, struct gr_err *err)
{
    gr_auto_close int fd = open(o->file, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return errno == EEXIST ? gr_fail(err, -EEXIST, "'%s' exists already: leave the size out to serve what is in it", o->file)
                               : gr_fail(err, -errno, "cannot create '%s': %s", o->file, strerror(errno));
    int r = o->size > INT64_MAX ? -EFBIG : ftruncate(fd, (off_t)o->size) < 0 ? -errno : 0;
    if (r == 0)
        return 0;
    unlink(o->file);
    return gr_fail(err, r, "cannot make '%s' %llu bytes long: %s", o->file, (unsigned long long)o->size, gr_code_text(r));
}

static int sync_name(void *arg)
{
    return gr_sync_parent(arg);
}

/* It can be served, and by us alone. */
static int check(struct gr_loop *loop, struct gr_bdev *file, const struct tgt_raw_opts *o, struct gr_err *err)
{
    struct gr_geometry g;
    int r = gr_bdev_geometry(file, &g);
    if (r < 0)
        return gr_fail(err, r, "'%s': its geometry cannot be served", o->file);
    if (g.size < g.logical_block)
        return gr_fail(err, -EINVAL, "'%s' holds less than one block of %u bytes: there is nothing to serve", o->file, g.logical_block);
    r = gr_bdev_file_claim(file, err);
    if (r < 0 || !o->create)
        return r;
    r = flush(loop, file, err);
    if (r == 0 && (r = gr_fiber_work(sync_name, (void *)(uintptr_t)o->file)) < 0)
        gr_fail(err, r, "'%s': its directory cannot be synced: %s", o->file, gr_code_text(r));
    return r;
}

int tgt_raw_bdev_open(struct gr_loop *loop, const struct tgt_raw_opts *o, struct gr_bdev **ret, struct gr_err *err)
{
    const struct gr_file_opts fo = {.read_only = o->read_only, .direct = true, .exclusive = true};
    struct gr_bdev *file = NULL;
    struct raw_bdev *b = gr_zalloc(sizeof *b);
    char *store = gr_strdup(o->store);
    int r = b && store ? 0 : gr_fail(err, -ENOMEM, "'%s': out of memory", o->file);
    if (r == 0 && o->create)
        r = make_file(o, err);
    bool made = r == 0 && o->create;
    if (r == 0)
        r = gr_bdev_file_open(loop, o->file, &fo, &file, err);
    if (r == 0)
        r = check(loop, file, o, err);
    if (r == 0)
        r = tgt_raw_store_make(store, err);
    if (r < 0) {
        if (made)
            unlink(o->file);
        gr_bdev_put(file);
        free(store);
        free(b);
        return r;
    }
    gr_layer_init(&b->layer, &raw_ops, file);
    gr_bdev_put(file); /* the layer holds it */
    b->store = store;
    b->limits = o->limits;
    memcpy(b->uuid, o->uuid, 16);
    *ret = &b->layer.base;
    return 0;
}

int tgt_raw_bdev_peek(struct gr_loop *loop, const struct tgt_raw_opts *o, struct gr_geometry *ret)
{
    const struct gr_file_opts fo = {.read_only = true};
    struct gr_bdev *file = NULL;
    int r = gr_bdev_file_open(loop, o->file, &fo, &file, NULL);
    if (r == 0)
        r = gr_bdev_geometry(file, ret);
    gr_bdev_put(file);
    ret->read_only = o->read_only;
    memcpy(ret->uuid, o->uuid, 16);
    return r;
}

int tgt_raw_bdev_grow(struct gr_loop *loop, struct gr_bdev *bdev, uint64_t size, struct gr_err *err)
{
    struct gr_geometry g;
    int r = gr_bdev_geometry(bdev, &g);
    if (r < 0)
        return gr_fail(err, r, "'%s': %s", bdev->name, gr_code_text(r));
    if (size < g.size)
        return gr_fail(err, -EINVAL, "'%s' has %llu bytes: it can grow, not shrink to %llu", bdev->name, (unsigned long long)g.size,
                       (unsigned long long)size);
    if (size == g.size)
        return 0;
    r = gr_bdev_file_resize(raw_of(bdev)->layer.lower, size, err);
    return r < 0 ? r : flush(loop, bdev, err);
}

void tgt_raw_bdev_limit(struct gr_bdev *bdev, const struct tgt_raw_limits *limits)
{
    raw_of(bdev)->limits = *limits;
    gr_bdev_event(bdev, GR_EVENT_PRESENTED);
}

struct look {
    struct gr_bdev *file;
    struct gr_file_room room;
};

static int look(void *arg)
{
    struct look *l = arg;
    return gr_bdev_file_room(l->file, &l->room);
}

int tgt_raw_bdev_watch(struct gr_bdev *bdev, struct gr_file_room *ret_room)
{
    struct raw_bdev *b = raw_of(bdev);
    struct look l = {.file = b->layer.lower};
    if (gr_fiber_work(look, &l) < 0)
        return 0;
    uint64_t percent = l.room.all / 100;
    bool enough = !l.room.missing || l.room.free >= percent * TGT_RAW_LOW_PERCENT;
    if (b->low && (!l.room.missing || l.room.free > percent * (TGT_RAW_LOW_PERCENT + 2)))
        b->low = false; /* from now on it is told again */
    if (b->low || enough)
        return 0;
    b->low = true;
    *ret_room = l.room;
    gr_bdev_event(bdev, GR_EVENT_THRESHOLD);
    return 1;
}
