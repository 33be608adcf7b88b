/* Persistent reservations, as they are kept: on the disk's own store, so that they go with it to whatever host owns it next. All are kept over
 * the death of a process and from host to host, which is no loss of power for a logical unit; those without APTPL not over a restart of the
 * machine that served it last. */
#include "common/buf.h"
#include "common/cleanup.h"
#include "iscsi-target/pr_int.h"
#include <stdlib.h>

#define ATTR "reservations"

void tgt_hex_text(const uint8_t *p, size_t n, char *ret)
{
    for (size_t i = 0; i < n; i++)
        snprintf(ret + 2 * i, 3, "%02x", p[i]);
}

void tgt_isid_text(const uint8_t isid[TGT_ISID_LEN], char ret[13])
{
    tgt_hex_text(isid, TGT_ISID_LEN, ret);
}

static json_t *encode(const struct tgt_pr_state *s)
{
    json_t *regs = json_array(), *done = s->n_done ? json_array() : NULL;
    json_int_t holder = -1;
    for (unsigned i = 0; i < s->n; i++) {
        char isid[13], key[17];
        const struct tgt_pr_reg *r = &s->regs[i];
        tgt_isid_text(r->nexus.isid, isid);
        snprintf(key, sizeof key, "%016llx", (unsigned long long)r->key);
        if (tgt_pr_holds(s, &r->nexus) && holder < 0)
            holder = i;
        json_array_append_new(regs, json_pack("{s:s,s:s,s:s}", "key", key, "initiator", r->nexus.initiator, "isid", isid));
    }
    for (unsigned i = 0; i < s->n_done; i++) {
        char id[17];
        snprintf(id, sizeof id, "%016llx", (unsigned long long)s->done[i]);
        json_array_append_new(done, json_string(id));
    }
    return json_pack("{s:I,s:i,s:I,s:b,s:o,s:o*}", "generation", (json_int_t)s->generation, "type", (int)s->type, "holder", holder, "aptpl", s->aptpl,
                     "registrations", regs, "done", done);
}

bool tgt_hex_bytes(const char *text, uint8_t *ret, size_t n)
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
    json_t *r, *regs = json_object_get(doc, "registrations"), *done = json_object_get(doc, "done"); /* older ones do not say */
    size_t i;
    memset(s, 0, sizeof *s);
    s->generation = (uint32_t)json_integer_value(json_object_get(doc, "generation"));
    s->type = (uint8_t)json_integer_value(json_object_get(doc, "type"));
    s->aptpl = !json_is_false(json_object_get(doc, "aptpl")); /* older ones were kept only with it */
    json_int_t holder = json_integer_value(json_object_get(doc, "holder"));
    if (!json_is_array(regs) || json_array_size(regs) > TGT_PR_MAX || s->type > PR_EA_AR)
        return -GR_EFORMAT;
    json_array_foreach(regs, i, r)
    {
        struct tgt_pr_reg *reg = &s->regs[s->n++];
        uint8_t key[8];
        const char *name = json_string_value(json_object_get(r, "initiator"));
        if (!name || strlen(name) > TGT_NAME_MAX || !tgt_hex_bytes(json_string_value(json_object_get(r, "key")), key, 8) ||
            !tgt_hex_bytes(json_string_value(json_object_get(r, "isid")), reg->nexus.isid, TGT_ISID_LEN))
            return -GR_EFORMAT;
        reg->key = gr_get_be64(key);
        memcpy(reg->nexus.initiator, name, strlen(name) + 1);
        if ((json_int_t)i == holder)
            s->holder = reg->nexus;
    }
    json_array_foreach(done, i, r)
    {
        uint8_t id[8];
        if (!tgt_hex_bytes(json_string_value(r), id, sizeof id))
            return -GR_EFORMAT;
        tgt_pr_note_done(s, gr_get_be64(id));
    }
    return holder >= (json_int_t)s->n ? -GR_EFORMAT : 0;
}

json_t *tgt_pr_describe(const struct tgt_lu *lu)
{
    return lu->pr ? encode(&lu->pr->state) : NULL;
}

int tgt_pr_adopt(struct tgt_lu *lu, json_t *doc)
{
    int r = !tgt_pr_of(lu) ? -ENOMEM : decode(doc, &lu->pr->state);
    if (r < 0)
        tgt_pr_free(lu);
    return r;
}

/* It was served last by this machine before its last start: those without APTPL are gone. */
static bool lost_power(const struct tgt_server *s, json_t *doc)
{
    const char *host = json_string_value(json_object_get(doc, "host")), *boot = json_string_value(json_object_get(doc, "boot"));
    return host && boot && strcmp(host, s->host) == 0 && strcmp(boot, s->boot) != 0;
}

int tgt_pr_save(struct tgt_lu *lu, const struct tgt_pr_state *s)
{
    struct gr_err err;
    if (!lu->bdev || !lu->has_store || memcmp(s, &lu->pr->before, sizeof *s) == 0)
        return 0;
    if (!s->n && !s->n_done)
        return lu->pr->before.n || lu->pr->before.n_done ? lu->bdev->ops->attr_set(lu->bdev, ATTR, "", 0, &err) : 0;
    json_t *doc = encode(s);
    if (doc && !s->aptpl) {
        json_object_set_new(doc, "host", json_string(lu->server->host));
        json_object_set_new(doc, "boot", json_string(lu->server->boot));
    }
    gr_auto_free char *text = doc ? json_dumps(doc, JSON_COMPACT) : NULL;
    json_decref(doc);
    return text ? lu->bdev->ops->attr_set(lu->bdev, ATTR, text, strlen(text), &err) : -ENOMEM;
}

/* What was read: kept, or, without APTPL, forgotten or from now on ours. */
static int take(struct tgt_lu *lu, json_t *doc)
{
    struct tgt_pr *pr = doc ? tgt_pr_of(lu) : NULL;
    int r = pr ? decode(doc, &pr->state) : -GR_EFORMAT;
    if (r < 0 || pr->state.aptpl)
        return r;
    pr->before = pr->state;
    if (lost_power(lu->server, doc))
        memset(&pr->state, 0, sizeof pr->state);
    else
        pr->before.generation--; /* saved again, with our name */
    return tgt_pr_save(lu, &pr->state);
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
    int r = take(lu, doc);
    json_decref(doc);
    if (r < 0) {
        tgt_pr_free(lu);
        return gr_fail(err, r, "disk '%s': its stored reservations cannot be used: %s", lu->disk, gr_code_text(r));
    }
    return 0;
}
