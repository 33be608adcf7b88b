/* QEMU's command line, iSCSI URLs and line splitting: nothing of a VM's or peer's text can become an option of its own. */
#include "common/cleanup.h"
#include "hv/lines.h"
#include "hv/qemu_argv.h"
#include "tests/lib/test.h"
#include <string.h>

#define UUID "01234567-89ab-4def-8123-456789abcdef"

/* Argument behind the n-th @name that holds @part, as JSON when @ret is given. */
static const char *find(const struct hv_argv *a, const char *name, const char *part)
{
    for (size_t i = 0; i + 1 < a->count; i++)
        if (!strcmp(a->v[i], name) && strstr(a->v[i + 1], part))
            return a->v[i + 1];
    return NULL;
}

static void make_launch(struct hv_launch *l, struct hv_vm *vm, const char *url)
{
    static const char text[] = "granary.version = \"1\"\nuuid.bios = \"" UUID "\"\nmemsize = \"512\"\nnumvcpus = \"2\"\n"
                               "disk0.fileName = \"ds/a,b=c/root\"\ndisk1.fileName = \"ds/data\"\ndisk1.interface = \"virtio-scsi\"\n";
    assert_int_equal(hv_vm_decode("ds/we,b", text, sizeof text - 1, vm, NULL), 0);
    *l = (struct hv_launch){.vm = vm, .initiator = hv_vm_initiator(vm), .dir = "/run", .memory_fd = -1};
    assert_int_equal(hv_lun_parse(url, &l->luns[0], NULL), 0);
    assert_int_equal(hv_lun_parse("iscsi://[::1]/iqn.b/3", &l->luns[1], NULL), 0);
}

static void done_launch(struct hv_launch *l, struct hv_vm *vm)
{
    for (int i = 0; i < HV_DISKS_MAX; i++)
        hv_lun_done(&l->luns[i]);
    free(l->initiator);
    hv_vm_done(vm);
}

static void test_argv(void **state)
{
    struct hv_launch l;
    struct hv_vm vm = {0};
    gr_auto(hv_argv_done) struct hv_argv a = {0};
    make_launch(&l, &vm, "iscsi://joe%se,cret@127.0.0.1:3999/iqn.2026-11.local.granary:ds:a/0");
    assert_int_equal(hv_qemu_argv(&l, &a, NULL), 0);
    const char *node = find(&a, "-blockdev", "\"lun0\"");
    json_auto_t *j = json_loads(node, 0, NULL);
    assert_string_equal(json_string_value(json_object_get(j, "portal")), "127.0.0.1:3999");
    assert_string_equal(json_string_value(json_object_get(j, "target")), "iqn.2026-11.local.granary:ds:a");
    assert_string_equal(json_string_value(json_object_get(j, "initiator-name")), HV_INITIATOR_PREFIX UUID ":0");
    assert_int_equal(json_integer_value(json_object_get(j, "timeout")), 3);
    assert_string_equal(json_string_value(json_object_get(j, "user")), "joe");
    assert_string_equal(json_string_value(json_object_get(j, "password-secret")), "secret0");
    assert_non_null(find(&a, "-object", "secret,id=secret0,file=/proc/self/fd/6"));
    /* no secret anywhere, and no text of the VM outside JSON */
    for (size_t i = 0; i < a.count; i++) {
        assert_null(strstr(a.v[i], "se,cret"));
        assert_null(strstr(a.v[i], "we,b"));
    }
    json_auto_t *second = json_loads(find(&a, "-blockdev", "\"lun1\""), 0, NULL);
    assert_string_equal(json_string_value(json_object_get(second, "portal")), "[::1]:3260");
    assert_int_equal(json_integer_value(json_object_get(second, "lun")), 3);
    assert_non_null(find(&a, "-device", "\"virtio-blk-pci\""));
    assert_non_null(find(&a, "-device", "\"scsi-hd\""));
    assert_non_null(find(&a, "-machine", HV_QEMU_MACHINE));
    assert_non_null(find(&a, "-accel", "tcg"));
    assert_non_null(find(&a, "-m", "512M"));
    assert_non_null(find(&a, "-sandbox", "on,"));
    assert_non_null(find(&a, "-netdev", "user,"));
    assert_null(find(&a, "-incoming", ""));
    done_launch(&l, &vm);
}

static void test_argv_options(void **state)
{
    struct hv_launch l;
    struct hv_vm vm = {0};
    gr_auto(hv_argv_done) struct hv_argv a = {0}, b = {0};
    make_launch(&l, &vm, "iscsi://h/t/0");
    l.accel = HV_ACCEL_KVM;
    vm.nic = false;
    l.memory_fd = 9;
    assert_int_equal(hv_qemu_argv(&l, &a, NULL), 0);
    assert_non_null(find(&a, "-accel", "kvm"));
    assert_non_null(find(&a, "-cpu", "host"));
    assert_null(find(&a, "-netdev", ""));
    assert_non_null(find(&a, "-incoming", "defer"));
    assert_null(find(&a, "-object", ""));
    hv_lun_done(&l.luns[1]);
    struct gr_err err = {0};
    assert_int_equal(hv_qemu_argv(&l, &b, &err), -EINVAL);
    assert_non_null(strstr(err.text, "ds/data"));
    done_launch(&l, &vm);
}

static void test_urls(void **state)
{
    static const char *const bad[] = {"", "iscsi://", "iscsi://h", "iscsi://h/t", "iscsi://h/t/", "iscsi://h//0", "iscsi:///t/0", "iscsi://u@/t/0",
                                      "nbd://h/t/0", "iscsi://h/t/x", "iscsi://h/t/99999", "iscsi://h/t/-1", "iscsi://h/t/0\n"};
    for (size_t i = 0; i < GR_ARRAY_LEN(bad); i++) {
        struct hv_lun l = {0};
        if (hv_lun_parse(bad[i], &l, NULL) != -EINVAL)
            fail_msg("'%s' was accepted", bad[i]);
        assert_null(l.portal);
    }
    gr_auto(hv_lun_done) struct hv_lun l = {0};
    assert_int_equal(hv_lun_parse("iscsi://a%b@c%d@host/iqn.x:y/12", &l, NULL), 0);
    assert_string_equal(l.user, "a");
    assert_string_equal(l.secret.data, "b@c%d");
    assert_string_equal(l.portal, "host:3260");
    assert_int_equal(l.lun, 12);
}

/* ---- lines ---- */
static struct gr_buf seen;
static int on_line(void *arg, char *line, size_t len)
{
    assert_int_equal(strlen(line), len);
    gr_buf_printf(&seen, "[%s]", line);
    return 0;
}

static const char *feed_all(struct hv_lines *l, const char *data, size_t len, size_t step)
{
    gr_buf_done(&seen);
    for (size_t off = 0; off < len; off += step)
        assert_int_equal(hv_lines_feed(l, data + off, GR_MIN(step, len - off), on_line, NULL), 0);
    return seen.data ? seen.data : "";
}

static void test_lines(void **state)
{
    for (size_t step = 1; step < 12; step++) {
        struct hv_lines q = {.max = 8}, g = {.max = 8, .resync = true};
        static const char text[] = "ab\r\n\n  \ntoo long a line\ncd\n12345678\n123456789\nef\nunfin";
        assert_string_equal(feed_all(&q, text, sizeof text - 1, step), "[ab][cd][12345678][ef]");
        assert_int_equal(q.dropped, 2);
        static const char marks[] = "gar\xff" "ab\nvery very long\xff" "cd\n\xff\xff" "ef\n";
        assert_string_equal(feed_all(&g, marks, sizeof marks - 1, step), "[ab][cd][ef]");
        hv_lines_done(&q);
        hv_lines_done(&g);
    }
    gr_buf_done(&seen);
}

TEST_MAIN(TEST(test_argv), TEST(test_argv_options), TEST(test_urls), TEST(test_lines))
