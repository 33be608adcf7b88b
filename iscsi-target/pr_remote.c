/* Persistent reservations of initiators whose path ends at another host than the disk's owner (SPC-4 5.15.2.4.4: a unit in standby takes
 * PERSISTENT RESERVE IN and OUT). The owner alone has them: it is asked. A reservation belongs to the initiator's port, not to the path.
 *
 * An OUT is passed on under a number, and the owner keeps the numbers of those that it carried out with the reservations: when its answer is lost, or
 * its life, whoever owns the disk then is asked under the same number, and does it once. An owner that is silent is asked twice, and then the
 * initiator is told BUSY: it sends the command again by itself, and that has the same number. What nobody waits for any more is not carried out late.
 *
 *   lun.reserve {"disk","initiator","isid","cdb","data"?,"id"?}  → {"status","sense","in-list","data"}; isid, cdb and id in hexadecimal, data in base64
 *   lun.attention {"disk","attentions":[{"initiator","isid","ua"}]} */
#include "common/b64.h"
#include "common/buf.h"
#include "common/cleanup.h"
#include "iscsi-target/pr_int.h"
#include <stdlib.h>

#define CDB_LEN 10u

/* ---- here: in standby ---- */
uint64_t tgt_pr_again(struct tgt_task *t)
{
    struct tgt_unsure *u = &t->sess->unsure;
    bool same = u->id && memcmp(u->cdb, t->cdb, CDB_LEN) == 0 && memcmp(u->list, t->buf, TGT_PR_OUT_LEN) == 0;
    uint64_t id = same ? u->id : 0;
    u->id = 0;
    return id;
}

void tgt_pr_told(struct tgt_sess *sess, uint16_t ua)
{
    if (ua != TGT_UA_REG_PREEMPTED && ua != TGT_UA_RES_PREEMPTED)
        return;
    sess->unsure.id = 0;
    sess->unsure.told++;
}

json_t *tgt_pr_unsure_save(const struct tgt_unsure *u)
{
    char id[17], cdb[2 * sizeof u->cdb + 1], list[2 * sizeof u->list + 1];
    if (!u->id)
        return NULL;
    snprintf(id, sizeof id, "%016llx", (unsigned long long)u->id);
    tgt_hex_text(u->cdb, sizeof u->cdb, cdb);
    tgt_hex_text(u->list, sizeof u->list, list);
    return json_pack("{s:s,s:s,s:s}", "id", id, "cdb", cdb, "list", list);
}

void tgt_pr_unsure_load(struct tgt_unsure *u, json_t *doc)
{
    uint8_t id[8];
    bool whole = tgt_hex_bytes(json_string_value(json_object_get(doc, "id")), id, sizeof id) &&
                 tgt_hex_bytes(json_string_value(json_object_get(doc, "cdb")), u->cdb, sizeof u->cdb) &&
                 tgt_hex_bytes(json_string_value(json_object_get(doc, "list")), u->list, sizeof u->list);
    u->id = whole ? gr_get_be64(id) : 0;
}

static uint64_t number_of(struct tgt_task *t)
{
    const struct gr_world *w = gr_loop_world(t->sess->server->loop);
    uint64_t id = tgt_pr_again(t);
    while (!id)
        w->random(w->arg, &id, sizeof id);
    return id;
}

static json_t *request_of(const struct tgt_task *t, uint64_t id)
{
    char isid[13], cdb[2 * CDB_LEN + 1], number[17];
    snprintf(number, sizeof number, "%016llx", (unsigned long long)id);
    tgt_isid_text(t->sess->isid, isid);
    tgt_hex_text(t->cdb, CDB_LEN, cdb);
    gr_auto_free char *data = t->cdb[0] == 0x5f ? gr_b64_encode(t->buf, TGT_PR_OUT_LEN) : NULL;
    return json_pack("{s:s,s:s,s:s,s:s,s:s*,s:s*}", "disk", t->lu->disk, "initiator", t->sess->initiator, "isid", isid, "cdb", cdb, "data", data, "id",
                     id ? number : NULL);
}

static void pass_on(struct tgt_task *t, json_t *res)
{
    const char *text = json_string_value(json_object_get(res, "data"));
    gr_auto_buf struct gr_buf data = {0};
    const struct tgt_pr_answer a = {.status = (uint8_t)json_integer_value(json_object_get(res, "status")),
                                    .sense = (uint32_t)json_integer_value(json_object_get(res, "sense")) & 0xffffff,
                                    .in_list = json_is_true(json_object_get(res, "in-list"))};
    if (t->cdb[0] == 0x5f || a.sense || a.status) {
        tgt_pr_answer(t, &a);
        return;
    }
    if (!text || gr_b64_decode(text, strlen(text), &data) < 0 || data.len > TGT_PR_IN_MAX) {
        tgt_check(t, TGT_SENSE_INTERNAL);
        return;
    }
    uint8_t *p = tgt_in_buf(t, TGT_PR_IN_MAX);
    if (!p)
        return;
    memcpy(p, data.data, data.len);
    tgt_in_data(t, (uint32_t)data.len, gr_get_be16(t->cdb + 7));
}

static int ask(struct tgt_task *t, uint64_t id, json_t **ret, struct gr_err *err)
{
    const struct tgt_directory *dir = &t->lu->server->dir;
    json_t *request = dir->ask_owner ? request_of(t, id) : NULL;
    return request ? dir->ask_owner(dir->arg, t->lu->disk, "lun.reserve", request, ret, err) : -ENOMEM;
}

/* What an initiator hears of an owner that was not heard: BUSY of one that is silent, for no other path leads to another one. */
static void not_asked(struct tgt_task *t, int r)
{
    if (r == -ETIMEDOUT)
        tgt_status(t, TGT_BUSY);
    else
        tgt_check(t, TGT_SENSE_STANDBY);
}

/* It moves, its owner is gone, or the answer is lost. Who is it now? @told: as it was when the first one was asked. */
static void ask_next_owner(struct tgt_task *t, uint64_t id, unsigned told)
{
    struct tgt_lu *lu = t->lu;
    struct gr_err err = {0};
    json_t *res = NULL;
    tgt_lu_look(lu, t->sess);
    if (t->aborted || t->sess->ended) { /* what its initiator has sent since may be done already */
        tgt_status(t, TGT_BUSY); /* which nobody hears */
        return;
    }
    if (!lu->standby && lu->bdev) {
        tgt_sess_ua(t->sess, TGT_UA_ACCESS_CHANGED);
        tgt_pr_out_here(t, id);
        return;
    }
    int r = ask(t, id, &res, &err);
    if (r == 0) {
        pass_on(t, res);
    } else {
        struct tgt_unsure *u = &t->sess->unsure;
        tgt_note(lu->server, 6, "disk '%s': its owner was not asked about a reservation: %s", lu->disk, gr_err_text(&err, r));
        u->id = u->told == told ? id : 0;
        memcpy(u->cdb, t->cdb, CDB_LEN);
        memcpy(u->list, t->buf, TGT_PR_OUT_LEN);
        not_asked(t, r);
    }
    json_decref(res);
}

void tgt_pr_ask_owner(struct tgt_task *t)
{
    struct tgt_lu *lu = t->lu;
    struct gr_err err = {0};
    json_t *res = NULL;
    uint64_t id = t->cdb[0] == 0x5f ? number_of(t) : 0;
    unsigned told = t->sess->unsure.told;
    int r = ask(t, id, &res, &err);
    if (r == 0) {
        pass_on(t, res);
    } else if (id) {
        ask_next_owner(t, id, told);
    } else { /* who tries again finds it */
        tgt_note(lu->server, 6, "disk '%s': its owner was not asked about its reservations: %s", lu->disk, gr_err_text(&err, r));
        not_asked(t, r);
        tgt_lu_look_soon(lu);
    }
    json_decref(res);
}

/* ---- there: the owner ---- */
static int take_nexus(json_t *o, struct tgt_nexus *ret, struct gr_err *err)
{
    const char *initiator, *isid;
    memset(ret, 0, sizeof *ret);
    int r = gr_json_str(o, "initiator", &initiator, err);
    if (r == 0)
        r = gr_json_str(o, "isid", &isid, err);
    if (r < 0)
        return r;
    if (!initiator[0] || strlen(initiator) > TGT_NAME_MAX || !tgt_hex_bytes(isid, ret->isid, TGT_ISID_LEN))
        return gr_fail(err, -EINVAL, "\"initiator\" and \"isid\" are no initiator port");
    memcpy(ret->initiator, initiator, strlen(initiator));
    return 0;
}

static int run(struct tgt_lu *lu, const struct tgt_pr_order *o, size_t list_len, json_t **ret, struct gr_err *err)
{
    struct tgt_pr_answer a = {0};
    gr_auto_free uint8_t *p = NULL;
    gr_auto_free char *data = NULL;
    if (o->cdb[0] == 0x5f && list_len == TGT_PR_OUT_LEN) {
        tgt_pr_out(lu, o, &a);
    } else if (o->cdb[0] == 0x5e) {
        p = gr_zalloc(TGT_PR_IN_MAX);
        data = p ? gr_b64_encode(p, tgt_pr_in(lu, o->cdb, p)) : NULL;
        if (!data)
            return gr_fail(err, -ENOMEM, "out of memory");
    } else {
        return gr_fail(err, -EINVAL, "\"cdb\" and \"data\" are no PERSISTENT RESERVE IN or OUT");
    }
    *ret = json_pack("{s:i,s:i,s:b,s:s*}", "status", (int)a.status, "sense", (int)a.sense, "in-list", a.in_list, "data", data);
    return *ret ? 0 : gr_fail(err, -ENOMEM, "out of memory");
}

static int lun_reserve(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err)
{
    struct tgt_server *s = arg;
    const char *disk, *hex, *text = NULL, *number = NULL;
    char redirect[TGT_SHOWN];
    uint8_t cdb[CDB_LEN], id[8] = {0};
    struct tgt_nexus who;
    struct tgt_lu *lu = NULL;
    gr_auto_buf struct gr_buf list = {0};
    int r = gr_json_str(params, "disk", &disk, err);
    if (r == 0)
        r = gr_json_str(params, "cdb", &hex, err);
    if (r == 0)
        r = gr_json_opt_str(params, "data", &text, err);
    if (r == 0)
        r = gr_json_opt_str(params, "id", &number, err);
    if (r == 0)
        r = take_nexus(params, &who, err);
    if (r < 0)
        return r;
    if (!tgt_hex_bytes(hex, cdb, CDB_LEN) || (text && gr_b64_decode(text, strlen(text), &list) < 0))
        return gr_fail(err, -EINVAL, "\"cdb\" is not %u bytes in hexadecimal, or \"data\" not base64", CDB_LEN);
    if (number && !tgt_hex_bytes(number, id, sizeof id))
        return gr_fail(err, -EINVAL, "\"id\" is not %zu bytes in hexadecimal", sizeof id);
    r = tgt_lu_acquire(s, disk, who.initiator, false, &lu, redirect, err);
    if (r == -EREMCHG)
        return gr_fail(err, -GR_ELOCKED, "disk '%s' is another host's by now", disk);
    if (r < 0)
        return r;
    const struct tgt_pr_order o = {.who = &who, .cdb = cdb, .list = (const uint8_t *)list.data, .id = gr_get_be64(id), .call = call};
    r = run(lu, &o, list.len, ret, err);
    tgt_lu_user_put(lu);
    return r;
}

/* ---- attentions ---- */
struct telling {
    struct tgt_server *s;
    char *disk;
    json_t *params;
};

static void tell_fiber(void *arg)
{
    struct telling *t = arg;
    struct tgt_server *s = t->s;
    struct gr_err err = {0};
    int r = s->stopping ? 0 : s->dir.tell_hosts(s->dir.arg, t->disk, "lun.attention", json_incref(t->params), &err);
    if (r != 0)
        tgt_note(s, 5, "disk '%s': not every host could tell its initiators of a changed reservation: %s", t->disk, gr_err_text(&err, r));
    json_decref(t->params);
    free(t->disk);
    free(t);
    s->busy_fibers--;
    gr_fqueue_wake_all(&s->changed);
}

void tgt_pr_tell_hosts(struct tgt_lu *lu, const struct tgt_pr_effect *e)
{
    struct tgt_server *s = lu->server;
    json_t *list = s->dir.tell_hosts ? json_array() : NULL;
    char isid[13];
    if (!list)
        return;
    for (unsigned i = 0; i < e->n; i++) {
        tgt_isid_text(e->who[i].isid, isid);
        json_array_append_new(list, json_pack("{s:s,s:s,s:i}", "initiator", e->who[i].initiator, "isid", isid, "ua", (int)e->ua[i]));
    }
    struct telling *t = gr_zalloc(sizeof *t);
    if (t) {
        t->s = s;
        t->disk = gr_strdup(lu->disk);
        t->params = json_pack("{s:s,s:O}", "disk", lu->disk, "attentions", list);
    }
    json_decref(list);
    s->busy_fibers++;
    if (t && t->disk && t->params && gr_fiber_start(s->loop, tell_fiber, t) == 0)
        return;
    s->busy_fibers--;
    if (t) {
        json_decref(t->params);
        free(t->disk);
        free(t);
    }
}

static int lun_attention(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err)
{
    struct tgt_server *s = arg;
    const char *disk;
    json_t *list, *row;
    size_t i;
    int r = gr_json_str(params, "disk", &disk, err);
    if (r == 0)
        r = gr_json_array(params, "attentions", &list, err);
    if (r < 0)
        return r;
    json_array_foreach(list, i, row)
    {
        struct tgt_nexus who;
        json_int_t ua = json_integer_value(json_object_get(row, "ua"));
        r = take_nexus(row, &who, err);
        if (r < 0 || ua <= 0 || ua > 0xffff)
            return r < 0 ? r : gr_fail(err, -EINVAL, "\"ua\" is no additional sense code");
        for (struct tgt_sess *o = s->sessions; o; o = o->next)
            if (o->lu && strcmp(o->lu->disk, disk) == 0 && strcmp(o->initiator, who.initiator) == 0 && memcmp(o->isid, who.isid, TGT_ISID_LEN) == 0)
                tgt_sess_ua(o, (uint16_t)ua);
    }
    return 0;
}

/* What initiators do, not administrators; and news of rules that were changed elsewhere. */
const struct gr_rpc_method tgt_host_methods[] = {
    {"lun.reserve", lun_reserve, true}, {"lun.attention", lun_attention, true}, {"lun.rules-changed", tgt_rules_changed, true}, {NULL, NULL}};
