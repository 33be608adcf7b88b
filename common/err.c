#include "common/cleanup.h"
#include "common/err.h"
#include <stdio.h>
#include <string.h>

struct code_row {
    int code; /* positive */
    const char *name;
    int eno;
    struct gr_sense sense;
    int exit_status;
    const char *text;
};

static const struct code_row codes[] = {
#define GR_CODE(c, number, eno_, key_, asc_, exit_, text_) \
    {number, #c, eno_, {key_, (asc_) >> 8, (asc_)&0xff}, exit_, text_},
#include "common/codes.tbl.h"
#undef GR_CODE
};

static const struct code_row *find_code(int code)
{
    for (size_t i = 0; i < sizeof(codes) / sizeof(codes[0]); i++)
        if (codes[i].code == -code)
            return &codes[i];
    return NULL;
}

int gr_fail(struct gr_err *err, int code, const char *fmt, ...)
{
    if (err) {
        va_list ap;
        va_start(ap, fmt);
        vsnprintf(err->text, sizeof(err->text), fmt, ap);
        va_end(ap);
        err->code = code;
    }
    return code;
}

int gr_prefix(struct gr_err *err, int code, const char *fmt, ...)
{
    if (!err)
        return code;
    char old[GR_ERR_TEXT];
    snprintf(old, sizeof(old), "%s", gr_err_text(err, code));
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(err->text, sizeof(err->text), fmt, ap);
    va_end(ap);
    size_t size = sizeof(err->text), behind = strlen(": ") + strlen(old) + 1, len = n < 0 ? 0 : strnlen(err->text, size - 1);
    if (n > 0 && (size_t)n + behind > size) { /* of a long name the beginning: the cause behind it must be read */
        len = GR_MIN(len, GR_MAX(size - GR_MIN(behind, size), size / 4) - strlen("…"));
        while (len && (err->text[len] & 0xc0) == 0x80) /* whole characters */
            len--;
        len += (size_t)snprintf(err->text + len, size - len, "…");
    }
    snprintf(err->text + len, size - len, ": %s", old);
    if (err->code == 0)
        err->code = code;
    return err->code;
}

const char *gr_err_text(const struct gr_err *err, int code)
{
    if (err && err->code < 0 && err->text[0])
        return err->text;
    return gr_code_text(err && err->code < 0 ? err->code : code);
}

const char *gr_code_text(int code)
{
    if (code >= 0)
        return "no error";
    const struct code_row *row = find_code(code);
    if (row)
        return row->text;
    const char *text = strerrordesc_np(-code);
    return text ? text : "unknown error";
}

const char *gr_code_name(int code)
{
    if (code >= 0)
        return "OK";
    const struct code_row *row = find_code(code);
    if (row)
        return row->name;
    const char *name = strerrorname_np(-code);
    return name ? name : "EIO";
}

int gr_code_from_name(const char *name)
{
    if (strcmp(name, "OK") == 0)
        return 0;
    for (size_t i = 0; i < sizeof(codes) / sizeof(codes[0]); i++)
        if (strcmp(codes[i].name, name) == 0)
            return -codes[i].code;
    for (int e = 1; e < 256; e++) {
        const char *known = strerrorname_np(e);
        if (known && strcmp(known, name) == 0)
            return -e;
    }
    return -EIO;
}

int gr_code_errno(int code)
{
    if (code >= 0)
        return 0;
    const struct code_row *row = find_code(code);
    if (row)
        return row->eno;
    return -code < 4096 ? -code : EIO;
}

int gr_code_exit(int code)
{
    if (code >= 0)
        return 0;
    const struct code_row *row = find_code(code);
    return row ? row->exit_status : 1;
}

/* What plain errno values mean to an initiator; everything else is an internal target failure. */
struct gr_sense gr_code_sense(int code)
{
    if (code >= 0)
        return (struct gr_sense){0, 0, 0};
    const struct code_row *row = find_code(code);
    if (row)
        return row->sense;
    switch (-code) {
    case ENOSPC:
    case EDQUOT:
        return (struct gr_sense){0x07, 0x27, 0x07}; /* DATA PROTECT, SPACE ALLOCATION FAILED WRITE PROTECT */
    case EROFS:
        return (struct gr_sense){0x07, 0x27, 0x00}; /* DATA PROTECT, WRITE PROTECTED */
    case EOPNOTSUPP:
        return (struct gr_sense){0x05, 0x20, 0x00}; /* ILLEGAL REQUEST, INVALID COMMAND OPERATION CODE */
    case EINVAL:
        return (struct gr_sense){0x05, 0x24, 0x00}; /* ILLEGAL REQUEST, INVALID FIELD IN CDB */
    case EBUSY:
    case EAGAIN:
        return (struct gr_sense){0x02, 0x04, 0x01}; /* NOT READY, BECOMING READY */
    case ECANCELED:
        return (struct gr_sense){0x0b, 0x00, 0x06}; /* ABORTED COMMAND, I/O PROCESS TERMINATED */
    default:
        return (struct gr_sense){0x04, 0x44, 0x00}; /* HARDWARE ERROR, INTERNAL TARGET FAILURE */
    }
}
