/* The io_uring engine: file I/O and polls through one ring, one entry into the kernel per turn.
 *
 * Readiness is level-triggered: each watch has at most one one-shot poll in flight, armed again after its callback,
 * which makes the kernel look at the descriptor anew. Re-arming rides on the next turn's submit, so it costs no call.
 * user_data: the request's or slot's address, its kind in the low bits. */
#include "common/cleanup.h"
#include "common/loop_int.h"
#include <assert.h>
#include <limits.h>
#include <liburing.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { TAG_FIO = 0, TAG_POLL = 1, TAG_NONE = 2, TAG_MASK = 7 };
/* One transfer's limit: within what the kernel takes at once (INT_MAX & PAGE_MASK) and sqe->len. */
#define MAX_ONE_BUFFER ((size_t)1 << 30)
/* Requests that wait for the end of a turn cost the device its depth, each early submission a system call. One that has nothing else to do gets the
 * first at once and then as many as it has, so that it is at work while we prepare the next: virtual disks tell of all they had in one interrupt, and an
 * initiator at depth 32, its target and its disk would take turns with all 32. One that stays alone is submitted by the wait, for nothing. */
#define SUBMIT_AT 16u

struct uring_engine {
    struct io_uring ring;
    bool enabled;           /* the ring belongs to the thread that first turns the loop */
    unsigned in_flight;     /* file operations the kernel has */
    struct gr_fio *wait_head, *wait_tail; /* had no place in the submission queue */
    struct gr_wslot *dirty; /* slots to arm or disarm before the next submit */
};

static bool ops_known(struct io_uring *ring)
{
    static const int need[] = {IORING_OP_READ, IORING_OP_WRITE, IORING_OP_READV, IORING_OP_WRITEV,
                               IORING_OP_FSYNC, IORING_OP_FALLOCATE, IORING_OP_POLL_ADD, IORING_OP_POLL_REMOVE};
    struct io_uring_probe *probe = io_uring_get_probe_ring(ring);
    bool ok = probe != NULL;

    for (size_t i = 0; ok && i < sizeof(need) / sizeof(need[0]); i++)
        ok = io_uring_opcode_supported(probe, need[i]);
    io_uring_free_probe(probe);
    return ok;
}

static int uring_open(struct gr_loop *loop, unsigned entries, struct gr_err *err)
{
    static const unsigned flags[] = {
        IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_R_DISABLED,
        IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_COOP_TASKRUN | IORING_SETUP_R_DISABLED,
        IORING_SETUP_COOP_TASKRUN | IORING_SETUP_R_DISABLED,
        IORING_SETUP_R_DISABLED,
    };
    struct uring_engine *ue = gr_zalloc(sizeof(*ue));
    struct io_uring_params params;
    int r = -ENOSYS;

    if (!ue)
        return gr_fail(err, -ENOMEM, "event loop: out of memory");
    for (size_t i = 0; i < sizeof(flags) / sizeof(flags[0]); i++) {
        params = (struct io_uring_params){.flags = flags[i] | IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP, .cq_entries = entries * 4};
        r = io_uring_queue_init_params(entries, &ue->ring, &params);
        if (r != -EINVAL)
            break;
    }
    if (r < 0) {
        free(ue);
        return gr_fail(err, r == -ENOMEM ? r : -ENOSYS, "event loop: io_uring cannot be set up: %s", gr_code_text(r));
    }
    const unsigned features = IORING_FEAT_NODROP | IORING_FEAT_SUBMIT_STABLE | IORING_FEAT_EXT_ARG;
    if ((params.features & features) != features || !ops_known(&ue->ring)) {
        io_uring_queue_exit(&ue->ring);
        free(ue);
        return gr_fail(err, -ENOSYS, "event loop: this kernel's io_uring is too old (5.11 is needed)");
    }
    io_uring_ring_dontfork(&ue->ring);
    loop->engine_priv = ue;
    return 0;
}

static void check(int r)
{
    /* Interrupted, or short of memory or completion room: tried again next turn. Anything else is a bug of ours,
     * such as two threads turning one loop. */
    assert(r >= 0 || r == -EINTR || r == -EAGAIN || r == -EBUSY || r == -ETIME || r == -ENOMEM);
}

static void enable(struct uring_engine *ue)
{
    if (ue->enabled)
        return;
    /* Debian 12's liburing (2.3) declares io_uring_enable_rings() but does not export it. */
    int r = (int)syscall(__NR_io_uring_register, ue->ring.ring_fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0);
    check(r < 0 ? -errno : r);
    ue->enabled = true;
}

static struct io_uring_sqe *get_sqe(struct uring_engine *ue)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&ue->ring);

    if (!sqe) {
        enable(ue);
        check(io_uring_submit(&ue->ring));
        sqe = io_uring_get_sqe(&ue->ring);
    }
    return sqe;
}

/* ---- file I/O ---- */
static bool queue_fio(struct uring_engine *ue, struct gr_fio *fio)
{
    struct io_uring_sqe *sqe = get_sqe(ue);
    int n = fio->iovcnt < IOV_MAX ? fio->iovcnt : IOV_MAX;

    if (!sqe)
        return false;
    switch (fio->op) {
    case GR_FOP_READ:
    case GR_FOP_WRITE: {
        bool rd = fio->op == GR_FOP_READ;
        if (n == 1) {
            size_t len = fio->iov[0].iov_len < MAX_ONE_BUFFER ? fio->iov[0].iov_len : MAX_ONE_BUFFER;
            io_uring_prep_rw(rd ? IORING_OP_READ : IORING_OP_WRITE, sqe, fio->fd, fio->iov[0].iov_base, (unsigned)len, fio->off);
        } else {
            io_uring_prep_rw(rd ? IORING_OP_READV : IORING_OP_WRITEV, sqe, fio->fd, fio->iov, (unsigned)n, fio->off);
        }
        sqe->rw_flags = fio->rw_flags;
        if (fio->aside)
            sqe->flags |= IOSQE_ASYNC;
        break;
    }
    case GR_FOP_FDATASYNC:
        io_uring_prep_fsync(sqe, fio->fd, IORING_FSYNC_DATASYNC);
        break;
    case GR_FOP_FALLOCATE:
        io_uring_prep_rw(IORING_OP_FALLOCATE, sqe, fio->fd, NULL, (unsigned)fio->rw_flags, fio->off);
        sqe->addr = fio->len;
        break;
    }
    io_uring_sqe_set_data64(sqe, (uintptr_t)fio | TAG_FIO);
    ue->in_flight++;
    return true;
}

/* Of requests that are queued: worth a submission of their own. */
static unsigned enough(const struct uring_engine *ue, const struct gr_fio *fio)
{
    unsigned queued = io_uring_sq_ready(&ue->ring), held = ue->in_flight - GR_MIN(queued, ue->in_flight);
    return fio->soon ? GR_MIN(GR_MAX(held + 1, 2u), SUBMIT_AT) : SUBMIT_AT;
}

static void uring_file_io(struct gr_loop *loop, struct gr_fio *fio)
{
    struct uring_engine *ue = loop->engine_priv;

    if (!ue->wait_head && queue_fio(ue, fio)) {
        if (ue->enabled && !loop->gang && io_uring_sq_ready(&ue->ring) >= enough(ue, fio))
            check(io_uring_submit(&ue->ring));
        return;
    }
    fio->next = NULL;
    if (ue->wait_tail)
        ue->wait_tail->next = fio;
    else
        ue->wait_head = fio;
    ue->wait_tail = fio;
}

/* ---- watches ---- */
static void mark_dirty(struct uring_engine *ue, struct gr_wslot *slot)
{
    if (slot->dirty)
        return;
    slot->dirty = true;
    slot->next = ue->dirty;
    ue->dirty = slot;
}

static void free_if_done(struct gr_wslot *slot)
{
    if (!slot->w && !slot->armed && !slot->dirty && !slot->busy)
        free(slot);
}

/* Bring the kernel's view of @slot to what is wanted. False: no place in the queue now. */
static bool settle(struct uring_engine *ue, struct gr_wslot *slot)
{
    /* A poll that waits for more than is wanted may stay: if it fires, it is armed anew with the right events.
     * One of a deleted watch must go, it holds the file open. */
    bool arm = slot->wanted && !slot->armed;
    bool disarm = slot->armed && !slot->canceling && (!slot->w || (slot->wanted & ~slot->armed_events));

    if (!arm && !disarm)
        return true;
    struct io_uring_sqe *sqe = get_sqe(ue);
    if (!sqe)
        return false;
    if (arm) {
        io_uring_prep_poll_add(sqe, slot->fd, (unsigned)slot->wanted);
        io_uring_sqe_set_data64(sqe, (uintptr_t)slot | TAG_POLL);
        slot->armed = true;
        slot->armed_events = slot->wanted;
    } else {
        io_uring_prep_poll_remove(sqe, (uintptr_t)slot | TAG_POLL);
        io_uring_sqe_set_data64(sqe, TAG_NONE);
        slot->canceling = true;
    }
    return true;
}

static int uring_watch_add(struct gr_loop *loop, struct gr_wslot *slot)
{
    if (slot->fd < 0)
        return -EBADF;
    mark_dirty(loop->engine_priv, slot);
    gr_gang_rouse(loop);
    return 0;
}

static void uring_watch_set(struct gr_loop *loop, struct gr_wslot *slot)
{
    mark_dirty(loop->engine_priv, slot);
    gr_gang_rouse(loop);
}

static void uring_watch_del(struct gr_loop *loop, struct gr_wslot *slot)
{
    struct uring_engine *ue = loop->engine_priv;

    if (loop->closing) { /* perhaps on another thread, which the ring would refuse; it is closed in a moment */
        mark_dirty(ue, slot);
        return;
    }
    if (slot->armed && gr_gang_here(loop) != loop) { /* only its own thread may use the ring */
        mark_dirty(ue, slot);
        gr_gang_rouse(loop);
    } else if (slot->armed && ue->enabled) {
        /* At once: the poll holds the file, and the caller is about to close the descriptor. */
        if (settle(ue, slot))
            check(io_uring_submit_and_get_events(&ue->ring));
        else
            mark_dirty(ue, slot);
    }
    free_if_done(slot);
}

static void on_poll(struct uring_engine *ue, struct gr_wslot *slot, int res)
{
    slot->armed = false;
    slot->canceling = false;
    if (slot->w && slot->wanted && res != -ECANCELED) {
        /* An error (a descriptor that cannot be polled, or was closed) is told as such. */
        int events = res < 0 ? POLLERR : res & (slot->wanted | POLLHUP | POLLERR | POLLNVAL);
        if (events) {
            slot->busy = true;
            slot->w->fn(slot->w->arg, events);
            slot->busy = false;
        }
    }
    if (slot->w && slot->wanted)
        mark_dirty(ue, slot);
    free_if_done(slot);
}

/* ---- turns ---- */
static void flush_queues(struct uring_engine *ue)
{
    while (ue->dirty) {
        struct gr_wslot *slot = ue->dirty;
        if (!settle(ue, slot))
            return;
        ue->dirty = slot->next;
        slot->dirty = false;
        free_if_done(slot);
    }
    while (ue->wait_head && queue_fio(ue, ue->wait_head)) {
        ue->wait_head = ue->wait_head->next;
        if (!ue->wait_head)
            ue->wait_tail = NULL;
    }
}

static void deliver(struct uring_engine *ue)
{
    struct io_uring *ring = &ue->ring;

    /* As many as there are now; each is released before its callback, which may use the ring. */
    for (unsigned n = io_uring_cq_ready(ring); n; n--) {
        const struct io_uring_cqe *cqe = &ring->cq.cqes[*ring->cq.khead & ring->cq.ring_mask];
        uint64_t data = cqe->user_data;
        int res = cqe->res;
        io_uring_cq_advance(ring, 1);
        void *p = (void *)(uintptr_t)(data & ~(uint64_t)TAG_MASK); /* NOLINT: the address we put there */
        if ((data & TAG_MASK) == TAG_FIO) {
            struct gr_fio *fio = p;
            ue->in_flight--;
            fio->res = res;
            fio->done(fio);
        } else if ((data & TAG_MASK) == TAG_POLL) {
            on_poll(ue, p, res);
        }
    }
}

static void uring_turn(struct gr_loop *loop, int64_t wait_ns)
{
    struct uring_engine *ue = loop->engine_priv;
    struct io_uring *ring = &ue->ring;
    struct io_uring_cqe *cqe;

    enable(ue);
    flush_queues(ue);
    bool now = io_uring_cq_ready(ring) || ue->wait_head || ue->dirty;
    gr_gang_sleep(loop);
    if (now) {
        if (io_uring_sq_ready(ring))
            check(io_uring_submit_and_get_events(ring));
    } else if (wait_ns == 0) {
        check(io_uring_submit_and_get_events(ring));
    } else if (wait_ns < 0) {
        check(io_uring_submit_and_wait(ring, 1));
    } else {
        struct __kernel_timespec ts = {.tv_sec = wait_ns / 1000000000, .tv_nsec = wait_ns % 1000000000};
        check(io_uring_submit_and_wait_timeout(ring, &cqe, 1, &ts, NULL));
    }
    gr_gang_wake(loop);
    deliver(ue);
}

static void uring_close(struct gr_loop *loop)
{
    struct uring_engine *ue = loop->engine_priv;

    /* Memory of file operations in flight must not be left to the kernel. (None may be pending; this is for the thread
     * that turned the loop.) Polls touch no memory. */
    while (ue->in_flight) {
        if (io_uring_submit_and_wait(&ue->ring, 1) == -EEXIST)
            break;
        deliver(ue);
    }
    deliver(ue);
    io_uring_queue_exit(&ue->ring);
    while (ue->dirty) {
        struct gr_wslot *slot = ue->dirty;
        ue->dirty = slot->next;
        free(slot);
    }
    free(ue);
}

const struct gr_engine_ops gr_engine_uring = {
    .id = GR_ENGINE_URING,
    .open = uring_open,
    .close = uring_close,
    .file_io = uring_file_io,
    .watch_add = uring_watch_add,
    .watch_set = uring_watch_set,
    .watch_del = uring_watch_del,
    .turn = uring_turn,
};
