#include "tests/lib/crash_oracle.h"
#include "common/cleanup.h"
#include "tests/lib/test.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

uint64_t orc_tick(struct orc *o)
{
    assert_int_equal(gr_record_note(o->record, "t", NULL), 0);
    return gr_record_at(o->record, gr_record_count(o->record) - 1)->submitted;
}

struct orc_disk *orc_disk_add(struct orc *o, const uint32_t *initial, uint64_t size)
{
    struct orc_disk *d = calloc(1, sizeof *d);
    o->disk = realloc(o->disk, (o->n_disks + 1) * sizeof *o->disk);
    assert_true(d && o->disk);
    d->number = (unsigned)o->n_disks;
    snprintf(d->name, sizeof d->name, "%sd%u", o->prefix ? o->prefix : "", d->number);
    snprintf(d->name2, sizeof d->name2, "moved/deep/%s", d->name);
    d->initial_size = size;
    if (initial) {
        d->initial = malloc(ORC_SLOTS * sizeof *initial);
        assert_non_null(d->initial);
        memcpy(d->initial, initial, ORC_SLOTS * sizeof *initial);
    }
    o->disk[o->n_disks++] = d;
    return d;
}

struct orc_snap *orc_snap_add(struct orc_disk *d, const char *name)
{
    struct orc_snap *s = calloc(1, sizeof *s);
    d->snap = realloc(d->snap, (d->n_snaps + 1) * sizeof *d->snap);
    assert_true(s && d->snap);
    snprintf(s->name, sizeof s->name, "%s", name);
    d->snap[d->n_snaps++] = s;
    return s;
}

uint64_t orc_window_off(unsigned w)
{
    /* at the start; across two leaves; a leaf alone; another; at the end */
    static const uint64_t off[ORC_WINDOWS] = { 0, (8u << 20) - 65536, 17u << 20, 26u << 20, ORC_SIZE - ORC_WINDOW_SECTORS * 512 };
    return off[w];
}

int orc_slot(uint64_t sector)
{
    for (unsigned w = 0; w < ORC_WINDOWS; w++) {
        uint64_t first = orc_window_off(w) / 512;
        if (sector >= first && sector - first < ORC_WINDOW_SECTORS)
            return (int)(w * ORC_WINDOW_SECTORS + (unsigned)(sector - first));
    }
    return -1;
}

static uint64_t slot_sector(unsigned slot)
{
    return orc_window_off(slot / ORC_WINDOW_SECTORS) / 512 + slot % ORC_WINDOW_SECTORS;
}

static void list_add(struct orc_list *l, size_t op)
{
    if (l->n == l->cap) {
        l->cap = l->cap ? l->cap * 2 : 4;
        l->op = realloc(l->op, l->cap * sizeof *l->op);
        assert_non_null(l->op);
    }
    l->op[l->n++] = (uint32_t)op;
}

size_t orc_op_add(struct orc *o, struct orc_disk *d, struct orc_op op)
{
    op.submit = orc_tick(o);
    if (d->n_ops == d->cap_ops) {
        d->cap_ops = d->cap_ops ? d->cap_ops * 2 : 64;
        d->op = realloc(d->op, d->cap_ops * sizeof *d->op);
        assert_non_null(d->op);
    }
    d->op[d->n_ops] = op;
    for (unsigned s = 0; s < ORC_SLOTS; s++) {
        uint64_t x = slot_sector(s);
        if (x >= op.first && x - op.first < op.n)
            list_add(&d->slot[s], d->n_ops);
    }
    return d->n_ops++;
}

void orc_op_ack(struct orc *o, struct orc_disk *d, size_t op)
{
    d->op[op].ack = orc_tick(o);
    if (d->op[op].fua)
        d->op[op].durable = d->op[op].ack;
}

void orc_flushed(struct orc *o, struct orc_disk *d, uint64_t submit)
{
    uint64_t now = orc_tick(o);
    for (size_t i = 0; i < d->n_ops; i++)
        if (d->op[i].ack && d->op[i].ack < submit && !d->op[i].durable) {
            d->op[i].durable = now;
            o->durable_ops++;
        }
}

void orc_free(struct orc *o)
{
    for (size_t i = 0; i < o->n_disks; i++) {
        struct orc_disk *d = o->disk[i];
        for (size_t k = 0; k < d->n_snaps; k++) {
            free(d->snap[k]->values);
            free(d->snap[k]);
        }
        for (unsigned s = 0; s < ORC_SLOTS; s++)
            free(d->slot[s].op);
        for (size_t k = 0; k < d->n_ops; k++)
            free(d->op[k].copied);
        free(d->snap);
        free(d->op);
        free(d->initial);
        free(d);
    }
    free(o->disk);
    memset(o, 0, sizeof *o);
}

/* ---- patterns: clones share data, so the place counts and not the disk; stamps are unique over all disks ---- */
void orc_fill(uint8_t *sector, const struct orc_disk *d, uint64_t number, uint32_t stamp)
{
    (void)d;
    uint64_t x = (uint64_t)stamp << 32 | (uint32_t)number, *w = (uint64_t *)(void *)sector;
    for (unsigned i = 0; i < 64; i++)
        w[i] = stamp ? x + i * 0x9e3779b97f4a7c15ull : 0;
}

int64_t orc_stamp(const uint8_t *sector, uint64_t number)
{
    const uint64_t *w = (const uint64_t *)(const void *)sector;
    uint32_t stamp = (uint32_t)(w[0] >> 32);
    if (stamp && (uint32_t)w[0] != (uint32_t)number)
        return -1;
    for (unsigned i = 0; i < 64; i++)
        if (w[i] != (stamp ? w[0] + i * 0x9e3779b97f4a7c15ull : 0))
            return -1;
    return stamp;
}

/* ---- what may be seen ---- */
static uint32_t value_of(const struct orc_op *op, unsigned slot)
{
    return op->values ? op->values[slot] : op->copied ? op->copied[slot] : op->stamp;
}
static uint32_t initial_of(const struct orc_disk *d, unsigned slot)
{
    return d->initial ? d->initial[slot] : 0;
}

/* Operations have effect in the order they were asked for, but a copy looks at its source first: one that was under way when operation
 * list[@last] was asked for may have come after it. */
static bool copied_after(const struct orc_disk *d, unsigned slot, size_t last, uint32_t stamp)
{
    const struct orc_list *l = &d->slot[slot];
    uint64_t submit = d->op[l->op[last]].submit;
    for (size_t i = last; i-- > 0;) {
        const struct orc_op *op = &d->op[l->op[i]];
        if (op->copied && !op->dead && (!op->ack || op->ack > submit) && value_of(op, slot) == stamp)
            return true;
    }
    return false;
}

bool orc_allowed(const struct orc_disk *d, unsigned slot, uint32_t stamp, uint64_t flushed, uint64_t tick, uint64_t *unsure)
{
    const struct orc_list *l = &d->slot[slot];
    bool found = false;
    unsigned n = 0;
    for (size_t i = l->n; i-- > 0;) {
        const struct orc_op *op = &d->op[l->op[i]];
        if (op->submit > tick || op->dead)
            continue;
        n++;
        found |= value_of(op, slot) == stamp;
        if (op->durable && op->durable <= flushed) {
            *unsure += n > 1;
            return found || copied_after(d, slot, i, stamp);
        }
    }
    *unsure += n > 0;
    return found || stamp == initial_of(d, slot);
}

bool orc_visible(const struct orc_disk *d, unsigned slot, uint32_t stamp, uint64_t since, uint64_t tick)
{
    const struct orc_list *l = &d->slot[slot];
    bool found = false;
    for (size_t i = l->n; i-- > 0;) {
        const struct orc_op *op = &d->op[l->op[i]];
        if (op->submit > tick || op->dead)
            continue;
        found |= value_of(op, slot) == stamp;
        if (op->ack && op->ack < since)
            return found || copied_after(d, slot, i, stamp);
    }
    return found || stamp == initial_of(d, slot);
}

bool orc_size_allowed(const struct orc_disk *d, uint64_t size, uint64_t tick)
{
    bool found = false;
    for (size_t i = d->n_ops; i-- > 0;) {
        const struct orc_op *op = &d->op[i];
        if (!op->size || op->submit > tick || op->dead)
            continue;
        found |= op->size == size;
        if (op->durable && op->durable <= tick)
            return found;
    }
    return found || size == d->initial_size;
}

/* ---- reading and comparing ---- */
int orc_read(struct gr_bdev *b, uint64_t size, uint32_t *values, char why[256])
{
    struct gr_chan *ch;
    assert_int_equal(gr_chan_open(b, gr_fiber_loop(), &ch), 0);
    uint8_t *mine = aligned_alloc(4096, ORC_WINDOW_SECTORS * 512);
    int r = 0;
    for (unsigned w = 0; w < ORC_WINDOWS && r == 0; w++) {
        uint64_t off = orc_window_off(w), len = off < size ? GR_MIN((uint64_t)ORC_WINDOW_SECTORS * 512, size - off) : 0;
        r = len ? gr_pread(ch, mine, len, off) : 0;
        if (r < 0)
            snprintf(why, 256, "%s: reading at %llu: %s", b->name, (unsigned long long)off, gr_code_text(r));
        for (unsigned i = 0; r == 0 && i < ORC_WINDOW_SECTORS; i++) {
            int64_t s = i < len / 512 ? orc_stamp(mine + i * 512, off / 512 + i) : 0;
            if (s < 0) {
                uint64_t x;
                memcpy(&x, mine + i * 512, 8);
                snprintf(why, 256, "%s: sector %llu shows what was never written (stamp %u of sector %u?)", b->name,
                         (unsigned long long)(off / 512 + i), (unsigned)(x >> 32), (unsigned)x);
                r = -1;
            } else {
                values[w * ORC_WINDOW_SECTORS + i] = (uint32_t)s;
            }
        }
    }
    free(mine);
    gr_chan_close(ch);
    return r < 0 ? -1 : 0;
}

/* Outside the windows nothing may be mapped. */
static int empty_outside(struct gr_bdev *b, uint64_t size, char why[256])
{
    struct gr_chan *ch;
    struct gr_extent e[32];
    int r = 0;
    assert_int_equal(gr_chan_open(b, gr_fiber_loop(), &ch), 0);
    for (uint64_t off = 0; r == 0 && off < size;) {
        unsigned n = 0;
        r = gr_extents(ch, off, size - off, NULL, e, 32, &n);
        if (r == 0 && n == 0)
            r = -EPROTO;
        for (unsigned i = 0; r == 0 && i < n; i++) {
            for (uint64_t s = e[i].off / 512; !(e[i].flags & GR_EXTENT_ZERO) && r == 0 && s < (e[i].off + e[i].len) / 512; s++)
                r = orc_slot(s) < 0 ? -ERANGE : 0;
            off = e[i].off + e[i].len;
        }
    }
    gr_chan_close(ch);
    if (r < 0)
        snprintf(why, 256, "%s: its extents: %s", b->name, r == -ERANGE ? "data where none was written" : gr_code_text(r));
    return r < 0 ? -1 : 0;
}

enum maybe { MUST_NOT, MAY, MUST };
/* An eager disk is data everywhere, but zeros outside the windows: looked at in some places. */
static int zeros_outside(struct gr_bdev *b, uint64_t size, char why[256])
{
    enum { LEN = 65536, PLACES = 8 };
    uint8_t *buf = aligned_alloc(4096, LEN);
    struct gr_chan *ch;
    int r = 0;
    assert_int_equal(gr_chan_open(b, gr_fiber_loop(), &ch), 0);
    for (uint64_t i = 0; r == 0 && i < PLACES; i++) {
        uint64_t off = (size - LEN) / PLACES * i / 4096 * 4096;
        r = gr_pread(ch, buf, LEN, off);
        if (r < 0)
            snprintf(why, 256, "%s: cannot be read at %llu: %s", b->name, (unsigned long long)off, gr_code_text(r));
        for (size_t k = 0; r == 0 && k < LEN; k++)
            if (buf[k] && orc_slot((off + k) / 512) < 0) {
                snprintf(why, 256, "%s: byte %llu was never written and is not zero", b->name, (unsigned long long)(off + k));
                r = -1;
            }
    }
    gr_chan_close(ch);
    free(buf);
    return r < 0 ? -1 : 0;
}

static enum maybe expected(const struct orc_span *made, const struct orc_span *gone, uint64_t tick)
{
    if (!made->submit || made->submit > tick || (gone->ack && gone->ack <= tick))
        return MUST_NOT;
    if (!made->ack || made->ack > tick || (gone->submit && gone->submit <= tick))
        return MAY;
    return MUST;
}

/* For whoever repeats one cut (GRANARY_CUT): all that happened to the sector. */
static void history_print(const struct orc_disk *m, unsigned slot, uint64_t tick)
{
    printf("# cut at %llu; began as stamp %u\n", (unsigned long long)tick, initial_of(m, slot));
    for (size_t i = 0; i < m->slot[slot].n; i++) {
        const struct orc_op *op = &m->op[m->slot[slot].op[i]];
        printf("# stamp %u, sectors %llu+%llu, submitted %llu, acknowledged %llu, durable %llu%s%s\n", value_of(op, slot),
               (unsigned long long)op->first, (unsigned long long)op->n, (unsigned long long)op->submit, (unsigned long long)op->ack,
               (unsigned long long)op->durable, op->fua ? ", FUA" : "", op->dead ? ", no effect" : "");
    }
}

static int snap_content(const struct orc_disk *m, const struct orc_snap *s, struct vmfs_disk *d, uint64_t tick, char why[256])
{
    uint32_t *now = malloc(ORC_SLOTS * sizeof *now);
    bool exact = s->made.ack && s->made.ack <= tick && s->values; /* before, what it froze may be lost with it */
    uint64_t unsure = 0;
    struct gr_bdev *b = NULL;
    struct gr_err err = { 0 };
    struct snap_info info;
    int r = snap_find(d, s->name, &info, &err);
    if (r == 0)
        r = snap_open(d, s->name, &b, &err);
    if (r < 0)
        snprintf(why, 256, "snapshot '%s': %s", s->name, err.text);
    if (r == 0 && exact && info.size != s->size) {
        snprintf(why, 256, "%s: %llu bytes, it had %llu", b->name, (unsigned long long)info.size, (unsigned long long)s->size);
        r = -1;
    }
    if (r == 0)
        r = orc_read(b, info.size, now, why);
    for (unsigned i = 0; r == 0 && i < ORC_SLOTS; i++)
        if (exact ? now[i] != s->values[i] : slot_sector(i) < info.size / 512 && !orc_allowed(m, i, now[i], s->made.submit, tick, &unsure)) {
            snprintf(why, 256, "%s: sector %llu shows stamp %u, it was %u", b->name, (unsigned long long)slot_sector(i), now[i], exact ? s->values[i] : 0);
            if (getenv("GRANARY_CUT")) {
                history_print(m, i, tick);
                printf("# snapshot submitted %llu, acknowledged %llu\n", (unsigned long long)s->made.submit, (unsigned long long)s->made.ack);
            }
            r = -1;
        }
    gr_bdev_put(b);
    free(now);
    return r < 0 ? -1 : 0;
}

struct listed {
    const struct orc_disk *d;
    uint64_t tick;
    char *why;
    int bad;
};
static int one_listed(void *arg, const struct snap_info *info)
{
    struct listed *l = arg;
    for (size_t i = 0; i < l->d->n_snaps; i++)
        if (strcmp(l->d->snap[i]->name, info->name) == 0)
            return 0;
    snprintf(l->why, 256, "disk d%u: a snapshot '%s' that nobody made", l->d->number, info->name);
    l->bad = -1;
    return -1;
}

static int verify_snaps(struct orc *o, const struct orc_disk *m, struct vmfs_disk *d, uint64_t tick, char why[256])
{
    struct listed l = { m, tick, why, 0 };
    snap_list(d, one_listed, &l, NULL);
    for (size_t i = 0; l.bad == 0 && i < m->n_snaps; i++) {
        const struct orc_snap *s = m->snap[i];
        enum maybe e = expected(&s->made, &s->deleted, tick);
        struct snap_info info;
        bool there = snap_find(d, s->name, &info, NULL) == 0;
        if (e != MAY && there != (e == MUST)) {
            snprintf(why, 256, "disk d%u: snapshot '%s' is %s", m->number, s->name, there ? "there, it was deleted" : "lost");
            return -1;
        }
        if (there && snap_content(m, s, d, tick, why) < 0)
            return -1;
    }
    (void)o;
    return l.bad;
}

static int verify_content(struct orc *o, const struct orc_disk *m, struct vmfs_disk *d, uint64_t tick, char why[256])
{
    uint32_t *now = malloc(ORC_SLOTS * sizeof *now);
    struct vmfs_stat st;
    vmfs_disk_stat(d, &st);
    int r = 0;
    if (!orc_size_allowed(m, st.size, tick)) {
        snprintf(why, 256, "disk d%u: %llu bytes, which it never had", m->number, (unsigned long long)st.size);
        r = -1;
    }
    if (r == 0)
        r = orc_read(vmfs_bdev(d), st.size, now, why);
    for (unsigned i = 0; r == 0 && i < ORC_SLOTS; i++)
        if (slot_sector(i) < st.size / 512 && !orc_allowed(m, i, now[i], tick, tick, &o->unsure)) {
            snprintf(why, 256, "disk d%u: sector %llu shows stamp %u, which it may not", m->number, (unsigned long long)slot_sector(i), now[i]);
            if (getenv("GRANARY_CUT"))
                history_print(m, i, tick);
            r = -1;
        }
    if (r == 0)
        r = m->eager ? zeros_outside(vmfs_bdev(d), st.size, why) : empty_outside(vmfs_bdev(d), st.size, why);
    free(now);
    return r;
}

static int verify_disk(struct orc *o, struct vmfs *v, const struct orc_disk *m, uint64_t tick, char why[256])
{
    enum maybe e = expected(&m->made, &m->removed, tick);
    bool may_old = !m->renamed.ack || m->renamed.ack > tick, may_new = m->renamed.submit && m->renamed.submit <= tick;
    struct vmfs_stat st;
    bool old = vmfs_stat(v, m->name, &st, NULL) == 0, new = vmfs_stat(v, m->name2, &st, NULL) == 0;
    struct gr_err err = { 0 };
    if ((old && !may_old) || (new && !may_new) || (old && new)) {
        snprintf(why, 256, "disk d%u: it has a wrong name", m->number);
        return -1;
    }
    if (e != MAY && (old || new) != (e == MUST)) {
        snprintf(why, 256, "disk d%u is %s", m->number, old || new ? "there, and should not be" : "lost");
        return -1;
    }
    if (!old && !new)
        return 0;
    struct vmfs_disk *d;
    int opened = vmfs_open(v, old ? m->name : m->name2, &d, NULL, &err);
    if (opened == -ENOKEY && m->removed.submit && m->removed.submit <= tick)
        return 0; /* its removal had begun: the keys go first */
    if (opened < 0) {
        snprintf(why, 256, "disk d%u: %.200s", m->number, err.text);
        return -1;
    }
    int r = verify_content(o, m, d, tick, why);
    if (r == 0)
        r = verify_snaps(o, m, d, tick, why);
    vmfs_close(d);
    return r;
}

/* Snapshots of one group: all of them or none, unless one was deleted since. */
static int verify_groups(struct orc *o, struct vmfs *v, uint64_t tick, char why[256])
{
    for (size_t i = 0; i < o->n_disks; i++)
        for (size_t k = 0; k < o->disk[i]->n_snaps; k++)
            for (size_t j = 0; j < i; j++)
                for (size_t q = 0; q < o->disk[j]->n_snaps; q++) {
                    const struct orc_disk *pair[2] = { o->disk[i], o->disk[j] };
                    const struct orc_snap *s[2] = { o->disk[i]->snap[k], o->disk[j]->snap[q] };
                    bool there[2] = { false, false }, sure = s[0]->group && s[0]->group == s[1]->group && s[0]->made.submit <= tick;
                    for (unsigned x = 0; x < 2 && sure; x++) {
                        struct vmfs_disk *d = NULL;
                        struct snap_info info;
                        sure = !(s[x]->deleted.submit && s[x]->deleted.submit <= tick) && !(pair[x]->removed.submit && pair[x]->removed.submit <= tick);
                        if (sure && (vmfs_open(v, pair[x]->name, &d, NULL, NULL) == 0 || vmfs_open(v, pair[x]->name2, &d, NULL, NULL) == 0))
                            there[x] = snap_find(d, s[x]->name, &info, NULL) == 0;
                        vmfs_close(d);
                    }
                    if (sure && there[0] != there[1]) {
                        snprintf(why, 256, "snapshot '%s' is on disk d%u only, its group has d%u, too", s[0]->name, pair[!there[0]]->number,
                                 pair[there[0]]->number);
                        return -1;
                    }
                }
    return 0;
}

int orc_verify(struct orc *o, struct vmfs *v, uint64_t tick, char why[256])
{
    int r = 0;
    for (size_t i = 0; r == 0 && i < o->n_disks; i++)
        r = verify_disk(o, v, o->disk[i], tick, why);
    return r == 0 ? verify_groups(o, v, tick, why) : r;
}
