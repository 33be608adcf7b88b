/* The synchronous engine: epoll for readiness, plain system calls for file I/O (at once, reported from the loop). */
#include "common/loop_int.h"
#include "common/cleanup.h"
#include <fcntl.h>
#include <limits.h>
#include <sys/epoll.h>

enum { BATCH = 64 };
/* All watches of one descriptor share its epoll registration. */
struct sync_fd {
    struct gr_wslot *slots;
    uint32_t events; /* registered; 0: not in the epoll set */
    uint32_t gen;    /* tells events of an earlier registration */
};
struct sync_engine {
    int epoll_fd;
    bool no_pwait2;
    struct sync_fd *fds;
    int n_fds;
    unsigned turn;
    struct gr_fio *done_head, *done_tail;
};

void gr_fio_exec(struct gr_fio *fio)
{
    int n = fio->iovcnt < IOV_MAX ? fio->iovcnt : IOV_MAX;
    off_t off = (off_t)fio->off;
    ssize_t r;

    do {
        switch (fio->op) {
        case GR_FOP_READ:
            if (n == 1 && !fio->rw_flags)
                r = pread(fio->fd, fio->iov[0].iov_base, fio->iov[0].iov_len, off);
            else
                r = preadv2(fio->fd, fio->iov, n, off, fio->rw_flags);
            break;
        case GR_FOP_WRITE:
            if (n == 1 && !fio->rw_flags)
                r = pwrite(fio->fd, fio->iov[0].iov_base, fio->iov[0].iov_len, off);
            else
                r = pwritev2(fio->fd, fio->iov, n, off, fio->rw_flags);
            break;
        case GR_FOP_FDATASYNC:
            r = fdatasync(fio->fd);
            break;
        case GR_FOP_FALLOCATE:
            r = fallocate(fio->fd, fio->rw_flags, off, (off_t)fio->len);
            break;
        default:
            r = -1;
            errno = EINVAL;
        }
    } while (r < 0 && errno == EINTR);
    fio->res = r < 0 ? -errno : r;
}

static int sync_open(struct gr_loop *loop, unsigned entries, struct gr_err *err)
{
    struct sync_engine *se = gr_zalloc(sizeof(*se));

    (void)entries;
    if (!se)
        return gr_fail(err, -ENOMEM, "event loop: out of memory");
    se->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (se->epoll_fd < 0) {
        int r = -errno;
        free(se);
        return gr_fail(err, r, "event loop: cannot make an epoll set: %s", gr_code_text(r));
    }
    loop->engine_priv = se;
    return 0;
}

static void sync_close(struct gr_loop *loop)
{
    struct sync_engine *se = loop->engine_priv;

    close(se->epoll_fd);
    free(se->fds);
    free(se);
}

static void sync_file_io(struct gr_loop *loop, struct gr_fio *fio)
{
    struct sync_engine *se = loop->engine_priv;

    if (loop->gang) {
        gr_gang_plain(loop, fio);
        return;
    }
    gr_fio_exec(fio);
    fio->next = NULL;
    if (se->done_tail)
        se->done_tail->next = fio;
    else
        se->done_head = fio;
    se->done_tail = fio;
}

/* Make the epoll registration of @fd the union of what its watches want. */
static int update(struct sync_engine *se, int fd)
{
    struct sync_fd *sf = &se->fds[fd];
    uint32_t events = 0;

    for (struct gr_wslot *s = sf->slots; s; s = s->next)
        events |= (uint32_t)s->wanted;
    if (events == sf->events)
        return 0;
    int op = !events ? EPOLL_CTL_DEL : sf->events ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
    if (op == EPOLL_CTL_ADD)
        sf->gen++;
    struct epoll_event ev = {.events = events, .data.u64 = (uint64_t)sf->gen << 32 | (uint32_t)fd};
    if (epoll_ctl(se->epoll_fd, op, fd, &ev) < 0 && op != EPOLL_CTL_DEL)
        return -errno;
    sf->events = events;
    return 0;
}

static void unlink_slot(struct sync_engine *se, struct gr_wslot *slot)
{
    struct gr_wslot **p = &se->fds[slot->fd].slots;

    while (*p != slot)
        p = &(*p)->next;
    *p = slot->next;
}

static int sync_watch_add(struct gr_loop *loop, struct gr_wslot *slot)
{
    struct sync_engine *se = loop->engine_priv;

    if (slot->fd < 0)
        return -EBADF;
    if (slot->fd >= se->n_fds) {
        int n = slot->fd < 32 ? 64 : slot->fd > INT_MAX / 2 - 1 ? INT_MAX : slot->fd * 2;
        struct sync_fd *fds = gr_realloc(se->fds, (size_t)n * sizeof(*fds));
        if (!fds)
            return -ENOMEM;
        for (int i = se->n_fds; i < n; i++)
            fds[i] = (struct sync_fd){0};
        se->fds = fds;
        se->n_fds = n;
    }
    slot->turn = se->turn;
    slot->next = se->fds[slot->fd].slots;
    se->fds[slot->fd].slots = slot;
    int r = update(se, slot->fd);
    if (r < 0)
        unlink_slot(se, slot);
    return r;
}

static void sync_watch_set(struct gr_loop *loop, struct gr_wslot *slot)
{
    update(loop->engine_priv, slot->fd);
}

static void sync_watch_del(struct gr_loop *loop, struct gr_wslot *slot)
{
    struct sync_engine *se = loop->engine_priv;

    unlink_slot(se, slot);
    update(se, slot->fd);
    free(slot);
}

/* Call the watches of one ready descriptor; each callback may delete any of them. */
static void deliver(struct sync_engine *se, uint64_t data, uint32_t ready)
{
    int fd = (int)(uint32_t)data;

    for (;;) {
        struct sync_fd *sf = &se->fds[fd];
        struct gr_wslot *s = sf->slots;
        if (sf->gen != (uint32_t)(data >> 32) || !sf->events)
            return;
        while (s && (s->turn == se->turn || !s->wanted || !(ready & ((uint32_t)s->wanted | EPOLLHUP | EPOLLERR))))
            s = s->next;
        if (!s)
            return;
        s->turn = se->turn;
        s->w->fn(s->w->arg, (int)(ready & ((uint32_t)s->wanted | EPOLLHUP | EPOLLERR)));
    }
}

static int wait_events(struct sync_engine *se, struct epoll_event *ev, int64_t wait_ns)
{
    if (!se->no_pwait2) {
        struct timespec ts = {.tv_sec = wait_ns / 1000000000, .tv_nsec = wait_ns % 1000000000};
        int n = epoll_pwait2(se->epoll_fd, ev, BATCH, wait_ns < 0 ? NULL : &ts, NULL);
        if (n >= 0 || errno == EINTR)
            return n;
        se->no_pwait2 = true; /* an older kernel, or a filter: milliseconds, rounded up, from now on */
    }
    int64_t ms = wait_ns < 0 ? -1 : wait_ns > (int64_t)INT_MAX * 1000000 ? INT_MAX : (wait_ns + 999999) / 1000000;
    return epoll_wait(se->epoll_fd, ev, BATCH, (int)ms);
}

static void sync_turn(struct gr_loop *loop, int64_t wait_ns)
{
    struct sync_engine *se = loop->engine_priv;
    struct epoll_event ev[BATCH];

    gr_gang_sleep(loop);
    int n = wait_events(se, ev, se->done_head ? 0 : wait_ns);
    gr_gang_wake(loop);
    struct gr_fio *fio = se->done_head;
    se->done_head = se->done_tail = NULL;
    while (fio) {
        struct gr_fio *next = fio->next;
        fio->done(fio);
        fio = next;
    }
    se->turn++;
    for (int i = 0; i < n; i++)
        deliver(se, ev[i].data.u64, ev[i].events);
}

const struct gr_engine_ops gr_engine_sync = {
    .id = GR_ENGINE_SYNC,
    .open = sync_open,
    .close = sync_close,
    .file_io = sync_file_io,
    .watch_add = sync_watch_add,
    .watch_set = sync_watch_set,
    .watch_del = sync_watch_del,
    .turn = sync_turn,
};
