/* The .vmx file: lines of `key = "value"`, the text form of a VM's configuration.
 *
 * Grammar: a line is blank, a comment ('#' first), or KEY = "VALUE" with blanks around each part allowed. KEY: 1..63 of
 * [A-Za-z0-9._:-], compared without case. VALUE: UTF-8 without control characters; '"', '|' and control characters are
 * written |XX (two hex digits), as in the field's own files. Keys that nobody knows are kept, in their order. */
#ifndef HV_VMX_H
#define HV_VMX_H
#include "common/buf.h"
#include "common/err.h"
#include <stdbool.h>
#include <stddef.h>

#define HV_VMX_MAX (64u << 10) /* bytes of a file */
#define HV_VMX_KEYS 512        /* lines with a key */
#define HV_VMX_KEY 63
struct hv_vmx_pair {
    char *key, *value;
};
struct hv_vmx {
    struct hv_vmx_pair *pairs;
    size_t count;
};
/* Parse @len bytes. -GR_EFORMAT names the line and what is wrong with it; -ENOMEM. *ret: release with hv_vmx_done. */
int hv_vmx_parse(const char *text, size_t len, struct hv_vmx *ret, struct gr_err *err);
/* Value of @key, NULL when absent. Borrowed. */
const char *hv_vmx_get(const struct hv_vmx *v, const char *key);
/* Add @key or replace its value; @value NULL removes it. -EINVAL: not a key; -ENOSPC: too many; -ENOMEM. */
int hv_vmx_set(struct hv_vmx *v, const char *key, const char *value);
/* Append the text to @ret. 0 or -ENOMEM. */
int hv_vmx_format(const struct hv_vmx *v, struct gr_buf *ret);
void hv_vmx_done(struct hv_vmx *v);
#endif
