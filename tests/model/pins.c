#include "tests/model/pins.h"
#include <stdio.h>
#include <string.h>

#define READERS 2u
const char *const pins_step_text[PINS_N_STEPS] = {
#define X(name, text) [PINS_##name] = text,
    PINS_STEPS(X)
#undef X
};

enum { R_OUT, R_LOOKED, R_PINNED, R_READS }; /* a reader: has seen the snapshot; has pinned; reads */
enum { D_IDLE, D_MARKED, D_SCANS, D_FREES };
struct reader {
    uint8_t phase, pinned, in; /* pinned: in its slot, on the device; in: the devices listen to it */
};
struct state {
    struct reader r[READERS];
    uint8_t owner, scanned, home, freed; /* how far deleting is; slots looked at; home says so; its units hold something else */
    uint8_t pad[16 - 3 * READERS - 4];
};
enum act { A_LOOK, A_PIN, A_LOOK_AGAIN, A_READ, A_UNPIN, A_EJECT, A_COME_BACK, A_DELETE, A_HOME, A_SCAN, A_FREE, A_OWNER_DIES, ACTS };
static const char *const text[ACTS] = {
    "reader %u sees the snapshot", "reader %u pins it", "reader %u looks again", "reader %u reads of it", "reader %u lets go of it",
    "reader %u is ejected, and its slot freed", "reader %u comes back under a new key", "the owner deletes the snapshot (%u)",
    "the owner says so at home (%u)", "the owner looks for pins in slot %u", "the owner frees what it held (%u)", "the owner dies, another goes on (%u)",
};

static void begin(void *arg, uint8_t *st)
{
    struct state s = { 0 };
    (void)arg;
    for (unsigned i = 0; i < READERS; i++)
        s.r[i].in = 1;
    memcpy(st, &s, sizeof s);
}

static int reader_step(unsigned without, struct state *s, struct reader *r, enum act a, const char **why)
{
    bool sees = !(s->home || s->freed);
    if (a == A_EJECT ? s->owner < D_SCANS && !s->home : a != A_COME_BACK && !r->in)
        return 0;
    if (a == A_LOOK && r->phase == R_OUT && sees) {
        r->phase = R_LOOKED;
    } else if (a == A_PIN && r->phase == R_LOOKED) {
        r->pinned = 1;
        r->phase = without & 1u << PINS_LOOK_AGAIN ? R_READS : R_PINNED;
    } else if (a == A_LOOK_AGAIN && r->phase == R_PINNED) {
        r->phase = sees ? R_READS : R_OUT;
        r->pinned = sees;
    } else if (a == A_READ && r->phase == R_READS) {
        *why = "a reader is given bytes that are not the snapshot's any more";
        return s->freed ? -1 : 1;
    } else if (a == A_UNPIN && r->phase == R_READS) {
        *r = (struct reader){ .in = 1 };
    } else if (a == A_EJECT && r->in) {
        r->in = without & 1u << PINS_EJECT ? 1 : 0;
        r->phase = r->in ? r->phase : R_OUT;
        r->pinned = 0;
    } else if (a == A_COME_BACK && !r->in) {
        *r = (struct reader){ .in = 1 };
    } else {
        return 0;
    }
    return 1;
}

static int owner_step(unsigned without, struct state *s, enum act a, unsigned i)
{
    bool home_first = !(without & 1u << PINS_HOME_FIRST);
    if (a == A_DELETE && s->owner == D_IDLE && i == 0) {
        s->owner = home_first ? D_MARKED : D_SCANS;
    } else if (a == A_HOME && i == 0 && !s->home && s->owner == (home_first ? D_MARKED : D_FREES)) {
        s->home = 1;
        s->owner = home_first ? D_SCANS : D_FREES;
    } else if (a == A_SCAN && s->owner == D_SCANS && i == s->scanned) {
        s->scanned = s->r[i].pinned ? 0 : s->scanned + 1;
        if (s->scanned == READERS || (s->scanned == 1 && without & 1u << PINS_SCAN_ALL))
            s->owner = D_FREES;
    } else if (a == A_FREE && i == 0 && !s->freed && s->home && (s->owner == D_FREES || (s->owner == D_SCANS && without & 1u << PINS_SCAN))) {
        s->freed = 1;
    } else if (a == A_OWNER_DIES && i == 0 && s->owner != D_IDLE && !s->freed) {
        s->owner = !s->home ? D_IDLE : without & 1u << PINS_SCAN_AGAIN ? D_FREES : D_SCANS;
        s->scanned = 0;
    } else {
        return 0;
    }
    return 1;
}

static int step(void *arg, uint8_t *st, unsigned act, const char **ret_why)
{
    unsigned without = *(const unsigned *)arg, i = act / ACTS;
    enum act a = (enum act)(act % ACTS);
    struct state s;
    memcpy(&s, st, sizeof s);
    int r = a <= A_COME_BACK ? reader_step(without, &s, &s.r[i], a, ret_why) : owner_step(without, &s, a, i);
    if (r)
        memcpy(st, &s, sizeof s);
    return r;
}

static void say(void *arg, unsigned act, char *buf, unsigned len)
{
    (void)arg;
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    snprintf(buf, len, text[act % ACTS], act / ACTS);
#pragma GCC diagnostic pop
}

int pins_run(unsigned without, struct ex_result *ret)
{
    struct ex_model m = { .arg = &without, .size = sizeof(struct state), .n_acts = ACTS * READERS, .begin = begin, .step = step, .say = say };
    int r = ex_run(&m, 1000000, ret);
    return r < 0 ? r : ret->why != NULL;
}

void pins_print(const struct ex_result *r)
{
    char line[120];
    for (unsigned i = 0; i < r->n_trace; i++) {
        say(NULL, r->trace[i], line, sizeof line);
        printf("    %2u. %s\n", i + 1, line);
    }
    printf("    => %s\n", r->why);
}
