#include "hv/probe.h"
#include "common/cleanup.h"
#include "common/seam.h"
#include "hv/microguest.h"
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#define STATE_FILE "state/kvm.json"

static uint64_t now_ms(void)
{
    return gr_world_real()->mono_ns(NULL) / 1000000;
}

/* The child's part: run the micro-guests and write the result. */
static void child(const char *device, int fd)
{
    struct hv_probe p = {.verdict = HV_ACCEL_TCG};
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    hv_microguests(device, &p);
    ssize_t n = write(fd, &p, sizeof p);
    _exit(n == (ssize_t)sizeof p ? 0 : 1);
}

void hv_probe_run(const char *device, struct hv_probe *ret)
{
    int pipe_fd[2], status;
    struct hv_probe p = {.verdict = HV_ACCEL_TCG};
    if (pipe2(pipe_fd, O_CLOEXEC) < 0) {
        snprintf(p.reason, sizeof p.reason, "the probe could not be started: %s", strerror(errno));
        *ret = p;
        return;
    }
    pid_t pid = fork();
    if (pid == 0)
        child(device, pipe_fd[1]);
    close(pipe_fd[1]);
    size_t got = 0;
    uint64_t due = now_ms() + HV_PROBE_MS;
    while (pid > 0 && got < sizeof p) {
        uint64_t now = now_ms();
        struct pollfd w = {.fd = pipe_fd[0], .events = POLLIN};
        ssize_t n = now < due && poll(&w, 1, (int)(due - now)) > 0 ? read(pipe_fd[0], (char *)&p + got, sizeof p - got) : -1;
        if (n <= 0)
            break;
        got += (size_t)n;
    }
    if (pid > 0) {
        kill(pid, SIGKILL);
        waitpid(pid, &status, 0);
    }
    close(pipe_fd[0]);
    if (got < sizeof p) {
        p = (struct hv_probe){.verdict = HV_ACCEL_TCG};
        snprintf(p.reason, sizeof p.reason, pid < 0 ? "the probe could not be started" : "the probe's micro-guest did not come to an end within %d ms", HV_PROBE_MS);
    }
    p.reason[sizeof p.reason - 1] = 0;
    *ret = p;
}

static int save(struct gr_home *home, const char *boot_id, const struct hv_probe *p, struct gr_err *err)
{
    json_auto_t *doc = json_pack("{s:s, s:s, s:s, s:I}", "boot-id", boot_id, "verdict", hv_accel_name(p->verdict), "reason", p->reason, "mips", (json_int_t)p->mips);
    return doc ? gr_home_save(home, STATE_FILE, doc, err) : gr_fail(err, -ENOMEM, "out of memory");
}

static int work(void *arg)
{
    hv_probe_run("/dev/kvm", arg);
    return 0;
}

int hv_probe_get(struct gr_home *home, struct hv_probe *ret, struct gr_err *err)
{
    char boot_id[37];
    json_auto_t *doc = NULL;
    gr_boot_id(boot_id);
    int r = gr_home_load(home, STATE_FILE, &doc, NULL);
    if (r < 0)
        doc = NULL; /* an unreadable cache is no reason to fail: probe again */
    const char *id = json_string_value(json_object_get(doc, "boot-id")), *verdict = json_string_value(json_object_get(doc, "verdict")),
               *reason = json_string_value(json_object_get(doc, "reason"));
    struct hv_probe p = {.verdict = HV_ACCEL_TCG};
    if (id && verdict && reason && *boot_id && !strcmp(id, boot_id)) {
        p.verdict = !strcmp(verdict, "kvm") ? HV_ACCEL_KVM : HV_ACCEL_TCG;
        p.mips = (uint64_t)json_integer_value(json_object_get(doc, "mips"));
        snprintf(p.reason, sizeof p.reason, "%s", reason);
        *ret = p;
        return 0;
    }
    gr_fiber_work(work, &p);
    *ret = p;
    return *boot_id ? save(home, boot_id, &p, err) : 0;
}

int hv_probe_mark_bad(struct gr_home *home, const char *why, struct gr_err *err)
{
    char boot_id[37];
    struct hv_probe p = {.verdict = HV_ACCEL_TCG};
    snprintf(p.reason, sizeof p.reason, "%s", why);
    gr_boot_id(boot_id);
    return !boot_id[0] ? gr_fail(err, -EIO, "cannot read this boot's id") : save(home, boot_id, &p, err);
}
