/* Encrypted disks against an oracle: what the device holds, what is read, which key is needed, and what is left when keys go. */
#include "tests/lib/test.h"
#include "common/bdev.h"
#include "common/cleanup.h"
#include "snapshot/snapshot.h"
#include "vmfs/internal.h"
#include "vmfs/keys.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SIZE ((size_t)256 << 20) /* of the device */
#define DISK ((size_t)12 << 20)

struct site {
    struct gr_loop *loop;
    struct gr_mem *mem;
    struct gr_bdev *dev;
    struct vmfs *v, *beside;
    struct gr_chan *raw;
    uint8_t kek[3][32];
    bool have[3];
    char found[2048];
    uint8_t *taken[65];
    unsigned n_taken;
};

static int kek(void *arg, uint64_t id, uint8_t ret[32])
{
    struct site *s = arg;
    for (unsigned i = 0; i < 3; i++)
        if (s->have[i] && vmfs_kek_id(s->kek[i]) == id) {
            memcpy(ret, s->kek[i], 32);
            return 0;
        }
    return -ENOKEY;
}

static int ask_other(void *arg, struct gr_err *err)
{
    struct site *s = arg;
    return s->beside ? vmfs_regions_recall(s->beside, err) : 0;
}

static void join(struct site *s)
{
    struct vmfs_join_opts o = { .role = VMFS_HOST, .host_name = "keys", .kek = kek, .kek_arg = s, .recall_regions = ask_other, .warn_arg = s };
    OK(vmfs_join(s->loop, &s->dev, 1, &o, &s->v, &err));
}

static void make_with(struct site *s, bool data_crc)
{
    struct vmfs_format_opts f = { .name = "ds1", .data_crc = data_crc };
    *s = (struct site){ .loop = gr_fiber_loop(), .mem = gr_mem_new(SIZE), .have = { true, true, true } };
    for (unsigned i = 0; i < 3; i++)
        memset(s->kek[i], (int)(17 * i + 1), 32);
    assert_int_equal(gr_bdev_mem_open(s->loop, s->mem, &s->dev), 0);
    OK(vmfs_format(s->loop, &s->dev, 1, &f, &err));
    assert_int_equal(gr_chan_open(s->dev, s->loop, &s->raw), 0);
    join(s);
}

static void make(struct site *s) { make_with(s, false); }

static void unmake(struct site *s)
{
    vmfs_abandon(s->v);
    gr_chan_close(s->raw);
    gr_bdev_put(s->dev);
    gr_mem_free(s->mem);
}

static void create(struct site *s, const char *path, enum vmfs_provision provision)
{
    OK(vmfs_create_encrypted(s->v, path, DISK, provision, 4096, vmfs_kek_id(s->kek[0]), &err));
}

static struct vmfs_disk *open_disk(struct site *s, const char *path, struct gr_chan **ret)
{
    struct vmfs_disk *d;
    OK(vmfs_open(s->v, path, &d, NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(d), s->loop, ret), 0);
    return d;
}

static void close_disk(struct vmfs_disk *d, struct gr_chan *ch)
{
    gr_chan_close(ch);
    vmfs_close(d);
}

static void collect(void *arg, const char *text)
{
    struct site *s = arg;
    size_t n = strlen(s->found);
    snprintf(s->found + n, sizeof s->found - n, "%s\n", text);
}

static void check(struct site *s)
{
    struct vmfs_check_report rep;
    s->found[0] = 0;
    if (vmfs_check(s->v, collect, s, &rep, NULL) < 0 || rep.leaked_units)
        fail_msg("check: %llu leaked; %s", (unsigned long long)rep.leaked_units, s->found);
}

/* Do these 16 bytes stand on the device, anywhere at a multiple of 4? */
static bool on_device(struct site *s, const void *what)
{
    uint8_t *b = aligned_alloc(4096, 1 << 20);
    bool found = false;
    for (size_t at = 0; at < SIZE && !found; at += 1 << 20) {
        assert_int_equal(gr_pread(s->raw, b, 1 << 20, at), 0);
        for (size_t i = 0; i + 16 <= 1 << 20 && !found; i += 4)
            found = memcmp(b + i, what, 16) == 0;
    }
    free(b);
    return found;
}

static void fill(struct gr_chan *ch, const char *word)
{
    uint8_t *b = aligned_alloc(4096, 1 << 20);
    for (size_t i = 0; i < 1 << 20; i += 16)
        memcpy(b + i, word, 16);
    assert_int_equal(gr_pwrite(ch, b, 1 << 20, 1 << 20, 0), 0);
    assert_int_equal(gr_pwrite(ch, b, 4096, 0, GR_BIO_FUA), 0);
    assert_int_equal(gr_pwrite(ch, b, 1024, 512, 0), 0); /* in place, part of a piece */
    assert_int_equal(gr_pwrite(ch, b, 512, 8 << 20, GR_BIO_ATOMIC), 0);
    assert_int_equal(gr_flush(ch), 0);
    free(b);
}

static int no_plaintext(void *arg)
{
    struct site s;
    struct gr_chan *ch;
    static const char plain[] = "a plain disk 4711", secret[] = "a secret disk 08/", late[] = "after a snapshot.";
    make_with(&s, arg);
    OK(vmfs_create(s.v, "plain", VMFS_DISK, DISK, VMFS_THIN, &err));
    for (unsigned p = 0; p < 3; p++) {
        char name[8] = { 'd', (char)('0' + p) };
        create(&s, name, (enum vmfs_provision)p);
        struct vmfs_disk *d = open_disk(&s, name, &ch);
        fill(ch, secret);
        OK(snap_create(&d, 1, "s", &err));
        fill(ch, late);
        struct gr_bio caw = { .op = GR_OP_COMPARE_WRITE, .off = 4096, .len = 512 };
        uint8_t zero[512] = { 0 }, now[512];
        struct iovec iov[2] = { { zero, 512 }, { now, 512 } };
        memset(now, 0, sizeof now);
        for (unsigned i = 0; i < 512; i += 16)
            memcpy(now + i, secret, 16);
        caw.iov = iov;
        caw.iov2 = iov + 1;
        caw.iovcnt = caw.iovcnt2 = 1;
        assert_int_equal(gr_submit_wait(ch, &caw), 0);
        close_disk(d, ch);
    }
    struct vmfs_disk *d = open_disk(&s, "plain", &ch);
    fill(ch, plain);
    close_disk(d, ch);
    assert_true(on_device(&s, plain));
    assert_false(on_device(&s, secret));
    assert_false(on_device(&s, late));
    check(&s);
    unmake(&s);
    return 0;
}

static int without_key(void *arg)
{
    struct site s;
    struct gr_chan *ch;
    struct vmfs_disk *d;
    struct vmfs_stat st;
    struct gr_err e = { 0 };
    char id[17];
    make(&s);
    snprintf(id, sizeof id, "%016llx", (unsigned long long)vmfs_kek_id(s.kek[0]));
    create(&s, "secret", VMFS_THIN);
    OK(vmfs_create(s.v, "plain", VMFS_DISK, DISK, VMFS_THIN, &err));
    d = open_disk(&s, "secret", &ch);
    fill(ch, "behind the door.");
    OK(snap_create(&d, 1, "s", &err));
    close_disk(d, ch);
    vmfs_abandon(s.v); /* killed: its journal is replayed by who has no key */
    s.have[0] = false;
    join(&s);
    assert_int_equal(vmfs_open(s.v, "secret", &d, NULL, &e), -ENOKEY);
    assert_non_null(strstr(e.text, "ds1/secret"));
    assert_non_null(strstr(e.text, id));
    assert_int_equal(vmfs_create_encrypted(s.v, "new", DISK, VMFS_EAGER, 4096, vmfs_kek_id(s.kek[0]), &e), -ENOKEY);
    assert_int_equal(vmfs_stat(s.v, "new", &st, &e), -ENOENT);
    OK(vmfs_stat(s.v, "secret", &st, &err));
    assert_true(st.key_id == vmfs_kek_id(s.kek[0]));
    d = open_disk(&s, "plain", &ch);
    fill(ch, "an open window ");
    close_disk(d, ch);
    check(&s);
    s.have[0] = true; /* it came later: nothing has to be started again */
    memset(s.kek[0], 99, 32);
    assert_int_equal(vmfs_open(s.v, "secret", &d, NULL, &e), -ENOKEY);
    memset(s.kek[0], 1, 32);
    d = open_disk(&s, "secret", &ch);
    uint8_t b[16];
    struct gr_bio read = { .op = GR_OP_READ, .off = 1 << 20, .len = 512 };
    uint8_t sector[512];
    read.iov = &(struct iovec){ sector, 512 };
    read.iovcnt = 1;
    assert_int_equal(gr_submit_wait(ch, &read), 0);
    memcpy(b, sector, 16);
    assert_memory_equal(b, "behind the door.", 16);
    close_disk(d, ch);
    unmake(&s);
    return 0;
}

/* Once the keys are destroyed no byte of them, wrapped, is left on the device: not in a journal, not in an image, not in an old copy. */
static int erased(void *arg)
{
    struct site s;
    struct gr_chan *ch;
    struct vmfs_disk *d;
    struct vmfs_stat st;
    struct vkeys before, between;
    struct vobj *o;
    struct gr_err e = { 0 };
    make(&s);
    create(&s, "gone", VMFS_THIN);
    create(&s, "kept", VMFS_THIN);
    for (unsigned i = 0; i < 40; i++) { /* its blob and inode move and are in many images */
        char name[8];
        snprintf(name, sizeof name, "s%u", i);
        d = open_disk(&s, "gone", &ch);
        fill(ch, "16 bytes of data");
        OK(snap_create(&d, 1, name, &err));
        close_disk(d, ch);
        OK(vmfs_checkpoint(s.v, &err));
    }
    OK(vmfs_stat(s.v, "gone", &st, &err));
    o = vobj_find(s.v, st.id);
    OK(vkeys_read(o, &before, &err));
    assert_true(on_device(&s, before.key[0].wrapped));
    d = open_disk(&s, "gone", &ch);
    OK(vmfs_keys_rewrap(d, vmfs_kek_id(s.kek[1]), &err));
    assert_int_equal(vmfs_keys_erase(s.v, st.id, "gone", &e), -EBUSY);
    OK(vmfs_keys_rotate(d, vmfs_kek_id(s.kek[1]), &err));
    close_disk(d, ch);
    OK(vkeys_read(o, &between, &err));
    assert_int_equal(between.n, 2);
    assert_false(on_device(&s, before.key[0].wrapped)); /* what the old key opened is gone as soon as it is changed */
    assert_true(on_device(&s, between.key[0].wrapped));
    assert_true(on_device(&s, between.key[1].wrapped));
    OK(vmfs_keys_erase(s.v, st.id, "gone", &err));
    for (unsigned i = 0; i < 2; i++)
        assert_false(on_device(&s, between.key[i].wrapped));
    assert_int_equal(vmfs_open(s.v, "gone", &d, NULL, &e), -ENOKEY);
    assert_non_null(strstr(e.text, "erased"));
    OK(vmfs_stat(s.v, "gone", &st, &err));
    assert_true(st.key_id == VMFS_ERASED);
    check(&s);
    OK(vmfs_remove(s.v, "gone", &err));
    OK(vmfs_stat(s.v, "kept", &st, &err));
    OK(vobj_hold(s.v, st.id, 0, &o, NULL, &err));
    OK(vkeys_read(o, &before, &err));
    s.have[0] = s.have[1] = false; /* a removal needs no key */
    OK(vmfs_remove(s.v, "kept", &err));
    assert_false(on_device(&s, before.key[0].wrapped));
    OK(vmfs_settle(s.v, 5000));
    check(&s);
    unmake(&s);
    return 0;
}

/* ---- an oracle ---- */
#define SNAPS 6u
struct world {
    struct site s;
    uint64_t seed;
    uint8_t *now, *snap[SNAPS]; /* NULL: no such snapshot */
    struct vmfs_disk *d;
    struct gr_chan *ch;
    unsigned generation; /* of names */
    unsigned kek;
};

static void compare(struct world *w, struct gr_chan *ch, const uint8_t *want, const char *what)
{
    uint8_t *b = aligned_alloc(4096, DISK);
    assert_int_equal(gr_pread(ch, b, DISK, 0), 0);
    for (size_t i = 0; i < DISK; i += 512)
        if (memcmp(b + i, want + i, 512) != 0)
            fail_msg("%s differs at %zu", what, i);
    free(b);
}

static void change(struct world *w)
{
    size_t len = (test_rand(&w->seed) % (test_rand(&w->seed) % 4 ? 24 : 600) + 1) * 512, off = test_rand(&w->seed) % ((DISK - len) / 512) * 512;
    uint8_t *b = aligned_alloc(4096, (len + 4095) & ~4095ul), *copy;
    uint64_t kind = test_rand(&w->seed) % 10;
    struct iovec iov[3], now_iov = { w->now + off, len };
    size_t cut = test_rand(&w->seed) % len;
    for (size_t i = 0; i < len; i += 8) {
        uint64_t x = test_rand(&w->seed);
        memcpy(b + i, &x, 8);
    }
    copy = malloc(len);
    memcpy(copy, b, len);
    iov[0] = (struct iovec){ b, cut };
    iov[1] = (struct iovec){ b + cut, len - cut };
    struct gr_bio bio = { .op = GR_OP_WRITE, .off = off, .len = len, .iov = iov, .iovcnt = 2 };
    if (kind == 0)
        bio.op = test_rand(&w->seed) % 2 ? GR_OP_UNMAP : GR_OP_WRITE_ZEROES;
    else if (kind == 1)
        bio.flags = GR_BIO_ATOMIC;
    else if (kind == 2)
        bio.flags = GR_BIO_FUA;
    if (kind == 3) {
        bio.op = GR_OP_COMPARE_WRITE;
        bio.iov2 = iov;
        bio.iovcnt2 = 2;
        bio.iov = &now_iov;
        bio.iovcnt = 1;
    }
    assert_int_equal(gr_submit_wait(w->ch, &bio), 0);
    assert_memory_equal(copy, b, len); /* the caller's bytes are as they were */
    if (kind == 0)
        memset(w->now + off, 0, len);
    else
        memcpy(w->now + off, b, len);
    free(b);
    free(copy);
}

static void snapshots(struct world *w)
{
    unsigned i = (unsigned)(test_rand(&w->seed) % SNAPS);
    char name[16], path[16];
    struct vmfs_disk *c;
    struct gr_chan *ch;
    snprintf(name, sizeof name, "s%u", i);
    if (!w->snap[i]) {
        OK(snap_create(&w->d, 1, name, &err));
        w->snap[i] = malloc(DISK);
        memcpy(w->snap[i], w->now, DISK);
        return;
    }
    switch (test_rand(&w->seed) % 4) {
    case 0:
        OK(snap_revert(w->d, name, &err));
        memcpy(w->now, w->snap[i], DISK);
        break;
    case 1: { /* a clone, which goes its own way, has its own keys, and is written to and removed */
        snprintf(path, sizeof path, "c%u", w->generation++);
        OK(snap_clone(w->d, name, path, &err));
        c = open_disk(&w->s, path, &ch);
        compare(w, ch, w->snap[i], "a clone");
        struct world k = { .s = w->s, .seed = w->seed, .now = malloc(DISK), .d = c, .ch = ch };
        memcpy(k.now, w->snap[i], DISK);
        for (unsigned n = 0; n < 5; n++)
            change(&k);
        OK(vmfs_keys_rotate(c, vmfs_kek_id(w->s.kek[2]), &err));
        change(&k);
        compare(&k, ch, k.now, "a changed clone");
        close_disk(c, ch);
        OK(vmfs_remove(w->s.v, path, &err));
        free(k.now);
        w->seed = k.seed;
        break;
    }
    case 2: {
        struct gr_bdev *b;
        OK(snap_open(w->d, name, &b, &err));
        assert_int_equal(gr_chan_open(b, w->s.loop, &ch), 0);
        compare(w, ch, w->snap[i], "a snapshot");
        gr_chan_close(ch);
        gr_bdev_put(b);
        break;
    }
    default:
        OK(snap_delete(w->d, name, false, &err));
        free(w->snap[i]);
        w->snap[i] = NULL;
    }
}

static void keys(struct world *w)
{
    unsigned left;
    switch (test_rand(&w->seed) % 3) {
    case 0: {
        struct gr_err e = { 0 };
        int r = vmfs_keys_rotate(w->d, vmfs_kek_id(w->s.kek[w->kek]), &e);
        if (r < 0 && r != -GR_ENOSPACE)
            fail_msg("rotate: %s", e.text);
        break;
    }
    case 1:
        OK(vmfs_keys_rewrite(w->d, NULL, NULL, &left, &err));
        break;
    default: /* from now on the others are not needed */
        w->kek = (w->kek + 1) % 2;
        OK(vmfs_keys_rewrap(w->d, vmfs_kek_id(w->s.kek[w->kek]), &err));
        w->s.have[1 - w->kek] = false;
    }
}

static void again(struct world *w)
{
    bool killed = test_rand(&w->seed) % 2;
    gr_flush(w->ch);
    close_disk(w->d, w->ch);
    if (killed)
        vmfs_abandon(w->s.v);
    else
        OK(vmfs_leave(w->s.v, &err));
    join(&w->s);
    check(&w->s);
    w->d = open_disk(&w->s, "disk", &w->ch);
}

static int against_oracle(void *arg)
{
    struct world w = { .seed = test_seed(), .now = calloc(1, DISK) };
    for (unsigned n = test_cases(2); n; n--) {
        make_with(&w.s, n % 2);
        w.kek = 0;
        create(&w.s, "disk", (enum vmfs_provision)(n % 3));
        w.d = open_disk(&w.s, "disk", &w.ch);
        memset(w.now, 0, DISK);
        for (unsigned i = 0; i < 400; i++) {
            uint64_t x = test_rand(&w.seed) % 100;
            w.s.have[0] = w.s.have[1] = true;
            w.s.have[1 - w.kek] = false;
            if (x < 80)
                change(&w);
            else if (x < 90)
                snapshots(&w);
            else if (x < 96)
                w.s.have[0] = w.s.have[1] = true, keys(&w);
            else if (x < 98)
                compare(&w, w.ch, w.now, "the disk");
            else
                again(&w);
        }
        compare(&w, w.ch, w.now, "the disk at last");
        close_disk(w.d, w.ch);
        check(&w.s);
        unmake(&w.s);
        for (unsigned i = 0; i < SNAPS; i++) {
            free(w.snap[i]);
            w.snap[i] = NULL;
        }
    }
    free(w.now);
    return 0;
}

/* After a rotation and a pass old keys go, but not before snapshots do. */
static int old_keys_go(void *arg)
{
    struct site s;
    struct gr_chan *ch;
    struct vkeys k;
    unsigned left;
    uint8_t old[64];
    make(&s);
    create(&s, "disk", VMFS_THIN);
    struct vmfs_disk *d = open_disk(&s, "disk", &ch);
    fill(ch, "from the 1st time");
    OK(snap_create(&d, 1, "s", &err));
    OK(vkeys_read(d->o, &k, &err));
    memcpy(old, k.key[0].wrapped, 64);
    OK(vmfs_keys_rotate(d, vmfs_kek_id(s.kek[0]), &err));
    OK(vmfs_keys_rewrite(d, NULL, NULL, &left, &err));
    assert_int_equal(left, 2);
    OK(snap_delete(d, "s", false, &err));
    OK(snap_settle(d, &err));
    OK(vmfs_keys_rewrite(d, NULL, NULL, &left, &err));
    assert_int_equal(left, 1);
    assert_false(on_device(&s, old));
    uint8_t b[4096];
    assert_int_equal(gr_pread(ch, b, 4096, 1 << 20), 0);
    assert_memory_equal(b, "from the 1st time", 16);
    close_disk(d, ch);
    check(&s);
    unmake(&s);
    return 0;
}

/* A clone that was given its own copies has no key of its origin any more: when that is erased, nobody can read it. */
static int detached_forgets(void *arg)
{
    struct site s;
    struct gr_chan *ch;
    struct vkeys k;
    uint8_t b[4096];
    make(&s);
    create(&s, "gold", VMFS_THIN);
    struct vmfs_disk *d = open_disk(&s, "gold", &ch);
    fill(ch, "of the origin...");
    OK(snap_create(&d, 1, "s", &err));
    OK(snap_clone(d, "s", "copy", &err));
    close_disk(d, ch);
    d = open_disk(&s, "copy", &ch);
    OK(vkeys_read(d->o, &k, &err));
    assert_int_equal(k.n, 2);
    OK(vmfs_detach(d, &(struct vmfs_detach){ 0 }, NULL, &err));
    OK(vkeys_read(d->o, &k, &err));
    assert_int_equal(k.n, 1);
    struct vmfs_stat st;
    OK(vmfs_stat(s.v, "gold", &st, &err));
    OK(vmfs_keys_erase(s.v, st.id, "gold", &err));
    assert_int_equal(gr_pread(ch, b, 4096, 1 << 20), 0);
    assert_memory_equal(b, "of the origin...", 16);
    close_disk(d, ch);
    check(&s);
    unmake(&s);
    return 0;
}

/* … also when it gets new keys all the while: rather it is not detached yet. */
struct rotating {
    struct site *s;
    struct vmfs_disk *d;
    bool stop, ended;
};
static void rotate_on(void *arg)
{
    struct rotating *t = arg;
    for (unsigned i = 0; i < 25 && !t->stop; i++) {
        OK(vmfs_keys_rotate(t->d, vmfs_kek_id(t->s->kek[0]), &err));
        gr_fiber_yield();
    }
    t->ended = true;
}

static int detached_rotated(void *arg)
{
    struct site s;
    struct gr_chan *ch, *cch;
    struct vkeys k;
    struct vmfs_stat st;
    (void)arg;
    make(&s);
    create(&s, "gold", VMFS_THIN);
    struct vmfs_disk *d = open_disk(&s, "gold", &ch);
    fill(ch, "what clones share");
    OK(snap_create(&d, 1, "s", &err));
    for (unsigned round = 0; round < 12; round++) {
        OK(snap_clone(d, "s", "c", &err));
        struct vmfs_disk *c = open_disk(&s, "c", &cch);
        struct rotating t = { .s = &s, .d = c };
        uint64_t origin = c->o->origin_epoch;
        struct gr_err why = { 0 };
        assert_int_equal(gr_fiber_start(s.loop, rotate_on, &t), 0);
        int r = vmfs_detach(c, &(struct vmfs_detach){ 0 }, NULL, &why);
        t.stop = true;
        while (!t.ended)
            gr_fiber_sleep_ms(1);
        vmfs_disk_stat(c, &st);
        if (r < 0) {
            assert_int_equal(r, -EAGAIN);
            assert_non_null(strstr(why.text, "try again"));
            assert_true(st.origin_id);
        }
        if (r < 0)
            OK(vmfs_detach(c, &(struct vmfs_detach){ 0 }, NULL, &err));
        OK(vkeys_read(c->o, &k, &err));
        assert_true(k.key[0].from > origin); /* none of the origin's */
        close_disk(c, cch);
        OK(vmfs_remove(s.v, "c", &err));
        OK(vmfs_settle(s.v, 5000));
    }
    close_disk(d, ch);
    check(&s);
    unmake(&s);
    return 0;
}

/* Something was given back just now. */
static bool space_can_go(const struct site *s)
{
    uint64_t before = s->v->stats.regions_given_back;
    OK(vmfs_regions_recall(s->v, &err));
    return s->v->stats.regions_given_back > before;
}

/* A thick disk can be written all over when the volume is full, also after its key changed; else it does not change. */
static int thick_on_full(void *arg)
{
    struct site s;
    struct gr_chan *ch, *other;
    struct vmfs_info info;
    struct gr_err e = { 0 };
    uint8_t *b = aligned_alloc(4096, 1 << 20);
    make(&s);
    create(&s, "thick", VMFS_THICK);
    vmfs_info(s.v, &info);
    OK(vmfs_create(s.v, "rest", VMFS_DISK, (info.free - (8u << 20)) & ~65535ull, VMFS_THICK, &err));
    struct vmfs_disk *d = open_disk(&s, "thick", &ch);
    memset(b, 5, 1 << 20);
    for (size_t at = 0; at < DISK; at += 1 << 20)
        assert_int_equal(gr_pwrite(ch, b, 1 << 20, at, 0), 0);
    assert_int_equal(vmfs_keys_rotate(d, vmfs_kek_id(s.kek[0]), &e), -GR_ENOSPACE);
    assert_non_null(strstr(e.text, "bytes are missing"));
    OK(vmfs_remove(s.v, "rest", &err));
    OK(vmfs_settle(s.v, 5000));
    OK(vmfs_checkpoint(s.v, &err));
    while (space_can_go(&s))
        ;
    struct vmfs_join_opts o = { .role = VMFS_HOST, .host_name = "other", .host_uuid = { 2 } };
    OK(vmfs_join(s.loop, &s.dev, 1, &o, &s.beside, &err));
    struct vmfs *beside = s.beside;
    while (space_lease_any(beside, NULL) == 0)
        ; /* what is free is another host's, which keeps it */
    beside->sp.stay++;
    OK(vmfs_free_look(s.v, &err));
    vmfs_info(s.v, &info);
    assert_true(info.free > 2 * DISK);
    e = (struct gr_err){ 0 };
    assert_int_equal(vmfs_keys_rotate(d, vmfs_kek_id(s.kek[0]), &e), -GR_ENOSPACE);
    assert_non_null(strstr(e.text, "bytes are missing"));
    beside->sp.stay--;
    s.v->sp.asked_ns = 0; /* so soon after nobody had anything nobody would be asked */
    OK(vmfs_keys_rotate(d, vmfs_kek_id(s.kek[0]), &err)); /* it gives it back */
    assert_true(beside->stats.regions_given_back > 0);
    s.beside = NULL;
    OK(vmfs_leave(beside, &err));
    OK(vmfs_create(s.v, "glutton", VMFS_DISK, SIZE, VMFS_THIN, &err));
    struct vmfs_disk *g = open_disk(&s, "glutton", &other);
    int r = 0;
    for (size_t at = 0; r == 0 && at < SIZE; at += 1 << 20)
        r = gr_pwrite(other, b, 1 << 20, at, 0);
    assert_int_equal(r, -GR_ENOSPACE);
    memset(b, 6, 1 << 20);
    for (size_t at = 0; at < DISK; at += 1 << 20)
        assert_int_equal(gr_pwrite(ch, b, 1 << 20, at, 0), 0);
    close_disk(g, other);
    close_disk(d, ch);
    check(&s);
    free(b);
    unmake(&s);
    return 0;
}

/* The block of keys lies on a device that leaves: it is found at its new place, and cannot change while it moves. */
struct leaving {
    struct vmfs_disk *d;
    struct site *s;
    unsigned refused;
};
static int while_it_leaves(void *arg, uint64_t done, uint64_t all, struct gr_err *err)
{
    struct leaving *l = arg;
    l->refused += vmfs_keys_rewrap(l->d, vmfs_kek_id(l->s->kek[1]), NULL) == -EBUSY;
    return 0;
}

static int device_leaves(void *arg)
{
    struct site s;
    struct gr_chan *ch;
    struct vmfs_info info;
    struct gr_bdev *more[2];
    struct gr_mem *mem[2];
    struct vmfs_device_add add = { 0 };
    uint64_t at;
    make(&s);
    vmfs_info(s.v, &info);
    OK(vmfs_create(s.v, "filler", VMFS_DISK, (info.free - (5u << 20)) & ~65535ull, VMFS_THICK, &err));
    for (unsigned i = 0; i < 2; i++) {
        mem[i] = gr_mem_new(128 << 20);
        assert_int_equal(gr_bdev_mem_open(s.loop, mem[i], &more[i]), 0);
    }
    OK(vmfs_device_add(s.v, more[0], &add, &err));
    for (unsigned i = 0;; i++) { /* until one has its keys on it */
        char name[8];
        snprintf(name, sizeof name, "d%u", i);
        assert_true(i < 2000);
        create(&s, name, VMFS_THIN);
        struct vmfs_disk *d = open_disk(&s, name, &ch);
        assert_true(vkeys_where(d->o, 0, &at));
        if (vmfs_addr_dev(at) == 1) {
            fill(ch, "carried elsewhere");
            OK(snap_create(&d, 1, "s", &err));
            OK(vmfs_device_add(s.v, more[1], &add, &err));
            struct leaving l = { d, &s, 0 };
            OK(vmfs_device_remove(s.v, 1, &(struct vmfs_device_remove){ .progress = while_it_leaves, .arg = &l }, &err));
            assert_true(l.refused);
            OK(vmfs_keys_rewrap(d, vmfs_kek_id(s.kek[1]), &err));
            close_disk(d, ch);
            check(&s);
            uint8_t b[4096];
            d = open_disk(&s, name, &ch);
            assert_int_equal(gr_pread(ch, b, 4096, 1 << 20), 0);
            assert_memory_equal(b, "carried elsewhere", 16);
            close_disk(d, ch);
            OK(vmfs_remove(s.v, name, &err));
            OK(vmfs_settle(s.v, 5000));
            break;
        }
        close_disk(d, ch);
    }
    check(&s);
    unmake(&s);
    for (unsigned i = 0; i < 2; i++) {
        gr_bdev_put(more[i]);
        gr_mem_free(mem[i]);
    }
    return 0;
}

/* One copy of the keys is enough, and both are there again at the next opening; an older one does not count. Without any the disk is lost,
 * and says so; it can be removed. What is encrypted is never shared by a copy. */
static int damaged(void *arg)
{
    struct site s;
    struct gr_chan *ch, *other;
    struct gr_err e = { 0 };
    struct vmfs_disk *d, *p;
    uint64_t at[2];
    uint8_t *b = aligned_alloc(4096, 4096), *old = aligned_alloc(4096, 4096);
    make(&s);
    create(&s, "disk", VMFS_THIN);
    create(&s, "twin", VMFS_THIN);
    d = open_disk(&s, "disk", &ch);
    p = open_disk(&s, "twin", &other);
    fill(ch, "worth some care.");
    struct gr_bio copy = { .op = GR_OP_COPY, .off = 1 << 20, .len = 65536, .copy_src = ch, .copy_src_off = 1 << 20 };
    assert_int_equal(gr_submit_wait(other, &copy), -EOPNOTSUPP);
    close_disk(p, other);
    for (unsigned i = 0; i < 2; i++)
        assert_true(vkeys_where(d->o, i, &at[i]));
    assert_int_equal(gr_pread(s.raw, old, 4096, vmfs_addr_unit(at[0]) * 4096), 0);
    OK(vmfs_keys_rotate(d, vmfs_kek_id(s.kek[0]), &err));
    fill(ch, "with the new key");
    close_disk(d, ch);
    for (unsigned i = 0; i < 3; i++) { /* the first rots, the second rots, the first is an older one */
        memset(b, 0x5a, 4096);
        assert_int_equal(gr_pwrite(s.raw, i == 2 ? old : b, 4096, vmfs_addr_unit(at[i == 1]) * 4096, 0), 0);
        check(&s);
        assert_true(i == 2 || strstr(s.found, "one copy of its keys is damaged"));
        d = open_disk(&s, "disk", &ch);
        assert_int_equal(gr_pread(ch, b, 4096, 1 << 20), 0);
        assert_memory_equal(b, "with the new key", 16);
        close_disk(d, ch);
        check(&s);
        assert_string_equal(s.found, "");
        memset(b, 0x5a, 4096);
        assert_int_equal(gr_pwrite(s.raw, b, 4096, vmfs_addr_unit(at[i != 1]) * 4096, 0), 0); /* the other one is as good now */
        d = open_disk(&s, "disk", &ch);
        assert_int_equal(gr_pread(ch, b, 4096, 1 << 20), 0);
        assert_memory_equal(b, "with the new key", 16);
        close_disk(d, ch);
    }
    for (unsigned i = 0; i < 2; i++)
        assert_int_equal(gr_pwrite(s.raw, memset(b, 7, 4096), 4096, vmfs_addr_unit(at[i]) * 4096, 0), 0);
    assert_int_equal(vmfs_open(s.v, "disk", &d, NULL, &e), -GR_ECORRUPT);
    assert_non_null(strstr(e.text, "its keys cannot be read"));
    struct vmfs_check_report rep;
    s.found[0] = 0;
    assert_int_equal(vmfs_check(s.v, collect, &s, &rep, NULL), -GR_ECORRUPT);
    assert_non_null(strstr(s.found, "both copies of its keys are damaged"));
    OK(vmfs_remove(s.v, "disk", &err));
    OK(vmfs_settle(s.v, 5000));
    check(&s);
    free(b);
    free(old);
    unmake(&s);
    return 0;
}

/* Keys change while snapshots begin epochs, too, writes are under way, and the device takes its time: each piece is read with the key it was
 * written with, also after the next start. */
struct race {
    struct gr_chan *ch;
    struct vmfs_disk *d;
    struct gr_fiber *fiber;
    unsigned left;
    bool over;
};
static void race_ended(struct race *r)
{
    if (--r->left == 0)
        gr_fiber_wake(r->fiber);
}
static void race_snapshots(void *arg)
{
    struct race *r = arg;
    for (unsigned i = 0; i < 5; i++) {
        char name[16];
        snprintf(name, sizeof name, "r%u", i);
        OK(snap_create(&r->d, 1, name, &err));
        if (i % 3 == 2)
            OK(snap_delete(r->d, name, false, &err));
    }
    r->over = true;
    race_ended(r);
}
static void race_writes(void *arg)
{
    struct race *r = arg;
    uint8_t *b = aligned_alloc(4096, 8192);
    for (uint64_t i = 0; !r->over; i++) {
        memset(b, (int)(i % 251 + 1), 8192);
        for (uint64_t at = i % 5; at < 400; at += 5) /* values and places: those of the last round are there */
            if (i % 7 == at % 7)
                assert_int_equal(gr_pwrite(r->ch, b, 4096, at * 4096, i % 2 ? GR_BIO_FUA : 0), 0);
        gr_fiber_yield();
    }
    free(b);
    race_ended(r);
}
static void race_keys(void *arg)
{
    struct race *r = arg;
    struct gr_err e = { 0 };
    unsigned left;
    while (!r->over) {
        int k = vmfs_keys_rotate(r->d, r->d->o->ino.key_id, &e);
        if (k == 0)
            k = vmfs_keys_rewrite(r->d, NULL, NULL, &left, &e);
        if (k < 0 && k != -GR_ENOSPACE)
            fail_msg("%s", e.text);
    }
    race_ended(r);
}

static void race_rotate(void *arg)
{
    struct race *r = arg;
    OK(vmfs_keys_rotate(r->d, r->d->o->ino.key_id, &err));
    race_ended(r);
}

/* A snapshot is asked for, and a write, while the new key is on its way to the device. */
static void in_between(struct site *s, struct race *r, unsigned n)
{
    char name[16];
    uint8_t *b = aligned_alloc(4096, 8192);
    snprintf(name, sizeof name, "m%u", n);
    r->left = 1;
    assert_int_equal(gr_fiber_start(s->loop, race_rotate, r), 0);
    OK(snap_create(&r->d, 1, name, &err)); /* it runs first, until the device has something to do */
    memset(b, (int)n + 1, 4096);
    assert_int_equal(gr_pwrite(r->ch, b, 4096, (500 + n) * 4096, 0), 0);
    while (r->left)
        gr_fiber_suspend();
    assert_int_equal(gr_pread(r->ch, b + 4096, 4096, (500 + n) * 4096), 0);
    assert_memory_equal(b, b + 4096, 4096);
    free(b);
}

static int races(void *arg)
{
    struct site s;
    struct race r = { .fiber = gr_fiber_self(), .left = 0 };
    struct gr_bdev *slow;
    uint8_t *before = aligned_alloc(4096, DISK), *after = aligned_alloc(4096, DISK);
    make(&s);
    create(&s, "disk", VMFS_THIN);
    OK(vmfs_leave(s.v, &err));
    assert_int_equal(gr_bdev_delay_open(s.loop, s.dev, 0, 700000, 300000, &slow), 0);
    struct vmfs_join_opts o = { .role = VMFS_HOST, .host_name = "keys", .kek = kek, .kek_arg = &s };
    OK(vmfs_join(s.loop, &slow, 1, &o, &s.v, &err));
    r.d = open_disk(&s, "disk", &r.ch);
    for (unsigned i = 0; i < 4; i++)
        in_between(&s, &r, i);
    r.left = 3;
    assert_int_equal(gr_fiber_start(s.loop, race_snapshots, &r), 0);
    assert_int_equal(gr_fiber_start(s.loop, race_writes, &r), 0);
    assert_int_equal(gr_fiber_start(s.loop, race_keys, &r), 0);
    while (r.left)
        gr_fiber_suspend();
    assert_int_equal(gr_pread(r.ch, before, DISK, 0), 0);
    for (size_t i = 0; i < DISK; i += 4096) /* each piece is one value all over: nothing was read with another key */
        assert_memory_equal(before + i, before + i + 1, 4095);
    struct gr_bdev *snap;
    struct gr_chan *ch;
    OK(snap_open(r.d, "r0", &snap, &err));
    assert_int_equal(gr_chan_open(snap, s.loop, &ch), 0);
    assert_int_equal(gr_pread(ch, after, DISK, 0), 0);
    gr_chan_close(ch);
    gr_bdev_put(snap);
    for (size_t i = 0; i < DISK; i += 4096)
        assert_memory_equal(after + i, after + i + 1, 4095);
    close_disk(r.d, r.ch);
    OK(vmfs_leave(s.v, &err));
    gr_bdev_put(slow);
    join(&s);
    check(&s);
    r.d = open_disk(&s, "disk", &r.ch);
    assert_int_equal(gr_pread(r.ch, after, DISK, 0), 0);
    assert_memory_equal(before, after, DISK);
    close_disk(r.d, r.ch);
    free(before);
    free(after);
    unmake(&s);
    return 0;
}

/* A write that waited for memory to be encrypted in is counted once while it is under way, and then not any more: quotas would refuse others. */
static void put_later(void *arg)
{
    struct site *s = arg;
    gr_fiber_sleep_ms(5);
    while (s->n_taken)
        vbounce_put(s->v, s->taken[--s->n_taken], 1 << 20);
}

static int counted_once(void *arg)
{
    (void)arg;
    struct site s;
    struct gr_chan *ch;
    make(&s);
    create(&s, "disk", VMFS_THIN);
    struct vmfs_disk *d = open_disk(&s, "disk", &ch);
    while ((s.taken[s.n_taken] = vbounce_get(s.v, 1 << 20)))
        s.n_taken++;
    assert_int_equal(gr_fiber_start(s.loop, put_later, &s), 0);
    fill(ch, "waits for memory");
    assert_int_equal(s.n_taken, 0);
    assert_int_equal(d->o->quota_pending, 0);
    close_disk(d, ch);
    unmake(&s);
    return 0;
}

/* The keys change while a write waits for memory: it is sealed with what they are then. */
static void rewrite_work(void *arg)
{
    struct gr_chan **ch = arg;
    fill(*ch, "waits for a key.");
    gr_chan_close(gr_take(*ch));
}

static int keys_change_meanwhile(void *arg)
{
    (void)arg;
    struct site s;
    struct gr_chan *ch, *other;
    struct vkeys k;
    uint8_t b[4096];
    make(&s);
    create(&s, "disk", VMFS_THIN);
    struct vmfs_disk *d = open_disk(&s, "disk", &ch);
    fill(ch, "under the old one");
    OK(vmfs_keys_rotate(d, vmfs_kek_id(s.kek[0]), &err));
    fill(ch, "under the new one");
    OK(vmfs_checkpoint(s.v, &err));
    OK(vkeys_read(d->o, &k, &err));
    assert_int_equal(k.n, 2);
    while ((s.taken[s.n_taken] = vbounce_get(s.v, 1 << 20)))
        s.n_taken++;
    assert_int_equal(gr_chan_open(vmfs_bdev(d), s.loop, &other), 0);
    assert_int_equal(gr_fiber_start(s.loop, rewrite_work, &other), 0);
    gr_fiber_sleep_ms(5);
    OK(vkeys_forget_unneeded(d, &err));
    OK(vkeys_read(d->o, &k, &err));
    assert_int_equal(k.n, 1);
    assert_non_null(other);
    put_later(&s);
    while (other)
        gr_fiber_sleep_ms(1);
    close_disk(d, ch);
    assert_int_equal(vmfs_leave(s.v, NULL), 0);
    join(&s);
    d = open_disk(&s, "disk", &ch);
    assert_int_equal(gr_pread(ch, b, 4096, 1 << 20), 0);
    assert_memory_equal(b, "waits for a key.", 16);
    close_disk(d, ch);
    unmake(&s);
    return 0;
}

static void test_keys_change_meanwhile(void **state) { test_in_fiber(keys_change_meanwhile, NULL); }
static void test_counted_once(void **state) { test_in_fiber(counted_once, NULL); }
static void test_races(void **state) { test_in_fiber(races, NULL); }
static void test_damaged(void **state) { test_in_fiber(damaged, NULL); }
static void test_leaves(void **state) { test_in_fiber(device_leaves, NULL); }
static void test_thick(void **state) { test_in_fiber(thick_on_full, NULL); }
static void test_no_plaintext(void **state)
{
    test_in_fiber(no_plaintext, NULL);
    test_in_fiber(no_plaintext, &(int){ 1 }); /* with CRCs of data */
}
static void test_without_key(void **state) { test_in_fiber(without_key, NULL); }
static void test_erased(void **state) { test_in_fiber(erased, NULL); }
static void test_oracle(void **state) { test_in_fiber(against_oracle, NULL); }
static void test_old_keys(void **state) { test_in_fiber(old_keys_go, NULL); }
static void test_detached(void **state) { test_in_fiber(detached_forgets, NULL); }
static void test_detached_rotated(void **state) { test_in_fiber(detached_rotated, NULL); }

TEST_MAIN(TEST(test_no_plaintext), TEST(test_without_key), TEST(test_erased), TEST(test_oracle), TEST(test_thick), TEST(test_leaves), TEST(test_damaged), TEST(test_races), TEST(test_counted_once), TEST(test_keys_change_meanwhile), TEST(test_old_keys), TEST(test_detached), TEST(test_detached_rotated))
