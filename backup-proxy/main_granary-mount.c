/* granary-mount: shows the disks of a restore point (or a raw image) and the files in them below a directory. Started by
 * `granary mount`; prints nothing unless something is wrong, and returns once the mount answers. */
#include "backup-proxy/mount_daemon.h"
#include "backup-proxy/mount_guest.h"
#include "backup-proxy/mount_table.h"
#include "common/cleanup.h"
#include "common/fiber.h"
#include "common/log.h"
#include "common/seam.h"
#include <getopt.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

struct source {
    const char *image;
    struct gr_bdev *bdev;
};

static struct mount_guest_opts guest_opts(int64_t mtime)
{
    return (struct mount_guest_opts){.mtime = mtime, .uid = geteuid(), .gid = getegid()};
}

static int view_of_image(void *arg, struct gr_loop *loop, struct mount_view *ret, struct gr_err *err)
{
    struct source *s = arg;
    struct stat st;
    int rc = gr_bdev_file_open(loop, s->image, &(struct gr_file_opts){.read_only = true}, &s->bdev, err);
    if (rc < 0)
        return rc;
    int64_t mtime = stat(s->image, &st) == 0 ? st.st_mtim.tv_sec : 0;
    struct mount_disk disk = {.name = "disk0", .bdev = s->bdev};
    struct mount_guest_opts o = guest_opts(mtime);
    return mount_guest_new(loop, &disk, 1, &o, ret, err);
}

static void release_image(void *arg, struct gr_loop *loop)
{
    struct source *s = arg;
    gr_bdev_put(s->bdev);
    s->bdev = NULL;
}

static int usage(void)
{
    fprintf(stderr, "granary-mount: usage: granary-mount {--image FILE | --repo REPO --point POINT[:DISK]} [--allow-other] "
                    "[--foreground] DIR, or granary-mount --unmount [--force] DIR\n");
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

int main(int argc, char **argv)
{
    static const struct option options[] = {{"image", required_argument, NULL, 'i'}, {"allow-other", no_argument, NULL, 'a'},
                                            {"foreground", no_argument, NULL, 'f'}, {"unmount", no_argument, NULL, 'u'},
                                            {"force", no_argument, NULL, 'F'},      {0}};
    struct source s = {0};
    struct mount_daemon_opts o = {0};
    char full[PATH_MAX], text[PATH_MAX + 16];
    struct gr_err err = {0};
    bool end = false, force = false;
    opterr = 0;
    for (int c; (c = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        if (c == 'i')
            s.image = optarg;
        else if (c == 'a')
            o.allow_other = true;
        else if (c == 'f')
            o.foreground = true;
        else if (c == 'u')
            end = true;
        else if (c == 'F')
            force = true;
        else
            return usage();
    }
    if (optind != argc - 1 || (end ? s.image != NULL : !s.image))
        return usage();
    gr_log_open("granary-mount", NULL, GR_LOG_NOTE, NULL);
    if (end) {
        int rc = unmount(argv[optind], force, &err);
        if (rc < 0)
            fprintf(stderr, "granary-mount: %s\n", gr_err_text(&err, rc));
        return gr_code_exit(rc);
    }
    if (!realpath(s.image, full)) {
        fprintf(stderr, "granary-mount: '%s': %s\n", s.image, gr_code_text(-errno));
        return 1;
    }
    s.image = full;
    snprintf(text, sizeof text, "granary:%s", full);
    o.dir = argv[optind];
    o.source = text;
    o.make_view = view_of_image;
    o.release = release_image;
    o.arg = &s;
    int rc = mount_daemon_run(&o, &err);
    if (rc < 0)
        fprintf(stderr, "granary-mount: %s\n", gr_err_text(&err, rc));
    return gr_code_exit(rc);
}
