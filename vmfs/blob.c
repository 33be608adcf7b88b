/* Object blobs: what an inode says of a directory's entries, or of a disk's tree, snapshots, lineages, bookmarks, attributes. */
#include "common/seam.h"
#include "vmfs/loss.h"

static void ptr_put(const struct mchild *c, struct vmfs_ptr_disk *d)
{
    const struct mptr *p = c->mem ? &c->mem->ptr : &c->ptr;
    d->addr = gr_le64_of(p->addr);
    d->birth = gr_le64_of(p->birth << 16 | p->units);
}
static void ptr_get(const struct vmfs_ptr_disk *d, struct mchild *c)
{
    uint64_t b = gr_le64_get(d->birth);
    c->mem = NULL;
    c->ptr.addr = gr_le64_get(d->addr);
    c->ptr.birth = b >> 16;
    c->ptr.units = b & 0xffff;
}

static int dir_encode(const struct vobj *o, struct gr_buf *b)
{
    if (o->has_posix) {
        struct vmfs_posix_disk p;
        struct vmfs_dirent_disk d = { .name_len = gr_le16_of(sizeof p) };
        vposix_put(&o->posix, &p);
        if (gr_buf_add(b, &d, sizeof d) < 0 || gr_buf_add(b, &p, sizeof p) < 0)
            return -ENOMEM;
    }
    for (size_t i = 0; i < o->n_ents; i++) {
        const struct vdirent *e = &o->ents[i];
        size_t n = strlen(e->name);
        struct vmfs_dirent_disk d = { gr_le64_of(e->id), gr_le16_of(e->type), gr_le16_of((uint16_t)n) };
        if (gr_buf_add(b, &d, sizeof d) < 0 || gr_buf_add(b, e->name, n) < 0)
            return -ENOMEM;
    }
    return 0;
}

static int snap_encode(const struct vsnap *s, struct gr_buf *b)
{
    size_t n = strlen(s->name);
    struct vmfs_snap_disk d = { .id = gr_le64_of(s->id), .parent = gr_le64_of(s->parent), .epoch = gr_le64_of(s->epoch),
                                .lineage = gr_le64_of(s->lineage), .size = gr_le64_of(s->size), .level = gr_le32_of(s->tree.level),
                                .flags = gr_le32_of(s->flags), .cursor = gr_le64_of(s->cursor),
                                .created_s = gr_le64_of((uint64_t)s->created_s), .clones = gr_le32_of(s->clones),
                                .name_len = gr_le16_of((uint16_t)n) };
    ptr_put(&s->tree.root, &d.root);
    memcpy(d.group, s->group, 16);
    return gr_buf_add(b, &d, sizeof d) < 0 || gr_buf_add(b, s->name, n) < 0 ? -ENOMEM : 0;
}

static int usage_encode(const struct vusage *u, uint64_t passed, struct gr_buf *b)
{
    struct vmfs_usage_disk d = { gr_le64_of(u->used), gr_le64_of(u->own), gr_le64_of(u->lost), gr_le64_of(passed) };
    return gr_buf_add(b, &d, sizeof d);
}

int vobj_blob_encode(const struct vobj *o, struct gr_buf *b)
{
    if (o->ino.type == VMFS_DIR)
        return dir_encode(o, b);
    struct vmfs_content_disk c = { .epoch = gr_le64_of(o->epoch), .lineage = gr_le64_of(o->lineage), .parent_snap = gr_le64_of(o->parent_snap),
                                   .next_snap = gr_le64_of(o->next_snap), .level = gr_le32_of(o->live.level),
                                   .flags = gr_le32_of((o->copied ? VMFS_CONTENT_COPIED : 0) | (o->counted ? VMFS_CONTENT_COUNTED : 0)), .origin_object = gr_le64_of(o->origin_object), .origin_snap = gr_le64_of(o->origin_snap),
                                   .origin_epoch = gr_le64_of(o->origin_epoch), .reserved_units = gr_le64_of(o->reserved_units),
                                   .n_snaps = gr_le32_of((uint32_t)o->n_snaps), .n_lineages = gr_le32_of((uint32_t)o->n_lineages),
                                   .n_bookmarks = gr_le32_of((uint32_t)o->n_bookmarks), .n_attrs = gr_le32_of((uint32_t)o->n_attrs) };
    int r = 0;
    ptr_put(&o->live.root, &c.root);
    r |= gr_buf_add(b, &c, sizeof c);
    r |= gr_buf_reserve(b, o->n_snaps * (sizeof(struct vmfs_snap_disk) + sizeof(struct vmfs_usage_disk) + 32)); /* names are longer at times */
    for (size_t i = 0; i < o->n_snaps; i++) {
        for (size_t at = 0; i + 8 < o->n_snaps && at < sizeof *o->snaps[0]; at += 64)
            __builtin_prefetch((const char *)o->snaps[i + 8] + at); /* they lie here and there in memory, and a capture waits for each */
        if (i + 4 < o->n_snaps)
            __builtin_prefetch(o->snaps[i + 4]->name);
        r |= snap_encode(o->snaps[i], b);
    }
    for (size_t i = 0; i < o->n_lineages; i++) {
        struct vmfs_lineage_disk d = { gr_le64_of(o->lineages[i].lineage), gr_le64_of(o->lineages[i].parent), gr_le64_of(o->lineages[i].epoch) };
        r |= gr_buf_add(b, &d, sizeof d);
    }
    for (size_t i = 0; i < o->n_bookmarks; i++) {
        const struct vbookmark *m = &o->bookmarks[i];
        struct vmfs_bookmark_disk d = { gr_le64_of(m->lineage), gr_le64_of(m->epoch), gr_le64_of((uint64_t)m->created_s),
                                        gr_le16_of((uint16_t)strlen(m->name)) };
        r |= gr_buf_add(b, &d, sizeof d) | gr_buf_add(b, m->name, strlen(m->name));
    }
    for (size_t i = 0; i < o->n_attrs; i++) {
        const struct vattr *a = &o->attrs[i];
        struct vmfs_attr_disk d = { gr_le16_of((uint16_t)strlen(a->key)), gr_le16_of(0), gr_le32_of((uint32_t)a->len) };
        r |= gr_buf_add(b, &d, sizeof d) | gr_buf_add(b, a->key, strlen(a->key)) | gr_buf_add(b, a->val, a->len);
    }
    for (size_t i = 0; o->counted && i < o->n_snaps; i++)
        r |= usage_encode(&o->snaps[i]->use, o->snaps[i]->passed, b);
    if (o->counted)
        r |= usage_encode(&o->use, 0, b);
    return r ? -ENOMEM : 0;
}

struct cursor {
    const uint8_t *p;
    size_t left;
};
static const void *take(struct cursor *c, size_t n)
{
    const void *p = c->p;
    if (n > c->left)
        return NULL;
    c->p += n;
    c->left -= n;
    return p;
}
static char *take_text(struct cursor *c, size_t n, bool may_be_empty)
{
    const char *t = take(c, n);
    if (!t || (n == 0 && !may_be_empty) || n > VMFS_NAME_MAX || !gr_utf8_ok(t, n))
        return NULL;
    char *s = gr_alloc(n + 1);
    if (s) {
        memcpy(s, t, n);
        s[n] = 0;
    }
    return s;
}
static int bad(const struct vobj *o, const char *what, struct gr_err *err)
{
    return gr_fail(err, -GR_ECORRUPT, "object %llu: rule 7: its blob has a wrong %s", (unsigned long long)o->id, what);
}

static int dir_decode(struct vobj *o, struct cursor *c, struct gr_err *err)
{
    while (c->left) {
        const struct vmfs_dirent_disk *d = take(c, sizeof *d);
        if (!d)
            return bad(o, "directory entry", err);
        if (gr_le16_get(d->type) == 0) {
            const struct vmfs_posix_disk *p = gr_le16_get(d->name_len) == sizeof *p && !o->has_posix && !o->n_ents ? take(c, sizeof *p) : NULL;
            if (!p || !(o->v->sb.incompat & VMFS_INCOMPAT_FILES) || !vposix_get(p, &o->posix))
                return bad(o, "owner", err);
            o->has_posix = true;
            continue;
        }
        if (o->n_ents == o->cap_ents) {
            size_t cap = o->cap_ents ? o->cap_ents * 2 : 16;
            struct vdirent *e = gr_realloc(o->ents, cap * sizeof *e);
            if (!e)
                return gr_fail(err, -ENOMEM, "out of memory");
            o->ents = e;
            o->cap_ents = cap;
        }
        struct vdirent e = { gr_le64_get(d->id), gr_le16_get(d->type), take_text(c, gr_le16_get(d->name_len), false) };
        if (!e.name || strchr(e.name, '/') || e.type < VMFS_DIR || e.type > VMFS_DISK) {
            free(e.name);
            return bad(o, "directory entry", err);
        }
        o->ents[o->n_ents++] = e;
    }
    return 0;
}

/* Rule 7; its root is where it lies now. */
static bool tree_ok(const struct vobj *o, struct mtree *t)
{
    struct mptr *p = &t->root.ptr;
    if (t->level < 1 || t->level > VMFS_MAX_LEVEL || (p->addr && (p->units != 1 || !space_addr_ok(o->v, p->addr, 1))))
        return false;
    return p->addr == 0 || (p->addr = moved_addr(o->v, p->addr, 1, NULL)) != 0;
}

static int snaps_decode(struct vobj *o, struct cursor *c, uint32_t n, struct gr_err *err)
{
    if (n > c->left / sizeof(struct vmfs_snap_disk))
        return bad(o, "number of snapshots", err);
    o->snaps = gr_zalloc((n + 1) * sizeof *o->snaps);
    if (!o->snaps)
        return gr_fail(err, -ENOMEM, "out of memory");
    for (uint32_t i = 0; i < n; i++) {
        const struct vmfs_snap_disk *d = take(c, sizeof *d);
        struct vsnap *s = d ? gr_zalloc(sizeof *s) : NULL;
        if (!s)
            return bad(o, "snapshot", err);
        o->snaps[o->n_snaps++] = s;
        s->id = gr_le64_get(d->id);
        s->parent = gr_le64_get(d->parent);
        s->epoch = gr_le64_get(d->epoch);
        s->lineage = gr_le64_get(d->lineage);
        s->size = gr_le64_get(d->size);
        ptr_get(&d->root, &s->tree.root);
        s->tree.level = (uint8_t)gr_le32_get(d->level);
        s->flags = gr_le32_get(d->flags);
        s->cursor = gr_le64_get(d->cursor);
        s->created_s = (int64_t)gr_le64_get(d->created_s);
        s->clones = gr_le32_get(d->clones);
        memcpy(s->group, d->group, 16);
        s->name = take_text(c, gr_le16_get(d->name_len), true);
        if (!s->name || s->size > VMFS_DISK_MAX || !tree_ok(o, &s->tree) || s->id == 0 || s->id >= o->next_snap || s->parent >= s->id ||
            s->epoch >= o->epoch)
            return bad(o, "snapshot", err);
    }
    return 0;
}

static int bookmarks_decode(struct vobj *o, struct cursor *c, uint32_t n, struct gr_err *err)
{
    if (n > c->left / sizeof(struct vmfs_bookmark_disk))
        return bad(o, "number of bookmarks", err);
    o->bookmarks = gr_zalloc((n + 1) * sizeof *o->bookmarks);
    if (!o->bookmarks)
        return gr_fail(err, -ENOMEM, "out of memory");
    for (uint32_t i = 0; i < n; i++) {
        const struct vmfs_bookmark_disk *d = take(c, sizeof *d);
        if (!d)
            return bad(o, "bookmark", err);
        struct vbookmark m = { gr_le64_get(d->lineage), gr_le64_get(d->epoch), (int64_t)gr_le64_get(d->created_s), NULL };
        m.name = take_text(c, gr_le16_get(d->name_len), false);
        if (!m.name)
            return bad(o, "bookmark", err);
        o->bookmarks[o->n_bookmarks++] = m;
    }
    return 0;
}

static int attrs_decode(struct vobj *o, struct cursor *c, uint32_t n, struct gr_err *err)
{
    if (n > c->left / sizeof(struct vmfs_attr_disk))
        return bad(o, "number of attributes", err);
    o->attrs = gr_zalloc((n + 1) * sizeof *o->attrs);
    if (!o->attrs)
        return gr_fail(err, -ENOMEM, "out of memory");
    for (uint32_t i = 0; i < n; i++) {
        const struct vmfs_attr_disk *d = take(c, sizeof *d);
        if (!d)
            return bad(o, "attribute", err);
        size_t len = gr_le32_get(d->val_len);
        struct vattr a = { take_text(c, gr_le16_get(d->key_len), false), NULL, len };
        const void *val = a.key ? take(c, len) : NULL;
        if (val)
            a.val = gr_alloc(len + 1);
        if (!a.val) {
            free(a.key);
            return bad(o, "attribute", err);
        }
        memcpy(a.val, val, len);
        o->attrs[o->n_attrs++] = a;
    }
    vobj_attrs_sort(o); /* older releases have them in any order */
    vobj_attrs_seen(o);
    return 0;
}

static int usage_decode(struct cursor *c, struct vusage *ret, uint64_t *ret_passed)
{
    const struct vmfs_usage_disk *d = take(c, sizeof *d);
    if (!d)
        return -GR_ECORRUPT;
    *ret = (struct vusage){ gr_le64_get(d->used), gr_le64_get(d->own), gr_le64_get(d->lost) };
    *ret_passed = gr_le64_get(d->passed);
    return 0;
}

static int usages_decode(struct vobj *o, struct cursor *c, struct gr_err *err)
{
    uint64_t none;
    int r = 0;
    for (size_t i = 0; r == 0 && i < o->n_snaps; i++)
        r = usage_decode(c, &o->snaps[i]->use, &o->snaps[i]->passed);
    if (r == 0)
        r = usage_decode(c, &o->use, &none);
    return r < 0 ? bad(o, "number of counters", err) : 0;
}

int vobj_blob_decode(struct vobj *o, const void *blob, size_t len, struct gr_err *err)
{
    struct cursor c = { blob, len };
    if (o->ino.type == VMFS_DIR)
        return dir_decode(o, &c, err);
    const struct vmfs_content_disk *d = take(&c, sizeof *d);
    if (!d)
        return bad(o, "length", err);
    o->epoch = gr_le64_get(d->epoch);
    o->lineage = gr_le64_get(d->lineage);
    o->parent_snap = gr_le64_get(d->parent_snap);
    o->next_snap = gr_le64_get(d->next_snap);
    o->origin_object = gr_le64_get(d->origin_object);
    o->origin_snap = gr_le64_get(d->origin_snap);
    o->origin_epoch = gr_le64_get(d->origin_epoch);
    o->reserved_units = gr_le64_get(d->reserved_units);
    o->copied = gr_le32_get(d->flags) & VMFS_CONTENT_COPIED;
    ptr_get(&d->root, &o->live.root);
    o->live.level = (uint8_t)gr_le32_get(d->level);
    if (!tree_ok(o, &o->live) || o->epoch == 0 || o->parent_snap >= o->next_snap)
        return bad(o, "tree", err);
    uint32_t n_lin = gr_le32_get(d->n_lineages);
    int r = snaps_decode(o, &c, gr_le32_get(d->n_snaps), err);
    if (r < 0)
        return r;
    if (n_lin > c.left / sizeof(struct vmfs_lineage_disk))
        return bad(o, "number of lineages", err);
    o->lineages = gr_zalloc((n_lin + 1) * sizeof *o->lineages);
    if (!o->lineages)
        return gr_fail(err, -ENOMEM, "out of memory");
    for (uint32_t i = 0; i < n_lin; i++) {
        const struct vmfs_lineage_disk *l = take(&c, sizeof *l);
        o->lineages[o->n_lineages++] = (struct vlineage){ gr_le64_get(l->lineage), gr_le64_get(l->parent), gr_le64_get(l->epoch) };
    }
    r = bookmarks_decode(o, &c, gr_le32_get(d->n_bookmarks), err);
    if (r == 0)
        r = attrs_decode(o, &c, gr_le32_get(d->n_attrs), err);
    o->counted = gr_le32_get(d->flags) & VMFS_CONTENT_COUNTED;
    if (r == 0 && o->counted)
        r = usages_decode(o, &c, err);
    return r;
}
