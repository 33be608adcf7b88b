/* What the load generators share: options, random offsets, the open loop's clock, latencies, CPU of both sides, the result's JSON. */
#ifndef BENCH_LOAD_H
#define BENCH_LOAD_H
#include "common/cleanup.h"
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>

#define LOAD_CONNS_MAX 16
#define LOAD_DEPTH_MAX 256
#define LOAD_BUCKETS 4096 /* of latency: 64 per power of two */
#define LOAD_TRACED_MAX (1ull << 26)

struct load_traced { /* one command, on the monotonic clock; a trace is a file of them, in the order in which they ended */
    uint64_t start_ns, end_ns;
};

struct load {
    const char *name, *rw; /* the program; randread, randwrite, read, write */
    uint64_t bs, size, time_s, rate;
    unsigned depth, n_conns;
    int writes, sequential, flush;
    int pids[4]; /* of the server */
    unsigned n_pids;
    uint64_t seed, offered, start_ns, end_ns;
    uint64_t done, bytes, errors, hist[LOAD_BUCKETS], sum_ns, max_ns;
    double server_cpu, own_cpu;
    const char *trace; /* file; NULL: none */
    struct load_traced *traced;
    uint64_t n_traced;
};
#define LOAD_DEFAULTS .rw = "randread", .bs = 4096, .depth = 32, .n_conns = 1, .time_s = 5, .size = 1u << 30, .seed = 88172645463325252u

static inline _Noreturn void load_fail(const struct load *l, const char *what)
{
    fprintf(stderr, "%s: %s\n", l->name, what);
    exit(1);
}

static inline uint64_t load_clock(clockid_t id)
{
    struct timespec ts = {0};
    clock_gettime(id, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static inline uint64_t load_now(void)
{
    return load_clock(CLOCK_MONOTONIC);
}

static inline uint64_t load_random(struct load *l)
{
    l->seed ^= l->seed << 13;
    l->seed ^= l->seed >> 7;
    l->seed ^= l->seed << 17;
    return l->seed;
}

/* Bytes from the start to the next block; @seq counts the blocks of one connection. */
static inline uint64_t load_offset(struct load *l, uint64_t *seq)
{
    uint64_t blocks = l->size / l->bs;
    return (l->sequential ? (*seq)++ % blocks : load_random(l) % blocks) * l->bs;
}

static inline uint64_t load_number(const char *text)
{
    char *end;
    uint64_t v = strtoull(text, &end, 10);
    if (*end == 'k' || *end == 'K')
        v <<= 10;
    if (*end == 'm' || *end == 'M')
        v <<= 20;
    if (*end == 'g' || *end == 'G')
        v <<= 30;
    return v;
}

/* One option of those every generator has; how many words it took, 0 if it is none of them. */
static inline int load_option(struct load *l, const char *o, const char *v)
{
    if (!strcmp(o, "--flush")) {
        l->flush = 1;
        return 1;
    }
    if (!strcmp(o, "--rw"))
        l->rw = v;
    else if (!strcmp(o, "--bs"))
        l->bs = load_number(v);
    else if (!strcmp(o, "--depth"))
        l->depth = (unsigned)load_number(v);
    else if (!strcmp(o, "--conns"))
        l->n_conns = (unsigned)load_number(v);
    else if (!strcmp(o, "--rate"))
        l->rate = load_number(v);
    else if (!strcmp(o, "--time"))
        l->time_s = load_number(v);
    else if (!strcmp(o, "--size"))
        l->size = load_number(v);
    else if (!strcmp(o, "--trace"))
        l->trace = v;
    else if (!strcmp(o, "--pid") && l->n_pids < 4)
        l->pids[l->n_pids++] = (int)load_number(v);
    else
        return 0;
    return 2;
}

static inline void load_options_end(struct load *l)
{
    l->writes = strstr(l->rw, "write") != NULL;
    l->sequential = !strstr(l->rw, "rand");
    if (!l->bs || l->bs % 512 || !l->depth || l->depth > LOAD_DEPTH_MAX || !l->n_conns || l->n_conns > LOAD_CONNS_MAX || l->size < l->bs)
        load_fail(l, "an option is out of range");
}

static volatile sig_atomic_t load_enough; /* set by a signal, so it can be nowhere else */
static inline void load_on_term(int signo)
{
    (void)signo;
    load_enough = 1;
}

/* Is it time for more? SIGTERM ends a load before its time. */
static inline int load_goes_on(struct load *l)
{
    uint64_t now = load_now();
    if (load_enough)
        l->end_ns = GR_MIN(l->end_ns, now);
    return now < l->end_ns;
}

/* When the command now issued counts as started: at a fixed rate, when it was due. */
static inline uint64_t load_started(struct load *l)
{
    uint64_t ns = l->rate ? l->start_ns + l->offered * 1000000000u / l->rate : load_now();
    l->offered++;
    return ns;
}

static inline uint64_t load_until_due(const struct load *l)
{
    uint64_t due = l->start_ns + l->offered * 1000000000u / l->rate, now = load_now();
    return due > now ? due - now : 0;
}

static inline void load_finished(struct load *l, uint64_t started_ns)
{
    uint64_t now = load_now(), ns = now > started_ns ? now - started_ns : 0;
    unsigned log = 63 - (unsigned)__builtin_clzll(ns | 1);
    unsigned sub = log > 6 ? (unsigned)(ns >> (log - 6)) & 63u : (unsigned)ns & 63u;
    l->hist[GR_MIN(log * 64 + sub, LOAD_BUCKETS - 1u)]++;
    l->sum_ns += ns;
    l->max_ns = GR_MAX(l->max_ns, ns);
    l->done++;
    l->bytes += l->bs;
    if (l->traced && l->n_traced < LOAD_TRACED_MAX)
        l->traced[l->n_traced++] = (struct load_traced){started_ns, now};
}

static inline double load_percentile(const struct load *l, double p)
{
    uint64_t want = (uint64_t)(p * (double)l->done), seen = 0;
    for (unsigned b = 0; b < LOAD_BUCKETS; b++) {
        seen += l->hist[b];
        if (seen > want) {
            unsigned log = b / 64, sub = b % 64;
            return log > 6 ? (double)((1ull << log) + ((uint64_t)sub << (log - 6))) / 1000 : (double)sub / 1000;
        }
    }
    return 0;
}

/* Seconds of CPU all processes given with --pid have used, threads that ended and workers of io_uring included. */
static inline double load_server_cpu(const struct load *l)
{
    double sum = 0;
    for (unsigned i = 0; i < l->n_pids; i++) {
        clockid_t id;
        if (clock_getcpuclockid(l->pids[i], &id))
            load_fail(l, "no such process as --pid says");
        sum += (double)load_clock(id) / 1e9;
    }
    return sum;
}

static inline void load_start(struct load *l)
{
    signal(SIGTERM, load_on_term);
    prctl(PR_SET_TIMERSLACK, 1); /* the kernel's usual 50 us would be late for --rate */
    if (l->trace) {
        l->traced = mmap(NULL, LOAD_TRACED_MAX * sizeof *l->traced, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (l->traced == MAP_FAILED)
            load_fail(l, "no memory for the trace");
    }
    l->server_cpu = load_server_cpu(l);
    l->own_cpu = (double)load_clock(CLOCK_PROCESS_CPUTIME_ID) / 1e9;
    l->start_ns = load_now();
    l->end_ns = l->start_ns + l->time_s * 1000000000u;
}

static inline void load_trace_write(const struct load *l)
{
    FILE *f = fopen(l->trace, "w");
    if (!f || fwrite(l->traced, sizeof *l->traced, l->n_traced, f) != l->n_traced || fclose(f) != 0)
        load_fail(l, "the trace cannot be written");
}

static inline int load_end(const struct load *l)
{
    if (l->traced)
        load_trace_write(l);
    double secs = (double)(load_now() - l->start_ns) / 1e9, n = (double)(l->done ? l->done : 1);
    double own = (double)load_clock(CLOCK_PROCESS_CPUTIME_ID) / 1e9 - l->own_cpu, server = load_server_cpu(l) - l->server_cpu;
    printf("{\"rw\":\"%s\",\"bs\":%llu,\"depth\":%u,\"conns\":%u,\"iops\":%.0f,\"mib-s\":%.1f,", l->rw, (unsigned long long)l->bs, l->depth,
           l->n_conns, (double)l->done / secs, (double)l->bytes / secs / 1048576);
    printf("\"p50-us\":%.1f,\"p99-us\":%.1f,\"max-us\":%.1f,\"mean-us\":%.1f,", load_percentile(l, 0.5), load_percentile(l, 0.99),
           (double)l->max_ns / 1000, (double)l->sum_ns / n / 1000);
    printf("\"errors\":%llu,\"client-cpu\":%.2f,\"target-cpu\":%.3f,\"ops\":%llu}\n", (unsigned long long)l->errors, own / secs,
           server / secs, (unsigned long long)l->done);
    return l->errors != 0;
}
#endif
