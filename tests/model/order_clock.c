/* Processes that come and go; time, and what ails them. */
#include "tests/model/order_int.h"

static bool named(const struct step *s, unsigned proc) /* its key is written or remembered somewhere */
{
    for (unsigned i = 0; i < s->m->slots; i++) {
        if (m_slot(s->m, s->st, i)->key == proc + 1)
            return true;
        for (unsigned q = 0; q < s->m->procs; q++)
            if (m_take(s->m, s->st, q, i)->key == proc + 1)
                return true;
    }
    for (unsigned k = 0; k < s->m->disks; k++)
        if (m_hold(s->m, s->st, proc, k)->pending || m_disk(s->m, s->st, k)->owner == proc + 1)
            return true;
    return false;
}

int m_start(struct step *s)
{
    struct m_head *h = m_head(s->st);
    bool again = s->p->status == MP_OVER && !s->p->reg && !named(s, s->a.p);
    if ((s->p->status != MP_OUT && !again) || h->restarts >= s->m->restarts || s->p->health != MH_WELL)
        return m_no(s, "it runs");
    for (unsigned q = 0; q < s->m->procs && s->m->clock; q++) {
        const struct m_proc *o = m_proc(s->m, s->st, q);
        if (q != s->a.p && o->host == s->p->host && o->status != MP_OUT && o->status != MP_OVER && o->health < MH_DEAD_SENT)
            return m_no(s, "an earlier start of its home runs");
    }
    h->restarts++;
    *s->p = (struct m_proc){ .host = s->p->host, .status = MP_ENTERING };
    return 1;
}

int m_enter(struct step *s)
{
    unsigned d = s->a.d;
    if (s->p->status != MP_ENTERING || s->p->reg != M_BIT(d) - 1 || (s->p->cut & M_BIT(d)) || m_head(s->st)->stalled)
        return m_no(s, "it has registered, or not with the device before");
    s->p->reg |= M_BIT(d);
    if (d + 1u == s->m->devices)
        s->p->status = MP_JOINING;
    return 1;
}

int m_notice(struct step *s)
{
    bool begun = s->p->status == MP_JOINING || s->p->status == MP_JOINED;
    if (!begun || s->p->reg == M_BIT(s->m->devices) - 1 || s->p->health != MH_WELL)
        return m_no(s, "it was not ejected");
    for (unsigned i = 0; i < s->m->slots; i++)
        m_take_drop(s, s->a.p, i);
    for (unsigned k = 0; k < s->m->disks; k++) {
        struct m_hold *h = m_hold(s->m, s->st, s->a.p, k);
        *h = (struct m_hold){ .pending = h->pending };
    }
    *s->p = (struct m_proc){ .host = s->p->host, .status = MP_OVER, .reg = s->p->reg };
    return 1;
}

int m_tick(struct step *s)
{
    bool any = false;
    if (!s->m->clock)
        return m_no(s, "there is no clock");
    for (unsigned p = 0; p < s->m->procs; p++) {
        const struct m_proc *q = m_proc(s->m, s->st, p);
        for (unsigned i = 0; i < s->m->slots; i++) {
            bool answers = (q->charge & M_BIT(i)) && q->health == MH_WELL && (q->reg & 1) && !(q->cut & 1) && !m_head(s->st)->stalled;
            bool mute = q->slot == i + 1 && m_without(s, MX_ANSWER);
            if (answers && !mute && m_slot(s->m, s->st, i)->old)
                return m_no(s, "somebody who is well has an alarm to answer");
            any |= m_take(s->m, s->st, p, i)->looked;
        }
    }
    if (!any)
        return m_no(s, "nobody waits for it");
    for (unsigned i = 0; i < s->m->slots; i++) {
        m_slot(s->m, s->st, i)->old |= m_slot(s->m, s->st, i)->asked && !m_head(s->st)->stalled;
        for (unsigned p = 0; p < s->m->procs; p++)
            m_take(s->m, s->st, p, i)->looked = 0;
    }
    return 1;
}

/* ---- faults ---- */
static bool due(struct step *s, unsigned kind)
{
    struct m_head *h = m_head(s->st);
    if (!s->m->clock || !(s->m->fault_kinds & M_BIT(kind)) || h->faults >= s->m->faults)
        return false;
    h->faults++;
    return true;
}
static bool runs(const struct step *s)
{
    return s->p->status >= MP_ENTERING && s->p->status <= MP_JOINED && s->p->reg;
}

int m_crash(struct step *s)
{
    if (!runs(s) || s->p->health >= MH_DEAD_SENT || !due(s, 0))
        return m_no(s, "it does not run");
    s->p->health = s->p->health == MH_PAUSED ? MH_DEAD : MH_DEAD_SENT;
    m_excuse(s, s->a.p);
    return 1;
}

int m_pause(struct step *s)
{
    if (!runs(s) || s->p->health != MH_WELL || !due(s, 1))
        return m_no(s, "it does not run");
    s->p->health = MH_PAUSED_SENT;
    m_excuse(s, s->a.p);
    return 1;
}

int m_resume(struct step *s)
{
    if (s->p->health != MH_PAUSED && s->p->health != MH_PAUSED_SENT)
        return m_no(s, "it is not stopped");
    s->p->health = MH_WELL;
    return 1;
}

int m_cut(struct step *s)
{
    if (!runs(s) || s->p->cut || s->p->health >= MH_DEAD_SENT || !due(s, 3))
        return m_no(s, "it does not run");
    s->p->cut = M_BIT(s->a.d);
    if (s->a.d == 0)
        m_excuse(s, s->a.p);
    return 1;
}

int m_heal(struct step *s)
{
    if (!s->p->cut)
        return m_no(s, "it is not cut off");
    s->p->cut = 0;
    return 1;
}

int m_stall(struct step *s)
{
    if (m_head(s->st)->stalled || !due(s, 4))
        return m_no(s, "it stands still");
    m_head(s->st)->stalled = 1;
    return 1;
}

int m_stall_end(struct step *s)
{
    if (!m_head(s->st)->stalled)
        return m_no(s, "it does not stand still");
    m_head(s->st)->stalled = 0;
    return 1;
}
