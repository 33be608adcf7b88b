/* QMP client: commands to QEMU's monitor and events from it (QEMU's docs/interop/qmp-spec). */
#ifndef HV_QMP_H
#define HV_QMP_H
#include "common/fiber.h"
#include <jansson.h>

struct hv_qmp;
struct hv_qmp_opts {
    struct gr_loop *loop;
    void (*on_event)(void *arg, const char *name, json_t *data); /* @data borrowed, may be NULL; must not suspend */
    void (*on_end)(void *arg, const char *why);                  /* the monitor is gone; not after hv_qmp_close() */
    void *arg;
};
/* (fiber) Connect, read the greeting, negotiate; @timeout_ms in all. -ETIMEDOUT, -GR_EPROTO, as gr_unix_connect. */
int hv_qmp_connect(const struct hv_qmp_opts *opts, const char *path, uint64_t timeout_ms, struct hv_qmp **ret, struct gr_err *err);
/* (fiber) Run @cmd with @args (reference is taken, may be NULL). *ret (may be NULL): a new reference to "return".
 * QEMU's refusal: -EIO with its text; -ETIMEDOUT; -EPIPE: the monitor is gone. Many calls may be under way at once. */
int hv_qmp_call(struct hv_qmp *q, const char *cmd, json_t *args, uint64_t timeout_ms, json_t **ret, struct gr_err *err);
/* (fiber) QEMU knows @fd, which stays the caller's, as @name from now on. */
int hv_qmp_give_fd(struct hv_qmp *q, const char *name, int fd, uint64_t timeout_ms, struct gr_err *err);
/* (fiber) NULL allowed. No call may be under way; not from on_event or on_end. */
void hv_qmp_close(struct hv_qmp *q);
#endif
