#include "tests/model/site.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

static void add(struct site *s, unsigned kind, unsigned p, unsigned a, unsigned d, bool lost)
{
    s->acts[s->n_acts++] = (struct m_act){ (uint8_t)kind, (uint8_t)p, (uint8_t)a, (uint8_t)d, lost };
}

/* Only what can happen at all: the rest costs time in every state. */
static void acts_of(struct site *s, unsigned p)
{
    static const uint8_t of_slot[] = { M_READ_SLOT, M_CLAIM, M_MARK, M_READ_JOURNAL, M_FREE, M_TAIL, M_ASK, M_LOOK, M_ANSWER, M_GIVE_UP };
    static const uint8_t of_disk[] = { M_READ_LOCK, M_LOCK, M_DATA, M_LAND, M_RECORD, M_CHECKPOINT, M_RELEASE_B, M_RELEASE_A };
    static const uint8_t of_fate[] = { M_CRASH, M_PAUSE, M_RESUME, M_HEAL };
    const struct model *m = &s->model;
    bool lost = m->clock ? m->fault_kinds & 4 : m->losses;
    add(s, M_START, p, 0, 0, false);
    add(s, M_NOTICE, p, 0, 0, false);
    for (unsigned i = 0; i < sizeof of_fate && m->clock; i++)
        add(s, of_fate[i], p, 0, 0, false);
    for (unsigned d = 0; d < m->devices; d++) {
        add(s, M_ENTER, p, 0, d, false);
        if (m->clock)
            add(s, M_CUT, p, 0, d, false);
    }
    for (unsigned a = 0; a < m->slots; a++) {
        for (unsigned i = 0; i < sizeof of_slot - (m->clock ? 0 : 4); i++)
            add(s, of_slot[i], p, a, 0, false);
        if (!m->clock)
            add(s, M_LEAVE, p, a, 0, false);
        for (unsigned d = 0; d < m->devices; d++)
            add(s, M_EJECT, p, a, d, false);
        for (unsigned k = 0; k < m->disks && !m->still; k++)
            add(s, M_HOME, p, a, k, false);
        if (lost) {
            add(s, M_CLAIM, p, a, 0, true);
            add(s, M_MARK, p, a, 0, true);
            add(s, M_SLOT_BACK, p, a, 0, false);
        }
    }
    for (unsigned k = 0; k < m->disks; k++) {
        for (unsigned i = 0; i < (m->still ? 2 : sizeof of_disk); i++)
            if (of_disk[i] != M_LAND || m->slow_devices)
                add(s, of_disk[i], p, k, 0, false);
        if (lost) {
            add(s, M_LOCK, p, k, 0, true);
            add(s, M_LOCK_BACK, p, k, 0, false);
        }
    }
}

int site_init(struct site *s, const struct model *m)
{
    *s = (struct site){ .model = *m };
    model_layout(&s->model);
    s->acts = calloc(m->procs * (16u + m->slots * (16u + m->devices + m->disks) + m->disks * 16u + m->devices * 2u) + 8u, sizeof *s->acts);
    if (!s->acts)
        return -ENOMEM;
    for (unsigned p = 0; p < m->procs; p++)
        acts_of(s, p);
    for (unsigned kind = M_TICK; m->clock && kind <= M_STALL_END; kind += kind == M_TICK ? M_STALL - M_TICK : 1)
        add(s, kind, 0, 0, 0, false);
    return 0;
}

void site_done(struct site *s)
{
    free(s->acts);
    s->acts = NULL;
}

static void begin(void *arg, uint8_t *st)
{
    model_begin(&((struct site *)arg)->model, st);
}
static int step(void *arg, uint8_t *st, unsigned act, const char **ret_why)
{
    const struct site *s = arg;
    return model_step(&s->model, st, s->acts[act], ret_why);
}
static void say(void *arg, unsigned act, char *buf, unsigned len)
{
    model_say(&((struct site *)arg)->acts[act], buf, len);
}
static bool good(void *arg, uint8_t *st)
{
    return model_good(&((struct site *)arg)->model, st);
}
static bool bad(void *arg, unsigned act) /* faults, and that they end */
{
    const struct m_act *a = &((struct site *)arg)->acts[act];
    return (a->kind >= M_CRASH && a->kind <= M_STALL) || a->lost;
}

struct ex_model site_explorable(struct site *s)
{
    return (struct ex_model){ .arg = s, .size = s->model.size, .n_acts = s->n_acts, .begin = begin, .step = step, .say = say,
                              .good = s->model.clock ? good : NULL, .bad = bad };
}

int site_run(const struct model *m, uint64_t max_states, struct ex_result *ret)
{
    struct site s;
    int r = site_init(&s, m);
    if (r < 0)
        return r;
    struct ex_model e = site_explorable(&s);
    r = ex_run(&e, max_states, ret);
    site_done(&s);
    return r;
}

void site_print(const struct model *m, const struct ex_result *r)
{
    struct site s;
    char text[160];
    if (site_init(&s, m) < 0)
        return;
    for (unsigned i = 0; i < r->n_trace; i++) {
        model_say(&s.acts[r->trace[i]], text, sizeof text);
        printf("    %2u. %s\n", i + 1, text);
    }
    printf("    => %s\n", r->why);
    site_done(&s);
}
