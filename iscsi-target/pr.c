/* PERSISTENT RESERVE IN and OUT (SPC-4 6.15, 6.16): parameter data, and effects on sessions. */
#include "iscsi-target/pr_int.h"
#include "common/cleanup.h"
#include "iscsi-target/sanitize.h"
#include <stdlib.h>

static void nexus_of(const struct tgt_sess *sess, struct tgt_nexus *ret)
{
    memset(ret, 0, sizeof *ret);
    memcpy(ret->initiator, sess->initiator, sizeof ret->initiator);
    memcpy(ret->isid, sess->isid, TGT_ISID_LEN);
}

uint8_t tgt_pr_check(const struct tgt_lu *lu, const struct tgt_sess *sess, unsigned flags)
{
    struct tgt_nexus who;
    if (!lu->pr || lu->pr->state.type == PR_NONE || !(flags & (CMD_PR_READ | CMD_PR_WRITE)))
        return 0;
    nexus_of(sess, &who);
    return tgt_pr_allows(&lu->pr->state, &who, flags & CMD_PR_READ, flags & CMD_PR_WRITE) ? 0 : TGT_CONFLICT;
}

bool tgt_pr_any(const struct tgt_lu *lu)
{
    return lu->pr && lu->pr->state.n;
}

void tgt_pr_free(struct tgt_lu *lu)
{
    free(lu->pr);
    lu->pr = NULL;
}

struct tgt_pr *tgt_pr_of(struct tgt_lu *lu)
{
    if (!lu->pr)
        lu->pr = gr_zalloc(sizeof *lu->pr);
    return lu->pr;
}

/* ---- OUT ---- */

static void tell(struct tgt_lu *lu, const struct tgt_sess *self, const struct tgt_pr_effect *e, bool abort)
{
    for (unsigned i = 0; i < e->n; i++) {
        for (struct tgt_sess *o = lu->server->sessions; o; o = o->next) {
            struct tgt_nexus who;
            nexus_of(o, &who);
            if (o->lu != lu || o == self || memcmp(&who, &e->who[i], sizeof who) != 0)
                continue;
            tgt_sess_ua(o, e->ua[i]);
            for (unsigned j = 0; abort && e->removed[i] && j < TGT_TASKS; j++)
                tgt_task_abort(&o->tasks[j], NULL);
        }
    }
    if (e->n)
        tgt_pr_tell_hosts(lu, e);
}

static uint32_t apply(struct tgt_lu *lu, const struct tgt_pr_order *o, const struct tgt_pr_request *rq)
{
    struct tgt_pr *pr = lu->pr;
    pr->before = pr->state;
    uint32_t result = tgt_pr_apply(&pr->state, o->who, rq, &pr->effect);
    if (result)
        return result;
    if (o->id)
        tgt_pr_note_done(&pr->state, o->id);
    if (tgt_pr_save(lu, &pr->state) < 0) {
        pr->state = pr->before;
        return TGT_SENSE_INTERNAL << 8;
    }
    return 0;
}

struct drain {
    struct tgt_range range;
    struct gr_fiber *fiber;
};

static void drained(struct tgt_range *r)
{
    gr_fiber_wake(((struct drain *)(void *)r)->fiber);
}

/* Wait until whatever was with the device has been answered, also of sessions that are gone: nothing of who was preempted lands later. What
 * comes now waits behind us. While the unit is sanitized nothing else is with the device. */
static void drain(struct tgt_lu *lu)
{
    struct drain d = {.range = {.len = UINT64_MAX, .excl = true, .go = drained}, .fiber = gr_fiber_self()};
    _Static_assert(offsetof(struct drain, range) == 0, "drained() finds it");
    if (tgt_sanitize_alone(lu))
        return;
    if (!tgt_range_begin(&lu->ranges, &d.range))
        gr_fiber_suspend();
    tgt_range_end(&lu->ranges, &d.range);
}

void tgt_pr_out(struct tgt_lu *lu, const struct tgt_pr_order *o, struct tgt_pr_answer *ret)
{
    struct tgt_pr *pr = tgt_pr_of(lu);
    const uint8_t *cdb = o->cdb, *list = o->list;
    const struct tgt_pr_request rq = {.action = (enum tgt_pr_action)(cdb[1] & 0x1f), .type = cdb[2] & 0x0f, .scope = cdb[2] >> 4,
                                      .key = gr_get_be64(list), .new_key = gr_get_be64(list + 8), .aptpl = list[20] & 0x01};
    bool registers = rq.action == PR_REGISTER || rq.action == PR_REGISTER_IGNORE;
    bool durable = lu->bdev && lu->has_store;
    uint32_t result = 0;
    *ret = (struct tgt_pr_answer){0};
    if (!pr) {
        ret->status = TGT_BUSY;
        return;
    }
    if ((list[20] & 0x08) || (registers && rq.aptpl && !durable)) { /* SPEC_I_PT; APTPL without a store */
        *ret = (struct tgt_pr_answer){.sense = TGT_SENSE_INVALID_PARAM, .in_list = true};
        return;
    }
    gr_fmutex_lock(&pr->lock);
    if (gr_rpc_gone(o->call)) { /* its initiator was told that it may send it again, or something else */
        result = TGT_BUSY;
    } else if (!o->id || !tgt_pr_was_done(&pr->state, o->id)) {
        result = lu->reserved && lu->reserved != o->self ? TGT_CONFLICT : apply(lu, o, &rq);
        if (!result)
            tell(lu, o->self, &pr->effect, rq.action == PR_PREEMPT_ABORT);
    }
    gr_fmutex_unlock(&pr->lock);
    if (!result && rq.action == PR_PREEMPT_ABORT)
        drain(lu);
    ret->sense = result >> 8;
    ret->status = (uint8_t)result;
}

void tgt_pr_out_here(struct tgt_task *t, uint64_t id)
{
    struct tgt_pr_answer a;
    struct tgt_nexus who;
    const struct tgt_pr_order o = {.self = t->sess, .who = &who, .cdb = t->cdb, .list = t->buf, .id = id};
    nexus_of(t->sess, &who);
    tgt_pr_out(t->lu, &o, &a);
    tgt_pr_answer(t, &a);
}

void tgt_run_pr_out(struct tgt_task *t)
{
    if (t->out_total != TGT_PR_OUT_LEN || GR_MIN(t->out_need, t->out_got) != TGT_PR_OUT_LEN)
        tgt_check(t, TGT_SENSE_PARAM_LENGTH);
    else if (t->lu->standby)
        tgt_pr_ask_owner(t);
    else
        tgt_pr_out_here(t, tgt_pr_again(t));
}

void tgt_pr_answer(struct tgt_task *t, const struct tgt_pr_answer *a)
{
    if (a->in_list)
        tgt_check_field(t, a->sense, false, 20);
    else if (a->sense)
        tgt_check(t, a->sense);
    else
        tgt_status(t, a->status);
}

/* ---- IN ---- */

static uint32_t read_keys(const struct tgt_pr_state *s, uint8_t *p)
{
    for (unsigned i = 0; i < s->n; i++)
        gr_put_be64(p + 8 + 8 * i, s->regs[i].key);
    return 8 * s->n;
}

static uint32_t read_reservation(const struct tgt_pr_state *s, uint8_t *p)
{
    if (s->type == PR_NONE)
        return 0;
    const struct tgt_pr_reg *r = s->type >= PR_WE_AR ? NULL : tgt_pr_find(s, &s->holder);
    gr_put_be64(p + 8, r ? r->key : 0); /* no one key when all registrants hold it */
    p[8 + 13] = s->type;
    return 16;
}

static uint32_t full_status(const struct tgt_pr_state *s, uint8_t *p)
{
    uint32_t len = 0;
    for (unsigned i = 0; i < s->n; i++) {
        uint8_t *d = p + 8 + len;
        char isid[13], name[TGT_NAME_MAX + 32] = {0};
        const struct tgt_pr_reg *r = &s->regs[i];
        bool holds = tgt_pr_holds(s, &r->nexus);
        gr_put_be64(d, r->key);
        d[12] = holds;
        d[13] = holds ? s->type : 0;
        gr_put_be16(d + 18, 1);
        tgt_isid_text(r->nexus.isid, isid);
        uint32_t n = (uint32_t)snprintf(name, sizeof name, "%s,i,0x%s", r->nexus.initiator, isid) + 1;
        n = GR_MAX(n + tgt_pad4(n), 20u);
        d[24] = 0x45; /* TransportID of an iSCSI initiator port */
        gr_put_be16(d + 26, (uint16_t)n);
        memcpy(d + 28, name, n);
        gr_put_be32(d + 20, 4 + n);
        len += 24 + 4 + n;
    }
    return len;
}

static uint32_t capabilities(const struct tgt_lu *lu, uint8_t *p)
{
    bool durable = lu->has_store, kept = lu->pr && lu->pr->state.aptpl;
    gr_put_be16(p, 8);
    p[2] = (uint8_t)(0x04 | (durable ? 0x01 : 0)); /* ATP_C, PTPL_C */
    p[3] = (uint8_t)(0x80 | (kept ? 0x01 : 0));    /* TMV, PTPL_A */
    p[4] = 0xea;
    p[5] = 0x01;
    return 8;
}

uint32_t tgt_pr_in(const struct tgt_lu *lu, const uint8_t *cdb, uint8_t *p)
{
    static const struct tgt_pr_state none;
    const struct tgt_pr_state *s = lu->pr ? &lu->pr->state : &none;
    uint32_t len;
    switch (cdb[1] & 0x1f) {
    case 0:
        len = read_keys(s, p);
        break;
    case 1:
        len = read_reservation(s, p);
        break;
    case 2:
        return capabilities(lu, p);
    default:
        len = full_status(s, p);
        break;
    }
    gr_put_be32(p, s->generation);
    gr_put_be32(p + 4, len);
    return 8 + len;
}

void tgt_run_pr_in(struct tgt_task *t)
{
    if (t->lu->standby) {
        tgt_pr_ask_owner(t);
        return;
    }
    uint8_t *p = tgt_in_buf(t, TGT_PR_IN_MAX);
    if (p)
        tgt_in_data(t, tgt_pr_in(t->lu, t->cdb, p), gr_get_be16(t->cdb + 7));
}
