/* An initiator with a path to every host that may serve a disk, on portals that never redirect (granary up --multipath-portal): it keeps
 * writes under way through the path that is active and keeps asking the others, and holds what it sees against tests/lib/fault_oracle.h.
 * While it works, FILE of --status has one line of JSON that tells who owns the disk and how much was answered.
 *
 *   fault_load TARGET HOST:PORT... [--disk N] [--depth N] [--seed N] [--pause MS] [--status FILE] [--quiet-paths]
 *
 * --pause: between a burst, as deep as the depth, and the next one; without, there are always so many under way.
 * --quiet-paths: asks another host only when the owner is no longer known, so that nobody contends for a disk whose owner is there.
 * SIGTERM: what is under way is waited for, everything is read through the owner once more, and the tally is printed. Exit: 1 when
 * something was stale, lost (or older than what was answered) or garbage, or nobody owns the disk at the end, 2 for bad arguments. */
#include "common/cleanup.h"
#include "tests/lib/fault_oracle.h"
#include "tests/lib/ini.h"
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define HOSTS_MAX FO_HOSTS
#define DEPTH_MAX 64u
#define SECTORS (FO_PIECE / 512)
#define LOOK_PIECES 32u /* in one READ */
#define FLUSH_EVERY 16u
#define PATIENCE_S 40 /* for an owner, at the end */

struct load;
struct slot {
    enum { FREE, WRITE, READ, FLUSH } kind;
    unsigned piece;
    uint64_t number; /* of the write; what a flush covers */
    uint8_t data[FO_PIECE]; /* of the write, to be sent again when the target asks to */
};
struct path {
    struct load *load;
    unsigned host;
    char address[64], port[8], name[64];
    struct ini ini;
    struct slot slot[DEPTH_MAX];
    unsigned under_way, writes;
    uint64_t seed;
    pthread_t thread;
    uint8_t *all; /* everything, as last read */
};
struct load {
    const char *target, *status;
    unsigned hosts, depth, disk, pause_ms;
    bool quiet;
    struct fo *oracle;
    struct path path[HOSTS_MAX];
    atomic_bool closing, over; /* no new commands; everything was looked at for the last time */
    atomic_uint refused, failed; /* these of them with MEDIUM or HARDWARE ERROR, and looks */
};

static volatile sig_atomic_t enough;
static void on_signal(int signo)
{
    enough = signo;
}

static uint64_t next_random(struct path *p)
{
    uint64_t z = p->seed += 0x9e3779b97f4a7c15ull;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}

static int owner(const struct load *l)
{
    struct fo_tally t;
    fo_tally(l->oracle, &t);
    return t.owner;
}

static void drop_session(struct path *p)
{
    for (unsigned i = 0; i < DEPTH_MAX; i++) {
        if (p->slot[i].kind == READ)
            fo_read_lost(p->load->oracle, p->host, p->slot[i].piece);
        p->slot[i].kind = FREE;
    }
    p->under_way = 0;
    ini_close(&p->ini);
}

static bool log_in(struct path *p)
{
    static const char keys[] = "InitialR2T=No\0ImmediateData=Yes\0MaxRecvDataSegmentLength=65536";
    if (ini_connect(&p->ini, p->address, p->port) < 0)
        return false;
    p->ini.isid[5] = (uint8_t)p->host;
    p->ini.timeout_ms = 2000;
    if (ini_login(&p->ini, p->name, p->load->target, keys, sizeof keys) < 0 || p->ini.login_status) {
        ini_close(&p->ini);
        return false;
    }
    p->ini.timeout_ms = 20000; /* within a PDU, or for a command that nothing else is under way beside */
    return true;
}

static bool failed(const struct ini_result *r)
{
    return r->status == 2 && (INI_KEY(*r) == 3 || INI_KEY(*r) == 4);
}

/* Read everything, one command at a time: 1, 0 when this path is not the active one, -1 when the session is lost. */
static int read_all(struct path *p)
{
    for (unsigned i = 0; i < FO_PIECES && !p->load->over;) {
        uint8_t cdb[10] = { 0x28 };
        struct ini_result r;
        gr_put_be32(cdb + 2, i * SECTORS);
        gr_put_be16(cdb + 7, LOOK_PIECES * SECTORS);
        if (ini_cmd(&p->ini, cdb, 10, NULL, 0, p->all + (size_t)i * FO_PIECE, LOOK_PIECES * FO_PIECE, &r) < 0)
            return -1;
        if (r.status == 0)
            i += LOOK_PIECES;
        else if (r.status != 8 && (r.status != 2 || INI_KEY(r) != 6)) { /* busy, and unit attentions, ask to come again */
            p->load->failed += failed(&r);
            return 0;
        }
    }
    return p->load->over ? 0 : 1;
}

/* This path is the active one from now on: 1; else as above. */
static int acquire(struct path *p)
{
    uint64_t looks = fo_looks(p->load->oracle);
    int r = read_all(p);
    if (r == 1 && !fo_settle(p->load->oracle, p->host, looks, p->all))
        return 0;
    return r;
}

/* ---- commands under way ---- */
static int send_slot(struct path *p, unsigned i)
{
    const struct slot *s = &p->slot[i];
    uint8_t bhs[TGT_BHS_LEN], cdb[10] = { 0 };
    cdb[0] = s->kind == WRITE ? 0x2a : s->kind == READ ? 0x28 : 0x35;
    cdb[8] = s->kind == FLUSH ? 0 : SECTORS;
    gr_put_be32(cdb + 2, s->kind == FLUSH ? 0 : s->piece * SECTORS);
    p->ini.itt = i + 0xfff; /* the tag names the slot */
    ini_cmd_bhs(&p->ini, bhs, cdb, 10, (uint8_t)(TGT_FINAL | (s->kind == WRITE ? TGT_CMD_WRITE : s->kind == READ ? TGT_CMD_READ : 0)), s->kind == FLUSH ? 0 : FO_PIECE);
    return ini_send(&p->ini, bhs, s->kind == WRITE ? s->data : NULL, s->kind == WRITE ? FO_PIECE : 0);
}

/* As many as the depth and the target's window allow. -1: the session is lost. */
static int send_more(struct path *p)
{
    for (unsigned i = 0; i < p->load->depth && !p->load->closing && (int32_t)(p->ini.maxcmdsn - p->ini.cmdsn) >= 0; i++) {
        struct slot *s = &p->slot[i];
        if (s->kind != FREE)
            continue;
        bool flush = p->writes >= FLUSH_EVERY, write = next_random(p) % 4 != 0;
        int piece = flush ? 0 : fo_begin(p->load->oracle, p->host, next_random(p), write, s->data, &s->number);
        if (piece < 0)
            break;
        if (flush)
            s->number = fo_flush_begin(p->load->oracle);
        s->kind = flush ? FLUSH : write ? WRITE : READ;
        s->piece = (unsigned)piece;
        p->writes = flush ? 0 : p->writes + write;
        p->under_way++;
        if (send_slot(p, i) < 0)
            return -1;
    }
    return 0;
}

/* An answer: 1; 0: this path is the active one no longer; -1: the session is lost. */
static int take_answer(struct path *p)
{
    uint8_t bhs[TGT_BHS_LEN], data[FO_PIECE + 512];
    struct ini_result r = { 0 };
    int n = ini_recv(&p->ini, bhs, data, sizeof data);
    unsigned op = n < 0 ? 0 : tgt_bhs_opcode(bhs), i = n < 0 ? 0 : tgt_bhs_itt(bhs) - 0x1000;
    if (n < 0 || i >= DEPTH_MAX || p->slot[i].kind == FREE || (op != TGT_OP_SCSI_RSP && op != TGT_OP_DATA_IN))
        return -1;
    struct slot *s = &p->slot[i];
    if (op == TGT_OP_DATA_IN && (!(bhs[1] & 1) || s->kind != READ || n != (int)FO_PIECE))
        return -1;
    p->ini.expstatsn = gr_get_be32(bhs + 24) + 1;
    r.status = bhs[3];
    if (op == TGT_OP_SCSI_RSP && n > 2 + 14) {
        r.sense_len = 18;
        memcpy(r.sense, data + 2, 14);
    }
    if (r.status == 8 || (r.status == 2 && INI_KEY(r) == 6))
        return send_slot(p, i) < 0 ? -1 : 1;
    int done = r.status == 0;
    if (done && s->kind == WRITE)
        fo_wrote(p->load->oracle, s->piece, s->number);
    else if (done && s->kind == FLUSH)
        fo_flushed(p->load->oracle, s->number);
    else if (done && s->kind == READ)
        fo_read(p->load->oracle, p->host, s->piece, data);
    else if (!done && s->kind == READ)
        fo_read_lost(p->load->oracle, p->host, s->piece);
    s->kind = FREE;
    p->under_way--;
    p->load->refused += !done;
    p->load->failed += failed(&r);
    return done;
}

/* While this path is the active one: 0 when it is not any more and nothing is under way, -1 when the session is lost. */
static int work(struct path *p)
{
    bool active = true;
    while (!p->load->over) {
        if (p->load->pause_ms && !p->under_way && active)
            usleep(p->load->pause_ms * 1000);
        if (active && !(p->load->pause_ms && p->under_way) && owner(p->load) == (int)p->host && send_more(p) < 0)
            return -1;
        if (!p->under_way && (!active || p->load->closing || owner(p->load) != (int)p->host))
            return 0;
        struct pollfd pf = { p->ini.fd, POLLIN, 0 };
        int r = poll(&pf, 1, 50);
        if (r > 0 && (r = take_answer(p)) <= 0) {
            if (r < 0)
                return -1;
            active = false;
        }
    }
    return 0;
}

static void *path_thread(void *arg)
{
    struct path *p = arg;
    struct load *l = p->load;
    while (!l->over) {
        if (l->quiet && owner(l) >= 0 && owner(l) != (int)p->host) {
            usleep(50000);
            continue;
        }
        if (p->ini.fd < 0 && !log_in(p)) {
            usleep(20000);
            continue;
        }
        int r = acquire(p);
        if (r > 0 && l->closing) {
            l->over = true;
            break;
        }
        if (r > 0)
            r = work(p);
        if (r < 0)
            drop_session(p);
        else if (!l->closing)
            usleep(50000);
    }
    ini_close(&p->ini);
    return NULL;
}

/* ---- the whole ---- */
static void tell(const struct load *l, FILE *f)
{
    struct fo_tally t;
    fo_tally(l->oracle, &t);
    fprintf(f, "{\"from\":[");
    for (unsigned h = 0; h < l->hosts; h++)
        fprintf(f, "%s%llu", h ? "," : "", (unsigned long long)t.from[h]);
    fprintf(f, "],\"owner\":%d,\"acked\":%llu,\"reads\":%llu,\"looks\":%llu,\"changes\":%llu,\"refused\":%u,\"failed\":%u,\"stale\":%llu,\"lost\":%llu,\"older\":%llu,\"garbage\":%llu}\n",
            t.owner,
            (unsigned long long)t.acked, (unsigned long long)t.reads, (unsigned long long)t.settled, (unsigned long long)t.changes, l->refused, l->failed,
            (unsigned long long)t.stale, (unsigned long long)t.lost, (unsigned long long)t.older, (unsigned long long)t.garbage);
}

static void write_status(const struct load *l)
{
    char temp[512];
    if (!l->status)
        return;
    snprintf(temp, sizeof temp, "%s.new", l->status);
    FILE *f = fopen(temp, "we");
    if (!f)
        return;
    tell(l, f);
    if (fclose(f) == 0)
        (void)rename(temp, l->status);
}

static int usage(void)
{
    fprintf(stderr, "usage: fault_load TARGET HOST:PORT... [--disk N] [--depth N] [--seed N] [--pause MS] [--status FILE] [--quiet-paths]\n");
    return 2;
}

static bool path_add(struct load *l, const char *at)
{
    const char *colon = strrchr(at, ':');
    struct path *p = &l->path[l->hosts];
    if (!colon || l->hosts == HOSTS_MAX)
        return false;
    *p = (struct path){ .load = l, .host = l->hosts, .ini.fd = -1, .all = malloc((size_t)FO_PIECES * FO_PIECE) };
    snprintf(p->address, sizeof p->address, "%.*s", (int)(colon - at), at);
    snprintf(p->port, sizeof p->port, "%s", colon + 1);
    l->hosts++;
    return p->all != NULL;
}

static int run(struct load *l, uint64_t seed)
{
    struct fo_tally t;
    time_t last = 0;
    l->oracle = fo_new(l->disk, seed);
    for (unsigned i = 0; i < l->hosts; i++) {
        struct path *p = &l->path[i];
        p->seed = seed * 64 + i;
        snprintf(p->name, sizeof p->name, "iqn.2026-11.local.granary:fault-%u", l->disk);
        if (pthread_create(&p->thread, NULL, path_thread, p))
            return 1;
    }
    while (!l->over && (!last || time(NULL) < last)) {
        write_status(l);
        usleep(30000);
        l->closing = enough;
        if (enough && !last)
            last = time(NULL) + PATIENCE_S;
    }
    bool looked = l->over;
    l->over = true;
    for (unsigned i = 0; i < l->hosts; i++)
        pthread_join(l->path[i].thread, NULL);
    write_status(l);
    tell(l, stdout);
    fo_tally(l->oracle, &t);
    fo_free(l->oracle);
    if (!looked)
        fprintf(stderr, "disk %u: no host could be asked for it at the end\n", l->disk);
    return !looked || t.stale || t.lost || t.older || t.garbage;
}

int main(int argc, char **argv)
{
    static struct load l = { .depth = 8 };
    uint64_t seed = 1;
    signal(SIGTERM, on_signal);
    signal(SIGPIPE, SIG_IGN);
    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (!strcmp(argv[i], "--quiet-paths")) {
            l.quiet = true;
            continue;
        }
        if (argv[i][0] != '-') {
            if (!l.target)
                l.target = argv[i];
            else if (!path_add(&l, argv[i]))
                return usage();
            continue;
        }
        if (!value)
            return usage();
        if (!strcmp(argv[i], "--disk"))
            l.disk = (unsigned)strtoul(value, NULL, 10);
        else if (!strcmp(argv[i], "--depth"))
            l.depth = (unsigned)strtoul(value, NULL, 10);
        else if (!strcmp(argv[i], "--seed"))
            seed = strtoull(value, NULL, 10);
        else if (!strcmp(argv[i], "--pause"))
            l.pause_ms = (unsigned)strtoul(value, NULL, 10);
        else if (!strcmp(argv[i], "--status"))
            l.status = value;
        else
            return usage();
        i++;
    }
    if (!l.hosts || !l.depth || l.depth > DEPTH_MAX)
        return usage();
    return run(&l, seed);
}
