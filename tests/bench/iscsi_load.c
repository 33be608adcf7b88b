/* Load generator for iSCSI targets: several connections, a fixed depth on each, latency percentiles, CPU of both sides.
 *
 *   iscsi_load HOST:PORT TARGET --rw randread|randwrite|read|write [--bs BYTES] [--depth N] [--conns N] [--time S] [--size BYTES]
 *              [--lun N] [--rate N] [--flush] [--digests] [--pid PID]...
 *
 * It batches as much as it can (one recv and one send per wake-up), so that the target is what is measured. Prints one JSON
 * object. --pid: a process of the target whose CPU time is reported. --rate: so many commands a second are offered, whether earlier ones
 * were answered or not (the depth bounds it); latency counts from the moment a command was due. --flush: every write is followed by a
 * SYNCHRONIZE CACHE, the two count as one. --digests: CRC32C of headers and data (those received are not verified). */
#include "common/cleanup.h"
#include "common/crc.h"
#include "tests/lib/ini.h"
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define CONNS_MAX 16
#define DEPTH_MAX 256
#define RX_BYTES (1u << 20)
#define TX_BYTES (64u << 20)
#define BUCKETS 4096 /* of latency: 64 per power of two */

struct op {
    uint64_t start_ns;
    uint32_t itt, cmdsn;
    int busy, flushing;
};
struct conn {
    struct ini ini;
    struct op ops[DEPTH_MAX];
    uint8_t *rx, *tx;
    size_t rx_end, tx_end, tx_off;
    uint64_t seq;
};
struct load {
    const char *target, *rw;
    uint64_t bs, size, time_s, rate, offered, start_ns;
    unsigned depth, n_conns, lun;
    int writes, sequential, flush, digests;
    int pids[4];
    unsigned n_pids;
    uint64_t seed, done, bytes, errors, hist[BUCKETS], sum_ns, max_ns;
    uint8_t *pattern;
    struct conn conns[CONNS_MAX];
};

static uint64_t now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static uint64_t next_random(struct load *l)
{
    l->seed ^= l->seed << 13;
    l->seed ^= l->seed >> 7;
    l->seed ^= l->seed << 17;
    return l->seed;
}

static void fail(const char *what)
{
    fprintf(stderr, "iscsi_load: %s\n", what);
    exit(1);
}

static void put(struct conn *c, const void *p, size_t len)
{
    if (len > TX_BYTES - c->tx_end && c->tx_off) {
        memmove(c->tx, c->tx + c->tx_off, c->tx_end - c->tx_off);
        c->tx_end -= c->tx_off;
        c->tx_off = 0;
    }
    if (len > TX_BYTES - c->tx_end)
        fail("the send buffer is too small");
    memcpy(c->tx + c->tx_end, p, len);
    c->tx_end += len;
}

static void put_digest(struct conn *c, uint32_t crc)
{
    uint8_t d[4];
    tgt_digest_put(d, crc);
    put(c, d, sizeof d);
}

static void put_pdu(struct conn *c, uint8_t *bhs, const void *data, uint32_t len)
{
    static const uint8_t zeros[8];
    gr_put_be24(bhs + 5, len);
    put(c, bhs, TGT_BHS_LEN);
    if (c->ini.header_digest)
        put_digest(c, gr_crc32c(0, bhs, TGT_BHS_LEN));
    if (!len)
        return;
    put(c, data, len);
    put(c, zeros, tgt_pad4(len));
    if (c->ini.data_digest)
        put_digest(c, gr_crc32c(gr_crc32c(0, data, len), zeros, tgt_pad4(len)));
}

static void issue_flush(struct load *l, struct conn *c, unsigned slot)
{
    uint8_t bhs[TGT_BHS_LEN], cdb[10] = {0x35};
    c->ini.itt = slot + 0xfff;
    ini_cmd_bhs(&c->ini, bhs, cdb, 10, TGT_FINAL, 0);
    bhs[9] = (uint8_t)l->lun;
    put_pdu(c, bhs, NULL, 0);
    c->ops[slot].flushing = 1;
}

static void issue(struct load *l, struct conn *c, unsigned slot)
{
    uint8_t bhs[TGT_BHS_LEN], cdb[16] = {0};
    struct op *op = &c->ops[slot];
    uint64_t blocks = l->size / l->bs;
    uint64_t off = (l->sequential ? c->seq++ % blocks : next_random(l) % blocks) * l->bs;
    uint32_t now = 0;
    cdb[0] = l->writes ? 0x8a : 0x88;
    gr_put_be64(cdb + 2, off / 512);
    gr_put_be32(cdb + 10, (uint32_t)(l->bs / 512));
    c->ini.itt = slot + 0xfff; /* the tag names the slot */
    ini_cmd_bhs(&c->ini, bhs, cdb, 16, (uint8_t)(TGT_FINAL | (l->writes ? TGT_CMD_WRITE : TGT_CMD_READ)), (uint32_t)l->bs);
    if (l->writes && c->ini.immediate_data) {
        now = (uint32_t)GR_MIN(l->bs, GR_MIN(c->ini.first_burst, c->ini.max_send_dsl));
    }
    bhs[9] = (uint8_t)l->lun;
    put_pdu(c, bhs, l->pattern, now);
    op->start_ns = l->rate ? l->start_ns + l->offered * 1000000000u / l->rate : now_ns();
    l->offered++;
    op->busy = 1;
    op->flushing = 0;
}

static void solicited(struct load *l, struct conn *c, const uint8_t *r2t)
{
    uint32_t off = gr_get_be32(r2t + 40), len = gr_get_be32(r2t + 44), sn = 0;
    while (len) {
        uint8_t b[TGT_BHS_LEN];
        uint32_t n = (uint32_t)GR_MIN(len, c->ini.max_send_dsl);
        tgt_bhs_start(b, TGT_OP_DATA_OUT, n == len ? TGT_FINAL : 0, tgt_bhs_itt(r2t), n);
        gr_put_be32(b + 20, gr_get_be32(r2t + 20));
        gr_put_be32(b + 28, c->ini.expstatsn);
        gr_put_be32(b + 36, sn++);
        gr_put_be32(b + 40, off);
        put_pdu(c, b, l->pattern + off, n);
        off += n;
        len -= n;
    }
}

static void count(struct load *l, uint64_t ns)
{
    unsigned log = 63 - (unsigned)__builtin_clzll(ns | 1);
    unsigned sub = log > 6 ? (unsigned)(ns >> (log - 6)) & 63u : (unsigned)ns & 63u;
    l->hist[GR_MIN(log * 64 + sub, BUCKETS - 1u)]++;
    l->sum_ns += ns;
    l->max_ns = GR_MAX(l->max_ns, ns);
}

static double percentile(const struct load *l, double p)
{
    uint64_t want = (uint64_t)(p * (double)l->done), seen = 0;
    for (unsigned b = 0; b < BUCKETS; b++) {
        seen += l->hist[b];
        if (seen > want) {
            unsigned log = b / 64, sub = b % 64;
            return log > 6 ? (double)((1ull << log) + ((uint64_t)sub << (log - 6))) / 1000 : (double)sub / 1000;
        }
    }
    return 0;
}

static void finished(struct load *l, struct conn *c, const uint8_t *b, int running)
{
    unsigned slot = tgt_bhs_itt(b) - 0x1000;
    if (slot >= l->depth || !c->ops[slot].busy)
        fail("an answer for no command");
    if (b[3])
        l->errors++;
    c->ini.expstatsn = gr_get_be32(b + 24) + 1;
    if (l->flush && !c->ops[slot].flushing) {
        issue_flush(l, c, slot);
        return;
    }
    count(l, now_ns() - c->ops[slot].start_ns);
    c->ops[slot].busy = 0;
    l->done++;
    l->bytes += l->bs;
    if (running && !l->rate)
        issue(l, c, slot);
}

/* Offer what is due; nanoseconds until the next. */
static uint64_t offer(struct load *l)
{
    for (;;) {
        uint64_t due = l->start_ns + l->offered * 1000000000u / l->rate, now = now_ns();
        if (due > now)
            return due - now;
        unsigned k = 0, i = 0;
        while (k < l->n_conns && l->conns[k].ops[i].busy)
            if (++i == l->depth) {
                i = 0;
                k++;
            }
        if (k == l->n_conns)
            return 1000000; /* all are under way: it waits, and is late */
        issue(l, &l->conns[k], i);
    }
}

/* Eat whole PDUs; what is left moves to the front. Data-In payload is skipped, also when it is longer than the buffer. */
static void parse(struct load *l, struct conn *c, int running)
{
    size_t pos = 0;
    while (c->rx_end - pos >= TGT_BHS_LEN) {
        const uint8_t *b = c->rx + pos;
        uint32_t len = tgt_bhs_dsl(b);
        size_t whole = TGT_BHS_LEN + len + tgt_pad4(len) + (c->ini.header_digest ? 4u : 0) + (c->ini.data_digest && len ? 4u : 0);
        if (c->rx_end - pos < whole)
            break;
        switch (tgt_bhs_opcode(b)) {
        case TGT_OP_DATA_IN:
            if (b[1] & 1)
                finished(l, c, b, running);
            break;
        case TGT_OP_SCSI_RSP:
            finished(l, c, b, running);
            break;
        case TGT_OP_R2T:
            solicited(l, c, b);
            break;
        case TGT_OP_NOP_IN:
            break;
        default:
            fail("an unexpected answer");
        }
        pos += whole;
    }
    memmove(c->rx, c->rx + pos, c->rx_end - pos);
    c->rx_end -= pos;
}

static void flush(struct conn *c)
{
    while (c->tx_off < c->tx_end) {
        ssize_t n = send(c->ini.fd, c->tx + c->tx_off, c->tx_end - c->tx_off, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EAGAIN)
            return;
        if (n <= 0)
            fail("the target closed the connection");
        c->tx_off += (size_t)n;
    }
    c->tx_off = c->tx_end = 0;
}

static int busy(const struct load *l)
{
    for (unsigned k = 0; k < l->n_conns; k++)
        for (unsigned i = 0; i < l->depth; i++)
            if (l->conns[k].ops[i].busy)
                return 1;
    return 0;
}

static void loop(struct load *l, uint64_t end_ns)
{
    struct pollfd pf[CONNS_MAX];
    int running = 1;
    while (running || busy(l)) {
        struct timespec wait = {.tv_sec = 10};
        if (l->rate && running) {
            uint64_t ns = offer(l);
            wait = (struct timespec){.tv_nsec = (long)GR_MIN(ns, 999999999u)};
            for (unsigned k = 0; k < l->n_conns; k++)
                flush(&l->conns[k]);
        }
        for (unsigned k = 0; k < l->n_conns; k++)
            pf[k] = (struct pollfd){l->conns[k].ini.fd, (short)(POLLIN | (l->conns[k].tx_end ? POLLOUT : 0)), 0};
        int ready = ppoll(pf, l->n_conns, &wait, NULL);
        if (ready < 0 || (!ready && wait.tv_sec))
            fail("the target does not answer");
        running = now_ns() < end_ns;
        for (unsigned k = 0; k < l->n_conns; k++) {
            struct conn *c = &l->conns[k];
            if (pf[k].revents & POLLIN) {
                ssize_t n = recv(c->ini.fd, c->rx + c->rx_end, RX_BYTES - c->rx_end, MSG_DONTWAIT);
                if (n <= 0 && errno != EAGAIN)
                    fail("the target closed the connection");
                c->rx_end += n > 0 ? (size_t)n : 0;
                parse(l, c, running);
            }
            flush(c);
        }
    }
}

static double cpu_of(int pid)
{
    char path[64], line[1024];
    unsigned long user = 0, sys = 0;
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    gr_auto_fclose FILE *f = fopen(path, "r");
    if (!f || !fgets(line, sizeof line, f))
        return 0;
    const char *p = strrchr(line, ')');
    if (!p || sscanf(p + 2, "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &sys) != 2)
        return 0;
    return (double)(user + sys) / (double)sysconf(_SC_CLK_TCK);
}

static double own_cpu(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) + (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

static void log_in(struct load *l, struct conn *c, unsigned number, const char *host, const char *port)
{
    static const char plain[] = "HeaderDigest=None\0DataDigest=None\0InitialR2T=No\0ImmediateData=Yes\0MaxRecvDataSegmentLength=262144\0"
                                "MaxBurstLength=1048576\0FirstBurstLength=262144\0MaxOutstandingR2T=1";
    static const char digests[] = "HeaderDigest=CRC32C\0DataDigest=CRC32C\0InitialR2T=No\0ImmediateData=Yes\0MaxRecvDataSegmentLength=262144\0"
                                  "MaxBurstLength=1048576\0FirstBurstLength=262144\0MaxOutstandingR2T=1";
    char name[64];
    c->rx = malloc(RX_BYTES);
    c->tx = malloc(TX_BYTES);
    snprintf(name, sizeof name, "iqn.2026-11.local.granary:load%u", number);
    if (!c->rx || !c->tx || ini_connect(&c->ini, host, port) < 0)
        fail("cannot connect");
    if (ini_login(&c->ini, name, l->target, l->digests ? digests : plain, l->digests ? sizeof digests : sizeof plain) < 0 || c->ini.login_status)
        fail("the login was refused");
    uint8_t tur[6] = {0};
    struct ini_result r;
    for (int k = 0; k < 3; k++) /* unit attentions */
        if (ini_cmd(&c->ini, tur, 6, NULL, 0, NULL, 0, &r) < 0)
            fail("TEST UNIT READY failed");
    c->seq = number * (l->size / l->bs / l->n_conns);
}

static uint64_t number(const char *text)
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

static void options(struct load *l, int argc, char **argv)
{
    for (int i = 3; i < argc; i++) {
        const char *o = argv[i], *v = i + 1 < argc ? argv[i + 1] : "";
        if (!strcmp(o, "--flush")) {
            l->flush = 1;
            continue;
        }
        if (!strcmp(o, "--digests")) {
            l->digests = 1;
            continue;
        }
        i++;
        if (!strcmp(o, "--rw"))
            l->rw = v;
        else if (!strcmp(o, "--bs"))
            l->bs = number(v);
        else if (!strcmp(o, "--depth"))
            l->depth = (unsigned)number(v);
        else if (!strcmp(o, "--conns"))
            l->n_conns = (unsigned)number(v);
        else if (!strcmp(o, "--rate"))
            l->rate = number(v);
        else if (!strcmp(o, "--time"))
            l->time_s = number(v);
        else if (!strcmp(o, "--size"))
            l->size = number(v);
        else if (!strcmp(o, "--lun"))
            l->lun = (unsigned)number(v);
        else if (!strcmp(o, "--pid") && l->n_pids < 4)
            l->pids[l->n_pids++] = (int)number(v);
        else
            fail("unknown option");
    }
    l->writes = strstr(l->rw, "write") != NULL;
    l->sequential = !strstr(l->rw, "rand");
    if (!l->bs || l->bs % 512 || !l->depth || l->depth > DEPTH_MAX || !l->n_conns || l->n_conns > CONNS_MAX || l->size < l->bs)
        fail("an option is out of range");
}

int main(int argc, char **argv)
{
    static struct load load = {.rw = "randread", .bs = 4096, .depth = 32, .n_conns = 1, .time_s = 5, .size = 1u << 30, .seed = 88172645463325252u};
    struct load *l = &load;
    char host[256], *colon;
    double before = 0, after = 0;
    if (argc < 3)
        fail("usage: iscsi_load HOST:PORT TARGET [options]");
    l->target = argv[2];
    options(l, argc, argv);
    snprintf(host, sizeof host, "%s", argv[1]);
    colon = strrchr(host, ':');
    if (!colon)
        fail("the portal is not HOST:PORT");
    *colon = 0;
    l->pattern = malloc(l->bs);
    for (uint64_t i = 0; i < l->bs; i++)
        l->pattern[i] = (uint8_t)next_random(l);
    for (unsigned k = 0; k < l->n_conns; k++)
        log_in(l, &l->conns[k], k, host, colon + 1);
    for (unsigned i = 0; i < l->n_pids; i++)
        before += cpu_of(l->pids[i]);
    double own = own_cpu();
    uint64_t start = now_ns();
    l->start_ns = start;
    for (unsigned k = 0; k < l->n_conns; k++) {
        for (unsigned i = 0; i < l->depth && !l->rate; i++)
            issue(l, &l->conns[k], i);
        flush(&l->conns[k]);
    }
    loop(l, start + l->time_s * 1000000000u);
    double secs = (double)(now_ns() - start) / 1e9;
    for (unsigned i = 0; i < l->n_pids; i++)
        after += cpu_of(l->pids[i]);
    printf("{\"rw\":\"%s\",\"bs\":%llu,\"depth\":%u,\"conns\":%u,\"iops\":%.0f,\"mib-s\":%.1f,\"p50-us\":%.1f,\"p99-us\":%.1f,\"max-us\":%.1f,"
           "\"mean-us\":%.1f,\"errors\":%llu,\"client-cpu\":%.2f,\"target-cpu\":%.2f}\n",
           l->rw, (unsigned long long)l->bs, l->depth, l->n_conns, (double)l->done / secs, (double)l->bytes / secs / 1048576,
           percentile(l, 0.5), percentile(l, 0.99), (double)l->max_ns / 1000, (double)l->sum_ns / (double)(l->done ? l->done : 1) / 1000,
           (unsigned long long)l->errors, (own_cpu() - own) / secs, (after - before) / secs);
    return l->errors != 0;
}
