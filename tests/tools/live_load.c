/* An initiator that works and verifies while a target is changed under it: writes and reads back 4 KiB blocks one at a time, follows
 * redirects, comes back when its connection is lost, and does again what was not answered. What was answered must be there afterwards, also
 * when the target was killed meanwhile, flushed or not; every eighth write is followed by a flush. Counts unit attentions by their code.
 *
 *   live_load HOST:PORT TARGET SECONDS [NAME [FIRST-LBA]]
 *
 * Prints {"ios":N,"errors":N,"reconnects":N,"longest-ms":F,"attentions":{"2a09":N}}: longest-ms is the longest time between two answers.
 * SIGUSR1 begins that measurement anew; SIGTERM ends the work before its time, when the command under way is answered. Errors are described on standard error. Exit: 1 when there were any. */
#include "common/cleanup.h"
#include "tests/lib/ini.h"
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define BLOCK 4096u
#define BLOCKS 512u
#define SECTORS (BLOCK / 512)
#define LOST_MS 30000u /* without a target for so long is an error */

struct live {
    const char *target, *name, *first_at; /* where the target was to be found before any redirect */
    char host[64], port[8];
    struct ini ini;
    uint32_t first, generation[BLOCKS];
    bool unknown[BLOCKS]; /* the medium has changed: which generation a block holds is to be seen */
    unsigned writes;
    uint64_t seed, last_us, longest_us;
    unsigned long ios, errors, reconnects;
    struct {
        unsigned code;
        unsigned long n;
    } attentions[16];
};

static volatile sig_atomic_t anew, enough; /* set by signals */
static void on_signal(int signo)
{
    if (signo == SIGUSR1)
        anew = 1;
    else
        enough = 1;
}

static uint64_t now_us(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000 + (uint64_t)ts.tv_nsec / 1000;
}

/* splitmix64: its low bits are as good as its high ones. */
static uint64_t next_random(struct live *l)
{
    uint64_t z = l->seed += 0x9e3779b97f4a7c15ull;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}

static void error(struct live *l, const char *what, unsigned a, unsigned b)
{
    l->errors++;
    fprintf(stderr, "live_load: %s (%x, %x) after %lu\n", what, a, b, l->ios);
}

/* "host:port", or the target of a redirect. */
static void aim(struct live *l, const char *at)
{
    const char *colon = strrchr(at, ':');
    snprintf(l->host, sizeof l->host, "%.*s", colon ? (int)(colon - at) : 0, at);
    snprintf(l->port, sizeof l->port, "%.7s", colon ? colon + 1 : "");
    l->port[strcspn(l->port, ",")] = 0;
}

static bool log_in(struct live *l)
{
    static const char keys[] = "InitialR2T=No\0ImmediateData=Yes\0MaxRecvDataSegmentLength=65536";
    if (ini_connect(&l->ini, l->host, l->port) < 0) {
        aim(l, l->first_at); /* who we were led to is gone: ask again */
        return false;
    }
    int r = ini_login(&l->ini, l->name, l->target, keys, sizeof keys);
    if (r >= 0 && l->ini.login_status == TGT_LOGIN_MOVED && ini_key(&l->ini, "TargetAddress"))
        aim(l, ini_key(&l->ini, "TargetAddress"));
    if (r >= 0 && !l->ini.login_status)
        return true;
    ini_close(&l->ini);
    return false;
}

static bool reconnect(struct live *l)
{
    uint64_t until = now_us() + LOST_MS * 1000ull;
    l->reconnects++;
    ini_close(&l->ini);
    while (!log_in(l)) {
        if (now_us() > until)
            return false;
        usleep(5000);
    }
    return true;
}

static void attention(struct live *l, unsigned code)
{
    size_t k = 0;
    while (k < GR_ARRAY_LEN(l->attentions) - 1 && l->attentions[k].n && l->attentions[k].code != code)
        k++;
    l->attentions[k].code = code;
    l->attentions[k].n++;
    if (code == 0x2800)
        memset(l->unknown, true, sizeof l->unknown); /* the bytes are those of some time before */
}

static void answered(struct live *l)
{
    uint64_t now = now_us();
    if (anew)
        l->longest_us = anew = 0;
    else if (now - l->last_us > l->longest_us)
        l->longest_us = now - l->last_us;
    l->last_us = now;
}

/* One command, until it is answered with GOOD. False: it is not to be had. */
static bool command(struct live *l, const uint8_t *cdb, const void *out, void *in)
{
    for (;;) {
        struct ini_result r;
        int rc = ini_cmd(&l->ini, cdb, 10, out, out ? BLOCK : 0, in, in ? BLOCK : 0, &r);
        if (rc < 0) {
            if (!reconnect(l)) {
                error(l, "no target any more", (unsigned)-rc, 0);
                return false;
            }
            continue;
        }
        answered(l);
        if (r.status == 0)
            return true;
        if (r.status == 2 && INI_KEY(r) == 6) {
            attention(l, INI_ASC(r));
        } else if (r.status != 8) { /* BUSY asks to come again */
            error(l, "a command failed: key, additional sense", INI_KEY(r), INI_ASC(r));
            return false;
        }
    }
}

static void fill(uint8_t *p, uint32_t block, uint32_t generation)
{
    uint32_t words[BLOCK / 4];
    for (size_t k = 0; k < GR_ARRAY_LEN(words); k++)
        words[k] = generation ? (block * 2654435761u) ^ (generation + (uint32_t)k * 40503u) : 0;
    memcpy(p, words, BLOCK);
}

/* The generation in @data, if it is one that was written. */
static uint32_t learn(struct live *l, uint32_t block, const uint8_t *data)
{
    uint32_t word;
    memcpy(&word, data, sizeof word);
    uint32_t generation = word ? word ^ block * 2654435761u : 0;
    l->unknown[block] = false;
    return generation <= l->generation[block] ? generation : l->generation[block];
}

static void one(struct live *l)
{
    static const uint8_t sync[10] = {0x35};
    static uint8_t data[BLOCK], want[BLOCK];
    uint8_t cdb[10] = {0, [8] = SECTORS};
    uint32_t block = (uint32_t)(next_random(l) % BLOCKS);
    bool write = next_random(l) % 2;
    gr_put_be32(cdb + 2, l->first + block * SECTORS);
    cdb[0] = write ? 0x2a : 0x28;
    if (write) {
        fill(data, block, l->generation[block] + 1);
        if (command(l, cdb, data, NULL)) {
            l->generation[block]++;
            l->unknown[block] = false;
        }
        if (++l->writes % 8 == 0)
            command(l, sync, NULL, NULL);
    } else if (command(l, cdb, NULL, data)) {
        if (l->unknown[block])
            l->generation[block] = learn(l, block, data);
        fill(want, block, l->generation[block]);
        if (memcmp(data, want, BLOCK) != 0)
            error(l, "wrong bytes: block, generation", block, l->generation[block]);
    }
    l->ios++;
}

static void print(const struct live *l)
{
    printf("{\"ios\":%lu,\"errors\":%lu,\"reconnects\":%lu,\"longest-ms\":%.1f,\"attentions\":{", l->ios, l->errors, l->reconnects,
           (double)l->longest_us / 1000);
    for (size_t k = 0; k < GR_ARRAY_LEN(l->attentions) && l->attentions[k].n; k++)
        printf("%s\"%04x\":%lu", k ? "," : "", l->attentions[k].code, l->attentions[k].n);
    printf("}}\n");
}

int main(int argc, char **argv)
{
    static struct live l = {.seed = 88172645463325252ull, .name = "iqn.2026-11.local.granary:live"};
    if (argc < 4) {
        fprintf(stderr, "usage: live_load HOST:PORT TARGET SECONDS [NAME [FIRST-LBA]]\n");
        return 2;
    }
    signal(SIGUSR1, on_signal);
    signal(SIGTERM, on_signal);
    signal(SIGPIPE, SIG_IGN);
    l.first_at = argv[1];
    aim(&l, argv[1]);
    l.target = argv[2];
    if (argc > 4)
        l.name = argv[4];
    if (argc > 5)
        l.first = (uint32_t)strtoul(argv[5], NULL, 10);
    uint64_t end = now_us() + 1000000ull * strtoul(argv[3], NULL, 10);
    for (int k = 0; !log_in(&l) && k < 100; k++) /* it may be redirected */
        usleep(20000);
    l.last_us = now_us();
    while (!enough && now_us() < end && l.errors < 10)
        one(&l);
    print(&l);
    return l.errors ? 1 : 0;
}
