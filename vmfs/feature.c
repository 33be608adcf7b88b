/* Releases of different age on one volume. A feature that an older release does not understand is switched on when something first needs it, and
 * only while every host that has joined knows it: each slot says what its host's software knows. Who joins meanwhile reads the superblock again
 * behind the claim of its slot, so it sees the feature, or is seen. */
#include "vmfs/internal.h"

int vfeature_all_know(struct vmfs *v, uint64_t bit, const char *what, struct gr_err *err)
{
    for (unsigned i = 0; i < v->sb.slots.entries; i++) {
        struct vslot s;
        int r = (v->joined || v->replaying) && i == v->slot ? 1 : vslot_read(v, i, &s, err); /* replaying: its host is gone */
        if (r < 0)
            return r;
        if (r == 1 || s.state == VMFS_SLOT_FREE || (s.features ? s.features : VMFS_INCOMPAT_FIRST) & bit)
            continue;
        return gr_fail(err, -GR_EVERSION, "datastore '%s': host '%s' runs a release of Granary that does not know %s: upgrade it, or leave the datastore there, first",
                       v->sb.name, s.host_name, what);
    }
    return 0;
}

int vfeature_on(struct vmfs *v, uint64_t bit, const char *what, struct gr_err *err)
{
    gr_fmutex_lock(&v->ckpt_lock); /* the other writer of superblocks */
    int r = vmfs_refresh(v, err);
    if (r == 0 && !(v->sb.incompat & bit) && (r = vfeature_all_know(v, bit, what, err)) == 0) {
        struct vsuper s = v->sb;
        s.generation++;
        s.incompat |= bit;
        r = vsuper_write_all(v, &s, err);
        if (r < 0 && r != -EAGAIN)
            vmfs_fence(v, "a superblock could not be written: nobody knows what it says");
        else if (r == 0)
            vsuper_ours(v, &s);
    }
    gr_fmutex_unlock(&v->ckpt_lock);
    return r;
}

int vmfs_known_to(const struct vmfs *v, uint64_t features, struct gr_err *err)
{
    uint64_t unknown = v->sb.incompat & ~(features ? features : VMFS_INCOMPAT_FIRST);
    return unknown ? gr_fail(err, -GR_EVERSION, "datastore '%s' uses features 0x%llx that the other build does not know: use a newer Granary", v->sb.name,
                             (unsigned long long)unknown)
                   : 0;
}

int vfeature_check(const struct vmfs *v, const struct vsuper *s, struct gr_err *err)
{
    uint64_t unknown = s->incompat & ~v->features, readers_only = v->role == VMFS_HOST ? s->ro_compat & ~VMFS_RO_COMPAT_KNOWN : 0;
    if (unknown)
        return gr_fail(err, -GR_EVERSION, "datastore '%s' uses features 0x%llx that this build does not know: use a newer Granary", s->name,
                       (unsigned long long)unknown);
    if (readers_only)
        return gr_fail(err, -GR_EVERSION, "datastore '%s' uses features 0x%llx that this build can only read: use a newer Granary to write to it", s->name,
                       (unsigned long long)readers_only);
    return 0;
}
