/* Mounts: their beginning and end; telling the kernel to forget pages. */
#include "snapshot/mnt_int.h"
#include "common/seam.h"
#include <fcntl.h>
#include <poll.h>
#include <string.h>

#define NOTIFY_RESEND 7 /* younger than the headers that we build with: what was given out and not answered comes again */

/* ---- pages ---- */
struct notice {
    struct {
        struct fuse_out_header h;
        struct fuse_notify_inval_inode_out out;
    } message;
    int fd;
};

static int notify(void *arg)
{
    struct notice *n = arg;
    ssize_t w = write(n->fd, &n->message, sizeof(n->message));
    return w < 0 ? -errno : 0;
}

int mnt_forget_pages(struct snap_ds *ds, uint64_t id)
{
    int r = 0;
    for (struct mnt_mount *m = ds->svc->mounts; m && r == 0; m = m->next) {
        if (m->ds != ds || m->over)
            continue;
        struct notice n = {.fd = m->fd, .message = {.h = {.len = sizeof(n.message), .error = FUSE_NOTIFY_INVAL_INODE}, .out.ino = mnt_node(m, id)}};
        m->under_way++; /* it stays */
        r = gr_fiber_work(notify, &n);
        if (--m->under_way == 0)
            gr_fqueue_wake_all(&m->wake);
        r = r == -ENOENT || r == -ENODEV ? 0 : r; /* it knows no such node */
    }
    return r;
}

/* ---- beginning and end ---- */
static void mount_free(struct mnt_mount *m)
{
    mnt_paths_free(m);
    mnt_dirs_free(m);
    while (m->n_bufs)
        free(m->bufs[--m->n_bufs]);
    free(m->dir);
    free(m->prefix);
    if (m->fd >= 0)
        close(m->fd);
    if (m->holder >= 0)
        close(m->holder);
    free(m);
}

static void unwatch(struct mnt_mount *m)
{
    if (!m->watching)
        return;
    gr_watch_del(m->s->o.loop, &m->watch);
    gr_watch_del(m->s->o.loop, &m->holder_watch);
    m->watching = false;
}

/* What is under way ends; then all that processes had open is closed. */
static void end_mount(struct mnt_mount *m)
{
    struct gr_err err = {0};
    unwatch(m);
    m->ending = true;
    for (struct mnt_req *r = m->reqs; r; r = r->next) {
        r->interrupted = true;
        if (r->waits)
            gr_fqueue_wake_all(r->waits);
    }
    while (m->under_way)
        gr_fqueue_wait(&m->wake);
    int r = mnt_join(m, &err);
    mnt_opens_free(m);
    if (r == 0)
        snap_ds_put(m->ds);
    struct mnt_mount **p = &m->s->mounts;
    while (*p != m)
        p = &(*p)->next;
    *p = m->next;
    mount_free(m);
}

static void end_fiber(void *arg)
{
    struct mnt_mount *m = arg;
    struct snap_svc *s = m->s;
    gr_log(GR_LOG_NOTE, "datastore '%s': the mount on '%s' has ended", m->ds_name, m->dir);
    end_mount(m);
    s->parts--;
    gr_fqueue_wake_all(&s->wake);
}

void mnt_end_soon(struct mnt_mount *m)
{
    unwatch(m);
    if (m->ending)
        return;
    m->ending = true;
    m->s->parts++;
    if (gr_fiber_start(m->s->o.loop, end_fiber, m) < 0) {
        m->ending = false; /* it stays until the service ends */
        m->s->parts--;
    }
}

static void on_holder(void *arg, int events)
{
    struct mnt_mount *m = arg;
    char c;
    if (read(m->holder, &c, 1) != 1 && errno != EAGAIN)
        mnt_end_soon(m);
}

static int watch(struct mnt_mount *m, struct gr_err *err)
{
    int fl = fcntl(m->fd, F_GETFL), r = fl < 0 || fcntl(m->fd, F_SETFL, fl | O_NONBLOCK) < 0 ? -errno : 0;
    m->watch = (struct gr_watch){.fn = mnt_readable, .arg = m, .fd = m->fd, .events = POLLIN};
    m->holder_watch = (struct gr_watch){.fn = on_holder, .arg = m, .fd = m->holder, .events = POLLIN};
    if (r == 0)
        r = gr_watch_add(m->s->o.loop, &m->watch);
    if (r == 0 && (r = gr_watch_add(m->s->o.loop, &m->holder_watch)) < 0)
        gr_watch_del(m->s->o.loop, &m->watch);
    m->watching = r == 0;
    return r < 0 ? gr_fail(err, r, "'%s': /dev/fuse cannot be watched: %s", m->dir, gr_code_text(r)) : 0;
}

static int find_root(struct mnt_mount *m, const struct mnt_mount_opts *o, struct gr_err *err)
{
    struct vmfs_stat st;
    int r = mnt_join(m, err);
    if (r < 0)
        return r;
    m->ds = snap_ds_find(m->s, m->ds_name);
    if (!vmfs_files_kept(m->ds->v))
        r = gr_fail(err, -GR_EVERSION, "datastore '%s' was made by an older Granary, and keeps no owners and modes: mount it with --read-only", m->ds_name);
    if (r == 0)
        r = vmfs_stat(m->ds->v, m->prefix, &st, err);
    if (r == 0 && st.type != VMFS_DIR)
        r = gr_fail(err, -ENOTDIR, "'%s/%s' is not a folder", m->ds_name, m->prefix);
    if (r == 0)
        m->root = st.id;
    if (r == 0 && (r = mnt_locks_restore(m, o->kept, o->kept_len)) < 0)
        gr_fail(err, r, "'%s': its locks do not come back: %s", m->dir, gr_code_text(r));
    snap_ds_put(m->ds);
    return r;
}

int mnt_mount_start(struct snap_svc *s, const struct mnt_mount_opts *o, struct gr_err *err)
{
    struct mnt_mount *m = gr_zalloc(sizeof(*m));
    struct snap_path p;
    int r = m ? snap_path_parse(o->name, SNAP_PATH_DIR, &p, err) : -ENOMEM;
    if (!m || r < 0) {
        free(m);
        close(o->fd);
        close(o->holder);
        return m ? r : gr_fail(err, r, "out of memory");
    }
    m->s = s;
    m->fd = o->fd;
    m->holder = o->holder;
    m->uid = o->uid;
    m->gid = o->gid;
    m->next_fh = (uint64_t)mnt_now_ns();
    memcpy(m->ds_name, p.ds, sizeof(p.ds));
    m->dir = gr_strdup(o->dir);
    m->prefix = gr_strdup(p.path);
    r = m->dir && m->prefix ? find_root(m, o, err) : gr_fail(err, -ENOMEM, "out of memory");
    if (r == 0)
        r = watch(m, err);
    if (r < 0) {
        mount_free(m);
        return r;
    }
    m->next = s->mounts;
    s->mounts = m;
    struct fuse_out_header resend = {.len = sizeof(resend), .error = NOTIFY_RESEND};
    if (o->again && write(m->fd, &resend, sizeof(resend)) < 0)
        gr_log(GR_LOG_WARN, "mount on '%s': what was under way may not be answered: %s", m->dir, gr_code_text(-errno));
    return 0;
}

const char *mnt_mounted_on(const struct snap_ds *ds)
{
    for (const struct mnt_mount *m = ds->svc->mounts; m; m = m->next)
        if (m->ds == ds && !m->ending)
            return m->dir;
    return NULL;
}

/* The service ends; who holds the mounts may give them to the next one. */
void mnt_end_all(struct snap_svc *s)
{
    while (s->mounts) {
        struct mnt_mount *m = s->mounts;
        if (m->ending) /* by its own fiber */
            gr_fiber_sleep_ms(5);
        else
            end_mount(m);
    }
}
