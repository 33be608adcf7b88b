/* A datastore whose device 0, 1 or 2 is lost for good is opened for reading what is left: whatever is said to be whole is compared with what was
 * written, what is not ends with an error or is right, and no byte of any device changes. Then an empty device takes the place of the lost one.
 * timeout: 180 */
#include "tests/lib/test.h"
#include "common/bdev.h"
#include "common/crc.h"
#include "common/fiber.h"
#include "snapshot/snapshot.h"
#include "vmfs/internal.h"
#include <stdio.h>

#define MIB ((uint64_t)1 << 20)
#define DEVICES 3u
#define DEVICE_BYTES (64 * MIB)
#define DISKS 6u
#define SIZE (24 * MIB) /* of a disk: three leaves */
#define PIECES (SIZE / VMFS_PIECE)
#define TIMES 3u /* what a disk had: at its snapshot, when all went home, at the end */
enum { AT_SNAPSHOT, AT_HOME, AT_END };

struct site {
    struct gr_mem *mem[DEVICES];
    struct gr_bdev *dev[DEVICES];
    struct vmfs *v;
    unsigned one_place; /* 1 + the device on which all lies; 0: on all */
    bool shared; /* logical units with a fence */
    bool older;  /* one journal of each host, on device 1 */
    uint64_t seed, accepted;
    uint32_t (*says)[TIMES][PIECES]; /* of each disk: what is written all over a piece; 0: nothing */
};
struct seen {
    struct site *s;
    bool crashed;
    unsigned lost, whole, damaged, skipped, behind, refused, pieces, errors;
};

static void warn(void *arg, const char *text)
{
    (void)arg;
    print_message("# %s\n", text);
}

static void devices_open(struct site *s)
{
    for (unsigned i = 0; i < DEVICES; i++)
        assert_int_equal((s->shared ? gr_bdev_mem_open_shared : gr_bdev_mem_open)(gr_fiber_loop(), s->mem[i], &s->dev[i]), 0);
}

static void devices_close(struct site *s)
{
    for (unsigned i = 0; i < DEVICES; i++)
        gr_bdev_put(s->dev[i]);
}

static const uint8_t secret[32] = "a key of the rescue tests";
static int kek(void *arg, uint64_t id, uint8_t ret[32])
{
    (void)arg;
    memcpy(ret, secret, 32);
    return id == vmfs_kek_id(secret) ? 0 : -ENOKEY;
}

static int join(struct site *s, const char *name, uint32_t without, bool rescue, struct vmfs **ret, struct gr_err *err)
{
    struct vmfs_join_opts o = { .role = VMFS_HOST, .host_name = name, .address = "", .portal = "", .warn = warn, .kek = kek, .rescue = rescue, .accepted = &s->accepted, .n_accepted = s->accepted != 0 };
    struct gr_bdev *given[DEVICES];
    unsigned n = 0;
    snprintf((char *)o.host_uuid, sizeof o.host_uuid, "%s", name);
    for (unsigned i = DEVICES; i-- > 0;) /* in another order than they have */
        if (!(without >> i & 1))
            given[n++] = s->dev[i];
    return vmfs_join(gr_fiber_loop(), given, n, &o, ret, err);
}

static struct site *make_as(uint64_t seed, bool shared, bool older, bool data_crc)
{
    struct site *s = calloc(1, sizeof *s);
    struct vmfs_format_opts f = { .name = "ds1", .timing = VMFS_TIMING_FAST, .data_crc = data_crc, .features = older ? VMFS_INCOMPAT_KNOWN & ~VMFS_INCOMPAT_MIRRORED : 0 };
    assert_non_null(s);
    s->older = older;
    s->seed = seed;
    s->shared = shared;
    s->says = calloc(DISKS, sizeof *s->says);
    assert_non_null(s->says);
    for (unsigned i = 0; i < DEVICES; i++)
        s->mem[i] = gr_mem_new(DEVICE_BYTES);
    devices_open(s);
    OK(vmfs_format(gr_fiber_loop(), s->dev, DEVICES, &f, &err));
    return s;
}

static struct site *make(uint64_t seed, bool shared, bool older) { return make_as(seed, shared, older, false); }

static void unmake(struct site *s)
{
    devices_close(s);
    for (unsigned i = 0; i < DEVICES; i++)
        gr_mem_free(s->mem[i]);
    free(s->says);
    free(s);
}

static uint32_t bytes_of(const struct site *s)
{
    uint32_t crc = 0;
    for (unsigned i = 0; i < DEVICES; i++)
        for (uint64_t at = 0; at < DEVICE_BYTES; at += 4096) {
            const void *page = gr_mem_page(s->mem[i], at, false);
            crc = page ? gr_crc32c(crc, page, 4096) : crc + 1;
        }
    return crc;
}

/* ---- what there is ---- */
/* New data goes to device @dev. */
static void go_to(struct site *s, unsigned dev)
{
    struct vmfs *v = s->v;
    for (uint32_t i = v->sb.dev[dev].first_region; i < v->sb.dev[dev].first_region + v->sb.dev[dev].regions; i++)
        OK(space_lease(v, i, &err));
    v->sp.frag_left = 0;
    struct vregion *others = NULL, **last = &v->sp.regions;
    while (*last) { /* its regions come before the others */
        struct vregion *r = *last;
        if (vmfs_addr_dev(r->first) == dev) {
            last = &r->next;
            continue;
        }
        *last = r->next;
        r->next = others;
        others = r;
    }
    *last = others;
    v->sp.current = v->sp.regions;
}

static void write_some(struct site *s, struct gr_chan *ch, unsigned disk, unsigned until, unsigned n)
{
    static uint32_t buf[32 * VMFS_PIECE / 4];
    for (unsigned k = 0; k < n; k++) {
        unsigned len = 1 + (unsigned)(test_rand(&s->seed) % 32), at = (unsigned)(k * (PIECES / n) + test_rand(&s->seed) % (PIECES / n - len)); /* once a time: what is behind has the one or the other */
        uint32_t what = (uint32_t)test_rand(&s->seed) | 1;
        for (size_t i = 0; i < len * VMFS_PIECE / 4; i++)
            buf[i] = what;
        OK(gr_pwrite(ch, buf, len * VMFS_PIECE, at * VMFS_PIECE, 0));
        for (unsigned i = 0; i < len; i++)
            for (unsigned t = until; t < TIMES; t++)
                s->says[disk][t][at + i] = what;
    }
}

static void disk_name(unsigned disk, char out[16])
{
    snprintf(out, 16, "%sd%u", disk % 2 ? "f/" : "", disk);
}

/* Each third of the disks has its data on another device. A crash leaves acknowledged, flushed writes in the journal only. */
static void fill(struct site *s, bool crash)
{
    struct vmfs_disk *d[DISKS];
    struct gr_chan *ch[DISKS];
    char name[16];
    OK(join(s, "a", 0, false, &s->v, &err));
    s->v->sp.stay++; /* what is leased stays so */
    for (unsigned i = 0; i < DISKS; i++) {
        disk_name(i, name);
        OK(vmfs_create(s->v, name, VMFS_DISK, SIZE, VMFS_THIN, &err));
        OK(vmfs_open(s->v, name, &d[i], NULL, &err));
        assert_int_equal(gr_chan_open(vmfs_bdev(d[i]), gr_fiber_loop(), &ch[i]), 0);
    }
    for (unsigned time = 0; time < TIMES; time++)
        for (unsigned i = 0; i < DISKS; i++) {
            go_to(s, s->one_place ? s->one_place - 1 : i % DEVICES);
            write_some(s, ch[i], i, time, time == AT_END || s->one_place ? 8 : 40); /* few: or the journal is full, and all of it goes home */
            if (time != AT_END || i + 1 < DISKS) /* the last writes are acknowledged, and nobody flushed them */
                OK(gr_flush(ch[i]));
            if (time == AT_SNAPSHOT)
                OK(snap_create(&d[i], 1, "s", &err));
            if (time < AT_END)
                OK(vmfs_checkpoint(s->v, &err));
        }
    for (unsigned i = 0; i < DISKS; i++) {
        gr_chan_close(ch[i]);
        vmfs_close(d[i]);
    }
    if (crash)
        vmfs_abandon(gr_take(s->v));
    else
        OK(vmfs_leave(gr_take(s->v), &err));
}

/* ---- what is left ---- */
static bool is(const struct site *s, unsigned disk, unsigned time, unsigned piece, const uint32_t *buf)
{
    for (size_t i = 0; i < VMFS_PIECE / 4; i++)
        if (buf[i] != s->says[disk][time][piece])
            return false;
    return true;
}

/* It may show another disk's bytes, so it does not, until that is accepted. */
static void refused_first(struct vmfs_disk *d, struct gr_chan *ch, const struct vmfs_rescued *w)
{
    uint8_t buf[VMFS_PIECE];
    FAILS(-GR_EBEHIND, w->behind ? "journal of host 'a'" : "could not be followed", vmfs_shown(d, &err));
    assert_int_equal(gr_pread(ch, buf, sizeof buf, 0), -GR_EBEHIND);
    OK(vmfs_accept_loss(d, &err));
    OK(vmfs_shown(d, &err));
}

static int look(void *arg, const struct vmfs_rescued *w)
{
    struct seen *k = arg;
    struct site *s = k->s;
    struct vmfs_disk *d;
    struct gr_bdev *b = NULL;
    struct gr_chan *ch;
    static uint32_t buf[VMFS_PIECE / 4];
    unsigned disk = (unsigned)(w->path[strlen(w->path) - 1] - '0'), time = w->snapshot ? AT_SNAPSHOT : AT_END, errors = 0;
    print_message("# %s%s%s: whole %d, skipped %d, behind %s, lost %llu, map %llu\n", w->path, w->snapshot ? "@" : "", w->snapshot ? w->snapshot : "", w->whole, w->skipped, w->behind ? w->behind : "no",
                  (unsigned long long)w->lost_data, (unsigned long long)w->lost_map);
    assert_false(w->unreadable);
    assert_true(w->whole == (!w->lost_data && !w->lost_map && !w->skipped));
    assert_false(w->whole && disk % DEVICES == k->lost);
    assert_true(k->lost < 2 || !w->lost_map);
    assert_true(!w->skipped || (k->crashed && (k->lost == 0 || (k->lost == 1 && !s->older)) && !w->snapshot));
    k->skipped += w->skipped;
    assert_int_equal(w->behind != NULL, s->older && k->lost == 1 && k->crashed && !w->snapshot);
    assert_int_equal(w->refused, w->behind || w->skipped);
    OK(vmfs_open(s->v, w->path, &d, NULL, &err));
    if (w->snapshot)
        OK(snap_open(d, w->snapshot, &b, &err));
    else
        b = gr_bdev_get(vmfs_bdev(d));
    assert_int_equal(gr_chan_open(b, gr_fiber_loop(), &ch), 0);
    if (w->refused)
        refused_first(d, ch, w);
    k->refused += w->refused;
    for (unsigned i = 0; i < PIECES; i++) {
        int r = gr_pread(ch, buf, VMFS_PIECE, i * VMFS_PIECE);
        bool right = r == 0 && (is(s, disk, time, i, buf) || (w->behind && is(s, disk, AT_HOME, i, buf)));
        if (r == 0 && !right && w->skipped) /* what the journal said of it could not be followed */
            right = is(s, disk, AT_HOME, i, buf);
        if (!right && (r != -EIO || w->whole))
            fail_msg("%s, piece %u: %d, %#x", w->path, i, r, buf[0]);
        errors += r < 0;
        k->pieces++;
    }
    k->errors += errors;
    assert_true(w->whole || w->skipped || errors);
    assert_int_equal(gr_pwrite(ch, buf, VMFS_PIECE, 0, 0), -GR_EREADONLY);
    gr_chan_close(ch);
    gr_bdev_put(b);
    if (!w->snapshot)
        FAILS(-GR_EREADONLY, "only be read", snap_create(&d, 1, "new", &err));
    vmfs_close(d);
    k->whole += w->whole;
    k->damaged += !w->whole;
    k->behind += w->behind != NULL;
    return 0;
}

static int look_again(void *arg, const struct vmfs_rescued *w)
{
    unsigned *accepted = arg;
    assert_false(w->refused); /* that it was opened here since is no reason to call it whole */
    assert_false(w->accepted && !w->behind && !w->skipped);
    *accepted += w->accepted;
    return 0;
}

static void rescue(unsigned lost, bool crash, bool shared, bool older)
{
    struct site *s = make(test_seed(), shared, older);
    struct seen k = { .s = s, .lost = lost, .crashed = crash };
    struct vmfs_info info;
    struct vmfs_stats st;
    fill(s, crash);
    if (shared) { /* another nexus, which is not registered */
        devices_close(s);
        devices_open(s);
    }
    uint32_t was = bytes_of(s);
    print_message("# device %u is lost, %s\n", lost, crash ? "the host was killed" : "the host had left");
    OK(join(s, "r", 1u << lost, true, &s->v, &err));
    vmfs_info(s->v, &info);
    assert_true(info.rescue && info.missing == 1u << lost && info.n_missing == 1);
    OK(vmfs_rescued(s->v, look, &k, &err));
    unsigned accepted = 0;
    OK(vmfs_rescued(s->v, look_again, &accepted, &err));
    assert_int_equal(accepted, k.refused);
    vmfs_stats(s->v, &st);
    print_message("# %u whole, %u damaged, %u pieces, %u of them lost; %llu records\n", k.whole, k.damaged, k.pieces, k.errors, (unsigned long long)st.replayed_records);
    assert_int_equal(st.replayed_records > 0, crash && !(lost == 1 && older));
    assert_int_equal(k.whole + k.damaged, 2 * DISKS);
    assert_true(k.whole >= 2 && k.damaged >= 4);
    assert_true(!k.skipped == !(crash && (lost == 0 || (lost == 1 && !older))));
    FAILS(-GR_EREADONLY, "only be read", vmfs_create(s->v, "new", VMFS_DISK, SIZE, VMFS_THIN, &err));
    FAILS(-GR_EREADONLY, "only be read", vmfs_remove(s->v, "d0", &err));
    FAILS(-GR_EREADONLY, "only be read", vmfs_rename(s->v, "d0", "e0", &err));
    OK(vmfs_leave(gr_take(s->v), &err));
    assert_int_equal(bytes_of(s), was);
    /* and all of it is there when the device is */
    FAILS(-EINVAL, "none of its devices is missing", join(s, "r", 0, true, &s->v, &err));
    assert_int_equal(bytes_of(s), was);
    OK(join(s, "b", 0, false, &s->v, &err));
    struct vmfs_check_report rep;
    OK(vmfs_check(s->v, warn, NULL, &rep, &err));
    OK(vmfs_leave(gr_take(s->v), &err));
    unmake(s);
}

static int all_fn(void *arg)
{
    (void)arg;
    for (unsigned lost = 0; lost < DEVICES; lost++)
        for (unsigned crash = 0; crash < 2; crash++)
            for (unsigned older = 0; older < 2; older++)
                rescue(lost, crash, false, older);
    for (unsigned lost = 0; lost < DEVICES; lost++)
        rescue(lost, true, true, false);
    return 0;
}

static void all(void **state)
{
    (void)state;
    test_in_fiber(all_fn, NULL);
}

/* ---- what a disk has given up is another's by now ---- */
#define HALF (4 * MIB)
struct foreign {
    struct site *s;
    unsigned own[3], others, errors; /* pieces: of zeros, of 1, of 2; of 3; that cannot be read */
    uint64_t id; /* of the disk in doubt */
};

static void put(struct site *s, const char *path, uint64_t off, uint64_t len, uint8_t what)
{
    struct vmfs_disk *d;
    struct gr_chan *ch;
    static uint8_t buf[MIB];
    memset(buf, what, sizeof buf);
    OK(vmfs_open(s->v, path, &d, NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(d), gr_fiber_loop(), &ch), 0);
    for (uint64_t at = off; at < off + len; at += MIB)
        OK(what ? gr_pwrite(ch, buf, MIB, at, 0) : gr_unmap(ch, at, MIB, 0));
    OK(gr_flush(ch));
    gr_chan_close(ch);
    vmfs_close(d);
}

static void count(struct foreign *f, struct gr_bdev *b)
{
    struct gr_chan *ch;
    uint8_t buf[VMFS_PIECE];
    memset(f->own, 0, sizeof f->own);
    f->others = f->errors = 0;
    assert_int_equal(gr_chan_open(b, gr_fiber_loop(), &ch), 0);
    for (uint64_t at = 0; at < 2 * HALF; at += VMFS_PIECE) {
        int r = gr_pread(ch, buf, VMFS_PIECE, at);
        f->errors += r < 0;
        if (r == 0 && buf[0] <= 2)
            f->own[buf[0]]++;
        else if (r == 0)
            f->others++;
    }
    gr_chan_close(ch);
}

static void count_path(struct foreign *f, const char *path, const char *snap)
{
    struct vmfs_disk *d;
    struct gr_bdev *b;
    OK(vmfs_open(f->s->v, path, &d, NULL, &err));
    if (snap)
        OK(snap_open(d, snap, &b, &err));
    else
        b = gr_bdev_get(vmfs_bdev(d));
    count(f, b);
    f->id = vmfs_disk_id(d);
    gr_bdev_put(b);
    vmfs_close(d);
}

/* The disk's older half belongs to a snapshot; the newer one, and a file, are given up when all is home, and another disk gets it. */
static void give_up(struct site *s)
{
    struct vmfs_disk *d;
    OK(join(s, "a", 0, false, &s->v, &err));
    s->v->sp.stay++;
    OK(vmfs_create(s->v, "disk", VMFS_DISK, 2 * HALF, VMFS_THIN, &err));
    OK(vmfs_create(s->v, "file", VMFS_FILE, 2 * HALF, VMFS_THIN, &err));
    OK(vmfs_create(s->v, "other", VMFS_DISK, 8 * HALF, VMFS_THIN, &err));
    go_to(s, 0);
    put(s, "disk", 0, HALF, 1);
    OK(vmfs_open(s->v, "disk", &d, NULL, &err));
    OK(snap_create(&d, 1, "s", &err));
    vmfs_close(d);
    put(s, "disk", HALF, HALF, 2);
    put(s, "file", 0, 2 * HALF, 2);
    OK(vmfs_checkpoint(s->v, &err));
    put(s, "disk", 0, 2 * HALF, 0);
    put(s, "file", 0, 2 * HALF, 0);
    struct vregion *r = s->v->sp.regions;
    assert_int_equal(vmfs_addr_dev(r->first), 0);
    s->v->sp.current = r;
    put(s, "other", 0, 3 * HALF, 3);
    vmfs_abandon(gr_take(s->v));
}

static void foreign(bool crc)
{
    struct site *s = make_as(7, false, true, crc);
    struct foreign f = { .s = s };
    struct vmfs_disk *d;
    give_up(s);
    OK(join(s, "r", 1u << 1, true, &s->v, &err));
    count_path(&f, "disk", "s");
    assert_true(f.own[1] == HALF / VMFS_PIECE && f.own[0] == HALF / VMFS_PIECE); /* a snapshot is exact */
    count_path(&f, "file", NULL);
    print_message("# file: %u its own, %u another's\n", f.own[2], f.others);
    assert_int_equal(f.own[2], 2 * HALF / VMFS_PIECE); /* and a file is as it was */
    count_path(&f, "disk", NULL);
    assert_int_equal(f.others, 0);
    print_message("# disk: %u errors of %u\n", f.errors, (unsigned)(2 * HALF / VMFS_PIECE));
    if (crc) { /* what is its own is shown, and what is not is known */
        assert_true(f.errors && f.own[1] == HALF / VMFS_PIECE);
    } else {
        assert_int_equal(f.errors, 2 * HALF / VMFS_PIECE);
        OK(vmfs_open(s->v, "disk", &d, NULL, &err));
        FAILS(-GR_EBEHIND, "accept-loss ds1/disk", vmfs_shown(d, &err));
        vmfs_close(d);
        OK(vmfs_leave(gr_take(s->v), &err));
        s->accepted = f.id; /* somebody wants it as it is */
        OK(join(s, "r", 1u << 1, true, &s->v, &err));
        count_path(&f, "disk", NULL);
        print_message("# disk: %u of another disk, when that is accepted\n", f.others);
        assert_true(f.others && !f.errors && f.own[1] == HALF / VMFS_PIECE);
    }
    OK(vmfs_leave(gr_take(s->v), &err));
    unmake(s);
}

static int foreign_fn(void *arg)
{
    (void)arg;
    foreign(false);
    foreign(true);
    return 0;
}

static void others_bytes(void **state)
{
    (void)state;
    test_in_fiber(foreign_fn, NULL);
}

/* ---- an empty device takes the place of the lost one ---- */
static int replace(struct site *s, unsigned lost, struct gr_bdev *with, struct gr_err *err)
{
    struct vmfs_replacing how = { .lost = lost, .warn = warn };
    struct gr_bdev *given[DEVICES];
    unsigned n = 0;
    for (unsigned i = DEVICES; i-- > 0;)
        if (i != lost)
            given[n++] = s->dev[i];
    return vmfs_replace_device(gr_fiber_loop(), given, n, with, &how, err);
}

/* Cut off while it clears what an earlier attempt left on the new device: that is known again. */
static void cut_in_clearing(struct site *s, unsigned lost, struct gr_bdev *new)
{
    struct gr_fault_rule torn = { .op = GR_OP_WRITE_ZEROES, .code = -EIO, .torn_bytes = (VMFS_SUPER_A + 2) * VMFS_UNIT };
    struct gr_bdev *faulty;
    assert_int_equal(gr_bdev_fault_open(gr_fiber_loop(), new, &faulty), 0);
    assert_int_equal(gr_bdev_fault_add(faulty, &torn), 0);
    FAILS(-EIO, "cleared", replace(s, lost, faulty, &err));
    gr_bdev_put(faulty);
}

/* Cut off at the write number @at (of each device, or of the new one): it can be rescued, or is replaced, and the lost one, should it be back, is used
 * only while nothing was changed. 1: it was not cut. */
static int replace_cut(struct site *s, unsigned lost, unsigned at, bool of_new)
{
    struct gr_bdev *faulty[DEVICES], *kept[DEVICES];
    int r;
    memcpy(kept, s->dev, sizeof kept);
    struct gr_mem *mem = gr_mem_new(DEVICE_BYTES), *was = s->mem[lost];
    struct gr_bdev *new, *old = s->dev[lost];
    assert_int_equal(gr_bdev_mem_open(gr_fiber_loop(), mem, &new), 0);
    kept[lost] = new;
    for (uint64_t i = 0, v = 77; i < VMFS_UNIT / 8; i++, v += UINT64_C(0x9e3779b97f4a7c15)) /* it was tried whether hosts can share it, and that was cut off */
        memcpy((uint8_t *)gr_mem_page(mem, 0, true) + i * 8, &v, 8);
    for (unsigned i = 0; i < DEVICES; i++) {
        struct gr_fault_rule rules[] = { { .op = GR_OP_WRITE, .after = at, .code = -EIO }, { .op = GR_OP_WRITE_ZEROES, .after = at, .code = -EIO } };
        assert_int_equal(gr_bdev_fault_open(gr_fiber_loop(), kept[i], &faulty[i]), 0);
        for (unsigned k = 0; k < 2 && (i == lost) == of_new; k++)
            assert_int_equal(gr_bdev_fault_add(faulty[i], &rules[k]), 0);
        s->dev[i] = faulty[i];
    }
    struct gr_err cut = { 0 }, why = { 0 };
    r = replace(s, lost, faulty[lost], &cut);
    for (unsigned i = 0; i < DEVICES; i++)
        gr_bdev_put(faulty[i]);
    memcpy(s->dev, kept, sizeof kept);
    if (r < 0) {
        uint32_t said = bytes_of(s);
        s->dev[lost] = old;
        bool refused = join(s, "r", 0, true, &s->v, &why) < 0 && strstr(why.text, "has taken the place");
        s->dev[lost] = new;
        if (!refused) /* nothing was changed */
            assert_non_null(strstr(why.text, "none of its devices is missing"));
        OK(join(s, "r", 1u << lost, true, &s->v, &err));
        OK(vmfs_leave(gr_take(s->v), &err));
        assert_int_equal(bytes_of(s), said);
        if (strstr(cut.text, "cannot be made"))
            cut_in_clearing(s, lost, new);
        OK(replace(s, lost, new, &err)); /* it is done again */
        s->dev[lost] = old;
        FAILS(-EINVAL, "has taken the place", join(s, "r", 0, true, &s->v, &err));
        FAILS(-ENODEV, "missing", join(s, "b", 0, false, &s->v, &err)); /* the lost one is back */
        s->dev[lost] = new;
    }
    gr_bdev_put(old);
    gr_mem_free(was);
    s->mem[lost] = mem;
    return r == 0;
}

struct again {
    struct site *s;
    unsigned lost, whole, errors;
};

/* What can be read is right; what is whole serves as before. */
static void serves(struct again *k, unsigned disk, unsigned round)
{
    struct site *s = k->s;
    struct vmfs_disk *d;
    struct gr_chan *ch;
    char name[16];
    static uint32_t buf[VMFS_PIECE / 4];
    unsigned errors = 0;
    disk_name(disk, name);
    OK(vmfs_open(s->v, name, &d, NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(d), gr_fiber_loop(), &ch), 0);
    for (unsigned i = 0; i < PIECES; i++) {
        int r = gr_pread(ch, buf, VMFS_PIECE, i * VMFS_PIECE);
        if (r != -EIO && (r < 0 || !is(s, disk, AT_END, i, buf)))
            fail_msg("%s, piece %u: %d, %#x", name, i, r, buf[0]);
        errors += r < 0;
    }
    assert_true(errors == 0 || disk % DEVICES == k->lost || disk % DEVICES == 2); /* of what lies on a third, maps may have been there */
    k->whole += !errors;
    k->errors += errors;
    if (!errors) {
        write_some(s, ch, disk, AT_END, 4);
        OK(gr_flush(ch));
        char snap[16];
        snprintf(snap, sizeof snap, "n%u", round);
        OK(snap_create(&d, 1, snap, &err));
        write_some(s, ch, disk, AT_END, 4);
        OK(gr_flush(ch));
    }
    gr_chan_close(ch);
    vmfs_close(d);
}

/* When nothing names what lay on the lost device any more, the new one gets data. */
static void end_of_lost(struct site *s)
{
    struct vmfs_check_report rep;
    struct vmfs_info info;
    struct gr_err why = { 0 };
    char name[16];
    OK(join(s, "b", 0, false, &s->v, &err));
    int r = vmfs_repair(s->v, warn, NULL, &rep, &why);
    assert_int_equal(r, -GR_EPARTIAL); /* not yet */
    vmfs_info(s->v, &info);
    assert_true(info.stale);
    for (unsigned i = 0; i < DISKS; i++) {
        struct vmfs_disk *d;
        struct gr_chan *ch;
        uint8_t buf[VMFS_PIECE];
        bool lost = false;
        disk_name(i, name);
        OK(vmfs_open(s->v, name, &d, NULL, &err));
        assert_int_equal(gr_chan_open(vmfs_bdev(d), gr_fiber_loop(), &ch), 0);
        for (unsigned k = 0; k < PIECES && !lost; k++)
            lost = gr_pread(ch, buf, sizeof buf, k * VMFS_PIECE) < 0;
        gr_chan_close(ch);
        vmfs_close(d);
        if (lost)
            OK(vmfs_remove(s->v, name, &err));
    }
    assert_int_equal(vmfs_settle(s->v, 20000), 0);
    OK(vmfs_leave(gr_take(s->v), &err));
    OK(join(s, "b", 0, false, &s->v, &err));
    OK(vmfs_repair(s->v, warn, NULL, &rep, &err));
    vmfs_info(s->v, &info);
    assert_true(!info.stale && !info.n_missing);
    OK(vmfs_repair(s->v, warn, NULL, &rep, &err)); /* and nothing is taken that nobody has */
    OK(vmfs_check(s->v, warn, NULL, &rep, &err));
    assert_int_equal(rep.leaked_units, 0);
    OK(vmfs_create(s->v, "new", VMFS_DISK, SIZE, VMFS_THIN, &err));
    OK(vmfs_leave(gr_take(s->v), &err));
}

static void replaced(unsigned lost, unsigned at, bool of_new)
{
    struct site *s = make(test_seed(), false, false);
    struct again k = { .s = s, .lost = lost };
    struct vmfs_check_report rep;
    fill(s, false);
    int cut = !replace_cut(s, lost, at, of_new);
    for (unsigned round = 0; round < 3; round++) { /* in the second one the host dies */
        struct vmfs_info info;
        OK(join(s, "b", 0, false, &s->v, &err));
        vmfs_info(s->v, &info);
        assert_true(info.n_missing == 0 && info.stale == 1u << lost);
        for (unsigned i = 0; i < DISKS; i++)
            serves(&k, i, round);
        struct gr_err why = { 0 };
        int r = vmfs_check(s->v, warn, NULL, &rep, &why);
        assert_true(r == -GR_EPARTIAL && rep.errors == 0);
        if (round == 1)
            vmfs_abandon(gr_take(s->v));
        else
            OK(vmfs_leave(gr_take(s->v), &err));
    }
    end_of_lost(s);
    print_message("# device %u was replaced%s: %u whole, %u pieces lost\n", lost, cut ? ", in two goes" : "", k.whole, k.errors);
    assert_true(k.whole >= 3 * 2 && k.errors);
    unmake(s);
}

/* Its host was killed, and what its journal tells can be followed: nothing is missing. */
static void replaced_after_crash(unsigned lost)
{
    struct site *s = make(test_seed(), false, false);
    struct again k = { .s = s, .lost = lost };
    struct vmfs_check_report rep;
    struct vmfs_info info;
    struct vmfs_stats st;
    s->one_place = 1 + !lost;
    fill(s, true);
    assert_int_equal(replace_cut(s, lost, 1000000, true), 1);
    OK(join(s, "b", 0, false, &s->v, &err));
    vmfs_stats(s->v, &st);
    assert_true(st.replayed_records > 0);
    for (unsigned i = 0; i < DISKS; i++)
        serves(&k, i, 0);
    assert_int_equal(k.whole, DISKS);
    OK(vmfs_repair(s->v, warn, NULL, &rep, &err)); /* nothing lay there */
    vmfs_info(s->v, &info);
    assert_false(info.stale);
    OK(vmfs_leave(gr_take(s->v), &err));
    unmake(s);
}

/* A map that is there names what is lost: that is not read, not even as zeros, until it is written. */
static void mixed(void)
{
    struct site *s = make(5, false, false);
    struct vmfs_check_report rep;
    struct vmfs_disk *d;
    struct gr_chan *ch;
    uint8_t buf[VMFS_PIECE] = { 1 };
    OK(join(s, "a", 0, false, &s->v, &err));
    s->v->sp.stay++;
    OK(vmfs_create(s->v, "m", VMFS_DISK, SIZE, VMFS_THIN, &err));
    go_to(s, 1);
    put(s, "m", 0, MIB, 1);
    go_to(s, 0);
    put(s, "m", MIB, MIB, 2);
    OK(vmfs_leave(gr_take(s->v), &err));
    assert_int_equal(replace_cut(s, 0, 1000000, true), 1);
    for (unsigned round = 0; round < 2; round++) { /* in the second one it has been counted, if that were possible */
        OK(join(s, "b", 0, false, &s->v, &err));
        OK(vmfs_open(s->v, "m", &d, NULL, &err));
        assert_int_equal(gr_chan_open(vmfs_bdev(d), gr_fiber_loop(), &ch), 0);
        OK(gr_pread(ch, buf, sizeof buf, 0));
        assert_int_equal(buf[0], 1);
        assert_int_equal(gr_pread(ch, buf, sizeof buf, MIB), round ? 0 : -EIO);
        assert_int_equal(gr_pread(ch, buf, sizeof buf, MIB + VMFS_PIECE), -EIO);
        assert_int_equal(gr_pwrite(ch, buf, 512, MIB + VMFS_PIECE, 0), -EIO);
        OK(gr_pwrite(ch, buf, sizeof buf, MIB, 0));
        OK(gr_pread(ch, buf, sizeof buf, MIB));
        gr_chan_close(ch);
        vmfs_close(d);
        struct gr_err why = { 0 };
        assert_int_equal(vmfs_repair(s->v, warn, NULL, &rep, &why), -GR_EPARTIAL);
        OK(vmfs_leave(gr_take(s->v), &err));
    }
    OK(join(s, "b", 0, false, &s->v, &err));
    put(s, "m", MIB, MIB, 3); /* nothing names it any more */
    OK(vmfs_repair(s->v, warn, NULL, &rep, &err));
    OK(vmfs_check(s->v, warn, NULL, &rep, &err));
    OK(vmfs_leave(gr_take(s->v), &err));
    unmake(s);
}

/* Encrypted disks, one with its keys on the lost device, one elsewhere: both can be removed, and then the new device is as good as any. */
static void sealed(void)
{
    struct site *s = make(5, false, false);
    struct vmfs_check_report rep;
    struct vmfs_info info;
    char name[8];
    OK(join(s, "a", 0, false, &s->v, &err));
    s->v->sp.stay++;
    for (unsigned i = 0; i < 2; i++) {
        go_to(s, i);
        snprintf(name, sizeof name, "e%u", i);
        OK(vmfs_create_encrypted(s->v, name, SIZE, VMFS_THIN, 0, vmfs_kek_id(secret), &err));
        put(s, name, 0, MIB, 1 + i);
    }
    OK(vmfs_leave(gr_take(s->v), &err));
    assert_int_equal(replace_cut(s, 0, 1000000, true), 1);
    OK(join(s, "b", 0, false, &s->v, &err));
    for (unsigned i = 0; i < 2; i++) {
        snprintf(name, sizeof name, "e%u", i);
        OK(vmfs_remove(s->v, name, &err));
    }
    assert_int_equal(vmfs_settle(s->v, 20000), 0);
    OK(vmfs_leave(gr_take(s->v), &err));
    OK(join(s, "b", 0, false, &s->v, &err));
    OK(vmfs_repair(s->v, warn, NULL, &rep, &err));
    vmfs_info(s->v, &info);
    assert_false(info.stale);
    OK(vmfs_leave(gr_take(s->v), &err));
    unmake(s);
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define EACH 3u
#else
#define EACH 1u
#endif
/* A disk is deleted whose map cannot be read for the moment, where nothing was lost: it waits, though another device was replaced. */
static void not_lost(unsigned lost)
{
    struct site *s = make(test_seed(), false, false);
    struct gr_bdev *fault, *dev;
    struct vobj *o;
    uint64_t id, addr;
    fill(s, false);
    assert_int_equal(replace_cut(s, lost, 1000000, true), 1);
    dev = s->dev[!lost];
    assert_int_equal(gr_bdev_fault_open(gr_fiber_loop(), dev, &fault), 0);
    s->dev[!lost] = fault;
    OK(join(s, "b", 0, false, &s->v, &err));
    struct vmfs_stat st;
    OK(vmfs_stat(s->v, lost ? "d0" : "f/d1", &st, &err));
    id = st.id;
    OK(vobj_peek(s->v, id, &o, &err));
    addr = o->live.root.ptr.addr;
    vobj_free(o);
    assert_true(addr && vmfs_addr_dev(addr) == !lost);
    struct gr_fault_rule rule = { .op = GR_OP_READ, .off = vmfs_addr_unit(addr) * VMFS_UNIT, .len = VMFS_UNIT, .code = -EIO };
    assert_int_equal(gr_bdev_fault_add(fault, &rule), 0);
    OK(vmfs_remove(s->v, lost ? "d0" : "f/d1", &err));
    assert_int_equal(vmfs_settle(s->v, 500), -ETIMEDOUT);
    OK(vobj_peek(s->v, id, &o, &err));
    vobj_free(o);
    gr_bdev_fault_clear(fault);
    OK(vmfs_leave(gr_take(s->v), &err));
    OK(join(s, "b", 0, false, &s->v, &err));
    assert_int_equal(vmfs_settle(s->v, 20000), 0);
    FAILS(-ENOENT, "gone", vobj_peek(s->v, id, &o, &err));
    OK(vmfs_leave(gr_take(s->v), &err));
    s->dev[!lost] = dev;
    gr_bdev_put(fault);
    unmake(s);
}

static int replaced_fn(void *arg)
{
    (void)arg;
    mixed();
    sealed();
    for (unsigned lost = 0; lost < 2; lost++)
        not_lost(lost);
    for (unsigned lost = 0; lost < 2; lost++)
        replaced_after_crash(lost);
    for (unsigned lost = 0; lost < 2; lost++) {
        replaced(lost, 1000000, true);
        for (unsigned at = 0; at < 3; at += EACH)
            replaced(lost, at, false);
        for (unsigned at = 0; at < 10; at += 2 * EACH)
            replaced(lost, at + lost, true);
    }
    return 0;
}

static void replaced_test(void **state)
{
    (void)state;
    test_in_fiber(replaced_fn, NULL);
}

static int not_replaced_fn(void *arg)
{
    struct site *s = make(3, false, true);
    struct gr_mem *small = gr_mem_new(DEVICE_BYTES / 2), *mem = gr_mem_new(DEVICE_BYTES);
    struct gr_bdev *b, *n;
    struct vmfs_format_opts f = { .name = "other" };
    (void)arg;
    assert_int_equal(gr_bdev_mem_open(gr_fiber_loop(), small, &b), 0);
    assert_int_equal(gr_bdev_mem_open(gr_fiber_loop(), mem, &n), 0);
    OK(join(s, "a", 0, false, &s->v, &err));
    FAILS(-GR_ELOCKED, "host 'a' is at work", replace(s, 1, n, &err));
    OK(vmfs_leave(gr_take(s->v), &err));
    uint32_t was = bytes_of(s);
    FAILS(-EINVAL, "is too small", replace(s, 1, b, &err));
    FAILS(-EINVAL, "no tables", replace(s, 2, n, &err));
    FAILS(-EINVAL, "device 7 is not missing", vmfs_replace_device(gr_fiber_loop(), s->dev, 2, n, &(struct vmfs_replacing){ .lost = 7 }, &err));
    FAILS(-EINVAL, "none of its devices is missing", vmfs_replace_device(gr_fiber_loop(), s->dev, 3, n, &(struct vmfs_replacing){ .lost = 1 }, &err));
    OK(vmfs_format(gr_fiber_loop(), &b, 1, &f, &err));
    FAILS(-EEXIST, "already holds", replace(s, 1, b, &err));
    FAILS(-EEXIST, "already holds", replace(s, 1, s->dev[1], &err)); /* it is not lost at all */
    assert_int_equal(bytes_of(s), was);
    OK(join(s, "a", 0, false, &s->v, &err));
    OK(vmfs_leave(gr_take(s->v), &err));
    fill(s, true);
    was = bytes_of(s);
    FAILS(-ENODEV, "journal of host 'a' was lost", replace(s, 1, n, &err));
    FAILS(-ENODEV, "cannot be followed", replace(s, 0, n, &err));
    assert_int_equal(bytes_of(s), was);
    gr_bdev_put(b);
    gr_bdev_put(n);
    gr_mem_free(small);
    gr_mem_free(mem);
    unmake(s);
    return 0;
}

static void not_replaced(void **state)
{
    (void)state;
    test_in_fiber(not_replaced_fn, NULL);
}

/* ---- where maps lie ---- */
static void nodes_on(const struct mnode *n, unsigned dev)
{
    assert_int_equal(vmfs_addr_dev(n->ptr.addr), dev);
    for (unsigned i = 0; n->level && i < VMFS_FANOUT; i++)
        if (n->child[i].mem)
            nodes_on(n->child[i].mem, dev);
}

/* Of what lies on a device with tables on that one; of what lies on another on one of those. */
static int near_fn(void *arg)
{
    struct site *s = make(2, false, false);
    (void)arg;
    OK(join(s, "a", 0, false, &s->v, &err));
    s->v->sp.stay++;
    for (unsigned i = 0; i < DISKS; i++) {
        struct vmfs_disk *d;
        struct gr_chan *ch;
        char name[16];
        disk_name(i, name);
        OK(vmfs_create(s->v, name, VMFS_DISK, SIZE, VMFS_THIN, &err));
        OK(vmfs_open(s->v, name, &d, NULL, &err));
        assert_int_equal(gr_chan_open(vmfs_bdev(d), gr_fiber_loop(), &ch), 0);
        go_to(s, i % DEVICES);
        for (unsigned at = 0; at < PIECES; at += 997) {
            uint8_t buf[VMFS_PIECE] = { 1 };
            OK(gr_pwrite(ch, buf, sizeof buf, at * VMFS_PIECE, 0));
        }
        OK(vmfs_checkpoint(s->v, &err));
        const struct mnode *root = d->o->live.root.mem;
        assert_true(root->level == 1 && root->child[0].mem && root->child[2].mem);
        assert_int_equal(vmfs_addr_dev(root->child[0].mem->ent[0].px ? root->child[0].mem->ent[0].px->addr[0] : root->child[0].mem->ent[0].addr), i % DEVICES);
        nodes_on(root, i % DEVICES == 2 ? vmfs_addr_dev(root->ptr.addr) : i % DEVICES);
        assert_true(vmfs_addr_dev(root->ptr.addr) < 2);
        gr_chan_close(ch);
        vmfs_close(d);
    }
    OK(vmfs_leave(gr_take(s->v), &err));
    unmake(s);
    return 0;
}

static void near(void **state)
{
    (void)state;
    test_in_fiber(near_fn, NULL);
}

/* ---- what is refused ---- */
static int refused_fn(void *arg)
{
    struct site *s = make(1, false, false);
    struct vmfs *v = NULL;
    (void)arg;
    FAILS(-ENODEV, "no copy of its tables", join(s, "r", 3, true, &v, &err));
    OK(join(s, "a", 0, false, &s->v, &err));
    uint32_t was = bytes_of(s);
    FAILS(-GR_ELOCKED, "host 'a' is at work", join(s, "r", 1u << 1, true, &v, &err));
    FAILS(-GR_ELOCKED, "host 'a' is at work", join(s, "r", 1u << 2, true, &v, &err));
    assert_int_equal(bytes_of(s), was);
    OK(vmfs_leave(gr_take(s->v), &err));
    OK(join(s, "r", 1u << 2, true, &s->v, &err));
    FAILS(-GR_EREADONLY, "being rescued", vmfs_scrub(s->v, &(struct vmfs_scrub_opts){ 0 }, &(struct vmfs_scrub_report){ 0 }, &err));
    FAILS(-GR_EREADONLY, "being rescued", vmfs_check(s->v, warn, NULL, &(struct vmfs_check_report){ 0 }, &err));
    FAILS(-GR_EREADONLY, "being rescued", vmfs_repair(s->v, warn, NULL, &(struct vmfs_check_report){ 0 }, &err));
    OK(vmfs_leave(gr_take(s->v), &err));
    OK(join(s, "a", 0, false, &s->v, &err));
    FAILS(-EINVAL, "being rescued", vmfs_rescued(s->v, look, NULL, &err));
    OK(vmfs_leave(gr_take(s->v), &err));
    unmake(s);
    return 0;
}

static void refused(void **state)
{
    (void)state;
    test_in_fiber(refused_fn, NULL);
}

/* ---- logical units that fence nobody: one host at a time, who registers with none ---- */
static int enter_none(struct gr_bdev *bdev, uint64_t key, struct gr_err *err)
{
    (void)key;
    return gr_fail(err, -EOPNOTSUPP, "'%s' has no reservations", bdev->name);
}

static int alone_fn(void *arg)
{
    static const struct gr_fence_ops none = { .enter = enter_none };
    struct site *s = calloc(1, sizeof *s);
    struct vmfs_format_opts f = { .name = "ds1", .timing = VMFS_TIMING_FAST, .one_host = true };
    (void)arg;
    s->shared = true;
    for (unsigned i = 0; i < DEVICES; i++)
        s->mem[i] = gr_mem_new(DEVICE_BYTES);
    devices_open(s);
    for (unsigned i = 0; i < DEVICES; i++)
        s->dev[i]->fence = &none;
    OK(vmfs_format(gr_fiber_loop(), s->dev, DEVICES, &f, &err));
    OK(join(s, "a", 0, false, &s->v, &err));
    OK(vmfs_create(s->v, "d", VMFS_DISK, SIZE, VMFS_THIN, &err));
    vmfs_abandon(gr_take(s->v));
    uint32_t was = bytes_of(s);
    for (unsigned lost = 0; lost < 2; lost++) {
        struct vmfs_disk *d;
        OK(join(s, "r", 1u << lost, true, &s->v, &err));
        OK(vmfs_open(s->v, "d", &d, NULL, &err));
        vmfs_close(d);
        OK(vmfs_leave(gr_take(s->v), &err));
        assert_int_equal(bytes_of(s), was);
    }
    unmake(s);
    return 0;
}

static void alone(void **state)
{
    (void)state;
    test_in_fiber(alone_fn, NULL);
}

TEST_MAIN(TEST(near), TEST(all), TEST(others_bytes), TEST(replaced_test), TEST(not_replaced), TEST(refused), TEST(alone))
