/* The server: start and end, releases. */
#include "common/buf.h"
#include "common/cleanup.h"
#include "common/seam.h"
#include "iscsi-target/scsi.h"
#include <stdlib.h>

#define TICK_NS (5ull * 1000000000)
#define ASKED_NS 500000000ull /* how long initiators have to log out of a disk that goes away */

void tgt_note(struct tgt_server *s, int level, const char *fmt, ...)
{
    char text[1024];
    va_list ap;
    if (!s->opts.note)
        return;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    s->opts.note(s->opts.note_arg, level, text);
}

static void tick(void *arg)
{
    struct tgt_server *s = arg;
    struct tgt_sess *next;
    for (struct tgt_sess *o = s->sessions; o; o = next) {
        next = o->next;
        tgt_sess_tick(o);
    }
    gr_timer_arm(s->loop, &s->tick, TICK_NS);
}

static void note_access(void *arg, int level, const char *text)
{
    tgt_note(arg, level, "%s", text);
}

int tgt_server_new(const struct tgt_server_opts *opts, struct tgt_server **ret, struct gr_err *err)
{
    struct tgt_server *s = gr_zalloc(sizeof *s);
    if (!s)
        return gr_fail(err, -ENOMEM, "iSCSI target: out of memory");
    s->loop = opts->loop;
    s->opts = *opts;
    s->dir = opts->dir;
    snprintf(s->host, sizeof s->host, "%s", opts->host ? opts->host : "");
    gr_boot_id(s->boot);
    if (opts->boot)
        snprintf(s->boot, sizeof s->boot, "%s", opts->boot);
    s->tick = (struct gr_timer){.fn = tick, .arg = s};
    int r = tgt_access_open(opts->access_path, opts->rules, &s->access, err);
    if (!r)
        tgt_access_bring_over(s->access, note_access, s);
    if (!r)
        r = tgt_login_start(s, err);
    if (r < 0) {
        tgt_access_free(s->access);
        free(s->login);
        free(s);
        return r;
    }
    gr_timer_arm(s->loop, &s->tick, TICK_NS);
    *ret = s;
    return 0;
}

static void cut_all(struct tgt_server *s, const char *why)
{
    while (s->sessions)
        tgt_sess_close(s->sessions, why);
}

void tgt_server_free(struct tgt_server *s)
{
    if (!s)
        return;
    s->stopping = true;
    tgt_login_free(s);
    tgt_portals_close(s);
    cut_all(s, "the target is shut down");
    while (s->busy_fibers) /* sessions whose tasks are with the device, commands and lookups in fibers */
        gr_fqueue_wait(&s->changed);
    gr_timer_cancel(s->loop, &s->tick);
    gr_loop_defer_cancel(s->loop, &s->share_turn);
    tgt_lu_free_all(s);
    tgt_pool_done(&s->pool);
    tgt_access_free(s->access);
    free(s);
}

int tgt_server_shutdown(struct tgt_server *s, uint64_t timeout_ms)
{
    uint64_t deadline = gr_loop_now_ns(s->loop) + timeout_ms * 1000000;
    s->stopping = true;
    tgt_login_stop(s);
    tgt_portals_close(s);
    for (struct tgt_sess *o = s->sessions; o; o = o->next)
        tgt_sess_ask_logout(o);
    while (s->sessions) {
        uint64_t now = gr_loop_now_ns(s->loop);
        if (now >= deadline)
            break;
        if (gr_fqueue_wait_ms(&s->changed, (deadline - now) / 1000000 + 1) == -ETIMEDOUT)
            break;
    }
    unsigned cut = s->n_sessions;
    cut_all(s, "the target is shut down");
    return (int)cut;
}

char *tgt_server_url(struct tgt_server *s, const char *disk)
{
    char name[TGT_NAME_MAX + 1];
    gr_auto_free char *other = s->dir.portal ? s->dir.portal(s->dir.arg, disk) : NULL;
    const char *portal = other ? other : tgt_server_portal(s);
    if (!portal || tgt_name_of(disk, name) < 0)
        return NULL;
    return gr_asprintf("iscsi://%s/%s/0", portal, name);
}

unsigned tgt_server_sessions(struct tgt_server *s, const char *disk)
{
    struct tgt_lu *lu = disk ? tgt_lu_find(s, disk) : NULL;
    return disk ? (lu ? lu->n_sessions : 0) : s->n_sessions;
}

static void lu_forget(struct tgt_server *s, struct tgt_lu *lu)
{
    for (struct tgt_lu **p = &s->lus; *p; p = &(*p)->next) {
        if (*p != lu)
            continue;
        *p = lu->next;
        tgt_pr_free(lu);
        free(lu);
        return;
    }
}

static bool has_sessions(const struct tgt_server *s, const struct tgt_lu *lu)
{
    const struct tgt_sess *o = s->sessions;
    while (o && o->lu != lu)
        o = o->next;
    return o != NULL;
}

/* Who is asked to log out has no command under way when it goes, and none is answered twice. Some do not listen. */
static void ask_to_leave(struct tgt_server *s, struct tgt_lu *lu)
{
    uint64_t deadline = gr_loop_now_ns(s->loop) + ASKED_NS;
    for (struct tgt_sess *o = s->sessions; o; o = o->next)
        if (o->lu == lu)
            tgt_sess_ask_logout(o);
    while (has_sessions(s, lu)) {
        uint64_t now = gr_loop_now_ns(s->loop);
        if (now >= deadline || gr_fqueue_wait_ms(&s->changed, (deadline - now) / 1000000 + 1) == -ETIMEDOUT)
            return;
    }
}

int tgt_server_release(struct tgt_server *s, const char *disk, bool only_idle, struct gr_err *err)
{
    struct tgt_lu *lu = tgt_lu_find(s, disk);
    if (!lu)
        return 0;
    if (lu->releasing)
        return gr_fail(err, -EBUSY, "disk '%s' is already being released", disk);
    for (struct tgt_sess *o = s->sessions; o && only_idle; o = o->next)
        if (o->lu == lu)
            return gr_fail(err, -EBUSY, "disk '%s' is in use by initiator %s (%s)", disk, o->initiator, o->address);
    lu->releasing = true;
    ask_to_leave(s, lu);
    struct tgt_sess *next;
    for (struct tgt_sess *o = s->sessions; o; o = next) {
        next = o->next;
        if (o->lu == lu)
            tgt_sess_close(o, "the disk is released");
    }
    tgt_login_let_go(s, lu);
    while (lu->users)
        gr_fqueue_wait(&s->changed);
    lu_forget(s, lu);
    gr_fqueue_wake_all(&s->changed);
    return 0;
}
