#include "hv/qemu_argv.h"
#include "common/cleanup.h"
#include "common/seam.h"
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Append @text, taking it; NULL is out of memory. */
static int push(struct hv_argv *a, char *text)
{
    gr_auto_free char *take = text;
    char **more = take ? gr_realloc(a->v, (a->count + 2) * sizeof *more) : NULL;
    if (!more)
        return -ENOMEM;
    a->v = more;
    a->v[a->count++] = gr_take(take);
    a->v[a->count] = NULL;
    return 0;
}

__attribute__((format(printf, 3, 4))) static int option(struct hv_argv *a, const char *name, const char *fmt, ...)
{
    int r = push(a, gr_strdup(name));
    if (r < 0 || !fmt)
        return r;
    char text[512];
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    return n < 0 || (size_t)n >= sizeof text ? -EINVAL : push(a, gr_strdup(text));
}

/* "-name {…}" with @value's reference taken. */
static int json_option(struct hv_argv *a, const char *name, json_t *value)
{
    json_auto_t *take = value;
    int r = push(a, gr_strdup(name));
    return r < 0 ? r : push(a, take ? json_dumps(take, JSON_COMPACT) : NULL);
}

static int add_machine(struct hv_argv *a, const struct hv_launch *l)
{
    const struct hv_vm *vm = l->vm;
    bool kvm = l->accel == HV_ACCEL_KVM;
    int r;
    if ((r = push(a, gr_strdup(HV_QEMU_BINARY))) < 0 || (r = option(a, "-nodefaults", NULL)) < 0 || (r = option(a, "-no-user-config", NULL)) < 0 ||
        (r = option(a, "-display", "none")) < 0 || (r = option(a, "-name", "granary-%s", vm->uuid)) < 0 ||
        (r = option(a, "-machine", HV_QEMU_MACHINE ",usb=off,dump-guest-core=off,graphics=off")) < 0 ||
        (r = option(a, "-accel", "%s", kvm ? "kvm" : "tcg,thread=multi")) < 0 || (r = option(a, "-cpu", "%s", kvm ? "host" : "Nehalem-v1")) < 0 ||
        (r = option(a, "-smp", "%u", vm->vcpus)) < 0 || (r = option(a, "-m", "%lluM", (unsigned long long)(vm->memory >> 20))) < 0 ||
        (r = option(a, "-uuid", "%s", vm->uuid)) < 0 || (r = option(a, "-rtc", "base=utc")) < 0 || (r = option(a, "-boot", "strict=on")) < 0 ||
        (r = option(a, "-action", "panic=pause")) < 0 || (r = option(a, "-msg", "timestamp=on")) < 0 || (r = option(a, "-S", NULL)) < 0 ||
        (l->memory_fd >= 0 && (r = option(a, "-incoming", "defer")) < 0) ||
        (r = option(a, "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")) < 0)
        return r;
    return 0;
}

static int add_channels(struct hv_argv *a, const struct hv_launch *l)
{
    int r;
    if ((r = option(a, "-chardev", "socket,id=qmp,fd=%d,server=on,wait=off", HV_FD_QMP)) < 0 || (r = option(a, "-mon", "chardev=qmp,mode=control")) < 0 ||
        (r = option(a, "-chardev", "socket,id=agent,fd=%d,server=on,wait=off", HV_FD_AGENT)) < 0 ||
        (r = option(a, "-chardev", "socket,id=console,fd=%d,server=on,wait=off", HV_FD_CONSOLE)) < 0 || (r = option(a, "-serial", "chardev:console")) < 0 ||
        (r = json_option(a, "-device", json_pack("{s:s, s:s}", "driver", "virtio-serial-pci", "id", "serial"))) < 0 ||
        (r = json_option(a, "-device", json_pack("{s:s, s:s, s:s, s:s}", "driver", "virtserialport", "id", "agent-port", "chardev", "agent", "name",
                                                 "org.qemu.guest_agent.0"))) < 0 ||
        (r = json_option(a, "-device", json_pack("{s:s}", "driver", "virtio-rng-pci"))) < 0 ||
        (r = json_option(a, "-device", json_pack("{s:s}", "driver", "pvpanic-pci"))) < 0)
        return r;
    if (!l->vm->nic)
        return 0;
    if ((r = option(a, "-netdev", "user,id=net0")) < 0)
        return r;
    return json_option(a, "-device", json_pack("{s:s, s:s, s:s, s:s}", "driver", "virtio-net-pci", "netdev", "net0", "mac", l->vm->mac, "romfile", ""));
}

static int add_disk(struct hv_argv *a, const struct hv_launch *l, unsigned i, int *secret_fd)
{
    const struct hv_lun *lun = &l->luns[i];
    char file[16], drive[16], disk[16], secret[16];
    snprintf(file, sizeof file, "lun%u", i);
    snprintf(drive, sizeof drive, "drive%u", i);
    snprintf(disk, sizeof disk, "disk%u", i);
    snprintf(secret, sizeof secret, "secret%u", i);
    /* timeout: a portal that hangs is left after 3 s instead of 20; reconnecting goes on for ever, the guest sees a stall */
    json_t *node = json_pack("{s:s, s:s, s:s, s:s, s:s, s:I, s:s, s:I, s:{s:b, s:b}, s:s}", "driver", "iscsi", "node-name", file, "transport", "tcp", "portal",
                             lun->portal, "target", lun->target, "lun", (json_int_t)lun->lun, "initiator-name", l->initiator, "timeout", (json_int_t)3,
                             "cache", "direct", 1, "no-flush", 0, "discard", "unmap");
    int r = node ? 0 : -ENOMEM;
    if (r >= 0 && lun->user) {
        r = option(a, "-object", "secret,id=%s,file=/proc/self/fd/%d", secret, (*secret_fd)++);
        json_object_set_new(node, "user", json_string(lun->user));
        json_object_set_new(node, "password-secret", json_string(secret));
    }
    if (r < 0) {
        json_decref(node);
        return r;
    }
    if ((r = json_option(a, "-blockdev", node)) < 0 ||
        (r = json_option(a, "-blockdev", json_pack("{s:s, s:s, s:s, s:{s:b, s:b}, s:s}", "driver", "raw", "node-name", drive, "file", file, "cache", "direct", 1,
                                                   "no-flush", 0, "discard", "unmap"))) < 0)
        return r;
    if (l->vm->disks[i].bus == HV_BUS_SCSI)
        return json_option(a, "-device", json_pack("{s:s, s:s, s:s, s:I, s:s, s:I, s:s}", "driver", "scsi-hd", "id", disk, "bus", "scsi.0", "lun", (json_int_t)i,
                                                   "drive", drive, "bootindex", (json_int_t)i, "serial", disk));
    return json_option(a, "-device", json_pack("{s:s, s:s, s:s, s:I, s:s}", "driver", "virtio-blk-pci", "id", disk, "drive", drive, "bootindex", (json_int_t)i,
                                               "serial", disk));
}

int hv_qemu_argv(const struct hv_launch *l, struct hv_argv *ret, struct gr_err *err)
{
    gr_auto(hv_argv_done) struct hv_argv a = {0};
    int r = add_machine(&a, l), secret_fd = HV_FD_SECRETS;
    bool scsi = false;
    if (r >= 0)
        r = add_channels(&a, l);
    for (unsigned i = 0; r >= 0 && i < l->vm->disk_count; i++) {
        if (!l->luns[i].portal || !l->luns[i].target)
            return gr_fail(err, -EINVAL, "disk '%s' has no address", l->vm->disks[i].path);
        if (l->vm->disks[i].bus == HV_BUS_SCSI && !scsi) {
            r = json_option(&a, "-device", json_pack("{s:s, s:s}", "driver", "virtio-scsi-pci", "id", "scsi"));
            scsi = true;
        }
        if (r >= 0)
            r = add_disk(&a, l, i, &secret_fd);
    }
    if (r < 0)
        return gr_fail(err, r, "cannot build QEMU's command line: %s", gr_code_text(r));
    *ret = a;
    a = (struct hv_argv){0};
    return 0;
}

void hv_argv_done(struct hv_argv *a)
{
    for (size_t i = 0; i < a->count; i++)
        free(a->v[i]);
    free(a->v);
    *a = (struct hv_argv){0};
}
