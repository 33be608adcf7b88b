/* Several processes on several mounts of one datastore, on a few files at the same time; each call and return is recorded, and then it is decided whether
 * there is one order that explains them all (tests/lib/fs_order.h).
 *   fs_history SECONDS DIR DIR...        the directories are the same one, as several hosts show it; FO_PROCS processes share them
 * The seed is printed; GRANARY_SEED=N repeats the choices (not the timing). FS_HISTORY_LIE=fstat|read|list|stat: what is recorded of some of these is
 * an older answer, so that no order explains it: the run has to fail. FS_HISTORY_NAMES=1: names and folders only, no content. Ends early, and well, on SIGTERM. */
#include "tests/lib/fs_order.h"
#include "tests/lib/test.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { EACH = 100, AFTER = 200, CELL_MAX = 1024, HOSTS_MAX = 8, SHOWN = 40, SECTOR = 512 };

struct log {
    size_t n;
    bool broken;
    struct fo_op ops[EACH + AFTER];
};
struct worker {
    const char *dir;  /* of this round, on its host */
    struct log *log;
    uint64_t rng, last_ns, end_ns;
    size_t cell;      /* bytes of one */
    uint8_t proc, host;
    uint16_t next_tag;
    int fd[FO_FDS];
    struct fo_op was[FO_KINDS]; /* for lies */
    enum fo_kind lie;
    bool names;       /* no content */
    uint8_t buf[FO_CELLS * CELL_MAX];
};

static volatile sig_atomic_t stop; /* a signal has come */

static void on_term(int sig)
{
    stop = 1;
}

static uint64_t any(struct worker *w, uint64_t below)
{
    return test_rand(&w->rng) % below;
}

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* ---- content: each byte of a cell says which write it is of, and where ---- */
static uint8_t byte_of(uint16_t tag, size_t i)
{
    return (uint8_t)(i % 2 ? tag : tag >> 8);
}

static bool cell_of(const uint8_t *p, size_t len, uint16_t *ret)
{
    uint16_t tag = (uint16_t)(p[0] << 8 | p[1]);
    for (size_t i = 0; i < len; i++)
        if (p[i] != byte_of(tag, i))
            return false;
    *ret = tag;
    return true;
}

static void __attribute__((format(printf, 3, 4))) broken(struct worker *w, const struct fo_op *op, const char *fmt, ...)
{
    char text[512];
    va_list ap;
    fo_print(op, text, sizeof text);
    fprintf(stderr, "fs_history: %s\n  ", text);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fprintf(stderr, "\n");
    w->log->broken = true;
}

/* ---- doing one ---- */
static const char *path_of(const struct worker *w, char out[4096], unsigned dir, int name)
{
    char folder[16] = "", file[16] = "";
    if (dir)
        snprintf(folder, sizeof folder, "/d%u", dir);
    if (name >= 0)
        snprintf(file, sizeof file, "/f%d", name);
    snprintf(out, 4096, "%s%s%s", w->dir, folder, file);
    return out;
}

static int list(struct fo_op *op, const char *path)
{
    DIR *d = opendir(path);
    if (!d)
        return -1;
    errno = 0;
    for (const struct dirent *e; (e = readdir(d));) {
        unsigned n;
        if (sscanf(e->d_name, "f%u", &n) == 1 && n < FO_NAMES)
            op->names |= 1u << n;
        else if (sscanf(e->d_name, "d%u", &n) == 1 && n >= 1 && n <= FO_FOLDERS)
            op->names |= 1u << (FO_NAMES + n - 1);
    }
    int failed = errno;
    closedir(d);
    errno = failed;
    return failed ? -1 : 0;
}

static int in_cells(struct worker *w, struct fo_op *op, int64_t bytes)
{
    if (bytes >= 0 && (uint64_t)bytes % w->cell)
        broken(w, op, "a length of %lld bytes, which nobody made", (long long)bytes);
    op->size = (uint32_t)((uint64_t)bytes / w->cell);
    return bytes < 0 ? -1 : 0;
}

static int read_cells(struct worker *w, struct fo_op *op)
{
    ssize_t r = pread(w->fd[op->fd], w->buf, op->n * w->cell, (off_t)(op->first * w->cell));
    if (in_cells(w, op, r) < 0)
        return -1;
    for (unsigned i = 0; i < op->size; i++)
        if (!cell_of(w->buf + i * w->cell, w->cell, &op->cells[i]))
            broken(w, op, "cell %u is of several writes", op->first + i);
    return 0;
}

static int write_cells(struct worker *w, struct fo_op *op)
{
    size_t len = op->n * w->cell;
    for (size_t i = 0; i < len; i++)
        w->buf[i] = byte_of(op->tag, i % w->cell);
    int fd = w->fd[op->fd];
    ssize_t r = op->kind == FO_APPEND ? write(fd, w->buf, len) : pwrite(fd, w->buf, len, (off_t)(op->first * w->cell));
    if (r >= 0 && (size_t)r != len)
        broken(w, op, "%zd of %zu bytes were written", r, len);
    return r < 0 ? -1 : 0;
}

/* Appending goes through the descriptor that has O_APPEND: the last one of each process. */
static int open_it(struct worker *w, const struct fo_op *op, const char *path)
{
    int fd = open(path, O_RDWR | O_CLOEXEC | (op->create ? O_CREAT : 0) | (op->exclusive ? O_EXCL : 0) | (op->cut ? O_TRUNC : 0) | (op->fd == FO_FDS - 1 ? O_APPEND : 0), 0600);
    if (fd >= 0)
        w->fd[op->fd] = fd;
    return fd < 0 ? -1 : 0;
}

static int close_it(struct worker *w, uint8_t fd)
{
    int r = close(w->fd[fd]);
    w->fd[fd] = -1;
    return r;
}

static int do_it(struct worker *w, struct fo_op *op, const char *a, const char *b)
{
    struct stat st;
    int r;
    switch (op->kind) {
    case FO_OPEN: return open_it(w, op, a);
    case FO_CLOSE: return close_it(w, op->fd);
    case FO_READ: return read_cells(w, op);
    case FO_WRITE: case FO_APPEND: return write_cells(w, op);
    case FO_TRUNCATE: return ftruncate(w->fd[op->fd], (off_t)(op->n * w->cell));
    case FO_FSTAT: r = fstat(w->fd[op->fd], &st); return r < 0 ? r : in_cells(w, op, st.st_size);
    case FO_STAT: r = stat(a, &st); return r < 0 ? r : in_cells(w, op, st.st_size);
    case FO_UNLINK: return unlink(a);
    case FO_RENAME: return renameat2(AT_FDCWD, a, AT_FDCWD, b, op->keep ? RENAME_NOREPLACE : op->swap ? RENAME_EXCHANGE : 0);
    case FO_MKDIR: return mkdir(a, 0700);
    case FO_RMDIR: return rmdir(a);
    case FO_RENAME_DIR: return rename(a, b);
    case FO_LIST: return list(op, a);
    case FO_KINDS: break;
    }
    abort();
}

/* Now and then the answer of last time is given again, as an attribute or a page that is kept too long would be. */
static void lie(struct worker *w, struct fo_op *op)
{
    struct fo_op *was = &w->was[op->kind];
    bool same = was->end_ns && was->fd == op->fd && was->dir == op->dir && was->name == op->name && was->first == op->first && was->n == op->n;
    struct fo_op now = *op;
    if (same && op->kind == w->lie && any(w, 3) == 0) {
        op->err = was->err;
        op->size = was->size;
        op->names = was->names;
        memcpy(op->cells, was->cells, sizeof op->cells);
    }
    *was = now;
}

#define STALE_TRIES 20
static void run_op(struct worker *w, struct fo_op *op)
{
    char a[4096], b[4096];
    bool whole = op->kind == FO_MKDIR || op->kind == FO_RMDIR || op->kind == FO_RENAME_DIR || op->kind == FO_LIST;
    path_of(w, a, op->dir, whole ? -1 : op->name);
    path_of(w, b, op->dir2, whole ? -1 : op->name2);
    op->proc = w->proc;
    op->host = w->host;
    while ((op->start_ns = now_ns()) <= w->last_ns)
        ;
    /* As docs/mount.md says: who is told ESTALE of a folder asks again. It has changed nothing, or no order explains what others see. */
    int r, tries = 0;
    do
        r = do_it(w, op, a, b);
    while (r < 0 && errno == ESTALE && (op->kind == FO_RMDIR || op->kind == FO_RENAME_DIR) && ++tries < STALE_TRIES);
    op->err = r < 0 ? errno : 0;
    w->last_ns = op->end_ns = now_ns();
    if (w->lie != FO_KINDS)
        lie(w, op);
    w->log->ops[w->log->n++] = *op;
}

/* ---- choosing ---- */
static void choose_path(struct worker *w, struct fo_op *op)
{
    static const enum fo_kind kinds[] = {FO_STAT, FO_STAT, FO_UNLINK, FO_RENAME, FO_RENAME, FO_MKDIR, FO_RMDIR, FO_RENAME_DIR, FO_LIST, FO_LIST};
    op->kind = kinds[any(w, sizeof kinds / sizeof *kinds)];
    op->dir = any(w, 2) ? 0 : (uint8_t)(1 + any(w, FO_FOLDERS));
    op->name = (uint8_t)any(w, FO_NAMES);
    if (op->kind == FO_RENAME) {
        uint64_t how = any(w, 6);
        op->keep = how == 0;
        op->swap = how == 1;
        op->dir2 = any(w, 2) ? op->dir : (uint8_t)any(w, 1 + FO_FOLDERS);
        op->name2 = op->dir == op->dir2 ? (uint8_t)((op->name + 1 + any(w, FO_NAMES - 1)) % FO_NAMES) : (uint8_t)any(w, FO_NAMES);
    } else if (op->kind == FO_MKDIR || op->kind == FO_RMDIR || op->kind == FO_RENAME_DIR) {
        op->dir = (uint8_t)(1 + any(w, FO_FOLDERS));
        op->dir2 = (uint8_t)(op->dir % FO_FOLDERS + 1);
    }
}

static void choose_content(struct worker *w, struct fo_op *op)
{
    static const enum fo_kind kinds[] = {FO_READ, FO_READ, FO_READ, FO_READ, FO_WRITE, FO_WRITE, FO_WRITE, FO_TRUNCATE, FO_FSTAT, FO_FSTAT};
    op->kind = kinds[any(w, sizeof kinds / sizeof *kinds)];
    if (op->kind == FO_WRITE && op->fd == FO_FDS - 1)
        op->kind = FO_APPEND;
    op->first = op->kind == FO_WRITE || op->kind == FO_READ ? (uint8_t)any(w, FO_CELLS - 1) : 0;
    op->n = op->kind == FO_TRUNCATE ? (uint8_t)any(w, FO_CELLS) : (uint8_t)(1 + any(w, op->kind == FO_READ ? FO_CELLS - op->first : op->kind == FO_WRITE ? 2 : 1));
    if (op->kind == FO_READ && any(w, 2))
        op->first = 0, op->n = FO_CELLS;
    if (w->cell % SECTOR == 0 && (op->kind == FO_READ || op->kind == FO_WRITE)) /* whole sectors are each an operation of its own, when they are inside the length */
        op->first = (uint8_t)any(w, FO_CELLS), op->n = 1;
    if (op->kind == FO_WRITE || op->kind == FO_APPEND)
        op->tag = w->next_tag++;
}

static void choose(struct worker *w, struct fo_op *op)
{
    *op = (struct fo_op){.fd = (uint8_t)any(w, FO_FDS)};
    if (any(w, 10) < (w->names ? 6 : 3)) {
        op->fd = 0;
        choose_path(w, op);
    } else if (w->fd[op->fd] < 0) {
        op->kind = FO_OPEN;
        op->dir = any(w, 3) ? 0 : (uint8_t)(1 + any(w, FO_FOLDERS));
        op->name = any(w, 3) ? 0 : (uint8_t)any(w, FO_NAMES); /* most meet at one */
        op->create = any(w, 4) > 0;
        op->exclusive = op->create && any(w, 4) == 0;
        op->cut = any(w, 6) == 0;
    } else if (w->names || any(w, 12) == 0) {
        op->kind = FO_CLOSE;
    } else {
        choose_content(w, op);
    }
}

/* ---- rounds ---- */
static void work(struct worker *w)
{
    struct fo_op op;
    while (w->log->n < EACH && !stop && now_ns() < w->end_ns && !w->log->broken) {
        choose(w, &op);
        run_op(w, &op);
    }
    for (op = (struct fo_op){.kind = FO_CLOSE}; op.fd < FO_FDS; op.fd++)
        if (w->fd[op.fd] >= 0) {
            struct fo_op one = op;
            run_op(w, &one);
        }
}

/* Nobody else works any more: every host shows the same, and it is what the order ends in. */
static void look_at_all(struct worker *w)
{
    for (uint8_t d = 0; d <= FO_FOLDERS; d++) {
        struct fo_op l = {.kind = FO_LIST, .dir = d};
        run_op(w, &l);
        for (uint8_t n = 0; n < FO_NAMES; n++) {
            struct fo_op s = {.kind = FO_STAT, .dir = d, .name = n}, o = {.kind = FO_OPEN, .dir = d, .name = n}, r = {.kind = FO_READ, .n = FO_CELLS}, c = {.kind = FO_CLOSE};
            run_op(w, &s);
            run_op(w, &o);
            if (o.err)
                continue;
            run_op(w, &r);
            run_op(w, &c);
        }
    }
}

static enum fo_kind what_to_lie_about(void)
{
    const char *t = getenv("FS_HISTORY_LIE");
    return !t ? FO_KINDS : strcmp(t, "fstat") == 0 ? FO_FSTAT : strcmp(t, "read") == 0 ? FO_READ : strcmp(t, "list") == 0 ? FO_LIST : FO_STAT;
}

static void show(const struct fo_op *ops, size_t n, const struct fo_found *f)
{
    char text[512];
    fprintf(stderr, "fs_history: no order of the operations explains what the last of these answered:\n");
    for (size_t i = f->at < SHOWN ? 0 : f->at - SHOWN; i <= f->at; i++) {
        fo_print(&ops[i], text, sizeof text);
        fprintf(stderr, "%s\n", text);
    }
    for (size_t i = f->at + 1; i < n; i++)
        if (ops[i].start_ns <= ops[f->at].end_ns) {
            fo_print(&ops[i], text, sizeof text);
            fprintf(stderr, "%s (returned later)\n", text);
        }
}

struct totals {
    size_t ops, crossing, states, rounds, unknown; /* unknown: rounds of which too many orders are possible to look at all */
};

static bool judge(struct log *logs, struct totals *t)
{
    static struct fo_op all[FO_PROCS * (EACH + AFTER)];
    struct fo_found f;
    size_t n = 0;
    for (int p = 0; p < FO_PROCS; p++) {
        memcpy(all + n, logs[p].ops, logs[p].n * sizeof *all);
        n += logs[p].n;
        if (logs[p].broken)
            return false;
    }
    int r = fo_check(all, n, &f);
    if (r < 0 && !f.too_many)
        show(all, n, &f);
    t->unknown += f.too_many;
    t->ops += f.too_many ? 0 : n;
    t->crossing += f.too_many ? 0 : f.crossing;
    t->states = f.states > t->states ? f.states : t->states;
    t->rounds++;
    return r == 0 || f.too_many;
}

static void run_round(struct worker *w, struct log *logs, char **dirs, int n_dirs, size_t round, uint64_t end_ns, uint64_t *rng)
{
    static const size_t cells[] = {512, 700, 1000, 100};
    char path[HOSTS_MAX][4096];
    pid_t pid[FO_PROCS];
    for (int i = 0; i < n_dirs; i++)
        snprintf(path[i], sizeof path[i], "%s/round%zu", dirs[i], round);
    if (mkdir(path[0], 0700) < 0) {
        perror(path[0]);
        exit(1);
    }
    memset(logs, 0, FO_PROCS * sizeof *logs);
    size_t cell = cells[test_rand(rng) % (sizeof cells / sizeof *cells)];
    for (int p = 0; p < FO_PROCS; p++) {
        *w = (struct worker){.dir = path[p % n_dirs], .log = &logs[p], .rng = test_rand(rng), .end_ns = end_ns, .cell = cell, .proc = (uint8_t)p, .host = (uint8_t)(p % n_dirs),
                             .next_tag = (uint16_t)(1 + p * 10000), .fd = {-1, -1}, .lie = what_to_lie_about(), .names = getenv("FS_HISTORY_NAMES") != NULL};
        pid[p] = fork();
        if (pid[p] == 0) {
            work(w);
            _exit(0);
        }
    }
    for (int p = 0; p < FO_PROCS; p++)
        if (pid[p] < 0 || waitpid(pid[p], NULL, 0) != pid[p])
            exit(1);
    for (int i = 0; i < n_dirs; i++) {
        *w = (struct worker){.dir = path[i], .log = &logs[0], .cell = cell, .host = (uint8_t)i, .fd = {-1, -1}, .last_ns = now_ns(), .lie = FO_KINDS};
        look_at_all(w);
    }
}

/* What a round left: few names, known ones. */
static void sweep(const char *dir, size_t round)
{
    char path[4096 + 64];
    for (int d = FO_FOLDERS; d >= 0; d--) {
        char folder[16] = "";
        if (d)
            snprintf(folder, sizeof folder, "/d%d", d);
        for (int n = 0; n < FO_NAMES; n++) {
            snprintf(path, sizeof path, "%s/round%zu%s/f%d", dir, round, folder, n);
            unlink(path);
        }
        snprintf(path, sizeof path, "%s/round%zu%s", dir, round, folder);
        rmdir(path);
    }
}

int main(int argc, char **argv)
{
    char **dirs = argv + 2;
    int n_dirs = argc - 2 > HOSTS_MAX ? HOSTS_MAX : argc - 2;
    if (n_dirs < 2) {
        fprintf(stderr, "usage: fs_history SECONDS DIR DIR...\n");
        return 2;
    }
    signal(SIGTERM, on_term);
    uint64_t rng = test_seed(), end = now_ns() + (uint64_t)(strtod(argv[1], NULL) * 1e9);
    struct log *logs = mmap(NULL, FO_PROCS * sizeof *logs, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    struct worker *w = malloc(sizeof *w);
    struct totals t = {0};
    if (logs == MAP_FAILED || !w)
        return 1;
    do {
        run_round(w, logs, dirs, n_dirs, t.rounds, end, &rng);
        if (!judge(logs, &t)) {
            printf("round %zu: wrong\n", t.rounds);
            return 1;
        }
        sweep(dirs[0], t.rounds - 1);
    } while (!stop && now_ns() < end);
    free(w);
    printf("%zu operations in %zu rounds, %zu met one of another host, at most %zu states at once: one order explains all", t.ops, t.rounds - t.unknown, t.crossing, t.states);
    if (t.unknown)
        printf("; %zu rounds have too many orders to be judged", t.unknown);
    printf("\n");
    if (!t.crossing)
        fprintf(stderr, "fs_history: no two hosts worked at the same time, or nothing could be judged\n");
    return t.crossing ? 0 : 1;
}
