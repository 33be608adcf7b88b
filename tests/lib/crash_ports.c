#include "tests/lib/crash_ports.h"
#include "common/bdev_layer.h"
#include "tests/lib/test.h"
#include <stdlib.h>

#define LOCKS_MAX 64u

struct port {
    struct gr_layer layer;
    struct crash_ports *all;
    enum { ALIVE, DEAD, BURIED } state;
    unsigned under_way;
    struct gr_bio *unsent;       /* asked for by the dead */
    struct gr_layer_req *unheard; /* done by the device, for the dead */
};
struct crash_ports {
    struct gr_bdev *lower;
    struct {
        uint64_t key;
        const struct port *owner;
    } lock[LOCKS_MAX];
};

struct crash_ports *crash_ports_new(struct gr_bdev *lower)
{
    struct crash_ports *p = calloc(1, sizeof *p);
    assert_non_null(p);
    p->lower = gr_bdev_get(lower);
    return p;
}

void crash_ports_free(struct crash_ports *p)
{
    gr_bdev_put(p->lower);
    free(p);
}

static void drop_locks(const struct port *o)
{
    for (unsigned i = 0; i < LOCKS_MAX; i++)
        if (o->all->lock[i].owner == o)
            o->all->lock[i].owner = NULL;
}

static void done(struct gr_bio *low)
{
    struct gr_layer_req *req = low->arg;
    struct port *o = (struct port *)gr_layer_of(req->ch);
    o->under_way--;
    if (o->state == DEAD) {
        req->next = o->unheard;
        o->unheard = req;
        if (!o->under_way)
            drop_locks(o);
        return;
    }
    gr_layer_end(req, o->state == BURIED ? -EIO : low->status);
}

static void submit(struct gr_chan *ch, struct gr_bio *bio)
{
    struct port *o = (struct port *)gr_layer_of(ch);
    if (o->state == DEAD) {
        bio->next = o->unsent;
        o->unsent = bio;
        return;
    }
    struct gr_layer_req *req = o->state == ALIVE ? gr_layer_req_get(ch, bio) : NULL;
    if (!req) {
        gr_bio_end(bio, -EIO);
        return;
    }
    req->low.done = done;
    o->under_way++;
    gr_layer_send(req);
}

static int trylock(struct gr_bdev *bdev, uint64_t key)
{
    struct port *o = (struct port *)bdev;
    unsigned slot = LOCKS_MAX;
    for (unsigned i = 0; i < LOCKS_MAX; i++) {
        if (!o->all->lock[i].owner)
            slot = i;
        else if (o->all->lock[i].key == key)
            return -EBUSY;
    }
    assert_true(slot < LOCKS_MAX);
    if (o->state != ALIVE)
        return -EIO;
    o->all->lock[slot].key = key;
    o->all->lock[slot].owner = o;
    return 0;
}

static void unlock(struct gr_bdev *bdev, uint64_t key)
{
    struct port *o = (struct port *)bdev;
    for (unsigned i = 0; i < LOCKS_MAX; i++)
        if (o->all->lock[i].owner == o && o->all->lock[i].key == key && o->state == ALIVE)
            o->all->lock[i].owner = NULL;
}

static void close_port(struct gr_bdev *bdev)
{
    struct port *o = (struct port *)bdev;
    assert_true(!o->unsent && !o->unheard && !o->under_way);
    drop_locks(o);
    gr_layer_done(&o->layer);
    free(o);
}

static const struct gr_bdev_ops port_ops = { .type = "port", .submit = submit, .close = close_port, .geometry = gr_layer_geometry, .chan_open = gr_layer_chan_open,
                                             .chan_close = gr_layer_chan_close, .trylock = trylock, .unlock = unlock };

int crash_port_open(struct crash_ports *p, struct gr_bdev **ret)
{
    struct port *o = calloc(1, sizeof *o);
    if (!o)
        return -ENOMEM;
    gr_layer_init(&o->layer, &port_ops, p->lower);
    o->all = p;
    *ret = &o->layer.base;
    return 0;
}

void crash_port_kill(struct gr_bdev *port)
{
    struct port *o = (struct port *)port;
    o->state = DEAD;
    if (!o->under_way)
        drop_locks(o);
}

void crash_port_bury(struct gr_bdev *port)
{
    struct port *o = (struct port *)port;
    o->state = BURIED;
    while (o->unheard) {
        struct gr_layer_req *req = o->unheard;
        o->unheard = req->next;
        gr_layer_end(req, -EIO);
    }
    while (o->unsent) {
        struct gr_bio *bio = o->unsent;
        o->unsent = bio->next;
        gr_bio_end(bio, -EIO);
    }
}
