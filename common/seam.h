/* Seams: the world outside the process, behind tables, so that tests can replace it (virtual clock, seeded random,
 * failing allocator). A loop carries one `struct gr_world`; code takes clock and random from its loop. */
#ifndef GR_SEAM_H
#define GR_SEAM_H
#include <stddef.h>
#include <stdint.h>

struct gr_world {
    void *arg;
    uint64_t (*mono_ns)(void *arg);              /* monotonic clock, nanoseconds */
    int64_t (*wall_s)(void *arg);                /* wall clock, seconds since 1970; never a basis for safety */
    void (*random)(void *arg, void *buf, size_t len); /* unpredictable bytes (getrandom) */
};
/* The real world: CLOCK_MONOTONIC, CLOCK_REALTIME, getrandom(2). Static storage. */
const struct gr_world *gr_world_real(void);

/* Allocation seam: all of Granary allocates through these, so that a test can fail the N-th one.
 * They return NULL when out of memory (or when told to fail). Release with free(). */
void *gr_alloc(size_t len);                 /* uninitialised */
void *gr_zalloc(size_t len);                /* zeroed */
void *gr_realloc(void *p, size_t len);
void *gr_alloc_aligned(size_t align, size_t len); /* align: power of two */
char *gr_strdup(const char *s);
/* printf into new memory; NULL when out of memory. */
char *gr_asprintf(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* Test control of the calling thread: let @n allocations succeed, then fail one (@sticky: fail all after). @n < 0: off. */
void gr_alloc_fail_after(int n, int sticky);
#endif
