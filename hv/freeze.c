#include "hv/freeze.h"
#include "common/seam.h"
#include <stdio.h>
#include <string.h>

#define FREEZE_MS 10000 /* for the agent's answer; less when the deadline is nearer */
#define THAW_MS 5000
#define CHASE_PAUSE_MS 500

struct hv_freezer {
    struct gr_loop *loop;
    struct hv_qga *qga;
    void (*note)(void *arg, const char *text);
    void *arg;
    enum hv_freeze_state state;
    uint64_t since_ns, deadline_ms;
    bool expired; /* the deadline ended the last freeze */
    bool closing, chasing;
    struct gr_timer deadline;
    struct gr_fqueue idle, nudge;
    struct gr_fmutex lock;
};

static void say(struct hv_freezer *f, const char *text)
{
    if (f->note)
        f->note(f->arg, text);
}

/* Thaw with the lock held; afterwards the state is THAWED, or UNSURE. */
static int thaw_locked(struct hv_freezer *f, struct gr_err *err)
{
    int r = hv_qga_call(f->qga, "guest-fsfreeze-thaw", NULL, THAW_MS, NULL, err);
    f->state = r < 0 ? HV_UNSURE : HV_THAWED;
    if (r >= 0)
        gr_timer_cancel(f->loop, &f->deadline);
    return r;
}

/* The agent answers in order and every new exchange starts with a synchronisation: its status tells the truth about all
 * that was asked before, late freezes included. */
static void chase_once(struct hv_freezer *f)
{
    json_auto_t *status = NULL;
    gr_fmutex_lock(&f->lock);
    if (f->state == HV_UNSURE && hv_qga_call(f->qga, "guest-fsfreeze-status", NULL, THAW_MS, &status, NULL) >= 0) {
        const char *text = json_string_value(status);
        if (text && !strcmp(text, "thawed"))
            f->state = HV_THAWED;
        else if (thaw_locked(f, NULL) >= 0)
            say(f, "the guest was found frozen and has been thawed");
    }
    gr_fmutex_unlock(&f->lock);
}

static void chaser(void *arg)
{
    struct hv_freezer *f = arg;
    while (!f->closing && f->state == HV_UNSURE) {
        chase_once(f);
        if (f->state == HV_UNSURE && !f->closing)
            gr_fqueue_wait_ms(&f->nudge, CHASE_PAUSE_MS);
    }
    f->chasing = false;
    gr_fqueue_wake_all(&f->idle);
}

static void start_chaser(struct hv_freezer *f)
{
    if (f->chasing)
        return;
    f->chasing = true;
    if (gr_fiber_start(f->loop, chaser, f) < 0) {
        f->chasing = false;
        gr_timer_arm(f->loop, &f->deadline, CHASE_PAUSE_MS * 1000000ull);
    }
}

static void on_deadline(void *arg)
{
    struct hv_freezer *f = arg;
    if (f->state == HV_FROZEN) {
        f->expired = true;
        f->state = HV_UNSURE;
        say(f, "the freeze reached its deadline; the guest is being thawed");
    }
    if (f->state == HV_UNSURE)
        start_chaser(f);
}

int hv_freezer_new(struct gr_loop *loop, struct hv_qga *qga, void (*note)(void *arg, const char *text), void *arg, struct hv_freezer **ret)
{
    struct hv_freezer *f = gr_zalloc(sizeof *f);
    if (!f)
        return -ENOMEM;
    f->loop = loop;
    f->qga = qga;
    f->note = note;
    f->arg = arg;
    f->deadline.fn = on_deadline;
    f->deadline.arg = f;
    *ret = f;
    return 0;
}

void hv_freezer_free(struct hv_freezer *f)
{
    if (!f)
        return;
    f->closing = true;
    gr_timer_cancel(f->loop, &f->deadline);
    gr_fqueue_wake_all(&f->nudge);
    while (f->chasing)
        gr_fqueue_wait(&f->idle);
    free(f);
}

enum hv_freeze_state hv_freezer_state(const struct hv_freezer *f)
{
    return f->state;
}

int hv_freeze(struct hv_freezer *f, uint64_t deadline_ms, struct gr_err *err)
{
    json_auto_t *count = NULL;
    gr_fmutex_lock(&f->lock);
    if (f->state != HV_THAWED) {
        gr_fmutex_unlock(&f->lock);
        return gr_fail(err, -EBUSY, f->state == HV_FROZEN ? "the guest is frozen already" : "an earlier freeze has not been undone yet");
    }
    f->expired = false;
    f->deadline_ms = deadline_ms;
    f->since_ns = gr_loop_now_ns(f->loop);
    int r = gr_timer_arm(f->loop, &f->deadline, deadline_ms * 1000000);
    if (r >= 0) {
        f->state = HV_FREEZING;
        r = hv_qga_call(f->qga, "guest-fsfreeze-freeze", NULL, deadline_ms < FREEZE_MS ? deadline_ms : FREEZE_MS, &count, err);
        uint64_t took_ms = (gr_loop_now_ns(f->loop) - f->since_ns) / 1000000;
        f->state = r >= 0 ? HV_FROZEN : r == -ENOTCONN ? HV_THAWED : HV_UNSURE;
        if (r >= 0 && took_ms >= deadline_ms) {
            f->state = HV_UNSURE;
            r = gr_fail(err, -ETIMEDOUT, "freezing took %llu ms, longer than its deadline of %llu ms", (unsigned long long)took_ms, (unsigned long long)deadline_ms);
        }
    }
    if (r < 0)
        gr_timer_cancel(f->loop, &f->deadline);
    bool unsure = f->state == HV_UNSURE;
    gr_fmutex_unlock(&f->lock);
    if (unsure)
        start_chaser(f);
    return r < 0 ? r : (int)(json_integer_value(count) & 0xffff);
}

int hv_thaw(struct hv_freezer *f, uint64_t *ret_ms, struct gr_err *err)
{
    gr_fmutex_lock(&f->lock);
    int r;
    if (f->expired) {
        f->expired = false;
        r = gr_fail(err, -ETIMEDOUT, "the freeze had been ended at its deadline of %llu ms", (unsigned long long)f->deadline_ms);
    } else if (f->state != HV_FROZEN) {
        r = gr_fail(err, -EINVAL, "the guest is not frozen");
    } else {
        r = thaw_locked(f, err);
        if (r >= 0)
            *ret_ms = (gr_loop_now_ns(f->loop) - f->since_ns) / 1000000;
    }
    bool unsure = f->state == HV_UNSURE;
    gr_fmutex_unlock(&f->lock);
    if (unsure)
        start_chaser(f);
    return r;
}

void hv_freezer_suspect(struct hv_freezer *f)
{
    if (f->state == HV_THAWED) {
        f->state = HV_UNSURE;
        start_chaser(f);
    }
}
