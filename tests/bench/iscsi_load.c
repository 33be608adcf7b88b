/* Load generator for iSCSI targets: several connections, a fixed depth on each, latency percentiles, CPU of both sides.
 *
 *   iscsi_load HOST:PORT TARGET --rw randread|randwrite|read|write [--bs BYTES] [--depth N] [--conns N] [--time S] [--size BYTES]
 *              [--lun N] [--rate N] [--flush] [--digests] [--trace FILE] [--pid PID]...
 *
 * A '#' in TARGET is the number of the connection, from 1. It batches as much as it can (one recv and one send per wake-up), so that the target is what is measured. Prints one JSON
 * object. --pid: a process of the target whose CPU time is reported. --rate: so many commands a second are offered, whether earlier ones
 * were answered or not (the depth bounds it); latency counts from the moment a command was due. --flush: every write is followed by a
 * SYNCHRONIZE CACHE, the two count as one. --digests: CRC32C of headers and data (those received are not verified). SIGTERM ends it before its
 * time, when what is under way is answered. */
#include "common/cleanup.h"
#include "common/crc.h"
#include "tests/bench/load.h"
#include "tests/lib/ini.h"
#include <errno.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/uio.h>

#define RX_BYTES (1u << 20)
#define TX_BYTES (8u << 20)
#define SEGS 32768
#define COPY_MAX 4096 /* longer data is sent from where it lies, as libnbd does */

struct op {
    uint64_t start_ns;
    int busy, flushing;
};
struct conn {
    struct ini ini;
    struct op ops[LOAD_DEPTH_MAX];
    uint8_t *rx, *tx; /* tx: headers and short data */
    size_t rx_end, tx_end;
    struct iovec segs[SEGS]; /* what is to be sent, in tx or in the pattern */
    unsigned seg, segs_end;
    uint64_t seq;
};
struct iscsi {
    struct load load;
    const char *target;
    unsigned lun;
    int digests;
    uint8_t *pattern;
    struct conn conns[LOAD_CONNS_MAX];
};

static _Noreturn void fail(const char *what)
{
    fprintf(stderr, "iscsi_load: %s\n", what);
    exit(1);
}

static int in_tx(const struct conn *c, const struct iovec *seg)
{
    uintptr_t p = (uintptr_t)seg->iov_base, tx = (uintptr_t)c->tx;
    return p >= tx && p < tx + TX_BYTES;
}

/* Move what is not sent yet to the front. */
static void compact(struct conn *c)
{
    size_t first = c->tx_end;
    memmove(c->segs, c->segs + c->seg, (c->segs_end - c->seg) * sizeof *c->segs);
    c->segs_end -= c->seg;
    c->seg = 0;
    for (unsigned i = c->segs_end; i-- > 0;)
        if (in_tx(c, &c->segs[i]))
            first = (size_t)((uint8_t *)c->segs[i].iov_base - c->tx);
    memmove(c->tx, c->tx + first, c->tx_end - first);
    c->tx_end -= first;
    for (unsigned i = 0; i < c->segs_end; i++)
        if (in_tx(c, &c->segs[i]))
            c->segs[i].iov_base = (uint8_t *)c->segs[i].iov_base - first;
}

static void put(struct conn *c, const void *p, size_t len)
{
    if (!len)
        return;
    if (c->segs_end == SEGS || (len <= COPY_MAX && len > TX_BYTES - c->tx_end))
        compact(c);
    if (c->segs_end == SEGS || (len <= COPY_MAX && len > TX_BYTES - c->tx_end))
        fail("the send buffer is too small");
    if (len > COPY_MAX) {
        c->segs[c->segs_end++] = (struct iovec){(void *)(uintptr_t)p, len};
        return;
    }
    uint8_t *to = c->tx + c->tx_end;
    struct iovec *last = c->segs_end > c->seg ? &c->segs[c->segs_end - 1] : NULL;
    memcpy(to, p, len);
    c->tx_end += len;
    if (last && (uint8_t *)last->iov_base + last->iov_len == to)
        last->iov_len += len;
    else
        c->segs[c->segs_end++] = (struct iovec){to, len};
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

static void issue_flush(struct iscsi *s, struct conn *c, unsigned slot)
{
    uint8_t bhs[TGT_BHS_LEN], cdb[10] = {0x35};
    c->ini.itt = slot + 0xfff;
    ini_cmd_bhs(&c->ini, bhs, cdb, 10, TGT_FINAL, 0);
    bhs[9] = (uint8_t)s->lun;
    put_pdu(c, bhs, NULL, 0);
    c->ops[slot].flushing = 1;
}

static void issue(struct iscsi *s, struct conn *c, unsigned slot)
{
    struct load *l = &s->load;
    uint8_t bhs[TGT_BHS_LEN], cdb[16] = {0};
    struct op *op = &c->ops[slot];
    uint64_t off = load_offset(l, &c->seq);
    uint32_t now = 0;
    cdb[0] = l->writes ? 0x8a : 0x88;
    gr_put_be64(cdb + 2, off / 512);
    gr_put_be32(cdb + 10, (uint32_t)(l->bs / 512));
    c->ini.itt = slot + 0xfff; /* the tag names the slot */
    ini_cmd_bhs(&c->ini, bhs, cdb, 16, (uint8_t)(TGT_FINAL | (l->writes ? TGT_CMD_WRITE : TGT_CMD_READ)), (uint32_t)l->bs);
    if (l->writes && c->ini.immediate_data) {
        now = (uint32_t)GR_MIN(l->bs, GR_MIN(c->ini.first_burst, c->ini.max_send_dsl));
    }
    bhs[9] = (uint8_t)s->lun;
    put_pdu(c, bhs, s->pattern, now);
    op->start_ns = load_started(l);
    op->busy = 1;
    op->flushing = 0;
}

static void solicited(const struct iscsi *s, struct conn *c, const uint8_t *r2t)
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
        put_pdu(c, b, s->pattern + off, n);
        off += n;
        len -= n;
    }
}

/* Tell of the first command that failed; @b is a whole PDU. */
static void refused(const struct conn *c, const uint8_t *b)
{
    const uint8_t *sense = b + TGT_BHS_LEN + (c->ini.header_digest ? 4 : 0) + 2;
    fprintf(stderr, "iscsi_load: a command ended with status %02x", b[3]);
    if (tgt_bhs_opcode(b) == TGT_OP_SCSI_RSP && tgt_bhs_dsl(b) >= 16)
        fprintf(stderr, ", sense %x/%02x/%02x", sense[2] & 15, sense[12], sense[13]);
    fputc('\n', stderr);
}

static void finished(struct iscsi *s, struct conn *c, const uint8_t *b, int running)
{
    struct load *l = &s->load;
    unsigned slot = tgt_bhs_itt(b) - 0x1000;
    if (slot >= l->depth || !c->ops[slot].busy)
        fail("an answer for no command");
    if (b[3] && !l->errors++)
        refused(c, b);
    c->ini.expstatsn = gr_get_be32(b + 24) + 1;
    if (l->flush && !c->ops[slot].flushing) {
        issue_flush(s, c, slot);
        return;
    }
    load_finished(l, c->ops[slot].start_ns);
    c->ops[slot].busy = 0;
    if (running && !l->rate)
        issue(s, c, slot);
}

/* Offer what is due; nanoseconds until the next. */
static uint64_t offer(struct iscsi *s)
{
    struct load *l = &s->load;
    for (;;) {
        unsigned k = 0, i = 0;
        uint64_t ns = load_until_due(l);
        if (ns)
            return ns;
        while (k < l->n_conns && s->conns[k].ops[i].busy)
            if (++i == l->depth) {
                i = 0;
                k++;
            }
        if (k == l->n_conns)
            return 1000000; /* all are under way: it waits, and is late */
        issue(s, &s->conns[k], i);
    }
}

/* Eat whole PDUs; what is left moves to the front. Data-In payload is skipped, also when it is longer than the buffer. */
static void parse(struct iscsi *s, struct conn *c, int running)
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
                finished(s, c, b, running);
            break;
        case TGT_OP_SCSI_RSP:
            finished(s, c, b, running);
            break;
        case TGT_OP_R2T:
            solicited(s, c, b);
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
    while (c->seg < c->segs_end) {
        struct msghdr m = {.msg_iov = c->segs + c->seg, .msg_iovlen = GR_MIN(c->segs_end - c->seg, 64u)};
        ssize_t n = sendmsg(c->ini.fd, &m, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EAGAIN)
            return;
        if (n <= 0)
            fail("the target closed the connection");
        for (size_t left = (size_t)n; left;) {
            struct iovec *v = &c->segs[c->seg];
            size_t k = GR_MIN(left, v->iov_len);
            v->iov_base = (uint8_t *)v->iov_base + k;
            v->iov_len -= k;
            left -= k;
            if (!v->iov_len)
                c->seg++;
        }
    }
    c->seg = c->segs_end = 0;
    c->tx_end = 0;
}

static int busy(const struct iscsi *s)
{
    for (unsigned k = 0; k < s->load.n_conns; k++)
        for (unsigned i = 0; i < s->load.depth; i++)
            if (s->conns[k].ops[i].busy)
                return 1;
    return 0;
}

static void loop(struct iscsi *s)
{
    struct load *l = &s->load;
    struct pollfd pf[LOAD_CONNS_MAX];
    int running = 1;
    while (running || busy(s)) {
        struct timespec wait = {.tv_sec = 10};
        if (l->rate && running) {
            uint64_t ns = offer(s);
            wait = (struct timespec){.tv_nsec = (long)GR_MIN(ns, 999999999u)};
            for (unsigned k = 0; k < l->n_conns; k++)
                flush(&s->conns[k]);
        }
        for (unsigned k = 0; k < l->n_conns; k++)
            pf[k] = (struct pollfd){s->conns[k].ini.fd, (short)(POLLIN | (s->conns[k].segs_end ? POLLOUT : 0)), 0};
        int ready = ppoll(pf, l->n_conns, &wait, NULL);
        if (ready < 0 && errno == EINTR)
            ready = 0;
        else if (ready < 0 || (!ready && wait.tv_sec))
            fail("the target does not answer");
        running = load_goes_on(l);
        for (unsigned k = 0; k < l->n_conns; k++) {
            struct conn *c = &s->conns[k];
            if (pf[k].revents & POLLIN) {
                ssize_t n = recv(c->ini.fd, c->rx + c->rx_end, RX_BYTES - c->rx_end, MSG_DONTWAIT);
                if (n <= 0 && errno != EAGAIN)
                    fail("the target closed the connection");
                c->rx_end += n > 0 ? (size_t)n : 0;
                parse(s, c, running);
            }
            flush(c);
        }
    }
}

/* A target may have something to tell before it takes a command; that is no error of the load. */
static void unit_attentions(struct iscsi *s, struct conn *c)
{
    static const uint8_t test_unit_ready[6];
    uint8_t b[TGT_BHS_LEN], sense[512];
    for (int k = 0; k < 3; k++) {
        ini_cmd_bhs(&c->ini, b, test_unit_ready, 6, TGT_FINAL, 0);
        b[9] = (uint8_t)s->lun;
        if (ini_send(&c->ini, b, NULL, 0) < 0 || ini_recv(&c->ini, b, sense, sizeof sense) < 0 || tgt_bhs_opcode(b) != TGT_OP_SCSI_RSP)
            fail("TEST UNIT READY failed");
        c->ini.expstatsn = gr_get_be32(b + 24) + 1;
    }
}

static void log_in(struct iscsi *s, struct conn *c, unsigned number, const char *host, const char *port)
{
    static const char plain[] = "HeaderDigest=None\0DataDigest=None\0InitialR2T=No\0ImmediateData=Yes\0MaxRecvDataSegmentLength=262144\0"
                                "MaxBurstLength=1048576\0FirstBurstLength=262144\0MaxOutstandingR2T=1";
    static const char digests[] = "HeaderDigest=CRC32C\0DataDigest=CRC32C\0InitialR2T=No\0ImmediateData=Yes\0MaxRecvDataSegmentLength=262144\0"
                                  "MaxBurstLength=1048576\0FirstBurstLength=262144\0MaxOutstandingR2T=1";
    char name[64], target[256];
    const char *mark = strchr(s->target, '#');
    int before = mark ? (int)(mark - s->target) : (int)strlen(s->target);
    snprintf(target, sizeof target, "%.*s", before, s->target);
    if (mark)
        snprintf(target + before, sizeof target - (size_t)before, "%u%s", number + 1, mark + 1);
    c->rx = malloc(RX_BYTES);
    c->tx = malloc(TX_BYTES);
    snprintf(name, sizeof name, "iqn.2026-11.local.granary:load%u", number);
    if (!c->rx || !c->tx || ini_connect(&c->ini, host, port) < 0)
        fail("cannot connect");
    if (ini_login(&c->ini, name, target, s->digests ? digests : plain, s->digests ? sizeof digests : sizeof plain) < 0 || c->ini.login_status)
        fail("the login was refused");
    unit_attentions(s, c);
    c->seq = number * (s->load.size / s->load.bs / s->load.n_conns);
}

static void options(struct iscsi *s, int argc, char **argv)
{
    for (int i = 3; i < argc;) {
        const char *o = argv[i], *v = i + 1 < argc ? argv[i + 1] : "";
        int n = load_option(&s->load, o, v);
        i += n;
        if (n)
            continue;
        if (!strcmp(o, "--digests")) {
            s->digests = 1;
            i++;
        } else if (!strcmp(o, "--lun")) {
            s->lun = (unsigned)load_number(v);
            i += 2;
        } else
            fail("unknown option");
    }
    load_options_end(&s->load);
}

int main(int argc, char **argv)
{
    static struct iscsi iscsi = {.load = {.name = "iscsi_load", LOAD_DEFAULTS}};
    struct iscsi *s = &iscsi;
    struct load *l = &s->load;
    char host[256], *colon;
    if (argc < 3)
        fail("usage: iscsi_load HOST:PORT TARGET [options]");
    s->target = argv[2];
    if (strlen(s->target) > 223) /* RFC 7143, 4.2.7.1 */
        fail("the target's name is too long");
    options(s, argc, argv);
    snprintf(host, sizeof host, "%s", argv[1]);
    colon = strrchr(host, ':');
    if (!colon)
        fail("the portal is not HOST:PORT");
    *colon = 0;
    s->pattern = malloc(l->bs);
    if (!s->pattern)
        fail("no memory");
    for (uint64_t i = 0; i < l->bs; i++)
        s->pattern[i] = (uint8_t)load_random(l);
    for (unsigned k = 0; k < l->n_conns; k++)
        log_in(s, &s->conns[k], k, host, colon + 1);
    load_start(l);
    for (unsigned k = 0; k < l->n_conns; k++) {
        for (unsigned i = 0; i < l->depth && !l->rate; i++)
            issue(s, &s->conns[k], i);
        flush(&s->conns[k]);
    }
    loop(s);
    return load_end(l);
}
