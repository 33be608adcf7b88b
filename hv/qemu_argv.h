/* The command line of QEMU for one VM: no shell, no secrets, every value that is not ours inside JSON. */
#ifndef HV_QEMU_ARGV_H
#define HV_QEMU_ARGV_H
#include "hv/engine.h"

#define HV_QEMU_BINARY "/usr/bin/qemu-system-x86_64"
#define HV_QEMU_MACHINE "pc-q35-7.2"
/* Descriptors the process is started with, from 3 on. */
enum hv_qemu_fd { HV_FD_QMP = 3, HV_FD_AGENT, HV_FD_CONSOLE, HV_FD_SECRETS /* one for each disk with CHAP, in disk order */ };
struct hv_argv {
    char **v; /* NULL-terminated */
    size_t count;
};
/* Build it. -ENOMEM, -EINVAL (a LUN is missing). Release with hv_argv_done. */
int hv_qemu_argv(const struct hv_launch *l, struct hv_argv *ret, struct gr_err *err);
void hv_argv_done(struct hv_argv *a);
#endif
