#include "backup-proxy/cmd_mount.h"
#include "backup-proxy/cmd_proxy.h"
#include "backup-proxy/mount_table.h"
#include "common/buf.h"
#include "common/cleanup.h"
#include "common/daemon.h"
#include "common/seam.h"
#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <string.h>
#include <sys/wait.h>

#define ARGS_MAX 16

/* ---- starting granary-mount ---- */
static int code_of_exit(int status)
{
    switch (status) {
    case 2: return -GR_EUSAGE;
    case 4: return -GR_ELOCKED;
    case 5: return -GR_ECORRUPT;
    default: return -EIO;
    }
}

/* What the program said, without its name in front and the newline behind. */
static void take_words(struct gr_buf *said, struct gr_err *err, int code)
{
    const char *text = said->data ? said->data : "", *prefix = "granary-mount: ";
    if (strncmp(text, prefix, strlen(prefix)) == 0)
        text += strlen(prefix);
    int len = (int)strcspn(text, "\n");
    if (len)
        gr_fail(err, code, "%.*s", len, text);
    else
        gr_fail(err, code, "granary-mount failed without a word");
}

static int spawn_program(const char *program, char *const argv[], int err_fd, pid_t *ret)
{
    posix_spawn_file_actions_t fa;
    if (posix_spawn_file_actions_init(&fa))
        return -ENOMEM;
    int rc = posix_spawn_file_actions_addopen(&fa, 0, "/dev/null", O_RDONLY, 0);
    if (rc == 0)
        rc = posix_spawn_file_actions_addopen(&fa, 1, "/dev/null", O_WRONLY, 0);
    if (rc == 0)
        rc = posix_spawn_file_actions_adddup2(&fa, err_fd, 2);
    if (rc == 0)
        rc = posix_spawn(ret, program, &fa, NULL, argv, environ);
    posix_spawn_file_actions_destroy(&fa);
    return -rc;
}

/* Fiber: all it says until it ends. */
static int listen_to(int fd, struct gr_buf *said)
{
    for (;;) {
        char b[1024];
        gr_fiber_wait_fd(fd, POLLIN, -1);
        ssize_t n = read(fd, b, sizeof b);
        if (n < 0 && (errno == EINTR || errno == EAGAIN))
            continue;
        if (n <= 0)
            return 0;
        if (said->len < 4096 && gr_buf_add(said, b, (size_t)n) < 0)
            return -ENOMEM;
    }
}

int mount_start_program(const char *const *args, struct gr_err *err)
{
    gr_auto_free char *program = gr_program_path("granary-mount");
    gr_auto_buf struct gr_buf said = {0};
    char *argv[ARGS_MAX + 2] = {(char[]){"granary-mount"}};
    int n = 1, fds[2], rc = program ? 0 : -ENOENT;
    pid_t pid = 0;
    for (; rc == 0 && args[n - 1] && n <= ARGS_MAX; n++)
        if (!(argv[n] = gr_strdup(args[n - 1])))
            rc = -ENOMEM;
    if (rc == 0 && pipe2(fds, O_CLOEXEC) < 0)
        rc = -errno;
    if (rc == 0) {
        rc = spawn_program(program, argv, fds[1], &pid);
        close(fds[1]);
        if (rc == 0) {
            (void)listen_to(fds[0], &said);
            int status = gr_fiber_wait_child(pid);
            rc = WIFEXITED(status) ? (WEXITSTATUS(status) ? code_of_exit(WEXITSTATUS(status)) : 0) : -EIO;
            if (rc < 0)
                take_words(&said, err, rc);
        } else {
            gr_fail(err, rc, "cannot run %s: %s", program, gr_code_text(rc));
        }
        close(fds[0]);
    } else {
        gr_fail(err, rc, "cannot start granary-mount: %s", gr_code_text(rc));
    }
    for (int i = 1; i < n; i++)
        free(argv[i]);
    return rc;
}

/* ---- commands ---- */
static int say_done(struct gr_cmd_ctx *c, const char *what, const char *dir)
{
    json_t *o = json_pack("{s:s}", "dir", dir);
    int rc = gr_cmd_done(c, o, "%s %s", what, dir);
    json_decref(o);
    return rc;
}

static int cmd_mount(struct gr_cmd_ctx *c, struct gr_err *err)
{
    const char *args[ARGS_MAX] = {0}, *image = gr_cmd_opt(c, "image");
    gr_auto_free char *repo = NULL;
    int n = 0, want = image ? 1 : 2;
    if (gr_cmd_nargs(c) != want || (image && gr_cmd_opt(c, "repo")))
        return gr_fail(err, -GR_EUSAGE, "usage: granary mount --repo REPO POINT[:DISK] DIR, or granary mount --image FILE DIR");
    int rc = image ? 0 : bp_cmd_repo_path(c, &repo, err);
    if (rc < 0)
        return rc;
    if (image) {
        args[n++] = "--image";
        args[n++] = image;
    } else {
        args[n++] = "--repo";
        args[n++] = repo;
        args[n++] = "--point";
        args[n++] = gr_cmd_arg(c, 0);
    }
    if (gr_cmd_flag(c, "allow-other"))
        args[n++] = "--allow-other";
    args[n++] = "--";
    args[n++] = gr_cmd_arg(c, want - 1);
    rc = mount_start_program(args, err);
    if (rc < 0)
        return rc;
    return say_done(c, "mounted on", gr_cmd_arg(c, want - 1));
}

static int cmd_datastore_mount(struct gr_cmd_ctx *c, struct gr_err *err)
{
    const char *args[ARGS_MAX] = {"--datastore", gr_cmd_arg(c, 0)};
    int n = 2;
    if (gr_cmd_flag(c, "read-only"))
        args[n++] = "--read-only";
    if (gr_cmd_flag(c, "allow-other"))
        args[n++] = "--allow-other";
    args[n++] = "--";
    args[n++] = gr_cmd_arg(c, 1);
    int rc = mount_start_program(args, err);
    return rc < 0 ? rc : say_done(c, "mounted on", gr_cmd_arg(c, 1));
}

struct unmount {
    struct gr_home *home;
    const char *dir;
    bool force;
    struct gr_err *err;
};

static int unmount_work(void *arg)
{
    struct unmount *u = arg;
    return mount_unmount(u->home, u->dir, u->force, u->err);
}

static int cmd_unmount(struct gr_cmd_ctx *c, struct gr_err *err)
{
    struct unmount u = {.dir = gr_cmd_arg(c, 0), .force = gr_cmd_flag(c, "force"), .err = err};
    int rc = gr_home_open(0, &u.home, err);
    if (rc < 0)
        return rc;
    rc = gr_fiber_work(unmount_work, &u);
    gr_home_free(u.home);
    return rc < 0 ? rc : say_done(c, "unmounted", u.dir);
}

static const struct gr_opt mount_opts[] = {
    {"repo", "REPO", "repository that holds the restore point; default: the one used last", false},
    {"image", "FILE", "mount a raw disk image instead of a restore point", false},
    {"allow-other", NULL, "let other users in, under the guest's owners and modes", false},
    {0},
};
static const struct gr_opt unmount_opts[] = {
    {"force", NULL, "also when files below it are open: they fail from then on", false},
    {0},
};
static const struct gr_opt datastore_opts[] = {{"read-only", NULL, "it cannot be changed there, and the storage daemon need not run", false},
                                               {"allow-other", NULL, "let other users in, under the owners and modes of the files", false},
                                               {0}};
const struct gr_cmd mount_cmds[] = {
    {"datastore", "mount", "NAME[/FOLDER] DIR", 2, 2, "show a datastore's folders, files and disks below DIR, as a file system", datastore_opts,
     cmd_datastore_mount},
    {"datastore", "unmount", "DIR", 1, 1, "end a mount, and wait until its processes are gone", unmount_opts, cmd_unmount},
    {NULL, "mount", "POINT[:DISK] DIR", 1, 2, "show the disks of a restore point, and the files in them, read-only below DIR", mount_opts,
     cmd_mount},
    {NULL, "unmount", "DIR", 1, 1, "end a mount, and wait until its processes are gone", unmount_opts, cmd_unmount},
    {0},
};
