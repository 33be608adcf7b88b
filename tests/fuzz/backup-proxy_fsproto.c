/* What a hostile helper may send to its parent, and what hostile images may make of partition tables and LVM metadata. */
#include "backup-proxy/fs_lvm.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void decode(const uint8_t *data, size_t size)
{
    struct fs_in in = {.p = data, .end = data + size};
    static struct fs_volume v;
    static struct fs_entry e;
    struct fs_opened o;
    struct fs_run r;
    uint32_t len = 0;
    char text[64];
    fs_get_volume(&in, &v);
    if (!in.bad && fs_volume_ok(&v, 1 << 30)) {
        uint64_t off = 0, room = fs_volume_map(&v, v.size - 1, &off);
        if (room == 0 || off >= 1 << 30 || fs_volume_map(&v, v.size, &off) != 0)
            __builtin_trap();
    }
    in = (struct fs_in){.p = data, .end = data + size};
    while (!in.bad && in.p < in.end) {
        fs_get_entry(&in, &e);
        if (!in.bad && (!fs_name_ok(e.name, e.name_len) || strlen(e.name) != e.name_len || e.attr.type >= FS_T_LAST))
            __builtin_trap();
    }
    in = (struct fs_in){.p = data, .end = data + size};
    fs_get_opened(&in, &o);
    fs_get_run(&in, &r);
    fs_get_str(&in, text, sizeof text);
    const uint8_t *blob = fs_get_blob(&in, FS_DATA_MAX, &len);
    if (blob && len && (blob < data || blob + len > data + size))
        __builtin_trap();
    if (in.bad && fs_in_done(&in))
        __builtin_trap();
    if (size >= FS_HDR) {
        struct fs_hdr h;
        if (fs_hdr_get(data, &h) && h.len > FS_BODY_MAX)
            __builtin_trap();
    }
}

/* The input as the first bytes of a disk of 1 GiB; the rest is zeros. */
struct disk {
    const uint8_t *data;
    size_t size;
};
static int disk_read(void *arg, uint64_t off, void *buf, size_t len)
{
    const struct disk *d = arg;
    size_t n = off < d->size ? (len < d->size - off ? len : (size_t)(d->size - off)) : 0;
    memset(buf, 0, len);
    if (n)
        memcpy(buf, d->data + off, n);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    decode(data, size);
    struct disk d = {data, size};
    struct fs_image img = {.size = 1 << 30, .sector = size % 2 ? 512 : 4096, .read = disk_read, .arg = &d};
    static struct fs_volume vols[FS_VOLUMES_MAX];
    const char *kind = NULL;
    int n = fs_parts_scan(&img, vols, FS_VOLUMES_MAX, &kind);
    if (n < 0 || n > (int)FS_VOLUMES_MAX || !kind)
        __builtin_trap();
    n = fs_lvm_scan(&img, vols, (unsigned)n, FS_VOLUMES_MAX);
    if (n < 0 && n != -ENOMEM)
        __builtin_trap();
    for (int i = 0; i < n; i++)
        if (!fs_volume_ok(&vols[i], img.size))
            __builtin_trap();
    return 0;
}
