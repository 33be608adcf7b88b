/* Half-open logins: keeps COUNT connections to a portal that never log in and send a byte a second each, from many loopback addresses;
 * those that the target drops are opened anew. Connections are made at RATE a second at most.
 *
 *   half_open PORT COUNT RATE SECONDS
 *
 * Prints {"opened":N,"dropped":N,"peak":N} (peak: open at once, as seen from here). */
#include "common/cleanup.h"
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define ADDRESSES 200u
struct flood {
    unsigned port, count, rate, cursor;
    int *fds; /* -1: not open */
    unsigned long opened, dropped, open, peak;
};

static uint64_t now_ms(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

static void open_one(struct flood *f, unsigned k)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)f->port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct sockaddr_in from = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(0x7f010000u + 1 + k % ADDRESSES)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return;
    if (bind(fd, (struct sockaddr *)&from, sizeof from) < 0 || (connect(fd, (struct sockaddr *)&to, sizeof to) < 0 && errno != EINPROGRESS)) {
        close(fd);
        return;
    }
    f->fds[k] = fd;
    f->opened++;
    if (++f->open > f->peak)
        f->peak = f->open;
}

/* A byte of a login request; or it was dropped. */
static void feed(struct flood *f, unsigned k)
{
    char byte = 'C', in;
    if (send(f->fds[k], &byte, 1, MSG_DONTWAIT | MSG_NOSIGNAL) == 1 || errno == EAGAIN || errno == EINPROGRESS || errno == ENOTCONN)
        if (recv(f->fds[k], &in, 1, MSG_DONTWAIT) < 0 && (errno == EAGAIN || errno == ENOTCONN))
            return;
    close(f->fds[k]);
    f->fds[k] = -1;
    f->dropped++;
    f->open--;
}

/* What is due in @ms milliseconds: each connection gets its byte once a second, @rate of those missing are made. */
static void step(struct flood *f, unsigned ms)
{
    unsigned visits = GR_MIN(f->count * ms / 1000 + 1, f->count), may = f->rate * ms / 1000 + 1;
    for (; visits; visits--, f->cursor = (f->cursor + 1) % f->count) {
        if (f->fds[f->cursor] >= 0)
            feed(f, f->cursor);
        else if (may) {
            open_one(f, f->cursor);
            may--;
        }
    }
}

int main(int argc, char **argv)
{
    if (argc != 5) {
        fprintf(stderr, "usage: half_open PORT COUNT RATE SECONDS\n");
        return 2;
    }
    struct flood f = {.port = (unsigned)strtoul(argv[1], NULL, 10), .count = (unsigned)strtoul(argv[2], NULL, 10), .rate = (unsigned)strtoul(argv[3], NULL, 10)};
    struct rlimit many = {f.count + 64, f.count + 64};
    if (!f.count || !f.rate || setrlimit(RLIMIT_NOFILE, &many) < 0 || !(f.fds = malloc(f.count * sizeof *f.fds))) {
        fprintf(stderr, "half_open: %u descriptors cannot be had\n", f.count);
        return 1;
    }
    memset(f.fds, 0xff, f.count * sizeof *f.fds);
    uint64_t end = now_ms() + 1000ull * (unsigned)strtoul(argv[4], NULL, 10), last = now_ms();
    while (last < end) {
        usleep(5000);
        uint64_t now = now_ms();
        step(&f, (unsigned)(now - last));
        last = now;
    }
    printf("{\"opened\":%lu,\"dropped\":%lu,\"peak\":%lu}\n", f.opened, f.dropped, f.peak);
    free(f.fds);
    return 0;
}
