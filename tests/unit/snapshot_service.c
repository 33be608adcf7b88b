/* The storage service in one process: every method reached through gr_rpc_local, on a datastore in a private directory. */
#include "common/b64.h"
#include "common/buf.h"
#include "snapshot/client.h"
#include "snapshot/service_int.h"
#include "tests/lib/test.h"
#include "vmfs/internal.h"
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct fixture {
    struct gr_home *home;
    struct snap_client *c;
    json_t *res;
    struct gr_err err;
};

static int call(struct fixture *f, const char *method, json_t *params)
{
    json_decref(f->res);
    f->res = NULL;
    f->err = (struct gr_err){0};
    assert_non_null(params);
    int r = snap_client_call(f->c, method, params, NULL, NULL, &f->res, &f->err);
    if (r < 0) {
        assert_int_equal(f->err.code, r);
        assert_true(f->err.text[0] != 0);
        assert_null(strchr(f->err.text, '\n'));
    }
    return r;
}

static void ok(struct fixture *f, const char *method, json_t *params)
{
    if (call(f, method, params) < 0)
        fail_msg("%s: %s", method, f->err.text);
}

static long long num(struct fixture *f, const char *key)
{
    return json_integer_value(json_object_get(f->res, key));
}

static json_t *devices(const char *name)
{
    char *path = test_path(name);
    json_t *a = json_pack("[s]", path);
    free(path);
    return a;
}

static void with_service(int (*body)(void *))
{
    struct fixture f = {.home = test_home("home")};
    test_in_fiber(body, &f);
    json_decref(f.res);
    gr_home_free(f.home);
}

static void open_client(struct fixture *f)
{
    assert_int_equal(snap_client_open(gr_fiber_loop(), f->home, NULL, &f->c, &f->err), 0);
    assert_non_null(snap_client_local(f->c));
}

static void close_client(struct fixture *f)
{
    snap_client_close(f->c);
    f->c = NULL;
}

static int datastores(void *arg)
{
    struct fixture *f = arg;
    char *path = test_path("d.img"), *other = test_path("o.img");
    struct stat st;
    open_client(f);
    /* refused: nothing made */
    assert_int_equal(call(f, "datastore.create", json_pack("{s:s,s:o}", "name", "d", "devices", devices("d.img"))), -ENOENT);
    assert_int_equal(call(f, "datastore.create", json_pack("{s:s,s:o,s:i}", "name", "d", "devices", devices("d.img"), "size", 0)), -GR_EUSAGE);
    assert_true(call(f, "datastore.create", json_pack("{s:s,s:o,s:i}", "name", "d", "devices", devices("d.img"), "size", 8192)) < 0);
    assert_int_equal(stat(path, &st), -1);
    assert_int_equal(call(f, "datastore.create", json_pack("{s:s,s:[s],s:i}", "name", "d", "devices", "relative", "size", 1 << 28)), -GR_EUSAGE);

    ok(f, "datastore.create", json_pack("{s:s,s:o,s:i}", "name", "d", "devices", devices("d.img"), "size", 1 << 28));
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_size, 1 << 28);
    assert_int_equal(call(f, "datastore.create", json_pack("{s:s,s:o,s:i}", "name", "d", "devices", devices("o.img"), "size", 1 << 28)), -EEXIST);
    assert_int_equal(stat(other, &st), -1);
    assert_int_equal(call(f, "datastore.create", json_pack("{s:s,s:o,s:b}", "name", "e", "devices", devices("d.img"), "force", 1)), -GR_ELOCKED);
    ok(f, "datastore.list", json_object());
    assert_int_equal(json_array_size(f->res), 1);
    ok(f, "datastore.leave", json_pack("{s:s}", "name", "d"));
    assert_int_equal(call(f, "datastore.info", json_pack("{s:s}", "name", "d")), -ENOENT);
    assert_true(call(f, "datastore.join", json_pack("{s:s,s:o}", "name", "wrong", "devices", devices("d.img"))) < 0);
    ok(f, "datastore.list", json_object());
    assert_int_equal(json_array_size(f->res), 0);
    ok(f, "datastore.join", json_pack("{s:s,s:o}", "name", "d", "devices", devices("d.img")));
    close_client(f);

    open_client(f); /* the registry is remembered */
    ok(f, "datastore.info", json_pack("{s:s}", "name", "d"));
    assert_int_equal(json_array_size(json_object_get(f->res, "hosts")), 1);
    assert_int_equal(call(f, "datastore.destroy", json_pack("{s:s}", "name", "d")), -GR_EUSAGE);
    ok(f, "datastore.destroy", json_pack("{s:s,s:b}", "name", "d", "yes", 1));
    assert_int_equal(stat(path, &st), -1);
    close_client(f);
    free(path);
    free(other);
    return 0;
}

static void test_datastores(void **state)
{
    with_service(datastores);
}

static int disks(void *arg)
{
    struct fixture *f = arg;
    open_client(f);
    ok(f, "datastore.create", json_pack("{s:s,s:o,s:i}", "name", "d", "devices", devices("d.img"), "size", 1 << 28));
    ok(f, "disk.create", json_pack("{s:s,s:i}", "disk", "d/a/b", "size", 1 << 20));
    assert_int_equal(num(f, "size"), 1 << 20);
    assert_int_equal(call(f, "disk.create", json_pack("{s:s,s:i}", "disk", "d/a/b", "size", 1 << 20)), -EEXIST);
    assert_int_equal(call(f, "disk.create", json_pack("{s:s,s:i}", "disk", "d/x", "size", 1000)), -GR_EUSAGE);
    assert_int_equal(call(f, "disk.create", json_pack("{s:s,s:I}", "disk", "d/x", "size", INT64_MAX - 511)), -GR_EUSAGE);
    assert_int_equal(call(f, "disk.create", json_pack("{s:s,s:i,s:s}", "disk", "d/x", "size", 512, "provision", "fat")), -GR_EUSAGE);
    assert_int_equal(call(f, "disk.create", json_pack("{s:s,s:s}", "disk", "d/x", "size", "1G")), -EINVAL);
    assert_int_equal(call(f, "disk.create", json_pack("{s:i}", "disk", 7)), -EINVAL);
    assert_int_equal(call(f, "disk.create", json_pack("[]")), -EINVAL);
    assert_int_equal(call(f, "disk.frobnicate", json_object()), -EOPNOTSUPP);
    ok(f, "disk.resize", json_pack("{s:s,s:i}", "disk", "d/a/b", "size", 2 << 20));
    assert_int_equal(call(f, "disk.resize", json_pack("{s:s,s:i}", "disk", "d/a/b", "size", 1 << 20)), -GR_EUSAGE);
    ok(f, "disk.list", json_object());
    assert_int_equal(json_array_size(f->res), 1);
    assert_null(json_object_get(json_array_get(f->res, 0), "owner-address"));
    ok(f, "disk.list", json_pack("{s:s}", "path", "d/a"));
    assert_int_equal(json_array_size(f->res), 1);
    assert_true(call(f, "disk.list", json_pack("{s:s}", "path", "d/nothing")) < 0);
    close_client(f);

    open_client(f);
    ok(f, "dir.rename", json_pack("{s:s,s:s}", "from", "d/a", "to", "d/moved"));
    ok(f, "disk.info", json_pack("{s:s}", "disk", "d/moved/b"));
    assert_int_equal(num(f, "size"), 2 << 20);
    assert_int_equal(call(f, "disk.info", json_pack("{s:s}", "disk", "d/moved")), -EINVAL);
    assert_int_equal(call(f, "dir.remove", json_pack("{s:s}", "path", "d/moved/b")), -EINVAL);
    ok(f, "disk.delete", json_pack("{s:s}", "disk", "d/moved/b"));
    assert_int_equal(call(f, "disk.info", json_pack("{s:s}", "disk", "d/moved/b")), -ENOENT);
    ok(f, "dir.remove", json_pack("{s:s}", "path", "d/moved"));
    assert_int_equal(call(f, "disk.import", json_pack("{s:s,s:s}", "disk", "d/i", "file", "/dev/null")), -EOPNOTSUPP);
    ok(f, "datastore.destroy", json_pack("{s:s,s:b}", "name", "d", "yes", 1));
    close_client(f);
    return 0;
}

static void test_disks(void **state)
{
    with_service(disks);
}

static int files(void *arg)
{
    struct fixture *f = arg;
    open_client(f);
    ok(f, "datastore.create", json_pack("{s:s,s:o,s:i}", "name", "d", "devices", devices("d.img"), "size", 1 << 28));
    ok(f, "file.write", json_pack("{s:s,s:s}", "path", "d/vm/web/web.vmx", "data-b64", "aGVsbG8="));
    ok(f, "file.read", json_pack("{s:s}", "path", "d/vm/web/web.vmx"));
    assert_string_equal(json_string_value(json_object_get(f->res, "data-b64")), "aGVsbG8=");
    assert_int_equal(num(f, "size"), 5);
    ok(f, "file.read", json_pack("{s:s,s:i,s:i}", "path", "d/vm/web/web.vmx", "offset", 1, "length", 3));
    assert_string_equal(json_string_value(json_object_get(f->res, "data-b64")), "ZWxs");
    ok(f, "file.read", json_pack("{s:s,s:I}", "path", "d/vm/web/web.vmx", "offset", INT64_MAX));
    assert_string_equal(json_string_value(json_object_get(f->res, "data-b64")), "");
    ok(f, "file.write", json_pack("{s:s,s:s}", "path", "d/vm/web/web.vmx", "data-b64", ""));
    ok(f, "file.read", json_pack("{s:s}", "path", "d/vm/web/web.vmx"));
    assert_int_equal(num(f, "size"), 0);
    assert_int_equal(call(f, "file.write", json_pack("{s:s,s:s}", "path", "d/x", "data-b64", "!!")), -EINVAL);
    assert_int_equal(call(f, "file.read", json_pack("{s:s}", "path", "d/none")), -ENOENT);
    assert_true(call(f, "file.read", json_pack("{s:s}", "path", "d/vm")) < 0);
    assert_int_equal(call(f, "file.write", json_pack("{s:s,s:s}", "path", "d/granary.tmp/x", "data-b64", "")), -GR_EUSAGE);
    ok(f, "dir.stat", json_pack("{s:s}", "path", "d"));
    assert_string_equal(json_string_value(json_object_get(f->res, "type")), "dir");
    ok(f, "disk.create", json_pack("{s:s,s:i}", "disk", "d/disk", "size", 1536));
    ok(f, "dir.stat", json_pack("{s:s}", "path", "d/disk"));
    assert_int_equal(num(f, "size"), 1536);
    ok(f, "file.read", json_pack("{s:s,s:i,s:i}", "path", "d/disk", "offset", 1530, "length", 100));
    assert_string_equal(json_string_value(json_object_get(f->res, "data-b64")), "AAAAAAAA");
    ok(f, "file.read", json_pack("{s:s,s:i}", "path", "d/disk", "offset", 1536));
    assert_string_equal(json_string_value(json_object_get(f->res, "data-b64")), "");
    ok(f, "disk.delete", json_pack("{s:s}", "disk", "d/disk"));
    ok(f, "dir.make", json_pack("{s:s}", "path", "d/empty/deep"));
    ok(f, "dir.list", json_pack("{s:s}", "path", "d"));
    assert_int_equal(json_array_size(f->res), 2);
    ok(f, "file.list", json_pack("{s:s}", "path", "d"));
    assert_int_equal(json_array_size(f->res), 1);
    assert_string_equal(json_string_value(json_object_get(json_array_get(f->res, 0), "path")), "d/vm/web/web.vmx");
    assert_true(call(f, "dir.remove", json_pack("{s:s}", "path", "d/vm")) < 0); /* not empty */
    ok(f, "dir.remove", json_pack("{s:s}", "path", "d/vm/web/web.vmx"));
    ok(f, "dir.remove", json_pack("{s:s}", "path", "d/vm/web"));
    ok(f, "datastore.destroy", json_pack("{s:s,s:b}", "name", "d", "yes", 1));
    close_client(f);
    return 0;
}

static void test_files(void **state)
{
    with_service(files);
}

/* ---- an instant that is given up by who asked for it ---- */
#define GROUP_1 "11111111-2222-4333-8444-555555555555"
#define GROUP_2 "99999999-2222-4333-8444-555555555555"
#define GIVEN_UP "bbbbbbbb-2222-4333-8444-555555555555"
#define HOLD "aaaaaaaa-2222-4333-8444-555555555555-1-1"

struct asked { /* in a fiber of its own */
    struct fixture *f;
    const char *method;
    json_t *params;
    int r;
    bool over;
    struct gr_fqueue changed;
};

static void ask(void *arg)
{
    struct asked *a = arg;
    a->r = snap_client_call(a->f->c, a->method, a->params, NULL, NULL, NULL, NULL);
    a->over = true;
    gr_fqueue_wake_all(&a->changed);
}

static void ask_begin(struct asked *a, struct fixture *f, const char *method, json_t *params)
{
    *a = (struct asked){.f = f, .method = method, .params = params};
    assert_int_equal(gr_fiber_start(gr_fiber_loop(), ask, a), 0);
}

static int ask_end(struct asked *a)
{
    while (!a->over)
        gr_fqueue_wait(&a->changed);
    return a->r;
}

static json_t *of_group(const char *disk, const char *group)
{
    return json_pack("{s:s,s:s,s:s}", "disk", disk, "snapshot", "s", "group", group);
}

static json_t *new_one(const char *group)
{
    return json_pack("{s:[s,s],s:s,s:s*}", "disks", "g/a", "g/b", "name", "s", "group", group);
}

static size_t snapshots(struct fixture *f, const char *disk)
{
    ok(f, "snapshot.list", json_pack("{s:s}", "disk", disk));
    return json_array_size(f->res);
}

/* The disk as the service has it open. */
static struct vmfs_disk *open_here(struct fixture *f, const char *ds, const char *path)
{
    struct snap_handle *h = snap_ds_find(snap_client_local(f->c), ds)->handles;
    while (h && strcmp(h->path, path) != 0)
        h = h->next;
    assert_non_null(h);
    return h->disk;
}

static int given_up(void *arg)
{
    struct fixture *f = arg;
    struct asked late, undo;
    open_client(f);
    ok(f, "datastore.create", json_pack("{s:s,s:o,s:i}", "name", "g", "devices", devices("g.img"), "size", 1 << 28));
    ok(f, "disk.create", json_pack("{s:s,s:i}", "disk", "g/a", "size", 1 << 20));
    ok(f, "disk.create", json_pack("{s:s,s:i}", "disk", "g/b", "size", 1 << 20));
    assert_int_equal(call(f, "snapshot.create", new_one("mine")), -GR_EUSAGE);
    assert_int_equal(call(f, "snapshot.create", new_one("00000000-0000-0000-0000-000000000000")), -GR_EUSAGE);

    /* one of another group stays */
    ok(f, "snapshot.create", new_one(GROUP_1));
    assert_string_equal(json_string_value(json_object_get(json_array_get(f->res, 1), "group")), GROUP_1);
    assert_int_equal(call(f, "snapshot.delete", of_group("g/a", GROUP_2)), -ENOENT);
    assert_int_equal(snapshots(f, "g/a"), 1);
    ok(f, "snapshot.delete", of_group("g/a", GROUP_1));
    ok(f, "snapshot.delete", of_group("g/b", GROUP_1));
    assert_int_equal(snapshots(f, "g/a") + snapshots(f, "g/b"), 0);
    /* what comes too late is refused, as a whole */
    assert_int_equal(call(f, "snapshot.create", new_one(GROUP_2)), -GR_ECANCELED);
    assert_int_equal(snapshots(f, "g/a") + snapshots(f, "g/b"), 0);

    /* and one under way is waited for */
    struct vmfs_disk *b = open_here(f, "g", "b");
    disk_freeze(b->o);
    ask_begin(&late, f, "snapshot.create", new_one("33333333-2222-4333-8444-555555555555"));
    gr_fiber_sleep_ms(20);
    ask_begin(&undo, f, "snapshot.delete", of_group("g/a", "33333333-2222-4333-8444-555555555555"));
    gr_fiber_sleep_ms(20);
    assert_false(late.over);
    assert_false(undo.over);
    disk_thaw(b->o);
    assert_int_equal(ask_end(&late), 0);
    assert_int_equal(ask_end(&undo), 0);
    ok(f, "snapshot.delete", of_group("g/b", "33333333-2222-4333-8444-555555555555"));
    assert_int_equal(snapshots(f, "g/a") + snapshots(f, "g/b"), 0);
    ok(f, "snapshot.create", new_one(NULL));
    close_client(f);
    return 0;
}

static void test_given_up(void **state)
{
    with_service(given_up);
}

/* ---- an instant of several hosts, as one of them sees it ---- */
struct writing {
    struct gr_chan *ch;
    bool over;
    struct gr_fqueue changed;
};

static void write_one(void *arg)
{
    struct writing *w = arg;
    static uint8_t buf[4096];
    assert_int_equal(gr_pwrite(w->ch, buf, sizeof buf, 0, 0), 0);
    w->over = true;
    gr_fqueue_wake_all(&w->changed);
}

static void begin_write(struct fixture *f, struct writing *w)
{
    w->over = false;
    assert_int_equal(gr_fiber_start(gr_fiber_loop(), write_one, w), 0);
}

static json_t *held_part(const char *id)
{
    return json_pack("{s:[s],s:s,s:s}", "disks", "h/a", "group", id, "name", "s");
}

static int held(void *arg)
{
    struct fixture *f = arg;
    struct writing w = {0};
    open_client(f);
    ok(f, "datastore.create", json_pack("{s:s,s:o,s:i}", "name", "h", "devices", devices("h.img"), "size", 1 << 28));
    ok(f, "disk.create", json_pack("{s:s,s:i}", "disk", "h/a", "size", 1 << 20));
    ok(f, "disk.info", json_pack("{s:s}", "disk", "h/a"));
    assert_int_equal(gr_chan_open(vmfs_bdev(open_here(f, "h", "a")), gr_fiber_loop(), &w.ch), 0);

    /* nobody goes on: who writes is let go after the tenth of a second, and then it is not taken any more */
    ok(f, "snapshot.hold", held_part(HOLD));
    uint64_t began = gr_loop_now_ns(gr_fiber_loop());
    begin_write(f, &w);
    while (!w.over)
        gr_fqueue_wait(&w.changed);
    uint64_t ms = (gr_loop_now_ns(gr_fiber_loop()) - began) / 1000000;
    printf("# held for %llu ms\n", (unsigned long long)ms);
    assert_in_range(ms, 50, 1500); /* and not until it is settled, 3 s */
    assert_int_equal(call(f, "snapshot.take", held_part(HOLD)), -EAGAIN);
    ok(f, "snapshot.settle", held_part(HOLD));
    assert_int_equal(json_array_size(f->res), 0);
    assert_int_equal(snapshots(f, "h/a"), 0);

    /* once taken it goes on, long before it is decided; undecided it is not there */
    ok(f, "snapshot.hold", held_part(HOLD "-2"));
    begin_write(f, &w);
    gr_fiber_sleep_ms(5);
    ok(f, "snapshot.take", held_part(HOLD "-2"));
    while (!w.over)
        gr_fqueue_wait(&w.changed);
    assert_int_equal(snapshots(f, "h/a"), 0);
    ok(f, "disk.info", json_pack("{s:s}", "disk", "h/a"));
    assert_int_equal(num(f, "snapshots"), 1);
    ok(f, "snapshot.settle", held_part(HOLD "-2"));
    assert_int_equal(json_array_size(f->res), 0);
    ok(f, "disk.info", json_pack("{s:s}", "disk", "h/a"));
    assert_int_equal(num(f, "snapshots"), 0);
    /* who was told that it is given up does not hold for it any more, whoever leads it */
    assert_int_equal(call(f, "snapshot.delete", json_pack("{s:s,s:s,s:s}", "disk", "h/a", "snapshot", "s", "group", GIVEN_UP)), -ENOENT);
    assert_int_equal(call(f, "snapshot.hold", held_part(GIVEN_UP "-1-1")), -GR_ECANCELED);
    /* nor when he is told while the disks for it are still being opened */
    struct asked opening;
    uint8_t group[16];
    struct snap_svc *s = snap_client_local(f->c);
    gr_fmutex_lock(&s->lock);
    ask_begin(&opening, f, "snapshot.hold", held_part(GROUP_1 "-1-1"));
    gr_fiber_sleep_ms(20);
    assert_false(opening.over);
    assert_int_equal(gr_uuid_parse(GROUP_1, group), 0);
    snap_undo(s, group);
    gr_fmutex_unlock(&s->lock);
    assert_int_equal(ask_end(&opening), -GR_ECANCELED);
    gr_chan_close(w.ch);
    close_client(f);
    return 0;
}

/* ---- an instant that this host leads ---- */
struct leading {
    struct fixture *f;
    struct snap_disk d;
    uint8_t group[16];
    json_t *rows;
    int r;
    bool over;
    struct gr_fqueue changed;
};

static void lead_fiber(void *arg)
{
    struct leading *l = arg;
    struct gr_err err = {0};
    struct snap_op op = {.s = snap_client_local(l->f->c), .err = &err};
    const struct snap_new new = {.name = "led", .group = l->group};
    const struct snap_member all = {.disk = "i/a", .id = vmfs_disk_id(l->d.h->disk)};
    l->r = snap_group_lead(&op, l->d.ds, &new, &l->d, 1, &all, 1, l->rows);
    l->over = true;
    gr_fqueue_wake_all(&l->changed);
}

/* Another host that names the group does not take it, or settle it, in the place of who leads it. */
static int led(void *arg)
{
    struct fixture *f = arg;
    struct leading l = {.f = f, .rows = json_array()};
    struct vmfs_slot_info own;
    char id[96];
    open_client(f);
    ok(f, "datastore.create", json_pack("{s:s,s:o,s:i}", "name", "i", "devices", devices("i.img"), "size", 1 << 28));
    ok(f, "disk.create", json_pack("{s:s,s:i}", "disk", "i/a", "size", 1 << 20));
    ok(f, "disk.resize", json_pack("{s:s,s:i}", "disk", "i/a", "size", 2 << 20));
    l.d.ds = snap_ds_find(snap_client_local(f->c), "i");
    l.d.h = snap_handle_find(l.d.ds, "a");
    assert_non_null(l.d.h);
    l.d.ds->users++;
    l.d.h->users++;
    assert_int_equal(gr_uuid_parse(GROUP_1, l.group), 0);
    assert_int_equal(vmfs_slot(l.d.ds->v, vmfs_own_slot(l.d.ds->v), &own, &f->err), 0);
    snprintf(id, sizeof id, GROUP_1 "-%x-%llx", own.slot, (unsigned long long)own.generation);
    assert_int_equal(gr_fiber_start(gr_fiber_loop(), lead_fiber, &l), 0);
    while (!l.over && !snap_group_under_way(snap_client_local(f->c), l.group))
        gr_fiber_sleep_ms(1);
    assert_false(l.over);
    assert_int_equal(call(f, "snapshot.take", held_part(id)), -ENOENT);
    assert_int_equal(call(f, "snapshot.settle", held_part(id)), -ENOENT);
    while (!l.over)
        gr_fqueue_wait(&l.changed);
    assert_int_equal(l.r, 0);
    assert_int_equal(json_array_size(l.rows), 1);
    snap_disk_put(&l.d);
    json_decref(l.rows);
    assert_int_equal(snapshots(f, "i/a"), 1);
    close_client(f);
    return 0;
}

static void test_led(void **state)
{
    with_service(led);
}

/* ---- open for writing through a mount ---- */
static int shown(void *arg)
{
    struct fixture *f = arg;
    open_client(f);
    ok(f, "datastore.create", json_pack("{s:s,s:o,s:i}", "name", "m", "devices", devices("m.img"), "size", 1 << 28));
    ok(f, "disk.create", json_pack("{s:s,s:i}", "disk", "m/a", "size", 2 << 20));
    ok(f, "snapshot.create", json_pack("{s:[s],s:s}", "disks", "m/a", "name", "s"));
    struct snap_handle *h = snap_handle_find(snap_ds_find(snap_client_local(f->c), "m"), "a");
    assert_non_null(h);
    h->mounted++;
    for (int force = 0; force < 2; force++)
        assert_int_equal(call(f, "snapshot.revert", json_pack("{s:s,s:s,s:b}", "disk", "m/a", "snapshot", "s", "force", force)), -GR_ELOCKED);
    assert_int_equal(call(f, "disk.resize", json_pack("{s:s,s:i,s:b}", "disk", "m/a", "size", 1 << 20, "shrink", 1)), -GR_ELOCKED);
    ok(f, "disk.resize", json_pack("{s:s,s:i}", "disk", "m/a", "size", 3 << 20));
    h->mounted--;
    ok(f, "snapshot.revert", json_pack("{s:s,s:s}", "disk", "m/a", "snapshot", "s"));
    close_client(f);
    return 0;
}

static void test_shown(void **state)
{
    with_service(shown);
}

/* ---- requests beside each other ---- */
static void set_portal(void *arg)
{
    struct asked *a = arg;
    a->r = snap_svc_set_portal(snap_client_local(a->f->c), "10.1.2.3:3260", NULL);
    a->over = true;
    gr_fqueue_wake_all(&a->changed);
}

/* A datastore is not left while its slot is being told something. */
static int leaving(void *arg)
{
    struct fixture *f = arg;
    struct asked portal = {.f = f}, leave;
    open_client(f);
    ok(f, "datastore.create", json_pack("{s:s,s:o,s:i}", "name", "l", "devices", devices("l.img"), "size", 1 << 28));
    struct snap_ds *ds = snap_ds_find(snap_client_local(f->c), "l");
    struct vmfs *v = ds->v;
    gr_fmutex_lock(&v->ckpt_lock);
    assert_int_equal(gr_fiber_start(gr_fiber_loop(), set_portal, &portal), 0);
    gr_fiber_sleep_ms(20);
    ask_begin(&leave, f, "datastore.leave", json_pack("{s:s}", "name", "l"));
    gr_fiber_sleep_ms(20);
    assert_ptr_equal(ds->v, v);
    gr_fmutex_unlock(&v->ckpt_lock);
    assert_int_equal(ask_end(&portal), 0);
    assert_int_equal(ask_end(&leave), 0);
    close_client(f);
    return 0;
}

static void test_leaving(void **state)
{
    with_service(leaving);
}

static int in_use(void *arg, const char *disk, bool only_idle, struct gr_err *err)
{
    return gr_fail(err, -EBUSY, "disk '%s' is in use", disk);
}

/* One that stays after all tells the portal that this host has by now. */
static int stays(void *arg)
{
    struct fixture *f = arg;
    struct asked leave, portal = {.f = f};
    struct vmfs_slot_info own;
    open_client(f);
    ok(f, "datastore.create", json_pack("{s:s,s:o,s:i}", "name", "s", "devices", devices("s.img"), "size", 1 << 28));
    ok(f, "disk.create", json_pack("{s:s,s:i}", "disk", "s/a", "size", 1 << 20));
    ok(f, "disk.resize", json_pack("{s:s,s:i}", "disk", "s/a", "size", 2 << 20)); /* it is open */
    struct snap_svc *s = snap_client_local(f->c);
    struct snap_ds *ds = snap_ds_find(s, "s");
    s->o.hooks.release = in_use;
    ds->users++;
    ask_begin(&leave, f, "datastore.leave", json_pack("{s:s}", "name", "s"));
    while (!ds->leaving)
        gr_fiber_sleep_ms(1);
    set_portal(&portal);
    assert_int_equal(portal.r, 0);
    ds->users--;
    assert_int_not_equal(ask_end(&leave), 0);
    s->o.hooks.release = NULL;
    assert_int_equal(vmfs_slot(ds->v, vmfs_own_slot(ds->v), &own, &f->err), 0);
    assert_string_equal(own.portal, "10.1.2.3:3260");
    close_client(f);
    return 0;
}

static void test_stays(void **state)
{
    with_service(stays);
}

/* A datastore that cannot be told the portal keeps no other from being told. */
static int told(void *arg)
{
    struct fixture *f = arg;
    struct vmfs_slot_info own;
    open_client(f);
    ok(f, "datastore.create", json_pack("{s:s,s:o,s:i}", "name", "p", "devices", devices("p.img"), "size", 1 << 28));
    ok(f, "datastore.create", json_pack("{s:s,s:o,s:i}", "name", "q", "devices", devices("q.img"), "size", 1 << 28));
    struct snap_svc *s = snap_client_local(f->c);
    struct snap_ds *first = s->list, *second = first->next;
    gr_alloc_fail_after(0, 0);
    assert_int_equal(snap_svc_set_portal(s, "10.1.2.3:3260", &f->err), -ENOMEM);
    gr_alloc_fail_after(-1, 0);
    assert_non_null(strstr(f->err.text, first->name));
    assert_int_equal(vmfs_slot(second->v, vmfs_own_slot(second->v), &own, &f->err), 0);
    assert_string_equal(own.portal, "10.1.2.3:3260");
    close_client(f);
    return 0;
}

static void test_told(void **state)
{
    with_service(told);
}

struct look {
    struct snap_svc *s;
    struct snap_ds *ds;
    struct snap_handle *h;
    int r;
    bool over;
};
static void look_fiber(void *arg)
{
    struct look *l = arg;
    l->r = snap_handle_get(l->s, l->ds, "a", "look", 0, &l->h, NULL, NULL);
    l->over = true;
}

/* Who sees where its name leads does not use a disk yet: it can be closed, and is opened anew. */
static int looked_at(void *arg)
{
    struct fixture *f = arg;
    open_client(f);
    ok(f, "datastore.create", json_pack("{s:s,s:o,s:i}", "name", "k", "devices", devices("k.img"), "size", 1 << 28));
    ok(f, "disk.create", json_pack("{s:s,s:i}", "disk", "k/a", "size", 1 << 20));
    ok(f, "disk.resize", json_pack("{s:s,s:i}", "disk", "k/a", "size", 2 << 20)); /* it is open */
    struct snap_svc *s = snap_client_local(f->c);
    struct snap_disk d = {.ds = snap_ds_find(s, "k")};
    struct look l[2] = {{.s = s, .ds = d.ds}, {.s = s, .ds = d.ds}};
    d.h = snap_handle_find(d.ds, "a");
    d.h->users++;
    for (int i = 0; i < 2; i++)
        assert_int_equal(gr_fiber_start(gr_fiber_loop(), look_fiber, &l[i]), 0);
    gr_fiber_sleep_ms(0);
    assert_false(l[0].over || l[1].over);
    if (snap_disk_drop(s, &d, true, &f->err) < 0)
        fail_msg("%s", f->err.text);
    while (!l[0].over || !l[1].over)
        gr_fiber_sleep_ms(1);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(l[i].r, 0);
        assert_ptr_equal(l[i].h, snap_handle_find(d.ds, "a"));
        l[i].h->users--;
    }
    close_client(f);
    return 0;
}

static void test_looked_at(void **state)
{
    with_service(looked_at);
}

/* The place of a device is looked for when nobody else moves them. */
static int moved_devices(void *arg)
{
    struct fixture *f = arg;
    struct asked adding;
    char *more = test_path("t-2.img");
    open_client(f);
    ok(f, "datastore.create", json_pack("{s:s,s:o,s:i}", "name", "t", "devices", devices("t-1.img"), "size", 1 << 28));
    struct snap_svc *s = snap_client_local(f->c);
    struct snap_ds *ds = snap_ds_find(s, "t");
    struct gr_bdev *first = ds->bdevs[0];
    ask_begin(&adding, f, "datastore.add-device", json_pack("{s:s,s:s,s:i}", "name", "t", "device", more, "size", 1 << 28));
    while (ds->n_devices == 1 && !adding.over)
        gr_fiber_sleep_ms(0);
    gr_fmutex_lock(&s->lock);
    gr_fiber_sleep_ms(300);
    assert_false(adding.over); /* it waits for the lock, for the second time */
    char *name = ds->devices[0]; /* as when another one has gone */
    ds->devices[0] = ds->devices[1];
    ds->devices[1] = name;
    ds->bdevs[0] = ds->bdevs[1];
    ds->bdevs[1] = first;
    gr_fmutex_unlock(&s->lock);
    assert_int_equal(ask_end(&adding), 0);
    assert_ptr_equal(ds->bdevs[1], first);
    close_client(f);
    free(more);
    return 0;
}

static void test_moved_devices(void **state)
{
    with_service(moved_devices);
}

/* ---- a name that leads elsewhere before what it named has ended ---- */

/* While the disk is being closed, as another host may. */
static int swap_folders(void *arg, const char *disk, bool only_idle, struct gr_err *err)
{
    struct snap_svc *s = arg;
    struct vmfs *v = snap_ds_find(s, "d")->v;
    s->o.hooks.release = NULL;
    assert_int_equal(vmfs_rename(v, "vm", "old", err), 0);
    assert_int_equal(vmfs_rename(v, "new", "vm", err), 0);
    return 0;
}

static void will_swap(struct fixture *f, bool encrypted)
{
    struct snap_svc *s = snap_client_local(f->c);
    ok(f, "disk.create", json_pack("{s:s,s:i,s:b}", "disk", "d/vm/x", "size", 1 << 20, "encrypt", encrypted));
    ok(f, "disk.create", json_pack("{s:s,s:i,s:b}", "disk", "d/new/x", "size", 2 << 20, "encrypt", encrypted));
    ok(f, "disk.resize", json_pack("{s:s,s:i}", "disk", "d/vm/x", "size", 3 << 20)); /* it is open, */
    ok(f, "disk.release", json_pack("{s:s}", "disk", "d/new/x"));                    /* and the other one is not */
    s->o.hooks.arg = s;
    s->o.hooks.release = swap_folders;
}

static void delete_both(struct fixture *f)
{
    assert_null(snap_client_local(f->c)->o.hooks.release);
    ok(f, "disk.info", json_pack("{s:s}", "disk", "d/vm/x"));
    assert_int_equal(num(f, "size"), 2 << 20);
    ok(f, "disk.delete", json_pack("{s:s}", "disk", "d/vm/x"));
    ok(f, "dir.remove", json_pack("{s:s}", "path", "d/vm"));
    ok(f, "disk.delete", json_pack("{s:s}", "disk", "d/old/x"));
    ok(f, "dir.remove", json_pack("{s:s}", "path", "d/old"));
}

static int renamed(void *arg)
{
    struct fixture *f = arg;
    open_client(f);
    ok(f, "datastore.create", json_pack("{s:s,s:o,s:i}", "name", "d", "devices", devices("d.img"), "size", 1 << 28));
    will_swap(f, false);
    assert_int_equal(call(f, "disk.delete", json_pack("{s:s}", "disk", "d/vm/x")), -ESTALE);
    delete_both(f);
    will_swap(f, false);
    ok(f, "disk.resize", json_pack("{s:s,s:i}", "disk", "d/new/x", "size", 2 << 20)); /* now it is, and stays so, by a name that it loses */
    ok(f, "disk.release", json_pack("{s:s}", "disk", "d/vm/x"));
    delete_both(f);
    will_swap(f, false);
    assert_int_equal(swap_folders(snap_client_local(f->c), NULL, false, &f->err), 0);
    ok(f, "disk.resize", json_pack("{s:s,s:i}", "disk", "d/vm/x", "size", 2 << 20)); /* not the one that was open by that name */
    delete_both(f);
    ok(f, "key.create", json_object());
    will_swap(f, true);
    ok(f, "disk.erase", json_pack("{s:s}", "disk", "d/vm/x"));
    assert_int_equal(call(f, "disk.resize", json_pack("{s:s,s:i}", "disk", "d/old/x", "size", 4 << 20)), -ENOKEY);
    ok(f, "disk.resize", json_pack("{s:s,s:i}", "disk", "d/vm/x", "size", 2 << 20));
    delete_both(f);
    ok(f, "datastore.destroy", json_pack("{s:s,s:b}", "name", "d", "yes", 1));
    close_client(f);
    return 0;
}

static void test_renamed(void **state)
{
    with_service(renamed);
}

struct aside {
    struct vmfs *v;
    int (*kek)(void *arg, uint64_t id, uint8_t ret[VMFS_KEK_BYTES]);
    void *kek_arg;
    uint64_t other; /* what has the name now */
};

/* The key is here when the file is made; when it is to be opened another host has given its name to something else, and the key is gone. */
static int key_once(void *arg, uint64_t id, uint8_t ret[VMFS_KEK_BYTES])
{
    struct aside *a = arg;
    struct vmfs_stat st;
    if (!a->other && vmfs_stat(a->v, "vm/memory", &st, NULL) < 0)
        return a->kek(a->kek_arg, id, ret);
    if (!a->other) {
        OK(vmfs_rename(a->v, "vm/memory", "vm/aside", &err));
        OK(vmfs_create_file(a->v, "vm/memory", 0, &a->other, &err));
    }
    return -ENOENT;
}

/* What came to nothing takes no other file with it that has its name by now. */
static int taken_in_vain(void *arg)
{
    struct fixture *f = arg;
    struct vmfs_stat st;
    open_client(f);
    ok(f, "datastore.create", json_pack("{s:s,s:o,s:i}", "name", "n", "devices", devices("n.img"), "size", 1 << 28));
    ok(f, "key.create", json_object());
    json_t *params = json_pack("{s:s,s:s,s:i,s:O}", "path", "n/vm/memory", "socket", "/nobody/listens", "limit", 1 << 20, "key", json_object_get(f->res, "key"));
    struct vmfs *v = snap_ds_find(snap_client_local(f->c), "n")->v;
    struct aside a = {.v = v, .kek = v->opts.kek, .kek_arg = v->opts.kek_arg};
    v->opts.kek = key_once;
    v->opts.kek_arg = &a;
    assert_true(call(f, "file.take-encrypted", params) < 0);
    v->opts.kek = a.kek;
    v->opts.kek_arg = a.kek_arg;
    assert_true(a.other);
    OK(vmfs_stat(v, "vm/memory", &st, &err));
    assert_true(st.id == a.other);
    close_client(f);
    return 0;
}

static void test_taken_in_vain(void **state)
{
    with_service(taken_in_vain);
}

/* ---- an owner of another release ---- */
struct older {
    unsigned asked;
};

static int by_name(void *arg, struct gr_rpc_call *c, json_t *params, json_t **ret, struct gr_err *err)
{
    ((struct older *)arg)->asked++;
    return 0;
}

static const struct gr_rpc_method older_methods[] = {{"snapshot.delete", by_name}, {NULL}}, newer_methods[] = {{"snapshot.delete-part", by_name}, {NULL}};

static int elsewhere(struct snap_op *op)
{
    op->forward = true;
    op->forward_as = json_object_get(op->params, "group") ? "snapshot.delete-part" : NULL;
    snprintf(op->owner.host, sizeof op->owner.host, "older");
    snprintf(op->owner.address, sizeof op->owner.address, "%s", json_string_value(json_object_get(op->params, "at")));
    return -GR_ELOCKED;
}

/* What it would take for more than is asked for is not asked of it. */
static int older(void *arg)
{
    struct fixture *f = arg;
    struct older o = {0};
    struct gr_rpc_server *server = NULL;
    struct gr_err err = {0};
    json_t *ret = NULL;
    char *path = test_path("older.sock");
    open_client(f);
    assert_int_equal(gr_rpc_server_new(gr_fiber_loop(), &server), 0);
    assert_int_equal(gr_rpc_server_add(server, older_methods, &o), 0);
    assert_int_equal(gr_rpc_server_listen(server, path, &err), 0);
    json_t *whole = json_pack("{s:s}", "at", path), *part = json_pack("{s:s,s:s}", "at", path, "group", GIVEN_UP);
    assert_int_equal(snap_op_run(snap_client_local(f->c), NULL, "snapshot.delete", elsewhere, whole, &ret, &err), 0);
    json_decref(ret);
    assert_int_equal(o.asked, 1);
    assert_int_equal(snap_op_run(snap_client_local(f->c), NULL, "snapshot.delete", elsewhere, part, &ret, &err), -GR_EVERSION);
    assert_non_null(strstr(err.text, "host 'older' runs a release of Granary that does not know snapshot.delete-part"));
    assert_int_equal(o.asked, 1);
    assert_int_equal(gr_rpc_server_add(server, newer_methods, &o), 0);
    ret = NULL;
    assert_int_equal(snap_op_run(snap_client_local(f->c), NULL, "snapshot.delete", elsewhere, part, &ret, &err), 0);
    json_decref(ret);
    assert_int_equal(o.asked, 2);
    json_decref(whole);
    json_decref(part);
    gr_rpc_server_free(server);
    close_client(f);
    free(path);
    return 0;
}

static void test_older(void **state)
{
    with_service(older);
}

static void test_held(void **state)
{
    with_service(held);
}

TEST_MAIN(TEST(test_datastores), TEST(test_disks), TEST(test_files), TEST(test_given_up), TEST(test_held), TEST(test_led), TEST(test_shown), TEST(test_leaving), TEST(test_stays), TEST(test_told), TEST(test_looked_at), TEST(test_taken_in_vain), TEST(test_moved_devices), TEST(test_renamed), TEST(test_older))
