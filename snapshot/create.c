/* Snapshots: taking, listing, finding, deleting, reverting, bookmarks. */
#include "common/seam.h"
#include "snapshot/snapshot.h"
#include "vmfs/internal.h"
#include "vmfs/notes.h"
#include "vmfs/pool.h"
#include "vmfs/rescue.h"
#include <limits.h>

static int name_ok(const char *name, struct gr_err *err)
{
    size_t n = strlen(name);
    if (n == 0 || n > VMFS_NAME_MAX)
        return gr_fail(err, -EINVAL, "a snapshot's name of %zu bytes: 1 to %u", n, VMFS_NAME_MAX);
    if (!gr_utf8_ok(name, n))
        return gr_fail(err, -EINVAL, "the snapshot's name is not valid UTF-8 or holds control characters");
    if (strpbrk(name, "/@:"))
        return gr_fail(err, -EINVAL, "snapshot name '%.80s': no '/', '@' or ':' in it", name);
    return 0;
}

static int usable(struct vmfs_disk *d, struct gr_err *err)
{
    if (!d->o || d->gone)
        return gr_fail(err, -GR_EFENCED, "'%s' is no longer ours", d->bdev.name);
    if (d->o->v->fenced)
        return gr_fail(err, -GR_EFENCED, "'%s': the datastore was given up: %s", d->bdev.name, d->o->v->fence_reason);
    return 0;
}

static int name_free(struct vmfs_disk *d, const char *name, struct gr_err *err)
{
    if (vobj_snap_named(d->o, name))
        return gr_fail(err, -EEXIST, "'%s@%s' exists already", d->bdev.name, name);
    if (vobj_bookmark_named(d->o, name))
        return gr_fail(err, -EEXIST, "'%s' has a bookmark named '%s'", d->bdev.name, name);
    return 0;
}

/* Room for a record, and nobody is changing the table of snapshots as a whole. */
static int may_record(struct vmfs_disk *d, struct gr_err *err)
{
    int r = usable(d, err);
    while (r == 0) {
        journal_room(d->o->v);
        r = usable(d, err);
        if (r < 0 || !d->o->frozen)
            break;
        gr_fqueue_wait(&d->o->drained);
        r = usable(d, err);
    }
    return r;
}

static int durable(struct vmfs_disk *d, struct gr_err *err)
{
    int r = journal_commit(d->o->v);
    return r < 0 ? gr_fail(err, r, "'%s': it is not durable: %s", d->bdev.name, d->o->v->fence_reason) : 0;
}

/* A record about one snapshot. */
static int snap_record(struct vobj *o, enum vmfs_record_type type, uint64_t id, uint64_t lineage, uint32_t value, struct gr_err *err)
{
    struct vmfs_rec_snap_disk d = { .id = gr_le64_of(id), .lineage = gr_le64_of(lineage), .value = gr_le32_of(value) };
    d.r.type = gr_le16_of((uint16_t)type);
    return record_do(o, &d, sizeof d, err);
}

/* ---- taking ---- */
static int add_record(struct vobj *o, const char *name, const uint8_t group[16], int64_t now_s, struct gr_err *err)
{
    uint8_t buf[sizeof(struct vmfs_rec_snap_disk) + VMFS_NAME_MAX + 4] = { 0 };
    struct vmfs_rec_snap_disk *d = (struct vmfs_rec_snap_disk *)buf;
    size_t n = strlen(name);
    d->r.type = gr_le16_of(VMFS_R_SNAP_ADD);
    d->created_s = gr_le64_of((uint64_t)now_s);
    d->name_len = gr_le16_of((uint16_t)n);
    memcpy(d->group, group, 16);
    memcpy(d->name, name, n);
    return record_do(o, d, (sizeof *d + n + 3) & ~3ul, err);
}

/* Thick and eager disks are promised room to overwrite all they have, or the snapshot is refused. */
static uint64_t missing_units(const struct vobj *o)
{
    return vobj_overwrite_units(o) - GR_MIN(vobj_overwrite_units(o), o->reserved_units);
}

/* Of its map, which the snapshot keeps as it is. */
static uint64_t missing_leaves(const struct vobj *o)
{
    return reserve_leaves(o, o->reserved_units + missing_units(o)) - o->reserved_leaves;
}

/* A leaf needs a run: on a datastore in splinters those there are must be kept from now on; asked for before the instant. What was kept for an earlier
 * snapshot may have been used since. */
static int promise_leaves(struct vmfs_disk *const *disks, unsigned n, struct gr_err *err)
{
    struct vmfs *v = disks[0]->o->v;
    uint64_t leaves = v->reserved_leaves, units = 0;
    for (unsigned i = 0; i < n; i++) {
        leaves += missing_leaves(disks[i]->o);
        units += vobj_overwrite_units(disks[i]->o);
    }
    if (!units || space_nodes_fit(v, leaves, false) || !v->dirty_nodes)
        return 0;
    int r = vmfs_checkpoint(v, err); /* what is dirty needs runs, too */
    (void)space_nodes_fit(v, leaves, false);
    return r;
}

/* What the disk will be promised counts for the quotas of its folders; asked for before the instant. */
static int promise_room(struct vmfs_disk *d, struct gr_err *err)
{
    uint64_t more = missing_units(d->o);
    int r = more ? quota_room(d->o, (int64_t)more, d->o->epoch) : 0;
    if (r == -GR_ENOSPACE)
        gr_fail(err, r, "'%s': a snapshot of a thick disk needs %llu bytes to overwrite, and the quota of a folder above it has not so many left",
                d->bdev.name, (unsigned long long)more * VMFS_UNIT);
    return r;
}

static uint64_t missing_all(struct vmfs_disk *const *disks, unsigned n)
{
    uint64_t more = 0;
    for (unsigned i = 0; i < n; i++)
        more += disks[i]->o ? missing_units(disks[i]->o) : 0;
    return more;
}

/* With leaves of their maps. */
static uint64_t needed_all(struct vmfs_disk *const *disks, unsigned n)
{
    uint64_t need = missing_all(disks, n);
    for (unsigned i = 0; need && i < n; i++)
        need += disks[i]->o ? missing_leaves(disks[i]->o) * leaf_units_max(disks[i]->o->v) : 0;
    return need;
}

/* What the disks will be promised is leased here, or others give it back; if they cannot, promise() says so. */
static int lease_room(struct vmfs *v, struct vmfs_disk *const *disks, unsigned n, struct gr_err *err)
{
    uint64_t need = needed_all(disks, n);
    int r = need ? space_back(v, need) : 0;
    return r == -GR_ENOSPACE || r == 0 ? 0 : gr_fail(err, r, "'%s': no room can be promised for a snapshot: %s", disks[0]->bdev.name, gr_code_text(r));
}

static int promise(struct vmfs_disk *const *disks, unsigned n, struct gr_err *err)
{
    struct vmfs *v = disks[0]->o->v;
    uint64_t more = missing_all(disks, n), need = needed_all(disks, n), leaves = 0, all = 0, room = space_promised_room(v);
    for (unsigned i = 0; i < n; i++) {
        leaves += missing_leaves(disks[i]->o);
        all += vobj_overwrite_units(disks[i]->o);
    }
    for (unsigned i = 0; i < n; i++)
        if (!quota_fits(disks[i]->o, (int64_t)missing_units(disks[i]->o)))
            return gr_fail(err, -GR_ENOSPACE, "'%s': a snapshot of a thick disk needs room to overwrite, and the quota of a folder above it has "
                           "none left", disks[i]->bdev.name);
    if (more && need > room) /* what other hosts lease is not ours to promise */
        return gr_fail(err, -GR_ENOSPACE,
                       "datastore '%s': a snapshot of thick disks needs %llu bytes to overwrite, %llu bytes are missing", v->sb.name,
                       (unsigned long long)more * VMFS_UNIT, (unsigned long long)(need - room) * VMFS_UNIT);
    if (all && !space_nodes_fit_now(v, v->reserved_leaves + leaves, false))
        return gr_fail(err, -GR_ENOSPACE,
                       "datastore '%s': after a snapshot of thick disks %llu runs of %u blocks must be there for maps, and free space is in splinters", v->sb.name,
                       (unsigned long long)(v->reserved_leaves + leaves), leaf_units_max(v));
    return 0;
}

static int may_take(struct vmfs_disk *const *disks, unsigned n, const char *name, struct gr_err *err)
{
    int r = name_ok(name, err);
    for (unsigned i = 0; r == 0 && i < n; i++) {
        r = usable(disks[i], err);
        if (r == 0)
            r = name_free(disks[i], name, err);
        if (r == 0 && disks[i]->o->v != disks[0]->o->v)
            r = gr_fail(err, -EINVAL, "'%s' and '%s' are on different datastores: no common instant", disks[0]->bdev.name, disks[i]->bdev.name);
        for (unsigned k = 0; r == 0 && k < i; k++)
            if (disks[k] == disks[i])
                r = gr_fail(err, -EINVAL, "'%s' is named twice", disks[i]->bdev.name);
    }
    return r;
}

static int note_do(struct vmfs_disk *d, const char *kind, uint64_t snap, const void *val, size_t len, struct gr_err *err)
{
    char key[33];
    int r = d->o ? vrescue_refuse(d->o->v, err) : 0;
    vobj_note_key(kind, snap, key);
    return r < 0 ? r : disk_attr_do(d, key, val, len, err);
}

/* [sync] One instant: no suspension between these records, so they are in one frame of the journal. */
static int take(struct vmfs_disk *const *disks, unsigned n, const struct snap_new *s, const uint8_t group[16], struct gr_err *err)
{
    const char *name = s->name;
    gr_le64 expires = gr_le64_of((uint64_t)s->expires_s);
    const struct gr_world *w = gr_loop_world(disks[0]->o->v->loop);
    int r = may_take(disks, n, name, err); /* again: since then others had their turn */
    if (r == 0)
        r = promise(disks, n, err);
    for (unsigned i = 0; r == 0 && i < n; i++) {
        r = add_record(disks[i]->o, name, group, w->wall_s(w->arg), err);
        if (r == 0)
            r = record_promise(disks[i]->o, err);
        if (r == 0 && s->expires_s)
            r = note_do(disks[i], VMFS_NOTE_EXPIRES, disks[i]->o->parent_snap, &expires, sizeof expires, err);
    }
    return r;
}

int snap_taken(struct vmfs_disk *const *disks, unsigned n, struct gr_err *err)
{
    for (unsigned i = 0; i < n; i++)
        if (disks[i]->o)
            disk_wait_late(disks[i]->o); /* writes that were in flight belong to it; new ones go on meanwhile */
    int r = usable(disks[0], err);
    return r == 0 ? durable(disks[0], err) : r;
}

/* Until none is being cut, reverted or held. */
static void wait_unfrozen(struct vmfs_disk *const *disks, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        if (disks[i]->o && disks[i]->o->frozen) {
            gr_fqueue_wait(&disks[i]->o->drained);
            i = UINT_MAX; /* all again */
        }
}

int snap_create(struct vmfs_disk *const *disks, unsigned n, const char *name, struct gr_err *err)
{
    return snap_create_new(disks, n, &(struct snap_new){ .name = name }, err);
}

int snap_create_new(struct vmfs_disk *const *disks, unsigned n, const struct snap_new *s, struct gr_err *err)
{
    uint8_t group[16];
    int r = may_take(disks, n, s->name, err);
    if (r < 0 || n == 0)
        return r;
    struct vmfs *v = disks[0]->o->v;
    const struct gr_world *w = gr_loop_world(v->loop);
    if (s->group)
        memcpy(group, s->group, sizeof group);
    else
        w->random(w->arg, group, sizeof group);
    for (unsigned i = 0; i < n; i++)
        if ((r = promise_room(disks[i], err)) < 0)
            return r;
    if ((r = promise_leaves(disks, n, err)) < 0)
        return r;
    for (unsigned tries = 0; tries == 0 || (tries < 3 && needed_all(disks, n) > space_promised_room(v)); tries++) { /* others may have been quicker */
        if ((r = lease_room(v, disks, n, err)) < 0)
            return r;
        journal_room(v);
        wait_unfrozen(disks, n);
    }
    r = take(disks, n, s, group, err);
    return r == 0 ? snap_taken(disks, n, err) : r;
}

/* ---- of disks that are held: part of an instant of several hosts ---- */
int snap_hold(struct vmfs_disk *const *disks, unsigned n, const char *name, struct gr_err *err)
{
    int r = may_take(disks, n, name, err);
    unsigned held = 0;
    struct vmfs *v = r == 0 && n ? disks[0]->o->v : NULL;
    for (unsigned i = 0; r == 0 && i < n; i++)
        r = promise_room(disks[i], err);
    if (r == 0 && n) {
        r = promise_leaves(disks, n, err);
        if (r == 0)
            r = lease_room(v, disks, n, err);
        if (r == 0) {
            journal_room(v);
            wait_unfrozen(disks, n);
        }
    }
    for (; r == 0 && (r = held < n ? usable(disks[held], err) : 1) == 0; held++) /* nothing suspends from here on: none is held for another */
        disks[held]->o->frozen = true;
    r = r == 1 ? 0 : r;
    if (r < 0)
        snap_resume(disks, held);
    return r;
}

void snap_resume(struct vmfs_disk *const *disks, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        if (disks[i]->o)
            disk_thaw(disks[i]->o);
}

int snap_create_held(struct vmfs_disk *const *disks, unsigned n, const struct snap_new *s, const uint8_t group[16], struct gr_err *err)
{
    int r = n ? take(disks, n, s, group, err) : 0;
    snap_resume(disks, n);
    return r;
}

int snap_rename(struct vmfs_disk *d, const char *name, const char *to, struct gr_err *err)
{
    int r = usable(d, err);
    struct vsnap *s = r == 0 ? vobj_snap_named(d->o, name) : NULL;
    if (r == 0 && !s)
        r = gr_fail(err, -ENOENT, "'%s' has no snapshot '%s'", d->bdev.name, name);
    if (r == 0)
        r = name_ok(to, err);
    if (r == 0)
        r = name_free(d, to, err);
    if (r < 0)
        return r;
    char *copy = gr_strdup(to);
    if (!copy)
        return gr_fail(err, -ENOMEM, "out of memory");
    free(s->name);
    s->name = copy;
    vobj_touch(d->o);
    return 0;
}

/* ---- looking ---- */
static unsigned pins_of(struct vobj *o, uint64_t id)
{
    struct vsnap *s = vobj_snap(o, id);
    return s ? s->open : 0;
}

static void notes_of(const struct vobj *o, uint64_t id, struct snap_info *ret)
{
    const struct vattr *p = vobj_note(o, VMFS_NOTE_PROTECTED, id), *e = vobj_note(o, VMFS_NOTE_EXPIRES, id);
    if (e && e->len == sizeof(gr_le64))
        ret->expires_s = (int64_t)gr_le64_get(*(const gr_le64 *)e->val);
    ret->protect = p != NULL;
    const struct vmfs_protected_disk *d = p && p->len >= sizeof *d ? p->val : NULL;
    if (!d)
        return;
    size_t len = p->len - sizeof *d, who = strnlen(d->text, len);
    ret->protected_s = (int64_t)gr_le64_get(d->since_s);
    snprintf(ret->protected_by, sizeof ret->protected_by, "%.*s", (int)who, d->text);
    if (who + 1 < len)
        snprintf(ret->protected_why, sizeof ret->protected_why, "%.*s", (int)(len - who - 1), d->text + who + 1);
}

static void info_of(struct vobj *o, const struct vsnap *s, struct snap_info *ret)
{
    *ret = (struct snap_info){ .id = s->id, .parent_id = s->parent, .created_s = s->created_s, .size = s->size, .clones = s->clones,
                               .current = o->parent_snap == s->id, .deleting = s->flags & VMFS_SNAP_DELETING, .pins = pins_of(o, s->id),
                               .counted = o->counted, .used = s->use.used * VMFS_UNIT, .unique = usage_unique(o, s) * VMFS_UNIT };
    notes_of(o, s->id, ret);
    snprintf(ret->name, sizeof ret->name, "%s", s->name);
    memcpy(ret->bookmark.disk, o->ino.uuid, 16);
    ret->bookmark.lineage = s->lineage;
    ret->bookmark.epoch = s->epoch;
    gr_uuid_format(s->group, ret->group);
}

static void info_of_bookmark(struct vmfs_disk *d, const struct vbookmark *m, struct snap_info *ret)
{
    *ret = (struct snap_info){ .is_bookmark = true, .created_s = m->created_s };
    snprintf(ret->name, sizeof ret->name, "%s", m->name);
    memcpy(ret->bookmark.disk, d->o->ino.uuid, 16);
    ret->bookmark.lineage = m->lineage;
    ret->bookmark.epoch = m->epoch;
}

int snap_list(struct vmfs_disk *d, int (*fn)(void *arg, const struct snap_info *info), void *arg, struct gr_err *err)
{
    struct snap_info info;
    int r = usable(d, err);
    for (size_t i = 0; r >= 0 && i < d->o->n_snaps; i++)
        if (!(d->o->snaps[i]->flags & VMFS_SNAP_HIDDEN)) {
            info_of(d->o, d->o->snaps[i], &info);
            r = fn(arg, &info);
        }
    for (size_t i = 0; r >= 0 && i < d->o->n_bookmarks; i++) {
        info_of_bookmark(d, &d->o->bookmarks[i], &info);
        r = fn(arg, &info);
    }
    return r < 0 ? r : 0;
}

int snap_list_home(struct vmfs *v, uint64_t id, int (*fn)(void *arg, const struct snap_info *info), void *arg, struct gr_err *err)
{
    struct vobj *o, *peeked;
    struct snap_info info;
    int r = vobj_look(v, id, &o, &peeked, err);
    for (size_t i = 0; r >= 0 && i < o->n_snaps; i++)
        if (!(o->snaps[i]->flags & VMFS_SNAP_HIDDEN)) {
            info_of(o, o->snaps[i], &info);
            r = fn(arg, &info);
        }
    vobj_free(peeked);
    return r < 0 ? r : 0;
}

int snap_list_kept(struct vmfs_disk *d, int (*fn)(void *arg, const struct snap_info *info), void *arg, struct gr_err *err)
{
    struct snap_info info;
    int r = usable(d, err);
    for (size_t i = 0; r >= 0 && i < d->o->n_snaps; i++)
        if ((d->o->snaps[i]->flags & VMFS_SNAP_HIDDEN) && d->o->snaps[i]->clones) {
            info_of(d->o, d->o->snaps[i], &info);
            r = fn(arg, &info);
        }
    return r < 0 ? r : 0;
}

int snap_find(struct vmfs_disk *d, const char *name, struct snap_info *ret, struct gr_err *err)
{
    int r = usable(d, err);
    if (r < 0)
        return r;
    struct vsnap *s = vobj_snap_named(d->o, name);
    struct vbookmark *m = s ? NULL : vobj_bookmark_named(d->o, name);
    if (s)
        info_of(d->o, s, ret);
    else if (m)
        info_of_bookmark(d, m, ret);
    else
        return gr_fail(err, -ENOENT, "'%s' has no snapshot '%s'", d->bdev.name, name);
    return 0;
}

/* ---- bookmarks ---- */
static int bookmark_record(struct vobj *o, const char *name, uint64_t lineage, uint64_t epoch, struct gr_err *err)
{
    uint8_t buf[sizeof(struct vmfs_rec_bookmark_disk) + VMFS_NAME_MAX + 4] = { 0 };
    struct vmfs_rec_bookmark_disk *d = (struct vmfs_rec_bookmark_disk *)buf;
    const struct gr_world *w = gr_loop_world(o->v->loop);
    size_t n = strlen(name);
    d->r.type = gr_le16_of(VMFS_R_BOOKMARK);
    d->lineage = gr_le64_of(lineage);
    d->epoch = gr_le64_of(epoch);
    d->created_s = gr_le64_of((uint64_t)w->wall_s(w->arg));
    d->name_len = gr_le16_of((uint16_t)n);
    memcpy(d->name, name, n);
    return record_do(o, d, (sizeof *d + n + 3) & ~3ul, err);
}

static struct vsnap *named(struct vmfs_disk *d, const char *name, struct gr_err *err)
{
    struct vsnap *s = vobj_snap_named(d->o, name);
    if (!s)
        gr_fail(err, -ENOENT, vobj_bookmark_named(d->o, name) ? "'%s@%s' is a bookmark, not a snapshot" : "'%s' has no snapshot '%s'",
                d->bdev.name, name);
    return s;
}

int snap_bookmark(struct vmfs_disk *d, const char *snapshot, const char *bookmark, struct gr_err *err)
{
    int r = name_ok(bookmark, err);
    if (r == 0)
        r = usable(d, err);
    if (r == 0)
        r = name_free(d, bookmark, err);
    if (r == 0)
        r = may_record(d, err);
    if (r < 0)
        return r;
    struct vsnap *s = named(d, snapshot, err);
    if (!s)
        return -ENOENT;
    r = bookmark_record(d->o, bookmark, s->lineage, s->epoch, err);
    return r < 0 ? r : durable(d, err);
}

/* ---- what is said of them ---- */
static int note_set(struct vmfs_disk *d, const char *name, const char *kind, const void *val, size_t len, struct gr_err *err)
{
    int r = may_record(d, err);
    if (r < 0)
        return r;
    struct vsnap *s = named(d, name, err);
    r = s ? note_do(d, kind, s->id, val, len, err) : -ENOENT;
    return r < 0 ? r : durable(d, err);
}

int snap_protect(struct vmfs_disk *d, const char *name, const char *by, const char *why, struct gr_err *err)
{
    const struct gr_world *w = gr_loop_world(vmfs_disk_volume(d)->loop);
    size_t who = strlen(by) + 1, len = sizeof(struct vmfs_protected_disk) + who + strlen(why);
    if (who > SNAP_WHO_MAX || strlen(why) > SNAP_WHY_MAX)
        return gr_fail(err, -GR_EUSAGE, "who protects a snapshot, and why: at most %u and %u bytes", SNAP_WHO_MAX - 1, SNAP_WHY_MAX);
    struct vmfs_protected_disk *p = gr_zalloc(len);
    if (!p)
        return gr_fail(err, -ENOMEM, "out of memory");
    p->since_s = gr_le64_of((uint64_t)w->wall_s(w->arg));
    memcpy(p->text, by, who);
    memcpy(p->text + who, why, strlen(why));
    int r = vkept_on(vmfs_disk_volume(d), err);
    if (r == 0)
        r = note_set(d, name, VMFS_NOTE_PROTECTED, p, len, err);
    free(p);
    return r;
}

int snap_unprotect(struct vmfs_disk *d, const char *name, struct gr_err *err)
{
    return note_set(d, name, VMFS_NOTE_PROTECTED, NULL, 0, err);
}

int snap_expire(struct vmfs_disk *d, const char *name, int64_t at_s, struct gr_err *err)
{
    gr_le64 at = gr_le64_of((uint64_t)at_s);
    return note_set(d, name, VMFS_NOTE_EXPIRES, &at, at_s ? sizeof at : 0, err);
}

int snap_part_of(struct vmfs_disk *d, const char *name, const char *of, struct gr_err *err)
{
    return note_set(d, name, VMFS_NOTE_PART, of, strlen(of), err);
}

void snap_text_key(uint64_t id, char ret[33])
{
    snprintf(ret, 33, SNAP_TEXT_ATTR "%llx", (unsigned long long)id);
}

/* ---- deleting ---- */
/* [sync] Is it still what somebody saw? */
static int still(const struct vmfs_disk *d, const struct vsnap *s, const struct snap_seen *seen, struct gr_err *err)
{
    struct snap_info now;
    info_of(d->o, s, &now);
    if (memcmp(now.bookmark.disk, seen->bookmark.disk, 16) != 0 || now.bookmark.lineage != seen->bookmark.lineage || now.bookmark.epoch != seen->bookmark.epoch)
        return gr_fail(err, -ESTALE, "'%s@%s' is another snapshot now", d->bdev.name, s->name);
    return now.expires_s != seen->expires_s ? gr_fail(err, -ESTALE, "when '%s@%s' expires was changed", d->bdev.name, s->name) : 0;
}

static int delete_as(struct vmfs_disk *d, const char *name, const struct snap_seen *seen, bool keep_bookmark, struct gr_err *err)
{
    int r = may_record(d, err);
    if (r < 0)
        return r;
    if (!seen && vobj_bookmark_named(d->o, name)) {
        if (keep_bookmark)
            return gr_fail(err, -EEXIST, "'%s@%s' is a bookmark already", d->bdev.name, name);
        r = bookmark_record(d->o, name, 0, 0, err);
        return r < 0 ? r : durable(d, err);
    }
    struct vsnap *s = named(d, name, err);
    if (!s)
        return -ENOENT;
    r = vobj_protected(d->o, s, d->bdev.name, err);
    if (r == 0 && seen)
        r = still(d, s, seen, err);
    if (r == 0 && keep_bookmark)
        r = bookmark_record(d->o, name, s->lineage, s->epoch, err);
    if (r == 0 && vobj_note(d->o, VMFS_NOTE_EXPIRES, s->id))
        r = note_do(d, VMFS_NOTE_EXPIRES, s->id, NULL, 0, err);
    if (r == 0 && vobj_note(d->o, VMFS_NOTE_PART, s->id))
        r = note_do(d, VMFS_NOTE_PART, s->id, NULL, 0, err);
    if (r == 0)
        r = snap_record(d->o, VMFS_R_SNAP_FLAGS, s->id, 0, VMFS_SNAP_HIDDEN | VMFS_SNAP_DELETING, err);
    if (r == 0)
        r = durable(d, err);
    if (r == 0)
        reap_kick(d->o);
    return r;
}

int snap_delete(struct vmfs_disk *d, const char *name, bool keep_bookmark, struct gr_err *err)
{
    return delete_as(d, name, NULL, keep_bookmark, err);
}

int snap_delete_seen(struct vmfs_disk *d, const char *name, const struct snap_seen *seen, struct gr_err *err)
{
    return delete_as(d, name, seen, false, err);
}

int snap_settle(struct vmfs_disk *d, struct gr_err *err)
{
    int r = usable(d, err);
    while (r == 0 && reap_pending(d->o)) {
        reap_kick(d->o);
        gr_fqueue_wait(&d->o->settled);
        r = usable(d, err);
        if (r == 0 && !d->o->walker && d->o->reap_error < 0)
            r = gr_fail(err, d->o->reap_error, "'%s': a deleted snapshot cannot be given back: %s", d->bdev.name, gr_code_text(d->o->reap_error));
    }
    return r < 0 ? r : vmfs_checkpoint(d->o->v, err);
}

/* ---- reverting ---- */
/* What is missing of the room to overwrite all of a thick disk as it was at @s: beside what it is promised already and what its head of now will give
 * back, for what that let go of before may be somebody else's. With leaves of the map. */
static uint64_t needed_then(const struct vobj *o, const struct vsnap *s)
{
    uint64_t units = o->ino.provision == VMFS_THIN ? 0 : (s->size + VMFS_PIECE - 1) / VMFS_PIECE, leaves = (units + VMFS_LEAF_PIECES - 1) / VMFS_LEAF_PIECES;
    uint64_t has = o->reserved_units + (o->counted ? o->use.own : 0), more = units - GR_MIN(units, has);
    return more ? more + (leaves - GR_MIN(leaves, o->reserved_leaves)) * leaf_units_max(o->v) : 0;
}

/* [sync] */
static int promise_then(const struct vmfs_disk *d, const struct vsnap *s, struct gr_err *err)
{
    uint64_t need = needed_then(d->o, s), room = need ? space_promised_room(d->o->v) : 0;
    return need <= room ? 0 : gr_fail(err, -GR_ENOSPACE, "'%s': what it was at '%s' needs %llu bytes more to overwrite, as a thick disk is promised, and %llu bytes are missing",
                                      d->bdev.name, s->name, (unsigned long long)need * VMFS_UNIT, (unsigned long long)(need - room) * VMFS_UNIT);
}

int snap_revert(struct vmfs_disk *d, const char *name, struct gr_err *err)
{
    int r = usable(d, err);
    if (r < 0)
        return r;
    struct vobj *o = d->o;
    const struct gr_world *w = gr_loop_world(o->v->loop);
    uint64_t lineage, old_size = o->ino.size;
    w->random(w->arg, &lineage, sizeof lineage);
    journal_room(o->v);
    struct vsnap *s = named(d, name, err);
    if (!s)
        return -ENOENT;
    if (needed_then(o, s))
        (void)space_back(o->v, needed_then(o, s)); /* what others lease is not ours to promise */
    if ((r = usable(d, err)) < 0) /* others were asked, and that may take a while */
        return r;
    if (vobj_template(o))
        return gr_fail(err, -GR_EREADONLY, "'%s' is a template (granary disk set --template off makes it a disk like any other)", d->bdev.name);
    disk_freeze(o);
    s = named(d, name, err);
    r = s ? promise_then(d, s, err) : -ENOENT;
    if (r == 0)
        r = snap_record(o, VMFS_R_REVERT, s->id, lineage, 0, err);
    if (r == 0) { /* before anybody can see the bytes of then */
        gr_bdev_event(&d->bdev, GR_EVENT_REVERTED);
        if (o->ino.size != old_size)
            gr_bdev_event(&d->bdev, GR_EVENT_RESIZED);
        r = record_promise(o, err); /* of a thick disk all is to be overwritten anew: in place of what it has let go of */
    }
    disk_thaw(o);
    if (r == 0)
        r = durable(d, err);
    if (r == 0)
        reap_kick(o);
    return r;
}
