/* Encrypted regular files: no byte of them is on the device in clear, however long they become; what needs the key, and what does not; and their
 * keys are gone when they are, whoever removed them, also when a cut came between. */
#include "common/cleanup.h"
#include "tests/lib/test.h"
#include "tests/lib/volfix.h"
#include "vmfs/files.h"
#include "vmfs/keys.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DEVICE ((size_t)96 << 20)
#define LONG ((size_t)5 << 20)
#define ODD (LONG - 1234 * 3) /* no multiple of anything */

struct keyring {
    uint8_t kek[2][32];
    bool have[2];
};

static int kek(void *arg, uint64_t id, uint8_t ret[32])
{
    struct keyring *k = arg;
    for (unsigned i = 0; i < 2; i++)
        if (k->have[i] && vmfs_kek_id(k->kek[i]) == id) {
            memcpy(ret, k->kek[i], 32);
            return 0;
        }
    return -ENOKEY;
}

static struct keyring keys(void)
{
    struct keyring k = { .have = { true, true } };
    memset(k.kek[0], 3, 32);
    memset(k.kek[1], 7, 32);
    return k;
}

static struct vmfs_join_opts opts(struct keyring *k) { return (struct vmfs_join_opts){ .role = VMFS_HOST, .host_name = "files", .kek = kek, .kek_arg = k }; }

static bool on_device(struct volfix *f, const void *what, size_t len)
{
    uint8_t *b = aligned_alloc(4096, DEVICE);
    assert_int_equal(gr_pread(f->raw, b, DEVICE, 0), 0);
    bool found = memmem(b, DEVICE, what, len) != NULL;
    free(b);
    return found;
}

/* As a stream comes: longer than it will be, in parts, and cut to its length in the end. */
static void write_long(struct volfix *f, const char *path, const char word[16])
{
    struct vmfs_disk *d;
    struct gr_chan *ch;
    uint8_t *b = aligned_alloc(4096, LONG);
    for (size_t i = 0; i < LONG; i += 16)
        memcpy(b + i, word, 16);
    OK(vmfs_open(f->v, path, &d, NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(d), f->loop, &ch), 0);
    OK(vmfs_file_resize(d, LONG, &err));
    assert_int_equal(gr_pwrite(ch, b, LONG, 0, 0), 0);
    assert_int_equal(gr_pwrite(ch, b, 512, 1024, GR_BIO_FUA), 0); /* in place, part of a piece */
    OK(vmfs_file_resize(d, ODD, &err));
    assert_int_equal(gr_flush(ch), 0);
    gr_chan_close(ch);
    vmfs_close(d);
    free(b);
}

static void compare(struct volfix *f, const char *path, const char word[16])
{
    void *all = NULL;
    size_t len = 0;
    OK(vmfs_file_read(f->v, path, LONG, &all, &len, &err));
    assert_int_equal(len, ODD);
    for (size_t i = 0; i < ODD; i++)
        if (((char *)all)[i] != word[i % 16])
            fail_msg("%s differs at %zu", path, i);
    free(all);
}

static void make_file(struct volfix *f, struct keyring *k, const char *path, const char word[16])
{
    uint64_t made;
    OK(vmfs_create_file(f->v, path, vmfs_kek_id(k->kek[0]), &made, &err));
    write_long(f, path, word);
}

/* Its data key as it lies on the device. */
static struct vkey wrapped(struct volfix *f, const char *path)
{
    struct vmfs_stat st;
    struct vkeys now;
    struct vobj *o;
    OK(vmfs_stat(f->v, path, &st, &err));
    OK(vobj_hold(f->v, st.id, 0, &o, NULL, &err));
    OK(vkeys_read(o, &now, &err));
    assert_int_equal(now.n, 1);
    assert_true(on_device(f, now.key[0].wrapped, sizeof now.key[0].wrapped));
    return now.key[0];
}

static void gone(struct volfix *f, const struct vkey *key)
{
    assert_false(on_device(f, key->wrapped, sizeof key->wrapped));
}

static int no_plaintext(void *arg)
{
    static const char plain[] = "a file like any.", secret[] = "the guest's own.";
    struct keyring k = keys();
    struct vmfs_join_opts o = opts(&k);
    struct volfix f;
    struct vmfs_stat st;
    uint64_t made;
    volfix_make(&f, DEVICE, "disk", 1 << 20, arg, &o);
    make_file(&f, &k, "vm/memory", secret);
    compare(&f, "vm/memory", secret); /* held here */
    OK(vmfs_stat(f.v, "vm/memory", &st, &err));
    assert_true(st.key_id == vmfs_kek_id(k.kek[0]));
    FAILS(-EEXIST, "vm/memory", vmfs_create_file(f.v, "vm/memory", vmfs_kek_id(k.kek[0]), &made, &err));
    OK(vmfs_release(f.v, "vm/memory", &err));
    compare(&f, "vm/memory", secret); /* by nobody */
    assert_false(on_device(&f, secret, 16));
    volfix_close(&f); /* killed: its journal is replayed */
    vmfs_abandon(f.v);
    volfix_join(&f, &o);
    volfix_open(&f);
    compare(&f, "vm/memory", secret);
    OK(vmfs_create(f.v, "plain", VMFS_FILE, 0, VMFS_THIN, &err));
    write_long(&f, "plain", plain);
    assert_true(on_device(&f, plain, 16));
    assert_false(on_device(&f, secret, 16));
    volfix_unmake(&f);
    return 0;
}

static int without_key(void *arg)
{
    static const char secret[] = "behind the door.";
    struct keyring k = keys();
    struct vmfs_join_opts o = opts(&k);
    struct volfix f;
    struct vmfs_disk *d;
    struct vmfs_stat st;
    uint64_t made;
    void *all = NULL;
    size_t len;
    char id[17];
    volfix_make(&f, DEVICE, "disk", 1 << 20, false, &o);
    snprintf(id, sizeof id, "%016llx", (unsigned long long)vmfs_kek_id(k.kek[0]));
    make_file(&f, &k, "memory", secret);
    struct vkey first = wrapped(&f, "memory");
    k.have[0] = false;
    volfix_again(&f, &o);
    FAILS(-ENOKEY, id, vmfs_open(f.v, "memory", &d, NULL, &err));
    FAILS(-ENOKEY, id, vmfs_file_read(f.v, "memory", LONG, &all, &len, &err));
    FAILS(-ENOKEY, id, vmfs_create_file(f.v, "new", vmfs_kek_id(k.kek[0]), &made, &err));
    FAILS(-ENOENT, "new", vmfs_stat(f.v, "new", &st, &err));
    k.have[0] = true; /* wrapped with another key, it needs that one only */
    OK(vmfs_open(f.v, "memory", &d, NULL, &err));
    OK(vmfs_keys_rewrap(d, vmfs_kek_id(k.kek[1]), &err));
    vmfs_close(d);
    gone(&f, &first);
    k.have[0] = false;
    volfix_again(&f, &o);
    compare(&f, "memory", secret);
    struct vkey second = wrapped(&f, "memory");
    k.have[1] = false; /* no key is needed to end it */
    volfix_again(&f, &o);
    OK(vmfs_remove(f.v, "memory", &err));
    gone(&f, &second);
    volfix_unmake(&f);
    return 0;
}

static uint64_t unlinked(struct volfix *f, const char *path)
{
    struct vmfs_lost lost;
    OK(vmfs_unlink(f->v, VMFS_ROOT_ID, path, false, 0, 1, &lost, &err));
    return lost.id;
}

/* By path; by name through a mount, where who has it open reads on; replaced there; and when whoever should have ended it did not come to it. */
static int keys_go(void *arg)
{
    static const char secret[] = "it must not last";
    struct keyring k = keys();
    struct vmfs_join_opts o = opts(&k);
    struct volfix f;
    struct vmfs_disk *d;
    struct vmfs_lost lost;
    struct vkey key[4];
    char name[4][3] = { "m0", "m1", "m2", "m3" };
    volfix_make(&f, DEVICE, "disk", 1 << 20, false, &o);
    for (unsigned i = 0; i < 4; i++) {
        make_file(&f, &k, name[i], secret);
        key[i] = wrapped(&f, name[i]);
    }
    OK(vmfs_remove(f.v, "m0", &err));
    gone(&f, &key[0]);
    OK(vmfs_open(f.v, "m1", &d, NULL, &err));
    uint64_t id = unlinked(&f, "m1");
    FAILS(-EBUSY, "is open", vmfs_file_end(f.v, id, &err));
    assert_true(on_device(&f, key[1].wrapped, sizeof key[1].wrapped));
    vmfs_close(d);
    k.have[0] = false; /* no key is needed for it */
    OK(vmfs_file_end(f.v, id, &err));
    gone(&f, &key[1]);
    OK(vmfs_create(f.v, "other", VMFS_FILE, 0, VMFS_THIN, &err));
    OK(vmfs_move(f.v, VMFS_ROOT_ID, "other", VMFS_ROOT_ID, "m2", 0, 0, 1, &lost, &err));
    OK(vmfs_file_end(f.v, lost.id, &err));
    gone(&f, &key[2]);
    unlinked(&f, "m3");
    volfix_close(&f);
    vmfs_abandon(f.v);
    volfix_join(&f, &o);
    volfix_open(&f);
    OK(vmfs_settle(f.v, 5000));
    gone(&f, &key[3]);
    volfix_unmake(&f);
    return 0;
}

static void test_no_plaintext(void **state)
{
    test_in_fiber(no_plaintext, NULL);
    test_in_fiber(no_plaintext, &(int){ 1 }); /* with CRCs of data */
}
static void test_without_key(void **state) { test_in_fiber(without_key, NULL); }
static void test_keys_go(void **state) { test_in_fiber(keys_go, NULL); }

TEST_MAIN(TEST(test_no_plaintext), TEST(test_without_key), TEST(test_keys_go))
