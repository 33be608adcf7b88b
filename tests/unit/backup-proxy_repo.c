/* The repository: damage is found, collection takes nothing that is needed, leases and interrupted work, full file systems. */
#include "backup-proxy/catalogue.h"
#include "backup-proxy/gc.h"
#include "backup-proxy/tree.h"
#include "backup-proxy/verify.h"
#include "common/cleanup.h"
#include "common/crc.h"
#include "common/fiber.h"
#include "tests/lib/repo_rig.h"
#include <fcntl.h>
#include <inttypes.h>
#include <sqlite3.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>

static struct gr_loop *loop;
#define FIBER_TEST(fn)                                          \
    static int fn##_fiber(void *arg);                           \
    static void fn(void **state)                                \
    {                                                           \
        assert_int_equal(gr_fiber_run(loop, fn##_fiber, NULL), 0); \
    }                                                           \
    static int fn##_fiber(void *arg)

/* ---- damage ---- */
static int note_pack(void *arg, uint64_t id, uint64_t bytes)
{
    uint64_t *v = arg;
    assert_true(v[0] < 16);
    v[++v[0]] = id;
    return 0;
}
static unsigned verify_all(struct repo_rig *g, unsigned *ret_affected)
{
    json_t *ids = NULL;
    struct bp_verify v;
    struct gr_err err = {0};
    assert_int_equal(bp_point_ids(g->repo, NULL, &ids, &err), 0);
    if (bp_verify_points(g->repo, ids, NULL, NULL, &v, &err) < 0)
        fail_msg("verify: %s", err.text);
    unsigned n = (unsigned)json_array_size(v.damage);
    *ret_affected = (unsigned)json_array_size(v.affected);
    json_decref(v.damage);
    json_decref(v.affected);
    json_decref(ids);
    return n;
}
static void flip(int fd, off_t at, uint8_t mask)
{
    uint8_t b;
    assert_int_equal(pread(fd, &b, 1, at), 1);
    b ^= mask;
    assert_int_equal(pwrite(fd, &b, 1, at), 1);
}
FIBER_TEST(bit_flips)
{
    struct repo_rig g;
    struct gr_err err = {0};
    uint64_t packs[17] = {0};
    unsigned found = 0, harmless = 0, affected;
    rig_open(&g, loop, "flips", 2u << 20, test_seed());
    rig_write(&g, 0, 40960);
    rig_write(&g, 1u << 20, 8192);
    assert_int_equal(rig_backup(&g, "ds/a", true, &err), 0);
    rig_write(&g, 4096, 4096);
    rig_write(&g, 1900544, 12288);
    assert_int_equal(rig_backup(&g, "ds/a", false, &err), 0);
    assert_int_equal(verify_all(&g, &affected), 0);
    assert_int_equal(bp_pack_list(g.repo, note_pack, packs, &err), 0);
    assert_true(packs[0] >= 4);
    for (unsigned i = 1; i <= packs[0]; i++) {
        char name[64];
        bp_pack_name(packs[i], name);
        int fd = openat(bp_repo_dirfd(g.repo), name, O_RDWR | O_CLOEXEC);
        struct stat st;
        assert_true(fd >= 0 && fstat(fd, &st) == 0);
        for (off_t at = 0; at < st.st_size; at += at < 130 || st.st_size - at < 20 ? 3 : 499) {
            uint8_t mask = (uint8_t)(1u << (test_rand(&g.rnd) % 8));
            flip(fd, at, mask);
            bp_repo_close(g.repo); /* open packs and their checked headers are cached */
            assert_int_equal(bp_repo_open(g.dir, &g.repo, &err), 0);
            if (verify_all(&g, &affected) > 0) {
                found++;
                assert_true(affected > 0);
            } else { /* then it must be harmless: padding, or the trailer */
                harmless++;
                assert_int_equal(rig_check(&g, 0), 1);
                assert_int_equal(rig_check(&g, 1), 1);
            }
            flip(fd, at, mask);
        }
        close(fd);
    }
    print_message("flips: %u found, %u harmless\n", found, harmless);
    assert_true(found > 100 && harmless < found);
    for (unsigned p = 0; p < 2; p++) { /* manifests: every byte */
        gr_auto_free char *file = bp_point_file(g.point[p].id);
        int fd = openat(bp_repo_dirfd(g.repo), file, O_RDWR | O_CLOEXEC);
        struct stat st;
        assert_true(fd >= 0 && fstat(fd, &st) == 0);
        for (off_t at = 0; at < st.st_size; at++) {
            struct bp_point point;
            flip(fd, at, 0x10);
            assert_true(bp_point_load(g.repo, g.point[p].id, &point, &err) < 0);
            flip(fd, at, 0x10);
        }
        assert_int_equal(ftruncate(fd, st.st_size - 2), 0);
        struct bp_point point;
        assert_int_equal(bp_point_load(g.repo, g.point[p].id, &point, &err), -GR_ECORRUPT);
        close(fd);
    }
    rig_close(&g);
    return 0;
}

FIBER_TEST(damaged_base_is_not_reused)
{
    struct repo_rig g;
    struct gr_err err = {0};
    uint64_t packs[17] = {0};
    rig_open(&g, loop, "poison", 1u << 20, 5);
    rig_write(&g, 0, 65536);
    assert_int_equal(rig_backup(&g, "ds/a", true, &err), 0);
    assert_int_equal(bp_pack_list(g.repo, note_pack, packs, &err), 0);
    for (unsigned i = 1; i <= packs[0]; i++) { /* rot in the data pack; same size, wrong bytes */
        char name[64];
        bp_pack_name(packs[i], name);
        int fd = openat(bp_repo_dirfd(g.repo), name, O_RDWR | O_CLOEXEC);
        struct extent_header_disk h;
        assert_int_equal(pread(fd, &h, sizeof h, 64), sizeof h);
        if (h.kind == REPO_DATA)
            flip(fd, 64 + 64 + 1000, 1);
        close(fd);
    }
    assert_int_equal(rig_backup(&g, "ds/a", true, &err), 0); /* the same bytes again: hashes are known, but what is stored is bad */
    assert_true(rig_check(&g, 0) < 0);
    assert_int_equal(rig_check(&g, 1), 1);
    rig_close(&g);
    return 0;
}

/* ---- deduplication ---- */
static int sum_packs(void *arg, uint64_t id, uint64_t bytes)
{
    *(uint64_t *)arg += bytes;
    return 0;
}
FIBER_TEST(same_bytes_are_kept_once)
{
    struct repo_rig g;
    struct gr_err err = {0};
    uint64_t first = 0, second = 0;
    rig_open(&g, loop, "twice", 8u << 20, 9);
    rig_write(&g, 0, 4u << 20);
    assert_int_equal(rig_backup(&g, "ds/a", true, &err), 0);
    assert_int_equal(bp_pack_list(g.repo, sum_packs, &first, &err), 0);
    assert_int_equal(rig_backup(&g, "ds/b", true, &err), 0); /* another name: through the index */
    assert_int_equal(rig_backup(&g, "ds/a", true, &err), 0); /* a full with a parent: through its map */
    assert_int_equal(bp_pack_list(g.repo, sum_packs, &second, &err), 0);
    assert_true(second - first < first / 20);
    for (unsigned i = 0; i < g.points; i++)
        assert_int_equal(rig_check(&g, i), 1);
    rig_close(&g);
    return 0;
}

/* The index grows with what it holds, and forgets little on the way. */
FIBER_TEST(index_grows)
{
    struct repo_rig g;
    struct gr_err err = {0};
    struct bp_lease *l = NULL;
    struct bp_packer *p = NULL;
    struct bp_codec c = {0};
    static uint8_t raw[REPO_PIECE], enc[BP_ENCODED_MAX];
    unsigned found = 0, n = 60000;
    rig_open(&g, loop, "index", 1u << 20, 3);
    assert_int_equal(bp_lease_take(g.repo, BP_LEASE_WRITER, "", &l, &err), 0);
    assert_int_equal(bp_packer_new(g.repo, l, &p, &err), 0);
    for (unsigned i = 0; i < n; i++) {
        struct bp_ref ref;
        memcpy(raw, &i, sizeof i);
        raw[9] = 1;
        int len = bp_extent_encode(&c, REPO_DATA, raw, sizeof raw, NULL, 1, enc);
        assert_true(len > 0);
        assert_int_equal(bp_packer_add(p, enc, (size_t)len, &ref, &err), 0);
    }
    assert_int_equal(bp_packer_seal(p, &err), 0);
    bp_packer_free(p);
    bp_lease_drop(l);
    bp_repo_close(g.repo);
    assert_int_equal(bp_repo_open(g.dir, &g.repo, &err), 0);
    for (unsigned i = 0; i < n; i++) {
        uint8_t hash[32];
        struct bp_ref ref;
        memcpy(raw, &i, sizeof i);
        bp_sha256(raw, sizeof raw, hash);
        found += (unsigned)bp_dedupe_find(g.repo, &c, hash, sizeof raw, &ref);
    }
    struct stat st;
    assert_int_equal(fstatat(bp_repo_dirfd(g.repo), "index/dedupe", &st, 0), 0);
    print_message("%u of %u found in %lld KiB\n", found, n, (long long)st.st_size / 1024);
    assert_true(found > n / 10 * 9 && st.st_size > DEDUPE_MIN * 128);
    bp_codec_done(&c);
    rig_close(&g);
    return 0;
}

/* ---- collection: random histories against what must stay readable ---- */
FIBER_TEST(collections)
{
    struct repo_rig g;
    struct gr_err err = {0};
    uint64_t removed = 0, after = 0;
    rig_open(&g, loop, "gc", 16u << 20, test_seed());
    for (unsigned step = 0; step < 60 && g.points < RIG_POINTS - 1; step++) {
        unsigned what = (unsigned)(test_rand(&g.rnd) % 10);
        if (what < 5) {
            for (unsigned i = 0; i < 1 + step % 4; i++)
                rig_write(&g, test_rand(&g.rnd) % 3900 * 4096, (1 + test_rand(&g.rnd) % 30) * 4096);
            struct bp_change c[1] = {g.changes[0]}; /* keep the list disjoint: one change a backup when they might overlap */
            if (g.n_changes > 1) {
                c[0].len = 16u << 20;
                c[0].off = 0;
                g.changes[0] = c[0];
                g.n_changes = 1;
            }
            size_t pending = g.n_changes; /* a backup of b says nothing about a */
            assert_int_equal(rig_backup(&g, what < 3 ? "ds/a" : "ds/b", what >= 3, &err), 0);
            g.n_changes = what < 3 ? 0 : pending;
        } else if (what < 8 && g.points > 1) {
            unsigned i = (unsigned)(test_rand(&g.rnd) % g.points);
            if (!g.point[i].gone) {
                assert_int_equal(bp_point_remove(g.repo, g.point[i].id, &err), 0);
                g.point[i].gone = true;
            }
        } else {
            struct bp_gc_stats st;
            if (bp_gc(g.repo, &st, &err) < 0)
                fail_msg("gc: %s", err.text);
            removed += st.removed_packs;
        }
    }
    for (unsigned i = 0; i < g.points; i++)
        assert_int_equal(g.point[i].gone ? rig_check(&g, i) < 0 : rig_check(&g, i), 1);
    for (unsigned i = 0; i < g.points; i++)
        if (!g.point[i].gone)
            assert_int_equal(bp_point_remove(g.repo, g.point[i].id, &err), 0);
    struct bp_gc_stats st;
    assert_int_equal(bp_gc(g.repo, &st, &err), 0);
    assert_int_equal(bp_pack_list(g.repo, sum_packs, &after, &err), 0);
    assert_int_equal(after, 0); /* nothing is needed, nothing stays */
    print_message("collections removed %llu packs\n", (unsigned long long)(removed + st.removed_packs));
    assert_true(removed + st.removed_packs > 5);
    rig_close(&g);
    return 0;
}
FIBER_TEST(collection_and_leases)
{
    struct repo_rig g;
    struct gr_err err = {0};
    struct bp_gc_stats st;
    struct bp_lease *writer = NULL, *late = NULL;
    uint8_t hash[32];
    rig_open(&g, loop, "leases", 8u << 20, 3);
    rig_write(&g, 0, 1u << 20);
    assert_int_equal(rig_backup(&g, "ds/a", true, &err), 0);
    /* a reader of a pruned point keeps its bytes */
    struct gr_bdev *b = NULL;
    struct gr_chan *ch = NULL;
    assert_int_equal(bp_point_open(loop, g.repo, g.point[0].id, NULL, &b, &err), 0);
    assert_int_equal(gr_chan_open(b, loop, &ch), 0);
    assert_int_equal(bp_point_remove(g.repo, g.point[0].id, &err), 0);
    assert_int_equal(bp_gc(g.repo, &st, &err), 0);
    assert_int_equal(st.removed_packs, 0);
    static uint8_t buf[1u << 20];
    assert_int_equal(gr_pread(ch, buf, sizeof buf, 0), 0);
    assert_int_equal(rig_hash(&g, g.point[0].id, hash), -ENOENT); /* but nobody new gets in */
    gr_chan_close(ch);
    gr_bdev_put(b);
    /* a writer that was there before keeps condemned packs; one that came later does not use them */
    assert_int_equal(bp_lease_take(g.repo, BP_LEASE_WRITER, "", &writer, &err), 0);
    assert_int_equal(bp_gc(g.repo, &st, &err), 0);
    assert_true(st.removed_packs == 0 && st.waiting_packs > 0);
    assert_int_equal(bp_lease_take(g.repo, BP_LEASE_WRITER, "", &late, &err), 0);
    bp_lease_drop(writer);
    uint64_t packs[17] = {0};
    assert_int_equal(bp_pack_list(g.repo, note_pack, packs, &err), 0);
    assert_true(bp_condemned(g.repo, packs[1]));
    assert_int_equal(rig_backup(&g, "ds/b", true, &err), 0); /* same bytes: stored anew */
    bp_lease_drop(late);
    assert_int_equal(bp_gc(g.repo, &st, &err), 0);
    assert_true(st.removed_packs > 0);
    assert_int_equal(rig_check(&g, 1), 1);
    /* what a dead lease left is swept: its files, not those of the living */
    assert_int_equal(bp_lease_take(g.repo, BP_LEASE_WRITER, "", &writer, &err), 0);
    gr_auto_free char *mine = gr_asprintf("%s/tmp/%s-0000000000000001.pack", g.dir, bp_lease_id(writer));
    gr_auto_free char *dead = gr_asprintf("%s/tmp/11111111-2222-3333-4444-555555555555-0000000000000001.pack", g.dir);
    close(open(mine, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
    close(open(dead, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
    assert_int_equal(bp_repo_sweep(g.repo, &err), 1);
    assert_int_equal(access(mine, F_OK), 0);
    assert_int_not_equal(access(dead, F_OK), 0);
    bp_lease_drop(writer);
    assert_int_equal(bp_repo_sweep(g.repo, &err), 1);
    rig_close(&g);
    return 0;
}

/* ---- hostile maps: well-formed extents with a hostile inside ---- */
struct node_case {
    const char *what;
    unsigned at, width;
    uint64_t value;
};
static void put_le(uint8_t *p, uint64_t v, unsigned width)
{
    for (unsigned i = 0; i < width; i++)
        p[i] = (uint8_t)(v >> (8 * i));
}
FIBER_TEST(hostile_nodes)
{
    static const struct node_case cases[] = {
        {"magic", 0, 4, 0},          {"level", 4, 1, 3},        {"version", 5, 1, 2},      {"count too large", 6, 2, 65535},
        {"first unit", 8, 8, 64},    {"slot 64", 16, 1, 64},    {"parts 0", 17, 1, 0},     {"parts 17", 17, 1, 17},
        {"piece 16", 20, 1, 16},     {"piece 64", 20, 1, 64},     {"count 0", 21, 1, 0},     {"count 17", 21, 1, 17},   {"source outside", 22, 1, 16},
        {"raw 0", 20 + 4 + 16, 4, 0}, {"raw not pieces", 20 + 4 + 16, 4, 100}, {"raw huge", 20 + 4 + 16, 4, UINT32_MAX},
        {"stored 0", 20 + 4 + 12, 4, 0}, {"stored huge", 20 + 4 + 12, 4, 1u << 30},
        {"count one less: bytes left over", 6, 2, 1},
    };
    static struct bp_node n, back;
    static uint8_t good[REPO_NODE_MAX], bad[REPO_NODE_MAX];
    struct gr_err err = {0};
    memset(&n, 0, sizeof n);
    for (unsigned i = 3; i < 5; i++) {
        n.unit[i].n = 1;
        n.unit[i].part[0] = (struct bp_part){0, 16, 0, {.pack = 7, .off = 64, .stored = 100, .raw = 65536}};
    }
    int len = bp_node_encode(&n, good, sizeof good);
    assert_true(len > 0);
    assert_int_equal(bp_node_decode(good, (size_t)len, 0, 0, &back, &err), 0);
    assert_memory_equal(&n.unit[3].part[0], &back.unit[3].part[0], sizeof n.unit[3].part[0]);
    for (unsigned i = 0; i < GR_ARRAY_LEN(cases); i++) {
        memcpy(bad, good, (size_t)len);
        put_le(bad + cases[i].at, cases[i].value, cases[i].width);
        if (bp_node_decode(bad, (size_t)len, 0, 0, &back, &err) != -GR_ECORRUPT)
            fail_msg("%s was accepted", cases[i].what);
    }
    for (int cut = 0; cut < len; cut++)
        assert_int_equal(bp_node_decode(good, (size_t)cut, 0, 0, &back, &err), -GR_ECORRUPT);
    return 0;
}
FIBER_TEST(hostile_extents)
{
    /* a bomb: 64 KiB of zeros whose map claims 4 KiB; and an extent under another's name */
    struct repo_rig g;
    struct gr_err err = {0};
    struct bp_lease *l = NULL;
    struct bp_packer *p = NULL;
    struct bp_codec c = {0};
    struct bp_ref big, other;
    static uint8_t raw[REPO_UNIT], enc[BP_ENCODED_MAX], out[REPO_UNIT];
    rig_open(&g, loop, "bomb", 1u << 20, 3);
    assert_int_equal(bp_lease_take(g.repo, BP_LEASE_WRITER, "", &l, &err), 0);
    assert_int_equal(bp_packer_new(g.repo, l, &p, &err), 0);
    int n = bp_extent_encode(&c, REPO_DATA, raw, REPO_UNIT, NULL, 3, enc);
    assert_true(n > 0 && n < 200);
    assert_int_equal(bp_packer_add(p, enc, (size_t)n, &big, &err), 0);
    raw[0] = 1;
    n = bp_extent_encode(&c, REPO_DATA, raw, REPO_UNIT, NULL, 3, enc);
    assert_int_equal(bp_packer_add(p, enc, (size_t)n, &other, &err), 0);
    assert_int_equal(bp_packer_seal(p, &err), 0);
    bp_packer_free(p);
    assert_int_equal(bp_extent_read(g.repo, &c, REPO_DATA, &big, out, &err), 0);
    struct bp_ref lie = big;
    lie.raw = 4096;
    assert_int_equal(bp_extent_read(g.repo, &c, REPO_DATA, &lie, out, &err), -GR_ECORRUPT);
    lie = other;
    memcpy(lie.hash, big.hash, 32);
    assert_int_equal(bp_extent_read(g.repo, &c, REPO_DATA, &lie, out, &err), -GR_ECORRUPT);
    lie = big;
    lie.off = UINT32_MAX - 5;
    assert_int_equal(bp_extent_read(g.repo, &c, REPO_DATA, &lie, out, &err), -GR_ECORRUPT);
    lie = big;
    lie.pack ^= 1;
    assert_int_equal(bp_extent_read(g.repo, &c, REPO_DATA, &lie, out, &err), -GR_ECORRUPT);
    assert_int_equal(bp_extent_read(g.repo, &c, REPO_MAP, &big, out, &err), -GR_ECORRUPT);
    bp_codec_done(&c);
    bp_lease_drop(l);
    /* a pack renamed to another's name, a truncated one */
    char from[64], to[64];
    bp_pack_name(big.pack, from);
    bp_pack_name(big.pack ^ 1, to);
    assert_int_equal(renameat(bp_repo_dirfd(g.repo), from, bp_repo_dirfd(g.repo), to), 0);
    bp_repo_close(g.repo);
    assert_int_equal(bp_repo_open(g.dir, &g.repo, &err), 0);
    lie = big;
    lie.pack ^= 1;
    assert_int_equal(bp_extent_read(g.repo, &c, REPO_DATA, &lie, out, &err), -GR_ECORRUPT);
    bp_codec_done(&c);
    rig_close(&g);
    return 0;
}

/* ---- catalogue ---- */
static char *listing(struct repo_rig *g)
{
    struct bp_catalogue *c = NULL;
    json_t *rows = NULL;
    struct gr_err err = {0};
    if (bp_catalogue_open(g->repo, &c, &err) < 0 || bp_catalogue_list(c, NULL, &rows, &err) < 0)
        fail_msg("%s", err.text);
    char *text = json_dumps(rows, JSON_INDENT(1) | JSON_SORT_KEYS);
    json_decref(rows);
    bp_catalogue_close(c);
    return text;
}
static void exec_sql(const char *path, const char *text)
{
    sqlite3 *db = NULL;
    assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
    (void)sqlite3_exec(db, text, NULL, NULL, NULL);
    sqlite3_close(db);
}
FIBER_TEST(catalogue_is_a_cache)
{
    struct repo_rig g;
    struct gr_err err = {0};
    rig_open(&g, loop, "cat", 1u << 20, 3);
    for (unsigned i = 0; i < 5; i++) {
        rig_write(&g, i * 65536, 4096);
        assert_int_equal(rig_backup(&g, i % 2 ? "ds/b" : "ds/a/deep~%er", false, &err), 0);
    }
    gr_auto_free char *db = gr_asprintf("%s/catalogue.db", g.dir), *want = listing(&g);
    assert_non_null(strstr(want, "ds/a/deep~%er/2023"));
    static const char *const harm[] = {
        NULL, /* deleted */
        "DELETE FROM point", "UPDATE point SET mtime=0", "DROP TABLE point", "CREATE TRIGGER t AFTER UPDATE ON point BEGIN DELETE FROM point; END",
        "CREATE VIEW v AS SELECT 1", "ALTER TABLE point ADD COLUMN x", "PRAGMA user_version=99", "CREATE TABLE other(x)",
    };
    for (unsigned i = 0; i < GR_ARRAY_LEN(harm); i++) {
        if (harm[i])
            exec_sql(db, harm[i]);
        else
            assert_int_equal(unlink(db), 0);
        gr_auto_free char *got = listing(&g);
        assert_string_equal(got, want);
    }
    int fd = open(db, O_RDWR | O_TRUNC | O_CLOEXEC); /* no database at all */
    assert_int_equal(write(fd, want, 3000 < strlen(want) ? 3000 : strlen(want)), (ssize_t)(3000 < strlen(want) ? 3000 : strlen(want)));
    close(fd);
    gr_auto_free char *got = listing(&g);
    assert_string_equal(got, want);
    assert_int_equal(bp_catalogue_rebuild(g.repo, &err), 5);
    gr_auto_free char *again = listing(&g);
    assert_string_equal(again, want);
    assert_int_equal(bp_point_remove(g.repo, g.point[4].id, &err), 0);
    gr_auto_free char *less = listing(&g);
    assert_null(strstr(less, g.point[4].id));
    rig_close(&g);
    return 0;
}

/* ---- refusals ---- */
FIBER_TEST(refusals)
{
    struct gr_err err = {0};
    struct bp_repo *r = NULL;
    gr_auto_free char *dir = test_path("full"), *file = test_path("full/holiday.jpg"), *none = test_path("none");
    assert_int_equal(mkdir(dir, 0700), 0);
    close(open(file, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
    assert_int_equal(bp_repo_create(dir, &err), -ENOTEMPTY);
    assert_non_null(strstr(err.text, "holiday.jpg"));
    assert_int_equal(bp_repo_open(dir, &r, &err), -GR_EFORMAT);
    assert_int_equal(bp_repo_open(none, &r, &err), -ENOENT);
    static const char *const names[] = {"", "a@b", "a:b", "a//b", "../x", "a/..", ".", "/a", "a/", "x\ny", "\xff"};
    for (unsigned i = 0; i < GR_ARRAY_LEN(names); i++)
        assert_int_equal(bp_name_check(names[i], NULL), -GR_EUSAGE);
    char longer[300];
    memset(longer, 'x', sizeof longer);
    longer[299] = 0;
    assert_int_equal(bp_name_check(longer, NULL), -GR_EUSAGE);
    assert_int_equal(bp_name_check("ds/ünïcode vm", NULL), 0);
    return 0;
}
/* A repository that is full at any moment: the job fails with ENOSPC, points before stay, nothing half-made is visible. */
FIBER_TEST(full_file_system)
{
    struct repo_rig g;
    struct gr_err err = {0};
    gr_auto_free char *dir = test_path("small");
    assert_int_equal(mkdir(dir, 0700), 0);
    if (mount("tmpfs", dir, "tmpfs", 0, "size=3m") < 0) {
        print_message("not root: skipped\n");
        return 0;
    }
    rig_open(&g, loop, "small/repo", 16u << 20, 4);
    rig_write(&g, 0, 1u << 20);
    assert_int_equal(rig_backup(&g, "ds/a", true, &err), 0);
    unsigned failed = 0;
    for (unsigned i = 1; i < 40; i++) {
        rig_write(&g, (uint64_t)i * 393216, (i % 7 + 1) * 49152);
        int r = rig_backup(&g, "ds/a", false, &err);
        if (r < 0) {
            failed++;
            if (r != -ENOSPC)
                fail_msg("%s: %s", gr_code_name(r), err.text);
        }
        (void)bp_repo_sweep(g.repo, &err);
    }
    assert_true(failed > 0 && g.points > 2);
    json_t *ids = NULL;
    assert_int_equal(bp_point_ids(g.repo, NULL, &ids, &err), 0);
    assert_int_equal(json_array_size(ids), g.points);
    json_decref(ids);
    for (unsigned i = 0; i < g.points; i++)
        assert_int_equal(rig_check(&g, i), 1);
    print_message("full: %u jobs failed, %u points hold\n", failed, g.points);
    rig_close(&g);
    assert_int_equal(umount2(dir, MNT_DETACH), 0);
    return 0;
}
static int set_up(void **state)
{
    return gr_loop_new(NULL, &loop, NULL);
}
static int tear_down(void **state)
{
    gr_loop_free(loop);
    return 0;
}
int main(void)
{
    const struct CMUnitTest tests[] = {TEST(bit_flips),           TEST(damaged_base_is_not_reused), TEST(same_bytes_are_kept_once), TEST(index_grows), TEST(collections),
                                       TEST(collection_and_leases), TEST(hostile_nodes),            TEST(hostile_extents),          TEST(catalogue_is_a_cache),
                                       TEST(refusals),            TEST(full_file_system)};
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
