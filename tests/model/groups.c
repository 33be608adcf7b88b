#include "tests/model/groups.h"
#include <errno.h>
#include <stdio.h>
#include <string.h>

#define MEMBERS 3u /* 0 leads */
#define ALL ((1u << MEMBERS) - 1)
#define DEATHS 2u
const char *const groups_step_text[GROUPS_N_STEPS] = {
#define X(name, text) [GROUPS_##name] = text,
    GROUPS_STEPS(X)
#undef X
};

enum { S_NONE, S_LOST, S_TEMP, S_NAMED, S_HOME }; /* its snapshot: none; not durable; under its temporary name; has its name; that is home */
enum { P_NONE, P_HELD, P_ASKS, P_MAKES, P_NAMED, P_SIGNS, P_OVER }; /* its host's part: looks for the decision; makes a refusal; ... */
enum { C_NONE, C_HOLD, C_TAKE, C_SETTLE };                          /* a call */
enum { L_PREPARES, L_HOLDS, L_TAKES, L_DECIDES, L_SETTLES, L_WAITS, L_CLEANS, L_CLEANS_MORE, L_IDLE, L_GONE };
struct member {
    uint8_t there, held, snap, part, taken, wrote, late; /* there: some host has the disk open; wrote: since its snapshot; late: a call on its way */
    uint8_t pad;
};
struct state {
    struct member m[MEMBERS];
    uint8_t leader, at, failed;               /* at: whom it calls next */
    uint8_t prepared, decided, entries;       /* folders, and who has an entry in the decision */
    uint8_t exists, torn;                     /* to judge: it was decided; a disk was written before another was held */
    uint8_t deaths, pad[7];
};
_Static_assert(sizeof(struct state) % 8 == 0, "as explore.h wants it");

enum act { A_LEAD, A_LEAD_LOST, A_LEAD_LATE, A_LEAVE, A_CLEAN, A_ARRIVE, A_GIVE_UP, A_LOOK, A_MAKE, A_HOME, A_SIGN, A_WRITE, A_DIE, A_OPEN, ACTS };
static const char *const text[ACTS] = {
    "the leader goes on", "the leader goes on, and hears no answer", "the leader goes on, and what it asks arrives too late", "the leader leaves the datastore",
    "a host that joins removes what was left", "what was asked of host %u arrives", "host %u does not wait any longer", "host %u looks for the decision",
    "host %u makes a refusal", "host %u brings the name home", "host %u signs off", "disk %u is written", "host %u dies", "another host opens disk %u",
};

struct at {
    unsigned without;
    struct state *s;
    const char **why;
};
static bool leaves_out(const struct at *c, enum groups_step x)
{
    return c->without & 1u << x;
}

static void begin(void *arg, uint8_t *st)
{
    struct state s = { 0 };
    (void)arg;
    for (unsigned i = 0; i < MEMBERS; i++)
        s.m[i].there = 1;
    memcpy(st, &s, sizeof s);
}

/* ---- what a host does with its disk ---- */
static void now_held(const struct at *c) /* what others wrote since their snapshots is older than this one's */
{
    for (unsigned i = 0; i < MEMBERS; i++)
        c->s->torn |= c->s->m[i].wrote;
}

static int broken(const struct at *c, const char *why)
{
    *c->why = why;
    return -1;
}

static int follows(const struct at *c, struct member *m, bool exists)
{
    m->held = 0;
    m->part = exists ? P_NAMED : P_OVER;
    m->snap = exists ? S_NAMED : S_NONE;
    if (exists != c->s->exists)
        return broken(c, exists ? "a disk has a snapshot that was not decided" : "a disk gives up a snapshot that exists");
    return 1;
}

static bool hold(const struct at *c, struct member *m)
{
    if (!m->there || m->part != P_NONE)
        return false;
    m->part = P_HELD;
    m->held = !leaves_out(c, GROUPS_HOLD);
    if (m->held)
        now_held(c);
    return true;
}

static bool take(const struct at *c, struct member *m)
{
    bool in_time = m->part == P_HELD && !m->taken, late = leaves_out(c, GROUPS_REFUSE_LATE) && m->part == P_OVER && m->snap == S_NONE;
    if (!m->there || !(in_time || late))
        return false;
    if (!m->held)
        now_held(c);
    m->taken = 1;
    m->held = 0; /* it goes on: all have been held by now */
    m->snap = leaves_out(c, GROUPS_DURABLE) ? S_LOST : S_TEMP;
    return true;
}

static bool settle(const struct at *c, struct member *m) /* perhaps it has begun already */
{
    if (!m->there || m->part == P_NONE)
        return false;
    if (m->part == P_HELD && m->taken)
        m->part = P_ASKS;
    else if (m->part == P_HELD)
        follows(c, m, false);
    return true;
}

static bool call(const struct at *c, struct member *m, unsigned what)
{
    return what == C_HOLD ? hold(c, m) : what == C_TAKE ? take(c, m) : settle(c, m);
}

static int look(const struct at *c, unsigned i)
{
    struct member *m = &c->s->m[i];
    bool mine = (c->s->entries & 1u << i) || leaves_out(c, GROUPS_ENTRY);
    if (m->part != P_ASKS)
        return 0;
    if (c->s->decided)
        return follows(c, m, mine);
    if (leaves_out(c, GROUPS_REFUSE))
        return follows(c, m, false);
    m->part = P_MAKES;
    return 1;
}

static int make(const struct at *c, unsigned i)
{
    struct member *m = &c->s->m[i];
    if (m->part != P_MAKES)
        return 0;
    if (c->s->decided && !leaves_out(c, GROUPS_LOOK_AGAIN)) {
        m->part = P_ASKS;
        return 1;
    }
    c->s->decided = 1;
    return follows(c, m, false);
}

static int sign(const struct at *c, unsigned i)
{
    struct state *s = c->s;
    struct member *m = &s->m[i];
    if (m->part != P_SIGNS && !(m->part == P_NAMED && leaves_out(c, GROUPS_SIGN_LAST)))
        return 0;
    s->entries &= (uint8_t)~(1u << i);
    if (!s->entries || leaves_out(c, GROUPS_EMPTY_ONLY))
        s->decided = s->entries = 0;
    m->part = P_OVER;
    return 1;
}

static int die(const struct at *c, unsigned i)
{
    struct state *s = c->s;
    struct member *m = &s->m[i];
    if (!m->there || s->deaths == DEATHS)
        return 0;
    s->deaths++;
    if (i == 0 && s->leader != L_GONE)
        s->leader = L_GONE, s->at = s->failed = 0;
    uint8_t snap = m->snap == S_LOST ? S_NONE : m->snap == S_NAMED ? S_TEMP : m->snap;
    *m = (struct member){ .snap = snap, .wrote = m->wrote };
    return s->exists && snap == S_NONE ? broken(c, "a snapshot that exists is lost with its host") : 1;
}

static int open_dead(const struct at *c, unsigned i)
{
    struct member *m = &c->s->m[i];
    if (m->there)
        return 0;
    m->there = 1;
    m->part = P_OVER;
    if (m->snap == S_TEMP && !leaves_out(c, GROUPS_OPEN_ASKS)) {
        m->held = 1;
        m->part = P_ASKS;
    } else if (m->snap == S_HOME && (c->s->entries & 1u << i) && !leaves_out(c, GROUPS_SIGN_OPEN)) {
        m->part = P_SIGNS;
    }
    return 1;
}

static int member_step(const struct at *c, enum act a, unsigned i)
{
    struct member *m = &c->s->m[i];
    if (a == A_OPEN)
        return open_dead(c, i);
    if (!m->there)
        return 0;
    if (a == A_ARRIVE && m->late) {
        call(c, m, m->late);
        m->late = C_NONE;
    } else if (a == A_GIVE_UP && i && m->part == P_HELD && !leaves_out(c, GROUPS_DEADLINE)) {
        settle(c, m);
    } else if (a == A_LOOK) {
        return look(c, i);
    } else if (a == A_MAKE) {
        return make(c, i);
    } else if (a == A_HOME && m->part == P_NAMED) {
        m->snap = S_HOME;
        m->part = P_SIGNS;
    } else if (a == A_HOME && m->snap == S_NAMED) {
        m->snap = S_HOME;
    } else if (a == A_SIGN) {
        return sign(c, i);
    } else if (a == A_WRITE && !m->held && m->snap && !m->wrote) {
        m->wrote = 1;
    } else if (a == A_DIE) {
        return die(c, i);
    } else {
        return 0;
    }
    return 1;
}

/* ---- who leads ---- */
static void next(struct state *s, uint8_t phase)
{
    s->leader = phase;
    s->at = 0;
}

/* Everybody is called in turn: @own first, else last. @how: A_LEAD, or what goes wrong. */
static int calls(const struct at *c, enum act how, unsigned what, bool own_first, uint8_t phase)
{
    struct state *s = c->s;
    unsigned who = own_first ? s->at : (s->at + 1) % MEMBERS;
    struct member *m = &s->m[who];
    bool done = false;
    if (who == 0 && how != A_LEAD)
        return 0;
    if (how == A_LEAD_LATE && (!m->there || m->late))
        return 0;
    if (how == A_LEAD_LATE)
        m->late = (uint8_t)what;
    else
        done = call(c, m, what) && how == A_LEAD;
    if (!done && what != C_SETTLE) {
        s->failed = 1;
        next(s, L_SETTLES);
    } else if (++s->at == MEMBERS) {
        next(s, phase);
    }
    return 1;
}

static int decide(const struct at *c)
{
    struct state *s = c->s;
    next(s, L_SETTLES);
    if (!s->prepared || (s->decided && !leaves_out(c, GROUPS_EXCLUSIVE))) {
        s->failed = 1;
        return 1;
    }
    s->prepared = 0;
    s->decided = s->exists = 1;
    s->entries = ALL;
    for (unsigned i = 0; i < MEMBERS; i++)
        if (s->m[i].snap == S_NONE)
            return broken(c, "the group exists, and a disk has no snapshot of it");
    return s->torn ? broken(c, "the snapshots are not of one instant") : 1;
}

static int lead(const struct at *c, enum act how)
{
    struct state *s = c->s;
    switch (s->leader) {
    case L_HOLDS:
        return calls(c, how, C_HOLD, false, L_TAKES);
    case L_TAKES:
        if (leaves_out(c, GROUPS_TAKE_ALL) && s->at == MEMBERS - 1)
            return next(s, L_DECIDES), 1;
        return calls(c, how, C_TAKE, true, L_DECIDES);
    case L_SETTLES:
        return calls(c, how, C_SETTLE, false, s->failed ? L_WAITS : L_IDLE);
    default:
        break;
    }
    if (how != A_LEAD)
        return 0;
    switch (s->leader) {
    case L_PREPARES:
        s->prepared = 1;
        next(s, L_HOLDS);
        return 1;
    case L_DECIDES:
        return decide(c);
    case L_WAITS: /* for its own part */
        if (s->m[0].part != P_OVER && s->m[0].part != P_NONE)
            return 0;
        next(s, L_CLEANS);
        return 1;
    case L_CLEANS:
        s->prepared = 0;
        next(s, L_CLEANS_MORE);
        return 1;
    case L_CLEANS_MORE:
        s->decided &= s->entries != 0;
        next(s, L_IDLE);
        return 1;
    default:
        return 0;
    }
}

static int clean(const struct at *c)
{
    struct state *s = c->s;
    if (leaves_out(c, GROUPS_CLEAN) || (s->leader != L_GONE && !leaves_out(c, GROUPS_CLEAN_GONE)) || !(s->prepared || (s->decided && !s->entries)))
        return 0;
    if (s->leader == L_GONE)
        s->prepared = 0;
    s->decided &= s->entries != 0;
    return 1;
}

static int step(void *arg, uint8_t *st, unsigned act, const char **ret_why)
{
    struct state s;
    memcpy(&s, st, sizeof s);
    const struct at c = { *(const unsigned *)arg, &s, ret_why };
    enum act a = (enum act)(act % ACTS);
    unsigned i = act / ACTS;
    int r = 0;
    if (a >= A_ARRIVE)
        r = member_step(&c, a, i);
    else if (i == 0 && a <= A_LEAD_LATE)
        r = lead(&c, a);
    else if (i == 0 && a == A_CLEAN)
        r = clean(&c);
    else if (i == 0 && a == A_LEAVE && s.leader == L_IDLE && (s.m[0].part == P_OVER || s.m[0].part == P_NONE))
        r = (s.leader = L_GONE, 1);
    if (r)
        memcpy(st, &s, sizeof s);
    return r;
}

static bool good(void *arg, uint8_t *st)
{
    struct state s;
    (void)arg;
    memcpy(&s, st, sizeof s);
    bool all = !s.prepared && !s.decided;
    for (unsigned i = 0; i < MEMBERS; i++)
        all &= s.m[i].there && !s.m[i].held && s.m[i].snap == (s.exists ? S_HOME : S_NONE);
    return all;
}

static bool bad(void *arg, unsigned act)
{
    enum act a = (enum act)(act % ACTS);
    (void)arg;
    return a == A_DIE || a == A_LEAD_LOST || a == A_LEAD_LATE;
}

static void say(void *arg, unsigned act, char *buf, unsigned len)
{
    (void)arg;
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    snprintf(buf, len, text[act % ACTS], act / ACTS);
#pragma GCC diagnostic pop
}

int groups_run(unsigned without, struct ex_result *ret)
{
    struct ex_model m = { .arg = &without, .size = sizeof(struct state), .n_acts = ACTS * MEMBERS, .begin = begin, .step = step, .say = say, .good = good, .bad = bad };
    int r = ex_run(&m, 20000000, ret);
    return r < 0 ? r : ret->why ? 1 : ret->complete ? 0 : -E2BIG;
}

void groups_print(const struct ex_result *r)
{
    char line[120];
    for (unsigned i = 0; i < r->n_trace; i++) {
        say(NULL, r->trace[i], line, sizeof line);
        printf("    %2u. %s\n", i + 1, line);
    }
    printf("    => %s\n", r->why);
}
