/* The iSCSI bdev: opening, geometry, and requests cut into commands. */
#include "common/bdev_iscsi_int.h"
#include "common/buf.h"
#include "common/cleanup.h"
#include "common/iov.h"
#include <stdlib.h>
#include <string.h>

#define TIMEOUT_MS 30000
#define FIRST_MS 5000u /* a target that is replaced by another, or starts anew, cuts log-ins off: for so long they are tried again */
enum { SECTOR = 512 };

/* ---- requests ---- */
/* The vector of one command: the request's own memory, cut to the piece; or a bounce buffer when it has too many parts, or parts that
 * are no whole sectors (marks need them). */
static int transfer_vector(struct isc_sub *s, const struct gr_bio *bio)
{
    uint64_t at = s->off - bio->off;
    size_t left = s->len;
    bool odd = false;

    for (int i = 0; i < bio->iovcnt && left && s->n_iov < ISCSI_IOV; i++) {
        size_t n = bio->iov[i].iov_len;
        if (at >= n) {
            at -= n;
            continue;
        }
        n = GR_MIN(n - (size_t)at, left);
        odd |= n % SECTOR != 0;
        s->iov[s->n_iov++] = (struct scsi_iovec){(uint8_t *)bio->iov[i].iov_base + at, n};
        left -= n;
        at = 0;
    }
    if (!left && !odd)
        return 0;
    s->bounce = gr_alloc(s->len);
    if (!s->bounce)
        return -ENOMEM;
    if (s->kind == ISC_WRITE)
        gr_iov_get(bio->iov, bio->iovcnt, s->off - bio->off, s->bounce, s->len);
    s->iov[0] = (struct scsi_iovec){s->bounce, s->len};
    s->n_iov = 1;
    return 0;
}

static int compare_vector(struct isc_sub *s, const struct gr_bio *bio)
{
    s->bounce = gr_alloc(2 * s->len);
    if (!s->bounce)
        return -ENOMEM;
    gr_iov_get(bio->iov, bio->iovcnt, 0, s->bounce, s->len);
    gr_iov_get(bio->iov2, bio->iovcnt2, 0, s->bounce + s->len, s->len);
    s->iov[0] = (struct scsi_iovec){s->bounce, 2 * s->len};
    s->n_iov = 1;
    return 0;
}

static int vector(struct isc_sub *s, const struct gr_bio *bio)
{
    switch (s->kind) {
    case ISC_READ:
    case ISC_WRITE:
        return transfer_vector(s, bio);
    case ISC_CAW:
        return compare_vector(s, bio);
    case ISC_ZERO:  /* when it is sent */
    case ISC_FLUSH: /* none */
    case ISC_STATUS:
    case ISC_QUESTION:
        break;
    }
    return 0;
}

static int add_sub(struct isc_dev *d, struct isc_req *r, enum isc_kind kind, uint64_t off, uint64_t len)
{
    const struct gr_bio *bio = r->bio;
    struct isc_sub *s = gr_zalloc(sizeof(*s));
    bool data = kind == ISC_READ || kind == ISC_WRITE || kind == ISC_CAW || kind == ISC_ZERO;

    if (!s)
        return -ENOMEM;
    *s = (struct isc_sub){.dev = d, .req = r, .kind = kind, .off = off, .len = len};
    s->iov = data ? gr_zalloc(ISCSI_IOV * sizeof(*s->iov)) : NULL;
    int e = data && !s->iov ? -ENOMEM : vector(s, bio);
    if (e < 0) {
        free(s->iov);
        free(s->bounce);
        free(s);
        return e;
    }
    s->unmap = kind == ISC_ZERO && d->unit.lbpws && (bio->op == GR_OP_UNMAP || (bio->flags & GR_BIO_MAY_UNMAP));
    s->fua = d->unit.dpofua && ((kind == ISC_WRITE && (bio->flags & GR_BIO_FUA)) || (kind == ISC_CAW && !d->caw_no_fua));
    r->pending++;
    isc_enqueue(d, s);
    return 0;
}

static int cut(struct isc_dev *d, struct isc_req *r, enum isc_kind kind, uint64_t piece)
{
    int e = 0;

    for (uint64_t at = 0; e >= 0 && at < r->bio->len; at += piece)
        e = add_sub(d, r, kind, r->bio->off + at, GR_MIN(piece, r->bio->len - at));
    return e;
}

static int start(struct isc_dev *d, struct isc_req *r)
{
    struct gr_bio *bio = r->bio;
    const struct isc_unit *u = &d->unit;

    if (d->flush_error && (bio->op == GR_OP_FLUSH || bio->op == GR_OP_COMPARE_WRITE || (bio->op != GR_OP_READ && (bio->flags & GR_BIO_FUA))))
        return d->flush_error;
    switch (bio->op) {
    case GR_OP_READ:
        return cut(d, r, ISC_READ, u->piece);
    case GR_OP_WRITE:
        r->then_flush = (bio->flags & GR_BIO_FUA) && !u->dpofua && u->wce;
        return cut(d, r, ISC_WRITE, u->piece);
    case GR_OP_FLUSH:
        return d->read_only ? 0 : add_sub(d, r, ISC_FLUSH, 0, 0);
    case GR_OP_UNMAP:
    case GR_OP_WRITE_ZEROES:
        r->then_flush = (bio->flags & GR_BIO_FUA) && u->wce;
        return cut(d, r, ISC_ZERO, u->same_bytes);
    case GR_OP_COMPARE_WRITE:
        if (!u->caw_blocks)
            return -EOPNOTSUPP;
        if (bio->len > (uint64_t)u->caw_blocks * u->block)
            return -EINVAL;
        r->then_flush = (!u->dpofua || d->caw_no_fua) && u->wce;
        return add_sub(d, r, ISC_CAW, bio->off, bio->len);
    case GR_OP_EXTENTS:
        if (bio->base)
            return -EOPNOTSUPP;
        if (u->lbpme && !d->no_lba_status)
            return add_sub(d, r, ISC_STATUS, bio->off, bio->len);
        isc_blind(bio);
        return 0;
    case GR_OP_SCRUB:
    case GR_OP_COPY:
        break;
    }
    return -EOPNOTSUPP;
}

static void iscsi_submit(struct gr_chan *ch, struct gr_bio *bio)
{
    struct isc_dev *d = gr_container_of(ch->bdev, struct isc_dev, bdev);
    struct isc_req *r = d->fenced || d->given_up ? NULL : gr_zalloc(sizeof(*r));

    if (!r) {
        gr_bio_end(bio, d->fenced ? -GR_EFENCED : d->given_up ? -EIO : -ENOMEM);
        return;
    }
    *r = (struct isc_req){.bio = bio, .ch = ch};
    int e = start(d, r);
    if (e < 0)
        r->status = e;
    if (!r->pending) {
        free(r);
        gr_bio_end(bio, e);
    }
}

static int iscsi_chan_open(struct gr_bdev *bdev, struct gr_chan *ch)
{
    struct isc_chan *c = gr_zalloc(sizeof(*c));

    (void)bdev;
    if (!c)
        return -ENOMEM;
    c->complete = (struct gr_defer){.fn = isc_run_done, .arg = c};
    ch->priv = c;
    return 0;
}

static void iscsi_chan_close(struct gr_chan *ch)
{
    struct isc_chan *c = ch->priv;

    gr_loop_defer_cancel(ch->loop, &c->complete);
    free(c);
}

/* ---- the device ---- */
/* The identity in VPD page 83h (SPC-4 7.8.6): an NAA or EUI-64 designator of the unit itself. */
static void identity(const struct isc_unit *u, uint8_t uuid[16])
{
    for (size_t at = 4; at + 4 <= u->id_len; at += 4u + u->id[at + 3]) {
        const uint8_t *p = u->id + at;
        unsigned type = p[1] & 0x0f, of = p[1] & 0x30;
        if (of || (type != 2 && type != 3) || !p[3] || p[3] > 16 || at + 4 + p[3] > u->id_len)
            continue;
        memset(uuid, 0, 16);
        memcpy(uuid, p + 4, p[3]);
        if (type == 3)
            return;
    }
}

static int iscsi_geometry(struct gr_bdev *bdev, struct gr_geometry *ret)
{
    const struct isc_dev *d = gr_container_of(bdev, struct isc_dev, bdev);
    const struct isc_unit *u = &d->unit;

    *ret = (struct gr_geometry){
        .size = u->size,
        .logical_block = u->block,
        .physical_block = GR_MAX(u->physical, 4096u),
        .unmap_granule = u->lbpws && u->lbprz ? u->granule : 0, /* only WRITE SAME promises zeros afterwards */
        .optimal_io = 65536,
        .read_only = d->read_only || u->write_protected,
        .thin = u->lbpme,
    };
    identity(u, ret->uuid);
    return 0;
}

static void isc_free(struct isc_dev *d)
{
    gr_loop_defer_cancel(d->loop, &d->kick);
    gr_loop_defer_cancel(d->loop, &d->announce);
    gr_timer_cancel(d->loop, &d->pause);
    isc_detach(d);
    isc_dirty_free(d->dirty);
    free(d->url);
    free(d->initiator);
    free(d->chap_user);
    free(d->target_user);
    if (d->chap_secret)
        explicit_bzero(d->chap_secret, strlen(d->chap_secret));
    free(d->chap_secret);
    if (d->target_secret)
        explicit_bzero(d->target_secret, strlen(d->target_secret));
    free(d->target_secret);
    free(d);
}

static void close_fiber(void *arg)
{
    struct isc_dev *d = arg;

    while (d->fibers)
        gr_fqueue_wait(&d->settled);
    isc_free(d);
}

static void iscsi_close(struct gr_bdev *bdev)
{
    struct isc_dev *d = gr_container_of(bdev, struct isc_dev, bdev);

    d->closing = true;
    if (gr_fiber_self() || !d->fibers)
        close_fiber(d);
    else if (gr_fiber_start(d->loop, close_fiber, d) < 0)
        d->closing = true; /* out of memory: it stays */
}

static const struct gr_bdev_ops iscsi_ops = {
    .type = "iscsi",
    .submit = iscsi_submit,
    .geometry = iscsi_geometry,
    .close = iscsi_close,
    .chan_open = iscsi_chan_open,
    .chan_close = iscsi_chan_close,
    .silent_ms = isc_silent_ms,
    .give_up = isc_give_up,
};

/* ---- opening ---- */
static int secret_of(const char *path, char **ret, struct gr_err *err)
{
    gr_auto_buf struct gr_buf b = {0};
    int r = path ? gr_secret_read(path, &b, err) : 0;

    if (r < 0 || !path)
        return r;
    *ret = gr_strdup(b.data);
    explicit_bzero(b.data, b.len);
    return *ret ? 0 : gr_fail(err, -ENOMEM, "out of memory");
}

static int identify(struct isc_dev *d, const struct gr_iscsi_opts *o, struct gr_err *err)
{
    const struct gr_world *w = gr_loop_world(d->loop);
    uint8_t type = o->isid ? o->isid[0] & 0xc0 : 0x80;

    if (type == 0xc0 || (type && o->isid && (o->isid[0] & 0x3f)))
        return gr_fail(err, -EINVAL, "an ISID that begins with %02x is of no known type", o->isid[0]);
    w->random(w->arg, &d->nonce, sizeof(d->nonce));
    if (o->isid) {
        memcpy(d->isid, o->isid, sizeof(d->isid));
    } else {
        w->random(w->arg, d->isid, sizeof(d->isid));
        d->isid[0] = 0x80;
    }
    return 0;
}

static int copy_text(const char *from, char **ret, struct gr_err *err)
{
    if (!from)
        return 0;
    *ret = gr_strdup(from);
    return *ret ? 0 : gr_fail(err, -ENOMEM, "out of memory");
}

static int fill(struct isc_dev *d, const char *url, const struct gr_iscsi_opts *o, struct gr_err *err)
{
    int r = identify(d, o, err);

    if (r >= 0 && o->target_user && !o->chap_user)
        r = gr_fail(err, -EINVAL, "the target can prove itself only to who does so too: no CHAP user is given");
    if (r >= 0 && (!o->chap_user != !o->chap_secret_file || !o->target_user != !o->target_secret_file) && !o->url_secret)
        r = gr_fail(err, -EINVAL, "a CHAP user and the file with the secret belong together");
    if (r >= 0)
        r = copy_text(url, &d->url, err);
    if (r >= 0)
        r = copy_text(o->initiator ? o->initiator : "iqn.2026-01.granary:host", &d->initiator, err);
    if (r >= 0)
        r = copy_text(o->chap_user, &d->chap_user, err);
    if (r >= 0)
        r = copy_text(o->target_user, &d->target_user, err);
    if (r >= 0)
        r = secret_of(o->chap_secret_file, &d->chap_secret, err);
    if (r >= 0)
        r = secret_of(o->target_secret_file, &d->target_secret, err);
    d->url_secret = o->url_secret;
    d->read_only = o->read_only;
    d->timeout_ms = o->timeout_ms ? o->timeout_ms : TIMEOUT_MS;
    d->patience_ms = o->patience_ms;
    d->reconnects = o->reconnects;
    return r;
}

static void on_kick(void *arg)
{
    isc_kick(arg);
}

static void on_pause(void *arg)
{
    struct isc_dev *d = arg;

    d->paused = false;
    isc_kick(d);
}

static void on_announce(void *arg)
{
    struct isc_dev *d = arg;
    bool fenced = d->news_fenced, resized = d->news_resized;

    d->news_fenced = d->news_resized = false;
    gr_bdev_get(&d->bdev); /* whoever listens may close it */
    if (resized)
        gr_bdev_event(&d->bdev, GR_EVENT_RESIZED);
    if (fenced)
        gr_bdev_event(&d->bdev, GR_EVENT_FENCED);
    gr_bdev_put(&d->bdev);
}

static int log_in_once(struct isc_dev *d, struct gr_err *err)
{
    int r = isc_dial(d, &d->session, err);

    if (r >= 0)
        r = isc_attach(d);
    return r < 0 ? r : isc_examine(d, &d->unit, err);
}

/* One that is cut off is tried again; who refuses us means it. */
static int first_session(struct isc_dev *d, struct gr_err *err)
{
    uint64_t deadline_ns = gr_loop_now_ns(d->loop) + GR_MIN(d->timeout_ms, (uint64_t)FIRST_MS) * 1000000;
    int r;

    while ((r = log_in_once(d, err)) == -ECONNRESET && gr_loop_now_ns(d->loop) < deadline_ns) {
        isc_detach(d);
        d->failures++;
        isc_back_off(d);
    }
    d->failures = 0;
    if (r >= 0)
        d->state = ISC_LIVE;
    return r;
}

int gr_bdev_iscsi_open(struct gr_loop *loop, const char *url, const struct gr_iscsi_opts *opts, struct gr_bdev **ret, struct gr_err *err)
{
    static const struct gr_iscsi_opts none;
    char name[128];

    isc_url_text(url, name);
    struct isc_dev *d = gr_zalloc(sizeof(*d));
    if (!d)
        return gr_fail(err, -ENOMEM, "%s: out of memory", name);
    d->loop = loop;
    d->session.watch_fd = -1;
    d->state = ISC_DIALING;
    d->kick = (struct gr_defer){.fn = on_kick, .arg = d};
    d->announce = (struct gr_defer){.fn = on_announce, .arg = d};
    d->pause = (struct gr_timer){.fn = on_pause, .arg = d};
    gr_bdev_init(&d->bdev, &iscsi_ops, name);
    d->dirty = isc_dirty_new();
    int r = d->dirty ? fill(d, url, opts ? opts : &none, err) : gr_fail(err, -ENOMEM, "out of memory");
    if (r >= 0)
        r = first_session(d, err);
    if (r < 0) {
        isc_free(d);
        return gr_prefix(err, r, "%s", name);
    }
    d->bdev.fence = d->read_only ? NULL : &isc_fence_ops;
    *ret = &d->bdev;
    return 0;
}
