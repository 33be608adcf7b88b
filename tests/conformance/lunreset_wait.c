/* LD_PRELOADed for one test of Debian's iscsi-test-cu 1.19, iSCSITMF.LUNResetSimpleAsync: it looks whether its LUN RESET was answered
 * right after queueing it, before the request can have left. Here the call returns only when the answer is there (or after 5 s), so
 * the test judges what the target said. Nothing of the answer is changed. */
#include <dlfcn.h>
#include <iscsi/iscsi.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

struct wait {
    iscsi_command_cb cb;
    void *arg;
    int answered;
};

static void answered(struct iscsi_context *iscsi, int status, void *data, void *arg)
{
    struct wait *w = arg;
    w->answered = 1;
    w->cb(iscsi, status, data, w->arg);
}

int iscsi_task_mgmt_async(struct iscsi_context *iscsi, int lun, enum iscsi_task_mgmt_funcs function, uint32_t ritt, uint32_t rcmdsn,
                          iscsi_command_cb cb, void *arg)
{
    int (*real)(struct iscsi_context *, int, enum iscsi_task_mgmt_funcs, uint32_t, uint32_t, iscsi_command_cb, void *);
    void *symbol = dlsym(RTLD_NEXT, "iscsi_task_mgmt_async");
    memcpy(&real, &symbol, sizeof real);
    if (function != ISCSI_TM_LUN_RESET)
        return real(iscsi, lun, function, ritt, rcmdsn, cb, arg);
    struct wait *w = calloc(1, sizeof *w); /* lives on: a late answer may still come */
    if (!w)
        return -1;
    w->cb = cb;
    w->arg = arg;
    int r = real(iscsi, lun, function, ritt, rcmdsn, answered, w);
    for (int i = 0; r == 0 && !w->answered && i < 50; i++) {
        struct pollfd p = { .fd = iscsi_get_fd(iscsi), .events = (short)iscsi_which_events(iscsi) };
        poll(&p, 1, 100);
        r = iscsi_service(iscsi, p.revents);
    }
    return r;
}
