/* Limits of a logical unit: commands and bytes a second. For each the moment is kept up to which it is used up (the virtual scheduling of
 * ITU-T I.371's generic cell rate algorithm): a command passes when that is no further ahead than the burst, and moves it by its cost. */
#include "common/cleanup.h"
#include "iscsi-target/scsi.h"

#define BURST_MS 100u /* when none is set */

static uint64_t bytes_of(const struct tgt_task *t)
{
    bool reads = (t->cdb[0] & 0x1f) == 0x08;
    uint64_t bytes = reads ? (uint64_t)tgt_cdb_blocks(t->cdb) << t->lu->shift : t->out_need;
    return bytes > TGT_BUF_MAX ? 0 : GR_MIN(bytes, (uint64_t)t->edtl); /* one that names more is refused: it must not hold up others */
}

/* ns until the bucket that is used up to *@until takes something; 0: now. */
static uint64_t wait_ns(uint64_t until, uint64_t now, uint64_t burst_ns)
{
    return until > now + burst_ns ? until - now - burst_ns : 0;
}

static uint64_t due(const struct tgt_lu *lu, uint64_t now)
{
    uint64_t burst = (uint64_t)(lu->geo.limit_burst_ms ? lu->geo.limit_burst_ms : BURST_MS) * 1000000;
    uint64_t a = lu->geo.limit_iops ? wait_ns(lu->limit.ops_until, now, burst) : 0;
    uint64_t b = lu->geo.limit_bytes ? wait_ns(lu->limit.bytes_until, now, burst) : 0;
    return GR_MAX(a, b);
}

static void spend(struct tgt_lu *lu, const struct tgt_task *t, uint64_t now)
{
    struct tgt_limit *l = &lu->limit;
    if (lu->geo.limit_iops)
        l->ops_until = GR_MAX(l->ops_until, now) + 1000000000 / lu->geo.limit_iops;
    if (lu->geo.limit_bytes)
        l->bytes_until = GR_MAX(l->bytes_until, now) + bytes_of(t) * 1000000000 / lu->geo.limit_bytes;
}

static void more(void *arg)
{
    struct tgt_lu *lu = arg;
    struct tgt_limit *l = &lu->limit;
    uint64_t now = gr_loop_now_ns(lu->server->loop), wait = 0;
    while (l->waiters && !(wait = due(lu, now))) {
        struct tgt_task *t = l->waiters;
        tgt_queue_remove(&l->waiters, &l->waiters_last, t);
        t->waiting_limit = false;
        spend(lu, t, now);
        if (tgt_share_pass(t)) /* as if it had come only now */
            tgt_scsi_resume(t);
    }
    if (l->waiters && gr_timer_arm(lu->server->loop, &l->timer, wait) < 0)
        tgt_note(lu->server, 4, "disk '%s': out of memory: its limits hold up commands until the next one", lu->disk);
}

bool tgt_limit_pass(struct tgt_task *t)
{
    struct tgt_lu *lu = t->lu;
    struct tgt_limit *l = &lu->limit;
    if (!lu->geo.limit_iops && !lu->geo.limit_bytes)
        return true;
    uint64_t now = gr_loop_now_ns(lu->server->loop), wait = l->waiters ? 1 : due(lu, now);
    if (!wait) {
        spend(lu, t, now);
        return true;
    }
    bool first = !l->waiters;
    t->waiting_limit = true;
    tgt_queue_add(&l->waiters, &l->waiters_last, t);
    l->timer.fn = more;
    l->timer.arg = lu;
    if (first && gr_timer_arm(lu->server->loop, &l->timer, wait) < 0) {
        tgt_limit_leave(t);
        return true; /* better too fast than never */
    }
    return false;
}

void tgt_limit_leave(struct tgt_task *t)
{
    struct tgt_limit *l = &t->lu->limit;
    tgt_queue_remove(&l->waiters, &l->waiters_last, t);
    t->waiting_limit = false;
    if (!l->waiters)
        gr_timer_cancel(t->lu->server->loop, &l->timer);
}

void tgt_limit_changed(struct tgt_lu *lu)
{
    lu->limit.ops_until = lu->limit.bytes_until = 0; /* what was used up under another limit says nothing */
    more(lu);
}
