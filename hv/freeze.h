/* Freezing a guest's file systems, with a deadline that this side enforces: a guest is never left frozen because somebody
 * died, forgot, or because the agent froze late, after the request had timed out (storage that hung, say). */
#ifndef HV_FREEZE_H
#define HV_FREEZE_H
#include "hv/qga.h"

enum hv_freeze_state {
    HV_THAWED,
    HV_FREEZING,
    HV_FROZEN,
    HV_UNSURE, /* the guest may be frozen; a fiber keeps asking and thaws */
};
struct hv_freezer;
/* @note may be NULL: something worth a line in the log. */
int hv_freezer_new(struct gr_loop *loop, struct hv_qga *qga, void (*note)(void *arg, const char *text), void *arg, struct hv_freezer **ret);
/* (fiber) Before the qga goes. Waits for its own fibers. NULL allowed. */
void hv_freezer_free(struct hv_freezer *f);
enum hv_freeze_state hv_freezer_state(const struct hv_freezer *f);
/* (fiber) Freeze; thawed by ourselves @deadline_ms after the request when nobody thaws before. Number of file systems frozen.
 * -EBUSY: frozen already; else as hv_qga_call, and the guest is or will be thawed. */
int hv_freeze(struct hv_freezer *f, uint64_t deadline_ms, struct gr_err *err);
/* (fiber) Thaw. *ret_ms: how long the guest was frozen. -ETIMEDOUT: the deadline had ended the freeze before; -EINVAL: it was
 * not frozen; else the agent failed, and a fiber goes on trying. */
int hv_thaw(struct hv_freezer *f, uint64_t *ret_ms, struct gr_err *err);
/* After adoption: nobody knows whether the guest is frozen; find out and thaw. */
void hv_freezer_suspect(struct hv_freezer *f);
#endif
