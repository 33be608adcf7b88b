/* granary-proxy as a child: arguments in, one JSON object out. */
#include "backup-proxy/cmd_proxy.h"
#include "common/buf.h"
#include "common/cleanup.h"
#include "common/daemon.h"
#include "common/seam.h"
#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <string.h>
#include <sys/wait.h>

#define RESULT_MAX (64u << 20)
static int spawn_it(const char *program, const char *const *args, int out, pid_t *ret)
{
    size_t n = 0;
    while (args[n])
        n++;
    gr_auto_free char **argv = gr_zalloc((n + 2) * sizeof *argv);
    posix_spawn_file_actions_t fa;
    if (!argv || posix_spawn_file_actions_init(&fa))
        return -ENOMEM;
    union {
        const char *in;
        char *out;
    } u; /* argv's elements are not changed by the callee */
    u.in = program;
    argv[0] = u.out;
    for (size_t i = 0; i < n; i++) {
        u.in = args[i];
        argv[i + 1] = u.out;
    }
    int r = posix_spawn_file_actions_addopen(&fa, 0, "/dev/null", O_RDONLY, 0);
    if (r == 0)
        r = posix_spawn_file_actions_adddup2(&fa, out, 1);
    if (r == 0)
        r = posix_spawn(ret, program, &fa, NULL, argv, environ);
    posix_spawn_file_actions_destroy(&fa);
    return -r;
}
static int read_all(int fd, struct gr_buf *b)
{
    char chunk[16384];
    for (;;) {
        gr_fiber_wait_fd(fd, POLLIN, -1);
        ssize_t n = read(fd, chunk, sizeof chunk);
        if (n < 0 && (errno == EINTR || errno == EAGAIN))
            continue;
        if (n <= 0)
            return n < 0 ? -errno : 0;
        if (b->len + (size_t)n > RESULT_MAX || gr_buf_add(b, chunk, (size_t)n) < 0)
            return -ENOMEM;
    }
}
static int take_result(json_t *doc, int status, struct gr_err *err)
{
    const char *code = json_string_value(json_object_get(doc, "code")), *text = json_string_value(json_object_get(doc, "error"));
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
        return doc ? 0 : gr_fail(err, -GR_EPROTO, "granary-proxy gave no result");
    if (code && text)
        return gr_fail(err, gr_code_from_name(code), "%s", text);
    if (WIFSIGNALED(status))
        return gr_fail(err, -GR_ECANCELED, "granary-proxy was ended by signal %d; what it began is put away by the next job", WTERMSIG(status));
    return gr_fail(err, -EIO, "granary-proxy failed with status %d", WEXITSTATUS(status));
}
int bp_run_proxy(const char *const *args, json_t **ret, struct gr_err *err)
{
    gr_auto_free char *program = gr_program_path("granary-proxy");
    gr_auto_buf struct gr_buf out = {0};
    int fds[2];
    pid_t pid = 0;
    if (!program)
        return gr_fail(err, -ENOENT, "granary-proxy is not beside this program: install it there");
    if (pipe2(fds, O_CLOEXEC) < 0)
        return gr_fail(err, -errno, "cannot start granary-proxy: %s", gr_code_text(-errno));
    gr_auto_close int from = fds[0];
    int r = spawn_it(program, args, fds[1], &pid);
    close(fds[1]);
    if (r < 0)
        return gr_fail(err, r, "cannot run %s: %s", program, gr_code_text(r));
    r = read_all(from, &out);
    int status = gr_fiber_wait_child(pid);
    if (r < 0)
        return gr_fail(err, r, "cannot read the result of granary-proxy: %s", gr_code_text(r));
    json_t *doc = out.len ? json_loadb(out.data, out.len, 0, NULL) : NULL;
    r = take_result(doc, status, err);
    if (r == 0)
        *ret = doc;
    else
        json_decref(doc);
    return r;
}

/* ---- which repository ---- */
static json_t *known_repos(struct gr_home **ret_home)
{
    json_t *doc = NULL;
    if (gr_home_open(1, ret_home, NULL) < 0)
        return NULL;
    if (gr_home_load(*ret_home, "conf/repositories.json", &doc, NULL) < 0)
        return NULL;
    return doc;
}
int bp_cmd_repo_path(struct gr_cmd_ctx *c, char **ret, struct gr_err *err)
{
    const char *path = gr_cmd_opt(c, "repo");
    struct gr_home *home = NULL;
    json_t *doc = path ? NULL : known_repos(&home);
    if (!path)
        path = json_string_value(json_object_get(doc, "last"));
    char *out = path ? gr_strdup(path) : NULL;
    json_decref(doc);
    gr_home_free(home);
    if (!out)
        return gr_fail(err, -GR_EUSAGE, "no repository is known here yet; name one with --repo DIR");
    *ret = out;
    return 0;
}
int bp_cmd_repo(struct gr_cmd_ctx *c, struct bp_repo **ret, struct gr_err *err)
{
    gr_auto_free char *path = NULL;
    int r = bp_cmd_repo_path(c, &path, err);
    return r < 0 ? r : bp_repo_open(path, ret, err);
}
void bp_cmd_repo_remember(const char *path)
{
    struct gr_home *home = NULL;
    json_t *doc = known_repos(&home);
    gr_auto_free char *full = realpath(path, NULL);
    if (doc && full) {
        json_object_set_new(doc, "last", json_string(full));
        (void)gr_home_save(home, "conf/repositories.json", doc, NULL);
    }
    json_decref(doc);
    gr_home_free(home);
}
