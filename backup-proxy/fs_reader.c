#include "backup-proxy/fs_reader.h"
#include "backup-proxy/fs_helper.h"
#include "common/cleanup.h"
#include "common/fiber.h"
#include "common/seam.h"
#include <stdio.h>
#include <string.h>

#define BUDGET_MS 4000u /* one operation of a mount may take two requests: ten seconds at most */
#define CACHE_BYTES (64u << 20)

struct fs_reader {
    struct gr_bdev *bdev;
    struct fs_cache *cache;
    struct fs_helper helper;
    uint32_t sector;
    struct gr_fmutex busy;      /* one request at a time */
    struct gr_fmutex scan_busy;
    bool scanned;
    char table[16];
    struct fs_vol *vols;
    unsigned n_vols;
    bool told[FS_VOLUMES_MAX];  /* the running helper knows this volume */
};

int fs_reader_open(struct gr_loop *loop, struct gr_bdev *bdev, const struct fs_reader_opts *opts, struct fs_reader **ret,
                   struct gr_err *err)
{
    static const struct fs_reader_opts defaults;
    const struct fs_reader_opts *o = opts ? opts : &defaults;
    struct gr_geometry g = {0};
    int rc = gr_bdev_geometry(bdev, &g);
    if (rc < 0)
        return gr_fail(err, rc, "%s: cannot learn its geometry: %s", bdev->name, gr_code_text(rc));
    struct fs_reader *r = gr_zalloc(sizeof *r);
    if (!r)
        return gr_fail(err, -ENOMEM, "%s: out of memory", bdev->name);
    r->bdev = gr_bdev_get(bdev);
    r->sector = g.logical_block;
    r->helper.fd = -1;
    rc = fs_cache_new(loop, bdev, o->cache_bytes ? o->cache_bytes : CACHE_BYTES, &r->cache, err);
    if (rc == 0)
        rc = fs_helper_init(&r->helper, loop, r->cache, bdev->name, o->helper, (o->budget_ms ? o->budget_ms : BUDGET_MS) * 1000000ull,
                            err);
    if (rc < 0) {
        fs_reader_free(r);
        return rc;
    }
    *ret = r;
    return 0;
}

void fs_reader_free(struct fs_reader *r)
{
    if (!r)
        return;
    fs_helper_done(&r->helper);
    fs_cache_free(r->cache);
    for (unsigned i = 0; i < r->n_vols; i++)
        free(r->vols[i].def);
    free(r->vols);
    gr_bdev_put(r->bdev);
    free(r);
}

struct fs_cache *fs_reader_cache(struct fs_reader *r)
{
    return r->cache;
}

const char *fs_reader_name(const struct fs_reader *r)
{
    return r->bdev->name;
}

int fs_reader_pid(const struct fs_reader *r)
{
    return r->helper.pid;
}

/* ---- requests ---- */
static int on_ok(void *arg, uint16_t type, struct fs_in *in)
{
    return type == FS_OK ? 1 : -GR_EPROTO;
}

static int start_helper(struct fs_reader *r, struct gr_err *err)
{
    if (r->helper.fd >= 0)
        return 0;
    memset(r->told, 0, sizeof r->told);
    int rc = fs_helper_start(&r->helper, err);
    if (rc < 0)
        return rc;
    struct fs_out o = fs_helper_body(&r->helper);
    fs_put_u64(&o, fs_cache_size(r->cache));
    fs_put_u32(&o, r->sector);
    return fs_helper_ask(&r->helper, FS_HELLO, &o, on_ok, NULL, err);
}

static int tell_volume(struct fs_reader *r, uint32_t id, struct gr_err *err)
{
    if (r->told[id])
        return 0;
    struct fs_out o = fs_helper_body(&r->helper);
    fs_put_u32(&o, id);
    fs_put_volume(&o, r->vols[id].def);
    int rc = fs_helper_ask(&r->helper, FS_VOLUME, &o, on_ok, NULL, err);
    if (rc == 0)
        r->told[id] = true;
    return rc;
}

/* Numbers of a request behind the volume id. */
struct ask {
    uint16_t type;
    bool inode, off, len; /* which of them the request has */
    uint64_t inode_val, off_val;
    uint32_t len_val;
};

/* One request about volume @id (-1: about the disk). */
static int ask(struct fs_reader *r, int64_t id, const struct ask *a, fs_reply_fn *on, void *arg, struct gr_err *err)
{
    gr_fmutex_lock(&r->busy);
    int rc = start_helper(r, err);
    if (rc == 0 && id >= 0)
        rc = tell_volume(r, (uint32_t)id, err);
    if (rc == 0) {
        struct fs_out o = fs_helper_body(&r->helper);
        if (id >= 0)
            fs_put_u32(&o, (uint32_t)id);
        if (a->inode)
            fs_put_u64(&o, a->inode_val);
        if (a->off)
            fs_put_u64(&o, a->off_val);
        if (a->len)
            fs_put_u32(&o, a->len_val);
        rc = fs_helper_ask(&r->helper, a->type, &o, on, arg, err);
    }
    gr_fmutex_unlock(&r->busy);
    return rc;
}

/* ---- volumes ---- */
struct parts {
    struct fs_reader *r;
    int rc; /* trouble of ours */
};

static void vol_name(const struct fs_reader *r, unsigned n, const struct fs_volume *v, char out[64])
{
    if (v->kind == FS_V_WHOLE) {
        snprintf(out, 64, "whole");
        return;
    }
    if (v->kind == FS_V_PART) {
        snprintf(out, 64, "part%u", v->number);
    } else {
        snprintf(out, 64, "lv-%.60s", v->label);
        for (char *c = out; *c; c++)
            if (*c == '/' || (unsigned char)*c < 0x21 || (unsigned char)*c > 0x7e)
                *c = '-';
    }
    for (unsigned i = 0; i < n; i++)
        if (strcmp(r->vols[i].name, out) == 0) /* a hostile table may repeat itself */
            snprintf(out, 64, "volume%u", n);
}

static int on_parts(void *arg, uint16_t type, struct fs_in *in)
{
    struct parts *p = arg;
    struct fs_reader *r = p->r;
    if (type != FS_PARTS_ARE)
        return -GR_EPROTO;
    fs_get_str(in, r->table, sizeof r->table);
    uint32_t n = fs_get_u32(in);
    if (in->bad || n > FS_VOLUMES_MAX)
        return -GR_EPROTO;
    r->vols = gr_zalloc((n + 1) * sizeof *r->vols);
    for (uint32_t i = 0; r->vols && i < n; i++) {
        struct fs_volume *v = gr_zalloc(sizeof *v);
        if (!v) {
            p->rc = -ENOMEM;
            in->p = in->end;
            return 1;
        }
        struct fs_vol *vol = &r->vols[i];
        *vol = (struct fs_vol){.id = i, .def = v};
        r->n_vols = i + 1;
        fs_get_volume(in, v);
        if (in->bad || !fs_volume_ok(v, fs_cache_size(r->cache)))
            return -GR_EPROTO;
        vol_name(r, i, v, vol->name);
    }
    p->rc = r->vols ? 0 : -ENOMEM;
    if (p->rc < 0)
        in->p = in->end;
    return 1;
}

static int on_opened(void *arg, uint16_t type, struct fs_in *in)
{
    if (type != FS_OPENED)
        return -GR_EPROTO;
    fs_get_opened(in, arg);
    return 1;
}

static void forget_volumes(struct fs_reader *r)
{
    for (unsigned i = 0; i < r->n_vols; i++)
        free(r->vols[i].def);
    free(r->vols);
    r->vols = NULL;
    r->n_vols = 0;
}

static int scan(struct fs_reader *r, struct gr_err *err)
{
    struct parts p = {.r = r};
    int rc = ask(r, -1, &(struct ask){.type = FS_PARTS}, on_parts, &p, err);
    if (rc == 0 && p.rc < 0)
        rc = gr_fail(err, p.rc, "%s: out of memory", r->bdev->name);
    if (rc < 0) {
        forget_volumes(r);
        return rc;
    }
    for (unsigned i = 0; i < r->n_vols; i++) {
        struct fs_vol *v = &r->vols[i];
        struct gr_err why = {0};
        v->status = ask(r, i, &(struct ask){.type = FS_OPEN}, on_opened, &v->info, &why);
        if (v->status < 0)
            snprintf(v->why, sizeof v->why, "%.250s", v->status == -ENODEV ? "no file system known to this reader" : why.text);
    }
    r->scanned = true;
    return 0;
}

int fs_reader_scan(struct fs_reader *r, const struct fs_vol **ret, unsigned *ret_n, const char **ret_table, struct gr_err *err)
{
    gr_fmutex_lock(&r->scan_busy);
    int rc = r->scanned ? 0 : scan(r, err);
    gr_fmutex_unlock(&r->scan_busy);
    if (rc < 0)
        return rc;
    *ret = r->vols;
    *ret_n = r->n_vols;
    *ret_table = r->table;
    return 0;
}

/* ---- files ---- */
static int on_attr(void *arg, uint16_t type, struct fs_in *in)
{
    if (type != FS_ATTR)
        return -GR_EPROTO;
    fs_get_attr(in, arg);
    return 1;
}

int fs_reader_stat(struct fs_reader *r, const struct fs_vol *vol, uint64_t inode, struct fs_attr *ret, struct gr_err *err)
{
    struct fs_attr a;
    int rc = ask(r, vol->id, &(struct ask){.type = FS_STAT, .inode = true, .inode_val = inode}, on_attr, &a, err);
    if (rc == 0)
        *ret = a;
    return rc;
}

struct listing {
    int (*on)(void *arg, const struct fs_entry *e);
    void *arg;
    int rc;
    uint32_t total;
    struct fs_entry e;
};

static int on_entries(void *arg, uint16_t type, struct fs_in *in)
{
    struct listing *l = arg;
    if (type == FS_OK)
        return 1;
    uint32_t n = fs_get_u32(in);
    if (type != FS_ENTRIES || in->bad || n == 0 || n > FS_LIST_MAX - l->total)
        return -GR_EPROTO;
    l->total += n;
    for (uint32_t i = 0; i < n; i++) {
        fs_get_entry(in, &l->e);
        if (in->bad)
            return -GR_EPROTO;
        if (l->rc == 0)
            l->rc = l->on(l->arg, &l->e);
    }
    return 0;
}

int fs_reader_list(struct fs_reader *r, const struct fs_vol *vol, uint64_t inode, int (*on)(void *arg, const struct fs_entry *e),
                   void *arg, struct gr_err *err)
{
    struct listing l = {.on = on, .arg = arg};
    int rc = ask(r, vol->id, &(struct ask){.type = FS_LIST, .inode = true, .inode_val = inode}, on_entries, &l, err);
    if (rc == 0 && l.rc < 0)
        return gr_fail(err, l.rc, "%s: listing a directory: %s", r->bdev->name, gr_code_text(l.rc));
    return rc;
}

static int on_text(void *arg, uint16_t type, struct fs_in *in)
{
    if (type != FS_TEXT)
        return -GR_EPROTO;
    fs_get_str(in, arg, FS_LINK_MAX + 1);
    return 1;
}

int fs_reader_link(struct fs_reader *r, const struct fs_vol *vol, uint64_t inode, char ret[FS_LINK_MAX + 1], struct gr_err *err)
{
    return ask(r, vol->id, &(struct ask){.type = FS_LINK, .inode = true, .inode_val = inode}, on_text, ret, err);
}

struct bytes {
    uint8_t *buf;
    size_t len, got;
};

static int on_data(void *arg, uint16_t type, struct fs_in *in)
{
    struct bytes *b = arg;
    uint32_t n = 0;
    const uint8_t *p = fs_get_blob(in, b->len, &n);
    if (type != FS_DATA || !p)
        return -GR_EPROTO;
    memcpy(b->buf, p, n);
    b->got = n;
    return 1;
}

int64_t fs_reader_read(struct fs_reader *r, const struct fs_vol *vol, uint64_t inode, uint64_t off, void *buf, size_t len,
                       struct gr_err *err)
{
    struct bytes b = {.buf = buf, .len = GR_MIN(len, (size_t)FS_DATA_MAX)};
    struct ask a = {.type = FS_READ, .inode = true, .inode_val = inode, .off = true, .off_val = off, .len = true,
                    .len_val = (uint32_t)b.len};
    int rc = ask(r, vol->id, &a, on_data, &b, err);
    return rc < 0 ? rc : (int64_t)b.got;
}

struct mapping {
    const struct fs_vol *vol;
    struct fs_run *runs;
    uint32_t n;
    uint64_t off, end;
    int rc;
};

static int on_runs(void *arg, uint16_t type, struct fs_in *in)
{
    struct mapping *m = arg;
    bool mappable = fs_get_u8(in) != 0;
    m->end = fs_get_u64(in);
    m->n = fs_get_u32(in);
    if (type != FS_RUNS || in->bad || m->n > FS_RUNS_MAX || (!mappable && m->n))
        return -GR_EPROTO;
    if (!mappable) {
        m->rc = -EOPNOTSUPP;
        return 1;
    }
    m->runs = gr_zalloc((m->n + 1) * sizeof *m->runs);
    uint64_t at = 0, size = m->vol->def->size;
    for (uint32_t i = 0; i < m->n; i++) {
        struct fs_run run;
        fs_get_run(in, &run);
        if (in->bad || run.len == 0 || run.file_off < at || run.file_off > INT64_MAX || run.len > size || run.volume_off > size - run.len)
            return -GR_EPROTO;
        at = run.file_off + run.len;
        if (m->runs)
            m->runs[i] = run;
    }
    m->rc = m->runs ? 0 : -ENOMEM;
    return m->end > m->off ? 1 : -GR_EPROTO; /* else the asker would ask for ever */
}

int fs_reader_map(struct fs_reader *r, const struct fs_vol *vol, uint64_t inode, uint64_t off, struct fs_run **ret_runs,
                  uint64_t *ret_end, struct gr_err *err)
{
    struct mapping m = {.vol = vol, .off = off};
    struct ask a = {.type = FS_MAP, .inode = true, .inode_val = inode, .off = true, .off_val = off};
    int rc = ask(r, vol->id, &a, on_runs, &m, err);
    if (rc == 0)
        rc = m.rc;
    if (rc < 0) {
        free(m.runs);
        return rc;
    }
    *ret_runs = m.runs;
    *ret_end = m.end;
    return (int)m.n;
}
