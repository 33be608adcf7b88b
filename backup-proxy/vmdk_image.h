/* Private to the VMDK reader: a decoded image. */
#ifndef BP_VMDK_IMAGE_H
#define BP_VMDK_IMAGE_H
#include "backup-proxy/vmdk_format.h"
#include "common/bdev.h"

#define VMDK_MAX_DESC 65536u
#define VMDK_MAX_EXTENTS 256u
#define VMDK_MAX_GRAIN (4096u * VMDK_SECTOR)

struct vmdk_sparse {
    uint64_t capacity; /* bytes */
    uint32_t grain;    /* bytes */
    uint32_t gt_entries;
    uint32_t flags;
    bool compressed;
    uint64_t overhead; /* bytes: no grain lies below */
    uint64_t desc_off, desc_len; /* bytes */
    uint64_t file_size;
    uint64_t gd_off, rgd_off; /* bytes; rgd 0: none */
    uint64_t gd_len;   /* entries */
    uint32_t *gd;
};
enum vmdk_seg_kind { VMDK_SEG_SPARSE, VMDK_SEG_FLAT, VMDK_SEG_ZERO };
struct vmdk_seg {
    enum vmdk_seg_kind kind;
    uint64_t off, len; /* bytes of the disk */
    int fd;            /* -1: ZERO */
    uint64_t file_off; /* FLAT: bytes */
};
struct vmdk_image {
    struct gr_bdev bdev;
    uint64_t size; /* bytes */
    struct vmdk_sparse sp;
    unsigned n_seg;
    struct vmdk_seg seg[VMDK_MAX_EXTENTS];
};
/* One extent line of a text descriptor. */
struct vmdk_desc_extent {
    uint64_t sectors, off_sectors;
    char type[24];
    char name[256];
};
struct vmdk_desc {
    char create_type[64];
    uint32_t parent_cid; /* 0xffffffff: none */
    unsigned n;
    struct vmdk_desc_extent *extents; /* new memory */
};
/* Parse descriptor text (@len bytes, at most VMDK_MAX_DESC; zero padding allowed). Errors name the line. */
int vmdk_desc_parse(const char *text, size_t len, struct vmdk_desc *ret, struct gr_err *err);
/* Decode the sparse extent in @fd of @file_size bytes: header or footer, directory. @ret->gd is new memory. */
int vmdk_sparse_decode(int fd, uint64_t file_size, const char *path, struct vmdk_sparse *ret, struct gr_err *err);
extern const struct gr_bdev_ops vmdk_ops;
#endif
