/* See nbdfix.h. */
#include "tests/lib/nbdfix.h"
#include "tests/lib/test.h"
#include <stdio.h>
#include <string.h>

struct run {
    struct nbdfix fix;
    struct mover_opts opts;
    void (*body)(struct nbdfix *f);
};

static int dir_open(void *arg, const char *name, struct mover_export *ret, struct gr_err *err)
{
    struct nbdfix *f = arg;
    bool live = !strcmp(name, "ds/disk");
    if (!live && strcmp(name, "ds/disk@snap"))
        return gr_fail(err, -ENOENT, "there is no \"%s\"", name);
    f->opens++;
    *ret = (struct mover_export){.bdev = gr_bdev_get(f->faulty), .writable = live, .description = "a test disk"};
    return 0;
}

static int dir_list(void *arg, mover_name_fn fn, void *ctx, struct gr_err *err)
{
    char name[32];
    int r = fn(ctx, "ds/disk", "a test disk");
    for (int i = 0; i < 100 && r >= 0; i++) {
        snprintf(name, sizeof(name), "ds/other%d", i);
        r = fn(ctx, name, NULL);
    }
    return r;
}

static int dir_bases(void *arg, const char *export_name, mover_name_fn fn, void *ctx, struct gr_err *err)
{
    int r = fn(ctx, "monday", NULL);
    return r < 0 ? r : fn(ctx, "tuesday", NULL);
}

static void on_log(void *arg, enum mover_log_level level, const char *text)
{
    struct nbdfix *f = arg;
    snprintf(f->last_log, sizeof(f->last_log), "%s", text);
}

static int run(void *arg)
{
    struct run *r = arg;
    struct nbdfix *f = &r->fix;
    struct gr_err err = {0};
    f->mem = gr_mem_new(NBDFIX_SIZE);
    assert_non_null(f->mem);
    assert_int_equal(gr_bdev_mem_open(f->loop, f->mem, &f->disk), 0);
    assert_int_equal(gr_bdev_fault_open(f->loop, f->disk, &f->faulty), 0);
    r->opts.security = MOVER_PLAIN_LOOPBACK;
    r->opts.dir = (struct mover_dir){f, dir_open, dir_list, NULL, dir_bases};
    r->opts.log = on_log;
    r->opts.log_arg = f;
    assert_int_equal(mover_server_new(f->loop, &r->opts, &f->server, &err), 0);
    r->body(f);
    mover_server_stop(f->server);
    assert_int_equal(f->faulty->refs, 1); /* the mover gave every reference back */
    gr_bdev_put(f->faulty);
    gr_bdev_put(f->disk);
    gr_mem_free(f->mem);
    return 0;
}

void nbdfix_run(const struct mover_opts *opts, void (*body)(struct nbdfix *f))
{
    struct run r = {.opts = opts ? *opts : (struct mover_opts){0}, .body = body};
    assert_int_equal(gr_loop_new(NULL, &r.fix.loop, NULL), 0);
    assert_int_equal(gr_fiber_run(r.fix.loop, run, &r), 0);
    gr_loop_free(r.fix.loop);
}
