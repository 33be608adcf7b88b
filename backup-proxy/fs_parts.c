#include "backup-proxy/fs_parts.h"
#include "common/endian.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SECTOR_MAX 4096u
#define GPT_TABLE_MAX (1u << 20) /* bytes of partition entries that we look at */
#define LOGICAL_MAX 128          /* logical partitions: also ends a loop of EBRs */

struct scan {
    const struct fs_image *img;
    struct fs_volume *out;
    unsigned max, n;
};

static int image_read(const struct fs_image *img, uint64_t off, void *buf, size_t len)
{
    if (len > img->size || off > img->size - len)
        return -ERANGE;
    return img->read(img->arg, off, buf, len);
}

int fs_parts_read(const struct fs_image *img, const struct fs_volume *v, uint64_t off, void *buf, size_t len)
{
    if (len > v->size || off > v->size - len)
        return -ERANGE;
    for (size_t at = 0; at < len;) {
        uint64_t image_off = 0, room = fs_volume_map(v, off + at, &image_off);
        size_t n = len - at < room ? len - at : (size_t)room;
        int rc = room ? image_read(img, image_off, (uint8_t *)buf + at, n) : -ERANGE;
        if (rc < 0)
            return rc;
        at += n;
    }
    return 0;
}

static struct fs_volume *add_volume(struct scan *s, enum fs_volume_kind kind, uint32_t number, uint64_t off, uint64_t len)
{
    if (s->n >= s->max || len == 0 || len > s->img->size || off > s->img->size - len)
        return NULL;
    struct fs_volume *v = &s->out[s->n++];
    memset(v, 0, sizeof *v);
    v->kind = (uint8_t)kind;
    v->number = number;
    v->size = len;
    v->n_segs = 1;
    v->segs[0] = (struct fs_seg){.volume_off = 0, .image_off = off, .len = len};
    return v;
}

/* ---- GPT ---- */
static uint32_t crc32_ieee(const uint8_t *p, size_t len, uint32_t crc)
{
    crc = ~crc;
    for (size_t i = 0; i < len; i++) {
        crc ^= p[i];
        for (int b = 0; b < 8; b++)
            crc = crc >> 1 ^ (0xedb88320u & (0u - (crc & 1)));
    }
    return ~crc;
}

struct gpt {
    uint64_t entries_lba;
    uint32_t count, entry_size, entries_crc;
};

/* Header in sector @lba; true when signature, size, own address and checksum hold (UEFI 5.3.2). */
static bool gpt_header(const struct fs_image *img, uint32_t sector, uint64_t lba, struct gpt *ret)
{
    uint8_t b[SECTOR_MAX];
    if (lba > UINT64_MAX / sector || image_read(img, lba * sector, b, sector) < 0 || memcmp(b, "EFI PART", 8) != 0)
        return false;
    uint32_t len = gr_get_le32(b + 12), crc = gr_get_le32(b + 16);
    if (len < 92 || len > sector || gr_get_le64(b + 24) != lba)
        return false;
    gr_put_le32(b + 16, 0);
    if (crc32_ieee(b, len, 0) != crc)
        return false;
    struct gpt g = {.entries_lba = gr_get_le64(b + 72), .count = gr_get_le32(b + 80), .entry_size = gr_get_le32(b + 84),
                    .entries_crc = gr_get_le32(b + 88)};
    if (g.entry_size < 128 || g.entry_size > 4096 || g.entry_size % 8 || g.count == 0 || g.count > GPT_TABLE_MAX / g.entry_size)
        return false;
    *ret = g;
    return true;
}

static void guid_text(const uint8_t *g, char out[37])
{
    snprintf(out, 37, "%08x-%04x-%04x-%02x%02x-%02x%02x%02x%02x%02x%02x", gr_get_le32(g), gr_get_le16(g + 4), gr_get_le16(g + 6),
             g[8], g[9], g[10], g[11], g[12], g[13], g[14], g[15]);
}

/* UTF-16LE name of an entry as UTF-8; what is no valid text, or is a control character, becomes U+FFFD. */
static void utf16_text(const uint8_t *p, size_t units, char *out, size_t cap)
{
    size_t n = 0;
    for (size_t i = 0; i < units; i++) {
        uint32_t c = gr_get_le16(p + 2 * i);
        if (c == 0)
            break;
        if (c >= 0xd800 && c < 0xdc00 && i + 1 < units) {
            uint32_t low = gr_get_le16(p + 2 * (i + 1));
            if (low >= 0xdc00 && low < 0xe000) {
                c = 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00);
                i++;
            }
        }
        if (c < 0x20 || (c >= 0x7f && c < 0xa0) || (c >= 0xd800 && c < 0xe000))
            c = 0xfffd;
        char u[4];
        size_t k = 0;
        if (c < 0x80) {
            u[k++] = (char)c;
        } else if (c < 0x800) {
            u[k++] = (char)(0xc0 | c >> 6);
            u[k++] = (char)(0x80 | (c & 0x3f));
        } else if (c < 0x10000) {
            u[k++] = (char)(0xe0 | c >> 12);
            u[k++] = (char)(0x80 | (c >> 6 & 0x3f));
            u[k++] = (char)(0x80 | (c & 0x3f));
        } else {
            u[k++] = (char)(0xf0 | c >> 18);
            u[k++] = (char)(0x80 | (c >> 12 & 0x3f));
            u[k++] = (char)(0x80 | (c >> 6 & 0x3f));
            u[k++] = (char)(0x80 | (c & 0x3f));
        }
        if (k >= cap - n)
            break;
        memcpy(out + n, u, k);
        n += k;
    }
    out[n] = '\0';
}

static bool gpt_entries(struct scan *s, uint32_t sector, const struct gpt *g)
{
    size_t len = (size_t)g->count * g->entry_size;
    uint8_t *t = malloc(len);
    bool ok = t && g->entries_lba <= UINT64_MAX / sector && image_read(s->img, g->entries_lba * sector, t, len) == 0 &&
              crc32_ieee(t, len, 0) == g->entries_crc;
    for (uint32_t i = 0; ok && i < g->count; i++) {
        static const uint8_t unused[16];
        const uint8_t *e = t + (size_t)i * g->entry_size;
        uint64_t first = gr_get_le64(e + 32), last = gr_get_le64(e + 40);
        if (memcmp(e, unused, 16) == 0 || first > last || last >= s->img->size / sector)
            continue;
        struct fs_volume *v = add_volume(s, FS_V_PART, i + 1, first * sector, (last - first + 1) * sector);
        if (v) {
            guid_text(e, v->type);
            utf16_text(e + 56, 36, v->label, sizeof v->label);
        }
    }
    free(t);
    return ok;
}

static bool scan_gpt(struct scan *s)
{
    uint32_t sizes[2] = {s->img->sector == 4096 ? 4096 : 512, s->img->sector == 4096 ? 512 : 4096};
    for (int i = 0; i < 2; i++) {
        struct gpt g;
        uint64_t sectors = s->img->size / sizes[i];
        if (sectors < 3)
            continue;
        if (gpt_header(s->img, sizes[i], 1, &g) && gpt_entries(s, sizes[i], &g))
            return true;
        if (gpt_header(s->img, sizes[i], sectors - 1, &g) && gpt_entries(s, sizes[i], &g)) /* the second copy */
            return true;
    }
    return false;
}

/* ---- MBR ---- */
struct mbr_entry {
    uint8_t status, type;
    uint64_t first, count; /* sectors */
};

static struct mbr_entry mbr_entry_at(const uint8_t *sector, int i)
{
    const uint8_t *e = sector + 446 + 16 * i;
    return (struct mbr_entry){.status = e[0], .type = e[4], .first = gr_get_le32(e + 8), .count = gr_get_le32(e + 12)};
}

static bool is_extended(uint8_t type)
{
    return type == 0x05 || type == 0x0f || type == 0x85;
}

static void add_mbr(struct scan *s, uint32_t number, const struct mbr_entry *e, uint64_t first)
{
    uint64_t off = first * 512, len = e->count * 512, size = s->img->size;
    if (off < size && len > size - off) /* a truncated disk: what is left of the partition */
        len = size - off;
    struct fs_volume *v = add_volume(s, FS_V_PART, number, off, len);
    if (v)
        snprintf(v->type, sizeof v->type, "0x%02x", e->type);
}

static void scan_logical(struct scan *s, uint64_t base)
{
    uint64_t ebr = base;
    for (uint32_t i = 0; i < LOGICAL_MAX; i++) {
        uint8_t b[512];
        if (image_read(s->img, ebr * 512, b, sizeof b) < 0 || b[510] != 0x55 || b[511] != 0xaa)
            return;
        struct mbr_entry e = mbr_entry_at(b, 0), next = mbr_entry_at(b, 1);
        if (e.type && e.count)
            add_mbr(s, 5 + i, &e, ebr + e.first);
        if (!is_extended(next.type) || next.first == 0)
            return;
        ebr = base + next.first;
    }
}

/* A boot sector of a file system carries the same mark as an MBR, and code or text where the table would be. */
static bool mbr_plausible(const uint8_t *b, uint64_t size)
{
    static const char *const boot[] = {"NTFS    ", "EXFAT   "};
    if (b[510] != 0x55 || b[511] != 0xaa)
        return false;
    for (size_t i = 0; i < 2; i++)
        if (memcmp(b + 3, boot[i], 8) == 0)
            return false;
    if (memcmp(b + 54, "FAT", 3) == 0 || memcmp(b + 82, "FAT", 3) == 0)
        return false;
    bool any = false;
    for (int i = 0; i < 4; i++) {
        struct mbr_entry e = mbr_entry_at(b, i);
        if (e.status & 0x7f)
            return false;
        if (e.type && e.count && e.first && e.first < size / 512)
            any = true;
    }
    return any;
}

static bool scan_mbr(struct scan *s)
{
    uint8_t b[512];
    if (image_read(s->img, 0, b, sizeof b) < 0 || !mbr_plausible(b, s->img->size))
        return false;
    uint64_t extended = 0;
    for (int i = 0; i < 4; i++) {
        struct mbr_entry e = mbr_entry_at(b, i);
        if (is_extended(e.type))
            extended = extended ? extended : e.first;
        else if (e.type && e.type != 0xee && e.count && e.first)
            add_mbr(s, (uint32_t)i + 1, &e, e.first);
    }
    if (extended)
        scan_logical(s, extended);
    return true;
}

int fs_parts_scan(const struct fs_image *img, struct fs_volume *out, unsigned max, const char **ret_kind)
{
    struct scan s = {.img = img, .out = out, .max = max};
    uint8_t probe[512];
    if (img->size < sizeof probe) {
        *ret_kind = "none";
        return 0;
    }
    int rc = image_read(img, 0, probe, sizeof probe);
    if (rc < 0)
        return rc;
    if (scan_gpt(&s)) {
        *ret_kind = "gpt";
    } else if (scan_mbr(&s)) {
        *ret_kind = "mbr";
    } else {
        *ret_kind = "none";
        add_volume(&s, FS_V_WHOLE, 0, 0, img->size);
    }
    return (int)s.n;
}
