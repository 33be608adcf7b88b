/* Random operations on a file system, and the same in memory; whatever differs is told and fails.
 *   fs_model SECONDS DIR [DIR...]        several directories are the same one, as several hosts show it: each operation goes through one of them
 *   fs_model count N LOCK FILE           add 1 to the number in FILE, N times, each under a lock: flock, posix or ofd
 *   fs_model append N WORD FILE          append N lines "WORD I"
 * The seed is printed; GRANARY_SEED=N repeats a run. FS_MODEL_KILLS=1: whoever serves it is killed now and then, so a file without a name may be gone
 * (ESTALE). Ends early, and well, on SIGTERM. */
#include "tests/lib/test.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { DIRS = 4, NAMES = 8, BYTES = 200000, PIECE = 20000, OPEN = 6, ROOTS_MAX = 8 };

struct file { /* what a name, or a descriptor, leads to */
    unsigned refs;
    bool named;
    size_t size;
    mode_t mode;
    uint8_t *data; /* BYTES; what is behind the size is zero */
};
struct descriptor {
    struct file *f;
    int fd, root;
    bool append;
};
struct model {
    const char *root[ROOTS_MAX];
    int n_roots;
    uint64_t rng;
    bool dir[DIRS]; /* 0: the top, always there */
    struct file *name[DIRS][NAMES];
    struct descriptor open[OPEN];
    unsigned long done;
    bool kills;
    uint8_t buf[BYTES];
};

static volatile sig_atomic_t stop; /* a signal has come */

static void on_term(int sig)
{
    stop = 1;
}

static uint64_t any(struct model *m, uint64_t below)
{
    return test_rand(&m->rng) % below;
}

static void __attribute__((format(printf, 2, 3), noreturn)) differ(const struct model *m, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    fprintf(stderr, "fs_model: operation %lu: ", m->done);
    vfprintf(stderr, fmt, ap);
    fprintf(stderr, " (last error: %s)\n", strerror(errno));
    va_end(ap);
    exit(1);
}

static const char *path_of(struct model *m, char out[4096], int d, int n)
{
    const char *root = m->root[any(m, (uint64_t)m->n_roots)];
    char dir[16] = "", name[16] = "";
    if (d)
        snprintf(dir, sizeof dir, "/dir%d", d);
    if (n >= 0)
        snprintf(name, sizeof name, "/file%d", n);
    snprintf(out, 4096, "%s%s%s", root, dir, name);
    return out;
}

static void put(struct file *f)
{
    if (f && --f->refs == 0) {
        free(f->data);
        free(f);
    }
}

/* What came back must be what was expected: 0 or an errno. */
static bool expect(struct model *m, int r, int want, const char *what, const char *path)
{
    int got = r < 0 ? errno : 0;
    if (got != want)
        differ(m, "%s %s: %s, not %s", what, path, got ? strerror(got) : "done", want ? strerror(want) : "done");
    return got == 0;
}

/* A file without a name may be gone when its server was killed. */
static bool lost(const struct model *m, const struct descriptor *d, long r)
{
    return m->kills && r < 0 && (errno == ESTALE || errno == ENOENT) && !d->f->named;
}

static void close_it(struct descriptor *d)
{
    close(d->fd);
    put(d->f);
    *d = (struct descriptor){.fd = -1};
}

/* ---- operations on names ---- */
static void do_open(struct model *m)
{
    int d = (int)any(m, DIRS), n = (int)any(m, NAMES), k = (int)any(m, OPEN);
    char path[4096];
    struct descriptor *o = &m->open[k];
    struct file *f = m->name[d][n];
    bool create = any(m, 2), exclusive = create && any(m, 4) == 0, trunc = any(m, 6) == 0, append = any(m, 4) == 0;
    if (o->f)
        close_it(o);
    path_of(m, path, d, n);
    int fd = open(path, O_RDWR | O_CLOEXEC | (create ? O_CREAT : 0) | (exclusive ? O_EXCL : 0) | (trunc ? O_TRUNC : 0) | (append ? O_APPEND : 0), 0640);
    int want = !m->dir[d] ? ENOENT : !f && !create ? ENOENT : f && exclusive ? EEXIST : 0;
    if (!expect(m, fd, want, "open", path))
        return;
    if (!f) {
        f = calloc(1, sizeof *f);
        f->data = calloc(1, BYTES);
        f->mode = 0640;
        f->named = true;
        f->refs = 1;
        m->name[d][n] = f;
    } else if (trunc) {
        memset(f->data, 0, f->size);
        f->size = 0;
    }
    f->refs++;
    *o = (struct descriptor){f, fd, 0, append};
}

static void do_unlink(struct model *m)
{
    int d = (int)any(m, DIRS), n = (int)any(m, NAMES);
    char path[4096];
    struct file *f = m->name[d][n];
    if (expect(m, unlink(path_of(m, path, d, n)), !m->dir[d] || !f ? ENOENT : 0, "unlink", path)) {
        m->name[d][n] = NULL;
        f->named = false;
        put(f);
    }
}

static void do_rename(struct model *m)
{
    int d = (int)any(m, DIRS), n = (int)any(m, NAMES), d2 = (int)any(m, DIRS), n2 = (int)any(m, NAMES);
    unsigned flags = any(m, 4) ? 0 : any(m, 2) ? RENAME_NOREPLACE : RENAME_EXCHANGE;
    char from[4096], to[4096];
    struct file *f = m->name[d][n], *old = m->name[d2][n2];
    const char *root = m->root[any(m, (uint64_t)m->n_roots)]; /* both names through one of them */
    const char *all[ROOTS_MAX];
    int count = m->n_roots;
    memcpy(all, m->root, sizeof all);
    m->root[0] = root;
    m->n_roots = 1;
    path_of(m, from, d, n);
    path_of(m, to, d2, n2);
    memcpy(m->root, all, sizeof all);
    m->n_roots = count;
    bool there = m->dir[d] && m->dir[d2] && f;
    int want = !there || (flags == RENAME_EXCHANGE && !old) ? ENOENT : flags == RENAME_NOREPLACE && old ? EEXIST : 0;
    if (!expect(m, renameat2(AT_FDCWD, from, AT_FDCWD, to, flags), want, flags ? "rename with flags" : "rename", from) || f == old)
        return;
    m->name[d2][n2] = f;
    m->name[d][n] = flags == RENAME_EXCHANGE ? old : NULL;
    if (old && flags != RENAME_EXCHANGE) {
        old->named = false;
        put(old);
    }
}

static bool empty(const struct model *m, int d)
{
    for (int n = 0; n < NAMES; n++)
        if (m->name[d][n])
            return false;
    return true;
}

static void do_dir(struct model *m)
{
    int d = 1 + (int)any(m, DIRS - 1);
    char path[4096];
    path_of(m, path, d, -1);
    if (any(m, 3)) {
        if (expect(m, mkdir(path, 0750), m->dir[d] ? EEXIST : 0, "mkdir", path))
            m->dir[d] = true;
    } else if (expect(m, rmdir(path), !m->dir[d] ? ENOENT : empty(m, d) ? 0 : ENOTEMPTY, "rmdir", path)) {
        m->dir[d] = false;
    }
}

static void do_list(struct model *m)
{
    int d = (int)any(m, DIRS);
    char path[4096];
    unsigned seen = 0, want = 0;
    DIR *dir = opendir(path_of(m, path, d, -1));
    if (!expect(m, dir ? 0 : -1, m->dir[d] ? 0 : ENOENT, "opendir", path))
        return;
    for (const struct dirent *e; (e = readdir(dir));) {
        int n = -1;
        if (sscanf(e->d_name, "file%d", &n) == 1 && n >= 0 && n < NAMES)
            seen |= seen & 1u << n ? 1u << 31 : 1u << n;
    }
    closedir(dir);
    for (int n = 0; n < NAMES; n++)
        want |= m->name[d][n] ? 1u << n : 0;
    if (seen != want)
        differ(m, "%s lists %x, not %x", path, seen, want);
}

static void do_stat(struct model *m)
{
    int d = (int)any(m, DIRS), n = (int)any(m, NAMES);
    char path[4096];
    struct stat st;
    const struct file *f = m->name[d][n];
    if (!expect(m, stat(path_of(m, path, d, n), &st), !m->dir[d] || !f ? ENOENT : 0, "stat", path))
        return;
    if ((size_t)st.st_size != f->size || (st.st_mode & 07777) != f->mode)
        differ(m, "%s has %lld bytes and mode %o, not %zu and %o", path, (long long)st.st_size, st.st_mode & 07777, f->size, f->mode);
}

static void do_chmod(struct model *m)
{
    int d = (int)any(m, DIRS), n = (int)any(m, NAMES);
    char path[4096];
    mode_t mode = 0600 | (mode_t)any(m, 0200);
    if (expect(m, chmod(path_of(m, path, d, n), mode), !m->dir[d] || !m->name[d][n] ? ENOENT : 0, "chmod", path))
        m->name[d][n]->mode = mode;
}

/* ---- operations on content ---- */
static void fill(struct model *m, size_t n)
{
    for (size_t i = 0; i < n; i++)
        m->buf[i] = (uint8_t)(test_rand(&m->rng) >> 33);
}

static void do_write(struct model *m, struct descriptor *o)
{
    size_t n = 1 + any(m, PIECE), off = o->append ? o->f->size : any(m, BYTES - PIECE);
    if (any(m, 3) == 0) /* whole sectors */
        off = o->append ? off : off / 512 * 512, n = (n + 511) / 512 * 512;
    if (n > BYTES - off)
        return;
    fill(m, n);
    ssize_t w = o->append ? write(o->fd, m->buf, n) : pwrite(o->fd, m->buf, n, (off_t)off);
    if (lost(m, o, w)) {
        close_it(o);
        return;
    }
    if (w != (ssize_t)n)
        differ(m, "a write of %zu bytes at %zu: %zd", n, off, w);
    memcpy(o->f->data + off, m->buf, n);
    o->f->size = off + n > o->f->size ? off + n : o->f->size;
}

static void check_bytes(struct model *m, const struct file *f, const uint8_t *got, size_t off, size_t n, const char *how)
{
    for (size_t i = 0; i < n; i++)
        if (got[i] != f->data[off + i])
            differ(m, "%s at %zu (of %zu): byte %zu is %02x, not %02x", how, off, f->size, off + i, got[i], f->data[off + i]);
}

static void do_read(struct model *m, struct descriptor *o)
{
    size_t off = any(m, o->f->size + 2), n = 1 + any(m, BYTES), want = off >= o->f->size ? 0 : o->f->size - off < n ? o->f->size - off : n;
    ssize_t r = pread(o->fd, m->buf, n > BYTES ? BYTES : n, (off_t)off);
    if (lost(m, o, r)) {
        close_it(o);
        return;
    }
    if (r != (ssize_t)want)
        differ(m, "a read of %zu bytes at %zu of %zu: %zd", n, off, o->f->size, r);
    check_bytes(m, o->f, m->buf, off, want, "read");
}

static void do_truncate(struct model *m, struct descriptor *o)
{
    size_t size = any(m, BYTES), old = o->f->size;
    int r = ftruncate(o->fd, (off_t)size);
    if (lost(m, o, r)) {
        close_it(o);
        return;
    }
    if (r < 0)
        differ(m, "truncate to %zu", size);
    if (size < old)
        memset(o->f->data + size, 0, old - size);
    o->f->size = size;
}

static void do_punch(struct model *m, struct descriptor *o)
{
    size_t off = any(m, BYTES - 1), n = 1 + any(m, BYTES - off - 1);
    int r = fallocate(o->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)off, (off_t)n);
    if (lost(m, o, r)) {
        close_it(o);
        return;
    }
    if (r < 0)
        differ(m, "a hole of %zu bytes at %zu", n, off);
    if (off < o->f->size)
        memset(o->f->data + off, 0, (off + n < o->f->size ? off + n : o->f->size) - off);
}

static void do_map(struct model *m, struct descriptor *o)
{
    struct stat st; /* the kernel looks at the length that it knows when a page is touched */
    if (o->f->size == 0 || (m->kills && !o->f->named) || fstat(o->fd, &st) < 0) /* a fault that fails is a signal */
        return;
    uint8_t *p = mmap(NULL, o->f->size, PROT_READ | PROT_WRITE, MAP_SHARED, o->fd, 0);
    if (p == MAP_FAILED)
        differ(m, "mmap of %zu bytes", o->f->size);
    check_bytes(m, o->f, p, 0, o->f->size, "mmap");
    size_t off = any(m, o->f->size), n = 1 + any(m, o->f->size - off);
    fill(m, n);
    memcpy(p + off, m->buf, n);
    memcpy(o->f->data + off, m->buf, n);
    if (any(m, 2) && msync(p, o->f->size, MS_SYNC) < 0)
        differ(m, "msync");
    munmap(p, o->f->size);
}

static void do_content(struct model *m)
{
    struct descriptor *o = &m->open[any(m, OPEN)];
    if (!o->f)
        return;
    switch (any(m, 16)) {
    case 0: do_truncate(m, o); break;
    case 1: do_punch(m, o); break;
    case 2: do_map(m, o); break;
    case 3:
        if (fsync(o->fd) < 0 && !lost(m, o, -1))
            differ(m, "fsync");
        break;
    case 4: close_it(o); break;
    case 5: case 6: case 7: case 8: case 9: do_read(m, o); break;
    default: do_write(m, o); break;
    }
}

static void step(struct model *m)
{
    m->done++;
    switch (any(m, 24)) {
    case 0: do_unlink(m); break;
    case 1: do_rename(m); break;
    case 2: do_dir(m); break;
    case 3: do_list(m); break;
    case 4: case 5: do_stat(m); break;
    case 6: do_chmod(m); break;
    case 7: case 8: case 9: do_open(m); break;
    default: do_content(m); break;
    }
}

/* Every file, through every root. */
static void check_all(struct model *m)
{
    char path[4096];
    for (int d = 0; d < DIRS; d++)
        for (int n = 0; n < NAMES; n++)
            for (int k = 0; k < m->n_roots * 2 && m->name[d][n]; k++) {
                int fd = open(path_of(m, path, d, n), O_RDONLY | O_CLOEXEC);
                ssize_t r = fd < 0 ? -1 : read(fd, m->buf, BYTES);
                if (r != (ssize_t)m->name[d][n]->size)
                    differ(m, "%s in the end: %zd bytes, not %zu", path, r, m->name[d][n]->size);
                check_bytes(m, m->name[d][n], m->buf, 0, (size_t)r, path);
                close(fd);
            }
}

static int run_model(double seconds, char **roots, int n)
{
    struct model *m = calloc(1, sizeof *m);
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    double end = (double)t.tv_sec + (double)t.tv_nsec / 1e9 + seconds;
    m->rng = test_seed();
    m->dir[0] = true;
    m->kills = getenv("FS_MODEL_KILLS") != NULL;
    for (m->n_roots = 0; m->n_roots < n && m->n_roots < ROOTS_MAX; m->n_roots++)
        m->root[m->n_roots] = roots[m->n_roots];
    for (int i = 0; i < OPEN; i++)
        m->open[i].fd = -1;
    do {
        step(m);
        clock_gettime(CLOCK_MONOTONIC, &t);
    } while (!stop && (double)t.tv_sec + (double)t.tv_nsec / 1e9 < end);
    check_all(m);
    printf("%lu operations\n", m->done);
    return 0;
}

/* ---- several processes, one file ---- */
static int lock_it(int fd, const char *kind, bool on)
{
    struct flock l = {.l_type = on ? F_WRLCK : F_UNLCK, .l_whence = SEEK_SET, .l_start = 0, .l_len = 8};
    if (strcmp(kind, "flock") == 0)
        return flock(fd, on ? LOCK_EX : LOCK_UN);
    return fcntl(fd, strcmp(kind, "ofd") == 0 ? F_OFD_SETLKW : F_SETLKW, &l);
}

static int count(long n, const char *kind, const char *path)
{
    for (long i = 0; i < n; i++) {
        char text[32] = "";
        int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
        if (fd < 0 || lock_it(fd, kind, true) < 0 || pread(fd, text, sizeof text - 1, 0) < 0) {
            perror(path);
            return 1;
        }
        int len = snprintf(text, sizeof text, "%ld\n", strtol(text, NULL, 10) + 1);
        if (pwrite(fd, text, (size_t)len, 0) != len || lock_it(fd, kind, false) < 0 || close(fd) < 0) {
            perror(path);
            return 1;
        }
    }
    return 0;
}

static int append(long n, const char *word, const char *path)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    for (long i = 0; i < n; i++) {
        char line[128];
        int len = snprintf(line, sizeof line, "%s %ld\n", word, i);
        if (write(fd, line, (size_t)len) != len) {
            perror(path);
            return 1;
        }
    }
    return close(fd) < 0;
}

int main(int argc, char **argv)
{
    signal(SIGTERM, on_term);
    umask(0);
    if (argc == 5 && strcmp(argv[1], "count") == 0)
        return count(strtol(argv[2], NULL, 10), argv[3], argv[4]);
    if (argc == 5 && strcmp(argv[1], "append") == 0)
        return append(strtol(argv[2], NULL, 10), argv[3], argv[4]);
    if (argc < 3)
        return 2;
    return run_model(strtod(argv[1], NULL), argv + 2, argc - 2);
}
