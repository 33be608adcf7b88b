/* Leases: one locked file per working process. The lock ends with the process, so that a lease needs no clock. */
#include "backup-proxy/repo_dir.h"
#include "common/buf.h"
#include "common/cleanup.h"
#include "common/seam.h"
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

struct bp_lease {
    struct bp_repo *repo;
    int fd;
    char id[37];
};

static int lock_try(int fd)
{
    struct flock fl = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    return fcntl(fd, F_OFD_SETLK, &fl) < 0 ? -errno : 0;
}

int bp_lease_take(struct bp_repo *r, enum bp_lease_kind kind, const char *point, struct bp_lease **ret, struct gr_err *err)
{
    const struct gr_world *w = gr_world_real();
    uint8_t uuid[16];
    uint64_t epoch = 0;
    gr_auto_free struct bp_lease *l = gr_zalloc(sizeof *l);
    if (!l)
        return gr_fail(err, -ENOMEM, "out of memory");
    int rc = bp_repo_epoch(r, &epoch, err);
    if (rc < 0)
        return rc;
    w->random(w->arg, uuid, sizeof uuid);
    gr_uuid_format(uuid, l->id);
    gr_auto_free char *tmp = gr_asprintf("leases/.new-%s", l->id), *name = gr_asprintf("leases/%s", l->id);
    json_t *doc = json_pack("{s:s,s:I,s:s,s:i}", "kind", kind == BP_LEASE_WRITER ? "writer" : "reader", "epoch", (json_int_t)epoch, "point",
                            point, "pid", (int)getpid());
    gr_auto_free char *text = doc ? json_dumps(doc, JSON_COMPACT) : NULL;
    json_decref(doc);
    if (!tmp || !name || !text)
        return gr_fail(err, -ENOMEM, "out of memory");
    gr_auto_close int fd = openat(r->dir, tmp, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    rc = fd < 0 ? -errno : lock_try(fd);
    if (rc == 0)
        rc = gr_file_pwrite(fd, text, strlen(text), 0);
    if (rc == 0 && renameat(r->dir, tmp, r->dir, name) < 0) /* it appears locked and complete */
        rc = -errno;
    if (rc < 0) {
        (void)unlinkat(r->dir, tmp, 0);
        return gr_fail(err, rc, "%s: cannot take a lease: %s", r->path, gr_code_text(rc));
    }
    l->repo = r;
    l->fd = gr_take_fd(&fd);
    *ret = gr_take(l);
    return 0;
}
void bp_lease_drop(struct bp_lease *l)
{
    if (!l)
        return;
    gr_auto_free char *name = gr_asprintf("leases/%s", l->id);
    if (name)
        (void)unlinkat(l->repo->dir, name, 0);
    close(l->fd);
    free(l);
}
const char *bp_lease_id(const struct bp_lease *l)
{
    return l->id;
}

/* 1 living (and *ret filled), 0 dead or gone, negative code. */
static int lease_look(struct bp_repo *r, const char *id, struct bp_lease_info *ret, struct gr_err *err)
{
    char text[2048];
    gr_auto_free char *name = gr_asprintf("leases/%s", id);
    gr_auto_close int fd = name ? openat(r->dir, name, O_RDWR | O_CLOEXEC | O_NOFOLLOW) : -1;
    if (fd < 0)
        return errno == ENOENT ? 0 : gr_fail(err, -errno, "%s: cannot look at lease %s: %s", r->path, id, gr_code_text(-errno));
    if (lock_try(fd) == 0) {
        (void)unlinkat(r->dir, name, 0);
        return 0;
    }
    ssize_t n = pread(fd, text, sizeof text - 1, 0);
    json_t *doc = n > 0 ? json_loadb(text, (size_t)n, 0, NULL) : NULL;
    const char *kind = json_string_value(json_object_get(doc, "kind")), *point = json_string_value(json_object_get(doc, "point"));
    *ret = (struct bp_lease_info){.kind = BP_LEASE_WRITER, .epoch = 0}; /* unreadable: the one that holds back most */
    snprintf(ret->id, sizeof ret->id, "%s", id);
    if (kind && point && strlen(point) < sizeof ret->point) {
        ret->kind = strcmp(kind, "reader") ? BP_LEASE_WRITER : BP_LEASE_READER;
        ret->epoch = (uint64_t)json_integer_value(json_object_get(doc, "epoch"));
        memcpy(ret->point, point, strlen(point) + 1);
    }
    json_decref(doc);
    return 1;
}
int bp_lease_each(struct bp_repo *r, int (*fn)(void *arg, const struct bp_lease_info *info), void *arg, struct gr_err *err)
{
    int dfd = openat(r->dir, "leases", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    gr_auto_closedir DIR *d = dfd < 0 ? NULL : fdopendir(dfd);
    if (!d)
        return gr_fail(err, -errno, "%s/leases: cannot open: %s", r->path, gr_code_text(-errno));
    for (struct dirent *e; (e = readdir(d));) {
        struct bp_lease_info info;
        if (strlen(e->d_name) != 36)
            continue;
        int rc = lease_look(r, e->d_name, &info, err);
        if (rc > 0)
            rc = fn(arg, &info);
        if (rc < 0)
            return rc;
    }
    return 0;
}

static int lease_is(void *arg, const struct bp_lease_info *info)
{
    return strncmp(arg, info->id, 36) ? 0 : -EBUSY;
}
static int lease_pass(void *arg, const struct bp_lease_info *info)
{
    return 0;
}
/* Leases that died before they had their name. */
static void sweep_unborn(struct bp_repo *r)
{
    int dfd = openat(r->dir, "leases", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    gr_auto_closedir DIR *d = dfd < 0 ? NULL : fdopendir(dfd);
    for (struct dirent *e; d && (e = readdir(d));) {
        struct stat a, b;
        if (strncmp(e->d_name, ".new-", 5))
            continue;
        gr_auto_close int fd = openat(dfd, e->d_name, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
        if (fd < 0 || fstat(fd, &a) < 0 || time(NULL) - a.st_mtime < 60) /* one being born has no lock for an instant */
            continue;
        if (lock_try(fd) == 0 && fstatat(dfd, e->d_name, &b, AT_SYMLINK_NOFOLLOW) == 0 && a.st_ino == b.st_ino)
            (void)unlinkat(dfd, e->d_name, 0);
    }
}
int bp_repo_sweep(struct bp_repo *r, struct gr_err *err)
{
    int rc = bp_lease_each(r, lease_pass, NULL, err); /* removes the dead ones */
    if (rc < 0)
        return rc;
    sweep_unborn(r);
    int dfd = openat(r->dir, "tmp", O_RDONLY | O_DIRECTORY | O_CLOEXEC), removed = 0;
    gr_auto_closedir DIR *d = dfd < 0 ? NULL : fdopendir(dfd);
    if (!d)
        return gr_fail(err, -errno, "%s/tmp: cannot open: %s", r->path, gr_code_text(-errno));
    for (struct dirent *e; (e = readdir(d));) {
        if (strlen(e->d_name) < 37 || e->d_name[36] != '-')
            continue;
        rc = bp_lease_each(r, lease_is, e->d_name, err);
        if (rc == -EBUSY)
            continue;
        if (rc < 0)
            return rc;
        if (unlinkat(dfd, e->d_name, 0) == 0)
            removed++;
    }
    return removed;
}
