/* Metadata that lies: blocks of every kind are changed where it may hurt, and their checksums put right. Whoever joins, checks, lists, reads or
 * writes then gets errors, or what the lie says; nobody crashes, runs for ever or takes memory without end.
 *
 * Each case is a process of its own on a copy of a volume in memory. A failure names its seed: GRANARY_SEED=N GRANARY_CASES=1 repeats it. */
#include "common/cleanup.h"
#include "snapshot/snapshot.h"
#include "tests/lib/lies.h"
#include "tests/lib/test.h"
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>

#define VOLUME (96ull << 20)
#define UNITS (VOLUME / VMFS_UNIT)
#define SECONDS 20u /* more than that is for ever */

static void quiet(void *arg, const char *text)
{
}

static const uint8_t secret[32] = "the key of this test";
static int kek(void *arg, uint64_t id, uint8_t ret[32])
{
    memcpy(ret, secret, 32);
    return id == vmfs_kek_id(secret) ? 0 : -ENOKEY;
}

/* ---- a volume with something of everything ---- */
static void put(struct gr_chan *ch, uint64_t off, size_t len, unsigned seed)
{
    gr_auto_free uint8_t *b = gr_alloc_aligned(4096, (len + 4095) & ~(size_t)4095);
    memset(b, (int)seed, len);
    assert_int_equal(gr_pwrite(ch, b, len, off, 0), 0);
}

static void work(struct vmfs *v)
{
    struct vmfs_disk *d;
    struct gr_chan *ch;
    char token[96];
    struct snap_info info;
    OK(vmfs_create(v, "a/b/disk", VMFS_DISK, 40 << 20, VMFS_THIN, &err));
    OK(vmfs_create(v, "thick", VMFS_DISK, 1 << 20, VMFS_THICK, &err));
    OK(vmfs_create(v, "eager", VMFS_DISK, 256 << 10, VMFS_EAGER, &err));
    OK(vmfs_create_encrypted(v, "secret", 256 << 10, VMFS_EAGER, 4096, vmfs_kek_id(secret), &err));
    OK(vmfs_file_write(v, "a/note", NULL, "some text", 9, &err));
    for (int i = 0; i < 130; i++) {
        gr_auto_free char *name = gr_asprintf("many/a-longer-name-of-a-folder-%d", i);
        OK(vmfs_mkdir(v, name, false, &err));
    }
    OK(vmfs_open(v, "a/b/disk", &d, NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(d), gr_fiber_loop(), &ch), 0);
    for (unsigned i = 0; i < 40; i++)
        put(ch, (i * 977u % 10240u) * 4096ull, i % 3 ? 4096 : 65536 - (i * 977u % 10240u) * 4096ull % 65536, i + 1);
    OK(snap_create(&d, 1, "one", &err));
    for (unsigned i = 0; i < 30; i++)
        put(ch, (i * 977u % 10240u) * 4096ull, 4096, i + 50);
    OK(snap_bookmark(d, "one", "mark", &err));
    OK(snap_create(&d, 1, "two", &err));
    put(ch, 8192, 4096, 4);
    OK(snap_clone(d, "one", "copy", &err));
    OK(snap_create(&d, 1, "three", &err));
    OK(snap_delete(d, "two", false, &err));
    OK(snap_find(d, "one", &info, &err));
    gr_bookmark_format(&info.bookmark, token);
    struct gr_err scratch;
    if (d->bdev.ops->attr_set)
        OK(d->bdev.ops->attr_set(vmfs_bdev(d), "reservations", token, strlen(token), &scratch));
    gr_chan_close(ch);
    vmfs_close(d);
}

struct making {
    struct lies_image *m;
    bool leaves; /* in order; else its journal has to be replayed */
};

static int make(void *arg)
{
    const struct making *k = arg;
    const struct vmfs_format_opts f = {.name = "ds"};
    const struct vmfs_join_opts o = {.role = VMFS_HOST, .host_name = "maker", .warn = quiet, .kek = kek};
    struct gr_bdev *dev;
    struct vmfs *v;
    assert_int_equal(gr_bdev_mem_open(gr_fiber_loop(), k->m->mem[0], &dev), 0);
    OK(vmfs_format(gr_fiber_loop(), &dev, 1, &f, &err));
    OK(vmfs_join(gr_fiber_loop(), &dev, 1, &o, &v, &err));
    work(v);
    if (k->leaves)
        OK(vmfs_leave(v, &err));
    else
        vmfs_abandon(v);
    gr_bdev_put(dev);
    return 0;
}

/* ---- lies ---- */
static uint64_t interesting(const struct lies_image *m, uint64_t *rng, uint64_t now)
{
    uint64_t any = m->at[test_rand(rng) % m->n].unit;
    const uint64_t values[] = {0, 1, now + 1, now - 1, ~0ull, now << 1, any, any << 32, UNITS, UNITS - 1, 1ull << 48, 0x7fffffff, 0x80000000,
                               0xffffffff, 0xffff, 65536, VMFS_UNIT, test_rand(rng), now ^ (1ull << test_rand(rng) % 64), 16, 255, 4095};
    return values[test_rand(rng) % GR_ARRAY_LEN(values)];
}

static void lie(const struct lies_image *m, uint64_t *rng, uint8_t *b, uint32_t bytes)
{
    static const unsigned sizes[] = {1, 2, 4, 8};
    unsigned size = sizes[test_rand(rng) % 4];
    /* where something is, more often than in the padding */
    uint32_t used = bytes;
    while (used > 128 && b[used - 1] == 0)
        used--;
    uint32_t span = test_rand(rng) % 4 ? GR_MIN(bytes, used + 64) : bytes;
    if (test_rand(rng) % 2) /* what the rest is read by */
        span = sizeof(struct vmfs_hdr_disk) + 128;
    uint32_t off = (uint32_t)(test_rand(rng) % (span / size)) * size;
    if (off < sizeof(struct vmfs_hdr_disk) && test_rand(rng) % 4) /* the rest of the header is looked at everywhere alike */
        off = sizeof(struct vmfs_hdr_disk) + off % 64;
    uint64_t now = 0;
    memcpy(&now, b + off, size);
    now = interesting(m, rng, now);
    memcpy(b + off, &now, size);
}

static void mutate(const struct lies_image *m, uint64_t *rng)
{
    unsigned blocks = 1 + (unsigned)(test_rand(rng) % 3);
    for (unsigned k = 0; k < blocks; k++) {
        const struct lies_block *at = &m->at[test_rand(rng) % m->n];
        gr_auto_free uint8_t *b = lies_load(m, at);
        for (unsigned i = 1 + (unsigned)(test_rand(rng) % 3); i; i--)
            lie(m, rng, b, at->units * VMFS_UNIT);
        lies_store(m, at, b, test_rand(rng) % 8 != 0);
    }
}

/* ---- whoever comes then ---- */
static int count_snap(void *arg, const struct snap_info *info)
{
    return 0;
}

static int count_diff(void *arg, uint64_t off, uint64_t len, bool zero)
{
    return 0;
}

static void read_all(struct gr_bdev *b)
{
    struct gr_geometry g;
    struct gr_chan *ch;
    gr_auto_free uint8_t *buf = gr_alloc_aligned(4096, 1 << 20);
    if (gr_bdev_geometry(b, &g) < 0 || gr_chan_open(b, gr_fiber_loop(), &ch) < 0)
        return;
    for (uint64_t off = 0; off < GR_MIN(g.size, 64ull << 20); off += 1 << 20)
        (void)gr_pread(ch, buf, GR_MIN(1ull << 20, g.size - off), off);
    gr_chan_close(ch);
}

static void use_disk(struct vmfs *v, const char *path, bool changes)
{
    struct vmfs_disk *d;
    struct gr_bdev *s;
    struct gr_chan *ch;
    if (vmfs_open(v, path, &d, NULL, NULL) < 0)
        return;
    read_all(vmfs_bdev(d));
    (void)snap_list(d, count_snap, NULL, NULL);
    if (snap_open(d, "one", &s, NULL) == 0) {
        read_all(s);
        gr_bdev_put(s);
    }
    (void)snap_diff(d, "one", NULL, count_diff, NULL, NULL);
    (void)snap_diff(d, "mark", "three", count_diff, NULL, NULL);
    if (changes && gr_chan_open(vmfs_bdev(d), gr_fiber_loop(), &ch) == 0) {
        gr_auto_free uint8_t *b = gr_zalloc(65536);
        for (uint64_t off = 0; off < 40 << 20; off += (1 << 20) + 8192)
            (void)gr_pwrite(ch, b, 8192, off, 0);
        (void)gr_flush(ch);
        (void)snap_create(&d, 1, "late", NULL);
        (void)gr_pwrite(ch, b, 65536, 131072, 0);
        (void)snap_delete(d, "one", false, NULL);
        (void)snap_clone(d, "three", "another", NULL);
        (void)vmfs_resize(d, 20 << 20, true, NULL);
        gr_chan_close(ch);
    }
    vmfs_close(d);
}

struct walk {
    char paths[64][256];
    unsigned n, depth;
    const char *dir;
};

static int note(void *arg, const char *name, const struct vmfs_stat *st)
{
    struct walk *w = arg;
    if (w->n < GR_ARRAY_LEN(w->paths) && strlen(w->dir) + strlen(name) < 250)
        snprintf(w->paths[w->n++], sizeof(w->paths[0]), "%s%s%s", w->dir, w->dir[0] ? "/" : "", name);
    return 0;
}

/* What can be mended is mended at once: a second time nothing is left to do. And whatever is broken, all of it can be read for damage. */
static void repair_twice(struct vmfs *v)
{
    const struct vmfs_scrub_opts o = {.rate = 0};
    struct vmfs_check_report rep;
    struct vmfs_scrub_report scrubbed;
    if (vmfs_repair(v, quiet, NULL, &rep, NULL) == -GR_ECORRUPT && vmfs_repair(v, quiet, NULL, &rep, NULL) == -GR_ECORRUPT && rep.mended)
        _exit(7);
    (void)vmfs_scrub(v, &o, &scrubbed, NULL);
}

static int use(void *arg)
{
    struct lies_image *m = arg;
    const struct vmfs_join_opts o = {.role = VMFS_HOST, .host_name = "guest", .warn = quiet, .kek = kek};
    struct gr_bdev *dev;
    struct vmfs *v;
    struct vmfs_check_report rep;
    struct vmfs_stat st;
    char what[160];
    void *text;
    size_t len;
    if (gr_bdev_mem_open(gr_fiber_loop(), m->mem[0], &dev) < 0)
        return -ENOMEM;
    (void)vmfs_probe(gr_fiber_loop(), dev, what, NULL);
    if (vmfs_join(gr_fiber_loop(), &dev, 1, &o, &v, NULL) == 0) {
        (void)vmfs_check(v, quiet, NULL, &rep, NULL);
        struct walk *w = gr_zalloc(sizeof(*w));
        w->dir = "";
        (void)vmfs_readdir(v, "", note, w, NULL);
        for (unsigned i = 0; w && i < w->n; i++) {
            w->dir = w->paths[i];
            if (vmfs_stat(v, w->paths[i], &st, NULL) == 0 && st.type == VMFS_DIR)
                (void)vmfs_readdir(v, w->paths[i], note, w, NULL);
        }
        free(w);
        if (vmfs_file_read(v, "a/note", 1 << 20, &text, &len, NULL) == 0)
            free(text);
        use_disk(v, "copy", false);
        use_disk(v, "thick", false);
        use_disk(v, "eager", false);
        use_disk(v, "secret", true);
        use_disk(v, "a/b/disk", true);
        (void)vmfs_mkdir(v, "a/new/one", true, NULL);
        (void)vmfs_rename(v, "thick", "many/thick", NULL);
        (void)vmfs_remove(v, "eager", NULL);
        (void)vmfs_checkpoint(v, NULL);
        (void)vmfs_settle(v, 1000);
        (void)vmfs_check(v, quiet, NULL, &rep, NULL);
        repair_twice(v);
        (void)vmfs_leave(v, NULL);
    }
    gr_bdev_put(dev);
    return 0;
}

static void child(struct lies_image *m, uint64_t seed)
{
    struct gr_loop *loop;
    const struct gr_loop_opts o = {.engine = GR_ENGINE_SYNC};
    uint64_t rng = seed;
    alarm(SECONDS);
    mutate(m, &rng);
    if (gr_loop_new(&o, &loop, NULL) < 0)
        _exit(9);
    (void)gr_fiber_run(loop, use, m);
    gr_loop_free(loop);
    _exit(0);
}

static unsigned cases(void)
{
    const char *n = getenv("GRANARY_CASES");
    return n ? (unsigned)strtoul(n, NULL, 10) : 60;
}

static void lies(bool leaves)
{
    struct lies_image *m = gr_zalloc(sizeof(*m));
    struct gr_loop *loop;
    struct making k = {m, leaves};
    const struct gr_loop_opts o = {.engine = GR_ENGINE_SYNC};
    m->n_dev = 1;
    m->units[0] = UNITS;
    m->mem[0] = gr_mem_new(VOLUME);
    assert_int_equal(gr_loop_new(&o, &loop, NULL), 0);
    assert_int_equal(gr_fiber_run(loop, make, &k), 0);
    gr_loop_free(loop);
    lies_find(m);
    unsigned all = 0;
    for (unsigned t = VMFS_T_SUPER; t <= VMFS_T_KEYS; t++)
        all |= t == VMFS_T_AUX || t == VMFS_T_ALARM ? 0 : 1u << t; /* written only when another host frees */
    assert_int_equal(m->kinds & all, all); /* a block of each kind is there to lie */
    uint64_t seed = test_seed() * 1000003u + leaves;
    unsigned n = cases();
    for (unsigned i = 0; i < n; i++) {
        uint64_t one = getenv("GRANARY_CASES") && n == 1 ? strtoull(getenv("GRANARY_SEED"), NULL, 10) : seed + i;
        fflush(NULL);
        int pid = fork(), status = 0;
        if (pid == 0)
            child(m, one);
        assert_int_equal(waitpid(pid, &status, 0), pid);
        if (WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM)
            fail_msg("case %llu%s: it runs for ever", (unsigned long long)one, leaves ? "" : " (with a journal)");
        if (status != 0)
            fail_msg("case %llu%s: %s %d", (unsigned long long)one, leaves ? "" : " (with a journal)", WIFSIGNALED(status) ? "signal" : "status",
                     WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
    }
    print_message("# %u cases over %u blocks\n", n, m->n);
    gr_mem_free(m->mem[0]);
    free(m);
}

static void left_in_order(void **state)
{
    lies(true);
}

static void with_a_journal(void **state)
{
    lies(false);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(left_in_order), cmocka_unit_test(with_a_journal)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
