/* Objects this host holds the lock of: inode, blob, trees. */
#include "common/seam.h"
#include "vmfs/behind.h"
#include "vmfs/loss.h"
#include "vmfs/keys.h"

static struct vobj **bucket(struct vmfs *v, uint64_t id)
{
    return &v->objs[(id ^ id >> 32) % VOBJ_HASH];
}

struct vobj *vobj_find(struct vmfs *v, uint64_t id)
{
    struct vobj *o = *bucket(v, id);
    while (o && o->id != id)
        o = o->hash_next;
    return o;
}

static void table_add(struct vobj *o)
{
    struct vobj **b = bucket(o->v, o->id);
    o->hash_next = *b;
    *b = o;
}

void vobj_adopt(struct vobj *o)
{
    table_add(o);
}

static void table_remove(struct vobj *o)
{
    struct vobj **p = bucket(o->v, o->id);
    while (*p && *p != o)
        p = &(*p)->hash_next;
    if (*p)
        *p = o->hash_next;
}

void vobj_free(struct vobj *o)
{
    if (!o)
        return;
    table_remove(o);
    if (o->handle) {
        o->handle->gone = true;
        o->handle->o = NULL;
    }
    reserve_set(o, 0);
    vobj_clean(o);
    for (size_t i = 0; i < o->n_ents; i++)
        free(o->ents[i].name);
    free(o->ents);
    vkeys_close(o);
    mtree_done(o->v, &o->live);
    for (size_t i = 0; i < o->n_snaps; i++) {
        mtree_done(o->v, &o->snaps[i]->tree);
        free(o->snaps[i]->name);
        free(o->snaps[i]);
    }
    free(o->snaps);
    free(o->lineages);
    for (size_t i = 0; i < o->n_bookmarks; i++)
        free(o->bookmarks[i].name);
    free(o->bookmarks);
    for (size_t i = 0; i < o->n_attrs; i++) {
        free(o->attrs[i].key);
        free(o->attrs[i].val);
    }
    free(o->attrs);
    free(o);
}

struct vsnap *vobj_snap(struct vobj *o, uint64_t id)
{
    for (size_t i = o->n_snaps; id && i-- > 0;)
        if (o->snaps[i]->id == id)
            return o->snaps[i];
    return NULL;
}

struct vsnap *vobj_snap_named(struct vobj *o, const char *name)
{
    for (size_t i = 0; i < o->n_snaps; i++)
        if (!(o->snaps[i]->flags & VMFS_SNAP_HIDDEN) && strcmp(o->snaps[i]->name, name) == 0)
            return o->snaps[i];
    return NULL;
}

static uint32_t attr_u32(const struct vobj *o, const char *key)
{
    const struct vattr *a = vobj_attr(o, key);
    return a && a->len == sizeof(gr_le32) ? gr_le32_get(*(const gr_le32 *)a->val) : 0;
}

uint32_t vobj_physical_block(const struct vobj *o)
{
    return attr_u32(o, VMFS_ATTR_PHYSICAL) == 512 ? 512 : VMFS_PIECE;
}

uint32_t vobj_lost_writes(const struct vobj *o)
{
    return attr_u32(o, VMFS_ATTR_LOST);
}

struct vmfs_lun vobj_lun(const struct vobj *o)
{
    const struct vattr *a = vobj_attr(o, VMFS_ATTR_LUN);
    const struct vmfs_lun_disk *l = a && a->len == sizeof *l ? a->val : NULL;
    return l ? (struct vmfs_lun){ gr_le32_get(l->flags), gr_le32_get(l->iops), gr_le64_get(l->bytes_per_s), gr_le32_get(l->burst_ms) } : (struct vmfs_lun){ 0 };
}

void vobj_attrs_seen(struct vobj *o)
{
    o->lost = vobj_lost_writes(o);
    o->is_template = vobj_lun(o).flags & VMFS_LUN_TEMPLATE;
}

int vobj_set_physical_block(struct vobj *o, uint32_t bytes)
{
    gr_le32 d = gr_le32_of(bytes);
    return vobj_attr_put(o, VMFS_ATTR_PHYSICAL, strlen(VMFS_ATTR_PHYSICAL), &d, bytes == VMFS_PIECE ? 0 : sizeof d);
}

void vobj_stat(struct vobj *o, struct vmfs_stat *ret)
{
    *ret = (struct vmfs_stat){ .type = (enum vmfs_type)o->ino.type, .id = o->id, .size = o->ino.size, .used = o->ino.used_units * VMFS_UNIT,
                               .provision = (enum vmfs_provision)o->ino.provision, .physical_block = vobj_physical_block(o),
                               .lun = vobj_lun(o), .key_id = o->ino.key_id, .mtime_s = o->ino.mtime_s, .lost_writes = o->lost, .n_snapshots = o->ino.n_snapshots, .owner_slot = -1 };
    memcpy(ret->uuid, o->ino.uuid, 16);
    ret->counted = o->counted;
    ret->reachable = o->use.used * VMFS_UNIT;
    ret->unique = o->use.own * VMFS_UNIT;
    ret->origin_id = o->origin_object;
    ret->origin_snapshot = o->origin_snap;
    for (size_t i = 0; i < o->n_snaps; i++)
        ret->clones += o->snaps[i]->clones;
    if (o->origin_object)
        snprintf(ret->parent, sizeof ret->parent, "object %llu snapshot %llu", (unsigned long long)o->origin_object,
                 (unsigned long long)o->origin_snap);
}

struct vbookmark *vobj_bookmark_named(struct vobj *o, const char *name)
{
    for (size_t i = 0; i < o->n_bookmarks; i++)
        if (strcmp(o->bookmarks[i].name, name) == 0)
            return &o->bookmarks[i];
    return NULL;
}

static int blob_read(struct vobj *o, struct gr_err *err)
{
    struct vmfs *v = o->v;
    const struct vinode *i = &o->ino;
    if (!i->blob_addr)
        return vobj_blob_decode(o, i->inline_blob, i->blob_bytes, err);
    if (i->blob_units > VMFS_BLOB_UNITS_MAX || !space_addr_ok(v, i->blob_addr, i->blob_units))
        return gr_fail(err, -GR_ECORRUPT, "object %llu: rule 7: its blob lies outside the regions", (unsigned long long)o->id);
    uint8_t *buf = vunits_alloc(i->blob_units);
    uint64_t at = moved_addr(v, i->blob_addr, i->blob_units, NULL);
    int r = buf ? vdev_read(v, at, i->blob_units, buf) : -ENOMEM;
    if (r < 0)
        gr_fail(err, r, "object %llu: cannot read its blob: %s", (unsigned long long)o->id, gr_code_text(r));
    if (r == 0)
        r = vblock_check(v, buf, VMFS_T_BLOB, i->blob_units, at, err);
    if (r == 0)
        r = vobj_blob_decode(o, buf + sizeof(struct vmfs_hdr_disk), i->blob_bytes, err);
    free(buf);
    return r;
}

static int blob_load(struct vobj *o, struct gr_err *err)
{
    int r = blob_read(o, err);
    uint64_t reserved = o->reserved_units;
    o->reserved_units = 0;
    reserve_set(o, r == 0 ? reserved : 0);
    return r;
}

static int inode_read(struct vmfs *v, uint64_t id, void *block, struct vinode *ret, struct gr_err *err)
{
    uint32_t index = (uint32_t)id;
    if (index == 0 || index >= v->sb.inodes.entries)
        return gr_fail(err, -GR_ECORRUPT, "object %llu: no such inode", (unsigned long long)id);
    int r = vhome_read(v, &v->sb.inodes, index, 0, VMFS_T_INODE, block, err);
    if (r < 0)
        return r;
    memset(ret, 0, sizeof *ret);
    return r == 1 ? 0 : vinode_decode(&v->sb, block, vhome_addr(&v->sb.inodes, index, 0, 0), ret, err);
}

static struct vobj *obj_alloc(struct vmfs *v, const struct vinode *ino, uint64_t id)
{
    struct vobj *o = gr_zalloc(sizeof *o);
    if (!o)
        return NULL;
    o->v = v;
    o->id = id;
    o->ino = *ino;
    o->live.level = 1;
    return o;
}

/* Wait for somebody else's lock: recover a dead holder, poll a living one. 0: try again; else the final error. */
static int wait_holder(struct vmfs *v, const struct vlock *l, unsigned *wait_ms, int *ret_owner, struct gr_err *err)
{
    unsigned slot = l->holder - 1;
    int r = vslot_recover_holder(v, slot, l->generation, err);
    if (r != 0)
        return r < 0 ? r : 0;
    struct vslot s;
    if ((r = vslot_read(v, slot, &s, err)) < 0)
        return r;
    if (s.state == VMFS_SLOT_REPLAYING && s.generation == l->generation) { /* gone, and being recovered by somebody else */
        gr_fiber_sleep_ms(20);
        return 0;
    }
    if (*wait_ms >= 20) {
        *wait_ms -= 20;
        gr_fiber_sleep_ms(20);
        return 0;
    }
    if (ret_owner)
        *ret_owner = (int)slot;
    return gr_fail(err, -GR_ELOCKED, "it is in use by host '%s' (slot %u)", s.host_name, slot);
}

/* Take the lock of an inode just read into @block. 0; 1: somebody was quicker. */
static int inode_lock(struct vmfs *v, uint64_t id, void *block, struct vinode *ino, struct gr_err *err)
{
    struct vlock l = { v->slot + 1, v->me.generation, ino->lock.token + 1, 0 };
    uint8_t *out = vunits_alloc(1);
    int r = out ? vmfs_refresh(v, err) : -ENOMEM;
    if (r == 0)
        r = vhome_lock(v, &v->sb.inodes, (uint32_t)id, block, &l, out, err);
    if (r == 0)
        r = vinode_decode(&v->sb, out, vhome_addr(&v->sb.inodes, (uint32_t)id, 0, 0), ino, err);
    free(out);
    return r == -GR_EMISCOMPARE ? 1 : r;
}

/* One attempt, v->hold_lock held. 0 held; 1 try again; 2 another holds it: *ret_lock. */
static int hold_once(struct vmfs *v, uint64_t id, void *block, struct vobj **ret, struct vlock *ret_lock, struct gr_err *err)
{
    struct vinode ino;
    if ((*ret = vobj_find(v, id)))
        return 0;
    int r = inode_read(v, id, block, &ino, err);
    if (r == 0 && (ino.type == 0 || ino.id != id))
        r = gr_fail(err, -ENOENT, "object %llu is gone", (unsigned long long)id);
    const struct vlock was = ino.lock;
    if (r == 0 && !vlock_mine(v, &ino.lock)) {
        *ret_lock = ino.lock;
        r = vlock_counts(v, &ino.lock, err);
        r = r == 1 ? 2 : r < 0 ? r : inode_lock(v, id, block, &ino, err);
    }
    if (r != 0)
        return r;
    struct vobj *o = obj_alloc(v, &ino, id);
    r = o ? blob_load(o, err) : -ENOMEM;
    if (r == 0)
        r = vbehind_seen(o, &was);
    if (r < 0) {
        vobj_free(o);
        return r;
    }
    table_add(o);
    *ret = o;
    return 0;
}

int vobj_hold(struct vmfs *v, uint64_t id, unsigned wait_ms, struct vobj **ret, int *ret_owner, struct gr_err *err)
{
    uint8_t *block = vunits_alloc(1);
    struct vobj *o = NULL;
    int r = block ? 1 : -ENOMEM;
    while (r > 0) {
        struct vlock l = { 0 };
        gr_fmutex_lock(&v->hold_lock); /* one at a time: nobody adds what another is just giving up */
        r = hold_once(v, id, block, &o, &l, err);
        gr_fmutex_unlock(&v->hold_lock);
        if (r == 2 && (r = wait_holder(v, &l, &wait_ms, ret_owner, err)) == 0)
            r = 1;
    }
    free(block);
    if (r == 0)
        *ret = o;
    else if (r == -ENOMEM)
        gr_fail(err, r, "out of memory");
    return r;
}

bool vobj_unchanged(struct vobj *o)
{
    struct vinode now;
    uint8_t *block = vunits_alloc(1);
    bool same = block && inode_read(o->v, o->id, block, &now, NULL) == 0 && now.id == o->id && now.type == o->ino.type &&
                now.block_generation == o->ino.block_generation;
    free(block);
    return same;
}

int vobj_peek(struct vmfs *v, uint64_t id, struct vobj **ret, struct gr_err *err)
{
    uint8_t *block = vunits_alloc(1);
    int r = block ? -GR_ECORRUPT : -ENOMEM;
    struct vinode ino;
    struct vobj *o = NULL;
    v->stats.looks++;
    for (int tries = 0; r == -GR_ECORRUPT && tries < 10; tries++) { /* its owner may move the blob meanwhile */
        if (tries) {
            gr_fiber_sleep_ms(5);
            if ((r = vmfs_refresh(v, err)) < 0) /* it lies on a device that is not open here, perhaps */
                break;
        }
        r = inode_read(v, id, block, &ino, err);
        if (r < 0)
            continue;
        if (ino.type == 0 || ino.id != id) {
            r = gr_fail(err, -ENOENT, "object %llu is gone", (unsigned long long)id);
            break;
        }
        o = obj_alloc(v, &ino, id);
        r = o ? blob_load(o, err) : -ENOMEM;
        if (o) {
            o->promised_elsewhere = o->reserved_units;
            reserve_set(o, 0); /* its owner's promise, not ours */
        }
        if (r == 0 && ino.blob_addr && !vobj_unchanged(o))
            r = gr_fail(err, -GR_ECORRUPT, "object %llu changes all the time", (unsigned long long)id);
        if (r < 0) {
            vobj_free(o);
            o = NULL;
        }
    }
    free(block);
    if (r == 0)
        *ret = o;
    return r;
}

int vobj_look(struct vmfs *v, uint64_t id, struct vobj **ret, struct vobj **ret_peeked, struct gr_err *err)
{
    *ret_peeked = NULL;
    if ((*ret = vobj_find(v, id)))
        return 0;
    int r = vobj_peek(v, id, ret_peeked, err);
    *ret = *ret_peeked;
    return r;
}

/* A lock that stays for want of memory keeps others waiting: that is tried again for a while. */
#define BLOCK_TRIES 50u
#define BLOCK_PAUSE_MS 20u
static uint8_t *block_soon(const struct vmfs *v)
{
    uint8_t *block = vunits_alloc(1);
    for (unsigned tries = 1; !block && !v->fenced && tries < BLOCK_TRIES; tries++) {
        gr_fiber_sleep_ms(BLOCK_PAUSE_MS);
        block = vunits_alloc(1);
    }
    return block;
}

/* Both locks held. The last write is copy A's, with the lock free: nothing of ours may land behind the next holder's. */
static int release(struct vmfs *v, struct vobj *o, struct gr_err *err)
{
    uint32_t index = (uint32_t)o->id;
    uint8_t *block = block_soon(v);
    int r = block ? 0 : gr_fail(err, -ENOMEM, "out of memory");
    for (int copy = 1; r == 0 && copy >= 0; copy--) {
        uint64_t addr = vhome_addr(&v->sb.inodes, index, 0, copy);
        o->ino.block_generation++;
        if (copy == 0)
            o->ino.lock = (struct vlock){ 0, 0, o->ino.lock.token, o->ino.lock.nonce + 1 };
        vinode_encode(v, &o->ino, addr, block);
        r = vdev_write(v, addr, 1, block, GR_BIO_FUA);
        if (r < 0)
            gr_fail(err, r, "object %llu cannot be given up: %s", (unsigned long long)o->id, gr_code_text(r));
    }
    free(block);
    mtree_drop(v, &o->live); /* whoever is to have it next does not wait for that */
    vobj_free(o);
    return r;
}

int vobj_release(struct vmfs *v, struct vobj *o, struct gr_err *err)
{
    gr_fmutex_lock(&v->hold_lock);
    gr_fmutex_lock(&v->ckpt_lock); /* nobody may write an old image over the freed lock */
    int r = release(v, o, err);
    gr_fmutex_unlock(&v->ckpt_lock);
    gr_fmutex_unlock(&v->hold_lock);
    return r;
}

int vobj_release_idle(struct vmfs *v, uint64_t id, struct gr_err *err)
{
    gr_fmutex_lock(&v->hold_lock);
    gr_fmutex_lock(&v->ckpt_lock);
    struct vobj *o = vobj_find(v, id);
    int r = 0;
    if (o && (!o->dying || reap_parked(o)))
        r = o->opens || o->handle || o->walker || o->dirty || o->users ? 1 : release(v, o, err);
    gr_fmutex_unlock(&v->ckpt_lock);
    gr_fmutex_unlock(&v->hold_lock);
    return r;
}

/* 0; 1: it is somebody's, or damaged: what it was may be mended yet. */
static int inode_take(struct vmfs *v, uint32_t index, void *block, struct vinode *ret, struct gr_err *err)
{
    int r = vhome_read(v, &v->sb.inodes, index, 0, VMFS_T_INODE, block, err);
    memset(ret, 0, sizeof *ret);
    if (r == 0)
        r = vinode_decode(&v->sb, block, vhome_addr(&v->sb.inodes, index, 0, 0), ret, err);
    if (r < 0)
        return r == -GR_ECORRUPT ? 1 : r;
    if (ret->type || vobj_find(v, ret->id))
        return 1;
    if (ret->lock.holder) {
        int held = vlock_counts(v, &ret->lock, err);
        if (held)
            return held;
    }
    struct vlock l = { v->slot + 1, v->me.generation, ret->lock.token + 1, 0 };
    uint8_t *out = vunits_alloc(1);
    r = out ? vhome_lock(v, &v->sb.inodes, index, block, &l, out, err) : -ENOMEM;
    if (r == 0)
        r = vinode_decode(&v->sb, out, vhome_addr(&v->sb.inodes, index, 0, 0), ret, err);
    free(out);
    return r == -GR_EMISCOMPARE ? 1 : r;
}

int vobj_new(struct vmfs *v, enum vmfs_type type, struct vobj **ret, struct gr_err *err)
{
    uint32_t n = v->sb.inodes.entries - 16, start = (uint32_t)((uint64_t)v->slot * n / v->sb.slots.entries);
    const struct gr_world *w = gr_loop_world(v->loop);
    uint8_t *block = vunits_alloc(1);
    struct vinode ino;
    int r = block ? 1 : -ENOMEM;
    uint32_t index = 0;
    for (uint32_t k = 0; r == 1 && k < n; k++) {
        index = 16 + (start + v->next_inode) % n;
        v->next_inode = (v->next_inode + 1) % n; /* before anything suspends: others look for one, too */
        r = inode_take(v, index, block, &ino, err);
    }
    free(block);
    if (r == 1)
        return gr_fail(err, -GR_ENOSPACE, "datastore '%s' has no room for another object (%u of them)", v->sb.name, n);
    if (r < 0)
        return r;
    ino = (struct vinode){ .block_generation = ino.block_generation, .lock = ino.lock, .id = (((ino.id >> 32) + 1) << 32) | index };
    ino.type = (uint16_t)type;
    ino.mtime_s = w->wall_s(w->arg);
    w->random(w->arg, ino.uuid, 16);
    ino.uuid[6] = (uint8_t)((ino.uuid[6] & 0x0f) | 0x40); /* RFC 4122 version 4 */
    ino.uuid[8] = (uint8_t)((ino.uuid[8] & 0x3f) | 0x80);
    struct vobj *o = obj_alloc(v, &ino, ino.id);
    if (!o)
        return gr_fail(err, -ENOMEM, "out of memory");
    if (type != VMFS_DIR) {
        o->epoch = 1;
        o->next_snap = 1;
        o->counted = true;
        w->random(w->arg, &o->lineage, sizeof o->lineage);
    }
    vobj_touch(o);
    table_add(o);
    *ret = o;
    return 0;
}
