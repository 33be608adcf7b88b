/* The engine: what runs one virtual machine. QEMU is behind it (hv_engine_qemu_new); nothing else of hv/ knows QEMU.
 *
 * Thread rule: one loop; all functions but _new are for fibers. */
#ifndef HV_ENGINE_H
#define HV_ENGINE_H
#include "common/fiber.h"
#include "hv/vm.h"
#include <jansson.h>

enum hv_state {
    HV_OFF,
    HV_RUNNING,
    HV_SUSPENDED,    /* vCPUs stand still on request */
    HV_NO_SPACE,     /* paused: a disk has no space for a write; resume tries again */
    HV_IO_ERROR,     /* paused: a disk failed */
    HV_PANICKED,     /* the guest's kernel reported a crash (pvpanic) */
    HV_ENGINE_FAILED /* the accelerator gave up (KVM internal error) */
};
const char *hv_state_name(enum hv_state s); /* "off" "running" "suspended" "no-space" "io-error" "panicked" "engine-failed" */

enum hv_accel { HV_ACCEL_TCG, HV_ACCEL_KVM };
const char *hv_accel_name(enum hv_accel a); /* "tcg" "kvm" */

/* Where one disk is served. */
struct hv_lun {
    char *portal; /* "host:port" */
    char *target; /* iSCSI name */
    unsigned lun;
    char *user;   /* CHAP, NULL: none */
    struct gr_buf secret;
};
/* Take "iscsi://[user[%secret]@]host[:port]/target/lun" apart. -EINVAL. Release with hv_lun_done. */
int hv_lun_parse(const char *url, struct hv_lun *ret, struct gr_err *err);
void hv_lun_done(struct hv_lun *l);

struct hv_launch {
    const struct hv_vm *vm;
    enum hv_accel accel;
    struct hv_lun luns[HV_DISKS_MAX]; /* one for each disk of vm, in order */
    char *initiator;
    const char *dir;  /* absolute; the engine's sockets are made here */
    unsigned uid;     /* run as this user and group; 0: as we are */
    int memory_fd;    /* go on from what save() wrote, which comes from here; -1: from nothing. Stays the caller's */
};
struct hv_save {
    /* Bytes of memory written of all, once in a while; negative: give it up. May suspend; may be NULL. */
    int (*progress)(void *arg, uint64_t done, uint64_t total);
    void *arg;
};
enum hv_event {
    HV_EVENT_STATE,  /* state changed; @text: its name */
    HV_EVENT_AGENT,  /* the guest opened ("open") or closed ("closed") the agent's channel */
    HV_EVENT_NOTE,   /* worth a line in the log */
    HV_EVENT_OUTPUT, /* a line the engine itself printed */
    HV_EVENT_EXIT,   /* the engine's process has ended; @text: how. Nothing follows. */
};
struct hv_engine {
    const struct hv_engine_ops *ops;
    /* Set by the owner before start or adopt; must not suspend. */
    void (*on_event)(void *arg, enum hv_event e, const char *text);
    void *arg;
};
struct hv_engine_ops {
    const char *name;
    /* Start, with the vCPUs held until go(). On failure nothing runs. */
    int (*start)(struct hv_engine *e, const struct hv_launch *l, struct gr_err *err);
    /* Take over a running engine from its record (untrusted only as far as the file is ours). -ESRCH: it is gone. */
    int (*adopt)(struct hv_engine *e, const char *dir, json_t *record, struct gr_err *err);
    /* What adopt needs; a new reference. */
    json_t *(*record)(struct hv_engine *e);
    int (*state)(struct hv_engine *e, enum hv_state *ret, struct gr_err *err);
    int (*go)(struct hv_engine *e, struct gr_err *err);           /* run, also after suspend or no space */
    int (*suspend)(struct hv_engine *e, struct gr_err *err);
    int (*reset)(struct hv_engine *e, struct gr_err *err);
    int (*power_button)(struct hv_engine *e, struct gr_err *err); /* ask the guest */
    /* Write memory and devices to @fd (a socket, which stays the caller's) while the guest runs, and hold the guest for the end of it: afterwards
     * its vCPUs stand still until go(), nothing of its disks is under way, and what was written is of that instant. On failure it goes on as before. */
    int (*save)(struct hv_engine *e, int fd, const struct hv_save *opts, struct gr_err *err);
    /* Whoever called save() is gone (this is an adopted engine): it is given up, and the guest goes on. */
    void (*save_undo)(struct hv_engine *e);
    /* End it: orderly within @grace_ms, else by SIGKILL. HV_EVENT_EXIT comes. */
    void (*kill)(struct hv_engine *e, uint64_t grace_ms);
    void (*free)(struct hv_engine *e); /* after HV_EVENT_EXIT, or when nothing was started */
};
int hv_engine_qemu_new(struct gr_loop *loop, struct hv_engine **ret);
/* Names of the sockets in the engine's directory. */
#define HV_SOCK_QMP "qmp.sock"
#define HV_SOCK_AGENT "agent.sock"
#define HV_SOCK_CONSOLE "console.sock"
#endif
