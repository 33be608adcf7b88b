#include "backup-proxy/fs_proto.h"
#include "common/endian.h"
#include <string.h>

void fs_hdr_put(uint8_t out[FS_HDR], const struct fs_hdr *h)
{
    gr_put_le32(out, FS_MAGIC);
    gr_put_le16(out + 4, h->type);
    gr_put_le16(out + 6, 0);
    gr_put_le32(out + 8, h->len);
    gr_put_le32(out + 12, h->seq);
}

bool fs_hdr_get(const uint8_t in[FS_HDR], struct fs_hdr *ret)
{
    if (gr_get_le32(in) != FS_MAGIC || gr_get_le16(in + 6) != 0)
        return false;
    struct fs_hdr h = {.type = gr_get_le16(in + 4), .len = gr_get_le32(in + 8), .seq = gr_get_le32(in + 12)};
    if (h.len > FS_BODY_MAX)
        return false;
    *ret = h;
    return true;
}

/* ---- writing ---- */
static uint8_t *out_room(struct fs_out *o, size_t len)
{
    if (o->bad || len > o->cap - o->len) {
        o->bad = true;
        return NULL;
    }
    uint8_t *p = o->p + o->len;
    o->len += len;
    return p;
}

void fs_put_u8(struct fs_out *o, uint8_t v)
{
    uint8_t *p = out_room(o, 1);
    if (p)
        *p = v;
}

void fs_put_u32(struct fs_out *o, uint32_t v)
{
    uint8_t *p = out_room(o, 4);
    if (p)
        gr_put_le32(p, v);
}

void fs_put_u64(struct fs_out *o, uint64_t v)
{
    uint8_t *p = out_room(o, 8);
    if (p)
        gr_put_le64(p, v);
}

void fs_put_blob(struct fs_out *o, const void *data, size_t len)
{
    if (len > FS_DATA_MAX) {
        o->bad = true;
        return;
    }
    fs_put_u32(o, (uint32_t)len);
    uint8_t *p = out_room(o, len);
    if (p && len)
        memcpy(p, data, len);
}

void fs_put_str(struct fs_out *o, const char *s)
{
    fs_put_blob(o, s, strlen(s));
}

void fs_put_volume(struct fs_out *o, const struct fs_volume *v)
{
    fs_put_u8(o, v->kind);
    fs_put_u32(o, v->number);
    fs_put_u64(o, v->size);
    fs_put_str(o, v->label);
    fs_put_str(o, v->type);
    fs_put_u32(o, v->n_segs);
    for (uint32_t i = 0; i < v->n_segs; i++) {
        fs_put_u64(o, v->segs[i].volume_off);
        fs_put_u64(o, v->segs[i].image_off);
        fs_put_u64(o, v->segs[i].len);
    }
}

void fs_put_opened(struct fs_out *o, const struct fs_opened *v)
{
    fs_put_str(o, v->fs);
    fs_put_str(o, v->label);
    fs_put_str(o, v->uuid);
    fs_put_u8(o, v->dirty);
    fs_put_u64(o, v->root);
    fs_put_u64(o, v->block_size);
    fs_put_u64(o, v->size);
}

static void put_time(struct fs_out *o, const struct fs_time *t)
{
    fs_put_u64(o, (uint64_t)t->sec);
    fs_put_u32(o, t->nsec);
}

void fs_put_attr(struct fs_out *o, const struct fs_attr *a)
{
    fs_put_u64(o, a->inode);
    fs_put_u64(o, a->size);
    fs_put_u64(o, a->nlink);
    fs_put_u32(o, a->mode);
    fs_put_u32(o, a->uid);
    fs_put_u32(o, a->gid);
    fs_put_u8(o, a->type);
    put_time(o, &a->mtime);
    put_time(o, &a->atime);
    put_time(o, &a->ctime);
    put_time(o, &a->btime);
}

void fs_put_entry(struct fs_out *o, const struct fs_entry *e)
{
    fs_put_attr(o, &e->attr);
    fs_put_blob(o, e->name, e->name_len);
}

void fs_put_run(struct fs_out *o, const struct fs_run *r)
{
    fs_put_u64(o, r->file_off);
    fs_put_u64(o, r->volume_off);
    fs_put_u64(o, r->len);
}

/* ---- reading ---- */
static const uint8_t *in_take(struct fs_in *in, size_t len)
{
    if (in->bad || len > (size_t)(in->end - in->p)) {
        in->bad = true;
        return NULL;
    }
    const uint8_t *p = in->p;
    in->p += len;
    return p;
}

uint8_t fs_get_u8(struct fs_in *in)
{
    const uint8_t *p = in_take(in, 1);
    return p ? *p : 0;
}

uint32_t fs_get_u32(struct fs_in *in)
{
    const uint8_t *p = in_take(in, 4);
    return p ? gr_get_le32(p) : 0;
}

uint64_t fs_get_u64(struct fs_in *in)
{
    const uint8_t *p = in_take(in, 8);
    return p ? gr_get_le64(p) : 0;
}

const uint8_t *fs_get_blob(struct fs_in *in, size_t max, uint32_t *ret_len)
{
    *ret_len = 0;
    uint32_t len = fs_get_u32(in);
    if (len > max) {
        in->bad = true;
        return NULL;
    }
    const uint8_t *p = in_take(in, len);
    if (p)
        *ret_len = len;
    return p;
}

void fs_get_str(struct fs_in *in, char *out, size_t cap)
{
    uint32_t len = 0;
    const uint8_t *p = fs_get_blob(in, cap - 1, &len);
    out[0] = '\0';
    if (!p)
        return;
    if (memchr(p, '\0', len)) {
        in->bad = true;
        return;
    }
    memcpy(out, p, len);
    out[len] = '\0';
}

void fs_get_volume(struct fs_in *in, struct fs_volume *v)
{
    v->kind = fs_get_u8(in);
    v->number = fs_get_u32(in);
    v->size = fs_get_u64(in);
    fs_get_str(in, v->label, sizeof v->label);
    fs_get_str(in, v->type, sizeof v->type);
    v->n_segs = fs_get_u32(in);
    if (v->kind > FS_V_LV || v->n_segs == 0 || v->n_segs > FS_SEGS_MAX)
        in->bad = true;
    if (in->bad)
        v->n_segs = 0;
    for (uint32_t i = 0; i < v->n_segs; i++) {
        v->segs[i].volume_off = fs_get_u64(in);
        v->segs[i].image_off = fs_get_u64(in);
        v->segs[i].len = fs_get_u64(in);
    }
}

void fs_get_opened(struct fs_in *in, struct fs_opened *v)
{
    fs_get_str(in, v->fs, sizeof v->fs);
    fs_get_str(in, v->label, sizeof v->label);
    fs_get_str(in, v->uuid, sizeof v->uuid);
    v->dirty = fs_get_u8(in);
    v->root = fs_get_u64(in);
    v->block_size = fs_get_u64(in);
    v->size = fs_get_u64(in);
}

static void get_time(struct fs_in *in, struct fs_time *t)
{
    t->sec = (int64_t)fs_get_u64(in);
    t->nsec = fs_get_u32(in);
    if (t->nsec > 999999999) /* a guest may write anything here: it is no error of the protocol */
        t->nsec = 0;
}

void fs_get_attr(struct fs_in *in, struct fs_attr *a)
{
    a->inode = fs_get_u64(in);
    a->size = fs_get_u64(in);
    a->nlink = fs_get_u64(in);
    a->mode = fs_get_u32(in);
    a->uid = fs_get_u32(in);
    a->gid = fs_get_u32(in);
    a->type = fs_get_u8(in);
    get_time(in, &a->mtime);
    get_time(in, &a->atime);
    get_time(in, &a->ctime);
    get_time(in, &a->btime);
    if (a->type >= FS_T_LAST || a->mode > 07777 || a->size > INT64_MAX)
        in->bad = true;
}

void fs_get_entry(struct fs_in *in, struct fs_entry *e)
{
    fs_get_attr(in, &e->attr);
    uint32_t len = 0;
    const uint8_t *p = fs_get_blob(in, FS_NAME_MAX, &len);
    if (!p || !fs_name_ok((const char *)p, len)) {
        in->bad = true;
        len = 0;
    } else {
        memcpy(e->name, p, len);
    }
    e->name[len] = '\0';
    e->name_len = len;
}

void fs_get_run(struct fs_in *in, struct fs_run *r)
{
    r->file_off = fs_get_u64(in);
    r->volume_off = fs_get_u64(in);
    r->len = fs_get_u64(in);
}

bool fs_in_done(const struct fs_in *in)
{
    return !in->bad && in->p == in->end;
}

/* ---- rules ---- */
bool fs_name_ok(const char *name, size_t len)
{
    if (len == 0 || len > FS_NAME_MAX || memchr(name, '/', len) || memchr(name, '\0', len))
        return false;
    return !(name[0] == '.' && (len == 1 || (len == 2 && name[1] == '.')));
}

bool fs_volume_ok(const struct fs_volume *v, uint64_t image_size)
{
    uint64_t at = 0;
    for (uint32_t i = 0; i < v->n_segs; i++) {
        const struct fs_seg *s = &v->segs[i];
        if (s->volume_off != at || s->len == 0 || s->len > image_size || s->image_off > image_size - s->len)
            return false;
        if (s->len > INT64_MAX - at)
            return false;
        at += s->len;
    }
    return v->n_segs > 0 && v->n_segs <= FS_SEGS_MAX && at == v->size;
}

uint64_t fs_volume_map(const struct fs_volume *v, uint64_t off, uint64_t *ret_image_off)
{
    uint32_t lo = 0, hi = v->n_segs;
    while (lo < hi) { /* first piece that begins behind @off */
        uint32_t mid = lo + (hi - lo) / 2;
        if (v->segs[mid].volume_off <= off)
            lo = mid + 1;
        else
            hi = mid;
    }
    if (lo == 0)
        return 0;
    const struct fs_seg *s = &v->segs[lo - 1];
    uint64_t in = off - s->volume_off;
    if (in >= s->len)
        return 0;
    *ret_image_off = s->image_off + in;
    return s->len - in;
}
