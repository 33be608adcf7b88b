/* Can this machine's KVM run a guest? Opening /dev/kvm proves nothing: some run ring 0 through an instruction emulator, at
 * a hundredth of the speed and with holes, so that stock kernels end in "emulation failure". So the probe runs micro-guests of
 * its own: a 64-bit ring-0 loop (speed), LOCK CMPXCHG16B, XSAVE/XRSTOR, INT3; all within 300 ms, in a child with a watchdog. */
#ifndef HV_PROBE_H
#define HV_PROBE_H
#include "common/fiber.h"
#include "common/home.h"
#include "hv/engine.h"

#define HV_PROBE_MS 300
#define HV_PROBE_MIPS 100 /* million ring-0 instructions a second that count as hardware */
struct hv_probe {
    enum hv_accel verdict;
    char reason[200]; /* one sentence */
    uint64_t mips;    /* measured, 0: not reached */
};
/* Probe @device ("/dev/kvm") now; blocks for at most HV_PROBE_MS (call through gr_fiber_work). Always gives a verdict. */
void hv_probe_run(const char *device, struct hv_probe *ret);
/* (fiber) The verdict of this boot: from state/kvm.json, probing when it is of another boot or missing. */
int hv_probe_get(struct gr_home *home, struct hv_probe *ret, struct gr_err *err);
/* (fiber) KVM failed under a real guest: TCG for the rest of this boot. */
int hv_probe_mark_bad(struct gr_home *home, const char *why, struct gr_err *err);
#endif
