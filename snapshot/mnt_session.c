/* Talking to the kernel: requests of /dev/fuse, each a fiber, and their answers. */
#include "snapshot/mnt_int.h"
#include "common/seam.h"
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/uio.h>

/* Younger than the headers that we build with. */
#define INIT_DIRECT_IO_ALLOW_MMAP (1ull << 36)
#define INIT_HAS_RESEND (1ull << 39)
#define UNIQUE_RESEND (1ull << 63) /* the kernel gives the request out a second time */

#define HEAD (sizeof(struct fuse_in_header) + sizeof(struct fuse_write_in)) /* so that data of a write falls on the aligned buffer */
#define TURN_MAX 32u /* requests taken from the kernel in one turn */
#define BACKGROUND 64u
#define PROTOCOL_MINOR 36

static const struct mnt_op ops[] = {
    [FUSE_LOOKUP] = {mnt_op_lookup, 1},
    [FUSE_GETATTR] = {mnt_op_getattr, sizeof(struct fuse_getattr_in)},
    [FUSE_SETATTR] = {mnt_op_setattr, sizeof(struct fuse_setattr_in)},
    [FUSE_MKNOD] = {mnt_op_mknod, sizeof(struct fuse_mknod_in) + 1},
    [FUSE_MKDIR] = {mnt_op_mkdir, sizeof(struct fuse_mkdir_in) + 1},
    [FUSE_UNLINK] = {mnt_op_unlink, 1},
    [FUSE_RMDIR] = {mnt_op_rmdir, 1},
    [FUSE_RENAME] = {mnt_op_rename, sizeof(struct fuse_rename_in) + 2},
    [FUSE_OPEN] = {mnt_op_open, sizeof(struct fuse_open_in)},
    [FUSE_READ] = {mnt_op_read, sizeof(struct fuse_read_in)},
    [FUSE_WRITE] = {mnt_op_write, sizeof(struct fuse_write_in)},
    [FUSE_STATFS] = {mnt_op_statfs, 0},
    [FUSE_RELEASE] = {mnt_op_release, sizeof(struct fuse_release_in)},
    [FUSE_FSYNC] = {mnt_op_fsync, sizeof(struct fuse_fsync_in)},
    [FUSE_GETXATTR] = {mnt_op_getxattr, sizeof(struct fuse_getxattr_in) + 1},
    [FUSE_LISTXATTR] = {mnt_op_listxattr, sizeof(struct fuse_getxattr_in)},
    [FUSE_FLUSH] = {mnt_op_flush, sizeof(struct fuse_flush_in)},
    [FUSE_OPENDIR] = {mnt_op_opendir, sizeof(struct fuse_open_in)},
    [FUSE_READDIR] = {mnt_op_readdir, sizeof(struct fuse_read_in)},
    [FUSE_RELEASEDIR] = {mnt_op_releasedir, sizeof(struct fuse_release_in)},
    [FUSE_GETLK] = {mnt_op_getlk, sizeof(struct fuse_lk_in)},
    [FUSE_SETLK] = {mnt_op_setlk, sizeof(struct fuse_lk_in)},
    [FUSE_SETLKW] = {mnt_op_setlkw, sizeof(struct fuse_lk_in)},
    [FUSE_CREATE] = {mnt_op_create, sizeof(struct fuse_create_in) + 1},
    [FUSE_FALLOCATE] = {mnt_op_fallocate, sizeof(struct fuse_fallocate_in)},
    [FUSE_RENAME2] = {mnt_op_rename2, sizeof(struct fuse_rename2_in) + 2},
    [FUSE_LSEEK] = {mnt_op_lseek, sizeof(struct fuse_lseek_in)},
};

/* ---- numbers ---- */
uint64_t mnt_id(const struct mnt_mount *m, uint64_t node)
{
    return node == FUSE_ROOT_ID ? m->root : node;
}

uint64_t mnt_node(const struct mnt_mount *m, uint64_t id)
{
    return id == m->root ? FUSE_ROOT_ID : id;
}

/* ---- buffers ---- */
void *mnt_buf_get(struct mnt_mount *m)
{
    return m->n_bufs ? m->bufs[--m->n_bufs] : gr_alloc_aligned(4096, MNT_BUF);
}

void mnt_buf_put(struct mnt_mount *m, void *buf)
{
    if (buf && m->n_bufs < MNT_BUFS)
        m->bufs[m->n_bufs++] = buf;
    else
        free(buf);
}

/* ---- answers ---- */
static int put(struct mnt_mount *m, int32_t error, uint64_t unique, const void *a, size_t an, const void *b, size_t bn)
{
    struct fuse_out_header h = {.len = (uint32_t)(sizeof(h) + an + bn), .error = error, .unique = unique};
    struct iovec iov[3] = {{&h, sizeof(h)}, {(void *)(uintptr_t)a, an}, {(void *)(uintptr_t)b, bn}};
    ssize_t n = writev(m->fd, iov, bn ? 3 : an ? 2 : 1);
    return n < 0 ? -errno : 0; /* ENOENT: interrupted; ENODEV: unmounted */
}

void mnt_reply2(struct mnt_req *r, const void *data, size_t len, const void *more, size_t more_len)
{
    (void)put(r->m, 0, r->h.unique, data, len, more, more_len);
}

void mnt_reply(struct mnt_req *r, const void *data, size_t len)
{
    mnt_reply2(r, data, len, NULL, 0);
}

void mnt_fail(struct mnt_req *r, int code)
{
    if (code == -GR_EFENCED && !r->m->ending && !r->repeat && !r->again) {
        r->repeat = true; /* what was answered here before is with the hosts that are left */
        return;
    }
    (void)put(r->m, code < 0 ? -gr_code_errno(code) : 0, r->h.unique, NULL, 0, NULL, 0);
}

/* ---- a request ---- */
int mnt_join(struct mnt_mount *m, struct gr_err *err)
{
    struct snap_ds *ds = NULL;
    uint64_t deadline = gr_loop_now_ns(m->s->o.loop) + MNT_PATIENCE_MS * 1000000ull;
    for (;;) {
        int r = snap_ds_get(m->s, m->ds_name, &ds, err);
        if (r == 0 && (!snap_fenced(ds) || m->ending))
            return 0;
        if (r == 0)
            snap_ds_put(ds); /* it is left, and joined again */
        if (m->ending || gr_loop_now_ns(m->s->o.loop) >= deadline)
            return r < 0 ? r : gr_fail(err, -GR_EFENCED, "datastore '%s' is not joined", m->ds_name);
        gr_fiber_sleep_ms(50);
    }
}

int mnt_begin(struct mnt_req *r, struct gr_err *err)
{
    int rc = mnt_join(r->m, err);
    r->begun = rc == 0;
    return rc;
}

void mnt_end(struct mnt_req *r)
{
    if (r->begun)
        snap_ds_put(r->m->ds);
    r->begun = false;
}

static void req_free(struct mnt_req *r)
{
    struct mnt_mount *m = r->m;
    struct mnt_req **p = &m->reqs;
    while (*p != r)
        p = &(*p)->next;
    *p = r->next;
    mnt_buf_put(m, r->data);
    free(r->body);
    free(r);
    if (--m->under_way == 0)
        gr_fqueue_wake_all(&m->wake);
}

static void run(void *arg)
{
    struct mnt_req *r = arg;
    for (bool more = true; more;) {
        struct gr_err err = {0};
        int rc = mnt_begin(r, &err);
        if (rc == 0) {
            r->serve(r);
        } else {
            gr_log_limited(GR_LOG_WARN, "mount on '%s': %s", r->m->dir, gr_err_text(&err, rc));
            r->repeat = true;
            mnt_fail(r, rc);
            r->repeat = false;
        }
        mnt_end(r);
        more = r->repeat && !r->again;
        r->again |= more;
    }
    req_free(r);
}

static void interrupt(struct mnt_mount *m, const struct fuse_interrupt_in *in)
{
    for (struct mnt_req *r = m->reqs; r; r = r->next)
        if (r->h.unique == in->unique) {
            r->interrupted = true;
            if (r->waits)
                gr_fqueue_wake_all(r->waits);
            return;
        }
}

static void start(struct mnt_mount *m, const struct fuse_in_header *h, void *body, size_t len, void *data)
{
    bool known = h->opcode < GR_ARRAY_LEN(ops) && ops[h->opcode].serve;
    struct mnt_req *r = known && len >= ops[h->opcode].min ? gr_zalloc(sizeof(*r)) : NULL;
    if (!r) {
        int code = known ? len < ops[h->opcode].min ? EIO : ENOMEM : h->opcode == FUSE_LINK || h->opcode == FUSE_SYMLINK ? EPERM : ENOSYS;
        (void)put(m, -code, h->unique, NULL, 0, NULL, 0);
        free(body);
        mnt_buf_put(m, data);
        return;
    }
    *r = (struct mnt_req){.next = m->reqs, .m = m, .h = *h, .serve = ops[h->opcode].serve, .body = body, .len = len, .data = data,
                         .again = h->unique & UNIQUE_RESEND};
    m->reqs = r;
    m->under_way++;
    if (gr_fiber_start(m->s->o.loop, run, r) < 0) {
        mnt_fail(r, -ENOMEM);
        req_free(r);
    }
}

static void on_init(struct mnt_mount *m, const struct fuse_in_header *h, const struct fuse_init_in *in)
{
    struct fuse_init_out out = {.major = FUSE_KERNEL_VERSION, .minor = GR_MIN(in->minor, (uint32_t)PROTOCOL_MINOR), .max_readahead = in->max_readahead,
                                .max_background = BACKGROUND, .congestion_threshold = BACKGROUND * 3 / 4, .max_write = MNT_IO_MAX, .time_gran = 1,
                                .max_pages = MNT_IO_MAX / 4096};
    uint64_t theirs = in->flags | (in->flags & FUSE_INIT_EXT ? (uint64_t)in->flags2 << 32 : 0);
    uint64_t ours = theirs & (FUSE_ASYNC_READ | FUSE_POSIX_LOCKS | FUSE_FLOCK_LOCKS | FUSE_ATOMIC_O_TRUNC | FUSE_BIG_WRITES | FUSE_PARALLEL_DIROPS |
                              FUSE_ASYNC_DIO | FUSE_MAX_PAGES | FUSE_INIT_EXT | INIT_DIRECT_IO_ALLOW_MMAP | INIT_HAS_RESEND);
    if (in->major < FUSE_KERNEL_VERSION || in->minor < 31) { /* Linux 5.4 */
        (void)put(m, -EPROTO, h->unique, NULL, 0, NULL, 0);
        return;
    }
    if (in->major > FUSE_KERNEL_VERSION) { /* it asks again, with ours */
        (void)put(m, 0, h->unique, &out, sizeof(out), NULL, 0);
        return;
    }
    out.flags = (uint32_t)ours;
    out.flags2 = (uint32_t)(ours >> 32);
    (void)put(m, 0, h->unique, &out, sizeof(out), NULL, 0);
    uint8_t can = theirs & INIT_HAS_RESEND ? 'r' : 'm';
    if (write(m->holder, &can, 1) < 0) /* the mount answers; may another process go on with it? */
        gr_log(GR_LOG_WARN, "mount on '%s': who holds it is not told that it answers: %s", m->dir, gr_code_text(-errno));
}

/* One message: @head bytes of it are in @head_buf, the rest in @data. True: @data was taken. */
static bool take_message(struct mnt_mount *m, const uint8_t *head, size_t n, uint8_t *data)
{
    struct fuse_in_header h;
    if (n < sizeof(h))
        return false;
    memcpy(&h, head, sizeof(h));
    if (h.len != n)
        return false;
    if (h.opcode == FUSE_FORGET || h.opcode == FUSE_BATCH_FORGET)
        return false; /* nothing is kept for a node */
    size_t len = n - sizeof(h);
    size_t first = GR_MIN(len, HEAD - sizeof(h));
    bool write = h.opcode == FUSE_WRITE;
    uint8_t *body = gr_alloc(len + 1);
    if (!body) {
        (void)put(m, -ENOMEM, h.unique, NULL, 0, NULL, 0);
        return false;
    }
    memcpy(body, head + sizeof(h), first);
    if (!write)
        memcpy(body + first, data, len - first);
    body[len] = 0;
    if (h.opcode == FUSE_INTERRUPT) {
        if (len >= sizeof(struct fuse_interrupt_in))
            interrupt(m, (const void *)body);
    } else if (h.opcode == FUSE_INIT) {
        if (len >= sizeof(struct fuse_init_in))
            on_init(m, &h, (const void *)body);
    } else if (h.opcode == FUSE_DESTROY) {
        (void)put(m, 0, h.unique, NULL, 0, NULL, 0);
    } else {
        const struct fuse_write_in *w = (const void *)body;
        if (write && (len < sizeof(*w) || w->size != len - sizeof(*w))) {
            (void)put(m, -EIO, h.unique, NULL, 0, NULL, 0);
            free(body);
            return false;
        }
        start(m, &h, body, write ? sizeof(*w) : len, write ? data : NULL);
        return write;
    }
    free(body);
    return false;
}

void mnt_readable(void *arg, int events)
{
    struct mnt_mount *m = arg;
    uint8_t head[HEAD];
    for (unsigned i = 0; i < TURN_MAX && !m->over; i++) {
        uint8_t *data = mnt_buf_get(m);
        struct iovec iov[2] = {{head, sizeof(head)}, {data, MNT_IO_MAX}};
        ssize_t n = data ? readv(m->fd, iov, 2) : -1; /* without memory: level-triggered, again in the next turn */
        int code = data ? errno : EAGAIN;
        if (n > 0 && take_message(m, head, (size_t)n, data))
            continue;
        mnt_buf_put(m, data);
        if (n < 0 && code == EAGAIN)
            return;
        if (n == 0 || (n < 0 && code != EINTR && code != ENOENT)) { /* unmounted, or aborted; ENOENT: the request was taken back */
            m->over = true;
            mnt_end_soon(m);
            return;
        }
    }
}
