/* Folders in folders: as deep as paths can be long, listed and moved; never more of them at once than the journal has room for, and what is refused
 * leaves nothing. */
#include "common/cleanup.h"
#include "snapshot/service_int.h"
#include "tests/lib/test.h"
#include "vmfs/files.h"
#include "vmfs/internal.h"
#include <stdio.h>
#include <string.h>

struct rig {
    struct gr_mem *mem;
    struct gr_bdev *dev;
    struct vmfs *v;
};

static void rig_open(struct rig *r)
{
    struct vmfs_format_opts f = { .name = "ds" };
    struct vmfs_join_opts j = { .role = VMFS_HOST, .host_name = "folders" };
    assert_non_null(r->mem = gr_mem_new(48ull << 20));
    assert_int_equal(gr_bdev_mem_open(gr_fiber_loop(), r->mem, &r->dev), 0);
    OK(vmfs_format(gr_fiber_loop(), &r->dev, 1, &f, &err));
    OK(vmfs_join(gr_fiber_loop(), &r->dev, 1, &j, &r->v, &err));
}

static void rig_close(struct rig *r)
{
    OK(vmfs_leave(r->v, &err));
    gr_bdev_put(r->dev);
    gr_mem_free(r->mem);
}

/* "p/d/d/…/d" with @n of them, then @tail. */
static char *nested(const char *p, unsigned n, const char *tail)
{
    struct gr_buf b = { 0 };
    assert_int_equal(gr_buf_printf(&b, "%s", p), 0);
    for (unsigned i = 0; i < n; i++)
        assert_int_equal(gr_buf_add(&b, "/d", 2), 0);
    assert_int_equal(gr_buf_printf(&b, "%s", tail), 0);
    return gr_buf_take(&b);
}

static int count_fn(void *arg, const char *path, const struct vmfs_stat *st)
{
    (void)path;
    ++*(unsigned *)arg;
    return st->type == VMFS_DIR ? SNAP_WALK_INTO : 0;
}

static unsigned counted(struct rig *r, const char *below)
{
    struct snap_ds ds = { .name = "ds", .v = r->v };
    unsigned n = 0;
    OK(snap_walk(&ds, below, count_fn, &n, &err));
    return n;
}

static int at_once_body(void *arg)
{
    struct rig r;
    struct vmfs_stat st;
    (void)arg;
    rig_open(&r);
    unsigned most = vmfs_create_max(r.v);
    gr_auto_free char *all = nested("x", 2000, "/disk"), *more = nested("x", most, "/disk"), *fit = nested("x", most - 1, "/disk"), *next = nested("x", 2 * most - 2, "/disk");
    FAILS(-EMLINK, "new folders", vmfs_create(r.v, all, VMFS_DISK, 1 << 20, VMFS_THIN, &err));
    FAILS(-EMLINK, "new folders", vmfs_create(r.v, more, VMFS_DISK, 1 << 20, VMFS_THIN, &err));
    FAILS(-EMLINK, "new folders", vmfs_create(r.v, more, VMFS_DISK, 1 << 20, VMFS_THICK, &err));
    OK(vmfs_create(r.v, "here", VMFS_DISK, 1 << 20, VMFS_THIN, &err));
    FAILS(-EMLINK, "new folders", vmfs_rename(r.v, "here", more, &err));
    FAILS(-ENOENT, "", vmfs_stat(r.v, "x", &st, &err));
    OK(vmfs_create(r.v, fit, VMFS_DISK, 1 << 20, VMFS_THIN, &err));
    OK(vmfs_create(r.v, next, VMFS_DISK, 1 << 20, VMFS_THIN, &err)); /* the rest of it */
    assert_false(r.v->fenced);
    assert_int_equal(counted(&r, "x"), 2 * most - 2 + 2);
    rig_close(&r);
    return 0;
}
static void at_once(void **state)
{
    (void)state;
    test_in_fiber(at_once_body, NULL);
}

static int deep_body(void *arg)
{
    struct rig r;
    struct vmfs_stat st;
    struct vmfs_lost lost;
    (void)arg;
    rig_open(&r);
    unsigned step = vmfs_create_max(r.v) - 1, depth = 0;
    OK(vmfs_mkdir(r.v, "x", false, &err));
    for (; depth < 200; depth += step) {
        gr_auto_free char *p = nested("x", depth + step, "");
        OK(vmfs_mkdir(r.v, p, true, &err));
    }
    assert_int_equal(counted(&r, ""), depth + 1);
    assert_int_equal(counted(&r, "x/d/d"), depth - 2);
    /* it moves as long as all of it can be named */
    char *long_name = gr_zalloc(VMFS_NAME_MAX + 1);
    memset(long_name, 'n', VMFS_NAME_MAX);
    struct gr_buf b = { 0 };
    for (unsigned i = 0; i < 14; i++)
        assert_int_equal(gr_buf_printf(&b, "%s%s", i ? "/" : "", long_name), 0);
    gr_auto_free char *far = gr_buf_take(&b);
    OK(vmfs_mkdir(r.v, far, true, &err));
    size_t room = VMFS_PATH_MAX - strlen(far) - 1 - 2 * depth; /* for the new name */
    assert_true(room < VMFS_NAME_MAX);
    gr_auto_free char *fits = gr_asprintf("%s/%.*s", far, (int)room, long_name), *longer = gr_asprintf("%s/%.*s", far, (int)room + 1, long_name);
    FAILS(-ENAMETOOLONG, "'ds/x' cannot be moved there", vmfs_rename(r.v, "x", longer, &err));
    OK(vmfs_rename(r.v, "x", fits, &err));
    assert_int_equal(counted(&r, fits), depth);
    OK(vmfs_rename(r.v, fits, "x", &err));
    OK(vmfs_stat(r.v, "x", &st, &err));
    OK(vmfs_path_fits(r.v, st.id, VMFS_PATH_MAX - 2 * depth, &err));
    FAILS(-ENAMETOOLONG, "'…/d'", vmfs_path_fits(r.v, st.id, VMFS_PATH_MAX - 2 * depth + 1, &err));
    /* nor into itself, however deep */
    gr_auto_free char *bottom = nested("x", depth, "");
    struct vmfs_stat low;
    OK(vmfs_stat(r.v, bottom, &low, &err));
    FAILS(-EINVAL, "into itself", vmfs_move(r.v, VMFS_ROOT_ID, "x", low.id, "x", 0, 0, 0, &lost, &err));
    free(long_name);
    rig_close(&r);
    return 0;
}
static void deep(void **state)
{
    (void)state;
    test_in_fiber(deep_body, NULL);
}

TEST_MAIN(TEST(at_once), TEST(deep))
