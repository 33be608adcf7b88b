#include "backup-proxy/fs_helper.h"
#include "common/cleanup.h"
#include "common/daemon.h"
#include "common/endian.h"
#include "common/fiber.h"
#include "common/seam.h"
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>

#define WALL_MAX_NS 120000000000ull /* of one request, the device's delays counted */
#define TEXT_LEN 256

/* ---- the process ---- */
/* granary-fsread beside the running program, or where `make install` may put helpers. */
static char *default_program(void)
{
    char *beside = gr_program_path("granary-fsread");
    return beside ? beside : gr_program_path("../libexec/granary/granary-fsread");
}

int fs_helper_init(struct fs_helper *h, struct gr_loop *loop, struct fs_cache *cache, const char *name, const char *program,
                   uint64_t budget_ns, struct gr_err *err)
{
    *h = (struct fs_helper){.loop = loop, .cache = cache, .name = name, .budget_ns = budget_ns, .fd = -1};
    h->program = program ? gr_strdup(program) : default_program();
    h->in = gr_alloc(FS_HDR + FS_BODY_MAX);
    h->out = gr_alloc(FS_HDR + FS_BODY_MAX);
    if (!h->program || !h->in || !h->out) {
        int r = h->in && h->out && !program ? gr_fail(err, -ENOENT, "%s: granary-fsread is not beside this program: install it there", name)
                                            : gr_fail(err, -ENOMEM, "%s: out of memory", name);
        fs_helper_done(h);
        return r;
    }
    return 0;
}

void fs_helper_done(struct fs_helper *h)
{
    fs_helper_kill(h);
    free(h->program);
    free(h->in);
    free(h->out);
    h->program = NULL;
    h->in = h->out = NULL;
}

static int spawn(const char *program, int fd, pid_t *ret)
{
    char *argv[] = {(char[]){"granary-fsread"}, NULL}, *envp[] = {NULL};
    posix_spawn_file_actions_t fa;
    posix_spawnattr_t at;
    sigset_t none, all;
    sigemptyset(&none);
    sigfillset(&all);
    if (posix_spawn_file_actions_init(&fa))
        return -ENOMEM;
    if (posix_spawnattr_init(&at)) {
        posix_spawn_file_actions_destroy(&fa);
        return -ENOMEM;
    }
    int rc = posix_spawn_file_actions_adddup2(&fa, fd, 3);
    for (int i = 0; i < 3 && rc == 0; i++)
        rc = posix_spawn_file_actions_addopen(&fa, i, "/dev/null", O_RDWR, 0);
    if (rc == 0)
        rc = posix_spawnattr_setsigmask(&at, &none);
    if (rc == 0)
        rc = posix_spawnattr_setsigdefault(&at, &all);
    if (rc == 0)
        rc = posix_spawnattr_setflags(&at, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
    if (rc == 0)
        rc = posix_spawn(ret, program, &fa, &at, argv, envp);
    posix_spawn_file_actions_destroy(&fa);
    posix_spawnattr_destroy(&at);
    return -rc;
}

int fs_helper_start(struct fs_helper *h, struct gr_err *err)
{
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
        return gr_fail(err, -errno, "%s: cannot make a socketpair: %s", h->name, gr_code_text(-errno));
    gr_auto_close int ours = pair[0];
    gr_auto_close int theirs = pair[1];
    int big = 1 << 20;
    (void)setsockopt(ours, SOL_SOCKET, SO_SNDBUF, &big, sizeof big); /* speed only */
    (void)setsockopt(theirs, SOL_SOCKET, SO_SNDBUF, &big, sizeof big);
    if (fcntl(ours, F_SETFL, O_NONBLOCK) < 0)
        return gr_fail(err, -errno, "%s: fcntl: %s", h->name, gr_code_text(-errno));
    pid_t pid = 0;
    int rc = spawn(h->program, theirs, &pid);
    if (rc < 0)
        return gr_fail(err, rc, "%s: cannot start %s: %s", h->name, h->program, gr_code_text(rc));
    h->fd = gr_take_fd(&ours);
    h->pid = pid;
    return 0;
}

static int reap(struct fs_helper *h)
{
    if (h->fd < 0)
        return 0;
    close(h->fd);
    h->fd = -1;
    kill(h->pid, SIGKILL);
    int status = gr_fiber_wait_child(h->pid);
    h->pid = 0;
    return status;
}

void fs_helper_kill(struct fs_helper *h)
{
    (void)reap(h);
}

/* ---- the exchange ---- */
/* What is left of the request's time, ms; 0: used up. */
static int64_t time_left(const struct fs_helper *h)
{
    uint64_t wall = gr_loop_now_ns(h->loop) - h->start_ns, waited = fs_cache_wait_ns(h->cache) - h->start_wait_ns;
    uint64_t used = wall > waited ? wall - waited : 0;
    if (used >= h->budget_ns || wall >= WALL_MAX_NS)
        return 0;
    return (int64_t)((h->budget_ns - used) / 1000000) + 1;
}

static int wait_fd(struct fs_helper *h, int events)
{
    int64_t left = time_left(h);
    if (left == 0)
        return -ETIMEDOUT;
    int rc = gr_fiber_wait_fd(h->fd, events, left);
    return rc < 0 ? rc : 0;
}

static int send_all(struct fs_helper *h, const uint8_t *p, size_t len)
{
    while (len) {
        ssize_t n = send(h->fd, p, len, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno != EAGAIN && errno != EINTR)
            return -EIO;
        if (n < 0 && errno == EAGAIN) {
            int rc = wait_fd(h, POLLOUT);
            if (rc < 0)
                return rc;
        }
        if (n > 0) {
            p += n;
            len -= (size_t)n;
        }
    }
    return 0;
}

static int recv_all(struct fs_helper *h, uint8_t *p, size_t len)
{
    while (len) {
        ssize_t n = recv(h->fd, p, len, MSG_DONTWAIT);
        if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
            return -EIO;
        if (n < 0 && errno == EAGAIN) {
            int rc = wait_fd(h, POLLIN);
            if (rc < 0)
                return rc;
        }
        if (n > 0) {
            p += n;
            len -= (size_t)n;
        }
    }
    return time_left(h) == 0 ? -ETIMEDOUT : 0;
}

static int recv_frame(struct fs_helper *h, struct fs_hdr *ret)
{
    int rc = recv_all(h, h->in, FS_HDR);
    if (rc < 0)
        return rc;
    if (!fs_hdr_get(h->in, ret) || ret->seq != h->seq)
        return -GR_EPROTO;
    return ret->len ? recv_all(h, h->in + FS_HDR, ret->len) : 0;
}

static int serve_image(struct fs_helper *h, struct fs_in *in)
{
    uint64_t off = fs_get_u64(in), size = fs_cache_size(h->cache);
    uint32_t len = fs_get_u32(in);
    if (!fs_in_done(in) || len == 0 || len > FS_DATA_MAX || len > size || off > size - len)
        return -GR_EPROTO;
    int status = fs_cache_read(h->cache, h->out + FS_HDR + 8, len, off);
    uint32_t got = status < 0 ? 0 : len;
    fs_hdr_put(h->out, &(struct fs_hdr){.type = FS_IMG_DATA, .len = 8 + got, .seq = h->seq});
    gr_put_le32(h->out + FS_HDR, (uint32_t)(status < 0 ? gr_code_errno(status) : 0));
    gr_put_le32(h->out + FS_HDR + 4, got);
    return send_all(h, h->out, FS_HDR + 8 + got);
}

/* The helper's own refusal: it lives on. */
static int take_error(struct fs_helper *h, struct fs_in *in, struct gr_err *err)
{
    char text[TEXT_LEN];
    uint32_t code = fs_get_u32(in);
    fs_get_str(in, text, sizeof text);
    if (!fs_in_done(in) || code == 0 || code > 4095)
        return -GR_EPROTO;
    for (char *c = text; *c; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f)
            *c = '?';
    gr_fail(err, -(int)code, "%s: %s", h->name, text[0] ? text : gr_code_text(-(int)code));
    return 1;
}

static int fail_helper(struct fs_helper *h, int rc, struct gr_err *err)
{
    int status = reap(h);
    if (rc == -ETIMEDOUT)
        return gr_fail(err, -ETIMEDOUT, "%s: the reader of guest file systems took too long and was ended; is the file system damaged?",
                       h->name);
    if (rc == -GR_EPROTO)
        return gr_fail(err, -EIO, "%s: the reader of guest file systems broke its protocol and was ended", h->name);
    if (WIFSIGNALED(status) && WTERMSIG(status) != SIGKILL)
        return gr_fail(err, -EIO, "%s: the reader of guest file systems died of signal %d; is the file system damaged?", h->name,
                       WTERMSIG(status));
    return gr_fail(err, -EIO, "%s: the reader of guest file systems ended unexpectedly", h->name);
}

struct fs_out fs_helper_body(struct fs_helper *h)
{
    return (struct fs_out){.p = h->out + FS_HDR, .cap = FS_BODY_MAX};
}

int fs_helper_ask(struct fs_helper *h, uint16_t type, const struct fs_out *body, fs_reply_fn *on, void *arg, struct gr_err *err)
{
    h->start_ns = gr_loop_now_ns(h->loop);
    h->start_wait_ns = fs_cache_wait_ns(h->cache);
    h->seq++;
    fs_hdr_put(h->out, &(struct fs_hdr){.type = type, .len = (uint32_t)body->len, .seq = h->seq});
    int rc = body->bad ? -GR_EPROTO : send_all(h, h->out, FS_HDR + body->len);
    while (rc == 0) {
        struct fs_hdr hdr;
        rc = recv_frame(h, &hdr);
        if (rc < 0)
            break;
        struct fs_in in = {.p = h->in + FS_HDR, .end = h->in + FS_HDR + hdr.len};
        if (hdr.type == FS_IMG_READ) {
            rc = serve_image(h, &in);
        } else if (hdr.type == FS_ERROR) {
            struct gr_err told = {0};
            rc = take_error(h, &in, &told);
            if (rc > 0)
                return gr_fail(err, told.code, "%s", told.text);
        } else {
            rc = on(arg, hdr.type, &in);
            if (rc >= 0 && !fs_in_done(&in))
                rc = -GR_EPROTO;
        }
    }
    return rc > 0 ? 0 : fail_helper(h, rc, err);
}
