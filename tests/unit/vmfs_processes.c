/* Two processes on one file: both create, write, snapshot and check at once, and are killed with SIGKILL at random instants and
 * started again. The file survives them as the page cache does; what each flushed must be there for its next life. */
#include "tests/lib/test.h"
#include "common/bdev.h"
#include "common/cleanup.h"
#include "snapshot/snapshot.h"
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define WORKERS 2u
#define SPOTS 64u /* of 8 KiB, some across blocks */
struct shared { /* what a worker knows survives it here */
    struct life {
        uint32_t intent[SPOTS], flushed[SPOTS]; /* stamp on its way; stamp known durable */
        uint32_t stamp, rounds, lives, snapshots, made, verified;
        uint32_t takeovers;
        char wrong[256];
    } w[WORKERS];
};
static struct shared *sh;
static char *device;

static uint64_t spot_off(unsigned i) { return (uint64_t)i * 61440 + (i % 3) * (9u << 20); }

static void wrong(unsigned me, const char *what, const char *why)
{
    snprintf(sh->w[me].wrong, sizeof sh->w[me].wrong, "%s: %s", what, why);
    _exit(1);
}

static int open_device(struct gr_bdev **ret)
{
    struct gr_file_opts o = { 0 };
    return gr_bdev_file_open(gr_fiber_loop(), device, &o, ret, NULL);
}

static void fill(uint8_t *b, uint32_t stamp, unsigned spot)
{
    for (unsigned i = 0; i < 8192; i += 4) {
        uint32_t x = stamp ? stamp * 2654435761u + spot * 97 + i : 0;
        memcpy(b + i, &x, 4);
    }
}

/* Every 512 bytes of a spot show the flushed stamp or the one on its way. */
static void verify(unsigned me, struct gr_chan *ch)
{
    struct life *l = &sh->w[me];
    uint8_t *got = aligned_alloc(4096, 8192), *a = malloc(8192), *b = malloc(8192);
    for (unsigned i = 0; i < SPOTS; i++) {
        if (gr_pread(ch, got, 8192, spot_off(i)) < 0)
            wrong(me, "read", "failed");
        fill(a, l->flushed[i], i);
        fill(b, l->intent[i], i);
        for (unsigned k = 0; k < 8192; k += 512)
            if (memcmp(got + k, a + k, 512) != 0 && memcmp(got + k, b + k, 512) != 0)
                wrong(me, "content", "a sector shows neither what was flushed nor what was written since");
        l->verified++;
    }
    free(got);
    free(a);
    free(b);
}

static void settle(unsigned me, struct gr_chan *ch)
{
    struct life *l = &sh->w[me];
    uint8_t *b = aligned_alloc(4096, 8192);
    for (unsigned i = 0; i < SPOTS; i++) /* after a death nobody knows which of the two it is: write it again */
        if (l->intent[i] != l->flushed[i]) {
            fill(b, l->intent[i], i);
            if (gr_pwrite(ch, b, 8192, spot_off(i), 0) < 0)
                wrong(me, "write", "failed");
        }
    if (gr_flush(ch) < 0)
        wrong(me, "flush", "failed");
    memcpy(l->flushed, l->intent, sizeof l->flushed);
    free(b);
}

static void one_round(unsigned me, struct vmfs *v, struct vmfs_disk *d, struct gr_chan *ch, uint64_t *rng)
{
    struct life *l = &sh->w[me];
    struct gr_err err = { 0 };
    uint8_t *b = aligned_alloc(4096, 8192);
    char name[64];
    unsigned first = (unsigned)(test_rand(rng) % SPOTS), n = 1 + (unsigned)(test_rand(rng) % 4);
    for (unsigned k = 0; k < n; k++) {
        unsigned i = (first + k) % SPOTS;
        if (l->intent[i] != l->flushed[i])
            continue;
        l->intent[i] = ++l->stamp;
        fill(b, l->intent[i], i);
        int r = gr_pwrite(ch, b, 8192, spot_off(i), 0);
        if (r < 0) {
            struct vmfs_info info;
            char why[160];
            vmfs_info(v, &info);
            snprintf(why, sizeof why, "%s; %lu bytes free; %s", gr_code_text(r), (unsigned long)info.free, info.fence_reason);
            wrong(me, "write", why);
        }
    }
    if (gr_flush(ch) < 0)
        wrong(me, "flush", "failed");
    memcpy(l->flushed, l->intent, sizeof l->flushed);
    uint64_t k = test_rand(rng) % 12;
    if (k == 0) {
        snprintf(name, sizeof name, "s%u-%u", l->lives, l->rounds); /* a life that ended here may have taken its own */
        if (snap_create(&d, 1, name, &err) < 0)
            wrong(me, "snapshot", err.text);
        l->snapshots++;
        if (test_rand(rng) % 3 && snap_delete(d, name, false, &err) < 0)
            wrong(me, "snapshot delete", err.text);
    } else if (k == 1) {
        snprintf(name, sizeof name, "common/%u-%u-%u", me, l->lives, l->rounds);
        if (vmfs_create(v, name, VMFS_DISK, 1 << 20, VMFS_THIN, &err) < 0)
            wrong(me, "create", err.text);
        l->made++;
        if (test_rand(rng) % 2 && vmfs_remove(v, name, &err) < 0)
            wrong(me, "remove", err.text);
    } else if (k == 2) {
        vmfs_recover(v, NULL);
    }
    l->rounds++;
    free(b);
}

struct worker {
    unsigned me;
    uint64_t seed;
};
static int worker_fn(void *arg)
{
    struct worker *w = arg;
    struct life *l = &sh->w[w->me];
    struct vmfs_join_opts o = { .role = VMFS_HOST, .host_name = w->me ? "two" : "one" };
    struct gr_err err = { 0 };
    struct gr_bdev *dev;
    struct vmfs *v = NULL;
    struct vmfs_disk *d = NULL;
    struct gr_chan *ch = NULL;
    uint64_t rng = w->seed;
    struct vmfs_stats st;
    l->lives++;
    if (open_device(&dev) < 0 || vmfs_join(gr_fiber_loop(), &dev, 1, &o, &v, &err) < 0)
        wrong(w->me, "join", err.text);
    vmfs_stats(v, &st);
    l->takeovers += (uint32_t)st.takeovers;
    if (vmfs_open(v, w->me ? "disk1" : "disk0", &d, NULL, &err) < 0 || gr_chan_open(vmfs_bdev(d), gr_fiber_loop(), &ch) < 0)
        wrong(w->me, "open", err.text);
    verify(w->me, ch);
    settle(w->me, ch);
    while (!l->wrong[0])
        one_round(w->me, v, d, ch, &rng);
    return 0;
}

static pid_t start(unsigned me, uint64_t seed)
{
    pid_t pid = fork();
    if (pid == 0) {
        struct worker w = { me, seed };
        struct gr_loop *loop = NULL;
        if (gr_loop_new(NULL, &loop, NULL) == 0)
            gr_fiber_run(loop, worker_fn, &w);
        _exit(2);
    }
    assert_true(pid > 0);
    return pid;
}

static int format_fn(void *arg)
{
    struct gr_file_opts o = { .create = true, .size = 512ull << 20 };
    struct vmfs_format_opts f = { .name = "shared" };
    struct vmfs_join_opts j = { .role = VMFS_HOST, .host_name = "maker" };
    struct gr_err err = { 0 };
    struct gr_bdev *dev;
    struct vmfs *v;
    (void)arg;
    int r = gr_bdev_file_open(gr_fiber_loop(), device, &o, &dev, &err);
    if (r == 0)
        r = vmfs_format(gr_fiber_loop(), &dev, 1, &f, &err);
    if (r == 0)
        r = vmfs_join(gr_fiber_loop(), &dev, 1, &j, &v, &err);
    for (unsigned i = 0; r == 0 && i < WORKERS; i++)
        r = vmfs_create(v, i ? "disk1" : "disk0", VMFS_DISK, 64 << 20, VMFS_THIN, &err);
    if (r == 0)
        r = vmfs_leave(v, &err);
    if (r < 0)
        fprintf(stderr, "%s\n", err.text);
    gr_bdev_put(dev);
    return r;
}

static void say(void *arg, const char *text)
{
    (void)arg;
    printf("# check: %s\n", text);
}

static int last_look(void *arg)
{
    struct vmfs_join_opts o = { .role = VMFS_HOST, .host_name = "last" };
    struct vmfs_check_report rep;
    struct gr_err err = { 0 };
    struct gr_bdev *dev;
    struct vmfs *v;
    (void)arg;
    assert_int_equal(open_device(&dev), 0);
    int r = vmfs_join(gr_fiber_loop(), &dev, 1, &o, &v, &err);
    if (r == 0)
        r = vmfs_check(v, say, NULL, &rep, &err);
    for (unsigned i = 0; r == 0 && i < WORKERS; i++) {
        struct vmfs_disk *d;
        struct gr_chan *ch;
        r = vmfs_open(v, i ? "disk1" : "disk0", &d, NULL, &err);
        if (r < 0)
            break;
        assert_int_equal(gr_chan_open(vmfs_bdev(d), gr_fiber_loop(), &ch), 0);
        verify(i, ch);
        gr_chan_close(ch);
        vmfs_close(d);
    }
    struct vmfs_stats st;
    if (r == 0)
        vmfs_stats(v, &st);
    if (r == 0)
        sh->w[0].takeovers += (uint32_t)st.takeovers;
    if (r == 0)
        r = vmfs_leave(v, &err);
    if (r < 0)
        fprintf(stderr, "%s\n", err.text);
    gr_bdev_put(dev);
    return r;
}

/* In a child: the loop of a test must not be shared with processes that die. */
static int in_child(int (*fn)(void *arg))
{
    pid_t pid = fork();
    int status = -1;
    if (pid == 0) {
        struct gr_loop *loop = NULL;
        if (gr_loop_new(NULL, &loop, NULL) < 0)
            _exit(3);
        int r = gr_fiber_run(loop, fn, NULL);
        fflush(NULL);
        _exit(r < 0);
    }
    waitpid(pid, &status, 0);
    return status;
}

static void killed_at_random(void **state)
{
    uint64_t rng = test_seed();
    unsigned kills = 0;
    pid_t pid[WORKERS];
    (void)state;
    device = test_path("shared.img");
    sh = mmap(NULL, sizeof *sh, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(sh != MAP_FAILED);
    assert_int_equal(in_child(format_fn), 0);
    for (unsigned i = 0; i < WORKERS; i++)
        pid[i] = start(i, test_rand(&rng));
    for (time_t end = time(NULL) + (time_t)test_soak_s(4); time(NULL) < end && !sh->w[0].wrong[0] && !sh->w[1].wrong[0];) {
        int status;
        unsigned who = (unsigned)(test_rand(&rng) % WORKERS);
        usleep((useconds_t)(20000 + test_rand(&rng) % 250000));
        kill(pid[who], SIGKILL);
        waitpid(pid[who], &status, 0);
        if (!WIFSIGNALED(status))
            break;
        kills++;
        pid[who] = start(who, test_rand(&rng));
    }
    for (unsigned i = 0; i < WORKERS; i++) {
        kill(pid[i], SIGKILL);
        waitpid(pid[i], NULL, 0);
    }
    for (unsigned i = 0; i < WORKERS; i++)
        if (sh->w[i].wrong[0])
            fail_msg("worker %u: %s", i, sh->w[i].wrong);
    assert_int_equal(in_child(last_look), 0);
    if (sh->w[0].wrong[0] || sh->w[1].wrong[0])
        fail_msg("%s%s", sh->w[0].wrong, sh->w[1].wrong);
    printf("# kills %u, take-overs %u, rounds %u, snapshots %u, disks made %u, spots verified %u\n", kills, sh->w[0].takeovers + sh->w[1].takeovers,
           sh->w[0].rounds + sh->w[1].rounds, sh->w[0].snapshots + sh->w[1].snapshots, sh->w[0].made + sh->w[1].made,
           sh->w[0].verified + sh->w[1].verified);
    assert_true(kills > 3 && sh->w[0].takeovers + sh->w[1].takeovers > 0);
    assert_true(sh->w[0].rounds && sh->w[1].rounds && sh->w[0].snapshots + sh->w[1].snapshots && sh->w[0].made + sh->w[1].made);
    free(device);
}

TEST_MAIN(TEST(killed_at_random))
