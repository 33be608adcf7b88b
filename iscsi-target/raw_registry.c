/* conf/luns.json: what raw LUNs there are, as it is read, written and shown. */
#include "common/buf.h"
#include "common/cleanup.h"
#include "common/seam.h"
#include "iscsi-target/raw_int.h"
#include <string.h>

#define REGISTRY "conf/luns.json"
#define VERSION 1

int tgt_raw_name_check(const char *name, struct gr_err *err)
{
    size_t n = strlen(name);
    if (!n || n > TGT_RAW_NAME_MAX)
        return gr_fail(err, -GR_EUSAGE, "a LUN's name has 1 to %u bytes, not %zu", TGT_RAW_NAME_MAX, n);
    if (!gr_utf8_ok(name, n))
        return gr_fail(err, -GR_EUSAGE, "a LUN's name is UTF-8 without control characters");
    size_t bad = strcspn(name, "/@:*");
    if (name[bad])
        return gr_fail(err, -GR_EUSAGE, "LUN name '%s' must not contain '%c'%s", name, name[bad], name[bad] == '/' ? ": that would be a disk's" : "");
    if (name[0] == '.' || name[0] == '-')
        return gr_fail(err, -GR_EUSAGE, "LUN name '%s' must not start with '%c'", name, name[0]);
    return strcmp(name, "discovery") ? 0 : gr_fail(err, -GR_EUSAGE, "a LUN cannot be called 'discovery': access rules have another meaning for it");
}

int tgt_raw_address_check(const char *address, struct gr_err *err)
{
    const char *colon = strrchr(address, ':');
    uint64_t port;
    size_t host = colon ? (size_t)(colon - address) : 0;
    bool v6 = host > 2 && address[0] == '[' && address[host - 1] == ']';
    bool plain = host && strspn(address, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-") == host;
    if (strlen(address) >= TGT_SHOWN || (!v6 && !plain) || (v6 && strspn(address + 1, "0123456789abcdefABCDEF:.") != host - 2) ||
        gr_parse_u64(colon + 1, 1, 65535, &port, NULL) < 0)
        return gr_fail(err, -EINVAL, "'%s' is not HOST:PORT or [IPV6]:PORT: a login cannot be sent there", address);
    return 0;
}

int tgt_raw_read_limits(json_t *o, struct tgt_raw_limits *limits, struct gr_err *err)
{
    uint64_t iops = limits->iops, bytes = limits->bytes, burst = limits->burst_ms;
    int r = gr_json_opt_u64(o, "iops", &iops, err);
    if (r == 0)
        r = gr_json_opt_u64(o, "bandwidth", &bytes, err);
    if (r == 0)
        r = gr_json_opt_u64(o, "burst-ms", &burst, err);
    if (r < 0)
        return r;
    if (iops > 1000000000 || bytes > 1ull << 50 || (bytes && bytes < 4096) || burst > 3600000)
        return gr_fail(err, -GR_EUSAGE, "a limit is at most 10^9 commands, and from 4096 to 2^50 bytes, a second; what is saved up, an hour");
    *limits = (struct tgt_raw_limits){.iops = (uint32_t)iops, .bytes = bytes, .burst_ms = (uint32_t)burst};
    return 0;
}

static int read_entry(struct tgt_raw *raw, const char *name, json_t *o, struct gr_err *err)
{
    const char *file = json_string_value(json_object_get(o, "file")), *uuid = json_string_value(json_object_get(o, "uuid"));
    const char *to = json_string_value(json_object_get(o, "redirect"));
    struct raw_lun *l = gr_zalloc(sizeof *l);
    int r = l ? tgt_raw_name_check(name, err) : gr_fail(err, -ENOMEM, "out of memory");
    if (r == 0 && (!file || file[0] != '/'))
        r = gr_fail(err, -GR_EFORMAT, "LUN '%s' has no absolute path as \"file\"", name);
    if (r == 0 && (!uuid || gr_uuid_parse(uuid, l->uuid) < 0))
        r = gr_fail(err, -GR_EFORMAT, "LUN '%s' has no valid \"uuid\"", name);
    if (r == 0 && to)
        r = tgt_raw_address_check(to, err);
    if (r == 0 && (r = tgt_raw_read_limits(o, &l->limits, err)) < 0)
        gr_prefix(err, r, "LUN '%s'", name);
    if (r == 0) {
        l->read_only = json_is_true(json_object_get(o, "read-only"));
        l->name = gr_strdup(name);
        l->file = gr_strdup(file);
        l->redirect = to ? gr_strdup(to) : NULL;
        if (!l->name || !l->file || (to && !l->redirect))
            r = gr_fail(err, -ENOMEM, "out of memory");
    }
    if (r < 0)
        tgt_raw_lun_free(l);
    else
        tgt_raw_link(raw, l);
    return r < 0 && r != -ENOMEM ? -GR_EFORMAT : r;
}

int tgt_raw_load(struct tgt_raw *raw, struct gr_err *err)
{
    json_t *doc = NULL, *o;
    const char *name;
    int r = gr_home_load(raw->home, REGISTRY, &doc, err);
    if (r < 0)
        return r;
    json_t *version = json_object_get(doc, "version"), *all = json_object_get(doc, "luns");
    if (version && json_integer_value(version) != VERSION)
        r = gr_fail(err, -GR_EVERSION, "its version is not %d", VERSION);
    else if (all && !json_is_object(all))
        r = gr_fail(err, -GR_EFORMAT, "\"luns\" is not an object");
    json_object_foreach(all, name, o)
    {
        if (r == 0)
            r = read_entry(raw, name, o, err);
    }
    json_decref(doc);
    return r < 0 ? gr_prefix(err, r, "%s/" REGISTRY, gr_home_dir(raw->home)) : 0;
}

static json_t *describe(const struct raw_lun *l)
{
    char uuid[37];
    gr_uuid_format(l->uuid, uuid);
    return json_pack("{s:s,s:s,s:b,s:I,s:I,s:I,s:s*}", "file", l->file, "uuid", uuid, "read-only", l->read_only, "iops", (json_int_t)l->limits.iops,
                     "bandwidth", (json_int_t)l->limits.bytes, "burst-ms", (json_int_t)l->limits.burst_ms, "redirect", l->redirect);
}

struct save {
    struct gr_home *home;
    json_t *doc;
    struct gr_err *err;
};

static int save_doc(void *arg)
{
    const struct save *s = arg;
    return gr_home_save(s->home, REGISTRY, s->doc, s->err);
}

int tgt_raw_save(struct tgt_raw *raw, const struct raw_lun *except, struct gr_err *err)
{
    json_t *all = json_object();
    bool whole = all != NULL;
    for (const struct raw_lun *l = raw->luns; l; l = l->next)
        if (l != except)
            whole = json_object_set_new(all, l->name, describe(l)) == 0 && whole;
    json_t *doc = whole ? json_pack("{s:i,s:O}", "version", VERSION, "luns", all) : NULL;
    json_decref(all);
    struct save s = {raw->home, doc, err};
    int r = doc ? gr_fiber_work(save_doc, &s) : gr_fail(err, -ENOMEM, "the list of LUNs: out of memory");
    json_decref(doc);
    return r;
}

json_t *tgt_raw_row(const struct raw_lun *l)
{
    struct gr_geometry g = {0};
    json_t *row = describe(l);
    if (!row)
        return NULL;
    json_object_set_new(row, "disk", json_string(l->name));
    json_object_set_new(row, "size", l->bdev && gr_bdev_geometry(l->bdev, &g) == 0 ? json_integer((json_int_t)g.size) : json_null());
    if (!l->redirect)
        json_object_set_new(row, "redirect", json_null());
    json_object_set_new(row, "error", l->why[0] && !l->bdev ? json_string(l->why) : json_null());
    return row;
}

json_t *tgt_raw_list(const struct tgt_raw *raw)
{
    json_t *rows = json_array();
    for (const struct raw_lun *l = raw->luns; l; l = l->next)
        json_array_append_new(rows, tgt_raw_row(l));
    return rows;
}
