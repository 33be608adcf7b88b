/* How fast work in the background goes: as fast as it can while nobody else is at work, else with a share of the time. */
#include "vmfs/pace.h"
#include "vmfs/internal.h"

#define BUSY_NS 100000000ull /* so long after a request of its users the volume counts as busy */
#define MOST_NS 1000000000ull /* of rest behind a step, however long a device kept it waiting */
#define REST_MS 10u          /* at a time: then it looks whether it is to end */

static uint64_t requests_of(const struct vmfs *v)
{
    const struct vmfs_stats *s = &v->stats;
    return s->reads + s->writes_in_place + s->writes_redirected + s->unmaps;
}

void vpace_begin(const struct vmfs *v, struct vpace *p)
{
    *p = (struct vpace){ .requests = requests_of(v) };
}

bool vpace_busy(struct vmfs *v, struct vpace *p)
{
    uint64_t now = gr_loop_now_ns(v->loop), requests = requests_of(v);
    if (requests != p->requests) {
        p->requests = requests;
        p->busy_until_ns = now + BUSY_NS;
    }
    return now < p->busy_until_ns;
}

static bool hurried(const struct vmfs *v, const struct gr_fqueue *hurry)
{
    return v->leaving || v->fenced || v->settling || hurry->head || space_low(v);
}

void vpace_rest(struct vmfs *v, struct vpace *p, uint64_t took_ns, unsigned share, const struct gr_fqueue *hurry)
{
    gr_fiber_yield();
    p->due_ns = GR_MIN(p->due_ns + took_ns * share, MOST_NS);
    while (p->due_ns >= 1000000 && vpace_busy(v, p) && !hurried(v, hurry)) {
        uint64_t ms = GR_MIN(p->due_ns / 1000000, (uint64_t)REST_MS);
        gr_fiber_sleep_ms(ms);
        p->due_ns -= ms * 1000000;
    }
    if (p->due_ns >= 1000000) /* it need not rest */
        p->due_ns = 0;
}
