/* Disks that were removed while clones start at their snapshots: they are among the dying, all their trees are deleted snapshots, and of those
 * the ones that clones need wait (reap.c). Nobody holds them meanwhile. What they were called is an attribute, for people, and the folder they lay in
 * another, for its quota. */
#include "vmfs/internal.h"
#include "vmfs/notes.h"

#define ATTR "removed-as"
#define FOLDER "removed-from"

static bool has_clones(const struct vobj *o)
{
    for (size_t i = 0; i < o->n_snaps; i++)
        if (o->snaps[i]->clones)
            return true;
    return false;
}

int hidden_allowed(struct vobj *o, struct gr_err *err)
{
    return has_clones(o) && !(o->v->sb.incompat & VMFS_INCOMPAT_KEPT) ? vfeature_on(o->v, VMFS_INCOMPAT_KEPT, VKEPT_WHAT, err) : 0;
}

int hidden_name(struct vobj *o, const char *path, uint64_t folder, struct gr_err *err)
{
    gr_le64 id = gr_le64_of(folder);
    if (!has_clones(o))
        return 0;
    if (vobj_attr_put(o, ATTR, strlen(ATTR), path, strlen(path)) < 0 || vobj_attr_put(o, FOLDER, strlen(FOLDER), &id, sizeof id) < 0)
        return gr_fail(err, -ENOMEM, "out of memory");
    vobj_touch(o);
    return 0;
}

static void name_of(const struct vobj *o, char ret[VMFS_PATH_MAX + 1])
{
    ret[0] = 0;
    for (size_t i = 0; i < o->n_attrs; i++)
        if (strcmp(o->attrs[i].key, ATTR) == 0 && o->attrs[i].len <= VMFS_PATH_MAX) {
            memcpy(ret, o->attrs[i].val, o->attrs[i].len);
            ret[o->attrs[i].len] = 0;
        }
}

uint64_t hidden_from(const struct vobj *o, char ret_path[VMFS_PATH_MAX + 1])
{
    name_of(o, ret_path);
    for (size_t i = 0; i < o->n_attrs; i++)
        if (strcmp(o->attrs[i].key, FOLDER) == 0 && o->attrs[i].len == sizeof(gr_le64))
            return gr_le64_get(*(const gr_le64 *)o->attrs[i].val);
    return 0;
}

int vmfs_hidden(struct vmfs *v, int (*fn)(void *arg, const char *name, const struct vmfs_stat *st), void *arg, struct gr_err *err)
{
    struct vobj *dying;
    int r = vobj_peek(v, VMFS_INODE_DYING, &dying, err);
    if (r < 0)
        return r;
    for (size_t i = 0; r >= 0 && i < dying->n_ents; i++) {
        struct vobj *o, *peeked;
        struct vmfs_stat st;
        char name[VMFS_PATH_MAX + 1] = "";
        if (dying->ents[i].type != VMFS_DISK || vobj_look(v, dying->ents[i].id, &o, &peeked, NULL) < 0)
            continue; /* it may have gone meanwhile */
        vobj_stat(o, &st);
        name_of(o, name);
        vobj_free(peeked);
        if (name[0])
            r = fn(arg, name, &st);
    }
    vobj_free(dying);
    return r < 0 ? r : 0;
}

int vmfs_origin(struct vmfs *v, uint64_t id, uint64_t snapshot, struct vmfs_origin *ret, struct gr_err *err)
{
    struct vobj *o, *peeked;
    int r = vobj_look(v, id, &o, &peeked, err);
    if (r < 0)
        return r;
    const struct vsnap *s = vobj_snap(o, snapshot);
    *ret = (struct vmfs_origin){ .snapshot_removed = !s || (s->flags & VMFS_SNAP_HIDDEN) };
    name_of(o, ret->name);
    ret->removed = ret->name[0];
    if (s)
        snprintf(ret->snapshot, sizeof ret->snapshot, "%s", s->name);
    vobj_free(peeked);
    return 0;
}
