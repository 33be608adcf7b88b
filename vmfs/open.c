/* Opening, closing and handing back objects with content; whole small files. */
#include "common/seam.h"
#include "vmfs/internal.h"
#include "vmfs/keys.h"

static int find(struct vmfs *v, const char *path, struct vmfs_stat *ret, struct gr_err *err)
{
    struct vmfs_stat st = { 0 };
    int r = vmfs_stat(v, path, &st, err);
    if (r < 0)
        return r;
    if (st.type == VMFS_DIR)
        return gr_fail(err, -EISDIR, "'%s/%s' is a directory", v->sb.name, path);
    *ret = st;
    return 0;
}

static int find_id(struct vmfs *v, const char *path, uint64_t *ret, struct gr_err *err)
{
    struct vmfs_stat st = { 0 };
    int r = find(v, path, &st, err);
    if (r == 0)
        *ret = st.id;
    return r;
}

/* Could we read it? Asked before its lock is taken, so that who has no key keeps nobody else from it. */
static int key_is_here(struct vmfs *v, const struct vmfs_stat *st, struct gr_err *err)
{
    struct vobj *o;
    if (!st->key_id)
        return 0;
    int r = vobj_peek(v, st->id, &o, err);
    if (r < 0)
        return r;
    r = vkeys_open(o, err);
    vobj_free(o);
    return r;
}

#define OPEN_WAIT_MS 40u /* a dead owner's slot may just be taken by whoever recovers it */
int disk_open(struct vmfs *v, uint64_t id, const char *path, unsigned wait_ms, struct vmfs_disk **ret, int *ret_owner_slot, struct gr_err *err)
{
    struct vobj *o;
    int r = vobj_hold(v, id, wait_ms, &o, ret_owner_slot, err);
    if (r < 0)
        return gr_prefix(err, r, "'%s/%s'", v->sb.name, path);
    if (o->dying)
        return gr_fail(err, -ENOENT, "'%s/%s' is being removed", v->sb.name, path);
    if (vkeys_locked(o)) {
        o->users++; /* nobody gives it up meanwhile */
        r = vkeys_open(o, err);
        o->users--;
        gr_fqueue_wake_all(&o->settled);
        if (r == 0 && o->dying)
            r = gr_fail(err, -ENOENT, "it is being removed");
        if (r < 0) {
            vobj_release_idle(v, id, NULL); /* others may have the key */
            return gr_prefix(err, r, "'%s/%s'", v->sb.name, path);
        }
    }
    usage_ready(o);
    if (!o->handle) {
        struct vmfs_disk *d = gr_zalloc(sizeof *d);
        char name[128];
        if (!d || !(d->path = gr_strdup(path))) {
            free(d);
            return gr_fail(err, -ENOMEM, "out of memory");
        }
        snprintf(name, sizeof name, "%s/%s", v->sb.name, path);
        gr_bdev_init(&d->bdev, &vmfs_disk_ops, name);
        d->o = o;
        o->handle = d;
        if (o->reserved_units)
            space_promised(v);
    } else {
        gr_bdev_get(&o->handle->bdev);
    }
    o->opens++;
    reap_kick(o);
    *ret = o->handle;
    return 0;
}

int vmfs_open(struct vmfs *v, const char *path, struct vmfs_disk **ret, int *ret_owner_slot, struct gr_err *err)
{
    struct vmfs_stat st = { 0 };
    if (v->role != VMFS_HOST)
        return gr_fail(err, -GR_EREADONLY, "this host joined datastore '%s' for reading only", v->sb.name);
    int r = find(v, path, &st, err);
    if (r == 0 && st.owner_slot < 0 && (r = key_is_here(v, &st, err)) < 0)
        gr_prefix(err, r, "'%s/%s'", v->sb.name, path);
    return r < 0 ? r : disk_open(v, st.id, path, OPEN_WAIT_MS, ret, ret_owner_slot, err);
}

void vmfs_close(struct vmfs_disk *d)
{
    if (!d)
        return;
    if (d->o && --d->o->opens == 0)
        quota_give_back(d->o); /* whoever opens it next asks for more */
    gr_bdev_put(&d->bdev);
}

int disk_give_up(struct vmfs *v, uint64_t id, const char *path, struct gr_err *err)
{
    int r = 0;
    while (r == 0) {
        struct vobj *o = vobj_find(v, id);
        if (!o || o->dying)
            return 0;
        if (o->opens || o->handle)
            return gr_fail(err, -EBUSY, "'%s/%s' is open", v->sb.name, path);
        if (o->walker || o->users) {
            gr_fqueue_wait(&o->settled);
            continue;
        }
        r = vmfs_checkpoint(v, err);
        if (r == 0 && (r = vobj_release_idle(v, id, err)) == 1)
            r = 0; /* somebody came meanwhile: look again */
        else
            break;
    }
    return r;
}

int vmfs_release(struct vmfs *v, const char *path, struct gr_err *err)
{
    uint64_t id = 0;
    int r = find_id(v, path, &id, err);
    return r < 0 ? r : disk_give_up(v, id, path, err);
}

struct gr_bdev *vmfs_bdev(struct vmfs_disk *d) { return &d->bdev; }
uint64_t vmfs_disk_id(const struct vmfs_disk *d) { return d->o ? d->o->id : 0; }
struct vmfs *vmfs_disk_volume(struct vmfs_disk *d) { return d->o ? d->o->v : NULL; }

void vmfs_disk_stat(struct vmfs_disk *d, struct vmfs_stat *ret)
{
    memset(ret, 0, sizeof *ret);
    if (!d->o)
        return;
    vobj_stat(d->o, ret);
    ret->owner_slot = (int)d->o->v->slot;
    ret->owner_generation = d->o->v->me.generation;
}

/* ---- resize ---- */
/* The bytes of the last piece behind @size become zeros, or they would come back when the disk grows again. */
static int zero_tail(struct dop *op, uint64_t size)
{
    struct vobj *o = op->o;
    uint64_t piece = size / VMFS_PIECE;
    struct mnode *leaf;
    int r = mtree_load(o, &o->live, piece, NULL);
    if (r < 0 || mtree_peek(&o->live, piece, &leaf) < 0 || !leaf)
        return r;
    if (ment_piece(&leaf->ent[piece % VMFS_LEAF_PIECES / VMFS_BLOCK_PIECES], (unsigned)(piece % VMFS_BLOCK_PIECES)).state != VMFS_P_DATA)
        return 0;
    struct iovec iov = { gr_zalloc(VMFS_PIECE), VMFS_PIECE - size % VMFS_PIECE };
    r = iov.iov_base ? disk_write_pieces(op, size, iov.iov_len, &iov, 1, false) : -ENOMEM;
    free(iov.iov_base);
    return r;
}

static int cut_tail(struct vobj *o, uint64_t size)
{
    struct dop op = { .o = o };
    op.range.epoch = o->epoch;
    if (size % VMFS_PIECE == 0)
        return 0;
    ticket_open(o->v, &op.ticket); /* as any write: who empties the device waits for what is under way to it */
    int r = zero_tail(&op, size);
    ticket_close(o->v, &op.ticket);
    return r;
}

static int cut_rest(struct vobj *o, uint64_t size)
{
    uint64_t end = (o->ino.size + VMFS_BLOCK - 1) / VMFS_BLOCK * VMFS_BLOCK_PIECES; /* the last block has pieces behind the end, reserved */
    struct dop op = { .o = o };
    op.range.epoch = o->epoch;
    return disk_clear_pieces(&op, (size + VMFS_PIECE - 1) / VMFS_PIECE, end);
}

/* First what reads and writes, so that a failure there costs nothing; but where there is no room for it, it waits for what is given back. *@ret_gone: an
 * error came later, and some of what is behind @size is zeros. */
static int cut_off(struct vobj *o, uint64_t size, bool *ret_gone)
{
    int tail = cut_tail(o, size);
    *ret_gone = tail == 0 || tail == -GR_ENOSPACE;
    int r = *ret_gone ? cut_rest(o, size) : tail;
    return r == 0 && tail < 0 ? cut_tail(o, size) : r;
}

static int resize_record(struct vobj *o, uint64_t size, struct gr_err *err)
{
    struct vmfs_rec_value_disk rec = { .r.type = gr_le16_of(VMFS_R_RESIZE), .value = gr_le64_of(size) };
    return record_do(o, &rec, sizeof rec, err);
}

static int shrink(struct vmfs_disk *d, uint64_t size, struct gr_err *err)
{
    struct vobj *o = d->o;
    bool gone = false;
    int r = cut_off(o, size, &gone);
    if (r == 0)
        r = resize_record(o, size, err);
    if (r == 0)
        return 0;
    if (gone && o->ino.provision != VMFS_THIN) /* it is still as long as it was, and so is what was promised */
        (void)disk_reserve(o, size / VMFS_PIECE, (o->ino.size + VMFS_PIECE - 1) / VMFS_PIECE, o->epoch);
    return gone ? gr_fail(err, r, "'%s' cannot be cut: %s; it is as long as before, but what is behind byte %llu may have become zeros", d->bdev.name, gr_code_text(r),
                          (unsigned long long)size)
                : gr_fail(err, r, "'%s' cannot be cut: %s", d->bdev.name, gr_code_text(r));
}

static int resize_locked(struct vmfs_disk *d, uint64_t size, struct gr_err *err)
{
    struct vobj *o = d->o;
    uint64_t old = o->ino.size;
    journal_room(o->v);
    if (size < old)
        return shrink(d, size, err);
    int r = resize_record(o, size, err);
    if (r < 0 || size == old || o->ino.provision == VMFS_THIN)
        return r;
    r = disk_reserve(o, (old + VMFS_PIECE - 1) / VMFS_PIECE, (size + VMFS_PIECE - 1) / VMFS_PIECE, o->epoch);
    if (r < 0 && cut_rest(o, old) < 0) /* what was reserved must not lie behind the end */
        return gr_fail(err, r, "'%s' cannot grow: %s; nor be made as small as before: not all of its space is reserved", d->bdev.name, gr_code_text(r));
    if (r < 0) {
        (void)resize_record(o, old, NULL);
        gr_fail(err, r, "'%s' cannot grow: %s", d->bdev.name, gr_code_text(r));
    }
    return r;
}

int disk_set_size(struct vmfs_disk *d, uint64_t size, struct gr_err *err)
{
    struct vobj *o = d->o;
    disk_freeze(o);
    int r = resize_locked(d, size, err);
    disk_thaw(o);
    return r;
}

int vmfs_resize(struct vmfs_disk *d, uint64_t size, bool shrink, struct gr_err *err)
{
    struct vobj *o = d->o;
    if (!o || d->gone)
        return gr_fail(err, -GR_EFENCED, "'%s' is no longer ours", d->bdev.name);
    if (size == 0 || size > VMFS_DISK_MAX || size % 512)
        return gr_fail(err, -EINVAL, "'%s': %llu bytes: a size is a multiple of 512, at least 512 and at most 1 PiB", d->bdev.name,
                       (unsigned long long)size);
    if (vobj_template(o))
        return gr_fail(err, -GR_EREADONLY, "'%s' is a template (granary disk set --template off makes it a disk like any other)", d->bdev.name);
    if (size < o->ino.size && !shrink)
        return gr_fail(err, -EINVAL, "'%s' has %llu bytes: making it smaller loses what is behind byte %llu; say --shrink to do it",
                       d->bdev.name, (unsigned long long)o->ino.size, (unsigned long long)size);
    uint64_t old = o->ino.size;
    int r = disk_set_size(d, size, err);
    if (r == 0 && (r = journal_commit(o->v)) < 0)
        gr_fail(err, r, "'%s': the new size is not durable: %s", d->bdev.name, gr_code_text(r));
    if (r == 0 || o->ino.size != old)
        gr_bdev_event(&d->bdev, GR_EVENT_RESIZED);
    return r;
}

/* ---- whole files ---- */
static int content_read(struct vobj *o, const char *path, size_t max, void **ret, struct gr_err *err)
{
    const char *ds = o->v->sb.name;
    if (o->ino.size > max)
        return gr_fail(err, -EFBIG, "'%s/%s' has %llu bytes: at most %zu are read at once", ds, path, (unsigned long long)o->ino.size, max);
    int r = vkeys_open(o, err);
    if (r < 0)
        return gr_prefix(err, r, "'%s/%s'", ds, path);
    uint8_t *buf = vunits_alloc((uint32_t)(o->ino.size / VMFS_UNIT + 1));
    r = buf ? tree_read_wait(o, &o->live, buf, (o->ino.size + 511) & ~511ull, 0) : -ENOMEM;
    if (r < 0) {
        free(buf);
        return gr_fail(err, r, "'%s/%s' cannot be read: %s", ds, path, gr_code_text(r));
    }
    *ret = buf;
    return 0;
}

/* Of an object that is not held here: what was read counts only if it was the same before and after. */
static int peek_read(struct vmfs *v, uint64_t id, const char *path, size_t max, void **ret, size_t *ret_len, struct gr_err *err)
{
    int r = -EAGAIN;
    for (int tries = 0; r == -EAGAIN && tries < 20; tries++) {
        struct vobj *o;
        void *buf = NULL;
        r = vobj_peek(v, id, &o, err);
        if (r < 0)
            break;
        r = content_read(o, path, max, &buf, err);
        if (r != -EFBIG && !vobj_unchanged(o)) {
            free(buf);
            r = gr_fail(err, -EAGAIN, "'%s/%s' changes while it is read", v->sb.name, path);
            gr_fiber_sleep_ms(5);
        } else if (r == 0) {
            *ret = buf;
            *ret_len = o->ino.size;
        }
        vobj_free(o);
    }
    return r;
}

int vmfs_file_read(struct vmfs *v, const char *path, size_t max, void **ret, size_t *ret_len, struct gr_err *err)
{
    uint64_t id = 0;
    int r = find_id(v, path, &id, err);
    if (r < 0)
        return r;
    struct vobj *o = vobj_find(v, id);
    if (!o || o->dying)
        return peek_read(v, id, path, max, ret, ret_len, err);
    o->users++;
    uint64_t len = o->ino.size;
    r = content_read(o, path, max, ret, err);
    if (r == 0)
        *ret_len = len;
    o->users--;
    gr_fqueue_wake_all(&o->settled);
    return r;
}

/* A new object with the content takes the name over. */
int vmfs_file_write(struct vmfs *v, const char *path, const char *aside, const void *data, size_t len, struct gr_err *err)
{
    struct vmfs_stat st = { 0 };
    char tmp[VMFS_PATH_MAX + 16];
    const struct gr_world *w = gr_loop_world(v->loop);
    uint32_t salt;
    w->random(w->arg, &salt, sizeof salt);
    int r = vmfs_name_check(path, err);
    if (r < 0)
        return r;
    const char *slash = strrchr(path, '/');
    if (aside)
        snprintf(tmp, sizeof tmp, "%s/write-%08x", aside, salt);
    else
        snprintf(tmp, sizeof tmp, "%.*s.%08x.tmp", (int)(slash ? slash - path + 1 : 0), path, salt);
    r = vmfs_stat(v, path, &st, NULL);
    if (r == 0 && st.type != VMFS_FILE)
        return gr_fail(err, -EEXIST, "'%s/%s' is not a regular file", v->sb.name, path);
    bool replace = r == 0;
    struct vmfs_disk *d = NULL;
    r = vmfs_create(v, tmp, VMFS_FILE, len, VMFS_THIN, err);
    bool made = r == 0;
    if (r == 0)
        r = vmfs_open(v, tmp, &d, NULL, err);
    if (r == 0 && len) {
        uint32_t units = (uint32_t)((len + VMFS_UNIT - 1) / VMFS_UNIT);
        uint8_t *buf = vunits_alloc(units);
        struct dop op = { .o = d->o };
        struct iovec iov = { buf, (size_t)units * VMFS_UNIT };
        op.range.epoch = d->o->epoch;
        if (buf)
            memcpy(buf, data, len);
        r = buf ? disk_write_pieces(&op, 0, iov.iov_len, &iov, 1, false) : -ENOMEM;
        if (r < 0)
            gr_fail(err, r, "'%s/%s' cannot be written: %s", v->sb.name, path, gr_code_text(r));
        free(buf);
    }
    vmfs_close(d);
    if (r == 0)
        r = replace ? ns_replace(v, tmp, path, err) : vmfs_rename(v, tmp, path, err);
    if (r < 0 && made)
        vmfs_remove(v, tmp, NULL);
    if (r == 0 && (r = vmfs_release(v, path, err)) == -EBUSY)
        r = 0; /* somebody opened it already */
    return r;
}
