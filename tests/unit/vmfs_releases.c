/* Releases of different age on one volume: an older one (which knows fewer features of the format) and this one share it and take over from each
 * other; nothing the older one could not read is switched on while it is there, and it does not come back afterwards. */
#include "tests/lib/test.h"
#include "vmfs/internal.h"
#include <string.h>

#define MIB (1ull << 20)
#define OLDER (VMFS_INCOMPAT_FIRST | VMFS_INCOMPAT_FILES)

static struct gr_bdev *device(struct gr_mem *mem)
{
    struct gr_bdev *b;
    OK(gr_bdev_mem_open(gr_fiber_loop(), mem, &b));
    return b;
}

static int join(struct gr_bdev *dev, const char *who, uint64_t features, enum vmfs_role role, struct vmfs **ret, struct gr_err *err)
{
    struct vmfs_join_opts o = { .role = role, .host_name = who, .features = features };
    snprintf((char *)o.host_uuid, sizeof o.host_uuid, "%s", who);
    return vmfs_join(gr_fiber_loop(), &dev, 1, &o, ret, err);
}

static void put(struct vmfs *v, const char *path, uint8_t byte)
{
    struct vmfs_disk *d;
    struct gr_chan *ch;
    static uint8_t buf[4096];
    memset(buf, byte, sizeof buf);
    OK(vmfs_open(v, path, &d, NULL, &err));
    OK(gr_chan_open(vmfs_bdev(d), gr_fiber_loop(), &ch));
    OK(gr_pwrite(ch, buf, sizeof buf, 4096, 0));
    OK(gr_flush(ch));
    gr_chan_close(ch);
    vmfs_close(d);
}

static void shows(struct vmfs *v, const char *path, uint8_t byte)
{
    struct vmfs_disk *d;
    struct gr_chan *ch;
    uint8_t buf[4096];
    OK(vmfs_open(v, path, &d, NULL, &err));
    OK(gr_chan_open(vmfs_bdev(d), gr_fiber_loop(), &ch));
    OK(gr_pread(ch, buf, sizeof buf, 4096));
    gr_chan_close(ch);
    vmfs_close(d);
    for (size_t i = 0; i < sizeof buf; i++)
        assert_int_equal(buf[i], byte);
}

static int kek(void *arg, uint64_t id, uint8_t ret[32])
{
    (void)arg;
    (void)id;
    memset(ret, 7, 32);
    return 0;
}

/* As an older host answers what it has never heard of. */
static int no_such_method(void *arg, struct gr_err *e)
{
    (void)arg;
    return gr_fail(e, -ENOSYS, "no such method");
}

static int together_fn(void *arg)
{
    struct gr_mem *mem = gr_mem_new(128 * MIB);
    struct gr_bdev *da = device(mem), *db = device(mem);
    struct vmfs_format_opts f = { .name = "ds1" };
    struct vmfs *old, *now, *reader;
    uint8_t key[32];
    (void)arg;
    OK(vmfs_format(gr_fiber_loop(), &da, 1, &f, &err));
    OK(join(da, "old", OLDER, VMFS_HOST, &old, &err));
    struct vmfs_join_opts o = { .role = VMFS_HOST, .host_name = "now", .host_uuid = "now", .kek = kek, .recall = no_such_method };
    OK(vmfs_join(gr_fiber_loop(), &db, 1, &o, &now, &err));
    /* they work side by side */
    OK(vmfs_create(old, "d", VMFS_DISK, 8 * MIB, VMFS_THIN, &err));
    put(old, "d", 1);
    OK(vmfs_release(old, "d", &err));
    shows(now, "d", 1);
    put(now, "d", 2);
    OK(vmfs_release(now, "d", &err));
    shows(old, "d", 2);
    /* what the older one does not know stays off, and it is named */
    memset(key, 7, sizeof key);
    FAILS(-GR_EVERSION, "host 'old' runs a release of Granary that does not know encrypted disks",
          vmfs_create_encrypted(now, "secret", 8 * MIB, VMFS_THIN, 4096, vmfs_kek_id(key), &err));
    assert_false(now->sb.incompat & VMFS_INCOMPAT_ENCRYPTED);
    OK(vmfs_create(now, "folder/e", VMFS_DISK, MIB, VMFS_THIN, &err));
    FAILS(-GR_EVERSION, "host 'old' runs a release of Granary that does not know quotas", vmfs_quota_set(now, "folder", 16 * MIB, &err));
    OK(vmfs_known_to(now, OLDER, &err));
    put(old, "d", 3);
    /* it dies: the newer one takes over, and may go on once its slot is free */
    vmfs_abandon(old);
    gr_bdev_put(da);
    shows(now, "d", 3);
    OK(vmfs_create_encrypted(now, "secret", 8 * MIB, VMFS_THIN, 4096, vmfs_kek_id(key), &err));
    put(now, "secret", 4);
    FAILS(-GR_EVERSION, "uses features 0x20 that the other build does not know", vmfs_known_to(now, OLDER, &err));
    FAILS(-GR_EVERSION, "", vmfs_known_to(now, 0, &err));
    OK(vmfs_known_to(now, vmfs_features_known(), &err));
    da = device(mem);
    FAILS(-GR_EVERSION, "use a newer Granary", join(da, "old", OLDER, VMFS_HOST, &old, &err));
    FAILS(-GR_EVERSION, "", join(da, "old", OLDER, VMFS_READER, &old, &err));
    OK(vmfs_leave(now, &err));
    /* features that older ones can read: readers only */
    struct gr_chan *ch;
    struct vsuper s;
    uint8_t *b = aligned_alloc(4096, 4096);
    static const uint64_t at[] = { VMFS_SUPER_A, VMFS_SUPER_B };
    OK(gr_chan_open(da, gr_fiber_loop(), &ch));
    for (unsigned i = 0; i < 2; i++) {
        OK(gr_pread(ch, b, 4096, at[i] * 4096));
        OK(vsuper_decode(b, &s, &err));
        s.ro_compat = 1ull << 40;
        vsuper_encode(&s, vmfs_addr(0, at[i]), b);
        OK(gr_pwrite(ch, b, 4096, at[i] * 4096, 0));
    }
    gr_chan_close(ch);
    free(b);
    FAILS(-GR_EVERSION, "can only read", join(da, "now", 0, VMFS_HOST, &now, &err));
    OK(join(da, "now", 0, VMFS_READER, &reader, &err));
    OK(vmfs_leave(reader, &err));
    gr_bdev_put(da);
    gr_bdev_put(db);
    gr_mem_free(mem);
    return 0;
}

static void together(void **state)
{
    (void)state;
    test_in_fiber(together_fn, NULL);
}

/* One that joined while a feature was switched on finds it when it next looks, and does nothing more. */
static int late_fn(void *arg)
{
    struct gr_mem *mem = gr_mem_new(128 * MIB);
    struct gr_bdev *da = device(mem), *db = device(mem);
    struct vmfs_format_opts f = { .name = "ds1" };
    struct vmfs *old, *now;
    struct vmfs_disk *d;
    (void)arg;
    OK(vmfs_format(gr_fiber_loop(), &da, 1, &f, &err));
    OK(join(db, "now", 0, VMFS_HOST, &now, &err));
    OK(vmfs_create(now, "d", VMFS_DISK, 8 * MIB, VMFS_THIN, &err));
    OK(vmfs_release(now, "d", &err));
    OK(join(da, "old", OLDER, VMFS_HOST, &old, &err));
    struct vsuper s = now->sb; /* as if both had been at the same moment */
    s.generation++;
    s.incompat |= VMFS_INCOMPAT_QUOTA;
    OK(vsuper_write_all(now, &s, &err));
    struct vsuper later = now->sb; /* who has not seen that does not write over it */
    later.generation++;
    FAILS(-EAGAIN, "another host changed its superblock", vsuper_write_all(now, &later, &err));
    FAILS(-GR_EVERSION, "", vmfs_open(old, "d", &d, NULL, &err));
    vmfs_abandon(old);
    OK(vmfs_leave(now, &err));
    gr_bdev_put(da);
    gr_bdev_put(db);
    gr_mem_free(mem);
    return 0;
}

static void late(void **state)
{
    (void)state;
    test_in_fiber(late_fn, NULL);
}

TEST_MAIN(TEST(together), TEST(late))
