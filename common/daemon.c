#include "common/daemon.h"
#include "common/buf.h"
#include "common/cleanup.h"
#include "common/rpc.h"
#include <fcntl.h>
#include <linux/capability.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>

#define READY_FD 3
#define ARGS_MAX 64
#define LOCK_EVERY_MS 50

extern char **environ;

/* ---- start ---- */
static int spawn_detached(const char *const *argv, const char *log, int ready_fd, pid_t *ret, struct gr_err *err)
{
    const char *args[ARGS_MAX + 3];
    size_t n = 0;
    posix_spawn_file_actions_t fa;
    posix_spawnattr_t attr;
    sigset_t none, all;
    while (n < ARGS_MAX && argv[n]) {
        args[n] = argv[n];
        n++;
    }
    args[n++] = "--ready-fd";
    args[n++] = "3";
    args[n] = NULL;
    if (posix_spawn_file_actions_init(&fa) != 0)
        return gr_fail(err, -ENOMEM, "%s: out of memory", argv[0]);
    if (posix_spawnattr_init(&attr) != 0) {
        posix_spawn_file_actions_destroy(&fa);
        return gr_fail(err, -ENOMEM, "%s: out of memory", argv[0]);
    }
    sigemptyset(&none);
    sigfillset(&all);
    int e = posix_spawn_file_actions_addopen(&fa, 0, "/dev/null", O_RDONLY, 0);
    e = e ? e : posix_spawn_file_actions_addopen(&fa, 1, log, O_WRONLY | O_CREAT | O_APPEND, 0600);
    e = e ? e : posix_spawn_file_actions_adddup2(&fa, 1, 2);
    e = e ? e : posix_spawn_file_actions_adddup2(&fa, ready_fd, READY_FD);
    e = e ? e : posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
    e = e ? e : posix_spawnattr_setsigmask(&attr, &none);
    e = e ? e : posix_spawnattr_setsigdefault(&attr, &all);
    e = e ? e : posix_spawn(ret, argv[0], &fa, &attr, (char *const *)(uintptr_t)args, environ);
    posix_spawnattr_destroy(&attr);
    posix_spawn_file_actions_destroy(&fa);
    return e ? gr_fail(err, -e, "%s: cannot be started: %s", argv[0], strerror(e)) : 0;
}

/* Read the daemon's one line. */
static int await_ready(int fd, const char *program, const char *log, unsigned timeout_ms, struct gr_err *err)
{
    char line[GR_ERR_TEXT];
    size_t n = 0;
    uint64_t deadline = gr_loop_now_ns(gr_fiber_loop()) + timeout_ms * 1000000ull;
    while (n < sizeof(line) - 1 && !memchr(line, '\n', n)) {
        uint64_t now = gr_loop_now_ns(gr_fiber_loop());
        int r = now >= deadline ? -ETIMEDOUT : gr_fiber_wait_fd(fd, POLLIN, (int64_t)((deadline - now) / 1000000) + 1);
        if (r < 0)
            return gr_fail(err, -ETIMEDOUT, "%s: not ready after %u seconds; see %s", program, timeout_ms / 1000, log);
        ssize_t got = read(fd, line + n, sizeof(line) - 1 - n);
        if (got == 0)
            return gr_fail(err, -EIO, "%s: ended before it was ready; see %s", program, log);
        if (got < 0 && errno != EAGAIN && errno != EINTR)
            return gr_fail(err, -errno, "%s: %s", program, strerror(errno));
        n += got > 0 ? (size_t)got : 0;
    }
    line[n] = 0;
    line[strcspn(line, "\n")] = 0;
    if (strcmp(line, "ok") == 0)
        return 0;
    char *blank = strchr(line, ' ');
    if (blank)
        *blank = 0;
    return gr_fail(err, gr_code_from_name(line), "%s: %s", program, blank ? blank + 1 : line);
}

int gr_daemon_start(const char *const *argv, const char *log, unsigned timeout_ms, struct gr_err *err)
{
    int fds[2];
    pid_t pid = 0;
    const char *slash = strrchr(argv[0], '/');
    const char *program = slash ? slash + 1 : argv[0];
    if (pipe2(fds, O_CLOEXEC | O_NONBLOCK) < 0)
        return gr_fail(err, -errno, "%s: %s", program, strerror(errno));
    gr_auto_close int rd = fds[0];
    gr_auto_close int wr = fds[1];
    if (wr == READY_FD) { /* dup2 to itself would keep it close-on-exec */
        int other = fcntl(wr, F_DUPFD_CLOEXEC, READY_FD + 1);
        if (other < 0)
            return gr_fail(err, -errno, "%s: %s", program, strerror(errno));
        close(wr);
        wr = other;
    }
    int r = spawn_detached(argv, log, wr, &pid, err);
    if (r < 0)
        return r;
    gr_closep(&wr);
    r = await_ready(rd, program, log, timeout_ms, err);
    if (r == -ETIMEDOUT)
        kill(pid, SIGKILL);
    return r;
}

/* ---- who is it, stop ---- */
pid_t gr_daemon_pid(const char *path)
{
    gr_auto_close int fd = -1;
    struct ucred peer;
    socklen_t len = sizeof(peer);
    if (gr_unix_connect(path, &fd, NULL) < 0 || !gr_unix_served(fd) || getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) < 0)
        return 0;
    return peer.pid;
}

int gr_daemon_stop(const char *path, const char *program, unsigned timeout_ms, struct gr_err *err)
{
    pid_t pid = gr_daemon_pid(path);
    if (pid <= 0)
        return 1;
    gr_auto_close int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    if (pidfd < 0 || gr_daemon_pid(path) != pid) /* asked again: the number was not taken over by another process meanwhile */
        return errno == ESRCH || pidfd >= 0 ? 1 : gr_fail(err, -errno, "%s (process %d): %s", program, (int)pid, strerror(errno));
    if (syscall(SYS_pidfd_send_signal, pidfd, SIGTERM, NULL, 0) < 0)
        return errno == ESRCH ? 0 : gr_fail(err, -errno, "%s (process %d) cannot be ended: %s", program, (int)pid, strerror(errno));
    int r = gr_fiber_wait_fd(pidfd, POLLIN, timeout_ms);
    return r < 0 ? gr_fail(err, -ETIMEDOUT, "%s (process %d) has not ended after %u seconds", program, (int)pid, timeout_ms / 1000) : 0;
}

char *gr_program_path(const char *name)
{
    char self[4096];
    ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);
    if (n <= 0)
        return NULL;
    self[n] = 0;
    char *slash = strrchr(self, '/');
    if (!slash)
        return NULL;
    *slash = 0;
    gr_auto_free char *path = gr_asprintf("%s/%s", self, name);
    return path && access(path, X_OK) == 0 ? gr_take(path) : NULL;
}

/* ---- the daemon's side ---- */
int gr_daemon_args(int argc, char **argv, struct gr_daemon_args *a)
{
    bool bad = false;
    a->ready_fd = -1;
    for (int i = 1; i < argc && !bad; i++) {
        uint64_t fd;
        if (!strcmp(argv[i], "--help")) {
            fputs(a->usage, stdout);
            return 0;
        }
        if (!strcmp(argv[i], "--ready-fd")) {
            bad = i + 1 == argc || gr_parse_u64(argv[++i], STDERR_FILENO + 1, 1023, &fd, NULL) < 0;
            if (!bad)
                a->ready_fd = (int)fd;
        } else if (a->flag && !strcmp(argv[i], a->flag)) {
            a->flagged = true;
        } else if (a->takes_name && argv[i][0] != '-' && !a->name) {
            a->name = argv[i];
        } else {
            bad = true;
        }
    }
    if (!bad && (a->name || !a->takes_name))
        return -1;
    fputs(a->usage, stderr);
    return 2;
}

/* sd_notify(3): one datagram to the socket named in the environment. */
static void notify_systemd(const char *text)
{
    const char *path = getenv("NOTIFY_SOCKET");
    struct sockaddr_un sa = {.sun_family = AF_UNIX};
    size_t n = path ? strlen(path) : 0;
    if (n == 0 || n >= sizeof(sa.sun_path) || (path[0] != '/' && path[0] != '@'))
        return;
    memcpy(sa.sun_path, path, n);
    if (sa.sun_path[0] == '@')
        sa.sun_path[0] = 0;
    gr_auto_close int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd >= 0)
        (void)!sendto(fd, text, strlen(text), MSG_NOSIGNAL, (struct sockaddr *)&sa, (socklen_t)(offsetof(struct sockaddr_un, sun_path) + n));
}

void gr_daemon_ready(int ready_fd, int code, const char *text)
{
    if (ready_fd >= 0) {
        gr_auto_free char *line = code < 0 ? gr_asprintf("%s %s\n", gr_code_name(code), text) : gr_strdup("ok\n");
        if (line)
            (void)!write(ready_fd, line, strlen(line));
        close(ready_fd);
    }
    if (code >= 0)
        notify_systemd("READY=1");
}

void gr_daemon_stopping(void)
{
    notify_systemd("STOPPING=1");
}

int gr_daemon_lock(const char *path, unsigned patience_ms, int *ret_fd, struct gr_err *err)
{
    gr_auto_close int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0)
        return gr_fail(err, -errno, "%s: cannot be opened: %s", path, strerror(errno));
    for (unsigned ms = 0; flock(fd, LOCK_EX | LOCK_NB) < 0; ms += LOCK_EVERY_MS) {
        if (errno != EWOULDBLOCK)
            return gr_fail(err, -errno, "%s: cannot be locked: %s", path, strerror(errno));
        if (ms >= patience_ms)
            return gr_fail(err, -GR_ELOCKED, "%s is locked by another process", path);
        gr_fiber_sleep_ms(LOCK_EVERY_MS);
    }
    *ret_fd = gr_take_fd(&fd);
    return 0;
}

int gr_daemon_pidfile(const char *path, struct gr_err *err)
{
    char text[24];
    int n = snprintf(text, sizeof(text), "%d\n", (int)getpid());
    gr_auto_close int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644);
    if (fd < 0 || write(fd, text, (size_t)n) != n)
        return gr_fail(err, -errno, "%s: cannot be written: %s", path, strerror(errno));
    return 0;
}

void gr_daemon_pidfile_remove(const char *path)
{
    gr_auto_buf struct gr_buf text = {0};
    if (gr_file_read(path, 32, &text, NULL) == 0 && text.len && strtol(text.data, NULL, 10) == (long)getpid())
        unlink(path);
}

int gr_daemon_confine(struct gr_err *err)
{
    static const int keep[] = {CAP_DAC_OVERRIDE,     CAP_DAC_READ_SEARCH, CAP_FOWNER, CAP_NET_BIND_SERVICE, CAP_SYS_RAWIO,
                               CAP_SETUID,           CAP_SETGID,          CAP_SYS_CHROOT};
    struct rlimit no_core = {0, 0};
    if (setrlimit(RLIMIT_CORE, &no_core) < 0 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return gr_fail(err, -errno, "core dumps and new privileges cannot be turned off: %s", strerror(errno));
    struct __user_cap_header_struct h = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct d[2] = {0}, now[2];
    if (syscall(SYS_capget, &h, now) < 0)
        return gr_fail(err, -errno, "the capabilities of this process cannot be told: %s", strerror(errno));
    for (size_t i = 0; i < GR_ARRAY_LEN(keep); i++) {
        unsigned word = (unsigned)keep[i] / 32, bit = 1u << (unsigned)keep[i] % 32;
        d[word].permitted |= now[word].permitted & bit;
        d[word].effective |= now[word].effective & bit;
    }
    if (syscall(SYS_capset, &h, d) < 0)
        return gr_fail(err, -errno, "capabilities cannot be given up: %s", strerror(errno));
    return 0;
}
