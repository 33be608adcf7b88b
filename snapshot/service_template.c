/* Templates: disks that stay as they are, and the snapshot that their clones start at. Who makes one a template says so first, so that nobody writes any
 * more, and then takes the snapshot; whoever clones finishes what was killed in between. */
#include "snapshot/service_int.h"

static int count_changes(void *arg, uint64_t off, uint64_t len, bool zero)
{
    (void)off;
    (void)len;
    (void)zero;
    *(bool *)arg = true;
    return -ECANCELED;
}

/* 1: the snapshot is what the disk is; 0: there is none, or it is not. */
static int current(const struct snap_disk *d, bool *ret_there, struct gr_err *err)
{
    struct snap_info info;
    struct vmfs_stat st;
    bool changed = false;
    int r = snap_find(d->h->disk, SNAP_TEMPLATE, &info, NULL);
    *ret_there = r == 0;
    if (r < 0)
        return r == -ENOENT ? 0 : gr_fail(err, r, "%s/%s: %s", d->ds->name, d->h->path, gr_code_text(r));
    if (info.is_bookmark)
        return gr_fail(err, -EEXIST, "%s/%s has a bookmark '%s', which is the name of what clones of a template start at: delete it first", d->ds->name, d->h->path,
                       SNAP_TEMPLATE);
    vmfs_disk_stat(d->h->disk, &st);
    if (info.size != st.size)
        return 0;
    r = snap_diff(d->h->disk, SNAP_TEMPLATE, NULL, count_changes, &changed, err);
    return changed ? 0 : r < 0 ? r : 1;
}

int snap_template_ready(const struct snap_disk *d, struct gr_err *err)
{
    bool there = false;
    int r = current(d, &there, err);
    if (r != 0)
        return GR_MIN(r, 0);
    if (there && (r = snap_delete(d->h->disk, SNAP_TEMPLATE, false, err)) < 0) /* kept for those that started at it */
        return r;
    r = snap_create(&d->h->disk, 1, SNAP_TEMPLATE, err);
    return r == -EEXIST ? 0 : r; /* another clone was quicker */
}
