/* Serves files, memory or null devices as iSCSI targets, for tests and benchmarks of the target alone.
 *
 *   tgt_demo [--portal HOST:PORT]... [--access FILE] [--rpc SOCKET] [--insecure] NAME=KIND:VALUE...
 *   KIND: file:PATH ro:PATH mem:SIZE null:SIZE mem512:SIZE (512-byte physical blocks, atomic writes) to:HOST:PORT (redirect)
 *
 * Prints "NAME URL" lines and "ready" once every portal listens; ends orderly on SIGTERM and SIGINT. */
#include "common/buf.h"
#include "common/cleanup.h"
#include "iscsi-target/target.h"
#include <signal.h>
#include <stdio.h>
#include <string.h>

#define DISKS_MAX 64

struct demo_disk {
    const char *name;
    struct gr_bdev *bdev;
    struct gr_mem *mem;
    const char *redirect;
};
struct demo {
    struct gr_loop *loop;
    struct tgt_server *server;
    struct demo_disk disks[DISKS_MAX];
    unsigned n_disks;
    const char *portals[8], *access, *rpc;
    unsigned n_portals, flags;
    bool stop;
    struct gr_fqueue stopped;
    struct gr_bdev_ops ops; /* of a mem512 disk */
    const struct gr_bdev_ops *base;
};

static int lookup(void *arg, const char *disk, const char *initiator, struct tgt_place *ret, struct gr_err *err)
{
    struct demo *d = arg;
    (void)initiator;
    for (unsigned i = 0; i < d->n_disks; i++) {
        if (strcmp(d->disks[i].name, disk) != 0)
            continue;
        if (d->disks[i].redirect)
            snprintf(ret->redirect, sizeof ret->redirect, "%s", d->disks[i].redirect);
        else
            ret->bdev = gr_bdev_get(d->disks[i].bdev);
        return 0;
    }
    return gr_fail(err, -ENOENT, "disk '%s' does not exist", disk);
}

static int list(void *arg, int (*each)(void *each_arg, const char *disk), void *each_arg, struct gr_err *err)
{
    struct demo *d = arg;
    (void)err;
    for (unsigned i = 0; i < d->n_disks; i++) {
        int r = each(each_arg, d->disks[i].name);
        if (r < 0)
            return r;
    }
    return 0;
}

static void note(void *arg, int level, const char *text)
{
    (void)arg;
    fprintf(stderr, "<%d>%s\n", level, text);
}

/* What a plain disk of a datastore looks like to an initiator that asks for 512-byte physical blocks. Memory is changed in
 * one go, so its writes are atomic. */
static int geometry_512(struct gr_bdev *bdev, struct gr_geometry *ret)
{
    const struct demo *d = (const struct demo *)(const void *)((const char *)bdev->ops - offsetof(struct demo, ops));
    int r = d->base->geometry(bdev, ret);
    ret->physical_block = 512;
    ret->atomic_bytes = 1u << 20;
    return r;
}

static int open_disk(struct demo *d, char *spec, struct gr_err *err)
{
    struct demo_disk *k = &d->disks[d->n_disks];
    char *kind = strchr(spec, '='), *value = kind ? strchr(kind, ':') : NULL;
    uint64_t size;
    if (!value || d->n_disks == DISKS_MAX)
        return gr_fail(err, -GR_EUSAGE, "'%s' is not NAME=KIND:VALUE", spec);
    *kind++ = 0;
    *value++ = 0;
    k->name = spec;
    d->n_disks++;
    if (!strcmp(kind, "to")) {
        k->redirect = value;
        return 0;
    }
    if (!strcmp(kind, "file") || !strcmp(kind, "ro")) {
        struct gr_file_opts o = {.direct = true, .read_only = *kind == 'r'};
        return gr_bdev_file_open(d->loop, value, &o, &k->bdev, err);
    }
    int r = gr_parse_size(value, &size, err);
    if (r < 0)
        return r;
    if (!strcmp(kind, "null"))
        return gr_bdev_null_open(d->loop, size, &k->bdev);
    k->mem = gr_mem_new(size);
    r = k->mem ? gr_bdev_mem_open(d->loop, k->mem, &k->bdev) : -ENOMEM;
    if (!r && !strcmp(kind, "mem512")) {
        d->base = k->bdev->ops;
        d->ops = *d->base;
        d->ops.geometry = geometry_512;
        k->bdev->ops = &d->ops;
    }
    return r;
}

static void on_signal(void *arg, int signo)
{
    struct demo *d = arg;
    (void)signo;
    d->stop = true;
    gr_fqueue_wake_all(&d->stopped);
}

static int serve(struct demo *d, struct gr_rpc_server *rpc, struct gr_err *err)
{
    for (unsigned i = 0; i < d->n_portals; i++) {
        int r = tgt_server_listen(d->server, d->portals[i], d->flags, NULL, err);
        if (r < 0)
            return r;
    }
    if (d->rpc) {
        int r = gr_rpc_server_add(rpc, tgt_service, d->server);
        if (!r)
            r = gr_rpc_server_listen(rpc, d->rpc, err);
        if (r < 0)
            return r;
    }
    for (unsigned i = 0; i < d->n_disks; i++) {
        gr_auto_free char *url = tgt_server_url(d->server, d->disks[i].name);
        printf("%s %s\n", d->disks[i].name, url);
    }
    printf("ready\n");
    fflush(stdout);
    while (!d->stop)
        gr_fqueue_wait(&d->stopped);
    return tgt_server_shutdown(d->server, 3000);
}

static int run(void *arg)
{
    struct demo *d = arg;
    struct gr_err err = {0};
    struct gr_rpc_server *rpc = NULL;
    struct tgt_server_opts o = {.loop = d->loop, .dir = {.arg = d, .lookup = lookup, .list = list}, .access_path = d->access, .note = note};
    gr_loop_signal(d->loop, SIGTERM, on_signal, d);
    gr_loop_signal(d->loop, SIGINT, on_signal, d);
    int r = tgt_server_new(&o, &d->server, &err);
    if (!r)
        r = gr_rpc_server_new(d->loop, &rpc);
    if (!r)
        r = serve(d, rpc, &err);
    gr_rpc_server_free(rpc);
    tgt_server_free(d->server);
    if (r < 0)
        fprintf(stderr, "tgt_demo: %s\n", gr_err_text(&err, r));
    return r < 0 ? r : 0;
}

int main(int argc, char **argv)
{
    int r = tgt_login_main(argc, argv);
    if (r >= 0)
        return r;
    struct demo d = {0};
    struct gr_err err = {0};
    if (gr_loop_new(NULL, &d.loop, &err) < 0)
        return 1;
    for (int i = 1; i < argc && !err.code; i++) {
        if (!strcmp(argv[i], "--insecure"))
            d.flags |= TGT_PORTAL_INSECURE;
        else if (!strcmp(argv[i], "--portal") && i + 1 < argc && d.n_portals < 8)
            d.portals[d.n_portals++] = argv[++i];
        else if (!strcmp(argv[i], "--access") && i + 1 < argc)
            d.access = argv[++i];
        else if (!strcmp(argv[i], "--rpc") && i + 1 < argc)
            d.rpc = argv[++i];
        else
            open_disk(&d, argv[i], &err);
    }
    if (!d.n_portals)
        d.portals[d.n_portals++] = "127.0.0.1:0";
    if (err.code)
        fprintf(stderr, "tgt_demo: %s\n", err.text);
    r = err.code ? 2 : gr_fiber_run(d.loop, run, &d) < 0;
    for (unsigned i = 0; i < d.n_disks; i++) {
        gr_bdev_put(d.disks[i].bdev);
        gr_mem_free(d.disks[i].mem);
    }
    gr_loop_free(d.loop);
    return r;
}
