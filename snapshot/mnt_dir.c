/* Directories: their entries, as they were when they were opened. */
#include "common/buf.h"
#include "common/seam.h"
#include "snapshot/mnt_int.h"
#include <string.h>
#include <sys/stat.h>

static void dir_free(struct mnt_dir *d)
{
    for (size_t i = 0; i < d->n; i++)
        free(d->ents[i].name);
    free(d->ents);
    free(d);
}

void mnt_dirs_free(struct mnt_mount *m)
{
    while (m->dirs) {
        struct mnt_dir *d = m->dirs;
        m->dirs = d->next;
        dir_free(d);
    }
}

struct listing {
    struct mnt_dir *d;
    uint64_t id;
};

static int add_name(void *arg, const char *name, uint64_t id, enum vmfs_type type)
{
    const struct listing *l = arg;
    struct mnt_dir *d = l->d;
    if (mnt_is_own(l->id, name))
        return 0;
    if (d->n == d->cap) {
        size_t cap = d->cap ? d->cap * 2 : 32;
        struct mnt_name *e = gr_realloc(d->ents, cap * sizeof(*e));
        if (!e)
            return -ENOMEM;
        d->ents = e;
        d->cap = cap;
    }
    char *copy = gr_strdup(name);
    if (!copy)
        return -ENOMEM;
    d->ents[d->n++] = (struct mnt_name){id, type, copy};
    return 0;
}

static int dir_open(struct mnt_mount *m, uint64_t id, uint64_t fh, struct mnt_dir **ret)
{
    struct mnt_dir *d = gr_zalloc(sizeof(*d));
    struct listing l = {d, id};
    int r = d ? vmfs_list(m->ds->v, id, add_name, &l, NULL) : -ENOMEM;
    if (r < 0) {
        if (d)
            dir_free(d);
        return r;
    }
    d->fh = fh;
    d->next = m->dirs;
    m->dirs = d;
    *ret = d;
    return 0;
}

void mnt_op_opendir(struct mnt_req *r)
{
    struct mnt_dir *d;
    int rc = dir_open(r->m, mnt_id(r->m, r->h.nodeid), r->m->next_fh++, &d);
    if (rc < 0)
        mnt_fail(r, rc);
    else
        mnt_reply(r, &(struct fuse_open_out){.fh = d->fh}, sizeof(struct fuse_open_out));
}

static struct mnt_dir **dir_at(struct mnt_mount *m, uint64_t fh)
{
    struct mnt_dir **p = &m->dirs;
    while (*p && (*p)->fh != fh)
        p = &(*p)->next;
    return p;
}

static int put_name(struct gr_buf *b, size_t max, uint64_t ino, const char *name, uint32_t type, uint64_t next)
{
    static const char zero[8];
    size_t n = strlen(name), size = FUSE_REC_ALIGN(FUSE_NAME_OFFSET + n);
    struct fuse_dirent d = {.ino = ino, .off = next, .namelen = (uint32_t)n, .type = type};
    if (size > max - b->len)
        return 1;
    return gr_buf_add(b, &d, FUSE_NAME_OFFSET) < 0 || gr_buf_add(b, name, n) < 0 || gr_buf_add(b, zero, size - FUSE_NAME_OFFSET - n) < 0 ? -ENOMEM : 0;
}

void mnt_op_readdir(struct mnt_req *r)
{
    const struct fuse_read_in *in = r->body;
    struct mnt_mount *m = r->m;
    gr_auto_buf struct gr_buf b = {0};
    uint64_t id = mnt_id(m, r->h.nodeid);
    struct mnt_dir *d = *dir_at(m, in->fh);
    size_t max = GR_MIN(in->size, MNT_IO_MAX);
    int rc = !d || in->offset == 0 ? 0 : 1; /* from the beginning (rewinddir): as it is now */
    if (rc == 0) {
        struct mnt_dir **old = dir_at(m, in->fh);
        if (*old) {
            d = *old;
            *old = d->next;
            dir_free(d);
        }
        rc = dir_open(m, id, in->fh, &d); /* also of a former process */
    }
    rc = GR_MIN(rc, 0);
    for (uint64_t i = in->offset; rc == 0 && i < d->n + 2; i++) {
        const struct mnt_name *e = i < 2 ? NULL : &d->ents[i - 2];
        rc = put_name(&b, max, e ? e->id : id, e ? e->name : i == 0 ? "." : "..", e && e->type != VMFS_DIR ? S_IFREG >> 12 : S_IFDIR >> 12, i + 1);
    }
    if (rc < 0)
        mnt_fail(r, rc);
    else
        mnt_reply(r, b.data, b.len);
}

void mnt_op_releasedir(struct mnt_req *r)
{
    const struct fuse_release_in *in = r->body;
    struct mnt_dir **p = dir_at(r->m, in->fh), *d = *p;
    if (d) {
        *p = d->next;
        dir_free(d);
    }
    mnt_fail(r, 0);
}
