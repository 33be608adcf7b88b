/* Methods file.take, file.take-encrypted and file.give: a long file (a virtual machine's memory) comes or goes over a socket of this machine that the
 * caller listens on. */
#include "common/buf.h"
#include "common/crc.h"
#include "common/rpc.h"
#include "common/seam.h"
#include "snapshot/keyfile.h"
#include "snapshot/service_int.h"
#include "vmfs/files.h"
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#define PART (4u << 20)      /* bytes at a time */
#define GROW (64ull << 20)   /* a file that comes gets longer by so much at once, for each time is a record */
#define SILENT_MS 60000      /* of the other end of the socket */

struct stream {
    struct snap_op *op;
    struct snap_path path;
    struct snap_ds *ds;
    struct vmfs_disk *file;
    struct gr_chan *ch;
    const char *socket;
    uint8_t *buf;
    int fd;
    uint64_t done, size; /* bytes over the socket; length of the file */
    uint32_t crc;
};

static void stream_done(struct stream *s)
{
    gr_chan_close(s->ch);
    if (s->file)
        vmfs_close(s->file);
    if (s->ds)
        snap_ds_put(s->ds);
    if (s->fd >= 0)
        close(s->fd);
    if (s->buf)
        explicit_bzero(s->buf, PART); /* of an encrypted one nothing is left here */
    free(s->buf);
}

static int failed(struct stream *s, int r, const char *what)
{
    return gr_fail(s->op->err, r, "%s/%s: %s at byte %llu: %s", s->path.ds, s->path.path, what, (unsigned long long)s->done, gr_code_text(r));
}

/* Whatever is to come or go: the datastore, and the buffer. */
static int stream_open(struct stream *s)
{
    int r = snap_op_path(s->op, "path", SNAP_PATH_DISK, &s->path);
    if (r == 0)
        r = gr_json_str(s->op->params, "socket", &s->socket, s->op->err);
    if (r == 0)
        r = snap_ds_get(s->op->s, s->path.ds, &s->ds, s->op->err);
    if (r == 0 && !(s->buf = gr_alloc_aligned(4096, PART)))
        r = gr_fail(s->op->err, -ENOMEM, "out of memory");
    return r;
}

/* The file, and then the caller's socket: who waits there is told at once why the file cannot be used, and sends nothing. @id: which it is,
 * whatever its name leads to by now; 0: what the name leads to. */
static int file_open(struct stream *s, uint64_t id)
{
    struct vmfs *v = s->ds->v;
    int r = id ? vmfs_open_id(v, id, s->path.path, &s->file, NULL, s->op->err) : vmfs_open(v, s->path.path, &s->file, NULL, s->op->err);
    if (r == 0 && (r = gr_chan_open(vmfs_bdev(s->file), s->op->s->o.loop, &s->ch)) < 0)
        gr_fail(s->op->err, r, "%s/%s: %s", s->path.ds, s->path.path, gr_code_text(r));
    return r < 0 ? r : gr_unix_connect(s->socket, &s->fd, s->op->err);
}

/* Fill the buffer from the socket: how much came, less than PART only at its end. */
static int64_t receive(struct stream *s)
{
    size_t n = 0;
    while (n < PART) {
        ssize_t k = recv(s->fd, s->buf + n, PART - n, MSG_DONTWAIT);
        int r = k >= 0 ? 0 : errno == EAGAIN || errno == EINTR ? gr_fiber_wait_fd(s->fd, POLLIN, SILENT_MS) : -errno;
        if (r < 0)
            return failed(s, r, "receiving");
        if (k == 0)
            break;
        n += k > 0 ? (size_t)k : 0;
    }
    return (int64_t)n;
}

static int put(struct stream *s, size_t n)
{
    size_t whole = (n + 511) / 512 * 512;
    int r = 0;
    memset(s->buf + n, 0, whole - n);
    if (s->done + n > s->size) {
        s->size = s->done + (n < PART ? n : GR_MAX((uint64_t)n, GROW));
        r = vmfs_file_resize(s->file, s->size, s->op->err);
    }
    if (r == 0 && (r = gr_pwrite(s->ch, s->buf, whole, s->done, 0)) < 0)
        failed(s, r, "writing");
    s->crc = gr_crc32c(s->crc, s->buf, n);
    s->done += n;
    return r;
}

static int take_all(struct stream *s, uint64_t limit)
{
    int64_t n = PART;
    int r = 0;
    while (r == 0 && n == PART) {
        n = receive(s);
        r = n < 0 ? (int)n : (uint64_t)n > limit - s->done ? failed(s, -EFBIG, "it is longer than it may be") : n ? put(s, (size_t)n) : 0;
    }
    if (r == 0 && s->size != s->done)
        r = vmfs_file_resize(s->file, s->done, s->op->err);
    if (r == 0 && (r = gr_flush(s->ch)) < 0)
        failed(s, r, "flushing");
    return r;
}

static int result(struct stream *s)
{
    return snap_op_result(s->op, json_pack("{s:I,s:I}", "bytes", (json_int_t)s->done, "crc", (json_int_t)s->crc));
}

/* @key: the key-encryption key; 0: it is not encrypted. */
static int take(struct snap_op *op, uint64_t key)
{
    gr_auto(stream_done) struct stream s = {.op = op, .fd = -1};
    uint64_t limit = 0, id = 0;
    int r = gr_json_u64(op->params, "limit", &limit, op->err);
    if (r == 0)
        r = stream_open(&s);
    if (r == 0 && (r = vmfs_create_file(s.ds->v, s.path.path, key, &id, op->err)) == -ENOKEY)
        gr_prefix(op->err, r, "%s/%s", s.path.ds, s.path.path);
    if (r < 0)
        return r;
    r = file_open(&s, id);
    if (r == 0)
        r = take_all(&s, limit);
    gr_chan_close(gr_take(s.ch));
    if (s.file)
        vmfs_close(gr_take(s.file));
    if (r == 0)
        r = vmfs_release_id(s.ds->v, id, s.path.path, op->err); /* home, so that any host can give it */
    if (r < 0)
        (void)vmfs_remove_object(s.ds->v, s.path.path, id, NULL); /* unless somebody has given its name to something else */
    return r < 0 ? r : result(&s);
}

static int op_take(struct snap_op *op)
{
    return take(op, 0);
}
SNAP_METHOD(op_take, "file.take")

/* A method of its own, so that a service which does not know it refuses, and writes nothing in clear. */
static int op_take_encrypted(struct snap_op *op)
{
    const char *text = NULL;
    uint64_t key;
    int r = gr_json_str(op->params, "key", &text, op->err);
    if (r == 0)
        r = snap_key_parse(text, &key, op->err);
    return r == 0 ? take(op, key) : r;
}
SNAP_METHOD(op_take_encrypted, "file.take-encrypted")

static int send_part(struct stream *s, size_t n)
{
    for (size_t off = 0; off < n;) {
        ssize_t k = send(s->fd, s->buf + off, n - off, MSG_DONTWAIT | MSG_NOSIGNAL);
        int r = k >= 0 ? 0 : errno == EAGAIN || errno == EINTR ? gr_fiber_wait_fd(s->fd, POLLOUT, SILENT_MS) : -errno;
        if (r < 0)
            return failed(s, r, "sending");
        off += k > 0 ? (size_t)k : 0;
    }
    return 0;
}

static int op_give(struct snap_op *op)
{
    gr_auto(stream_done) struct stream s = {.op = op, .fd = -1};
    struct vmfs_stat st;
    int r = stream_open(&s);
    if (r == 0)
        r = vmfs_stat(s.ds->v, s.path.path, &st, op->err);
    if (r == 0 && st.type != VMFS_FILE)
        r = gr_fail(op->err, -EINVAL, "%s/%s is no file", s.path.ds, s.path.path);
    if (r == 0)
        r = file_open(&s, 0);
    while (r == 0 && s.done < st.size) {
        size_t n = (size_t)GR_MIN(st.size - s.done, (uint64_t)PART);
        r = gr_pread(s.ch, s.buf, (n + 511) / 512 * 512, s.done);
        r = r < 0 ? failed(&s, r, "reading") : send_part(&s, n);
        s.crc = gr_crc32c(s.crc, s.buf, n);
        s.done += r == 0 ? n : 0;
    }
    gr_chan_close(gr_take(s.ch));
    if (s.file)
        vmfs_close(gr_take(s.file));
    if (s.ds && s.path.path[0])
        (void)vmfs_release(s.ds->v, s.path.path, NULL);
    return r < 0 ? r : result(&s);
}
SNAP_METHOD(op_give, "file.give")

const struct gr_rpc_method snap_stream_methods[] = {
    {"file.take", rpc_op_take}, {"file.take-encrypted", rpc_op_take_encrypted}, {"file.give", rpc_op_give}, {NULL, NULL}};
