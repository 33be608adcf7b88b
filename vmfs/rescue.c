/* A volume that has lost device 0 or 1 for good (or another, and what would be needed to go on without it) is opened to read what is left.
 *
 * Nothing is written to any device: each has memory in front of it (gr_bdev_over_open), in which the ordinary code does what it always does when a
 * host joins: slots are locked, journals replayed, their state brought home. All of that ends with the process. Memory alone stands for a lost
 * device that held tables. A block of its tables is made of the other copy, when it is first asked for; everything else there cannot be read.
 *
 * So when device 0 is lost its tables come from copies B, and all journals are there, as they are when it is device 1. Only a datastore that was made
 * before journals were mirrored loses them with device 1: who had joined
 * counts as having left at its last checkpoint, and what it had has the content of that time, but for what it overwrote in place since, and for
 * units it had given up since: those were used again as soon as the journal said so, by whatever disk (behind.c).
 *
 * An object whose map cannot be read has its records left out. What is whole is looked for in the maps, not guessed. */
#include "vmfs/rescue.h"
#include "common/seam.h"
#include "vmfs/loss.h"

struct ghost { /* a lost device, for which memory stands */
    struct vmfs *v;
    unsigned dev;
};
struct vrescue {
    struct gr_bdev *given[VMFS_DEVICES_MAX], *over[VMFS_DEVICES_MAX]; /* in the order in which they were given; then ghosts */
    int number[VMFS_DEVICES_MAX];
    unsigned n_given, n;
    bool entered[VMFS_DEVICES_MAX]; /* registered with its fence */
    uint32_t lost;                  /* a bit for each device */
    struct ghost ghost[VMFS_DEVICES_MAX];
    struct vbehind *behind;
};

struct vbehind *vrescue_behind(const struct vmfs *v)
{
    return v->rescue ? v->rescue->behind : NULL;
}

bool vrescue_lost(const struct vmfs *v, unsigned dev)
{
    return v->rescue && v->rescue->lost >> dev & 1;
}

int vrescue_device(const struct vmfs *v, const struct gr_bdev *bdev)
{
    for (unsigned i = 0; i < v->rescue->n_given; i++)
        if (v->rescue->given[i] == bdev)
            return v->rescue->number[i];
    return -ENOENT;
}

int vrescue_refuse(const struct vmfs *v, struct gr_err *err)
{
    if (!v->rescue)
        return 0;
    return gr_fail(err, -GR_EREADONLY, "datastore '%s' is being rescued: it can only be read; copy what is whole to another one", v->sb.name);
}

/* ---- blocks of lost tables ---- */
static bool all_zero(const uint8_t *b)
{
    for (size_t i = 0; i < VMFS_UNIT; i++)
        if (b[i])
            return false;
    return true;
}

/* Where the other copy of the table block at @addr lies; 0: it is no table's. */
uint64_t vrescue_other_copy(const struct vmfs *v, uint64_t addr)
{
    const struct vtable *t[] = { &v->sb.slots, &v->sb.regions, &v->sb.inodes };
    for (unsigned i = 0; i < 3; i++) {
        uint64_t units = (uint64_t)t[i]->entries * t[i]->stride;
        if (addr >= t[i]->addr_a && addr - t[i]->addr_a < units)
            return t[i]->addr_b + (addr - t[i]->addr_a);
        if (addr >= t[i]->addr_b && addr - t[i]->addr_b < units)
            return t[i]->addr_a + (addr - t[i]->addr_b);
    }
    return 0;
}

static int ghost_read(void *arg, uint64_t off, void *page)
{
    const struct ghost *g = arg;
    struct vmfs *v = g->v;
    uint64_t addr = vmfs_addr(g->dev, off / VMFS_UNIT), other = vrescue_other_copy(v, addr);
    if (!other || vmfs_addr_dev(other) == g->dev)
        return -EIO;
    int r = vdev_read(v, other, 1, page);
    if (r < 0 || all_zero(page))
        return r;
    const struct vmfs_hdr_disk *h = page;
    if (vhdr_check(v->sb.uuid, page, gr_le16_get(h->type), 1, other, NULL) < 0)
        return -EIO; /* the other copy is damaged */
    vhdr_move(page, 1, addr);
    return 0;
}

/* ---- opening ---- */
static int fences_enter(struct vmfs *v, struct vrescue *k, struct gr_err *err)
{
    const struct gr_world *w = gr_loop_world(v->loop);
    uint64_t key = 0;
    int r = 0;
    while (!key)
        w->random(w->arg, &key, sizeof key);
    for (unsigned i = 0; r == 0 && i < v->n_dev; i++) { /* who is not registered does not even read */
        struct gr_bdev *d = v->dev[i].bdev;
        if (!d->fence)
            continue;
        r = d->fence->enter(d, key, err);
        k->entered[i] = r == 0;
    }
    return r;
}

/* The superblocks: device 0's counts, without it the newest does. *ret_first: whose it is. */
int vrescue_supers(struct vmfs *v, struct vsuper *s, unsigned *ret_first, struct gr_err *err)
{
    unsigned first = v->n_dev;
    for (unsigned i = 0; i < v->n_dev; i++) {
        int r = vsuper_read(v, i, &s[i], err);
        if (r < 0)
            return r;
        if (first < v->n_dev && memcmp(s[i].uuid, s[first].uuid, 16) != 0)
            return gr_fail(err, -EINVAL, "'%s' belongs to datastore '%s', not to '%s'", v->dev[i].bdev->name, s[i].name, s[first].name);
        if (first == v->n_dev || s[i].generation > s[first].generation)
            first = i;
    }
    for (unsigned i = 0; i < v->n_dev; i++) {
        if (vsuper_replaced(&s[i], s, v->n_dev))
            return gr_fail(err, -EINVAL, "another device has taken the place of '%s' in datastore '%s': leave it out", v->dev[i].bdev->name, s[first].name);
        if (s[i].this_device == 0)
            first = i;
    }
    *ret_first = first;
    return 0;
}

/* Which are missing, and is enough left? */
int vrescue_missing(const struct vmfs *v, const struct vsuper *s, int *number, uint32_t *ret_lost, struct gr_err *err)
{
    uint32_t here = 0, lost = 0;
    for (unsigned i = 0; i < v->n_dev; i++) {
        unsigned n = s[i].this_device;
        if (n >= v->sb.n_devices || memcmp(s[i].dev[n].uuid, v->sb.dev[n].uuid, 16) != 0 || v->sb.dev[n].state == VMFS_DEVICE_GONE)
            return gr_fail(err, -EINVAL, "'%s' is no device of datastore '%s' any more: leave it out", v->dev[i].bdev->name, v->sb.name);
        if (here >> n & 1)
            return gr_fail(err, -EINVAL, "'%s' is device %u of datastore '%s', which was given already", v->dev[i].bdev->name, n, v->sb.name);
        here |= (uint32_t)1 << n;
        number[i] = (int)n;
    }
    for (unsigned i = 0; i < v->sb.n_devices; i++)
        if (v->sb.dev[i].state != VMFS_DEVICE_GONE && !(here >> i & 1))
            lost |= (uint32_t)1 << i;
    if (!lost)
        return gr_fail(err, -EINVAL, "datastore '%s': none of its devices is missing, so there is nothing to be rescued: join it without --rescue", v->sb.name);
    const struct vtable *t[] = { &v->sb.slots, &v->sb.regions, &v->sb.inodes };
    for (unsigned i = 0; i < 3; i++) {
        unsigned a = vmfs_addr_dev(t[i]->addr_a), b = vmfs_addr_dev(t[i]->addr_b);
        if ((lost >> a & 1) && (lost >> b & 1))
            return gr_fail(err, -ENODEV, "datastore '%s': %s missing, so there is no copy of its tables left, and nothing can be rescued", v->sb.name,
                           a == b ? "its device 0 is the only one that has tables, and it is" : "its devices 0 and 1 both are");
    }
    *ret_lost = lost;
    return 0;
}

/* Memory in front of (or, @below NULL, in place of) device @dev. */
static int over_open(struct vmfs *v, struct vrescue *k, struct gr_bdev *below, unsigned dev, struct vdev *ret, struct gr_err *err)
{
    char name[64];
    struct ghost *g = &k->ghost[dev];
    snprintf(name, sizeof name, "what is left of device %u", dev);
    *g = (struct ghost){ v, dev };
    struct gr_over_opts o = { .below = below, .name = name, .size = v->sb.dev[dev].units * VMFS_UNIT, .miss = ghost_read, .arg = g };
    int r = gr_bdev_over_open(v->loop, &o, &k->over[k->n]);
    if (r == 0) {
        ret->bdev = k->over[k->n++];
        r = gr_chan_open(ret->bdev, v->loop, &ret->ch);
    }
    return r < 0 ? gr_fail(err, r, "'%s' cannot be used: %s", below ? below->name : name, gr_code_text(r)) : 0;
}

static int super_put(struct vmfs *v, struct vdev *d, unsigned dev)
{
    static const uint64_t at[] = { VMFS_SUPER_A, VMFS_SUPER_B };
    struct vsuper copy = v->sb;
    uint8_t *b = vunits_alloc(1);
    int r = b ? 0 : -ENOMEM;
    copy.this_device = dev;
    for (unsigned i = 0; r == 0 && i < 2; i++) {
        vsuper_encode(&copy, vmfs_addr(dev, at[i]), b);
        r = gr_pwrite(d->ch, b, VMFS_UNIT, at[i] * VMFS_UNIT, 0);
    }
    free(b);
    return r;
}

int vrescue_too_short(const struct vmfs *v, const struct gr_bdev *bdev, unsigned dev, struct gr_err *err)
{
    struct gr_geometry g = { 0 };
    int r = gr_bdev_geometry((struct gr_bdev *)(uintptr_t)bdev, &g);
    if (r == 0 && g.size / VMFS_UNIT >= v->sb.dev[dev].units)
        return 0;
    return gr_fail(err, -GR_ECORRUPT, "'%s' is cut short: %llu bytes where the datastore has %llu", bdev->name, (unsigned long long)g.size,
                   (unsigned long long)v->sb.dev[dev].units * VMFS_UNIT);
}

static int overs_open(struct vmfs *v, struct vrescue *k, struct gr_err *err)
{
    struct vdev dev[VMFS_DEVICES_MAX] = { 0 };
    unsigned n = 0;
    int r = 0;
    for (unsigned i = 0; r == 0 && i < v->n_dev; i++) {
        unsigned at = (unsigned)k->number[i];
        r = vrescue_too_short(v, v->dev[i].bdev, at, err);
        if (r == 0)
            r = over_open(v, k, v->dev[i].bdev, at, &dev[n++], err);
    }
    for (unsigned i = 0; r == 0 && i < v->sb.n_devices; i++) {
        if (!(k->lost >> i & 1) || !vdev_has_tables(v, i))
            continue;
        r = over_open(v, k, NULL, i, &dev[n++], err);
        if (r == 0 && (r = super_put(v, &dev[n - 1], i)) < 0)
            gr_fail(err, r, "out of memory");
    }
    for (unsigned i = 0; i < v->n_dev; i++) {
        gr_chan_close(v->dev[i].ch);
        v->dev[i] = (struct vdev){ 0 };
    }
    memcpy(v->dev, dev, sizeof dev);
    v->n_dev = n;
    return r;
}

int vrescue_begin(struct vmfs *v, struct gr_err *err)
{
    struct vsuper *s = gr_zalloc(VMFS_DEVICES_MAX * sizeof *s);
    struct vrescue *k = v->rescue = gr_zalloc(sizeof *k);
    unsigned first = 0;
    if (k)
        k->behind = vbehind_new(v->opts.accepted, v->opts.n_accepted);
    int r = s && k && k->behind ? 0 : gr_fail(err, -ENOMEM, "out of memory");
    if (r == 0) {
        k->n_given = v->n_dev;
        for (unsigned i = 0; i < v->n_dev; i++)
            k->given[i] = v->dev[i].bdev;
        r = valone_found(v) ? 0 : fences_enter(v, k, err); /* what fences nobody is not registered with by those who use it, either */
    }
    if (r == 0)
        r = vrescue_supers(v, s, &first, err);
    if (r == 0) {
        v->sb = s[first];
        r = vfeature_check(v, &v->sb, err);
    }
    if (r == 0)
        r = vrescue_missing(v, s, k->number, &k->lost, err);
    if (r == 0)
        r = overs_open(v, k, err);
    if (r == 0) {
        v->opts.degraded = true;
        v->opts.device_lost = NULL; /* what fails now is told by who reads it */
        v->sp.stay = 1;             /* nobody else is there to get what is idle */
    }
    free(s);
    return r;
}

void vrescue_end(struct vmfs *v)
{
    struct vrescue *k = gr_take(v->rescue);
    if (!k)
        return;
    for (unsigned i = 0; i < k->n; i++)
        gr_bdev_put(k->over[i]);
    for (unsigned i = 0; i < k->n_given; i++)
        if (k->entered[i])
            k->given[i]->fence->leave(k->given[i], NULL);
    vbehind_free(k->behind);
    free(k);
}

/* ---- hosts ---- */
static int depart(struct vmfs *v, unsigned slot, struct vslot *s, struct gr_err *err)
{
    if (vbehind_host_gone(v->rescue->behind, slot, s->generation, s->host_name) < 0)
        return gr_fail(err, -ENOMEM, "out of memory");
    vmfs_warn(v, "datastore '%s': the journal of host '%s' is lost: what it had is as it was at its last checkpoint, but for what was overwritten since%s", v->sb.name, s->host_name,
              vcrc_kept(v) ? "" : "; its disks, which may have other disks' bytes, are not shown, but their snapshots are");
    s->state = VMFS_SLOT_FREE;
    s->n_pins = 0;
    s->generation++;
    s->lost = (struct vlost){ 0 };
    return vslot_write(v, slot, s, err);
}

int vrescue_slots(struct vmfs *v, struct gr_err *err)
{
    int r = 0;
    for (unsigned i = 0; r >= 0 && i < v->sb.slots.entries; i++) {
        struct vslot s;
        r = vslot_read(v, i, &s, err);
        if (r < 0 || s.state == VMFS_SLOT_FREE)
            continue;
        if (vlife_shows(v, i, &s))
            return gr_fail(err, -GR_ELOCKED, "datastore '%s': host '%s' is at work on it: end it there first", v->sb.name, s.host_name);
        if ((s.state == VMFS_SLOT_HOST || s.state == VMFS_SLOT_REPLAYING) && vrescue_lost(v, vmfs_addr_dev(s.journal_addr)) &&
            (!s.journal_mirror || vrescue_lost(v, vmfs_addr_dev(s.journal_mirror))))
            r = depart(v, i, &s, err);
    }
    return r < 0 ? r : 0;
}

/* ---- what is left ---- */
struct found { /* below a node */
    uint64_t addr;
    uint64_t data, map; /* bytes that are lost; bytes of which nothing is known */
};
struct look {
    struct vmfs *v;
    vmfs_rescued_fn *fn;
    void *arg;
    struct gr_err *err;
    struct found *seen; /* by address: trees share nodes */
    size_t n_seen, cap_seen;
    unsigned steps;
};

static struct found *seen_at(struct look *k, uint64_t addr)
{
    size_t i = (addr * 0x9e3779b97f4a7c15ull >> 20) & (k->cap_seen - 1);
    while (k->seen[i].addr && k->seen[i].addr != addr)
        i = (i + 1) & (k->cap_seen - 1);
    return &k->seen[i];
}

static int seen_add(struct look *k, const struct found *f)
{
    if (2 * (k->n_seen + 1) > k->cap_seen) {
        size_t cap = k->cap_seen ? 2 * k->cap_seen : 1024, old = k->cap_seen;
        struct found *was = k->seen, *a = gr_zalloc(cap * sizeof *a);
        if (!a)
            return -ENOMEM;
        k->seen = a;
        k->cap_seen = cap;
        for (size_t i = 0; i < old; i++)
            if (was[i].addr)
                *seen_at(k, was[i].addr) = was[i];
        free(was);
    }
    k->n_seen++;
    *seen_at(k, f->addr) = *f;
    return 0;
}

static int node_look(struct look *k, const struct mptr *ptr, unsigned level, struct found *ret);

static int children_look(struct look *k, const struct mnode *n, struct found *f)
{
    int r = 0;
    for (unsigned i = 0; r == 0 && n->level && i < VMFS_FANOUT; i++) {
        struct found below = { 0 };
        if (n->child[i].ptr.addr)
            r = node_look(k, &n->child[i].ptr, n->level - 1u, &below);
        f->data += below.data;
        f->map += below.map;
    }
    for (unsigned i = 0; !n->level && i < VMFS_LEAF_PIECES; i++) {
        struct mpiece p = ment_piece(&n->ent[i / VMFS_BLOCK_PIECES], i % VMFS_BLOCK_PIECES);
        f->data += p.state == VMFS_P_DATA && vrescue_lost(k->v, vmfs_addr_dev(p.addr)) ? VMFS_PIECE : 0;
    }
    return r;
}

static int node_look(struct look *k, const struct mptr *ptr, unsigned level, struct found *ret)
{
    struct vmfs *v = k->v;
    struct mnode *n = NULL;
    const struct found *was = k->cap_seen ? seen_at(k, ptr->addr) : NULL;
    if (was && was->addr) {
        *ret = *was;
        return 0;
    }
    *ret = (struct found){ .addr = ptr->addr };
    if (++k->steps % 64 == 0)
        gr_fiber_yield();
    void *buf = vunits_alloc(ptr->units);
    int r = buf ? vdev_read(v, ptr->addr, ptr->units, buf) : -ENOMEM;
    if (r == 0)
        r = mnode_decode(v, buf, ptr->units, ptr->addr, level, &n, NULL);
    free(buf);
    if (r == -ENOMEM || r == -GR_EFENCED)
        return r;
    if (r < 0) {
        ret->map = mnode_span(level) * VMFS_PIECE;
        r = 0;
    } else {
        r = children_look(k, n, ret);
        mnode_put(v, n);
    }
    return r < 0 ? r : seen_add(k, ret);
}

static int tree_look(struct look *k, const struct mtree *t, uint64_t size, struct vmfs_rescued *what)
{
    struct found f = { 0 };
    const struct mptr *p = t->root.mem ? &t->root.mem->ptr : &t->root.ptr;
    int r = p->addr ? node_look(k, p, t->level, &f) : 0;
    what->size = size;
    what->lost_data = GR_MIN(f.data, size);
    what->lost_map = GR_MIN(f.map, size);
    what->whole = !f.data && !f.map && !what->skipped;
    if (r < 0)
        return gr_fail(k->err, r, "'%s' cannot be looked at: %s", what->path, gr_code_text(r));
    return k->fn(k->arg, what);
}

static int object_look(struct look *k, const struct vdirent *d, const char *path)
{
    struct vmfs_rescued what = { .path = path, .type = (enum vmfs_type)d->type, .id = d->id };
    struct gr_err why = { 0 };
    struct vobj *o;
    int r = vobj_peek(k->v, d->id, &o, &why);
    if (r == -ENOENT)
        return 0; /* its name was not home yet */
    if (r == -ENOMEM || r == -GR_EFENCED)
        return gr_fail(k->err, r, "%s", why.text);
    if (r < 0) {
        what.unreadable = true;
        return k->fn(k->arg, &what);
    }
    what.behind = vbehind_of_lock(k->v, &o->ino.lock);
    if (!what.behind)
        what.behind = vbehind_host_of(k->v, d->id);
    what.skipped = vrescue_skipped(k->v, d->id);
    what.refused = vbehind_doubtful(o, what.behind);
    what.accepted = (what.behind || what.skipped) && vbehind_accepted(k->v, d->id);
    r = tree_look(k, &o->live, o->ino.size, &what);
    for (size_t i = 0; r >= 0 && i < o->n_snaps; i++) {
        const struct vsnap *s = o->snaps[i];
        if (s->flags & (VMFS_SNAP_HIDDEN | VMFS_SNAP_DELETING))
            continue;
        what.snapshot = s->name;
        what.behind = NULL; /* it does not change */
        what.skipped = what.refused = vbehind_snap_doubtful(o, s->id);
        what.accepted = false;
        r = tree_look(k, &s->tree, s->size, &what);
    }
    vobj_free(o);
    return r;
}

static int folder_look(struct look *k, uint64_t id, const char *path)
{
    struct gr_err why = { 0 };
    struct vobj *dir;
    int r = vobj_peek(k->v, id, &dir, &why);
    if (r == -ENOENT)
        return 0;
    if (r == -ENOMEM || r == -GR_EFENCED)
        return gr_fail(k->err, r, "%s", why.text);
    if (r < 0)
        return k->fn(k->arg, &(struct vmfs_rescued){ .path = path, .type = VMFS_DIR, .unreadable = true });
    for (size_t i = 0; r >= 0 && i < dir->n_ents; i++) {
        const struct vdirent *d = &dir->ents[i];
        char *below = gr_asprintf("%s%s%s", path, *path ? "/" : "", d->name);
        r = !below ? gr_fail(k->err, -ENOMEM, "out of memory") : d->type == VMFS_DIR ? folder_look(k, d->id, below) : object_look(k, d, below);
        free(below);
    }
    vobj_free(dir);
    return r;
}

int vmfs_rescued(struct vmfs *v, vmfs_rescued_fn *fn, void *arg, struct gr_err *err)
{
    struct look k = { .v = v, .fn = fn, .arg = arg, .err = err };
    if (!v->rescue)
        return gr_fail(err, -EINVAL, "datastore '%s' is not being rescued: all of its devices are there", v->sb.name);
    int r = folder_look(&k, VMFS_INODE_ROOT, "");
    free(k.seen);
    return r < 0 ? r : 0;
}

int vmfs_rescued_hosts(struct vmfs *v, void (*fn)(void *arg, const char *host), void *arg)
{
    const struct vbehind *b = vrescue_behind(v);
    for (size_t i = 0; i < vbehind_hosts(b); i++)
        fn(arg, vbehind_host(b, i));
    return (int)vbehind_hosts(b);
}
