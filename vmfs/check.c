/* Proving a volume, online.
 *
 * A checkpoint brings this host's state home; from before it until the end a ticket keeps every unit that is freed meanwhile
 * from being used again. So the home state copied behind the checkpoint can be walked while the volume goes on.
 *
 * Other living hosts change their objects under the eyes of the check. Then a look that finds something is repeated, and only
 * what two looks in a row found counts. */
#include "vmfs/check.h"
#include "common/seam.h"
#include "vmfs/rescue.h"

#define LINES_MAX 2000u /* more are counted, not told */
#define LOOKS_MAX 6u
#define LOOK_AGAIN_MS 300u
#define ROUNDS 5u /* of mending: one may uncover what another can mend */

static void __attribute__((format(printf, 2, 0))) line_add(struct chk *c, const char *fmt, va_list ap)
{
    char text[GR_ERR_TEXT];
    vsnprintf(text, sizeof text, fmt, ap);
    c->n_lines++;
    if (c->n_lines <= LINES_MAX && gr_buf_add(&c->lines, text, strlen(text) + 1) < 0)
        c->failed = -ENOMEM;
}

int chk_read(struct chk *c, uint64_t addr, uint32_t units, void *buf)
{
    c->rep.read += (uint64_t)units * VMFS_UNIT;
    return vdev_read(c->v, addr, units, buf);
}

void chk_error(struct chk *c, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    line_add(c, fmt, ap);
    va_end(ap);
    c->rep.errors++;
}

void chk_unread(struct chk *c, uint64_t addr, const char *fmt, ...)
{
    unsigned dev = vmfs_addr_dev(addr);
    bool missing = dev < c->v->sb.n_devices && vdev_no_data(c->v, dev);
    va_list ap;
    va_start(ap, fmt);
    line_add(c, fmt, ap);
    va_end(ap);
    c->rep.unreachable += missing;
    c->rep.errors += !missing;
}

void chk_error_once(struct chk *c, const char *fmt, ...)
{
    va_list ap;
    if (c->pass)
        return;
    va_start(ap, fmt);
    line_add(c, fmt, ap);
    va_end(ap);
    c->rep.errors++;
}

void chk_note(struct chk *c, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    line_add(c, fmt, ap);
    va_end(ap);
}

void chk_fix(struct chk *c, struct chk_fix f)
{
    if (!c->repair)
        return;
    if (c->n_fixes == c->cap_fixes) {
        size_t cap = c->cap_fixes ? c->cap_fixes * 2 : 64;
        struct chk_fix *a = gr_realloc(c->fixes, cap * sizeof *a);
        if (!a) {
            chk_nomem(c);
            return;
        }
        c->fixes = a;
        c->cap_fixes = cap;
    }
    c->fixes[c->n_fixes++] = f;
}

/* What grows with the volume, and is kept until the look ends. */
size_t chk_memory(const struct chk *c)
{
    size_t n = c->n_regions * sizeof *c->regions + c->cap_objs * sizeof *c->objs + c->cap_foreign * sizeof *c->foreign + c->cap_fixes * sizeof *c->fixes;
    n += c->cap_early * sizeof *c->early;
    for (uint32_t i = 0; c->regions && i < c->n_regions; i++) {
        const struct chk_region *r = &c->regions[i];
        n += (r->bits ? (r->units + 7) / 8 : 0) + (r->mark ? r->units * sizeof *r->mark : 0) + (r->wide ? r->units * sizeof *r->wide : 0) + r->n_shares * sizeof *r->shares;
        n += r->cap_owned * sizeof *r->owned + (r->used ? (r->units + 7) / 8 : 0) + r->n_found * sizeof *r->found;
    }
    for (size_t i = 0; i < c->n_objs; i++)
        n += c->objs[i].n_ents * sizeof *c->objs[i].ents + c->objs[i].n_snaps * sizeof *c->objs[i].snaps;
    return n;
}

int chk_nomem(struct chk *c)
{
    c->failed = -ENOMEM;
    return -ENOMEM;
}

static void chk_done(struct chk *c)
{
    for (uint32_t i = 0; c->regions && i < c->n_regions; i++) {
        free(c->regions[i].bits);
        free(c->regions[i].mark);
        free(c->regions[i].wide);
        free(c->regions[i].shares);
        free(c->regions[i].owned);
        free(c->regions[i].used);
        free(c->regions[i].found);
    }
    for (size_t i = 0; i < c->n_objs; i++) {
        free(c->objs[i].ents);
        free(c->objs[i].snaps);
    }
    free(c->regions);
    free(c->objs);
    free(c->foreign);
    free(c->damaged);
    free(c->early);
    free(c->fixes);
    gr_buf_done(&c->lines);
    memset(c, 0, sizeof *c);
}

static int look(struct chk *c)
{
    struct vmfs *v = c->v;
    struct vticket ticket;
    ticket_open(v, &ticket);
    int r = ckpt_run(v);
    if (r == 0) {
        gr_fmutex_lock(&v->ckpt_lock);
        r = chk_home(c);
        gr_fmutex_unlock(&v->ckpt_lock);
    }
    if (r == 0)
        r = chk_supers(c);
    if (r == 0)
        r = chk_shares(c);
    if (r == 0)
        r = chk_blobs(c);
    if (r == 0) {
        chk_links(c);
        chk_names(c);
        chk_lost(c);
        chk_foreign(c);
        for (size_t i = 0; i < c->n_objs; i++)
            if (!c->objs[i].bad)
                chk_keys(c, &c->objs[i]);
        while (chk_pass_begin(c)) {
            chk_trees(c);
            chk_pass_end(c);
        }
        chk_usage(c);
        r = v->fenced ? -GR_EFENCED : c->failed;
    }
    ticket_close(v, &ticket);
    space_reclaim(v);
    return r;
}

/* ---- what two looks found ---- */
static bool has_line(const struct gr_buf *lines, const char *text)
{
    for (size_t at = 0; at < lines->len; at += strlen((const char *)lines->data + at) + 1)
        if (strcmp((const char *)lines->data + at, text) == 0)
            return true;
    return false;
}

/* Keep in @c only what @before has, too. */
static void keep_common(struct chk *c, const struct gr_buf *before)
{
    struct gr_buf kept = { 0 };
    uint64_t n = 0;
    for (size_t at = 0; at < c->lines.len;) {
        const char *text = (const char *)c->lines.data + at;
        size_t len = strlen(text) + 1;
        if (has_line(before, text)) {
            n++;
            if (gr_buf_add(&kept, text, len) < 0)
                c->failed = -ENOMEM;
        }
        at += len;
    }
    gr_buf_done(&c->lines);
    c->lines = kept;
    c->rep.errors = GR_MIN(c->rep.errors, n);
    if (n == 0)
        c->rep.leaked_units = 0;
}

static int looks(struct vmfs *v, struct chk *c)
{
    struct gr_buf before = { 0 };
    int r = 0;
    for (unsigned i = 0; i < LOOKS_MAX; i++) {
        *c = (struct chk){ .v = v, .repair = c->repair, .rep.read = c->rep.read };
        r = look(c);
        if (r < 0 || !c->others || c->rep.errors == 0)
            break;
        if (i) {
            uint64_t all = c->rep.errors;
            keep_common(c, &before);
            if (c->rep.errors == all || c->rep.errors == 0)
                break; /* nothing moves any more; or nothing was there twice */
        }
        if (i + 1 == LOOKS_MAX)
            break;
        gr_buf_done(&before);
        bool repair = c->repair;
        uint64_t all_read = c->rep.read;
        before = c->lines;
        c->lines = (struct gr_buf){ 0 };
        chk_done(c);
        c->repair = repair;
        c->rep.read = all_read;
        gr_fiber_sleep_ms(LOOK_AGAIN_MS);
    }
    gr_buf_done(&before);
    return r;
}

static void lines_tell(struct chk *c, void (*line)(void *arg, const char *text), void *arg)
{
    for (size_t at = 0; line && at < c->lines.len; at += strlen((const char *)c->lines.data + at) + 1)
        line(arg, (const char *)c->lines.data + at);
    if (line && c->n_lines > LINES_MAX) {
        char more[80];
        snprintf(more, sizeof more, "%llu more lines are left out", (unsigned long long)(c->n_lines - LINES_MAX));
        line(arg, more);
    }
    c->lines.len = 0;
    c->n_lines = 0;
}

static int looked(struct vmfs *v, struct chk *c)
{
    gr_fmutex_lock(&v->settle_lock);
    int r = looks(v, c);
    gr_fmutex_unlock(&v->settle_lock);
    return r;
}

static int report(struct chk *c, struct vmfs_check_report *ret, struct gr_err *err)
{
    ret->objects = c->rep.objects;
    ret->nodes = c->rep.nodes;
    ret->pieces = c->rep.pieces;
    ret->shared_pieces = c->rep.shared_pieces;
    ret->regions = c->rep.regions;
    ret->errors = c->rep.errors;
    ret->leaked_units = c->rep.leaked_units;
    ret->repaired += c->repaired;
    ret->memory = GR_MAX(ret->memory, c->memory);
    ret->read += c->rep.read;
    ret->unreachable = c->rep.unreachable;
    if (ret->errors)
        return gr_fail(err, -GR_ECORRUPT, "datastore '%s': %llu rules are broken", c->v->sb.name, (unsigned long long)ret->errors);
    for (unsigned i = 0; i < c->v->sb.n_devices; i++)
        if (vdev_missing(c->v, i) || vdev_stale(c->v, i))
            return gr_fail(err, -GR_EPARTIAL, vdev_missing(c->v, i) ? "datastore '%s': what lies on its device %u was not looked at, for that is missing"
                                                                   : "datastore '%s': the free space of its device %u, which was lost, has to be counted anew: 'granary datastore check --repair'",
                           c->v->sb.name, i);
    return 0;
}

static int cannot(struct vmfs *v, struct chk *c, int r, struct gr_err *err)
{
    chk_done(c);
    return gr_fail(err, r, "datastore '%s' cannot be checked: %s", v->sb.name, v->fenced ? v->fence_reason : gr_code_text(r));
}

static int begin(struct vmfs *v, struct gr_err *err)
{
    if (v->role != VMFS_HOST)
        return gr_fail(err, -GR_EREADONLY, "this host joined datastore '%s' for reading only: only a host can check it", v->sb.name);
    if (v->rescue)
        return gr_fail(err, -GR_EREADONLY, "datastore '%s' is being rescued: 'granary datastore rescued %s' tells what of it is whole", v->sb.name, v->sb.name);
    return vmfs_recover(v, err);
}

int vmfs_check(struct vmfs *v, void (*line)(void *arg, const char *text), void *arg, struct vmfs_check_report *ret, struct gr_err *err)
{
    struct chk c = { .v = v };
    int r = begin(v, err);
    if (r < 0)
        return r;
    *ret = (struct vmfs_check_report){ 0 };
    if ((r = looked(v, &c)) < 0)
        return cannot(v, &c, r, err);
    lines_tell(&c, line, arg);
    r = report(&c, ret, err);
    chk_done(&c);
    return r;
}

/* Look, mend, look again: the last look is the proof. */
static int repair(struct vmfs *v, void (*line)(void *arg, const char *text), void *arg, struct vmfs_check_report *ret, struct gr_err *err)
{
    int r = begin(v, err);
    *ret = (struct vmfs_check_report){ 0 };
    v->sp.recounting = true; /* before the first look's checkpoint: what is freed behind it must not be forgotten */
    for (unsigned round = 0; r >= 0; round++) {
        struct chk c = { .v = v, .repair = true };
        if ((r = looked(v, &c)) < 0)
            return cannot(v, &c, r, err);
        if (c.others || v->sp.evac)
            r = gr_fail(err, -GR_ELOCKED, "datastore '%s' is repaired by a host that is alone, and while no device leaves: %s", v->sb.name,
                        c.others ? "have the other hosts leave it, or stop them, first" : "let that end first");
        lines_tell(&c, line, arg);
        int64_t mended = r == 0 && round < ROUNDS ? chk_mend(&c, err) : 0;
        if (r == 0 && mended == 0 && (mended = recount_install(&c, err)) > 0)
            v->sp.recounting = false;
        lines_tell(&c, line, arg);
        ret->mended += mended > 0 ? (uint64_t)mended : 0;
        r = mended < 0 ? (int)mended : r < 0 ? r : report(&c, ret, mended ? NULL : err);
        chk_done(&c);
        if (mended <= 0)
            return r;
        r = 0;
    }
    return r;
}

int vmfs_repair(struct vmfs *v, void (*line)(void *arg, const char *text), void *arg, struct vmfs_check_report *ret, struct gr_err *err)
{
    v->sp.stay++;
    int r = repair(v, line, arg, ret, err);
    v->sp.stay--;
    v->sp.recounting = false;
    return r;
}
