/* Unix sockets at paths of any length: sun_path holds 108 bytes, so the directory is opened and the socket is reached
 * through /proc/self/fd/N/name. */
#include "common/cleanup.h"
#include "common/rpc.h"
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>

#define GHOST_MS 5000 /* how long the socket of a dead process may answer */

/* Open the directory of @path (returned descriptor in *ret_dir) and make the short address of its last part + @suffix. */
static int short_address(const char *path, const char *suffix, int *ret_dir, struct sockaddr_un *ret, struct gr_err *err)
{
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    gr_auto_free char *dir = !slash ? gr_strdup(".") : slash == path ? gr_strdup("/") : strndup(path, (size_t)(slash - path));
    if (!dir)
        return gr_fail(err, -ENOMEM, "%s: out of memory", path);
    gr_auto_close int fd = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return gr_fail(err, -errno, "%s: cannot open its directory: %s", path, strerror(errno));
    struct sockaddr_un un = {.sun_family = AF_UNIX};
    int n = snprintf(un.sun_path, sizeof(un.sun_path), "/proc/self/fd/%d/%s%s", fd, name, suffix);
    if (!name[0] || n < 0 || (size_t)n >= sizeof(un.sun_path))
        return gr_fail(err, -ENAMETOOLONG, "%s: the last part of a socket's path must have 1 to 60 bytes", path);
    *ret = un;
    *ret_dir = gr_take_fd(&fd);
    return 0;
}

static int new_socket(const char *path, struct gr_err *err)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    return fd < 0 ? gr_fail(err, -errno, "%s: cannot make a socket: %s", path, strerror(errno)) : fd;
}

int gr_unix_connect(const char *path, int *ret_fd, struct gr_err *err)
{
    struct sockaddr_un un;
    gr_auto_close int dir = -1;
    int r = short_address(path, "", &dir, &un, err);
    if (r < 0)
        return r;
    gr_auto_close int fd = new_socket(path, err);
    if (fd < 0)
        return fd;
    if (connect(fd, (struct sockaddr *)&un, sizeof(un)) < 0)
        return gr_fail(err, -errno, "%s: cannot connect: %s", path, errno == ENOENT ? "nobody has opened it" : strerror(errno));
    *ret_fd = gr_take_fd(&fd);
    return 0;
}

bool gr_unix_served(int fd)
{
    struct ucred peer = {0};
    socklen_t len = sizeof(peer);
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) < 0 || peer.pid <= 0) /* of another namespace: cannot be told */
        return true;
    gr_auto_close int pidfd = (int)syscall(SYS_pidfd_open, peer.pid, 0);
    if (pidfd < 0)
        return errno != ESRCH;
    struct pollfd ended = {.fd = pidfd, .events = POLLIN};
    return poll(&ended, 1, 0) == 0;
}

static bool in_use(const char *path)
{
    for (int i = 0;; i++) {
        gr_auto_close int there = -1;
        int r = gr_unix_connect(path, &there, NULL);
        if (r < 0 && r != -EAGAIN)
            return false;
        if ((r == 0 && gr_unix_served(there)) || i == GHOST_MS / 10)
            return true;
        nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
    }
}

/* The socket is made under another name and renamed when it listens, so that whoever finds the name finds an answer. */
int gr_unix_listen(const char *path, int mode, int *ret_fd, struct gr_err *err)
{
    struct sockaddr_un un, final;
    char suffix[16];
    uint32_t salt;
    gr_auto_close int dir = -1, dir2 = -1;
    gr_world_real()->random(NULL, &salt, sizeof(salt));
    snprintf(suffix, sizeof(suffix), ".%08x", salt);
    int r = short_address(path, suffix, &dir, &un, err);
    if (r == 0)
        r = short_address(path, "", &dir2, &final, err);
    if (r < 0)
        return r;
    if (in_use(path))
        return gr_fail(err, -EADDRINUSE, "%s: a running process answers there", path);
    struct stat st;
    if (lstat(final.sun_path, &st) == 0 && !S_ISSOCK(st.st_mode))
        return gr_fail(err, -EEXIST, "%s: exists and is not a socket", path);
    gr_auto_close int fd = new_socket(path, err);
    if (fd < 0)
        return fd;
    if (bind(fd, (struct sockaddr *)&un, sizeof(un)) < 0)
        return gr_fail(err, -errno, "%s: cannot bind: %s", path, strerror(errno));
    if (chmod(un.sun_path, (mode_t)mode) < 0 || listen(fd, 128) < 0 || rename(un.sun_path, final.sun_path) < 0) {
        r = -errno;
        unlink(un.sun_path);
        return gr_fail(err, r, "%s: cannot listen: %s", path, strerror(-r));
    }
    *ret_fd = gr_take_fd(&fd);
    return 0;
}
