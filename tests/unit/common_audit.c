/* The audit log: what leaves a line and what does not, who it names, and a log that cannot be written. */
#include "common/audit.h"
#include "common/buf.h"
#include "common/cleanup.h"
#include "tests/lib/test.h"
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

struct site {
    struct gr_home *home;
    struct gr_rpc_server *server;
    struct gr_audit audit;
    char *log;
    unsigned warnings;
    unsigned lines;
    unsigned before;
    json_t *last;
};

static int count_line(void *arg, json_t *line)
{
    struct site *s = arg;
    s->lines++;
    json_decref(s->last);
    s->last = json_incref(line);
    return 0;
}

/* How many lines since @since; the last one stays in s->last. */
static unsigned look_since(struct site *s, int64_t since, int bad)
{
    struct gr_err err = {0};
    s->lines = 0;
    assert_int_equal(gr_audit_read(s->home, since, count_line, s, &err), bad);
    return s->lines;
}

static unsigned look(struct site *s)
{
    return look_since(s, INT64_MIN, 0);
}

static const char *text(struct site *s, const char *key)
{
    return json_string_value(json_object_get(s->last, key));
}

static json_t *named(struct site *s, const char *key)
{
    return json_object_get(json_object_get(s->last, "named"), key);
}

static int m_change(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err)
{
    return 0;
}

static int m_ask(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err)
{
    return 0;
}

static int m_fail(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err)
{
    gr_fiber_sleep_ms(30);
    return gr_fail(err, -GR_ELOCKED, "the secret is in this sentence");
}

/* What is in the log by the time it is at work. */
static int m_destroy(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err)
{
    struct site *s = arg;
    s->before = look(s);
    return json_object_get(params, "fails") ? gr_fail(err, -EBUSY, "not now") : 0;
}

static const struct gr_rpc_method methods[] = {{"thing.change", m_change}, {"thing.ask", m_ask, true}, {"thing.fail", m_fail},
                                               {"thing.destroy", m_destroy, .destroys = true}, {NULL}};

static void warned(void *arg, const char *why)
{
    struct site *s = arg;
    s->warnings++;
    assert_non_null(strstr(why, "audit.log"));
}

static void site_up(struct site *s)
{
    struct gr_err err = {0};
    *s = (struct site){0};
    gr_auto_free char *dir = test_path("home");
    assert_int_equal(setenv("GRANARY_HOME", dir, 1), 0);
    assert_int_equal(gr_home_open(1, &s->home, &err), 0);
    s->log = gr_home_path(s->home, "log/audit.log");
    unlink(s->log);
    assert_int_equal(gr_rpc_server_new(gr_fiber_loop(), &s->server), 0);
    assert_int_equal(gr_rpc_server_add(s->server, methods, s), 0);
    assert_int_equal(gr_audit_init(&s->audit, s->home, warned, s, &err), 0);
    gr_audit_watch(&s->audit, s->server);
}

static void site_down(struct site *s)
{
    gr_rpc_server_free(s->server);
    gr_audit_done(&s->audit);
    gr_home_free(s->home);
    json_decref(s->last);
    free(s->log);
}

/* ---- who, what ---- */
static int lines_body(void *arg)
{
    struct site s;
    struct gr_err err = {0};
    struct gr_rpc_client *c = NULL;
    struct stat st;
    site_up(&s);
    assert_int_equal(look(&s), 0);
    assert_int_equal(gr_rpc_local(s.server, "thing.ask", NULL, NULL, NULL, NULL, &err), 0);
    assert_int_equal(look(&s), 0);

    /* in this process */
    umask(0);
    assert_int_equal(gr_rpc_local(s.server, "thing.change", json_pack("{s:s,s:[s,s],s:i,s:b,s:s,s:{s:s}}", "disk", "ds/\xc3\xa4", "disks", "a", "b", "size",
                                                                      4096, "force", 1, "secret", "do-not-tell", "login", "secret-file", "neither"),
                                  NULL, NULL, NULL, &err), 0);
    assert_int_equal(look(&s), 1);
    assert_string_equal(text(&s, "method"), "thing.change");
    assert_string_equal(text(&s, "result"), "ok");
    assert_int_equal(json_integer_value(json_object_get(s.last, "pid")), getpid());
    assert_int_equal(json_integer_value(json_object_get(s.last, "uid")), getuid());
    assert_string_equal(json_string_value(named(&s, "disk")), "ds/\xc3\xa4");
    assert_string_equal(json_string_value(json_array_get(named(&s, "disks"), 1)), "b");
    assert_int_equal(json_integer_value(named(&s, "size")), 4096);
    assert_true(json_is_true(named(&s, "force")));
    assert_int_equal(json_object_size(json_object_get(s.last, "named")), 4);
    assert_int_equal(stat(s.log, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);

    /* over the socket, and failed */
    gr_auto_free char *path = test_path("audit.sock");
    assert_int_equal(gr_rpc_server_listen(s.server, path, &err), 0);
    assert_int_equal(gr_rpc_connect(gr_fiber_loop(), path, &c, &err), 0);
    assert_int_equal(gr_rpc_call(c, "thing.fail", json_pack("{s:s}", "name", "x"), NULL, NULL, -1, NULL, &err), -GR_ELOCKED);
    assert_int_equal(look(&s), 2); /* it was there before the answer */
    assert_string_equal(text(&s, "result"), "GR_ELOCKED");
    assert_int_equal(json_integer_value(json_object_get(s.last, "pid")), getpid());
    assert_true(json_real_value(json_object_get(s.last, "seconds")) >= 0.03);
    assert_int_equal(gr_rpc_call(c, "thing.ask", NULL, NULL, NULL, -1, NULL, &err), 0);
    assert_int_equal(gr_rpc_call(c, "thing.unknown", NULL, NULL, NULL, -1, NULL, &err), -EOPNOTSUPP);
    assert_int_equal(look(&s), 2);
    gr_rpc_client_free(c);

    /* by itself, without a server */
    gr_audit_own(s.home, "thing.own", NULL, -EEXIST, 1000000000, NULL);
    assert_int_equal(look(&s), 3);
    assert_string_equal(text(&s, "result"), "EEXIST");
    assert_true(json_real_value(json_object_get(s.last, "seconds")) == 1.0);

    gr_auto_buf struct gr_buf all = {0};
    assert_int_equal(gr_file_read(s.log, 1 << 20, &all, &err), 0);
    assert_null(strstr(all.data, "do-not-tell"));
    assert_null(strstr(all.data, "neither"));
    assert_null(strstr(all.data, "this sentence"));
    assert_int_equal(s.warnings, 0);
    site_down(&s);
    return 0;
}

static void lines(void **state)
{
    test_in_fiber(lines_body, NULL);
}

/* ---- what does not come back ---- */
static atomic_uint dirs_synced; /* fsync() has no other way to tell */

int fsync(int fd)
{
    struct stat st;
    if (fstat(fd, &st) == 0 && S_ISDIR(st.st_mode))
        atomic_fetch_add(&dirs_synced, 1);
    return (int)syscall(SYS_fsync, fd);
}

static int begun_body(void *arg)
{
    struct site s;
    struct gr_err err = {0};
    site_up(&s);
    for (unsigned fails = 0; fails < 2; fails++) {
        unsigned n = look(&s);
        atomic_store(&dirs_synced, 0);
        int r = gr_rpc_local(s.server, "thing.destroy", json_pack("{s:s,s:o*}", "disk", "ds/a", "fails", fails ? json_true() : NULL), NULL, NULL, NULL, &err);
        assert_int_equal(r, fails ? -EBUSY : 0);
        assert_int_equal(s.before, n + 1);
        assert_int_equal(atomic_load(&dirs_synced), 1); /* the log's name lasts as well */
        assert_int_equal(look(&s), n + 2);
        assert_string_equal(text(&s, "result"), fails ? "EBUSY" : "ok");
        assert_true(json_is_real(json_object_get(s.last, "seconds")));
    }
    gr_auto_free char *call = gr_strdup(text(&s, "call"));
    assert_int_equal(look(&s), 4);

    /* the first line of the second */
    gr_auto_buf struct gr_buf all = {0};
    assert_int_equal(gr_file_read(s.log, 1 << 20, &all, &err), 0);
    const char *p = strstr(all.data, call);
    assert_non_null(p);
    while (p > all.data && p[-1] != '\n')
        p--;
    json_t *line = json_loads(p, JSON_DISABLE_EOF_CHECK, NULL);
    assert_string_equal(json_string_value(json_object_get(line, "result")), "begun");
    assert_string_equal(json_string_value(json_object_get(line, "method")), "thing.destroy");
    assert_string_equal(json_string_value(json_object_get(json_object_get(line, "named"), "disk")), "ds/a");
    assert_true(json_is_null(json_object_get(line, "seconds")));
    assert_int_equal(json_integer_value(json_object_get(line, "pid")), getpid());
    json_decref(line);
    assert_int_equal(s.warnings, 0);
    site_down(&s);
    return 0;
}

static void begun(void **state)
{
    test_in_fiber(begun_body, NULL);
}

/* ---- another host ---- */
static int nobody_changes(void *arg, struct gr_rpc_peer *peer, const char *method, json_t *params, struct gr_err *err)
{
    return json_object_get(params, "allowed") ? 0 : gr_fail(err, -GR_EAUTH, "no");
}

static void peer_gone(struct gr_rpc_peer *p)
{
    p->from[0] = 0;
}

static int hosts_body(void *arg)
{
    struct site s;
    struct gr_err err = {0};
    struct gr_rpc_client *c = NULL;
    struct gr_rpc_peer peer = {.host = "other-1", .from = "192.0.2.7", .free = peer_gone};
    int pair[2];
    site_up(&s);
    gr_rpc_server_guard(s.server, nobody_changes, NULL);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair), 0);
    gr_rpc_server_adopt(s.server, pair[0], &peer);
    assert_int_equal(gr_rpc_client_new(gr_fiber_loop(), pair[1], &c, &err), 0);
    assert_int_equal(gr_rpc_call(c, "thing.change", json_pack("{s:b}", "allowed", 1), NULL, NULL, -1, NULL, &err), 0);
    assert_int_equal(look(&s), 1);
    assert_string_equal(text(&s, "host"), "other-1");
    assert_string_equal(text(&s, "from"), "192.0.2.7");
    assert_null(json_object_get(s.last, "pid"));
    assert_string_equal(text(&s, "result"), "ok");
    /* what is refused is worth knowing, too; it is not begun */
    assert_int_equal(gr_rpc_call(c, "thing.change", NULL, NULL, NULL, -1, NULL, &err), -GR_EAUTH);
    assert_int_equal(look(&s), 2);
    assert_string_equal(text(&s, "result"), "GR_EAUTH");
    assert_int_equal(gr_rpc_call(c, "thing.destroy", NULL, NULL, NULL, -1, NULL, &err), -GR_EAUTH);
    assert_int_equal(look(&s), 3);
    gr_rpc_client_free(c);
    site_down(&s);
    assert_int_equal(peer.from[0], 0);
    return 0;
}

static void hosts(void **state)
{
    test_in_fiber(hosts_body, NULL);
}

/* ---- bounds ---- */
static int bounds_body(void *arg)
{
    struct site s;
    struct gr_err err = {0};
    site_up(&s);
    char longer[1200];
    memset(longer, 'x', sizeof(longer));
    memcpy(longer + 511, "\xc3\xa4", 2); /* a character across the limit */
    longer[sizeof(longer) - 1] = 0;
    json_t *many = json_array();
    for (int i = 0; i < 100; i++)
        json_array_append_new(many, json_string("d"));
    assert_int_equal(gr_rpc_local(s.server, "thing.change", json_pack("{s:s,s:o,s:s,s:s}", "disk", longer, "disks", many, "to", "iscsi://joe%pass@h/t/0",
                                                                      "name", "a\x1b[2Jb\xe2\x80\xae"), NULL, NULL, NULL, &err), 0);
    assert_int_equal(look(&s), 1);
    assert_int_equal(json_string_length(named(&s, "disk")), 511);
    assert_int_equal(json_array_size(named(&s, "disks")), 33);
    assert_string_equal(json_string_value(json_array_get(named(&s, "disks"), 32)), "and 68 more");
    assert_string_equal(json_string_value(named(&s, "to")), "iscsi://***@h/t/0");
    gr_auto_buf struct gr_buf all = {0};
    assert_int_equal(gr_file_read(s.log, 1 << 20, &all, &err), 0);
    assert_null(strchr(all.data, 0x1b));
    assert_null(strstr(all.data, "\xe2\x80\xae")); /* which turns what follows round */
    assert_null(strstr(all.data, "pass"));
    site_down(&s);
    return 0;
}

static void bounds(void **state)
{
    test_in_fiber(bounds_body, NULL);
}

/* ---- a log that is in the way, torn, long ---- */
static void change(struct site *s)
{
    struct gr_err err = {0};
    assert_int_equal(gr_rpc_local(s->server, "thing.change", json_pack("{s:s}", "name", "x"), NULL, NULL, NULL, &err), 0);
}

static int trouble_body(void *arg)
{
    struct site s;
    struct gr_err err = {0};
    site_up(&s);
    assert_int_equal(mkdir(s.log, 0700), 0);
    change(&s); /* goes on */
    assert_int_equal(s.warnings, 1);
    assert_int_equal(rmdir(s.log), 0);
    assert_int_equal(symlink("elsewhere", s.log), 0);
    change(&s);
    assert_int_equal(s.warnings, 2);
    assert_int_equal(unlink(s.log), 0);

    change(&s);
    assert_int_equal(look(&s), 1);
    assert_int_equal(look_since(&s, json_integer_value(json_object_get(s.last, "time")), 0), 1);
    assert_int_equal(look_since(&s, json_integer_value(json_object_get(s.last, "time")) + 1000, 0), 0);

    /* a line that was cut off spoils only itself */
    int fd = open(s.log, O_WRONLY | O_APPEND | O_CLOEXEC);
    assert_int_equal(write(fd, "{\"time\":1,\"me", 13), 13);
    close(fd);
    change(&s);
    assert_int_equal(look_since(&s, INT64_MIN, 1), 2);
    assert_string_equal(text(&s, "method"), "thing.change");

    /* put aside when it is long, and read from there */
    fd = open(s.log, O_WRONLY | O_APPEND | O_CLOEXEC);
    assert_int_equal(fallocate(fd, 0, 0, 16 << 20), 0);
    close(fd);
    change(&s); /* one with 16 MiB of zeros before it: longer now than a log may be */
    change(&s);
    gr_auto_free char *old = gr_asprintf("%s.old", s.log);
    gr_auto_buf struct gr_buf kept = {0}, now = {0};
    assert_int_equal(gr_file_read(old, 32 << 20, &kept, &err), 0);
    assert_int_equal(gr_file_read(s.log, 1 << 20, &now, &err), 0);
    assert_true(kept.len > 16 << 20);
    assert_int_equal(s.warnings, 2);
    assert_true(look_since(&s, INT64_MIN, 2) >= 4);
    unlink(old);
    site_down(&s);
    return 0;
}

static void trouble(void **state)
{
    test_in_fiber(trouble_body, NULL);
}

TEST_MAIN(TEST(lines), TEST(begun), TEST(hosts), TEST(bounds), TEST(trouble))
