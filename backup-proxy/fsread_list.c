/* Directories: an own reader for ext, libtsk's for the others. */
#include "backup-proxy/fsread_int.h"
#include "common/endian.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

static bool ends_with(const char *s, const char *tail)
{
    size_t n = strlen(s), k = strlen(tail);
    return n >= k && strcmp(s + n - k, tail) == 0;
}

/* What libtsk invents, and what the guest's own system does not show as files. */
static bool is_hidden(const struct fsread_fs *f, uint64_t dir, const TSK_FS_NAME *n)
{
    if (n->type == TSK_FS_NAME_TYPE_VIRT || n->type == TSK_FS_NAME_TYPE_VIRT_DIR || n->meta_addr == TSK_FS_ORPHANDIR_INUM(f->fs))
        return true;
    if (dir != f->fs->root_inum)
        return false;
    if (fsread_is_ntfs(f))
        return n->meta_addr < 16 || strcmp(n->name, "$Extend") == 0;
    if (fsread_is_fat(f))
        return ends_with(n->name, "(Volume Label Entry)") || strcmp(n->name, "$ALLOC_BITMAP") == 0 ||
               strcmp(n->name, "$UPCASE_TABLE") == 0;
    return false;
}

/* Guest bytes that cannot stand in a name become a "%XX" that can. Returns the length, 0: leave the entry out. */
static uint32_t clean_name(const char *name, char out[FS_NAME_MAX + 1])
{
    size_t n = 0, len = strlen(name);
    for (size_t i = 0; i < len; i++) {
        size_t need = name[i] == '/' ? 3 : 1;
        if (need > FS_NAME_MAX - n)
            return 0;
        if (need == 3)
            memcpy(out + n, "%2F", 3);
        else
            out[n] = name[i];
        n += need;
    }
    out[n] = '\0';
    return fs_name_ok(out, n) ? (uint32_t)n : 0;
}

/* What a listing needs on its way. */
struct lister {
    struct fsread_fs *f;
    int (*emit)(void *arg, const struct fs_entry *e);
    void *arg;
    struct fs_entry e;
};

/* Names of an ext directory: u32 inode, u8 length, bytes, one behind the other. */
struct names {
    uint8_t *data;
    size_t len, cap, count;
};

static int add_name(struct names *n, uint32_t inode, const uint8_t *name, uint8_t len)
{
    const size_t need = 5 + (size_t)len;
    if (n->count == FS_LIST_MAX)
        return -EFBIG;
    if (need > n->cap - n->len) {
        size_t cap = n->cap ? n->cap * 2 : 65536;
        uint8_t *p = realloc(n->data, cap);
        if (!p)
            return -ENOMEM;
        n->data = p;
        n->cap = cap;
    }
    uint8_t *p = n->data + n->len;
    gr_put_le32(p, inode);
    p[4] = len;
    memcpy(p + 5, name, len);
    n->len += need;
    n->count++;
    return 0;
}

/* Records of one directory block; a record that cannot be ends the block (the rest of the directory goes on). */
static int take_ext_block(struct names *n, const uint8_t *b, size_t len)
{
    int rc = 0;
    for (size_t at = 0; rc == 0 && len - at >= 12;) {
        uint32_t inode = gr_get_le32(b + at), rec = gr_get_le16(b + at + 4);
        uint8_t name = b[at + 6];
        if (rec == 65535 || rec == 0) /* a whole block of 64 KiB does not fit into 16 bits */
            rec = 65536;
        if (rec < 12 || rec % 4 || rec > len - at || name > rec - 8)
            return 0;
        if (inode && name)
            rc = add_name(n, inode, b + at + 8, name);
        at += rec;
    }
    return rc;
}

static int read_ext_names(struct fsread_fs *f, uint64_t inode, struct names *n)
{
    size_t bs = f->fs->block_size;
    TSK_FS_FILE *file = tsk_fs_file_open_meta(f->fs, NULL, (TSK_INUM_T)inode);
    uint8_t *b = malloc(bs);
    int rc = !file || !b ? (b ? -EIO : -ENOMEM) : 0;
    for (TSK_OFF_T off = 0; rc == 0 && off < file->meta->size; off += (TSK_OFF_T)bs) {
        ssize_t got = tsk_fs_file_read(file, off, (char *)b, bs, TSK_FS_FILE_READ_FLAG_NONE);
        rc = got <= 0 ? -EIO : take_ext_block(n, b, (size_t)got);
    }
    free(b);
    if (file)
        tsk_fs_file_close(file);
    return rc;
}

/* One name and the attributes of its inode. */
static int emit_ext(struct lister *l, const uint8_t *raw)
{
    char text[256];
    uint64_t inode = gr_get_le32(raw);
    memcpy(text, raw + 5, raw[4]);
    text[raw[4]] = '\0'; /* a NUL inside ends the name */
    l->e.name_len = clean_name(text, l->e.name);
    if (l->e.name_len == 0)
        return 0;
    TSK_FS_FILE *file = inode <= l->f->fs->last_inum ? tsk_fs_file_open_meta(l->f->fs, NULL, (TSK_INUM_T)inode) : NULL;
    fsread_attr_of(l->f, file ? file->meta : NULL, inode, &l->e.attr);
    if (file)
        tsk_fs_file_close(file);
    return l->emit(l->arg, &l->e);
}

static void sift(const uint8_t **v, size_t i, size_t n)
{
    for (size_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && gr_get_le32(v[child + 1]) > gr_get_le32(v[child]))
            child++;
        if (gr_get_le32(v[i]) >= gr_get_le32(v[child]))
            return;
        const uint8_t *t = v[i];
        v[i] = v[child];
        v[child] = t;
    }
}

/* Heap sort: the C library's qsort asks the system for the size of memory, which the sandbox forbids. */
static void sort_by_inode(const uint8_t **v, size_t n)
{
    for (size_t i = n / 2; i-- > 0;)
        sift(v, i, n);
    for (size_t i = n; i-- > 1;) {
        const uint8_t *t = v[0];
        v[0] = v[i];
        v[i] = t;
        sift(v, 0, i);
    }
}

/* libtsk compares every name of a directory with every other, and directories of mail and caches are too large for that:
 * an own reader. In the order of the inodes, so that their table is read once and in a row. */
static int list_ext(struct lister *l, uint64_t inode)
{
    struct names n = {0};
    int rc = read_ext_names(l->f, inode, &n);
    const uint8_t **order = rc == 0 ? calloc(n.count + 1, sizeof *order) : NULL;
    if (rc == 0 && !order)
        rc = -ENOMEM;
    size_t at = 0;
    for (size_t i = 0; rc == 0 && i < n.count; i++) {
        order[i] = n.data + at;
        at += 5 + (size_t)n.data[at + 4];
    }
    if (rc == 0)
        sort_by_inode(order, n.count);
    for (size_t i = 0; rc == 0 && i < n.count; i++)
        rc = emit_ext(l, order[i]);
    free(order);
    free(n.data);
    return rc;
}

static int list_by_tsk(struct lister *l, uint64_t inode)
{
    TSK_FS_DIR *dir = tsk_fs_dir_open_meta(l->f->fs, (TSK_INUM_T)inode);
    if (!dir)
        return -EIO;
    size_t n = tsk_fs_dir_getsize(dir);
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < n; i++) {
        const TSK_FS_NAME *peek = tsk_fs_dir_get_name(dir, i);
        if (!peek || !peek->name || !(peek->flags & TSK_FS_NAME_FLAG_ALLOC) || is_hidden(l->f, inode, peek))
            continue;
        TSK_FS_FILE *file = tsk_fs_dir_get(dir, i);
        if (!file)
            continue;
        l->e.name_len = clean_name(peek->name, l->e.name);
        fsread_attr_of(l->f, file->meta, peek->meta_addr, &l->e.attr);
        if (l->e.name_len && !(file->meta && file->meta->type == TSK_FS_META_TYPE_VIRT))
            rc = l->emit(l->arg, &l->e);
        tsk_fs_file_close(file);
    }
    tsk_fs_dir_close(dir);
    return rc;
}

int fsread_list(struct fsread_fs *f, uint64_t inode, int (*emit)(void *arg, const struct fs_entry *e), void *arg)
{
    int rc = fsread_use(f, inode);
    if (rc < 0)
        return rc;
    if (f->file->meta->type != TSK_FS_META_TYPE_DIR)
        return -ENOTDIR;
    struct lister *l = calloc(1, sizeof *l);
    if (!l)
        return -ENOMEM;
    *l = (struct lister){.f = f, .emit = emit, .arg = arg};
    tsk_error_reset();
    rc = TSK_FS_TYPE_ISEXT(f->fs->ftype) ? list_ext(l, inode) : list_by_tsk(l, inode);
    free(l);
    return rc;
}
