/* Decode of a sparse extent's header and directory; the numbered rules are vmdk_format.h's. */
#include "backup-proxy/vmdk_image.h"
#include "common/buf.h"
#include "common/cleanup.h"
#include <string.h>

/* Sectors → bytes, when the place lies inside the file. */
static int in_file(uint64_t sector, uint64_t len, uint64_t file_size, uint64_t *ret)
{
    if (sector > file_size / VMDK_SECTOR || len > file_size - sector * VMDK_SECTOR)
        return -GR_ECORRUPT;
    *ret = sector * VMDK_SECTOR;
    return 0;
}
static bool power_of_two(uint64_t v)
{
    return v && !(v & (v - 1));
}

static int header_check(const struct vmdk_header_disk *h, const char *path, const char *what, struct vmdk_sparse *s, struct gr_err *err)
{
    uint32_t version = gr_le32_get(h->version), entries = gr_le32_get(h->gt_entries);
    uint64_t cap = gr_le64_get(h->capacity), grain = gr_le64_get(h->grain_size);
    if (gr_le32_get(h->magic) != VMDK_MAGIC)
        return gr_fail(err, -GR_EFORMAT, "%s: the %s is no VMDK sparse header", path, what);
    if (version < 1 || version > 3)
        return gr_fail(err, -GR_EVERSION, "%s: VMDK version %u, known are 1 to 3", path, version);
    s->flags = gr_le32_get(h->flags);
    if ((s->flags & VMDK_F_NEWLINE) && memcmp(h->newline, "\n \r\n", 4))
        return gr_fail(err, -GR_ECORRUPT, "%s: line ends were converted (the file went through a text-mode transfer)", path);
    if (!power_of_two(grain) || grain < 8 || grain > VMDK_MAX_GRAIN / VMDK_SECTOR)
        return gr_fail(err, -GR_EFORMAT, "%s: a grain of %llu sectors (8 to 4096, a power of two)", path, (unsigned long long)grain);
    if (!power_of_two(entries) || entries > VMDK_GT_ENTRIES)
        return gr_fail(err, -GR_EFORMAT, "%s: %u entries per grain table (a power of two up to %u)", path, entries, VMDK_GT_ENTRIES);
    if (cap == 0 || cap > INT64_MAX / VMDK_SECTOR)
        return gr_fail(err, -GR_EFORMAT, "%s: a capacity of %llu sectors", path, (unsigned long long)cap);
    uint16_t algorithm = gr_le16_get(h->compress);
    s->compressed = s->flags & VMDK_F_COMPRESSED;
    if (s->compressed && (algorithm != 1 || !(s->flags & VMDK_F_MARKERS)))
        return gr_fail(err, -GR_EFORMAT, "%s: compression algorithm %u%s is not known", path, algorithm,
                       s->flags & VMDK_F_MARKERS ? "" : " without markers");
    s->capacity = cap * VMDK_SECTOR;
    s->grain = (uint32_t)grain * VMDK_SECTOR;
    s->gt_entries = entries;
    uint64_t over = gr_le64_get(h->overhead), grains = (s->capacity - 1) / s->grain + 1;
    if (over > s->file_size / VMDK_SECTOR)
        return gr_fail(err, -GR_ECORRUPT, "%s: the first grain lies at sector %llu, behind the end of the file", path, (unsigned long long)over);
    s->overhead = GR_MAX(over, (uint64_t)1) * VMDK_SECTOR;
    s->gd_len = (grains - 1) / entries + 1;
    return 0;
}

static int read_directory(int fd, uint64_t off, const struct vmdk_sparse *s, uint32_t **ret)
{
    gr_auto_free uint32_t *gd = gr_alloc(s->gd_len * 4);
    if (!gd)
        return -ENOMEM;
    int r = gr_file_pread(fd, gd, s->gd_len * 4, off);
    if (r < 0)
        return r;
    for (uint64_t i = 0; i < s->gd_len; i++)
        gd[i] = gr_get_le32(&gd[i]);
    *ret = gr_take(gd);
    return 0;
}

/* Each table inside the file, and no more of them than the file could hold (tables do not overlap), so that a walk of all
 * tables reads no more than the file's size. */
static int directory_check(const uint32_t *gd, const struct vmdk_sparse *s, const char *path, struct gr_err *err)
{
    uint64_t used = 0, gt_bytes = (uint64_t)s->gt_entries * 4, at;
    for (uint64_t i = 0; i < s->gd_len; i++) {
        if (gd[i] == 0)
            continue;
        used += gt_bytes;
        if (in_file(gd[i], gt_bytes, s->file_size, &at) < 0 || used > s->file_size)
            return gr_fail(err, -GR_ECORRUPT, "%s: grain table %llu lies at sector %u, outside the file of %llu bytes", path,
                           (unsigned long long)i, gd[i], (unsigned long long)s->file_size);
    }
    return 0;
}

/* Rule of the strict readers: the redundant tables agree with the others in content. */
static int redundant_check(int fd, const struct vmdk_sparse *s, const char *path, struct gr_err *err)
{
    gr_auto_free uint32_t *rgd = NULL;
    gr_le32 a[VMDK_GT_ENTRIES], b[VMDK_GT_ENTRIES];
    int r = read_directory(fd, s->rgd_off, s, &rgd);
    if (r < 0)
        return gr_fail(err, r, "%s: cannot read the redundant grain directory: %s", path, gr_code_text(r));
    r = directory_check(rgd, s, path, err);
    size_t n = (size_t)s->gt_entries * 4;
    for (uint64_t i = 0; r == 0 && i < s->gd_len; i++) {
        if (!rgd[i] && !s->gd[i])
            continue;
        if (!rgd[i] || !s->gd[i] || (r = gr_file_pread(fd, a, n, (uint64_t)rgd[i] * VMDK_SECTOR)) < 0 ||
            (r = gr_file_pread(fd, b, n, (uint64_t)s->gd[i] * VMDK_SECTOR)) < 0 || memcmp(a, b, n))
            return gr_fail(err, r < 0 ? r : -GR_ECORRUPT, "%s: grain table %llu and its redundant copy differ", path, (unsigned long long)i);
    }
    return r;
}

/* The directory lies behind the grains: the real header is the footer, two sectors before the end. */
static int footer_read(int fd, const char *path, struct vmdk_sparse *s, struct vmdk_header_disk *ret, struct gr_err *err)
{
    struct {
        struct vmdk_marker_disk mark;
        struct vmdk_header_disk footer;
        struct vmdk_marker_disk eos;
    } __attribute__((packed)) t;
    if (s->file_size % VMDK_SECTOR || s->file_size < 4 * VMDK_SECTOR)
        return gr_fail(err, -GR_ECORRUPT, "%s: truncated: a stream-optimized VMDK of %llu bytes", path, (unsigned long long)s->file_size);
    int r = gr_file_pread(fd, &t, sizeof t, s->file_size - sizeof t);
    if (r < 0)
        return gr_fail(err, r, "%s: cannot read the footer: %s", path, gr_code_text(r));
    if (gr_le32_get(t.mark.size) != 0 || gr_le32_get(t.mark.type) != VMDK_MARK_FOOTER || gr_le32_get(t.footer.magic) != VMDK_MAGIC)
        return gr_fail(err, -GR_ECORRUPT, "%s: truncated: no footer at the end of the file", path);
    if (gr_le64_get(t.eos.val) || gr_le32_get(t.eos.size) || gr_le32_get(t.eos.type) != VMDK_MARK_EOS)
        return gr_fail(err, -GR_ECORRUPT, "%s: truncated: no end-of-stream marker", path);
    *ret = t.footer;
    return 0;
}

int vmdk_sparse_decode(int fd, uint64_t file_size, const char *path, struct vmdk_sparse *ret, struct gr_err *err)
{
    struct vmdk_header_disk h;
    struct vmdk_sparse s = {.file_size = file_size};
    int r = gr_file_pread(fd, &h, sizeof h, 0);
    if (r < 0)
        return gr_fail(err, r, "%s: cannot read its header: %s", path, gr_code_text(r));
    r = header_check(&h, path, "first sector", &s, err);
    if (r < 0)
        return r;
    uint64_t cap = s.capacity;
    uint64_t desc = gr_le64_get(h.descriptor_off), desc_len = gr_le64_get(h.descriptor_size);
    if (desc_len > VMDK_MAX_DESC / VMDK_SECTOR || (desc_len && in_file(desc, desc_len * VMDK_SECTOR, file_size, &s.desc_off) < 0))
        return gr_fail(err, -GR_ECORRUPT, "%s: a descriptor of %llu sectors at sector %llu", path, (unsigned long long)desc_len,
                       (unsigned long long)desc);
    s.desc_len = desc_len * VMDK_SECTOR;
    if (gr_le64_get(h.gd_off) == VMDK_GD_AT_END) {
        r = footer_read(fd, path, &s, &h, err);
        if (r == 0)
            r = header_check(&h, path, "footer", &s, err);
        if (r < 0)
            return r;
        if (s.capacity != cap)
            return gr_fail(err, -GR_ECORRUPT, "%s: header and footer tell different capacities", path);
    }
    if (s.gd_len > file_size / 4 || in_file(gr_le64_get(h.gd_off), s.gd_len * 4, file_size, &s.gd_off) < 0 || s.gd_off == 0)
        return gr_fail(err, -GR_ECORRUPT, "%s: the grain directory (%llu entries at sector %llu) lies outside the file of %llu bytes", path,
                       (unsigned long long)s.gd_len, (unsigned long long)gr_le64_get(h.gd_off), (unsigned long long)file_size);
    if ((s.flags & VMDK_F_RGD) && (in_file(gr_le64_get(h.rgd_off), s.gd_len * 4, file_size, &s.rgd_off) < 0 || s.rgd_off == 0))
        return gr_fail(err, -GR_ECORRUPT, "%s: the redundant grain directory lies outside the file", path);
    r = read_directory(fd, s.gd_off, &s, &s.gd);
    if (r < 0)
        return gr_fail(err, r, "%s: cannot read the grain directory: %s", path, gr_code_text(r));
    gr_auto_free uint32_t *gd = s.gd;
    r = directory_check(gd, &s, path, err);
    if (r == 0 && s.rgd_off)
        r = redundant_check(fd, &s, path, err);
    if (r < 0)
        return r;
    s.gd = gr_take(gd);
    *ret = s;
    return 0;
}
