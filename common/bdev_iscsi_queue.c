/* Commands on their way: sending, completing, trying again. */
#include "common/bdev_iscsi_int.h"
#include "common/cleanup.h"
#include "common/iov.h"
#include <poll.h>
#include <stdlib.h>
#include <string.h>

enum {
    TRIES = 16,       /* of one command that meets UNIT ATTENTION or is aborted */
    BUSY_TRIES = 100, /* that meets BUSY, TASK SET FULL or a unit that is getting ready: half a minute */
    PAUSE_MIN_MS = 5,
    PAUSE_MAX_MS = 320,
};

/* ---- what a command came back with ---- */
static void pause_sending(struct isc_dev *d, unsigned tries)
{
    uint64_t ms = GR_MIN((uint64_t)PAUSE_MIN_MS << GR_MIN(tries, 8u), (uint64_t)PAUSE_MAX_MS);

    d->paused = gr_timer_arm(d->loop, &d->pause, ms * 1000000) >= 0;
}

/* Our range as it is now tells what became of a COMPARE AND WRITE. */
static int decide(struct isc_sub *s, bool *ret_again)
{
    const struct gr_bio *bio = s->req->bio;
    const uint8_t *seen = s->seen + sizeof(struct scsi_iovec);

    if (gr_iov_diff(bio->iov2, bio->iovcnt2, 0, seen, s->len) == s->len) {
        s->req->then_flush = true; /* what can be read need not be durable */
        return 0;
    }
    size_t same = gr_iov_diff(bio->iov, bio->iovcnt, 0, seen, s->len);
    if (same == s->len) {
        s->unsure = false;
        *ret_again = true;
        return 0;
    }
    s->req->bio->miscompare_off = same;
    return -GR_EMISCOMPARE;
}

/* What the unit does not know is done otherwise. True: @s is to be sent again. */
static bool do_without(struct isc_sub *s)
{
    struct isc_dev *d = s->dev;

    if (s->kind == ISC_ZERO && s->unmap) {
        s->unmap = false;
        return true;
    }
    if (s->kind == ISC_ZERO && !d->no_write_same) {
        d->no_write_same = true;
        return true;
    }
    if (s->kind == ISC_CAW && s->fua) {
        d->caw_no_fua = true;
        s->fua = false;
        s->req->then_flush = d->unit.wce;
        return true;
    }
    return false;
}

static bool step_zero(struct isc_sub *s)
{
    for (int i = 0; s->dev->no_write_same && i < s->n_iov; i++)
        s->at += s->iov[i].iov_len;
    return s->dev->no_write_same && s->at < s->len;
}

static void conclude(struct isc_sub *s, int status, const struct scsi_task *t)
{
    struct isc_dev *d = s->dev;
    bool more = false;
    int r = isc_result(s, status, t);

    if (r == -GR_ERESERVED && !d->read_only) {
        isc_fenced(d);
        r = -GR_EFENCED;
    } else if (r == -EOPNOTSUPP && s->kind == ISC_STATUS) {
        d->no_lba_status = true;
        isc_blind(s->req->bio);
        r = 0;
    } else if (r == -EOPNOTSUPP && s->kind == ISC_FLUSH && !d->unit.wce) {
        r = 0; /* nothing that could be flushed */
    } else if (r == -EOPNOTSUPP) {
        more = do_without(s);
        r = s->kind == ISC_CAW ? r : -EIO;
    } else if (r >= 0 && s->unsure) {
        r = decide(s, &more);
    } else if (r >= 0 && s->kind == ISC_ZERO) {
        more = step_zero(s);
    }
    if (more) {
        isc_again(s);
        return;
    }
    bool writes = s->kind == ISC_WRITE || s->kind == ISC_ZERO || s->kind == ISC_CAW;
    if (r >= 0 && writes && d->unit.wce && !isc_dirty_note(d->dirty, s, s->fua || s->kind == ISC_CAW))
        s->req->then_flush = true;
    else if (r >= 0 && s->kind == ISC_FLUSH)
        isc_dirty_clean(d->dirty, s->mark);
    isc_finish(s, r);
}

enum verdict { FINAL, AT_ONCE, AFTER_A_PAUSE };

/* Is the command to be sent again? Notes what a UNIT ATTENTION tells. */
static enum verdict judge(struct isc_dev *d, struct isc_sub *s, int status, const struct scsi_task *t)
{
    struct isc_sense e = {0};
    bool aborted = status == SCSI_STATUS_TASK_ABORTED, busy = status == SCSI_STATUS_BUSY || status == SCSI_STATUS_TASK_SET_FULL;

    if (status == SCSI_STATUS_CHECK_CONDITION)
        e = isc_sense(t);
    if (e.key == 0x06) {
        /* RESERVATIONS PREEMPTED, RELEASED, REGISTRATIONS PREEMPTED; CAPACITY, INQUIRY DATA HAS CHANGED */
        if (d->state == ISC_LIVE && ((e.asc >= 0x2a03 && e.asc <= 0x2a05) || e.asc == 0x2a09 || e.asc == 0x3f03))
            d->look = true;
        return s->tries++ < TRIES ? AT_ONCE : FINAL;
    }
    aborted |= e.key == 0x0b;
    busy |= e.key == 0x02 && (e.asc == 0x0401 || e.asc == 0x040a); /* becoming ready; asymmetric access state transition */
    if (aborted && s->kind == ISC_CAW)
        s->unsure = true; /* it may have been carried out before */
    if (aborted)
        return s->tries++ < TRIES ? AFTER_A_PAUSE : FINAL;
    return busy && s->tries++ < BUSY_TRIES ? AFTER_A_PAUSE : FINAL;
}

static void on_command(struct iscsi_context *ctx, int status, void *data, void *arg)
{
    struct isc_sub *s = arg;
    struct isc_dev *d = s->dev;
    struct scsi_task *t = s->task;

    s->task = NULL;
    isc_unlink(&d->busy, s);
    d->n_busy--;
    bool none = status == SCSI_STATUS_CANCELLED || status == SCSI_STATUS_ERROR || status == SCSI_STATUS_TIMEOUT;
    if (none)
        d->lost |= !d->tearing;
    else
        d->answered_ns = gr_loop_now_ns(d->loop);
    if (s->kind == ISC_QUESTION) {
        s->answer->task = t;
        s->answer->status = status;
        s->answer->done = true;
        gr_fiber_wake(s->answer->waiter);
        return;
    }
    if (none) {
        s->unsure |= s->kind == ISC_CAW;
        isc_insert(&d->waiting, s);
        scsi_free_scsi_task(t);
        return;
    }
    d->failures = 0;
    switch (judge(d, s, status, t)) {
    case FINAL:
        conclude(s, status, t);
        break;
    case AFTER_A_PAUSE:
        pause_sending(d, s->tries);
        isc_again(s);
        break;
    case AT_ONCE:
        isc_again(s);
        break;
    }
    scsi_free_scsi_task(t);
}

/* ---- sending ---- */
static int put_out(struct isc_sub *s, struct scsi_task *t)
{
    struct isc_dev *d = s->dev;

    if (!t)
        return -ENOMEM;
    s->task = t;
    s->sent_ns = gr_loop_now_ns(d->loop);
    s->first_ns = s->first_ns ? s->first_ns : s->sent_ns;
    s->prev = d->busy.tail;
    s->next = NULL;
    *(d->busy.tail ? &d->busy.tail->next : &d->busy.head) = s;
    d->busy.tail = s;
    d->n_busy++;
    if (iscsi_scsi_command_async(d->session.ctx, d->session.lun, t, on_command, NULL, s) == 0)
        return 0;
    isc_unlink(&d->busy, s);
    d->n_busy--;
    s->task = NULL;
    scsi_free_scsi_task(t);
    return -ENOMEM;
}

static void send_sub(struct isc_sub *s)
{
    struct isc_dev *d = s->dev;

    /* If its answer is lost, and what is kept of its range is written again, nobody can tell whether it was carried out. */
    if (s->kind == ISC_CAW && !s->unsure && isc_dirty_overlaps(d->dirty, s->off, s->len)) {
        int r = isc_add_flush(s->req, s);
        if (r < 0)
            isc_finish(s, r);
        return;
    }
    if (s->kind == ISC_STATUS)
        s->req->bio->n_extents = 0;
    if (s->kind == ISC_FLUSH)
        s->mark = isc_dirty_mark(d->dirty);
    if (put_out(s, isc_command(s)) < 0)
        isc_finish(s, -ENOMEM);
}

void isc_kick(struct isc_dev *d)
{
    if (d->fenced)
        isc_fail_waiting(d, -GR_EFENCED);
    switch (d->state) {
    case ISC_LIVE:
        if (d->look)
            isc_start_looking(d);
        while (d->waiting.head && d->n_busy < ISCSI_DEPTH && !d->look && !d->looking && !d->paused) {
            struct isc_sub *s = d->waiting.head;
            isc_unlink(&d->waiting, s);
            send_sub(s);
        }
        isc_pump(d, POLLOUT);
        return;
    case ISC_DOWN:
        if (d->waiting.head)
            isc_start_dialing(d);
        return;
    case ISC_DIALING:
        return;
    case ISC_DEAD:
        isc_fail_waiting(d, d->dead);
        return;
    }
}

void isc_update(struct isc_dev *d)
{
    int ev = d->watching ? iscsi_which_events(d->session.ctx) & (POLLIN | POLLOUT) : 0;

    if (d->watching && ev != d->watch.events)
        (void)gr_watch_set(d->loop, &d->watch, ev);
    if (d->watching && d->busy.head && !d->age.heap_pos) {
        uint64_t now = gr_loop_now_ns(d->loop), due = d->busy.head->sent_ns + d->timeout_ms * 1000000;
        (void)gr_timer_arm(d->loop, &d->age, due > now ? due - now : 1);
    }
}

void isc_pump(struct isc_dev *d, int events)
{
    if (!d->watching)
        return;
    int wanted = iscsi_which_events(d->session.ctx);
    int r = events & wanted ? iscsi_service(d->session.ctx, events & wanted) : 0;
    if (r < 0 || d->lost || iscsi_get_fd(d->session.ctx) != d->session.lib_fd)
        isc_lose(d);
    else
        isc_update(d);
}

/* ---- questions ---- */
/* One command, one answer. The sub is on the fiber's stack. */
static int ask_once(struct isc_dev *d, struct isc_sub *s, struct scsi_task *t, struct isc_answer *a)
{
    if (!d->watching) {
        if (t)
            scsi_free_scsi_task(t);
        return -ECONNRESET;
    }
    *a = (struct isc_answer){.waiter = gr_fiber_self()};
    s->answer = a;
    int r = put_out(s, t);
    if (r < 0)
        return r;
    isc_pump(d, POLLOUT);
    while (!a->done)
        gr_fiber_suspend();
    if (a->status != SCSI_STATUS_CANCELLED && a->status != SCSI_STATUS_ERROR && a->status != SCSI_STATUS_TIMEOUT)
        return 0;
    scsi_free_scsi_task(a->task);
    a->task = NULL;
    return -ECONNRESET;
}

int isc_ask(struct isc_dev *d, const uint8_t *cdb, size_t cdb_len, size_t in, const void *out, size_t out_len, struct isc_answer *ret)
{
    struct isc_sub s = {.dev = d, .kind = ISC_QUESTION};

    for (;;) {
        int r = ask_once(d, &s, isc_small_command(cdb, cdb_len, in, out, out_len), ret);
        if (r < 0)
            return r;
        enum verdict v = judge(d, &s, ret->status, ret->task);
        if (v == FINAL)
            return 0;
        scsi_free_scsi_task(ret->task);
        if (v == AFTER_A_PAUSE)
            isc_sleep_ms(d, GR_MIN(PAUSE_MIN_MS << GR_MIN(s.tries, 8u), PAUSE_MAX_MS));
    }
}

int isc_ask_sub(struct isc_dev *d, struct isc_sub *s)
{
    struct isc_answer a = {0};

    for (;;) {
        enum isc_kind kind = s->kind;
        struct scsi_task *t = isc_command(s);
        s->kind = ISC_QUESTION;
        int r = ask_once(d, s, t, &a);
        s->kind = kind;
        if (r < 0)
            return r;
        enum verdict v = judge(d, s, a.status, a.task);
        bool final = v == FINAL;
        r = final ? isc_result(s, a.status, a.task) : 0;
        scsi_free_scsi_task(a.task);
        if (final && r == -EOPNOTSUPP && s->kind == ISC_ZERO)
            final = !do_without(s);
        else if (final && r >= 0 && s->kind == ISC_ZERO)
            final = !step_zero(s);
        if (final)
            return r;
        if (v == AFTER_A_PAUSE)
            isc_sleep_ms(d, GR_MIN(PAUSE_MIN_MS << GR_MIN(s->tries, 8u), PAUSE_MAX_MS));
    }
}
