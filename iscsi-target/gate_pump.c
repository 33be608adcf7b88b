/* The bytes of one who has proved himself, between his TLS session and the socket to storaged ("house").
 *
 * Up (to the house): records are opened into `up` until it is full, and written; nothing is read from the net while some of it waits.
 * Down (to the net): nothing is read from the house before all records made so far are with the kernel. So both ways are bounded, and who
 * does not take slows down who gives. GnuTLS never touches the socket here: it pulls from `in` and pushes to `out`, so that many records
 * travel in one system call and none is cut in the middle of one.
 *
 * Ends: the client's good-bye is told to the house, whose answers still go out. When the house hangs up, what it said is sent, then our
 * good-bye; the connection is closed when the client has closed too, or soon: a close with unread bytes would be a reset, and could
 * overtake what was sent. */
#include "common/cleanup.h"
#include "iscsi-target/gate_int.h"
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define IN_SIZE (64u << 10)
#define UP_SIZE (64u << 10)
#define RECORD (16u << 10)
#define OUT_SLACK (16u << 10) /* for what records add, and what GnuTLS says itself: alerts, key updates */
#define OUT_SIZE (GATE_SCRATCH + OUT_SLACK)
#define ROUNDS 4u             /* of reading from the house before others get their turn */
#define LINGER_NS (UINT64_C(2) * 1000000000)

struct gate_pump {
    struct gate_conn *conn;
    struct gr_watch net, house;
    struct gr_timer timer; /* the client takes nothing; after our good-bye: it does not close */
    struct gr_defer more;  /* bytes are held that make no descriptor readable */
    size_t in_pos, in_len, up_pos, up_len, out_pos, out_len;
    bool client_left, house_left, lingers;
    uint8_t in[IN_SIZE], up[UP_SIZE], out[OUT_SIZE];
};

static ssize_t retry_recv(int fd, void *buf, size_t len)
{
    ssize_t n;
    do
        n = recv(fd, buf, len, MSG_DONTWAIT);
    while (n < 0 && errno == EINTR);
    return n;
}

static ssize_t retry_send(int fd, const void *buf, size_t len)
{
    ssize_t n;
    do
        n = send(fd, buf, len, MSG_DONTWAIT | MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    return n;
}

/* ---- GnuTLS's side ---- */

static ssize_t pull(gnutls_transport_ptr_t arg, void *buf, size_t len)
{
    struct gate_pump *p = arg;
    if (p->in_pos == p->in_len) {
        ssize_t n = retry_recv(p->conn->fd, p->in, IN_SIZE);
        if (n <= 0) {
            gnutls_transport_set_errno(p->conn->tls, n < 0 ? errno : 0);
            return n;
        }
        p->in_pos = 0;
        p->in_len = (size_t)n;
    }
    size_t n = GR_MIN(len, p->in_len - p->in_pos);
    memcpy(buf, p->in + p->in_pos, n);
    p->in_pos += n;
    return (ssize_t)n;
}

static ssize_t push(gnutls_transport_ptr_t arg, const void *buf, size_t len)
{
    struct gate_pump *p = arg;
    if (len > OUT_SIZE - p->out_len) {
        gnutls_transport_set_errno(p->conn->tls, ENOBUFS);
        return -1;
    }
    memcpy(p->out + p->out_len, buf, len);
    p->out_len += len;
    return (ssize_t)len;
}

/* ---- the two ways; each returns false when the connection is over ---- */

/* Give the records made so far to the kernel. */
static bool flush(struct gate_pump *p)
{
    struct gr_loop *loop = p->conn->gate->loop;
    size_t before = p->out_pos;
    while (p->out_pos < p->out_len) {
        ssize_t n = retry_send(p->conn->fd, p->out + p->out_pos, p->out_len - p->out_pos);
        if (n < 0 && errno != EAGAIN)
            return false;
        if (n < 0) {
            bool patient = p->timer.heap_pos && p->out_pos == before; /* the time runs from the last byte that it took */
            return patient || gr_timer_arm(loop, &p->timer, p->conn->gate->stall_ms * UINT64_C(1000000)) == 0;
        }
        p->out_pos += (size_t)n;
    }
    p->out_pos = p->out_len = 0;
    if (!p->lingers)
        gr_timer_cancel(loop, &p->timer);
    return true;
}

/* Write to the house what waits for it. Should it have hung up, that shows when it is read from. */
static void hand_in(struct gate_pump *p)
{
    while (p->up_pos < p->up_len) {
        ssize_t n = retry_send(p->house.fd, p->up + p->up_pos, p->up_len - p->up_pos);
        if (n < 0 && errno == EAGAIN)
            return;
        p->up_pos = n < 0 ? p->up_len : p->up_pos + (size_t)n;
    }
    p->up_pos = p->up_len = 0;
    if (p->client_left)
        shutdown(p->house.fd, SHUT_WR);
}

/* The client may be listened to: what it said before has gone on, and there is room for what GnuTLS may say to it. */
static bool may_read(const struct gate_pump *p)
{
    return !p->client_left && !p->house_left && !p->up_len && p->out_len < OUT_SIZE - OUT_SLACK / 2;
}

static bool go_up(struct gate_pump *p)
{
    while (!p->client_left && p->up_len <= UP_SIZE - RECORD) {
        ssize_t n = gnutls_record_recv(p->conn->tls, p->up + p->up_len, RECORD);
        if (n > 0)
            p->up_len += (size_t)n;
        else if (n == 0)
            p->client_left = true;
        else if (n == GNUTLS_E_AGAIN)
            break;
        else if (n != GNUTLS_E_INTERRUPTED && n != GNUTLS_E_WARNING_ALERT_RECEIVED)
            return false;
    }
    hand_in(p);
    return flush(p); /* what GnuTLS said itself */
}

/* The house has said all: our good-bye, and how long the client's may take. */
static bool take_leave(struct gate_pump *p)
{
    p->house_left = true;
    return gnutls_bye(p->conn->tls, GNUTLS_SHUT_WR) >= 0 && flush(p);
}

static bool go_down(struct gate_pump *p)
{
    struct gate *g = p->conn->gate;
    for (unsigned i = 0; i < ROUNDS && !p->out_len; i++) {
        ssize_t n = retry_recv(p->house.fd, g->scratch, GATE_SCRATCH);
        if (n < 0 && errno == EAGAIN)
            return true;
        if (n <= 0)
            return take_leave(p);
        for (size_t at = 0; at < (size_t)n; at += RECORD) {
            size_t len = GR_MIN((size_t)n - at, (size_t)RECORD);
            if (gnutls_record_send(p->conn->tls, g->scratch + at, len) != (ssize_t)len)
                return false;
        }
        if (!flush(p))
            return false;
    }
    return true;
}

/* After our good-bye is out: until the client closes, what it still says is thrown away. */
static bool linger(struct gate_pump *p)
{
    if (p->conn->gate->hurries)
        return false;
    if (!p->lingers) {
        p->lingers = true;
        shutdown(p->conn->fd, SHUT_WR);
        if (gr_timer_arm(p->conn->gate->loop, &p->timer, LINGER_NS) < 0)
            return false;
    }
    ssize_t n = retry_recv(p->conn->fd, p->in, IN_SIZE);
    return n > 0 || (n < 0 && errno == EAGAIN);
}

/* ---- what is waited for ---- */

static void update(struct gate_pump *p)
{
    struct gr_loop *loop = p->conn->gate->loop;
    bool blocked = p->out_len > 0, reads = may_read(p);
    (void)gr_watch_set(loop, &p->net, (reads || p->lingers ? POLLIN : 0) | (blocked ? POLLOUT : 0));
    (void)gr_watch_set(loop, &p->house, p->house_left ? 0 : (blocked ? 0 : POLLIN) | (p->up_len ? POLLOUT : 0));
    if (reads && (p->in_pos < p->in_len || gnutls_record_check_pending(p->conn->tls)))
        gr_loop_defer_later(loop, &p->more);
}

static void turn(struct gate_pump *p, bool up, bool down)
{
    bool good = flush(p);
    if (good && p->up_len)
        hand_in(p);
    if (good && up && may_read(p))
        good = go_up(p);
    if (good && down && !p->house_left && !p->out_len)
        good = go_down(p);
    if (good && p->house_left && !p->out_len)
        good = linger(p);
    if (good)
        update(p);
    else
        gate_conn_end(p->conn);
}

static void on_net(void *arg, int events)
{
    struct gate_pump *p = arg;
    if ((events & (POLLERR | POLLHUP)) && !(events & POLLIN))
        gate_conn_end(p->conn); /* level-triggered and cannot be masked */
    else
        turn(p, events & POLLIN, events & POLLOUT);
}

static void on_house(void *arg, int events)
{
    struct gate_pump *p = arg;
    if (events & (POLLHUP | POLLERR))
        p->up_pos = p->up_len = 0; /* nobody takes it any more */
    turn(p, events & POLLOUT, (events & (POLLIN | POLLHUP | POLLERR)) != 0);
}

static void on_more(void *arg)
{
    turn(arg, true, false);
}

static void on_timer(void *arg)
{
    struct gate_pump *p = arg;
    gate_conn_end(p->conn);
}

int gate_pump_start(struct gate_conn *c, int fd)
{
    struct gate *g = c->gate;
    struct gate_pump *p = gr_alloc(sizeof *p);
    if (!p) {
        close(fd);
        return -ENOMEM;
    }
    memset(p, 0, offsetof(struct gate_pump, in));
    p->conn = c;
    p->net = (struct gr_watch){.fn = on_net, .arg = p, .fd = c->fd, .events = POLLIN};
    p->house = (struct gr_watch){.fn = on_house, .arg = p, .fd = fd, .events = POLLIN};
    p->timer = (struct gr_timer){.fn = on_timer, .arg = p};
    p->more = (struct gr_defer){.fn = on_more, .arg = p};
    int r = gr_watch_add(g->loop, &p->net);
    if (r == 0) {
        r = gr_watch_add(g->loop, &p->house);
        if (r < 0)
            gr_watch_del(g->loop, &p->net);
    }
    if (r < 0) {
        close(fd);
        free(p);
        return r;
    }
    c->pump = p;
    if (gnutls_record_check_pending(c->tls))
        gr_loop_defer(g->loop, &p->more);
    gnutls_transport_set_ptr(c->tls, p);
    gnutls_transport_set_pull_function(c->tls, pull);
    gnutls_transport_set_push_function(c->tls, push);
    return 0;
}

void gate_pump_free(struct gate_conn *c)
{
    struct gate_pump *p = c->pump;
    if (!p)
        return;
    gr_watch_del(c->gate->loop, &p->net);
    gr_watch_del(c->gate->loop, &p->house);
    gr_timer_cancel(c->gate->loop, &p->timer);
    gr_loop_defer_cancel(c->gate->loop, &p->more);
    close(p->house.fd);
    explicit_bzero(p->in, sizeof p->in);
    free(p);
    c->pump = NULL;
}
