/* granary restore file: one file or a tree out of a guest's file system in a restore point. The guest's bytes are parsed by
 * granary-fsread in its sandbox only; what appears here is made beneath OUT and nowhere else. */
#include "backup-proxy/cmd_proxy.h"
#include "backup-proxy/fs_extract.h"
#include "backup-proxy/intent.h"
#include "backup-proxy/point.h"
#include "common/cleanup.h"
#include <limits.h>
#include <stdio.h>
#include <string.h>

struct file_restore {
    struct gr_cmd_ctx *c;
    struct gr_home *home;
    struct bp_intent *intent;
};
static void on_note(void *arg, const char *path, const char *why)
{
    fprintf(stderr, "granary: left out: %s: %s\n", path, why);
}
static int on_begin(void *arg, const char *path, struct gr_err *err)
{
    struct file_restore *f = arg;
    json_t *detail = json_pack("{s:s}", "path", path);
    int r = detail ? bp_intent_begin(f->home, "extract", detail, &f->intent, err) : gr_fail(err, -EINVAL, "'%s' is no valid text", path);
    json_decref(detail);
    return r;
}
static void on_progress(void *arg, uint64_t bytes)
{
    struct file_restore *f = arg;
    gr_cmd_progress(f->c, "restore", bytes, 0, true);
}
static int extract(struct file_restore *f, struct gr_bdev *bdev, struct fs_extract_result *ret, struct gr_err *err)
{
    struct fs_reader *reader = NULL;
    struct fs_reader_opts ro = {.helper = NULL};
    struct fs_extract_opts o = {.keep_ids = gr_cmd_flag(f->c, "keep-owner"), .note = on_note, .begin = on_begin, .progress = on_progress, .arg = f};
    int r = fs_reader_open(gr_cmd_loop(f->c), bdev, &ro, &reader, err);
    if (r == 0)
        r = fs_extract(reader, gr_cmd_arg(f->c, 1), gr_cmd_arg(f->c, 2), &o, ret, err);
    fs_reader_free(reader);
    if (f->intent && (r == 0 || r == -GR_EPARTIAL || fs_extract_undo(json_string_value(json_object_get(bp_intent_detail(f->intent), "path")), NULL) == 0))
        (void)bp_intent_end(f->intent, NULL);
    else
        bp_intent_free(f->intent);
    return r;
}
int bp_restore_file(struct gr_cmd_ctx *c, struct gr_err *err)
{
    struct file_restore f = {.c = c};
    struct bp_repo *repo = NULL;
    struct gr_bdev *bdev = NULL;
    struct fs_extract_result res = {0};
    gr_auto_free char *disk = NULL;
    char id[BP_POINT_ID_MAX];
    int r = gr_home_open(1, &f.home, err);
    if (r == 0)
        r = bp_recover_files(f.home, err);
    if (r >= 0)
        r = bp_cmd_repo(c, &repo, err);
    if (r == 0)
        r = bp_point_resolve(repo, gr_cmd_arg(c, 0), id, &disk, err);
    if (r == 0)
        r = bp_point_open(gr_cmd_loop(c), repo, id, disk, &bdev, err);
    if (r == 0)
        r = extract(&f, bdev, &res, err);
    gr_bdev_put(bdev);
    bp_repo_close(repo);
    gr_home_free(f.home);
    if (r < 0 && r != -GR_EPARTIAL)
        return r;
    json_t *o = json_pack("{s:s,s:s,s:s,s:I,s:I,s:I,s:I,s:I}", "point", id, "path", gr_cmd_arg(c, 1), "out", gr_cmd_arg(c, 2), "files",
                          (json_int_t)res.files, "dirs", (json_int_t)res.dirs, "links", (json_int_t)res.links, "bytes", (json_int_t)res.bytes,
                          "skipped", (json_int_t)res.skipped);
    int shown = gr_cmd_done(c, o, "restored %s from %s: %llu files, %llu bytes", gr_cmd_arg(c, 1), id, (unsigned long long)res.files,
                            (unsigned long long)res.bytes);
    json_decref(o);
    return r < 0 ? r : shown;
}
