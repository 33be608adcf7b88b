/* Disks whose last changes are lost, on a volume that is being rescued (rescue.c).
 *
 * What a disk gives up, because it is overwritten elsewhere or unmapped, is used again as soon as the journal says so, by whatever disk. So when the
 * journal of a disk's host is lost, or a record of it cannot be followed, its map as of the last checkpoint may name what is another disk's by now.
 * Nobody is shown that unasked: its live head is not read until somebody says so (vmfs_accept_loss).
 *
 * Not in doubt are
 * - snapshots that were home: nothing of theirs is given up before it is home that they are being deleted, and a checkpoint begins when no write is
 *   under way that belongs to a snapshot, too. One made since, of an object of which records were left out, may miss such a write, and is in doubt;
 * - clones that nobody wrote to, for what they show is a snapshot's;
 * - regular files: what they give up stays until the next checkpoint is home (record.c);
 * - all of a volume with data CRCs, where what is another's differs. */
#include "common/seam.h"
#include "vmfs/behind.h"
#include "vmfs/rescue.h"

struct departed {
    unsigned slot;
    uint64_t generation;
    char host[64];
};
struct skipped {
    uint64_t id;
    uint64_t exact_snaps; /* snapshots below this number were home */
};
struct held { /* an object that a departed host had, before it was locked here */
    uint64_t id;
    size_t host;
};
struct vbehind {
    struct departed *departed; /* whose journals are lost */
    struct skipped *skipped;
    struct held *held;
    uint64_t *accepted;
    size_t n_departed, n_skipped, n_held, n_accepted;
};

/* Room for one more behind the @n of *@list. */
static int room_for(void *list, size_t n, size_t size)
{
    void **a = list, *more = gr_realloc(*a, (n + 1) * size);
    if (!more)
        return -ENOMEM;
    *a = more;
    return 0;
}

struct vbehind *vbehind_new(const uint64_t *accepted, size_t n)
{
    struct vbehind *b = gr_zalloc(sizeof *b);
    if (b && n && !(b->accepted = gr_alloc(n * sizeof *accepted))) {
        free(b);
        return NULL;
    }
    if (b && n)
        memcpy(b->accepted, accepted, n * sizeof *accepted);
    if (b)
        b->n_accepted = n;
    return b;
}

void vbehind_free(struct vbehind *b)
{
    if (!b)
        return;
    free(b->departed);
    free(b->skipped);
    free(b->held);
    free(b->accepted);
    free(b);
}

/* ---- whose journals are lost ---- */
int vbehind_host_gone(struct vbehind *b, unsigned slot, uint64_t generation, const char *host)
{
    if (room_for(&b->departed, b->n_departed, sizeof *b->departed) < 0)
        return -ENOMEM;
    struct departed *d = &b->departed[b->n_departed++];
    *d = (struct departed){ .slot = slot, .generation = generation };
    snprintf(d->host, sizeof d->host, "%s", host);
    return 0;
}

size_t vbehind_hosts(const struct vbehind *b) { return b ? b->n_departed : 0; }
size_t vbehind_skips(const struct vbehind *b) { return b ? b->n_skipped : 0; }
const char *vbehind_host(const struct vbehind *b, size_t i) { return b->departed[i].host; }

static size_t host_of_lock(const struct vbehind *b, const struct vlock *l)
{
    size_t i = 0;
    while (i < b->n_departed && (l->holder != b->departed[i].slot + 1 || l->generation != b->departed[i].generation))
        i++;
    return i;
}

const char *vbehind_of_lock(const struct vmfs *v, const struct vlock *l)
{
    const struct vbehind *b = vrescue_behind(v);
    size_t i = b ? host_of_lock(b, l) : 0;
    return b && i < b->n_departed ? b->departed[i].host : NULL;
}

static const struct held *held_find(const struct vbehind *b, uint64_t id)
{
    for (size_t i = 0; i < b->n_held; i++)
        if (b->held[i].id == id)
            return &b->held[i];
    return NULL;
}

const char *vbehind_host_of(const struct vmfs *v, uint64_t id)
{
    const struct vbehind *b = vrescue_behind(v);
    const struct held *h = b ? held_find(b, id) : NULL;
    return h ? b->departed[h->host].host : NULL;
}

int vbehind_seen(struct vobj *o, const struct vlock *was)
{
    struct vbehind *b = vrescue_behind(o->v);
    if (!b)
        return 0;
    size_t host = host_of_lock(b, was);
    if (host < b->n_departed && !held_find(b, o->id)) {
        if (room_for(&b->held, b->n_held, sizeof *b->held) < 0)
            return -ENOMEM;
        b->held[b->n_held++] = (struct held){ o->id, host };
    }
    o->behind = vbehind_doubtful(o, vbehind_host_of(o->v, o->id));
    return 0;
}

/* ---- records that cannot be applied ---- */
static const struct skipped *skipped_find(const struct vmfs *v, uint64_t id)
{
    const struct vbehind *b = vrescue_behind(v);
    for (size_t i = 0; b && i < b->n_skipped; i++)
        if (b->skipped[i].id == id)
            return &b->skipped[i];
    return NULL;
}

bool vrescue_skipped(const struct vmfs *v, uint64_t id) { return skipped_find(v, id); }

int vrescue_skip(struct vmfs *v, uint64_t id, int r)
{
    struct vbehind *b = vrescue_behind(v);
    struct vobj *home = NULL;
    if (!b || r != -EIO)
        return r;
    if (vrescue_skipped(v, id))
        return 0;
    if (room_for(&b->skipped, b->n_skipped, sizeof *b->skipped) < 0)
        return -ENOMEM;
    bool read = vobj_peek(v, id, &home, NULL) == 0; /* what is home does not change before all records were looked at */
    b->skipped[b->n_skipped++] = (struct skipped){ id, read ? home->next_snap : 0 };
    if (read)
        vobj_free(home);
    return 0;
}

/* ---- what is shown ---- */
bool vbehind_accepted(const struct vmfs *v, uint64_t id)
{
    const struct vbehind *b = vrescue_behind(v);
    for (size_t i = 0; b && i < b->n_accepted; i++)
        if (b->accepted[i] == id)
            return true;
    return false;
}

static bool tells(const struct vobj *o) /* what is another's cannot be taken for its own */
{
    return o->ino.type != VMFS_DISK || vcrc_kept(o->v) || vbehind_accepted(o->v, o->id);
}

bool vbehind_doubtful(const struct vobj *o, const char *host)
{
    return (host || vrescue_skipped(o->v, o->id)) && !tells(o);
}

bool vbehind_snap_doubtful(const struct vobj *o, uint64_t snap)
{
    const struct skipped *k = skipped_find(o->v, o->id);
    return k && snap >= k->exact_snaps && !tells(o);
}

static int refuse(const struct vobj *o, const char *name, const char *snap, struct gr_err *err)
{
    const char *host = vbehind_host_of(o->v, o->id);
    char why[128];
    if (host)
        snprintf(why, sizeof why, "the journal of host '%s', which had it, is lost", host);
    return gr_fail(err, -GR_EBEHIND, "'%s%s%s' is not shown: %s, so it may have another disk's bytes; snapshots that 'datastore rescued' calls whole are exact, and 'granary datastore "
                   "accept-loss %s' shows it as it is", name, *snap ? "@" : "", snap, host ? why : "its last changes could not be followed", name);
}

int vbehind_snap_refuse(const struct vobj *o, const struct vsnap *s, const char *name, struct gr_err *err)
{
    return vbehind_snap_doubtful(o, s->id) ? refuse(o, name, s->name, err) : 0;
}

int vmfs_shown(const struct vmfs_disk *d, struct gr_err *err)
{
    return d->o && d->o->behind ? refuse(d->o, d->bdev.name, "", err) : 0;
}

int vbehind_accept(struct vobj *o, struct gr_err *err)
{
    struct vbehind *b = vrescue_behind(o->v);
    if (room_for(&b->accepted, b->n_accepted, sizeof *b->accepted) < 0)
        return gr_fail(err, -ENOMEM, "out of memory");
    b->accepted[b->n_accepted++] = o->id;
    o->behind = false;
    return 0;
}
