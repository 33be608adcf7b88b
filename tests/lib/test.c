#include "tests/lib/test.h"
#include "common/fiber.h"
#include "common/home.h"
#include "common/seam.h"
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static char dir[4096]; /* made at first use */
static pid_t dir_owner;

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    return remove(path);
}

static void remove_dir(void)
{
    if (getpid() == dir_owner)
        nftw(dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

const char *test_dir(void)
{
    if (!dir[0]) {
        const char *tmp = getenv("TMPDIR");
        snprintf(dir, sizeof(dir), "%s/granary-test.XXXXXX", tmp && tmp[0] == '/' ? tmp : "/tmp");
        assert_non_null(mkdtemp(dir));
        dir_owner = getpid();
        atexit(remove_dir);
    }
    return dir;
}

char *test_path(const char *name)
{
    char *p = NULL;
    assert_true(asprintf(&p, "%s/%s", test_dir(), name) > 0);
    return p;
}

struct gr_home *test_home(const char *name)
{
    struct gr_home *home = NULL;
    char *path = test_path(name);
    assert_int_equal(setenv("GRANARY_HOME", path, 1), 0);
    free(path);
    OK(gr_home_open(1, &home, &err));
    return home;
}

uint64_t test_seed(void)
{
    static uint64_t seed;
    const char *env = getenv("GRANARY_SEED");
    if (seed == 0) {
        struct timespec ts;
        clock_gettime(CLOCK_REALTIME, &ts);
        seed = env ? strtoull(env, NULL, 0) : (uint64_t)ts.tv_sec * 1000003u + (uint64_t)ts.tv_nsec;
        printf("# GRANARY_SEED=%llu\n", (unsigned long long)seed);
        fflush(stdout);
    }
    return seed;
}

uint64_t test_rand(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

unsigned test_soak_s(unsigned usual)
{
    const char *env = getenv("GRANARY_SOAK");
    return env ? (unsigned)strtoul(env, NULL, 10) : usual;
}

unsigned test_cases(unsigned usual)
{
    const char *env = getenv("GRANARY_SOAK");
    return env ? usual * (1 + (unsigned)strtoul(env, NULL, 10)) : usual;
}

bool test_alloc_failed(int n)
{
    bool failed = false;
    for (int i = 0; i <= n && !failed; i++) { /* what is left of the countdown */
        void *p = gr_alloc(1);
        failed = !p;
        free(p);
    }
    gr_alloc_fail_after(-1, 0);
    return !failed;
}

void test_in_fiber(int (*body)(void *arg), void *arg)
{
    struct gr_loop *loop = NULL;
    assert_int_equal(gr_loop_new(NULL, &loop, NULL), 0);
    assert_int_equal(gr_fiber_run(loop, body, arg), 0);
    gr_loop_free(loop);
}
