/* A TCP relay on the test's own loop, between an initiator and a target's port, that loses connections on demand. In fibers. */
#ifndef TEST_CUTTER_H
#define TEST_CUTTER_H
#include "common/loop.h"
#include <stdbool.h>

struct cut_link;
struct cutter {
    struct gr_loop *loop;
    int listen;
    unsigned port, to;         /* ours; the target's, which may be changed */
    unsigned links, logins;    /* fibers running; connections made so far */
    bool away;                 /* new connections are closed at once */
    bool mute;                 /* what the target sends is thrown away */
    bool (*sees)(struct cutter *c, const void *data, size_t len); /* what goes to the target, before it goes; false: cut here */
    struct cut_link *first;
    void *arg;
};
void cutter_start(struct cutter *c, unsigned to); /* @c is zero but for what is wanted */
void cutter_cut(struct cutter *c);                /* all connections */
void cutter_stop(struct cutter *c);               /* the same, and no others; returns when the fibers are gone */
#endif
