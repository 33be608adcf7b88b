/* Partition tables and LVM of the guest reader, and the messages between reader and parent. */
#include "backup-proxy/fs_lvm.h"
#include "common/endian.h"
#include "tests/lib/test.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DISK (64u << 20)
static uint8_t *disk;
static struct fs_volume vols[FS_VOLUMES_MAX];
static const char *kind;

static int disk_read(void *arg, uint64_t off, void *buf, size_t len)
{
    assert_true(len <= DISK && off <= DISK - len); /* never outside */
    memcpy(buf, disk + off, len);
    return 0;
}
static int scan(uint32_t sector)
{
    struct fs_image img = {.size = DISK, .sector = sector, .read = disk_read};
    int n = fs_parts_scan(&img, vols, FS_VOLUMES_MAX, &kind);
    n = n < 0 ? n : fs_lvm_scan(&img, vols, (unsigned)n, FS_VOLUMES_MAX);
    for (int i = 0; i < n; i++)
        assert_true(fs_volume_ok(&vols[i], DISK));
    return n;
}
static int fresh(void **state)
{
    free(disk);
    disk = calloc(1, DISK);
    return disk ? 0 : -1;
}
static int done(void **state)
{
    free(disk);
    disk = NULL;
    return 0;
}

static uint32_t crc32(const uint8_t *p, size_t len)
{
    uint32_t crc = ~0u;
    for (size_t i = 0; i < len; i++) {
        crc ^= p[i];
        for (int b = 0; b < 8; b++)
            crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
    }
    return ~crc;
}
/* A GPT with partitions 1 and 3 of 1 MiB at 1 and 4 MiB, header at sector @lba, entries behind it. */
static void put_gpt(uint32_t sector, uint64_t lba, uint64_t entries_lba)
{
    uint8_t *e = disk + entries_lba * sector, *h = disk + lba * sector;
    memset(e, 0, 128 * 128);
    for (int i = 0; i < 3; i += 2) {
        uint64_t first = (uint64_t)(i == 0 ? 1 : 4) << 20;
        memset(e + 128 * i, 0x11, 32);
        gr_put_le64(e + 128 * i + 32, first / sector);
        gr_put_le64(e + 128 * i + 40, (first + (1 << 20)) / sector - 1);
        gr_put_le16(e + 128 * i + 56, 'x');
        gr_put_le16(e + 128 * i + 58, 0xe9);
    }
    memset(h, 0, sector);
    memcpy(h, "EFI PART", 8);
    gr_put_le32(h + 8, 0x10000);
    gr_put_le32(h + 12, 92);
    gr_put_le64(h + 24, lba);
    gr_put_le64(h + 72, entries_lba);
    gr_put_le32(h + 80, 128);
    gr_put_le32(h + 84, 128);
    gr_put_le32(h + 88, crc32(e, 128 * 128));
    gr_put_le32(h + 16, crc32(h, 92));
}

static void test_gpt(void **state)
{
    static const uint32_t sectors[] = {512, 4096};
    for (int i = 0; i < 2; i++) {
        fresh(NULL);
        put_gpt(sectors[i], 1, 2);
        assert_int_equal(scan(512), 2); /* the other sector size is found, too */
        assert_string_equal(kind, "gpt");
        assert_int_equal(vols[0].number, 1);
        assert_int_equal(vols[1].number, 3);
        assert_int_equal(vols[1].segs[0].image_off, 4 << 20);
        assert_int_equal(vols[1].size, 1 << 20);
        assert_string_equal(vols[1].label, "x\xc3\xa9");
        assert_string_equal(vols[0].type, "11111111-1111-1111-1111-111111111111");
    }
}

static void test_gpt_second_copy(void **state)
{
    uint64_t last = DISK / 512 - 1;
    put_gpt(512, 1, 2);
    put_gpt(512, last, last - 40);
    disk[512 + 40]++; /* the first header's checksum is wrong */
    assert_int_equal(scan(512), 2);
    assert_string_equal(kind, "gpt");
    disk[(last - 40) * 512]++; /* and now the entries of the second */
    assert_int_equal(scan(512), 1);
    assert_string_equal(kind, "none");
}

static void test_gpt_entries_outside(void **state)
{
    put_gpt(512, 1, 2);
    uint8_t *e = disk + 1024, *h = disk + 512;
    gr_put_le64(e + 40, UINT64_MAX);     /* ends behind the disk */
    gr_put_le64(e + 256 + 32, 9000);
    gr_put_le64(e + 256 + 40, 8999);     /* ends before it begins */
    gr_put_le32(h + 88, crc32(e, 128 * 128));
    gr_put_le32(h + 16, 0);
    gr_put_le32(h + 16, crc32(h, 92));
    assert_int_equal(scan(512), 0);
    gr_put_le32(h + 80, UINT32_MAX); /* more entries than can be */
    gr_put_le32(h + 16, 0);
    gr_put_le32(h + 16, crc32(h, 92));
    assert_int_equal(scan(512), 1);
    assert_string_equal(kind, "none");
}

static void put_mbr(uint64_t sector, int i, uint8_t type, uint32_t first, uint32_t count)
{
    uint8_t *b = disk + sector * 512, *e = b + 446 + 16 * i;
    e[4] = type;
    gr_put_le32(e + 8, first);
    gr_put_le32(e + 12, count);
    b[510] = 0x55;
    b[511] = 0xaa;
}

static void test_mbr_logical(void **state)
{
    put_mbr(0, 0, 0x83, 2048, 2048);
    put_mbr(0, 3, 0x05, 8192, 20000);
    put_mbr(8192, 0, 0x07, 64, 1000);
    put_mbr(8192, 1, 0x05, 4000, 2000);
    put_mbr(12192, 0, 0x0c, 64, 500);
    assert_int_equal(scan(512), 3);
    assert_string_equal(kind, "mbr");
    assert_int_equal(vols[0].number, 1);
    assert_int_equal(vols[1].number, 5);
    assert_int_equal(vols[1].segs[0].image_off, (8192 + 64) * 512);
    assert_int_equal(vols[2].number, 6);
    assert_int_equal(vols[2].segs[0].image_off, (12192 + 64) * 512);
    assert_string_equal(vols[2].type, "0x0c");
}

static void test_mbr_loop_and_cut(void **state)
{
    put_mbr(0, 0, 0x83, 2048, UINT32_MAX);   /* longer than the disk: what is left */
    put_mbr(0, 1, 0x0f, 8192, 20000);
    put_mbr(8192, 0, 0x83, 64, 100);
    put_mbr(8192, 1, 0x05, 2000, 2000);
    put_mbr(10192, 0, 0x83, 64, 100);
    put_mbr(10192, 1, 0x05, 2000, 2000);      /* itself, for ever */
    int n = scan(512);
    assert_in_range(n, 2, 200);
    assert_int_equal(vols[0].size, DISK - 2048 * 512);
}

static void test_boot_sectors_are_no_tables(void **state)
{
    put_mbr(0, 0, 0x83, 2048, 2048);
    memcpy(disk + 3, "NTFS    ", 8);
    assert_int_equal(scan(512), 1);
    assert_int_equal(vols[0].kind, FS_V_WHOLE);
    memset(disk + 3, 0, 8);
    memcpy(disk + 82, "FAT32", 5);
    assert_int_equal(scan(512), 1);
    assert_int_equal(vols[0].kind, FS_V_WHOLE);
}

/* ---- LVM ---- */
static const char meta[] = "vg0 {\nid = \"x\"\nseqno = 3\nextent_size = 2048 # 1 MiB\n"
    "physical_volumes {\npv0 {\nid = \"AAAAAA-AAAA-AAAA-AAAA-AAAA-AAAA-AAAAAA\"\npe_start = 2048\npe_count = 30\n}\n}\n"
    "logical_volumes {\n"
    "root {\nid = \"r\"\nstatus = [\"READ\", \"WRITE\"]\nsegment_count = 2\n"
    "segment1 {\nstart_extent = 0\nextent_count = 3\ntype = \"striped\"\nstripe_count = 1\nstripes = [ \"pv0\", 10 ]\n}\n"
    "segment2 {\nstart_extent = 3\nextent_count = 2\ntype = \"striped\"\nstripe_count = 1\nstripes = [ \"pv0\", 0 ]\n}\n}\n"
    "striped {\nsegment_count = 1\nsegment1 {\nstart_extent = 0\nextent_count = 2\ntype = \"striped\"\nstripe_count = 2\n"
    "stripes = [ \"pv0\", 20, \"pv1\", 0 ]\n}\n}\n"
    "outside {\nsegment_count = 1\nsegment1 {\nstart_extent = 0\nextent_count = 2000\ntype = \"striped\"\nstripe_count = 1\n"
    "stripes = [ \"pv0\", 0 ]\n}\n}\n}\n}\n";

static uint8_t *put_pv(uint64_t at, const char *text)
{
    uint8_t *l = disk + at + 512, *pv = l + 32, *m = disk + at + 4096;
    memcpy(l, "LABELONE", 8);
    gr_put_le32(l + 20, 32);
    memcpy(l + 24, "LVM2 001", 8);
    memset(pv, 'A', 32);
    gr_put_le64(pv + 40, 1 << 20); /* one data area, end of list */
    gr_put_le64(pv + 72, 4096);    /* metadata area */
    gr_put_le64(pv + 80, 65536);
    memcpy(m + 4, " LVM2 x[5A%r0N*>", 16);
    gr_put_le64(m + 40, 512);
    gr_put_le64(m + 48, strlen(text) + 1);
    memcpy(m + 512, text, strlen(text) + 1);
    return m;
}

static void test_lvm(void **state)
{
    put_mbr(0, 0, 0x8e, 2048, 40 * 2048);
    uint8_t *m = put_pv(1 << 20, meta);
    assert_int_equal(scan(512), 2);
    assert_int_equal(vols[1].kind, FS_V_LV);
    assert_string_equal(vols[1].label, "vg0/root");
    assert_int_equal(vols[1].n_segs, 2);
    assert_int_equal(vols[1].size, 5 << 20);
    assert_int_equal(vols[1].segs[0].image_off, (1 + 1 + 10) << 20);
    assert_int_equal(vols[1].segs[1].image_off, (1 + 1) << 20);
    /* the text may wrap around the end of its ring */
    size_t len = strlen(meta) + 1, first = 100;
    gr_put_le64(m + 40, 65536 - first);
    memcpy(m + 65536 - first, meta, first);
    memmove(m + 512, meta + first, len - first);
    assert_int_equal(scan(512), 2);
    assert_int_equal(vols[1].size, 5 << 20);
}

static void test_lvm_hostile(void **state)
{
    uint64_t seed = test_seed();
    unsigned found = 0;
    for (unsigned i = 0; i < test_cases(300); i++) {
        char text[sizeof meta];
        memcpy(text, meta, sizeof meta);
        for (unsigned k = 0; k < 1 + i % 4; k++) {
            size_t at = test_rand(&seed) % (sizeof meta - 1);
            static const char swap[] = "{}[]=\"#9,\\ \n0123456789abcdefghij";
            text[at] = swap[test_rand(&seed) % (sizeof swap - 1)];
        }
        memset(disk, 0, 2 << 20);
        put_mbr(0, 0, 0x8e, 2048, 40 * 2048);
        uint8_t *m = put_pv(1 << 20, text);
        if (i % 7 == 0)
            gr_put_le64(m + 40 + 8 * (i % 2), test_rand(&seed));
        int n = scan(512);
        assert_in_range(n, 1, 4);
        found += n > 1;
    }
    assert_true(found > 10); /* some damage does not matter: the text was really read */
}

/* ---- messages ---- */
static void test_messages(void **state)
{
    uint8_t b[4096];
    struct fs_out o = {.p = b, .cap = sizeof b};
    struct fs_entry e = {.attr = {.inode = 7, .size = 1 << 20, .nlink = 2, .mode = 0644, .uid = 1, .gid = 2, .type = FS_T_FILE,
                                  .mtime = {-5, 999999999}}, .name_len = 3, .name = "abc"}, back;
    fs_put_entry(&o, &e);
    assert_false(o.bad);
    struct fs_in in = {.p = b, .end = b + o.len};
    fs_get_entry(&in, &back);
    assert_true(fs_in_done(&in));
    assert_string_equal(back.name, "abc");
    assert_int_equal(back.attr.mtime.sec, -5);
    for (size_t cut = 0; cut < o.len; cut++) { /* every shorter one is refused */
        in = (struct fs_in){.p = b, .end = b + cut};
        fs_get_entry(&in, &back);
        assert_true(in.bad);
    }
    static const char *const names[] = {"", ".", "..", "a/b", "/"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        assert_false(fs_name_ok(names[i], strlen(names[i])));
    assert_false(fs_name_ok("a\0b", 3));
    assert_true(fs_name_ok("...", 3));
}

static void test_volume_rules(void **state)
{
    struct fs_volume v = {.size = 300, .n_segs = 2, .segs = {{0, 1000, 100}, {100, 0, 200}}};
    uint64_t off = 0;
    assert_true(fs_volume_ok(&v, 1100));
    assert_false(fs_volume_ok(&v, 1099));
    assert_int_equal(fs_volume_map(&v, 99, &off), 1);
    assert_int_equal(off, 1099);
    assert_int_equal(fs_volume_map(&v, 100, &off), 200);
    assert_int_equal(off, 0);
    assert_int_equal(fs_volume_map(&v, 300, &off), 0);
    v.segs[1].volume_off = 101; /* a gap */
    assert_false(fs_volume_ok(&v, 1100));
    v.segs[1] = (struct fs_seg){100, UINT64_MAX - 10, 200};
    assert_false(fs_volume_ok(&v, UINT64_MAX));
    v.n_segs = 0;
    assert_false(fs_volume_ok(&v, 1100));
}

#define CASE(fn) cmocka_unit_test_setup_teardown(fn, fresh, done)
TEST_MAIN(CASE(test_gpt), CASE(test_gpt_second_copy), CASE(test_gpt_entries_outside), CASE(test_mbr_logical), CASE(test_mbr_loop_and_cut),
          CASE(test_boot_sectors_are_no_tables), CASE(test_lvm), CASE(test_lvm_hostile), TEST(test_messages), TEST(test_volume_rules))
