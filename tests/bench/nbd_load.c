/* Load generator for NBD servers, the like of iscsi_load for iSCSI targets: same options, same result.
 *
 *   nbd_load URI --rw randread|randwrite|read|write [--bs BYTES] [--depth N] [--conns N] [--time S] [--size BYTES]
 *            [--rate N] [--flush] [--trace FILE] [--pid PID]...
 *
 * Asynchronous libnbd: what an answer completes is issued anew at once, and more answers are taken before it sleeps. libnbd needs
 * more system calls for a request than iscsi_load (a receive for the header and one for the data, a send for each request): the
 * client's CPU tells whether that is what was measured. --flush: every write is followed by a flush, the two count as one. */
#include "tests/bench/load.h"
#include <errno.h>
#include <libnbd.h>
#include <poll.h>

struct op {
    struct conn *c;
    uint64_t start_ns;
    int busy, flushing;
};
struct conn {
    struct load *l;
    struct nbd_handle *h;
    uint8_t *buf; /* of all commands: as iscsi_load, it keeps the caches for the server */
    struct op ops[LOAD_DEPTH_MAX];
    struct op *answered[LOAD_DEPTH_MAX];
    unsigned n_answered;
    uint64_t seq;
};

static int answered(void *arg, int *error)
{
    struct op *op = arg;
    if (*error)
        op->c->l->errors++;
    op->c->answered[op->c->n_answered++] = op;
    return 1; /* libnbd forgets the command */
}

static void issue(struct op *op)
{
    struct conn *c = op->c;
    uint64_t off = load_offset(c->l, &c->seq);
    nbd_completion_callback cb = {.callback = answered, .user_data = op};
    op->start_ns = load_started(c->l);
    op->busy = 1;
    op->flushing = 0;
    if ((c->l->writes ? nbd_aio_pwrite(c->h, c->buf, c->l->bs, off, cb, 0) : nbd_aio_pread(c->h, c->buf, c->l->bs, off, cb, 0)) < 0)
        load_fail(c->l, nbd_get_error());
}

static void issue_flush(struct op *op)
{
    nbd_completion_callback cb = {.callback = answered, .user_data = op};
    op->flushing = 1;
    if (nbd_aio_flush(op->c->h, cb, 0) < 0)
        load_fail(op->c->l, nbd_get_error());
}

/* Account for what was answered, keep the depth; how many answers that were. Issuing may itself take more answers in. */
static unsigned drain(struct conn *c, int running)
{
    unsigned n = 0;
    while (c->n_answered) {
        struct op *op = c->answered[--c->n_answered];
        n++;
        if (c->l->flush && !op->flushing) {
            issue_flush(op);
            continue;
        }
        load_finished(c->l, op->start_ns);
        op->busy = 0;
        if (running && !c->l->rate)
            issue(op);
    }
    return n;
}

static struct op *free_op(struct load *l, struct conn *conns)
{
    for (unsigned k = 0; k < l->n_conns; k++)
        for (unsigned i = 0; i < l->depth; i++)
            if (!conns[k].ops[i].busy)
                return &conns[k].ops[i];
    return NULL;
}

/* Offer what is due; nanoseconds until the next. */
static uint64_t offer(struct load *l, struct conn *conns)
{
    for (;;) {
        uint64_t ns = load_until_due(l);
        if (ns)
            return ns;
        for (unsigned k = 0; k < l->n_conns; k++)
            drain(&conns[k], 1);
        struct op *op = free_op(l, conns);
        if (!op)
            return 1000000; /* all are under way: it waits, and is late */
        issue(op);
    }
}

static int busy(const struct load *l, const struct conn *conns)
{
    for (unsigned k = 0; k < l->n_conns; k++)
        for (unsigned i = 0; i < l->depth; i++)
            if (conns[k].ops[i].busy)
                return 1;
    return 0;
}

static void wait_for(struct load *l, struct conn *conns, struct pollfd *pf, const struct timespec *wait)
{
    for (unsigned k = 0; k < l->n_conns; k++) {
        unsigned dir = nbd_aio_get_direction(conns[k].h);
        short events = (short)((dir & LIBNBD_AIO_DIRECTION_READ ? POLLIN : 0) | (dir & LIBNBD_AIO_DIRECTION_WRITE ? POLLOUT : 0));
        pf[k] = (struct pollfd){.fd = nbd_aio_get_fd(conns[k].h), .events = events};
    }
    int ready = ppoll(pf, l->n_conns, wait, NULL);
    if ((ready < 0 && errno != EINTR) || (!ready && wait->tv_sec))
        load_fail(l, "the server does not answer");
}

static void progress(struct conn *c, const struct pollfd *pf, int running)
{
    struct load *l = c->l;
    if (pf->revents & (POLLERR | POLLHUP))
        load_fail(l, "the server closed the connection");
    if (pf->revents & POLLIN && nbd_aio_get_direction(c->h) & LIBNBD_AIO_DIRECTION_READ) {
        if (nbd_aio_notify_read(c->h) < 0)
            load_fail(l, nbd_get_error());
    } else if (pf->revents & POLLOUT && nbd_aio_get_direction(c->h) & LIBNBD_AIO_DIRECTION_WRITE) {
        if (nbd_aio_notify_write(c->h) < 0)
            load_fail(l, nbd_get_error());
    }
    /* One notification takes one answer in. Look for more without a poll while the depth is kept: libnbd, once told to read, sends
     * nothing new before an answer came, so nothing else may become due meanwhile, and no request may be half sent. */
    while (drain(c, running) && l->depth > 1 && !l->rate && nbd_aio_get_direction(c->h) == LIBNBD_AIO_DIRECTION_READ)
        if (nbd_aio_notify_read(c->h) < 0)
            load_fail(l, nbd_get_error());
}

static void loop(struct load *l, struct conn *conns)
{
    struct pollfd pf[LOAD_CONNS_MAX];
    int running = 1;
    while (running || busy(l, conns)) {
        struct timespec wait = {.tv_sec = 10};
        if (l->rate && running) {
            uint64_t ns = offer(l, conns);
            wait = (struct timespec){.tv_nsec = (long)GR_MIN(ns, 999999999u)};
        }
        for (unsigned k = 0; k < l->n_conns; k++)
            drain(&conns[k], running); /* what issuing took in */
        if (!running && !busy(l, conns))
            break;
        wait_for(l, conns, pf, &wait);
        running = load_goes_on(l);
        for (unsigned k = 0; k < l->n_conns; k++)
            progress(&conns[k], &pf[k], running);
    }
}

static void open_conn(struct load *l, struct conn *c, unsigned number, const char *uri, uint8_t *buf)
{
    c->l = l;
    c->buf = buf;
    c->h = nbd_create();
    /* simple replies: two receives for a read instead of four */
    if (!c->h || nbd_set_request_structured_replies(c->h, false) < 0 || nbd_connect_uri(c->h, uri) < 0)
        load_fail(l, nbd_get_error());
    if (nbd_get_size(c->h) < (int64_t)l->size)
        load_fail(l, "the export is smaller than --size");
    nbd_set_pread_initialize(c->h, false); /* spares the client a memset for each read */
    for (unsigned i = 0; i < l->depth; i++)
        c->ops[i].c = c;
    c->seq = number * (l->size / l->bs / l->n_conns);
}

int main(int argc, char **argv)
{
    struct load load = {.name = "nbd_load", LOAD_DEFAULTS}, *l = &load;
    if (argc < 2)
        load_fail(l, "usage: nbd_load URI [options]");
    for (int i = 2, n; i < argc; i += n) {
        n = load_option(l, argv[i], i + 1 < argc ? argv[i + 1] : "");
        if (!n)
            load_fail(l, "unknown option");
    }
    load_options_end(l);
    struct conn *conns = calloc(l->n_conns, sizeof *conns);
    uint8_t *buf = malloc(l->bs);
    if (!conns || !buf)
        load_fail(l, "no memory");
    for (uint64_t i = 0; i < l->bs; i++)
        buf[i] = (uint8_t)load_random(l);
    for (unsigned k = 0; k < l->n_conns; k++)
        open_conn(l, &conns[k], k, argv[1], buf);
    load_start(l);
    for (unsigned k = 0; k < l->n_conns; k++)
        for (unsigned i = 0; i < l->depth && !l->rate; i++)
            issue(&conns[k].ops[i]);
    loop(l, conns);
    int status = load_end(l);
    for (unsigned k = 0; k < l->n_conns; k++)
        nbd_close(conns[k].h);
    free(buf);
    free(conns);
    return status;
}
