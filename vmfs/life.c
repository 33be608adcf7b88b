/* Is the process that answers for a slot there, and what keeps it out when it is not?
 *
 * Files and block devices: a life lock (byte lock of device 0, key = slot) is held by the process itself; getting another's proves
 * that its process and its in-flight I/O are gone. A stopped process still holds it, and nobody takes over from it.
 *
 * Logical units: every process registers a key of its own with the fence of each device before it reads the first block, and the slot
 * names that key. Who suspects a slot writes into its alarm; who answers for it looks once in a while and writes it as answered. Silence
 * for long enough, counted in looks of ours that the device did answer, so that a storage that stands still for everybody ejects
 * nobody, and the key is ejected from every device. From then on nothing of that process reaches the volume, whatever it believes and
 * however long it slept. No clock decides anything but when to ask.
 *
 * Logical units that fence nobody: the same questions, but no answer to them ends a host: alone.c. */
#include "common/seam.h"
#include "vmfs/loss.h"

struct timing {
    unsigned look_ms;    /* between two looks at our own alarm */
    unsigned ask_ms;     /* between two looks at another's, having asked */
    unsigned patience_ms;
    unsigned lost_ms;    /* so long a device may be silent: an array that changes controllers is, and a loss has to be counted anew; guests give up after 30 s, too */
};
static const struct timing timings[] = { [VMFS_TIMING_DEFAULT] = { 1000, 250, 5000, 30000 }, [VMFS_TIMING_FAST] = { 250, 50, 1500, 10000 } };
#define SEEN_NS 1000000000ull /* so long an answer is good for whoever asks next */

static const struct timing *timing_of(const struct vmfs *v)
{
    return &timings[v->sb.timing];
}

/* ---- the alarm ---- */
static uint64_t alarm_addr(const struct vmfs *v, unsigned slot)
{
    return vhome_addr(&v->sb.slots, slot, 2, 0);
}

struct alarm {
    uint64_t asked, answered, generation;
    uint8_t *raw; /* as read */
};
static int alarm_read(struct vmfs *v, unsigned slot, struct alarm *ret)
{
    const struct vmfs_alarm_disk *d = (const struct vmfs_alarm_disk *)ret->raw;
    int r = vdev_read(v, alarm_addr(v, slot), 1, ret->raw);
    ret->asked = ret->answered = ret->generation = 0;
    if (r < 0 || vhdr_check(v->sb.uuid, ret->raw, VMFS_T_ALARM, 1, alarm_addr(v, slot), NULL) < 0)
        return r;
    ret->asked = gr_le64_get(d->asked);
    ret->answered = gr_le64_get(d->answered);
    ret->generation = gr_le64_get(d->hdr.generation);
    return 0;
}

/* -GR_EMISCOMPARE: somebody wrote it meanwhile. */
static int alarm_write(struct vmfs *v, unsigned slot, struct alarm *a, uint64_t asked, uint64_t answered)
{
    uint64_t at = alarm_addr(v, slot);
    struct vmfs_alarm_disk *d = vunits_alloc(1);
    if (!d)
        return -ENOMEM;
    d->asked = gr_le64_of(asked);
    d->answered = gr_le64_of(answered);
    vhdr_seal(v, d, VMFS_T_ALARM, 1, at, a->generation + 1, v->joined ? v->slot : slot);
    int r = vdev_swap(v, at, a->raw, d);
    free(d);
    return r;
}

static void answer(struct vmfs *v, unsigned slot)
{
    struct alarm a = { .raw = vunits_alloc(1) };
    if (a.raw && alarm_read(v, slot, &a) == 0 && a.asked != a.answered)
        alarm_write(v, slot, &a, a.asked, a.asked); /* a miscompare: another asked meanwhile, and looks for an answer to the same number */
    free(a.raw);
}

/* ---- answering for slots ---- */
static bool answers_for(const struct vlife *l, unsigned slot)
{
    for (unsigned i = 0; i < l->n_charge; i++)
        if (l->charge[i] == slot)
            return true;
    return false;
}

int vlife_answer_for(struct vmfs *v, unsigned slot)
{
    struct vlife *l = &v->life;
    if (!(l->fences || l->alone) || answers_for(l, slot))
        return 0;
    unsigned *c = gr_realloc(l->charge, (l->n_charge + 1) * sizeof *c);
    if (!c)
        return -ENOMEM;
    l->charge = c;
    c[l->n_charge++] = slot;
    return 0;
}

void vlife_answer_no_more(struct vmfs *v, unsigned slot)
{
    struct vlife *l = &v->life;
    for (unsigned i = 0; i < l->n_charge; i++)
        if (l->charge[i] == slot) {
            l->charge[i] = l->charge[--l->n_charge];
            return;
        }
}

static void watch(void *arg)
{
    struct vmfs *v = arg;
    struct vlife *l = &v->life;
    while (!l->stop && !v->fenced) {
        if (l->alone && valone_lost(v))
            vmfs_fence(v, "an administrator has declared it gone, and another host has taken its place");
        for (unsigned i = 0; i < l->n_charge && !v->fenced; i++)
            answer(v, l->charge[i]);
        if (!l->stop && !v->fenced)
            vloss_watch(v, timing_of(v)->look_ms, timing_of(v)->lost_ms);
        if (!l->stop)
            gr_fqueue_wait_ms(&l->wake, timing_of(v)->look_ms);
    }
    l->watching = false;
    gr_fqueue_wake_all(&l->ended);
}

/* ---- entering and leaving ---- */
static void device_event(void *arg, enum gr_event ev)
{
    struct vmfs *v = arg;
    if (ev != GR_EVENT_FENCED || v->fenced)
        return;
    v->life.ejected = true;
    vmfs_fence(v, "another host has taken its place, for it did not answer in time");
    if (v->joined && v->opts.ejected)
        v->opts.ejected(v->opts.warn_arg);
}

static int enter(struct vmfs *v, struct gr_bdev *d, struct gr_err *err)
{
    struct vlife *l = &v->life;
    int r = d->fence->enter(d, l->key, err);
    if (r < 0)
        return r;
    l->entered[l->n_entered] = d;
    l->listener[l->n_entered] = (struct gr_listener){ .fn = device_event, .arg = v };
    gr_bdev_listen(d, &l->listener[l->n_entered++]);
    return 0;
}

static void leave_one(struct vlife *l, unsigned i, bool orderly)
{
    struct gr_bdev *d = l->entered[i];
    gr_bdev_unlisten(d, &l->listener[i]);
    if (orderly)
        d->fence->leave(d, NULL);
}

int vlife_enter_device(struct vmfs *v, struct gr_bdev *bdev, struct gr_err *err)
{
    if (!bdev->fence != !(v->life.fences || v->life.alone))
        return gr_fail(err, -EINVAL, "'%s' and the other devices do not go together: some are shared logical units, some are not", bdev->name);
    return v->life.fences ? enter(v, bdev, err) : 0;
}

void vlife_leave_device(struct vmfs *v, struct gr_bdev *bdev)
{
    struct vlife *l = &v->life;
    unsigned i = 0;
    while (i < l->n_entered && l->entered[i] != bdev)
        i++;
    if (i == l->n_entered)
        return;
    leave_one(l, i, true);
    if (i == --l->n_entered)
        return;
    struct gr_bdev *last = l->entered[l->n_entered]; /* takes its place */
    gr_bdev_unlisten(last, &l->listener[l->n_entered]);
    l->entered[i] = last;
    gr_bdev_listen(last, &l->listener[i]);
}

int vlife_enter(struct vmfs *v, struct gr_err *err)
{
    const struct gr_world *w = gr_loop_world(v->loop);
    struct vlife *l = &v->life;
    unsigned fences = 0;
    int r = 0;
    while (l->key == 0)
        w->random(w->arg, &l->key, sizeof l->key);
    for (unsigned i = 0; i < v->n_dev; i++)
        fences += v->dev[i].bdev->fence != NULL;
    if (fences == 0 && !l->alone)
        return 0;
    if (fences < v->n_dev)
        return gr_fail(err, -EINVAL, "'%s' and the other devices do not go together: some are shared logical units, some are not", v->dev[0].bdev->name);
    if (l->alone)
        return 0;
    for (unsigned i = 0; r == 0 && i < v->n_dev; i++)
        r = enter(v, v->dev[i].bdev, err);
    l->fences = r == 0;
    return r;
}

int vlife_watch(struct vmfs *v, struct gr_err *err)
{
    struct vlife *l = &v->life;
    if (!(l->fences || l->alone) || l->watching)
        return 0;
    if (v->sb.slots.stride < VMFS_SLOT_UNITS)
        return gr_fail(err, -GR_EVERSION, "datastore '%s' was made before slots had alarms: it can lie on files and block devices only", v->sb.name);
    l->watching = true;
    int r = gr_fiber_start(v->loop, watch, v);
    l->watching = r == 0;
    return r < 0 ? gr_fail(err, r, "out of memory") : 0;
}

void vlife_stop(struct vmfs *v, bool orderly)
{
    struct vlife *l = &v->life;
    l->stop = true;
    gr_fqueue_wake_all(&l->wake);
    while (l->watching)
        gr_fqueue_wait(&l->ended);
    for (unsigned i = 0; i < l->n_entered; i++)
        leave_one(l, i, orderly);
    l->n_entered = 0;
    l->fences = l->alone = false;
    free(l->charge);
    free(l->seen);
    l->charge = NULL;
    l->seen = NULL;
    l->n_charge = 0;
}

/* ---- life locks ---- */
int vlife_claim(struct vmfs *v, unsigned slot)
{
    struct gr_bdev *d = v->dev[0].bdev;
    if (v->life.fences || v->life.alone)
        return 0; /* the compare-and-write of the slot decides */
    return d->ops->trylock ? d->ops->trylock(d, slot) : -EOPNOTSUPP;
}

void vlife_unclaim(struct vmfs *v, unsigned slot)
{
    struct gr_bdev *d = v->dev[0].bdev;
    if (!v->life.fences && !v->life.alone && d->ops->unlock)
        d->ops->unlock(d, slot);
}

/* ---- asking ---- */
static struct vseen *seen_of(struct vmfs *v, unsigned slot)
{
    struct vlife *l = &v->life;
    if (!l->seen)
        l->seen = gr_zalloc(v->sb.slots.entries * sizeof *l->seen);
    return l->seen ? &l->seen[slot] : NULL;
}

static bool same_process(const struct vslot *a, const struct vslot *b)
{
    return a->state == b->state && a->generation == b->generation && a->nonce == b->nonce;
}

/* Write a number into the alarm unless one is there that nobody answered. */
static int raise_alarm(struct vmfs *v, unsigned slot, struct alarm *a, uint64_t *ret_asked)
{
    const struct gr_world *w = gr_loop_world(v->loop);
    int r = -GR_EMISCOMPARE;
    for (int tries = 0; r == -GR_EMISCOMPARE && tries < 10; tries++) {
        r = alarm_read(v, slot, a);
        if (r < 0)
            return r;
        *ret_asked = a->asked;
        if (a->asked != a->answered)
            return 0;
        w->random(w->arg, ret_asked, sizeof *ret_asked);
        r = alarm_write(v, slot, a, *ret_asked, a->answered);
    }
    return r == -GR_EMISCOMPARE ? 0 : r; /* others keep asking and being answered */
}

/* 1: somebody answered, or the slot has passed on; 0: silence, which @count (may be NULL) tells while it lasts. */
static int ask(struct vmfs *v, unsigned slot, const struct vslot *s, unsigned patience_ms, unsigned *count, struct gr_err *err)
{
    const struct timing *t = timing_of(v);
    struct alarm a = { .raw = vunits_alloc(1) };
    uint64_t asked = 0;
    int r = a.raw ? raise_alarm(v, slot, &a, &asked) : -ENOMEM;
    for (unsigned silent_ms = 0; r == 0 && silent_ms < patience_ms; silent_ms += t->ask_ms) {
        struct vslot now;
        if (count)
            *count = silent_ms;
        gr_fiber_sleep_ms(t->ask_ms);
        r = v->leaving ? -ECANCELED : alarm_read(v, slot, &a);
        if (r == 0)
            r = vslot_read(v, slot, &now, err);
        if (r == 0 && (a.asked != asked || a.answered == asked || !same_process(&now, s)))
            r = 1;
    }
    free(a.raw);
    return r < 0 ? gr_fail(err, r, "slot %u of host '%s' cannot be asked whether it lives: %s", slot, s->host_name, gr_code_text(r)) : r;
}

/* Has its process shown up within the last second, or does it now? */
static int lives(struct vmfs *v, unsigned slot, const struct vslot *s, unsigned patience_ms, unsigned *count, struct gr_err *err)
{
    struct vseen *seen = seen_of(v, slot);
    if (!seen)
        return gr_fail(err, -ENOMEM, "out of memory");
    if (seen->at_ns && seen->nonce == s->nonce && gr_loop_now_ns(v->loop) - seen->at_ns < SEEN_NS)
        return 1;
    int r = ask(v, slot, s, patience_ms, count, err);
    if (r == 1) {
        seen->nonce = s->nonce;
        seen->at_ns = gr_loop_now_ns(v->loop);
    }
    return r;
}

void vlife_doubt(struct vmfs *v)
{
    for (unsigned i = 0; v->life.seen && i < v->sb.slots.entries; i++)
        v->life.seen[i].at_ns = 0;
}

unsigned vlife_look_ms(const struct vmfs *v)
{
    return timing_of(v)->look_ms;
}

bool vlife_shows(struct vmfs *v, unsigned slot, const struct vslot *s)
{
    if (v->life.fences || v->life.alone)
        return lives(v, slot, s, 2 * timing_of(v)->look_ms, NULL, NULL) != 0;
    int r = vlife_claim(v, slot);
    if (r == 0)
        vlife_unclaim(v, slot);
    return r < 0;
}

static bool same_home(const struct vmfs *v, const struct vslot *s)
{
    static const uint8_t none[32];
    if (memcmp(s->link_key, none, sizeof none) != 0)
        return memcmp(s->link_key, v->link_key, sizeof s->link_key) == 0;
    return s->address[0] && strcmp(s->address, v->address) == 0;
}

bool vlife_own(const struct vmfs *v, const struct vslot *s)
{
    return v->role == VMFS_HOST && (s->state == VMFS_SLOT_HOST || s->state == VMFS_SLOT_REPLAYING) && memcmp(s->host_uuid, v->opts.host_uuid, 16) == 0 &&
           strcmp(s->host_name, v->host_name) == 0 && same_home(v, s);
}

/* Its earlier start of this very home (the home's lock says that it is gone): nobody to ask. Who recovers it may be anybody. */
bool vlife_earlier_self(const struct vmfs *v, const struct vslot *s)
{
    return s->state == VMFS_SLOT_HOST && vlife_own(v, s);
}

/* 0: it is gone, or silent for so long that it is ejected, if we can; 1: it lives, or nobody can tell. */
static int is_gone(struct vmfs *v, unsigned slot, const struct vslot *s, struct vseen *seen, struct gr_err *err)
{
    bool self = vlife_earlier_self(v, s);
    if (v->life.alone && !self && !valone_declared_gone(v, s))
        return 1;
    if (self && v->life.fences)
        return 0;
    return lives(v, slot, s, timing_of(v)->patience_ms, &seen->silent_ms, err);
}

int vlife_end(struct vmfs *v, unsigned slot, const struct vslot *s, struct gr_err *err)
{
    struct vseen *seen = seen_of(v, slot);
    if (!seen)
        return gr_fail(err, -ENOMEM, "out of memory");
    if (!v->life.fences && !v->life.alone) {
        if (vlife_claim(v, slot) < 0)
            return -EBUSY;
        seen->ending = true;
        seen->asked_ns = 0;
        seen->ejected_ns = gr_loop_now_ns(v->loop);
        return 0;
    }
    while (seen->ending && !v->leaving && !v->fenced) /* another fiber is at it */
        gr_fqueue_wait(&v->life.ended);
    if (v->leaving || v->fenced)
        return -EBUSY;
    seen->ending = true;
    seen->asked_ns = gr_loop_now_ns(v->loop);
    seen->ejected_ns = 0;
    seen->silent_ms = 0;
    int r = is_gone(v, slot, s, seen, err);
    for (unsigned i = 0; r == 0 && v->life.fences && i < v->n_dev; i++) {
        struct gr_bdev *d = v->dev[i].bdev ? gr_bdev_get(v->dev[i].bdev) : NULL;
        if (!d)
            continue;
        r = d->fence->eject(d, s->nonce, err);
        gr_bdev_put(d);
    }
    r = r == 1 ? -EBUSY : r;
    seen->ejected_ns = gr_loop_now_ns(v->loop);
    if (r < 0)
        vlife_end_done(v, slot);
    return r;
}

void vlife_end_done(struct vmfs *v, unsigned slot)
{
    struct vlife *l = &v->life;
    vlife_unclaim(v, slot);
    if (l->seen)
        l->seen[slot].ending = false;
    gr_fqueue_wake_all(&l->ended);
}

bool vmfs_ending(const struct vmfs *v, unsigned slot, struct vmfs_ending *ret)
{
    const struct vseen *seen = v->life.seen && slot < v->sb.slots.entries ? &v->life.seen[slot] : NULL;
    uint64_t now = gr_loop_now_ns(v->loop);
    if (!seen || !seen->ending)
        return false;
    *ret = (struct vmfs_ending){ .asked = seen->asked_ns != 0, .ejected = seen->ejected_ns != 0, .silent_ms = seen->silent_ms, .patience_ms = timing_of(v)->patience_ms };
    ret->asked_ms = ret->asked ? (now - seen->asked_ns) / 1000000 : 0;
    ret->ejected_ms = ret->ejected ? (now - seen->ejected_ns) / 1000000 : 0;
    return true;
}
