/* Errors: one code space, one sentence.
 *
 * A function returns 0 or a positive result on success, and a negative code on failure: either -errno or one of the
 * -GR_E* codes of codes.tbl.h. Control-path functions also take a last argument `struct gr_err *err` (may be NULL)
 * that receives one sentence naming the thing, the place and the cause. Libraries never print; commands and daemons
 * do. errno itself never crosses one of our function boundaries. */
#ifndef GR_ERR_H
#define GR_ERR_H
#include <errno.h>
#include <stdarg.h>
#include <stdint.h>

enum gr_code {
#define GR_CODE(name, number, eno, key, asc, exit_status, text) name = number,
#include "common/codes.tbl.h"
#undef GR_CODE
};

#define GR_ERR_TEXT 512
struct gr_err {
    int code; /* negative, as returned; 0 = no error recorded */
    char text[GR_ERR_TEXT];
};

/* SCSI fixed-format sense triple (SPC-4 4.5). */
struct gr_sense {
    uint8_t key;
    uint8_t asc;
    uint8_t ascq;
};

/* Record @code (negative) and the formatted sentence in @err (NULL allowed), overwriting what was there.
 * Returns @code, so that a caller can write `return gr_fail(err, -ENOENT, "...")`. */
int gr_fail(struct gr_err *err, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* Put "context: " in front of the recorded sentence; when both are too long, it is the context that ends with "…". Returns err->code, or @code when err is NULL. */
int gr_prefix(struct gr_err *err, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* Sentence of @err, or the text of @code when nothing was recorded. Borrowed; valid as long as @err. */
const char *gr_err_text(const struct gr_err *err, int code);
/* Text of a negative code; never NULL. Static storage. */
const char *gr_code_text(int code);
/* Stable identifier of a negative code ("GR_ECORRUPT", "ENOENT"); never NULL. Used on our JSON wires. */
const char *gr_code_name(int code);
/* The reverse; an unknown name gives -EIO. */
int gr_code_from_name(const char *name);
/* Positive errno for interfaces that know only errno (FUSE, NBD). */
int gr_code_errno(int code);
/* Process exit status: 0 done, 1 failed, 2 usage, 3 partly done, 4 locked or fenced, 5 damaged. */
int gr_code_exit(int code);
struct gr_sense gr_code_sense(int code);
#endif
