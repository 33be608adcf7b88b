/* How fast work in the background goes beside the users of a volume (pace.c). Thread rule: the loop of the volume. */
#ifndef VMFS_PACE_H
#define VMFS_PACE_H
#include <stdbool.h>
#include <stdint.h>

struct vmfs;
struct gr_fqueue;
struct vpace { /* of one piece of work */
    uint64_t requests, busy_until_ns;
    uint64_t due_ns; /* of rest that is due: what is below a millisecond waits until there is more */
};
void vpace_begin(const struct vmfs *v, struct vpace *p); /* nobody has asked for anything yet [sync] */
/* Have users of the volume asked for anything since the last look, or a moment before it? [sync] */
bool vpace_busy(struct vmfs *v, struct vpace *p);
/* Behind a step that took @took_ns: others have their turn, and while users are at work it rests @share times as long (fiber), a second at
 * most. It does not when somebody waits at @hurry or in vmfs_settle(), the volume is nearly full, left or given up, and notices within ten milliseconds. */
void vpace_rest(struct vmfs *v, struct vpace *p, uint64_t took_ns, unsigned share, const struct gr_fqueue *hurry);
#endif
