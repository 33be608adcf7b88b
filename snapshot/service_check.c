/* Methods that prove a datastore or read all of it: datastore.check, datastore.repair, datastore.scrub. */
#include "snapshot/service_int.h"
#include <stdio.h>

/* A line of what is wrong. */
static void tell_line(void *arg, const char *text)
{
    struct snap_op *op = arg;
    (void)gr_rpc_part(op->call, json_pack("{s:s}", "line", text)); /* nobody listens any more: the report still counts */
}

/* Rows of what was removed by a release that did not know them, or in a crash. Only in a datastore that is sound: what cannot be read may be there. */
static int sweep(struct snap_op *op, struct snap_ds *ds)
{
    struct snap_table *const tables[] = {&ds->rules, &ds->policies};
    struct gr_err err = {0};
    char text[GR_ERR_TEXT];
    int all = 0;
    for (unsigned i = 0; i < GR_ARRAY_LEN(tables); i++) {
        int n = snap_table_sweep(ds, tables[i], &err);
        if (n != 0) {
            snprintf(text, sizeof(text), "%s of %d disks or folders that are not there any more are dropped", tables[i]->what, n);
            tell_line(op, n < 0 ? err.text : text);
        }
        all += GR_MAX(n, 0);
    }
    return all;
}

static int prove(struct snap_op *op, bool repair)
{
    struct snap_ds *ds = NULL;
    struct vmfs_check_report rep = {0};
    int r = snap_op_ds(op, &ds);
    if (r < 0)
        return r;
    r = (repair ? vmfs_repair : vmfs_check)(ds->v, tell_line, op, &rep, op->err);
    int dropped = repair && r == 0 ? sweep(op, ds) : 0;
    json_t *o = json_pack("{s:s,s:b,s:b,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:i}", "name", ds->name, "sound", r == 0, "partly", r == -GR_EPARTIAL, "errors", (json_int_t)rep.errors,
                          "leaked-units", (json_int_t)rep.leaked_units, "objects", (json_int_t)rep.objects, "nodes", (json_int_t)rep.nodes,
                          "pieces", (json_int_t)rep.pieces, "shared-pieces", (json_int_t)rep.shared_pieces, "regions",
                          (json_int_t)rep.regions, "unreachable", (json_int_t)rep.unreachable, "repaired", (json_int_t)rep.repaired, "mended", (json_int_t)rep.mended, "memory",
                          (json_int_t)rep.memory, "dropped-rows", dropped);
    snap_ds_put(ds);
    if (r < 0 && r != -GR_EPARTIAL && (r != -GR_ECORRUPT || (rep.errors == 0 && rep.leaked_units == 0))) {
        json_decref(o);
        return r;
    }
    return snap_op_result(op, o);
}

int snap_op_check(struct snap_op *op)
{
    return prove(op, false);
}

int snap_op_repair(struct snap_op *op)
{
    return prove(op, true);
}

/* ---- scrub ---- */
struct scrubbing {
    struct snap_op *op;
    uint64_t told_ns;
};

static void scrub_line(void *arg, const char *text)
{
    tell_line(((struct scrubbing *)arg)->op, text);
}

static int scrub_progress(void *arg, uint64_t done, uint64_t all, struct gr_err *err)
{
    struct scrubbing *s = arg;
    struct snap_op *op = s->op;
    uint64_t now = gr_loop_now_ns(op->s->o.loop);
    if (op->s->ending)
        return gr_fail(err, -ECANCELED, "the service ends; the same command goes on with it");
    if (gr_rpc_gone(op->call))
        return gr_fail(err, -ECANCELED, "it was broken off; the same command goes on with it");
    if (now - s->told_ns < SNAP_PROGRESS_NS)
        return 0;
    s->told_ns = now;
    (void)gr_rpc_part(op->call, json_pack("{s:I,s:I}", "done", (json_int_t)done, "total", (json_int_t)all));
    return 0;
}

int snap_op_scrub(struct snap_op *op)
{
    struct snap_ds *ds = NULL;
    struct scrubbing s = {op, 0};
    struct vmfs_scrub_opts o = {.line = scrub_line, .progress = scrub_progress, .arg = &s};
    struct vmfs_scrub_report rep = {0};
    int r = gr_json_opt_u64(op->params, "rate", &o.rate, op->err);
    if (r == 0)
        r = gr_json_opt_bool(op->params, "restart", &o.restart, op->err);
    if (r == 0)
        r = snap_op_ds(op, &ds);
    if (r < 0)
        return r;
    r = vmfs_scrub(ds->v, &o, &rep, op->err);
    json_t *row = json_pack("{s:s,s:b,s:I,s:I,s:I,s:I,s:b}", "name", ds->name, "sound", r == 0, "bytes", (json_int_t)rep.bytes, "bad-pieces",
                            (json_int_t)rep.bad_pieces, "errors", (json_int_t)rep.errors, "repaired", (json_int_t)rep.repaired, "resumed", rep.resumed);
    snap_ds_put(ds);
    if (r < 0 && (r != -GR_ECORRUPT || (rep.bad_pieces == 0 && rep.errors == 0))) {
        json_decref(row);
        return r;
    }
    return snap_op_result(op, row);
}
