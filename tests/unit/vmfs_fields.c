/* Field after field of every kind of metadata is given every kind of wrong value, with checksums put right. Nobody crashes or runs for ever; and what a
 * lie cannot do unseen: when a check finds nothing, every disk and snapshot still reads as it was written, never as another one, and still does when
 * the volume has been written to.
 * timeout: 300
 *
 * Each case is a process of its own on copies of the devices in memory. A run takes a sample; GRANARY_CASES=0 takes all (a soak). A failure names
 * its case: GRANARY_CASE="VOLUME BLOCK FIELD VALUE TWIN" repeats it, GRANARY_TELL=1 lists what was believed without harm. */
#include "common/cleanup.h"
#include "snapshot/snapshot.h"
#include "tests/lib/lies.h"
#include "tests/lib/test.h"
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define MIB (1ull << 20)
#define SECONDS 30u
#define PIECES 4096u /* of a disk: 16 MiB */
#define DISKS 6u
#define SNAPS 4u
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SAMPLE 20u /* what a check finds is the same where a sanitizer watches */
#else
#define SAMPLE 60u
#endif

enum volume { IN_ORDER, WITH_JOURNAL, WITH_CRC, LEAVING_DEVICE, N_VOLUMES };
static const char *const volume_names[] = {"left in order", "with a journal", "with data CRCs", "with a device that leaves"};

/* ---- what is on it ---- */
struct tree {
    const char *name; /* of the snapshot; NULL: live */
    uint16_t version[PIECES]; /* 0: zeros */
};
struct disk {
    const char *path;
    struct tree live, snap[SNAPS];
    unsigned n_snaps, n_bookmarks;
};
struct truth {
    struct disk disk[DISKS];
    unsigned n;
    uint16_t next;
};
struct stamp { /* begins each piece; the rest repeats its number */
    uint64_t magic;
    uint32_t disk, piece, version, reserved;
};
#define STAMP 0x7472757468206f66ull

static void stamp(uint8_t *b, unsigned disk, uint32_t piece, uint16_t version)
{
    struct stamp s = {STAMP, disk, piece, version, 0};
    memset(b, version & 0xff, VMFS_PIECE);
    memcpy(b, &s, sizeof s);
}

static void quiet(void *arg, const char *text)
{
    (void)arg;
    if (getenv("GRANARY_LINES"))
        fprintf(stderr, "    %s\n", text);
}

static const uint8_t secret[32] = "the key of this test";
static int kek(void *arg, uint64_t id, uint8_t ret[32])
{
    (void)arg;
    memcpy(ret, secret, 32);
    return id == vmfs_kek_id(secret) ? 0 : -ENOKEY;
}

struct host {
    struct gr_bdev *dev[LIES_DEVICES];
    unsigned n;
    struct vmfs *v;
};

static int try_join(struct host *h, const struct lies_image *m, unsigned n, const char *name, struct gr_err *err)
{
    struct vmfs_join_opts o = {.role = VMFS_HOST, .host_name = name, .warn = quiet, .kek = kek};
    memset(o.host_uuid, name[0], sizeof o.host_uuid);
    *h = (struct host){.n = n};
    for (unsigned i = 0; i < n; i++)
        assert_int_equal(gr_bdev_mem_open(gr_fiber_loop(), m->mem[i], &h->dev[i]), 0);
    return vmfs_join(gr_fiber_loop(), h->dev, n, &o, &h->v, err);
}

static void devices_put(struct host *h)
{
    for (unsigned i = 0; i < h->n; i++)
        gr_bdev_put(h->dev[i]);
}

static struct disk *add_disk(struct truth *t, const char *path)
{
    struct disk *d = &t->disk[t->n++];
    d->path = path;
    return d;
}

/* Runs of 1 to 16 pieces at places of the disk that depend on @seed. */
static void put_some(struct truth *t, struct disk *d, struct vmfs_disk *vd, unsigned n, uint64_t seed)
{
    struct gr_chan *ch;
    gr_auto_free uint8_t *b = gr_alloc_aligned(4096, 16 * VMFS_PIECE);
    assert_int_equal(gr_chan_open(vmfs_bdev(vd), gr_fiber_loop(), &ch), 0);
    while (n--) {
        uint32_t len = test_rand(&seed) % 3 ? 1 : 1 + (uint32_t)(test_rand(&seed) % 16);
        uint32_t at = (uint32_t)(test_rand(&seed) % (PIECES - 16)) & (test_rand(&seed) % 2 ? ~15u : ~0u);
        t->next++;
        for (uint32_t i = 0; i < len; i++) {
            stamp(b + i * VMFS_PIECE, (unsigned)(d - t->disk), at + i, t->next);
            d->live.version[at + i] = t->next;
        }
        assert_int_equal(gr_pwrite(ch, b, len * VMFS_PIECE, at * (uint64_t)VMFS_PIECE, 0), 0);
    }
    assert_int_equal(gr_flush(ch), 0);
    gr_chan_close(ch);
}

static void take_snap(struct disk *d, struct vmfs_disk *vd, const char *name)
{
    OK(snap_create(&vd, 1, name, &err));
    d->snap[d->n_snaps] = d->live;
    d->snap[d->n_snaps++].name = name;
}

static void clone_to(struct truth *t, struct disk *d, struct vmfs_disk *vd, unsigned snap, const char *path)
{
    OK(snap_clone(vd, d->snap[snap].name, path, &err));
    struct disk *c = add_disk(t, path);
    c->live = d->snap[snap];
    c->live.name = NULL;
}

/* The stamps of a clone's pieces are its origin's. */
static bool may_be(const struct truth *t, unsigned disk, uint32_t says)
{
    return says == disk || (strcmp(t->disk[disk].path, "f/copy") == 0 && says < DISKS && strcmp(t->disk[says].path, "a/b/disk") == 0);
}

static void work(struct vmfs *v, struct truth *t)
{
    struct vmfs_disk *vd;
    struct disk *d = add_disk(t, "a/b/disk");
    OK(vmfs_create(v, d->path, VMFS_DISK, PIECES * VMFS_PIECE, VMFS_THIN, &err));
    OK(vmfs_quota_set(v, "a", 64 * MIB, &err));
    OK(vmfs_open(v, d->path, &vd, NULL, &err));
    put_some(t, d, vd, 60, 1);
    take_snap(d, vd, "one");
    put_some(t, d, vd, 40, 2);
    OK(snap_bookmark(vd, "one", "mark", &err));
    d->n_bookmarks++;
    take_snap(d, vd, "two");
    put_some(t, d, vd, 20, 3);
    OK(snap_protect(vd, "one", "somebody", "for a reason", &err));
    clone_to(t, d, vd, 0, "f/copy");
    OK(snap_create(&vd, 1, "passing", &err));
    put_some(t, d, vd, 20, 4);
    OK(snap_delete(vd, "passing", false, &err));
    OK(snap_settle(vd, &err));
    vmfs_close(vd);
    d = &t->disk[1];
    OK(vmfs_open(v, d->path, &vd, NULL, &err));
    put_some(t, d, vd, 20, 5);
    take_snap(d, vd, "own");
    vmfs_close(vd);
    d = add_disk(t, "thick");
    OK(vmfs_create(v, d->path, VMFS_DISK, PIECES * VMFS_PIECE / 16, VMFS_THICK, &err));
    d = add_disk(t, "secret");
    OK(vmfs_create_encrypted(v, d->path, PIECES * VMFS_PIECE, VMFS_THIN, 4096, vmfs_kek_id(secret), &err));
    OK(vmfs_open(v, d->path, &vd, NULL, &err));
    put_some(t, d, vd, 20, 6);
    take_snap(d, vd, "sealed");
    put_some(t, d, vd, 10, 7);
    vmfs_close(vd);
    OK(vmfs_file_write(v, "a/note", NULL, "some text", 9, &err));
    for (int i = 0; i < 130; i++) {
        gr_auto_free char *name = gr_asprintf("many/a-longer-name-of-a-folder-%d", i);
        OK(vmfs_mkdir(v, name, false, &err));
    }
}

/* A second host, which frees what the first one allocated, and leaves while the first one has those regions. */
static void second_host(struct lies_image *m, struct vmfs *first, struct truth *t)
{
    struct host h;
    struct vmfs_disk *vd;
    struct disk gone = {.path = "gone"};
    OK(vmfs_create(first, gone.path, VMFS_DISK, PIECES * VMFS_PIECE, VMFS_THIN, &err));
    OK(vmfs_open(first, gone.path, &vd, NULL, &err));
    put_some(t, &gone, vd, 40, 8);
    vmfs_close(vd);
    OK(vmfs_release(first, gone.path, &err));
    OK(try_join(&h, m, m->n_dev, "second", &err));
    struct disk *d = add_disk(t, "of-the-second");
    OK(vmfs_create(h.v, d->path, VMFS_DISK, PIECES * VMFS_PIECE, VMFS_THIN, &err));
    OK(vmfs_open(h.v, d->path, &vd, NULL, &err));
    put_some(t, d, vd, 30, 9);
    take_snap(d, vd, "far");
    put_some(t, d, vd, 20, 10);
    vmfs_close(vd);
    OK(vmfs_remove(h.v, gone.path, &err));
    OK(vmfs_settle(h.v, 5000));
    OK(vmfs_leave(h.v, &err));
    devices_put(&h);
}

/* Data on all devices, most of which is removed again so that what is on one has room on the others. */
static void fill(struct vmfs *v)
{
    gr_auto_free uint8_t *b = gr_alloc_aligned(4096, MIB);
    memset(b, 0xdd, MIB);
    v->sp.stay++; /* regions that are leased stay so: they would be taken in another order */
    for (unsigned i = 0; i < 2; i++) {
        struct vmfs_disk *vd;
        struct gr_chan *ch;
        const char *path = i ? "filler" : "short-lived";
        OK(vmfs_create(v, path, VMFS_DISK, 64 * MIB, VMFS_THIN, &err));
        OK(vmfs_open(v, path, &vd, NULL, &err));
        assert_int_equal(gr_chan_open(vmfs_bdev(vd), gr_fiber_loop(), &ch), 0);
        for (uint64_t off = 0; off < (i ? 16 : 48) * MIB && gr_pwrite(ch, b, MIB, off, 0) == 0; off += MIB)
            ;
        gr_chan_close(ch);
        vmfs_close(vd);
    }
    OK(vmfs_remove(v, "short-lived", &err));
    OK(vmfs_settle(v, 5000));
}

static int stop_soon(void *arg, uint64_t done, uint64_t all, struct gr_err *err)
{
    (void)arg;
    return done > all / 3 && done ? gr_fail(err, -ECANCELED, "enough") : 0;
}

struct making {
    struct lies_image *m;
    struct truth *t;
    enum volume kind;
};

static int make(void *arg)
{
    const struct making *k = arg;
    struct vmfs_format_opts f = {.name = "ds", .data_crc = k->kind == WITH_CRC};
    struct gr_bdev *dev[2], *late;
    struct host h;
    struct vmfs_device_add add = {0};
    for (unsigned i = 0; i < 2; i++)
        assert_int_equal(gr_bdev_mem_open(gr_fiber_loop(), k->m->mem[i], &dev[i]), 0);
    OK(vmfs_format(gr_fiber_loop(), dev, 2, &f, &err));
    for (unsigned i = 0; i < 2; i++)
        gr_bdev_put(dev[i]);
    OK(try_join(&h, k->m, 2, "first", &err));
    assert_int_equal(gr_bdev_mem_open(gr_fiber_loop(), k->m->mem[2], &late), 0);
    OK(vmfs_device_add(h.v, late, &add, &err));
    work(h.v, k->t);
    second_host(k->m, h.v, k->t);
    if (k->kind == LEAVING_DEVICE) {
        fill(h.v);
        struct vmfs_device_remove r = {.progress = stop_soon, .step = MIB / 4};
        assert_int_equal(vmfs_device_remove(h.v, 2, &r, NULL), -ECANCELED);
    }
    if (k->kind == WITH_JOURNAL)
        vmfs_abandon(h.v);
    else
        OK(vmfs_leave(h.v, &err));
    devices_put(&h);
    gr_bdev_put(late);
    return 0;
}

/* ---- lies ---- */
#define VALUES 14u
static uint64_t value_of(const struct lies_image *m, unsigned i, uint64_t now, uint64_t seed)
{
    const struct lies_block *any = &m->at[seed % m->n];
    switch (i) {
    case 0: return now ? 0 : 1;
    case 1: return now + 1;
    case 2: return now - 1;
    case 3: return ~0ull;
    case 4: return now << 1;
    case 5: return vmfs_addr(any->dev, any->unit);      /* metadata of somebody */
    case 6: return now + 16;                            /* somebody's data, when this is data */
    case 7: return m->units[0] - 1;
    case 8: return vmfs_addr(31, 64);
    case 9: return 0x80000000u;
    case 10: return now ^ 1ull << 16;
    case 11: return now ^ 1ull << seed % 64;
    case 12: return VMFS_UNIT;
    default: return seed;
    }
}

struct lie {
    unsigned block, field, value;
    bool twin;
    uint64_t seed;
};

/* False: it would change nothing, or there is no such field. */
static bool apply(const struct lies_image *m, const struct lie *l, struct lies_field *ret)
{
    const struct lies_block *at = &m->at[l->block];
    uint8_t *b = lies_load(m, at);
    uint64_t now = 0, then;
    bool any = lies_field(at, b, l->field, ret);
    if (any) {
        memcpy(&now, b + ret->off, ret->size);
        then = value_of(m, l->value, now, l->seed);
        any = memcmp(b + ret->off, &then, ret->size) != 0;
        memcpy(b + ret->off, &then, ret->size);
    }
    if (any)
        lies_store(m, at, b, l->twin);
    free(b);
    return any;
}

/* ---- whoever comes then ---- */
enum verdict { FINE = 0, REFUSED = 10, FOUND = 11, MISSED = 12, WRONG = 20, GONE = 21, WRONG_LATER = 22, BROKEN_LATER = 23, SWAPPED = 24 };
struct using {
    const struct lies_image *m;
    const struct truth *t;
    bool old;   /* what the journal knew may be missing: older content is right, too */
    bool empty; /* a map that calls data zeros says nothing that could not be so: zeros are right, too */
    bool named; /* a name may be another one */
    enum verdict verdict;
};

/* Right, or an error. */
static enum verdict look(const struct using *u, unsigned disk, const struct tree *tree, struct gr_bdev *bdev)
{
    struct gr_chan *ch;
    gr_auto_free uint8_t *b = gr_alloc_aligned(4096, 64 * VMFS_PIECE);
    enum verdict verdict = FINE;
    struct gr_geometry g;
    if (gr_bdev_geometry(bdev, &g) < 0 || gr_chan_open(bdev, gr_fiber_loop(), &ch) < 0)
        return FINE;
    for (uint32_t at = 0; at < PIECES && verdict == FINE && (at + 64ull) * VMFS_PIECE <= g.size; at += 64) {
        if (gr_pread(ch, b, 64 * VMFS_PIECE, at * (uint64_t)VMFS_PIECE) < 0)
            continue;
        for (uint32_t i = 0; i < 64 && verdict == FINE; i++) {
            struct stamp s;
            memcpy(&s, b + i * VMFS_PIECE, sizeof s);
            bool zero = s.magic == 0 && memcmp(b + i * VMFS_PIECE, b + i * VMFS_PIECE + 8, VMFS_PIECE - 8) == 0;
            uint16_t is = zero ? 0 : (uint16_t)s.version;
            if (!zero && (s.magic != STAMP || !may_be(u->t, disk, s.disk) || s.piece != at + i))
                verdict = SWAPPED;
            else if (is != tree->version[at + i] && !(u->old && is <= tree->version[at + i]) && !(u->empty && zero))
                verdict = WRONG;
        }
    }
    gr_chan_close(ch);
    return verdict;
}

static enum verdict worst(enum verdict a, enum verdict b) { return a > b ? a : b; }

static int count_name(void *arg, const char *name, const struct vmfs_stat *st)
{
    (void)name, (void)st;
    ++*(unsigned *)arg;
    return 0;
}

static int count_snap(void *arg, const struct snap_info *info)
{
    (void)info;
    ++*(unsigned *)arg;
    return 0;
}

/* Names are anybody's choice, but there are as many. */
static enum verdict look_for_names(struct using *u, struct vmfs *v)
{
    static const struct {
        const char *dir;
        unsigned n;
    } dirs[] = {{"", 6}, {"a", 2}, {"a/b", 1}, {"f", 1}, {"many", 130}};
    for (unsigned i = 0; i < GR_ARRAY_LEN(dirs); i++) {
        unsigned n = 0;
        int r = vmfs_readdir(v, dirs[i].dir, count_name, &n, NULL);
        if ((r == 0 && n < dirs[i].n) || (r == -ENOENT && !u->named))
            return GONE;
    }
    return FINE;
}

static enum verdict look_all(struct using *u, struct vmfs *v)
{
    enum verdict verdict = u->old ? FINE : look_for_names(u, v);
    for (unsigned i = 0; i < u->t->n; i++) {
        const struct disk *d = &u->t->disk[i];
        struct vmfs_disk *vd;
        struct gr_bdev *s;
        int r = vmfs_open(v, d->path, &vd, NULL, NULL);
        unsigned n = 0;
        if (r == -ENOENT)
            verdict = worst(verdict, u->old || u->named ? FINE : GONE);
        if (r < 0)
            continue;
        if (snap_list(vd, count_snap, &n, NULL) == 0 && n != d->n_snaps + d->n_bookmarks)
            verdict = worst(verdict, u->old ? FINE : GONE);
        verdict = worst(verdict, look(u, i, &d->live, vmfs_bdev(vd)));
        for (unsigned k = 0; k < d->n_snaps; k++) {
            r = snap_open(vd, d->snap[k].name, &s, NULL);
            if (r == -ENOENT)
                verdict = worst(verdict, u->old || u->named ? FINE : GONE);
            if (r < 0)
                continue;
            verdict = worst(verdict, look(u, i, &d->snap[k], s));
            gr_bdev_put(s);
        }
        vmfs_close(vd);
    }
    return verdict;
}

static int count(void *arg, uint64_t off, uint64_t len, bool zero)
{
    (void)off, (void)zero;
    *(uint64_t *)arg += len;
    return 0;
}

/* What comes and goes beside the disks that are looked at must leave them alone. */
static void change(struct vmfs *v)
{
    struct vmfs_disk *vd;
    struct gr_chan *ch;
    uint64_t n = 0;
    gr_auto_free uint8_t *b = gr_zalloc(65536);
    if (vmfs_create(v, "new/one", VMFS_DISK, 32 * MIB, VMFS_THIN, NULL) == 0 && vmfs_open(v, "new/one", &vd, NULL, NULL) == 0) {
        memset(b, 0xee, 65536);
        if (gr_chan_open(vmfs_bdev(vd), gr_fiber_loop(), &ch) == 0) {
            for (uint64_t off = 0; off < 8 * MIB; off += 65536)
                (void)gr_pwrite(ch, b, 65536, off, 0);
            (void)snap_create(&vd, 1, "late", NULL);
            for (uint64_t off = 0; off < 8 * MIB; off += 131072)
                (void)gr_pwrite(ch, b, 4096, off, 0);
            (void)gr_flush(ch);
            gr_chan_close(ch);
        }
        vmfs_close(vd);
    }
    if (vmfs_open(v, "a/b/disk", &vd, NULL, NULL) == 0) {
        (void)snap_diff(vd, "one", NULL, count, &n, NULL);
        (void)snap_diff(vd, "mark", "two", count, &n, NULL);
        if (gr_chan_open(vmfs_bdev(vd), gr_fiber_loop(), &ch) == 0) { /* shows in no snapshot and no clone; put back below */
            gr_auto_free uint8_t *was = gr_alloc_aligned(4096, 65536);
            for (uint64_t off = 0; off < PIECES * (uint64_t)VMFS_PIECE; off += 16 * 65536)
                if (gr_pread(ch, was, 65536, off) == 0) {
                    (void)gr_pwrite(ch, b, 65536, off, 0);
                    (void)gr_pwrite(ch, was, 65536, off, 0);
                }
            (void)gr_flush(ch);
            gr_chan_close(ch);
        }
        vmfs_close(vd);
    }
    (void)vmfs_remove(v, "new/one", NULL);
    (void)vmfs_mkdir(v, "a/new/two", true, NULL);
    (void)vmfs_checkpoint(v, NULL);
    (void)vmfs_settle(v, 1000);
}

static int use(void *arg)
{
    struct using *u = arg;
    struct host h;
    struct vmfs_check_report rep;
    struct gr_err err = {0};
    if (try_join(&h, u->m, u->m->n_dev, "third", &err) < 0) {
        if (getenv("GRANARY_LINES"))
            fprintf(stderr, "    join: %s\n", err.text);
        devices_put(&h);
        u->verdict = REFUSED;
        return 0;
    }
    bool sound = vmfs_check(h.v, quiet, NULL, &rep, NULL) == 0;
    enum verdict now = look_all(u, h.v);
    change(h.v);
    enum verdict later = look_all(u, h.v);
    bool still = vmfs_check(h.v, quiet, NULL, &rep, NULL) == 0;
    struct vmfs_info info;
    vmfs_info(h.v, &info);
    if (!sound)
        u->verdict = FOUND;
    else if (now != FINE)
        u->verdict = now;
    else if (later != FINE && !info.fenced)
        u->verdict = WRONG_LATER;
    else
        u->verdict = !still && !info.fenced ? BROKEN_LATER : MISSED;
    if (!sound) {
        (void)vmfs_repair(h.v, quiet, NULL, &rep, NULL);
        (void)look_all(u, h.v);
    }
    vmfs_leave(h.v, NULL);
    devices_put(&h);
    return 0;
}

static int case_child(const struct lies_image *m, const struct truth *t, const struct lie *l)
{
    struct lies_field f;
    struct gr_loop *loop;
    const struct gr_loop_opts o = {.engine = GR_ENGINE_SYNC};
    struct using u = {.m = m, .t = t};
    if (!apply(m, l, &f))
        return 99;
    alarm(SECONDS);
    /* What a host's own journal and slot say is all there is to know what was done last. */
    u.old = m->at[l->block].type == VMFS_T_FRAME || m->at[l->block].type == VMFS_T_SLOT;
    u.empty = m->at[l->block].type == VMFS_T_LEAF;
    u.named = !f.name && (m->at[l->block].type == VMFS_T_INODE || m->at[l->block].type == VMFS_T_BLOB);
    if (gr_loop_new(&o, &loop, NULL) < 0)
        return 98;
    (void)gr_fiber_run(loop, use, &u);
    gr_loop_free(loop);
    return (int)u.verdict;
}

struct tally {
    unsigned n[64], all;
};

static void one(const struct lies_image *m, const struct truth *t, enum volume kind, const struct lie *l, struct tally *tally)
{
    static const char *const names[] = {"", "super", "slot", "aux", "region", "bitmap", "inode", "node", "leaf", "blob", "frame", "alarm", "keys"};
    int status = 0;
    struct lies_field f = {0};
    uint8_t *b = lies_load(m, &m->at[l->block]);
    bool any = lies_field(&m->at[l->block], b, l->field, &f);
    free(b);
    if (!any)
        return;
    fflush(NULL);
    int pid = fork();
    if (pid == 0)
        _exit(case_child(m, t, l));
    assert_int_equal(waitpid(pid, &status, 0), pid);
    int code = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
    if (code == 99)
        return;
    tally->all++;
    const char *what = code == WRONG ? "the check finds nothing, but something else is read" : code == SWAPPED ? "the check finds nothing, but bytes of another place are read" :
                       code == GONE ? "the check finds nothing, but something is gone" : code == WRONG_LATER ? "the check finds nothing, but writing elsewhere changed something" :
                       code == BROKEN_LATER ? "the check finds nothing, and later does" : code == -SIGALRM ? "it runs for ever" : code < 0 || code > 30 ? "it crashed" : NULL;
    if (what || (code == MISSED && getenv("GRANARY_TELL")))
        print_message("%s %s, device %u unit %llu, %s at %u (%u bytes), value %u%s: %s (GRANARY_CASE=\"%u %u %u %u %d\" GRANARY_SEED=%llu)\n", volume_names[kind],
                      names[m->at[l->block].type], m->at[l->block].dev, (unsigned long long)m->at[l->block].unit, f.name ? f.name : "a word", f.off, f.size,
                      l->value, l->twin ? "" : ", one copy", what ? what : "believed", kind, l->block, l->field, l->value, l->twin, (unsigned long long)l->seed);
    if (code >= 0)
        tally->n[code]++;
    tally->n[63] += what != NULL;
}

static void build(struct lies_image *m, struct truth *t, enum volume kind)
{
    struct gr_loop *loop;
    const struct gr_loop_opts o = {.engine = GR_ENGINE_SYNC};
    struct making k = {m, t, kind};
    m->n_dev = LIES_DEVICES;
    for (unsigned i = 0; i < m->n_dev; i++) {
        m->units[i] = (i ? 32 : 40) * MIB / VMFS_UNIT;
        m->mem[i] = gr_mem_new(m->units[i] * VMFS_UNIT);
    }
    assert_int_equal(gr_loop_new(&o, &loop, NULL), 0);
    assert_int_equal(gr_fiber_run(loop, make, &k), 0);
    gr_loop_free(loop);
    lies_find(m);
}

/* All fields of some blocks of each kind: the first ones, in the order of their places, and others. */
static void all_of(const struct lies_image *m, const struct truth *t, enum volume kind, struct tally *tally)
{
    unsigned seen[16] = {0};
    for (unsigned b = 0; b < m->n; b++) {
        unsigned type = m->at[b].type;
        if (m->at[b].twin >= 0 && (unsigned)m->at[b].twin < b)
            continue;
        if (seen[type]++ >= 12 && seen[type] % 16)
            continue;
        uint8_t *bytes = lies_load(m, &m->at[b]);
        struct lies_field f;
        for (unsigned i = 0; lies_field(&m->at[b], bytes, i, &f); i++)
            for (unsigned v = 0; v < VALUES; v++)
                one(m, t, kind, &(struct lie){b, i, v, true, 0x9e3779b97f4a7c15ull * (i + 1)}, tally);
        free(bytes);
    }
}

static void sample(const struct lies_image *m, const struct truth *t, enum volume kind, unsigned n, struct tally *tally)
{
    uint64_t rng = test_seed() + kind;
    unsigned of[16][256], n_of[16] = {0}, types[16], n_types = 0;
    for (unsigned b = 0; b < m->n; b++)
        if (m->at[b].type < 16 && n_of[m->at[b].type] < 256)
            of[m->at[b].type][n_of[m->at[b].type]++] = b;
    for (unsigned i = 0; i < 16; i++)
        if (n_of[i])
            types[n_types++] = i;
    for (unsigned tries = 0; tally->all < n && tries < 100 * n; tries++) {
        unsigned type = types[test_rand(&rng) % n_types], block = of[type][test_rand(&rng) % n_of[type]], fields = 0;
        struct lies_field f;
        uint8_t *b = lies_load(m, &m->at[block]);
        while (lies_field(&m->at[block], b, fields, &f))
            fields++;
        free(b);
        one(m, t, kind, &(struct lie){block, (unsigned)(test_rand(&rng) % fields), (unsigned)(test_rand(&rng) % VALUES), test_rand(&rng) % 8 != 0, test_rand(&rng)}, tally);
    }
}

static void lies(enum volume kind)
{
    struct lies_image *m = gr_zalloc(sizeof *m);
    struct truth *t = gr_zalloc(sizeof *t);
    struct tally tally = {0};
    const char *only = getenv("GRANARY_CASE"), *n = getenv("GRANARY_CASES");
    unsigned k;
    struct lie l = {0};
    int twin;
    if (only && (sscanf(only, "%u %u %u %u %d", &k, &l.block, &l.field, &l.value, &twin) != 5 || k != kind))
        skip();
    build(m, t, kind);
    for (unsigned type = VMFS_T_SUPER; type <= VMFS_T_KEYS; type++) /* a block of each kind is there to lie; alarms are on logical units only */
        if (type != VMFS_T_ALARM && (type != VMFS_T_FRAME || kind == WITH_JOURNAL) && !(m->kinds & 1u << type))
            fail_msg("%s: there is no block of type %u", volume_names[kind], type);
    if (only) {
        l.twin = twin;
        l.seed = test_seed();
        one(m, t, kind, &l, &tally);
    } else if (n && !strcmp(n, "0")) {
        all_of(m, t, kind, &tally);
    } else {
        sample(m, t, kind, n ? (unsigned)strtoul(n, NULL, 10) : SAMPLE, &tally);
    }
    print_message("# %s: %u cases over %u blocks: %u joins refused, %u found by the check, %u believed without harm, %u findings\n", volume_names[kind], tally.all, m->n,
                  tally.n[REFUSED], tally.n[FOUND], tally.n[MISSED], tally.n[63]);
    for (unsigned i = 0; i < m->n_dev; i++)
        gr_mem_free(m->mem[i]);
    free(m);
    free(t);
    assert_int_equal(tally.n[63], 0);
}

static void in_order(void **state) { (void)state; lies(IN_ORDER); }
static void with_journal(void **state) { (void)state; lies(WITH_JOURNAL); }
static void with_crc(void **state) { (void)state; lies(WITH_CRC); }
static void leaving(void **state) { (void)state; lies(LEAVING_DEVICE); }

TEST_MAIN(TEST(in_order), TEST(with_journal), TEST(with_crc), TEST(leaving))
