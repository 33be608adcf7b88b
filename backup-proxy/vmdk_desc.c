/* Text descriptors: key = value lines, then extent lines. Read by key; unknown keys are passed over. */
#include "backup-proxy/vmdk_image.h"
#include "common/cleanup.h"
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define VMDK_MAX_SECTORS (UINT64_MAX / 2 / VMDK_SECTOR)

static char *trim(char *s)
{
    s += strspn(s, " \t");
    size_t n = strlen(s);
    while (n > 0 && (s[n - 1] == ' ' || s[n - 1] == '\t' || s[n - 1] == '\r'))
        s[--n] = 0;
    return s;
}
static char *unquote(char *s)
{
    size_t n = strlen(s);
    if (n >= 2 && s[0] == '"' && s[n - 1] == '"') {
        s[n - 1] = 0;
        return s + 1;
    }
    return s;
}
static int parse_num(const char *s, uint64_t max, uint64_t *ret, const char **ret_end)
{
    char *end = NULL;
    if (*s < '0' || *s > '9')
        return -EINVAL;
    errno = 0;
    unsigned long long v = strtoull(s, &end, 10);
    if (errno || v > max)
        return -ERANGE;
    *ret = v;
    *ret_end = end;
    return 0;
}

/* "RW 4192256 FLAT "name" 0"; @s stands behind the access word. */
static int extent_line(const char *s, struct vmdk_desc_extent *ret)
{
    *ret = (struct vmdk_desc_extent){0};
    s += strspn(s, " \t");
    if (parse_num(s, VMDK_MAX_SECTORS, &ret->sectors, &s) < 0 || ret->sectors == 0)
        return -EINVAL;
    s += strspn(s, " \t");
    size_t n = strcspn(s, " \t");
    if (n == 0 || n >= sizeof ret->type)
        return -EINVAL;
    memcpy(ret->type, s, n);
    s += n;
    s += strspn(s, " \t");
    if (*s == 0)
        return strcmp(ret->type, "ZERO") ? -EINVAL : 0;
    if (*s++ != '"')
        return -EINVAL;
    const char *q = strchr(s, '"');
    if (!q || q == s || (size_t)(q - s) >= sizeof ret->name)
        return -EINVAL;
    memcpy(ret->name, s, (size_t)(q - s));
    s = q + 1 + strspn(q + 1, " \t");
    return *s == 0 ? 0 : parse_num(s, VMDK_MAX_SECTORS, &ret->off_sectors, &s);
}

static int desc_line(char *line, unsigned no, struct vmdk_desc *d, struct gr_err *err)
{
    static const char *const access_words[] = {"RW ", "RDONLY ", "NOACCESS "};
    if (*line == 0 || *line == '#')
        return 0;
    for (unsigned i = 0; i < GR_ARRAY_LEN(access_words); i++) {
        size_t n = strlen(access_words[i]);
        if (strncmp(line, access_words[i], n))
            continue;
        if (d->n == VMDK_MAX_EXTENTS)
            return gr_fail(err, -GR_EFORMAT, "the VMDK descriptor lists more than %u extents", VMDK_MAX_EXTENTS);
        if (extent_line(line + n, &d->extents[d->n]) < 0)
            return gr_fail(err, -GR_EFORMAT, "line %u of the VMDK descriptor is no well-formed extent", no);
        d->n++;
        return 0;
    }
    char *eq = strchr(line, '=');
    if (!eq)
        return gr_fail(err, -GR_EFORMAT, "line %u of the VMDK descriptor is neither key = value nor an extent", no);
    *eq = 0;
    const char *key = trim(line), *val = unquote(trim(eq + 1));
    if (!strcasecmp(key, "createType")) {
        if (strlen(val) >= sizeof d->create_type)
            return gr_fail(err, -GR_EFORMAT, "line %u of the VMDK descriptor: createType is too long", no);
        memcpy(d->create_type, val, strlen(val) + 1);
    } else if (!strcasecmp(key, "parentCID")) {
        char *end = NULL;
        unsigned long v = strtoul(val, &end, 16);
        if (end == val || *end || v > UINT32_MAX)
            return gr_fail(err, -GR_EFORMAT, "line %u of the VMDK descriptor: parentCID is no 32-bit hexadecimal number", no);
        d->parent_cid = (uint32_t)v;
    }
    return 0;
}

int vmdk_desc_parse(const char *text, size_t len, struct vmdk_desc *ret, struct gr_err *err)
{
    if (len > VMDK_MAX_DESC)
        return gr_fail(err, -GR_EFORMAT, "the VMDK descriptor has %zu bytes, more than %u", len, VMDK_MAX_DESC);
    /* What follows a NUL is not looked at: a writer that replaced its text by a shorter one (qemu-img, when it sets a CID of fewer
     * digits) leaves the end of the old one there. */
    size_t used = strnlen(text, len);
    if (used <= 3 && len > used + 1 && text[used + 1])
        return gr_fail(err, -GR_EFORMAT, "the VMDK descriptor is UTF-16 or binary; it must be UTF-8 text");
    gr_auto_free char *copy = gr_alloc(used + 1);
    gr_auto_free struct vmdk_desc_extent *extents = gr_zalloc(VMDK_MAX_EXTENTS * sizeof *extents);
    if (!copy || !extents)
        return gr_fail(err, -ENOMEM, "out of memory");
    memcpy(copy, text, used);
    copy[used] = 0;
    struct vmdk_desc d = {.parent_cid = UINT32_MAX, .extents = extents};
    unsigned no = 0;
    for (char *line = copy, *next; line; line = next) {
        next = strchr(line, '\n');
        if (next)
            *next++ = 0;
        int r = desc_line(trim(line), ++no, &d, err);
        if (r < 0)
            return r;
    }
    d.extents = gr_take(extents);
    *ret = d;
    return 0;
}
