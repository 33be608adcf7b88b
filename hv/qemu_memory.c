#include "hv/qemu_memory.h"
#include "common/cleanup.h"
#include <string.h>

#define CALL_MS 10000
#define POLL_MS 20
#define FD_NAME "memory"
#define BANDWIDTH (1ll << 40) /* bytes a second: as fast as it goes */
#define DOWNTIME_MS 300       /* the guest is held for the rest when it is thought to take no longer */
#define LIVE_MS 120000        /* a guest that changes its memory quicker than it is written is held after so long, */
#define LIVE_PERCENT 150      /* or when so much of its memory was written */
#define HELD_MS 30000         /* and never longer than this */
#define LOAD_MS 3600000
#define CANCEL_MS 5000

struct state {
    char status[24], why[200];
    uint64_t transferred, remaining, total;
};

static int query(struct hv_qmp *q, struct state *ret, struct gr_err *err)
{
    json_auto_t *m = NULL;
    *ret = (struct state){0};
    int r = hv_qmp_call(q, "query-migrate", NULL, CALL_MS, &m, err);
    if (r < 0)
        return r;
    const char *status = json_string_value(json_object_get(m, "status")), *why = json_string_value(json_object_get(m, "error-desc"));
    json_t *ram = json_object_get(m, "ram");
    snprintf(ret->status, sizeof ret->status, "%s", status ? status : "none");
    snprintf(ret->why, sizeof ret->why, "%s", why ? why : "QEMU does not say why");
    ret->transferred = (uint64_t)json_integer_value(json_object_get(ram, "transferred"));
    ret->remaining = (uint64_t)json_integer_value(json_object_get(ram, "remaining"));
    ret->total = (uint64_t)json_integer_value(json_object_get(ram, "total"));
    return 0;
}

static bool is(const struct state *s, const char *status)
{
    return !strcmp(s->status, status);
}

static bool is_over(const struct state *s)
{
    return is(s, "none") || is(s, "completed") || is(s, "failed") || is(s, "cancelled");
}

static int begin(struct hv_qmp *q, int fd, struct gr_err *err)
{
    int r = hv_qmp_call(q, "migrate-set-parameters", json_pack("{s:I, s:i}", "max-bandwidth", (json_int_t)BANDWIDTH, "downtime-limit", DOWNTIME_MS), CALL_MS, NULL, err);
    if (r >= 0)
        r = hv_qmp_give_fd(q, FD_NAME, fd, CALL_MS, err);
    return r < 0 ? r : hv_qmp_call(q, "migrate", json_pack("{s:s}", "uri", "fd:" FD_NAME), CALL_MS, NULL, err);
}

/* The guest's memory is on its way while the guest runs; then QEMU holds it, writes the rest, and is at the end. */
static int follow(struct gr_loop *loop, struct hv_qmp *q, const struct hv_save *opts, struct gr_err *err)
{
    uint64_t begun = gr_loop_now_ns(loop), held = 0;
    for (;;) {
        struct state s;
        int r = query(q, &s, err);
        if (r < 0 || is(&s, "completed"))
            return r;
        if (is_over(&s))
            return gr_fail(err, -EIO, "QEMU could not write the guest's memory (%s): %s", s.status, s.why);
        uint64_t now = gr_loop_now_ns(loop), live_ms = (now - begun) / 1000000;
        if (!held && is(&s, "device"))
            held = now;
        if (!held && (live_ms > LIVE_MS || s.transferred > s.total / 100 * LIVE_PERCENT)) {
            held = now;
            if ((r = hv_qmp_call(q, "stop", NULL, CALL_MS, NULL, err)) < 0)
                return r;
        }
        if (held && now - held > HELD_MS * 1000000ull)
            return gr_fail(err, -ETIMEDOUT, "the guest changes its memory quicker than it can be written, and was held for %d s already: suspend it first", HELD_MS / 1000);
        if (opts->progress && (r = opts->progress(opts->arg, s.total - s.remaining, s.total)) < 0)
            return gr_fail(err, r, "saving the guest's memory was given up: %s", gr_code_text(r));
        gr_fiber_sleep_ms(POLL_MS);
    }
}

void hv_qemu_save_undo(struct gr_loop *loop, struct hv_qmp *q)
{
    uint64_t due = gr_loop_now_ns(loop) + CANCEL_MS * 1000000ull;
    struct state s;
    hv_qmp_call(q, "migrate_cancel", NULL, CALL_MS, NULL, NULL);
    while (query(q, &s, NULL) >= 0 && !is_over(&s) && gr_loop_now_ns(loop) < due)
        gr_fiber_sleep_ms(POLL_MS);
    hv_qmp_call(q, "cont", NULL, CALL_MS, NULL, NULL);
}

int hv_qemu_save(struct gr_loop *loop, struct hv_qmp *q, int fd, bool running, const struct hv_save *opts, struct gr_err *err)
{
    int r = begin(q, fd, err);
    if (r >= 0)
        r = follow(loop, q, opts, err);
    if (r < 0 && running)
        hv_qemu_save_undo(loop, q);
    else if (r < 0)
        hv_qmp_call(q, "migrate_cancel", NULL, CALL_MS, NULL, NULL);
    return r < 0 ? r : 0;
}

int hv_qemu_load(struct hv_qmp *q, int fd, struct gr_err *err)
{
    int r = hv_qmp_give_fd(q, FD_NAME, fd, CALL_MS, err);
    if (r >= 0)
        r = hv_qmp_call(q, "migrate-incoming", json_pack("{s:s}", "uri", "fd:" FD_NAME), CALL_MS, NULL, err);
    for (unsigned ms = 0; r >= 0; ms += POLL_MS) {
        struct state s;
        if ((r = query(q, &s, err)) < 0 || is(&s, "completed"))
            return r;
        if (is(&s, "failed") || is(&s, "cancelled"))
            return gr_fail(err, -EIO, "QEMU could not load the guest's memory: %s", s.why);
        if (ms > LOAD_MS)
            return gr_fail(err, -ETIMEDOUT, "QEMU did not load the guest's memory within an hour");
        gr_fiber_sleep_ms(POLL_MS);
    }
    return r;
}
