#include "backup-proxy/fsread_int.h"
#include "backup-proxy/fsread_journal.h"
#include "common/endian.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- the image as libtsk sees it ---- */
/* ext2 of revision 0 has no inode size in its superblock (it is 128, the first inode for files 11); libtsk needs it. */
static void complete_old_superblock(uint8_t *buf, size_t len, uint64_t off)
{
    uint8_t fields[6];
    const uint64_t at = 1024 + 84;
    gr_put_le32(fields, 11);
    gr_put_le16(fields + 4, 128);
    for (uint64_t i = 0; i < sizeof fields; i++)
        if (at + i >= off && at + i - off < len)
            buf[at + i - off] = fields[i];
}

static ssize_t volume_read(TSK_IMG_INFO *img, TSK_OFF_T off, char *buf, size_t len)
{
    struct fsread_fs *f = (struct fsread_fs *)(void *)img;
    if (off < 0 || (uint64_t)off >= f->vol->size)
        return -1;
    if (len > f->vol->size - (uint64_t)off)
        len = (size_t)(f->vol->size - (uint64_t)off);
    int rc = fs_parts_read(f->disk, f->vol, (uint64_t)off, buf, len);
    if (rc == 0 && f->journal)
        rc = fsread_overlay_apply(f->journal, (uint8_t *)buf, len, (uint64_t)off);
    if (rc == 0 && f->old_ext)
        complete_old_superblock((uint8_t *)buf, len, (uint64_t)off);
    return rc < 0 ? -1 : (ssize_t)len;
}

static void volume_close(TSK_IMG_INFO *img)
{
}

static void volume_stat(TSK_IMG_INFO *img, FILE *f)
{
}

/* ---- recognising ---- */
enum {
    EXT_INCOMPAT_COMPRESSION = 0x1,
    EXT_INCOMPAT_RECOVER = 0x4,
    EXT_INCOMPAT_JOURNAL_DEV = 0x8,
    EXT_INCOMPAT_INLINE_DATA = 0x8000,
    EXT_STATE_CLEAN = 0x1,
};

static int check_ext(const uint8_t *sb, struct fs_opened *info, struct fsread_text *why)
{
    uint32_t incompat = gr_get_le32(sb + 96);
    const char *feature = incompat & EXT_INCOMPAT_COMPRESSION   ? "compression"
                          : incompat & EXT_INCOMPAT_JOURNAL_DEV ? "journal_dev"
                          : incompat & EXT_INCOMPAT_INLINE_DATA ? "inline_data"
                                                                : NULL;
    if (feature) {
        snprintf(why->text, sizeof why->text, "ext file system with the feature %s, which this reader does not know", feature);
        return -EOPNOTSUPP;
    }
    info->dirty = (incompat & EXT_INCOMPAT_RECOVER) || !(gr_get_le16(sb + 58) & EXT_STATE_CLEAN) ? FS_DIRTY : FS_CLEAN;
    const uint8_t *u = sb + 104;
    snprintf(info->uuid, sizeof info->uuid, "%08x-%04x-%04x-%02x%02x-%02x%02x%02x%02x%02x%02x", gr_get_be32(u), gr_get_be16(u + 4),
             gr_get_be16(u + 6), u[8], u[9], u[10], u[11], u[12], u[13], u[14], u[15]);
    snprintf(info->label, sizeof info->label, "%.16s", (const char *)sb + 120);
    return 0;
}

static void fat_label(const uint8_t *field, struct fs_opened *info)
{
    snprintf(info->label, sizeof info->label, "%.11s", (const char *)field);
    size_t n = strlen(info->label);
    while (n && info->label[n - 1] == ' ')
        info->label[--n] = '\0';
    if (strcmp(info->label, "NO NAME") == 0)
        info->label[0] = '\0';
}

/* By the magic numbers; libtsk then checks the rest. Only these parsers of libtsk are ever run. */
static int recognise(struct fsread_fs *f, struct fs_opened *info, TSK_FS_TYPE_ENUM *ret, struct fsread_text *why)
{
    uint8_t b[2048];
    if (f->vol->size < sizeof b)
        return -ENODEV;
    int rc = fs_parts_read(f->disk, f->vol, 0, b, sizeof b);
    if (rc < 0)
        return rc;
    if (memcmp(b + 3, "NTFS    ", 8) == 0) {
        snprintf(info->uuid, sizeof info->uuid, "%016llX", (unsigned long long)gr_get_le64(b + 72));
        *ret = TSK_FS_TYPE_NTFS;
        return 0;
    }
    if (memcmp(b + 3, "EXFAT   ", 8) == 0) {
        snprintf(info->uuid, sizeof info->uuid, "%04X-%04X", gr_get_le16(b + 102), gr_get_le16(b + 100));
        *ret = TSK_FS_TYPE_EXFAT;
        return 0;
    }
    if (gr_get_le16(b + 1024 + 56) == 0xef53) {
        *ret = TSK_FS_TYPE_EXT_DETECT;
        f->old_ext = gr_get_le32(b + 1024 + 76) == 0;
        f->recover = gr_get_le32(b + 1024 + 96) & EXT_INCOMPAT_RECOVER;
        return check_ext(b + 1024, info, why);
    }
    bool fat32 = memcmp(b + 82, "FAT32", 5) == 0;
    if (b[510] == 0x55 && b[511] == 0xaa && (fat32 || memcmp(b + 54, "FAT", 3) == 0)) {
        const uint8_t *id = b + (fat32 ? 67 : 39);
        snprintf(info->uuid, sizeof info->uuid, "%04X-%04X", gr_get_le16(id + 2), gr_get_le16(id));
        fat_label(b + (fat32 ? 71 : 43), info);
        *ret = TSK_FS_TYPE_FAT_DETECT;
        return 0;
    }
    return -ENODEV;
}

static const char *type_name(TSK_FS_TYPE_ENUM t)
{
    switch ((unsigned)t) {
    case TSK_FS_TYPE_EXT2: return "ext2";
    case TSK_FS_TYPE_EXT3: return "ext3";
    case TSK_FS_TYPE_EXT4: return "ext4";
    case TSK_FS_TYPE_NTFS: return "ntfs";
    case TSK_FS_TYPE_FAT12: return "fat12";
    case TSK_FS_TYPE_FAT16: return "fat16";
    case TSK_FS_TYPE_FAT32: return "fat32";
    case TSK_FS_TYPE_EXFAT: return "exfat";
    default: return "unknown";
    }
}

bool fsread_is_fat(const struct fsread_fs *f)
{
    return TSK_FS_TYPE_ISFAT(f->fs->ftype);
}

bool fsread_is_ntfs(const struct fsread_fs *f)
{
    return TSK_FS_TYPE_ISNTFS(f->fs->ftype);
}

const char *fsread_why(void)
{
    const char *s = tsk_error_get_errstr();
    return s && *s ? s : "libtsk gives no reason";
}

/* UTF-16LE label of $Volume (MFT entry 3). */
static void ntfs_label(struct fsread_fs *f, struct fs_opened *info)
{
    TSK_FS_FILE *file = tsk_fs_file_open_meta(f->fs, NULL, 3);
    uint8_t raw[256];
    ssize_t n = file ? tsk_fs_file_read_type(file, TSK_FS_ATTR_TYPE_NTFS_VNAME, 0, 0, (char *)raw, sizeof raw, TSK_FS_FILE_READ_FLAG_NOID)
                     : 0;
    size_t k = 0;
    for (ssize_t i = 0; i + 1 < n && k + 3 < sizeof info->label; i += 2) {
        unsigned c = gr_get_le16(raw + i);
        if (c < 0x80) {
            info->label[k++] = (char)c;
        } else if (c < 0x800) {
            info->label[k++] = (char)(0xc0 | c >> 6);
            info->label[k++] = (char)(0x80 | (c & 0x3f));
        } else {
            info->label[k++] = (char)(0xe0 | c >> 12);
            info->label[k++] = (char)(0x80 | (c >> 6 & 0x3f));
            info->label[k++] = (char)(0x80 | (c & 0x3f));
        }
    }
    info->label[k] = '\0';
    if (file)
        tsk_fs_file_close(file);
}

static int open_tsk(struct fsread_fs *f, TSK_FS_TYPE_ENUM type, struct fsread_text *why)
{
    tsk_error_reset();
    memset(&f->img, 0, sizeof f->img); /* also what an earlier opening has cached in it */
    if (!tsk_img_open_external(f, (TSK_OFF_T)f->vol->size, 512, volume_read, volume_close, volume_stat)) {
        snprintf(why->text, sizeof why->text, "%.200s", fsread_why());
        return -EIO;
    }
    f->fs = tsk_fs_open_img(&f->img, 0, type);
    if (f->fs)
        return 0;
    snprintf(why->text, sizeof why->text, "damaged file system: %.200s", fsread_why());
    tsk_img_close(&f->img);
    return -EIO;
}

static void close_tsk(struct fsread_fs *f)
{
    if (f->file)
        tsk_fs_file_close(f->file);
    f->file = NULL;
    tsk_fs_close(f->fs);
    tsk_img_close(&f->img);
    f->fs = NULL;
}

/* An ext file system with a journal to replay: open it again as it would be after that. Without a readable journal it
 * stays as it is. */
static int see_journal(struct fsread_fs *f, TSK_FS_TYPE_ENUM type, struct fs_opened *info, struct fsread_text *why)
{
    const uint64_t journal_inode = 8;
    uint64_t end = 0;
    struct fs_run *runs = calloc(FS_RUNS_MAX, sizeof *runs);
    int n = runs ? fsread_map(f, journal_inode, 0, runs, FS_RUNS_MAX, &end) : -ENOMEM;
    if (n > 0 && end == INT64_MAX)
        n = fsread_journal_load(f->disk, f->vol, f->fs->block_size, runs, (unsigned)n, &f->journal);
    free(runs);
    if (!f->journal)
        return n == -ENOMEM ? n : 0;
    close_tsk(f);
    info->dirty = FS_DIRTY_REPLAYED;
    int rc = open_tsk(f, type, why);
    if (rc < 0) { /* a hostile journal: the file system without it */
        fsread_overlay_free(f->journal);
        f->journal = NULL;
        info->dirty = FS_DIRTY;
        rc = open_tsk(f, type, why);
    }
    return rc;
}

int fsread_open(const struct fs_image *img, const struct fs_volume *vol, struct fs_opened *ret_info, struct fsread_fs **ret,
                struct fsread_text *why)
{
    struct fs_opened info = {.size = vol->size};
    TSK_FS_TYPE_ENUM type = TSK_FS_TYPE_UNSUPP;
    struct fsread_fs *f = calloc(1, sizeof *f);
    if (!f)
        return -ENOMEM;
    f->disk = img;
    f->vol = vol;
    int rc = recognise(f, &info, &type, why);
    if (rc == 0)
        rc = open_tsk(f, type, why);
    if (rc == 0 && f->recover)
        rc = see_journal(f, type, &info, why);
    if (rc < 0) {
        fsread_overlay_free(f->journal);
        free(f);
        return rc;
    }
    snprintf(info.fs, sizeof info.fs, "%s", type_name(f->fs->ftype));
    info.root = f->fs->root_inum;
    info.block_size = f->fs->block_size;
    if (fsread_is_ntfs(f))
        ntfs_label(f, &info);
    *ret_info = info;
    *ret = f;
    return 0;
}

void fsread_close(struct fsread_fs *f)
{
    if (!f)
        return;
    close_tsk(f);
    fsread_overlay_free(f->journal);
    free(f);
}

/* ---- attributes ---- */
static uint8_t type_of(TSK_FS_META_TYPE_ENUM t)
{
    switch ((int)t) {
    case TSK_FS_META_TYPE_REG: return FS_T_FILE;
    case TSK_FS_META_TYPE_DIR: return FS_T_DIR;
    case TSK_FS_META_TYPE_LNK: return FS_T_LINK;
    case TSK_FS_META_TYPE_CHR: return FS_T_CHAR;
    case TSK_FS_META_TYPE_BLK: return FS_T_BLOCK;
    case TSK_FS_META_TYPE_FIFO: return FS_T_FIFO;
    case TSK_FS_META_TYPE_SOCK: return FS_T_SOCKET;
    default: return FS_T_UNKNOWN;
    }
}

static struct fs_time time_of(time_t sec, uint32_t nsec)
{
    return (struct fs_time){.sec = (int64_t)sec, .nsec = nsec < 1000000000 ? nsec : 0};
}

/* FAT and NTFS have no Unix permissions: read for all, write where the guest had not set "read-only". */
static uint32_t mode_of(const struct fsread_fs *f, const TSK_FS_META *m)
{
    if (!fsread_is_fat(f) && !fsread_is_ntfs(f))
        return (uint32_t)m->mode & 07777;
    if (m->type == TSK_FS_META_TYPE_DIR)
        return 0755;
    return (uint32_t)m->mode & 0222 ? 0644 : 0444;
}

void fsread_attr_of(const struct fsread_fs *f, const TSK_FS_META *m, uint64_t inode, struct fs_attr *a)
{
    memset(a, 0, sizeof *a);
    a->inode = inode;
    if (!m || !(m->flags & TSK_FS_META_FLAG_ALLOC))
        return; /* a name without an inode in use: type stays unknown */
    a->type = type_of(m->type);
    a->size = m->size > 0 ? (uint64_t)m->size : 0;
    a->nlink = m->nlink > 0 ? (uint64_t)m->nlink : 1;
    a->mode = mode_of(f, m);
    a->uid = (uint32_t)m->uid;
    a->gid = (uint32_t)m->gid;
    a->mtime = time_of(m->mtime, m->mtime_nano);
    a->atime = time_of(m->atime, m->atime_nano);
    a->ctime = time_of(m->ctime, m->ctime_nano);
    a->btime = time_of(m->crtime, m->crtime_nano);
    if (fsread_is_fat(f))
        a->ctime = a->mtime;
    if (fsread_is_fat(f) || fsread_is_ntfs(f))
        a->uid = a->gid = 0; /* libtsk shows the end of a security id: no number that means anything here */
}

int fsread_use(struct fsread_fs *f, uint64_t inode)
{
    if (f->file && f->file_inode == inode)
        return 0;
    if (f->file)
        tsk_fs_file_close(f->file);
    tsk_error_reset();
    f->file = tsk_fs_file_open_meta(f->fs, NULL, (TSK_INUM_T)inode);
    f->file_inode = inode;
    if (!f->file)
        return -EIO;
    if (!f->file->meta || !(f->file->meta->flags & TSK_FS_META_FLAG_ALLOC)) {
        tsk_fs_file_close(f->file);
        f->file = NULL;
        return -ESTALE;
    }
    return 0;
}

int fsread_stat(struct fsread_fs *f, uint64_t inode, struct fs_attr *ret)
{
    int rc = fsread_use(f, inode);
    if (rc < 0)
        return rc;
    fsread_attr_of(f, f->file->meta, inode, ret);
    return 0;
}

int fsread_link(struct fsread_fs *f, uint64_t inode, const char **ret)
{
    int rc = fsread_use(f, inode);
    if (rc < 0)
        return rc;
    if (f->file->meta->type != TSK_FS_META_TYPE_LNK)
        return -EINVAL;
    const char *link = f->file->meta->link;
    if (link && *link && strlen(link) <= FS_LINK_MAX) {
        *ret = link;
        return 0;
    }
    /* libtsk does not follow the extents of a long link of ext4 by itself: its target is its content */
    TSK_OFF_T size = f->file->meta->size;
    if (size < 1 || size > (TSK_OFF_T)FS_LINK_MAX)
        return -EIO;
    tsk_error_reset();
    ssize_t n = tsk_fs_file_read(f->file, 0, f->link, (size_t)size, TSK_FS_FILE_READ_FLAG_NONE);
    if (n != size || memchr(f->link, '\0', (size_t)n))
        return -EIO;
    f->link[n] = '\0';
    *ret = f->link;
    return 0;
}

/* ---- content ---- */
int64_t fsread_read(struct fsread_fs *f, uint64_t inode, uint64_t off, void *buf, size_t len)
{
    int rc = fsread_use(f, inode);
    if (rc < 0)
        return rc;
    if (f->file->meta->type != TSK_FS_META_TYPE_REG)
        return -EINVAL;
    uint64_t size = f->file->meta->size > 0 ? (uint64_t)f->file->meta->size : 0;
    if (off >= size)
        return 0;
    if (len > size - off)
        len = (size_t)(size - off);
    tsk_error_reset();
    ssize_t n = tsk_fs_file_read(f->file, (TSK_OFF_T)off, buf, len, TSK_FS_FILE_READ_FLAG_NONE);
    return n <= 0 ? -EIO : n;
}

/* The data attribute, when its bytes lie in the volume as they are. */
static int plain_attr(struct fsread_fs *f, uint64_t inode, const TSK_FS_ATTR **ret)
{
    int rc = fsread_use(f, inode);
    if (rc < 0)
        return rc;
    if (f->file->meta->type != TSK_FS_META_TYPE_REG)
        return -EINVAL;
    tsk_error_reset();
    const TSK_FS_ATTR *a = tsk_fs_file_attr_get(f->file);
    if (!a)
        return -EIO;
    if (!(a->flags & TSK_FS_ATTR_NONRES) || (a->flags & (TSK_FS_ATTR_COMP | TSK_FS_ATTR_ENC)) || a->nrd.skiplen)
        return -EOPNOTSUPP;
    *ret = a;
    return 0;
}

int fsread_map(struct fsread_fs *f, uint64_t inode, uint64_t off, struct fs_run *out, unsigned max, uint64_t *ret_end)
{
    const TSK_FS_ATTR *a = NULL;
    int rc = plain_attr(f, inode, &a);
    if (rc < 0)
        return rc;
    uint64_t bs = f->fs->block_size, limit = a->nrd.initsize > 0 ? (uint64_t)a->nrd.initsize : 0, at = 0;
    unsigned n = 0;
    for (const TSK_FS_ATTR_RUN *r = a->nrd.run; r; r = r->next) {
        if (r->len == 0 || r->len > f->vol->size / bs || r->offset > (uint64_t)INT64_MAX / bs || r->addr > f->vol->size / bs) {
            if (r->len == 0 || (r->flags & (TSK_FS_ATTR_RUN_FLAG_SPARSE | TSK_FS_ATTR_RUN_FLAG_FILLER)))
                continue; /* a hole may be longer than the volume */
            return -EIO;
        }
        struct fs_run run = {.file_off = r->offset * bs, .volume_off = r->addr * bs, .len = r->len * bs};
        if (run.file_off < at)
            return -EIO;
        at = run.file_off + run.len;
        if (at <= off || (r->flags & TSK_FS_ATTR_RUN_FLAG_SPARSE) || run.file_off >= limit)
            continue;
        if ((r->flags & TSK_FS_ATTR_RUN_FLAG_FILLER) && TSK_FS_TYPE_ISEXT(f->fs->ftype))
            continue; /* what no extent covers: a hole */
        if (r->flags & (TSK_FS_ATTR_RUN_FLAG_FILLER | TSK_FS_ATTR_RUN_FLAG_ENCRYPTED))
            return -EIO; /* content that libtsk could not find */
        if (run.len > limit - run.file_off)
            run.len = limit - run.file_off;
        if (run.len > f->vol->size - run.volume_off)
            return -EIO;
        if (f->journal && fsread_overlay_touches(f->journal, run.volume_off, run.len))
            return -EOPNOTSUPP; /* data=journal: read it where the journal is looked at */
        if (n == max) {
            *ret_end = run.file_off;
            return (int)n;
        }
        out[n++] = run;
    }
    *ret_end = INT64_MAX;
    return (int)n;
}
