#include "tests/model/explore.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define CHUNK 65536u
struct run {
    const struct ex_model *m;
    uint8_t **chunk; /* CHUNK states each, with where they came from behind them */
    size_t n_chunks;
    uint32_t *table, mask; /* state number + 1, by hash */
    uint32_t n;
    struct ex_result *res;
};
struct from {
    uint32_t parent, act;
};

static uint8_t *state(const struct run *r, uint32_t i)
{
    return r->chunk[i / CHUNK] + (size_t)(i % CHUNK) * r->m->size;
}
static struct from *from(const struct run *r, uint32_t i)
{
    return (struct from *)(void *)(r->chunk[i / CHUNK] + (size_t)CHUNK * r->m->size) + i % CHUNK;
}

static uint64_t hash(const uint8_t *st, unsigned size)
{
    uint64_t h = 0x9e3779b97f4a7c15ull, w;
    for (unsigned i = 0; i < size; i += 8) {
        memcpy(&w, st + i, 8);
        h = (h ^ w) * 0xff51afd7ed558ccdull;
        h ^= h >> 32;
    }
    return h;
}

/* Where it is in the table, or where it would be. */
static uint32_t *place(const struct run *r, const uint8_t *st)
{
    uint32_t i = (uint32_t)hash(st, r->m->size) & r->mask;
    while (r->table[i] && memcmp(state(r, r->table[i] - 1), st, r->m->size) != 0)
        i = (i + 1) & r->mask;
    return &r->table[i];
}

static int grow(struct run *r)
{
    uint32_t mask = r->mask ? r->mask * 2 + 1 : 0xffff;
    uint32_t *t = calloc((size_t)mask + 1, sizeof *t);
    if (!t)
        return -ENOMEM;
    free(r->table);
    r->table = t;
    r->mask = mask;
    for (uint32_t i = 0; i < r->n; i++)
        *place(r, state(r, i)) = i + 1;
    return 0;
}

/* 1 new, 0 known. */
static int add(struct run *r, const uint8_t *st, uint32_t parent, uint32_t act)
{
    if (r->n >= r->mask / 2 && grow(r) < 0)
        return -ENOMEM;
    uint32_t *at = place(r, st);
    if (*at)
        return 0;
    if (r->n % CHUNK == 0) {
        uint8_t **c = realloc(r->chunk, (r->n_chunks + 1) * sizeof *c);
        uint8_t *one = malloc((size_t)CHUNK * (r->m->size + sizeof(struct from)));
        r->chunk = c ? c : r->chunk;
        if (!c || !one) {
            free(one);
            return -ENOMEM;
        }
        r->chunk[r->n_chunks++] = one;
    }
    memcpy(state(r, r->n), st, r->m->size);
    *from(r, r->n) = (struct from){ parent, act };
    *at = ++r->n;
    return 1;
}

static int trace_to(struct run *r, uint32_t i, const unsigned *last)
{
    unsigned n = last != NULL;
    for (uint32_t k = i; k; k = from(r, k)->parent)
        n++;
    r->res->trace = calloc(n ? n : 1, sizeof *r->res->trace);
    if (!r->res->trace)
        return -ENOMEM;
    r->res->n_trace = n;
    if (last)
        r->res->trace[--n] = *last;
    for (uint32_t k = i; k; k = from(r, k)->parent)
        r->res->trace[--n] = from(r, k)->act;
    return 0;
}

static int expand(struct run *r, uint32_t i, uint8_t *tmp)
{
    const struct ex_model *m = r->m;
    bool clean = false;
    for (unsigned a = 0; a < m->n_acts; a++) {
        const char *why = NULL;
        if (!clean)
            memcpy(tmp, state(r, i), m->size);
        int d = m->step(m->arg, tmp, a, &why);
        clean = d == 0;
        r->res->steps += d != 0;
        if (d < 0) {
            r->res->why = why;
            return trace_to(r, i, &a);
        }
        if (d > 0 && (d = add(r, tmp, i, a)) < 0)
            return d;
    }
    return 0;
}

/* Is there a way from everywhere to something good? Most recent first: their successors are known already, mostly. */
static int all_get_on(struct run *r, uint8_t *tmp)
{
    const struct ex_model *m = r->m;
    uint8_t *ok = calloc(r->n, 1);
    bool change = ok != NULL;
    while (change) {
        change = false;
        for (uint32_t i = r->n; i-- > 0;) {
            for (unsigned a = 0; !ok[i] && a <= m->n_acts; a++) {
                const char *why;
                memcpy(tmp, state(r, i), m->size);
                if (a == m->n_acts)
                    ok[i] = m->good(m->arg, tmp);
                else if (!m->bad(m->arg, a) && m->step(m->arg, tmp, a, &why) == 1)
                    ok[i] = ok[*place(r, tmp) - 1];
                change |= ok[i];
            }
        }
    }
    int res = ok ? 0 : -ENOMEM;
    for (uint32_t i = 0; res == 0 && i < r->n && !r->res->why; i++)
        if (!ok[i]) {
            r->res->why = "from here on nobody gets on, whatever happens";
            res = trace_to(r, i, NULL);
        }
    free(ok);
    return res;
}

int ex_run(const struct ex_model *m, uint64_t max_states, struct ex_result *ret)
{
    struct run r = { .m = m, .res = ret };
    uint8_t *tmp = calloc(1, m->size);
    uint32_t level_end = 1, i = 0;
    *ret = (struct ex_result){ 0 };
    int res = tmp ? 0 : -ENOMEM;
    if (res == 0) {
        m->begin(m->arg, tmp);
        res = add(&r, tmp, 0, 0);
    }
    for (; res >= 0 && i < r.n && r.n <= max_states && !ret->why; i++) {
        if (i == level_end) {
            ret->depth++;
            level_end = r.n;
        }
        res = expand(&r, i, tmp);
    }
    ret->complete = ret->why || i == r.n;
    if (res >= 0 && ret->complete && !ret->why && m->good)
        res = all_get_on(&r, tmp);
    ret->states = r.n;
    for (size_t c = 0; c < r.n_chunks; c++)
        free(r.chunk[c]);
    free(r.chunk);
    free(r.table);
    free(tmp);
    return res < 0 ? res : 0;
}

void ex_done(struct ex_result *r)
{
    free(r->trace);
    r->trace = NULL;
}
