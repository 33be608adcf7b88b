/* Loaded into a program (LD_PRELOAD), it makes the wall clock jump: CLOCK_REALTIME is as many seconds off as the file GRANARY_CLOCK_FILE says
 * (8 bytes, of this machine's order, mapped once at the start, so that a confined process needs no file later). Other clocks are left alone:
 * no jump moves them. */
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile int64_t *off_s; /* set once, before main() */

__attribute__((constructor)) static void map_file(void)
{
    const char *path = getenv("GRANARY_CLOCK_FILE");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0)
        return;
    void *p = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);
    off_s = p == MAP_FAILED ? NULL : p;
    close(fd);
}

static int64_t off(void)
{
    return off_s ? *off_s : 0;
}

int clock_gettime(clockid_t id, struct timespec *ts)
{
    static int (*real)(clockid_t, struct timespec *); /* the same whoever finds it */
    if (!real)
        *(void **)&real = dlsym(RTLD_NEXT, "clock_gettime");
    int r = real(id, ts);
    if (r == 0 && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE))
        ts->tv_sec += off();
    return r;
}

time_t time(time_t *ret)
{
    struct timespec ts = { 0 };
    clock_gettime(CLOCK_REALTIME, &ts);
    if (ret)
        *ret = ts.tv_sec;
    return ts.tv_sec;
}

int gettimeofday(struct timeval *restrict tv, void *restrict zone)
{
    struct timespec ts = { 0 };
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &ts);
    tv->tv_sec = ts.tv_sec;
    tv->tv_usec = ts.tv_nsec / 1000;
    return 0;
}
