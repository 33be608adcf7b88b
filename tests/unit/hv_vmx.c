/* The .vmx codec and the VM model: good files come back the same, bad ones get an error that names line or key. */
#include "common/cleanup.h"
#include "hv/vm.h"
#include "tests/lib/test.h"
#include <string.h>

#define GOOD "granary.version = \"1\"\nuuid.bios = \"01234567-89ab-4def-8123-456789abcdef\"\n"

static void test_roundtrip(void **state)
{
    static const char text[] = "# made by hand\n\n  " GOOD "memsize=\"512\"\r\nnumvcpus =\"2\"\nfuture.key = \"kept |22 |7C|0A\"\n"
                               "disk0.fileName = \"ds1/vms/web/root\"\ndisk2.fileName = \"ds2/data\"\ndisk2.interface = \"virtio-scsi\"\n"
                               "ethernet0.address = \"52:54:00:12:34:56\"\ngranary.incarnation = \"7\"\n";
    struct gr_err err = {0};
    gr_auto(hv_vm_done) struct hv_vm vm = {0}, again = {0};
    assert_int_equal(hv_vm_decode("ds1/vms/web", text, sizeof text - 1, &vm, &err), 0);
    assert_string_equal(vm.name, "web");
    assert_int_equal(vm.memory, 512u << 20);
    assert_int_equal(vm.vcpus, 2);
    assert_int_equal(vm.disk_count, 2);
    assert_string_equal(vm.disks[1].path, "ds2/data");
    assert_int_equal(vm.disks[1].bus, HV_BUS_SCSI);
    assert_int_equal(vm.incarnation, 7);
    assert_string_equal(hv_vmx_get(&vm.vmx, "FUTURE.key"), "kept \" |\n");
    gr_auto_free char *initiator = hv_vm_initiator(&vm), *config = hv_vm_config_path(vm.path);
    assert_string_equal(initiator, "iqn.2026-11.local.granary:vm-01234567-89ab-4def-8123-456789abcdef:7");
    assert_string_equal(config, "ds1/vms/web/web.vmx");

    gr_auto_buf struct gr_buf out = {0}, out2 = {0};
    assert_int_equal(hv_vm_encode(&vm, &out), 0);
    assert_int_equal(hv_vm_decode("ds1/vms/web", out.data, out.len, &again, &err), 0);
    assert_int_equal(hv_vm_encode(&again, &out2), 0);
    assert_string_equal(out.data, out2.data);
    assert_non_null(strstr(out.data, "future.key = \"kept |22 |7C|0A\"\n"));
    assert_string_equal(again.disks[1].path, "ds2/data");
}

static void test_new_vm(void **state)
{
    uint8_t random[16] = {0xff, 1, 2, 3, 4, 5, 0xff, 7, 0xff, 9, 10, 11, 12, 13, 14, 15};
    gr_auto(hv_vm_done) struct hv_vm vm = {0}, again = {0};
    assert_int_equal(hv_vm_init("ds/a", random, &vm, NULL), 0);
    assert_string_equal(vm.uuid, "ff010203-0405-4f07-bf09-0a0b0c0d0e0f");
    gr_auto_buf struct gr_buf out = {0};
    assert_int_equal(hv_vm_encode(&vm, &out), 0);
    assert_int_equal(hv_vm_decode("ds/a", out.data, out.len, &again, NULL), 0);
    assert_string_equal(again.mac, vm.mac);
    assert_int_equal(again.disk_count, 0);
}

static void test_bad_files(void **state)
{
    static const struct {
        const char *text, *want;
    } bad[] = {
        {GOOD "memsize 12\n", "line 3: expected key = \"value\""},
        {GOOD "= \"x\"\n", "line 3: expected"},
        {GOOD "memsize = 12\n", "line 3: the value of memsize is not in double quotes"},
        {GOOD "memsize = \"12\n", "line 3: the value of memsize is not in double quotes"},
        {GOOD "memsize = \"\n", "line 3: the value"},
        {GOOD "a = \"x\" # y\n", "line 3: the value of a is not"},
        {GOOD "a = \"x\"y\"\n", "line 3: a double quote inside"},
        {GOOD "a = \"|2\"\n", "line 3: '|' must be followed"},
        {GOOD "a = \"|zz\"\n", "line 3: '|' must be followed"},
        {GOOD "a = \"|00\"\n", "line 3: |00"},
        {GOOD "a = \"|96\"\n", "line 3: the value is not UTF-8"},
        {GOOD "a = \"\xff\"\n", "line 3: holds control characters or bytes that are not UTF-8"},
        {GOOD "a = \"b\"\n\nA = \"c\"\n", "line 5: A is given twice"},
        {GOOD "memsize = \"0\"\n", "memsize = \"0\" is not a number from 64"},
        {GOOD "memsize = \"99999999999999999999\"\n", "memsize = "},
        {GOOD "numvcpus = \"256\"\n", "numvcpus = \"256\" is not a number from 1 to 255"},
        {GOOD "disk0.fileName = \"../etc/passwd\"\n", "disk0.fileName: '../etc/passwd': a part is empty, '.' or '..'"},
        {GOOD "disk0.fileName = \"ds\"\n", "is not DATASTORE/PATH"},
        {GOOD "disk0.fileName = \"ds/a\"\ndisk1.fileName = \"ds/a\"\n", "disk1.fileName: disk 'ds/a' is given twice"},
        {GOOD "disk0.fileName = \"ds/a\"\ndisk0.interface = \"ide\"\n", "neither virtio-blk nor virtio-scsi"},
        {GOOD "ethernet0.address = \"53:54:00:12:34:56\"\n", "no MAC address of one machine"},
        {GOOD "ethernet0.address = \"52:54:00:12:34:56,script=x\"\n", "no MAC address"},
        {GOOD "ethernet0.connectionType = \"tap\"\n", "neither user nor none"},
        {"granary.version = \"2\"\n", "not known to this build"},
        {"granary.version = \"1\"\n", "uuid.bios is missing"},
        {"granary.version = \"1\"\nuuid.bios = \"x\"\n", "uuid.bios is no UUID: x"},
        {"", "granary.version is missing"},
    };
    for (size_t i = 0; i < GR_ARRAY_LEN(bad); i++) {
        struct gr_err err = {0};
        struct hv_vm vm = {0};
        assert_true(hv_vm_decode("ds1/web", bad[i].text, strlen(bad[i].text), &vm, &err) < 0);
        if (!strstr(err.text, bad[i].want) || !strstr(err.text, "ds1/web/web.vmx: "))
            fail_msg("case %zu: got '%s', wanted '%s'", i, err.text, bad[i].want);
        assert_null(vm.path);
    }
    struct hv_vmx v = {0};
    struct gr_err err = {0};
    assert_int_equal(hv_vmx_parse("a\0b", 3, &v, &err), -GR_EFORMAT);
    gr_auto_free char *big = calloc(1, HV_VMX_MAX + 2);
    memset(big, '\n', HV_VMX_MAX + 1);
    assert_int_equal(hv_vmx_parse(big, HV_VMX_MAX, &v, &err), 0);
    assert_int_equal(hv_vmx_parse(big, HV_VMX_MAX + 1, &v, &err), -GR_EFORMAT);
    memset(big, 'k', 64);
    memcpy(big + 64, "=\"\"", 3);
    assert_int_equal(hv_vmx_parse(big, 67, &v, &err), -GR_EFORMAT);
}

static void test_names(void **state)
{
    static const char *const bad[] = {"", "a", "/a", "a/", "a//b", "a/..", "./a", "a/b@c", "a/b:c", "a/b\n", "a/\xc0\x80"};
    for (size_t i = 0; i < GR_ARRAY_LEN(bad); i++)
        assert_int_equal(hv_vm_path_check(bad[i], NULL), -GR_EUSAGE);
    assert_int_equal(hv_vm_path_check("ds1/ä/-x", NULL), 0);
    char longname[300] = "d/";
    memset(longname + 2, 'x', 256);
    assert_int_equal(hv_vm_path_check(longname, NULL), -GR_EUSAGE);
    longname[257] = 0;
    assert_int_equal(hv_vm_path_check(longname, NULL), 0);
}

/* Random edits of a good file: never a crash, and what is accepted can be written and read again. */
static void test_mutations(void **state)
{
    uint64_t seed = test_seed();
    static const char good[] = GOOD "memsize = \"512\"\ndisk0.fileName = \"ds1/vms/web/root\"\nx = \"|41\"\n";
    for (unsigned i = 0; i < test_cases(3000); i++) {
        char text[sizeof good];
        memcpy(text, good, sizeof good);
        for (unsigned k = 0; k <= i % 4; k++)
            text[test_rand(&seed) % (sizeof good - 1)] = (char)test_rand(&seed);
        gr_auto(hv_vm_done) struct hv_vm vm = {0}, again = {0};
        struct gr_err err = {0};
        if (hv_vm_decode("ds1/web", text, sizeof good - 1 - test_rand(&seed) % 20, &vm, &err) < 0)
            continue;
        gr_auto_buf struct gr_buf out = {0};
        assert_int_equal(hv_vm_encode(&vm, &out), 0);
        assert_int_equal(hv_vm_decode("ds1/web", out.data, out.len, &again, &err), 0);
    }
}

TEST_MAIN(TEST(test_roundtrip), TEST(test_new_vm), TEST(test_bad_files), TEST(test_names), TEST(test_mutations))
