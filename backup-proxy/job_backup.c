/* One backup: snapshot of all disks in one instant, what changed, bytes, commit, snapshot gone. */
#include "backup-proxy/catalogue.h"
#include "backup-proxy/intent.h"
#include "backup-proxy/job.h"
#include "backup-proxy/point.h"
#include "backup-proxy/ranges.h"
#include "backup-proxy/source.h"
#include "backup-proxy/store.h"
#include "backup-proxy/vm_config.h"
#include "backup-proxy/walk.h"
#include "common/b64.h"
#include "common/buf.h"
#include "common/cleanup.h"
#include "common/rpc.h"
#include "common/seam.h"
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>

#define FREEZE_DEADLINE_MS 10000
struct jdisk {
    char *path, *name;
    char bookmark[128];   /* of the job's snapshot */
    uint64_t size;
    bool incremental;
    char cause[256];      /* of a full */
    struct bp_ref parent_root;
    uint64_t parent_size;
    struct bp_ranges ranges;
    struct bp_ref root;
    struct bp_store_stats st;
};
struct job {
    struct bp_env *env;
    const struct bp_backup_spec *spec;
    struct bp_repo *repo;
    struct bp_lease *lease;
    struct bp_intent *intent;
    int name_lock;
    char *name, *vm, *config;
    char snap[48];
    bool have_snapshot, via_host;
    const char *transport;
    struct bp_point parent;
    struct jdisk disk[BP_VM_DISKS];
    unsigned n;
    char consistency[24], crash_cause[200]; /* why it is only crash-consistent */
    uint64_t frozen_ms;
    uint64_t done_before; /* progress of the disks already stored */
    uint64_t total;
    struct gr_err *err;
};

/* ---- what is to be backed up ---- */
static int check_disk(struct job *j, const char *path)
{
    json_t *res = NULL;
    int r = j->env->storage(j->env->arg, "disk.info", json_pack("{s:s}", "disk", path), NULL, NULL, &res, j->err);
    json_decref(res);
    return r;
}
static int add_disk(struct job *j, const char *path)
{
    const char *slash = strrchr(path, '/');
    if (j->n == BP_VM_DISKS)
        return gr_fail(j->err, -GR_EUSAGE, "more than %d disks in one backup", BP_VM_DISKS);
    for (unsigned i = 0; i < j->n; i++)
        if (!strcmp(j->disk[i].path, path))
            return gr_fail(j->err, -GR_EUSAGE, "disk '%s' is named twice", path);
    struct jdisk *d = &j->disk[j->n];
    d->path = gr_strdup(path);
    d->name = gr_strdup(slash ? slash + 1 : path);
    for (unsigned i = 0; d->name && i < j->n; i++)
        if (!strcmp(j->disk[i].name, d->name)) { /* same last part in two folders */
            free(d->name);
            d->name = gr_asprintf("%s-%u", slash ? slash + 1 : path, j->n);
        }
    j->n++;
    return d->path && d->name ? check_disk(j, path) : gr_fail(j->err, -ENOMEM, "out of memory");
}
static int read_config(struct job *j)
{
    gr_auto_free char *file = bp_vm_config_file(j->vm);
    json_t *res = NULL;
    const char *b64 = NULL;
    struct gr_buf text = {0};
    int r = j->env->storage(j->env->arg, "file.read", json_pack("{s:s}", "path", file), NULL, NULL, &res, j->err);
    if (r == 0)
        r = gr_json_str(res, "data-b64", &b64, j->err);
    if (r == 0 && (r = gr_b64_decode(b64, strlen(b64), &text)) < 0)
        gr_fail(j->err, r, "%s: %s", file, gr_code_text(r));
    json_decref(res);
    if (r < 0) {
        gr_buf_done(&text);
        return gr_prefix(j->err, r, "VM '%s'", j->vm);
    }
    (void)gr_buf_add(&text, "", 1);
    j->config = gr_buf_take(&text);
    for (unsigned i = 0; r == 0 && i < BP_VM_DISKS; i++) {
        char key[32];
        snprintf(key, sizeof key, "disk%u.fileName", i);
        gr_auto_free char *path = bp_vm_config_get(j->config, key);
        if (path)
            r = add_disk(j, path);
    }
    return r == 0 && j->n == 0 ? gr_fail(j->err, -EINVAL, "VM '%s' has no disks", j->vm) : r;
}
/* Is the VM on? Also turns a bare name into "DS/NAME" when the host agent knows it. */
static int ask_host(struct job *j)
{
    json_t *res = NULL;
    struct gr_err e = {0};
    int r = j->env->host(j->env->arg, "vm.info", json_pack("{s:s}", "vm", j->spec->vm), &res, &e);
    const char *full = json_string_value(json_object_get(res, "vm")), *state = json_string_value(json_object_get(res, "state"));
    if (r == 0 && full && state) {
        free(j->vm);
        j->vm = gr_strdup(full);
        j->via_host = strcmp(state, "off") && strcmp(state, "stopped");
    }
    json_decref(res);
    if (r < 0 && r != -ENOENT) /* it may be on */
        return gr_fail(j->err, r, "VM '%s': %s", j->spec->vm, gr_err_text(&e, r));
    if (r < 0 && !strchr(j->spec->vm, '/'))
        return gr_fail(j->err, r, "VM '%s': %s (give DATASTORE/NAME when no host agent runs)", j->spec->vm, gr_err_text(&e, r));
    return j->vm ? 0 : gr_fail(j->err, -ENOMEM, "out of memory");
}
static int find_disks(struct job *j)
{
    int r = 0;
    if (j->spec->vm) {
        j->vm = gr_strdup(j->spec->vm);
        r = ask_host(j);
        if (r == 0)
            r = read_config(j);
    }
    for (unsigned i = 0; r == 0 && i < j->spec->n_disks; i++)
        r = add_disk(j, j->spec->disks[i]);
    if (r < 0)
        return r;
    if (j->n == 0)
        return gr_fail(j->err, -GR_EUSAGE, "nothing to back up: name a VM or --disk");
    j->name = gr_strdup(j->spec->name ? j->spec->name : j->vm ? j->vm : j->disk[0].path);
    return j->name ? bp_name_check(j->name, j->err) : gr_fail(j->err, -ENOMEM, "out of memory");
}

/* ---- the repository ---- */
static int open_repo(struct job *j)
{
    const char *path = j->spec->repo;
    gr_auto_free char *stamp = gr_asprintf("%s/granary-repository", path);
    int r = 0;
    if (stamp && access(stamp, F_OK) < 0 && errno == ENOENT && (r = find_disks(j)) == 0) /* none is made for a job that cannot be */
        r = bp_repo_create(path, j->err);
    if (r == 0)
        r = bp_repo_open(path, &j->repo, j->err);
    return r;
}
/* One job per name at a time. */
static int lock_name(struct job *j)
{
    struct flock fl = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    uint8_t hash[32];
    char file[64];
    bp_sha256(j->name, strlen(j->name), hash);
    snprintf(file, sizeof file, "leases/.name-%02x%02x%02x%02x%02x%02x%02x%02x", hash[0], hash[1], hash[2], hash[3], hash[4], hash[5], hash[6],
             hash[7]);
    j->name_lock = openat(bp_repo_dirfd(j->repo), file, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (j->name_lock < 0)
        return gr_fail(j->err, -errno, "%s/%s: cannot open: %s", bp_repo_path(j->repo), file, gr_code_text(-errno));
    if (fcntl(j->name_lock, F_OFD_SETLK, &fl) < 0)
        return gr_fail(j->err, -GR_ELOCKED, "another job is backing up '%s' into %s", j->name, bp_repo_path(j->repo));
    return 0;
}
static int load_parent(struct job *j)
{
    char id[BP_POINT_ID_MAX];
    struct gr_err e = {0};
    int r = bp_point_newest(j->repo, j->name, id, j->err);
    if (r <= 0)
        return r;
    r = bp_point_load(j->repo, id, &j->parent, &e);
    if (r < 0 && j->env->warn)
        j->env->warn(j->env->arg, gr_err_text(&e, r)); /* a full then */
    return 0;
}

/* ---- snapshot ---- */
static json_t *disk_paths(const struct job *j)
{
    json_t *a = json_array();
    for (unsigned i = 0; i < j->n; i++)
        json_array_append_new(a, json_string(j->disk[i].path));
    return a;
}
static int begin_intent(struct job *j)
{
    const struct gr_world *w = gr_world_real();
    uint8_t rnd[6];
    w->random(w->arg, rnd, sizeof rnd);
    snprintf(j->snap, sizeof j->snap, "backup-%02x%02x%02x%02x%02x%02x", rnd[0], rnd[1], rnd[2], rnd[3], rnd[4], rnd[5]);
    json_t *detail = json_pack("{s:s,s:s,s:s,s:o}", "repo", bp_repo_path(j->repo), "name", j->name, "snapshot", j->snap, "disks", disk_paths(j));
    int r = detail ? bp_intent_begin(j->env->home, "backup", detail, &j->intent, j->err) : gr_fail(j->err, -ENOMEM, "out of memory");
    json_decref(detail);
    return r;
}
static int take_snapshot(struct job *j)
{
    json_t *res = NULL;
    int r;
    snprintf(j->consistency, sizeof j->consistency, "crash");
    j->have_snapshot = true; /* also when the call fails: an answer that came too late may have left one */
    if (j->via_host) {
        r = j->env->host(j->env->arg, "vm.snapshot",
                         json_pack("{s:s,s:s,s:b,s:i}", "vm", j->vm, "name", j->snap, "quiesce", !j->spec->no_quiesce, "deadline-ms", FREEZE_DEADLINE_MS),
                         &res, j->err);
        const char *c = json_string_value(json_object_get(res, "consistency"));
        if (c)
            snprintf(j->consistency, sizeof j->consistency, "%s", c);
        c = json_string_value(json_object_get(res, "cause"));
        snprintf(j->crash_cause, sizeof j->crash_cause, "%s", c && !strcmp(j->consistency, "crash") ? c : "");
        if (j->crash_cause[0] && j->env->warn && !j->spec->no_quiesce) {
            gr_auto_free char *text = gr_asprintf("the backup of '%s' is only crash-consistent: %s", j->name, j->crash_cause);
            j->env->warn(j->env->arg, text ? text : j->crash_cause);
        }
        j->frozen_ms = (uint64_t)json_integer_value(json_object_get(res, "frozen-ms"));
    } else {
        r = j->env->storage(j->env->arg, "snapshot.create", json_pack("{s:o,s:s}", "disks", disk_paths(j), "name", j->snap), NULL, NULL, &res, j->err);
        if (j->vm)
            snprintf(j->consistency, sizeof j->consistency, "filesystem"); /* it is off: nothing was in flight */
    }
    json_decref(res);
    return r;
}
/* Size and bookmark of the snapshot of each disk. */
static int look_at_snapshots(struct job *j)
{
    for (unsigned i = 0; i < j->n; i++) {
        struct jdisk *d = &j->disk[i];
        json_t *res = NULL, *row;
        size_t k;
        int r = j->env->storage(j->env->arg, "snapshot.list", json_pack("{s:s}", "disk", d->path), NULL, NULL, &res, j->err);
        json_array_foreach(res, k, row) {
            const char *name = json_string_value(json_object_get(row, "name")), *mark = json_string_value(json_object_get(row, "bookmark"));
            if (name && mark && !strcmp(name, j->snap)) {
                snprintf(d->bookmark, sizeof d->bookmark, "%s", mark);
                d->size = (uint64_t)json_integer_value(json_object_get(row, "size"));
            }
        }
        json_decref(res);
        if (r < 0)
            return r;
        if (d->size == 0)
            return gr_fail(j->err, -EIO, "snapshot '%s@%s' was taken, but is not listed", d->path, j->snap);
        j->total += d->size;
    }
    return 0;
}
static int drop_snapshots(struct job *j)
{
    int first = 0;
    for (unsigned i = 0; j->have_snapshot && i < j->n; i++) {
        struct gr_err e = {0};
        int r = bp_drop_snapshot(j->env, j->disk[i].path, j->snap, &e);
        if (r < 0 && first == 0)
            first = gr_fail(j->err, r, "the snapshot of the job stays until the next one: %s", gr_err_text(&e, r));
    }
    j->have_snapshot = false;
    return first;
}

/* ---- full or incremental ---- */
static int plan_disk(struct job *j, struct jdisk *d)
{
    struct bp_point_disk pd;
    bool have = false;
    struct gr_err e = {0};
    for (size_t i = 0; j->parent.doc && !have && i < bp_point_disks(&j->parent); i++)
        have = bp_point_disk(&j->parent, i, &pd, NULL) == 0 && !strcmp(pd.path, d->path);
    if (have) {
        d->parent_root = pd.root;
        d->parent_size = pd.size;
    }
    if (j->spec->full)
        snprintf(d->cause, sizeof d->cause, "asked for");
    else if (!j->parent.doc)
        snprintf(d->cause, sizeof d->cause, "first backup of '%.200s'", j->name);
    else if (!have)
        snprintf(d->cause, sizeof d->cause, "the disk is not in the last point");
    else if (!pd.bookmark[0])
        snprintf(d->cause, sizeof d->cause, "the last point has no bookmark of the disk");
    if (d->cause[0])
        return 0;
    int r = bp_ranges_ask(j->env, d->path, pd.bookmark, j->snap, &d->ranges, &e);
    if (r == 0) {
        d->incremental = true;
        return 0;
    }
    snprintf(d->cause, sizeof d->cause, "%.250s", gr_err_text(&e, r));
    return r == -ENOMEM ? gr_fail(j->err, r, "out of memory") : 0;
}

/* ---- transports ---- */
static int pick_transport(struct job *j)
{
    const char *t = j->spec->transport;
    j->transport = t ? t : j->env->daemon(j->env->arg) ? "san" : "local";
    if (strcmp(j->transport, "san") && strcmp(j->transport, "lan") && strcmp(j->transport, "local")) {
        if (!strcmp(j->transport, "nas"))
            return gr_fail(j->err, -EOPNOTSUPP, "transport nas is for disks on NFS; disks of a datastore go by san, lan or local");
        return gr_fail(j->err, -GR_EUSAGE, "unknown transport '%s' (san, lan, local)", j->transport);
    }
    if (strcmp(j->transport, "local") && !j->env->daemon(j->env->arg))
        return gr_fail(j->err, -ENOENT, "transport %s needs the storage daemon; run \"granary up\", or use --transport local", j->transport);
    return 0;
}
static int open_network(struct job *j, const struct jdisk *d, json_t *row, struct gr_bdev **ret)
{
    const char *url = NULL, *initiator = NULL;
    int r = gr_json_str(row, strcmp(j->transport, "san") ? "nbd-url" : "iscsi-url", &url, j->err);
    if (r == 0)
        r = gr_json_opt_str(row, "initiator", &initiator, j->err);
    if (r < 0)
        return gr_prefix(j->err, r, "%s@%s: this host serves no %s transport", d->path, j->snap, j->transport);
    if (!strcmp(j->transport, "san")) {
        struct bp_iscsi_opts o = {.url = url, .initiator = initiator};
        return bp_source_iscsi_open(j->env->loop, &o, ret, j->err);
    }
    struct bp_nbd_opts o = {.uri = url, .require_tls = !strncmp(url, "nbds", 4)};
    return bp_source_nbd_open(j->env->loop, &o, ret, j->err);
}
static int open_source(struct job *j, const struct jdisk *d, struct gr_bdev **ret, json_t **ret_exposure)
{
    if (!strcmp(j->transport, "local")) {
        gr_auto_free char *name = gr_asprintf("%s@%s", d->path, j->snap);
        return name ? j->env->open_local(j->env->arg, name, ret, j->err) : gr_fail(j->err, -ENOMEM, "out of memory");
    }
    gr_auto_free char *initiator = gr_asprintf("iqn.2026-11.local.granary:%s", j->snap);
    int r = j->env->storage(j->env->arg, "snapshot.expose",
                            json_pack("{s:s,s:s,s:s?,s:b}", "disk", d->path, "snapshot", j->snap, "initiator", initiator, "tie", 1), NULL, NULL,
                            ret_exposure, j->err);
    return r < 0 ? r : open_network(j, d, *ret_exposure, ret);
}
static void close_exposure(struct job *j, const struct jdisk *d, json_t *exposure)
{
    json_t *id = json_object_get(exposure, "id"), *res = NULL;
    if (id)
        (void)j->env->storage(j->env->arg, "snapshot.unexpose", json_pack("{s:O,s:s}", "id", id, "disk", d->path), NULL, NULL, &res, NULL);
    json_decref(res);
    json_decref(exposure);
}

/* ---- bytes ---- */
struct full_feed {
    struct bp_walk walk;
    const char *name;
};
static int full_next(void *arg, struct bp_change *ret, struct gr_err *err)
{
    struct full_feed *f = arg;
    struct gr_extent e;
    int r;
    while ((r = bp_walk_next(&f->walk, &e)) > 0 && e.flags)
        ;
    if (r < 0)
        return gr_fail(err, r, "%s: cannot list its extents: %s", f->name, gr_code_text(r));
    if (r > 0)
        *ret = (struct bp_change){e.off, e.len, false};
    return r;
}
static void on_progress(void *arg, uint64_t done, uint64_t total)
{
    struct job *j = arg;
    if (j->env->progress)
        j->env->progress(j->env->arg, j->name, j->done_before + done, j->total);
}
static int store_from(struct job *j, struct jdisk *d, struct gr_bdev *src)
{
    struct gr_geometry g;
    struct gr_chan *ch = NULL;
    struct full_feed feed = {.name = d->path};
    int r = gr_bdev_geometry(src, &g);
    if (r == 0)
        r = gr_chan_open(src, j->env->loop, &ch);
    if (r < 0)
        return gr_fail(j->err, r, "%s@%s: %s", d->path, j->snap, gr_code_text(r));
    if (g.size != d->size) {
        gr_chan_close(ch);
        return gr_fail(j->err, -GR_EPROTO, "%s@%s: the transport shows %llu bytes, the snapshot has %llu", d->path, j->snap,
                       (unsigned long long)g.size, (unsigned long long)d->size);
    }
    bp_walk_init(&feed.walk, ch, g.size, NULL);
    struct bp_store_job s = {.repo = j->repo,
                             .lease = j->lease,
                             .src = ch,
                             .size = g.size,
                             .parent = d->parent_root,
                             .parent_size = d->parent_size,
                             .incremental = d->incremental,
                             .next = d->incremental ? bp_ranges_next : full_next,
                             .next_arg = d->incremental ? (void *)&d->ranges : &feed,
                             .level = j->spec->level,
                             .progress = on_progress,
                             .progress_arg = j,
                             .cancel = &j->env->cancel};
    r = bp_store_disk(&s, &d->root, &d->st, j->err);
    gr_chan_close(ch);
    return r;
}
static int store_one(struct job *j, struct jdisk *d)
{
    struct gr_bdev *src = NULL;
    json_t *exposure = NULL;
    int r = open_source(j, d, &src, &exposure);
    if (r == 0)
        r = store_from(j, d, src);
    gr_bdev_put(src);
    close_exposure(j, d, exposure);
    j->done_before += d->size;
    return r < 0 ? gr_prefix(j->err, r, "disk '%s'", d->path) : 0;
}

/* ---- commit ---- */
static json_t *disk_json(const struct jdisk *d)
{
    json_t *o = json_pack("{s:s,s:s,s:I,s:o,s:s,s:s,s:I,s:I,s:I,s:I}", "name", d->name, "path", d->path, "size", (json_int_t)d->size, "root",
                          bp_ref_json(&d->root), "bookmark", d->bookmark, "kind", d->incremental ? "incremental" : "full", "read",
                          (json_int_t)d->st.read, "changed", (json_int_t)d->st.changed, "stored", (json_int_t)(d->st.stored + d->st.map), "deduped",
                          (json_int_t)d->st.deduped);
    if (o && d->cause[0])
        json_object_set_new(o, "cause", json_string(d->cause));
    return o;
}
static json_t *manifest(const struct job *j, double seconds)
{
    json_int_t read = 0, changed = 0, stored = 0, deduped = 0;
    const char *cause = NULL;
    json_t *disks = json_array();
    for (unsigned i = 0; i < j->n; i++) {
        const struct jdisk *d = &j->disk[i];
        read += (json_int_t)d->st.read;
        changed += (json_int_t)d->st.changed;
        stored += (json_int_t)(d->st.stored + d->st.map);
        deduped += (json_int_t)d->st.deduped;
        if (!d->incremental && !cause)
            cause = d->cause;
        json_array_append_new(disks, disk_json(d));
    }
    json_t *o = json_pack("{s:s,s:s,s:s,s:o,s:I,s:I,s:I,s:I,s:I,s:f}", "kind", cause ? "full" : "incremental", "consistency", j->consistency,
                          "transport", j->transport, "disks", disks, "read", read, "changed", changed, "stored", stored, "deduped", deduped,
                          "frozen-ms", (json_int_t)j->frozen_ms, "duration", seconds);
    if (o && cause)
        json_object_set_new(o, "cause", json_string(cause));
    if (o && j->crash_cause[0])
        json_object_set_new(o, "consistency-cause", json_string(j->crash_cause));
    if (o && j->parent.doc)
        json_object_set_new(o, "parent", json_string(j->parent.id));
    if (o && j->vm)
        json_object_set_new(o, "vm", json_pack("{s:s,s:s}", "name", j->vm, "config", j->config));
    return o;
}
static int commit(struct job *j, uint64_t began_ns, json_t **ret)
{
    char id[BP_POINT_ID_MAX];
    struct bp_catalogue *cat = NULL;
    json_t *doc = manifest(j, (double)(gr_loop_now_ns(j->env->loop) - began_ns) / 1e9);
    if (!doc)
        return gr_fail(j->err, -ENOMEM, "out of memory");
    const struct gr_world *w = gr_loop_world(j->env->loop);
    int r = bp_point_publish(j->repo, j->lease, j->name, w->wall_s(w->arg), doc, id, j->err);
    if (r == 0) {
        *ret = bp_point_summary(doc);
        json_object_set(*ret, "disks", json_object_get(doc, "disks"));
        json_object_del(*ret, "state");
        if (bp_catalogue_open(j->repo, &cat, NULL) == 0) /* a cache: the next listing would catch up */
            bp_catalogue_close(cat);
    }
    json_decref(doc);
    return r;
}

static int job_steps(struct job *j, json_t **ret)
{
    uint64_t began = gr_loop_now_ns(j->env->loop);
    int r = pick_transport(j);
    if (r == 0)
        r = open_repo(j);
    if (r == 0 && (r = bp_recover(j->env, j->repo, j->err)) > 0)
        r = 0;
    if (r == 0 && j->n == 0)
        r = find_disks(j);
    if (r == 0)
        r = bp_lease_take(j->repo, BP_LEASE_WRITER, "", &j->lease, j->err);
    if (r == 0)
        r = lock_name(j);
    if (r == 0)
        r = load_parent(j);
    if (r == 0)
        r = begin_intent(j);
    if (r == 0)
        r = take_snapshot(j);
    if (r == 0)
        r = look_at_snapshots(j);
    for (unsigned i = 0; r == 0 && i < j->n; i++)
        if ((r = plan_disk(j, &j->disk[i])) == 0)
            r = store_one(j, &j->disk[i]);
    if (r == 0 && j->env->cancel)
        r = gr_fail(j->err, -GR_ECANCELED, "ended by a signal");
    if (r == 0)
        r = commit(j, began, ret);
    return r;
}
static void job_done(struct job *j)
{
    for (unsigned i = 0; i < j->n; i++) {
        free(j->disk[i].path);
        free(j->disk[i].name);
        bp_ranges_done(&j->disk[i].ranges);
    }
    bp_point_done(&j->parent);
    if (j->name_lock >= 0)
        close(j->name_lock);
    bp_lease_drop(j->lease);
    bp_repo_close(j->repo);
    free(j->name);
    free(j->vm);
    free(j->config);
}
int bp_backup(struct bp_env *env, const struct bp_backup_spec *spec, json_t **ret, struct gr_err *err)
{
    struct gr_err local = {0}, drop = {0};
    gr_auto_free struct job *j = gr_zalloc(sizeof *j);
    json_t *result = NULL;
    if (!j)
        return gr_fail(err, -ENOMEM, "out of memory");
    j->env = env;
    j->spec = spec;
    j->name_lock = -1;
    j->err = err ? err : &local;
    int r = job_steps(j, &result);
    struct gr_err *kept = j->err;
    j->err = &drop;
    int dropped = drop_snapshots(j);
    if (dropped < 0 && env->warn)
        env->warn(env->arg, drop.text);
    if (j->intent && dropped == 0)
        (void)bp_intent_end(j->intent, NULL);
    else
        bp_intent_free(j->intent);
    j->err = kept;
    job_done(j);
    if (r < 0) {
        json_decref(result);
        return r;
    }
    *ret = result;
    return 0;
}
