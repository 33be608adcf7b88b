#include "tests/model/conform_int.h"
#include <stdio.h>
#include <stdlib.h>

void conform_refuse(struct conform *c, const struct m_act *a, const char *why)
{
    char text[160] = "";
    if (c->error[0])
        return;
    if (a)
        model_say(a, text, sizeof text);
    snprintf(c->error, sizeof c->error, "%.3f s: %s: %s", (double)sim_now_ns(c->sim) / 1e9, text, why);
}

/* It answers for what it has, and for what it is about to take. */
static void note_charges(struct conform *c, unsigned p)
{
    const struct m_proc *q = m_proc(&c->m, c->st, p);
    c->host[p].charges |= q->charge;
    for (unsigned s = 0; s < c->m.slots; s++) {
        const struct m_take *t = m_take(&c->m, c->st, p, s);
        if (t->phase == MT_SECOND || (t->phase == MT_READ && t->state == MS_FREE && q->status == MP_JOINING))
            c->host[p].charges |= 1u << s;
    }
}

/* A step that was done. */
void conform_step(struct conform *c, unsigned kind, unsigned p, unsigned a, unsigned d)
{
    struct m_act act = { (uint8_t)kind, (uint8_t)p, (uint8_t)a, (uint8_t)d, 0 };
    const char *why = NULL;
    int r = c->error[0] ? 1 : model_step(&c->m, c->st, act, &why);
    c->steps++;
    note_charges(c, p);
    if (r != 1)
        conform_refuse(c, &act, why ? why : "the order does not allow it");
}

int conform_proc(const struct conform *c, const struct sim_host *h)
{
    for (unsigned i = 0; i < PROCS; i++)
        if (c->host[i].sim == h)
            return (int)i;
    return -1;
}

static void request(void *arg, struct sim_host *h, struct gr_bdev *path, const struct gr_bio *bio, int status)
{
    struct conform *c = arg;
    int p = conform_proc(c, h);
    unsigned d = 0, off = 0;
    if (p < 0 || !c->host[p].known || c->error[0] || (status != 0 && status != -GR_EMISCOMPARE))
        return;
    if (bio->op != GR_OP_READ && bio->op != GR_OP_WRITE && bio->op != GR_OP_COMPARE_WRITE)
        return;
    while (d < c->n_dev && c->host[p].path[d] != path)
        d++;
    if (d == c->n_dev)
        return;
    if (!(m_proc(&c->m, c->st, (unsigned)p)->reg & 1u << d))
        conform_refuse(c, &(struct m_act){ M_DATA, (uint8_t)p, 0, 0, 0 }, "a device has done a request of a process that was ejected");
    bool swap = bio->op == GR_OP_COMPARE_WRITE;
    const struct iovec *iov = swap ? bio->iov2 : bio->iov;
    uint64_t unit = bio->off / VMFS_UNIT;
    for (int i = 0; i < (swap ? bio->iovcnt2 : bio->iovcnt); i++)
        for (off = 0; off + VMFS_UNIT <= iov[i].iov_len; off += VMFS_UNIT)
            conform_unit(c, (unsigned)p, vmfs_addr(d, unit++), bio, (const uint8_t *)iov[i].iov_base + off, status == 0);
}

/* ---- fences ---- */
static void ejected(struct conform *c, unsigned p, unsigned d, uint64_t key)
{
    const char *why = "nothing it knows says so";
    struct m_act act = { M_EJECT, (uint8_t)p, 0, (uint8_t)d, 0 };
    for (unsigned s = 0; s < c->m.slots; s++) {
        struct m_take *t = m_take(&c->m, c->st, p, s);
        if (!t->key || c->host[t->key - 1u].key != key)
            continue;
        bool same_home = strcmp(c->host[t->key - 1u].home, c->host[p].home) == 0; /* of who was in the slot as it was read: another may be by now */
        m_slot(&c->m, c->st, s)->home = same_home ? m_proc(&c->m, c->st, p)->host + 1u : 0;
        act.a = (uint8_t)s;
        if (model_step(&c->m, c->st, act, &why) == 1) {
            if (c->on_eject && d == 0)
                c->on_eject(c->on_eject_arg, c->host[t->key - 1u].sim);
            return;
        }
    }
    conform_refuse(c, &act, why);
}

static int proc_new(struct conform *c, struct sim_host *h)
{
    const char *why;
    for (unsigned p = 0; p < PROCS; p++) {
        m_head(c->st)->restarts = 0;
        model_step(&c->m, c->st, (struct m_act){ M_NOTICE, (uint8_t)p, 0, 0, 0 }, &why);
        if (model_step(&c->m, c->st, (struct m_act){ M_START, (uint8_t)p, 0, 0, 0 }, &why) != 1)
            continue;
        c->host[p] = (struct chost){ .sim = h };
        return (int)p;
    }
    conform_refuse(c, NULL, "more processes at once than are watched");
    return -1;
}

void conform_host(struct conform *c, struct sim_host *h, struct gr_bdev *const *paths, const char *home)
{
    int p = proc_new(c, h);
    if (p < 0)
        return;
    memcpy(c->host[p].path, paths, c->n_dev * sizeof *paths);
    snprintf(c->host[p].home, sizeof c->host[p].home, "%s", home);
}

static void fence(void *arg, struct sim_host *h, struct gr_bdev *path, enum sim_fence what, uint64_t key)
{
    struct conform *c = arg;
    int p = conform_proc(c, h);
    unsigned d = 0;
    if (p < 0)
        return;
    while (d < c->n_dev && c->host[p].path[d] != path)
        d++;
    if (d == c->n_dev)
        return;
    if (what == SIM_EJECTED) {
        ejected(c, (unsigned)p, d, key);
    } else if (what == SIM_ENTERED) {
        c->host[p].key = key;
        c->host[p].known = true;
        conform_step(c, M_ENTER, (unsigned)p, 0, d);
    } else {
        m_proc(&c->m, c->st, (unsigned)p)->reg &= ~(1u << d);
    }
}

/* ---- the whole ---- */
struct conform *conform_new(struct sim *s, struct gr_mem *const *mem, unsigned n)
{
    struct conform *c = calloc(1, sizeof *c);
    if (!c)
        return NULL;
    c->sim = s;
    c->n_dev = n;
    memcpy(c->mem, mem, n * sizeof *mem);
    if (vsuper_decode(conform_block(c, vmfs_addr(0, VMFS_SUPER_A)), &c->sb, NULL) < 0) {
        free(c);
        return NULL;
    }
    c->m = (struct model){ .hosts = 1, .procs = PROCS, .slots = (uint8_t)c->sb.slots.entries, .disks = OBJECTS, .devices = (uint8_t)n, .observed = true,
                           .restarts = 1, .looks = c->sb.timing == VMFS_TIMING_FAST ? 28 : 18 }; /* of 30 and 20: two may be taken for the asking */
    model_layout(&c->m);
    c->st = calloc(1, c->m.size);
    if (!c->st) {
        free(c);
        return NULL;
    }
    model_begin(&c->m, c->st);
    sim_watch(s, &(struct sim_watcher){ request, fence, c });
    return c;
}

void conform_free(struct conform *c)
{
    if (!c)
        return;
    sim_watch(c->sim, NULL);
    free(c->st);
    free(c);
}

void conform_on_eject(struct conform *c, void (*fn)(void *arg, struct sim_host *victim), void *arg)
{
    c->on_eject = fn;
    c->on_eject_arg = arg;
}

const char *conform_error(const struct conform *c)
{
    return c->error[0] ? c->error : NULL;
}

uint64_t conform_steps(const struct conform *c)
{
    return c->steps;
}

bool conform_ejected(const struct conform *c, const struct sim_host *h)
{
    int p = conform_proc(c, h);
    if (p < 0)
        return true; /* for so long that its place among those who are watched is another's */
    return c->host[p].known && m_proc(&c->m, c->st, (unsigned)p)->reg != (1u << c->n_dev) - 1;
}

unsigned conform_phase(const struct conform *c, const struct sim_host *h)
{
    int p = conform_proc(c, h);
    unsigned far = 0;
    for (unsigned s = 0; p >= 0 && s < c->m.slots; s++)
        far = GR_MAX(far, m_take(&c->m, c->st, (unsigned)p, s)->phase);
    return far;
}
