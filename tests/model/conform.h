/* Holds the code to the order (tests/model/order.h): every request of simulated hosts that a device has done is a step, and must be one that
 * the order allows then. So what is proven of the order is proven of what the code does, as far as it is watched. */
#ifndef MODEL_CONFORM_H
#define MODEL_CONFORM_H
#include "common/bdev.h"
#include "tests/lib/sim.h"

struct conform;
/* @mem: the volume's devices in their order, formatted; nobody has joined. Those that are left out, and hold no tables, are not watched. Watches @s
 * until conform_free(). */
struct conform *conform_new(struct sim *s, struct gr_mem *const *mem, unsigned n);
void conform_free(struct conform *c);
/* A host that is about to join: its paths (of the same order), and a text that is the same for starts of one home. */
void conform_host(struct conform *c, struct sim_host *h, struct gr_bdev *const *paths, const char *home);
/* Called when the key of @victim is ejected from the first device. */
void conform_on_eject(struct conform *c, void (*fn)(void *arg, struct sim_host *victim), void *arg);
const char *conform_error(const struct conform *c); /* NULL: all were allowed; else the first that was not, and why */
uint64_t conform_steps(const struct conform *c);
bool conform_ejected(const struct conform *c, const struct sim_host *h); /* from one device at least, whether it knows or not */
/* How far @h is: a phase of its farthest take-over (enum m_take_phase), 0 when there is none. */
unsigned conform_phase(const struct conform *c, const struct sim_host *h);
#endif
