/* Disks: their locks, and what their owners do with them. */
#include "tests/model/order_int.h"

static struct m_hold *hold(const struct step *s)
{
    return m_hold(s->m, s->st, s->a.p, s->a.a);
}
static struct m_disk *disk(const struct step *s)
{
    return m_disk(s->m, s->st, s->a.a);
}
static int drop(struct step *s)
{
    *hold(s) = (struct m_hold){ .pending = hold(s)->pending };
    return 1;
}
static int landed(const struct step *s) /* a write to the disk, of any kind */
{
    return disk(s)->owner == s->a.p + 1u || s->m->observed ? 1 : m_broken(s, "a write of a former owner lands where another is owner by now");
}

/* It is the owner from here on, and may read. */
static int locked(struct step *s)
{
    struct m_disk *d = disk(s);
    *hold(s) = (struct m_hold){ .phase = MK_OPEN, .pending = hold(s)->pending };
    d->owner = s->a.p + 1u;
    for (unsigned q = 0; q < s->m->procs; q++) {
        unsigned phase = m_hold(s->m, s->st, q, s->a.a)->phase;
        bool has = phase == MK_OPEN || (phase == MK_HALF && !m_without(s, MX_RELEASE_LAST));
        if (q != s->a.p && has && m_proc(s->m, s->st, q)->reg)
            return m_broken(s, "a disk has two owners, and the devices listen to both");
    }
    return d->home_ok || s->m->observed ? 1 : m_broken(s, "the new owner does not find what was acknowledged");
}

int m_read_lock(struct step *s)
{
    struct m_hold *h = hold(s);
    const struct m_disk *d = disk(s);
    if (s->p->status != MP_JOINED || h->unsure || h->phase > (s->m->observed ? MK_COUNTS : MK_NONE) || !m_reaches(s, 0))
        return m_no(s, "it has the lock");
    if (s->m->observed && h->phase == MK_VOID && h->same)
        return 1; /* it did not change since */
    for (unsigned k = 0; k < s->m->disks && !s->m->observed; k++) {
        unsigned phase = m_hold(s->m, s->st, s->a.p, k)->phase;
        if (phase >= MK_READ && phase <= MK_COUNTS)
            return m_no(s, "one after the other");
    }
    *h = (struct m_hold){ .phase = MK_READ, .lock = d->lock, .same = 1, .pending = h->pending };
    if (d->lock == 0) {
        h->phase = MK_VOID;
    } else if (d->lock == s->p->slot) {
        if (d->valid && s->p->slot_valid)
            return locked(s);
        h->phase = MK_VOID;
    } else if (m_without(s, MX_LOCK_THEN_SLOT)) {
        const struct m_take *t = m_take(s->m, s->st, s->a.p, d->lock - 1u);
        bool alive = t->state == MS_HOST || t->state == MS_REPLAYING;
        if (t->phase == MT_READ)
            h->phase = alive && t->same_gen && d->valid ? MK_COUNTS : MK_VOID;
    }
    if (h->phase == MK_VOID)
        h->lock = 0;
    return 1;
}

int m_lock(struct step *s)
{
    struct m_hold *h = hold(s);
    struct m_disk *d = disk(s);
    if (s->p->status != MP_JOINED || h->phase != MK_VOID || h->unsure || !m_reaches(s, 0))
        return m_no(s, "a lock is taken by who has read it, and then that its holder's slot is not what it was");
    if (!h->same && !m_without(s, MX_LOCK_COMPARE))
        return drop(s);
    d->lock = s->p->slot;
    d->valid = s->p->slot_valid;
    d->recorded = d->record_ok = 0; /* records name the lock's token */
    m_lock_written(s, s->a.a);
    h->same = 1;
    h->unsure = s->a.lost;
    return s->a.lost ? 1 : locked(s);
}

int m_lock_back(struct step *s)
{
    if (!hold(s)->unsure || !m_reaches(s, 0))
        return m_no(s, "no answer was lost");
    return hold(s)->same && !m_without(s, MX_READ_BACK) ? locked(s) : drop(s);
}

int m_data(struct step *s)
{
    struct m_hold *h = hold(s);
    if (s->m->still || h->phase != MK_OPEN || h->write != MW_CLEAN || h->pending || !m_reaches(s, m_data_device(s->m, s->a.a)))
        return m_no(s, "it has not the disk, or writes already");
    if (s->m->slow_devices) {
        h->write = MW_SENT;
        h->pending = 1;
        return 1;
    }
    h->write = MW_LANDED;
    return landed(s);
}

int m_land(struct step *s)
{
    struct m_hold *h = hold(s);
    if (!h->pending)
        return m_no(s, "nothing was sent");
    h->pending = 0;
    h->write = h->write == MW_SENT ? MW_LANDED : h->write;
    return landed(s);
}

int m_record(struct step *s)
{
    struct m_hold *h = hold(s);
    struct m_disk *d = disk(s);
    if (h->phase != MK_OPEN || h->write != MW_LANDED || !s->p->slot || !m_reaches(s, m_journal_device(s->m, s->p->slot - 1u)))
        return m_no(s, "nothing was written");
    h->write = MW_RECORDED;
    d->home_ok = 0;
    d->recorded |= M_BIT(s->p->slot - 1u);
    d->record_ok = M_BIT(s->p->slot - 1u);
    for (unsigned q = 0; q < s->m->procs; q++)
        for (unsigned i = 0; i < s->m->slots; i++)
            m_take(s->m, s->st, q, i)->record_ok &= ~M_BIT(s->a.a);
    return landed(s);
}

int m_checkpoint(struct step *s)
{
    struct m_hold *h = hold(s);
    struct m_disk *d = disk(s);
    if (h->phase != MK_OPEN || h->write != MW_RECORDED || !m_reaches(s, 0))
        return m_no(s, "nothing is to be brought home");
    h->write = MW_CLEAN;
    d->home_ok = 1;
    d->recorded &= ~M_BIT(s->p->slot - 1u);
    d->record_ok &= ~M_BIT(s->p->slot - 1u);
    m_lock_written(s, s->a.a);
    return landed(s);
}

int m_tail(struct step *s)
{
    bool replays = m_take(s->m, s->st, s->a.p, s->a.a)->phase == MT_REPLAY;
    if ((s->p->status != MP_JOINED || s->p->slot != s->a.a + 1u) && !replays)
        return m_no(s, "a slot is written by who has it, or replays it");
    if (!m_reaches(s, 0))
        return m_no(s, "it is ejected");
    m_slot_written(s, s->a.a, false);
    return m_slot(s->m, s->st, s->a.a)->key == s->a.p + 1u ? 1 : m_broken(s, "a slot that another process has by now is written");
}

int m_release_b(struct step *s)
{
    struct m_hold *h = hold(s);
    bool last = m_without(s, MX_RELEASE_LAST), home = h->write == MW_CLEAN || (h->write == MW_RECORDED && m_without(s, MX_HOME_FIRST));
    if (s->m->still || h->phase != (last ? MK_HALF : MK_OPEN) || !home || !m_reaches(s, 0))
        return m_no(s, "it is not at home");
    h->phase = MK_HALF;
    if (last)
        drop(s);
    return landed(s);
}

int m_release_a(struct step *s)
{
    struct m_hold *h = hold(s);
    bool first = m_without(s, MX_RELEASE_LAST);
    if (h->phase != (first ? MK_OPEN : MK_HALF) || (first && h->write != MW_CLEAN) || !m_reaches(s, 0))
        return m_no(s, "its second copy does not say yet that it is given up");
    disk(s)->lock = disk(s)->valid = 0;
    m_lock_written(s, s->a.a);
    if (first)
        h->phase = MK_HALF;
    else
        drop(s);
    return landed(s);
}
