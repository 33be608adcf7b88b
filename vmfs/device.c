/* Metadata I/O of a volume, written as if it blocked (fibers). */
#include "vmfs/loss.h"
#include "common/seam.h"
#include <assert.h>

void *vunits_alloc(uint32_t units)
{
    void *p = gr_alloc_aligned(VMFS_UNIT, (size_t)units * VMFS_UNIT);
    if (p)
        memset(p, 0, (size_t)units * VMFS_UNIT);
    return p;
}

/* The device of @addr, where it lies now. */
static struct vdev *device_of(struct vmfs *v, uint64_t *addr, uint32_t units)
{
    uint64_t now = moved_addr(v, *addr, units, NULL);
    unsigned dev = vmfs_addr_dev(now);
    if (!now || dev >= v->n_dev || !v->dev[dev].ch || (vdev_emptied(v, dev) && vmfs_addr_unit(now) >= v->sb.dev[dev].first_unit))
        return NULL;
    *addr = now;
    return &v->dev[dev];
}

static int no_device(const struct vmfs *v, uint64_t addr)
{
    unsigned dev = vmfs_addr_dev(moved_addr(v, addr, 1, NULL));
    return dev < v->sb.n_devices && vdev_no_data(v, dev) ? -EIO : -GR_ECORRUPT;
}

int vdev_all_here(struct vmfs *v, const char *what, struct gr_err *err)
{
    for (unsigned i = 0; i < v->sb.n_devices; i++)
        if (vdev_missing(v, i))
            return gr_fail(err, -ENODEV, "datastore '%s' was joined without its device %u: %s; join it with all devices first", v->sb.name, i, what);
    return 0;
}

int vdev_read(struct vmfs *v, uint64_t addr, uint32_t units, void *buf)
{
    struct vdev *d = device_of(v, &addr, units);
    if (!d)
        return no_device(v, addr);
    d->users++;
    int r = gr_pread(d->ch, buf, (size_t)units * VMFS_UNIT, vmfs_addr_unit(addr) * VMFS_UNIT);
    d->users--;
    return r;
}

/* It failed to do what everything relies on: whoever gives the volume up looks at that. */
static bool note_failure(struct vdev *d, int r)
{
    bool failed = r < 0 && r != -GR_EFENCED && r != -GR_ENOSPACE && r != -ENOSPC && r != -ENOMEM;
    d->failed |= failed;
    return failed;
}

static void io_done(struct gr_bio *bio)
{
    struct vreading *r = gr_container_of(bio, struct vreading, bio);
    r->status = bio->status;
    r->dev->users--;
    if (bio->op != GR_OP_READ)
        note_failure(r->dev, r->status);
    if (--r->set->running == 0 && r->set->waiting)
        gr_fiber_wake(r->set->waiting);
}

static void io_begin(struct vreads *set, struct vreading *r, struct vdev *d, const struct gr_bio *what)
{
    *r = (struct vreading){ .bio = *what, .set = set, .dev = d };
    if (what->iovcnt) {
        r->iov = *what->iov;
        r->bio.iov = &r->iov;
    }
    r->bio.done = io_done;
    d->users++;
    set->running++;
    gr_submit(d->ch, &r->bio);
}

static void rw_begin(struct vmfs *v, struct vreads *set, struct vreading *r, enum gr_op op, const struct vread *w)
{
    uint64_t addr = w->addr;
    struct iovec iov = { w->buf, (size_t)w->units * VMFS_UNIT };
    struct vdev *d = device_of(v, &addr, w->units);
    if (d)
        io_begin(set, r, d, &(struct gr_bio){ .op = op, .off = vmfs_addr_unit(addr) * VMFS_UNIT, .len = iov.iov_len, .iov = &iov, .iovcnt = 1 });
    else
        *r = (struct vreading){ .status = no_device(v, addr) };
}

void vdev_read_begin(struct vmfs *v, struct vreads *set, struct vreading *r, uint64_t addr, uint32_t units, void *buf)
{
    rw_begin(v, set, r, GR_OP_READ, &(struct vread){ .addr = addr, .units = units, .buf = buf });
}

void vdev_reads_wait(struct vreads *set)
{
    set->waiting = gr_fiber_self();
    while (set->running)
        gr_fiber_suspend();
    set->waiting = NULL;
}

void vdev_read_all(struct vmfs *v, struct vread *reads, unsigned n)
{
    struct vreading *k = gr_alloc((n + 1) * sizeof *k);
    struct vreads set = { 0 };
    for (unsigned i = 0; k && i < n; i++)
        vdev_read_begin(v, &set, &k[i], reads[i].addr, reads[i].units, reads[i].buf);
    vdev_reads_wait(&set);
    for (unsigned i = 0; i < n; i++)
        reads[i].status = k ? k[i].status : -ENOMEM;
    free(k);
}

bool vdev_has_tables(const struct vmfs *v, unsigned dev)
{
    const struct vtable *t[] = { &v->sb.slots, &v->sb.regions, &v->sb.inodes };
    for (unsigned i = 0; i < 3; i++)
        if (vmfs_addr_dev(t[i]->addr_a) == dev || vmfs_addr_dev(t[i]->addr_b) == dev)
            return true; /* mirrors of journals lie beside copies B */
    return v->joined && vmfs_addr_dev(v->me.journal_addr) == dev;
}

bool vdev_needed(const struct vmfs *v, unsigned dev)
{
    bool list = false; /* of what lay on a device that has left: without it nobody knows where that is */
    for (unsigned i = 0; i < v->sb.n_devices; i++)
        list |= v->sb.dev[i].moved_addr && vmfs_addr_dev(moved_addr(v, v->sb.dev[i].moved_addr, v->sb.dev[i].moved_units, NULL)) == dev;
    return list || vdev_has_tables(v, dev);
}

int vdev_write_all(struct vmfs *v, struct vread *writes, unsigned n)
{
    struct vreading k[VDEV_WRITES_MAX];
    struct vreads set = { 0 };
    int r = v->fenced ? -GR_EFENCED : 0;
    assert(n <= VDEV_WRITES_MAX);
    for (unsigned i = 0; r == 0 && i < n; i++)
        rw_begin(v, &set, &k[i], GR_OP_WRITE, &writes[i]);
    if (r < 0)
        return r;
    vdev_reads_wait(&set);
    for (unsigned i = 0; i < n; i++)
        if (k[i].status < 0 && r == 0)
            r = k[i].status;
    return r;
}

int vdev_write(struct vmfs *v, uint64_t addr, uint32_t units, const void *buf, uint32_t flags)
{
    struct vdev *d = device_of(v, &addr, units);
    if (v->fenced)
        return -GR_EFENCED;
    if (!d)
        return no_device(v, addr);
    d->users++;
    int r = gr_pwrite(d->ch, buf, (size_t)units * VMFS_UNIT, vmfs_addr_unit(addr) * VMFS_UNIT, flags | GR_BIO_ALONE);
    d->users--;
    if (note_failure(d, r))
        vloss_suspect(v, (uint32_t)1 << (d - v->dev)); /* when nobody gives the volume up for it: it may be well again */
    return r;
}

static int swap_by_hand(struct vmfs *v, uint64_t addr, const void *was, const void *now, bool last)
{
    uint8_t *is = vunits_alloc(1);
    gr_fmutex_lock(&v->life.swapping);
    int r = is ? vdev_read(v, addr, 1, is) : -ENOMEM;
    if (r == 0 && v->fenced && !last)
        r = -GR_EFENCED;
    if (r == 0 && memcmp(is, was, VMFS_UNIT) != 0)
        r = -GR_EMISCOMPARE;
    if (r == 0)
        r = gr_pwrite(v->dev[vmfs_addr_dev(addr)].ch, now, VMFS_UNIT, vmfs_addr_unit(addr) * VMFS_UNIT, GR_BIO_FUA);
    gr_fmutex_unlock(&v->life.swapping);
    free(is);
    return r;
}

static int swap(struct vmfs *v, uint64_t addr, const void *was, const void *now, bool last)
{
    int r = gr_compare_write(v->dev[vmfs_addr_dev(addr)].ch, vmfs_addr_unit(addr) * VMFS_UNIT, was, now, VMFS_UNIT, NULL);
    return r == -EOPNOTSUPP && v->life.alone ? swap_by_hand(v, addr, was, now, last) : r;
}

int vdev_swap(struct vmfs *v, uint64_t addr, const void *was, const void *now)
{
    return v->fenced ? -GR_EFENCED : swap(v, addr, was, now, false);
}

int vdev_swap_last(struct vmfs *v, uint64_t addr, const void *was, const void *now)
{
    return swap(v, addr, was, now, true);
}

/* Whoever is joined gives the volume up when it fails: what was not flushed is not asked for again. All at once. */
int vdev_flush(struct vmfs *v)
{
    struct vreading k[VMFS_DEVICES_MAX];
    struct vreads set = { 0 };
    unsigned n = 0;
    int first = 0;
    if (v->fenced)
        return -GR_EFENCED;
    for (unsigned i = 0; i < v->sb.n_devices; i++) { /* not one that is about to be added */
        if (!v->dev[i].ch) /* it has left */
            continue;
        io_begin(&set, &k[n++], &v->dev[i], &(struct gr_bio){ .op = GR_OP_FLUSH });
        v->stats.device_flushes++;
    }
    vdev_reads_wait(&set);
    for (unsigned i = 0; i < n && first == 0; i++)
        first = k[i].status;
    return first;
}

bool vdev_all_in_memory(struct vmfs *v)
{
    bool all = true;
    for (unsigned i = 0; all && i < v->sb.n_devices; i++) {
        struct gr_geometry g = {0};
        all = !v->dev[i].bdev || (gr_bdev_geometry(v->dev[i].bdev, &g) == 0 && g.in_memory);
    }
    return all;
}

void vmfs_warn(struct vmfs *v, const char *fmt, ...)
{
    char text[GR_ERR_TEXT];
    va_list ap;
    if (!v->opts.warn)
        return;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    v->opts.warn(v->opts.warn_arg, text);
}

void vmfs_tell_all(struct vmfs *v, enum gr_event ev)
{
    for (unsigned h = 0; h < VOBJ_HASH; h++)
        for (struct vobj *o = v->objs[h]; o; o = o->hash_next)
            if (o->handle)
                gr_bdev_event(&o->handle->bdev, ev);
}

void vmfs_fence(struct vmfs *v, const char *fmt, ...)
{
    va_list ap;
    if (v->fenced)
        return;
    v->fenced = true;
    va_start(ap, fmt);
    vsnprintf(v->fence_reason, sizeof v->fence_reason, fmt, ap);
    va_end(ap);
    bool lost = vloss_found(v);
    gr_fqueue_wake_all(&v->j.commit_q);
    gr_fqueue_wake_all(&v->j.room_q);
    gr_fqueue_wake_all(&v->looks);
    vmfs_warn(v, lost ? "datastore '%s' goes on without it: %s" : "datastore '%s' is given up on this host: %s", v->sb.name, v->fence_reason);
    vmfs_tell_all(v, v->life.ejected || lost ? GR_EVENT_EJECTED : GR_EVENT_FENCED);
    if (lost)
        v->opts.device_lost(v->opts.warn_arg);
}
