/* Methods disk.*: create, list, info, resize, delete, release. Import and export: service_image.c. */
#include "common/buf.h"
#include "snapshot/service_int.h"
#include "vmfs/files.h"
#include <string.h>

#define OWNER_MS 5000 /* what another host gets to tell about its disks */

static const char *const provision_names[] = {"thin", "thick", "eager"};

int snap_op_shape(struct snap_op *op, enum vmfs_provision *ret_provision, uint32_t *ret_physical)
{
    const char *text = "thin";
    uint64_t physical = VMFS_PIECE;
    size_t i = 0;
    int r = gr_json_opt_str(op->params, "provision", &text, op->err);
    if (r == 0 && json_object_get(op->params, "physical-block"))
        r = gr_json_u64(op->params, "physical-block", &physical, op->err);
    if (r < 0)
        return r;
    while (i < GR_ARRAY_LEN(provision_names) && strcmp(text, provision_names[i]) != 0)
        i++;
    if (i == GR_ARRAY_LEN(provision_names))
        return gr_fail(op->err, -GR_EUSAGE, "provision '%.40s' is not known: thin, thick or eager", text);
    if (physical != 512 && physical != VMFS_PIECE)
        return gr_fail(op->err, -GR_EUSAGE, "physical blocks of %llu bytes are not possible: 512 or 4096", (unsigned long long)physical);
    *ret_provision = (enum vmfs_provision)i;
    *ret_physical = (uint32_t)physical;
    return 0;
}

/* Key of a row that leads to the owner's service; removed before the row is given out. */
#define OWNER_ADDRESS "owner-address"

static void set_owner(json_t *row, struct snap_ds *ds, const char *path, int slot)
{
    struct snap_place owner = {0};
    bool self = snap_handle_find(ds, path) != NULL;
    int r = self ? 0 : snap_place_of_slot(ds, slot, &owner, NULL);
    json_object_set_new(row, "owner", json_string(r > 0 ? owner.host : self ? "this host" : ""));
    json_object_set_new(row, "owner-self", json_boolean(self));
    if (r > 0 && owner.address[0])
        json_object_set_new(row, OWNER_ADDRESS, json_string(owner.address));
}

json_t *snap_disk_row(struct snap_ds *ds, const char *path, const struct vmfs_stat *st)
{
    char uuid[37];
    gr_auto_free char *disk = gr_asprintf("%s/%s", ds->name, path);
    gr_uuid_format(st->uuid, uuid);
    json_t *o = json_pack("{s:s,s:I,s:I,s:I,s:b,s:b,s:b,s:I,s:I,s:I,s:s,s:s,s:I,s:i,s:s,s:I}", "disk", disk ? disk : path, "size", (json_int_t)st->size, "used",
                          (json_int_t)st->used, "physical-block", (json_int_t)st->physical_block, "read-only", st->lun.flags & VMFS_LUN_READ_ONLY,
                          "removable", st->lun.flags & VMFS_LUN_REMOVABLE, "template", st->lun.flags & VMFS_LUN_TEMPLATE, "iops", (json_int_t)st->lun.iops, "bandwidth",
                          (json_int_t)st->lun.bytes_per_s, "burst-ms", (json_int_t)st->lun.burst_ms, "provision", (unsigned)st->provision < 3 ? provision_names[st->provision] : "unknown", "uuid",
                          uuid, "id", (json_int_t)st->id, "snapshots", (int)st->n_snapshots, "parent", st->parent, "mtime",
                          (json_int_t)st->mtime_s);
    if (o)
        json_object_set_new(o, "lost-writes", json_boolean(st->lost_writes));
    if (o)
        snap_key_row(st->key_id, o);
    if (o)
        set_owner(o, ds, path, st->owner_slot);
    if (o && st->counted)
        snap_usage_row(o, st->reachable, st->unique);
    json_object_set_new(o, "held", json_integer((json_int_t)st->used));
    return o;
}

void snap_usage_row(json_t *row, uint64_t used, uint64_t unique)
{
    json_object_set_new(row, "used", json_integer((json_int_t)used));
    json_object_set_new(row, "shared", json_integer((json_int_t)(used - GR_MIN(unique, used))));
    json_object_set_new(row, "unique", json_integer((json_int_t)unique));
}

static int result_disk(struct snap_op *op, const struct snap_disk *d)
{
    struct vmfs_stat st;
    vmfs_disk_stat(d->h->disk, &st);
    return snap_op_result(op, snap_disk_row(d->ds, d->h->path, &st));
}

static int op_create(struct snap_op *op)
{
    struct snap_path p;
    uint64_t size = 0;
    enum vmfs_provision provision = VMFS_THIN;
    uint32_t physical = VMFS_PIECE;
    uint64_t key = 0;
    struct snap_disk d = {0};
    struct snap_ds *ds = NULL;
    int r = snap_op_path(op, "disk", SNAP_PATH_DISK, &p);
    if (r == 0)
        r = gr_json_u64(op->params, "size", &size, op->err);
    if (r == 0)
        r = snap_op_shape(op, &provision, &physical);
    if (r < 0)
        return r;
    if (size == 0 || size % 512)
        return gr_fail(op->err, -GR_EUSAGE, "disk %s/%s: size %llu is not possible: it must be a multiple of 512 above 0", p.ds, p.path,
                       (unsigned long long)size);
    if (size > VMFS_DISK_MAX)
        return gr_fail(op->err, -GR_EUSAGE, "disk %s/%s: size %llu is above the largest possible, 1 PiB", p.ds, p.path,
                       (unsigned long long)size);
    r = snap_op_encrypt(op, &key);
    if (r == 0)
        r = snap_ds_get(op->s, p.ds, &ds, op->err);
    if (r < 0)
        return r;
    r = key ? vmfs_create_encrypted(ds->v, p.path, size, provision, physical, key, op->err)
            : vmfs_create_disk(ds->v, p.path, size, provision, physical, op->err);
    snap_ds_put(ds);
    if (r < 0)
        return gr_prefix(op->err, r, "disk %s/%s", p.ds, p.path);
    r = snap_disk_get(op, &p, &d);
    if (r < 0)
        return r;
    r = result_disk(op, &d);
    snap_disk_put(&d);
    return r;
}
SNAP_METHOD(op_create, "disk.create")

struct rows {
    struct snap_op *op;
    struct snap_ds *ds;
    json_t *a;
    size_t first;                 /* row of @a that the first of @kin is of */
    struct snap_kin *kin;         /* of each */
    size_t n, cap;
    bool related;                 /* some are clones, or have some */
    struct snap_origins *origins; /* NULL: only some of the disks are walked */
};

static int add_disk(void *arg, const char *path, const struct vmfs_stat *st)
{
    struct rows *l = arg;
    if (st->type == VMFS_DIR)
        return SNAP_WALK_INTO;
    if (st->type != VMFS_DISK)
        return 0;
    if (l->n == l->cap) {
        size_t cap = l->cap ? l->cap * 2 : 64;
        struct snap_kin *k = gr_realloc(l->kin, cap * sizeof(*k));
        if (!k)
            return -ENOMEM;
        l->kin = k;
        l->cap = cap;
    }
    l->kin[l->n++] = snap_kin_of(st);
    l->related |= st->origin_id || st->clones;
    int r = l->origins ? snap_origins_note(l->origins, path, st) : 0;
    return r < 0 ? r : json_array_append_new(l->a, snap_disk_row(l->ds, path, st)) < 0 ? -ENOMEM : 0;
}

/* One walk for all, and of a folder whose disks are related to others one more. */
static int list_disks(struct rows *l, const struct snap_path *p)
{
    struct gr_err *err = l->op->err;
    int r = p->path[0] ? 0 : snap_origins_new(l->ds, &l->origins, err);
    if (r == 0)
        r = snap_walk(l->ds, p->path, add_disk, l, err);
    if (r == 0 && !l->origins)
        r = l->related ? snap_origins_find(l->ds, &l->origins, err) : snap_origins_new(l->ds, &l->origins, err);
    for (size_t i = 0; r == 0 && i < l->n; i++)
        snap_origins_row(l->origins, &l->kin[i], json_array_get(l->a, l->first + i));
    return r;
}

static int list_below(struct snap_op *op, const struct snap_path *p, json_t *a)
{
    struct rows l = {.op = op, .a = a, .first = json_array_size(a)};
    int r = snap_ds_get(op->s, p->ds, &l.ds, op->err);
    if (r < 0)
        return r;
    r = json_is_true(json_object_get(op->params, "deleted")) ? snap_list_deleted(l.ds, p->path, a, op->err) : list_disks(&l, p);
    snap_origins_free(l.origins);
    free(l.kin);
    snap_ds_put(l.ds);
    return r < 0 && op->err->code == 0 ? gr_fail(op->err, r, "%s/%s: %s", p->ds, p->path, gr_code_text(r)) : r;
}

/* The rows of @address' own disks, as it knows them now, in place of what the volume says as of its last checkpoint. @by_name: {disk: row}. */
static void ask_owner(struct snap_op *op, const json_t *by_name, const char *address)
{
    static const char *const known[] = { "size", "used", "shared", "unique", "held", "snapshots", "key" };
    snap_auto_json json_t *theirs = NULL;
    json_t *params = json_copy(op->params), *other;
    size_t i;
    json_object_set_new(params, "forwarded", json_true());
    if (snap_peer_ask(op->s, address, "disk.list", params, OWNER_MS, &theirs, NULL) < 0)
        theirs = NULL;
    json_array_foreach(theirs, i, other)
    {
        const char *disk = json_string_value(json_object_get(other, "disk"));
        json_t *row = disk && json_is_true(json_object_get(other, "owner-self")) ? json_object_get(by_name, disk) : NULL;
        for (unsigned x = 0; row && x < GR_ARRAY_LEN(known); x++)
            json_object_set(row, known[x], json_object_get(other, known[x]));
    }
}

static void ask_owners(struct snap_op *op, json_t *rows)
{
    snap_auto_json json_t *asked = json_object(), *by_name = json_object();
    json_t *row;
    size_t i;
    json_array_foreach(rows, i, row)
        json_object_set(by_name, json_string_value(json_object_get(row, "disk")), row);
    json_array_foreach(rows, i, row)
    {
        const char *address = json_string_value(json_object_get(row, OWNER_ADDRESS));
        if (address && !json_object_get(asked, address) && !json_is_true(json_object_get(op->params, "forwarded"))) {
            json_object_set_new(asked, address, json_true());
            ask_owner(op, by_name, address);
        }
    }
    json_array_foreach(rows, i, row)
        json_object_del(row, OWNER_ADDRESS);
}

static int list_everywhere(struct snap_op *op, json_t *a)
{
    snap_auto_json json_t *names = json_array();
    size_t i;
    json_t *n;
    for (struct snap_ds *ds = op->s->list; ds; ds = ds->next)
        json_array_append_new(names, json_string(ds->name));
    json_array_foreach(names, i, n)
    {
        struct snap_path p = {0};
        memcpy(p.ds, json_string_value(n), json_string_length(n) + 1);
        int r = list_below(op, &p, a);
        if (r < 0)
            return r;
    }
    return 0;
}

static int op_list(struct snap_op *op)
{
    snap_auto_json json_t *a = json_array();
    const char *text = NULL;
    struct snap_path p = {0};
    int r = gr_json_opt_str(op->params, "path", &text, op->err);
    if (r == 0 && text)
        r = snap_path_parse(text, SNAP_PATH_DIR, &p, op->err);
    if (r == 0)
        r = text ? list_below(op, &p, a) : list_everywhere(op, a);
    if (r < 0)
        return r;
    ask_owners(op, a);
    return snap_op_result(op, gr_take(a));
}
SNAP_METHOD(op_list, "disk.list")

/* Of a disk owned elsewhere the owner knows best; when it has no service, or does not answer, what the volume says will do. */
static int op_info(struct snap_op *op)
{
    struct snap_path p;
    struct snap_ds *ds = NULL;
    struct vmfs_stat st;
    int r = snap_op_path_ds(op, "disk", SNAP_PATH_DISK, &p, &ds);
    if (r < 0)
        return r;
    r = snap_stat(ds, p.path, &st, op->err);
    if (r == 0 && st.type != VMFS_DISK)
        r = gr_fail(op->err, -EINVAL, "%s/%s is a %s, not a disk", p.ds, p.path, st.type == VMFS_DIR ? "folder" : "file");
    json_t *o = r == 0 ? snap_disk_row(ds, p.path, &st) : NULL;
    struct snap_kin kin = snap_kin_of(&st);
    const char *address = json_string_value(json_object_get(o, OWNER_ADDRESS));
    if (address && !json_is_true(json_object_get(op->params, "forwarded"))) {
        struct gr_err local = *op->err;
        json_t *params = json_copy(op->params);
        json_object_set_new(params, "forwarded", json_true());
        if (snap_peer_ask(op->s, address, "disk.info", params, OWNER_MS, op->ret, op->err) == 0) {
            json_object_set(*op->ret, "owner", json_object_get(o, "owner"));
            json_object_set_new(*op->ret, "owner-self", json_false());
            json_decref(o);
            snap_ds_put(ds);
            return 0;
        }
        *op->err = local;
    }
    json_object_del(o, OWNER_ADDRESS);
    struct snap_origins *origins = NULL;
    if (o && snap_origins_of(ds, &kin, &origins, NULL) == 0)
        snap_origins_row(origins, &kin, o);
    snap_origins_free(origins);
    snap_ds_put(ds);
    return r < 0 ? r : snap_op_result(op, o);
}
SNAP_METHOD(op_info, "disk.info")

static int op_resize(struct snap_op *op)
{
    struct snap_path p;
    struct snap_disk d = {0};
    struct vmfs_stat st;
    uint64_t size = 0;
    bool shrink = false;
    int r = snap_op_path(op, "disk", SNAP_PATH_DISK, &p);
    if (r == 0)
        r = gr_json_u64(op->params, "size", &size, op->err);
    if (r == 0)
        r = gr_json_opt_bool(op->params, "shrink", &shrink, op->err);
    if (r < 0)
        return r;
    if (size == 0 || size % 512 || size > VMFS_DISK_MAX)
        return gr_fail(op->err, -GR_EUSAGE, "disk %s/%s: size %llu is not possible: a multiple of 512 above 0, at most 1 PiB", p.ds, p.path,
                       (unsigned long long)size);
    r = snap_disk_get(op, &p, &d);
    if (r < 0)
        return r;
    vmfs_disk_stat(d.h->disk, &st);
    if (size < st.size && !shrink)
        r = gr_fail(op->err, -GR_EUSAGE, "disk %s/%s has %llu bytes; %llu would cut off what is behind: add --shrink if that is meant", p.ds,
                    p.path, (unsigned long long)st.size, (unsigned long long)size);
    else if (size < st.size)
        r = snap_refuse_in_use(op->s, &d, "be shrunk", op->err);
    if (r == 0 && size < st.size)
        r = snap_refuse_shown(&d, op->err);
    if (r == 0 && size != st.size)
        r = vmfs_resize(d.h->disk, size, shrink, op->err);
    if (r == 0)
        r = result_disk(op, &d);
    snap_disk_put(&d);
    return r;
}
SNAP_METHOD(op_resize, "disk.resize")

/* @bit of *flags as params' @key says, when it is there. */
static int take_flag(struct snap_op *op, const char *key, uint32_t bit, uint32_t *flags)
{
    bool on = *flags & bit;
    int r = gr_json_opt_bool(op->params, key, &on, op->err);
    *flags = on ? *flags | bit : *flags & ~bit;
    return r;
}

static int take_limits(struct snap_op *op, struct vmfs_lun *lun)
{
    uint64_t iops = lun->iops, bytes = lun->bytes_per_s, burst = lun->burst_ms;
    int r = gr_json_opt_u64(op->params, "iops", &iops, op->err);
    if (r == 0)
        r = gr_json_opt_u64(op->params, "bandwidth", &bytes, op->err);
    if (r == 0)
        r = gr_json_opt_u64(op->params, "burst-ms", &burst, op->err);
    if (r < 0)
        return r;
    if (iops > 1000000000 || bytes > 1ull << 50 || (bytes && bytes < 4096) || burst > 3600000)
        return gr_fail(op->err, -GR_EUSAGE, "a limit is at most 10^9 commands, and from 4096 to 2^50 bytes, a second; what is saved up, an hour");
    lun->iops = (uint32_t)iops;
    lun->bytes_per_s = bytes;
    lun->burst_ms = (uint32_t)burst;
    return 0;
}

/* Nobody writes any more before the snapshot is taken. */
static int become_template(struct snap_op *op, struct snap_disk *d, const struct vmfs_lun *was, const struct vmfs_lun *lun)
{
    int r = was->flags & VMFS_LUN_TEMPLATE ? 0 : snap_refuse_in_use(op->s, d, "become a template", op->err);
    if (r == 0 && !(was->flags & VMFS_LUN_TEMPLATE))
        r = snap_refuse_shown(d, op->err);
    if (r == 0)
        r = vmfs_set_lun(d->h->disk, lun, op->err);
    if (r == 0 && (r = snap_template_ready(d, op->err)) < 0)
        (void)vmfs_set_lun(d->h->disk, was, NULL);
    return r;
}

static int op_set(struct snap_op *op)
{
    struct snap_path p;
    struct snap_disk d = {0};
    struct vmfs_stat st;
    int r = snap_op_path(op, "disk", SNAP_PATH_DISK, &p);
    if (r == 0)
        r = snap_disk_get(op, &p, &d);
    if (r < 0)
        return r;
    vmfs_disk_stat(d.h->disk, &st);
    struct vmfs_lun lun = st.lun;
    r = take_flag(op, "read-only", VMFS_LUN_READ_ONLY, &lun.flags);
    if (r == 0)
        r = take_flag(op, "removable", VMFS_LUN_REMOVABLE, &lun.flags);
    if (r == 0)
        r = take_flag(op, "template", VMFS_LUN_TEMPLATE, &lun.flags);
    if (r == 0)
        r = take_limits(op, &lun);
    bool accept = false;
    if (r == 0)
        r = gr_json_opt_bool(op->params, "accept-loss", &accept, op->err);
    if (r == 0 && accept)
        r = vmfs_accept_loss(d.h->disk, op->err);
    if (r == 0)
        r = json_is_true(json_object_get(op->params, "template")) ? become_template(op, &d, &st.lun, &lun) : vmfs_set_lun(d.h->disk, &lun, op->err);
    if (r == 0)
        r = result_disk(op, &d);
    snap_disk_put(&d);
    return r;
}
SNAP_METHOD(op_set, "disk.set")

static int op_delete(struct snap_op *op)
{
    struct snap_path p;
    struct snap_disk d = {0};
    struct vmfs_stat st;
    int r = snap_op_path(op, "disk", SNAP_PATH_DISK, &p);
    if (r == 0)
        r = snap_disk_get_to_end(op, &p, "be deleted", &d, &st);
    if (r < 0)
        return r;
    r = vmfs_remove_object(d.ds->v, p.path, st.id, op->err);
    if (r == 0)
        snap_rules_forget(d.ds, st.uuid, NULL);
    if (r == 0)
        snap_policy_forget(d.ds, st.uuid);
    if (r == 0 && !op->s->address[0]) /* a command has no background: most of it is done before it goes */
        (void)vmfs_settle(d.ds->v, SNAP_SETTLE_MS);
    snap_disk_put(&d);
    return r < 0 ? gr_prefix(op->err, r, "disk %s/%s", p.ds, p.path) : 0;
}
SNAP_METHOD(op_delete, "disk.delete")

/* Give an idle disk up, so that another host can open it. */
static int op_release(struct snap_op *op)
{
    struct snap_path p;
    struct snap_disk d = {0};
    int r = snap_op_path(op, "disk", SNAP_PATH_DISK, &p);
    if (r == 0)
        r = snap_disk_get(op, &p, &d);
    if (r < 0)
        return r;
    uint64_t id = vmfs_disk_id(d.h->disk);
    r = snap_refuse_in_use(op->s, &d, "change hands", op->err);
    if (r == 0)
        r = snap_disk_drop(op->s, &d, true, op->err);
    if (r == 0)
        r = vmfs_release_id(d.ds->v, id, p.path, op->err);
    snap_disk_put(&d);
    return r;
}
SNAP_METHOD(op_release, "disk.release")

SNAP_METHOD(snap_op_disk_import, "disk.import")
SNAP_METHOD(snap_op_disk_export, "disk.export")

const struct gr_rpc_method snap_disk_methods[] = {
    {"disk.create", rpc_op_create},
    {"disk.list", rpc_op_list, true},
    {"disk.info", rpc_op_info, true},
    {"disk.resize", rpc_op_resize, .destroys = true}, {"disk.set", rpc_op_set},
    {"disk.delete", rpc_op_delete, .destroys = true},
    {"disk.release", rpc_op_release},
    {"disk.import", rpc_snap_op_disk_import},
    {"disk.export", rpc_snap_op_disk_export},
    {NULL, NULL},
};
