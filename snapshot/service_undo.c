/* Instants that whoever asked for them may have given up meanwhile: an answer that came too late, a process that died. They bring the number of the
 * group along, which they noted before; who comes next removes by it what there is (snapshot.delete with "group"). Then none of it is there later:
 * one under way is waited for, and one whose request arrives only now is refused. */
#include "common/buf.h"
#include "snapshot/service_int.h"
#include <string.h>

int snap_op_group(struct snap_op *op, uint8_t ret[16], bool *ret_given)
{
    const char *text = NULL;
    static const uint8_t none[16];
    int r = gr_json_opt_str(op->params, "group", &text, op->err);
    *ret_given = text != NULL;
    if (r < 0 || !text)
        return r;
    return gr_uuid_parse(text, ret) < 0 || !memcmp(ret, none, 16) ? gr_fail(op->err, -GR_EUSAGE, "\"group\": '%.40s' is no UUID", text) : 0;
}

bool snap_undone(const struct snap_svc *s, const uint8_t group[16])
{
    for (unsigned i = 0; i < SNAP_UNDONE_MAX; i++)
        if (memcmp(s->undo.groups[i], group, 16) == 0)
            return true;
    return false;
}

int snap_taking_check(const struct snap_svc *s, const struct snap_taking *t, struct gr_err *err)
{
    return t->given && snap_undone(s, t->group) ? gr_fail(err, -GR_ECANCELED, "whoever asked for this snapshot has given it up") : 0;
}

int snap_taking_begin(struct snap_op *op, struct snap_taking *t)
{
    *t = (struct snap_taking){.next = op->s->undo.takings};
    int r = snap_op_group(op, t->group, &t->given);
    if (r == 0)
        r = snap_taking_check(op->s, t, op->err);
    if (r == 0)
        op->s->undo.takings = t;
    return r;
}

void snap_taking_end(struct snap_svc *s, struct snap_taking *t)
{
    struct snap_taking **p = &s->undo.takings;
    while (*p && *p != t)
        p = &(*p)->next;
    if (*p)
        *p = t->next;
    gr_fqueue_wake_all(&s->undo.over);
}

static bool under_way(const struct snap_svc *s, const uint8_t group[16])
{
    const struct snap_taking *t = s->undo.takings;
    while (t && !(t->given && memcmp(t->group, group, 16) == 0))
        t = t->next;
    return t || snap_group_under_way(s, group);
}

void snap_undo(struct snap_svc *s, const uint8_t group[16])
{
    if (!snap_undone(s, group))
        memcpy(s->undo.groups[s->undo.n++ % SNAP_UNDONE_MAX], group, 16);
    while (under_way(s, group))
        gr_fqueue_wait_ms(&s->undo.over, 100);
}
