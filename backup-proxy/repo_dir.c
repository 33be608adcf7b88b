/* The directory of a repository: make, open, small files. */
#include "backup-proxy/repo_dir.h"
#include "common/buf.h"
#include "common/cleanup.h"
#include "common/crc.h"
#include "common/seam.h"
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <string.h>
#include <sys/stat.h>

static const char stamp_name[] = "granary-repository";
static const char *const parts[] = {"packs", "tmp", "points", "removed", "leases", "condemned", "index"};

int bp_repo_sync_dir(struct bp_repo *r, const char *dir, struct gr_err *err)
{
    gr_auto_close int fd = openat(r->dir, dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || fsync(fd) < 0)
        return gr_fail(err, -errno, "%s/%s: cannot sync the directory: %s", r->path, dir, gr_code_text(-errno));
    return 0;
}

static int dir_is_empty(const char *path, struct gr_err *err)
{
    gr_auto_closedir DIR *d = opendir(path);
    if (!d)
        return gr_fail(err, -errno, "%s: cannot open the directory: %s", path, gr_code_text(-errno));
    for (struct dirent *e; (e = readdir(d));)
        if (strcmp(e->d_name, ".") && strcmp(e->d_name, ".."))
            return gr_fail(err, -ENOTEMPTY, "%s: holds '%s' and is no repository; give an empty or new directory", path, e->d_name);
    return 0;
}

int bp_repo_create(const char *path, struct gr_err *err)
{
    uint8_t uuid[16];
    char text[37];
    const struct gr_world *w = gr_world_real();
    int r = gr_mkdirs(path, 0700, err);
    if (r == 0)
        r = dir_is_empty(path, err);
    if (r < 0)
        return r;
    for (unsigned i = 0; i < GR_ARRAY_LEN(parts); i++) {
        gr_auto_free char *p = gr_asprintf("%s/%s", path, parts[i]);
        if (!p || mkdir(p, 0700) < 0)
            return gr_fail(err, p ? -errno : -ENOMEM, "%s: cannot make the directory %s: %s", path, parts[i], gr_code_text(-errno));
    }
    w->random(w->arg, uuid, sizeof uuid);
    gr_uuid_format(uuid, text);
    gr_auto_free char *doc = gr_asprintf("{\"format\":\"granary-repository\",\"version\":%u,\"uuid\":\"%s\",\"created\":%lld}\n", REPO_VERSION,
                                         text, (long long)w->wall_s(w->arg));
    gr_auto_free char *file = gr_asprintf("%s/%s", path, stamp_name);
    if (!doc || !file)
        return gr_fail(err, -ENOMEM, "out of memory");
    return gr_file_replace(file, doc, strlen(doc), 0600, err); /* last: without it the directory is no repository */
}

static int stamp_read(struct bp_repo *r, struct gr_err *err)
{
    gr_auto_free char *file = gr_asprintf("%s/%s", r->path, stamp_name);
    gr_auto_buf struct gr_buf b = {0};
    if (!file)
        return gr_fail(err, -ENOMEM, "out of memory");
    if (access(file, F_OK) < 0)
        return gr_fail(err, errno == ENOENT ? -GR_EFORMAT : -errno, "%s: is no granary repository", r->path);
    int rc = gr_file_read(file, 4096, &b, err);
    if (rc < 0)
        return rc;
    json_t *doc = json_loadb(b.data, b.len, JSON_REJECT_DUPLICATES, NULL);
    const char *format = json_string_value(json_object_get(doc, "format")), *uuid = json_string_value(json_object_get(doc, "uuid"));
    json_int_t version = json_integer_value(json_object_get(doc, "version"));
    if (!format || strcmp(format, "granary-repository") || !uuid || gr_uuid_parse(uuid, r->uuid) < 0)
        rc = gr_fail(err, -GR_ECORRUPT, "%s: is damaged", file);
    else if (version != REPO_VERSION)
        rc = gr_fail(err, -GR_EVERSION, "%s: repository of version %lld, this build knows %u", r->path, (long long)version, REPO_VERSION);
    json_decref(doc);
    return rc;
}

int bp_repo_open(const char *path, struct bp_repo **ret, struct gr_err *err)
{
    struct bp_repo *r = gr_zalloc(sizeof *r);
    if (!r)
        return gr_fail(err, -ENOMEM, "out of memory");
    pthread_mutex_init(&r->lock, NULL);
    r->index_fd = -1;
    for (unsigned i = 0; i < REPO_FDS; i++)
        r->fds[i].fd = -1;
    r->dir = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int rc = r->dir < 0 ? gr_fail(err, -errno, "%s: cannot open the repository: %s", path, gr_code_text(-errno)) : 0;
    if (rc == 0 && !(r->path = realpath(path, NULL)))
        rc = gr_fail(err, -errno, "%s: cannot open the repository: %s", path, gr_code_text(-errno));
    if (rc == 0)
        rc = stamp_read(r, err);
    if (rc == 0)
        repo_index_open(r);
    if (rc < 0) {
        bp_repo_close(r);
        return rc;
    }
    *ret = r;
    return 0;
}
void bp_repo_close(struct bp_repo *r)
{
    if (!r)
        return;
    for (unsigned i = 0; i < REPO_FDS; i++)
        if (r->fds[i].fd >= 0)
            close(r->fds[i].fd);
    repo_index_close(r);
    if (r->dir >= 0)
        close(r->dir);
    pthread_mutex_destroy(&r->lock);
    free(r->path);
    free(r);
}
const char *bp_repo_path(const struct bp_repo *r)
{
    return r->path;
}
const uint8_t *bp_repo_uuid(const struct bp_repo *r)
{
    return r->uuid;
}
int bp_repo_dirfd(const struct bp_repo *r)
{
    return r->dir;
}

int bp_repo_publish(struct bp_repo *r, const char *lease_id, const char *path, const void *data, size_t len, struct gr_err *err)
{
    const char *slash = strrchr(path, '/');
    gr_auto_free char *dir = slash ? strndup(path, (size_t)(slash - path)) : strdup(".");
    gr_auto_free char *tmp = gr_asprintf("tmp/%s-%s.new", lease_id, slash ? slash + 1 : path);
    if (!dir || !tmp)
        return gr_fail(err, -ENOMEM, "out of memory");
    gr_auto_close int fd = openat(r->dir, tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    int rc = fd < 0 ? -errno : gr_file_pwrite(fd, data, len, 0);
    if (rc == 0 && fsync(fd) < 0)
        rc = -errno;
    if (rc == 0 && renameat2(r->dir, tmp, r->dir, path, RENAME_NOREPLACE) < 0)
        rc = -errno;
    if (rc < 0) {
        (void)unlinkat(r->dir, tmp, 0);
        return gr_fail(err, rc, "%s/%s: cannot write: %s", r->path, path, gr_code_text(rc));
    }
    return bp_repo_sync_dir(r, dir, err);
}

int bp_repo_epoch(struct bp_repo *r, uint64_t *ret, struct gr_err *err)
{
    gr_auto_free char *file = gr_asprintf("%s/epoch", r->path);
    gr_auto_buf struct gr_buf b = {0};
    if (!file)
        return gr_fail(err, -ENOMEM, "out of memory");
    if (access(file, F_OK) < 0 && errno == ENOENT) {
        *ret = 1;
        return 0;
    }
    int rc = gr_file_read(file, 64, &b, err);
    if (rc < 0)
        return rc;
    char *nl = b.data ? strchr(b.data, '\n') : NULL;
    if (nl)
        *nl = 0;
    rc = gr_parse_u64(b.data ? b.data : "", 1, UINT64_MAX / 2, ret, err);
    return rc < 0 ? gr_fail(err, -GR_ECORRUPT, "%s: is damaged", file) : 0;
}
int bp_repo_epoch_set(struct bp_repo *r, uint64_t epoch, struct gr_err *err)
{
    char text[32];
    gr_auto_free char *file = gr_asprintf("%s/epoch", r->path);
    int n = snprintf(text, sizeof text, "%" PRIu64 "\n", epoch);
    return file ? gr_file_replace(file, text, (size_t)n, 0600, err) : gr_fail(err, -ENOMEM, "out of memory");
}
