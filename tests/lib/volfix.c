#include "tests/lib/volfix.h"
#include "tests/lib/test.h"
#include <stdlib.h>

void volfix_join(struct volfix *f, const struct vmfs_join_opts *o)
{
    OK(vmfs_join(f->loop, &f->dev, 1, o, &f->v, &err));
}

void volfix_open(struct volfix *f)
{
    OK(vmfs_open(f->v, f->path, &f->d, NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(f->d), f->loop, &f->ch), 0);
}

void volfix_close(struct volfix *f)
{
    gr_chan_close(f->ch);
    vmfs_close(f->d);
}

void volfix_make(struct volfix *f, uint64_t bytes, const char *path, uint64_t size, bool data_crc, const struct vmfs_join_opts *o)
{
    struct vmfs_format_opts opts = {.name = "ds1", .data_crc = data_crc};
    *f = (struct volfix){.path = path, .loop = gr_fiber_loop(), .mem = gr_mem_new(bytes)};
    assert_int_equal(gr_bdev_mem_open(f->loop, f->mem, &f->dev), 0);
    OK(vmfs_format(f->loop, &f->dev, 1, &opts, &err));
    assert_int_equal(gr_chan_open(f->dev, f->loop, &f->raw), 0);
    volfix_join(f, o);
    OK(vmfs_create(f->v, path, VMFS_DISK, size, VMFS_THIN, &err));
    volfix_open(f);
}

void volfix_again(struct volfix *f, const struct vmfs_join_opts *o)
{
    volfix_close(f);
    OK(vmfs_leave(f->v, &err));
    volfix_join(f, o);
    volfix_open(f);
}

void volfix_unmake(struct volfix *f)
{
    struct vmfs_check_report rep;
    volfix_close(f);
    OK(vmfs_check(f->v, NULL, NULL, &rep, &err));
    OK(vmfs_leave(f->v, &err));
    gr_chan_close(f->raw);
    gr_bdev_put(f->dev);
    gr_mem_free(f->mem);
}

uint64_t volfix_place(struct volfix *f, struct mtree *t, uint64_t off)
{
    uint64_t piece = off / VMFS_PIECE;
    struct mnode *leaf = NULL;
    OK(mtree_load(f->d->o, t, piece, &err));
    assert_int_equal(mtree_peek(t, piece, &leaf), 0);
    struct mpiece p = ment_piece(&leaf->ent[piece % VMFS_LEAF_PIECES / VMFS_BLOCK_PIECES], (unsigned)(piece % VMFS_BLOCK_PIECES));
    return p.state == VMFS_P_DATA ? p.addr : 0;
}

void volfix_flip(struct volfix *f, uint64_t addr, size_t byte)
{
    uint8_t *b = aligned_alloc(4096, 4096);
    assert_int_equal(vmfs_addr_dev(addr), 0);
    assert_int_equal(gr_pread(f->raw, b, 4096, vmfs_addr_unit(addr) * 4096), 0);
    b[byte] ^= 0x10;
    assert_int_equal(gr_pwrite(f->raw, b, 4096, vmfs_addr_unit(addr) * 4096, 0), 0);
    free(b);
}
