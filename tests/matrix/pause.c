/* Loaded into a host's daemon (LD_PRELOAD), it stops the process (SIGSTOP) at a place in its talk with another host, so that a pause is in the middle of what
 * both do. The file GRANARY_PAUSE_FILE, of 4096 bytes and mapped once, at the start, says where, as "WHEN METHOD" and zeros:
 *   asked METHOD     another host's request has come          answers METHOD   it has been served, and the answer has not gone
 *   asks METHOD      a request of its own has not gone        hears METHOD     its answer is there, and has not been looked at
 * Once there, the first byte becomes '!', and that was that. */
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define WHEN_MAX 16
#define METHOD_MAX 64

static char *plan; /* set once, before main() */
static ino_t awaited; /* the connection (its descriptors are two) that the method was seen on: the next that goes there, or comes, is the answer */

__attribute__((constructor)) static void map_plan(void)
{
    const char *path = getenv("GRANARY_PAUSE_FILE");
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0)
        return;
    void *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    plan = p == MAP_FAILED ? NULL : p;
    close(fd);
}

static bool says(const void *data, size_t len, const char *method)
{
    char quoted[METHOD_MAX + 3];
    int n = snprintf(quoted, sizeof quoted, "\"%s\"", method);
    return memmem(data, len, quoted, (size_t)n) != NULL;
}

static void look(int fd, const void *data, size_t len, bool comes)
{
    char when[WHEN_MAX], method[METHOD_MAX];
    struct stat st;
    if (!plan || (plan[0] != 'a' && plan[0] != 'h') || sscanf(plan, "%15s %63s", when, method) != 2 || fstat(fd, &st) < 0)
        return;
    bool request = strcmp(when, "asked") == 0 || strcmp(when, "asks") == 0, in = strcmp(when, "asked") == 0 || strcmp(when, "answers") == 0;
    bool here = comes == in && says(data, len, method), now = request ? here : st.st_ino == awaited && comes != in;
    if (here)
        awaited = st.st_ino;
    if (!now)
        return;
    awaited = 0;
    plan[0] = '!';
    kill(getpid(), SIGSTOP);
}

ssize_t recv(int fd, void *data, size_t len, int flags)
{
    ssize_t (*real)(int, void *, size_t, int);
    *(void **)&real = dlsym(RTLD_NEXT, "recv");
    ssize_t n = real(fd, data, len, flags);
    if (n > 0)
        look(fd, data, (size_t)n, true);
    return n;
}

ssize_t send(int fd, const void *data, size_t len, int flags)
{
    ssize_t (*real)(int, const void *, size_t, int);
    *(void **)&real = dlsym(RTLD_NEXT, "send");
    look(fd, data, len, false);
    return real(fd, data, len, flags);
}
