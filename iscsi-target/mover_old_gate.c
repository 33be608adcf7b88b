/* Gates that processes before this one have left: each makes the records of connections that we serve now, until the last of them has ended.
 * Nothing is asked of them, and what they say is thrown away: they may be of another version. They end when nobody holds their socket. */
#include "common/cleanup.h"
#include "common/packet.h"
#include "iscsi-target/mover_int.h"
#include <poll.h>

#define PACKET_MAX 4096u

struct mover_old_gate {
    struct mover_server *server;
    struct mover_old_gate *next;
    struct gr_watch watch;
};

static void drop(struct mover_old_gate *g)
{
    struct mover_server *s = g->server;
    for (struct mover_old_gate **p = &s->old_gates; *p; p = &(*p)->next) {
        if (*p == g) {
            *p = g->next;
            break;
        }
    }
    gr_watch_del(s->loop, &g->watch);
    close(g->watch.fd);
    free(g);
    gr_fqueue_wake_all(&s->ended);
}

static void readable(void *arg, int events)
{
    struct mover_old_gate *g = arg;
    uint8_t packet[PACKET_MAX];
    for (;;) {
        gr_auto_close int fd = -1;
        size_t n;
        int r = gr_packet_recv(g->watch.fd, packet, sizeof(packet), &n, &fd);
        if (r == -EAGAIN)
            return;
        if (r == 0) {
            drop(g);
            return;
        }
    }
}

int mover_gate_keep_old(struct mover_server *s, int fd)
{
    struct mover_old_gate *g = gr_zalloc(sizeof(*g));
    int r = -ENOMEM;
    if (g) {
        g->server = s;
        g->watch = (struct gr_watch){.fn = readable, .arg = g, .fd = fd, .events = POLLIN};
        r = gr_watch_add(s->loop, &g->watch);
    }
    if (r < 0) {
        free(g);
        close(fd);
        return r;
    }
    g->next = s->old_gates;
    s->old_gates = g;
    return 0;
}

int mover_old_gate_at(const struct mover_server *s, unsigned i)
{
    const struct mover_old_gate *g = s->old_gates;
    while (g && i--)
        g = g->next;
    return g ? g->watch.fd : -1;
}

void mover_old_gates_drop(struct mover_server *s)
{
    while (s->old_gates)
        drop(s->old_gates);
}

void mover_old_gates_stop(struct mover_server *s)
{
    struct gate_msg m = {0};
    for (const struct mover_old_gate *g = s->old_gates; g; g = g->next)
        (void)gate_msg_send(g->watch.fd, &m, GATE_STOP, -1, MSG_DONTWAIT); /* one of another version ends at once */
    while (s->old_gates && gr_fqueue_wait_ms(&s->ended, GATE_LEAVE_MS) == 0) {
    }
    mover_old_gates_drop(s);
}
