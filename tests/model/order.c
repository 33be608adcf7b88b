/* The frame of the order: states, who may act, what is said about it. */
#include "tests/model/order_int.h"
#include <stdio.h>
#include <string.h>

const char *const m_step_text[M_N_STEPS] = {
#define X(name, text) [MX_##name] = text,
    M_STEPS(X)
#undef X
};

static const struct {
    m_step_fn *fn;
    const char *text;
    bool request; /* of a process that must be there to send it */
} kinds[M_KINDS] = {
    [M_START] = { m_start, "process %u starts", false },
    [M_ENTER] = { m_enter, "process %u registers with device %u", true },
    [M_READ_SLOT] = { m_read_slot, "process %u reads slot %u", true },
    [M_CLAIM] = { m_claim, "process %u claims slot %u", true },
    [M_READ_LOCK] = { m_read_lock, "process %u reads the lock of disk %u", true },
    [M_LOCK] = { m_lock, "process %u takes the lock of disk %u", true },
    [M_DATA] = { m_data, "process %u sends a write of disk %u", true },
    [M_LAND] = { m_land, "the device does the write that process %u sent to disk %u", false },
    [M_RECORD] = { m_record, "process %u writes a record of disk %u: acknowledged", true },
    [M_CHECKPOINT] = { m_checkpoint, "process %u brings disk %u home", true },
    [M_TAIL] = { m_tail, "process %u writes its slot %u (the journal begins further on)", true },
    [M_RELEASE_B] = { m_release_b, "process %u gives disk %u up: second copy", true },
    [M_RELEASE_A] = { m_release_a, "process %u gives disk %u up: first copy", true },
    [M_ASK] = { m_ask, "process %u asks whether anybody answers for slot %u", true },
    [M_LOOK] = { m_look, "process %u looks whether slot %u is answered for", true },
    [M_ANSWER] = { m_answer, "process %u answers for slot %u", true },
    [M_EJECT] = { m_eject, "process %u ejects the key of slot %u from device %u", true },
    [M_MARK] = { m_mark, "process %u marks slot %u REPLAYING", true },
    [M_READ_JOURNAL] = { m_read_journal, "process %u reads the journal of slot %u", true },
    [M_HOME] = { m_home, "process %u replays slot %u: disk %u goes home", true },
    [M_FREE] = { m_free, "process %u frees slot %u", true },
    [M_SLOT_BACK] = { m_slot_back, "process %u, its answer lost, looks at slot %u", true },
    [M_LOCK_BACK] = { m_lock_back, "process %u, its answer lost, looks at the lock of disk %u", true },
    [M_GIVE_UP] = { m_give_up, "process %u, cut off, gives up to recover slot %u", false },
    [M_LEAVE] = { m_leave, "process %u leaves slot %u", true },
    [M_NOTICE] = { m_notice, "process %u finds itself ejected", false },
    [M_TICK] = { m_tick, "time passes", false },
    [M_CRASH] = { m_crash, "process %u dies", false },
    [M_PAUSE] = { m_pause, "process %u is stopped", false },
    [M_RESUME] = { m_resume, "process %u goes on", false },
    [M_CUT] = { m_cut, "process %u is cut off from device %u", false },
    [M_HEAL] = { m_heal, "process %u is not cut off any more", false },
    [M_STALL] = { m_stall, "the storage stands still for everybody", false },
    [M_STALL_END] = { m_stall_end, "the storage goes on", false },
};

void model_layout(struct model *m)
{
    m->at_disks = sizeof(struct m_head);
    m->at_procs = m->at_disks + m->disks * (unsigned)sizeof(struct m_disk);
    m->at_takes = m->at_procs + m->procs * (unsigned)sizeof(struct m_proc);
    m->at_holds = m->at_takes + (unsigned)(m->procs * m->slots) * (unsigned)sizeof(struct m_take);
    m->at_slots = m->at_holds + (unsigned)(m->procs * m->disks) * (unsigned)sizeof(struct m_hold);
    m->size = (m->at_slots + m->slots * (unsigned)sizeof(struct m_slot) + 7) & ~7u;
}

void model_begin(const struct model *m, uint8_t *st)
{
    memset(st, 0, m->size);
    for (unsigned p = 0; p < m->procs; p++) {
        *m_proc(m, st, p) = (struct m_proc){ .host = p % m->hosts };
        if (p >= m->hosts || m->observed)
            continue;
        *m_proc(m, st, p) = (struct m_proc){ .host = p, .status = MP_JOINED, .reg = M_BIT(m->devices) - 1, .slot = p + 1, .slot_valid = 1, .charge = M_BIT(p) };
        *m_slot(m, st, p) = (struct m_slot){ .state = MS_HOST, .key = p + 1, .home = p + 1 };
    }
    for (unsigned k = 0; k < m->disks && !m->observed; k++) {
        unsigned p = k % m->hosts;
        *m_disk(m, st, k) = (struct m_disk){ .lock = p + 1, .valid = 1, .owner = p + 1, .home_ok = 1 };
        *m_hold(m, st, p, k) = (struct m_hold){ .phase = MK_OPEN };
    }
}

/* A stopped or dead process sends nothing, but one request of it may be on its way. */
static bool may_send(struct step *s)
{
    if (s->p->health == MH_PAUSED || s->p->health == MH_DEAD)
        return false;
    if (s->p->health == MH_PAUSED_SENT)
        s->p->health = MH_PAUSED;
    else if (s->p->health == MH_DEAD_SENT)
        s->p->health = MH_DEAD;
    return true;
}

static bool may_lose(const struct step *s)
{
    struct m_head *h = m_head(s->st);
    if (s->m->clock ? !(s->m->fault_kinds & M_BIT(2)) || h->faults >= s->m->faults : h->losses >= s->m->losses)
        return false;
    return (s->a.kind == M_LOCK && m_hold(s->m, s->st, s->a.p, s->a.a)->same) ||
           ((s->a.kind == M_CLAIM || s->a.kind == M_MARK) && m_take(s->m, s->st, s->a.p, s->a.a)->same_block);
}

/* What a process remembers to which no device listens, or which is dead, is of no consequence any more: those states are one. */
static void forget(const struct model *m, uint8_t *st, unsigned p)
{
    struct m_proc *q = m_proc(m, st, p);
    bool ejected = q->status >= MP_JOINING && !q->reg;
    if (!ejected && q->health != MH_DEAD)
        return;
    for (unsigned i = 0; i < m->slots; i++)
        *m_take(m, st, p, i) = (struct m_take){ 0 };
    for (unsigned k = 0; k < m->disks; k++) {
        struct m_hold *h = m_hold(m, st, p, k);
        *h = (struct m_hold){ .pending = h->pending, .phase = ejected || h->phase < MK_OPEN ? 0 : MK_OPEN };
    }
    if (ejected)
        *q = (struct m_proc){ .host = q->host, .status = MP_OVER, .health = q->health >= MH_DEAD_SENT ? MH_DEAD : MH_WELL };
}

int model_step(const struct model *m, uint8_t *st, struct m_act a, const char **ret_why)
{
    struct step s = { m, st, a, m_proc(m, st, a.p), ret_why };
    unsigned health = s.p->health;
    bool there = s.p->status >= MP_ENTERING && s.p->status <= MP_JOINED;
    if (kinds[a.kind].request && (!there || !may_send(&s)))
        return m_no(&s, "it is not there, or stopped");
    if (a.lost && !may_lose(&s)) {
        s.p->health = health;
        return m_no(&s, "no answer is lost");
    }
    int r = kinds[a.kind].fn(&s);
    if (r == 0)
        s.p->health = health;
    else if (a.lost && m->clock)
        m_head(st)->faults++;
    else if (a.lost)
        m_head(st)->losses++;
    for (unsigned p = 0; p < m->procs && r && !m->observed; p++)
        forget(m, st, p);
    return r;
}

bool model_good(const struct model *m, uint8_t *st)
{
    bool anybody = false, all = true;
    for (unsigned p = 0; p < m->procs; p++) {
        const struct m_proc *q = m_proc(m, st, p);
        anybody |= q->status == MP_JOINED && q->health == MH_WELL && !q->cut && q->reg == M_BIT(m->devices) - 1;
    }
    for (unsigned k = 0; k < m->disks; k++) {
        const struct m_disk *d = m_disk(m, st, k);
        const struct m_slot *s = d->lock && d->valid ? m_slot(m, st, d->lock - 1u) : NULL;
        const struct m_proc *q = s && s->key ? m_proc(m, st, s->key - 1u) : NULL;
        all &= !s || (q && s->state == MS_HOST && q->health == MH_WELL && !(q->cut & 1) && q->reg == M_BIT(m->devices) - 1);
    }
    return all || !anybody;
}

void model_say(const struct m_act *a, char *buf, unsigned len)
{
    bool device = a->kind == M_ENTER || a->kind == M_CUT;
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    int n = snprintf(buf, len, kinds[a->kind].text, a->p, device ? a->d : a->a, a->d);
#pragma GCC diagnostic pop
    if (a->lost && n > 0 && (unsigned)n < len)
        snprintf(buf + n, len - (unsigned)n, " (the answer is lost)");
}

/* ---- what everybody knows ---- */
void m_slot_written(const struct step *s, unsigned slot, bool passed)
{
    for (unsigned q = 0; q < s->m->procs; q++) {
        struct m_take *t = m_take(s->m, s->st, q, slot);
        if (q == s->a.p || t->phase == MT_NONE)
            continue;
        t->same_block = 0;
        t->same_gen &= !passed;
    }
}

void m_new_generation(const struct step *s, unsigned slot)
{
    for (unsigned k = 0; k < s->m->disks; k++) {
        struct m_disk *d = m_disk(s->m, s->st, k);
        if (d->lock == slot + 1)
            d->valid = 0;
        d->recorded &= ~M_BIT(slot);
        d->record_ok &= ~M_BIT(slot);
    }
    for (unsigned q = 0; q < s->m->procs; q++)
        if (m_proc(s->m, s->st, q)->slot == slot + 1)
            m_proc(s->m, s->st, q)->slot_valid = 0;
}

void m_lock_written(const struct step *s, unsigned disk)
{
    for (unsigned q = 0; q < s->m->procs; q++)
        if (q != s->a.p)
            m_hold(s->m, s->st, q, disk)->same = 0;
}

void m_take_drop(const struct step *s, unsigned proc, unsigned slot)
{
    *m_take(s->m, s->st, proc, slot) = (struct m_take){ 0 };
    for (unsigned k = 0; k < s->m->disks; k++) {
        struct m_hold *h = m_hold(s->m, s->st, proc, k);
        if (h->phase == MK_COUNTS && h->lock == slot + 1)
            *h = (struct m_hold){ .pending = h->pending };
    }
}

void m_excuse(const struct step *s, unsigned proc)
{
    for (unsigned q = 0; q < s->m->procs; q++)
        for (unsigned i = 0; i < s->m->slots; i++) {
            struct m_take *t = m_take(s->m, s->st, q, i);
            if (t->key == proc + 1 && (t->phase == MT_ASKED || t->phase == MT_SILENT))
                t->excused = 1;
        }
}
