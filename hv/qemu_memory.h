/* Memory and devices of a running QEMU to a descriptor and back (its migration stream), over its monitor. */
#ifndef HV_QEMU_MEMORY_H
#define HV_QEMU_MEMORY_H
#include "hv/engine.h"
#include "hv/qmp.h"

/* (fiber) As struct hv_engine_ops.save; @running: the vCPUs run now, and shall again when it fails. */
int hv_qemu_save(struct gr_loop *loop, struct hv_qmp *q, int fd, bool running, const struct hv_save *opts, struct gr_err *err);
/* (fiber) Load what hv_qemu_save() wrote into a QEMU that was started to wait for it; its vCPUs stand still afterwards. A QEMU that does not like it ends. */
int hv_qemu_load(struct hv_qmp *q, int fd, struct gr_err *err);
/* (fiber) Whoever had begun to save is gone: give it up, and go on. */
void hv_qemu_save_undo(struct gr_loop *loop, struct hv_qmp *q);
#endif
