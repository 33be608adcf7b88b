/* Method disk.defragment: a disk's blocks are put one behind the other while it is used. Whoever needs the disk, to give it to another host or to
 * end it, stops that: nothing of it is half done between two windows. */
#include "snapshot/service_int.h"

#define STOP_MS 10000u /* a window on a slow device */

struct defragmenting {
    struct snap_op *op;
    struct snap_disk d;
    uint64_t told_ns;
};

static int defragment_progress(void *arg, uint64_t done, uint64_t all, struct gr_err *err)
{
    struct defragmenting *t = arg;
    struct snap_op *op = t->op;
    uint64_t now = gr_loop_now_ns(op->s->o.loop);
    const char *why = op->s->ending || t->d.ds->leaving ? "the service ends"
                      : t->d.h->wanted                  ? "the disk changes hands"
                      : gr_rpc_gone(op->call)           ? "it was broken off"
                                                        : NULL;
    if (why)
        return gr_fail(err, -GR_ECANCELED, "%s: what was moved stays moved, and the same command goes on with the rest", why);
    if (now - t->told_ns < SNAP_PROGRESS_NS)
        return 0;
    t->told_ns = now;
    (void)gr_rpc_part(op->call, json_pack("{s:I,s:I}", "done", (json_int_t)done, "total", (json_int_t)all));
    return 0;
}

void snap_passes_stop(struct snap_svc *s, struct snap_handle *h)
{
    uint64_t end = gr_loop_now_ns(s->o.loop) + STOP_MS * 1000000ull;
    h->wanted++;
    while (h->passes && gr_loop_now_ns(s->o.loop) < end)
        gr_fiber_sleep_ms(2);
    h->wanted--;
}

static int op_defragment(struct snap_op *op)
{
    struct snap_path p;
    struct defragmenting t = {.op = op};
    struct vmfs_defrag_opts o = {.progress = defragment_progress, .arg = &t};
    struct vmfs_defrag_report rep = {0};
    int r = snap_op_path(op, "disk", SNAP_PATH_DISK, &p);
    if (r == 0)
        r = gr_json_opt_u64(op->params, "rate", &o.rate, op->err);
    if (r == 0)
        r = gr_json_opt_bool(op->params, "dry-run", &o.dry_run, op->err);
    if (r == 0)
        r = snap_disk_get(op, &p, &t.d);
    if (r < 0)
        return r;
    t.d.h->passes++;
    for (unsigned ms = 0; ms < SNAP_SETTLE_MS && !t.d.h->wanted && vmfs_settle(t.d.ds->v, 500) == -ETIMEDOUT; ms += 500)
        ; /* what deleted snapshots had, too, is theirs until that is given back */
    r = vmfs_defragment(t.d.h->disk, &o, &rep, op->err);
    t.d.h->passes--;
    snap_disk_put(&t.d);
    if (r < 0)
        return r;
    return snap_op_result(op, json_pack("{s:O,s:b,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I}", "disk", json_object_get(op->params, "disk"), "dry-run",
                                        o.dry_run, "bytes", (json_int_t)rep.bytes, "runs-before", (json_int_t)rep.runs_before, "runs",
                                        (json_int_t)rep.runs, "moved", (json_int_t)rep.moved, "shared", (json_int_t)rep.shared, "busy", (json_int_t)rep.busy, "splintered",
                                        (json_int_t)rep.splinters, "damaged", (json_int_t)rep.bad));
}
SNAP_METHOD(op_defragment, "disk.defragment")

const struct gr_rpc_method snap_defragment_methods[] = {
    {"disk.defragment", rpc_op_defragment},
    {NULL, NULL},
};
