#include "common/home.h"
#include "common/buf.h"
#include "common/cleanup.h"
#include "common/seam.h"
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>

#define DOC_MAX (64u << 20) /* bytes of one JSON document */

struct gr_home {
    char *dir; /* absolute, no trailing slash */
};

static char *absolute(const char *dir)
{
    if (dir[0] == '/')
        return gr_strdup(dir);
    gr_auto_free char *cwd = getcwd(NULL, 0);
    return cwd ? gr_asprintf("%s/%s", cwd, dir) : NULL;
}

int gr_home_open(int make, struct gr_home **ret, struct gr_err *err)
{
    static const char *const parts[] = {"", "conf", "state", "run", "run/vm", "log"};
    const char *env = getenv("GRANARY_HOME");
    gr_auto_free char *dir = absolute(env && env[0] ? env : "/var/lib/granary");
    if (!dir)
        return gr_fail(err, -ENOMEM, "GRANARY_HOME: out of memory");
    for (size_t n = strlen(dir); n > 1 && dir[n - 1] == '/'; n--)
        dir[n - 1] = 0;
    for (size_t i = 0; make && i < GR_ARRAY_LEN(parts); i++) {
        gr_auto_free char *p = gr_asprintf("%s/%s", dir, parts[i]);
        if (!p)
            return gr_fail(err, -ENOMEM, "GRANARY_HOME: out of memory");
        int r = gr_mkdirs(i == 0 ? dir : p, 0700, err);
        if (r < 0)
            return gr_prefix(err, r, "GRANARY_HOME");
    }
    struct gr_home *h = gr_zalloc(sizeof(*h));
    if (!h)
        return gr_fail(err, -ENOMEM, "GRANARY_HOME: out of memory");
    h->dir = gr_take(dir);
    *ret = h;
    return 0;
}

void gr_home_free(struct gr_home *h)
{
    if (!h)
        return;
    free(h->dir);
    free(h);
}

const char *gr_home_dir(const struct gr_home *h)
{
    return h->dir;
}

char *gr_home_path(const struct gr_home *h, const char *name)
{
    return gr_asprintf("%s/%s", h->dir, name);
}

int gr_home_load(struct gr_home *h, const char *name, json_t **ret, struct gr_err *err)
{
    gr_auto_free char *path = gr_home_path(h, name);
    gr_auto_buf struct gr_buf b = {0};
    if (!path)
        return gr_fail(err, -ENOMEM, "%s: out of memory", name);
    int r = gr_file_read(path, DOC_MAX, &b, err);
    json_t *doc = NULL;
    json_error_t je;
    if (r == -ENOENT)
        doc = json_object();
    else if (r < 0)
        return r;
    else if (!(doc = json_loadb(b.data, b.len, JSON_REJECT_DUPLICATES, &je)))
        return gr_fail(err, -GR_EFORMAT, "%s: line %d: %s", path, je.line, je.text);
    if (!doc)
        return gr_fail(err, -ENOMEM, "%s: out of memory", path);
    if (!json_is_object(doc)) {
        json_decref(doc);
        return gr_fail(err, -GR_EFORMAT, "%s: must hold one JSON object", path);
    }
    *ret = doc;
    return 0;
}

int gr_home_save(struct gr_home *h, const char *name, json_t *doc, struct gr_err *err)
{
    gr_auto_free char *path = gr_home_path(h, name);
    gr_auto_free char *text = json_dumps(doc, JSON_INDENT(2) | JSON_SORT_KEYS);
    gr_auto_buf struct gr_buf b = {0};
    if (!path || !text || gr_buf_add(&b, text, strlen(text)) < 0 || gr_buf_add(&b, "\n", 1) < 0)
        return gr_fail(err, -ENOMEM, "%s: out of memory", name);
    char *slash = strrchr(path, '/');
    *slash = 0;
    int r = gr_mkdirs(path, 0700, err);
    *slash = '/';
    return r < 0 ? r : gr_file_replace(path, b.data, b.len, 0600, err);
}

/* The identity is written under the lock of its own file, so that two first uses agree on one. */
static int make_host_uuid(struct gr_home *h, uint8_t ret[16], struct gr_err *err)
{
    char text[37];
    uint8_t uuid[16];
    gr_world_real()->random(NULL, uuid, sizeof(uuid));
    uuid[6] = (uint8_t)((uuid[6] & 0x0f) | 0x40);
    uuid[8] = (uint8_t)((uuid[8] & 0x3f) | 0x80);
    gr_uuid_format(uuid, text);
    json_t *doc = json_pack("{s:s}", "uuid", text);
    if (!doc)
        return gr_fail(err, -ENOMEM, "host identity: out of memory");
    int r = gr_home_save(h, "state/host.json", doc, err);
    json_decref(doc);
    if (r == 0)
        memcpy(ret, uuid, 16);
    return r;
}

static int lock_file(struct gr_home *h, const char *name, int wait, int *ret_fd, struct gr_err *err)
{
    gr_auto_free char *path = gr_home_path(h, name);
    if (!path)
        return gr_fail(err, -ENOMEM, "%s: out of memory", name);
    gr_auto_close int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0)
        return gr_fail(err, -errno, "%s: cannot open: %s", path, strerror(errno));
    struct flock fl = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    while (fcntl(fd, wait ? F_OFD_SETLKW : F_OFD_SETLK, &fl) < 0) {
        if (errno == EINTR)
            continue;
        if (errno == EAGAIN || errno == EACCES) {
            char pid[16] = "";
            ssize_t n = pread(fd, pid, sizeof(pid) - 1, 0);
            pid[n > 0 ? strspn(pid, "0123456789") : 0] = 0;
            return gr_fail(err, -GR_ELOCKED, "%s: in use by process %s", h->dir, pid[0] ? pid : "unknown");
        }
        return gr_fail(err, -errno, "%s: cannot lock: %s", path, strerror(errno));
    }
    *ret_fd = gr_take_fd(&fd);
    return 0;
}

int gr_home_host_uuid(struct gr_home *h, uint8_t ret[16], struct gr_err *err)
{
    gr_auto_close int lock = -1;
    int r = lock_file(h, "state/host.lock", 1, &lock, err);
    if (r < 0)
        return r;
    json_t *doc = NULL;
    r = gr_home_load(h, "state/host.json", &doc, err);
    if (r < 0)
        return r;
    const char *text = json_string_value(json_object_get(doc, "uuid"));
    if (json_object_size(doc) == 0)
        r = make_host_uuid(h, ret, err);
    else if (!text || gr_uuid_parse(text, ret) < 0)
        r = gr_fail(err, -GR_EFORMAT, "%s/state/host.json: no valid \"uuid\" in it", h->dir);
    json_decref(doc);
    return r;
}

int gr_home_lock(struct gr_home *h, int *ret_fd, struct gr_err *err)
{
    gr_auto_close int fd = -1;
    char pid[16];
    int r = lock_file(h, "run/storage.lock", 0, &fd, err);
    if (r < 0)
        return r;
    int n = snprintf(pid, sizeof(pid), "%d\n", (int)getpid());
    if (ftruncate(fd, 0) < 0 || pwrite(fd, pid, (size_t)n, 0) != n)
        return gr_fail(err, -errno, "%s/run/storage.lock: cannot write: %s", h->dir, strerror(errno));
    *ret_fd = gr_take_fd(&fd);
    return 0;
}

bool gr_home_queue_on(struct gr_home_queue *q, const struct gr_err *locked)
{
    q->same_ms = strcmp(q->before.text, locked->text) == 0 ? q->same_ms + GR_HOME_STEP_MS : 0;
    q->ms += GR_HOME_STEP_MS;
    q->before = *locked; /* its text names the process */
    return q->same_ms < 10000 && q->ms < 600000;
}
