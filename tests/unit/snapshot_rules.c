/* Access rules of disks in their datastore: they follow the disk, are the same at every host at once, no change is lost, and nobody else gets at them. */
#include "common/buf.h"
#include "snapshot/client.h"
#include "snapshot/service_int.h"
#include "tests/lib/test.h"
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

struct home {
    struct gr_home *home;
    struct snap_client *c;
    struct gr_rules rules;
};
static struct gr_err err;
static const char *place = ""; /* of this test's homes and datastore */

static char *named(const char *name) { return gr_asprintf("%s-%s", place, name); }

static void home_open(struct home *h, const char *name)
{
    gr_auto_free char *full = named(name);
    h->home = test_home(full);
    if (snap_client_open(gr_fiber_loop(), h->home, NULL, &h->c, &err) < 0)
        fail_msg("%s", err.text);
    h->rules = snap_svc_rules(snap_client_local(h->c));
}

static void home_close(struct home *h)
{
    snap_client_close(h->c);
    gr_home_free(h->home);
}

static int call(struct home *h, const char *method, json_t *params)
{
    json_t *res = NULL;
    err = (struct gr_err){0};
    int r = snap_client_call(h->c, method, params, NULL, NULL, &res, &err);
    json_decref(res);
    return r;
}

static void ok(struct home *h, const char *method, json_t *params)
{
    if (call(h, method, params) < 0)
        fail_msg("%s: %s", method, err.text);
}

static void datastore(struct home *h, const char *method)
{
    gr_auto_free char *image = named("ds.img");
    char *path = test_path(image);
    json_t *p = json_pack("{s:s,s:[s]}", "name", "ds", "devices", path);
    if (!strcmp(method, "datastore.create"))
        json_object_set_new(p, "size", json_integer(256 << 20));
    ok(h, method, p);
    free(path);
}

static void disk(struct home *h, const char *name)
{
    ok(h, "disk.create", json_pack("{s:s,s:I}", "disk", name, "size", (json_int_t)1 << 20));
}

/* Sets {"n": *arg}; notes what was there. */
struct setting {
    int n, own, above;
};

static int set_n(void *arg, const char *name, const json_t *own, const json_t *above, json_t **ret, struct gr_err *e)
{
    struct setting *s = arg;
    s->own = own ? (int)json_integer_value(json_object_get(own, "n")) : -1;
    s->above = above ? (int)json_integer_value(json_object_get(above, "n")) : -1;
    if (s->n == 13)
        return gr_fail(e, -EINVAL, "%s: not 13", name);
    *ret = s->n ? json_pack("{s:i}", "n", s->n) : NULL;
    return 0;
}

static int change(struct home *h, const char *name, struct setting *s)
{
    json_t *names = json_pack("[s]", name);
    err = (struct gr_err){0};
    int r = h->rules.change(h->rules.arg, names, set_n, s, NULL, &err);
    json_decref(names);
    return r;
}

static void set(struct home *h, const char *name, int n)
{
    struct setting s = {.n = n};
    if (change(h, name, &s) < 0)
        fail_msg("%s", err.text);
}

/* The number at @name; 0: none; negative: cannot be told. */
static int get(struct home *h, const char *name)
{
    char base[64];
    json_t *row = NULL;
    err = (struct gr_err){0};
    snprintf(base, sizeof(base), "%.*s", (int)strcspn(name, "@"), name);
    int r = h->rules.get(h->rules.arg, base, &row, &err);
    const char *at = strchr(name, '@');
    json_t *e = at ? json_object_get(json_object_get(row, "snapshots"), at + 1) : json_object_get(row, "rules");
    if (r == 0)
        r = (int)json_integer_value(json_object_get(e, "n"));
    json_decref(row);
    return r;
}

static struct vmfs *volume(struct home *h)
{
    return snap_client_local(h->c)->list->v;
}

/* What nobody should do: an attribute by hand. */
static void put(struct home *h, const char *key, const char *text)
{
    struct vmfs_disk *d = NULL;
    assert_int_equal(vmfs_open(volume(h), "granary.access", &d, NULL, &err), 0);
    struct gr_bdev *b = vmfs_bdev(d);
    assert_int_equal(b->ops->attr_set(b, key, text, strlen(text), &err), 0);
    vmfs_close(d);
    assert_int_equal(vmfs_release(volume(h), "granary.access", &err), 0);
}

static void count_attr(void *arg, const char *key, const void *val, size_t len)
{
    ++*(int *)arg;
}

static int attrs(struct home *h)
{
    struct vmfs_stat st;
    uint64_t version = 0;
    int n = 0;
    assert_int_equal(vmfs_stat(volume(h), "granary.access", &st, &err), 0);
    assert_int_equal(vmfs_attrs(volume(h), st.id, &version, count_attr, &n, &err), 1);
    int again = n;
    assert_int_equal(vmfs_attrs(volume(h), st.id, &version, count_attr, &n, &err), 0);
    assert_int_equal(n, again);
    return n;
}

/* ---- they go with the disk ---- */
static int follow_body(void *arg)
{
    struct home h = {0};
    struct setting s = {.n = 5};
    home_open(&h, "home");
    datastore(&h, "datastore.create");
    disk(&h, "ds/a");
    disk(&h, "ds/d/b");
    assert_int_equal(get(&h, "ds/a"), 0);
    assert_int_equal(get(&h, "ds/none"), -ENOENT);
    assert_int_equal(get(&h, "other/a"), -ENODEV);
    assert_int_equal(get(&h, "ds/d"), -ENOENT);
    set(&h, "ds/a", 1);
    set(&h, "ds/d/b", 2);
    assert_int_equal(change(&h, "ds/a@s", &s), 0);
    assert_int_equal(s.own, -1);
    assert_int_equal(s.above, 1);
    assert_int_equal(get(&h, "ds/a@s"), 5);
    assert_int_equal(get(&h, "ds/a"), 1);
    s.n = 13;
    assert_int_equal(change(&h, "ds/a", &s), -EINVAL);
    assert_int_equal(s.own, 1);
    assert_int_equal(change(&h, "ds/none", &s), -ENOENT);
    assert_int_equal(change(&h, "other/a", &s), -ENODEV);
    /* all or nothing */
    json_t *two = json_pack("[s,s]", "ds/a", "ds/none");
    s.n = 7;
    assert_int_equal(h.rules.change(h.rules.arg, two, set_n, &s, NULL, &err), -ENOENT);
    json_decref(two);
    assert_int_equal(get(&h, "ds/a"), 1);
    /* renamed, also with the folder above */
    ok(&h, "dir.rename", json_pack("{s:s,s:s}", "from", "ds/a", "to", "ds/x"));
    ok(&h, "dir.rename", json_pack("{s:s,s:s}", "from", "ds/d", "to", "ds/e"));
    assert_int_equal(get(&h, "ds/a"), -ENOENT);
    assert_int_equal(get(&h, "ds/x"), 1);
    assert_int_equal(get(&h, "ds/x@s"), 5);
    assert_int_equal(get(&h, "ds/e/b"), 2);
    disk(&h, "ds/a"); /* a stranger of the old name */
    assert_int_equal(get(&h, "ds/a"), 0);
    /* deleted: nothing is left of them */
    ok(&h, "snapshot.create", json_pack("{s:[s],s:s}", "disks", "ds/x", "name", "s"));
    ok(&h, "snapshot.delete", json_pack("{s:s,s:s}", "disk", "ds/x", "snapshot", "s"));
    assert_int_equal(get(&h, "ds/x@s"), 0);
    assert_int_equal(get(&h, "ds/x"), 1);
    ok(&h, "disk.delete", json_pack("{s:s}", "disk", "ds/x"));
    assert_int_equal(attrs(&h), 2); /* the format, and those of ds/e/b */
    home_close(&h);
    home_open(&h, "home");
    assert_int_equal(get(&h, "ds/e/b"), 2);
    home_close(&h);
    return 0;
}

static void follow(void **state)
{
    place = "follow";
    test_in_fiber(follow_body, NULL);
}

/* ---- who gets at them ---- */
static int closed_body(void *arg)
{
    struct home h = {0};
    home_open(&h, "home");
    datastore(&h, "datastore.create");
    disk(&h, "ds/a");
    set(&h, "ds/a", 1);
    static const char *const methods[][2] = {{"file.read", "path"}, {"dir.stat", "path"}, {"dir.list", "path"}, {"dir.remove", "path"}, {"dir.make", "path"}, {"file.list", "path"}, {"disk.info", "disk"}};
    static const char *const paths[] = {"ds/granary.access", "ds/granary.access/x"};
    for (size_t i = 0; i < GR_ARRAY_LEN(methods); i++)
        for (size_t k = 0; k < GR_ARRAY_LEN(paths); k++)
            assert_int_equal(call(&h, methods[i][0], json_pack("{s:s}", methods[i][1], paths[k])), -GR_EUSAGE);
    assert_int_equal(call(&h, "file.write", json_pack("{s:s,s:s}", "path", paths[0], "data-b64", "")), -GR_EUSAGE);
    assert_int_equal(call(&h, "dir.rename", json_pack("{s:s,s:s}", "from", paths[0], "to", "ds/mine")), -GR_EUSAGE);
    assert_int_equal(call(&h, "dir.rename", json_pack("{s:s,s:s}", "from", "ds/a", "to", paths[0])), -GR_EUSAGE);
    json_t *res = NULL;
    assert_int_equal(snap_client_call(h.c, "dir.list", json_pack("{s:s}", "path", "ds"), NULL, NULL, &res, &err), 0);
    assert_int_equal(json_array_size(res), 1);
    json_decref(res);
    /* what cannot be read lets nobody in, and nothing takes its place */
    static const char *const bad[] = {"{", "[]", "3"};
    struct vmfs_stat st;
    struct setting s = {.n = 3};
    char key[33];
    disk(&h, "ds/b");
    assert_int_equal(vmfs_stat(volume(&h), "a", &st, &err), 0);
    for (unsigned i = 0; i < 16; i++)
        snprintf(key + 2 * i, 3, "%02x", st.uuid[i]);
    for (size_t i = 0; i < GR_ARRAY_LEN(bad); i++) {
        put(&h, key, bad[i]);
        assert_int_equal(get(&h, "ds/a"), -GR_EFORMAT);
        assert_non_null(strstr(err.text, "'ds'"));
        assert_int_equal(change(&h, "ds/a", &s), -GR_EFORMAT);
        assert_int_equal(get(&h, "ds/b"), 0);
    }
    put(&h, "format", "2");
    assert_int_equal(get(&h, "ds/b"), -GR_EVERSION);
    assert_int_equal(change(&h, "ds/b", &s), -GR_EVERSION);
    put(&h, "format", "1");
    assert_int_equal(change(&h, "ds/b", &s), 0);
    home_close(&h);
    return 0;
}

static void closed(void **state)
{
    place = "closed";
    test_in_fiber(closed_body, NULL);
}

/* ---- limits ---- */
static int set_long(void *arg, const char *name, const json_t *own, const json_t *above, json_t **ret, struct gr_err *e)
{
    size_t n = *(size_t *)arg;
    char *text = malloc(n + 1);
    assert_non_null(text);
    memset(text, 'x', n);
    text[n] = 0;
    *ret = json_pack("{s:i,s:s}", "n", 9, "text", text);
    free(text);
    return 0;
}

/* A disk's rules have their limit; so many disks' have none, also when what they fill no longer fits into one block of the volume. */
static int limits_body(void *arg)
{
    struct home h = {0};
    home_open(&h, "home");
    datastore(&h, "datastore.create");
    disk(&h, "ds/a");
    disk(&h, "ds/b");
    json_t *both = json_pack("[s,s]", "ds/a", "ds/b");
    size_t n = 65000;
    assert_int_equal(h.rules.change(h.rules.arg, both, set_long, &n, NULL, &err), 0);
    assert_int_equal(get(&h, "ds/a"), 9);
    assert_int_equal(get(&h, "ds/b"), 9);
    n = 65536;
    err = (struct gr_err){0};
    assert_int_equal(h.rules.change(h.rules.arg, both, set_long, &n, NULL, &err), -EFBIG);
    assert_non_null(strstr(err.text, "at most 65536"));
    set(&h, "ds/a", 4);
    assert_int_equal(get(&h, "ds/b"), 9);
    json_decref(both);
    home_close(&h);
    home_open(&h, "home");
    assert_int_equal(get(&h, "ds/a"), 4);
    assert_int_equal(get(&h, "ds/b"), 9);
    ok(&h, "datastore.check", json_pack("{s:s}", "name", "ds"));
    home_close(&h);
    return 0;
}

static void limits(void **state)
{
    place = "limits";
    test_in_fiber(limits_body, NULL);
}

/* ---- two hosts ---- */
static int rounds;

struct waiting {
    struct home *h;
    bool done;
};

static void change_fiber(void *arg)
{
    struct waiting *w = arg;
    set(w->h, "ds/b", 77);
    w->done = true;
}

/* Who changes them waits for who is at it, and reads what that one wrote. */
static void takes_turns(struct home *a, struct home *b)
{
    struct vmfs_disk *lock = NULL;
    struct waiting w = {.h = b};
    assert_int_equal(vmfs_open(volume(a), "granary.access", &lock, NULL, &err), 0);
    assert_int_equal(gr_fiber_start(gr_fiber_loop(), change_fiber, &w), 0);
    gr_fiber_sleep_ms(150);
    assert_false(w.done);
    assert_int_equal(get(b, "ds/a"), get(a, "ds/a")); /* logins do not wait */
    vmfs_close(lock);
    assert_int_equal(vmfs_release(volume(a), "granary.access", &err), 0);
    for (int i = 0; i < 1000 && !w.done; i++)
        gr_fiber_sleep_ms(10);
    assert_true(w.done);
    assert_int_equal(get(a, "ds/b"), 77);
}

static int together_body(void *arg)
{
    struct home a = {0}, b = {0};
    home_open(&a, "a");
    datastore(&a, "datastore.create");
    disk(&a, "ds/a");
    disk(&a, "ds/b");
    home_open(&b, "b");
    datastore(&b, "datastore.join");
    assert_int_equal(get(&b, "ds/a"), 0);
    for (int i = 1; i <= 2; i++) { /* whatever one says, the other sees at once */
        set(&a, "ds/a", i);
        assert_int_equal(get(&b, "ds/a"), i);
        set(&b, "ds/b", 10 * i);
        assert_int_equal(get(&a, "ds/b"), 10 * i);
        assert_int_equal(get(&b, "ds/a"), i);
    }
    uint64_t begin = gr_loop_now_ns(gr_fiber_loop());
    for (int i = 0; i < 100; i++)
        assert_int_equal(get(&b, "ds/a"), 2);
    uint64_t looked = gr_loop_now_ns(gr_fiber_loop());
    for (int i = 1; i <= 4; i++)
        set(&a, "ds/a", i);
    printf("# a look takes %llu us, a change %llu us\n", (unsigned long long)(looked - begin) / 100000,
           (unsigned long long)(gr_loop_now_ns(gr_fiber_loop()) - looked) / 4000);
    takes_turns(&a, &b);
    home_close(&b);
    home_close(&a);
    return 0;
}

static void together(void **state)
{
    place = "together";
    test_in_fiber(together_body, NULL);
}

/* A process of its own for each host. Each adds to its own counter and to a common one: what was read must be what the last one wrote. */
static int add_one(void *arg, const char *name, const json_t *own, const json_t *above, json_t **ret, struct gr_err *e)
{
    *ret = json_pack("{s:I}", "n", json_integer_value(json_object_get(own, "n")) + 1);
    return 0;
}

struct host {
    const char *name;
    int ready[2], go[2]; /* pipes: none begins before all have joined */
    pid_t pid;
};

static int adding_body(void *arg)
{
    const struct host *host = arg;
    const char *mine = host->name;
    struct home h = {0};
    char name[16];
    home_open(&h, mine);
    datastore(&h, "datastore.join");
    assert_int_equal(write(host->ready[1], "r", 1), 1);
    assert_int_equal(read(host->go[0], name, 1), 1);
    snprintf(name, sizeof(name), "ds/%s", mine);
    json_t *own = json_pack("[s]", name), *both = json_pack("[s,s]", name, "ds/common");
    for (int i = 0; i < rounds; i++) {
        int r = h.rules.change(h.rules.arg, i % 2 ? own : both, add_one, NULL, NULL, &err);
        if (r < 0)
            fail_msg("%s: %s", mine, gr_err_text(&err, r));
        if (get(&h, name) != i + 1)
            fail_msg("%s: %d in place of %d", mine, get(&h, name), i + 1);
    }
    json_decref(own);
    json_decref(both);
    home_close(&h);
    return 0;
}

static void host_start(struct host *host)
{
    assert_int_equal(pipe(host->ready) | pipe(host->go), 0);
    fflush(NULL);
    host->pid = fork();
    if (host->pid == 0) {
        test_in_fiber(adding_body, host);
        _exit(0);
    }
}

static int made_body(void *arg)
{
    struct home h = {0};
    home_open(&h, "maker");
    if (!arg) {
        datastore(&h, "datastore.create");
        disk(&h, "ds/a");
        disk(&h, "ds/b");
        disk(&h, "ds/common");
    } else {
        assert_int_equal(get(&h, "ds/a"), rounds);
        assert_int_equal(get(&h, "ds/b"), rounds);
        assert_int_equal(get(&h, "ds/common"), 2 * ((rounds + 1) / 2));
        ok(&h, "datastore.check", json_pack("{s:s}", "name", "ds"));
    }
    home_close(&h);
    return 0;
}

static void at_once(void **state)
{
    struct host hosts[2] = {{.name = "a"}, {.name = "b"}};
    char c;
    place = "at_once";
    rounds = (int)test_cases(4);
    test_in_fiber(made_body, NULL);
    for (int i = 0; i < 2; i++)
        host_start(&hosts[i]);
    for (int i = 0; i < 2; i++)
        assert_int_equal(read(hosts[i].ready[0], &c, 1), 1);
    for (int i = 0; i < 2; i++)
        assert_int_equal(write(hosts[i].go[1], "g", 1), 1);
    for (int i = 0; i < 2; i++) {
        int status = -1;
        assert_int_equal(waitpid(hosts[i].pid, &status, 0), hosts[i].pid);
        assert_int_equal(status, 0);
        for (int end = 0; end < 2; end++) {
            close(hosts[i].ready[end]);
            close(hosts[i].go[end]);
        }
    }
    test_in_fiber(made_body, hosts);
}

/* What is said of a single snapshot stays with it when a clone and its origin change places; what is said of others stays where it is. */
static int promoted_body(void *arg)
{
    struct home h = {0};
    (void)arg;
    home_open(&h, "home");
    datastore(&h, "datastore.create");
    disk(&h, "ds/a");
    static const char *const names[] = {"old", "base", "young"};
    for (unsigned i = 0; i < 3; i++)
        ok(&h, "snapshot.create", json_pack("{s:[s],s:s}", "disks", "ds/a", "name", names[i]));
    ok(&h, "snapshot.clone", json_pack("{s:s,s:s,s:s}", "disk", "ds/a", "snapshot", "base", "to", "ds/c"));
    set(&h, "ds/a", 1);
    set(&h, "ds/c", 2);
    set(&h, "ds/a@old", 3);
    set(&h, "ds/a@base", 4);
    set(&h, "ds/a@young", 5);
    set(&h, "ds/a@none", 7); /* no snapshot (yet) */
    ok(&h, "disk.promote", json_pack("{s:s}", "disk", "ds/c"));
    static const struct {
        const char *name;
        int n;
    } want[] = {{"ds/a", 1}, {"ds/c", 2}, {"ds/c@old", 3}, {"ds/c@base", 4}, {"ds/c@none", 0}, {"ds/c@young", 0}, {"ds/a@old", 0}, {"ds/a@base", 0},
                {"ds/a@young", 5}, {"ds/a@none", 7}};
    for (unsigned i = 0; i < GR_ARRAY_LEN(want); i++)
        if (get(&h, want[i].name) != want[i].n)
            fail_msg("%s: %d, not %d", want[i].name, get(&h, want[i].name), want[i].n);

    /* one that fails moves nothing */
    assert_true(call(&h, "disk.promote", json_pack("{s:s}", "disk", "ds/c")) < 0);
    ok(&h, "snapshot.clone", json_pack("{s:s,s:s,s:s}", "disk", "ds/c", "snapshot", "old", "to", "ds/d"));
    ok(&h, "snapshot.create", json_pack("{s:[s],s:s}", "disks", "ds/d", "name", "old"));
    set(&h, "ds/d@base", 9); /* no snapshot (yet), and the other has one of that name */
    assert_true(call(&h, "disk.promote", json_pack("{s:s}", "disk", "ds/d")) < 0); /* it has one of its own, */
    assert_int_equal(get(&h, "ds/d@old"), 0); /* of which nothing is said */
    set(&h, "ds/d@old", 8);
    assert_true(call(&h, "disk.promote", json_pack("{s:s}", "disk", "ds/d")) < 0); /* it has one of its own */
    assert_int_equal(get(&h, "ds/c@old"), 3);
    assert_int_equal(get(&h, "ds/d@old"), 8);
    assert_int_equal(get(&h, "ds/d@base"), 9);
    home_close(&h);
    return 0;
}

static void promoted(void **state)
{
    place = "promoted";
    test_in_fiber(promoted_body, NULL);
}

/* A policy goes with its folder or disk, and not with what others have. */
static size_t rows_of(struct home *h, bool policies)
{
    struct snap_ds *ds = snap_ds_find(snap_client_local(h->c), "ds");
    struct snap_table *t = policies ? &ds->policies : &ds->rules;
    size_t n = 0;
    const char *uuid;
    json_t *row;
    assert_int_equal(snap_table_look(ds, t, &err), 0);
    json_object_foreach(t->rows, uuid, row)
    {
        n += json_object_size(row) > 0;
    }
    return n;
}

static size_t policies(struct home *h)
{
    return rows_of(h, true);
}

static size_t rules(struct home *h)
{
    return rows_of(h, false);
}

static int policies_body(void *arg)
{
    static const char *const places[] = {"ds", "ds/f", "ds/f/g", "ds/f/g/disk"};
    struct home h = {0};
    (void)arg;
    home_open(&h, "home");
    datastore(&h, "datastore.create");
    disk(&h, "ds/f/g/disk");
    for (unsigned i = 0; i < 4; i++)
        ok(&h, "snapshot.set-policy", json_pack("{s:s,s:i}", "path", places[i], "keep-last", 1));
    assert_int_equal(policies(&h), 4);
    assert_int_equal(call(&h, "dir.remove", json_pack("{s:s}", "path", "ds/f/g")), -ENOTEMPTY);
    assert_int_equal(policies(&h), 4);
    ok(&h, "disk.delete", json_pack("{s:s}", "disk", "ds/f/g/disk"));
    assert_int_equal(policies(&h), 3);
    ok(&h, "dir.remove", json_pack("{s:s}", "path", "ds/f/g"));
    ok(&h, "dir.remove", json_pack("{s:s}", "path", "ds/f"));
    assert_int_equal(policies(&h), 1);

    /* what earlier releases have left is dropped by a repair, and nothing else is */
    disk(&h, "ds/x/disk");
    disk(&h, "ds/x/gone");
    for (unsigned i = 0; i < 3; i++)
        ok(&h, "snapshot.set-policy", json_pack("{s:s,s:i}", "path", ((const char *[]){"ds/x", "ds/x/disk", "ds/x/gone"})[i], "keep-last", 1));
    disk(&h, "ds/y/other");
    ok(&h, "snapshot.set-policy", json_pack("{s:s,s:i}", "path", "ds/y", "keep-last", 1));
    set(&h, "ds/x/disk", 1);
    set(&h, "ds/x/gone", 2);
    set(&h, "ds/y/other", 3);
    static const char *const old[] = {"x/gone", "y/other", "y"};
    for (unsigned i = 0; i < 3; i++) {
        if (i < 2)
            ok(&h, "disk.release", json_pack("{s:s}", "disk", i ? "ds/y/other" : "ds/x/gone"));
        assert_int_equal(vmfs_remove(volume(&h), old[i], &err), 0);
    }
    assert_int_equal(policies(&h), 5);
    assert_int_equal(rules(&h), 3);
    ok(&h, "datastore.check", json_pack("{s:s}", "name", "ds"));
    assert_int_equal(policies(&h), 5);
    ok(&h, "datastore.repair", json_pack("{s:s}", "name", "ds"));
    assert_int_equal(policies(&h), 3);
    assert_int_equal(rules(&h), 1);
    assert_int_equal(get(&h, "ds/x/disk"), 1);
    ok(&h, "datastore.repair", json_pack("{s:s}", "name", "ds"));
    assert_int_equal(policies(&h), 3);
    home_close(&h);
    return 0;
}

static void policies_go(void **state)
{
    place = "policies";
    test_in_fiber(policies_body, NULL);
}

TEST_MAIN(TEST(follow), TEST(closed), TEST(limits), TEST(together), TEST(at_once), TEST(promoted), TEST(policies_go))
