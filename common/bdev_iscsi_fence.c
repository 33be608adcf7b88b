/* The fence: a persistent reservation of type 6 (Exclusive Access, Registrants Only; SPC-4 5.13, 6.15, 6.16). One nexus per device: the
 * session's, which keeps its name through reconnects. Nothing registers here but enter() (and clear(), to clear). */
#include "common/bdev_iscsi_int.h"
#include "common/cleanup.h"
#include "common/endian.h"
#include <stdlib.h>
#include <string.h>

enum { PR_REGISTER = 0, PR_RESERVE = 1, PR_CLEAR = 3, PR_PREEMPT_ABORT = 5, PR_REGISTER_IGNORE = 6, TYPE = 6, MAX_KEYS = 4096, TURNS = 16 };
enum { RETRY = 1 }; /* the session broke: once more over the next one */

void isc_fenced(struct isc_dev *d)
{
    if (d->fenced)
        return;
    d->fenced = true;
    d->lost_key = d->key;
    d->key = 0;
    d->news_fenced = true;
    isc_dirty_clean(d->dirty, UINT64_MAX); /* not ours to write any more */
    gr_loop_defer(d->loop, &d->announce);
    gr_loop_defer(d->loop, &d->kick); /* what waits ends */
}

/* ---- questions ---- */
/* PERSISTENT RESERVE OUT. 0: GOOD; 1: RESERVATION CONFLICT; a code otherwise. */
static int pr_out(struct isc_dev *d, uint8_t action, uint64_t key, uint64_t action_key, bool aptpl, struct gr_err *err)
{
    const uint8_t cdb[10] = {0x5f, action, action == PR_RESERVE || action == PR_PREEMPT_ABORT ? TYPE : 0, [8] = 24};
    struct isc_answer a = {0};
    uint8_t p[24] = {0};
    char why[96];

    gr_put_be64(p, key);
    gr_put_be64(p + 8, action_key);
    p[20] = aptpl ? 0x01 : 0;
    int r = isc_ask(d, cdb, sizeof(cdb), 0, p, sizeof(p), &a);
    if (r < 0)
        return gr_fail(err, r, "%s", gr_code_text(r));
    if (a.status == SCSI_STATUS_RESERVATION_CONFLICT)
        r = 1;
    else if (a.status != SCSI_STATUS_GOOD)
        r = gr_fail(err, -EOPNOTSUPP, "PERSISTENT RESERVE OUT, action %u%s: %s", action, aptpl ? " with APTPL" : "",
                    isc_status_text(a.status, a.task, why));
    scsi_free_scsi_task(a.task);
    return r;
}

/* PERSISTENT RESERVE IN: parameter data of @action, at most @max bytes of it. */
static int pr_in(struct isc_dev *d, uint8_t action, uint8_t *out, size_t max, size_t *ret_len, struct gr_err *err)
{
    uint8_t cdb[10] = {0x5e, action};
    struct isc_answer a = {0};
    char why[96];

    gr_put_be16(cdb + 7, (uint16_t)max);
    int r = isc_ask(d, cdb, sizeof(cdb), max, NULL, 0, &a);
    if (r < 0)
        return gr_fail(err, r, "%s", gr_code_text(r));
    size_t have = a.task->datain.size > 0 ? GR_MIN((size_t)a.task->datain.size, max) : 0;
    if (a.task->residual_status == SCSI_RESIDUAL_UNDERFLOW)
        have = GR_MIN(have, max - GR_MIN(max, a.task->residual));
    if (a.status != SCSI_STATUS_GOOD)
        r = gr_fail(err, -EOPNOTSUPP, "PERSISTENT RESERVE IN, action %u: %s", action, isc_status_text(a.status, a.task, why));
    else if (have < 8)
        r = gr_fail(err, -GR_EPROTO, "PERSISTENT RESERVE IN, action %u: an answer of %zu bytes", action, have);
    else
        memcpy(out, a.task->datain.data, have);
    *ret_len = have;
    scsi_free_scsi_task(a.task);
    return r;
}

struct keys {
    uint64_t *key; /* each once */
    unsigned n;
};

static bool has(const struct keys *k, uint64_t key)
{
    for (unsigned i = 0; i < k->n; i++)
        if (k->key[i] == key)
            return true;
    return false;
}

/* READ KEYS (SPC-4 6.15.2). What the target says of its answer's length must be what it sent. @ret->key is new memory. */
static int read_keys(struct isc_dev *d, struct keys *ret, struct gr_err *err)
{
    size_t max = 8 + 8 * MAX_KEYS, n = 0;
    uint8_t *p = gr_alloc(max);
    uint64_t *key = gr_alloc(MAX_KEYS * sizeof(*key));
    int r = p && key ? pr_in(d, 0, p, max, &n, err) : gr_fail(err, -ENOMEM, "out of memory");

    if (r >= 0 && (gr_get_be32(p + 4) % 8 || gr_get_be32(p + 4) != n - 8))
        r = gr_fail(err, -GR_EPROTO, "READ KEYS: %u bytes of keys announced, %zu sent", gr_get_be32(p + 4), n - 8);
    if (r < 0) {
        free(key);
        free(p);
        return r;
    }
    *ret = (struct keys){.key = key};
    for (size_t i = 8; i < n; i += 8)
        if (!has(ret, gr_get_be64(p + i)))
            key[ret->n++] = gr_get_be64(p + i);
    free(p);
    return 0;
}

/* READ RESERVATION: *@ret_type 0 when there is none. */
static int read_reservation(struct isc_dev *d, uint64_t *ret_key, unsigned *ret_type, struct gr_err *err)
{
    uint8_t p[24];
    size_t n;
    int r = pr_in(d, 1, p, sizeof(p), &n, err);

    if (r < 0)
        return r;
    uint32_t more = gr_get_be32(p + 4);
    if (more != n - 8 || (more && more != 16))
        return gr_fail(err, -GR_EPROTO, "READ RESERVATION: %u bytes announced, %zu sent", more, n - 8);
    *ret_key = more ? gr_get_be64(p + 8) : 0;
    *ret_type = more ? p[21] & 0x0f : 0;
    return 0;
}

/* See to it that a reservation of our type is held, by whomever. */
static int ensure_reserved(struct isc_dev *d, uint64_t key, struct gr_err *err)
{
    for (int turn = 0; turn < TURNS; turn++) {
        uint64_t holder;
        unsigned type;
        int r = read_reservation(d, &holder, &type, err);
        if (r < 0 || type == TYPE)
            return r;
        if (type)
            return gr_fail(err, -GR_ERESERVED, "reserved under key %016llx with type %u: not for datastores of Granary",
                           (unsigned long long)holder, type);
        r = pr_out(d, PR_RESERVE, key, 0, false, err); /* a conflict: somebody was faster; see what it is */
        if (r < 0)
            return r;
    }
    return gr_fail(err, -GR_EPROTO, "it refuses to be reserved, and is not");
}

int isc_check_place(struct isc_dev *d, struct gr_err *err)
{
    struct keys k = {0};
    uint64_t holder;
    unsigned type = 0;
    int r = read_keys(d, &k, err);

    if (r >= 0)
        r = read_reservation(d, &holder, &type, err);
    if (r >= 0 && !has(&k, d->key))
        r = gr_fail(err, -GR_EFENCED, "key %016llx is no longer registered", (unsigned long long)d->key);
    else if (r >= 0 && type != TYPE)
        r = gr_fail(err, -GR_EFENCED, "the reservation is gone");
    free(k.key);
    return r;
}

/* ---- operations, each over one session ---- */
static int enter(struct isc_dev *d, uint64_t key, struct gr_err *err)
{
    int r = pr_out(d, PR_REGISTER_IGNORE, 0, key, true, err);

    if (r > 0)
        return gr_fail(err, -GR_ERESERVED, "registering is refused with RESERVATION CONFLICT");
    if (r >= 0)
        r = ensure_reserved(d, key, err);
    if (r < 0)
        return r;
    struct isc_unit u = d->unit;
    r = isc_ask_modes(d, &u, err);
    if (r < 0)
        return r;
    d->unit = u;
    d->key = key;
    d->lost_key = 0;
    d->fenced = false;
    return 0;
}

static int leave(struct isc_dev *d, struct gr_err *err)
{
    uint64_t holder;
    unsigned type;
    int r = d->key ? read_reservation(d, &holder, &type, err) : 0;

    if (r < 0 || !d->key)
        return r;
    if (!type || holder != d->key)
        r = pr_out(d, PR_REGISTER, d->key, 0, false, err);
    if (r < 0)
        return r;
    d->key = 0; /* a conflict: not registered any more, which is what was wanted */
    return 0;
}

static int eject(struct isc_dev *d, uint64_t key, struct gr_err *err)
{
    struct keys k = {0};
    int r = read_keys(d, &k, err);
    bool in = r >= 0 && d->key && has(&k, d->key), there = r >= 0 && has(&k, key);

    free(k.key);
    if (r < 0)
        return r;
    if (!in)
        return gr_fail(err, -GR_EFENCED, "not registered ourselves");
    /* Not there: thrown out by another, or by us, and the answer was lost. A target does one PERSISTENT RESERVE OUT at a time (SPC-4 5.13.11.1),
     * so when this one, which changes nothing, is answered, what was under way then has ended. */
    if (there)
        r = pr_out(d, PR_PREEMPT_ABORT, d->key, key, false, err);
    else
        r = pr_out(d, PR_REGISTER, d->key, d->key, true, err);
    return r > 0 ? RETRY : r; /* a conflict: somebody else was faster, with them or with us */
}

static int clear(struct isc_dev *d, struct gr_err *err)
{
    uint64_t key = d->key;
    int r = 0;

    if (!key) { /* only who is registered may clear */
        const struct gr_world *w = gr_loop_world(d->loop);
        do
            w->random(w->arg, &key, sizeof(key));
        while (!key);
        r = pr_out(d, PR_REGISTER_IGNORE, 0, key, false, err);
    }
    if (r == 0)
        r = pr_out(d, PR_CLEAR, key, 0, false, err);
    if (r > 0)
        return gr_fail(err, -GR_ERESERVED, "clearing is refused with RESERVATION CONFLICT");
    if (r == 0)
        d->key = 0;
    return r;
}

/* REPORT CAPABILITIES (SPC-4 6.15.4). */
static int persists(struct isc_dev *d, struct gr_err *err)
{
    uint8_t p[8];
    size_t n;
    int r = pr_in(d, 2, p, sizeof(p), &n, err);

    if (r >= 0 && (gr_get_be16(p) < 8 || !(p[2] & 0x01) || !(p[3] & 0x01)))
        r = gr_fail(err, -EOPNOTSUPP, "REPORT CAPABILITIES: PTPL_C %u, PTPL_A %u", p[2] & 1u, p[3] & 1u);
    return r;
}

/* ---- the contract ---- */
struct job {
    enum { ENTER, LEAVE, EJECT, KEYS, CLEAR, PERSISTS } what;
    uint64_t key;
    uint64_t *keys;
    unsigned max, *ret_n;
};

static int keys_of(struct isc_dev *d, const struct job *j, struct gr_err *err)
{
    struct keys k = {0};
    int r = read_keys(d, &k, err);

    if (r < 0)
        return r;
    for (unsigned i = 0; i < k.n && i < j->max; i++)
        j->keys[i] = k.key[i];
    *j->ret_n = k.n;
    free(k.key);
    return 0;
}

static int do_job(struct isc_dev *d, const struct job *j, struct gr_err *err)
{
    switch (j->what) {
    case ENTER:
        return enter(d, j->key, err);
    case LEAVE:
        return leave(d, err);
    case EJECT:
        return eject(d, j->key, err);
    case KEYS:
        return keys_of(d, j, err);
    case CLEAR:
        return clear(d, err);
    case PERSISTS:
        return persists(d, err);
    }
    return -EINVAL;
}

/* Over as many sessions as it takes: each step may be done twice. */
static int run(struct gr_bdev *bdev, const struct job *j, struct gr_err *err)
{
    struct isc_dev *d = gr_container_of(bdev, struct isc_dev, bdev);
    int r;

    gr_fmutex_lock(&d->fence_lock);
    d->fencing = true;
    do {
        r = isc_wait_live(d, err);
        if (r >= 0)
            r = do_job(d, j, err);
    } while (r == RETRY || r == -ECONNRESET);
    d->fencing = false;
    if (r == -GR_EFENCED && j->what == EJECT)
        isc_fenced(d);
    gr_fmutex_unlock(&d->fence_lock);
    return r < 0 ? gr_prefix(err, r, "%s", d->bdev.name) : r;
}

static int fence_enter(struct gr_bdev *bdev, uint64_t key, struct gr_err *err)
{
    const struct isc_dev *d = gr_container_of(bdev, struct isc_dev, bdev);

    if (!key)
        return gr_fail(err, -EINVAL, "%s: a key is never 0", bdev->name);
    if (d->fenced && key == d->lost_key)
        return gr_fail(err, -GR_EFENCED, "%s: thrown out under key %016llx, which never comes back", bdev->name, (unsigned long long)key);
    return run(bdev, &(struct job){.what = ENTER, .key = key}, err);
}

static int fence_leave(struct gr_bdev *bdev, struct gr_err *err)
{
    return run(bdev, &(struct job){.what = LEAVE}, err);
}

static int fence_eject(struct gr_bdev *bdev, uint64_t key, struct gr_err *err)
{
    return run(bdev, &(struct job){.what = EJECT, .key = key}, err);
}

static int fence_keys(struct gr_bdev *bdev, uint64_t *keys, unsigned max, unsigned *ret_n, struct gr_err *err)
{
    return run(bdev, &(struct job){.what = KEYS, .keys = keys, .max = max, .ret_n = ret_n}, err);
}

static int fence_clear(struct gr_bdev *bdev, struct gr_err *err)
{
    return run(bdev, &(struct job){.what = CLEAR}, err);
}

static int fence_persists(struct gr_bdev *bdev, struct gr_err *err)
{
    return run(bdev, &(struct job){.what = PERSISTS}, err);
}

const struct gr_fence_ops isc_fence_ops = {
    .enter = fence_enter, .leave = fence_leave, .eject = fence_eject, .keys = fence_keys, .clear = fence_clear, .persists = fence_persists,
};
