/* VMDK sparse extents, as VMware's "Virtual Disk Format 5.0" lays them out and as its readers really demand.
 *
 * A sparse extent is a header sector, an embedded text descriptor, and grains (64 KiB of the disk each) found through
 * two levels of tables: the grain directory (GD) holds a sector number per grain table (GT), a GT holds a sector number
 * per grain. Sectors are 512 bytes; all numbers are little-endian; offsets and sizes in the header are in sectors.
 *
 * stream-optimized: each grain is preceded by a marker {disk sector, compressed bytes} and compressed as a zlib stream
 * (RFC 1950; the specification says RFC 1951, but no reader takes that). The pipe profile that we write:
 *     header (gdOffset = ~0) · descriptor · pad to overHead · grains ascending, each GT behind its last grain
 *     · GD marker, GD · FOOTER marker, footer (header with the real gdOffset) · EOS marker, which is the last sector.
 *
 * Rules a reader checks: (1) magic; (2) version 1 to 3; (3) grain size a power of two, 8 to 4096 sectors; (4) GT entries
 * a power of two up to 512; (5) the directory and every table and grain lie inside the file; (6) a grain's marker names the
 * disk sector through which it was found; (7) a grain inflates to exactly one grain (a shorter last one is taken);
 * (8) newline test bytes intact, else the file went through a text-mode transfer. */
#ifndef BP_VMDK_FORMAT_H
#define BP_VMDK_FORMAT_H
#include "common/endian.h"

#define VMDK_MAGIC 0x564d444bu /* "KDMV" */
#define VMDK_SECTOR 512u
#define VMDK_GRAIN 65536u /* bytes, of what we write */
#define VMDK_GRAIN_SECTORS (VMDK_GRAIN / VMDK_SECTOR)
#define VMDK_GT_ENTRIES 512u
#define VMDK_DESC_SECTORS 20u
#define VMDK_GD_AT_END UINT64_MAX
#define VMDK_OVERHEAD 128u /* sectors before the first grain, of what we write */
enum vmdk_flags {
    VMDK_F_NEWLINE = 1u << 0,
    VMDK_F_RGD = 1u << 1,
    VMDK_F_ZERO_GRAIN = 1u << 2,
    VMDK_F_COMPRESSED = 1u << 16,
    VMDK_F_MARKERS = 1u << 17,
};
enum vmdk_marker { VMDK_MARK_EOS, VMDK_MARK_GT, VMDK_MARK_GD, VMDK_MARK_FOOTER, VMDK_MARK_PROGRESS };

struct vmdk_header_disk {
    gr_le32 magic;               /*  0 */
    gr_le32 version;             /*  4 */
    gr_le32 flags;               /*  8 */
    gr_le64 capacity;            /* 12 sectors of the disk */
    gr_le64 grain_size;          /* 20 sectors */
    gr_le64 descriptor_off;      /* 28 */
    gr_le64 descriptor_size;     /* 36 */
    gr_le32 gt_entries;          /* 44 */
    gr_le64 rgd_off;             /* 48 */
    gr_le64 gd_off;              /* 56 */
    gr_le64 overhead;            /* 64 */
    uint8_t unclean;             /* 72 */
    uint8_t newline[4];          /* 73 "\n \r\n" */
    gr_le16 compress;            /* 77 1: deflate */
    uint8_t pad[433];            /* 79 */
} __attribute__((packed));
GR_SIZE(struct vmdk_header_disk, 512);
GR_LAYOUT(struct vmdk_header_disk, gt_entries, 44);
GR_LAYOUT(struct vmdk_header_disk, compress, 77);

struct vmdk_marker_disk {
    gr_le64 val;  /*  0 grain: disk sector; else sectors that follow */
    gr_le32 size; /*  8 grain: compressed bytes, starting at offset 12; else 0 */
    gr_le32 type; /* 12 size == 0: enum vmdk_marker */
    uint8_t pad[496];
} __attribute__((packed));
GR_SIZE(struct vmdk_marker_disk, 512);
#define VMDK_GRAIN_MARKER 12u /* bytes of a grain's marker before its payload */
#endif
