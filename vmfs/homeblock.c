/* Home blocks: two copies, each knows its own address; the newer valid one counts. */
#include "vmfs/internal.h"

static bool all_zero(const uint8_t *b)
{
    for (size_t i = 0; i < VMFS_UNIT; i++)
        if (b[i])
            return false;
    return true;
}

enum copy_state { COPY_VALID, COPY_FRESH, COPY_BAD };
static enum copy_state copy_read(struct vmfs *v, uint64_t addr, unsigned type, uint8_t *buf, int *ret_code, struct gr_err *err)
{
    int r = vdev_read(v, addr, 1, buf);
    if (r < 0) {
        *ret_code = gr_fail(err, r, "device %u unit %llu: cannot read: %s", vmfs_addr_dev(addr), (unsigned long long)vmfs_addr_unit(addr),
                            gr_code_text(r));
        return COPY_BAD;
    }
    if (all_zero(buf))
        return COPY_FRESH;
    *ret_code = vhdr_check(v->sb.uuid, buf, type, 1, addr, err);
    return *ret_code < 0 ? COPY_BAD : COPY_VALID;
}

static uint64_t generation_of(const void *block)
{
    return gr_le64_get(((const struct vmfs_hdr_disk *)block)->generation);
}

int vhome_read(struct vmfs *v, const struct vtable *t, uint32_t index, uint32_t sub, unsigned type, void *buf, struct gr_err *err)
{
    struct gr_err ea = { 0 }, eb = { 0 };
    int ca = 0, cb = 0;
    uint8_t *b = vunits_alloc(1);
    if (!b)
        return gr_fail(err, -ENOMEM, "out of memory");
    enum copy_state a_state = copy_read(v, vhome_addr(t, index, sub, 0), type, buf, &ca, &ea);
    enum copy_state b_state = copy_read(v, vhome_addr(t, index, sub, 1), type, b, &cb, &eb);
    int r = 0;
    if (a_state == COPY_BAD && b_state == COPY_FRESH && ca == -GR_ECORRUPT) {
        memset(buf, 0, VMFS_UNIT); /* torn when it was written for the first time: copy B follows only when A is durable */
        r = 1;
    } else if (a_state == COPY_BAD && b_state != COPY_VALID) {
        bool damaged = ca == -GR_ECORRUPT || cb == -GR_ECORRUPT; /* or this host is shut out, or the device fails */
        r = gr_fail(err, ca, "%s: %s; %s", damaged ? "both copies are damaged" : "neither copy can be read", ea.text, b_state == COPY_BAD ? eb.text : "the other was never written");
    } else if (b_state == COPY_VALID && (a_state != COPY_VALID || generation_of(b) > generation_of(buf))) {
        if (a_state == COPY_BAD)
            vmfs_warn(v, "%s; its second copy is used", ea.text);
        memcpy(buf, b, VMFS_UNIT);
        vhdr_move(buf, 1, vhome_addr(t, index, sub, 0));
    } else if (a_state == COPY_FRESH) {
        r = 1;
    } else if (b_state == COPY_BAD) {
        vmfs_warn(v, "%s; the first copy is good", eb.text);
    }
    free(b);
    return r;
}

int vhome_write(struct vmfs *v, const struct vtable *t, uint32_t index, uint32_t sub, const void *block, struct gr_err *err)
{
    uint8_t *b = vunits_alloc(1);
    int r = b ? 0 : -ENOMEM;
    for (int copy = 0; r == 0 && copy < 2; copy++) {
        uint64_t addr = vhome_addr(t, index, sub, copy);
        memcpy(b, block, VMFS_UNIT);
        vhdr_move(b, 1, addr);
        r = vdev_write(v, addr, 1, b, GR_BIO_FUA);
        if (r < 0)
            gr_fail(err, r, "device %u unit %llu: cannot write: %s", vmfs_addr_dev(addr), (unsigned long long)vmfs_addr_unit(addr),
                    gr_code_text(r));
    }
    free(b);
    return r;
}

static uint64_t fresh_nonce(struct vmfs *v)
{
    const struct gr_world *w = gr_loop_world(v->loop);
    uint64_t n = 0;
    w->random(w->arg, &n, sizeof n);
    return n;
}

/* Region headers and inodes have their lock right behind the block header. */
static void put_lock(struct vmfs *v, uint8_t *block, unsigned type, uint64_t self, uint64_t generation, const struct vlock *l)
{
    vlock_put(l, (struct vmfs_lock_disk *)(block + sizeof(struct vmfs_hdr_disk)));
    vhdr_seal(v, block, type, 1, self, generation, v->slot);
}

int vhome_lock(struct vmfs *v, const struct vtable *t, uint32_t index, const void *old, struct vlock *l, void *block_out, struct gr_err *err)
{
    uint64_t a = vhome_addr(t, index, 0, 0);
    unsigned type = t == &v->sb.inodes ? VMFS_T_INODE : VMFS_T_REGION;
    uint8_t *raw = vunits_alloc(1), *new = vunits_alloc(1);
    int r = raw && new ? vdev_read(v, a, 1, raw) : -ENOMEM;
    if (r == 0 && memcmp(raw, old, VMFS_UNIT) != 0 && vhdr_check(v->sb.uuid, raw, type, 1, a, NULL) == 0 &&
        generation_of(raw) > generation_of(old))
        r = -GR_EMISCOMPARE; /* moved on since it was read */
    if (r == 0) {
        memcpy(new, old, VMFS_UNIT);
        if (!l->nonce)
            l->nonce = fresh_nonce(v);
        put_lock(v, new, type, a, generation_of(old) + 1, l);
        r = vdev_swap(v, a, raw, new);
        if (r == -GR_EMISCOMPARE && vdev_read(v, a, 1, raw) == 0 && memcmp(raw, new, VMFS_UNIT) == 0)
            r = 0; /* our own write whose answer was lost */
    }
    if (r == 0) {
        if (block_out)
            memcpy(block_out, new, VMFS_UNIT);
        vhdr_move(new, 1, vhome_addr(t, index, 0, 1));
        r = vdev_write(v, vhome_addr(t, index, 0, 1), 1, new, GR_BIO_FUA);
    }
    if (r < 0 && r != -GR_EMISCOMPARE)
        gr_fail(err, r, "device %u unit %llu: cannot lock: %s", vmfs_addr_dev(a), (unsigned long long)vmfs_addr_unit(a), gr_code_text(r));
    free(raw);
    free(new);
    return r;
}
