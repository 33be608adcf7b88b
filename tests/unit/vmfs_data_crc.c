/* Datastores that keep a CRC32C of every piece: what the device does not return as it was written is never handed on, wherever it is read
 * from, and everything that moves or shares pieces takes their CRCs along. */
#include "tests/lib/test.h"
#include "tests/lib/volfix.h"
#include "common/bdev.h"
#include "common/cleanup.h"
#include "snapshot/snapshot.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MIB (1ull << 20)
#define SIZE (16 * MIB)
struct site {
    struct volfix f;
    struct gr_mem *mem2;
    struct gr_bdev *dev2;
    char told[1024];
    unsigned n_told;
};

static void warned(void *arg, const char *text)
{
    struct site *s = arg;
    s->n_told++;
    snprintf(s->told, sizeof s->told, "%s", text);
}

static struct vmfs_join_opts joining(struct site *s)
{
    return (struct vmfs_join_opts){ .role = VMFS_HOST, .host_name = "crc", .warn = warned, .warn_arg = s };
}

static void make(struct site *s, bool data_crc)
{
    struct vmfs_info info;
    memset(s, 0, sizeof *s);
    const struct vmfs_join_opts o = joining(s);
    volfix_make(&s->f, 96 * MIB, "disk", SIZE, data_crc, &o);
    vmfs_info(s->f.v, &info);
    assert_int_equal(info.data_crc, data_crc);
}

/* Where the live head has the piece. */
static uint64_t place(struct site *s, uint64_t off)
{
    uint64_t addr = volfix_place(&s->f, &s->f.d->o->live, off);
    assert_int_not_equal(addr, 0);
    return addr;
}

/* Map and data come from the device again. */
static void again(struct site *s)
{
    const struct vmfs_join_opts o = joining(s);
    volfix_again(&s->f, &o);
}

/* As a host that is gone left it. */
static void crash(struct site *s)
{
    const struct vmfs_join_opts o = joining(s);
    volfix_close(&s->f);
    vmfs_abandon(s->f.v);
    volfix_join(&s->f, &o);
    volfix_open(&s->f);
}

static void fill(uint8_t *b, size_t len, uint64_t off, unsigned seed)
{
    for (size_t i = 0; i < len; i++)
        b[i] = (uint8_t)(seed + (off + i) / 512 * 7 + (off + i) % 251);
}

static void put(struct gr_chan *ch, uint64_t off, size_t len, unsigned seed)
{
    uint8_t *b = aligned_alloc(4096, (len + 4095) & ~4095ul);
    fill(b, len, off, seed);
    assert_int_equal(gr_pwrite(ch, b, len, off, 0), 0);
    free(b);
}

static int get(struct gr_chan *ch, uint64_t off, size_t len, unsigned seed)
{
    uint8_t *b = aligned_alloc(4096, (len + 4095) & ~4095ul), *want = malloc(len);
    memset(b, 0x5a, len);
    fill(want, len, off, seed);
    int r = gr_pread(ch, b, len, off);
    if (r == 0)
        assert_memory_equal(b, want, len);
    else /* nothing of it is handed on */
        for (size_t i = 0; i < len; i++)
            if (b[i] != 0x5a)
                assert_int_equal(b[i], 0);
    free(b);
    free(want);
    return r;
}

static uint64_t rotten(struct site *s)
{
    struct vmfs_stats st;
    vmfs_stats(s->f.v, &st);
    return st.rotten;
}

static int flipped(void *arg)
{
    struct site s;
    char where[64];
    (void)arg;
    make(&s, true);
    put(s.f.ch, 0, 256 << 10, 1);
    uint64_t addr = place(&s, 73728);
    volfix_flip(&s.f, addr, 4095);
    uint8_t *b = aligned_alloc(4096, 65536);
    struct iovec iov = { b, 65536 };
    struct gr_bio bio = { .op = GR_OP_READ, .off = 65536, .len = 65536, .iov = &iov, .iovcnt = 1 };
    assert_int_equal(gr_submit_wait(s.f.ch, &bio), -EIO);
    assert_int_equal(bio.bad_off, 73728 - 65536 + 1);
    assert_int_equal(rotten(&s), 1);
    snprintf(where, sizeof where, "device 0 ('%s')", s.f.dev->name);
    assert_non_null(strstr(s.told, "'ds1/disk' at byte 73728"));
    assert_non_null(strstr(s.told, where));
    snprintf(where, sizeof where, "its byte %llu:", (unsigned long long)vmfs_addr_unit(addr) * 4096);
    assert_non_null(strstr(s.told, where));
    unsigned told = s.n_told;
    assert_int_equal(get(s.f.ch, 73728, 4096, 1), -EIO);
    assert_int_equal(s.n_told, told); /* the same piece is not told over and over */
    assert_int_equal(get(s.f.ch, 0, 73728, 1), 0); /* its neighbours are well */
    assert_int_equal(get(s.f.ch, 77824, 180224, 1), 0);
    /* parts of it, and of what lies beside it */
    iov.iov_len = bio.len = 512;
    bio.off = 73728 + 512;
    assert_int_equal(gr_submit_wait(s.f.ch, &bio), -EIO);
    assert_int_equal(bio.bad_off, 1);
    iov.iov_len = bio.len = 4096;
    bio.off = 73728 - 1024;
    assert_int_equal(gr_submit_wait(s.f.ch, &bio), -EIO);
    assert_int_equal(bio.bad_off, 1025);
    free(b);
    assert_int_equal(get(s.f.ch, 73728 - 1024, 1024, 1), 0);
    assert_int_equal(get(s.f.ch, 77824, 512, 1), 0);
    /* a write that would need the rest of it is refused, a whole one heals it */
    b = aligned_alloc(4096, 4096);
    memset(b, 9, 4096);
    assert_int_equal(gr_pwrite(s.f.ch, b, 512, 73728, 0), -EIO);
    free(b);
    put(s.f.ch, 73728, 4096, 5);
    assert_int_equal(get(s.f.ch, 73728, 4096, 5), 0);
    assert_int_not_equal(place(&s, 73728), addr);
    volfix_unmake(&s.f);
    return 0;
}
static void any_flipped_bit_is_found(void **state)
{
    (void)state;
    test_in_fiber(flipped, NULL);
}

static int kept(void *arg)
{
    struct site s;
    (void)arg;
    make(&s, true);
    put(s.f.ch, 0, 65536, 1);            /* EXTENT */
    put(s.f.ch, MIB, 12288, 2);          /* the rest of its block reserved */
    OK(snap_create(&s.f.d, 1, "one", &err));
    put(s.f.ch, 4096, 4096, 3);          /* SPLIT */
    put(s.f.ch, 8 * MIB + 512, 3072, 4); /* merged with nothing */
    for (unsigned i = 0; i < 300; i++) /* many pieces one by one: a leaf of more units than without */
        put(s.f.ch, 10 * MIB + i * 7ull % 512 * 4096, 4096, 6 + i);
    for (unsigned round = 0; round < 3; round++) {
        assert_int_equal(get(s.f.ch, 0, 4096, 1), 0);
        assert_int_equal(get(s.f.ch, 4096, 4096, 3), 0);
        assert_int_equal(get(s.f.ch, 8192, 57344, 1), 0);
        assert_int_equal(get(s.f.ch, MIB, 12288, 2), 0);
        assert_int_equal(get(s.f.ch, 8 * MIB + 512, 3072, 4), 0);
        assert_int_equal(get(s.f.ch, 10 * MIB + 299 * 7ull % 512 * 4096, 4096, 305), 0);
        if (round == 0) {
            assert_int_equal(gr_flush(s.f.ch), 0);
            crash(&s);
        } else {
            again(&s);
        }
    }
    volfix_flip(&s.f, place(&s, 8192), 0);
    assert_int_equal(get(s.f.ch, 8192, 4096, 1), -EIO);
    volfix_flip(&s.f, place(&s, 4096), 77);
    assert_int_equal(get(s.f.ch, 4096, 4096, 3), -EIO);
    volfix_unmake(&s.f);
    return 0;
}
static void crcs_are_kept_by_the_map_and_by_replay(void **state)
{
    (void)state;
    test_in_fiber(kept, NULL);
}

static struct gr_chan *snapshot(struct site *s, const char *name, struct gr_bdev **ret)
{
    struct gr_chan *ch;
    OK(snap_open(s->f.d, name, ret, &err));
    assert_int_equal(gr_chan_open(*ret, s->f.loop, &ch), 0);
    return ch;
}

static int shared(void *arg)
{
    struct site s;
    struct gr_bdev *snap;
    (void)arg;
    make(&s, true);
    put(s.f.ch, 0, 2 * MIB, 1);
    OK(snap_create(&s.f.d, 1, "one", &err));
    put(s.f.ch, 4096, 4096, 2);
    OK(snap_clone(s.f.d, "one", "clone", &err));
    uint64_t addr = place(&s, 65536);
    struct vmfs_disk *to;
    struct gr_chan *copy;
    OK(vmfs_create(s.f.v, "copy", VMFS_DISK, SIZE, VMFS_THIN, &err));
    OK(vmfs_open(s.f.v, "copy", &to, NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(to), s.f.loop, &copy), 0);
    struct gr_bio bio = { .op = GR_OP_COPY, .off = 4 * MIB, .len = MIB, .copy_src = s.f.ch };
    assert_int_equal(gr_submit_wait(copy, &bio), 0);
    bio = (struct gr_bio){ .op = GR_OP_COPY, .off = 8 * MIB, .len = MIB, .copy_src = s.f.ch };
    assert_int_equal(gr_submit_wait(s.f.ch, &bio), 0); /* within the disk */
    uint8_t *b = aligned_alloc(4096, 4096), *want = malloc(4096);
    fill(want, 4096, 8192, 1);
    assert_int_equal(gr_pread(copy, b, 4096, 4 * MIB + 8192), 0);
    assert_memory_equal(b, want, 4096);
    assert_int_equal(gr_pread(s.f.ch, b, 4096, 8 * MIB + 8192), 0);
    assert_memory_equal(b, want, 4096);
    free(b);
    free(want);
    volfix_flip(&s.f, addr, 1000); /* all of them share it */
    struct gr_chan *ch = snapshot(&s, "one", &snap);
    assert_int_equal(get(ch, 65536, 4096, 1), -EIO);
    assert_int_equal(get(ch, 4096, 4096, 1), 0);
    gr_chan_close(ch);
    gr_bdev_put(snap);
    assert_int_equal(get(s.f.ch, 65536, 4096, 1), -EIO);
    assert_int_equal(get(s.f.ch, 8 * MIB + 65536, 4096, 0), -EIO);
    assert_int_equal(get(copy, 4 * MIB + 65536, 4096, 0), -EIO);
    gr_chan_close(copy);
    vmfs_close(to);
    put(s.f.ch, 65536, 4096, 4);
    OK(snap_revert(s.f.d, "one", &err));
    assert_int_equal(get(s.f.ch, 65536, 4096, 1), -EIO);
    assert_int_equal(get(s.f.ch, 4096, 4096, 1), 0);
    again(&s);
    assert_int_equal(get(s.f.ch, 65536, 4096, 1), -EIO);
    volfix_close(&s.f);
    s.f.path = "clone";
    volfix_open(&s.f);
    assert_int_equal(get(s.f.ch, 65536, 4096, 1), -EIO);
    assert_int_equal(get(s.f.ch, 4096, 4096, 1), 0);
    assert_int_equal(get(s.f.ch, 69632, 4096, 1), 0);
    volfix_unmake(&s.f);
    return 0;
}
static void snapshots_clones_copies_and_reverts_carry_them(void **state)
{
    (void)state;
    test_in_fiber(shared, NULL);
}

static int atomic(void *arg)
{
    struct site s;
    (void)arg;
    make(&s, true);
    put(s.f.ch, 0, 65536, 1);
    uint8_t *was = aligned_alloc(4096, 4096), *now = aligned_alloc(4096, 4096);
    fill(was, 4096, 8192, 1);
    fill(now, 4096, 8192, 2);
    assert_int_equal(gr_compare_write(s.f.ch, 8192, was, now, 4096, NULL), 0);
    assert_int_equal(get(s.f.ch, 8192, 4096, 2), 0);
    crash(&s);
    assert_int_equal(get(s.f.ch, 8192, 4096, 2), 0);
    volfix_flip(&s.f, place(&s, 8192), 5);
    assert_int_equal(gr_compare_write(s.f.ch, 8192, now, was, 4096, NULL), -EIO);
    assert_int_equal(get(s.f.ch, 8192, 4096, 2), -EIO);
    free(was);
    free(now);
    /* sanitizing cannot promise anything where overwrites leave the old bytes behind */
    struct gr_err err = { 0 };
    assert_int_equal(vmfs_bdev(s.f.d)->ops->exclusive(vmfs_bdev(s.f.d), &err), -EOPNOTSUPP);
    assert_non_null(strstr(err.text, "data CRCs"));
    struct gr_bio bio = { .op = GR_OP_SCRUB, .off = 0, .len = 65536 };
    assert_int_equal(gr_submit_wait(s.f.ch, &bio), -EOPNOTSUPP);
    volfix_unmake(&s.f);
    return 0;
}
static void atomic_writes_have_them_too(void **state)
{
    (void)state;
    test_in_fiber(atomic, NULL);
}

/* What is there can be written over and over on a full datastore, thin and thick, with and without a snapshot behind it. */
static int full(void *arg)
{
    struct site s;
    struct vmfs_info info;
    (void)arg;
    make(&s, true);
    put(s.f.ch, 0, 4 * MIB, 1);
    OK(vmfs_create(s.f.v, "thick", VMFS_DISK, 4 * MIB, VMFS_THICK, &err));
    struct vmfs_disk *thick, *filler;
    struct gr_chan *tch, *fch;
    OK(vmfs_open(s.f.v, "thick", &thick, NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(thick), s.f.loop, &tch), 0);
    put(tch, 0, 4 * MIB, 1);
    OK(vmfs_create(s.f.v, "filler", VMFS_DISK, 1024 * MIB, VMFS_THIN, &err));
    OK(vmfs_open(s.f.v, "filler", &filler, NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(filler), s.f.loop, &fch), 0);
    uint8_t *b = aligned_alloc(4096, 65536);
    memset(b, 7, 65536);
    int r = 0;
    for (uint64_t off = 0; r == 0; off += 65536)
        r = gr_pwrite(fch, b, 65536, off, 0);
    for (uint64_t off = 512 * MIB, e = 0; e == 0; off += 4096)
        e = (uint64_t)-gr_pwrite(fch, b, 4096, off, 0);
    free(b);
    assert_int_equal(r, -GR_ENOSPACE);
    vmfs_info(s.f.v, &info);
    for (unsigned round = 0; round < 6; round++)
        for (uint64_t off = 0; off < 4 * MIB; off += 65536) {
            put(s.f.ch, off + round % 2 * 8192, 16384, round);
            put(tch, off, 65536, round);
        }
    assert_int_equal(get(tch, 0, 4 * MIB, 5), 0);
    gr_chan_close(tch);
    vmfs_close(thick);
    gr_chan_close(fch);
    vmfs_close(filler);
    volfix_unmake(&s.f);
    return 0;
}
static void a_full_datastore_is_still_overwritten(void **state)
{
    (void)state;
    test_in_fiber(full, NULL);
}

/* A device leaves: what lay on it has the same CRCs elsewhere, and what had rotted there is not laundered. */
static int moved(void *arg)
{
    struct site s;
    struct vmfs_device_add add = { 0 };
    struct vmfs_device_remove rem = { 0 };
    (void)arg;
    make(&s, true);
    s.mem2 = gr_mem_new(96 * MIB);
    assert_int_equal(gr_bdev_mem_open(s.f.loop, s.mem2, &s.dev2), 0);
    struct vmfs_info info;
    vmfs_info(s.f.v, &info);
    OK(vmfs_create(s.f.v, "filler", VMFS_DISK, (info.free - 4 * MIB) & ~65535ull, VMFS_THICK, &err));
    OK(vmfs_device_add(s.f.v, s.dev2, &add, &err));
    put(s.f.ch, 0, 12 * MIB, 1);
    assert_int_equal(gr_flush(s.f.ch), 0);
    uint64_t off = 0;
    while (vmfs_addr_dev(place(&s, off)) != 1)
        off += 65536;
    struct gr_chan *raw2;
    uint8_t *b = aligned_alloc(4096, 4096);
    uint64_t at = vmfs_addr_unit(place(&s, off)) * 4096;
    assert_int_equal(gr_chan_open(s.dev2, s.f.loop, &raw2), 0);
    assert_int_equal(gr_pread(raw2, b, 4096, at), 0);
    b[0] ^= 1;
    assert_int_equal(gr_pwrite(raw2, b, 4096, at, 0), 0);
    free(b);
    gr_chan_close(raw2);
    OK(vmfs_remove(s.f.v, "filler", &err));
    OK(vmfs_settle(s.f.v, 10000));
    OK(vmfs_device_remove(s.f.v, 1, &rem, &err));
    gr_bdev_put(s.dev2);
    for (unsigned round = 0; round < 2; round++) {
        assert_int_equal(get(s.f.ch, off, 4096, 1), -EIO);
        assert_int_equal(get(s.f.ch, 0, off, 1), 0);
        assert_int_equal(get(s.f.ch, off + 4096, 12 * MIB - off - 4096, 1), 0);
        again(&s);
    }
    volfix_unmake(&s.f);
    gr_mem_free(s.mem2);
    return 0;
}
static void a_device_that_leaves_takes_none_away(void **state)
{
    (void)state;
    test_in_fiber(moved, NULL);
}

/* Without the option nothing of it is there, and writes go in place. */
static int without(void *arg)
{
    struct site s;
    struct vmfs_stats st;
    (void)arg;
    make(&s, false);
    put(s.f.ch, 0, 65536, 1);
    OK(vmfs_checkpoint(s.f.v, &err));
    uint64_t addr = place(&s, 0);
    put(s.f.ch, 0, 65536, 2);
    vmfs_stats(s.f.v, &st);
    assert_int_equal(st.writes_in_place, 1);
    assert_int_equal(place(&s, 0), addr);
    assert_null(s.f.d->o->live.root.mem->child[0].mem->ent[0].crc);
    volfix_unmake(&s.f);
    make(&s, true);
    put(s.f.ch, 0, 65536, 1);
    OK(vmfs_checkpoint(s.f.v, &err));
    addr = place(&s, 0);
    put(s.f.ch, 0, 65536, 2);
    vmfs_stats(s.f.v, &st);
    assert_int_equal(st.writes_in_place, 0);
    assert_int_not_equal(place(&s, 0), addr);
    volfix_unmake(&s.f);
    return 0;
}
static void such_a_datastore_always_redirects(void **state)
{
    (void)state;
    test_in_fiber(without, NULL);
}

TEST_MAIN(TEST(any_flipped_bit_is_found), TEST(crcs_are_kept_by_the_map_and_by_replay), TEST(snapshots_clones_copies_and_reverts_carry_them),
          TEST(atomic_writes_have_them_too), TEST(a_full_datastore_is_still_overwritten), TEST(a_device_that_leaves_takes_none_away),
          TEST(such_a_datastore_always_redirects))
