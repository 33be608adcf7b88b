/* Scrubbing: all that rots is found, once, wherever it lies and whatever shares it; copies of metadata are repaired; it goes at the rate it was
 * told, beside writes, and goes on where it was broken off. */
#include "tests/lib/test.h"
#include "tests/lib/volfix.h"
#include "common/bdev.h"
#include "common/cleanup.h"
#include "snapshot/snapshot.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MIB (1ull << 20)
struct site {
    struct volfix f;
    struct vmfs_scrub_report rep;
    char lines[8192];
    unsigned n_lines, calls;
    uint64_t stop_at, done; /* progress */
    bool meddle;
};
static const struct vmfs_join_opts joining = { .role = VMFS_HOST, .host_name = "scrub" };

static void make(struct site *s, bool data_crc)
{
    memset(s, 0, sizeof *s);
    volfix_make(&s->f, 512 * MIB, "a/disk", 256 * MIB, data_crc, &joining);
}

static void put(struct gr_chan *ch, uint64_t off, size_t len, unsigned seed)
{
    uint8_t *b = aligned_alloc(4096, len);
    for (size_t i = 0; i < len; i++)
        b[i] = (uint8_t)(seed + i / 4096 * 13 + i % 253);
    assert_int_equal(gr_pwrite(ch, b, len, off, 0), 0);
    free(b);
}

static void line(void *arg, const char *text)
{
    struct site *s = arg;
    size_t n = strlen(s->lines);
    s->n_lines++;
    snprintf(s->lines + n, sizeof s->lines - n, "%s\n", text);
}

static int progress(void *arg, uint64_t done, uint64_t all, struct gr_err *err)
{
    struct site *s = arg;
    assert_true(done <= all);
    s->calls++;
    s->done = done;
    if (s->meddle) { /* the disk is written, snapshotted, trimmed under it */
        char name[24];
        put(s->f.ch, s->calls * 3 % 200 * MIB, MIB, s->calls);
        snprintf(name, sizeof name, "m%u", s->calls);
        assert_int_equal(snap_create(&s->f.d, 1, name, err), 0);
        put(s->f.ch, s->calls * 5 % 200 * MIB, 65536, s->calls + 1);
        assert_int_equal(vmfs_checkpoint(s->f.v, err), 0);
        if (s->calls % 3 == 0)
            assert_int_equal(snap_delete(s->f.d, name, false, err), 0);
    }
    if (s->stop_at && done >= s->stop_at)
        return gr_fail(err, -ECANCELED, "stopped by the test");
    return 0;
}

static int scrub(struct site *s, uint64_t rate)
{
    struct vmfs_scrub_opts o = { .rate = rate, .line = line, .progress = progress, .arg = s };
    struct gr_err err = { 0 };
    s->lines[0] = 0;
    s->n_lines = s->calls = 0;
    return vmfs_scrub(s->f.v, &o, &s->rep, &err);
}

static int finds(void *arg)
{
    struct site s;
    struct vmfs_info info;
    char text[128];
    (void)arg;
    make(&s, true);
    vmfs_info(s.f.v, &info);
    assert_int_equal(info.scrubbed.started_s, 0);
    put(s.f.ch, 0, 4 * MIB, 1);
    OK(snap_create(&s.f.d, 1, "one", &err));
    put(s.f.ch, 65536, 4096, 2);
    OK(snap_clone(s.f.d, "one", "clone", &err));
    OK(vmfs_file_write(s.f.v, "note", NULL, "text", 4, &err));
    assert_int_equal(scrub(&s, 0), 0);
    assert_int_equal(s.rep.bytes, 4 * MIB + 4096 + 4096); /* what is shared is read once */
    assert_int_equal(s.rep.bad_pieces, 0);
    uint64_t shared = volfix_place(&s.f, &s.f.d->o->live, MIB), new = volfix_place(&s.f, &s.f.d->o->live, 65536);
    uint64_t old = volfix_place(&s.f, &s.f.d->o->snaps[0]->tree, 65536);
    volfix_flip(&s.f, shared, 2000);
    volfix_flip(&s.f, new, 2000);
    volfix_flip(&s.f, old, 2000);
    assert_int_equal(scrub(&s, 0), -GR_ECORRUPT);
    assert_int_equal(s.rep.bad_pieces, 3);
    assert_int_equal(s.n_lines, 3);
    snprintf(text, sizeof text, "'ds1/a/disk', snapshot number 1, at byte 1048576: device 0 ('%s') does not return what was written at its byte %llu",
             s.f.dev->name, (unsigned long long)vmfs_addr_unit(shared) * 4096);
    assert_non_null(strstr(s.lines, text));
    assert_non_null(strstr(s.lines, "'ds1/a/disk' at byte 65536"));
    vmfs_info(s.f.v, &info);
    assert_true(info.scrubbed.ended_s > 0);
    assert_int_equal(info.scrubbed.bad_pieces, 3);
    /* from the device, as nobody has it in memory; and kept by the volume */
    volfix_close(&s.f);
    OK(vmfs_leave(s.f.v, &err));
    volfix_join(&s.f, &joining);
    vmfs_info(s.f.v, &info);
    assert_int_equal(info.scrubbed.bad_pieces, 3);
    assert_int_equal(scrub(&s, 0), -GR_ECORRUPT);
    assert_int_equal(s.rep.bad_pieces, 3);
    volfix_flip(&s.f, shared, 2000);
    volfix_flip(&s.f, old, 2000);
    volfix_open(&s.f);
    put(s.f.ch, 65536, 4096, 2); /* written anew */
    assert_int_equal(scrub(&s, 0), 0);
    volfix_unmake(&s.f);
    return 0;
}
static void what_rots_is_found_once(void **state)
{
    (void)state;
    test_in_fiber(finds, NULL);
}

static int metadata(void *arg)
{
    struct site s;
    (void)arg;
    make(&s, false);
    put(s.f.ch, 0, MIB, 1);
    OK(vmfs_checkpoint(s.f.v, &err));
    volfix_flip(&s.f, vhome_addr(&s.f.v->sb.inodes, (uint32_t)s.f.d->o->id, 0, 1), 2000);
    volfix_flip(&s.f, vmfs_addr(0, VMFS_SUPER_B), 2000);
    volfix_flip(&s.f, volfix_place(&s.f, &s.f.d->o->live, 8192), 2000); /* nothing to tell it by on a datastore without data CRCs */
    assert_int_equal(scrub(&s, 0), 0);
    assert_int_equal(s.rep.repaired, 2);
    assert_int_equal(s.rep.bytes, MIB);
    assert_int_equal(scrub(&s, 0), 0);
    assert_int_equal(s.rep.repaired, 0);
    volfix_unmake(&s.f);
    return 0;
}
static void copies_of_metadata_are_repaired(void **state)
{
    (void)state;
    test_in_fiber(metadata, NULL);
}

static int resumes(void *arg)
{
    struct site s;
    struct vmfs_info info;
    (void)arg;
    make(&s, true);
    for (unsigned i = 0; i < 200; i++)
        put(s.f.ch, i * MIB, MIB, i);
    volfix_flip(&s.f, volfix_place(&s.f, &s.f.d->o->live, 3 * MIB), 2000);
    volfix_flip(&s.f, volfix_place(&s.f, &s.f.d->o->live, 190 * MIB), 2000);
    s.stop_at = 64 * MIB;
    assert_int_equal(scrub(&s, 0), -ECANCELED);
    uint64_t first = s.rep.bytes;
    assert_true(first >= 64 * MIB && first <= 129 * MIB);
    assert_int_equal(s.rep.bad_pieces, 1);
    vmfs_info(s.f.v, &info);
    assert_true(info.scrubbed.started_s > 0);
    assert_int_equal(info.scrubbed.ended_s, 0);
    volfix_close(&s.f);
    OK(vmfs_leave(s.f.v, &err));
    volfix_join(&s.f, &joining); /* another start goes on */
    volfix_open(&s.f);
    s.stop_at = 0;
    assert_int_equal(scrub(&s, 0), -GR_ECORRUPT);
    assert_true(s.rep.resumed);
    assert_int_equal(s.rep.bytes, 200 * MIB);
    assert_int_equal(s.rep.bad_pieces, 2);
    assert_int_equal(s.n_lines, 1); /* the other was told before */
    put(s.f.ch, 3 * MIB, 4096, 1);
    put(s.f.ch, 190 * MIB, 4096, 1);
    assert_int_equal(scrub(&s, 0), 0); /* a new one, from the beginning */
    assert_false(s.rep.resumed);
    assert_int_equal(s.rep.bytes, 200 * MIB);
    volfix_unmake(&s.f);
    return 0;
}
static void it_goes_on_where_it_was_broken_off(void **state)
{
    (void)state;
    test_in_fiber(resumes, NULL);
}

static int beside(void *arg)
{
    struct site s;
    (void)arg;
    make(&s, true);
    for (unsigned i = 0; i < 200; i++)
        put(s.f.ch, i * MIB, MIB, i);
    s.meddle = true;
    uint64_t t0 = gr_loop_now_ns(s.f.loop);
    assert_int_equal(scrub(&s, 250 * MIB), 0);
    uint64_t ms = (gr_loop_now_ns(s.f.loop) - t0) / 1000000;
    assert_true(s.rep.bytes >= 200 * MIB);
    if (ms < s.rep.bytes / MIB * 1000 / 250 - 60)
        fail_msg("%llu MiB took %llu ms", (unsigned long long)(s.rep.bytes / MIB), (unsigned long long)ms);
    assert_true(s.calls > 4);
    s.meddle = false;
    volfix_unmake(&s.f);
    return 0;
}
static void it_keeps_the_rate_beside_writes(void **state)
{
    (void)state;
    test_in_fiber(beside, NULL);
}

/* What the look at the metadata has read is owed at the rate, too. */
static int metadata_counts(void *arg)
{
    struct site s;
    (void)arg;
    make(&s, true);
    put(s.f.ch, 0, 65536, 1);
    assert_int_equal(scrub(&s, 0), 0);
    uint64_t all = s.rep.metadata, t0 = gr_loop_now_ns(s.f.loop);
    assert_true(all > 2 * (uint64_t)s.f.v->sb.slots.entries * VMFS_UNIT); /* at least both copies of each slot */
    assert_int_equal(scrub(&s, all * 2), 0);
    uint64_t ms = (gr_loop_now_ns(s.f.loop) - t0) / 1000000;
    if (ms < 440)
        fail_msg("%llu bytes of metadata took %llu ms", (unsigned long long)all, (unsigned long long)ms);
    volfix_unmake(&s.f);
    return 0;
}
static void metadata_has_the_rate_too(void **state)
{
    (void)state;
    test_in_fiber(metadata_counts, NULL);
}

/* A snapshot taken behind the cursor does not hide from it what the live head had before it. */
static int snapped(void *arg)
{
    struct site s;
    (void)arg;
    make(&s, true);
    for (unsigned i = 0; i < 150; i++)
        put(s.f.ch, i * MIB, MIB, i);
    volfix_flip(&s.f, volfix_place(&s.f, &s.f.d->o->live, 140 * MIB), 2000);
    struct vmfs_scrub_opts o = { .rate = 0, .line = line, .progress = progress, .arg = &s };
    s.meddle = true;
    assert_int_equal(vmfs_scrub(s.f.v, &o, &s.rep, NULL), -GR_ECORRUPT);
    assert_int_equal(s.rep.bad_pieces, 1);
    s.meddle = false;
    volfix_unmake(&s.f);
    return 0;
}
static void a_snapshot_meanwhile_hides_nothing(void **state)
{
    (void)state;
    test_in_fiber(snapped, NULL);
}

TEST_MAIN(TEST(what_rots_is_found_once), TEST(copies_of_metadata_are_repaired), TEST(it_goes_on_where_it_was_broken_off),
          TEST(it_keeps_the_rate_beside_writes), TEST(metadata_has_the_rate_too), TEST(a_snapshot_meanwhile_hides_nothing))
