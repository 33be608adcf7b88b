/* Parts of an instant of several hosts when something of it comes late. A host dies after its snapshot of a group has got its name, and before it has signed off: whoever
 * opens the disk next does that for it, and the folder goes. Who leads does not wait any longer for a host that holds its disks: they are not held for ever. */
#include "common/buf.h"
#include "snapshot/client.h"
#include "snapshot/service_int.h"
#include "tests/lib/test.h"
#include "vmfs/internal.h"
#include <stdio.h>
#include <string.h>

#define GROUP "01234567-89ab-4cde-8f01-23456789abcd-3-9"
static struct gr_home *home;
static struct snap_client *client;

static void home_open(void)
{
    home = test_home("home");
    OK(snap_client_open(gr_fiber_loop(), home, NULL, &client, &err));
}

static void home_close(void)
{
    snap_client_close(client);
    gr_home_free(home);
}

static json_t *call(const char *method, json_t *params)
{
    json_t *res = NULL;
    OK(snap_client_call(client, method, params, NULL, NULL, &res, &err));
    return res;
}

static struct vmfs *volume(void)
{
    return snap_client_local(client)->list->v;
}

static void entry(const char *folder, uint64_t disk)
{
    gr_auto_free char *path = gr_asprintf("granary.groups/%s/%016llx", folder, (unsigned long long)disk);
    OK(vmfs_create(volume(), path, VMFS_DIR, 0, VMFS_THIN, &err));
}

static int note(void *arg, const char *name, const struct vmfs_stat *st)
{
    (void)st;
    struct gr_buf *names = arg;
    return gr_buf_add(names, name, strlen(name));
}

static void there(const char *folder, const char *want)
{
    gr_auto_buf struct gr_buf names = {0};
    OK(vmfs_readdir(volume(), folder, note, &names, &err));
    assert_int_equal(names.len, strlen(want));
    assert_memory_equal(names.data, want, names.len);
}

static int body(void *arg)
{
    gr_auto_free char *path = test_path("ds.img");
    (void)arg;
    home_open();
    json_decref(call("datastore.create", json_pack("{s:s,s:[s],s:i}", "name", "ds", "devices", path, "size", 256 << 20)));
    json_t *row = call("disk.create", json_pack("{s:s,s:i}", "disk", "ds/x", "size", 1 << 20));
    uint64_t id = (uint64_t)json_integer_value(json_object_get(row, "id"));
    json_decref(row);
    json_decref(call("snapshot.create", json_pack("{s:[s],s:s}", "disks", "ds/x", "name", "s")));
    entry(GROUP "1", id); /* this disk's alone */
    entry(GROUP "2", id); /* another has not signed off */
    entry(GROUP "2", 0xdeadbeef);
    entry("." GROUP "3", id); /* never decided, and its leader is gone */
    there("granary.groups", GROUP "1" GROUP "2" "." GROUP "3");
    home_close();

    home_open();
    json_decref(call("snapshot.list", json_pack("{s:s}", "disk", "ds/x"))); /* joins, and opens it */
    there("granary.groups", GROUP "2");
    there("granary.groups/" GROUP "2", "00000000deadbeef");
    home_close();
    return 0;
}

static void signed_by_the_next(void **state)
{
    (void)state;
    test_in_fiber(body, NULL);
}

/* ---- a hold that takes too long ---- */
struct holding {
    int r;
    bool over;
    struct gr_err err;
};

static void hold_fiber(void *arg)
{
    struct holding *h = arg;
    h->r = snap_client_call(client, "snapshot.hold", json_pack("{s:[s],s:s,s:s}", "disks", "late/x", "group", GROUP, "name", "s"), NULL, NULL, NULL, &h->err);
    h->over = true;
}

static void settle_fiber(void *arg)
{
    bool *over = arg;
    json_decref(call("snapshot.settle", json_pack("{s:[s],s:s}", "disks", "late/x", "group", GROUP)));
    *over = true;
}

static void wait_for(const bool *over, const char *what)
{
    for (unsigned ms = 0; !*over && ms < 10000; ms += 10)
        gr_fiber_sleep_ms(10);
    if (!*over)
        fail_msg("%s does not end", what);
}

static int late_body(void *arg)
{
    gr_auto_free char *path = test_path("late.img");
    struct holding h = {0};
    bool settled = false;
    (void)arg;
    home_open();
    json_decref(call("datastore.create", json_pack("{s:s,s:[s],s:i}", "name", "late", "devices", path, "size", 256 << 20)));
    json_decref(call("disk.create", json_pack("{s:s,s:i}", "disk", "late/x", "size", 1 << 20)));
    struct snap_svc *s = snap_client_local(client);
    const struct snap_handle *x = snap_handle_find(snap_ds_find(s, "late"), "x");
    struct vobj *o = x->disk->o;
    o->frozen = true; /* another instant holds it */
    assert_int_equal(gr_fiber_start(gr_fiber_loop(), hold_fiber, &h), 0);
    gr_fiber_sleep_ms(20);
    assert_false(h.over);
    assert_int_equal(gr_fiber_start(gr_fiber_loop(), settle_fiber, &settled), 0); /* whoever leads gives up */
    gr_fiber_sleep_ms(20);
    assert_int_equal(x->users, 1); /* the hold has it still */
    disk_thaw(o);
    wait_for(&h.over, "the hold");
    wait_for(&settled, "the settling");
    gr_fiber_sleep_ms(300); /* longer than anything is held */
    assert_false(o->frozen);
    assert_int_equal(x->users, 0);
    assert_int_equal(h.r, -EAGAIN);
    json_decref(call("snapshot.create", json_pack("{s:[s],s:s}", "disks", "late/x", "name", "s")));
    home_close();
    return 0;
}

static void given_up_while_held(void **state)
{
    (void)state;
    test_in_fiber(late_body, NULL);
}

TEST_MAIN(TEST(signed_by_the_next), TEST(given_up_while_held))
