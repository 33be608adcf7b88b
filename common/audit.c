#include "common/audit.h"
#include "common/buf.h"
#include "common/cleanup.h"
#include "common/log.h"
#include "common/seam.h"
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#define LOG "log/audit.log"
#define TEXT_MAX 512u           /* bytes of a text, */
#define LIST_MAX 32u            /* entries of a list, */
#define READ_MAX (64u << 20)    /* bytes of a log that are looked at */

int gr_audit_init(struct gr_audit *a, const struct gr_home *home, void (*warn)(void *arg, const char *text), void *arg, struct gr_err *err)
{
    *a = (struct gr_audit){.path = gr_home_path(home, LOG), .warn = warn, .arg = arg};
    return a->path ? 0 : gr_fail(err, -ENOMEM, "out of memory");
}

void gr_audit_done(struct gr_audit *a)
{
    free(gr_take(a->path));
}

/* ---- what a caller named ---- */
/* A text within bounds, cut between characters; a password has no place in the name of a LUN, but somebody may try. */
static json_t *text_of(json_t *v)
{
    const char *s = json_string_value(v);
    size_t n = GR_MIN(json_string_length(v), (size_t)TEXT_MAX);
    while (n > 0 && n < json_string_length(v) && ((unsigned char)s[n] & 0xc0) == 0x80)
        n--;
    const char *host = strstr(s, "://"), *at = host ? memchr(host, '@', strcspn(host + 3, "/") + 3) : NULL;
    if (!at || (size_t)(at - s) >= n)
        return json_stringn(s, n);
    gr_auto_free char *masked = gr_asprintf("%.*s***%.*s", (int)(host + 3 - s), s, (int)(n - (size_t)(at - s)), at);
    return masked ? json_string(masked) : NULL;
}

static json_t *list_of(json_t *v)
{
    json_t *list = json_array(), *e;
    size_t i;
    json_array_foreach(v, i, e)
    {
        if (i == LIST_MAX) {
            json_array_append_new(list, json_sprintf("and %zu more", json_array_size(v) - i));
            break;
        }
        if (json_is_string(e))
            json_array_append_new(list, text_of(e));
    }
    return list;
}

/* Only these: what is not known here may be a secret, or the content of a file. */
static json_t *named(json_t *params)
{
    static const char *const keys[] = {
        "name",     "disk",      "disks",      "devices", "device", "lun",  "file",     "path",      "from",      "to",       "snapshot",
        "bookmark", "host",      "portal",     "user",    "id",   "allow",    "deny",      "initiator", "uuid",     "size",
        "format",   "provision", "read-only",  "off",     "iops", "bandwidth", "burst-ms", "removable", "multipath", "force", "accept-loss", "rescue", "lost",
        "dry-run",  "action",  "shrink",   "encrypt", "key", "key-file", "wrap", "rewrite", "resume", "timing",    "one-host",   "socket",  "forwarded",
    };
    json_t *o = json_object();
    for (size_t i = 0; i < GR_ARRAY_LEN(keys); i++) {
        json_t *v = json_object_get(params, keys[i]);
        if (json_is_string(v))
            json_object_set_new(o, keys[i], text_of(v));
        else if (json_is_array(v))
            json_object_set_new(o, keys[i], list_of(v));
        else if (json_is_integer(v) || json_is_boolean(v))
            json_object_set(o, keys[i], v);
    }
    return o;
}

/* ---- writing ---- */
struct syncing {
    int fd;
    const char *path;
};
/* And its name: the log may have been made just now, by this line or by one that did not have to last. */
static int sync_log(void *arg)
{
    const struct syncing *s = arg;
    return fdatasync(s->fd) < 0 ? -errno : gr_sync_parent(s->path);
}

/* A line that was cut off (no space, a power cut) is ended first, so that it spoils nothing but itself. @lasting: it is on the disk. */
static int write_line(const char *path, struct gr_buf *line, bool lasting)
{
    gr_log_put_aside(path);
    struct stat st;
    char last = '\n';
    gr_auto_close int fd = open(path, O_RDWR | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600);
    if (fd < 0 || fstat(fd, &st) < 0)
        return -errno;
    if (!S_ISREG(st.st_mode))
        return -EINVAL;
    if (st.st_size > 0 && pread(fd, &last, 1, st.st_size - 1) < 0)
        return -errno;
    size_t skip = last == '\n';
    ssize_t n = write(fd, line->data + skip, line->len - skip);
    if (n < 0 || (size_t)n < line->len - skip)
        return n < 0 ? -errno : -ENOSPC;
    struct syncing s = {fd, path};
    return !lasting ? 0 : gr_fiber_self() ? gr_fiber_work(sync_log, &s) : sync_log(&s);
}

static json_t *line_of(const struct gr_rpc_seen *seen)
{
    char utc[32] = "";
    struct tm tm;
    int64_t now = gr_world_real()->wall_s(NULL);
    time_t when = (time_t)now;
    if (gmtime_r(&when, &tm))
        strftime(utc, sizeof(utc), "%Y-%m-%dT%H:%M:%SZ", &tm);
    json_t *o = json_pack("{s:s,s:I}", "utc", utc, "time", (json_int_t)now);
    if (seen->initiator) {
        json_object_set_new(o, "initiator", json_string(seen->initiator));
        json_object_set_new(o, "from", json_string(seen->from));
    } else if (seen->peer) {
        json_object_set_new(o, "host", json_string(seen->peer->host));
        json_object_set_new(o, "from", json_string(seen->peer->from));
    } else {
        json_object_set_new(o, "uid", json_integer((json_int_t)seen->uid));
        json_object_set_new(o, "pid", json_integer((json_int_t)seen->pid));
    }
    json_object_set_new(o, "method", json_string(seen->method));
    json_object_set_new(o, "named", named(seen->params));
    if (seen->number)
        json_object_set_new(o, "call", json_sprintf("%016llx", (unsigned long long)seen->number));
    json_object_set_new(o, "result", json_string(seen->begins ? "begun" : seen->result < 0 ? gr_code_name(seen->result) : "ok"));
    json_object_set_new(o, "seconds", seen->begins ? json_null() : json_real((double)(seen->ns / 1000) / 1e6));
    return o;
}

void gr_audit_line(struct gr_audit *a, const struct gr_rpc_seen *seen)
{
    gr_auto_buf struct gr_buf line = {0};
    json_t *o = line_of(seen);
    gr_auto_free char *text = json_dumps(o, JSON_COMPACT | JSON_ENSURE_ASCII | JSON_REAL_PRECISION(6));
    json_decref(o);
    int r = text ? gr_buf_printf(&line, "\n%s\n", text) : -ENOMEM;
    if (r == 0)
        r = write_line(a->path, &line, seen->begins);
    gr_auto_free char *why = r < 0 && a->warn ? gr_asprintf("%s: no line could be left of %s: %s; the command went on", a->path, seen->method, gr_code_text(r)) : NULL;
    if (why)
        a->warn(a->arg, why);
}

static void witness(void *arg, const struct gr_rpc_seen *seen)
{
    gr_audit_line(arg, seen);
}

void gr_audit_watch(struct gr_audit *a, struct gr_rpc_server *s)
{
    gr_rpc_server_witness(s, witness, a);
}

void gr_audit_own(const struct gr_home *home, const char *method, json_t *params, int result, uint64_t ns, void (*warn)(void *arg, const char *text))
{
    struct gr_audit a;
    const struct gr_rpc_seen seen = {.method = method, .params = params, .pid = getpid(), .uid = getuid(), .result = result, .ns = ns};
    if (gr_audit_init(&a, home, warn, NULL, NULL) < 0)
        return;
    gr_audit_line(&a, &seen);
    gr_audit_done(&a);
}

/* ---- reading ---- */
struct reading {
    int64_t since;
    int (*fn)(void *arg, json_t *line);
    void *arg;
    int bad;
};

static int read_lines(struct reading *rd, const char *path, struct gr_err *err)
{
    gr_auto_buf struct gr_buf text = {0};
    int r = gr_file_read(path, READ_MAX, &text, err);
    if (r < 0)
        return r == -ENOENT ? 0 : r;
    const char *p = text.data, *end = text.data + text.len;
    for (const char *next; r >= 0 && p < end; p = next) {
        const char *nl = memchr(p, '\n', (size_t)(end - p));
        next = nl ? nl + 1 : end;
        size_t n = (size_t)(next - p) - (nl != NULL);
        json_t *line = n ? json_loadb(p, n, 0, NULL) : NULL;
        const json_t *time = json_object_get(line, "time");
        if (n && !json_is_integer(time))
            rd->bad++;
        else if (n && json_integer_value(time) >= rd->since)
            r = rd->fn(rd->arg, line);
        json_decref(line);
    }
    return r;
}

int gr_audit_read(const struct gr_home *home, int64_t since, int (*fn)(void *arg, json_t *line), void *arg, struct gr_err *err)
{
    struct reading rd = {.since = since, .fn = fn, .arg = arg};
    gr_auto_free char *path = gr_home_path(home, LOG), *old = gr_home_path(home, LOG ".old");
    if (!path || !old)
        return gr_fail(err, -ENOMEM, "out of memory");
    int r = read_lines(&rd, old, err);
    if (r >= 0)
        r = read_lines(&rd, path, err);
    return r < 0 ? r : rd.bad;
}
