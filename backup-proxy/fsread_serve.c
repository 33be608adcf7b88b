#include "backup-proxy/fsread_serve.h"
#include "backup-proxy/fs_lvm.h"
#include "backup-proxy/fsread_tsk.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BATCH 65536u /* bytes of directory entries in one frame */

struct slot { /* what a volume id means */
    struct fs_volume *vol;
    struct fsread_fs *fs;
    struct fs_opened info;
};
struct server {
    int fd;
    uint32_t seq; /* of the request being served */
    struct fs_image img;
    struct slot slots[FS_VOLUMES_MAX];
    uint8_t *body;  /* of the request, FS_BODY_MAX */
    uint8_t *reply; /* FS_BODY_MAX */
    bool lost;      /* the socket failed or its peer broke the protocol: end */
};

/* ---- frames ---- */
static bool read_all(int fd, uint8_t *p, size_t len)
{
    while (len) {
        ssize_t n = read(fd, p, len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        p += n;
        len -= (size_t)n;
    }
    return true;
}

static bool write_all(int fd, const uint8_t *p, size_t len)
{
    while (len) {
        ssize_t n = write(fd, p, len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        p += n;
        len -= (size_t)n;
    }
    return true;
}

static void send_frame(struct server *s, uint16_t type, const uint8_t *body, size_t len)
{
    uint8_t h[FS_HDR];
    fs_hdr_put(h, &(struct fs_hdr){.type = type, .len = (uint32_t)len, .seq = s->seq});
    if (s->lost || !write_all(s->fd, h, sizeof h) || !write_all(s->fd, body, len))
        s->lost = true;
}

static void send_error(struct server *s, int code, const char *text)
{
    uint8_t b[512];
    struct fs_out o = {.p = b, .cap = sizeof b};
    fs_put_u32(&o, (uint32_t)-code);
    fs_put_str(&o, text);
    send_frame(s, FS_ERROR, b, o.len);
}

/* A request that the file system could not serve. */
static void send_failure(struct server *s, int code, const char *what)
{
    char text[FS_TEXT_MAX + 1];
    snprintf(text, sizeof text, "%s: %.180s", what, fsread_why());
    send_error(s, code, text);
}

static void send_out(struct server *s, uint16_t type, const struct fs_out *o)
{
    if (o->bad)
        send_error(s, -EOVERFLOW, "the answer does not fit into a message");
    else
        send_frame(s, type, o->p, o->len);
}

/* Ask the parent for bytes of the image. */
static int image_read(void *arg, uint64_t off, void *buf, size_t len)
{
    struct server *s = arg;
    for (size_t at = 0; at < len;) {
        uint32_t n = len - at < FS_DATA_MAX ? (uint32_t)(len - at) : FS_DATA_MAX;
        uint8_t b[12], head[FS_HDR + 8];
        struct fs_out o = {.p = b, .cap = sizeof b};
        fs_put_u64(&o, off + at);
        fs_put_u32(&o, n);
        send_frame(s, FS_IMG_READ, b, o.len);
        struct fs_hdr h;
        if (s->lost || !read_all(s->fd, head, sizeof head) || !fs_hdr_get(head, &h) || h.type != FS_IMG_DATA || h.len < 8) {
            s->lost = true;
            return -EIO;
        }
        struct fs_in in = {.p = head + FS_HDR, .end = head + sizeof head};
        int status = (int)fs_get_u32(&in);
        uint32_t got = fs_get_u32(&in);
        if (got != h.len - 8 || got != (status == 0 ? n : 0)) {
            s->lost = true;
            return -EIO;
        }
        if (status != 0)
            return -EIO;
        if (!read_all(s->fd, (uint8_t *)buf + at, got)) {
            s->lost = true;
            return -EIO;
        }
        at += n;
    }
    return 0;
}

/* ---- requests ---- */
static void do_hello(struct server *s, struct fs_in *in)
{
    s->img.size = fs_get_u64(in);
    s->img.sector = fs_get_u32(in);
    if (!fs_in_done(in) || s->img.size > INT64_MAX)
        s->lost = true;
    send_frame(s, FS_OK, NULL, 0);
}

static void do_parts(struct server *s, struct fs_in *in)
{
    const char *kind = "none";
    struct fs_volume *v = calloc(FS_VOLUMES_MAX, sizeof *v);
    int n = v ? fs_parts_scan(&s->img, v, FS_VOLUMES_MAX, &kind) : -ENOMEM;
    if (n >= 0)
        n = fs_lvm_scan(&s->img, v, (unsigned)n, FS_VOLUMES_MAX);
    if (n < 0) {
        send_error(s, n, "cannot read the partition table");
    } else {
        struct fs_out o = {.p = s->reply, .cap = FS_BODY_MAX};
        fs_put_str(&o, kind);
        fs_put_u32(&o, (uint32_t)n);
        for (int i = 0; i < n; i++)
            fs_put_volume(&o, &v[i]);
        send_out(s, FS_PARTS_ARE, &o);
    }
    free(v);
}

static void do_volume(struct server *s, struct fs_in *in)
{
    uint32_t id = fs_get_u32(in);
    struct fs_volume *v = calloc(1, sizeof *v);
    if (v)
        fs_get_volume(in, v);
    if (!v || !fs_in_done(in) || id >= FS_VOLUMES_MAX || s->slots[id].vol || !fs_volume_ok(v, s->img.size)) {
        free(v);
        send_error(s, -EINVAL, "not a volume of this image");
        return;
    }
    s->slots[id].vol = v;
    send_frame(s, FS_OK, NULL, 0);
}

/* The file system of the volume a request names, opened at its first use; answers the error itself. */
static struct slot *open_slot(struct server *s, struct fs_in *in)
{
    uint32_t id = fs_get_u32(in);
    if (in->bad || id >= FS_VOLUMES_MAX || !s->slots[id].vol) {
        send_error(s, -EINVAL, "unknown volume");
        return NULL;
    }
    struct slot *slot = &s->slots[id];
    if (slot->fs)
        return slot;
    struct fsread_text why = {""};
    int rc = fsread_open(&s->img, slot->vol, &slot->info, &slot->fs, &why);
    if (rc < 0) {
        send_error(s, rc, why.text);
        return NULL;
    }
    return slot;
}

static void do_open(struct server *s, struct fs_in *in)
{
    struct slot *slot = open_slot(s, in);
    if (!slot)
        return;
    struct fs_out o = {.p = s->reply, .cap = FS_BODY_MAX};
    fs_put_opened(&o, &slot->info);
    send_out(s, FS_OPENED, &o);
}

struct lister {
    struct server *s;
    struct fs_out o;
    uint32_t in_batch, total;
};

static void flush_batch(struct lister *l)
{
    struct fs_out head = {.p = l->s->reply, .cap = 4};
    fs_put_u32(&head, l->in_batch);
    if (l->in_batch)
        send_frame(l->s, FS_ENTRIES, l->s->reply, l->o.len);
    l->o.len = 4;
    l->in_batch = 0;
}

static int emit_entry(void *arg, const struct fs_entry *e)
{
    struct lister *l = arg;
    if (++l->total > FS_LIST_MAX)
        return -EFBIG;
    fs_put_entry(&l->o, e);
    l->in_batch++;
    if (l->o.len > BATCH)
        flush_batch(l);
    return l->s->lost ? -EPIPE : 0;
}

static void do_list(struct server *s, struct fs_in *in)
{
    struct slot *slot = open_slot(s, in);
    if (!slot)
        return;
    uint64_t inode = fs_get_u64(in);
    struct lister l = {.s = s, .o = {.p = s->reply, .cap = FS_BODY_MAX, .len = 4}};
    int rc = fsread_list(slot->fs, inode, emit_entry, &l);
    if (rc < 0) {
        send_failure(s, rc, "cannot read the directory");
        return;
    }
    flush_batch(&l);
    send_frame(s, FS_OK, NULL, 0);
}

static void do_stat(struct server *s, struct fs_in *in)
{
    struct slot *slot = open_slot(s, in);
    if (!slot)
        return;
    struct fs_attr a;
    int rc = fsread_stat(slot->fs, fs_get_u64(in), &a);
    struct fs_out o = {.p = s->reply, .cap = FS_BODY_MAX};
    if (rc < 0) {
        send_failure(s, rc, "cannot read the inode");
        return;
    }
    fs_put_attr(&o, &a);
    send_out(s, FS_ATTR, &o);
}

static void do_link(struct server *s, struct fs_in *in)
{
    struct slot *slot = open_slot(s, in);
    if (!slot)
        return;
    const char *target = NULL;
    int rc = fsread_link(slot->fs, fs_get_u64(in), &target);
    struct fs_out o = {.p = s->reply, .cap = FS_BODY_MAX};
    if (rc < 0) {
        send_failure(s, rc, "cannot read the symbolic link");
        return;
    }
    fs_put_str(&o, target);
    send_out(s, FS_TEXT, &o);
}

static void do_read(struct server *s, struct fs_in *in)
{
    struct slot *slot = open_slot(s, in);
    if (!slot)
        return;
    uint64_t inode = fs_get_u64(in), off = fs_get_u64(in);
    uint32_t len = fs_get_u32(in);
    int64_t n = len <= FS_DATA_MAX ? fsread_read(slot->fs, inode, off, s->reply + 4, len) : -EINVAL;
    if (n < 0) {
        send_failure(s, (int)n, "cannot read the file");
        return;
    }
    struct fs_out o = {.p = s->reply, .cap = 4};
    fs_put_u32(&o, (uint32_t)n);
    o.len += (size_t)n;
    send_out(s, FS_DATA, &o);
}

static void do_map(struct server *s, struct fs_in *in)
{
    struct slot *slot = open_slot(s, in);
    if (!slot)
        return;
    uint64_t inode = fs_get_u64(in), off = fs_get_u64(in), end = 0;
    struct fs_run *runs = calloc(FS_RUNS_MAX, sizeof *runs);
    int n = runs ? fsread_map(slot->fs, inode, off, runs, FS_RUNS_MAX, &end) : -ENOMEM;
    if (n < 0 && n != -EOPNOTSUPP) {
        send_failure(s, n, "cannot find the content of the file");
    } else {
        struct fs_out o = {.p = s->reply, .cap = FS_BODY_MAX};
        fs_put_u8(&o, n >= 0);
        fs_put_u64(&o, end);
        fs_put_u32(&o, n >= 0 ? (uint32_t)n : 0);
        for (int i = 0; i < n; i++)
            fs_put_run(&o, &runs[i]);
        send_out(s, FS_RUNS, &o);
    }
    free(runs);
}

static void serve_request(struct server *s, const struct fs_hdr *h)
{
    static const struct {
        uint16_t type;
        void (*fn)(struct server *s, struct fs_in *in);
    } table[] = {{FS_HELLO, do_hello}, {FS_PARTS, do_parts}, {FS_VOLUME, do_volume}, {FS_OPEN, do_open}, {FS_LIST, do_list},
                 {FS_STAT, do_stat},   {FS_LINK, do_link},   {FS_READ, do_read},     {FS_MAP, do_map}};
    struct fs_in in = {.p = s->body, .end = s->body + h->len};
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++)
        if (table[i].type == h->type) {
            table[i].fn(s, &in);
            return;
        }
    s->lost = true;
}

int fsread_serve(int fd)
{
    struct server *s = calloc(1, sizeof *s);
    if (!s)
        return -ENOMEM;
    s->fd = fd;
    s->img.read = image_read;
    s->img.arg = s;
    s->body = malloc(FS_BODY_MAX);
    s->reply = malloc(FS_BODY_MAX);
    bool ended = !s->body || !s->reply;
    int rc = ended ? -ENOMEM : 0;
    while (!ended) {
        uint8_t head[FS_HDR];
        struct fs_hdr h;
        if (!read_all(fd, head, sizeof head))
            break; /* the parent is done with us */
        if (!fs_hdr_get(head, &h) || !read_all(fd, s->body, h.len)) {
            rc = -EPROTO;
            break;
        }
        s->seq = h.seq;
        serve_request(s, &h);
        ended = s->lost;
    }
    for (size_t i = 0; i < FS_VOLUMES_MAX; i++) {
        fsread_close(s->slots[i].fs);
        free(s->slots[i].vol);
    }
    free(s->body);
    free(s->reply);
    rc = s->lost ? -EPROTO : rc;
    free(s);
    return rc;
}
