#include "iscsi-target/pr.h"
#include "iscsi-target/scsi.h"

static bool same(const struct tgt_nexus *a, const struct tgt_nexus *b)
{
    return !memcmp(a->isid, b->isid, TGT_ISID_LEN) && !strcmp(a->initiator, b->initiator);
}

static bool all_registrants(uint8_t type)
{
    return type == PR_WE_AR || type == PR_EA_AR;
}

static struct tgt_pr_reg *find(struct tgt_pr_state *s, const struct tgt_nexus *who)
{
    for (unsigned i = 0; i < s->n; i++)
        if (same(&s->regs[i].nexus, who))
            return &s->regs[i];
    return NULL;
}

const struct tgt_pr_reg *tgt_pr_find(const struct tgt_pr_state *s, const struct tgt_nexus *who)
{
    for (unsigned i = 0; i < s->n; i++)
        if (same(&s->regs[i].nexus, who))
            return &s->regs[i];
    return NULL;
}

bool tgt_pr_was_done(const struct tgt_pr_state *s, uint64_t id)
{
    for (unsigned i = 0; i < s->n_done; i++)
        if (s->done[i] == id)
            return true;
    return false;
}

void tgt_pr_note_done(struct tgt_pr_state *s, uint64_t id)
{
    if (s->n_done == TGT_PR_DONE_MAX)
        memmove(s->done, s->done + 1, --s->n_done * sizeof s->done[0]);
    s->done[s->n_done++] = id;
}

bool tgt_pr_holds(const struct tgt_pr_state *s, const struct tgt_nexus *who)
{
    if (s->type == PR_NONE)
        return false;
    return all_registrants(s->type) ? tgt_pr_find(s, who) != NULL : same(&s->holder, who);
}

bool tgt_pr_allows(const struct tgt_pr_state *s, const struct tgt_nexus *who, bool reads, bool writes)
{
    bool exclusive = s->type == PR_EA || s->type == PR_EA_RO || s->type == PR_EA_AR;
    bool conflicts = s->type != PR_NONE && (writes || (reads && exclusive));
    if (!conflicts || tgt_pr_holds(s, who))
        return true;
    return s->type >= PR_WE_RO && tgt_pr_find(s, who);
}

static void notify(struct tgt_pr_effect *e, const struct tgt_nexus *who, uint16_t ua, bool removed)
{
    if (e->n >= TGT_PR_MAX)
        return;
    e->who[e->n] = *who;
    e->ua[e->n] = ua;
    e->removed[e->n++] = removed;
}

static void notify_others(const struct tgt_pr_state *s, const struct tgt_nexus *me, uint16_t ua, struct tgt_pr_effect *e)
{
    for (unsigned i = 0; i < s->n; i++)
        if (!same(&s->regs[i].nexus, me))
            notify(e, &s->regs[i].nexus, ua, false);
}

static void release(struct tgt_pr_state *s, const struct tgt_nexus *me, struct tgt_pr_effect *e)
{
    uint8_t type = s->type;
    s->type = PR_NONE;
    if (type >= PR_WE_RO) /* those whose access just changed */
        notify_others(s, me, TGT_UA_RES_RELEASED, e);
}

static void drop(struct tgt_pr_state *s, struct tgt_pr_reg *r)
{
    *r = s->regs[--s->n];
}

static uint32_t do_register(struct tgt_pr_state *s, const struct tgt_nexus *who, const struct tgt_pr_request *rq, struct tgt_pr_effect *e)
{
    struct tgt_pr_reg *r = find(s, who);
    if (rq->action == PR_REGISTER && rq->key != (r ? r->key : 0))
        return TGT_CONFLICT;
    if (!r && !rq->new_key)
        return 0;
    if (!r && s->n >= TGT_PR_MAX)
        return TGT_SENSE_PR_RESOURCES << 8;
    s->generation++;
    s->aptpl = rq->aptpl;
    if (rq->new_key) {
        if (!r) {
            r = &s->regs[s->n++];
            r->nexus = *who;
        }
        r->key = rq->new_key;
        return 0;
    }
    bool held = tgt_pr_holds(s, who);
    drop(s, r);
    if (held && (!all_registrants(s->type) || !s->n))
        release(s, who, e);
    return 0;
}

static bool type_ok(uint8_t type)
{
    return type == PR_WE || type == PR_EA || (type >= PR_WE_RO && type <= PR_EA_AR);
}

static uint32_t do_reserve(struct tgt_pr_state *s, const struct tgt_nexus *who, const struct tgt_pr_request *rq)
{
    if (s->type != PR_NONE)
        return tgt_pr_holds(s, who) && s->type == rq->type ? 0 : TGT_CONFLICT;
    s->type = rq->type;
    s->holder = *who;
    return 0;
}

static uint32_t do_release(struct tgt_pr_state *s, const struct tgt_nexus *who, const struct tgt_pr_request *rq, struct tgt_pr_effect *e)
{
    if (!tgt_pr_holds(s, who))
        return 0;
    if (s->type != rq->type)
        return TGT_SENSE_RELEASE_INVALID << 8;
    release(s, who, e);
    return 0;
}

/* Remove the registrations with @key (0: all) but ours. Their number. */
static unsigned remove_key(struct tgt_pr_state *s, const struct tgt_nexus *me, uint64_t key, struct tgt_pr_effect *e)
{
    unsigned gone = 0;
    for (unsigned i = 0; i < s->n;) {
        struct tgt_pr_reg *r = &s->regs[i];
        if (same(&r->nexus, me) || (key && r->key != key)) {
            i++;
            continue;
        }
        notify(e, &r->nexus, TGT_UA_REG_PREEMPTED, true);
        drop(s, r);
        gone++;
    }
    return gone;
}

static uint32_t do_preempt(struct tgt_pr_state *s, const struct tgt_nexus *who, const struct tgt_pr_request *rq, struct tgt_pr_effect *e)
{
    bool all = all_registrants(s->type), known = false;
    const struct tgt_pr_reg *holder = s->type == PR_NONE || all ? NULL : tgt_pr_find(s, &s->holder);
    for (unsigned i = 0; i < s->n; i++)
        known = known || s->regs[i].key == rq->new_key;
    if (!rq->new_key && !all)
        return TGT_SENSE_INVALID_PARAM << 8;
    if (rq->new_key && !known)
        return TGT_CONFLICT;
    bool takes = (holder && holder->key == rq->new_key) || (all && !rq->new_key);
    if (takes && !type_ok(rq->type))
        return TGT_SENSE_INVALID_CDB << 8;
    s->generation++;
    remove_key(s, who, rq->new_key, e);
    if (takes) {
        if (s->type != rq->type)
            notify_others(s, who, TGT_UA_RES_RELEASED, e);
        s->type = rq->type;
        s->holder = *who;
    }
    return 0;
}

uint32_t tgt_pr_apply(struct tgt_pr_state *s, const struct tgt_nexus *who, const struct tgt_pr_request *rq, struct tgt_pr_effect *eff)
{
    eff->n = 0;
    if (rq->action == PR_REGISTER || rq->action == PR_REGISTER_IGNORE)
        return do_register(s, who, rq, eff);
    const struct tgt_pr_reg *me = tgt_pr_find(s, who);
    if (!me || me->key != rq->key)
        return TGT_CONFLICT;
    if ((rq->action == PR_RESERVE || rq->action == PR_RELEASE) && (rq->scope || !type_ok(rq->type)))
        return TGT_SENSE_INVALID_CDB << 8;
    switch (rq->action) {
    case PR_RESERVE:
        return do_reserve(s, who, rq);
    case PR_RELEASE:
        return do_release(s, who, rq, eff);
    case PR_CLEAR:
        notify_others(s, who, TGT_UA_RES_PREEMPTED, eff);
        s->n = 0;
        s->type = PR_NONE;
        s->generation++;
        return 0;
    case PR_PREEMPT:
    case PR_PREEMPT_ABORT:
        return do_preempt(s, who, rq, eff);
    case PR_REGISTER:
    case PR_REGISTER_IGNORE:
        break;
    }
    return 0;
}
