/* What the files of the order share. */
#ifndef MODEL_ORDER_INT_H
#define MODEL_ORDER_INT_H
#include "tests/model/order.h"

#define M_BIT(i) (1u << (i))
struct step {
    const struct model *m;
    uint8_t *st;
    struct m_act a;
    struct m_proc *p;
    const char **why;
};
static inline bool m_without(const struct step *s, enum m_step x) { return s->m->without & M_BIT(x); }
static inline int m_no(const struct step *s, const char *why) { *s->why = why; return 0; }
static inline int m_broken(const struct step *s, const char *why) { *s->why = why; return -1; }
/* A request of the acting process reaches device @d. */
static inline bool m_reaches(const struct step *s, unsigned d)
{
    return (s->p->reg & M_BIT(d)) && !(s->p->cut & M_BIT(d)) && !m_head(s->st)->stalled;
}
static inline unsigned m_data_device(const struct model *m, unsigned disk) { return disk % m->devices; }
static inline unsigned m_journal_device(const struct model *m, unsigned slot) { (void)slot; return m->devices - 1u; }

/* Slot @s was written by the acting process: what others read is not what is there. @passed: another process has it now. */
void m_slot_written(const struct step *s, unsigned slot, bool passed);
void m_new_generation(const struct step *s, unsigned slot); /* locks under the old one do not count any more */
void m_lock_written(const struct step *s, unsigned disk);
void m_take_drop(const struct step *s, unsigned proc, unsigned slot); /* what it knows of a slot, and what it wanted it for */
void m_excuse(const struct step *s, unsigned proc); /* whoever asks @proc gets no answer in time, and rightly ejects it */

typedef int m_step_fn(struct step *s);
m_step_fn m_read_slot, m_claim, m_ask, m_look, m_answer, m_eject, m_mark, m_read_journal, m_home, m_free, m_slot_back, m_give_up, m_leave;
m_step_fn m_read_lock, m_lock, m_lock_back, m_data, m_land, m_record, m_checkpoint, m_tail, m_release_b, m_release_a;
m_step_fn m_start, m_enter, m_notice, m_tick, m_crash, m_pause, m_resume, m_cut, m_heal, m_stall, m_stall_end;
#endif
