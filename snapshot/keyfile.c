#include "snapshot/keyfile.h"
#include "common/b64.h"
#include "common/buf.h"
#include "common/cleanup.h"
#include "common/seam.h"
#include "vmfs/vmfs.h"
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define KEYS_DIR "conf/keys"
#define KEYS_DOC "conf/keys.json"

void snap_key_format(uint64_t id, char ret[SNAP_KEY_TEXT])
{
    snprintf(ret, SNAP_KEY_TEXT, "%016llx", (unsigned long long)id);
}

int snap_key_parse(const char *text, uint64_t *ret, struct gr_err *err)
{
    if (strlen(text) != SNAP_KEY_TEXT - 1 || strspn(text, "0123456789abcdef") != SNAP_KEY_TEXT - 1)
        return gr_fail(err, -GR_EUSAGE, "'%.40s' is not the number of a key: 16 digits and letters a to f, as granary key list shows them", text);
    *ret = strtoull(text, NULL, 16);
    return 0;
}

static char *path_of(const struct gr_home *home, uint64_t id)
{
    char name[SNAP_KEY_TEXT];
    snap_key_format(id, name);
    return gr_asprintf("%s/" KEYS_DIR "/%s.key", gr_home_dir(home), name);
}

static void forget(struct gr_buf *b)
{
    if (b->data)
        explicit_bzero(b->data, b->len);
}

static int key_read(const char *file, uint8_t ret[SNAP_KEY_BYTES], struct gr_err *err)
{
    gr_auto_buf struct gr_buf text = {0}, b = {0};
    int r = gr_secret_read(file, &text, err);
    if (r == 0 && (gr_b64_decode(text.data ? text.data : "", text.len, &b) < 0 || b.len != SNAP_KEY_BYTES))
        r = gr_fail(err, -GR_EFORMAT, "%s: not a key: it is one line of base64 that stands for %u bytes", file, SNAP_KEY_BYTES);
    if (r == 0)
        memcpy(ret, b.data, SNAP_KEY_BYTES);
    forget(&text);
    forget(&b);
    return r;
}

static int key_write(const char *file, const uint8_t key[SNAP_KEY_BYTES], struct gr_err *err)
{
    gr_auto_free char *b64 = gr_b64_encode(key, SNAP_KEY_BYTES);
    gr_auto_free char *text = b64 ? gr_asprintf("%s\n", b64) : NULL;
    int r = text ? gr_file_replace(file, text, strlen(text), 0600, err) : gr_fail(err, -ENOMEM, "%s: out of memory", file);
    if (b64)
        explicit_bzero(b64, strlen(b64));
    if (text)
        explicit_bzero(text, strlen(text));
    return r;
}

int snap_key_find(void *arg, uint64_t id, uint8_t ret[SNAP_KEY_BYTES])
{
    gr_auto_free char *path = path_of(arg, id);
    if (!path || key_read(path, ret, NULL) < 0)
        return -ENOKEY;
    if (vmfs_kek_id(ret) == id)
        return 0;
    explicit_bzero(ret, SNAP_KEY_BYTES); /* somebody renamed it */
    return -ENOKEY;
}

/* Into the home; the first one is that of new disks. */
static int key_add(struct gr_home *home, const uint8_t key[SNAP_KEY_BYTES], uint64_t *ret, struct gr_err *err)
{
    uint64_t id = vmfs_kek_id(key), current;
    gr_auto_free char *path = path_of(home, id), *dir = gr_home_path(home, KEYS_DIR);
    int r = path && dir ? gr_mkdirs(dir, 0700, err) : gr_fail(err, -ENOMEM, "out of memory");
    if (r == 0)
        r = key_write(path, key, err);
    if (r == 0 && snap_key_current(home, &current, NULL) == -ENOKEY)
        r = snap_key_use(home, id, err);
    if (r == 0)
        *ret = id;
    return r;
}

int snap_key_import(struct gr_home *home, const char *file, uint64_t *ret, struct gr_err *err)
{
    uint8_t key[SNAP_KEY_BYTES];
    int r = key_read(file, key, err);
    if (r == 0)
        r = key_add(home, key, ret, err);
    explicit_bzero(key, sizeof(key));
    return r;
}

int snap_key_make(struct gr_home *home, uint64_t *ret, struct gr_err *err)
{
    const struct gr_world *w = gr_world_real();
    uint8_t key[SNAP_KEY_BYTES];
    w->random(w->arg, key, sizeof(key));
    int r = key_add(home, key, ret, err);
    explicit_bzero(key, sizeof(key));
    return r;
}

static int key_get(struct gr_home *home, uint64_t id, uint8_t ret[SNAP_KEY_BYTES], struct gr_err *err)
{
    char name[SNAP_KEY_TEXT];
    snap_key_format(id, name);
    if (snap_key_find(home, id, ret) == 0)
        return 0;
    return gr_fail(err, -ENOKEY, "key %s is not here: granary key list shows those that are", name);
}

int snap_key_export(struct gr_home *home, uint64_t id, const char *file, struct gr_err *err)
{
    uint8_t key[SNAP_KEY_BYTES];
    int r = key_get(home, id, key, err);
    if (r < 0)
        return r;
    int fd = open(file, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600); /* it must not be there yet */
    if (fd < 0)
        r = gr_fail(err, -errno, "%s: %s", file, errno == EEXIST ? "exists already" : strerror(errno));
    else
        close(fd);
    if (r == 0 && (r = key_write(file, key, err)) < 0)
        unlink(file);
    explicit_bzero(key, sizeof(key));
    return r;
}

int snap_key_delete(struct gr_home *home, uint64_t id, struct gr_err *err)
{
    uint8_t key[SNAP_KEY_BYTES];
    gr_auto_free char *path = path_of(home, id);
    uint64_t current;
    int r = path ? key_get(home, id, key, err) : gr_fail(err, -ENOMEM, "out of memory");
    explicit_bzero(key, sizeof(key));
    if (r == 0 && snap_key_current(home, &current, NULL) == 0 && current == id)
        r = gr_fail(err, -EBUSY, "new disks get this key: granary key use names another");
    if (r < 0)
        return r;
    char zero[64] = "";
    gr_auto_close int fd = open(path, O_WRONLY | O_CLOEXEC | O_NOFOLLOW);
    bool gone = fd >= 0 && pwrite(fd, zero, sizeof(zero), 0) == sizeof(zero) && fsync(fd) == 0; /* as far as the file system writes in place */
    if (!gone || unlink(path) < 0)
        return gr_fail(err, -errno, "%s: %s", path, strerror(errno));
    r = gr_sync_parent(path);
    return r < 0 ? gr_fail(err, r, "%s: its removal is not durable: %s", path, gr_code_text(r)) : 0;
}

int snap_key_current(struct gr_home *home, uint64_t *ret, struct gr_err *err)
{
    json_t *doc = NULL;
    int r = gr_home_load(home, KEYS_DOC, &doc, err);
    const char *text = json_string_value(json_object_get(doc, "current"));
    if (r == 0)
        r = text ? snap_key_parse(text, ret, err) : gr_fail(err, -ENOKEY, "there is no key here: granary key create makes one, granary key import takes one of another host");
    json_decref(doc);
    return r;
}

int snap_key_use(struct gr_home *home, uint64_t id, struct gr_err *err)
{
    uint8_t key[SNAP_KEY_BYTES];
    char text[SNAP_KEY_TEXT];
    int r = key_get(home, id, key, err);
    explicit_bzero(key, sizeof(key));
    if (r < 0)
        return r;
    snap_key_format(id, text);
    json_t *doc = json_pack("{s:s}", "current", text);
    r = doc ? gr_home_save(home, KEYS_DOC, doc, err) : gr_fail(err, -ENOMEM, "out of memory");
    json_decref(doc);
    return r;
}

int snap_key_each(struct gr_home *home, int (*fn)(void *arg, uint64_t id, int64_t made_s), void *arg, struct gr_err *err)
{
    gr_auto_free char *dir = gr_home_path(home, KEYS_DIR);
    DIR *d = dir ? opendir(dir) : NULL;
    int r = 0;
    if (!d)
        return !dir || errno != ENOENT ? gr_fail(err, dir ? -errno : -ENOMEM, "%s: cannot be read", KEYS_DIR) : 0;
    for (struct dirent *e; r >= 0 && (e = readdir(d));) {
        char text[SNAP_KEY_TEXT];
        struct stat st;
        uint64_t id;
        if (strlen(e->d_name) != SNAP_KEY_TEXT - 1 + 4 || strcmp(e->d_name + SNAP_KEY_TEXT - 1, ".key") != 0)
            continue;
        memcpy(text, e->d_name, SNAP_KEY_TEXT - 1);
        text[SNAP_KEY_TEXT - 1] = 0;
        if (snap_key_parse(text, &id, NULL) == 0 && fstatat(dirfd(d), e->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0)
            r = fn(arg, id, (int64_t)st.st_mtim.tv_sec);
    }
    closedir(d);
    return r < 0 ? r : 0;
}
