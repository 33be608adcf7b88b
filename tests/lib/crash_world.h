/* A world of its own: a clock that moves only with the loop's turns, and seeded random. What runs in it on memory is repeated
 * exactly by the same seed, and sleeping costs next to nothing. */
#ifndef CRASH_WORLD_H
#define CRASH_WORLD_H
#include <stdint.h>
/* Run @body as a fiber on a loop of that world; it must return 0. */
void crash_world_run(uint64_t seed, int (*body)(void *arg), void *arg);
#endif
