/* PERSISTENT RESERVE IN and OUT (SPC-4 6.15, 6.16): parameter data, effects on sessions, and what APTPL keeps. */
#include "iscsi-target/pr.h"
#include "common/buf.h"
#include "common/cleanup.h"
#include "common/seam.h"
#include "iscsi-target/sanitize.h"
#include "iscsi-target/scsi.h"
#include <jansson.h>
#include <stdlib.h>

#define ATTR "reservations"

struct tgt_pr {
    struct gr_fmutex lock; /* one PERSISTENT RESERVE OUT at a time */
    struct tgt_pr_state state;
    struct tgt_pr_state before;
    struct tgt_pr_effect effect;
};

static void nexus_of(const struct tgt_sess *sess, struct tgt_nexus *ret)
{
    memset(ret, 0, sizeof *ret);
    memcpy(ret->initiator, sess->initiator, sizeof ret->initiator);
    memcpy(ret->isid, sess->isid, TGT_ISID_LEN);
}

uint8_t tgt_pr_check(const struct tgt_lu *lu, const struct tgt_sess *sess, unsigned flags)
{
    struct tgt_nexus who;
    if (!lu->pr || lu->pr->state.type == PR_NONE || !(flags & (CMD_PR_READ | CMD_PR_WRITE)))
        return 0;
    nexus_of(sess, &who);
    return tgt_pr_allows(&lu->pr->state, &who, flags & CMD_PR_READ, flags & CMD_PR_WRITE) ? 0 : TGT_CONFLICT;
}

bool tgt_pr_any(const struct tgt_lu *lu)
{
    return lu->pr && lu->pr->state.n;
}

void tgt_pr_free(struct tgt_lu *lu)
{
    free(lu->pr);
    lu->pr = NULL;
}

static struct tgt_pr *pr_of(struct tgt_lu *lu)
{
    if (!lu->pr)
        lu->pr = gr_zalloc(sizeof *lu->pr);
    return lu->pr;
}

/* ---- durable form ---- */

static void isid_text(const uint8_t isid[TGT_ISID_LEN], char ret[13])
{
    for (unsigned i = 0; i < TGT_ISID_LEN; i++)
        snprintf(ret + 2 * i, 3, "%02x", isid[i]);
}

static json_t *encode(const struct tgt_pr_state *s)
{
    json_t *regs = json_array();
    json_int_t holder = -1;
    for (unsigned i = 0; i < s->n; i++) {
        char isid[13], key[17];
        const struct tgt_pr_reg *r = &s->regs[i];
        isid_text(r->nexus.isid, isid);
        snprintf(key, sizeof key, "%016llx", (unsigned long long)r->key);
        if (tgt_pr_holds(s, &r->nexus) && holder < 0)
            holder = i;
        json_array_append_new(regs, json_pack("{s:s,s:s,s:s}", "key", key, "initiator", r->nexus.initiator, "isid", isid));
    }
    return json_pack("{s:I,s:i,s:I,s:o}", "generation", (json_int_t)s->generation, "type", (int)s->type, "holder", holder, "registrations", regs);
}

static bool hex_bytes(const char *text, uint8_t *ret, size_t n)
{
    if (!text || strlen(text) != 2 * n)
        return false;
    for (size_t i = 0; i < n; i++) {
        char two[3] = {text[2 * i], text[2 * i + 1], 0}, *end;
        ret[i] = (uint8_t)strtoul(two, &end, 16);
        if (*end)
            return false;
    }
    return true;
}

static int decode(json_t *doc, struct tgt_pr_state *s)
{
    json_t *r, *regs = json_object_get(doc, "registrations");
    size_t i;
    memset(s, 0, sizeof *s);
    s->generation = (uint32_t)json_integer_value(json_object_get(doc, "generation"));
    s->type = (uint8_t)json_integer_value(json_object_get(doc, "type"));
    s->aptpl = true;
    json_int_t holder = json_integer_value(json_object_get(doc, "holder"));
    if (!json_is_array(regs) || json_array_size(regs) > TGT_PR_MAX || s->type > PR_EA_AR)
        return -GR_EFORMAT;
    json_array_foreach(regs, i, r)
    {
        struct tgt_pr_reg *reg = &s->regs[s->n++];
        uint8_t key[8];
        const char *name = json_string_value(json_object_get(r, "initiator"));
        if (!name || strlen(name) > TGT_NAME_MAX || !hex_bytes(json_string_value(json_object_get(r, "key")), key, 8) ||
            !hex_bytes(json_string_value(json_object_get(r, "isid")), reg->nexus.isid, TGT_ISID_LEN))
            return -GR_EFORMAT;
        reg->key = gr_get_be64(key);
        memcpy(reg->nexus.initiator, name, strlen(name) + 1);
        if ((json_int_t)i == holder)
            s->holder = reg->nexus;
    }
    return holder >= (json_int_t)s->n ? -GR_EFORMAT : 0;
}

json_t *tgt_pr_describe(const struct tgt_lu *lu)
{
    json_t *doc = lu->pr ? encode(&lu->pr->state) : NULL;
    if (doc)
        json_object_set_new(doc, "aptpl", json_boolean(lu->pr->state.aptpl));
    return doc;
}

int tgt_pr_adopt(struct tgt_lu *lu, json_t *doc)
{
    int r = !pr_of(lu) ? -ENOMEM : decode(doc, &lu->pr->state);
    if (r < 0)
        tgt_pr_free(lu);
    else
        lu->pr->state.aptpl = json_is_true(json_object_get(doc, "aptpl"));
    return r;
}

int tgt_pr_load(struct tgt_lu *lu, struct gr_err *err)
{
    gr_auto_free void *text = NULL;
    json_error_t je;
    if (lu->pr || !lu->has_store)
        return 0;
    int n = lu->bdev->ops->attr_get(lu->bdev, ATTR, &text, err);
    if (n == -ENOENT)
        return 0;
    if (n < 0)
        return n;
    json_t *doc = json_loadb(text, (size_t)n, 0, &je);
    int r = !doc || !pr_of(lu) ? -GR_EFORMAT : decode(doc, &lu->pr->state);
    json_decref(doc);
    if (r < 0) {
        tgt_pr_free(lu);
        return gr_fail(err, r, "disk '%s': its stored reservations cannot be read", lu->disk);
    }
    return 0;
}

static int save(struct tgt_lu *lu, const struct tgt_pr_state *s)
{
    struct gr_err err;
    if (!lu->bdev || !lu->has_store)
        return 0;
    if (!s->aptpl || !s->n)
        return lu->pr->before.aptpl ? lu->bdev->ops->attr_set(lu->bdev, ATTR, "", 0, &err) : 0;
    json_t *doc = encode(s);
    gr_auto_free char *text = doc ? json_dumps(doc, JSON_COMPACT) : NULL;
    json_decref(doc);
    return text ? lu->bdev->ops->attr_set(lu->bdev, ATTR, text, strlen(text), &err) : -ENOMEM;
}

/* ---- OUT ---- */

static void tell(struct tgt_task *t, const struct tgt_pr_effect *e, bool abort)
{
    for (unsigned i = 0; i < e->n; i++) {
        for (struct tgt_sess *o = t->lu->server->sessions; o; o = o->next) {
            struct tgt_nexus who;
            nexus_of(o, &who);
            if (o->lu != t->lu || o == t->sess || memcmp(&who, &e->who[i], sizeof who) != 0)
                continue;
            tgt_sess_ua(o, e->ua[i]);
            for (unsigned j = 0; abort && e->removed[i] && j < TGT_TASKS; j++)
                tgt_task_abort(&o->tasks[j], NULL);
        }
    }
}

static uint32_t apply(struct tgt_task *t, struct tgt_pr *pr, const struct tgt_pr_request *rq)
{
    struct tgt_nexus who;
    nexus_of(t->sess, &who);
    pr->before = pr->state;
    uint32_t result = tgt_pr_apply(&pr->state, &who, rq, &pr->effect);
    if (result || (!pr->state.aptpl && !pr->before.aptpl))
        return result;
    if (save(t->lu, &pr->state) < 0) {
        pr->state = pr->before;
        return TGT_SENSE_INTERNAL << 8;
    }
    return 0;
}

/* Wait until whatever was with the device has been answered, also of sessions that are gone: nothing of who was preempted lands later. What
 * comes now waits behind us. While the unit is sanitized nothing else is with the device. */
static void drain(struct tgt_task *t)
{
    if (tgt_sanitize_alone(t->lu))
        return;
    tgt_fiber_range(t, 0, UINT64_MAX, true);
    tgt_range_end(&t->lu->ranges, &t->range);
    t->range.active = false;
}

void tgt_run_pr_out(struct tgt_task *t)
{
    struct tgt_lu *lu = t->lu;
    const uint8_t *p = t->buf;
    struct tgt_pr *pr = pr_of(lu);
    if (t->out_total != 24 || GR_MIN(t->out_need, t->out_got) != 24) {
        tgt_check(t, TGT_SENSE_PARAM_LENGTH);
        return;
    }
    if (!pr) {
        tgt_status(t, TGT_BUSY);
        return;
    }
    struct tgt_pr_request rq = {.action = (enum tgt_pr_action)(t->cdb[1] & 0x1f), .type = t->cdb[2] & 0x0f, .scope = t->cdb[2] >> 4,
                                .key = gr_get_be64(p), .new_key = gr_get_be64(p + 8), .aptpl = p[20] & 0x01};
    bool registers = rq.action == PR_REGISTER || rq.action == PR_REGISTER_IGNORE;
    bool durable = lu->bdev && lu->has_store;
    if ((p[20] & 0x08) || (registers && rq.aptpl && !durable)) { /* SPEC_I_PT; APTPL without a store */
        tgt_check_field(t, TGT_SENSE_INVALID_PARAM, false, 20);
        return;
    }
    gr_fmutex_lock(&pr->lock);
    uint32_t result = lu->reserved && lu->reserved != t->sess ? TGT_CONFLICT : apply(t, pr, &rq);
    if (!result)
        tell(t, &pr->effect, rq.action == PR_PREEMPT_ABORT);
    gr_fmutex_unlock(&pr->lock);
    if (!result && rq.action == PR_PREEMPT_ABORT)
        drain(t);
    if (result >> 8)
        tgt_check(t, result >> 8);
    else
        tgt_status(t, (uint8_t)result);
}

/* ---- IN ---- */

static uint32_t read_keys(const struct tgt_pr_state *s, uint8_t *p)
{
    for (unsigned i = 0; i < s->n; i++)
        gr_put_be64(p + 8 + 8 * i, s->regs[i].key);
    return 8 * s->n;
}

static uint32_t read_reservation(const struct tgt_pr_state *s, uint8_t *p)
{
    if (s->type == PR_NONE)
        return 0;
    const struct tgt_pr_reg *r = s->type >= PR_WE_AR ? NULL : tgt_pr_find(s, &s->holder);
    gr_put_be64(p + 8, r ? r->key : 0); /* no one key when all registrants hold it */
    p[8 + 13] = s->type;
    return 16;
}

static uint32_t full_status(const struct tgt_pr_state *s, uint8_t *p)
{
    uint32_t len = 0;
    for (unsigned i = 0; i < s->n; i++) {
        uint8_t *d = p + 8 + len;
        char isid[13], name[TGT_NAME_MAX + 32] = {0};
        const struct tgt_pr_reg *r = &s->regs[i];
        bool holds = tgt_pr_holds(s, &r->nexus);
        gr_put_be64(d, r->key);
        d[12] = holds;
        d[13] = holds ? s->type : 0;
        gr_put_be16(d + 18, 1);
        isid_text(r->nexus.isid, isid);
        uint32_t n = (uint32_t)snprintf(name, sizeof name, "%s,i,0x%s", r->nexus.initiator, isid) + 1;
        n = GR_MAX(n + tgt_pad4(n), 20u);
        d[24] = 0x45; /* TransportID of an iSCSI initiator port */
        gr_put_be16(d + 26, (uint16_t)n);
        memcpy(d + 28, name, n);
        gr_put_be32(d + 20, 4 + n);
        len += 24 + 4 + n;
    }
    return len;
}

static uint32_t capabilities(const struct tgt_lu *lu, uint8_t *p)
{
    bool durable = lu->has_store, kept = lu->pr && lu->pr->state.aptpl;
    gr_put_be16(p, 8);
    p[2] = (uint8_t)(0x04 | (durable ? 0x01 : 0)); /* ATP_C, PTPL_C */
    p[3] = (uint8_t)(0x80 | (kept ? 0x01 : 0));    /* TMV, PTPL_A */
    p[4] = 0xea;
    p[5] = 0x01;
    return 8;
}

void tgt_run_pr_in(struct tgt_task *t)
{
    static const struct tgt_pr_state none;
    const struct tgt_pr_state *s = t->lu->pr ? &t->lu->pr->state : &none;
    uint32_t alloc = gr_get_be16(t->cdb + 7), len = 0;
    uint8_t *p = tgt_in_buf(t, 8 + TGT_PR_MAX * (24 + 4 + TGT_NAME_MAX + 32));
    if (!p)
        return;
    switch (t->cdb[1] & 0x1f) {
    case 0:
        len = read_keys(s, p);
        break;
    case 1:
        len = read_reservation(s, p);
        break;
    case 2:
        tgt_in_data(t, capabilities(t->lu, p), alloc);
        return;
    default:
        len = full_status(s, p);
        break;
    }
    gr_put_be32(p, s->generation);
    gr_put_be32(p + 4, len);
    tgt_in_data(t, 8 + len, alloc);
}
