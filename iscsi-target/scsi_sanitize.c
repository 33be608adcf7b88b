#include "iscsi-target/sanitize.h"
#include "common/cleanup.h"
#include "iscsi-target/scsi.h"
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define ATTR "sanitize"
#define PIECE (1u << 20)         /* bytes of one write */
#define STEP (16u << 20)         /* bytes scrubbed, and flushed, at once */
#define TRIES 100                /* of a scrub that a write through the mover crosses */
#define LOOK_MS 100              /* how often a waiting command looks whether it was aborted */

struct tgt_sanitize {
    struct tgt_lu *lu;
    struct tgt_range range; /* the whole unit */
    struct gr_fiber *fiber;
    bool running, failed;
    uint64_t began_ns, done, total; /* bytes */
    uint8_t *buf;
    uint32_t cap;
    struct gr_fqueue ended;
    struct tgt_sanitize_record rec;
    uint8_t pattern[TGT_SANITIZE_PATTERN];
    struct {
        uint64_t call, began_ns;
        char initiator[TGT_NAME_MAX + 1], from[64]; /* "": this process goes on with what is remembered */
    } asked;
};

bool tgt_sanitize_alone(const struct tgt_lu *lu)
{
    while (lu->sanitize && lu->sanitize->running && !lu->sanitize->range.active)
        gr_fiber_sleep_ms(1);
    return lu->sanitize && lu->sanitize->running;
}

uint32_t tgt_sanitize_bars(const struct tgt_lu *lu, const struct tgt_cmd *cmd, int *ret_progress)
{
    const struct tgt_sanitize *z = lu->sanitize;
    *ret_progress = -1;
    if (z && z->running && (cmd->flags & (CMD_READY | CMD_CALM))) {
        *ret_progress = (int)(z->total ? GR_MIN(z->done, z->total) * 65535 / z->total : 0);
        return TGT_SENSE_SANITIZING;
    }
    return z && z->failed && cmd->op != 0x48 && (cmd->flags & CMD_READY) ? TGT_SENSE_SANITIZE_FAILED : 0;
}

void tgt_sanitize_free(struct tgt_lu *lu)
{
    free(gr_take(lu->sanitize));
}

/* ---- what is written down of it (common/audit.h) ---- */
static void tell(struct tgt_sanitize *z, bool begins, int result)
{
    static const char *const actions[] = {[TGT_SANITIZE_OVERWRITE] = "overwrite", [TGT_SANITIZE_BLOCK_ERASE] = "block-erase", [TGT_SANITIZE_CRYPTO_ERASE] = "crypto-erase"};
    const struct tgt_server *s = z->lu->server;
    if (!s->opts.witness)
        return;
    bool resumed = !z->asked.initiator[0];
    json_t *params = json_pack("{s:s,s:s}", "disk", z->lu->disk, "action", actions[z->rec.action]);
    if (resumed)
        json_object_set_new(params, "resume", json_true());
    struct gr_rpc_seen seen = {.begins = begins, .number = z->asked.call, .method = "iscsi.sanitize", .params = params, .initiator = resumed ? NULL : z->asked.initiator,
                               .from = z->asked.from, .pid = getpid(), .uid = getuid(), .result = result, .ns = gr_loop_now_ns(s->loop) - z->asked.began_ns};
    s->opts.witness(s->opts.witness_arg, &seen);
    json_decref(params);
}

/* (fiber) Somebody asks for it; NULL: an earlier process has begun it. */
static void tell_begin(struct tgt_sanitize *z, const struct tgt_sess *sess)
{
    const struct gr_world *w = gr_loop_world(z->lu->server->loop);
    snprintf(z->asked.initiator, sizeof z->asked.initiator, "%s", sess ? sess->initiator : "");
    snprintf(z->asked.from, sizeof z->asked.from, "%s", sess ? sess->address : "");
    w->random(w->arg, &z->asked.call, sizeof z->asked.call);
    z->asked.call |= 1;
    z->asked.began_ns = gr_loop_now_ns(z->lu->server->loop);
    tell(z, true, 0);
}

/* ---- what outlives the daemon ---- */
static int save(struct tgt_sanitize *z)
{
    struct tgt_lu *lu = z->lu;
    uint32_t len = gr_le32_get(z->rec.pattern_len);
    struct gr_err err;
    if (!lu->has_store)
        return 0;
    gr_auto_free uint8_t *val = gr_alloc(sizeof z->rec + len);
    if (!val)
        return -ENOMEM;
    memcpy(val, &z->rec, sizeof z->rec);
    memcpy(val + sizeof z->rec, z->pattern, len);
    return lu->bdev->ops->attr_set(lu->bdev, ATTR, val, sizeof z->rec + len, &err);
}

static int forget(struct tgt_sanitize *z)
{
    struct tgt_lu *lu = z->lu;
    struct gr_err err;
    return lu->has_store ? lu->bdev->ops->attr_set(lu->bdev, ATTR, "", 0, &err) : 0;
}

/* ---- the work ---- */
static bool told_to_stop(const struct tgt_sanitize *z)
{
    return z->lu->releasing || z->lu->fenced || z->lu->server->stopping;
}

/* The old bytes go where they lie: a write may put the new ones elsewhere. */
static int scrub(struct tgt_sanitize *z, uint64_t off, uint64_t len)
{
    int r = -EAGAIN;
    for (int i = 0; r == -EAGAIN && i < TRIES; i++) {
        struct gr_bio bio = {.op = GR_OP_SCRUB, .off = off, .len = len};
        r = gr_submit_wait(z->lu->chan, &bio);
    }
    if (r != -EOPNOTSUPP || z->rec.action == TGT_SANITIZE_OVERWRITE)
        return r == -EOPNOTSUPP ? 0 : r; /* a plain device writes in place */
    r = 0;
    for (uint64_t at = 0; !r && at < len; at += PIECE)
        r = gr_pwrite(z->lu->chan, z->buf, GR_MIN((uint64_t)PIECE, len - at), off + at, GR_BIO_FUA);
    return r;
}

/* [off, off + len), a piece at a time, at the pace: scrubbed when it is the first time, and then, by OVERWRITE, written with the bytes
 * of z->buf, else given back. -GR_ECANCELED: stopped, to go on later. */
static int overwrite(struct tgt_sanitize *z, uint64_t off, uint64_t len, bool first)
{
    struct tgt_lu *lu = z->lu;
    int r = 0;
    for (uint64_t at = 0; !r && at < len; at += PIECE) {
        uint64_t n = GR_MIN((uint64_t)PIECE, len - at);
        if (told_to_stop(z))
            return -GR_ECANCELED;
        r = first && at % STEP == 0 ? scrub(z, off + at, GR_MIN((uint64_t)STEP, len - at)) : 0;
        if (!r && z->rec.action == TGT_SANITIZE_OVERWRITE)
            r = gr_pwrite(lu->chan, z->buf, n, off + at, 0);
        else if (!r && lu->geo.unmap_granule)
            r = gr_unmap(lu->chan, off + at, n, 0);
        z->done += n;
        uint64_t due = z->began_ns + z->done * 1000 / (TGT_SANITIZE_RATE / 1000000), now = gr_loop_now_ns(z->lu->server->loop);
        if (now < due)
            gr_fiber_sleep_ms((due - now) / 1000000 + 1);
    }
    return r;
}

/* The pattern fills each block from its start. */
static void fill(struct tgt_sanitize *z, bool inverted)
{
    uint32_t block = z->lu->geo.logical_block, len = gr_le32_get(z->rec.pattern_len);
    for (uint32_t i = 0; i < PIECE; i++)
        z->buf[i] = (uint8_t)(len ? z->pattern[i % block % len] ^ (inverted ? 0xff : 0) : 0);
}

static int overwrite_all(struct tgt_sanitize *z)
{
    uint64_t size = z->lu->geo.size;
    int r = 0;
    for (unsigned pass = 0; !r && pass < z->rec.count; pass++) {
        fill(z, (z->rec.flags & TGT_SANITIZE_INVERT) && pass % 2);
        r = overwrite(z, 0, size, pass == 0);
        if (!r)
            r = gr_flush(z->lu->chan);
    }
    return r;
}

/* Bytes from @at on that are a hole; 0 when something is there, or the device cannot tell. */
static uint64_t hole_at(const struct tgt_sanitize *z, uint64_t at)
{
    struct gr_extent e;
    unsigned n = 0;
    int r = gr_extents(z->lu->chan, at, z->lu->geo.size - at, NULL, &e, 1, &n);
    return r == 0 && n && (e.flags & GR_EXTENT_HOLE) ? e.len : 0;
}

/* A step at a time, however splintered it is: what is a hole costs nothing. */
static int erase(struct tgt_sanitize *z)
{
    uint64_t size = z->lu->geo.size;
    int r = 0;
    fill(z, false);
    for (uint64_t at = 0; !r && at < size;) {
        uint64_t hole = hole_at(z, at), n = hole ? hole : GR_MIN((uint64_t)STEP, size - at);
        if (hole)
            z->done += n;
        else
            r = overwrite(z, at, n, true);
        at += n;
    }
    return r ? r : gr_flush(z->lu->chan);
}

static void range_held(struct tgt_range *r)
{
    gr_fiber_wake(gr_container_of(r, struct tgt_sanitize, range)->fiber);
}

static int shared(struct tgt_lu *lu)
{
    struct gr_err err = {0};
    int r = lu->bdev->ops->exclusive ? lu->bdev->ops->exclusive(lu->bdev, &err) : 0;
    if (r < 0)
        tgt_note(lu->server, 4, "SANITIZE of '%s' is refused: %s", lu->disk, gr_err_text(&err, r));
    return r;
}

static void work(void *arg)
{
    struct tgt_sanitize *z = arg;
    struct tgt_lu *lu = z->lu;
    struct tgt_server *s = lu->server;
    z->fiber = gr_fiber_self();
    z->range = (struct tgt_range){.len = lu->geo.size, .excl = true, .go = range_held};
    if (!tgt_range_begin(&lu->ranges, &z->range))
        gr_fiber_suspend();
    z->began_ns = gr_loop_now_ns(s->loop);
    z->buf = tgt_buf_get(&s->pool, PIECE, &z->cap);
    int r = !z->buf ? -ENOMEM : z->rec.action == TGT_SANITIZE_OVERWRITE ? overwrite_all(z) : erase(z);
    if (z->buf)
        tgt_buf_put(&s->pool, gr_take(z->buf), z->cap);
    if (!r) /* one that came meanwhile has kept what was there */
        r = shared(lu);
    if (!r)
        r = forget(z);
    if (r < 0 && !told_to_stop(z)) {
        tgt_note(s, 3, "SANITIZE of '%s' has failed: %s", lu->disk, gr_code_text(r));
        z->failed = true;
        z->rec.flags |= TGT_SANITIZE_FAILED;
        (void)save(z); /* if this fails too, it is done again after a restart */
    }
    tgt_range_end(&lu->ranges, &z->range);
    if (!r || !told_to_stop(z))
        tell(z, false, r);
    z->running = false;
    gr_fqueue_wake_all(&z->ended);
    s->busy_fibers--;
    tgt_lu_user_put(lu);
    gr_fqueue_wake_all(&s->changed);
}

static int start(struct tgt_sanitize *z)
{
    struct tgt_lu *lu = z->lu;
    z->failed = false;
    z->done = 0;
    z->total = lu->geo.size * GR_MAX(z->rec.count, 1u);
    z->running = true;
    lu->users++;
    lu->server->busy_fibers++;
    int r = gr_fiber_start(lu->server->loop, work, z);
    if (r < 0) {
        z->running = false;
        lu->users--;
        lu->server->busy_fibers--;
    }
    return r;
}

static struct tgt_sanitize *state_of(struct tgt_lu *lu)
{
    if (!lu->sanitize && (lu->sanitize = gr_zalloc(sizeof *lu->sanitize)))
        lu->sanitize->lu = lu;
    return lu->sanitize;
}

int tgt_sanitize_load(struct tgt_lu *lu, struct gr_err *err)
{
    void *val = NULL;
    if (lu->sanitize || !lu->has_store)
        return 0;
    int n = lu->bdev->ops->attr_get(lu->bdev, ATTR, &val, NULL);
    if (n < 0)
        return n == -ENOENT ? 0 : gr_fail(err, n, "disk '%s': it cannot be told whether it is being sanitized: %s", lu->disk, gr_code_text(n));
    gr_auto_free struct tgt_sanitize_record *rec = val;
    uint32_t len = (size_t)n >= sizeof *rec ? gr_le32_get(rec->pattern_len) : UINT32_MAX;
    if (len > TGT_SANITIZE_PATTERN || (size_t)n != sizeof *rec + len || rec->version != 1 || rec->action < TGT_SANITIZE_OVERWRITE ||
        rec->action > TGT_SANITIZE_CRYPTO_ERASE)
        return gr_fail(err, -GR_EFORMAT, "disk '%s': what is stored of its sanitize operation cannot be read", lu->disk);
    struct tgt_sanitize *z = state_of(lu);
    if (!z)
        return gr_fail(err, -ENOMEM, "disk '%s': out of memory", lu->disk);
    memcpy(&z->rec, rec, sizeof z->rec);
    memcpy(z->pattern, (const uint8_t *)val + sizeof *rec, len);
    if (rec->flags & TGT_SANITIZE_FAILED) {
        z->failed = true;
        return 0;
    }
    z->running = true;
    tell_begin(z, NULL);
    int r = start(z);
    return r < 0 ? gr_fail(err, r, "disk '%s': its sanitize operation cannot go on: %s", lu->disk, gr_code_text(r)) : 0;
}

/* ---- the command ---- */

/* The parameter list of OVERWRITE into *rec and @pattern; 0, or the sense. */
static uint32_t parse_overwrite(const struct tgt_task *t, struct tgt_sanitize_record *rec, uint8_t *pattern)
{
    uint32_t list = t->out_total, block = t->lu->geo.logical_block;
    if (list < 5 || list > block + 4)
        return TGT_SENSE_INVALID_CDB;
    if (GR_MIN(t->out_need, t->out_got) < list)
        return TGT_SENSE_PARAM_LENGTH;
    uint32_t len = gr_get_be16(t->buf + 2);
    rec->count = t->buf[0] & 0x1f;
    if (!rec->count || (t->buf[0] & 0x60) || !len || len > list - 4) /* bits 6 and 5, TEST: of the vendor, and we have none */
        return TGT_SENSE_INVALID_CDB;
    rec->flags |= t->buf[0] & 0x80 ? TGT_SANITIZE_INVERT : 0;
    rec->pattern_len = gr_le32_of(len);
    memcpy(pattern, t->buf + 4, len);
    return 0;
}

static bool cdb_ok(struct tgt_task *t)
{
    for (unsigned i = 2; i < 7; i++)
        if (t->cdb[i]) {
            tgt_check_field(t, TGT_SENSE_INVALID_CDB, true, i);
            return false;
        }
    if ((t->cdb[1] & 0x40) || ((t->cdb[1] & 0x1f) != TGT_SANITIZE_OVERWRITE && t->out_total)) {
        tgt_check_field(t, TGT_SENSE_INVALID_CDB, true, t->cdb[1] & 0x40 ? 1 : 7);
        return false;
    }
    return true;
}

static void exit_failure_mode(struct tgt_task *t)
{
    struct tgt_sanitize *z = t->lu->sanitize;
    if (z && z->failed && !(z->rec.flags & TGT_SANITIZE_AUSE)) { /* only another SANITIZE ends it */
        tgt_check_field(t, TGT_SENSE_INVALID_CDB, true, 1);
        return;
    }
    int r = z && z->failed ? forget(z) : 0;
    if (r < 0) {
        tgt_check_code(t, r);
        return;
    }
    if (z)
        z->failed = false;
    tgt_good(t);
}

void tgt_run_sanitize(struct tgt_task *t)
{
    struct tgt_lu *lu = t->lu;
    struct tgt_sanitize_record rec = {.version = 1, .action = t->cdb[1] & 0x1f, .flags = t->cdb[1] & 0x20 ? TGT_SANITIZE_AUSE : 0};
    bool immediate = t->cdb[1] & 0x80;
    gr_auto_free uint8_t *pattern = gr_zalloc(TGT_SANITIZE_PATTERN);
    struct tgt_sanitize *z = state_of(lu);
    if (!cdb_ok(t))
        return;
    if (rec.action == TGT_SANITIZE_EXIT_FAILURE) {
        exit_failure_mode(t);
        return;
    }
    uint32_t sense = pattern && rec.action == TGT_SANITIZE_OVERWRITE ? parse_overwrite(t, &rec, pattern) : 0;
    if (sense) {
        tgt_check(t, sense);
        return;
    }
    if (!pattern || !z) {
        tgt_status(t, TGT_BUSY);
        return;
    }
    if (shared(lu) < 0) {
        tgt_check(t, TGT_SENSE_SEQUENCE);
        return;
    }
    memcpy(&z->rec, &rec, sizeof rec);
    memcpy(z->pattern, pattern, TGT_SANITIZE_PATTERN);
    z->running = true; /* what suspends here must not let another one in */
    tell_begin(z, t->sess);
    int r = save(z);
    z->running = false;
    if (r == 0)
        r = start(z);
    if (r < 0) {
        tell(z, false, r);
        tgt_check_code(t, r);
        return;
    }
    while (!immediate && z->running && !t->aborted && !t->sess->ended)
        (void)gr_fqueue_wait_ms(&z->ended, LOOK_MS);
    if (z->failed)
        tgt_check(t, TGT_SENSE_SANITIZE_FAILED);
    else
        tgt_good(t);
}
