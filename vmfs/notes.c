/* What is said of snapshots: attributes of their disk, so they are changed by records and go where the disk goes. */
#include "vmfs/internal.h"
#include "vmfs/notes.h"
#include <time.h>

void vobj_note_key(const char *kind, uint64_t snap, char ret[33])
{
    snprintf(ret, 33, "%s-%llx", kind, (unsigned long long)snap);
}

const struct vattr *vobj_note(const struct vobj *o, const char *kind, uint64_t snap)
{
    char key[33];
    vobj_note_key(kind, snap, key);
    return vobj_attr(o, key);
}

int vkept_on(struct vmfs *v, struct gr_err *err)
{
    struct vobj *root;
    int r = v->sb.incompat & VMFS_INCOMPAT_KEPT ? 1 : ns_begin(v, &root, err);
    return r < 0 ? r : r == 1 ? 0 : ns_end(v, vfeature_on(v, VMFS_INCOMPAT_KEPT, VKEPT_WHAT, err), err);
}

int vobj_protected(const struct vobj *o, const struct vsnap *s, const char *disk, struct gr_err *err)
{
    const struct vattr *a = vobj_note(o, VMFS_NOTE_PROTECTED, s->id);
    const struct vmfs_protected_disk *d = a && a->len >= sizeof *d ? a->val : NULL;
    char since[32] = "?";
    if (!a)
        return 0;
    size_t len = d ? a->len - sizeof *d : 0, who = d ? strnlen(d->text, len) : 0;
    time_t t = d ? (time_t)gr_le64_get(d->since_s) : 0;
    struct tm tm;
    if (d && gmtime_r(&t, &tm))
        strftime(since, sizeof since, "%Y-%m-%d %H:%M:%S UTC", &tm);
    int why = who + 1 < len ? (int)(len - who - 1) : 0;
    return gr_fail(err, -GR_ELOCKED, "'%s@%s' is protected by %.*s since %s%s%.*s (granary snapshot unprotect)", disk, s->name, (int)who, d ? d->text : "",
                   since, why ? ": " : "", why, why ? d->text + who + 1 : "");
}

#define HEIR "heir-of"
#define HEIR_MAX 64u
bool vobj_was_of(const struct vobj *o, uint64_t object)
{
    for (size_t i = 0; i < o->n_attrs; i++)
        for (size_t k = 0; strcmp(o->attrs[i].key, HEIR) == 0 && k < o->attrs[i].len / sizeof(gr_le64); k++)
            if (gr_le64_get(((const gr_le64 *)o->attrs[i].val)[k]) == object)
                return true;
    return false;
}

static void heir_add(const struct vobj *o, uint64_t object, gr_le64 *all, size_t *n)
{
    for (size_t i = 0; i < o->n_attrs; i++)
        for (size_t k = 0; strcmp(o->attrs[i].key, HEIR) == 0 && k < o->attrs[i].len / sizeof(gr_le64) && *n < HEIR_MAX; k++)
            if (gr_le64_get(((const gr_le64 *)o->attrs[i].val)[k]) != object)
                all[(*n)++] = ((const gr_le64 *)o->attrs[i].val)[k];
}

int vobj_heir_of(struct vobj *o, const struct vobj *from)
{
    gr_le64 all[HEIR_MAX] = { gr_le64_of(from->id) }; /* the newest; a reader that pinned as many changes of places ago has long ended */
    size_t n = 1;
    heir_add(from, from->id, all, &n); /* its snapshots may have come to it in the same way */
    heir_add(o, from->id, all, &n);
    return vobj_attr_put(o, HEIR, strlen(HEIR), all, n * sizeof all[0]);
}
