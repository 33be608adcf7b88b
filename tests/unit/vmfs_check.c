/* The proof of a volume must find what is wrong: damage of every class is planted into a sound one, with checksums put right
 * where a rule beyond the checksum is meant, and the check must tell. */
#include "tests/lib/test.h"
#include "common/bdev.h"
#include "common/cleanup.h"
#include "snapshot/snapshot.h"
#include "vmfs/internal.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct site {
    struct gr_loop *loop;
    struct gr_mem *mem;
    struct gr_bdev *dev;
    struct vmfs *v;
    struct gr_chan *ch; /* the device */
    uint64_t disk, clone;
    char found[4096]; /* what the last check said */
    unsigned warnings;
    size_t memory; /* for a check; 0: as much as it likes */
};

static void warned(void *arg, const char *text)
{
    (void)text;
    ((struct site *)arg)->warnings++;
}

static void collect(void *arg, const char *text)
{
    struct site *s = arg;
    size_t n = strlen(s->found);
    snprintf(s->found + n, sizeof s->found - n, "%s\n", text);
}

static int check(struct site *s, struct vmfs_check_report *rep)
{
    s->found[0] = 0;
    return vmfs_check(s->v, collect, s, rep, NULL);
}

static void join(struct site *s)
{
    struct vmfs_join_opts o = { .role = VMFS_HOST, .host_name = "check", .check_memory = s->memory, .warn = warned, .warn_arg = s };
    OK(vmfs_join(s->loop, &s->dev, 1, &o, &s->v, &err));
}

static void put(struct gr_chan *ch, uint64_t off, size_t len, unsigned seed)
{
    uint8_t *b = aligned_alloc(4096, (len + 4095) & ~4095ul);
    memset(b, (int)seed, len);
    assert_int_equal(gr_pwrite(ch, b, len, off, 0), 0);
    free(b);
}

/* A disk shares blocks with another by a copy. */
static void share(struct site *s, struct gr_chan *from)
{
    struct vmfs_disk *d;
    struct gr_chan *ch;
    OK(vmfs_create(s->v, "sharer", VMFS_DISK, 40 << 20, VMFS_THIN, &err));
    OK(vmfs_open(s->v, "sharer", &d, NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(d), s->loop, &ch), 0);
    struct gr_bio bio = { .op = GR_OP_COPY, .off = 1 << 20, .len = 65536, .copy_src = from, .copy_src_off = 20 << 20 };
    assert_int_equal(gr_submit_wait(ch, &bio), 0);
    gr_chan_close(ch);
    vmfs_close(d);
}

/* A volume with a disk of two leaves, two snapshots, a clone, a disk that shares by a copy, directories. */
static void make(struct site *s)
{
    struct vmfs_format_opts f = { .name = "ds1", .region_units = 1024 };
    struct vmfs_disk *d;
    struct gr_chan *ch;
    struct vmfs_stat st;
    s->loop = gr_fiber_loop();
    s->mem = gr_mem_new(128 << 20);
    assert_int_equal(gr_bdev_mem_open(s->loop, s->mem, &s->dev), 0);
    OK(vmfs_format(s->loop, &s->dev, 1, &f, &err));
    assert_int_equal(gr_chan_open(s->dev, s->loop, &s->ch), 0);
    join(s);
    OK(vmfs_create(s->v, "a/b/disk", VMFS_DISK, 40 << 20, VMFS_THIN, &err));
    OK(vmfs_file_write(s->v, "a/note", NULL, "text", 4, &err));
    OK(vmfs_open(s->v, "a/b/disk", &d, NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(d), s->loop, &ch), 0);
    put(ch, 0, 65536, 1);
    put(ch, 20 << 20, 8192, 2);
    OK(snap_create(&d, 1, "one", &err));
    put(ch, 4096, 4096, 3);
    OK(snap_create(&d, 1, "two", &err));
    put(ch, 8192, 4096, 4);
    OK(snap_clone(d, "one", "copy", &err));
    share(s, ch);
    gr_chan_close(ch);
    vmfs_close(d);
    OK(vmfs_stat(s->v, "a/b/disk", &st, &err));
    s->disk = st.id;
    OK(vmfs_stat(s->v, "copy", &st, &err));
    s->clone = st.id;
    struct vmfs_check_report rep;
    if (check(s, &rep) < 0)
        fail_msg("a sound volume: %s", s->found);
    assert_true(rep.objects >= 7 && rep.nodes >= 6 && rep.pieces >= 20 && rep.leaked_units == 0);
}

static void unmake(struct site *s)
{
    vmfs_abandon(s->v);
    gr_chan_close(s->ch);
    gr_bdev_put(s->dev);
    gr_mem_free(s->mem);
}

/* ---- planting: with the volume at rest, its home blocks are changed in both copies ---- */
static void raw_read(struct site *s, uint64_t addr, uint32_t units, void *buf)
{
    assert_int_equal(gr_pread(s->ch, buf, units * 4096u, vmfs_addr_unit(addr) * 4096), 0);
}
static void raw_write(struct site *s, uint64_t addr, uint32_t units, void *buf)
{
    vhdr_move(buf, units, addr); /* the checksum is right again */
    assert_int_equal(gr_pwrite(s->ch, buf, units * 4096u, vmfs_addr_unit(addr) * 4096, 0), 0);
}

static void rest(struct site *s)
{
    OK(vmfs_leave(s->v, &err));
    s->v = NULL;
}

static uint64_t inode_addr(const struct vsuper *sb, uint64_t id, int copy) { return vhome_addr(&sb->inodes, (uint32_t)id, 0, copy); }

static void inode_change(struct site *s, const struct vsuper *sb, uint64_t id, void (*fn)(struct vmfs_inode_disk *i))
{
    for (int copy = 0; copy < 2; copy++) {
        struct vmfs_inode_disk *i = aligned_alloc(4096, 4096);
        raw_read(s, inode_addr(sb, id, copy), 1, i);
        fn(i);
        raw_write(s, inode_addr(sb, id, copy), 1, i);
        free(i);
    }
}

/* Root pointer of the live tree of an object with an inline blob. */
static struct vmfs_ptr_disk root_of(struct site *s, const struct vsuper *sb, uint64_t id, unsigned snap)
{
    struct vmfs_inode_disk *i = aligned_alloc(4096, 4096);
    raw_read(s, inode_addr(sb, id, 0), 1, i);
    const struct vmfs_content_disk *c = (const struct vmfs_content_disk *)(const void *)i->blob;
    struct vmfs_ptr_disk p = c->root;
    if (snap)
        p = ((const struct vmfs_snap_disk *)(const void *)(i->blob + sizeof *c))->root;
    free(i);
    return p;
}

static uint64_t first_leaf(struct site *s, const struct vsuper *sb, uint64_t id, uint32_t *ret_units)
{
    struct vmfs_node_disk *n = aligned_alloc(4096, 4096);
    raw_read(s, gr_le64_get(root_of(s, sb, id, 0).addr), 1, n);
    uint64_t a = gr_le64_get(n->child[0].addr);
    *ret_units = (uint32_t)(gr_le64_get(n->child[0].birth) & 0xffff);
    free(n);
    return a;
}

static void bitmap_change(struct site *s, const struct vsuper *sb, uint64_t addr, bool set)
{
    uint32_t unit = (uint32_t)(vmfs_addr_unit(addr) - sb->dev[0].first_unit), index = unit / sb->region_units, at = unit % sb->region_units;
    for (int copy = 0; copy < 2; copy++) {
        struct vmfs_bitmap_disk *b = aligned_alloc(4096, 4096);
        uint64_t a = vhome_addr(&sb->regions, index, 1 + at / VMFS_BITMAP_BITS, copy);
        raw_read(s, a, 1, b);
        uint8_t *p = &b->bits[at % VMFS_BITMAP_BITS / 8], m = (uint8_t)(1u << at % 8);
        assert_true(((*p & m) != 0) != set);
        *p ^= m;
        raw_write(s, a, 1, b);
        free(b);
    }
}

/* Plant, join, check: it must be found, and the text must say @expect. */
static void must_find(struct site *s, const char *expect)
{
    struct vmfs_check_report rep;
    join(s);
    int r = check(s, &rep);
    if (r != -GR_ECORRUPT || !strstr(s->found, expect))
        fail_msg("wanted '%s', the check gave %d and said: %s", expect, r, s->found);
}

/* What can be mended is; a second look, also by another start, finds nothing. What cannot stays as it is, and is told again. */
static void must_mend(struct site *s, bool all)
{
    struct vmfs_check_report rep;
    char said[sizeof s->found];
    s->found[0] = 0;
    int r = vmfs_repair(s->v, collect, s, &rep, NULL);
    memcpy(said, s->found, sizeof said);
    if (all && (r != 0 || rep.mended == 0 || !strstr(said, "repaired: ")))
        fail_msg("repair gave %d and said: %s", r, said);
    if (!all && r != -GR_ECORRUPT)
        fail_msg("repair gave %d and said: %s", r, said);
    rest(s);
    join(s);
    r = check(s, &rep);
    if (r != (all ? 0 : -GR_ECORRUPT))
        fail_msg("after the repair (%s) the check gave %d and said: %s", said, r, s->found);
}

/* ---- the classes ---- */
static void plant_leak(struct site *s, const struct vsuper *sb)
{
    uint64_t root = gr_le64_get(root_of(s, sb, s->disk, 0).addr);
    uint32_t unit = (uint32_t)(vmfs_addr_unit(root) - sb->dev[0].first_unit), index = unit / sb->region_units, at = sb->region_units - 1;
    struct vmfs_bitmap_disk *b = aligned_alloc(4096, 4096);
    raw_read(s, vhome_addr(&sb->regions, index, 1, 0), 1, b);
    while (b->bits[at / 8] >> at % 8 & 1)
        at--;
    free(b);
    bitmap_change(s, sb, vmfs_addr(0, sb->dev[0].first_unit + (uint64_t)index * sb->region_units + at), true);
}
static void plant_unallocated(struct site *s, const struct vsuper *sb) { bitmap_change(s, sb, gr_le64_get(root_of(s, sb, s->disk, 0).addr), false); }

static void seven_snaps(struct vmfs_inode_disk *i) { i->n_snapshots = gr_le32_of(7); }
static void plant_counter(struct site *s, const struct vsuper *sb) { inode_change(s, sb, s->disk, seven_snaps); }

static void more_used(struct vmfs_inode_disk *i) { i->used_units = gr_le64_of(gr_le64_get(i->used_units) + 5); }
static void plant_used(struct site *s, const struct vsuper *sb) { inode_change(s, sb, s->disk, more_used); }

static void more_clones(struct vmfs_inode_disk *i)
{
    struct vmfs_snap_disk *d = (struct vmfs_snap_disk *)(void *)(i->blob + sizeof(struct vmfs_content_disk));
    d->clones = gr_le32_of(gr_le32_get(d->clones) + 1);
}
static void plant_clones(struct site *s, const struct vsuper *sb) { inode_change(s, sb, s->disk, more_clones); }

static void older(struct vmfs_inode_disk *i)
{
    struct vmfs_content_disk *c = (struct vmfs_content_disk *)(void *)i->blob;
    c->origin_epoch = gr_le64_of(gr_le64_get(c->origin_epoch) + 1);
}
static void plant_origin(struct site *s, const struct vsuper *sb) { inode_change(s, sb, s->clone, older); }

static void freed(struct vmfs_inode_disk *i) { i->type = gr_le16_of(0); }
static void plant_lost_object(struct site *s, const struct vsuper *sb) { inode_change(s, sb, s->clone, freed); }

static void no_names(struct vmfs_inode_disk *i) { i->blob_bytes = gr_le32_of(0); }
static void plant_no_name(struct site *s, const struct vsuper *sb) { inode_change(s, sb, VMFS_INODE_ROOT, no_names); }

/* One entry of the first leaf of the live tree. */
static void leaf_change(struct site *s, const struct vsuper *sb, void (*fn)(uint8_t *payload, unsigned tag))
{
    uint32_t units;
    uint64_t a = first_leaf(s, sb, s->disk, &units);
    uint8_t *b = aligned_alloc(4096, units * 4096u);
    raw_read(s, a, units, b);
    uint8_t *tags = b + sizeof(struct vmfs_hdr_disk);
    fn(tags + VMFS_FANOUT, tags[0]);
    raw_write(s, a, units, b);
    free(b);
}

/* The first block is a SPLIT by now: piece 2 is of the live head's time. */
static void split_birth(uint8_t *p, unsigned tag, unsigned piece, uint64_t birth, uint64_t addr_of)
{
    assert_int_equal(tag, VMFS_LEAF_SPLIT);
    uint8_t *e = p + 4 + piece * 16;
    if (birth)
        gr_put_le64(e + 8, birth);
    if (addr_of < 16)
        memcpy(e, p + 4 + addr_of * 16, 8);
}
static void too_young(uint8_t *p, unsigned tag) { split_birth(p, tag, 2, 99, 99); }
static void too_old(uint8_t *p, unsigned tag) { split_birth(p, tag, 2, 1, 99); }
static void shared_lie(uint8_t *p, unsigned tag) { split_birth(p, tag, 0, 3, 99); }
static void twice(uint8_t *p, unsigned tag) { split_birth(p, tag, 5, 0, 6); }
static void plant_too_young(struct site *s, const struct vsuper *sb) { leaf_change(s, sb, too_young); }
/* The birth rule broken on purpose: new data that says it was born before the snapshot. */
static void plant_too_old(struct site *s, const struct vsuper *sb) { leaf_change(s, sb, too_old); }
static void plant_shared_lie(struct site *s, const struct vsuper *sb) { leaf_change(s, sb, shared_lie); }
static void plant_double_use(struct site *s, const struct vsuper *sb) { leaf_change(s, sb, twice); }

static void plant_node_flip(struct site *s, const struct vsuper *sb)
{
    uint8_t *b = aligned_alloc(4096, 4096);
    uint64_t a = gr_le64_get(root_of(s, sb, s->disk, 0).addr);
    raw_read(s, a, 1, b);
    b[700] ^= 4;
    assert_int_equal(gr_pwrite(s->ch, b, 4096, vmfs_addr_unit(a) * 4096, 0), 0); /* checksum left wrong */
    free(b);
}

static void plant_misplaced(struct site *s, const struct vsuper *sb)
{
    uint8_t *b = aligned_alloc(4096, 4096);
    uint64_t from = gr_le64_get(root_of(s, sb, s->disk, 1).addr), to = gr_le64_get(root_of(s, sb, s->disk, 0).addr);
    raw_read(s, from, 1, b);
    assert_int_equal(gr_pwrite(s->ch, b, 4096, vmfs_addr_unit(to) * 4096, 0), 0);
    free(b);
}

/* The list of shared units of the first region that has one. */
static void shares_change(struct site *s, const struct vsuper *sb, void (*fn)(struct vmfs_region_disk *h, struct vmfs_share_disk *list))
{
    for (uint32_t i = 0; i < sb->dev[0].regions; i++) {
        struct vmfs_region_disk *h = aligned_alloc(4096, 4096);
        uint8_t *b = aligned_alloc(4096, 4096);
        raw_read(s, vhome_addr(&sb->regions, i, 0, 0), 1, h);
        uint64_t addr = gr_le64_get(h->shares_addr);
        if (addr) {
            raw_read(s, addr, 1, b);
            fn(h, (struct vmfs_share_disk *)(b + sizeof(struct vmfs_hdr_disk)));
            raw_write(s, addr, 1, b);
            raw_write(s, vhome_addr(&sb->regions, i, 0, 0), 1, h);
            raw_write(s, vhome_addr(&sb->regions, i, 0, 1), 1, h);
            i = sb->dev[0].regions;
        }
        free(h);
        free(b);
    }
}
static void one_more(struct vmfs_region_disk *h, struct vmfs_share_disk *list) { list->more = gr_le32_of(gr_le32_get(list->more) + 1); }
static void shorter(struct vmfs_region_disk *h, struct vmfs_share_disk *list) { list->units = gr_le32_of(gr_le32_get(list->units) - 1); }
static void elsewhere(struct vmfs_region_disk *h, struct vmfs_share_disk *list) { list->at = gr_le32_of(0xfffffff0u); }
static void no_list(struct vmfs_region_disk *h, struct vmfs_share_disk *list) { h->shares_addr = gr_le64_of(0); }
static void plant_one_more(struct site *s, const struct vsuper *sb) { shares_change(s, sb, one_more); }
static void plant_shorter(struct site *s, const struct vsuper *sb) { shares_change(s, sb, shorter); }
static void plant_elsewhere(struct site *s, const struct vsuper *sb) { shares_change(s, sb, elsewhere); }
static void plant_no_list(struct site *s, const struct vsuper *sb) { shares_change(s, sb, no_list); }

static void plant_both_inodes(struct site *s, const struct vsuper *sb)
{
    for (int copy = 0; copy < 2; copy++)
        put(s->ch, vmfs_addr_unit(inode_addr(sb, s->clone, copy)) * 4096 + 512, 512, 0x55);
}

static const struct damage {
    const char *name;
    void (*plant)(struct site *s, const struct vsuper *sb);
    const char *expect;
    bool mends;
} damages[] = {
    { "leak", plant_leak, "nothing uses it", true },
    { "not allocated", plant_unallocated, "free in the bitmap", true },
    { "snapshot counter", plant_counter, "the inode says 7 snapshots", true },
    { "space counter", plant_used, "it says that it holds", true },
    { "clone counter", plant_clones, "counts 2 clones, there are 1", true },
    { "origin epoch", plant_origin, "clone of epoch" },
    { "lost object", plant_lost_object, "does not exist", true },
    { "no name", plant_no_name, "0 directory entries name it", true },
    { "birth above the tree's", plant_too_young, "after the tree's" },
    { "birth rule", plant_too_old, "born in the time of a tree that does not name it" },
    { "birth of a shared piece", plant_shared_lie, "also in use for something else" },
    { "double use", plant_double_use, "also in use for something else" },
    { "flipped bit in a node", plant_node_flip, "('ds1/a/b/disk'): bytes 0 to 41943040 cannot be read: device 0 unit" },
    { "node of another place", plant_misplaced, "rule 4" },
    { "one owner too many", plant_one_more, "list of shared units says 3", true },
    { "an owner too few", plant_shorter, "also in use for something else" },
    { "list outside its region", plant_elsewhere, "rule 7: its list of shared units" },
    { "no list", plant_no_list, "also in use for something else" },
    { "inode, both copies", plant_both_inodes, "both copies are damaged" },
};

static int damage_fn(void *arg)
{
    for (size_t k = 0; k < 2 * GR_ARRAY_LEN(damages); k++) { /* all at once, and a region at a time */
        struct site s = { .memory = k % 2 };
        size_t i = k / 2;
        make(&s);
        struct vsuper sb = s.v->sb;
        rest(&s);
        damages[i].plant(&s, &sb);
        print_message("%s\n", damages[i].name);
        must_find(&s, damages[i].expect);
        must_mend(&s, damages[i].mends);
        unmake(&s);
    }
    (void)arg;
    return 0;
}
static void damage_is_found(void **state)
{
    (void)state;
    test_in_fiber(damage_fn, NULL);
}

/* One damaged copy of any home block: the volume works on, says so, and the check repairs it. */
static int one_copy_fn(void *arg)
{
    struct site s = { 0 };
    struct vmfs_check_report rep;
    (void)arg;
    make(&s);
    struct vsuper sb = s.v->sb;
    uint32_t index = (uint32_t)((vmfs_addr_unit(gr_le64_get(root_of(&s, &sb, s.disk, 0).addr)) - sb.dev[0].first_unit) / sb.region_units);
    for (unsigned what = 0; what < 5; what++)
        for (int copy = 0; copy < 2; copy++) {
            uint64_t a = what == 0   ? inode_addr(&sb, s.disk, copy)
                         : what == 1 ? vhome_addr(&sb.regions, index, 0, copy)
                         : what == 2 ? vhome_addr(&sb.regions, index, 1, copy)
                         : what == 3 ? vhome_addr(&sb.slots, 5, 0, copy)
                                     : inode_addr(&sb, VMFS_INODE_ROOT, copy);
            rest(&s);
            put(s.ch, vmfs_addr_unit(a) * 4096 + 1024, 512, 0xaa);
            s.warnings = 0;
            join(&s);
            if (check(&s, &rep) < 0)
                fail_msg("block %u, copy %d: %s", what, copy, s.found);
            assert_true(rep.repaired == 1 || s.warnings);
            assert_int_equal(check(&s, &rep), 0);
            assert_int_equal(rep.repaired, 0);
        }
    unmake(&s);
    return 0;
}
static void one_damaged_copy(void **state)
{
    (void)state;
    test_in_fiber(one_copy_fn, NULL);
}

/* Superblocks: A damaged: B with a warning, and the check tells and mends it; both: a clear error. */
static int supers_fn(void *arg)
{
    struct site s = { 0 };
    struct vmfs_check_report rep;
    struct gr_err err = { 0 };
    struct vmfs_join_opts o = { .role = VMFS_HOST, .host_name = "check", .warn = warned, .warn_arg = &s };
    (void)arg;
    make(&s);
    rest(&s);
    put(s.ch, VMFS_SUPER_A * 4096 + 512, 512, 0x11);
    join(&s);
    assert_true(s.warnings > 0);
    assert_int_equal(check(&s, &rep), 0);
    assert_int_equal(rep.repaired, 1);
    assert_non_null(strstr(s.found, "superblock A"));
    assert_int_equal(check(&s, &rep), 0);
    assert_int_equal(rep.repaired, 0);
    rest(&s);
    put(s.ch, VMFS_SUPER_A * 4096 + 512, 512, 0x11);
    put(s.ch, VMFS_SUPER_B * 4096 + 512, 512, 0x11);
    assert_int_equal(vmfs_join(s.loop, &s.dev, 1, &o, &s.v, &err), -GR_ECORRUPT);
    assert_non_null(strstr(err.text, "both superblocks"));
    gr_chan_close(s.ch);
    gr_bdev_put(s.dev);
    gr_mem_free(s.mem);
    return 0;
}
static void superblocks(void **state)
{
    (void)state;
    test_in_fiber(supers_fn, NULL);
}

/* Two hosts: what belongs to the other one is looked at, too, while it goes on. */
static int two_hosts_fn(void *arg)
{
    struct site s = { 0 };
    struct vmfs_check_report rep;
    struct gr_bdev *dev2;
    struct vmfs *v2;
    struct vmfs_disk *d;
    struct gr_chan *ch;
    (void)arg;
    make(&s);
    OK(vmfs_release(s.v, "copy", &err));
    struct vmfs_join_opts o = { .role = VMFS_HOST, .host_name = "other", .warn = warned, .warn_arg = &s };
    assert_int_equal(gr_bdev_mem_open(s.loop, s.mem, &dev2), 0);
    OK(vmfs_join(s.loop, &dev2, 1, &o, &v2, &err));
    OK(vmfs_open(v2, "copy", &d, NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(d), s.loop, &ch), 0);
    put(ch, 0, 1 << 20, 9);
    OK(vmfs_checkpoint(v2, &err));
    if (check(&s, &rep) < 0)
        fail_msg("two hosts: %s", s.found);
    assert_non_null(strstr(s.found, "leased by other hosts"));
    OK(vmfs_check(v2, collect, &s, &rep, &err));
    gr_chan_close(ch);
    vmfs_close(d);
    OK(vmfs_leave(v2, &err));
    gr_bdev_put(dev2);
    if (check(&s, &rep) < 0)
        fail_msg("after the other left: %s", s.found);
    unmake(&s);
    return 0;
}
static void two_hosts(void **state)
{
    (void)state;
    test_in_fiber(two_hosts_fn, NULL);
}

TEST_MAIN(TEST(damage_is_found), TEST(one_damaged_copy), TEST(superblocks), TEST(two_hosts))
