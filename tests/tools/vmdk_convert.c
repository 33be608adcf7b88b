/* vmdk_convert export RAW VMDK [LEVEL] | stream RAW (to stdout) | import VMDK RAW [EXTENT...] : the codec by itself, for tests. */
#include "backup-proxy/vmdk.h"
#include "common/cleanup.h"
#include "common/fiber.h"
#include <stdio.h>
#include <string.h>

struct args {
    struct gr_loop *loop;
    int argc;
    char **argv;
};
static int open_raw(struct gr_loop *loop, const char *path, bool create, uint64_t size, struct gr_chan **ret, struct gr_err *err)
{
    struct gr_file_opts o = {.read_only = !create, .create = create, .size = size};
    struct gr_bdev *b = NULL;
    int r = gr_bdev_file_open(loop, path, &o, &b, err);
    if (r == 0)
        r = gr_chan_open(b, loop, ret);
    gr_bdev_put(b);
    return r;
}
static int convert(struct args *a, struct gr_err *err)
{
    struct gr_chan *src = NULL, *dst = NULL;
    struct gr_bdev *v = NULL;
    struct gr_geometry g;
    int r;
    if (!strcmp(a->argv[1], "import")) {
        const char *const *named = (const char *const *)(a->argv + 4);
        r = bp_vmdk_open(a->loop, a->argv[2], named, &v, err);
        if (r == 0 && (r = gr_bdev_geometry(v, &g)) == 0 && (r = gr_chan_open(v, a->loop, &src)) == 0)
            r = open_raw(a->loop, a->argv[3], true, g.size, &dst, err);
        if (r == 0)
            r = bp_copy(src, dst, true, NULL, NULL, err);
    } else {
        struct bp_vmdk_opts o = {.level = a->argc > 4 ? (unsigned)strtoul(a->argv[4], NULL, 10) : 0};
        r = open_raw(a->loop, a->argv[2], false, 0, &src, err);
        if (r == 0 && !strcmp(a->argv[1], "stream"))
            r = bp_vmdk_export(src, 1, &o, NULL, err);
        else if (r == 0)
            r = bp_vmdk_export_file(src, a->argv[3], &o, NULL, err);
    }
    gr_chan_close(src);
    gr_chan_close(dst);
    gr_bdev_put(v);
    return r;
}
static int run(void *arg)
{
    struct gr_err err = {0};
    int r = convert(arg, &err);
    if (r < 0)
        fprintf(stderr, "%s\n", gr_err_text(&err, r));
    return r;
}
int main(int argc, char **argv)
{
    struct args a = {.argc = argc, .argv = argv};
    if (argc < 3 || gr_loop_new(NULL, &a.loop, NULL) < 0)
        return 2;
    int r = gr_fiber_run(a.loop, run, &a);
    gr_loop_free(a.loop);
    return gr_code_exit(r);
}
