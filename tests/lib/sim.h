/* A simulated site on a virtual clock: hosts with a loop each, and paths from each host to shared devices, all in one thread and all
 * driven by one seed. The code that runs is the product's; what is simulated is time, the devices' memory and the way to them.
 *
 * A stopped host's loop is not turned: it computes nothing, its timers do not fire, and what it had sent goes on without it. A cut path
 * holds what is sent until it is healed; what the device has done is still done. */
#ifndef SIM_H
#define SIM_H
#include "common/bdev.h"
#include "common/fiber.h"

struct sim;
struct sim_host;
enum sim_fence { SIM_ENTERED, SIM_LEFT, SIM_EJECTED };
struct sim *sim_new(uint64_t seed);
void sim_free(struct sim *s);          /* after all hosts */
uint64_t sim_now_ns(const struct sim *s);
uint64_t sim_random(struct sim *s);    /* of the seed */
uint64_t sim_below(struct sim *s, uint64_t n);
struct gr_loop *sim_net(struct sim *s); /* the loop of what never stops: paths, nemesis */
/* Let it run until @done(@arg), or until nothing would ever happen again, or until @limit_ns of virtual time: 0, -EDEADLK, -ETIMEDOUT. */
int sim_run(struct sim *s, bool (*done)(void *arg), void *arg, uint64_t limit_ns);

struct sim_host *sim_host_new(struct sim *s);
void sim_host_free(struct sim_host *h);   /* its loop has nothing left to do */
struct gr_loop *sim_host_loop(struct sim_host *h);
void sim_stop(struct sim_host *h, bool stopped);
bool sim_stopped(const struct sim_host *h);
void sim_wall_jump(struct sim_host *h, int64_t off_s); /* its wall clock is so far off from now on; nothing else is */

/* How a host gets at a device: a bdev for its loop over @lower, which is used on the net's loop. Each request and each answer takes
 * between @min_ns and @max_ns; requests overtake each other. @lower's fence is the path's. */
int sim_path_open(struct sim_host *h, struct gr_bdev *lower, uint64_t min_ns, uint64_t max_ns, struct gr_bdev **ret);
/* Called on the host's loop when a host has ejected another (the beginning of a take-over). */
void sim_on_eject(struct sim *s, void (*fn)(void *arg, struct sim_host *h), void *arg);
/* What the devices see, in the order in which they do it: requests that were done, with their status, and fences. On the net's loop, or on
 * the host's. @path: of sim_path_open(). */
struct sim_watcher {
    void (*request)(void *arg, struct sim_host *h, struct gr_bdev *path, const struct gr_bio *bio, int status);
    void (*fence)(void *arg, struct sim_host *h, struct gr_bdev *path, enum sim_fence what, uint64_t key);
    void *arg;
};
void sim_watch(struct sim *s, const struct sim_watcher *w); /* NULL: no longer */
/* A host may give it up (gr_bdev_ops.give_up): then nobody waits for what is on its way, and writes of that arrive when the path is healed. */
void sim_path_cut(struct gr_bdev *path, bool cut);
void sim_path_fail(struct gr_bdev *path, int code); /* requests that come to the device end with this instead; 0: no longer */
/* One compare-and-write in @n gets its answer lost, and is done again, as an initiator does that reconnects. 0: none. */
void sim_path_lose(struct gr_bdev *path, unsigned n);
#endif
