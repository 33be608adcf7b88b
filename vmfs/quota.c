/* Quotas of folders. docs/vmfs.md says why it is done so.
 *
 * A folder's inode holds its limit, the inode of a disk or file what it was granted: as many units as it may hold, for all folders above it.
 * What is granted below a folder is never more than its limit, so whoever stays below what he was granted asks nobody. To be granted
 * more, the namespace is locked and everything below the folders is added up; the grant is home before it counts. What is granted and not
 * used is given back when somebody would be refused, on other hosts, too.
 *
 * A disk that was removed and is kept for its clones counts for the folder it lay in, with what is left of it; when that was removed, too, for the
 * nearest above it that there still is. */
#include "common/seam.h"
#include "vmfs/quota_tree.h"

#define ASK_AGAIN_NS 1000000000ull /* who was refused is refused so long without looking */
#define GRANT_MIN 256u             /* units granted beyond what is asked for, at least, while there are so many */

static int refused(const struct qtree *t, size_t at, uint64_t units, struct gr_err *err)
{
    const struct qdir *d = &t->d[at];
    char path[512];
    qtree_path(t, at, path, sizeof path);
    return gr_fail(err, -GR_ENOSPACE, "folder '%s/%s': its quota is %llu bytes, %llu of them are used, and %llu more do not fit: remove something "
                   "there, or give it more with 'granary datastore quota'", t->v->sb.name, path, (unsigned long long)d->limit * VMFS_UNIT,
                   (unsigned long long)d->used * VMFS_UNIT, (unsigned long long)units * VMFS_UNIT);
}

/* ---- telling ---- */
static bool nearly_full(const struct qdir *d)
{
    return d->limit && d->used >= d->limit / 100 * VMFS_QUOTA_LOW_PERCENT;
}

/* Is the folder, or one above it, nearly full? */
static size_t low_above(const struct qtree *t, size_t at)
{
    for (; at; at = t->d[at].parent)
        if (nearly_full(&t->d[at]))
            return at;
    return 0;
}

static void tell_object(const struct qtree *t, struct vobj *o, size_t low)
{
    char path[512];
    bool told = o->quota_low;
    o->quota_low = low != 0;
    if (!low || told || !o->handle)
        return;
    qtree_path(t, low, path, sizeof path);
    vmfs_warn(t->v, "folder '%s/%s': %llu MiB of its quota of %llu MiB are used: '%s' is below it", t->v->sb.name, path,
              (unsigned long long)(t->d[low].used * VMFS_UNIT >> 20), (unsigned long long)(t->d[low].limit * VMFS_UNIT >> 20), o->handle->bdev.name);
    gr_bdev_event(&o->handle->bdev, GR_EVENT_THRESHOLD);
}

/* Whoever has a disk below a folder that is nearly full open is told, once until there is room again. */
static void tell_all(const struct qtree *t)
{
    struct vmfs *v = t->v;
    for (size_t i = 0; i < t->n; i++) {
        struct vobj *dir, *peeked;
        if (!t->d[i].limited || vobj_look(v, t->d[i].id, &dir, &peeked, NULL) < 0)
            continue;
        for (size_t k = 0; k < dir->n_ents; k++) {
            struct vobj *o = dir->ents[k].type == VMFS_DIR ? NULL : vobj_find(v, dir->ents[k].id);
            if (o)
                tell_object(t, o, low_above(t, i));
        }
        vobj_free(peeked);
    }
}

/* ---- giving back ---- */
static bool quotas_on(const struct vmfs *v)
{
    return v->sb.incompat & VMFS_INCOMPAT_QUOTA;
}

void quota_give_back(struct vobj *o)
{
    uint64_t now = quota_holds(o) + o->quota_pending;
    if (!quotas_on(o->v) || o->ino.type == VMFS_DIR || o->ino.type == 0 || o->ino.quota == now)
        return;
    o->ino.quota = now;
    vobj_touch(o);
}

/* [sync] Nobody here has more than he holds, and everybody asks again. */
static void give_back(struct vmfs *v)
{
    for (unsigned h = 0; h < VOBJ_HASH; h++)
        for (struct vobj *o = v->objs[h]; o; o = o->hash_next) {
            o->quota_free = false;
            o->quota_refused_ns = 0;
            quota_give_back(o);
        }
}

int vmfs_quota_recall(struct vmfs *v, struct gr_err *err)
{
    struct qtree t;
    int r = vmfs_refresh(v, err);
    if (r < 0)
        return r;
    give_back(v);
    r = ckpt_run(v);
    if (r < 0)
        return gr_fail(err, r, "datastore '%s': %s", v->sb.name, v->fenced ? v->fence_reason : gr_code_text(r));
    if (qtree_make(v, 0, &t, NULL) == 0) {
        tell_all(&t);
        qtree_done(&t);
    }
    return 0;
}

static int others_recall(struct vmfs *v, struct gr_err *err)
{
    struct vslot s;
    if (v->opts.recall)
        return v->opts.recall(v->opts.warn_arg, err);
    for (unsigned i = 0; i < v->sb.slots.entries; i++) { /* nobody can be told */
        int r = i == v->slot ? 0 : vslot_read(v, i, &s, err);
        if (r < 0)
            return r;
        if (i != v->slot && s.state == VMFS_SLOT_HOST)
            return gr_fail(err, -GR_ELOCKED, "datastore '%s': host '%s' has joined, too, and cannot be told", v->sb.name, s.host_name);
    }
    return 0;
}

/* ---- asking ---- */
bool quota_fits(const struct vobj *o, int64_t growth)
{
    return growth <= 0 || !quotas_on(o->v) || o->quota_free || o->dying || o->quota_hidden ||
           (uint64_t)growth + quota_holds(o) + o->quota_pending <= o->ino.quota;
}

/* What the object may be granted in all; *ret_least: most to be had beyond what it asks for. */
static uint64_t most(const struct qtree *t, const struct vobj *o, size_t *ret_at, uint64_t *ret_limit)
{
    uint64_t all = UINT64_MAX;
    for (size_t i = t->found; i; i = t->d[i].parent) {
        const struct qdir *d = &t->d[i];
        uint64_t others = d->granted - GR_MIN(d->granted, quota_granted(o)), room = d->limit - GR_MIN(d->limit, others);
        if (d->limit && room < all) {
            all = room;
            *ret_at = i;
            *ret_limit = d->limit;
        }
    }
    return all;
}

/* The namespace is locked. 0; -GR_ENOSPACE. */
static int grant(struct vobj *o, uint64_t more, struct gr_err *err)
{
    struct qtree t;
    size_t at = 0;
    uint64_t limit = 0;
    int r = qtree_make(o->v, o->id, &t, err);
    if (r < 0)
        return r;
    uint64_t need = quota_holds(o) + o->quota_pending + more, all = t.found == SIZE_MAX ? UINT64_MAX : most(&t, o, &at, &limit);
    if (all == UINT64_MAX) {
        o->quota_free = true;
    } else if (need > all) {
        r = refused(&t, at, more, err);
    } else {
        o->ino.quota = need + GR_MIN(all - need, GR_MAX(GR_MAX((all - need) / 16, limit / 256), (uint64_t)GRANT_MIN));
        vobj_touch(o);
    }
    tell_all(&t);
    bool low = t.found != SIZE_MAX && low_above(&t, t.found), was = o->quota_low_known;
    qtree_done(&t);
    o->quota_low_known = low;
    return r == 0 && low && !was ? 1 : r; /* 1: others are to be told */
}

static int ask(struct vobj *o, uint64_t more, struct gr_err *err)
{
    struct vmfs *v = o->v;
    struct vobj *root;
    for (bool again = false;; again = true) {
        uint64_t before = o->ino.quota;
        int r = ns_begin(v, &root, err);
        if (r < 0)
            return r;
        int g = grant(o, more, err);
        if (g == -GR_ENOSPACE && !again)
            give_back(v); /* here at once, */
        r = ns_end(v, g == -GR_ENOSPACE && !again ? 0 : g, err);
        if (r < 0 && g >= 0)
            o->ino.quota = GR_MIN(before, o->ino.quota); /* it is not home */
        if (g == 1)
            others_recall(v, NULL);
        if (g != -GR_ENOSPACE || again || r < 0)
            return r < 0 ? r : g == -GR_ENOSPACE ? g : 0;
        others_recall(v, NULL); /* … and elsewhere; who does not answer keeps what he has */
    }
}

struct asking {
    struct vobj *o;
    uint64_t more;
};

static void ask_work(void *arg)
{
    struct asking *a = arg;
    struct vobj *o = a->o;
    struct vmfs *v = o->v;
    int r = ask(o, a->more, NULL);
    o->quota_refused_ns = r == -GR_ENOSPACE ? gr_loop_now_ns(v->loop) : 0;
    o->quota_refused = quota_holds(o) + o->quota_pending + a->more;
    o->quota_error = r;
    o->quota_asking = false;
    o->users--;
    free(a);
    gr_fqueue_wake_all(&o->settled);
    gr_fqueue_wake_all(&v->j.room_q);
    if (--v->background == 0)
        gr_fqueue_wake_all(&v->background_q);
}

static int ask_start(struct vobj *o, uint64_t more)
{
    struct asking *a = gr_alloc(sizeof *a);
    if (!a)
        return -ENOMEM;
    *a = (struct asking){ o, more };
    o->quota_asking = true;
    o->users++;
    o->v->background++;
    int r = gr_fiber_start(o->v->loop, ask_work, a);
    if (r < 0) {
        o->quota_asking = false;
        o->users--;
        o->v->background--;
        free(a);
    }
    return r;
}

int quota_room(struct vobj *o, int64_t growth, uint64_t epoch)
{
    struct vmfs *v = o->v;
    for (unsigned tries = 0; !quota_fits(o, growth); tries++) {
        bool refused_now = o->quota_refused_ns && gr_loop_now_ns(v->loop) - o->quota_refused_ns < ASK_AGAIN_NS &&
                           quota_holds(o) + o->quota_pending + (uint64_t)growth >= o->quota_refused;
        if (tries == 8 || epoch < o->epoch || refused_now)
            return -GR_ENOSPACE;
        int r = o->quota_asking ? 0 : ask_start(o, (uint64_t)growth);
        if (r < 0)
            return r;
        while (o->quota_asking && !v->fenced && epoch >= o->epoch) /* what is late must not wait for a checkpoint, which waits for it */
            gr_fqueue_wait(&v->j.room_q);
        if (v->fenced)
            return -GR_EFENCED;
        if (!o->quota_asking && o->quota_error < 0 && o->quota_error != -GR_ENOSPACE)
            return o->quota_error;
    }
    return 0;
}

/* ---- names that come and go (the namespace is locked) ---- */
static int may_create(struct vmfs *v, uint64_t dir, uint64_t units, struct gr_err *err)
{
    struct qtree t;
    int r = qtree_make(v, dir, &t, err);
    if (r < 0)
        return r;
    for (size_t i = t.found == SIZE_MAX ? 0 : t.found; r == 0 && i; i = t.d[i].parent) {
        uint64_t free_units = t.d[i].limit - GR_MIN(t.d[i].limit, t.d[i].granted);
        uint64_t room = t.d[i].limit - GR_MIN(t.d[i].limit, t.d[i].used);
        if (t.d[i].limit && (room == 0 || units > free_units))
            r = refused(&t, i, units, err);
    }
    qtree_done(&t);
    return r;
}

int quota_may_create(struct vmfs *v, uint64_t dir, uint64_t units, struct gr_err *err)
{
    int r = quotas_on(v) ? may_create(v, dir, units, err) : 0;
    if (r != -GR_ENOSPACE || !units)
        return r;
    give_back(v); /* what is granted and not used */
    others_recall(v, NULL);
    return may_create(v, dir, units, err);
}

static bool is_above(const struct qtree *t, size_t i, size_t below)
{
    for (; below; below = t->d[below].parent)
        if (below == i)
            return true;
    return false;
}

/* What is below the directory at @at, or the object @id in it. */
static int moved_units(const struct qtree *t, uint64_t id, bool dir, uint64_t *ret, struct gr_err *err)
{
    struct vobj *o, *peeked;
    *ret = 0;
    for (size_t i = 0; dir && i < t->n_kept; i++)
        *ret += is_above(t, t->found, t->kept[i].dir) ? t->kept[i].units : 0;
    for (size_t i = 0; i < t->n; i++) {
        if (dir && !is_above(t, t->found, i))
            continue;
        int r = vobj_look(t->v, dir ? t->d[i].id : id, &o, &peeked, err);
        if (r < 0)
            return r;
        if (!dir) {
            *ret = quota_granted(o);
            vobj_free(peeked);
            return 0;
        }
        for (size_t k = 0; r == 0 && k < o->n_ents; k++) {
            struct vobj *x, *px;
            if (o->ents[k].type == VMFS_DIR || (r = vobj_look(t->v, o->ents[k].id, &x, &px, err)) < 0)
                continue;
            *ret += quota_granted(x);
            vobj_free(px);
        }
        vobj_free(peeked);
        if (r < 0)
            return r;
    }
    return 0;
}

static size_t dir_index(const struct qtree *t, uint64_t id)
{
    for (size_t i = 0; i < t->n; i++)
        if (t->d[i].id == id)
            return i;
    return 0;
}

int quota_may_move(struct vmfs *v, uint64_t id, bool dir, uint64_t from, uint64_t to, struct gr_err *err)
{
    struct qtree t;
    uint64_t units = 0;
    bool limited = false;
    if (!quotas_on(v) || from == to)
        return 0;
    int r = qtree_make(v, id, &t, err);
    if (r < 0)
        return r;
    limited = t.d[dir_index(&t, to)].limited;
    qtree_done(&t);
    if (!limited)
        return 0;
    give_back(v); /* what was free to grow where it is asks from now on, */
    r = others_recall(v, err); /* wherever it is held */
    if (r == 0)
        r = qtree_make(v, id, &t, err);
    if (r < 0)
        return r;
    size_t a = dir_index(&t, from), b = dir_index(&t, to);
    r = moved_units(&t, id, dir, &units, err);
    for (size_t i = b; r == 0 && i; i = t.d[i].parent)
        if (t.d[i].limit && !is_above(&t, i, a) && units > t.d[i].limit - GR_MIN(t.d[i].limit, t.d[i].granted))
            r = refused(&t, i, units, err);
    qtree_done(&t);
    return r;
}

/* ---- setting and showing ---- */
/* The namespace is locked. Hosts that do not know of quotas must not write: who has joined is asked before the volume says that there are any. */
static int switch_on(struct vmfs *v, struct gr_err *err)
{
    int r = vmfs_refresh(v, err);
    if (r < 0 || quotas_on(v))
        return r;
    r = vfeature_all_know(v, VMFS_INCOMPAT_QUOTA, "quotas", err); /* before anything is asked of one that does not */
    if (r == 0)
        r = others_recall(v, err);
    return r < 0 ? r : vfeature_on(v, VMFS_INCOMPAT_QUOTA, "quotas", err);
}

static int set_locked(struct vmfs *v, const char *path, uint64_t units, struct gr_err *err)
{
    struct vobj *dir = NULL;
    int r = ns_dir(v, path, &dir, err);
    if (r < 0 || dir->ino.quota == units)
        return r;
    if (units)
        r = switch_on(v, err);
    if (r == 0 && units) { /* who holds something below it asks, from now on */
        give_back(v);
        r = others_recall(v, err);
    }
    if (r == 0) {
        dir->ino.quota = units;
        vobj_touch(dir);
    }
    return r;
}

int vmfs_quota_set(struct vmfs *v, const char *path, uint64_t bytes, struct gr_err *err)
{
    struct vobj *root;
    struct qtree t;
    int r = vmfs_name_check(path, err);
    if (r == 0 && !*path)
        r = gr_fail(err, -EINVAL, "datastore '%s': a quota is a folder's; a datastore has the size of its devices", v->sb.name);
    if (r == 0 && bytes / VMFS_UNIT > VMFS_MAX_UNITS)
        r = gr_fail(err, -EINVAL, "folder '%s/%s': a quota of %llu bytes is more than any datastore has", v->sb.name, path, (unsigned long long)bytes);
    if (r == 0 && bytes && bytes < VMFS_BLOCK)
        r = gr_fail(err, -EINVAL, "folder '%s/%s': a quota of %llu bytes: at least %u", v->sb.name, path, (unsigned long long)bytes, VMFS_BLOCK);
    if (r == 0)
        r = vmfs_recover(v, err); /* what hosts that are gone have written counts */
    if (r >= 0)
        r = ns_begin(v, &root, err);
    if (r < 0)
        return r;
    r = ns_end(v, set_locked(v, path, bytes / VMFS_UNIT, err), err);
    if (r == 0 && qtree_make(v, 0, &t, NULL) == 0) {
        tell_all(&t);
        qtree_done(&t);
    }
    return r;
}

int vmfs_quotas(struct vmfs *v, int (*fn)(void *arg, const struct vmfs_quota *q), void *arg, struct gr_err *err)
{
    struct qtree t;
    int r = qtree_make(v, 0, &t, err);
    if (r < 0)
        return r;
    for (size_t i = 0; r >= 0 && i < t.n; i++) {
        struct vmfs_quota q = { .limit = t.d[i].limit * VMFS_UNIT, .used = t.d[i].used * VMFS_UNIT, .granted = t.d[i].granted * VMFS_UNIT };
        if (!i || !t.d[i].limit)
            continue;
        qtree_path(&t, i, q.path, sizeof q.path);
        r = fn(arg, &q);
    }
    qtree_done(&t);
    return r < 0 ? r : 0;
}
