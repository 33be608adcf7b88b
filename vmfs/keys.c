/* Keys of encrypted disks: the block that keeps them wrapped, and the disk's keys in memory.
 *
 * The block is written in place, copy B first, by who holds the disk, so it needs neither records nor images, and what is overwritten there
 * is nowhere else. */
#include "common/seam.h"
#include "vmfs/internal.h"
#include "vmfs/keys.h"

/* ---- the block ---- */
static bool vkeys_at(const struct vobj *o, uint64_t ret[2])
{
    for (size_t i = 0; i < o->n_attrs; i++)
        if (strcmp(o->attrs[i].key, VMFS_ATTR_KEYS) == 0 && o->attrs[i].len == sizeof(struct vmfs_keys_at_disk)) {
            const struct vmfs_keys_at_disk *d = (const void *)o->attrs[i].val;
            ret[0] = gr_le64_get(d->addr_a);
            ret[1] = gr_le64_get(d->addr_b);
            return true;
        }
    return false;
}

static void encode(struct vmfs *v, const struct vkeys *k, uint64_t at, void *block)
{
    struct vmfs_keys_disk *d = block;
    memset(d, 0, sizeof *d);
    d->n = gr_le32_of(k->n);
    d->erased = gr_le32_of(k->erased);
    for (unsigned i = 0; i < k->n; i++) {
        d->key[i].from = gr_le64_of(k->key[i].from);
        d->key[i].kek = gr_le64_of(k->key[i].kek);
        memcpy(d->key[i].nonce, k->key[i].nonce, VMFS_KEY_NONCE);
        memcpy(d->key[i].tag, k->key[i].tag, VMFS_KEY_TAG);
        memcpy(d->key[i].wrapped, k->key[i].wrapped, VMFS_DATA_KEY_BYTES);
    }
    vhdr_seal(v, block, VMFS_T_KEYS, 1, at, k->generation, v->slot);
}

int vkeys_decode(const struct vmfs *v, const void *block, uint64_t at, struct vkeys *ret, struct gr_err *err)
{
    const struct vmfs_keys_disk *d = block;
    int r = vblock_check(v, block, VMFS_T_KEYS, 1, at, err);
    if (r < 0)
        return r;
    struct vkeys k = { .generation = gr_le64_get(d->hdr.generation), .erased = gr_le32_get(d->erased), .n = gr_le32_get(d->n) };
    bool sound = k.n <= VMFS_KEYS_MAX && k.erased == !k.n && gr_le32_get(d->erased) <= 1;
    for (unsigned i = 0; sound && i < k.n; i++) {
        k.key[i].from = gr_le64_get(d->key[i].from);
        k.key[i].kek = gr_le64_get(d->key[i].kek);
        memcpy(k.key[i].nonce, d->key[i].nonce, VMFS_KEY_NONCE);
        memcpy(k.key[i].tag, d->key[i].tag, VMFS_KEY_TAG);
        memcpy(k.key[i].wrapped, d->key[i].wrapped, VMFS_DATA_KEY_BYTES);
        sound = !i || k.key[i].from > k.key[i - 1].from;
    }
    if (!sound)
        return gr_fail(err, -GR_ECORRUPT, "device %u unit %llu: rule 7: %u keys", vmfs_addr_dev(at), (unsigned long long)vmfs_addr_unit(at), k.n);
    *ret = k;
    return 0;
}

static int read_copy(struct vmfs *v, uint64_t addr, struct vkeys *ret, struct gr_err *err)
{
    uint64_t at = space_addr_ok(v, addr, 1) ? moved_addr(v, addr, 1, NULL) : 0;
    if (!at)
        return gr_fail(err, -GR_ECORRUPT, "rule 7: a block of keys outside the regions");
    if (vdev_no_data(v, vmfs_addr_dev(at)))
        return gr_fail(err, -ENODEV, "the device is missing");
    void *block = vunits_alloc(1);
    int r = block ? vdev_read(v, at, 1, block) : -ENOMEM;
    if (r < 0)
        gr_fail(err, r, "device %u unit %llu: %s", vmfs_addr_dev(at), (unsigned long long)vmfs_addr_unit(at), gr_code_text(r));
    if (r == 0)
        r = vkeys_decode(v, block, at, ret, err);
    free(block);
    return r;
}

/* The newer valid copy; *ret_alike: the other is the same. */
static int read_block(struct vobj *o, struct vkeys *ret, bool *ret_alike, struct gr_err *err)
{
    struct gr_err ea = { 0 }, eb = { 0 };
    struct vkeys a, b;
    uint64_t at[2];
    if (!vkeys_at(o, at))
        return gr_fail(err, -GR_ECORRUPT, "object %llu: rule 7: encrypted, but it does not say where its keys are", (unsigned long long)o->id);
    int ra = read_copy(o->v, at[0], &a, &ea), rb = read_copy(o->v, at[1], &b, &eb);
    if (ra < 0 && rb < 0)
        return gr_fail(err, ra, "its keys cannot be read: %s; %s", gr_err_text(&ea, ra), gr_err_text(&eb, rb));
    *ret = ra < 0 || (rb == 0 && b.generation > a.generation) ? b : a;
    *ret_alike = ra == 0 && rb == 0 && a.generation == b.generation;
    return 0;
}

int vkeys_read(struct vobj *o, struct vkeys *ret, struct gr_err *err)
{
    bool alike;
    return read_block(o, ret, &alike, err);
}

/* Both copies, durable, but for one that went with its device (replace.c); the generation grows. When it fails one of them may say the one, the other the other. */
static int write_block(struct vmfs *v, const uint64_t addr[2], struct vkeys *k, struct gr_err *err)
{
    void *block = vunits_alloc(1);
    int r = block ? 0 : gr_fail(err, -ENOMEM, "out of memory");
    k->generation++;
    for (int copy = 1; r == 0 && copy >= 0; copy--) {
        uint64_t at = moved_addr(v, addr[copy], 1, NULL);
        if (vdev_emptied(v, vmfs_addr_dev(at)))
            continue;
        encode(v, k, at, block);
        r = vdev_write(v, at, 1, block, GR_BIO_FUA);
        if (r < 0)
            gr_fail(err, r, "its keys cannot be written: %s", gr_code_text(r));
    }
    free(block);
    return r;
}

/* [sync] May the block be written where it is? */
static int writable(struct vobj *o, uint64_t at[2], struct gr_err *err)
{
    if (!vkeys_at(o, at))
        return gr_fail(err, -GR_ECORRUPT, "object %llu: rule 7: encrypted, but it does not say where its keys are", (unsigned long long)o->id);
    for (unsigned i = 0; i < 2; i++) {
        uint64_t now = space_addr_ok(o->v, at[i], 1) ? moved_addr(o->v, at[i], 1, NULL) : 0;
        if (!now)
            return gr_fail(err, -GR_ECORRUPT, "object %llu: rule 7: a block of keys outside the regions", (unsigned long long)o->id);
        if (!vdev_emptied(o->v, vmfs_addr_dev(now)) && space_leaving(o->v, now))
            return gr_fail(err, -EBUSY, "its keys lie on a device that is missing or being emptied: try again when that is over");
    }
    return 0;
}

int vkeys_write(struct vobj *o, struct vkeys *k, struct gr_err *err)
{
    uint64_t at[2];
    int r = writable(o, at, err);
    if (r < 0)
        return r;
    if ((r = write_block(o->v, at, k, err)) < 0) /* as much as with a superblock */
        vmfs_fence(o->v, "the keys of object %llu could not be written: nobody knows what they say", (unsigned long long)o->id);
    uint64_t id = k->erased ? VMFS_KEY_ERASED : k->key[k->n - 1].kek;
    if (r == 0 && o->ino.key_id != id) {
        o->ino.key_id = id;
        vobj_touch(o);
    }
    return r;
}

bool vkeys_where(const struct vobj *o, unsigned copy, uint64_t *ret)
{
    uint64_t at[2];
    if (!vkeys_at(o, at))
        return false;
    *ret = at[copy];
    return true;
}

/* ---- key-encryption keys ---- */
static int find_kek(struct vmfs *v, uint64_t id, uint8_t ret[VMFS_KEK_BYTES], struct gr_err *err)
{
    if (v->opts.kek && v->opts.kek(v->opts.kek_arg, id, ret) == 0) {
        if (vcipher_kek_id(ret) == id)
            return 0;
        explicit_bzero(ret, VMFS_KEK_BYTES);
    }
    return gr_fail(err, -ENOKEY, "encrypted with key %016llx, which is not here: 'granary key import' it", (unsigned long long)id);
}

static int unwrap(struct vmfs *v, const struct vkey *k, uint8_t ret[VMFS_DATA_KEY_BYTES], struct gr_err *err)
{
    uint8_t kek[VMFS_KEK_BYTES];
    int r = find_kek(v, k->kek, kek, err);
    if (r == 0 && (r = vcipher_unwrap(kek, k, ret)) < 0)
        gr_fail(err, -GR_ECORRUPT, "its data key from epoch %llu on is not what key %016llx was used on: it was altered",
                (unsigned long long)k->from, (unsigned long long)k->kek);
    explicit_bzero(kek, sizeof kek);
    return r < 0 && r != -ENOKEY ? -GR_ECORRUPT : r;
}

static int wrap(struct vmfs *v, uint64_t kek_id, uint64_t from, const uint8_t data[VMFS_DATA_KEY_BYTES], struct vkey *ret, struct gr_err *err)
{
    const struct gr_world *w = gr_loop_world(v->loop);
    uint8_t kek[VMFS_KEK_BYTES], nonce[VMFS_KEY_NONCE];
    int r = find_kek(v, kek_id, kek, err);
    if (r == 0) {
        w->random(w->arg, nonce, sizeof nonce);
        vcipher_wrap(kek, from, data, nonce, ret);
    }
    explicit_bzero(kek, sizeof kek);
    return r;
}

int vkeys_add(struct vmfs *v, struct vkeys *k, uint64_t kek_id, uint64_t from, struct gr_err *err)
{
    const struct gr_world *w = gr_loop_world(v->loop);
    uint8_t data[VMFS_DATA_KEY_BYTES];
    if (k->n == VMFS_KEYS_MAX)
        return gr_fail(err, -GR_ENOSPACE, "it has %u data keys already: 'granary disk rekey --rewrite' first, so that old ones go", VMFS_KEYS_MAX);
    w->random(w->arg, data, sizeof data);
    int r = wrap(v, kek_id, from, data, &k->key[k->n], err);
    k->n += r == 0;
    explicit_bzero(data, sizeof data);
    return r;
}

int vkeys_rewrap(struct vmfs *v, struct vkeys *k, uint64_t kek_id, struct gr_err *err)
{
    uint8_t data[VMFS_DATA_KEY_BYTES];
    int r = 0;
    for (unsigned i = 0; r == 0 && i < k->n; i++) {
        r = unwrap(v, &k->key[i], data, err);
        if (r == 0)
            r = wrap(v, kek_id, k->key[i].from, data, &k->key[i], err);
        explicit_bzero(data, sizeof data);
    }
    return r;
}

int vkeys_unlock(struct vobj *o, const struct vkeys *k, struct gr_err *err)
{
    uint8_t data[VMFS_DATA_KEY_BYTES];
    struct vcipher *c = vcipher_new(k->n);
    int r = c ? 0 : gr_fail(err, -ENOMEM, "out of memory");
    for (unsigned i = 0; r == 0 && i < k->n; i++) {
        r = unwrap(o->v, &k->key[i], data, err);
        if (r == 0)
            vcipher_add(c, k->key[i].from, data);
        explicit_bzero(data, sizeof data);
    }
    if (r < 0) {
        vcipher_put(c);
        return r;
    }
    vcipher_put(o->cipher);
    o->cipher = c;
    return 0;
}

int vkeys_open(struct vobj *o, struct gr_err *err)
{
    struct vkeys k;
    bool alike = true;
    if (!o->ino.key_id || o->cipher)
        return 0;
    int r = read_block(o, &k, &alike, err);
    if (r == 0 && k.erased)
        r = gr_fail(err, -ENOKEY, "it was erased: its keys are destroyed, and what it held cannot be read any more");
    if (r == 0)
        r = vkeys_unlock(o, &k, err);
    uint64_t at[2];
    if (r == 0 && !alike && vobj_find(o->v, o->id) == o && writable(o, at, NULL) == 0 && (r = vkeys_write(o, &k, err)) < 0)
        vkeys_close(o); /* a cut came between the copies: the older one must not be all that is left one day */
    return r;
}

void vkeys_close(struct vobj *o)
{
    vcipher_put(o->cipher);
    o->cipher = NULL;
}

/* ---- a new disk's ---- */
/* The volume says that there are encrypted disks, so that nobody who does not know of them takes ciphertext for data. */
static int say_so(struct vmfs *v, struct gr_err *err)
{
    struct vobj *root;
    if (v->sb.incompat & VMFS_INCOMPAT_ENCRYPTED)
        return 0;
    int r = vdev_all_here(v, "no disk can be the first that is encrypted", err);
    if (r == 0)
        r = ns_begin(v, &root, err);
    if (r < 0)
        return r;
    return ns_end(v, vfeature_on(v, VMFS_INCOMPAT_ENCRYPTED, "encrypted disks", err), err);
}

static int place(struct vmfs *v, struct vkeys_new *n, struct gr_err *err)
{
    int r = space_ensure(v, 2);
    for (unsigned i = 0; r == 0 && i < 2; i++) {
        uint32_t got;
        n->addr[i] = space_take_run(v, 1, &got);
        if (!n->addr[i])
            r = -GR_ENOSPACE;
    }
    return r < 0 ? gr_fail(err, r, "datastore '%s': no room for the keys of a disk: %s", v->sb.name, gr_code_text(r)) : 0;
}

int vkeys_make(struct vmfs *v, uint64_t kek_id, struct vobj *origin, uint64_t epoch, struct vkeys_new *ret, struct gr_err *err)
{
    struct vkeys k = { 0 };
    int r = say_so(v, err);
    *ret = (struct vkeys_new){ .v = v };
    if (r == 0 && origin) {
        r = vkeys_read(origin, &k, err);
        if (r == 0 && k.erased)
            r = gr_fail(err, -ENOKEY, "its origin was erased: its keys are destroyed");
        kek_id = r == 0 ? k.key[k.n - 1].kek : 0;
        while (k.n && k.key[k.n - 1].from > epoch)
            k.n--; /* what came later than the snapshot; all, if those before went because it has no data */
    }
    if (r == 0 && (!k.n || k.n < VMFS_KEYS_MAX)) /* one of its own for what it writes, as long as there is room */
        r = vkeys_add(v, &k, kek_id, k.n ? epoch + 1 : 0, err);
    if (r == 0)
        r = place(v, ret, err);
    if (r == 0)
        r = write_block(v, ret->addr, &k, err);
    ret->key_id = kek_id;
    if (r < 0)
        vkeys_made(ret, r);
    return r;
}

int vkeys_take(struct vkeys_new *n, struct vobj *o)
{
    struct vmfs_keys_at_disk at = { gr_le64_of(n->addr[0]), gr_le64_of(n->addr[1]) };
    int r = vobj_attr_put(o, VMFS_ATTR_KEYS, strlen(VMFS_ATTR_KEYS), &at, sizeof at);
    if (r < 0)
        return r;
    for (unsigned i = 0; i < 2; i++)
        space_used(n->v, n->addr[i], 1);
    o->ino.key_id = n->key_id;
    n->taken = true;
    return 0;
}

void vkeys_made(struct vkeys_new *n, int r)
{
    for (unsigned i = 0; i < 2; i++) {
        if (r < 0 && n->addr[i] && n->taken)
            space_freed(n->v, n->addr[i], 1, 1, n->v->ckpt_started + 1);
        else if (r < 0 && n->addr[i])
            space_unreserve(n->v, n->addr[i], 1);
        n->addr[i] = 0;
    }
}

void vkeys_free(struct vobj *o)
{
    uint64_t at[2];
    bool any = o->ino.key_id && vkeys_at(o, at);
    for (unsigned i = 0; any && i < 2; i++)
        space_freed(o->v, at[i], 1, 1, o->v->ckpt_started + 1);
    o->ino.key_id = 0;
}

/* ---- the end ---- */
int vkeys_destroy(struct vobj *o, struct gr_err *err)
{
    struct vkeys k;
    if (!o->ino.key_id || o->ino.key_id == VMFS_KEY_ERASED)
        return 0;
    bool dying = o->dying;
    o->dying = true; /* nobody opens it meanwhile */
    gr_fmutex_lock(&o->keys_lock);
    if (vkeys_read(o, &k, NULL) < 0)
        k = (struct vkeys){ .generation = UINT32_MAX }; /* damaged: what may be left of them goes all the same */
    struct vkeys none = { .generation = k.generation, .erased = true };
    int r = vkeys_write(o, &none, err);
    if (r == 0)
        vkeys_close(o);
    gr_fmutex_unlock(&o->keys_lock);
    o->dying = dying;
    return r;
}
