/* Directories: every entry names an object that exists, every object has exactly one entry. Links between objects: clones,
 * snapshots, counters. */
#include "common/seam.h"
#include "vmfs/check.h"

static int by_index(const void *key, const void *elem)
{
    uint32_t a = *(const uint32_t *)key, b = (uint32_t)((const struct chk_obj *)elem)->id;
    return a < b ? -1 : a > b;
}

struct chk_obj *chk_find(struct chk *c, uint64_t id)
{
    uint32_t index = (uint32_t)id;
    struct chk_obj *o = c->n_objs ? bsearch(&index, c->objs, c->n_objs, sizeof *c->objs, by_index) : NULL;
    return o && o->id == id ? o : NULL;
}

struct chk_snap *chk_snap(struct chk_obj *o, uint64_t id)
{
    for (size_t i = 0; o && id && i < o->n_snaps; i++)
        if (o->snaps[i].id == id)
            return &o->snaps[i];
    return NULL;
}

/* ---- names ---- */
static void entries_follow(struct chk *c, struct chk_obj *dir, struct chk_obj **queue, size_t *n)
{
    for (size_t i = 0; i < dir->n_ents; i++) {
        const struct chk_ent *e = &dir->ents[i];
        struct chk_obj *o = chk_find(c, e->id);
        if (!o && chk_damaged(c, e->id)) {
            chk_error(c, "directory %llu: an entry names object %llu, of which the inode cannot be read", (unsigned long long)dir->id,
                      (unsigned long long)e->id);
            continue;
        }
        if (!o) {
            chk_error(c, "directory %llu: an entry names object %llu, which does not exist", (unsigned long long)dir->id, (unsigned long long)e->id);
            chk_fix(c, (struct chk_fix){ .kind = CHK_FIX_ENTRY, .id = dir->id, .value = e->id });
            continue;
        }
        if (o->type != e->type) {
            chk_error(c, "directory %llu: object %llu has type %u, its entry says %u", (unsigned long long)dir->id, (unsigned long long)e->id,
                      o->type, e->type);
            chk_fix(c, (struct chk_fix){ .kind = CHK_FIX_TYPE, .id = dir->id, .value = e->id, .n = o->type });
        }
        if (o->id == VMFS_INODE_ROOT || o->id == VMFS_INODE_DYING) {
            chk_error(c, "directory %llu: an entry names object %llu, which has no name", (unsigned long long)dir->id, (unsigned long long)e->id);
            continue;
        }
        if (o->links++ == 0 && o->type == VMFS_DIR)
            queue[(*n)++] = o;
    }
}

static bool names(const struct chk_obj *dir, uint64_t id)
{
    for (size_t i = 0; i < dir->n_ents; i++)
        if (dir->ents[i].id == id)
            return true;
    return false;
}

/* Does a directory that has no name itself name it? Then it gets its name with that one. Of directories that name each other in a circle the
 * one with the lowest number counts as the first. */
static bool below_unnamed(struct chk *c, const struct chk_obj *o)
{
    for (size_t i = 0; i < c->n_objs; i++) {
        const struct chk_obj *d = &c->objs[i];
        if (d->type != VMFS_DIR || d->links || d == o || d->id == VMFS_INODE_ROOT || d->id == VMFS_INODE_DYING)
            continue;
        for (size_t k = 0; k < d->n_ents; k++)
            if (d->ents[k].id == o->id && (o->type != VMFS_DIR || d->id < o->id || !names(o, d->id)))
                return true;
    }
    return false;
}

void chk_names(struct chk *c)
{
    struct chk_obj **queue = gr_alloc((c->n_objs + 2) * sizeof *queue);
    size_t n = 0;
    if (!queue) {
        chk_nomem(c);
        return;
    }
    for (uint64_t id = VMFS_INODE_ROOT; id <= VMFS_INODE_DYING; id++) {
        struct chk_obj *o = chk_find(c, id);
        if (o && o->type == VMFS_DIR)
            queue[n++] = o;
        else
            chk_error(c, "object %llu: the %s directory is missing", (unsigned long long)id, id == VMFS_INODE_ROOT ? "root" : "dying objects'");
    }
    for (size_t i = 0; i < n; i++)
        entries_follow(c, queue[i], queue, &n);
    for (size_t i = 0; i < c->n_objs; i++) {
        struct chk_obj *o = &c->objs[i];
        if (o->id != VMFS_INODE_ROOT && o->id != VMFS_INODE_DYING && o->links != 1)
            chk_error(c, "object %llu: %u directory entries name it, one should", (unsigned long long)o->id, o->links);
        if (o->id != VMFS_INODE_ROOT && o->id != VMFS_INODE_DYING && o->links == 0 && !below_unnamed(c, o))
            chk_fix(c, (struct chk_fix){ .kind = CHK_FIX_UNNAMED, .id = o->id, .n = o->type });
    }
    free(queue);
}

#define LOST_NAMES 32u /* a name is looked for in all folders */

void chk_lost(struct chk *c)
{
    uint64_t n = 0;
    for (size_t i = 0; i < c->n_objs; i++) {
        char name[VMFS_PATH_MAX + 80];
        if (!c->objs[i].lost || n++ >= LOST_NAMES)
            continue;
        vobj_name(c->v, c->objs[i].id, name, sizeof name);
        chk_note(c, "'%s' has lost writes with a device, and refuses all but reads: 'granary datastore accept-loss %s' uses it again", name, name);
    }
    if (n > LOST_NAMES)
        chk_note(c, "%llu more have lost writes with a device", (unsigned long long)(n - LOST_NAMES));
}

bool chk_damaged(const struct chk *c, uint64_t id)
{
    for (size_t i = 0; i < c->n_damaged; i++)
        if (c->damaged[i] == (uint32_t)id)
            return true;
    return false;
}

/* ---- links ---- */
static void snaps_check(struct chk *c, struct chk_obj *o)
{
    uint32_t listed = 0;
    for (size_t i = 0; i < o->n_snaps; i++) {
        struct chk_snap *s = &o->snaps[i], *p = chk_snap(o, s->parent);
        unsigned long long id = o->id, sid = s->id;
        listed += !(s->flags & VMFS_SNAP_HIDDEN);
        if (s->parent && !p)
            chk_error(c, "object %llu, snapshot %llu: grew from snapshot %llu, which does not exist", id, sid, (unsigned long long)s->parent);
        if (p && (p->id >= s->id || p->epoch >= s->epoch))
            chk_error(c, "object %llu, snapshot %llu: grew from a newer one", id, sid);
        if (s->epoch >= o->epoch || (o->origin_object && s->epoch <= o->origin_epoch))
            chk_error(c, "object %llu, snapshot %llu: epoch %llu is not in the past of the disk", id, sid, (unsigned long long)s->epoch);
        for (size_t k = 0; k < i; k++)
            if (o->snaps[k].id == s->id || o->snaps[k].epoch == s->epoch)
                chk_error(c, "object %llu, snapshot %llu: another one has the same number or epoch", id, sid);
    }
    if (listed != o->n_snapshots) {
        chk_error(c, "object %llu: the inode says %u snapshots, there are %u", (unsigned long long)o->id, o->n_snapshots, listed);
        chk_fix(c, (struct chk_fix){ .kind = CHK_FIX_SNAPSHOTS, .id = o->id });
    }
    if (o->parent_snap && !chk_snap(o, o->parent_snap))
        chk_error(c, "object %llu: grew from snapshot %llu, which does not exist", (unsigned long long)o->id, (unsigned long long)o->parent_snap);
}

static void origin_check(struct chk *c, struct chk_obj *o)
{
    struct chk_obj *p = chk_find(c, o->origin_object);
    struct chk_snap *s = chk_snap(p, o->origin_snap);
    unsigned long long id = o->id;
    if (s) {
        s->clones_found++;
        if (s->epoch != o->origin_epoch)
            chk_error(c, "object %llu: clone of epoch %llu, its snapshot has %llu", id, (unsigned long long)o->origin_epoch, (unsigned long long)s->epoch);
        if ((s->flags & VMFS_SNAP_DELETING) && s->cursor)
            chk_error(c, "object %llu: the snapshot it is a clone of is being given back", id);
    } else if (!p || !p->bad) {
        chk_error(c, "object %llu: clone of object %llu, snapshot %llu, which does not exist", id, (unsigned long long)o->origin_object,
                  (unsigned long long)o->origin_snap);
    }
    if (o->epoch <= o->origin_epoch)
        chk_error(c, "object %llu: its epoch %llu is not newer than its origin's %llu", id, (unsigned long long)o->epoch,
                  (unsigned long long)o->origin_epoch);
}

/* A clone of itself, over however many steps: nothing could be walked. */
static bool circular(struct chk *c, const struct chk_obj *start)
{
    const struct chk_obj *o = start;
    for (size_t n = 0; n <= c->n_objs; n++) {
        if (!o->origin_object)
            return false;
        o = chk_find(c, o->origin_object);
        if (!o)
            return false;
    }
    return true;
}

void chk_links(struct chk *c)
{
    for (size_t i = 0; i < c->n_objs; i++) {
        struct chk_obj *o = &c->objs[i];
        if (o->type == VMFS_DIR || o->bad)
            continue;
        if (circular(c, o)) {
            chk_error(c, "object %llu: is a clone of itself", (unsigned long long)o->id);
            o->origin_object = 0;
        }
        snaps_check(c, o);
        if (o->origin_object)
            origin_check(c, o);
    }
    for (size_t i = 0; i < c->n_objs; i++)
        for (size_t k = 0; k < c->objs[i].n_snaps; k++) {
            const struct chk_snap *s = &c->objs[i].snaps[k];
            if (s->clones == s->clones_found)
                continue;
            chk_error(c, "object %llu, snapshot %llu: counts %u clones, there are %u", (unsigned long long)c->objs[i].id,
                      (unsigned long long)s->id, s->clones, s->clones_found);
            chk_fix(c, (struct chk_fix){ .kind = CHK_FIX_CLONES, .id = c->objs[i].id, .n = s->id, .value = s->clones_found });
        }
}
