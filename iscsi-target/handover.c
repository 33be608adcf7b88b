/* {"version":2, "rest-ns":when coming to rest began (CLOCK_MONOTONIC),
 *  "portals":[{"fd","flags","name"?}],
 *  "units":[{"disk","standby","reservations"?:{as stored, "aptpl"},"write-protected","descriptor-sense","ejected"}],
 *  "statistics":[{"disk","ended":{…}}],  what sessions that have ended counted, also of disks that nobody uses now
 *  "sessions":[{"id","disk","initiator","address","isid","tsih","age-ms","cmdsn","attentions":[…],"stands-by"?,"prevents","reserves","unsure"?:{"id","cdb","list"},"params":[…],
 *               "statistics":{…},"unassigned":[…],
 *               "connections":[{"fd","cid","address","statsn","acked","header-digest","data-digest","segment","pings","unread"?:base64,"kept"?:[…]}]}],
 *  "kept-data"?:{"fd"}}  answers that may be asked for again, and a file of their data: kept.c
 * params: the fields of struct tgt_params in their order; later versions append. Statistics: as stats.c tells them; who sees them sees counters
 * that never go back. */
#include "iscsi-target/handover.h"
#include "common/b64.h"
#include "common/buf.h"
#include "common/cleanup.h"
#include "common/seam.h"
#include "iscsi-target/pr_int.h"
#include <stdlib.h>
#include <unistd.h>

#define SETTLE_NS 1000000000ull
#define N_PARAMS (sizeof(struct tgt_params) / sizeof(uint32_t))
_Static_assert(N_PARAMS == 15, "a new parameter goes to the end, and is absent in what older programs say");

/* ---- describing ---- */

static json_t *describe_conn(struct tgt_heritage *h, struct tgt_conn *c, struct tgt_kept_data *data)
{
    int fd = tgt_conn_unread(c) < 0 ? -ENOMEM : tgt_heritage_keep(h, c->fd);
    if (fd < 0)
        return NULL;
    json_t *o = json_pack("{s:i,s:i,s:s,s:I,s:I,s:i,s:i,s:I,s:i}", "fd", fd, "cid", (int)c->cid, "address", c->address, "statsn",
                          (json_int_t)c->statsn, "acked", (json_int_t)c->acked,
                          "header-digest", (int)c->params.header_digest, "data-digest", (int)c->params.data_digest, "segment",
                          (json_int_t)c->params.max_send_dsl, "pings", (int)c->nop_outstanding);
    if (o && c->unacked)
        json_object_set_new(o, "kept", tgt_kept_save(c, data));
    gr_auto_free char *unread = c->replay.len ? gr_b64_encode(c->replay.data, c->replay.len) : NULL;
    if (o && unread)
        json_object_set_new(o, "unread", json_string(unread));
    return o;
}

static json_t *describe_params(const struct tgt_params *p)
{
    uint32_t values[N_PARAMS];
    json_t *a = json_array();
    memcpy(values, p, sizeof values);
    for (size_t i = 0; i < N_PARAMS; i++)
        json_array_append_new(a, json_integer(values[i]));
    return a;
}

static json_t *describe_sess(struct tgt_heritage *h, struct tgt_sess *o, struct tgt_kept_data *data)
{
    char isid[2 * TGT_ISID_LEN + 1];
    tgt_isid_text(o->isid, isid);
    json_t *conns = json_array(), *attentions = json_array();
    for (struct tgt_conn *c = o->conns; c; c = c->next)
        if (json_array_append_new(conns, describe_conn(h, c, data)) < 0)
            json_array_append_new(conns, json_null()); /* that one is lost */
    for (unsigned i = 0; i < o->n_ua; i++)
        json_array_append_new(attentions, json_integer(o->ua[i]));
    return json_pack("{s:I,s:s,s:s,s:s,s:s,s:i,s:I,s:I,s:b,s:b,s:b,s:o,s:o,s:o,s:o*,s:o*,s:o*}", "id", (json_int_t)o->id, "disk", o->lu->disk, "initiator", o->initiator, "address", o->address, "isid",
                     isid, "tsih", (int)o->tsih, "age-ms", (json_int_t)((gr_loop_now_ns(o->server->loop) - o->started_ns) / 1000000), "cmdsn",
                     (json_int_t)o->expcmdsn, "stands-by", o->stands_by, "prevents", o->prevents, "reserves", o->lu->reserved == o, "attentions", attentions, "params",
                     describe_params(&o->params), "connections", conns, "statistics", tgt_stats_save(&o->stats),
                     "unassigned", tgt_unassigned_save(o, data), "unsure", tgt_pr_unsure_save(&o->unsure));
}

static json_t *describe_unit(const struct tgt_lu *lu)
{
    return json_pack("{s:s,s:b,s:o*,s:b,s:b,s:b}", "disk", lu->disk, "standby", lu->standby, "reservations", tgt_pr_describe(lu), "write-protected",
                     lu->swp, "descriptor-sense", lu->d_sense, "ejected", lu->ejected);
}

static json_t *describe(struct tgt_server *s, struct tgt_heritage *h)
{
    json_t *portals = json_array(), *units = json_array(), *sessions = json_array(), *statistics = json_array();
    struct tgt_kept_data data = {.file = -1};
    for (unsigned i = 0; i < s->n_portals; i++) {
        int fd = tgt_heritage_keep(h, s->portals[i].fd);
        if (fd >= 0)
            json_array_append_new(portals, json_pack("{s:i,s:i,s:s}", "fd", fd, "flags", (int)s->portals[i].flags, "name", s->portals[i].name));
    }
    for (const struct tgt_lu *lu = s->lus; lu; lu = lu->next)
        if (lu->n_sessions)
            json_array_append_new(units, describe_unit(lu));
    for (const struct tgt_lu *lu = s->lus; lu; lu = lu->next)
        json_array_append_new(statistics, json_pack("{s:s,s:o}", "disk", lu->disk, "ended", tgt_stats_save(&lu->stats)));
    for (struct tgt_sess *o = s->sessions; o; o = o->next)
        json_array_append_new(sessions, describe_sess(h, o, &data));
    int kept = data.file < 0 ? -1 : tgt_heritage_keep(h, data.file);
    gr_closep(&data.file);
    json_t *doc = json_pack("{s:i,s:I,s:o,s:o,s:o,s:o}", "version", TGT_HERITAGE_VERSION, "rest-ns", (json_int_t)s->rest_ns, "portals", portals, "units", units, "sessions",
                     sessions, "statistics", statistics);
    if (doc && kept >= 0)
        json_object_set_new(doc, "kept-data", json_pack("{s:i}", "fd", kept));
    return doc;
}

int tgt_server_bequeath(struct tgt_server *s, struct tgt_heritage *ret, struct gr_err *err)
{
    struct tgt_heritage h = {.fds = calloc(TGT_HERITAGE_FDS, sizeof(int))};
    uint64_t deadline = gr_loop_now_ns(s->loop) + SETTLE_NS;
    tgt_login_stop(s);
    while (tgt_server_restless(s) && gr_loop_now_ns(s->loop) < deadline) /* the thread of another loop may be receiving: see that it has */
        gr_fiber_sleep_ms(1);
    h.doc = h.fds ? describe(s, &h) : NULL;
    if (!h.doc) {
        tgt_heritage_free(&h);
        return gr_fail(err, -ENOMEM, "out of memory for what sessions there are");
    }
    while (s->sessions) /* the copies keep the connections */
        tgt_sess_close(s->sessions, "handed over");
    *ret = h;
    return 0;
}

/* ---- going on ---- */

int tgt_server_inherit_portals(struct tgt_server *s, struct tgt_heritage *h, struct gr_err *err)
{
    json_t *portals = json_object_get(h->doc, "portals"), *o;
    size_t i;
    json_int_t version = json_integer_value(json_object_get(h->doc, "version"));
    if (version < TGT_HERITAGE_OLDEST || version > TGT_HERITAGE_VERSION || !json_array_size(portals))
        return gr_fail(err, -GR_EFORMAT, "what the other process hands over, of version %lld, is not understood: %d to %d are", (long long)version,
                       TGT_HERITAGE_OLDEST, TGT_HERITAGE_VERSION);
    s->deaf = true;
    json_array_foreach(portals, i, o)
    {
        int fd = tgt_heritage_take_fd(h, o);
        int r = fd < 0 ? -EBADF : tgt_server_adopt(s, fd, (unsigned)json_integer_value(json_object_get(o, "flags")),
                                                      json_string_value(json_object_get(o, "name")), err);
        if (r < 0)
            return gr_fail(err, r, "a portal that was handed over cannot be used: %s", gr_code_text(r));
    }
    return 0;
}

static bool bytes(const char *text, uint8_t *ret, size_t n)
{
    for (size_t i = 0; text && i < n; i++) {
        char two[3] = {text[2 * i], text[2 * i] ? text[2 * i + 1] : 0, 0};
        if (strspn(two, "0123456789abcdef") != 2)
            return false;
        ret[i] = (uint8_t)strtoul(two, NULL, 16);
    }
    return text && !text[2 * n];
}

static bool params(json_t *a, struct tgt_params *ret)
{
    uint32_t values[N_PARAMS];
    json_t *v;
    size_t i;
    tgt_params_default(ret);
    memcpy(values, ret, sizeof values);
    json_array_foreach(a, i, v)
        if (i < N_PARAMS)
            values[i] = (uint32_t)json_integer_value(v);
    memcpy(ret, values, sizeof values);
    return tgt_params_ok(ret);
}

static int conn(struct tgt_sess *sess, struct tgt_sess_start *start, json_t *o, int fd, const struct tgt_kept_data *data)
{
    struct tgt_conn *c = NULL;
    const char *address = json_string_value(json_object_get(o, "address")), *unread = json_string_value(json_object_get(o, "unread"));
    start->fd = fd;
    start->address = address ? address : "?";
    start->cid = (uint16_t)json_integer_value(json_object_get(o, "cid"));
    start->statsn = (uint32_t)json_integer_value(json_object_get(o, "statsn"));
    json_t *acked = json_object_get(o, "acked"); /* older programs do not say */
    start->acked = acked ? (uint32_t)json_integer_value(acked) : start->statsn;
    start->params.header_digest = json_integer_value(json_object_get(o, "header-digest")) != 0;
    start->params.data_digest = json_integer_value(json_object_get(o, "data-digest")) != 0;
    start->params.max_send_dsl = (uint32_t)json_integer_value(json_object_get(o, "segment"));
    if (!tgt_params_ok(&start->params))
        return -GR_EFORMAT;
    int r = tgt_conn_new(sess, start, &c);
    if (r < 0)
        return r;
    tgt_kept_load(c, json_object_get(o, "kept"), data);
    c->nop_outstanding = (unsigned)json_integer_value(json_object_get(o, "pings"));
    if (unread && gr_b64_decode(unread, strlen(unread), &c->replay) < 0)
        tgt_conn_lost(c, "what was not read yet cannot be read");
    return 0;
}

static void conns(struct tgt_heritage *h, struct tgt_sess *sess, struct tgt_sess_start *start, json_t *told, const struct tgt_kept_data *data)
{
    json_t *list = json_object_get(told, "connections"), *unassigned = json_object_get(told, "unassigned"), *o;
    size_t i;
    tgt_unassigned_load(sess, unassigned, data);
    sess->holds++; /* whatever happens to its connections */
    json_array_foreach(list, i, o)
    {
        int fd = tgt_heritage_take_fd(h, o);
        if (fd >= 0 && conn(sess, start, o, fd, data) < 0)
            close(fd);
    }
    bool waits = json_array_size(unassigned) || (!json_array_size(list) && sess->params.error_recovery_level == 2);
    if (waits && !sess->ended)
        tgt_sess_retain(sess); /* what waits to be reassigned has its time anew */
    else if (!sess->conns && !sess->ended)
        tgt_sess_close(sess, "none of its connections could be taken over");
    struct tgt_conn *next;
    for (struct tgt_conn *c = sess->conns; c; c = next) { /* what came meanwhile */
        next = c->next;
        tgt_rx_ready(c);
    }
    tgt_sess_unhold(sess);
}

/* One that is not taken over has counted all the same. */
static void count_ended(struct tgt_server *s, const char *disk, json_t *statistics)
{
    struct tgt_lu *lu = disk && statistics ? tgt_lu_known(s, disk) : NULL;
    if (lu)
        tgt_stats_load(&lu->stats, statistics);
}

static bool session(struct tgt_server *s, struct tgt_heritage *h, json_t *o, const struct tgt_kept_data *data)
{
    struct gr_err err = {0};
    struct tgt_lu *lu = NULL;
    char redirect[300];
    const char *disk = json_string_value(json_object_get(o, "disk")), *initiator = json_string_value(json_object_get(o, "initiator"));
    const char *address = json_string_value(json_object_get(o, "address"));
    uint32_t id = (uint32_t)json_integer_value(json_object_get(o, "id"));
    struct tgt_sess_start start = {.initiator = initiator, .address = address, .tsih = (uint16_t)json_integer_value(json_object_get(o, "tsih")),
                                   .cmdsn = (uint32_t)json_integer_value(json_object_get(o, "cmdsn"))};
    if (!disk || !initiator || !address || !bytes(json_string_value(json_object_get(o, "isid")), start.isid, TGT_ISID_LEN) ||
        !params(json_object_get(o, "params"), &start.params))
        return false;
    /* whose portal redirects is led to the disk's owner, if that is another host by now: it logs in anew. Older programs do not say */
    start.stands_by = !json_is_false(json_object_get(o, "stands-by"));
    int r = tgt_lu_acquire(s, disk, initiator, start.stands_by, &lu, redirect, &err);
    if (r == -EREMCHG)
        gr_fail(&err, r, "the disk is another host's by now");
    start.lu = lu;
    struct tgt_sess *sess = r < 0 ? NULL : tgt_sess_make(s, &start);
    if (!sess) {
        tgt_note(s, 4, "session of %s (%s) on '%s' is not taken over: %s", initiator, address, disk, r < 0 ? gr_err_text(&err, r) : "out of memory");
        if (lu)
            tgt_lu_user_put(lu);
        count_ended(s, disk, json_object_get(o, "statistics"));
        return false;
    }
    tgt_stats_load(&sess->stats, json_object_get(o, "statistics"));
    sess->id = id ? id : sess->id;
    s->next_id = GR_MAX(s->next_id, sess->id);
    s->next_tsih = GR_MAX(s->next_tsih, sess->tsih);
    sess->started_ns -= (uint64_t)json_integer_value(json_object_get(o, "age-ms")) * 1000000;
    sess->prevents = json_is_true(json_object_get(o, "prevents"));
    tgt_pr_unsure_load(&sess->unsure, json_object_get(o, "unsure"));
    if (json_is_true(json_object_get(o, "reserves")))
        lu->reserved = sess;
    json_t *list = json_object_get(o, "attentions"), *v;
    size_t i;
    json_array_foreach(list, i, v)
        tgt_sess_ua(sess, (uint16_t)json_integer_value(v));
    conns(h, sess, &start, o, data);
    return true;
}

/* One who may use @disk: a snapshot is there for those alone to whom it is exposed. */
static const char *user_of(json_t *sessions, const char *disk)
{
    json_t *o;
    size_t i;
    json_array_foreach(sessions, i, o)
    {
        const char *of = json_string_value(json_object_get(o, "disk")), *initiator = json_string_value(json_object_get(o, "initiator"));
        if (of && initiator && strcmp(of, disk) == 0)
            return initiator;
    }
    return "";
}

/* What a unit knew beside the disk's store. Nothing of its sessions was read yet. Held open until they hold it, or NULL. */
static struct tgt_lu *unit(struct tgt_server *s, json_t *o, json_t *sessions)
{
    const char *disk = json_string_value(json_object_get(o, "disk"));
    json_t *pr = json_object_get(o, "reservations");
    struct tgt_lu *lu = NULL;
    struct gr_err err = {0};
    char redirect[300];
    int r = disk ? tgt_lu_acquire(s, disk, user_of(sessions, disk), true, &lu, redirect, &err) : -GR_EFORMAT;
    if (r < 0) {
        tgt_note(s, 4, "disk '%s' is not taken over: %s", disk ? disk : "?", gr_err_text(&err, r));
        return NULL;
    }
    if (pr && tgt_pr_adopt(lu, pr) < 0)
        tgt_note(s, 3, "disk '%s': its reservations cannot be taken over", disk);
    lu->swp = json_is_true(json_object_get(o, "write-protected"));
    lu->d_sense = json_is_true(json_object_get(o, "descriptor-sense"));
    lu->ejected = json_is_true(json_object_get(o, "ejected"));
    return lu;
}

int tgt_server_inherit_sessions(struct tgt_server *s, struct tgt_heritage *h)
{
    json_t *units = json_object_get(h->doc, "units"), *sessions = json_object_get(h->doc, "sessions"), *o;
    int lost = 0;
    size_t i;
    json_array_foreach(json_object_get(h->doc, "statistics"), i, o)
        count_ended(s, json_string_value(json_object_get(o, "disk")), json_object_get(o, "ended"));
    struct tgt_kept_data data = {.file = tgt_heritage_take_fd(h, json_object_get(h->doc, "kept-data"))};
    struct tgt_lu **held = gr_zalloc((json_array_size(units) + 1) * sizeof *held);
    json_array_foreach(units, i, o)
        if (held)
            held[i] = unit(s, o, sessions);
    json_array_foreach(sessions, i, o)
        lost += !session(s, h, o, &data);
    gr_closep(&data.file);
    for (i = 0; held && i < json_array_size(units); i++)
        if (held[i])
            tgt_lu_user_put(held[i]);
    free(held);
    tgt_server_hear(s);
    uint64_t silent = gr_loop_now_ns(s->loop) - (uint64_t)json_integer_value(json_object_get(h->doc, "rest-ns"));
    tgt_note(s, 5, "%u sessions taken over, %d lost; they were silent for %llu ms", s->n_sessions, lost, (unsigned long long)silent / 1000000);
    return lost;
}

