/* A gang: loops with a thread each that share objects. Their code runs under one lock, so whatever is true of one loop is true of
 * a gang: a callback sees nobody else at work until it returns. The lock is open where the time goes: while a loop waits, while
 * the kernel moves bytes of files, and where a callback opens it for a system call of its own (gr_gang_open). So the loops of
 * a gang share the kernel's part of the work, which is nine tenths of a target's, and need no locks of their own.
 *
 * Every function of loop.h and fiber.h may be called on any loop of the gang from any of its threads, within a turn. Fibers stay on
 * their loop's thread. File I/O is done by the thread that asks, its done() is called there. */
#ifndef GR_GANG_H
#define GR_GANG_H
#include "common/loop.h"

struct gr_gang;
/* Make @n loops, with a thread each that turns them, and join them and @home to a gang. Called within a turn of @home, on its thread.
 * Errors: -EAGAIN (no thread), those of gr_loop_new(). @n 0: a gang of one. */
int gr_gang_start(struct gr_loop *home, unsigned n, struct gr_gang **ret, struct gr_err *err);
/* End the threads; nothing may be pending on their loops. Called as start was; other callbacks run meanwhile. NULL allowed. */
void gr_gang_stop(struct gr_gang *gang);
unsigned gr_gang_size(const struct gr_gang *gang);                     /* of loops, @home included; NULL: 1 */
struct gr_loop *gr_gang_loop(const struct gr_gang *gang, unsigned i); /* 0: home */
/* Around a system call that needs no object of the gang: others run meanwhile, and may change what the caller did not guard.
 * Nothing on a loop without a gang. */
void gr_gang_open(void);
void gr_gang_close(void);
#endif
