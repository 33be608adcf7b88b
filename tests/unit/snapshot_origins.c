/* What clones start at, as the service has it: templates that were not finished; what was cloned from what, and how many objects are read to say so. */
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

/* @size: of a new datastore; 0: it is there. */
static void home_open(struct home *h, const char *name, uint64_t size)
{
    gr_auto_free char *image = gr_asprintf("%s.img", name);
    char *device = test_path(image);
    h->home = test_home(name);
    if (snap_client_open(gr_fiber_loop(), h->home, NULL, &h->c, &h->err) < 0)
        fail_msg("%s", h->err.text);
    if (size)
        ok(h, "datastore.create", json_pack("{s:s,s:[s],s:I}", "name", "ds", "devices", device, "size", (json_int_t)size));
    else
        ok(h, "datastore.info", json_pack("{s:s}", "name", "ds"));
    h->ds = snap_ds_find(snap_client_local(h->c), "ds");
    free(device);
}

static void home_close(struct home *h)
{
    ok(h, "datastore.check", json_pack("{s:s}", "name", "ds"));
    json_decref(h->res);
    h->res = NULL;
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

/* ---- who is whose ---- */
#define MANY 60u
/* How many objects the call reads. */
static uint64_t looks(struct home *h, const char *method, json_t *params)
{
    struct vmfs_stats a, b;
    vmfs_stats(h->ds->v, &a);
    ok(h, method, params);
    vmfs_stats(h->ds->v, &b);
    return b.looks - a.looks;
}

static const json_t *row_of(const json_t *rows, const char *name)
{
    size_t i;
    json_t *row;
    json_array_foreach(rows, i, row)
        if (strcmp(str(row, "disk"), name) == 0)
            return row;
    fail_msg("no disk %s", name);
    return NULL;
}

static json_t *one(const char *key, const char *name) { return json_pack("{s:s}", key, name); }

static int kin_body(void *arg)
{
    struct home h = {0};
    char name[32];
    (void)arg;
    home_open(&h, "kin", 256 << 20);
    disk(&h, "ds/m/gold");
    disk(&h, "ds/alone");
    ok(&h, "snapshot.create", json_pack("{s:[s],s:s}", "disks", "ds/m/gold", "name", "s"));
    for (unsigned i = 0; i < MANY; i++) {
        snprintf(name, sizeof name, "ds/v/d%02u", i);
        disk(&h, name);
    }
    for (unsigned i = 0; i < 3; i++) {
        snprintf(name, sizeof name, "ds/a/c%u", i);
        ok(&h, "snapshot.clone", json_pack("{s:s,s:s,s:s}", "disk", "ds/m/gold", "snapshot", "s", "to", name));
    }
    home_close(&h);
    home_open(&h, "kin", 0);
    assert_in_range(looks(&h, "disk.info", one("disk", "ds/alone")), 1, 4); /* nothing to look for */
    assert_int_equal(json_array_size(json_object_get(h.res, "clones")), 0);
    assert_in_range(looks(&h, "disk.info", one("disk", "ds/a/c1")), 1, 12); /* folders */
    assert_string_equal(str(h.res, "parent"), "ds/m/gold@s");
    assert_in_range(looks(&h, "disk.info", one("disk", "ds/m/gold")), 1, 16); /* until all are found, and they come first */
    assert_int_equal(json_array_size(json_object_get(h.res, "clones")), 3);
    assert_in_range(looks(&h, "disk.list", one("path", "ds")), MANY, MANY + 24); /* each once */
    assert_int_equal(json_array_size(h.res), MANY + 5);
    assert_string_equal(str(row_of(h.res, "ds/a/c2"), "parent"), "ds/m/gold@s");
    assert_int_equal(json_array_size(json_object_get(row_of(h.res, "ds/m/gold"), "clones")), 3);
    assert_in_range(looks(&h, "disk.list", one("path", "ds/v")), MANY, MANY + 8);
    assert_int_equal(json_array_size(h.res), MANY);
    ok(&h, "disk.list", one("path", "ds/m"));
    assert_int_equal(json_array_size(json_object_get(row_of(h.res, "ds/m/gold"), "clones")), 3);
    ok(&h, "snapshot.list", one("disk", "ds/m/gold"));
    assert_int_equal(json_array_size(json_object_get(json_array_get(h.res, 0), "clone-disks")), 3);
    /* deleted ones go by where they were */
    ok(&h, "disk.delete", one("disk", "ds/m/gold"));
    ok(&h, "disk.list", json_pack("{s:s,s:b}", "path", "ds", "deleted", 1));
    assert_int_equal(json_array_size(h.res), 1);
    ok(&h, "disk.list", json_pack("{s:s,s:b}", "path", "ds/m", "deleted", 1));
    assert_string_equal(str(json_array_get(h.res, 0), "disk"), "ds/m/gold");
    ok(&h, "disk.list", json_pack("{s:s,s:b}", "path", "ds/a", "deleted", 1));
    assert_int_equal(json_array_size(h.res), 0);
    ok(&h, "disk.info", one("disk", "ds/a/c0"));
    assert_string_equal(str(h.res, "parent"), "ds/m/gold@s");
    assert_true(json_is_true(json_object_get(h.res, "parent-deleted")));
    home_close(&h);
    return 0;
}

static void kin(void **state)
{
    (void)state;
    test_in_fiber(kin_body, NULL);
}

TEST_MAIN(TEST(templates), TEST(kin))
