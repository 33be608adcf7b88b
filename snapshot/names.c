/* Names as people write them: DATASTORE/PATH[@SNAPSHOT]. */
#include "common/buf.h"
#include "snapshot/service.h"
#include <ctype.h>
#include <string.h>

int snap_datastore_name_check(const char *name, struct gr_err *err)
{
    size_t n = strlen(name);
    if (n == 0)
        return gr_fail(err, -GR_EUSAGE, "a datastore's name must not be empty");
    if (n > VMFS_VOLUME_NAME_MAX)
        return gr_fail(err, -GR_EUSAGE, "a datastore's name of %zu bytes: at most %d are allowed", n, VMFS_VOLUME_NAME_MAX);
    if (name[0] == '.' || name[0] == '-')
        return gr_fail(err, -GR_EUSAGE, "datastore name '%s' must not start with '%c'", name, name[0]);
    for (size_t i = 0; i < n; i++)
        if (!isalnum((unsigned char)name[i]) && !strchr("._-", name[i]))
            return gr_fail(err, -GR_EUSAGE, "datastore name '%s': only letters, digits, '.', '_' and '-' are allowed",
                           gr_utf8_ok(name, n) ? name : "(not printable)");
    return 0;
}

/* The beginning of @text for a message, never cut in the middle of a character. */
struct shown {
    char s[104];
};
static struct shown shorten(const char *text)
{
    struct shown r = {{0}};
    size_t n = strlen(text), keep = n < 100 ? n : 97;
    while (keep < n && keep > 0 && ((unsigned char)text[keep] & 0xc0) == 0x80)
        keep--;
    memcpy(r.s, text, keep);
    if (keep < n)
        memcpy(r.s + keep, "\xe2\x80\xa6", 4);
    return r;
}

/* One component or snapshot name of @len bytes; @what says which in the message. */
static int component_check(const char *what, const char *s, size_t len, struct gr_err *err)
{
    int shown = (int)(len < 60 ? len : 60);
    if (len == 0)
        return gr_fail(err, -GR_EUSAGE, "%s: empty", what);
    if (!gr_utf8_ok(s, len))
        return gr_fail(err, -GR_EUSAGE, "%s: not UTF-8, or with a control character", what);
    while (shown < (int)len && shown > 0 && ((unsigned char)s[shown] & 0xc0) == 0x80)
        shown--; /* do not cut a character in two */
    if (len > VMFS_NAME_MAX)
        return gr_fail(err, -GR_EUSAGE, "%s '%.*s…': %zu bytes; at most %d are allowed", what, shown, s, len, VMFS_NAME_MAX);
    if ((len == 1 && s[0] == '.') || (len == 2 && s[0] == '.' && s[1] == '.'))
        return gr_fail(err, -GR_EUSAGE, "%s '%.*s' is not allowed", what, (int)len, s);
    for (size_t i = 0; i < len; i++)
        if (s[i] == '/' || s[i] == '@' || s[i] == ':')
            return gr_fail(err, -GR_EUSAGE, "%s '%.*s' must not contain '%c'", what, shown, s, s[i]);
    return 0;
}

int snap_name_check(const char *name, struct gr_err *err)
{
    int r = component_check("snapshot name", name, strlen(name), err);
    if (r == 0 && strncmp(name, "granary.", 8) == 0)
        r = gr_fail(err, -GR_EUSAGE, "snapshot name '%s': names that start with 'granary.' are Granary's own", shorten(name).s);
    if (r == 0 && strcmp(name, SNAP_TEMPLATE) == 0)
        r = gr_fail(err, -GR_EUSAGE, "snapshot name '%s': it is what clones of a template start at (granary disk set --template)", name);
    return r;
}

static int components_check(const char *text, const char *path, size_t len, struct gr_err *err)
{
    for (size_t i = 0; i < len;) {
        const char *slash = memchr(path + i, '/', len - i);
        size_t n = slash ? (size_t)(slash - path) - i : len - i;
        int r = component_check("name", path + i, n, err);
        if (r < 0)
            return gr_prefix(err, r, "'%s'", shorten(text).s);
        i += n + 1;
        if (slash && i == len)
            return gr_fail(err, -GR_EUSAGE, "'%s' must not end with '/'", shorten(text).s);
    }
    return 0;
}

int snap_path_parse(const char *text, enum snap_path_kind kind, struct snap_path *ret, struct gr_err *err)
{
    static const char *const forms[] = {"DATASTORE/PATH", "DATASTORE/PATH@SNAPSHOT", "DATASTORE/PATH[@SNAPSHOT]", "DATASTORE[/PATH]"};
    const char *slash = strchr(text, '/');
    const char *at = strchr(text, '@');
    const char *path = slash ? slash + 1 : "";
    size_t ds_len = slash ? (size_t)(slash - text) : strlen(text);
    size_t path_len = at && at > path ? (size_t)(at - path) : strlen(path);
    struct snap_path p = {0};
    if (!gr_utf8_ok(text, strlen(text)))
        return gr_fail(err, -GR_EUSAGE, "the name given is not UTF-8 or has a control character in it (%s is wanted)", forms[kind]);
    if (kind != SNAP_PATH_DIR && (!slash || path_len == 0))
        return gr_fail(err, -GR_EUSAGE, "'%s' names no disk: write %s", shorten(text).s, forms[kind]);
    if (at && (kind == SNAP_PATH_DISK || kind == SNAP_PATH_DIR))
        return gr_fail(err, -GR_EUSAGE, "'%s': no snapshot ('@') can be named here, write %s", shorten(text).s, forms[kind]);
    if (!at && kind == SNAP_PATH_SNAPSHOT)
        return gr_fail(err, -GR_EUSAGE, "'%s' names no snapshot: write %s", shorten(text).s, forms[kind]);
    if (ds_len >= sizeof(p.ds))
        return gr_fail(err, -GR_EUSAGE, "'%s': the datastore's name is longer than %d bytes", shorten(text).s, VMFS_VOLUME_NAME_MAX);
    memcpy(p.ds, text, ds_len);
    int r = snap_datastore_name_check(p.ds, err);
    if (r < 0)
        return r;
    if (path_len > VMFS_PATH_MAX)
        return gr_fail(err, -GR_EUSAGE, "'%s': a path of %zu bytes; at most %d are allowed", shorten(text).s, path_len, VMFS_PATH_MAX);
    memcpy(p.path, path, path_len);
    if (strncmp(p.path, "granary.", 8) == 0)
        return gr_fail(err, -GR_EUSAGE, "'%s': names that start with 'granary.' are Granary's own", shorten(text).s);
    r = components_check(text, path, path_len, err);
    if (r < 0)
        return r;
    if (at) {
        r = component_check("snapshot name", at + 1, strlen(at + 1), err);
        if (r < 0)
            return gr_prefix(err, r, "'%s'", shorten(text).s);
        memcpy(p.snap, at + 1, strlen(at + 1));
    }
    *ret = p;
    return 0;
}
