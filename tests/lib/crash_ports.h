/* The ways of several hosts to one device: each is a process of its own as far as locks are concerned, and may die at any moment. What a dead one
 * has sent is still done by the device; its locks are free when that is over; it hears of nothing any more. One loop. */
#ifndef CRASH_PORTS_H
#define CRASH_PORTS_H
#include "common/bdev.h"

struct crash_ports;
struct crash_ports *crash_ports_new(struct gr_bdev *lower); /* takes a reference */
void crash_ports_free(struct crash_ports *p);               /* after all ports */
int crash_port_open(struct crash_ports *p, struct gr_bdev **ret);
void crash_port_kill(struct gr_bdev *port);
/* What it waits for, and all it asks for from now on, fails with -EIO: so that the memory of the dead can be given back. */
void crash_port_bury(struct gr_bdev *port);
#endif
