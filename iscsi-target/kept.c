/* Answers that are kept for SNACK and reassignment (recovery.c), told to a process that goes on keeping them.
 * Of a connection: [{"statsn","itt","status","sense":hex,"edtl","out","in","in-len","datasn","collapsed","separate","segment","base-sn","base-off",
 * "tag","at":where its data from base-off on is in the file} | {"statsn","bhs":base64,"data"?:base64}], oldest first. Tasks whose connection was
 * lost are told like the first, without "statsn". */
#include "common/b64.h"
#include "common/buf.h"
#include "common/cleanup.h"
#include "iscsi-target/scsi.h"
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

bool tgt_task_kept(const struct tgt_task *t)
{
    bool quiet = t->state == TASK_REPLY && !t->aborted && !t->in_ring && !t->in_tx && !t->tmf;
    return quiet && (!t->conn || (t->answered && t->unacked.listed));
}

static uint32_t data_of(const struct tgt_task *t)
{
    return t->buf && t->in_len > t->base_off ? t->in_len - t->base_off : 0;
}

/* ---- telling ---- */

static int put_data(const struct tgt_task *t, struct tgt_kept_data *data)
{
    uint32_t len = data_of(t);
    if (data->file < 0)
        data->file = memfd_create("granary-kept", MFD_CLOEXEC);
    if (data->file < 0 || (len && pwrite(data->file, t->buf + t->base_off, len, (off_t)data->used) != (ssize_t)len))
        return -ENOMEM;
    data->used += len;
    return 0;
}

static json_t *save_task(const struct tgt_task *t, struct tgt_kept_data *data)
{
    uint64_t at = data->used;
    gr_auto_free char *sense = t->sense_len ? gr_b64_encode(t->sense + 2, t->sense_len) : NULL;
    if ((t->sense_len && !sense) || put_data(t, data) < 0)
        return NULL;
    return json_pack("{s:I,s:i,s:s*,s:I,s:I,s:I,s:I,s:I,s:b,s:b,s:I,s:I,s:I,s:I,s:I}", "itt", (json_int_t)t->itt, "status", (int)t->status, "sense",
                     sense, "edtl", (json_int_t)t->edtl, "out", (json_int_t)t->out_total, "in", (json_int_t)t->in_total, "in-len",
                     (json_int_t)t->in_len, "datasn", (json_int_t)t->datasn, "collapsed", t->collapsed, "separate", t->separate, "segment",
                     (json_int_t)t->segment, "base-sn", (json_int_t)t->base_sn, "base-off", (json_int_t)t->base_off, "tag",
                     (json_int_t)t->snack_tag, "at", (json_int_t)at);
}

static json_t *save_misc(const struct tgt_misc *m)
{
    gr_auto_free char *bhs = gr_b64_encode(m->bhs, sizeof m->bhs), *text = m->len ? gr_b64_encode(m->data, m->len) : NULL;
    return bhs && (text || !m->len) ? json_pack("{s:s,s:s*}", "bhs", bhs, "data", text) : NULL;
}

json_t *tgt_kept_save(struct tgt_conn *c, struct tgt_kept_data *data)
{
    json_t *list = json_array();
    uint64_t total = 0;
    for (struct tgt_unacked *u = c->unacked; u; u = u->next)
        total += u->is_task ? data_of(gr_container_of(u, struct tgt_task, unacked)) : 0;
    for (struct tgt_unacked *u = c->unacked; u; u = u->next) {
        const struct tgt_task *t = u->is_task ? gr_container_of(u, struct tgt_task, unacked) : NULL;
        bool room = total <= TGT_KEPT_BYTES - data->used;
        total -= t ? data_of(t) : 0;
        json_t *o = !t ? save_misc(gr_container_of(u, struct tgt_misc, unacked)) : room ? save_task(t, data) : NULL;
        if (o && json_object_set_new(o, "statsn", json_integer(u->statsn)) == 0)
            json_array_append_new(list, o);
    }
    return list;
}

json_t *tgt_unassigned_save(struct tgt_sess *sess, struct tgt_kept_data *data)
{
    json_t *list = json_array();
    for (unsigned i = 0; i < TGT_TASKS && sess->n_free < TGT_TASKS; i++) {
        const struct tgt_task *t = &sess->tasks[i];
        if (t->state == TASK_REPLY && !t->conn && data_of(t) <= TGT_KEPT_BYTES - data->used)
            json_array_append_new(list, save_task(t, data));
    }
    return list;
}

/* ---- going on ---- */

static uint32_t number(json_t *o, const char *key)
{
    return (uint32_t)json_integer_value(json_object_get(o, key));
}

static bool load_sense(struct tgt_task *t, const char *text)
{
    gr_auto_buf struct gr_buf b = {0};
    if (!text)
        return true;
    if (gr_b64_decode(text, strlen(text), &b) < 0 || b.len > sizeof t->sense - 2)
        return false;
    memcpy(t->sense + 2, b.data, b.len);
    t->sense_len = (uint8_t)b.len;
    return true;
}

static bool load_data(struct tgt_task *t, uint64_t at, const struct tgt_kept_data *data)
{
    if (t->in_len > TGT_BUF_MAX || t->base_off > t->in_len || t->base_sn > t->datasn || !t->segment)
        return false;
    uint32_t len = t->in_len - t->base_off;
    return !len || (tgt_task_buf(t, t->in_len) == 0 && pread(data->file, t->buf + t->base_off, len, (off_t)at) == (ssize_t)len);
}

/* NULL: it is not kept. */
static struct tgt_task *load_task(struct tgt_sess *sess, json_t *o, const struct tgt_kept_data *data)
{
    uint32_t itt = number(o, "itt");
    if (!sess->n_free || tgt_task_find(sess, itt))
        return NULL;
    struct tgt_task *t = tgt_task_blank(sess, itt);
    t->state = TASK_REPLY;
    t->flags = 0;
    t->status = (uint8_t)number(o, "status");
    t->edtl = number(o, "edtl");
    t->out_total = number(o, "out");
    t->in_total = number(o, "in");
    t->in_len = number(o, "in-len");
    t->tx_off = t->in_len;
    t->datasn = t->again_sn = t->again_end = number(o, "datasn");
    t->collapsed = json_is_true(json_object_get(o, "collapsed"));
    t->separate = json_is_true(json_object_get(o, "separate"));
    t->segment = number(o, "segment");
    t->base_sn = number(o, "base-sn");
    t->base_off = number(o, "base-off");
    t->snack_tag = number(o, "tag");
    if (!t->segment) /* it was never on its way */
        t->segment = sess->params.max_send_dsl;
    if (load_sense(t, json_string_value(json_object_get(o, "sense"))) && load_data(t, number(o, "at"), data))
        return t;
    tgt_task_release(t);
    return NULL;
}

static struct tgt_misc *load_misc(struct tgt_conn *c, json_t *o)
{
    gr_auto_buf struct gr_buf bhs = {0}, text = {0};
    const char *a = json_string_value(json_object_get(o, "bhs")), *b = json_string_value(json_object_get(o, "data"));
    if (!a || gr_b64_decode(a, strlen(a), &bhs) < 0 || bhs.len != TGT_BHS_LEN || (b && gr_b64_decode(b, strlen(b), &text) < 0))
        return NULL;
    struct tgt_misc *m = tgt_misc_new(c, TGT_OP_NOP_IN, 0, 0, (uint32_t)text.len);
    if (!m)
        return NULL;
    c->n_misc--; /* nothing of it is to be sent now */
    memcpy(m->bhs, bhs.data, TGT_BHS_LEN);
    if (text.len)
        memcpy(m->data, text.data, text.len);
    return m;
}

void tgt_kept_load(struct tgt_conn *c, json_t *list, const struct tgt_kept_data *data)
{
    json_t *o;
    size_t i;
    json_array_foreach(list, i, o)
    {
        bool is_task = json_object_get(o, "itt") != NULL;
        struct tgt_task *t = is_task ? load_task(c->sess, o, data) : NULL;
        struct tgt_misc *m = is_task ? NULL : load_misc(c, o);
        if (t) {
            t->conn = c;
            t->answered = true;
        }
        if (t || m)
            tgt_unacked_add(c, t ? &t->unacked : &m->unacked, number(o, "statsn"));
    }
}

void tgt_unassigned_load(struct tgt_sess *sess, json_t *list, const struct tgt_kept_data *data)
{
    json_t *o;
    size_t i;
    json_array_foreach(list, i, o)
        (void)load_task(sess, o, data);
}
