/* Raw LUNs: their devices (identity, store, claim, growth), the registry of a home, and the directory that has them beside disks. */
#include "common/buf.h"
#include "common/cleanup.h"
#include "common/fiber.h"
#include "common/seam.h"
#include "iscsi-target/raw_int.h"
#include "tests/lib/test.h"
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#define UUID_TEXT "11111111-2222-4333-8444-555555555555"

static struct tgt_raw_opts opts_of(const char *file, const char *store)
{
    struct tgt_raw_opts o = {.file = file, .store = store};
    gr_uuid_parse(UUID_TEXT, o.uuid);
    return o;
}

static char *below(const char *a, const char *b)
{
    return gr_asprintf("%s/%s/%s", test_dir(), a, b);
}

/* ---- the device ---- */
static int device_body(void *arg)
{
    gr_auto_free char *file = test_path("device"), *store = below("device-state/luns", "x");
    struct tgt_raw_opts o = opts_of(file, store);
    struct gr_loop *loop = gr_fiber_loop();
    struct gr_bdev *b = NULL, *other = NULL;
    struct gr_geometry g;
    struct gr_err err = {0};
    struct stat st;
    assert_int_equal(tgt_raw_bdev_open(loop, &o, &b, &err), -ENOENT);
    o.create = true;
    o.size = 8 << 20;
    assert_int_equal(tgt_raw_bdev_open(loop, &o, &b, &err), 0);
    assert_int_equal(gr_bdev_geometry(b, &g), 0);
    assert_int_equal(g.size, 8 << 20);
    assert_memory_equal(g.uuid, o.uuid, 16);
    assert_int_equal(stat(store, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0700);

    /* one process, one handle; nothing is harmed by who is refused */
    assert_int_equal(tgt_raw_bdev_open(loop, &o, &other, &err), -EEXIST);
    o.create = false;
    assert_int_equal(tgt_raw_bdev_open(loop, &o, &other, &err), -GR_ELOCKED);
    assert_non_null(strstr(err.text, "another GRANARY_HOME"));
    o.read_only = true; /* who only reads would see what the other has not flushed */
    assert_int_equal(tgt_raw_bdev_open(loop, &o, &other, &err), -GR_ELOCKED);
    assert_int_equal(stat(file, &st), 0);
    assert_int_equal(tgt_raw_bdev_peek(loop, &o, &g), 0);
    assert_int_equal(g.size, 8 << 20);

    assert_int_equal(tgt_raw_bdev_grow(loop, b, 4 << 20, &err), -EINVAL);
    assert_int_equal(tgt_raw_bdev_grow(loop, b, 16 << 20, &err), 0);
    assert_int_equal(gr_bdev_geometry(b, &g), 0);
    assert_int_equal(g.size, 16 << 20);
    gr_bdev_put(b);

    /* readers share */
    assert_int_equal(tgt_raw_bdev_open(loop, &o, &b, &err), 0);
    assert_int_equal(tgt_raw_bdev_open(loop, &o, &other, &err), 0);
    assert_int_equal(gr_bdev_geometry(b, &g), 0);
    assert_true(g.read_only);
    gr_bdev_put(other);
    o.read_only = false;
    assert_int_equal(tgt_raw_bdev_open(loop, &o, &other, &err), -GR_ELOCKED);
    gr_bdev_put(b);
    return 0;
}

static void device(void **state)
{
    test_in_fiber(device_body, NULL);
}

static int bytes_body(void *arg)
{
    gr_auto_free char *file = test_path("bytes"), *store = below("bytes-state/luns", "x");
    struct tgt_raw_opts o = opts_of(file, store);
    uint8_t buf[4096], in[4096], one[512], two[512];
    struct gr_bdev *b = NULL;
    struct gr_chan *ch = NULL;
    struct gr_extent e[4];
    unsigned n = 0;
    uint64_t at = 99;
    o.create = true;
    o.size = 1 << 20;
    memset(buf, 7, sizeof buf);
    memset(one, 7, sizeof one);
    memset(two, 8, sizeof two);
    assert_int_equal(tgt_raw_bdev_open(gr_fiber_loop(), &o, &b, NULL), 0);
    assert_int_equal(gr_chan_open(b, gr_fiber_loop(), &ch), 0);
    assert_int_equal(gr_pwrite(ch, buf, sizeof buf, 65536, 0), 0);
    assert_int_equal(gr_flush(ch), 0);
    assert_int_equal(gr_compare_write(ch, 65536, two, one, sizeof one, &at), -GR_EMISCOMPARE);
    assert_int_equal(at, 0);
    assert_int_equal(gr_compare_write(ch, 65536, one, two, sizeof one, &at), 0);
    assert_int_equal(gr_pread(ch, in, sizeof in, 65536), 0);
    assert_memory_equal(in, two, sizeof two);
    assert_memory_equal(in + 512, buf, sizeof buf - 512);
    assert_int_equal(gr_extents(ch, 0, 1 << 20, NULL, e, 4, &n), 0);
    assert_true(n >= 2 && (e[0].flags & GR_EXTENT_HOLE));
    assert_int_equal(gr_unmap(ch, 65536, 4096, 0), 0);
    assert_int_equal(gr_extents(ch, 0, 1 << 20, NULL, e, 4, &n), 0);
    assert_int_equal(n, 1);
    assert_int_equal(gr_pread(ch, in, sizeof in, 1 << 20), -GR_ERANGE);
    gr_chan_close(ch);
    gr_bdev_put(b);
    return 0;
}

static void bytes(void **state)
{
    test_in_fiber(bytes_body, NULL);
}

static int store_body(void *arg)
{
    gr_auto_free char *dir = below("store/luns", "x"), *path = gr_asprintf("%s/reservations", dir);
    static uint8_t large[65537];
    void *val = NULL;
    struct stat st;
    assert_int_equal(tgt_raw_store_get(dir, "reservations", &val, NULL), -ENOENT);
    assert_int_equal(tgt_raw_store_make(dir, NULL), 0);
    assert_int_equal(tgt_raw_store_get(dir, "reservations", &val, NULL), -ENOENT);
    assert_int_equal(tgt_raw_store_set(dir, "reservations", "", 0, NULL), 0);
    assert_int_equal(tgt_raw_store_set(dir, "reservations", "one", 3, NULL), 0);
    assert_int_equal(tgt_raw_store_set(dir, "reservations", "other", 5, NULL), 0);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_int_equal(tgt_raw_store_get(dir, "reservations", &val, NULL), 5);
    assert_memory_equal(val, "other", 5);
    free(val);
    assert_int_equal(tgt_raw_store_set(dir, "large", large, 65536, NULL), 0);
    assert_int_equal(tgt_raw_store_get(dir, "large", &val, NULL), 65536);
    free(val);
    assert_int_equal(tgt_raw_store_set(dir, "large", large, 65537, NULL), -EFBIG);
    static const char *const keys[] = {"", ".", "..", "../x", "a/b", "A", "abcdefghijklmnopqrstuvwxyz0123456"};
    for (size_t i = 0; i < GR_ARRAY_LEN(keys); i++) {
        assert_int_equal(tgt_raw_store_set(dir, keys[i], "x", 1, NULL), -EINVAL);
        assert_int_equal(tgt_raw_store_get(dir, keys[i], &val, NULL), -EINVAL);
    }
    assert_int_equal(tgt_raw_store_set(dir, "reservations", NULL, 0, NULL), 0);
    assert_int_equal(tgt_raw_store_get(dir, "reservations", &val, NULL), -ENOENT);
    assert_int_equal(tgt_raw_store_remove(dir, NULL), 0);
    assert_int_equal(stat(dir, &st), -1);
    assert_int_equal(tgt_raw_store_remove(dir, NULL), 0);
    struct gr_err err = {0};
    assert_true(tgt_raw_store_set(dir, "reservations", "x", 1, &err) < 0); /* what cannot be kept is not said to be */
    assert_non_null(strstr(err.text, path));
    return 0;
}

static void store(void **state)
{
    test_in_fiber(store_body, NULL);
}

/* ---- names and addresses ---- */
static void names(void **state)
{
    static const char *const good[] = {"a", "array1", "Array 1.b_c-d", "größe"};
    static const char *const bad[] = {"", "ds/disk", "a@b", "a:b", "*", ".a", "-a", "discovery", "a\nb", "\xff"};
    char longest[TGT_RAW_NAME_MAX + 2];
    memset(longest, 'x', sizeof longest);
    longest[TGT_RAW_NAME_MAX + 1] = 0;
    assert_int_equal(tgt_raw_name_check(longest, NULL), -GR_EUSAGE);
    longest[TGT_RAW_NAME_MAX] = 0;
    assert_int_equal(tgt_raw_name_check(longest, NULL), 0);
    for (size_t i = 0; i < GR_ARRAY_LEN(good); i++)
        assert_int_equal(tgt_raw_name_check(good[i], NULL), 0);
    for (size_t i = 0; i < GR_ARRAY_LEN(bad); i++)
        assert_int_equal(tgt_raw_name_check(bad[i], NULL), -GR_EUSAGE);
}

static void addresses(void **state)
{
    static const char *const good[] = {"host:3260", "10.0.0.1:1", "[fd00::1]:65535", "a.b-c.example:3260"};
    static const char *const bad[] = {"", "host", "host:", ":3260", "host:0", "host:65536", "host:32x", "fd00::1:3260", "[]:3260", "[fd00::1]", "ho st:1",
                                      "host,1:3260", "[fd00::1,1]:3260"};
    for (size_t i = 0; i < GR_ARRAY_LEN(good); i++)
        assert_int_equal(tgt_raw_address_check(good[i], NULL), 0);
    for (size_t i = 0; i < GR_ARRAY_LEN(bad); i++)
        assert_int_equal(tgt_raw_address_check(bad[i], NULL), -EINVAL);
}

/* ---- the registry ---- */
struct home {
    struct gr_home *home;
    struct gr_rpc_server *rpc;
    struct tgt_raw *raw;
    char *dir;
};

static void home_open(struct home *h, const char *name)
{
    static const struct tgt_directory nothing;
    h->dir = test_path(name);
    setenv("GRANARY_HOME", h->dir, 1);
    assert_int_equal(gr_home_open(1, &h->home, NULL), 0);
    assert_int_equal(tgt_raw_new(gr_fiber_loop(), h->home, &nothing, &h->raw, NULL), 0);
    assert_int_equal(gr_rpc_server_new(gr_fiber_loop(), &h->rpc), 0);
    assert_int_equal(gr_rpc_server_add(h->rpc, tgt_raw_methods, h->raw), 0);
}

static void home_close(struct home *h)
{
    gr_rpc_server_free(h->rpc);
    tgt_raw_free(h->raw);
    gr_home_free(h->home);
    free(h->dir);
}

static int call(struct home *h, const char *method, json_t *params, struct gr_err *err)
{
    json_t *res = NULL;
    int r = gr_rpc_local(h->rpc, method, params, NULL, NULL, &res, err);
    json_decref(res);
    return r;
}

static json_t *lun(const char *name, const char *file, json_int_t size)
{
    json_t *p = json_pack("{s:s,s:s}", "lun", name, "file", file);
    if (size)
        json_object_set_new(p, "size", json_integer(size));
    return p;
}

static int registry_body(void *arg)
{
    struct home h = {0};
    struct gr_err err = {0};
    struct stat st;
    home_open(&h, "home");
    gr_auto_free char *a = test_path("a.img"), *b = test_path("b.img"), *same = test_path("same.img");
    assert_int_equal(call(&h, "lun.add", lun("a", a, 1 << 20), &err), 0);
    assert_int_equal(call(&h, "lun.add", lun("a", b, 1 << 20), &err), -EEXIST);
    assert_int_equal(symlink(a, same), 0);
    assert_int_equal(call(&h, "lun.add", lun("b", same, 0), &err), -EEXIST);
    assert_non_null(strstr(err.text, "LUN 'a'"));
    assert_int_equal(call(&h, "lun.add", lun("b", b, 0), &err), -ENOENT);
    assert_int_equal(call(&h, "lun.add", lun("b", b, 1000), &err), -EINVAL);
    assert_int_equal(call(&h, "lun.add", lun("b", "relative", 4096), &err), -GR_EUSAGE);
    json_t *p = lun("b", b, 4096);
    json_object_set_new(p, "uuid", json_string("no uuid"));
    assert_int_equal(call(&h, "lun.add", p, &err), -EINVAL);
    assert_int_equal(stat(b, &st), -1); /* nothing was made */
    p = lun("b", b, 4096);
    json_object_set_new(p, "uuid", json_string(UUID_TEXT));
    assert_int_equal(call(&h, "lun.add", p, &err), 0);
    gr_auto_free char *c = test_path("c.img");
    p = lun("c", c, 4096);
    json_object_set_new(p, "uuid", json_string(UUID_TEXT));
    assert_int_equal(call(&h, "lun.add", p, &err), -EEXIST);
    assert_int_equal(call(&h, "lun.redirect", json_pack("{s:s,s:s}", "lun", "b", "to", "nowhere"), &err), -EINVAL);
    assert_int_equal(call(&h, "lun.redirect", json_pack("{s:s,s:s}", "lun", "b", "to", "10.0.0.9:3260"), &err), 0);
    assert_int_equal(call(&h, "lun.resize", json_pack("{s:s,s:I}", "lun", "b", "size", (json_int_t)8192), &err), -GR_ELOCKED);
    assert_int_equal(call(&h, "lun.resize", json_pack("{s:s,s:I}", "lun", "a", "size", (json_int_t)(2 << 20)), &err), 0);
    home_close(&h);

    /* what was written is what is read, under another process */
    h = (struct home){0};
    home_open(&h, "home");
    struct raw_lun *l = tgt_raw_find(h.raw, "b");
    uint8_t uuid[16];
    gr_uuid_parse(UUID_TEXT, uuid);
    assert_non_null(l);
    assert_memory_equal(l->uuid, uuid, 16);
    assert_string_equal(l->redirect, "10.0.0.9:3260");
    struct tgt_directory d = tgt_raw_directory(h.raw);
    struct tgt_place place = {0};
    assert_int_equal(d.lookup(d.arg, "b", "iqn.x", &place, &err), 0);
    assert_null(place.bdev);
    assert_string_equal(place.redirect, "10.0.0.9:3260");
    assert_int_equal(place.geometry.size, 4096);
    place = (struct tgt_place){0};
    assert_int_equal(d.lookup(d.arg, "a", "iqn.x", &place, &err), 0);
    struct gr_geometry g;
    assert_int_equal(gr_bdev_geometry(place.bdev, &g), 0);
    assert_int_equal(g.size, 2 << 20);
    gr_bdev_put(place.bdev);
    assert_int_equal(d.lookup(d.arg, "ds/disk", "iqn.x", &place, &err), -ENOENT);
    assert_int_equal(call(&h, "lun.redirect", json_pack("{s:s}", "lun", "b"), &err), 0);
    assert_null(l->redirect);
    gr_auto_free char *store = tgt_raw_store_dir(h.raw, l);
    assert_int_equal(stat(store, &st), 0);
    assert_int_equal(call(&h, "lun.remove", json_pack("{s:s}", "lun", "b"), &err), 0);
    assert_int_equal(stat(store, &st), -1);
    assert_int_equal(stat(b, &st), 0); /* the bytes stay */
    assert_int_equal(call(&h, "lun.remove", json_pack("{s:s}", "lun", "b"), &err), -ENOENT);
    home_close(&h);
    return 0;
}

static void registry(void **state)
{
    test_in_fiber(registry_body, NULL);
}

static int damaged_body(void *arg)
{
    static const char *const docs[] = {
        "[]", "{", "{\"version\": 2}", "{\"luns\": []}", "{\"luns\": {\"a\": 7}}", "{\"luns\": {\"a\": {\"file\": \"x\", \"uuid\": \"" UUID_TEXT "\"}}}",
        "{\"luns\": {\"a\": {\"file\": \"/x\", \"uuid\": \"1\"}}}", "{\"luns\": {\"a/b\": {\"file\": \"/x\", \"uuid\": \"" UUID_TEXT "\"}}}",
        "{\"luns\": {\"a\": {\"file\": \"/x\", \"uuid\": \"" UUID_TEXT "\", \"redirect\": \"x\"}}}"};
    static const struct tgt_directory nothing;
    gr_auto_free char *dir = test_path("damaged"), *path = gr_asprintf("%s/conf/luns.json", dir);
    struct gr_home *home = NULL;
    setenv("GRANARY_HOME", dir, 1);
    assert_int_equal(gr_home_open(1, &home, NULL), 0);
    for (size_t i = 0; i < GR_ARRAY_LEN(docs); i++) {
        struct tgt_raw *raw = NULL;
        struct gr_err err = {0};
        assert_int_equal(gr_file_replace(path, docs[i], strlen(docs[i]), 0600, NULL), 0);
        assert_true(tgt_raw_new(gr_fiber_loop(), home, &nothing, &raw, &err) < 0);
        assert_non_null(strstr(err.text, "conf/luns.json"));
    }
    gr_home_free(home);
    return 0;
}

static void damaged(void **state)
{
    test_in_fiber(damaged_body, NULL);
}

TEST_MAIN(TEST(device), TEST(bytes), TEST(store), TEST(names), TEST(addresses), TEST(registry), TEST(damaged))
