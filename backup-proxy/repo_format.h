/* The repository on disk: what is inside packs. docs/format-repository.md is the essay; these layouts bind.
 * All numbers little-endian.
 *
 * Pack file:  pack header (64) · extents, each: extent header (64), payload, padding to 8 · trailer (48 per extent) · pack end (64)
 *   rule 1: header magic, version, id equal to the file's name, repository uuid, CRC32C
 *   rule 2: an extent header names its own offset and carries the CRC32C of its payload, so that a pack without a trailer
 *           can be scanned from the front
 *   rule 3: the SHA-256 is of the raw bytes, taken when they were read from the source
 *   rule 4: raw is 1..65536 bytes; DATA extents are whole 4 KiB pieces
 *   rule 5: end magic, id, count, trailer offset and CRC32C of the trailer; a pack without a valid end is not sealed
 *
 * Map: a radix tree of fan-out 64 over units of 64 KiB; its depth follows from the size of the disk. A node is a MAP extent:
 *   node header (16), then per slot in use, ascending:
 *     inner node: slot (4), reference of the child (52)
 *     leaf: slot (4) with the number of parts, then per part: part (4), reference of a DATA extent (52)
 *   rule 6: node header's level and first unit are those of the place where it was reached
 *   rule 7: parts of a unit ascend and do not overlap; pieces [first, first+count) come from pieces [src, src+count) of the
 *           extent; pieces that no part covers read as zeros
 * A slot that is absent reads as zeros. */
#ifndef BP_REPO_FORMAT_H
#define BP_REPO_FORMAT_H
#include "common/endian.h"

#define REPO_VERSION 1u
#define REPO_UNIT 65536u
#define REPO_PIECE 4096u
#define REPO_PIECES (REPO_UNIT / REPO_PIECE)
#define REPO_FANOUT 64u
#define REPO_MAX_LEVELS 9u /* 64^9 units: more than 2^63 bytes */
#define PACK_MAGIC "GRNPACK1"
#define PACK_END_MAGIC "GRNPEND1"
#define EXTENT_MAGIC 0x31585247u /* "GRX1" */
#define NODE_MAGIC 0x314e4d47u   /* "GMN1" */
enum repo_kind { REPO_DATA = 1, REPO_MAP = 2 };
enum repo_codec { REPO_RAW = 0, REPO_ZSTD = 1 };

struct pack_header_disk {
    char magic[8];       /*  0 */
    gr_le32 version;     /*  8 */
    gr_le32 reserved;    /* 12 */
    gr_le64 id;          /* 16 */
    uint8_t repo[16];    /* 24 */
    uint8_t pad[20];     /* 40 */
    gr_le32 crc;         /* 60 of bytes 0..59 */
} __attribute__((packed));
GR_SIZE(struct pack_header_disk, 64);
GR_LAYOUT(struct pack_header_disk, crc, 60);

struct extent_header_disk {
    gr_le32 magic;       /*  0 */
    uint8_t kind, codec; /*  4 */
    gr_le16 reserved;    /*  6 */
    gr_le32 raw;         /*  8 bytes */
    gr_le32 stored;      /* 12 bytes of payload */
    gr_le32 payload_crc; /* 16 */
    gr_le32 self;        /* 20 offset of this header in the pack */
    uint8_t hash[32];    /* 24 SHA-256 of the raw bytes */
    gr_le32 reserved2;   /* 56 */
    gr_le32 crc;         /* 60 of bytes 0..59 */
} __attribute__((packed));
GR_SIZE(struct extent_header_disk, 64);
GR_LAYOUT(struct extent_header_disk, hash, 24);
GR_LAYOUT(struct extent_header_disk, crc, 60);

struct trailer_entry_disk {
    gr_le32 off, raw, stored;     /*  0 4 8 */
    uint8_t kind, codec, pad[2];  /* 12 */
    uint8_t hash[32];             /* 16 */
} __attribute__((packed));
GR_SIZE(struct trailer_entry_disk, 48);

struct pack_end_disk {
    char magic[8];       /*  0 */
    gr_le64 id;          /*  8 */
    gr_le32 count;       /* 16 extents */
    gr_le32 trailer_off; /* 20 */
    gr_le32 trailer_crc; /* 24 */
    uint8_t pad[32];     /* 28 */
    gr_le32 crc;         /* 60 of bytes 0..59 */
} __attribute__((packed));
GR_SIZE(struct pack_end_disk, 64);

struct ref_disk {
    gr_le64 pack;     /*  0 */
    gr_le32 off;      /*  8 */
    gr_le32 stored;   /* 12 */
    gr_le32 raw;      /* 16 */
    uint8_t hash[32]; /* 20 */
} __attribute__((packed));
GR_SIZE(struct ref_disk, 52);

struct node_header_disk {
    gr_le32 magic;          /*  0 */
    uint8_t level, version; /*  4 */
    gr_le16 count;          /*  6 slots in use */
    gr_le64 first_unit;     /*  8 */
} __attribute__((packed));
GR_SIZE(struct node_header_disk, 16);

struct node_slot_disk {
    uint8_t slot, parts; /* parts: 0 in inner nodes */
    uint8_t pad[2];
} __attribute__((packed));
GR_SIZE(struct node_slot_disk, 4);
struct node_part_disk {
    uint8_t first, count, src, pad; /* pieces */
} __attribute__((packed));
GR_SIZE(struct node_part_disk, 4);

#define REPO_ALIGN 8u
#define REPO_NODE_MAX (16u + REPO_FANOUT * (4u + REPO_PIECES * 56u)) /* bytes of the largest node, 57,600 */
_Static_assert(REPO_NODE_MAX <= REPO_UNIT, "a node must fit one extent");

/* Index of hashes (index/dedupe): a lossy cache of 128-byte buckets, each 5 entries; never trusted. A hash belongs into bucket
 * prefix mod the number of buckets, a power of two that doubles when buckets overflow. */
struct dedupe_entry_disk {
    gr_le64 prefix; /* first 8 bytes of the hash; 0: empty */
    gr_le64 pack;
    gr_le32 off, stored;
} __attribute__((packed));
GR_SIZE(struct dedupe_entry_disk, 24);
#define DEDUPE_WAYS 5u
struct dedupe_bucket_disk {
    struct dedupe_entry_disk e[DEDUPE_WAYS];
    uint8_t pad[8];
} __attribute__((packed));
GR_SIZE(struct dedupe_bucket_disk, 128);
#define DEDUPE_MIN (1u << 12) /* buckets: 512 KiB */
#define DEDUPE_MAX (1u << 22) /* 512 MiB, 21 million units, 1.3 TiB */
#endif
