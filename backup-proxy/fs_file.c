#include "backup-proxy/fs_file.h"
#include "common/cleanup.h"
#include "common/fiber.h"
#include "common/seam.h"
#include <string.h>

#define AHEAD (1u << 20) /* bytes read ahead of a sequential reader */

struct fs_file {
    struct fs_reader *r;
    const struct fs_vol *vol;
    uint64_t inode, size;
    struct gr_fmutex map_busy;
    bool through_helper;
    struct fs_run *runs; /* complete for [map_off, map_end) */
    unsigned n_runs;
    uint64_t map_off, map_end;
    uint64_t next;       /* where a sequential reader would go on */
};

int fs_file_open(struct fs_reader *r, const struct fs_vol *vol, const struct fs_attr *attr, struct fs_file **ret, struct gr_err *err)
{
    struct fs_file *f = gr_zalloc(sizeof *f);
    if (!f)
        return gr_fail(err, -ENOMEM, "%s: out of memory", fs_reader_name(r));
    *f = (struct fs_file){.r = r, .vol = vol, .inode = attr->inode, .size = attr->size};
    *ret = f;
    return 0;
}

void fs_file_close(struct fs_file *f)
{
    if (!f)
        return;
    free(f->runs);
    free(f);
}

/* Have runs that tell about byte @off. Called with map_busy held. */
static int need_map(struct fs_file *f, uint64_t off, struct gr_err *err)
{
    if (f->through_helper || (off >= f->map_off && off < f->map_end))
        return 0;
    struct fs_run *runs = NULL;
    uint64_t end = 0;
    int n = fs_reader_map(f->r, f->vol, f->inode, off, &runs, &end, err);
    if (n == -EOPNOTSUPP) {
        f->through_helper = true;
        return 0;
    }
    if (n < 0)
        return n;
    free(f->runs);
    f->runs = runs;
    f->n_runs = (unsigned)n;
    f->map_off = off;
    f->map_end = end;
    return 0;
}

/* What lies at @off: *ret_len bytes, either zeros (returns false) or at *ret_vol_off of the volume. */
static bool find_run(const struct fs_file *f, uint64_t off, uint64_t *ret_vol_off, uint64_t *ret_len)
{
    unsigned lo = 0, hi = f->n_runs;
    while (lo < hi) { /* first run that ends behind @off */
        unsigned mid = lo + (hi - lo) / 2;
        if (f->runs[mid].file_off + f->runs[mid].len <= off)
            lo = mid + 1;
        else
            hi = mid;
    }
    if (lo == f->n_runs || f->runs[lo].file_off > off) {
        *ret_len = (lo == f->n_runs ? f->map_end : f->runs[lo].file_off) - off;
        return false;
    }
    uint64_t in = off - f->runs[lo].file_off;
    *ret_vol_off = f->runs[lo].volume_off + in;
    *ret_len = f->runs[lo].len - in;
    return true;
}

static int read_volume(struct fs_file *f, uint8_t *buf, size_t len, uint64_t vol_off)
{
    for (size_t at = 0; at < len;) {
        uint64_t image_off = 0, room = fs_volume_map(f->vol->def, vol_off + at, &image_off);
        size_t n = (size_t)GR_MIN((uint64_t)(len - at), room);
        int rc = n ? fs_cache_read(fs_reader_cache(f->r), buf + at, n, image_off) : -EIO;
        if (rc < 0)
            return rc;
        at += n;
    }
    return 0;
}

static void read_ahead(struct fs_file *f, uint64_t off)
{
    uint64_t vol_off = 0, len = 0, image_off = 0;
    if (off >= f->size || off >= f->map_end || !find_run(f, off, &vol_off, &len))
        return;
    len = GR_MIN(GR_MIN(len, f->size - off), (uint64_t)AHEAD);
    uint64_t room = fs_volume_map(f->vol->def, vol_off, &image_off);
    fs_cache_ahead(fs_reader_cache(f->r), image_off, GR_MIN(len, room));
}

static int read_mapped(struct fs_file *f, uint8_t *buf, size_t len, uint64_t off, struct gr_err *err)
{
    for (size_t at = 0; at < len;) {
        uint64_t vol_off = 0, run = 0;
        gr_fmutex_lock(&f->map_busy);
        int rc = need_map(f, off + at, err);
        bool data = rc == 0 && !f->through_helper && find_run(f, off + at, &vol_off, &run);
        gr_fmutex_unlock(&f->map_busy);
        if (rc < 0)
            return rc;
        size_t n = (size_t)GR_MIN((uint64_t)(len - at), run);
        if (n == 0)
            return gr_fail(err, -EIO, "%s: inode %llu: no content at offset %llu", fs_reader_name(f->r), (unsigned long long)f->inode,
                           (unsigned long long)(off + at));
        if (!data)
            memset(buf + at, 0, n);
        else if ((rc = read_volume(f, buf + at, n, vol_off)) < 0)
            return gr_fail(err, rc, "%s: inode %llu: cannot read the image: %s", fs_reader_name(f->r), (unsigned long long)f->inode,
                           gr_code_text(rc));
        at += n;
    }
    return 0;
}

int64_t fs_file_read(struct fs_file *f, void *buf, size_t len, uint64_t off, struct gr_err *err)
{
    if (off >= f->size)
        return 0;
    len = (size_t)GR_MIN((uint64_t)len, f->size - off);
    gr_fmutex_lock(&f->map_busy);
    int rc = need_map(f, off, err);
    gr_fmutex_unlock(&f->map_busy);
    if (rc < 0)
        return rc;
    if (!f->through_helper) {
        if (off == f->next && off + len < f->size)
            read_ahead(f, off + len);
        f->next = off + len;
        rc = read_mapped(f, buf, len, off, err);
        return rc < 0 ? rc : (int64_t)len;
    }
    size_t at = 0;
    while (at < len) {
        int64_t n = fs_reader_read(f->r, f->vol, f->inode, off + at, (uint8_t *)buf + at, len - at, err);
        if (n < 0)
            return n;
        if (n == 0)
            return gr_fail(err, -EIO, "%s: inode %llu ends before its size", fs_reader_name(f->r), (unsigned long long)f->inode);
        at += (size_t)n;
    }
    return (int64_t)at;
}
