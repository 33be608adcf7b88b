/* granary-mount: shows the disks of a restore point (or a raw image) and the files in them below a directory. Started by
 * `granary mount`; prints nothing unless something is wrong, and returns once the mount answers. */
#include "backup-proxy/mount_daemon.h"
#include "backup-proxy/mount_guest.h"
#include "backup-proxy/mount_store.h"
#include "backup-proxy/mount_table.h"
#include "backup-proxy/point.h"
#include "common/cleanup.h"
#include "common/fiber.h"
#include "common/log.h"
#include "common/seam.h"
#include "snapshot/client.h"
#include <getopt.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#define DISKS_MAX 64u

/* What is mounted: an image, a restore point of a repository, or a datastore. */
struct source {
    const char *image;
    const char *repo_path, *point_text;
    const char *datastore;
    struct gr_home *home; /* datastore */
    struct bp_repo *repo;
    struct gr_bdev *bdevs[DISKS_MAX];
    char *names[DISKS_MAX];
    unsigned n;
};

static struct mount_guest_opts guest_opts(int64_t mtime)
{
    return (struct mount_guest_opts){.mtime = mtime, .uid = geteuid(), .gid = getegid()};
}

static int view_of_disks(struct source *s, struct gr_loop *loop, int64_t mtime, struct mount_view *ret, struct gr_err *err)
{
    struct mount_disk disks[DISKS_MAX];
    for (unsigned i = 0; i < s->n; i++)
        disks[i] = (struct mount_disk){.name = s->names[i], .bdev = s->bdevs[i]};
    struct mount_guest_opts o = guest_opts(mtime);
    return mount_guest_new(loop, disks, s->n, &o, ret, err);
}

/* Name of a disk's directory: what cannot stand in a file name becomes '-', and no two are the same. */
static char *disk_name(const struct source *s, const char *name)
{
    char *n = gr_strdup(name);
    for (char *c = n; c && *c; c++)
        if (*c == '/')
            *c = '-';
    bool taken = n && !fs_name_ok(n, strlen(n));
    for (unsigned i = 0; n && i < s->n; i++)
        taken = taken || strcmp(s->names[i], n) == 0;
    if (taken) {
        free(n);
        n = gr_asprintf("disk%u", s->n);
    }
    return n;
}

static int add_disk(struct source *s, struct gr_bdev *bdev, const char *name, struct gr_err *err)
{
    char *n = s->n < DISKS_MAX ? disk_name(s, name) : NULL;
    if (!n) {
        gr_bdev_put(bdev);
        return gr_fail(err, -ENOMEM, "cannot show the disk '%s': out of memory, or more than %u disks", name, DISKS_MAX);
    }
    s->names[s->n] = n;
    s->bdevs[s->n++] = bdev;
    return 0;
}

static int view_of_image(void *arg, struct gr_loop *loop, struct mount_view *ret, struct gr_err *err)
{
    struct source *s = arg;
    struct stat st;
    struct gr_bdev *bdev = NULL;
    int rc = gr_bdev_file_open(loop, s->image, &(struct gr_file_opts){.read_only = true}, &bdev, err);
    if (rc == 0)
        rc = add_disk(s, bdev, "disk0", err);
    int64_t mtime = stat(s->image, &st) == 0 ? st.st_mtim.tv_sec : 0;
    return rc < 0 ? rc : view_of_disks(s, loop, mtime, ret, err);
}

static int open_disks(struct source *s, struct gr_loop *loop, const char *id, const char *only, int64_t *ret_time, struct gr_err *err)
{
    struct bp_point p;
    struct bp_point_disk one, d;
    int rc = bp_point_load(s->repo, id, &p, err);
    if (rc < 0)
        return rc;
    *ret_time = json_integer_value(json_object_get(p.doc, "time"));
    if (only)
        rc = bp_point_find_disk(&p, only, &one, err);
    for (size_t i = 0; rc == 0 && i < bp_point_disks(&p); i++) {
        struct gr_bdev *bdev = NULL;
        rc = bp_point_disk(&p, i, &d, err);
        if (rc < 0 || (only && strcmp(d.name, one.name) != 0))
            continue;
        rc = bp_point_open(loop, s->repo, id, d.name, &bdev, err);
        if (rc == 0)
            rc = add_disk(s, bdev, d.name, err);
    }
    bp_point_done(&p);
    return rc;
}

static int view_of_point(void *arg, struct gr_loop *loop, struct mount_view *ret, struct gr_err *err)
{
    struct source *s = arg;
    char id[BP_POINT_ID_MAX];
    gr_auto_free char *disk = NULL;
    int64_t mtime = 0;
    int rc = bp_repo_open(s->repo_path, &s->repo, err);
    if (rc == 0)
        rc = bp_point_resolve(s->repo, s->point_text, id, &disk, err);
    if (rc == 0)
        rc = open_disks(s, loop, id, disk, &mtime, err);
    return rc < 0 ? rc : view_of_disks(s, loop, mtime, ret, err);
}

static void release(void *arg, struct gr_loop *loop)
{
    struct source *s = arg;
    for (unsigned i = 0; i < s->n; i++) {
        gr_bdev_put(s->bdevs[i]);
        free(s->names[i]);
    }
    s->n = 0;
    bp_repo_close(s->repo);
    s->repo = NULL;
    gr_home_free(s->home);
    s->home = NULL;
}

static int help(void)
{
    puts("granary-mount: show a restore point's disks, and the guest's files in them, below a directory\n"
         "\n"
         "  granary-mount --repo REPO --point POINT[:DISK] [--allow-other] [--foreground] DIR\n"
         "  granary-mount --image FILE [--allow-other] [--foreground] DIR\n"
         "  granary-mount --datastore DS[/FOLDER] [--read-only] [--allow-other] [--foreground] DIR\n"
         "  granary-mount --unmount [--force] DIR\n"
         "\n"
         "  --repo REPO           repository of the restore point\n"
         "  --point POINT[:DISK]  the restore point, or one disk of it\n"
         "  --image FILE          a raw disk image instead\n"
         "  --datastore DS        a datastore instead: its folders, files and disks, served by the storage daemon\n"
         "  --read-only           the datastore cannot be changed there; the storage daemon need not run\n"
         "  --allow-other         let other users in, under the guest's owners and modes\n"
         "  --foreground          stay in the foreground; an interrupt unmounts\n"
         "  --unmount             end a mount, and wait until its processes are gone\n"
         "  --force               also when files are open: they fail from then on\n"
         "  --help                this text");
    return 0;
}

/* ---- a datastore ---- */
/* Each request reaches the daemon, or is served here and now: nothing is held between two of them, so that other commands and a
 * daemon that starts are not kept waiting by a mount. */
static int call_storage(void *arg, const char *method, json_t *params, json_t **ret, struct gr_err *err)
{
    struct source *s = arg;
    struct snap_client *c = NULL;
    struct gr_err scratch = {0};
    int rc = snap_client_open(gr_fiber_loop(), s->home, NULL, &c, err ? err : &scratch);
    if (rc < 0) {
        json_decref(params);
        return rc;
    }
    rc = snap_client_call(c, method, params, NULL, NULL, ret, err ? err : &scratch);
    snap_client_close(c);
    return rc;
}

static int view_of_datastore(void *arg, struct gr_loop *loop, struct mount_view *ret, struct gr_err *err)
{
    struct source *s = arg;
    int rc = gr_home_open(1, &s->home, err);
    struct mount_store_opts o = {.path = s->datastore, .uid = geteuid(), .gid = getegid(), .call = call_storage, .arg = s};
    return rc < 0 ? rc : mount_store_new(&o, ret, err);
}

static int usage(void)
{
    fprintf(stderr, "granary-mount: usage: granary-mount {--image FILE | --repo REPO --point POINT[:DISK] | --datastore DS[/FOLDER]} "
                    "[--read-only] [--allow-other] [--foreground] DIR, or granary-mount --unmount [--force] DIR\n");
    return 2;
}

static int unmount(const char *dir, bool force, struct gr_err *err)
{
    struct gr_home *home = NULL;
    int rc = gr_home_open(0, &home, err);
    if (rc == 0)
        rc = mount_unmount(home, dir, force, err);
    gr_home_free(home);
    return rc;
}

struct args {
    struct source s;
    struct mount_daemon_opts o;
    bool unmount, force, help, read_only;
};

/* 0, or 2: wrong usage. */
static int parse(int argc, char **argv, struct args *a)
{
    static const struct option options[] = {
        {"image", required_argument, NULL, 'i'}, {"datastore", required_argument, NULL, 'd'}, {"read-only", no_argument, NULL, 'R'}, {"repo", required_argument, NULL, 'r'}, {"point", required_argument, NULL, 'p'},
        {"allow-other", no_argument, NULL, 'a'}, {"foreground", no_argument, NULL, 'f'}, {"unmount", no_argument, NULL, 'u'},
        {"force", no_argument, NULL, 'F'},       {"help", no_argument, NULL, 'h'}, {0}};
    opterr = 0;
    for (int c; (c = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        switch (c) {
        case 'i': a->s.image = optarg; break;
        case 'd': a->s.datastore = optarg; break;
        case 'R': a->read_only = true; break;
        case 'r': a->s.repo_path = optarg; break;
        case 'p': a->s.point_text = optarg; break;
        case 'a': a->o.allow_other = true; break;
        case 'f': a->o.foreground = true; break;
        case 'u': a->unmount = true; break;
        case 'F': a->force = true; break;
        case 'h': a->help = true; return 0;
        default: return usage();
        }
    }
    bool point = a->s.repo_path && a->s.point_text, half = a->s.repo_path || a->s.point_text;
    int what = (a->s.image != NULL) + (a->s.datastore != NULL) + half;
    if (optind != argc - 1 || what != !a->unmount || (half && !point) || (a->read_only && !a->s.datastore))
        return usage();
    a->o.dir = argv[optind];
    return 0;
}

static int run(struct args *a, struct gr_err *err)
{
    char full[PATH_MAX], text[PATH_MAX + BP_POINT_ID_MAX + 32];
    const char *path = a->s.image ? a->s.image : a->s.repo_path;
    if (a->unmount)
        return unmount(a->o.dir, a->force, err);
    if (a->s.datastore) {
        snprintf(text, sizeof text, "granary:%s", a->s.datastore);
        a->o.source = text;
        a->o.hold = a->read_only ? NULL : a->s.datastore;
        a->o.make_view = view_of_datastore;
        a->o.release = release;
        a->o.arg = &a->s;
        return mount_daemon_run(&a->o, err);
    }
    if (!realpath(path, full)) /* the daemon works in "/" */
        return gr_fail(err, -errno, "'%s': %s", path, gr_code_text(-errno));
    if (a->s.image) {
        a->s.image = full;
        snprintf(text, sizeof text, "granary:%s", full);
    } else {
        a->s.repo_path = full;
        snprintf(text, sizeof text, "granary:%s:%s", full, a->s.point_text);
    }
    a->o.source = text;
    a->o.make_view = a->s.image ? view_of_image : view_of_point;
    a->o.release = release;
    a->o.arg = &a->s;
    return mount_daemon_run(&a->o, err);
}

int main(int argc, char **argv)
{
    struct args a = {0};
    struct gr_err err = {0};
    if (parse(argc, argv, &a))
        return 2;
    if (a.help)
        return help();
    gr_log_open("granary-mount", NULL, GR_LOG_NOTE, NULL);
    int rc = run(&a, &err);
    if (rc < 0)
        fprintf(stderr, "granary-mount: %s\n", gr_err_text(&err, rc));
    return gr_code_exit(rc);
}
