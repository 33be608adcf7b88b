/* A path to an iSCSI portal that can lose answers, and end who uses it: passes bytes on, and knows enough of the PDUs to see what is asked.
 *
 *   iscsi_proxy LISTEN-HOST:PORT HOST:PORT [SEED [PLAN HOST DEVICE PIDFILE]]
 *
 * SIGUSR1: from now on every other answer to a COMPARE AND WRITE (as the seed has it) does not arrive, and the connection ends instead;
 * SIGUSR2: no longer. SIGTERM: prints how many were lost, ends. A stopped proxy is a cut path. With a plan (tests/lib/take_steps.h) it kills the process
 * whose number is in PIDFILE at the moment that the plan says; it is host number HOST, and this the path to device number DEVICE of its datastore, a LUN of
 * blocks of 512 bytes. No digests. */
#include "common/cleanup.h"
#include "tests/lib/ini.h"
#include "tests/lib/take_steps.h"
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define PAIRS 16u
#define BUF (1u << 20)
#define TAGS 256u
#define UNIT 4096u
#define UNIT_BLOCKS (UNIT / 512)

struct side { /* bytes of one direction */
    int from, to;
    uint8_t buf[BUF];
    size_t n;       /* bytes held */
    size_t passing; /* of a PDU whose head was looked at already */
};
struct pair {
    bool used;
    struct side up, down;
    uint32_t tag[TAGS]; /* of COMPARE AND WRITEs under way */
    unsigned tags;
    uint32_t eject; /* tag of a PREEMPT AND ABORT under way */
    bool ejecting;
};
struct proxy {
    const char *host, *port;
    struct pair *pair[PAIRS];
    uint64_t seed;
    unsigned long lost;
    struct take_plan *plan; /* may be NULL */
    unsigned number, device;
    const char *pid_file;
};

static volatile sig_atomic_t losing, enough;
static void on_signal(int signo)
{
    if (signo == SIGTERM)
        enough = 1;
    else
        losing = signo == SIGUSR1;
}

static bool coin(struct proxy *x)
{
    uint64_t z = x->seed += 0x9e3779b97f4a7c15ull;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    return z >> 40 & 1;
}

static int tcp(const char *host, const char *port, bool listening)
{
    struct addrinfo hints = { .ai_socktype = SOCK_STREAM }, *ai = NULL;
    int one = 1;
    if (getaddrinfo(host, port, &hints, &ai))
        return -1;
    int fd = socket(ai->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd >= 0 && listening)
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (fd >= 0 && (listening ? bind(fd, ai->ai_addr, ai->ai_addrlen) || listen(fd, 16) : connect(fd, ai->ai_addr, ai->ai_addrlen))) {
        close(fd);
        fd = -1;
    }
    if (fd >= 0)
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    freeaddrinfo(ai);
    return fd;
}

static void end(struct proxy *x, unsigned i)
{
    close(x->pair[i]->up.from);
    close(x->pair[i]->down.from);
    free(x->pair[i]);
    x->pair[i] = NULL;
}

static bool is(const uint8_t *bhs, unsigned opcode, uint8_t cdb)
{
    return tgt_bhs_opcode(bhs) == opcode && bhs[32] == cdb;
}

/* A PDU passes: is it an answer that gets lost? */
static bool gets_lost(struct proxy *x, struct pair *p, bool up, const uint8_t *bhs)
{
    uint32_t itt = tgt_bhs_itt(bhs);
    if (up && is(bhs, TGT_OP_SCSI_CMD, 0x89) && p->tags < TAGS)
        p->tag[p->tags++] = itt;
    if (!up && tgt_bhs_opcode(bhs) == TGT_OP_SCSI_RSP)
        for (unsigned i = 0; i < p->tags; i++)
            if (p->tag[i] == itt) {
                p->tag[i] = p->tag[--p->tags];
                return losing && coin(x);
            }
    return false;
}

/* So many bytes of a PDU's data must be here before it can be told what it does: the first unit that it writes. */
static size_t data_needed(const struct proxy *x, bool up, const uint8_t *bhs)
{
    size_t most = !x->plan || !x->plan->armed || !up ? 0 : is(bhs, TGT_OP_SCSI_CMD, 0x89) ? 2 * UNIT : is(bhs, TGT_OP_SCSI_CMD, 0x8a) ? UNIT : 0;
    return GR_MIN(most, tgt_bhs_dsl(bhs));
}

/* A PDU passes, @n bytes of its data are here: does the plan end the process that sent it, or is about to hear it? */
static enum take_verdict verdict(struct proxy *x, struct pair *p, bool up, const uint8_t *bhs, const uint8_t *data, size_t n)
{
    const uint8_t *cdb = bhs + 32;
    if (!x->plan || !x->plan->armed)
        return TAKE_GO;
    if (!up) {
        if (tgt_bhs_opcode(bhs) != TGT_OP_SCSI_RSP || !p->ejecting || tgt_bhs_itt(bhs) != p->eject)
            return TAKE_GO;
        p->ejecting = false;
        return take_other(x->plan, x->number, TAKE_EJECTED);
    }
    if (is(bhs, TGT_OP_SCSI_CMD, 0x5f) && (cdb[1] & 31) == 5) {
        p->ejecting = true;
        p->eject = tgt_bhs_itt(bhs);
        return take_other(x->plan, x->number, TAKE_EJECT);
    }
    if (is(bhs, TGT_OP_SCSI_CMD, 0x88))
        return take_read(x->plan, x->number, x->device, gr_get_be64(cdb + 2) / UNIT_BLOCKS, gr_get_be32(cdb + 10) / UNIT_BLOCKS);
    if (is(bhs, TGT_OP_SCSI_CMD, 0x8a) && n >= UNIT)
        return take_write(x->plan, x->number, data);
    if (is(bhs, TGT_OP_SCSI_CMD, 0x89) && n >= 2 * UNIT)
        return take_write(x->plan, x->number, data + UNIT);
    return TAKE_GO;
}

static void end_process(const struct proxy *x)
{
    FILE *f = fopen(x->pid_file, "re");
    int pid = 0;
    if (!f || fscanf(f, "%d", &pid) != 1 || pid <= 1 || kill(pid, SIGKILL) < 0)
        fprintf(stderr, "iscsi_proxy: the process of '%s' cannot be ended: %s\n", x->pid_file, strerror(errno));
    if (f)
        fclose(f);
}

static bool send_all(int fd, const uint8_t *data, size_t len)
{
    while (len) {
        ssize_t n = send(fd, data, len, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        data += n;
        len -= (size_t)n;
    }
    return true;
}

/* What has come of one direction goes on, PDU by PDU. False: it is over. */
static bool pass(struct proxy *x, struct pair *p, struct side *s, bool up)
{
    ssize_t n = recv(s->from, s->buf + s->n, BUF - s->n, 0);
    if (n < 0 && errno == EINTR)
        return true;
    if (n <= 0)
        return false;
    s->n += (size_t)n;
    size_t at = 0;
    while (at < s->n) {
        if (!s->passing) {
            if (s->n - at < TGT_BHS_LEN)
                break;
            const uint8_t *bhs = s->buf + at;
            uint32_t dsl = tgt_bhs_dsl(bhs);
            size_t head = TGT_BHS_LEN + (size_t)bhs[4] * 4, here = s->n - at < head ? 0 : s->n - at - head;
            if (here < data_needed(x, up, bhs))
                break;
            enum take_verdict v = verdict(x, p, up, bhs, bhs + head, GR_MIN(here, (size_t)dsl));
            if (v != TAKE_GO)
                end_process(x);
            if (v == TAKE_KILL_HOLD)
                return false;
            if (gets_lost(x, p, up, bhs)) {
                x->lost++;
                return false;
            }
            s->passing = head + dsl + tgt_pad4(dsl);
        }
        size_t now = GR_MIN(s->passing, s->n - at);
        if (!send_all(s->to, s->buf + at, now))
            return false;
        at += now;
        s->passing -= now;
    }
    memmove(s->buf, s->buf + at, s->n - at);
    s->n -= at;
    return true;
}

static void come(struct proxy *x, int listener)
{
    int in = accept4(listener, NULL, NULL, SOCK_CLOEXEC), one = 1;
    int out = in < 0 ? -1 : tcp(x->host, x->port, false);
    for (unsigned i = 0; i < PAIRS && out >= 0; i++)
        if (!x->pair[i]) {
            x->pair[i] = calloc(1, sizeof *x->pair[i]);
            if (!x->pair[i])
                break;
            setsockopt(in, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
            x->pair[i]->up.from = x->pair[i]->down.to = in;
            x->pair[i]->up.to = x->pair[i]->down.from = out;
            return;
        }
    if (in >= 0)
        close(in);
    if (out >= 0)
        close(out);
}

static void serve(struct proxy *x, int listener)
{
    while (!enough) {
        struct pollfd pf[2 * PAIRS + 1] = { { listener, POLLIN, 0 } };
        for (unsigned i = 0; i < PAIRS; i++) {
            pf[1 + 2 * i] = (struct pollfd){ x->pair[i] ? x->pair[i]->up.from : -1, POLLIN, 0 };
            pf[2 + 2 * i] = (struct pollfd){ x->pair[i] ? x->pair[i]->down.from : -1, POLLIN, 0 };
        }
        if (poll(pf, 2 * PAIRS + 1, 200) <= 0)
            continue;
        for (unsigned i = 0; i < PAIRS; i++)
            if ((pf[1 + 2 * i].revents && !pass(x, x->pair[i], &x->pair[i]->up, true)) ||
                (pf[2 + 2 * i].revents && !pass(x, x->pair[i], &x->pair[i]->down, false)))
                end(x, i);
        if (pf[0].revents)
            come(x, listener);
    }
}

static bool split(char *at, const char **ret_host, const char **ret_port)
{
    char *colon = strrchr(at, ':');
    if (!colon)
        return false;
    *colon = 0;
    *ret_host = at;
    *ret_port = colon + 1;
    return true;
}

int main(int argc, char **argv)
{
    static struct proxy x = { .seed = 1 };
    const char *host, *port;
    struct sigaction sa = { .sa_handler = on_signal };
    if (argc < 3 || !split(argv[1], &host, &port) || !split(argv[2], &x.host, &x.port)) {
        fprintf(stderr, "usage: iscsi_proxy LISTEN-HOST:PORT HOST:PORT [SEED [PLAN HOST DEVICE PIDFILE]]\n");
        return 2;
    }
    if (argc > 3)
        x.seed = strtoull(argv[3], NULL, 10);
    if (argc > 7) {
        x.plan = take_map(argv[4]);
        x.number = (unsigned)strtoul(argv[5], NULL, 10);
        x.device = (unsigned)strtoul(argv[6], NULL, 10);
        x.pid_file = argv[7];
        if (!x.plan) {
            fprintf(stderr, "iscsi_proxy: %s: %s\n", argv[4], strerror(errno));
            return 1;
        }
    }
    sigaction(SIGTERM, &sa, NULL);
    sigaction(SIGUSR1, &sa, NULL);
    sigaction(SIGUSR2, &sa, NULL);
    int listener = tcp(host, port, true);
    if (listener < 0) {
        fprintf(stderr, "iscsi_proxy: cannot listen on %s:%s: %s\n", host, port, strerror(errno));
        return 1;
    }
    serve(&x, listener);
    printf("%lu\n", x.lost);
    return 0;
}
