/* Datastores that a host gave up are joined again, each for itself; and with a device that was lost, when that is there again. */
#include "tests/lib/test.h"
#include "snapshot/client.h"
#include "snapshot/service_int.h"
#include "vmfs/internal.h"
#include "vmfs/loss.h"
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

struct fixture {
    struct gr_home *home;
    struct snap_client *c;
    struct snap_svc *s;
};

static int call(struct fixture *f, const char *method, json_t *params, struct gr_err *err)
{
    json_t *res = NULL;
    assert_non_null(params);
    int r = snap_client_call(f->c, method, params, NULL, NULL, &res, err);
    json_decref(res);
    return r;
}

static struct snap_ds *make(struct fixture *f, const char *name, unsigned devices)
{
    json_t *a = json_array();
    for (unsigned i = 0; i < devices; i++) {
        char file[32];
        snprintf(file, sizeof file, "%s%u.img", name, i);
        char *path = test_path(file);
        json_array_append_new(a, json_string(path));
        free(path);
    }
    OK(call(f, "datastore.create", json_pack("{s:s,s:o,s:i}", "name", name, "devices", a, "size", 64 << 20), &err));
    struct snap_ds *ds = snap_ds_find(f->s, name);
    assert_non_null(ds);
    return ds;
}

static void give_up(struct snap_ds *ds)
{
    vmfs_fence(ds->v, "for a test");
    snap_ds_rejoin(ds);
}

static bool at_work(const struct snap_ds *ds)
{
    return !ds->ejected && !ds->leaving && ds->v && !ds->v->fenced;
}

static void wait_at_work(const struct snap_ds *ds, unsigned ms)
{
    for (unsigned i = 0; i < ms && !at_work(ds); i += 10)
        gr_fiber_sleep_ms(10);
    if (!at_work(ds))
        fail_msg("datastore '%s' is not joined again", ds->name);
}

static void with_service(int (*body)(void *))
{
    struct fixture f = { .home = test_home("home") };
    test_in_fiber(body, &f);
    gr_home_free(f.home);
}

static void begin(struct fixture *f)
{
    OK(snap_client_open(gr_fiber_loop(), f->home, NULL, &f->c, &err));
    f->s = snap_client_local(f->c);
    assert_non_null(f->s);
}

static void end(struct fixture *f, struct snap_ds *ds)
{
    OK(call(f, "datastore.destroy", json_pack("{s:s,s:b}", "name", ds->name, "yes", 1), &err));
}

static int each_fn(void *arg)
{
    struct fixture *f = arg;
    begin(f);
    struct snap_ds *ds[2] = { make(f, "one", 1), make(f, "two", 1) };
    for (unsigned i = 0; i < 2; i++) { /* one cannot be joined; whichever is looked at first, the other is */
        char file[64];
        snprintf(file, sizeof file, "%s0.img", ds[i]->name);
        char *path = test_path(file), *away = test_path("away");
        assert_int_equal(rename(path, away), 0);
        give_up(ds[0]);
        give_up(ds[1]);
        wait_at_work(ds[!i], 3000);
        assert_false(at_work(ds[i]));
        assert_int_equal(rename(away, path), 0);
        wait_at_work(ds[i], 6000);
        free(path);
        free(away);
    }
    end(f, ds[0]);
    end(f, ds[1]);
    snap_client_close(f->c);
    return 0;
}

static void each(void **state)
{
    (void)state;
    with_service(each_fn);
}

/* It is given up while disks of another one are just being opened. */
static int meanwhile_fn(void *arg)
{
    struct fixture *f = arg;
    begin(f);
    struct snap_ds *one = make(f, "one", 1), *two = make(f, "two", 1);
    for (unsigned i = 0; i < 40; i++) {
        char disk[32];
        snprintf(disk, sizeof disk, "one/d%u", i);
        OK(call(f, "disk.create", json_pack("{s:s,s:i}", "disk", disk, "size", 1 << 20), &err));
    }
    give_up(one);
    for (unsigned i = 0; i < 3000 && !(at_work(one) && one->handles); i++)
        gr_fiber_yield();
    while (!(at_work(one) && one->handles))
        gr_fiber_sleep_ms(0);
    assert_int_equal(f->s->rejoining, 1); /* it is at it */
    give_up(two);
    wait_at_work(two, 6000);
    while (f->s->rejoining)
        gr_fiber_sleep_ms(10);
    end(f, one);
    end(f, two);
    snap_client_close(f->c);
    return 0;
}

static void meanwhile(void **state)
{
    (void)state;
    with_service(meanwhile_fn);
}

/* It is being left, which waits for a request, when it is to be joined anew: who leaves it takes it away from under nobody. */
struct leaving {
    struct fixture *f;
    int r;
    bool over;
};

static void leaver(void *arg)
{
    struct leaving *l = arg;
    l->r = call(l->f, "datastore.leave", json_pack("{s:s}", "name", "left"), NULL);
    l->over = true;
}

static int left_fn(void *arg)
{
    struct fixture *f = arg;
    struct leaving l = { .f = f };
    begin(f);
    struct snap_ds *ds = make(f, "left", 1);
    ds->users++;
    assert_int_equal(gr_fiber_start(gr_fiber_loop(), leaver, &l), 0);
    for (unsigned i = 0; i < 500 && !ds->leaving; i++)
        gr_fiber_sleep_ms(1);
    assert_true(ds->leaving);
    ds->back = 1;
    snap_ds_rejoin(ds);
    gr_fiber_sleep_ms(100);
    assert_true(ds->ejected); /* nobody is at it */
    snap_ds_put(ds);
    for (unsigned i = 0; i < 500 && !(l.over && !f->s->rejoining); i++)
        gr_fiber_sleep_ms(10);
    assert_true(l.over && !f->s->rejoining);
    assert_int_equal(l.r, 0);
    assert_null(snap_ds_find(f->s, "left"));
    snap_client_close(f->c);
    return 0;
}

static void left(void **state)
{
    (void)state;
    with_service(left_fn);
}

static void at_work_for_a_while(void *arg)
{
    gr_fiber_sleep_ms(300);
    snap_ds_put(arg);
}

/* What is there is no good; the datastore goes on without it, as before. Then it is good, and other requests are at work. */
static int back_fn(void *arg)
{
    struct fixture *f = arg;
    char *path = test_path("ds2.img");
    begin(f);
    struct snap_ds *ds = make(f, "ds", 3);
    ds->v->dev[2].failed = true;
    vmfs_fence(ds->v, "for a test");
    wait_at_work(ds, 3000);
    assert_true(vdev_missing(ds->v, 2) && ds->lost[2]);
    assert_int_equal(truncate(path, 32 << 20), 0);
    FAILS(-ENODEV, "cannot be used yet: the log", call(f, "datastore.add-device", json_pack("{s:s,s:s}", "name", "ds", "device", path), &err));
    assert_true(at_work(ds) && vdev_missing(ds->v, 2) && ds->lost[2]);
    assert_int_equal(truncate(path, 64 << 20), 0);
    ds->users++;
    assert_int_equal(gr_fiber_start(gr_fiber_loop(), at_work_for_a_while, ds), 0);
    OK(call(f, "datastore.add-device", json_pack("{s:s,s:s}", "name", "ds", "device", path), &err));
    assert_true(at_work(ds) && !vdev_missing(ds->v, 2) && !ds->lost[2]);
    assert_int_equal(ds->users, 0);
    end(f, ds);
    snap_client_close(f->c);
    free(path);
    return 0;
}

static void back(void **state)
{
    (void)state;
    with_service(back_fn);
}

/* A disk on its way to another host is free for a moment: who opens all disks then, without waiting, does not take it. */
static int moving_fn(void *arg)
{
    struct fixture *f = arg;
    begin(f);
    struct snap_ds *ds = make(f, "ds", 1);
    struct snap_moving m = { .path = "d" };
    struct snap_place place = { 0 };
    OK(call(f, "disk.create", json_pack("{s:s,s:i}", "disk", "ds/d", "size", 1 << 20), &err));
    OK(call(f, "disk.create", json_pack("{s:s,s:i}", "disk", "ds/e", "size", 1 << 20), &err));
    ds->moving = &m;
    OK(call(f, "disk.release", json_pack("{s:s}", "disk", "ds/e"), &err));
    struct snap_handle *h = snap_handle_find(ds, "d");
    struct snap_disk d = { .ds = ds, .h = h };
    h->users++;
    ds->users++;
    OK(snap_disk_drop(f->s, &d, false, &err));
    OK(vmfs_release(ds->v, "d", &err));
    snap_disk_put(&d);
    assert_int_equal(snap_svc_open_all(f->s), 1);
    assert_null(snap_handle_find(ds, "d"));
    FAILS(-GR_ELOCKED, "changes hands", snap_svc_find(f->s, "ds/d", "opening", 0, &place, &err));
    ds->moving = NULL;
    assert_int_equal(snap_svc_open_all(f->s), 2);
    end(f, ds);
    snap_client_close(f->c);
    return 0;
}

static void moving(void **state)
{
    (void)state;
    with_service(moving_fn);
}

/* ---- an owner that does not answer ---- */
struct host {
    struct gr_home *home;
    struct snap_svc *s;
    struct gr_rpc_server *rpc;
    bool ended;
};

static void host_begin(struct host *h, const char *name, const char *address)
{
    h->home = test_home(name);
    const struct snap_svc_opts o = { .loop = gr_fiber_loop(), .home = h->home, .address = address };
    OK(snap_svc_new(&o, &h->s, &err));
    assert_int_equal(gr_rpc_server_new(gr_fiber_loop(), &h->rpc), 0);
    assert_int_equal(snap_svc_serve(h->s, h->rpc), 0);
}

static json_t *ask(struct host *h, const char *method, json_t *params)
{
    json_t *res = NULL;
    OK(gr_rpc_local(h->rpc, method, params, NULL, NULL, &res, &err));
    return res;
}

static void server_end(void *arg)
{
    struct host *h = arg;
    gr_rpc_server_free(gr_take(h->rpc));
    h->ended = true;
}

/* Who asked gives up, or the service ends: then what was passed on to that owner ends, too. What the volume knows is told without it. */
static int silent_fn(void *arg)
{
    (void)arg;
    struct host a = { 0 }, b = { 0 };
    int fd = -1;
    struct gr_rpc_client *c = NULL;
    char *deaf = test_path("deaf.sock"), *sock = test_path("a.sock"), *image = test_path("shared.img");
    OK(gr_unix_listen(deaf, 0600, &fd, &err)); /* nobody reads what comes there */
    host_begin(&b, "b", deaf);
    json_decref(ask(&b, "datastore.create", json_pack("{s:s,s:[s],s:i}", "name", "ds", "devices", image, "size", 64 << 20)));
    json_decref(ask(&b, "disk.create", json_pack("{s:s,s:i}", "disk", "ds/d", "size", 1 << 20)));
    host_begin(&a, "a", sock);
    OK(gr_rpc_server_listen(a.rpc, sock, &err));
    json_decref(ask(&a, "datastore.join", json_pack("{s:s,s:[s]}", "name", "ds", "devices", image)));
    OK(gr_rpc_connect(gr_fiber_loop(), sock, &c, &err));
    FAILS(-ETIMEDOUT, "did not answer", gr_rpc_call(c, "snapshot.list", json_pack("{s:s}", "disk", "ds/d"), NULL, NULL, 300, NULL, &err));
    json_t *res = NULL;
    OK(gr_rpc_call(c, "disk.info", json_pack("{s:s}", "disk", "ds/d"), NULL, NULL, 20000, &res, &err));
    assert_int_equal(json_integer_value(json_object_get(res, "size")), 1 << 20);
    json_decref(res);
    gr_rpc_client_free(c);
    assert_int_equal(gr_fiber_start(gr_fiber_loop(), server_end, &a), 0);
    for (unsigned i = 0; i < 500 && !a.ended; i++)
        gr_fiber_sleep_ms(10);
    assert_true(a.ended);
    snap_svc_free(a.s);
    gr_rpc_server_free(b.rpc);
    snap_svc_free(b.s);
    gr_home_free(a.home);
    gr_home_free(b.home);
    close(fd);
    free(deaf);
    free(sock);
    free(image);
    return 0;
}

static void silent(void **state)
{
    (void)state;
    with_service(silent_fn);
}

/* ---- disks and files that have lost writes ---- */
static int write_some(struct snap_ds *ds, const char *path)
{
    struct vmfs_disk *d;
    struct gr_chan *ch;
    static uint8_t buf[4096];
    OK(vmfs_open(ds->v, path, &d, NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(d), gr_fiber_loop(), &ch), 0);
    int r = gr_pwrite(ch, buf, sizeof buf, 0, 0);
    r = r == 0 ? gr_flush(ch) : r;
    gr_chan_close(ch);
    vmfs_close(d);
    return r;
}

static void poison(struct snap_ds *ds, const char *path)
{
    struct vmfs_disk *d;
    OK(vmfs_open(ds->v, path, &d, NULL, &err));
    OK(vloss_poison(d->o, 4));
    OK(vmfs_checkpoint(ds->v, &err));
    vmfs_close(d);
}

static void find_line(void *arg, const char *text)
{
    unsigned *found = arg;
    *found |= strcmp(text, "'ds/a/file' has lost writes with a device, and refuses all but reads: 'granary datastore accept-loss ds/a/file' uses it again") == 0;
    *found |= (unsigned)(strncmp(text, "'ds/disk' has lost writes with a device", 39) == 0) << 1;
}

static int accept_fn(void *arg)
{
    struct fixture *f = arg;
    static const char *const paths[] = { "a/file", "disk" };
    struct vmfs_check_report rep;
    unsigned found = 0;
    begin(f);
    struct snap_ds *ds = make(f, "ds", 1);
    OK(vmfs_create(ds->v, "a/file", VMFS_FILE, 1 << 20, VMFS_THIN, &err));
    OK(vmfs_create(ds->v, "disk", VMFS_DISK, 1 << 20, VMFS_THIN, &err));
    for (unsigned i = 0; i < 2; i++) {
        char path[32];
        snprintf(path, sizeof path, "ds/%s", paths[i]);
        assert_int_equal(write_some(ds, paths[i]), 0);
        FAILS(-EINVAL, "has lost no writes", call(f, "datastore.accept-loss", json_pack("{s:s}", "path", path), &err));
        poison(ds, paths[i]);
        assert_int_equal(write_some(ds, paths[i]), -EIO);
    }
    OK(vmfs_check(ds->v, find_line, &found, &rep, &err));
    assert_int_equal(found, 3);
    FAILS(-EISDIR, "is a directory", call(f, "datastore.accept-loss", json_pack("{s:s}", "path", "ds/a"), &err));
    FAILS(-ENOENT, "", call(f, "datastore.accept-loss", json_pack("{s:s}", "path", "ds/none"), &err));
    for (unsigned i = 0; i < 2; i++) {
        char path[32];
        snprintf(path, sizeof path, "ds/%s", paths[i]);
        OK(call(f, "datastore.accept-loss", json_pack("{s:s}", "path", path), &err));
        assert_int_equal(write_some(ds, paths[i]), 0);
    }
    assert_int_equal(ds->users, 0);
    end(f, ds);
    snap_client_close(f->c);
    return 0;
}

static void accept_loss(void **state)
{
    (void)state;
    with_service(accept_fn);
}

/* ---- who has a datastore, and waits for the service's lock ---- */
struct request {
    struct fixture *f;
    char disk[32];
    int r;
    bool begun, over;
};

static int second_disk(void *arg, const char *disk)
{
    struct request *q = arg;
    struct snap_place place = {0};
    q->begun = true;
    gr_fiber_sleep_ms(100);
    q->r = snap_svc_find(q->f->s, disk, "test", 0, &place, NULL);
    gr_bdev_put(place.bdev);
    return 0;
}

static void lister(void *arg)
{
    struct request *q = arg;
    OK(snap_svc_each_disk(q->f->s, second_disk, q, &err));
    q->over = true;
}

/* It has datastore "ds", and is about to ask for it once more. */
static void begin_request(struct fixture *f, struct request *q)
{
    *q = (struct request){.f = f};
    assert_int_equal(gr_fiber_start(f->s->o.loop, lister, q), 0);
    while (!q->begun)
        gr_fiber_sleep_ms(1);
}

static int nested_fn(void *arg)
{
    struct fixture *f = arg;
    struct request q;
    begin(f);
    struct snap_ds *ds = make(f, "ds", 1);
    OK(call(f, "disk.create", json_pack("{s:s,s:i}", "disk", "ds/a", "size", 1 << 20), &err));
    begin_request(f, &q);
    give_up(ds);
    wait_at_work(ds, 6000);
    assert_true(q.over && q.r == -GR_ELOCKED);

    /* a command to leave it lets the request end, and goes on then */
    begin_request(f, &q);
    OK(call(f, "datastore.leave", json_pack("{s:s}", "name", "ds"), &err));
    assert_true(q.over && q.r == -GR_ELOCKED);
    assert_null(snap_ds_find(f->s, "ds"));

    /* and so does the service when it ends; it does not join anything for those who come late */
    char *path = test_path("ds0.img");
    OK(call(f, "datastore.join", json_pack("{s:s,s:[s]}", "name", "ds", "devices", path), &err));
    free(path);
    begin_request(f, &q);
    snap_client_close(f->c);
    assert_true(q.over && q.r == -GR_ELOCKED);
    begin(f);
    end(f, snap_ds_find(f->s, "ds"));
    snap_client_close(f->c);
    return 0;
}

static void nested(void **state)
{
    (void)state;
    with_service(nested_fn);
}

/* A host that holds its disks for a group of another ends: nothing of the group outlives the service. */
static int held_fn(void *arg)
{
    struct fixture *f = arg;
    static const char id[] = "01234567-89ab-cdef-0123-456789abcdef-1-1";
    begin(f);
    struct snap_ds *ds = make(f, "ds", 1);
    OK(call(f, "disk.create", json_pack("{s:s,s:i}", "disk", "ds/a", "size", 1 << 20), &err));
    OK(call(f, "snapshot.hold", json_pack("{s:[s],s:s,s:s}", "disks", "ds/a", "group", id, "name", "s"), &err));
    OK(call(f, "snapshot.take", json_pack("{s:s}", "group", id), &err));
    assert_int_equal(f->s->parts, 1);
    assert_true(ds->users > 0);
    snap_client_close(f->c);
    begin(f);
    ds = snap_ds_find(f->s, "ds");
    OK(snap_svc_join_all(f->s, &err));
    assert_int_equal(f->s->parts, 0);
    assert_int_equal(ds->users, 0);
    FAILS(-ENOENT, "", call(f, "snapshot.delete", json_pack("{s:s,s:s}", "disk", "ds/a", "snapshot", "s"), &err));
    end(f, ds);
    snap_client_close(f->c);
    return 0;
}

static void held(void **state)
{
    (void)state;
    with_service(held_fn);
}

TEST_MAIN(TEST(nested), TEST(held), TEST(each), TEST(meanwhile), TEST(left), TEST(moving), TEST(silent), TEST(back), TEST(accept_loss))
