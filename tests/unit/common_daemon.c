/* Starting a daemon: its one line comes back, its death and its silence are told. */
#include "common/buf.h"
#include "common/daemon.h"
#include "common/rpc.h"
#include "common/seam.h"
#include "tests/lib/test.h"
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct run {
    const char *script;
    unsigned timeout_ms;
    struct gr_err err;
};

static int run_fiber(void *arg)
{
    struct run *run = arg;
    char *prog = test_path("daemon.sh"), *log = test_path("log");
    struct gr_err e = {0};
    assert_int_equal(gr_file_replace(prog, run->script, strlen(run->script), 0700, &e), 0);
    const char *argv[] = {prog, "an argument", NULL};
    int r = gr_daemon_start(argv, log, run->timeout_ms, &run->err);
    free(prog);
    free(log);
    return r;
}

static int start(struct run *run)
{
    struct gr_loop *loop = NULL;
    assert_int_equal(gr_loop_new(NULL, &loop, NULL), 0);
    int r = gr_fiber_run(loop, run_fiber, run);
    gr_loop_free(loop);
    return r;
}

static void test_ready(void **state)
{
    struct run run = {"#!/bin/sh\n[ \"$1 $2 $3\" = 'an argument --ready-fd 3' ] || exit 1\necho started\necho ok >&3\n", 10000, {0}};
    assert_int_equal(start(&run), 0);
    char *log = test_path("log");
    struct gr_buf b = {0};
    assert_int_equal(gr_file_read(log, 100, &b, NULL), 0);
    assert_string_equal(b.data, "started\n");
    gr_buf_done(&b);
    free(log);
}

static void test_failure(void **state)
{
    struct run run = {"#!/bin/sh\necho 'GR_ELOCKED the home is locked by process 17' >&3\n", 10000, {0}};
    assert_int_equal(start(&run), -GR_ELOCKED);
    assert_string_equal(run.err.text, "daemon.sh: the home is locked by process 17");
}

static void test_death(void **state)
{
    struct run run = {"#!/bin/sh\nexit 3\n", 10000, {0}};
    assert_int_equal(start(&run), -EIO);
    assert_non_null(strstr(run.err.text, "ended before it was ready"));
    struct run missing = {"not a program", 10000, {0}};
    assert_true(start(&missing) < 0);
}

static void test_silence(void **state)
{
    struct run run = {"#!/bin/sh\nexec sleep 60\n", 300, {0}};
    assert_int_equal(start(&run), -ETIMEDOUT);
}

static int stop_fiber(void *arg)
{
    char *path = arg;
    assert_int_equal(gr_daemon_pid(path), 0);
    return gr_daemon_stop(path, "nobody", 1000, NULL);
}

static void test_nobody(void **state)
{
    char *path = test_path("none.sock");
    struct gr_loop *loop = NULL;
    assert_int_equal(gr_loop_new(NULL, &loop, NULL), 0);
    assert_int_equal(gr_fiber_run(loop, stop_fiber, path), 1);
    gr_loop_free(loop);
    free(path);
}

static void test_pidfile(void **state)
{
    char *path = test_path("x.pid");
    struct gr_buf b = {0};
    assert_int_equal(gr_daemon_pidfile(path, NULL), 0);
    assert_int_equal(gr_file_read(path, 100, &b, NULL), 0);
    assert_int_equal(strtol(b.data, NULL, 10), getpid());
    gr_buf_done(&b);
    assert_int_equal(gr_file_replace(path, "1\n", 2, 0644, NULL), 0);
    gr_daemon_pidfile_remove(path); /* another's */
    assert_int_equal(access(path, F_OK), 0);
    assert_int_equal(gr_daemon_pidfile(path, NULL), 0);
    gr_daemon_pidfile_remove(path);
    assert_int_equal(access(path, F_OK), -1);
    free(path);
}

/* What gr_daemon_args() makes of "program @words". */
static int parse(struct gr_daemon_args *a, const char *words)
{
    char *argv[8] = {(char[]){"program"}}, *text = gr_strdup(words), *rest = NULL;
    int argc = 1;
    for (char *p = strtok_r(text, " ", &rest); p; p = strtok_r(NULL, " ", &rest))
        argv[argc++] = p;
    a->usage = "usage: program\n";
    int r = gr_daemon_args(argc, argv, a);
    a->name = a->name ? "given" : NULL;
    free(text);
    return r;
}

static void test_args(void **state)
{
    static const char *const bad[] = {"--ready-fd", "--ready-fd 2", "--ready-fd 1x", "--ready-fd -1", "--ready-fd 4096", "--flag", "name", "--", "-x"};
    static const char *const bad_named[] = {"", "--flag", "one two", "one --flags", "--ready-fd 5"};
    struct gr_daemon_args a;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(parse(&(struct gr_daemon_args){0}, bad[i]), 2);
    for (size_t i = 0; i < sizeof bad_named / sizeof *bad_named; i++)
        assert_int_equal(parse(&(struct gr_daemon_args){.flag = "--flag", .takes_name = true}, bad_named[i]), 2);
    assert_int_equal(parse(&(struct gr_daemon_args){0}, "--help"), 0);
    a = (struct gr_daemon_args){0};
    assert_int_equal(parse(&a, ""), -1);
    assert_int_equal(a.ready_fd, -1);
    a = (struct gr_daemon_args){.flag = "--flag", .takes_name = true};
    assert_int_equal(parse(&a, "--ready-fd 7 name --flag"), -1);
    assert_int_equal(a.ready_fd, 7);
    assert_true(a.flagged && a.name);
    a = (struct gr_daemon_args){.flag = "--flag", .takes_name = true};
    assert_int_equal(parse(&a, "name"), -1);
    assert_false(a.flagged);
}

TEST_MAIN(TEST(test_args), TEST(test_ready), TEST(test_failure), TEST(test_death), TEST(test_silence), TEST(test_nobody), TEST(test_pidfile))
