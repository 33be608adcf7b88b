#include "backup-proxy/fs_target.h"
#include "common/cleanup.h"
#include "common/seam.h"
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#define DEPTH_MAX 400 /* of a tree to be removed; a restore makes at most 256 */

int fs_target_at(int dirfd, const char *path, int flags, unsigned mode)
{
    struct open_how how = {.flags = (uint64_t)(unsigned)(flags | O_CLOEXEC), .mode = flags & O_CREAT ? mode : 0,
                           .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS};
    long fd;
    do
        fd = syscall(SYS_openat2, dirfd, path, &how, sizeof how);
    while (fd < 0 && errno == EAGAIN); /* a rename elsewhere came between */
    return fd < 0 ? -errno : (int)fd;
}

static int split(const char *out, char **ret_parent, char **ret_name)
{
    gr_auto_free char *a = gr_strdup(out);
    gr_auto_free char *b = gr_strdup(out);
    if (!a || !b)
        return -ENOMEM;
    const char *name = basename(b);
    if (!fs_name_ok(name, strlen(name)))
        return -EINVAL;
    *ret_name = gr_strdup(name);
    *ret_parent = realpath(dirname(a), NULL);
    return !*ret_parent ? -errno : *ret_name ? 0 : -ENOMEM;
}

int fs_target_open(struct fs_target *t, const char *out, const char *guest_name, struct gr_err *err)
{
    struct stat st;
    uint8_t salt[4];
    *t = (struct fs_target){.parent = -1};
    int rc = 0;
    if (stat(out, &st) == 0 && S_ISDIR(st.st_mode)) {
        t->parent_path = realpath(out, NULL);
        t->name = gr_strdup(guest_name);
        if (!t->parent_path || !t->name)
            rc = -ENOMEM;
    } else {
        rc = split(out, &t->parent_path, &t->name);
    }
    gr_world_real()->random(NULL, salt, sizeof salt);
    if (rc == 0) {
        t->temp = gr_asprintf(".%.200s.granary-%02x%02x%02x%02x", t->name, salt[0], salt[1], salt[2], salt[3]);
        t->parent = open(t->parent_path, O_PATH | O_DIRECTORY | O_CLOEXEC);
        rc = !t->temp ? -ENOMEM : t->parent < 0 ? -errno : 0;
    }
    if (rc == 0 && fstatat(t->parent, t->name, &st, AT_SYMLINK_NOFOLLOW) == 0)
        rc = -EEXIST;
    if (rc < 0) {
        gr_fail(err, rc, "cannot restore to '%s'%s%s: %s", out, t->name ? ", name " : "", t->name ? t->name : "", gr_code_text(rc));
        fs_target_done(t);
    }
    return rc;
}

void fs_target_done(struct fs_target *t)
{
    if (t->parent >= 0)
        close(t->parent);
    free(t->parent_path);
    free(t->name);
    free(t->temp);
    *t = (struct fs_target){.parent = -1};
}

char *fs_target_temp_path(const struct fs_target *t)
{
    return gr_asprintf("%s/%s", strcmp(t->parent_path, "/") == 0 ? "" : t->parent_path, t->temp);
}

int fs_target_publish(struct fs_target *t, struct gr_err *err)
{
    gr_auto_close int dir = open(t->parent_path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    /* one pass of the file system instead of an fsync for each of many thousand files; it reports write errors (Linux 5.8) */
    int rc = dir < 0 || syncfs(dir) < 0 ? -errno : 0;
    if (rc == 0 && renameat2(dir, t->temp, dir, t->name, RENAME_NOREPLACE) < 0)
        rc = -errno;
    if (rc == 0 && fsync(dir) < 0)
        rc = -errno;
    return rc < 0 ? gr_fail(err, rc, "cannot finish '%s/%s': %s", t->parent_path, t->name, gr_code_text(rc)) : 0;
}

static void times_of(const struct fs_attr *a, struct timespec ts[2])
{
    ts[0] = (struct timespec){.tv_sec = a->atime.sec, .tv_nsec = a->atime.nsec};
    ts[1] = (struct timespec){.tv_sec = a->mtime.sec, .tv_nsec = a->mtime.nsec};
}

int fs_target_attr(int fd, const struct fs_attr *a, bool keep_ids, bool keep_special)
{
    struct timespec ts[2];
    times_of(a, ts);
    if (keep_ids && fchown(fd, a->uid, a->gid) < 0)
        return -errno;
    if (fchmod(fd, a->mode & (keep_special ? 07777 : 01777)) < 0)
        return -errno;
    return futimens(fd, ts) < 0 ? -errno : 0;
}

int fs_target_link(int dirfd, const char *name, const char *target, const struct fs_attr *a, bool keep_ids)
{
    struct timespec ts[2];
    times_of(a, ts);
    if (!*target || symlinkat(target, dirfd, name) < 0)
        return *target ? -errno : -EINVAL;
    if (keep_ids && fchownat(dirfd, name, a->uid, a->gid, AT_SYMLINK_NOFOLLOW) < 0)
        return -errno;
    return utimensat(dirfd, name, ts, AT_SYMLINK_NOFOLLOW) < 0 ? -errno : 0;
}

int fs_target_hard(int root, const char *path, int dirfd, const char *name)
{
    gr_auto_close int fd = fs_target_at(root, path, O_PATH | O_NOFOLLOW, 0);
    char proc[64];
    if (fd < 0)
        return fd;
    snprintf(proc, sizeof proc, "/proc/self/fd/%d", fd);
    return linkat(AT_FDCWD, proc, dirfd, name, AT_SYMLINK_FOLLOW) < 0 ? -errno : 0;
}

static int remove_at(int dirfd, const char *name, int depth)
{
    if (unlinkat(dirfd, name, 0) == 0 || errno == ENOENT)
        return 0;
    if (errno != EISDIR && errno != EPERM)
        return -errno;
    int fd = depth < DEPTH_MAX ? fs_target_at(dirfd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW, 0) : -ELOOP;
    if (fd == -EACCES && fchmodat(dirfd, name, 0700, 0) == 0)
        fd = fs_target_at(dirfd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW, 0);
    if (fd < 0)
        return fd;
    gr_auto_closedir DIR *d = fdopendir(fd);
    if (!d) {
        close(fd);
        return -ENOMEM;
    }
    (void)fchmod(fd, 0700); /* a guest's directory may forbid its owner to write */
    int rc = 0;
    for (struct dirent *e = readdir(d); e && rc == 0; e = readdir(d))
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0)
            rc = remove_at(fd, e->d_name, depth + 1);
    if (rc == 0 && unlinkat(dirfd, name, AT_REMOVEDIR) < 0)
        rc = -errno;
    return rc;
}

int fs_target_remove(int dirfd, const char *name)
{
    return remove_at(dirfd, name, 0);
}
