/* File-level restore and restore points from raw images, for tests:
 *
 *   guest_file extract FSREAD IMAGE PATH OUT [ids|kill]   fs_extract; what is skipped goes to stdout. kill: end in the middle
 *   guest_file undo PATH                                  fs_extract_undo
 *   guest_file point REPO NAME IMAGE...                   make the repository if missing, and a point of the images */
#include "backup-proxy/fs_extract.h"
#include "backup-proxy/point.h"
#include "backup-proxy/store.h"
#include "backup-proxy/walk.h"
#include "common/cleanup.h"
#include "common/fiber.h"
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

struct run {
    struct gr_loop *loop;
    int argc;
    char **argv;
    struct gr_err err;
    bool kill;
};

static void note(void *arg, const char *path, const char *why)
{
    printf("skipped %s: %s\n", path, why);
}

static int begin(void *arg, const char *path, struct gr_err *err)
{
    printf("temporary %s\n", path);
    fflush(stdout);
    return 0;
}

static void progress(void *arg, uint64_t bytes)
{
    struct run *r = arg;
    if (r->kill && bytes > 1000000)
        raise(SIGKILL);
}

static int extract(struct run *r)
{
    struct gr_bdev *bdev = NULL;
    struct fs_reader *reader = NULL;
    struct fs_extract_result res = {0};
    struct fs_extract_opts o = {.note = note, .begin = begin, .progress = progress, .arg = r};
    for (int i = 6; i < r->argc; i++) {
        o.keep_ids = o.keep_ids || strcmp(r->argv[i], "ids") == 0;
        r->kill = r->kill || strcmp(r->argv[i], "kill") == 0;
    }
    int rc = gr_bdev_file_open(r->loop, r->argv[3], &(struct gr_file_opts){.read_only = true}, &bdev, &r->err);
    if (rc == 0)
        rc = fs_reader_open(r->loop, bdev, &(struct fs_reader_opts){.helper = r->argv[2]}, &reader, &r->err);
    if (rc == 0)
        rc = fs_extract(reader, r->argv[4], r->argv[5], &o, &res, &r->err);
    if (rc == 0 || rc == -GR_EPARTIAL)
        printf("files %llu dirs %llu links %llu bytes %llu skipped %llu\n", (unsigned long long)res.files, (unsigned long long)res.dirs,
               (unsigned long long)res.links, (unsigned long long)res.bytes, (unsigned long long)res.skipped);
    fs_reader_free(reader);
    gr_bdev_put(bdev);
    return rc;
}

static int next_extent(void *arg, struct bp_change *ret, struct gr_err *err)
{
    struct gr_extent e;
    int rc;
    while ((rc = bp_walk_next(arg, &e)) > 0 && e.flags)
        ;
    if (rc > 0)
        *ret = (struct bp_change){e.off, e.len, false};
    return rc;
}

static int store(struct run *r, struct bp_repo *repo, struct bp_lease *lease, const char *image, int i, json_t *disks)
{
    struct gr_bdev *bdev = NULL;
    struct gr_chan *chan = NULL;
    struct gr_geometry g = {0};
    struct bp_walk walk;
    struct bp_ref root;
    struct bp_store_stats st;
    char name[32];
    snprintf(name, sizeof name, "disk%d", i);
    int rc = gr_bdev_file_open(r->loop, image, &(struct gr_file_opts){.read_only = true}, &bdev, &r->err);
    if (rc == 0)
        rc = gr_chan_open(bdev, r->loop, &chan);
    if (rc == 0)
        rc = gr_bdev_geometry(bdev, &g);
    if (rc == 0) {
        bp_walk_init(&walk, chan, g.size, NULL);
        struct bp_store_job job = {.repo = repo, .lease = lease, .src = chan, .size = g.size, .next = next_extent, .next_arg = &walk};
        rc = bp_store_disk(&job, &root, &st, &r->err);
    }
    if (rc == 0)
        json_array_append_new(disks, json_pack("{s:s,s:s,s:I,s:o}", "name", name, "path", image, "size", (json_int_t)g.size, "root",
                                               bp_ref_json(&root)));
    gr_chan_close(chan);
    gr_bdev_put(bdev);
    return rc;
}

static int point(struct run *r)
{
    struct bp_repo *repo = NULL;
    struct bp_lease *lease = NULL;
    struct stat s;
    char id[BP_POINT_ID_MAX];
    json_t *disks = json_array(), *doc = json_pack("{s:O}", "disks", disks);
    int rc = stat(r->argv[2], &s) < 0 ? bp_repo_create(r->argv[2], &r->err) : 0;
    if (rc == 0)
        rc = bp_repo_open(r->argv[2], &repo, &r->err);
    if (rc == 0)
        rc = bp_lease_take(repo, BP_LEASE_WRITER, "", &lease, &r->err);
    for (int i = 4; rc == 0 && i < r->argc; i++)
        rc = store(r, repo, lease, r->argv[i], i - 4, disks);
    if (rc == 0)
        rc = bp_point_publish(repo, lease, r->argv[3], time(NULL), doc, id, &r->err);
    if (rc == 0)
        printf("%s\n", id);
    bp_lease_drop(lease);
    bp_repo_close(repo);
    json_decref(disks);
    json_decref(doc);
    return rc;
}

static int run(void *arg)
{
    struct run *r = arg;
    int rc = -GR_EUSAGE;
    if (r->argc >= 6 && strcmp(r->argv[1], "extract") == 0)
        rc = extract(r);
    else if (r->argc == 3 && strcmp(r->argv[1], "undo") == 0)
        rc = fs_extract_undo(r->argv[2], &r->err);
    else if (r->argc >= 5 && strcmp(r->argv[1], "point") == 0)
        rc = point(r);
    if (rc < 0)
        fprintf(stderr, "guest_file: %s\n", gr_err_text(&r->err, rc));
    return rc;
}

int main(int argc, char **argv)
{
    struct run r = {.argc = argc, .argv = argv};
    if (gr_loop_new(NULL, &r.loop, NULL) < 0)
        return 1;
    int rc = gr_fiber_run(r.loop, run, &r);
    gr_loop_free(r.loop);
    return gr_code_exit(rc);
}
