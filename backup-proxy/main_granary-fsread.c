/* granary-fsread: reads guest file systems in a sandbox, for granary-mount and granary restore. Started by them only,
 * with one end of a socketpair as descriptor 3; see fs_proto.h. `granary-fsread --self-test` tries, from inside the
 * sandbox, what it must not be able to do. */
#include "backup-proxy/fsread_sandbox.h"
#include "backup-proxy/fsread_serve.h"
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define SOCKET_FD 3
#define MEMORY_MAX ((size_t)1 << 30)

static int confine(void)
{
    const char *step = "";
    setenv("TZ", "UTC0", 1); /* FAT times carry no zone; and no zone file may be opened later */
    tzset();
    int rc = fsread_sandbox(SOCKET_FD, MEMORY_MAX, &step);
    if (rc < 0)
        fprintf(stderr, "granary-fsread: cannot %s: %s\n", step, strerror(-rc));
    return rc;
}

/* Each returns when the deed was possible. */
static void try_open(void) { (void)!open("/etc/passwd", O_RDONLY); }
static void try_write(void) { (void)!open("/tmp/granary-fsread-was-here", O_CREAT | O_WRONLY, 0600); }
static void try_socket(void) { (void)!socket(AF_INET, SOCK_STREAM, 0); }
static void try_pipe(void)
{
    int p[2];
    (void)!pipe(p);
}
static void try_fork(void) { (void)!fork(); }
static void try_exec(void) { (void)!execl("/bin/true", "true", (char *)NULL); }
static void try_kill(void) { (void)!kill(getppid(), SIGUSR1); }
static void try_exec_memory(void) { (void)!mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0); }
static void try_other_fd(void) { (void)!write(2, "", 1); }
static void try_stat(void)
{
    struct stat st;
    (void)!stat("/", &st);
}
static void try_peer_memory(void)
{
    char c = 0;
    struct iovec here = {&c, 1};
    (void)!process_vm_readv(getppid(), &here, 1, &here, 1, 0);
}

static const struct deed {
    const char *name;
    void (*fn)(void);
} deeds[] = {{"open", try_open},     {"create", try_write},   {"socket", try_socket},           {"pipe", try_pipe},
             {"fork", try_fork},     {"exec", try_exec},      {"kill", try_kill},               {"mmap-exec", try_exec_memory},
             {"write-fd-2", try_other_fd}, {"stat", try_stat}, {"process-vm-readv", try_peer_memory}};

static void child(const struct deed *d, int fd)
{
    if (dup2(fd, SOCKET_FD) < 0 || confine() < 0)
        _exit(2);
    d->fn();
    _exit(3); /* alive: the sandbox let it through */
}

static int self_test(void)
{
    int bad = 0, pair[2];
    signal(SIGUSR1, SIG_IGN);
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
        return 1;
    for (size_t i = 0; i < sizeof deeds / sizeof deeds[0]; i++) {
        pid_t pid = fork();
        if (pid == 0)
            child(&deeds[i], pair[1]);
        int status = 0;
        if (pid < 0 || waitpid(pid, &status, 0) != pid)
            return 1;
        int killed = WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS;
        printf("%s %s\n", killed ? "denied" : "ALLOWED", deeds[i].name);
        bad += !killed;
    }
    return bad ? 1 : 0;
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "--self-test") == 0)
        return self_test();
    if (argc == 2 && strcmp(argv[1], "--help") == 0) {
        puts("granary-fsread: read a guest's file systems in a sandbox; started by granary-mount and granary restore\n\n"
             "  --self-test  try from inside the sandbox what must be impossible\n"
             "  --help       this text");
        return 0;
    }
    int type = 0;
    socklen_t len = sizeof type;
    if (argc != 1 || getsockopt(SOCKET_FD, SOL_SOCKET, SO_TYPE, &type, &len) < 0 || type != SOCK_STREAM) {
        fprintf(stderr, "granary-fsread: started by granary-mount and granary restore only\n");
        return 2;
    }
    if (confine() < 0)
        return 1;
    return fsread_serve(SOCKET_FD) < 0 ? 1 : 0;
}
