/* Logical units in standby (SPC-4 5.15.2.4.4): owned by another host, served on a portal that never redirects. They tell what they
 * are, and carry no data. Ownership decides, not the initiator (implicit ALUA): when it asks for the states, or is refused a command,
 * the directory is asked again, and may take over the disk of a host that is gone. */
#include "common/cleanup.h"
#include "iscsi-target/scsi.h"
#include <stdlib.h>

#define LOOK_NS 1000000000ull /* between two looks that nobody waits for */

static void close_sessions(struct tgt_lu *lu, const char *why)
{
    struct tgt_sess *next;
    for (struct tgt_sess *o = lu->server->sessions; o; o = next) {
        next = o->next;
        if (o->lu == lu)
            tgt_sess_close(o, why);
    }
}

/* Still elsewhere: it may have grown there. */
static void reshape(struct tgt_lu *lu, const struct gr_geometry *g)
{
    uint64_t before = lu->geo.size;
    if (tgt_lu_shape(lu, g) == 0 && lu->geo.size != before)
        tgt_lu_ua(lu, NULL, TGT_UA_CAPACITY);
}

void tgt_lu_look(struct tgt_lu *lu, const struct tgt_sess *asked)
{
    struct tgt_server *s = lu->server;
    struct tgt_place place = {0};
    struct gr_err err = {0};
    uint64_t before = lu->looks;
    while (lu->looking)
        gr_fqueue_wait(&s->changed);
    if (!lu->standby || lu->releasing || s->stopping || lu->looks > before) /* others looked since */
        return;
    lu->looking = true;
    lu->looks++;
    lu->users++;
    int r = s->dir.lookup(s->dir.arg, lu->disk, asked ? asked->initiator : "", &place, &err);
    lu->looked_ns = gr_loop_now_ns(s->loop);
    if (place.bdev)
        r = tgt_lu_activate(lu, place.bdev, asked, &err);
    else if (!r && lu->standby && !lu->bdev) /* a login may be opening it */
        reshape(lu, &place.geometry);
    lu->looking = false;
    if (r == -ENOENT)
        close_sessions(lu, "the disk is gone");
    else if (r < 0)
        tgt_note(s, 6, "disk '%s' stays in standby: %s", lu->disk, gr_err_text(&err, r));
    tgt_lu_user_put(lu);
    gr_fqueue_wake_all(&s->changed);
}

static void look_fiber(void *arg)
{
    struct tgt_lu *lu = arg;
    struct tgt_server *s = lu->server;
    tgt_lu_look(lu, NULL);
    tgt_lu_user_put(lu);
    s->busy_fibers--;
    gr_fqueue_wake_all(&s->changed);
}

void tgt_lu_look_soon(struct tgt_lu *lu)
{
    struct tgt_server *s = lu->server;
    if (lu->looking || s->stopping || gr_loop_now_ns(s->loop) - lu->looked_ns < LOOK_NS)
        return;
    lu->looked_ns = gr_loop_now_ns(s->loop);
    lu->users++;
    s->busy_fibers++;
    if (gr_fiber_start(s->loop, look_fiber, lu) < 0) {
        s->busy_fibers--;
        tgt_lu_user_put(lu);
    }
}

#define HEAD 8u /* of the longer parameter data format */
#define GROUP 12u

/* One descriptor: a group of one port, whose relative identifier is the group's number. */
static void describe(uint8_t *p, const struct tgt_group *g)
{
    p[0] = g->active ? 0x00 : 0x02; /* active/optimized, standby */
    p[1] = 0x05;                    /* these two are what there is */
    gr_put_be16(p + 2, g->id);
    p[7] = 1;
    gr_put_be16(p + 10, g->id);
}

void tgt_run_report_tpg(struct tgt_task *t)
{
    struct tgt_lu *lu = t->lu;
    struct tgt_server *s = lu->server;
    uint32_t alloc = gr_get_be32(t->cdb + 6), head = (t->cdb[1] & 0xe0) == 0x20 ? HEAD : 4;
    struct tgt_group groups[TGT_GROUPS_MAX], own = {.id = lu->group};
    tgt_lu_look(lu, t->sess);
    int n = s->dir.groups ? s->dir.groups(s->dir.arg, lu->disk, groups, TGT_GROUPS_MAX) : 0;
    uint8_t *p = tgt_in_buf(t, HEAD + GROUP * (TGT_GROUPS_MAX + 1));
    if (!p)
        return;
    own.active = !lu->standby;
    if (head == HEAD)
        p[4] = 0x10;
    uint32_t len = head;
    describe(p + len, &own);
    len += GROUP;
    for (int i = 0; i < n; i++) {
        if (groups[i].id == own.id)
            continue;
        groups[i].active &= !own.active;
        describe(p + len, &groups[i]);
        len += GROUP;
    }
    gr_put_be32(p, len - 4);
    tgt_in_data(t, len, alloc);
}
