#include "backup-proxy/mount_table.h"
#include "common/cleanup.h"
#include "common/seam.h"
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <time.h>

#define TYPE "fuse.granary"
#define END_MS 10000 /* patience with a daemon that was unmounted */
#define COPY_MS 1000 /* and until it is told: a mount namespace made meanwhile has the mount, too, and it would serve that */

static void nap(void)
{
    nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
}

int mount_canonical(const char *dir, char **ret, struct gr_err *err)
{
    char *full = realpath(dir, NULL);
    if (full) {
        *ret = full;
        return 0;
    }
    if (errno != ENOTCONN && errno != EIO)
        return gr_fail(err, -errno, "'%s': %s", dir, gr_code_text(-errno));
    gr_auto_free char *a = gr_strdup(dir);
    gr_auto_free char *b = gr_strdup(dir);
    char *parent = a ? realpath(dirname(a), NULL) : NULL;
    const char *base = b ? basename(b) : NULL;
    full = parent && base ? gr_asprintf("%s/%s", strcmp(parent, "/") == 0 ? "" : parent, base) : NULL;
    free(parent);
    if (!full)
        return gr_fail(err, -ENOENT, "'%s' cannot be found", dir);
    *ret = full;
    return 0;
}

/* Undo the octal escapes of /proc/self/mountinfo, in place. */
static void unescape(char *s)
{
    char *out = s;
    for (; *s; s++) {
        if (s[0] == '\\' && s[1] >= '0' && s[1] <= '3' && s[2] && s[3]) {
            *out++ = (char)((s[1] - '0') << 6 | (s[2] - '0') << 3 | (s[3] - '0'));
            s += 3;
        } else {
            *out++ = *s;
        }
    }
    *out = '\0';
}

int mount_lookup(const char *dir, char source[256], char type[64])
{
    gr_auto_fclose FILE *f = fopen("/proc/self/mountinfo", "re");
    gr_auto_free char *line = NULL;
    size_t cap = 0;
    int found = 0;
    while (f && getline(&line, &cap, f) > 0) {
        char *save = NULL, *word = strtok_r(line, " ", &save);
        for (int i = 1; word && i < 5; i++)
            word = strtok_r(NULL, " ", &save);
        if (!word)
            continue;
        unescape(word);
        if (strcmp(word, dir) != 0)
            continue;
        while (word && strcmp(word, "-") != 0)
            word = strtok_r(NULL, " ", &save);
        char *t = strtok_r(NULL, " ", &save), *src = strtok_r(NULL, " ", &save);
        if (t && src) {
            unescape(src);
            snprintf(type, 64, "%s", t);
            snprintf(source, 256, "%s", src);
            found = 1; /* the last one is on top */
        }
    }
    return found;
}

/* Not root: fusermount3 has the right to. */
static int fusermount(const char *dir, bool lazy)
{
    gr_auto_free char *copy = gr_strdup(dir);
    char *argv[] = {(char[]){"fusermount3"}, (char[]){"-u"}, (char[]){"-q"}, (char[]){"--"}, copy, NULL};
    int status = 0;
    pid_t pid = 0;
    if (!copy)
        return -ENOMEM;
    if (lazy)
        memcpy(argv[3], "-z", 3);
    int rc = posix_spawnp(&pid, "fusermount3", NULL, NULL, argv, environ);
    if (rc)
        return -rc;
    if (waitpid(pid, &status, 0) != pid || status != 0)
        return -EBUSY;
    return 0;
}

static int detach(const char *dir, bool lazy)
{
    if (geteuid() != 0)
        return fusermount(dir, lazy);
    return umount2(dir, UMOUNT_NOFOLLOW | (lazy ? MNT_DETACH : 0)) < 0 ? -errno : 0;
}

static const char *detail_str(json_t *intent, const char *key)
{
    return json_string_value(json_object_get(json_object_get(intent, "detail"), key));
}

/* A mount whose daemon is gone answers ENOTCONN (to an open: attributes may still be in the kernel's cache). */
static bool is_dead_mount(const char *dir)
{
    char source[256], type[64];
    if (!mount_lookup(dir, source, type) || strcmp(type, TYPE) != 0)
        return false;
    gr_auto_close int fd = open(dir, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    return fd < 0 && (errno == ENOTCONN || errno == ECONNABORTED);
}

static bool still_runs(json_t *intent)
{
    int pid = (int)json_integer_value(json_object_get(intent, "pid"));
    return bp_process_start(pid) == (uint64_t)json_integer_value(json_object_get(intent, "start-time"));
}

static bool wait_end(json_t *intent, int ms)
{
    for (int i = 0; i < ms / 20 && still_runs(intent); i++)
        nap();
    return !still_runs(intent);
}

int mount_reap(struct gr_home *home, struct gr_err *err)
{
    json_t *list = NULL, *one;
    size_t i;
    int n = 0, rc = bp_intent_list(home, "mount", &list, err);
    if (rc < 0)
        return rc;
    json_array_foreach(list, i, one)
    {
        const char *dir = detail_str(one, "dir");
        if (json_is_true(json_object_get(one, "alive")) && !(dir && is_dead_mount(dir) && wait_end(one, END_MS)))
            continue; /* a dying process closes its mount before it is gone */
        while (rc == 0 && dir && is_dead_mount(dir))
            rc = detach(dir, true);
        if (rc < 0) {
            gr_fail(err, rc, "cannot detach the dead mount on '%s': %s", dir, gr_code_text(rc));
            break;
        }
        rc = bp_intent_remove(home, json_string_value(json_object_get(one, "id")), err);
        if (rc < 0)
            break;
        n++;
    }
    json_decref(list);
    return rc < 0 ? rc : n;
}

/* The living mount on @dir: its intent (a new reference), or NULL. */
static json_t *find_mount(json_t *list, const char *dir)
{
    json_t *one;
    size_t i;
    json_array_foreach(list, i, one)
    {
        const char *d = detail_str(one, "dir");
        if (d && strcmp(d, dir) == 0)
            return json_incref(one);
    }
    return NULL;
}

static int end_mount(json_t *intent, const char *dir, bool force, struct gr_err *err)
{
    int pid = (int)json_integer_value(json_object_get(intent, "pid"));
    int rc = detach(dir, force);
    if (rc == -EBUSY)
        return gr_fail(err, -GR_ELOCKED, "'%s' is in use: close what is open below it, or unmount it with --force", dir);
    if (rc < 0 && rc != -EINVAL) /* EINVAL: not mounted (any more): end the daemon */
        return gr_fail(err, rc, "cannot unmount '%s': %s", dir, gr_code_text(rc));
    if ((force || !wait_end(intent, COPY_MS)) && still_runs(intent))
        kill(pid, SIGTERM);
    if (!wait_end(intent, END_MS)) {
        kill(pid, SIGKILL);
        if (!wait_end(intent, END_MS))
            return gr_fail(err, -ETIMEDOUT, "'%s' is unmounted, but its daemon (process %d) does not end", dir, pid);
    }
    return 0;
}

int mount_unmount(struct gr_home *home, const char *dir, bool force, struct gr_err *err)
{
    gr_auto_free char *full = NULL;
    json_t *list = NULL;
    bool was_dead = false;
    int rc = mount_canonical(dir, &full, err);
    if (rc == 0) {
        was_dead = is_dead_mount(full);
        rc = mount_reap(home, err);
    }
    if (rc >= 0)
        rc = bp_intent_list(home, "mount", &list, err);
    if (rc < 0)
        return rc;
    json_t *intent = find_mount(list, full);
    json_decref(list);
    if (intent)
        rc = end_mount(intent, full, force, err);
    else if (was_dead && !is_dead_mount(full))
        rc = 0; /* its daemon had been killed: reaping it was all there was to do */
    else
        rc = gr_fail(err, -ENOENT, "nothing that this GRANARY_HOME mounted is on '%s'", full);
    json_decref(intent);
    if (rc == 0)
        rc = mount_reap(home, err); /* of a daemon that had to be killed */
    return rc < 0 ? rc : 0;
}
