/* What mounts have open, and the lease on it: the object's lock in the volume. */
#include "common/seam.h"
#include "snapshot/mnt_int.h"
#include <string.h>
#include <time.h>

#define PAGES_MS 100u   /* a read that keeps the kernel from forgetting pages waits so long */
#define ROUNDS 20u      /* how often pages are forgotten anew because some were read meanwhile */
#define TURN_MS 30u     /* who gave a lease up lets the other host have it so long */
#define STEP_MS 5u      /* between two attempts to get the lease, doubling up to */
#define STEP_MAX_MS 100u

int64_t mnt_now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return t.tv_sec * 1000000000ll + t.tv_nsec;
}

/* ---- the table ---- */
static struct mnt_obj **bucket(struct mnt_vol *vol, uint64_t id)
{
    return &vol->objs[(id ^ id >> 32) % MNT_OBJ_HASH];
}

struct mnt_obj *mnt_obj_find(const struct snap_ds *ds, uint64_t id)
{
    struct mnt_obj *o = ds->fs ? *bucket(ds->fs, id) : NULL;
    while (o && o->id != id)
        o = o->next;
    return o;
}

struct mnt_obj *mnt_obj_get(struct snap_ds *ds, uint64_t id, enum vmfs_type type)
{
    if (!ds->fs && !(ds->fs = gr_zalloc(sizeof(*ds->fs))))
        return NULL;
    ds->fs->ds = ds;
    struct mnt_obj *o = mnt_obj_find(ds, id);
    if (!o && (o = gr_zalloc(sizeof(*o)))) {
        struct mnt_obj **b = bucket(ds->fs, id);
        o->vol = ds->fs;
        o->id = id;
        o->type = type;
        o->next = *b;
        *b = o;
    }
    if (o)
        o->users++;
    return o;
}

static void remove_if_idle(struct mnt_obj *o)
{
    if (o->users || o->disk || o->handle || o->locks || o->lost)
        return;
    struct mnt_obj **p = bucket(o->vol, o->id);
    while (*p != o)
        p = &(*p)->next;
    *p = o->next;
    free(o);
}

/* ---- letting go ---- */
static void let_go_disk(struct mnt_obj *o)
{
    gr_chan_close(gr_take(o->ch));
    if (o->handle) {
        o->handle->mounted -= o->writing;
        o->handle->users--;
        o->writing = false;
        o->handle = NULL;
    } else {
        vmfs_close(gr_take(o->disk));
    }
    o->disk = NULL;
}

int mnt_posix_flush(struct mnt_obj *o, struct gr_err *err)
{
    if (!o->posix_dirty)
        return 0;
    o->posix_dirty = false;
    int r = vmfs_file_set_posix(o->disk, &o->posix, err);
    o->posix_dirty |= r < 0;
    return r;
}

static void changed(struct mnt_obj *o)
{
    o->changing = o->yielding = false;
    gr_fqueue_wake_all(&o->wake);
}

/* The kernel forgets its pages; what was changed in them is written meanwhile, and what reads them in has to wait. */
static int forget_pages(struct mnt_obj *o)
{
    int r = 0;
    unsigned rounds = 0;
    while (r == 0 && o->cached_reads && o->opens) {
        if (rounds++ == ROUNDS)
            return -EAGAIN;
        o->cached_reads = 0;
        r = mnt_forget_pages(o->vol->ds, o->id);
    }
    return r;
}

int mnt_give_up(struct mnt_obj *o, struct gr_err *err)
{
    struct vmfs *v = o->vol->ds->v;
    if (o->changing)
        return -EAGAIN;
    if (!o->disk || o->handle)
        return o->handle ? gr_fail(err, -EBUSY, "it is open through a mount") : 0;
    o->users++;
    o->changing = o->yielding = true;
    int r = forget_pages(o);
    o->yielding = false; /* nobody comes in from here on */
    while (o->busy)
        gr_fqueue_wait(&o->wake);
    if (r == 0 && o->cached_reads && o->opens)
        r = -EAGAIN;
    if (r == 0)
        r = mnt_posix_flush(o, err);
    if (r == 0 && (r = gr_flush(o->ch)) < 0) /* who syncs it later may do so on another host */
        gr_fail(err, r, "what was written is not durable: %s", gr_code_text(r));
    if (r == 0) {
        let_go_disk(o);
        r = vmfs_release_id(v, o->id, "a file", err);
    }
    o->given_ns = r == 0 ? gr_loop_now_ns(o->vol->ds->svc->o.loop) : 0;
    changed(o);
    o->users--;
    return r;
}

/* Nobody here has it open any more, and it has no name: it ends here, or another host has it open, and ends it. */
static int end_lost(struct mnt_obj *o, struct gr_err *err)
{
    struct snap_ds *ds = o->vol->ds;
    int r = mnt_peer_leave_to(ds, o->id, err);
    if (r > 0)
        r = mnt_give_up(o, err);
    else if (r == 0 && (r = mnt_hold(o, MNT_PLAIN, err)) == 0) {
        bool open = o->opens > 0; /* meanwhile */
        o->changing = !open;
        mnt_drop(o);
        if (open)
            return 0;
        while (o->busy)
            gr_fqueue_wait(&o->wake);
        let_go_disk(o);
        r = vmfs_file_end(ds->v, o->id, err);
        changed(o);
    }
    if (r == -ENOKEY && !o->disk && !o->opens) /* encrypted: nobody here can have it open, and no key is needed to remove it */
        r = vmfs_file_end(ds->v, o->id, err);
    r = r == -ESTALE ? 0 : r; /* another host was quicker */
    o->lost &= r < 0;
    return r;
}

/* Give idle files back, one after the other; and what has no name any more ends. It is kept for a moment because another host, or this one, may have
 * looked its name up and be about to open it. */
static struct mnt_obj *idle_one(struct mnt_vol *vol, bool *ret_more)
{
    uint64_t now = gr_loop_now_ns(vol->ds->svc->o.loop);
    *ret_more = false;
    for (unsigned h = 0; h < MNT_OBJ_HASH; h++)
        for (struct mnt_obj *o = vol->objs[h]; o; o = o->next) {
            if (o->users || o->handle || (!o->disk && !o->lost))
                continue;
            *ret_more = true;
            if (now - o->idle_since_ns >= MNT_IDLE_MS * 1000000ull)
                return o;
        }
    return NULL;
}

static void tidy(void *arg)
{
    struct mnt_vol *vol = arg;
    struct snap_svc *s = vol->ds->svc;
    bool more = true;
    while (more) {
        gr_fiber_sleep_ms(MNT_IDLE_MS / 4);
        struct snap_ds *ds = vol->ds;
        struct mnt_obj *o;
        if (!ds->v || ds->leaving || s->ending) /* mnt_vol_close() does it */
            break;
        ds->users++;
        while (!ds->leaving && (o = idle_one(vol, &more))) {
            struct gr_err err = {0};
            uint64_t id = o->id;
            o->users++;
            int r = o->lost ? end_lost(o, &err) : mnt_give_up(o, &err);
            o->users--;
            if (r < 0) {
                snap_warn(s, "datastore '%s': file %llu is not given back, and will be tried again: %s", ds->name, (unsigned long long)id, err.text);
                o->idle_since_ns = gr_loop_now_ns(s->o.loop);
            } else if ((o = mnt_obj_find(ds, id))) {
                remove_if_idle(o);
            }
        }
        ds->users--;
    }
    vol->tidying = false;
    vol->fibers--;
}

static void tidy_soon(struct mnt_vol *vol)
{
    if (vol->tidying)
        return;
    vol->tidying = true;
    vol->fibers++;
    if (gr_fiber_start(vol->ds->svc->o.loop, tidy, vol) < 0) {
        vol->tidying = false;
        vol->fibers--;
    }
}

void mnt_obj_put(struct mnt_obj *o)
{
    if (--o->users)
        return;
    o->idle_since_ns = gr_loop_now_ns(o->vol->ds->svc->o.loop);
    if ((o->disk && !o->handle) || o->lost)
        tidy_soon(o->vol);
    else
        remove_if_idle(o);
}

/* ---- taking ---- */
/* One attempt. -GR_ELOCKED with *ret_slot: of that host. */
static int take(struct mnt_obj *o, int *ret_slot, struct gr_err *err)
{
    struct snap_ds *ds = o->vol->ds;
    struct vmfs_node n;
    char what[32];
    snprintf(what, sizeof(what), "file %llu", (unsigned long long)o->id);
    int r = vmfs_open_id(ds->v, o->id, what, &o->disk, ret_slot, err);
    if (r < 0)
        return r;
    r = gr_chan_open(vmfs_bdev(o->disk), ds->svc->o.loop, &o->ch);
    if (r < 0) {
        vmfs_close(gr_take(o->disk));
        return gr_fail(err, r, "%s: %s", what, gr_code_text(r));
    }
    vmfs_disk_node(o->disk, &n);
    o->posix = n.posix;
    o->has_posix = n.has_posix;
    o->posix_dirty = false;
    o->cached_reads = 0;
    o->alone = false;
    return 0;
}

/* Who asked for it has it before we do again: its answer takes longer than our own way to the lock. */
static void wait_turn(struct mnt_obj *o)
{
    struct snap_ds *ds = o->vol->ds;
    uint64_t until = o->given_ns + TURN_MS * 1000000ull;
    struct vmfs_node n;
    while (o->given_ns && gr_loop_now_ns(ds->svc->o.loop) < until && vmfs_look(ds->v, o->id, "", &n, NULL) == 0 && n.owner_slot < 0)
        gr_fiber_sleep_ms(2);
    o->given_ns = 0;
}

static int take_patiently(struct mnt_obj *o, struct gr_err *err)
{
    struct snap_ds *ds = o->vol->ds;
    wait_turn(o);
    uint64_t deadline = gr_loop_now_ns(ds->svc->o.loop) + MNT_PATIENCE_MS * 1000000ull;
    for (unsigned step = STEP_MS;; step = GR_MIN(step * 2, STEP_MAX_MS)) {
        int slot = -1;
        int r = take(o, &slot, err);
        if (r != -GR_ELOCKED)
            return r;
        if (slot >= 0) {
            r = mnt_peer_yield(ds, o->id, slot, err);
            if (r < 0 && r != -EAGAIN)
                return r;
            if (r == 0)
                r = take(o, &slot, err);
            if (r == 0 || (r != -GR_ELOCKED && r != -EAGAIN))
                return r;
        }
        if (gr_loop_now_ns(ds->svc->o.loop) >= deadline)
            return gr_fail(err, -GR_ELOCKED, "file %llu is not given up by another host", (unsigned long long)o->id);
        gr_fiber_sleep_ms(step);
    }
}

int mnt_hold(struct mnt_obj *o, enum mnt_use use, struct gr_err *err)
{
    uint64_t waited = 0;
    for (;;) {
        bool through = o->yielding && o->disk && (use == MNT_WRITEBACK || (use == MNT_READ && waited >= PAGES_MS));
        if (through || (!o->changing && o->disk))
            break;
        if (o->changing) {
            waited += gr_fqueue_wait_ms(&o->wake, PAGES_MS) < 0 ? PAGES_MS : 0;
            continue;
        }
        o->changing = true;
        int r = take_patiently(o, err);
        changed(o);
        if (r < 0)
            return r == -ENOENT ? -ESTALE : r;
    }
    o->busy++;
    o->cached_reads += use == MNT_READ;
    return 0;
}

void mnt_drop(struct mnt_obj *o)
{
    if (--o->busy == 0)
        gr_fqueue_wake_all(&o->wake);
}

/* ---- the life of what is open ---- */
void mnt_opened(struct mnt_obj *o)
{
    o->opens++;
    o->users++;
}

void mnt_closed(struct mnt_obj *o)
{
    struct gr_err err = {0};
    int r = 0;
    if (--o->opens == 0 && o->handle) {
        let_go_disk(o);
    } else if (o->opens == 0 && o->disk && !o->changing) {
        o->busy++;
        r = mnt_posix_flush(o, &err);
        mnt_drop(o);
    }
    if (r < 0)
        snap_warn(o->vol->ds->svc, "datastore '%s': file %llu: %s", o->vol->ds->name, (unsigned long long)o->id, gr_err_text(&err, r));
    mnt_obj_put(o);
}

void mnt_vol_close(struct snap_ds *ds)
{
    struct mnt_vol *vol = ds->fs;
    for (unsigned h = 0; vol && h < MNT_OBJ_HASH; h++)
        for (struct mnt_obj *o = vol->objs[h], *next; o; o = next) {
            next = o->next;
            if (o->disk && !o->handle && o->posix_dirty)
                (void)mnt_posix_flush(o, NULL); /* fenced: it is not ours any more */
            if (o->disk)
                let_go_disk(o);
            o->lost &= o->users > 0; /* the next join gives it back */
            remove_if_idle(o);
        }
}

void mnt_vol_free(struct snap_ds *ds)
{
    while (ds->fs && ds->fs->fibers)
        gr_fiber_sleep_ms(10);
    free(gr_take(ds->fs));
}
