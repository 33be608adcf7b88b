/* What clones start at, as the service has it: templates that were not finished. */
#include "common/buf.h"
#include "snapshot/client.h"
#include "snapshot/service_int.h"
#include "tests/lib/test.h"
#include <stdio.h>
#include <string.h>

struct home {
    struct gr_home *home;
    struct snap_client *c;
    struct snap_ds *ds;
    json_t *res;
    struct gr_err err;
};

static int call(struct home *h, const char *method, json_t *params)
{
    json_decref(h->res);
    h->res = NULL;
    h->err = (struct gr_err){0};
    return snap_client_call(h->c, method, params, NULL, NULL, &h->res, &h->err);
}

static json_t *ok(struct home *h, const char *method, json_t *params)
{
    if (call(h, method, params) < 0)
        fail_msg("%s: %s", method, h->err.text);
    return h->res;
}

static const char *str(const json_t *o, const char *key)
{
    const char *s = json_string_value(json_object_get(o, key));
    return s ? s : "";
}

static void home_open(struct home *h, const char *name, uint64_t size)
{
    char *dir = test_path(name), *device;
    gr_auto_free char *image = gr_asprintf("%s.img", name);
    setenv("GRANARY_HOME", dir, 1);
    free(dir);
    device = test_path(image);
    assert_int_equal(gr_home_open(1, &h->home, NULL), 0);
    if (snap_client_open(gr_fiber_loop(), h->home, NULL, &h->c, &h->err) < 0)
        fail_msg("%s", h->err.text);
    ok(h, "datastore.create", json_pack("{s:s,s:[s],s:I}", "name", "ds", "devices", device, "size", (json_int_t)size));
    h->ds = snap_ds_find(snap_client_local(h->c), "ds");
    free(device);
}

static void home_close(struct home *h)
{
    ok(h, "datastore.check", json_pack("{s:s}", "name", "ds"));
    json_decref(h->res);
    snap_client_close(h->c);
    gr_home_free(h->home);
}

static void disk(struct home *h, const char *name)
{
    ok(h, "disk.create", json_pack("{s:s,s:I}", "disk", name, "size", (json_int_t)8 << 20));
}

/* ---- templates ---- */
static void fill(struct home *h, const char *path, char what)
{
    struct gr_chan *ch;
    char block[4096];
    memset(block, what, sizeof block);
    assert_int_equal(gr_chan_open(vmfs_bdev(snap_handle_find(h->ds, path)->disk), gr_fiber_loop(), &ch), 0);
    assert_int_equal(gr_pwrite(ch, block, sizeof block, 0, 0), 0);
    gr_chan_close(ch);
}

static char first_byte(struct home *h, const char *path)
{
    struct gr_chan *ch;
    char block[4096];
    assert_int_equal(gr_chan_open(vmfs_bdev(snap_handle_find(h->ds, path)->disk), gr_fiber_loop(), &ch), 0);
    assert_int_equal(gr_pread(ch, block, sizeof block, 0), 0);
    gr_chan_close(ch);
    return block[0];
}

/* As who makes it a template and is killed before he has taken the snapshot. */
static void half_a_template(struct home *h, const char *path)
{
    struct vmfs_disk *d = snap_handle_find(h->ds, path)->disk;
    OK(vmfs_set_lun(d, &(struct vmfs_lun){.flags = VMFS_LUN_TEMPLATE}, &err));
}

static int templates_body(void *arg)
{
    struct home h = {0};
    (void)arg;
    home_open(&h, "templates", 256 << 20);
    disk(&h, "ds/gold");
    fill(&h, "gold", 'a');
    assert_int_equal(call(&h, "snapshot.create", json_pack("{s:[s],s:s}", "disks", "ds/gold", "name", SNAP_TEMPLATE)), -GR_EUSAGE);
    assert_non_null(strstr(h.err.text, "what clones of a template start at"));
    ok(&h, "snapshot.create", json_pack("{s:[s],s:s}", "disks", "ds/gold", "name", "s"));
    assert_int_equal(call(&h, "snapshot.bookmark", json_pack("{s:s,s:s,s:s}", "disk", "ds/gold", "snapshot", "s", "bookmark", SNAP_TEMPLATE)), -GR_EUSAGE);
    half_a_template(&h, "gold");
    ok(&h, "snapshot.clone", json_pack("{s:s,s:s}", "disk", "ds/gold", "to", "ds/c1"));
    assert_string_equal(str(h.res, "parent"), "ds/gold@" SNAP_TEMPLATE);
    assert_int_equal(first_byte(&h, "c1"), 'a');
    ok(&h, "disk.set", json_pack("{s:s,s:b}", "disk", "ds/gold", "template", 0));
    fill(&h, "gold", 'b'); /* the snapshot of then is there still */
    half_a_template(&h, "gold");
    ok(&h, "snapshot.clone", json_pack("{s:s,s:s}", "disk", "ds/gold", "to", "ds/c2"));
    assert_int_equal(first_byte(&h, "c2"), 'b');
    assert_int_equal(first_byte(&h, "c1"), 'a');
    ok(&h, "snapshot.clone", json_pack("{s:s,s:[s,s]}", "disk", "ds/gold", "targets", "ds/c3", "ds/c4"));
    ok(&h, "snapshot.list", json_pack("{s:s}", "disk", "ds/gold"));
    assert_int_equal(json_array_size(h.res), 2); /* s and the one of now */
    home_close(&h);
    return 0;
}

static void templates(void **state)
{
    (void)state;
    test_in_fiber(templates_body, NULL);
}

TEST_MAIN(TEST(templates))
