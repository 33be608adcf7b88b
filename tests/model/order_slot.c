/* Slots: reading, claiming, asking, ejecting, recovering. */
#include "tests/model/order_int.h"

static struct m_take *mine(const struct step *s)
{
    return m_take(s->m, s->st, s->a.p, s->a.a);
}
static struct m_slot *slot(const struct step *s)
{
    return m_slot(s->m, s->st, s->a.a);
}
static bool has_begun(const struct step *s)
{
    return s->p->status == MP_JOINING || s->p->status == MP_JOINED;
}
static int drop(struct step *s) /* the slot is not ours to recover, or it is done */
{
    if (s->a.a + 1u != s->p->slot)
        s->p->charge &= ~M_BIT(s->a.a);
    m_take_drop(s, s->a.p, s->a.a);
    return 1;
}

/* Does it say anything about a lock that was read? */
static bool judge_locks(struct step *s)
{
    bool any = false;
    const struct m_slot *now = slot(s);
    for (unsigned k = 0; k < s->m->disks; k++) {
        struct m_hold *h = m_hold(s->m, s->st, s->a.p, k);
        if (h->lock != s->a.a + 1u || !(h->phase == MK_READ || (s->m->observed && h->phase == MK_COUNTS)))
            continue;
        bool alive = now->state == MS_HOST || (now->state == MS_REPLAYING && !m_without(s, MX_COUNTS_REPLAYING));
        h->phase = alive && m_disk(s->m, s->st, k)->lock == h->lock && m_disk(s->m, s->st, k)->valid ? MK_COUNTS : MK_VOID;
        any |= h->phase == MK_COUNTS;
    }
    return any;
}

static bool wants(const struct step *s) /* a reason to read it: it keeps the number of states low */
{
    const struct m_slot *now = slot(s);
    if (s->m->observed || m_without(s, MX_LOCK_THEN_SLOT))
        return true;
    for (unsigned i = 0; i < s->m->slots; i++)
        if (i != s->a.a && s->p->status == MP_JOINING && m_take(s->m, s->st, s->a.p, i)->phase != MT_NONE)
            return false;
    if (s->p->status == MP_JOINING)
        return now->state == MS_FREE || now->home == s->p->host + 1u;
    for (unsigned k = 0; k < s->m->disks; k++) {
        const struct m_hold *h = m_hold(s->m, s->st, s->a.p, k);
        if (h->phase == MK_READ && h->lock == s->a.a + 1u)
            return true;
    }
    return false;
}

/* It has asked. Observed, it may go on looking for longer than it must. */
static bool waits(const struct step *s, const struct m_take *t)
{
    return t->phase == MT_ASKED || (s->m->observed && t->phase == MT_SILENT && !t->ejected);
}

int m_read_slot(struct step *s)
{
    struct m_take *t = mine(s);
    const struct m_slot *now = slot(s);
    if (!has_begun(s) || !m_reaches(s, 0))
        return m_no(s, "it cannot read");
    if (t->phase == MT_ENDED) {
        judge_locks(s);
        if (!t->same_gen || now->state == MS_FREE)
            return drop(s);
        t->phase = MT_SECOND;
        t->same_block = 1;
        return 1;
    }
    if (s->m->observed && ((waits(s, t) && !t->same_gen) || (t->phase == MT_SECOND && !t->same_block)))
        t->phase = MT_READ; /* the slot has passed on: that is an answer, or somebody was quicker */
    if (t->phase > MT_READ) {
        judge_locks(s);
        return s->m->observed;
    }
    if (!wants(s) || (t->phase == MT_READ && t->same_block && t->same_gen && !s->m->observed))
        return m_no(s, "no reason to");
    *t = (struct m_take){ .phase = MT_READ, .state = now->state, .key = now->key, .same_block = 1, .same_gen = 1 };
    if (!judge_locks(s) && s->p->status == MP_JOINED && !s->m->observed && !m_without(s, MX_LOCK_THEN_SLOT))
        *t = (struct m_take){ 0 };
    return 1;
}

static int claimed(struct step *s)
{
    s->p->slot = s->a.a + 1u;
    s->p->slot_valid = slot(s)->key == s->a.p + 1u;
    s->p->status = MP_JOINED;
    for (unsigned i = 0; i < s->m->slots; i++)
        m_take_drop(s, s->a.p, i);
    return 1;
}

int m_claim(struct step *s)
{
    struct m_take *t = mine(s);
    if (s->p->status != MP_JOINING || t->phase != MT_READ || t->state != MS_FREE || t->unsure || !m_reaches(s, 0))
        return m_no(s, "a slot is claimed by who is joining and has read that it is free");
    if (!t->same_block && !m_without(s, MX_CLAIM_COMPARE))
        return drop(s);
    *slot(s) = (struct m_slot){ .state = MS_HOST, .key = s->a.p + 1u, .home = s->p->host + 1u, .asked = slot(s)->asked, .old = slot(s)->old };
    m_slot_written(s, s->a.a, true);
    s->p->charge |= M_BIT(s->a.a);
    t->same_block = t->same_gen = t->unsure = 1;
    return s->a.lost ? 1 : claimed(s);
}

int m_ask(struct step *s)
{
    struct m_take *t = mine(s);
    if (!has_begun(s) || t->phase != MT_READ || t->state == MS_FREE || t->unsure || !m_reaches(s, 0) || s->a.a + 1u == s->p->slot)
        return m_no(s, "who is asked has been read, and is not free");
    bool reason = s->m->observed;
    for (unsigned k = 0; k < s->m->disks; k++)
        reason |= m_hold(s->m, s->st, s->a.p, k)->phase == MK_COUNTS;
    if (!reason)
        return m_no(s, "no reason to");
    slot(s)->asked = 1;
    t->standing = 1;
    t->looks = 0;
    t->phase = MT_ASKED;
    if (t->key) {
        const struct m_proc *v = m_proc(s->m, s->st, t->key - 1u);
        t->excused = v->health != MH_WELL || (v->cut & 1) || v->failed;
    }
    return 1;
}

int m_look(struct step *s)
{
    struct m_take *t = mine(s);
    bool answers = m_reaches(s, 0), counts = answers || (m_without(s, MX_OWN_LOOKS) && (s->p->reg & 1));
    if (!waits(s, t) || t->looked || !counts)
        return m_no(s, "nothing was asked");
    if (answers && s->m->observed && (!t->standing || !t->same_gen)) { /* it may ask again at once */
        t->phase = MT_READ;
        return 1;
    }
    if (answers && (!t->standing || !t->same_gen))
        return drop(s);
    t->looks += t->looks < 31;
    t->looked = s->m->clock;
    if (t->looks >= s->m->looks || m_without(s, MX_PATIENCE))
        t->phase = MT_SILENT;
    return 1;
}

int m_answer(struct step *s)
{
    const struct m_take *t = mine(s);
    bool own = s->a.a + 1u == s->p->slot, claims = s->p->status == MP_JOINING && t->phase == MT_READ && t->state == MS_FREE;
    bool about_to = (t->phase == MT_SECOND || claims) && !m_without(s, MX_ANSWER_FIRST) && !m_without(s, MX_ANSWER_FOR);
    if (!((s->p->charge & M_BIT(s->a.a)) || about_to) || !slot(s)->asked || !m_reaches(s, 0) || (own && m_without(s, MX_ANSWER)))
        return m_no(s, "it does not answer for that slot, or was not asked");
    slot(s)->asked = slot(s)->old = 0;
    for (unsigned q = 0; q < s->m->procs; q++)
        m_take(s->m, s->st, q, s->a.a)->standing = 0;
    return 1;
}

int m_eject(struct step *s)
{
    struct m_take *t = mine(s);
    unsigned d = s->a.d, all = M_BIT(s->m->devices) - 1;
    bool earlier_self = t->phase == MT_READ && t->state == MS_HOST && slot(s)->home == s->p->host + 1u && s->p->status == MP_JOINING;
    bool unasked = t->phase == MT_READ && t->state != MS_FREE && m_without(s, MX_ASK);
    if (t->unsure || !(t->phase == MT_SILENT || earlier_self || unasked) || (t->ejected & M_BIT(d)) || !m_reaches(s, d) || !t->key)
        return m_no(s, "a key is ejected after its process was asked and was silent for long enough");
    if (d > 0 && !(t->ejected & M_BIT(d - 1)))
        return m_no(s, "one device after the other");
    struct m_proc *v = m_proc(s->m, s->st, t->key - 1u);
    bool well = s->m->clock && v->health == MH_WELL && !t->excused && v->reg == all && !(v->cut & 1);
    if (t->phase == MT_READ && !unasked)
        t->excused = 1;
    t->phase = MT_SILENT;
    t->ejected |= M_BIT(d);
    if (!m_without(s, d ? MX_EJECT_1 : MX_EJECT_0)) {
        v->reg &= ~M_BIT(d);
        for (unsigned k = 0; k < s->m->disks && !m_without(s, MX_DRAIN); k++)
            if (m_data_device(s->m, k) == d)
                m_hold(s->m, s->st, t->key - 1u, k)->pending = 0;
    }
    if (t->ejected == all)
        t->phase = m_without(s, MX_SECOND_LOOK) ? MT_SECOND : MT_ENDED;
    return well && !earlier_self ? m_broken(s, "a process that was well all the time, and answered, is ejected") : 1;
}

static int marked(struct step *s)
{
    struct m_take *t = mine(s);
    t->unsure = 0;
    t->phase = MT_MARKED;
    return 1;
}

int m_mark(struct step *s)
{
    struct m_take *t = mine(s);
    struct m_slot *now = slot(s);
    if (t->phase != MT_SECOND || t->unsure || !m_reaches(s, 0))
        return m_no(s, "a slot is taken over after its key was ejected from every device and it was read again");
    if (!t->same_block && t->same_gen && !s->m->observed)
        return m_broken(s, "nobody was quicker, and all begins anew: who was ejected had written its slot since it was read");
    if (!t->same_block && !m_without(s, MX_SLOT_COMPARE) && !m_without(s, MX_SLOT_NEWER))
        return drop(s);
    if (now->state == MS_READER) {
        m_new_generation(s, s->a.a);
        *now = (struct m_slot){ .home = now->home, .asked = now->asked, .old = now->old };
        m_slot_written(s, s->a.a, true);
        return drop(s);
    }
    if (!m_without(s, MX_MARK)) {
        now->state = MS_REPLAYING;
        now->key = m_without(s, MX_KEY) ? now->key : s->a.p + 1u;
        m_slot_written(s, s->a.a, true);
    }
    if (!m_without(s, MX_ANSWER_FOR) && !m_without(s, MX_ANSWER_FIRST))
        s->p->charge |= M_BIT(s->a.a);
    t->same_block = t->same_gen = t->unsure = 1;
    return s->a.lost ? 1 : marked(s);
}

int m_slot_back(struct step *s)
{
    struct m_take *t = mine(s);
    if (!t->unsure || !m_reaches(s, 0))
        return m_no(s, "no answer was lost");
    if (!t->same_block || m_without(s, MX_READ_BACK)) {
        s->p->charge &= ~M_BIT(s->a.a);
        return drop(s);
    }
    return t->phase == MT_READ ? claimed(s) : marked(s);
}

int m_read_journal(struct step *s)
{
    struct m_take *t = mine(s);
    if (t->phase != MT_MARKED || !m_reaches(s, 0) || !m_reaches(s, m_journal_device(s->m, s->a.a)))
        return m_no(s, "a journal is read by who has marked its slot");
    t->phase = MT_REPLAY;
    for (unsigned k = 0; k < s->m->disks && !m_without(s, MX_REPLAY) && !s->m->observed; k++) {
        const struct m_disk *d = m_disk(s->m, s->st, k);
        if (d->lock != s->a.a + 1u || !d->valid || !(d->recorded & M_BIT(s->a.a)))
            continue;
        t->recorded |= M_BIT(k);
        t->record_ok |= d->record_ok & M_BIT(s->a.a) ? M_BIT(k) : 0;
    }
    if (m_without(s, MX_ANSWER_FIRST))
        s->p->charge |= M_BIT(s->a.a);
    return 1;
}

int m_home(struct step *s)
{
    struct m_take *t = mine(s);
    struct m_disk *d = m_disk(s->m, s->st, s->a.d);
    if (t->phase != MT_REPLAY || !m_reaches(s, 0) || (!(t->recorded & M_BIT(s->a.d)) && !s->m->observed))
        return m_no(s, "a slot is replayed by who has marked it and read its journal");
    m_lock_written(s, s->a.d);
    d->home_ok = t->record_ok >> s->a.d & 1;
    t->recorded &= ~M_BIT(s->a.d);
    if (d->lock != s->a.a + 1u || !d->valid)
        return m_broken(s, "what is brought home is a disk that is another's by now");
    if (t->recorded == 0 && m_without(s, MX_REPLAY_FIRST))
        return drop(s);
    return 1;
}

int m_free(struct step *s)
{
    struct m_take *t = mine(s);
    struct m_slot *now = slot(s);
    if (t->phase != MT_REPLAY || !m_reaches(s, 0) || (t->recorded && !m_without(s, MX_REPLAY_FIRST)))
        return m_no(s, "a slot is freed when it is replayed");
    bool other = (now->state != MS_REPLAYING || now->key != s->a.p + 1u) && !m_without(s, MX_MARK) && !m_without(s, MX_KEY);
    if (other)
        return m_without(s, MX_REPLAY_FIRST) ? 0 : m_broken(s, "a slot that another process has by now is freed");
    *now = (struct m_slot){ .home = now->home, .asked = now->asked, .old = now->old };
    m_slot_written(s, s->a.a, true);
    if (!m_without(s, MX_FREE_GENERATION))
        m_new_generation(s, s->a.a);
    s->p->charge &= ~M_BIT(s->a.a);
    return t->recorded ? 1 : drop(s);
}

int m_give_up(struct step *s)
{
    if (!s->m->clock || mine(s)->phase < MT_ENDED || !s->p->cut || s->p->health != MH_WELL)
        return m_no(s, "nothing keeps it from recovering");
    s->p->failed = 1;
    m_excuse(s, s->a.p);
    return drop(s);
}

int m_leave(struct step *s)
{
    struct m_slot *now = slot(s);
    if (s->p->status != MP_JOINED || s->p->slot != s->a.a + 1u || !m_reaches(s, 0))
        return m_no(s, "it has no slot to leave");
    for (unsigned k = 0; k < s->m->disks && !s->m->observed; k++)
        if (m_hold(s->m, s->st, s->a.p, k)->phase != MK_NONE)
            return m_no(s, "it holds a disk");
    for (unsigned i = 0; i < s->m->slots && !s->m->observed; i++)
        if (m_take(s->m, s->st, s->a.p, i)->phase != MT_NONE)
            return m_no(s, "it recovers a slot");
    if (now->key != s->a.p + 1u)
        return m_broken(s, "a slot that another process has by now is given back");
    *now = (struct m_slot){ .home = now->home, .asked = now->asked, .old = now->old };
    m_slot_written(s, s->a.a, true);
    m_new_generation(s, s->a.a);
    for (unsigned k = 0; k < s->m->disks; k++)
        *m_hold(s->m, s->st, s->a.p, k) = (struct m_hold){ 0 };
    s->p->status = MP_OVER;
    s->p->charge = s->p->slot = s->p->slot_valid = 0;
    s->p->reg = s->m->observed ? s->p->reg : 0;
    return 1;
}
