#include "backup-proxy/intent.h"
#include "common/buf.h"
#include "common/cleanup.h"
#include "common/seam.h"
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define RECORD_MAX (1u << 20)

struct bp_intent {
    char *path;
    char id[80];
    json_t *doc;
};

uint64_t bp_process_start(int pid)
{
    char path[64], text[1024];
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    gr_auto_close int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? 0 : read(fd, text, sizeof text - 1);
    if (n <= 0)
        return 0;
    text[n] = '\0';
    const char *p = strrchr(text, ')'); /* the name before it may hold anything */
    char state = 0;
    unsigned long long start = 0;
    if (!p || sscanf(p + 1, " %c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %llu", &state, &start) != 2)
        return 0;
    return state == 'Z' || state == 'X' ? 0 : start;
}

static bool alive(json_t *doc)
{
    char boot[37];
    gr_boot_id(boot);
    const char *b = json_string_value(json_object_get(doc, "boot"));
    json_int_t pid = json_integer_value(json_object_get(doc, "pid")), start = json_integer_value(json_object_get(doc, "start-time"));
    if (!b || strcmp(b, boot) != 0 || pid <= 0 || pid > INT32_MAX)
        return false;
    uint64_t now = bp_process_start((int)pid);
    return now != 0 && now == (uint64_t)start;
}

static int save(struct bp_intent *in, struct gr_err *err)
{
    char *text = json_dumps(in->doc, JSON_COMPACT);
    if (!text)
        return gr_fail(err, -ENOMEM, "%s: out of memory", in->path);
    int rc = gr_file_replace(in->path, text, strlen(text), 0600, err);
    free(text);
    return rc;
}

int bp_intent_begin(struct gr_home *home, const char *kind, json_t *detail, struct bp_intent **ret, struct gr_err *err)
{
    gr_auto_free char *dir = gr_home_path(home, "state/intents");
    uint8_t raw[16];
    char uuid[37], boot[40];
    gr_world_real()->random(gr_world_real()->arg, raw, sizeof raw);
    gr_uuid_format(raw, uuid);
    gr_boot_id(boot);
    struct bp_intent *in = gr_zalloc(sizeof *in);
    if (!dir || !in) {
        free(in);
        return gr_fail(err, -ENOMEM, "cannot record an intent: out of memory");
    }
    snprintf(in->id, sizeof in->id, "%.32s-%s", kind, uuid);
    in->path = gr_asprintf("%s/%s.json", dir, in->id);
    in->doc = json_pack("{s:s,s:s,s:i,s:I,s:s,s:I,s:O}", "kind", kind, "id", in->id, "pid", (int)getpid(), "start-time",
                        (json_int_t)bp_process_start((int)getpid()), "boot", boot, "began", (json_int_t)time(NULL), "detail", detail);
    int rc = in->path && in->doc ? gr_mkdirs(dir, 0700, err) : gr_fail(err, -ENOMEM, "cannot record an intent: out of memory");
    if (rc == 0)
        rc = save(in, err);
    if (rc < 0) {
        bp_intent_free(in);
        return rc;
    }
    *ret = in;
    return 0;
}

int bp_intent_update(struct bp_intent *in, json_t *detail, struct gr_err *err)
{
    if (json_object_set(in->doc, "detail", detail) < 0)
        return gr_fail(err, -ENOMEM, "%s: out of memory", in->path);
    return save(in, err);
}

json_t *bp_intent_detail(const struct bp_intent *in)
{
    return json_object_get(in->doc, "detail");
}

const char *bp_intent_id(const struct bp_intent *in)
{
    return in->id;
}

int bp_intent_end(struct bp_intent *in, struct gr_err *err)
{
    int rc = 0;
    if (unlink(in->path) < 0 && errno != ENOENT)
        rc = gr_fail(err, -errno, "cannot remove the record '%s': %s", in->path, gr_code_text(-errno));
    bp_intent_free(in);
    return rc;
}

void bp_intent_free(struct bp_intent *in)
{
    if (!in)
        return;
    json_decref(in->doc);
    free(in->path);
    free(in);
}

static bool id_ok(const char *id)
{
    return id[0] && strspn(id, "abcdefghijklmnopqrstuvwxyz0123456789-") == strlen(id);
}

int bp_intent_list(struct gr_home *home, const char *kind, json_t **ret, struct gr_err *err)
{
    gr_auto_free char *dir = gr_home_path(home, "state/intents");
    json_t *list = json_array();
    gr_auto_closedir DIR *d = dir ? opendir(dir) : NULL;
    if (!dir || !list) {
        json_decref(list);
        return gr_fail(err, -ENOMEM, "cannot list intents: out of memory");
    }
    if (!d && errno != ENOENT) {
        json_decref(list);
        return gr_fail(err, -errno, "cannot list '%s': %s", dir, gr_code_text(-errno));
    }
    for (struct dirent *e = d ? readdir(d) : NULL; e; e = readdir(d)) {
        size_t n = strlen(e->d_name);
        if (n < 6 || strcmp(e->d_name + n - 5, ".json") != 0)
            continue;
        gr_auto_free char *path = gr_asprintf("%s/%s", dir, e->d_name);
        gr_auto_buf struct gr_buf text = {0};
        json_t *doc = path && gr_file_read(path, RECORD_MAX, &text, NULL) >= 0 ? json_loadb(text.data, text.len, 0, NULL) : NULL;
        const char *k = json_string_value(json_object_get(doc, "kind")), *id = json_string_value(json_object_get(doc, "id"));
        bool mine = k && id && id_ok(id) && strlen(id) == n - 5 && memcmp(id, e->d_name, n - 5) == 0 && (!kind || strcmp(kind, k) == 0);
        if (mine && json_object_set_new(doc, "alive", json_boolean(alive(doc))) == 0)
            json_array_append(list, doc);
        json_decref(doc);
    }
    *ret = list;
    return 0;
}

int bp_intent_remove(struct gr_home *home, const char *id, struct gr_err *err)
{
    if (!id_ok(id))
        return gr_fail(err, -EINVAL, "'%s' is no intent", id);
    gr_auto_free char *dir = gr_home_path(home, "state/intents");
    gr_auto_free char *path = dir ? gr_asprintf("%s/%s.json", dir, id) : NULL;
    if (!path)
        return gr_fail(err, -ENOMEM, "out of memory");
    if (unlink(path) < 0 && errno != ENOENT)
        return gr_fail(err, -errno, "cannot remove '%s': %s", path, gr_code_text(-errno));
    return 0;
}
