#include "common/buf.h"
#include "common/cleanup.h"
#include "common/err.h"
#include "common/home.h"
#include "common/log.h"
#include "tests/lib/test.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void replace_and_read(void **state)
{
    char *path = test_path("f");
    struct gr_buf b = {0};
    struct gr_err err = {0};
    assert_int_equal(gr_file_read(path, 10, &b, &err), -ENOENT);
    assert_non_null(strstr(err.text, path));
    assert_int_equal(gr_file_replace(path, "hello", 5, 0640, &err), 0);
    assert_int_equal(gr_file_replace(path, "hello world", 11, 0640, &err), 0);
    assert_int_equal(gr_file_read(path, 10, &b, &err), -EFBIG);
    assert_int_equal(gr_file_read(path, 11, &b, &err), 0);
    assert_string_equal(b.data, "hello world");
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0640);
    assert_int_equal(gr_file_read(test_dir(), 10, &b, &err), -EINVAL);
    assert_int_equal(gr_file_replace("/proc/none/x", "", 0, 0600, &err), -ENOENT);
    gr_buf_done(&b);
    free(path);
}

static void secrets(void **state)
{
    char *path = test_path("secret");
    struct gr_buf b = {0};
    struct gr_err err = {0};
    assert_int_equal(gr_file_replace(path, "s3cret\n", 7, 0644, &err), 0);
    assert_int_equal(gr_secret_read(path, &b, &err), -EPERM);
    assert_non_null(strstr(err.text, "chmod 600"));
    assert_int_equal(chmod(path, 0600), 0);
    assert_int_equal(gr_secret_read(path, &b, &err), 0);
    assert_string_equal(b.data, "s3cret");
    assert_int_equal(gr_file_replace(path, "\n", 1, 0600, &err), 0);
    assert_int_equal(gr_secret_read(path, &b, &err), -EINVAL);
    gr_buf_done(&b);
    free(path);
}

static void directories(void **state)
{
    struct gr_err err = {0};
    char *deep = test_path("a/b//c/d/"), *in_file = test_path("file/x"), *file = test_path("file");
    assert_int_equal(gr_mkdirs(deep, 0700, &err), 0);
    assert_int_equal(gr_mkdirs(deep, 0700, &err), 0);
    assert_int_equal(gr_file_replace(file, "", 0, 0600, &err), 0);
    assert_int_equal(gr_mkdirs(file, 0700, &err), -ENOTDIR);
    assert_int_equal(gr_mkdirs(in_file, 0700, &err), -ENOTDIR);
    free(deep);
    free(in_file);
    free(file);
}

static void home(void **state)
{
    /* any length of path: the directories go beyond what fits a sockaddr_un */
    char *dir = test_path("a-very-long-name-of-a-home-directory-that-would-never-fit/into/the/108/bytes/of/a/unix/socket/address/home///");
    struct gr_home *h = NULL, *again = NULL;
    struct gr_err err = {0};
    uint8_t u1[16], u2[16];
    setenv("GRANARY_HOME", dir, 1);
    assert_int_equal(gr_home_open(1, &h, &err), 0);
    assert_int_not_equal(gr_home_dir(h)[strlen(gr_home_dir(h)) - 1], '/');
    assert_int_equal(gr_home_host_uuid(h, u1, &err), 0);
    assert_int_equal(gr_home_open(0, &again, &err), 0);
    assert_int_equal(gr_home_host_uuid(again, u2, &err), 0);
    assert_memory_equal(u1, u2, 16);
    int fd = -1, fd2 = -1;
    assert_int_equal(gr_home_lock(h, &fd, &err), 0);
    assert_int_equal(gr_home_lock(again, &fd2, &err), -GR_ELOCKED);
    char pid[32];
    snprintf(pid, sizeof(pid), "process %d", (int)getpid());
    assert_non_null(strstr(err.text, pid));
    assert_int_equal(fd2, -1);
    close(fd);
    assert_int_equal(gr_home_lock(again, &fd2, &err), 0);
    close(fd2);

    json_t *doc = NULL;
    assert_int_equal(gr_home_load(h, "conf/none.json", &doc, &err), 0);
    assert_int_equal(json_object_size(doc), 0);
    json_object_set_new(doc, "k", json_integer(5));
    assert_int_equal(gr_home_save(h, "conf/sub/none.json", doc, &err), 0);
    json_decref(doc);
    assert_int_equal(gr_home_load(h, "conf/sub/none.json", &doc, &err), 0);
    assert_int_equal(json_integer_value(json_object_get(doc, "k")), 5);
    json_decref(doc);
    char *p = gr_home_path(h, "conf/bad.json");
    assert_int_equal(gr_file_replace(p, "{\"a\":\n1,,}", 9, 0600, &err), 0);
    assert_int_equal(gr_home_load(h, "conf/bad.json", &doc, &err), -GR_EFORMAT);
    assert_non_null(strstr(err.text, "line 2"));
    assert_int_equal(gr_file_replace(p, "[]", 2, 0600, &err), 0);
    assert_int_equal(gr_home_load(h, "conf/bad.json", &doc, &err), -GR_EFORMAT);
    free(p);
    p = gr_home_path(h, "state/host.json");
    assert_int_equal(gr_file_replace(p, "{\"uuid\":\"junk\"}", 15, 0600, &err), 0);
    assert_int_equal(gr_home_host_uuid(h, u1, &err), -GR_EFORMAT);
    free(p);
    gr_home_free(h);
    gr_home_free(again);
    gr_home_free(NULL);
    free(dir);
}

static void log_lines(void **state)
{
    char *path = test_path("log");
    struct gr_err err = {0};
    struct gr_buf b = {0};
    assert_int_equal(gr_log_open("granary-test", path, GR_LOG_INFO, &err), 0);
    gr_log(GR_LOG_DEBUG, "not shown");
    gr_log(GR_LOG_WARN, "name=%s", "forged\n<3>line");
    for (int i = 0; i < 5; i++)
        gr_log_limited(GR_LOG_INFO, "again %d", i);
    char big[4000];
    memset(big, 'b', sizeof(big) - 1);
    big[sizeof(big) - 1] = 0;
    gr_log(GR_LOG_ERR, "%s", big);
    assert_int_equal(gr_file_read(path, 10000, &b, &err), 0);
    assert_null(strstr(b.data, "not shown"));
    assert_non_null(strstr(b.data, "granary-test: name=forged <3>line\n"));
    assert_non_null(strstr(b.data, "again 0"));
    assert_null(strstr(b.data, "again 1"));
    assert_memory_equal(b.data, "<4>2", 4);
    unsigned lines = 0;
    for (char *s = b.data; *s; s++)
        lines += *s == '\n';
    assert_int_equal(lines, 3);
    /* a log that has grown is put aside at the next start */
    gr_auto_free char *old = test_path("log.old");
    struct stat st;
    assert_int_equal(gr_log_open("granary-test", path, GR_LOG_INFO, &err), 0);
    assert_int_not_equal(stat(old, &st), 0);
    assert_int_equal(truncate(path, 17 << 20), 0);
    assert_int_equal(gr_log_open("granary-test", path, GR_LOG_INFO, &err), 0);
    assert_int_equal(stat(old, &st), 0);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_size, 0);
    gr_buf_done(&b);
    free(path);
}

TEST_MAIN(TEST(replace_and_read), TEST(secrets), TEST(directories), TEST(home), TEST(log_lines))
