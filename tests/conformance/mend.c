/* LD_PRELOADed for two tests of Debian's iscsi-test-cu 1.19, whose mistakes are mended here. Nothing of an answer is changed.
 *
 * iSCSITMF.LUNResetSimpleAsync looks whether its LUN RESET was answered right after queueing it, before the request can have left: here
 * the call returns only when the answer is there (or after 5 s), so that the test judges what the target said.
 *
 * WriteSame10.UnmapUntilEnd asks to unmap with a data block of FFh bytes and expects zeros: with LBPRZ a block that is not all zeros has
 * to be written (SBC-3 5.45). Here it sends the zeros that it means, as its WRITE SAME (16) twin does. */
#include <dlfcn.h>
#include <iscsi/iscsi.h>
#include <iscsi/scsi-lowlevel.h>
#include <poll.h>
#include <stdbool.h>
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

/* What a WRITE SAME (10) to the end with UNMAP carries: zeros. */
static void mend(const struct scsi_task *task)
{
    bool to_the_end = task->cdb[0] == 0x41 && (task->cdb[1] & 0x08) && !task->cdb[7] && !task->cdb[8];
    for (int i = 0; to_the_end && i < task->iovector_out.niov; i++)
        memset(task->iovector_out.iov[i].iov_base, 0, task->iovector_out.iov[i].iov_len);
}

int iscsi_scsi_command_async(struct iscsi_context *iscsi, int lun, struct scsi_task *task, iscsi_command_cb cb, struct iscsi_data *data, void *arg)
{
    int (*real)(struct iscsi_context *, int, struct scsi_task *, iscsi_command_cb, struct iscsi_data *, void *);
    void *symbol = dlsym(RTLD_NEXT, "iscsi_scsi_command_async");
    memcpy(&real, &symbol, sizeof real);
    mend(task);
    return real(iscsi, lun, task, cb, data, arg);
}

struct scsi_task *iscsi_scsi_command_sync(struct iscsi_context *iscsi, int lun, struct scsi_task *task, struct iscsi_data *data)
{
    struct scsi_task *(*real)(struct iscsi_context *, int, struct scsi_task *, struct iscsi_data *);
    void *symbol = dlsym(RTLD_NEXT, "iscsi_scsi_command_sync");
    memcpy(&real, &symbol, sizeof real);
    mend(task);
    return real(iscsi, lun, task, data);
}
