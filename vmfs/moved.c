/* What lay on a device that leaves: where it lies now. Addresses are looked up when they come from the device (nodes, blobs, superblock),
 * so that in memory they are those of today; and all that is in memory is looked up at the instant a list grows. */
#include "common/seam.h"
#include "vmfs/evacuate.h"

/* ---- lists ---- */
size_t moved_find(const struct vmoved *m, uint64_t unit)
{
    size_t lo = 0, hi = m->n;
    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        if (m->e[mid].from + m->e[mid].units > unit)
            hi = mid;
        else
            lo = mid + 1;
    }
    return lo;
}

int moved_add(struct vmoved *m, struct vmove e)
{
    struct vmove *last = m->n ? &m->e[m->n - 1] : NULL;
    if (last && last->from + last->units == e.from && last->to + last->units == e.to && last->units + (uint64_t)e.units <= UINT32_MAX) {
        last->units += e.units;
        return 0;
    }
    if (m->n == m->cap) {
        size_t cap = m->cap ? m->cap * 2 : 64;
        struct vmove *a = gr_realloc(m->e, cap * sizeof *a);
        if (!a)
            return -ENOMEM;
        m->e = a;
        m->cap = cap;
    }
    m->e[m->n++] = e;
    return 0;
}

/* One step; the address itself when it is on no list. */
static uint64_t step(const struct vmoved *m, uint64_t addr, uint32_t *units)
{
    uint64_t unit = vmfs_addr_unit(addr);
    size_t i = moved_find(m, unit);
    if (i == m->n || m->e[i].from > unit) {
        if (i < m->n)
            *units = (uint32_t)GR_MIN((uint64_t)*units, m->e[i].from - unit);
        return addr;
    }
    *units = (uint32_t)GR_MIN((uint64_t)*units, m->e[i].from + m->e[i].units - unit);
    return m->e[i].to + (unit - m->e[i].from);
}

uint64_t moved_look(const struct vmfs *v, uint64_t addr, uint32_t units, uint32_t *ret_units)
{
    for (unsigned hops = 0; hops <= VMFS_DEVICES_MAX; hops++) {
        unsigned dev = vmfs_addr_dev(addr);
        if (dev >= v->sb.n_devices || v->sb.dev[dev].state == VMFS_DEVICE_IN_USE) {
            if (ret_units)
                *ret_units = units;
            return addr;
        }
        uint64_t to = step(&v->sp.moved[dev], addr, &units);
        if (to == addr) {
            if (ret_units)
                *ret_units = units;
            return v->sb.dev[dev].state == VMFS_DEVICE_LEAVING ? addr : 0; /* not moved yet; or it never was anybody's */
        }
        addr = to;
    }
    return 0; /* the lists go round in circles */
}

uint64_t moved_owned(const struct vmfs *v, uint64_t addr, uint32_t units, uint32_t *ret_units)
{
    uint32_t n = units;
    uint64_t now = moved_addr(v, addr, units, &n);
    const struct vmoved *p = v->sp.evac ? evac_pending(v->sp.evac, vmfs_addr_dev(now)) : NULL;
    if (p && now)
        now = step(p, now, &n);
    if (ret_units)
        *ret_units = n;
    return now;
}

/* ---- in memory ---- */
int moved_entry(struct vmfs *v, struct mentry *e)
{
    struct mpieces *px = e->px;
    bool any = false, whole = true;
    uint64_t addr[VMFS_BLOCK_PIECES] = { 0 };
    if (!v->sp.any_moved || (!px && !e->addr))
        return 0;
    for (unsigned i = 0; i < VMFS_BLOCK_PIECES; i++) {
        struct mpiece p = ment_piece(e, i);
        if (p.state != VMFS_P_HOLE && !(addr[i] = moved_addr(v, p.addr, 1, NULL)))
            return -GR_ECORRUPT;
        any |= addr[i] != p.addr;
        whole &= p.state != VMFS_P_HOLE && addr[i] == addr[0] + i;
    }
    if (!any)
        return 0;
    if (!px && whole) {
        e->addr = addr[0];
        return 0;
    }
    if (!px && !(px = gr_zalloc(sizeof *px)))
        return -ENOMEM;
    for (unsigned i = 0; i < VMFS_BLOCK_PIECES; i++) {
        px->birth[i] = ment_piece(e, i).birth;
        px->addr[i] = addr[i];
    }
    e->px = px;
    e->addr = 0;
    e->run = MRUN_UNKNOWN;
    return 0;
}

static void node_settle(struct vmfs *v, struct mnode *n)
{
    if (n->settled == v->sp.moves)
        return;
    n->settled = v->sp.moves;
    due_make(v, n);
    if (n->ptr.addr)
        n->ptr.addr = moved_addr(v, n->ptr.addr, n->ptr.units, NULL);
    for (unsigned i = 0; i < VMFS_FANOUT; i++) {
        if (!n->level) {
            if (moved_entry(v, &n->ent[i]) < 0)
                vmfs_fence(v, "out of memory for the map while a device was emptied");
            continue;
        }
        if (n->child[i].mem)
            node_settle(v, n->child[i].mem);
        n->child[i].ptr.addr = moved_addr(v, n->child[i].ptr.addr, n->child[i].ptr.units, NULL);
    }
    mnode_count(v, n);
}

static void tree_settle(struct vmfs *v, struct mtree *t)
{
    if (t->root.mem)
        node_settle(v, t->root.mem);
    t->root.ptr.addr = moved_addr(v, t->root.ptr.addr, t->root.ptr.units, NULL);
}

void moved_settle(struct vmfs *v)
{
    v->sp.moves++;
    v->sp.any_moved = true;
    for (unsigned h = 0; h < VOBJ_HASH; h++)
        for (struct vobj *o = v->objs[h]; o; o = o->hash_next) {
            o->ino.blob_addr = moved_addr(v, o->ino.blob_addr, o->ino.blob_units, NULL);
            tree_settle(v, &o->live);
            for (size_t i = 0; i < o->n_snaps; i++)
                tree_settle(v, &o->snaps[i]->tree);
        }
    for (struct vregion *r = v->sp.regions; r; r = r->next)
        r->shares_addr = moved_addr(v, r->shares_addr, r->shares_units, NULL);
    v->sp.aux_blob_addr = moved_addr(v, v->sp.aux_blob_addr, v->sp.aux_blob_units, NULL);
}

int vblock_check(const struct vmfs *v, const void *block, unsigned type, uint32_t units, uint64_t addr, struct gr_err *err)
{
    uint64_t self = gr_le64_get(((const struct vmfs_hdr_disk *)block)->self);
    bool moved = v->sp.any_moved && self != addr && vmfs_addr_dev(self) < v->sb.n_devices && moved_addr(v, self, units, NULL) == addr;
    return vhdr_check(v->sb.uuid, block, type, units, moved ? self : addr, err);
}

/* ---- from the device ---- */
static int list_decode(const struct vmfs *v, unsigned dev, const struct vmfs_moved_disk *d, size_t n, struct vmoved *ret)
{
    const struct vdevinfo *i = &v->sb.dev[dev];
    uint64_t last = i->first_unit;
    int r = 0;
    for (size_t k = 0; r == 0 && k < n; k++) {
        struct vmove e = { gr_le64_get(d[k].from), gr_le64_get(d[k].to), gr_le32_get(d[k].units) };
        if (e.from < last || !e.units || e.from > i->units || e.units > i->units - e.from || vmfs_addr_dev(e.to) == dev ||
            !space_addr_ok(v, e.to, e.units))
            return -GR_ECORRUPT;
        last = e.from + e.units;
        r = moved_add(ret, e);
    }
    return r;
}

static int list_load(struct vmfs *v, unsigned dev, struct gr_err *err)
{
    const struct vdevinfo *i = &v->sb.dev[dev];
    struct vmoved list = { 0 };
    uint64_t addr = moved_addr(v, i->moved_addr, i->moved_units, NULL);
    uint8_t *b = vunits_alloc(i->moved_units);
    int r = b ? addr && space_addr_ok(v, addr, i->moved_units) ? vdev_read(v, addr, i->moved_units, b) : -GR_ECORRUPT : -ENOMEM;
    if (r == 0)
        r = vblock_check(v, b, VMFS_T_BLOB, i->moved_units, addr, err);
    if (r == 0)
        r = list_decode(v, dev, (const struct vmfs_moved_disk *)(b + sizeof(struct vmfs_hdr_disk)), i->moved_bytes / sizeof(struct vmfs_moved_disk), &list);
    free(b);
    if (r < 0 && addr && vmfs_addr_dev(addr) < v->sb.n_devices && vdev_missing(v, vmfs_addr_dev(addr))) {
        free(list.e);
        return gr_fail(err, -ENODEV, "datastore '%s': where what lay on its device %u is now, is told by its device %u, which is missing: join it with that one", v->sb.name, dev,
                       vmfs_addr_dev(addr));
    }
    if (r < 0) {
        free(list.e);
        return gr_fail(err, r, "datastore '%s': the list of what lay on device %u cannot be read: %s", v->sb.name, dev, gr_code_text(r));
    }
    free(v->sp.moved[dev].e);
    v->sp.moved[dev] = list;
    return 0;
}

/* A list may itself lie where another one tells: that one first. */
int moved_load(struct vmfs *v, struct gr_err *err)
{
    bool done[VMFS_DEVICES_MAX] = { false };
    for (unsigned i = 0; i < v->sb.n_devices; i++) {
        done[i] = v->sb.dev[i].moved_addr == 0;
        v->sp.any_moved |= v->sb.dev[i].state != VMFS_DEVICE_IN_USE;
    }
    for (bool progress = true; progress;) {
        progress = false;
        for (unsigned i = 0; i < v->sb.n_devices; i++) {
            unsigned on = vmfs_addr_dev(v->sb.dev[i].moved_addr);
            if (done[i] || on >= v->sb.n_devices || (on != i && !done[on]))
                continue;
            int r = list_load(v, i, err);
            if (r < 0)
                return r;
            done[i] = progress = true;
        }
    }
    for (unsigned i = 0; i < v->sb.n_devices; i++)
        if (!done[i])
            return gr_fail(err, -GR_ECORRUPT, "datastore '%s': rule 7: the list of what lay on device %u", v->sb.name, i);
    return 0;
}

void moved_done(struct vmfs *v)
{
    for (unsigned i = 0; i < VMFS_DEVICES_MAX; i++)
        free(v->sp.moved[i].e);
}
