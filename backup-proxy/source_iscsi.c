/* A read-only gr_bdev over iSCSI, through libiscsi's asynchronous calls.
 *
 * A request becomes READ(16) commands of limited size, all queued at once; the target's command window paces them. When the
 * session is lost, what was in flight waits, a fiber logs in again (with growing pauses, a bounded number of times in a row),
 * sees that the unit is still the same one, and sends it anew. What a target returns is not trusted: before a read each sector
 * of the buffer is marked with a random number, and one still marked after GOOD status was never sent; LBA status must move
 * on and stay inside the question. */
#include "backup-proxy/source_iscsi_int.h"
#include "common/cleanup.h"
#include "common/endian.h"
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#define TRIES 5         /* of one command that meets UNIT ATTENTION, BUSY or TASK SET FULL */
#define STATUS_MAX (UINT64_C(1) << 40)
#define MARK_EVERY 512

static void kick(struct san_source *src);

static void update(struct san_source *src)
{
    int ev = src->watching ? iscsi_which_events(src->session.ctx) & (POLLIN | POLLOUT) : 0;
    if (src->watching && ev != src->watch.events)
        (void)gr_watch_set(src->loop, &src->watch, ev);
    if (src->watching && src->busy && src->progress)
        (void)gr_timer_arm(src->loop, &src->silence, src->timeout_ms * 1000000);
    else if (!src->busy)
        gr_timer_cancel(src->loop, &src->silence);
    src->progress = false;
}

/* ---- marks ---- */

static void each_mark(struct san_sub *s, bool plant, bool *ret_left)
{
    const uint64_t nonce = s->src->nonce;
    for (int i = 0; i < s->n_iov; i++) {
        uint8_t *p = s->iov[i].iov_base;
        for (size_t at = 0; s->iov[i].iov_len >= 8 && at <= s->iov[i].iov_len - 8; at += MARK_EVERY) {
            if (plant)
                memcpy(p + at, &nonce, 8);
            else if (!memcmp(p + at, &nonce, 8))
                *ret_left = true;
        }
    }
}

/* ---- completion ---- */

static void sub_free(struct san_sub *s)
{
    free(s->bounce);
    free(s->iov);
    free(s);
}

static void scatter(const struct gr_bio *bio, uint64_t at, const uint8_t *p, size_t len)
{
    for (int i = 0; i < bio->iovcnt && len; i++) {
        size_t n = bio->iov[i].iov_len;
        if (at >= n) {
            at -= n;
            continue;
        }
        n = GR_MIN(n - (size_t)at, len);
        memcpy((uint8_t *)bio->iov[i].iov_base + at, p, n);
        p += n;
        len -= n;
        at = 0;
    }
}

static void run_done(void *arg)
{
    struct san_source *src = arg;
    struct san_sub *list = src->done;
    src->done = src->done_tail = NULL;
    while (list) {
        struct san_sub *s = list;
        struct san_req *r = s->req;
        list = s->next;
        if (s->status >= 0 && s->bounce && r->bio->op == GR_OP_READ)
            scatter(r->bio, s->off - r->bio->off, s->bounce, s->len);
        if (s->status < 0 && r->status >= 0)
            r->status = s->status;
        sub_free(s);
        if (--r->pending)
            continue;
        struct gr_bio *bio = r->bio;
        int status = r->status;
        free(r);
        gr_bio_end(bio, status); /* the last one may close the source: nothing of it is touched after that */
    }
}

static void finish(struct san_sub *s, int status)
{
    struct san_source *src = s->src;
    s->status = status;
    s->next = NULL;
    if (src->done_tail)
        src->done_tail->next = s;
    else
        src->done = s;
    src->done_tail = s;
    gr_loop_defer(src->loop, &src->complete);
}

static void unbusy(struct san_sub *s)
{
    struct san_sub **p = &s->src->busy;
    while (*p != s)
        p = &(*p)->next;
    *p = s->next;
}

/* ---- what a command came back with ---- */

static int sense_code(const struct scsi_task *t)
{
    switch ((int)t->sense.key) {
    case SCSI_SENSE_MEDIUM_ERROR:
        return -GR_EMEDIUM;
    case SCSI_SENSE_ILLEGAL_REQUEST:
        return t->sense.ascq == SCSI_SENSE_ASCQ_LBA_OUT_OF_RANGE ? -GR_ERANGE : -EOPNOTSUPP;
    case SCSI_SENSE_DATA_PROTECTION:
        return -EACCES;
    default:
        return -EIO;
    }
}

static int read_result(struct san_sub *s, const struct scsi_task *t)
{
    bool left = false;
    if (t->residual_status != SCSI_RESIDUAL_NO_RESIDUAL)
        return -GR_EPROTO; /* fewer or more bytes than asked */
    each_mark(s, false, &left);
    return left ? -GR_EPROTO : 0;
}

/* GET LBA STATUS parameter data (SBC-3 5.5.2): 8 bytes, then descriptors of 16. */
static int status_result(struct san_sub *s, const struct scsi_task *t)
{
    struct gr_bio *bio = s->req->bio;
    const struct san_unit *u = &s->src->unit;
    uint64_t at = bio->off, end = bio->off + bio->len;
    const uint8_t *d = t->datain.data;
    size_t size = t->datain.size < 0 || !d ? 0 : (size_t)t->datain.size;
    for (size_t i = 8; i + 16 <= size && i < 8 + 16 * SAN_DESCRIPTORS && at < end; i += 16) {
        uint64_t lba = gr_get_be64(d + i), blocks = gr_get_be32(d + i + 8);
        bool mapped = (d[i + 12] & 0x0f) == 0;
        if (!blocks || lba > at / u->block || blocks > UINT64_MAX / u->block - lba || (lba + blocks) * u->block <= at)
            return bio->n_extents ? 0 : -GR_EPROTO; /* does not go on where it should: keep what was good */
        uint64_t stop = GR_MIN((lba + blocks) * u->block, end);
        struct gr_extent e = {.off = at, .len = stop - at, .changed = true,
                              .flags = mapped || !u->lbprz ? GR_EXTENT_DATA : GR_EXTENT_HOLE | GR_EXTENT_ZERO};
        struct gr_extent *last = bio->n_extents ? &bio->extents[bio->n_extents - 1] : NULL;
        if (last && last->flags == e.flags)
            last->len += e.len;
        else if (bio->n_extents == bio->max_extents)
            return 0;
        else
            bio->extents[bio->n_extents++] = e;
        at = stop;
    }
    return bio->n_extents ? 0 : -GR_EPROTO;
}

static void blind(struct gr_bio *bio)
{
    bio->extents[0] = (struct gr_extent){.off = bio->off, .len = bio->len, .changed = true};
    bio->n_extents = 1;
}

static void wait_again(struct san_sub *s)
{
    s->next = s->src->waiting;
    s->src->waiting = s;
}

static void on_command(struct iscsi_context *ctx, int status, void *data, void *arg)
{
    struct san_sub *s = arg;
    struct san_source *src = s->src;
    struct scsi_task *t = s->task;
    int result = -EIO;
    s->task = NULL;
    unbusy(s);
    if (status == SCSI_STATUS_CANCELLED || status == SCSI_STATUS_ERROR || status == SCSI_STATUS_TIMEOUT) {
        src->lost = !src->tearing;
        wait_again(s);
        scsi_free_scsi_task(t);
        return;
    }
    src->progress = true;
    src->failures = 0;
    bool again = status == SCSI_STATUS_BUSY || status == SCSI_STATUS_TASK_SET_FULL ||
                 (status == SCSI_STATUS_CHECK_CONDITION && t->sense.key == SCSI_SENSE_UNIT_ATTENTION);
    if (again && ++s->tries < TRIES) {
        wait_again(s);
        scsi_free_scsi_task(t);
        (void)gr_timer_arm(src->loop, &src->pause, UINT64_C(5000000) << (2 * s->tries));
        return;
    }
    if (status == SCSI_STATUS_GOOD)
        result = s->req->bio->op == GR_OP_READ ? read_result(s, t) : status_result(s, t);
    else if (status == SCSI_STATUS_CHECK_CONDITION)
        result = sense_code(t);
    else if (status == SCSI_STATUS_RESERVATION_CONFLICT)
        result = -GR_ERESERVED;
    if (result == -EOPNOTSUPP && s->req->bio->op == GR_OP_EXTENTS) {
        src->no_lba_status = true;
        blind(s->req->bio);
        result = 0;
    } else if (result == -EOPNOTSUPP) {
        result = -EIO;
    }
    scsi_free_scsi_task(t);
    finish(s, result);
}

/* ---- sessions ---- */

static void give_up(struct san_source *src, int code)
{
    src->state = SAN_DEAD;
    src->dead = code;
    while (src->waiting) {
        struct san_sub *s = src->waiting;
        src->waiting = s->next;
        finish(s, code);
    }
}

static void lose(struct san_source *src)
{
    if (src->state != SAN_LIVE)
        return;
    src->state = SAN_DOWN;
    src->lost = false;
    gr_timer_cancel(src->loop, &src->silence);
    if (src->watching)
        gr_watch_del(src->loop, &src->watch);
    src->watching = false;
    src->tearing = true;
    san_hang_up(&src->session); /* everything busy comes back to `waiting` */
    src->tearing = false;
    src->failures++;
    if (src->waiting)
        kick(src);
}

static bool same_unit(const struct san_unit *a, const struct san_unit *b)
{
    return a->size == b->size && a->block == b->block && a->id_len == b->id_len && !memcmp(a->id, b->id, a->id_len);
}

static void on_socket(void *arg, int events)
{
    struct san_source *src = arg;
    char c;
    if (events & (POLLHUP | POLLERR)) {
        lose(src);
        return;
    }
    /* an idle session that the target closed says so only here */
    if ((events & POLLIN) && !src->busy && recv(src->session.watch_fd, &c, 1, MSG_PEEK | MSG_DONTWAIT) == 0) {
        lose(src);
        return;
    }
    int r = iscsi_service(src->session.ctx, events);
    if (r < 0 || src->lost || iscsi_get_fd(src->session.ctx) != src->session.lib_fd)
        lose(src);
    else
        update(src);
}

static void on_silence(void *arg)
{
    lose(arg);
}

static int attach(struct san_source *src)
{
    src->watch = (struct gr_watch){.fn = on_socket, .arg = src, .fd = src->session.watch_fd, .events = POLLIN};
    int r = gr_watch_add(src->loop, &src->watch);
    if (r < 0) {
        san_hang_up(&src->session);
        return r;
    }
    src->watching = true;
    src->state = SAN_LIVE;
    return 0;
}

/* Fiber: a new session, or the end. Requests wait meanwhile, so the source stays open. */
static void redial(void *arg)
{
    struct san_source *src = arg;
    int r = -ECONNRESET;
    while (src->failures <= src->reconnects) {
        struct san_unit u;
        if (src->failures > 1)
            gr_fiber_sleep_ms(GR_MIN(UINT64_C(50) << GR_MIN(src->failures, 8u), (uint64_t)2000));
        r = san_dial(src, &src->session, &u, NULL);
        if (r >= 0 && !same_unit(&u, &src->unit)) {
            san_hang_up(&src->session);
            give_up(src, -ESTALE); /* another unit answers under that name: its bytes are not ours */
            return;
        }
        if (r >= 0)
            r = attach(src);
        if (r >= 0) {
            kick(src);
            return;
        }
        src->failures++;
    }
    give_up(src, r);
}

/* ---- requests ---- */

static void send_sub(struct san_sub *s)
{
    struct san_source *src = s->src;
    struct san_session *n = &src->session;
    uint32_t block = src->unit.block;
    if (s->req->bio->op == GR_OP_READ) {
        each_mark(s, true, NULL);
        s->task = iscsi_read16_iov_task(n->ctx, n->lun, s->off / block, s->len, (int)block, 0, 0, 0, 0, 0, on_command, s, s->iov, s->n_iov);
    } else {
        s->req->bio->n_extents = 0;
        s->task = iscsi_get_lba_status_task(n->ctx, n->lun, s->off / block, 8 + 16 * SAN_DESCRIPTORS, on_command, s);
    }
    if (!s->task) {
        finish(s, -ENOMEM);
        return;
    }
    if (!src->busy)
        src->progress = true; /* arms the watch for silence */
    s->next = src->busy;
    src->busy = s;
}

/* Send what waits, or see to it that a session comes. */
static void kick(struct san_source *src)
{
    switch (src->state) {
    case SAN_LIVE:
        while (src->waiting) {
            struct san_sub *s = src->waiting;
            src->waiting = s->next;
            send_sub(s);
        }
        update(src);
        return;
    case SAN_DOWN:
        src->state = SAN_DIALING;
        if (gr_fiber_start(src->loop, redial, src) < 0)
            give_up(src, -ENOMEM);
        return;
    case SAN_DIALING:
        return;
    case SAN_DEAD:
        give_up(src, src->dead);
        return;
    }
}

static void on_flush(void *arg)
{
    kick(arg);
}

/* The vector of one command: the request's own memory, cut to the piece; or a bounce buffer when it has too many parts. */
static int sub_vector(struct san_sub *s, const struct gr_bio *bio)
{
    uint64_t at = s->off - bio->off;
    size_t left = s->len;
    s->iov = gr_zalloc(SAN_MAX_IOV * sizeof(*s->iov));
    if (!s->iov)
        return -ENOMEM;
    for (int i = 0; i < bio->iovcnt && left && s->n_iov < SAN_MAX_IOV; i++) {
        size_t n = bio->iov[i].iov_len;
        if (at >= n) {
            at -= n;
            continue;
        }
        n = GR_MIN(n - (size_t)at, left);
        s->iov[s->n_iov++] = (struct scsi_iovec){(uint8_t *)bio->iov[i].iov_base + at, n};
        left -= n;
        at = 0;
    }
    bool odd = left;
    for (int i = 0; i < s->n_iov; i++)
        odd |= s->iov[i].iov_len % MARK_EVERY != 0; /* marks need whole sectors */
    if (!odd)
        return 0;
    s->bounce = gr_alloc(s->len);
    s->iov[0] = (struct scsi_iovec){s->bounce, s->len};
    s->n_iov = 1;
    return s->bounce ? 0 : -ENOMEM;
}

static int add_sub(struct san_source *src, struct san_req *r, uint64_t off, uint32_t len)
{
    struct san_sub *s = gr_zalloc(sizeof(*s));
    if (!s)
        return -ENOMEM;
    *s = (struct san_sub){.src = src, .req = r, .off = off, .len = len};
    int e = r->bio->op == GR_OP_READ ? sub_vector(s, r->bio) : 0;
    if (e < 0) {
        sub_free(s);
        return e;
    }
    r->pending++;
    s->next = src->waiting;
    src->waiting = s;
    return 0;
}

static void source_submit(struct gr_chan *ch, struct gr_bio *bio)
{
    struct san_source *src = gr_container_of(ch->bdev, struct san_source, bdev);
    if (bio->op != GR_OP_READ && bio->op != GR_OP_EXTENTS) {
        gr_bio_end(bio, bio->op == GR_OP_FLUSH ? 0 : -GR_EREADONLY);
        return;
    }
    if (bio->op == GR_OP_EXTENTS && (bio->base || !src->unit.lbpme || src->no_lba_status)) {
        if (!bio->base)
            blind(bio);
        gr_bio_end(bio, bio->base ? -EOPNOTSUPP : 0);
        return;
    }
    struct san_req *r = gr_zalloc(sizeof(*r));
    if (!r) {
        gr_bio_end(bio, -ENOMEM);
        return;
    }
    r->bio = bio;
    int e = 0;
    if (bio->op == GR_OP_EXTENTS)
        e = add_sub(src, r, bio->off, 0);
    for (uint64_t at = 0; e >= 0 && bio->op == GR_OP_READ && at < bio->len; at += src->unit.max_piece)
        e = add_sub(src, r, bio->off + at, (uint32_t)GR_MIN((uint64_t)src->unit.max_piece, bio->len - at));
    if (e < 0)
        r->status = e;
    if (!r->pending) {
        free(r);
        gr_bio_end(bio, e);
        return;
    }
    gr_loop_defer(src->loop, &src->flush); /* many requests of one turn go out together */
}

static int source_geometry(struct gr_bdev *b, struct gr_geometry *ret)
{
    const struct san_source *src = gr_container_of(b, struct san_source, bdev);
    *ret = (struct gr_geometry){
        .size = src->unit.size,
        .logical_block = src->unit.block <= 512 ? 512 : 4096,
        .physical_block = 4096,
        .optimal_io = 65536,
        .read_only = true,
        .thin = src->unit.lbpme,
    };
    return 0;
}

void san_source_free(struct san_source *src)
{
    gr_timer_cancel(src->loop, &src->silence);
    gr_timer_cancel(src->loop, &src->pause);
    gr_loop_defer_cancel(src->loop, &src->complete);
    gr_loop_defer_cancel(src->loop, &src->flush);
    if (src->watching)
        gr_watch_del(src->loop, &src->watch);
    san_hang_up(&src->session);
    free(src->url);
    free(src->initiator);
    free(src->chap_user);
    if (src->chap_secret)
        explicit_bzero(src->chap_secret, strlen(src->chap_secret));
    free(src->chap_secret);
    free(src);
}

static void source_close(struct gr_bdev *b)
{
    san_source_free(gr_container_of(b, struct san_source, bdev));
}

static const struct gr_bdev_ops source_ops = {
    .type = "iscsi",
    .submit = source_submit,
    .geometry = source_geometry,
    .close = source_close,
};

void san_source_ready(struct san_source *src, const char *name)
{
    gr_bdev_init(&src->bdev, &source_ops, name);
    src->complete = (struct gr_defer){.fn = run_done, .arg = src};
    src->flush = (struct gr_defer){.fn = on_flush, .arg = src};
    src->silence = (struct gr_timer){.fn = on_silence, .arg = src};
    src->pause = (struct gr_timer){.fn = on_flush, .arg = src};
    const struct gr_world *w = gr_loop_world(src->loop);
    w->random(w->arg, &src->nonce, sizeof(src->nonce));
    if (attach(src) < 0)
        src->state = SAN_DOWN;
}
