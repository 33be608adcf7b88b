/* Life of a session: its first login, further connections, and its end. */
#include "common/cleanup.h"
#include "common/seam.h"
#include "iscsi-target/scsi.h"
#include <limits.h>
#include <stdlib.h>
#include <unistd.h>

#define WAIT_MAX_S 60ull /* DefaultTime2Wait may be an hour: so long nobody's tasks are kept */

uint32_t tgt_sess_maxcmdsn(const struct tgt_sess *sess)
{
    return sess->expcmdsn + (TGT_WINDOW - sess->outstanding) - 1;
}

void tgt_sess_ask_logout(struct tgt_sess *sess)
{
    for (struct tgt_conn *c = sess->conns; c; c = c->next) {
        struct tgt_misc *m = c->logout_sent ? NULL : tgt_misc_new(c, TGT_OP_ASYNC, TGT_FINAL, TGT_TAG_NONE, 0);
        if (!m)
            continue;
        c->logout_sent = true;
        m->bhs[36] = 1;              /* target requests logout */
        gr_put_be16(m->bhs + 42, 3); /* within so many seconds */
        tgt_misc_send(c, m);
    }
}

void tgt_sess_ua(struct tgt_sess *sess, uint16_t ua)
{
    for (unsigned i = 0; i < sess->n_ua; i++)
        if (sess->ua[i] == ua)
            return;
    if (sess->n_ua < TGT_UA_MAX)
        sess->ua[sess->n_ua++] = ua;
}

uint16_t tgt_sess_ua_next(struct tgt_sess *sess)
{
    uint16_t ua = sess->ua[0];
    sess->n_ua--;
    memmove(sess->ua, sess->ua + 1, sess->n_ua * sizeof sess->ua[0]);
    tgt_pr_told(sess, ua);
    return ua;
}

/* ---- end ---- */

static void sess_free(void *arg)
{
    struct tgt_sess *sess = arg;
    struct tgt_server *s = sess->server;
    gr_timer_cancel(sess->loop, &sess->retain);
    tgt_stats_add(&sess->lu->stats, &sess->stats);
    free(sess->tasks);
    tgt_lu_user_put(sess->lu);
    s->busy_fibers--;
    free(sess);
    gr_fqueue_wake_all(&s->changed);
}

/* The memory can go once no task is with the device and nobody holds it. */
static void maybe_reap(struct tgt_sess *sess)
{
    if (sess->ended && !sess->running && !sess->holds)
        gr_loop_defer(sess->loop, &sess->reap);
}

void tgt_sess_unhold(struct tgt_sess *sess)
{
    sess->holds--;
    maybe_reap(sess);
}

static void unlink_sess(struct tgt_sess *sess)
{
    struct tgt_server *s = sess->server;
    if (sess->prev)
        sess->prev->next = sess->next;
    else
        s->sessions = sess->next;
    if (sess->next)
        sess->next->prev = sess->prev;
    s->n_sessions--;
    sess->lu->n_sessions--;
    tgt_stats_add(&sess->lu->stats, &sess->stats); /* what is still counted comes with its end: in the sum nothing is ever missing */
    sess->stats = (struct tgt_sess_stats){0};
    if (sess->lu->reserved == sess)
        sess->lu->reserved = NULL;
}

void tgt_sess_close(struct tgt_sess *sess, const char *why)
{
    struct tgt_server *s = sess->server;
    if (sess->ended)
        return;
    sess->ended = true;
    unlink_sess(sess);
    while (sess->conns)
        tgt_conn_close(sess->conns, LEAVE_DROP, why);
    for (unsigned i = 0; i < TGT_TASKS; i++) /* of connections that had gone before */
        if (sess->tasks[i].state != TASK_FREE)
            tgt_task_leave(&sess->tasks[i], LEAVE_DROP);
    while (sess->held_requests) {
        struct tgt_request *rq = sess->held_requests;
        sess->held_requests = rq->next;
        free(rq);
    }
    tgt_note(s, 6, "session %u of %s (%s) on '%s' ended: %s", sess->id, sess->initiator, sess->address, sess->lu->disk, why);
    gr_fqueue_wake_all(&s->changed);
    maybe_reap(sess);
}

/* Tasks that nobody reassigned in time. */
static void retain_over(void *arg)
{
    struct tgt_sess *sess = arg;
    if (!sess->conns) {
        tgt_sess_close(sess, "no connection came back in time");
        return;
    }
    for (unsigned i = 0; i < TGT_TASKS; i++)
        if (sess->tasks[i].state != TASK_FREE && !sess->tasks[i].conn)
            tgt_task_leave(&sess->tasks[i], LEAVE_DROP);
}

void tgt_sess_retain(struct tgt_sess *sess)
{
    gr_timer_arm(sess->loop, &sess->retain, (GR_MIN((uint64_t)sess->params.time2wait, WAIT_MAX_S) + sess->params.time2retain) * 1000000000);
}

/* ---- login ---- */

static struct tgt_sess *allocate(void)
{
    struct tgt_sess *sess = gr_zalloc(sizeof *sess);
    if (sess)
        sess->tasks = gr_zalloc(TGT_TASKS * sizeof *sess->tasks);
    if (sess && sess->tasks)
        return sess;
    free(sess);
    return NULL;
}

static void fill_tasks(struct tgt_sess *sess)
{
    for (unsigned i = TGT_TASKS; i-- > 0;) {
        struct tgt_task *t = &sess->tasks[i];
        t->sess = sess;
        t->lu = sess->lu;
        t->index = (uint16_t)i;
        t->hash_next = sess->free_tasks;
        sess->free_tasks = t;
    }
    sess->n_free = TGT_TASKS;
}

static bool same_port(const struct tgt_sess *o, const struct tgt_sess_start *start)
{
    return o->lu == start->lu && !memcmp(o->isid, start->isid, TGT_ISID_LEN) && !strcmp(o->initiator, start->initiator);
}

/* A session of the same initiator port to the same target is replaced (RFC 7143 6.3.5). */
static void reinstate(struct tgt_server *s, const struct tgt_sess_start *start)
{
    struct tgt_sess *next;
    for (struct tgt_sess *o = s->sessions; o; o = next) {
        next = o->next;
        if (same_port(o, start))
            tgt_sess_close(o, "replaced by a new login of the same initiator port");
    }
}

static void sess_link(struct tgt_server *s, struct tgt_sess *sess)
{
    sess->next = s->sessions;
    if (sess->next)
        sess->next->prev = sess;
    s->sessions = sess;
    s->n_sessions++;
    s->busy_fibers++;
    sess->lu->n_sessions++;
}

/* The one with the fewest sessions. */
static struct gr_loop *choose_loop(const struct tgt_server *s)
{
    struct gr_loop *best = s->loop;
    unsigned least = UINT_MAX;
    for (unsigned i = 0; i < gr_gang_size(s->opts.gang); i++) {
        struct gr_loop *loop = s->opts.gang ? gr_gang_loop(s->opts.gang, i) : s->loop;
        unsigned n = 0;
        for (const struct tgt_sess *o = s->sessions; o; o = o->next)
            n += o->loop == loop;
        if (n < least) {
            least = n;
            best = loop;
        }
    }
    return best;
}

struct tgt_sess *tgt_sess_make(struct tgt_server *s, const struct tgt_sess_start *start)
{
    struct tgt_sess *sess = allocate();
    if (!sess)
        return NULL;
    sess->server = s;
    sess->loop = choose_loop(s);
    sess->lu = start->lu;
    sess->params = start->params;
    sess->stands_by = start->stands_by;
    memcpy(sess->isid, start->isid, TGT_ISID_LEN);
    snprintf(sess->initiator, sizeof sess->initiator, "%s", start->initiator);
    snprintf(sess->address, sizeof sess->address, "%s", start->address);
    sess->expcmdsn = start->cmdsn;
    sess->id = ++s->next_id;
    sess->tsih = start->tsih ? start->tsih : ++s->next_tsih ? s->next_tsih : ++s->next_tsih;
    sess->started_ns = gr_loop_now_ns(s->loop);
    sess->reap = (struct gr_defer){.fn = sess_free, .arg = sess};
    sess->retain = (struct gr_timer){.fn = retain_over, .arg = sess};
    fill_tasks(sess);
    reinstate(s, start);
    sess_link(s, sess);
    return sess;
}

static int sess_new(struct tgt_server *s, const struct tgt_sess_start *start)
{
    struct tgt_sess *sess = tgt_sess_make(s, start);
    if (!sess) {
        close(start->fd);
        tgt_lu_user_put(start->lu);
        return -ENOMEM;
    }
    tgt_note(s, 6, "session %u: %s (%s) logged in to '%s'", sess->id, sess->initiator, sess->address, sess->lu->disk);
    int r = tgt_conn_new(sess, start, NULL);
    if (r < 0) {
        close(start->fd);
        tgt_sess_close(sess, "out of memory");
    }
    return r;
}

static struct tgt_sess *find(struct tgt_server *s, const struct tgt_sess_start *start)
{
    for (struct tgt_sess *o = s->sessions; o; o = o->next)
        if (o->tsih == start->tsih && same_port(o, start))
            return o;
    return NULL;
}

unsigned tgt_sess_joinable(struct tgt_server *s, const struct tgt_sess_start *start)
{
    const struct tgt_sess *sess = find(s, start);
    if (!sess)
        return TGT_LOGIN_NO_SESSION;
    return sess->n_conns >= sess->params.max_connections && !tgt_conn_find(sess, start->cid) ? TGT_LOGIN_TOO_MANY : TGT_LOGIN_OK;
}

/* One more connection, or one in the place of another with its CID (reinstatement, RFC 7143 6.3.4). */
static int join(struct tgt_server *s, const struct tgt_sess_start *start)
{
    struct tgt_sess *sess = find(s, start);
    struct tgt_conn *old = tgt_conn_find(sess, start->cid);
    sess->holds++; /* it outlives the change of its only connection */
    int r = tgt_conn_new(sess, start, NULL);
    if (!r && old)
        tgt_conn_close(old, sess->params.error_recovery_level == 2 ? LEAVE_KEEP : LEAVE_DROP, "replaced by a new login");
    if (r < 0)
        close(start->fd);
    else
        tgt_note(s, 6, "session %u: connection %u from %s", sess->id, start->cid, start->address);
    tgt_sess_unhold(sess);
    tgt_lu_user_put(start->lu); /* the session has its own */
    return r;
}

int tgt_sess_login(struct tgt_server *s, const struct tgt_sess_start *start)
{
    return start->tsih ? join(s, start) : sess_new(s, start);
}

/* Called every few seconds for each session. */
void tgt_sess_tick(struct tgt_sess *sess)
{
    struct tgt_conn *next;
    for (struct tgt_conn *c = sess->conns; c && !sess->ended; c = next) {
        next = c->next;
        tgt_conn_tick(c);
    }
}
