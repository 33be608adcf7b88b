#include "hv/vmx.h"
#include "common/cleanup.h"
#include "common/seam.h"
#include <ctype.h>
#include <string.h>
#include <strings.h>

static bool is_key_char(char c)
{
    return c && (isalnum((unsigned char)c) || strchr("._:-", c));
}

static bool key_ok(const char *key)
{
    size_t n = 0;
    while (is_key_char(key[n]))
        n++;
    return n > 0 && n <= HV_VMX_KEY && !key[n];
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c = (char)tolower((unsigned char)c);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* The value between the quotes, [p, end), with |XX undone; new memory in *ret. */
static int unescape(const char *p, const char *end, unsigned line, char **ret, struct gr_err *err)
{
    gr_auto_free char *out = gr_alloc((size_t)(end - p) + 1);
    size_t n = 0;
    if (!out)
        return gr_fail(err, -ENOMEM, "out of memory");
    while (p < end) {
        int c = (unsigned char)*p++;
        if (c == '|') {
            int hi = end - p >= 2 ? hex_digit(p[0]) : -1, lo = end - p >= 2 ? hex_digit(p[1]) : -1;
            if (hi < 0 || lo < 0)
                return gr_fail(err, -GR_EFORMAT, "line %u: '|' must be followed by two hexadecimal digits", line);
            c = hi << 4 | lo;
            p += 2;
            if (!c)
                return gr_fail(err, -GR_EFORMAT, "line %u: |00 is not allowed in a value", line);
        }
        out[n++] = (char)c;
    }
    out[n] = 0;
    /* ASCII controls may stand in a value, for they are written escaped again; all else must be text */
    gr_auto_free char *text = gr_strdup(out);
    if (!text)
        return gr_fail(err, -ENOMEM, "out of memory");
    for (char *c = text; *c; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f)
            *c = ' ';
    if (!gr_utf8_ok(text, n))
        return gr_fail(err, -GR_EFORMAT, "line %u: the value is not UTF-8 when its |XX are read", line);
    *ret = gr_take(out);
    return 0;
}

/* One line, [p, end): 0 with *ret_key NULL for a blank or comment. */
static int parse_line(const char *p, const char *end, unsigned line, char **ret_key, char **ret_value, struct gr_err *err)
{
    while (end > p && (end[-1] == ' ' || end[-1] == '\t' || end[-1] == '\r'))
        end--;
    while (p < end && (*p == ' ' || *p == '\t'))
        p++;
    if (p == end || *p == '#')
        return 0;
    if (!gr_utf8_ok(p, (size_t)(end - p)) && !memchr(p, '\t', (size_t)(end - p)))
        return gr_fail(err, -GR_EFORMAT, "line %u: holds control characters or bytes that are not UTF-8", line);
    const char *key = p;
    while (p < end && is_key_char(*p))
        p++;
    size_t key_len = (size_t)(p - key);
    while (p < end && (*p == ' ' || *p == '\t'))
        p++;
    if (!key_len || p == end || *p != '=')
        return gr_fail(err, -GR_EFORMAT, "line %u: expected key = \"value\"", line);
    if (key_len > HV_VMX_KEY)
        return gr_fail(err, -GR_EFORMAT, "line %u: a key of %zu characters, the longest allowed is %u", line, key_len, HV_VMX_KEY);
    for (p++; p < end && (*p == ' ' || *p == '\t'); p++)
        ;
    if (end - p < 2 || *p != '"' || end[-1] != '"')
        return gr_fail(err, -GR_EFORMAT, "line %u: the value of %.*s is not in double quotes", line, (int)key_len, key);
    if (memchr(p + 1, '"', (size_t)(end - p - 2)))
        return gr_fail(err, -GR_EFORMAT, "line %u: a double quote inside the value of %.*s must be written |22", line, (int)key_len, key);
    if (!gr_utf8_ok(p, (size_t)(end - p)))
        return gr_fail(err, -GR_EFORMAT, "line %u: the value of %.*s holds control characters or bytes that are not UTF-8", line, (int)key_len, key);
    gr_auto_free char *k = gr_asprintf("%.*s", (int)key_len, key);
    if (!k)
        return gr_fail(err, -ENOMEM, "out of memory");
    int r = unescape(p + 1, end - 1, line, ret_value, err);
    if (r >= 0)
        *ret_key = gr_take(k);
    return r;
}

static struct hv_vmx_pair *find(const struct hv_vmx *v, const char *key)
{
    for (size_t i = 0; i < v->count; i++)
        if (!strcasecmp(v->pairs[i].key, key))
            return &v->pairs[i];
    return NULL;
}

/* Append a pair, taking both strings on success. */
static int append(struct hv_vmx *v, char *key, char *value)
{
    struct hv_vmx_pair *more = gr_realloc(v->pairs, (v->count + 1) * sizeof *more);
    if (!more)
        return -ENOMEM;
    v->pairs = more;
    v->pairs[v->count++] = (struct hv_vmx_pair){key, value};
    return 0;
}

int hv_vmx_parse(const char *text, size_t len, struct hv_vmx *ret, struct gr_err *err)
{
    gr_auto(hv_vmx_done) struct hv_vmx v = {0};
    if (len > HV_VMX_MAX)
        return gr_fail(err, -GR_EFORMAT, "a configuration of %zu bytes, the largest allowed is %u", len, HV_VMX_MAX);
    const char *p = text, *end = text + len;
    for (unsigned line = 1; p < end; line++) {
        const char *nl = memchr(p, '\n', (size_t)(end - p)), *line_end = nl ? nl : end;
        gr_auto_free char *key = NULL, *value = NULL;
        int r = parse_line(p, line_end, line, &key, &value, err);
        if (r < 0)
            return r;
        if (key) {
            if (find(&v, key))
                return gr_fail(err, -GR_EFORMAT, "line %u: %s is given twice", line, key);
            if (v.count == HV_VMX_KEYS)
                return gr_fail(err, -GR_EFORMAT, "line %u: more than %u keys", line, HV_VMX_KEYS);
            if (append(&v, key, value) < 0)
                return gr_fail(err, -ENOMEM, "out of memory");
            key = value = NULL;
        }
        p = nl ? nl + 1 : end;
    }
    *ret = v;
    v = (struct hv_vmx){0};
    return 0;
}

const char *hv_vmx_get(const struct hv_vmx *v, const char *key)
{
    const struct hv_vmx_pair *p = find(v, key);
    return p ? p->value : NULL;
}

int hv_vmx_set(struct hv_vmx *v, const char *key, const char *value)
{
    if (!key_ok(key))
        return -EINVAL;
    struct hv_vmx_pair *p = find(v, key);
    if (!value) {
        if (p) {
            free(p->key);
            free(p->value);
            memmove(p, p + 1, (size_t)(v->pairs + v->count - p - 1) * sizeof *p);
            v->count--;
        }
        return 0;
    }
    gr_auto_free char *copy = gr_strdup(value);
    if (!copy)
        return -ENOMEM;
    if (p) {
        free(p->value);
        p->value = gr_take(copy);
        return 0;
    }
    gr_auto_free char *k = gr_strdup(key);
    if (!k)
        return -ENOMEM;
    if (v->count == HV_VMX_KEYS)
        return -ENOSPC;
    int r = append(v, k, copy);
    if (r >= 0)
        k = copy = NULL;
    return r;
}

int hv_vmx_format(const struct hv_vmx *v, struct gr_buf *ret)
{
    int r = 0;
    for (size_t i = 0; r >= 0 && i < v->count; i++) {
        r = gr_buf_printf(ret, "%s = \"", v->pairs[i].key);
        for (const char *p = v->pairs[i].value; r >= 0 && *p; p++) {
            unsigned char c = (unsigned char)*p;
            if (c == '"' || c == '|' || c < 0x20 || c == 0x7f)
                r = gr_buf_printf(ret, "|%02X", c);
            else
                r = gr_buf_add(ret, p, 1);
        }
        if (r >= 0)
            r = gr_buf_add(ret, "\"\n", 2);
    }
    return r;
}

void hv_vmx_done(struct hv_vmx *v)
{
    for (size_t i = 0; i < v->count; i++) {
        free(v->pairs[i].key);
        free(v->pairs[i].value);
    }
    free(v->pairs);
    *v = (struct hv_vmx){0};
}
