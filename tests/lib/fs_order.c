#include "tests/lib/fs_order.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OBJECTS = 48, STATES_MAX = 300000, TOP = OBJECTS + 1, DONE = 255 };

/* References to objects are 1 + their place, 0: none. TOP: the folder above all. */
struct object { /* all zeros when nothing leads to it */
    uint8_t kind; /* 1: file, 2: folder, 3: folder that was removed */
    uint8_t name[FO_NAMES]; /* of a folder */
    uint16_t size;
    uint16_t cell[FO_CELLS];
};
struct under_way {
    uint8_t step, dir, dir2, file;
};
struct state {
    uint8_t top[FO_NAMES], folder[FO_FOLDERS];
    uint8_t fd[FO_PROCS][FO_FDS];
    struct under_way way[FO_PROCS];
    uint8_t zero; /* no byte is left that nobody sets: states are compared as bytes */
    struct object object[OBJECTS];
};
_Static_assert(sizeof(struct state) == FO_NAMES + FO_FOLDERS + FO_PROCS * (FO_FDS + sizeof(struct under_way)) + 1 + OBJECTS * sizeof(struct object), "no padding");

/* ---- a set of states ---- */
struct set {
    struct state *s;
    size_t n, cap;
    uint32_t *slot; /* 1 + place */
    size_t slots;
};

static uint64_t hash(const struct state *s)
{
    const uint8_t *p = (const uint8_t *)s;
    uint64_t h = 1469598103934665603u;
    for (size_t i = 0; i < sizeof *s; i++)
        h = (h ^ p[i]) * 1099511628211u;
    return h;
}

static void set_clear(struct set *t)
{
    t->n = 0;
    if (t->slots)
        memset(t->slot, 0, t->slots * sizeof *t->slot);
}

static void set_free(struct set *t)
{
    free(t->s);
    free(t->slot);
}

static void grow(struct set *t)
{
    t->cap = t->cap ? 2 * t->cap : 64;
    t->slots = 4 * t->cap;
    t->s = realloc(t->s, t->cap * sizeof *t->s);
    free(t->slot);
    t->slot = calloc(t->slots, sizeof *t->slot);
    if (!t->s || !t->slot)
        abort();
    for (size_t i = 0; i < t->n; i++) {
        size_t k = hash(&t->s[i]) % t->slots;
        while (t->slot[k])
            k = (k + 1) % t->slots;
        t->slot[k] = (uint32_t)i + 1;
    }
}

static void set_add(struct set *t, const struct state *s)
{
    if (t->n == t->cap)
        grow(t);
    size_t k = hash(s) % t->slots;
    for (; t->slot[k]; k = (k + 1) % t->slots)
        if (memcmp(&t->s[t->slot[k] - 1], s, sizeof *s) == 0)
            return;
    t->s[t->n++] = *s;
    t->slot[k] = (uint32_t)t->n;
}

/* ---- what operations do ---- */
static struct object *at(struct state *s, uint8_t ref)
{
    return &s->object[ref - 1];
}

static uint8_t *names_of(struct state *s, uint8_t dir)
{
    return dir == TOP ? s->top : at(s, dir)->name;
}

static bool is_empty(struct state *s, uint8_t dir)
{
    for (int i = 0; i < FO_NAMES; i++)
        if (at(s, dir)->name[i])
            return false;
    return true;
}

/* What nothing leads to is not there: equal states are equal bytes. */
static void tidy(struct state *s)
{
    bool used[OBJECTS + 2] = {false};
    for (int i = 0; i < FO_NAMES; i++)
        used[s->top[i]] = true;
    for (int p = 0; p < FO_PROCS; p++) {
        used[s->way[p].dir] = used[s->way[p].dir2] = used[s->way[p].file] = true;
        for (int k = 0; k < FO_FDS; k++)
            used[s->fd[p][k]] = true;
    }
    for (int i = 0; i < FO_FOLDERS; i++)
        used[s->folder[i]] = true;
    for (uint8_t o = 1; o <= OBJECTS; o++)
        for (int i = 0; used[o] && at(s, o)->kind == 2 && i < FO_NAMES; i++)
            used[at(s, o)->name[i]] = true;
    for (uint8_t o = 1; o <= OBJECTS; o++)
        if (!used[o])
            *at(s, o) = (struct object){0};
}

static bool end(struct state *s, const struct fo_op *op, int err)
{
    s->way[op->proc] = (struct under_way){.step = DONE};
    return op->err == err;
}

static void cut(struct object *f, unsigned size)
{
    for (unsigned i = size; i < FO_CELLS; i++)
        f->cell[i] = 0;
    f->size = (uint16_t)size;
}

static void put(struct object *f, unsigned first, unsigned n, uint16_t tag)
{
    for (unsigned i = first; i < first + n && i < FO_CELLS; i++)
        f->cell[i] = tag;
    if (first + n > f->size)
        f->size = (uint16_t)(first + n);
}

static bool has_read(const struct object *f, const struct fo_op *op)
{
    unsigned n = op->first >= f->size ? 0 : f->size - op->first < op->n ? f->size - op->first : op->n;
    return op->size == n && memcmp(f->cell + op->first, op->cells, n * sizeof *op->cells) == 0;
}

static bool do_open(struct state *s, const struct fo_op *op, uint8_t fresh)
{
    struct under_way *w = &s->way[op->proc];
    if (w->file) { /* its name was looked up, or made */
        cut(at(s, w->file), 0);
    } else {
        uint8_t *ref = &names_of(s, w->dir)[op->name];
        if (*ref && op->exclusive)
            return end(s, op, EEXIST);
        if (!*ref && !op->create)
            return end(s, op, ENOENT);
        if (!*ref) {
            *ref = fresh;
            at(s, fresh)->kind = 1;
        }
        w->file = *ref;
        if (op->cut) {
            w->step++;
            return op->err == 0;
        }
    }
    s->fd[op->proc][op->fd] = w->file;
    return end(s, op, 0);
}

static bool do_stat(struct state *s, const struct fo_op *op)
{
    struct under_way *w = &s->way[op->proc];
    if (!w->file) {
        w->file = names_of(s, w->dir)[op->name];
        w->step++;
        return w->file ? op->err == 0 : end(s, op, ENOENT);
    }
    return at(s, w->file)->size == op->size && end(s, op, 0);
}

/* The two names of a renaming, when their folders are known. */
static bool both_names(struct state *s, const struct fo_op *op, uint8_t **from, uint8_t **to)
{
    struct under_way *w = &s->way[op->proc];
    if (op->kind == FO_RENAME && (w->dir || !op->dir) && !op->dir2 && !w->dir2) /* the top needs no look */
        w->dir = w->dir ? w->dir : TOP, w->dir2 = TOP;
    if (op->kind == FO_RENAME_DIR) {
        *from = &s->folder[op->dir - 1];
        *to = &s->folder[op->dir2 - 1];
    } else if (op->kind == FO_RENAME && w->dir && w->dir2) {
        *from = &names_of(s, w->dir)[op->name];
        *to = &names_of(s, w->dir2)[op->name2];
    } else {
        return false;
    }
    return true;
}

/* Linux looks both names up before it asks for a renaming. When they lead to the same, as if the second were a link to the first, there is nothing to do:
 * so it is also when another host moved the one to the other between these two looks; and what must not replace anything is told then that there is
 * something. This is the first of them. */
static bool look_first(struct state *s, const struct fo_op *op)
{
    uint8_t *from, *to;
    struct under_way *w = &s->way[op->proc];
    if (w->step == DONE || w->file || op->err != (op->keep ? EEXIST : 0) || !both_names(s, op, &from, &to) || !*from)
        return false;
    w->file = *from;
    return true;
}

static bool do_rename(struct state *s, const struct fo_op *op)
{
    uint8_t *from, *to, old;
    both_names(s, op, &from, &to);
    old = *to;
    if (s->way[op->proc].file)
        return op->keep ? old && end(s, op, EEXIST) : old == s->way[op->proc].file && end(s, op, 0);
    if (!*from || (op->swap && !old))
        return end(s, op, ENOENT);
    if (op->keep && old)
        return end(s, op, EEXIST);
    if (from != to) {
        *to = *from;
        *from = op->swap ? old : 0;
    }
    return end(s, op, 0);
}

static bool do_rename_dir(struct state *s, const struct fo_op *op)
{
    uint8_t *from, *to;
    both_names(s, op, &from, &to);
    if (s->way[op->proc].file)
        return *to == s->way[op->proc].file && end(s, op, 0);
    if (!*from)
        return end(s, op, ENOENT);
    if (*to && !is_empty(s, *to))
        return end(s, op, ENOTEMPTY);
    if (*to)
        at(s, *to)->kind = 3;
    *to = *from;
    *from = 0;
    return end(s, op, 0);
}

static bool do_rmdir(struct state *s, const struct fo_op *op)
{
    uint8_t *dir = &s->folder[op->dir - 1];
    if (!*dir)
        return end(s, op, ENOENT);
    if (!is_empty(s, *dir))
        return end(s, op, ENOTEMPTY);
    at(s, *dir)->kind = 3;
    *dir = 0;
    return end(s, op, 0);
}

static bool do_list(struct state *s, const struct fo_op *op)
{
    struct under_way *w = &s->way[op->proc];
    if (!w->file && w->dir != TOP) { /* it is opened before it is read */
        w->file = w->dir;
        w->step++;
        return at(s, w->dir)->kind == 3 ? end(s, op, ENOENT) : op->err == 0;
    }
    uint32_t names = 0;
    for (int i = 0; i < FO_NAMES; i++)
        names |= names_of(s, w->dir)[i] ? 1u << i : 0;
    for (int i = 0; w->dir == TOP && i < FO_FOLDERS; i++)
        names |= s->folder[i] ? 1u << (FO_NAMES + i) : 0;
    return names == op->names && end(s, op, 0);
}

static bool on_names(const struct fo_op *op)
{
    return op->kind == FO_OPEN || op->kind == FO_STAT || op->kind == FO_UNLINK || op->kind == FO_RENAME || op->kind == FO_LIST;
}

static bool act(struct state *s, const struct fo_op *op, uint8_t fresh)
{
    struct under_way *w = &s->way[op->proc];
    uint8_t ref = op->kind >= FO_CLOSE && op->kind <= FO_FSTAT ? s->fd[op->proc][op->fd] : 0;
    struct object *f = ref ? at(s, ref) : NULL;
    switch (op->kind) {
    case FO_OPEN: return do_open(s, op, fresh);
    case FO_STAT: return do_stat(s, op);
    case FO_LIST: return do_list(s, op);
    case FO_RENAME: return do_rename(s, op);
    case FO_RENAME_DIR: return do_rename_dir(s, op);
    case FO_RMDIR: return do_rmdir(s, op);
    case FO_UNLINK:
        if (!names_of(s, w->dir)[op->name])
            return end(s, op, ENOENT);
        names_of(s, w->dir)[op->name] = 0;
        return end(s, op, 0);
    case FO_MKDIR:
        if (s->folder[op->dir - 1])
            return end(s, op, EEXIST);
        s->folder[op->dir - 1] = fresh;
        at(s, fresh)->kind = 2;
        return end(s, op, 0);
    case FO_CLOSE:
        s->fd[op->proc][op->fd] = 0;
        return end(s, op, 0);
    case FO_READ: return has_read(f, op) && end(s, op, 0);
    case FO_FSTAT: return f->size == op->size && end(s, op, 0);
    case FO_WRITE: put(f, op->first, op->n, op->tag); return end(s, op, 0);
    case FO_APPEND: put(f, f->size, op->n, op->tag); return end(s, op, 0);
    case FO_TRUNCATE:
        cut(f, op->n);
        return end(s, op, 0);
    case FO_KINDS: break;
    }
    abort();
}

/* The next instant of @op. False: it cannot be now, for it would not answer what it did. */
static bool step(struct state *s, const struct fo_op *op, uint8_t fresh)
{
    struct under_way *w = &s->way[op->proc];
    if (on_names(op) && (!w->dir || (op->kind == FO_RENAME && !w->dir2))) {
        uint8_t *ref = w->dir ? &w->dir2 : &w->dir, which = w->dir ? op->dir2 : op->dir;
        *ref = which ? s->folder[which - 1] : TOP;
        w->step++;
        if (!*ref)
            return end(s, op, ENOENT);
        if (which)
            return true;
        return step(s, op, fresh); /* the top is always there: no instant */
    }
    bool gone = on_names(op) && op->kind != FO_LIST && !w->file &&
                ((w->dir != TOP && at(s, w->dir)->kind == 3) || (op->kind == FO_RENAME && w->dir2 != TOP && at(s, w->dir2)->kind == 3));
    return gone ? end(s, op, ENOENT) : act(s, op, fresh);
}

/* ---- the search ---- */
struct search {
    const struct fo_op *way[FO_PROCS]; /* called and not returned */
    uint8_t fresh[FO_PROCS];           /* what it makes, should it make something */
    struct set now, next, work;
};

static void called(struct search *q, const struct fo_op *op)
{
    bool taken[OBJECTS + 1] = {false};
    for (size_t i = 0; i < q->now.n; i++)
        for (uint8_t o = 1; o <= OBJECTS; o++)
            taken[o] |= at(&q->now.s[i], o)->kind != 0;
    for (int p = 0; p < FO_PROCS; p++)
        taken[q->way[p] ? q->fresh[p] : 0] = true;
    uint8_t o = 1;
    while (o <= OBJECTS && taken[o])
        o++;
    if (o > OBJECTS || q->way[op->proc]) /* FO_PROCS, FO_FDS, FO_NAMES and OBJECTS do not go together; or a process that does two things at once */
        abort();
    q->way[op->proc] = op;
    q->fresh[op->proc] = o;
}

/* 1: some states are left, 0: none, -1: too many. */
static int returned(struct search *q, const struct fo_op *op)
{
    set_clear(&q->next);
    set_clear(&q->work);
    for (size_t i = 0; i < q->now.n; i++)
        set_add(&q->work, &q->now.s[i]);
    for (size_t i = 0; i < q->work.n; i++) {
        struct state s = q->work.s[i];
        if (s.way[op->proc].step == DONE) {
            s.way[op->proc] = (struct under_way){0};
            tidy(&s);
            set_add(&q->next, &s);
            continue;
        }
        for (int p = 0; p < FO_PROCS; p++) {
            struct state t = s;
            if (q->way[p] && t.way[p].step != DONE && step(&t, q->way[p], q->fresh[p])) {
                tidy(&t);
                set_add(&q->work, &t);
            }
            t = s;
            if (q->way[p] && look_first(&t, q->way[p]))
                set_add(&q->work, &t);
        }
        if (q->work.n > STATES_MAX)
            return -1;
    }
    struct set was = q->now;
    q->now = q->next;
    q->next = was;
    q->way[op->proc] = NULL;
    return q->now.n > 0;
}

static int by_return(const void *a, const void *b)
{
    const struct fo_op *x = a, *y = b;
    return x->end_ns < y->end_ns ? -1 : x->end_ns > y->end_ns ? 1 : (int)x->proc - (int)y->proc;
}

static int by_call(const void *a, const void *b)
{
    const struct fo_op *const *x = a, *const *y = b;
    return (*x)->start_ns < (*y)->start_ns ? -1 : (*x)->start_ns > (*y)->start_ns;
}

static size_t crossing(const struct fo_op *ops, size_t n)
{
    size_t count = 0;
    for (size_t i = 0; i < n; i++) {
        bool any = false;
        for (size_t k = i; !any && k-- > 0 && ops[k].end_ns >= ops[i].start_ns;)
            any = ops[k].host != ops[i].host;
        for (size_t k = i + 1; !any && k < n && k < i + 64; k++)
            any = ops[k].host != ops[i].host && ops[k].start_ns <= ops[i].end_ns;
        count += any;
    }
    return count;
}

int fo_check(struct fo_op *ops, size_t n, struct fo_found *ret)
{
    struct search q = {0};
    *ret = (struct fo_found){0};
    const struct fo_op **calls = calloc(n + 1, sizeof *calls);
    if (!calls)
        abort();
    qsort(ops, n, sizeof *ops, by_return);
    for (size_t i = 0; i < n; i++)
        calls[i] = &ops[i];
    qsort(calls, n, sizeof *calls, by_call);
    ret->crossing = crossing(ops, n);
    set_add(&q.now, &(struct state){0});
    int r = 1;
    size_t k = 0;
    for (size_t i = 0; r > 0 && i < n; i++) {
        while (k < n && calls[k]->start_ns <= ops[i].end_ns) /* at the same instant: they may have met */
            called(&q, calls[k++]);
        r = returned(&q, &ops[i]);
        ret->states = q.work.n > ret->states ? q.work.n : ret->states;
        ret->at = i;
    }
    ret->too_many = r < 0;
    set_free(&q.now);
    set_free(&q.next);
    set_free(&q.work);
    free(calls);
    return r > 0 ? 0 : -1;
}

/* ---- for people ---- */
static const char *const kind_text[FO_KINDS] = {"open", "close", "read", "write", "append", "truncate", "fstat", "stat", "unlink", "rename", "mkdir", "rmdir", "rename", "list"};

void fo_print(const struct fo_op *op, char *text, size_t size)
{
    char what[160] = "", got[160] = "";
    size_t n = 0;
    switch (op->kind) {
    case FO_OPEN:
        snprintf(what, sizeof what, "%u/f%u%s%s%s as %u", op->dir, op->name, op->create ? " create" : "", op->exclusive ? " exclusive" : "", op->cut ? " truncate" : "", op->fd);
        break;
    case FO_STAT: case FO_UNLINK: snprintf(what, sizeof what, "%u/f%u", op->dir, op->name); break;
    case FO_RENAME:
        snprintf(what, sizeof what, "%u/f%u to %u/f%u%s", op->dir, op->name, op->dir2, op->name2, op->keep ? " not over" : op->swap ? " exchange" : "");
        break;
    case FO_MKDIR: case FO_RMDIR: case FO_LIST: snprintf(what, sizeof what, "%u", op->dir); break;
    case FO_RENAME_DIR: snprintf(what, sizeof what, "%u to %u", op->dir, op->dir2); break;
    case FO_READ: snprintf(what, sizeof what, "%u: %u cells at %u", op->fd, op->n, op->first); break;
    case FO_WRITE: snprintf(what, sizeof what, "%u: %u cells at %u, tag %u", op->fd, op->n, op->first, op->tag); break;
    case FO_APPEND: snprintf(what, sizeof what, "%u: %u cells, tag %u", op->fd, op->n, op->tag); break;
    case FO_TRUNCATE: snprintf(what, sizeof what, "%u: to %u", op->fd, op->n); break;
    case FO_CLOSE: case FO_FSTAT: snprintf(what, sizeof what, "%u", op->fd); break;
    case FO_KINDS: break;
    }
    if (op->err)
        snprintf(got, sizeof got, "%s", strerror(op->err));
    else if (op->kind == FO_READ)
        for (unsigned i = 0; i < op->size && n < sizeof got; i++)
            n += (size_t)snprintf(got + n, sizeof got - n, "%s%u", i ? " " : "", op->cells[i]);
    else if (op->kind == FO_STAT || op->kind == FO_FSTAT)
        snprintf(got, sizeof got, "%u", op->size);
    else if (op->kind == FO_LIST)
        snprintf(got, sizeof got, "%x", op->names);
    else
        snprintf(got, sizeof got, "done");
    snprintf(text, size, "%14.6f %14.6f host %u process %u: %s %s: %s", (double)op->start_ns / 1e6, (double)op->end_ns / 1e6, op->host, op->proc, kind_text[op->kind], what, got);
}
