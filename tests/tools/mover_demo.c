/* A data mover over files and memory, for tests with stock NBD clients and for measurements.
 *
 *   mover_demo [--listen HOST:PORT] [--pki DIR] [--psk FILE] [--plain | --insecure] [--max-requests N] [--stall MS]
 *              [--negotiate MS] NAME=file:PATH | NAME=rw:PATH | NAME=mem:SIZE ...
 *   mover_demo --make-pki DIR [HOST...]     certificates            mover_demo --make-psk FILE USER
 *   mover_demo --make-client DIR OUT        one more client
 *
 * Prints "port N" when it listens and ends at SIGTERM. Every export also answers granary:changed:EVERY-N (or a bookmark
 * token with epoch N): of each N blocks of 64 KiB the first counts as changed; epoch 0 is unknown. */
#include "common/buf.h"
#include "common/cleanup.h"
#include "common/fiber.h"
#include "iscsi-target/mover.h"
#include <signal.h>
#include <string.h>

#define CHANGE_BLOCK 65536u
#define MAX_EXPORTS 16

/* ---- a layer that knows "changes" ---- */
struct layer {
    struct gr_bdev bdev;
    struct gr_bdev *lower;
    uint64_t size;
};

static void layer_extents(struct gr_chan *ch, struct gr_bio *bio)
{
    struct layer *l = gr_container_of(ch->bdev, struct layer, bdev);
    uint64_t every = bio->base->epoch, at = bio->off, end = bio->off + bio->len;
    if (!every || every > 1000) {
        gr_bio_end(bio, -ENOENT);
        return;
    }
    bio->n_extents = 0;
    while (at < end && bio->n_extents < bio->max_extents) {
        uint64_t stop = GR_MIN((at / CHANGE_BLOCK + 1) * CHANGE_BLOCK, GR_MIN(end, l->size));
        bio->extents[bio->n_extents++] =
            (struct gr_extent){.off = at, .len = stop - at, .changed = (at / CHANGE_BLOCK) % every == 0};
        at = stop;
    }
    gr_bio_end(bio, 0);
}

static void layer_submit(struct gr_chan *ch, struct gr_bio *bio)
{
    if (bio->op == GR_OP_EXTENTS && bio->base) {
        layer_extents(ch, bio);
        return;
    }
    gr_submit(ch->priv, bio); /* same offsets, and done() runs on the same loop: nothing to keep */
}

static int layer_geometry(struct gr_bdev *b, struct gr_geometry *ret)
{
    return gr_bdev_geometry(gr_container_of(b, struct layer, bdev)->lower, ret);
}

static void layer_close(struct gr_bdev *b)
{
    struct layer *l = gr_container_of(b, struct layer, bdev);
    gr_bdev_put(l->lower);
    free(l);
}

static int layer_chan_open(struct gr_bdev *b, struct gr_chan *ch)
{
    struct gr_chan *lower = NULL;
    int r = gr_chan_open(gr_container_of(b, struct layer, bdev)->lower, ch->loop, &lower);
    ch->priv = lower;
    return r;
}

static void layer_chan_close(struct gr_chan *ch)
{
    gr_chan_close(ch->priv);
}

static const struct gr_bdev_ops layer_ops = {
    .type = "demo",
    .submit = layer_submit,
    .geometry = layer_geometry,
    .close = layer_close,
    .chan_open = layer_chan_open,
    .chan_close = layer_chan_close,
};

/* ---- the directory ---- */
struct item {
    char *name;
    struct gr_bdev *bdev;
    struct gr_mem *mem;
    bool writable;
};
struct demo {
    struct gr_loop *loop;
    struct item items[MAX_EXPORTS];
    size_t n_items;
    struct mover_opts opts;
    const char *listen;
    struct gr_fiber *main_fiber;
    bool stop;
    struct gr_err err;
};

static int dir_open(void *arg, const char *name, struct mover_export *ret, struct gr_err *err)
{
    struct demo *d = arg;
    for (size_t i = 0; i < d->n_items; i++) {
        if (strcmp(d->items[i].name, name))
            continue;
        *ret = (struct mover_export){.bdev = gr_bdev_get(d->items[i].bdev), .writable = d->items[i].writable, .description = "demo"};
        return 0;
    }
    return gr_fail(err, -ENOENT, "there is no export \"%s\"", name);
}

static int dir_list(void *arg, mover_name_fn fn, void *ctx, struct gr_err *err)
{
    struct demo *d = arg;
    int r = 0;
    for (size_t i = 0; i < d->n_items && r >= 0; i++)
        r = fn(ctx, d->items[i].name, "demo");
    return r;
}

static int dir_resolve(void *arg, const char *export_name, const char *base, struct gr_bookmark *ret, struct gr_err *err)
{
    uint64_t n = 0;
    if (strncmp(base, "EVERY-", 6) || gr_parse_u64(base + 6, 1, 1000, &n, err) < 0)
        return gr_fail(err, -ENOENT, "%s: no base \"%s\"", export_name, base);
    *ret = (struct gr_bookmark){.epoch = n};
    return 0;
}

static int dir_bases(void *arg, const char *export_name, mover_name_fn fn, void *ctx, struct gr_err *err)
{
    return fn(ctx, "EVERY-2", NULL);
}

static int add_export(struct demo *d, const char *spec)
{
    const char *eq = strchr(spec, '='), *kind = eq ? eq + 1 : "";
    if (!eq || d->n_items == MAX_EXPORTS)
        return gr_fail(&d->err, -EINVAL, "\"%s\" is not NAME=file:PATH, NAME=rw:PATH or NAME=mem:SIZE", spec);
    struct item *it = &d->items[d->n_items];
    struct gr_bdev *lower = NULL;
    int r = -EINVAL;
    if (!strncmp(kind, "mem:", 4)) {
        uint64_t size = 0;
        r = gr_parse_size(kind + 4, &size, &d->err);
        if (r < 0)
            return r;
        it->mem = gr_mem_new(size);
        it->writable = true;
        r = it->mem ? gr_bdev_mem_open(d->loop, it->mem, &lower) : -ENOMEM;
    } else if (!strncmp(kind, "file:", 5) || !strncmp(kind, "rw:", 3)) {
        it->writable = kind[0] == 'r';
        struct gr_file_opts o = {.read_only = !it->writable};
        r = gr_bdev_file_open(d->loop, strchr(kind, ':') + 1, &o, &lower, &d->err);
    }
    struct layer *l = r < 0 ? NULL : gr_zalloc(sizeof(*l));
    it->name = strndup(spec, (size_t)(eq - spec));
    struct gr_geometry geo;
    if (!l || !it->name || gr_bdev_geometry(lower, &geo) < 0)
        return r < 0 ? gr_fail(&d->err, r, "%s: %s", spec, gr_err_text(&d->err, r)) : -ENOMEM;
    gr_bdev_init(&l->bdev, &layer_ops, it->name);
    l->lower = lower;
    l->size = geo.size;
    it->bdev = &l->bdev;
    d->n_items++;
    return 0;
}

static void on_log(void *arg, enum mover_log_level level, const char *text)
{
    fprintf(stderr, "%s\n", text);
}

static void on_signal(void *arg, int signo)
{
    struct demo *d = arg;
    d->stop = true;
    gr_fiber_wake(d->main_fiber);
}

static int serve(void *arg)
{
    struct demo *d = arg;
    struct mover_server *s = NULL;
    d->main_fiber = gr_fiber_self();
    (void)gr_loop_signal(d->loop, SIGTERM, on_signal, d);
    d->opts.dir = (struct mover_dir){d, dir_open, dir_list, dir_resolve, dir_bases};
    d->opts.log = on_log;
    int r = mover_server_new(d->loop, &d->opts, &s, &d->err);
    if (r >= 0)
        r = mover_server_listen(s, d->listen, &d->err);
    if (r >= 0) {
        printf("port %u\n", mover_server_port(s));
        fflush(stdout);
        while (!d->stop)
            gr_fiber_suspend();
        struct mover_stats st;
        mover_server_stats(s, &st);
        fprintf(stderr, "served %lu requests, refused %lu connections\n", (unsigned long)st.requests, (unsigned long)st.refused);
    }
    mover_server_stop(s);
    return r;
}

static int parse(struct demo *d, int argc, char **argv)
{
    d->listen = "127.0.0.1:0";
    for (int i = 1; i < argc; i++) {
        const char *a = argv[i], *v = i + 1 < argc ? argv[i + 1] : "";
        uint64_t n = 0;
        int r = 0;
        if (!strcmp(a, "--listen")) {
            d->listen = v;
            i++;
        } else if (!strcmp(a, "--pki")) {
            d->opts.pki_dir = v;
            i++;
        } else if (!strcmp(a, "--psk")) {
            d->opts.psk_file = v;
            i++;
        } else if (!strcmp(a, "--plain")) {
            d->opts.security = MOVER_PLAIN_LOOPBACK;
        } else if (!strcmp(a, "--insecure")) {
            d->opts.security = MOVER_PLAIN_ANYWHERE;
        } else if (!strcmp(a, "--max-requests") || !strcmp(a, "--stall") || !strcmp(a, "--negotiate")) {
            r = gr_parse_u64(v, 1, UINT32_MAX, &n, &d->err);
            i++;
            if (a[2] == 'm')
                d->opts.max_requests = (unsigned)n;
            else if (a[2] == 's')
                d->opts.stall_timeout_ms = n;
            else
                d->opts.negotiate_timeout_ms = n;
        } else {
            r = add_export(d, a);
        }
        if (r < 0)
            return r;
    }
    return 0;
}

static int make(int argc, char **argv, struct gr_err *err)
{
    if (!strcmp(argv[1], "--make-pki"))
        return mover_pki_ensure(argv[2], (const char *const *)(argv + 3), (size_t)(argc - 3), err);
    if (argc < 4)
        return gr_fail(err, -EINVAL, "too few arguments");
    return !strcmp(argv[1], "--make-psk") ? mover_psk_make(argv[2], argv[3], err) : mover_pki_make_client(argv[2], "demo", argv[3], err);
}

int main(int argc, char **argv)
{
    struct demo d = {0};
    int r = mover_gate_main(argc, argv);
    if (r >= 0)
        return r;
    if (argc > 2 && !strncmp(argv[1], "--make-", 7)) {
        r = make(argc, argv, &d.err);
    } else {
        r = gr_loop_new(NULL, &d.loop, &d.err);
        if (r >= 0)
            r = parse(&d, argc, argv);
        if (r >= 0)
            r = gr_fiber_run(d.loop, serve, &d);
    }
    if (r < 0)
        fprintf(stderr, "mover_demo: %s\n", gr_err_text(&d.err, r));
    for (size_t i = 0; i < d.n_items; i++) {
        gr_bdev_put(d.items[i].bdev);
        gr_mem_free(d.items[i].mem);
        free(d.items[i].name);
    }
    gr_loop_free(d.loop);
    return r < 0 ? gr_code_exit(r) : 0;
}
