/* Records of what a process has begun: they outlive it, and tell whether it still runs. */
#include "tests/lib/test.h"
#include "backup-proxy/intent.h"
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static struct gr_home *home_at(char dir[64])
{
    struct gr_home *h = NULL;
    struct gr_err err = {0};
    snprintf(dir, 64, "/tmp/granary-intent.XXXXXX");
    assert_non_null(mkdtemp(dir));
    setenv("GRANARY_HOME", dir, 1);
    assert_int_equal(gr_home_open(1, &h, &err), 0);
    return h;
}

static void remove_dir(const char *dir)
{
    char cmd[128];
    snprintf(cmd, sizeof cmd, "rm -rf '%s'", dir);
    assert_int_equal(system(cmd), 0);
}

static void test_life(void **state)
{
    char dir[64];
    struct gr_home *h = home_at(dir);
    struct gr_err err = {0};
    struct bp_intent *in = NULL;
    json_t *detail = json_pack("{s:s}", "dir", "/mnt/x"), *list = NULL;
    assert_int_equal(bp_intent_list(h, NULL, &list, &err), 0); /* before there is a folder */
    assert_int_equal(json_array_size(list), 0);
    json_decref(list);
    assert_int_equal(bp_intent_begin(h, "mount", detail, &in, &err), 0);
    json_object_set_new(detail, "step", json_integer(2));
    assert_int_equal(bp_intent_update(in, detail, &err), 0);
    assert_int_equal(bp_intent_list(h, "job", &list, &err), 0);
    assert_int_equal(json_array_size(list), 0);
    json_decref(list);
    assert_int_equal(bp_intent_list(h, "mount", &list, &err), 0);
    assert_int_equal(json_array_size(list), 1);
    json_t *one = json_array_get(list, 0);
    assert_true(json_is_true(json_object_get(one, "alive")));
    assert_int_equal(json_integer_value(json_object_get(json_object_get(one, "detail"), "step")), 2);
    assert_string_equal(json_string_value(json_object_get(one, "id")), bp_intent_id(in));
    json_decref(list);
    assert_int_equal(bp_intent_end(in, &err), 0);
    assert_int_equal(bp_intent_list(h, "mount", &list, &err), 0);
    assert_int_equal(json_array_size(list), 0);
    json_decref(list);
    json_decref(detail);
    gr_home_free(h);
    remove_dir(dir);
}

static void test_killed_process_leaves_record(void **state)
{
    char dir[64], id[80];
    struct gr_home *h = home_at(dir);
    struct gr_err err = {0};
    json_t *list = NULL;
    pid_t pid = fork();
    if (pid == 0) {
        struct bp_intent *in = NULL;
        json_t *d = json_object();
        if (bp_intent_begin(h, "job", d, &in, &err) < 0)
            _exit(1);
        raise(SIGKILL);
    }
    int status = 0;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSIGNALED(status));
    assert_int_equal(bp_intent_list(h, NULL, &list, &err), 0);
    assert_int_equal(json_array_size(list), 1);
    json_t *one = json_array_get(list, 0);
    assert_true(json_is_false(json_object_get(one, "alive")));
    snprintf(id, sizeof id, "%s", json_string_value(json_object_get(one, "id")));
    json_decref(list);
    assert_int_equal(bp_intent_remove(h, "../../etc/passwd", &err), -EINVAL);
    assert_int_equal(bp_intent_remove(h, id, &err), 0);
    assert_int_equal(bp_intent_list(h, NULL, &list, &err), 0);
    assert_int_equal(json_array_size(list), 0);
    json_decref(list);
    gr_home_free(h);
    remove_dir(dir);
}

TEST_MAIN(TEST(test_life), TEST(test_killed_process_leaves_record))
