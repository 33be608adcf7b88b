#include "backup-proxy/vm_config.h"
#include "common/cleanup.h"
#include "common/seam.h"
#include <stdbool.h>
#include <string.h>
#include <strings.h>

/* Bounds of key and quoted value in the line at @line of @len bytes; false for comments, blanks and other lines. */
static bool line_parse(const char *line, size_t len, size_t *key_at, size_t *key_len, size_t *val_at, size_t *val_len)
{
    size_t i = 0;
    while (i < len && (line[i] == ' ' || line[i] == '\t'))
        i++;
    *key_at = i;
    while (i < len && line[i] != '=' && line[i] != ' ' && line[i] != '\t' && line[i] != '#')
        i++;
    *key_len = i - *key_at;
    while (i < len && (line[i] == ' ' || line[i] == '\t'))
        i++;
    if (*key_len == 0 || i == len || line[i] != '=')
        return false;
    const char *open = memchr(line + i, '"', len - i);
    if (!open)
        return false;
    *val_at = (size_t)(open + 1 - line);
    const char *end = memchr(open + 1, '"', len - *val_at);
    if (!end)
        return false;
    *val_len = (size_t)(end - (open + 1));
    return true;
}
static bool key_is(const char *line, size_t at, size_t len, const char *key)
{
    return strlen(key) == len && !strncasecmp(line + at, key, len);
}
/* "|XX" stands for a byte. */
static char *decode(const char *p, size_t len)
{
    char *out = gr_alloc(len + 1), *o = out;
    for (size_t i = 0; out && i < len; i++) {
        unsigned v;
        if (p[i] == '|' && len - i > 2 && sscanf(p + i + 1, "%2x", &v) == 1 && v) {
            *o++ = (char)v;
            i += 2;
        } else {
            *o++ = p[i];
        }
    }
    if (out)
        *o = 0;
    return out;
}
char *bp_vm_config_get(const char *text, const char *key)
{
    for (const char *l = text; *l;) {
        size_t len = strcspn(l, "\n"), k, kn, v, vn;
        if (line_parse(l, len, &k, &kn, &v, &vn) && key_is(l, k, kn, key))
            return decode(l + v, vn);
        l += len + (l[len] == '\n');
    }
    return NULL;
}
static int put_pair(struct gr_buf *b, const char *key, const char *value)
{
    int r = gr_buf_printf(b, "%s = \"", key);
    for (const unsigned char *c = (const unsigned char *)value; *c && r >= 0; c++)
        r = *c == '"' || *c == '|' || *c < 0x20 || *c == 0x7f ? gr_buf_printf(b, "|%02X", *c) : gr_buf_add(b, c, 1);
    return r < 0 ? r : gr_buf_printf(b, "\"\n");
}
int bp_vm_config_set(const char *text, const char *key, const char *value, struct gr_buf *ret)
{
    bool done = value == NULL;
    int r = 0;
    for (const char *l = text; *l && r >= 0;) {
        size_t len = strcspn(l, "\n"), k, kn, v, vn;
        if (!line_parse(l, len, &k, &kn, &v, &vn) || !key_is(l, k, kn, key)) {
            r = gr_buf_add(ret, l, len);
            if (r >= 0)
                r = gr_buf_add(ret, "\n", 1);
        } else if (!done) {
            r = put_pair(ret, key, value);
            done = true;
        }
        l += len + (l[len] == '\n');
    }
    return r < 0 || done ? r : put_pair(ret, key, value);
}
char *bp_vm_config_file(const char *vm)
{
    const char *slash = strrchr(vm, '/');
    return gr_asprintf("%s/%s.vmx", vm, slash ? slash + 1 : vm);
}
