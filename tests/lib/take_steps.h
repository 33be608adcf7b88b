/* The steps by which one host takes another's slot over, told from outside by what it asks of the devices (vmfs/life.c, slot.c, replay.c), and a plan,
 * in a file that all who watch have mapped, to kill whoever is first at the n-th occasion of one of them. Who watches: a proxy on the way to a LUN
 * (tests/tools/iscsi_proxy.c), a library in the process where there is only a file (tests/matrix/steps.c). tests/matrix/faults.sh writes the plan.
 * Any thread or process, one watcher for each host and device. */
#ifndef TAKE_STEPS_H
#define TAKE_STEPS_H
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

enum take_step {
    TAKE_NONE,
    TAKE_ASK,     /* writes a number into the alarm of a slot */
    TAKE_CLAIM,   /* got a life lock */
    TAKE_EJECT,   /* PREEMPT AND ABORT; the n-th is that to the n-th device */
    TAKE_EJECTED, /* it was answered */
    TAKE_MARK,    /* the slot becomes REPLAYING */
    TAKE_REPLAY,  /* a read of the slot's journal */
    TAKE_HOME,    /* a write in the slot's name: the checkpoint behind the replay */
    TAKE_FREE,    /* the slot becomes free: first copy, second copy */
    TAKE_LOCK,    /* the lock of a disk, when the slot is free */
};
#define TAKE_HOSTS 8u
#define TAKE_PLAN_BYTES 4096u

struct take_host {
    _Atomic uint32_t seen;           /* occasions of the step that is planned */
    _Atomic uint32_t slot;           /* that it recovers, + 1; 0: none */
    _Atomic uint32_t freed;          /* copies of that slot's block that say that it is free, as it has written them */
    _Atomic uint32_t journal_units;
    _Atomic uint64_t journal;        /* address */
};
struct take_plan { /* of this machine's order; zeros: nothing is planned */
    _Atomic uint32_t armed;  /* enum take_step; 0 again when somebody was struck */
    _Atomic uint32_t nth;    /* from 1 on */
    _Atomic uint32_t hold;   /* 1: what is asked at that moment does not reach the device */
    _Atomic uint32_t struck; /* host + 1 */
    _Atomic uint32_t freed;  /* by any of them: its locks are void, whoever comes first takes them */
    struct take_host host[TAKE_HOSTS];
};
_Static_assert(sizeof(struct take_plan) <= TAKE_PLAN_BYTES, "one page");

enum take_verdict { TAKE_GO, TAKE_KILL, TAKE_KILL_HOLD };

/* NULL: @path cannot be mapped. For the life of the process. */
struct take_plan *take_map(const char *path);
/* @host is about to do this, and is it then to be killed? @block: the first 4 KiB of what is written. */
enum take_verdict take_write(struct take_plan *p, unsigned host, const void *block);
enum take_verdict take_read(struct take_plan *p, unsigned host, unsigned device, uint64_t unit, uint64_t units);
enum take_verdict take_other(struct take_plan *p, unsigned host, enum take_step step);
#endif
