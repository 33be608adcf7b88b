#define FUSE_USE_VERSION 314
#include "backup-proxy/mount_fuse.h"
#include "backup-proxy/mount_node.h"
#include "common/cleanup.h"
#include "common/fiber.h"
#include "common/seam.h"
#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>

#define KEEP_S 3600.0      /* how long the kernel may keep what cannot change */
#define READ_MAX (1u << 20)
#define TURN_MAX 64        /* requests taken from the kernel in one turn */
#define NAME_CAP 1025      /* FUSE_NAME_MAX + 1 */
#define LINK_CAP 4097

struct mount_fuse {
    struct gr_loop *loop;
    struct mount_view view;
    struct fuse_session *se;
    struct gr_watch watch;
    struct gr_defer ended;
    struct fuse_buf buf;
    struct mount_nodes nodes;
    struct mount_node root;
    double keep;
    unsigned under_way;
    bool mounted, over;
    void (*ready)(void *arg);
    void (*gone)(void *arg);
    void *arg;
};

/* One request: answered by its fiber, which owns it. */
struct request {
    struct mount_fuse *m;
    fuse_req_t req;
    struct mount_node *node;
    void (*serve)(struct request *r);
    struct fuse_file_info fi;
    uint64_t off;
    size_t size;
    bool plus;
    char name[];
};

/* ---- life of a request ---- */
static struct mount_node *node_of(struct mount_fuse *m, fuse_ino_t ino)
{
    if (ino == FUSE_ROOT_ID)
        return &m->root;
    struct mount_node *n = (struct mount_node *)(uintptr_t)ino;
    return n->key == n ? n : NULL;
}

static void check_over(struct mount_fuse *m)
{
    if (m->over && m->under_way == 0)
        gr_loop_defer(m->loop, &m->ended);
}

static void end_request(struct request *r)
{
    struct mount_fuse *m = r->m;
    if (r->node == &m->root)
        m->root.busy--;
    else if (r->node)
        mount_node_idle(&m->nodes, r->node);
    m->under_way--;
    free(r);
    check_over(m);
}

static void run_request(void *arg)
{
    struct request *r = arg;
    r->serve(r);
    end_request(r);
}

static void start(fuse_req_t req, fuse_ino_t ino, const char *name, const struct fuse_file_info *fi, const struct request *proto)
{
    struct mount_fuse *m = fuse_req_userdata(req);
    size_t len = name ? strlen(name) : 0;
    struct mount_node *node = node_of(m, ino);
    struct request *r = len < NAME_CAP && node ? gr_alloc(sizeof *r + len + 1) : NULL;
    if (!r) {
        fuse_reply_err(req, !node ? ESTALE : len >= NAME_CAP ? ENAMETOOLONG : ENOMEM);
        return;
    }
    *r = *proto;
    r->m = m;
    r->req = req;
    r->node = node;
    memcpy(r->name, name ? name : "", len + 1);
    if (fi)
        r->fi = *fi;
    if (gr_fiber_start(m->loop, run_request, r) < 0) {
        free(r);
        fuse_reply_err(req, ENOMEM);
        return;
    }
    mount_node_busy(node);
    m->under_way++;
}

static int to_errno(int64_t rc)
{
    return rc < 0 ? gr_code_errno((int)rc) : 0;
}

/* ---- attributes and names ---- */
static void serve_getattr(struct request *r)
{
    struct mount_fuse *m = r->m;
    struct stat st = r->node->st;
    int rc = m->view.immutable && r->node != &m->root ? 0 : m->view.ops->getattr(m->view.impl, &r->node->obj, &st);
    if (rc < 0)
        fuse_reply_err(r->req, to_errno(rc));
    else
        fuse_reply_attr(r->req, &st, m->keep);
}

static int fill_entry(struct mount_fuse *m, const struct mount_found *f, struct fuse_entry_param *ret)
{
    struct mount_node *n = mount_node_ref(&m->nodes, f, 1);
    if (!n)
        return -ENOMEM;
    *ret = (struct fuse_entry_param){.ino = (fuse_ino_t)(uintptr_t)n, .attr = f->st, .attr_timeout = m->keep, .entry_timeout = m->keep};
    return 0;
}

static void serve_lookup(struct request *r)
{
    struct mount_fuse *m = r->m;
    struct mount_found f;
    struct fuse_entry_param e;
    int rc = m->view.ops->lookup(m->view.impl, &r->node->obj, r->name, &f);
    if (rc == 0 && f.broken)
        rc = -EIO;
    if (rc == 0)
        rc = fill_entry(m, &f, &e);
    if (rc == -ENOENT && m->view.immutable) { /* let the kernel remember that, too */
        e = (struct fuse_entry_param){.entry_timeout = m->keep};
        fuse_reply_entry(r->req, &e);
    } else if (rc < 0) {
        fuse_reply_err(r->req, to_errno(rc));
    } else if (fuse_reply_entry(r->req, &e) == -ENOENT) { /* the asker was interrupted: the kernel did not take it */
        mount_node_forget(&m->nodes, (struct mount_node *)(uintptr_t)e.ino, 1);
    }
}

static void serve_readlink(struct request *r)
{
    struct mount_fuse *m = r->m;
    char target[LINK_CAP];
    int rc = m->view.ops->readlink(m->view.impl, &r->node->obj, target, sizeof target);
    if (rc < 0)
        fuse_reply_err(r->req, to_errno(rc));
    else
        fuse_reply_readlink(r->req, target);
}

/* ---- directories ---- */
static void serve_opendir(struct request *r)
{
    struct mount_fuse *m = r->m;
    void *h = NULL;
    int rc = m->view.ops->opendir(m->view.impl, &r->node->obj, &h);
    if (rc < 0) {
        fuse_reply_err(r->req, to_errno(rc));
        return;
    }
    r->fi.fh = (uintptr_t)h;
    r->fi.cache_readdir = r->fi.keep_cache = m->view.immutable;
    if (fuse_reply_open(r->req, &r->fi) == -ENOENT)
        m->view.ops->closedir(m->view.impl, h);
}

/* Put one entry behind the @at bytes of @buf; its size, or 0 when it does not fit. */
static size_t put_entry(struct request *r, char *buf, size_t at, const char *name, const struct mount_found *f, uint64_t next)
{
    struct mount_fuse *m = r->m;
    if (!r->plus) {
        size_t n = fuse_add_direntry(r->req, buf + at, r->size - at, name, &f->st, (off_t)next);
        return n > r->size - at ? 0 : n;
    }
    struct fuse_entry_param e = {.attr = f->st};
    if (fuse_add_direntry_plus(r->req, NULL, 0, name, &e, (off_t)next) > r->size - at)
        return 0;
    bool dots = name[0] == '.' && (!name[1] || (name[1] == '.' && !name[2]));
    if (!dots && !f->broken)
        (void)fill_entry(m, f, &e); /* without memory: a plain entry */
    return fuse_add_direntry_plus(r->req, buf + at, r->size - at, name, &e, (off_t)next);
}

static void serve_readdir(struct request *r)
{
    struct mount_fuse *m = r->m;
    void *h = (void *)(uintptr_t)r->fi.fh;
    char *buf = gr_alloc(r->size);
    size_t at = 0;
    int rc = buf ? 0 : -ENOMEM;
    for (uint64_t i = r->off; rc == 0; i++) {
        struct mount_found f = {.obj = r->node->obj, .st = r->node->st};
        const char *name = i == 0 ? "." : "..";
        if (i >= 2) {
            rc = m->view.ops->entry(m->view.impl, h, i - 2, &name, &f);
            if (rc <= 0)
                break;
        }
        size_t n = put_entry(r, buf, at, name, &f, i + 1);
        if (n == 0)
            break;
        at += n;
        rc = 0;
    }
    if (rc < 0 && at == 0)
        fuse_reply_err(r->req, to_errno(rc));
    else
        fuse_reply_buf(r->req, buf, at);
    free(buf);
}

static void serve_releasedir(struct request *r)
{
    r->m->view.ops->closedir(r->m->view.impl, (void *)(uintptr_t)r->fi.fh);
    fuse_reply_err(r->req, 0);
}

/* ---- files ---- */
static void serve_open(struct request *r)
{
    struct mount_fuse *m = r->m;
    void *h = NULL;
    if ((r->fi.flags & O_ACCMODE) != O_RDONLY) {
        fuse_reply_err(r->req, EROFS);
        return;
    }
    int rc = m->view.ops->open(m->view.impl, &r->node->obj, &r->node->st, &h);
    if (rc < 0) {
        fuse_reply_err(r->req, to_errno(rc));
        return;
    }
    r->fi.fh = (uintptr_t)h;
    r->fi.keep_cache = m->view.immutable;
    if (fuse_reply_open(r->req, &r->fi) == -ENOENT)
        m->view.ops->close(m->view.impl, h);
}

static void serve_read(struct request *r)
{
    struct mount_fuse *m = r->m;
    r->size = GR_MIN(r->size, (size_t)READ_MAX);
    char *buf = gr_alloc(r->size);
    int64_t n = buf ? m->view.ops->read(m->view.impl, (void *)(uintptr_t)r->fi.fh, buf, r->size, r->off) : -ENOMEM;
    if (n < 0)
        fuse_reply_err(r->req, to_errno(n));
    else
        fuse_reply_buf(r->req, buf, (size_t)n);
    free(buf);
}

static void serve_release(struct request *r)
{
    r->m->view.ops->close(r->m->view.impl, (void *)(uintptr_t)r->fi.fh);
    fuse_reply_err(r->req, 0);
}

/* ---- what libfuse calls ---- */
static void do_init(void *userdata, struct fuse_conn_info *conn)
{
    struct mount_fuse *m = userdata;
    conn->want |= conn->capable & (FUSE_CAP_READDIRPLUS | FUSE_CAP_ASYNC_READ | FUSE_CAP_PARALLEL_DIROPS);
    conn->want &= ~(unsigned)FUSE_CAP_READDIRPLUS_AUTO; /* attributes come with the names anyhow */
    if (m->view.immutable)
        conn->want |= conn->capable & FUSE_CAP_CACHE_SYMLINKS;
    conn->max_background = 64;
    conn->max_readahead = READ_MAX;
    m->ready(m->arg);
}

static void do_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    start(req, parent, name, NULL, &(struct request){.serve = serve_lookup});
}

static void forget_one(struct mount_fuse *m, fuse_ino_t ino, uint64_t n)
{
    struct mount_node *node = node_of(m, ino);
    if (node && node != &m->root)
        mount_node_forget(&m->nodes, node, n);
}

static void do_forget(fuse_req_t req, fuse_ino_t ino, uint64_t nlookup)
{
    forget_one(fuse_req_userdata(req), ino, nlookup);
    fuse_reply_none(req);
}

static void do_forget_multi(fuse_req_t req, size_t count, struct fuse_forget_data *f)
{
    for (size_t i = 0; i < count; i++)
        forget_one(fuse_req_userdata(req), f[i].ino, f[i].nlookup);
    fuse_reply_none(req);
}

static void do_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    start(req, ino, NULL, NULL, &(struct request){.serve = serve_getattr});
}

static void do_readlink(fuse_req_t req, fuse_ino_t ino)
{
    start(req, ino, NULL, NULL, &(struct request){.serve = serve_readlink});
}

static void do_opendir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    start(req, ino, NULL, fi, &(struct request){.serve = serve_opendir});
}

static void do_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi)
{
    start(req, ino, NULL, fi, &(struct request){.serve = serve_readdir, .size = size, .off = (uint64_t)off});
}

static void do_readdirplus(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi)
{
    start(req, ino, NULL, fi, &(struct request){.serve = serve_readdir, .size = size, .off = (uint64_t)off, .plus = true});
}

static void do_releasedir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    start(req, ino, NULL, fi, &(struct request){.serve = serve_releasedir});
}

static void do_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    start(req, ino, NULL, fi, &(struct request){.serve = serve_open});
}

static void do_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi)
{
    start(req, ino, NULL, fi, &(struct request){.serve = serve_read, .size = size, .off = (uint64_t)off});
}

static void do_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    start(req, ino, NULL, fi, &(struct request){.serve = serve_release});
}

static void do_statfs(fuse_req_t req, fuse_ino_t ino)
{
    struct statvfs v = {.f_bsize = 4096, .f_frsize = 4096, .f_namemax = 255, .f_flag = ST_RDONLY | ST_NOSUID | ST_NODEV};
    fuse_reply_statfs(req, &v);
}

static const struct fuse_lowlevel_ops fuse_ops = {
    .init = do_init, .lookup = do_lookup, .forget = do_forget, .forget_multi = do_forget_multi, .getattr = do_getattr,
    .readlink = do_readlink, .opendir = do_opendir, .readdir = do_readdir, .readdirplus = do_readdirplus,
    .releasedir = do_releasedir, .open = do_open, .read = do_read, .release = do_release, .statfs = do_statfs,
};

/* ---- session ---- */
static void on_readable(void *arg, int events)
{
    struct mount_fuse *m = arg;
    for (int i = 0; i < TURN_MAX && !m->over; i++) {
        int n = fuse_session_receive_buf(m->se, &m->buf);
        if (n > 0) {
            fuse_session_process_buf(m->se, &m->buf);
            continue;
        }
        if (n == -EINTR)
            continue;
        if (n == -EAGAIN)
            return;
        gr_watch_del(m->loop, &m->watch); /* unmounted (0), or the connection is lost */
        m->over = true;
        check_over(m);
    }
}

static void on_ended(void *arg)
{
    struct mount_fuse *m = arg;
    m->gone(m->arg);
}

static void add_opt(struct fuse_args *args, const char *text, bool *bad)
{
    if (fuse_opt_add_arg(args, "-o") < 0 || fuse_opt_add_arg(args, text) < 0)
        *bad = true;
}

static struct fuse_session *new_session(struct mount_fuse *m, const struct mount_fuse_opts *opts)
{
    struct fuse_args args = FUSE_ARGS_INIT(0, NULL);
    char source[256];
    bool bad = fuse_opt_add_arg(&args, "granary-mount") < 0;
    snprintf(source, sizeof source, "fsname=%s", opts->source);
    for (char *c = source + 7; *c; c++)
        if (*c == ',' || *c == '\\' || (unsigned char)*c < 0x21)
            *c = '_';
    add_opt(&args, "ro,nosuid,nodev,subtype=granary", &bad);
    add_opt(&args, source, &bad);
    if (opts->allow_other)
        add_opt(&args, "allow_other,default_permissions", &bad);
    struct fuse_session *se = bad ? NULL : fuse_session_new(&args, &fuse_ops, sizeof fuse_ops, m);
    fuse_opt_free_args(&args);
    return se;
}

static int watch_session(struct mount_fuse *m, struct gr_err *err)
{
    int fd = fuse_session_fd(m->se), fl = fcntl(fd, F_GETFL);
    if (fl < 0 || fcntl(fd, F_SETFL, fl | O_NONBLOCK) < 0)
        return gr_fail(err, -errno, "/dev/fuse: fcntl: %s", gr_code_text(-errno));
    m->watch = (struct gr_watch){.fn = on_readable, .arg = m, .fd = fd, .events = POLLIN};
    int rc = gr_watch_add(m->loop, &m->watch);
    return rc < 0 ? gr_fail(err, rc, "/dev/fuse: cannot watch it: %s", gr_code_text(rc)) : 0;
}

int mount_fuse_open(struct gr_loop *loop, const struct mount_view *view, const struct mount_fuse_opts *opts, void (*ready)(void *arg),
                    void (*gone)(void *arg), void *arg, struct mount_fuse **ret, struct gr_err *err)
{
    struct mount_fuse *m = gr_zalloc(sizeof *m);
    if (!m)
        return gr_fail(err, -ENOMEM, "cannot mount on '%s': out of memory", opts->dir);
    m->loop = loop;
    m->view = *view;
    m->keep = view->immutable ? KEEP_S : 1.0;
    m->ready = ready;
    m->gone = gone;
    m->arg = arg;
    m->ended = (struct gr_defer){.fn = on_ended, .arg = m};
    m->root = (struct mount_node){.key = &m->root, .lookups = 1};
    int rc = view->ops->getattr(view->impl, &m->root.obj, &m->root.st);
    m->se = rc == 0 ? new_session(m, opts) : NULL;
    if (!m->se) {
        free(m);
        return gr_fail(err, rc < 0 ? rc : -EIO, "cannot mount on '%s': libfuse refuses its options", opts->dir);
    }
    if (fuse_session_mount(m->se, opts->dir) != 0)
        rc = gr_fail(err, -EIO, "cannot mount on '%s': FUSE refuses (is /dev/fuse there, may this user mount?)", opts->dir);
    else
        rc = watch_session(m, err);
    if (rc < 0) {
        fuse_session_unmount(m->se);
        fuse_session_destroy(m->se);
        free(m);
        return rc;
    }
    m->mounted = true;
    *ret = m;
    return 0;
}

void mount_fuse_detach(struct mount_fuse *m)
{
    if (!m->mounted || m->over)
        return;
    m->mounted = false;
    gr_watch_del(m->loop, &m->watch); /* closing the connection fails what is open: nobody can keep us alive */
    fuse_session_unmount(m->se);
    m->over = true;
    check_over(m);
}

void mount_fuse_free(struct mount_fuse *m)
{
    if (!m)
        return;
    if (m->mounted)
        fuse_session_unmount(m->se);
    fuse_session_destroy(m->se);
    mount_nodes_done(&m->nodes);
    free(m->buf.mem);
    m->view.ops->free(m->view.impl);
    free(m);
}
