/* Locks outlive the daemon that gave them: they are told to who holds the mount, and come back with it. Frames on that stream, both ways:
 * 'K', struct kept, its locks (none: forgotten). */
#include "common/buf.h"
#include "common/seam.h"
#include "snapshot/mnt_int.h"
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#define TELL_MS 2000

struct kept {
    uint64_t id;  /* object */
    uint32_t len; /* bytes that follow */
    uint32_t reserved;
};
struct kept_lock {
    uint64_t owner, start, end;
    uint32_t pid;
    uint8_t exclusive, flock, reserved[2];
};

static int tell(struct mnt_mount *m, const char *data, size_t len)
{
    gr_fmutex_lock(&m->telling);
    int r = 0;
    while (r == 0 && len) {
        ssize_t n = send(m->holder, data, len, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EAGAIN)
            r = GR_MIN(gr_fiber_wait_fd(m->holder, POLLOUT, TELL_MS), 0);
        else if (n < 0)
            r = -errno;
        else {
            data += n;
            len -= (size_t)n;
        }
    }
    gr_fmutex_unlock(&m->telling);
    return r;
}

int mnt_locks_keep(const struct mnt_obj *o, struct mnt_mount *m)
{
    gr_auto_buf struct gr_buf b = {0};
    struct kept k = {.id = o->id};
    int r = gr_buf_add(&b, "K", 1);
    for (const struct mnt_lock *l = o->locks; l; l = l->next)
        k.len += l->mount == m ? sizeof(struct kept_lock) : 0;
    r = r < 0 ? r : gr_buf_add(&b, &k, sizeof(k));
    for (const struct mnt_lock *l = o->locks; l && r >= 0; l = l->next) {
        struct kept_lock d = {l->owner, l->start, l->end, l->pid, l->exclusive, l->flock, {0}};
        if (l->mount == m)
            r = gr_buf_add(&b, &d, sizeof(d));
    }
    return r < 0 ? -ENOMEM : tell(m, b.data, b.len);
}

/* Another host may have given one that conflicts, while nobody spoke for us. */
static int restore(struct mnt_mount *m, struct mnt_obj *o, const struct kept_lock *d)
{
    struct mnt_lock want = {.mount = m, .owner = d->owner, .start = d->start, .end = d->end, .exclusive = d->exclusive, .flock = d->flock, .pid = d->pid}, c;
    bool any = false;
    struct gr_err err = {0};
    int r = mnt_peer_locks(m->ds, o->id, &want, &c, &any, &err);
    if (r != 0) {
        gr_log(GR_LOG_WARN, "mount on '%s': process %u has lost its lock of file %llu: %s", m->dir, d->pid, (unsigned long long)o->id,
               r == 1 ? "another host has given one that conflicts" : gr_err_text(&err, r));
        return 0;
    }
    struct mnt_lock *l = gr_alloc(sizeof(*l));
    if (!l)
        return -ENOMEM;
    *l = want;
    l->next = o->locks;
    o->locks = l;
    return 0;
}

bool mnt_kept_whole(const void *frames, size_t len)
{
    const uint8_t *p = frames;
    while (len) {
        struct kept k;
        if (len < 1 + sizeof(k))
            return false;
        memcpy(&k, p + 1, sizeof(k));
        if (k.len > len - 1 - sizeof(k))
            return false;
        p += 1 + sizeof(k) + k.len;
        len -= 1 + sizeof(k) + k.len;
    }
    return true;
}

int mnt_locks_restore(struct mnt_mount *m, const void *frames, size_t len)
{
    const uint8_t *p = frames;
    int r = 0;
    while (r == 0 && len > sizeof(struct kept)) { /* whole: mnt_kept_whole() */
        struct kept k;
        memcpy(&k, p + 1, sizeof(k));
        p += 1 + sizeof(k);
        len -= 1 + sizeof(k);
        if (k.len > len || k.len % sizeof(struct kept_lock))
            return -GR_EPROTO;
        struct mnt_obj *o = mnt_obj_get(m->ds, k.id, VMFS_FILE);
        r = o ? 0 : -ENOMEM;
        for (uint32_t at = 0; r == 0 && at < k.len; at += (uint32_t)sizeof(struct kept_lock)) {
            struct kept_lock d;
            memcpy(&d, p + at, sizeof(d));
            r = restore(m, o, &d);
        }
        if (o)
            mnt_obj_put(o);
        p += k.len;
        len -= k.len;
    }
    return r;
}
