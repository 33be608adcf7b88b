/* Rules that datastores keep: looked at before they are used, changed there, and brought over from the homes where they were kept once. */
#include "common/buf.h"
#include "common/cleanup.h"
#include "iscsi-target/lun_access_int.h"

static int check_row(const char *disk, json_t *row, struct gr_err *err)
{
    const char *name;
    json_t *e, *rules = json_object_get(row, "rules");
    int r = rules ? tgt_access_check(disk, rules, err) : 0;
    json_object_foreach(json_object_get(row, "snapshots"), name, e)
    {
        if (r == 0)
            r = tgt_access_check(disk, e, err);
    }
    return r;
}

int tgt_access_refresh(struct tgt_access *a, const char *disk, struct gr_err *err)
{
    json_t *row = NULL;
    if (!tgt_access_kept(a, disk))
        return 0;
    gr_auto_free char *base = tgt_access_base(disk);
    int r = base ? a->rules.get(a->rules.arg, base, &row, err) : gr_fail(err, -ENOMEM, "access rules: out of memory");
    if (r == 0 && (r = check_row(base, row, err)) < 0)
        json_decref(row);
    if (r < 0) {
        if (r == -ENOENT)
            json_object_del(a->held, base);
        return r;
    }
    if (row)
        json_object_set_new(a->held, base, row);
    else
        json_object_del(a->held, base);
    return 0;
}

/* ---- from the home ---- */
struct taking {
    struct tgt_access *a;
    json_t *aside; /* names that the datastore has other rules for */
    unsigned n;    /* brought */
};

static int take_over(void *arg, const char *disk, const json_t *own, const json_t *above, json_t **ret, struct gr_err *err)
{
    struct taking *t = arg;
    json_t *e = tgt_access_home(t->a, disk);
    t->n += !own;
    if (!own)
        *ret = json_incref(e);
    else if (!json_equal(own, e))
        json_array_append_new(t->aside, json_string(disk));
    return 0;
}

/* The disks of @names that there are stay in it; others are @aside. */
static int sift(struct tgt_access *a, json_t *names, json_t *aside, struct gr_err *err)
{
    for (size_t i = 0; i < json_array_size(names);) {
        gr_auto_free char *base = tgt_access_base(json_string_value(json_array_get(names, i)));
        json_t *row = NULL;
        int r = base ? a->rules.get(a->rules.arg, base, &row, err) : -ENOMEM;
        json_decref(row);
        if (r < 0 && r != -ENOENT)
            return r;
        i += r == 0;
        if (r == 0)
            continue;
        json_array_append(aside, json_array_get(names, i));
        json_array_remove(names, i);
    }
    return 0;
}

/* Home without @names; what is @aside is kept where it rules nothing. */
static int let_go(struct tgt_access *a, json_t *names, json_t *aside, struct gr_err *err)
{
    json_t *doc = json_deep_copy(a->doc), *disks = json_object_get(doc, "disks"), *kept = json_object_get(doc, "set-aside"), *v;
    size_t i;
    if (json_array_size(aside) && !kept)
        json_object_set_new(doc, "set-aside", kept = json_object());
    json_array_foreach(aside, i, v)
    {
        json_object_set(kept, json_string_value(v), json_object_get(disks, json_string_value(v)));
        json_object_del(disks, json_string_value(v));
    }
    json_array_foreach(names, i, v)
        json_object_del(disks, json_string_value(v));
    return tgt_access_commit(a, doc, err);
}

/* First into the datastore, then out of the home: whoever is interrupted in between finds the same in both the next time. @names are of one
 * datastore; those that are not brought over are in @aside. How many were. */
static int bring(struct tgt_access *a, json_t *names, json_t *aside, struct gr_err *err)
{
    struct taking t = {a, aside, 0};
    int r = sift(a, names, aside, err);
    if (r == 0 && json_array_size(names))
        r = a->rules.change(a->rules.arg, names, take_over, &t, NULL, err);
    if (r == 0)
        r = let_go(a, names, aside, err);
    return r < 0 ? r : (int)t.n;
}

/* What the home has of names that begin with @prefix, which ends at the name's end or before one of @ends. */
static json_t *names_of(const struct tgt_access *a, const char *prefix, const char *ends)
{
    json_t *names = json_array(), *e;
    size_t n = strlen(prefix);
    const char *disk;
    json_object_foreach(json_object_get(a->doc, "disks"), disk, e)
    {
        if (!strncmp(disk, prefix, n) && strchr(ends, disk[n]))
            json_array_append_new(names, json_string(disk));
    }
    return names;
}

int tgt_access_change_kept(struct tgt_access *a, const char *disk, gr_rules_edit edit, void *arg, char **ret_untold, struct gr_err *err)
{
    gr_auto_free char *base = tgt_access_base(disk);
    json_t *names = base ? names_of(a, base, "@") : NULL, *aside = json_array(), *one = json_pack("[s]", disk);
    int r = names && aside && one ? 0 : gr_fail(err, -ENOMEM, "access rules: out of memory");
    if (r == 0 && json_array_size(names))
        r = bring(a, names, aside, err);
    if (r >= 0)
        r = a->rules.change(a->rules.arg, one, edit, arg, ret_untold, err);
    json_decref(names);
    json_decref(aside);
    json_decref(one);
    return r < 0 ? r : tgt_access_refresh(a, disk, err);
}

static void tell_brought(const char *datastore, int n, json_t *aside, void (*note)(void *arg, int level, const char *text), void *arg)
{
    json_t *v;
    size_t i;
    gr_auto_free char *text = gr_asprintf("the access rules of %d disks were brought over into datastore '%s', where all its hosts have them",
                                          n, datastore);
    if (n)
        note(arg, 5, text ? text : "access rules were brought over");
    json_array_foreach(aside, i, v)
    {
        gr_auto_free char *line = gr_asprintf("the access rules of %s in access.json were set aside there: its datastore has others for it, or no such disk",
                                              json_string_value(v));
        note(arg, 4, line ? line : "access rules were set aside");
    }
}

static void bring_datastore(struct tgt_access *a, const char *datastore, void (*note)(void *arg, int level, const char *text), void *arg)
{
    struct gr_err err = {0};
    json_t *names = names_of(a, datastore, "/"), *aside = json_array();
    int r = names && aside ? bring(a, names, aside, &err) : gr_fail(&err, -ENOMEM, "out of memory");
    if (r >= 0) {
        tell_brought(datastore, r, aside, note, arg);
    } else {
        gr_auto_free char *text = gr_asprintf("the access rules of datastore '%s' that are in access.json hold on this host only, until the next start: %s",
                                              datastore, gr_err_text(&err, r));
        note(arg, 4, text ? text : "access rules stay in access.json");
    }
    json_decref(names);
    json_decref(aside);
}

void tgt_access_bring_over(struct tgt_access *a, void (*note)(void *arg, int level, const char *text), void *arg)
{
    json_t *datastores = a->rules.get ? json_object() : NULL, *e;
    const char *disk;
    json_object_foreach(json_object_get(a->doc, "disks"), disk, e)
    {
        gr_auto_free char *datastore = strchr(disk, '/') ? gr_asprintf("%.*s", (int)strcspn(disk, "/"), disk) : NULL;
        if (datastore)
            json_object_set_new(datastores, datastore, json_true());
    }
    json_object_foreach(datastores, disk, e)
        bring_datastore(a, disk, note, arg);
    json_decref(datastores);
}
