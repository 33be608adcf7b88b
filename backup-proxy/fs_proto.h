/* Messages between a reader of guest file systems (granary-fsread, sandboxed) and its parent, over one end of a
 * socketpair. The helper has no file of its own: it asks the parent for image bytes and answers questions about the
 * file systems in them. Both sides distrust the other: every length is checked before it is used, and the parent
 * checks every name, type and offset again, because a hostile file system may own the helper.
 *
 * A frame is a header of 16 bytes and a body:
 *     OFFSET SIZE
 *        0    4   magic "GFS1"
 *        4    2   type (enum fs_msg)
 *        6    2   zero
 *        8    4   length of the body, at most FS_BODY_MAX
 *       12    4   sequence: a reply carries its request's
 * Integers are little-endian; a string or blob is a u32 length and its bytes. The parent sends one request at a time;
 * until the answer comes the helper may send FS_IMG_READ any number of times, each answered by one FS_IMG_DATA.
 *
 * These files (fs_proto, fs_parts, fs_lvm) need libc only, so that the helper, which links libtsk, shares nothing
 * else with the rest of Granary. No function here allocates or blocks. */
#ifndef FS_PROTO_H
#define FS_PROTO_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FS_MAGIC 0x31534647u /* "GFS1" */
#define FS_HDR 16u
#define FS_DATA_MAX (1u << 20)           /* bytes of one read */
#define FS_BODY_MAX (FS_DATA_MAX + 4096) /* longest body */
#define FS_NAME_MAX 1020u                /* bytes of one name (an NTFS name can take 765 in UTF-8) */
#define FS_LINK_MAX 4095u                /* bytes of a symbolic link */
#define FS_TEXT_MAX 255u
#define FS_VOLUMES_MAX 256u              /* volumes of one disk */
#define FS_SEGS_MAX 512u                 /* pieces of one volume */
#define FS_RUNS_MAX 2048u                /* runs in one FS_RUNS */
#define FS_LIST_MAX 2000000u             /* entries of one directory */

enum fs_msg {
    /* parent to helper */
    FS_HELLO = 1,  /* u64 image size, u32 sector size                                     → FS_OK */
    FS_PARTS,      /*                                                                     → FS_PARTS_ARE */
    FS_VOLUME,     /* u32 id, struct fs_volume: what the id means from now on             → FS_OK */
    FS_OPEN,       /* u32 id                                                              → FS_OPENED */
    FS_LIST,       /* u32 id, u64 inode                                                   → FS_ENTRIES*, FS_OK */
    FS_STAT,       /* u32 id, u64 inode                                                   → FS_ATTR */
    FS_LINK,       /* u32 id, u64 inode                                                   → FS_TEXT */
    FS_READ,       /* u32 id, u64 inode, u64 offset, u32 length                           → FS_DATA */
    FS_MAP,        /* u32 id, u64 inode, u64 offset: runs from there on                   → FS_RUNS */
    FS_IMG_DATA,   /* i32 status, blob: answer to FS_IMG_READ */
    /* helper to parent */
    FS_OK = 32,
    FS_ERROR,      /* i32 errno (positive), string */
    FS_PARTS_ARE,  /* string table kind, u32 count, struct fs_volume* */
    FS_OPENED,     /* struct fs_opened */
    FS_ENTRIES,    /* u32 count, struct fs_entry* */
    FS_ATTR,       /* struct fs_attr */
    FS_TEXT,       /* string */
    FS_DATA,       /* blob; shorter than asked only at the end of the file */
    FS_RUNS,       /* u8 mappable, u64 end of what the runs tell about, u32 count, struct fs_run* */
    FS_IMG_READ,   /* u64 offset, u32 length (1..FS_DATA_MAX), within the image */
};

enum fs_type { FS_T_UNKNOWN, FS_T_FILE, FS_T_DIR, FS_T_LINK, FS_T_CHAR, FS_T_BLOCK, FS_T_FIFO, FS_T_SOCKET, FS_T_LAST };
struct fs_time {
    int64_t sec;
    uint32_t nsec;
};
struct fs_attr {
    uint64_t inode, size, nlink;
    uint32_t mode; /* permission bits, 07777 */
    uint32_t uid, gid;
    uint8_t type; /* enum fs_type */
    struct fs_time mtime, atime, ctime, btime;
};
struct fs_entry {
    struct fs_attr attr;
    uint32_t name_len;
    char name[FS_NAME_MAX + 1];
};
/* A volume: what holds one file system. A partition is one piece of the image, a linear logical volume may be several. */
struct fs_seg {
    uint64_t volume_off, image_off, len; /* bytes */
};
enum fs_volume_kind { FS_V_WHOLE, FS_V_PART, FS_V_LV };
struct fs_volume {
    uint8_t kind;
    uint32_t number;            /* partition number as Linux counts them; 0 otherwise */
    uint64_t size;
    char label[FS_TEXT_MAX + 1]; /* GPT partition name, "group/volume" of an LV; UTF-8 */
    char type[FS_TEXT_MAX + 1];  /* GPT type GUID or MBR type ("0x83") */
    uint32_t n_segs;
    struct fs_seg segs[FS_SEGS_MAX];
};
enum fs_dirty { FS_CLEAN, FS_DIRTY /* in use when the disk was frozen */, FS_DIRTY_REPLAYED /* and shown with its journal applied */ };
struct fs_opened {
    char fs[FS_TEXT_MAX + 1];    /* "ext4", "ntfs", "fat32", "exfat" …; empty: no file system that we know */
    char label[FS_TEXT_MAX + 1];
    char uuid[FS_TEXT_MAX + 1];
    uint8_t dirty; /* enum fs_dirty */
    uint64_t root, block_size, size;
};
struct fs_run {
    uint64_t file_off, volume_off, len; /* bytes; runs are sorted and do not overlap; what lies between them is zeros */
};

struct fs_hdr {
    uint16_t type;
    uint32_t len, seq;
};
void fs_hdr_put(uint8_t out[FS_HDR], const struct fs_hdr *h);
bool fs_hdr_get(const uint8_t in[FS_HDR], struct fs_hdr *ret); /* false: not a header of this protocol */

/* Writer into a fixed buffer; `bad` once something did not fit. */
struct fs_out {
    uint8_t *p;
    size_t len, cap;
    bool bad;
};
void fs_put_u8(struct fs_out *o, uint8_t v);
void fs_put_u32(struct fs_out *o, uint32_t v);
void fs_put_u64(struct fs_out *o, uint64_t v);
void fs_put_blob(struct fs_out *o, const void *p, size_t len);
void fs_put_str(struct fs_out *o, const char *s);
void fs_put_volume(struct fs_out *o, const struct fs_volume *v);
void fs_put_opened(struct fs_out *o, const struct fs_opened *v);
void fs_put_attr(struct fs_out *o, const struct fs_attr *a);
void fs_put_entry(struct fs_out *o, const struct fs_entry *e);
void fs_put_run(struct fs_out *o, const struct fs_run *r);

/* Reader; `bad` once something was missing or out of its bounds, all values are zero from then on. */
struct fs_in {
    const uint8_t *p, *end;
    bool bad;
};
uint8_t fs_get_u8(struct fs_in *in);
uint32_t fs_get_u32(struct fs_in *in);
uint64_t fs_get_u64(struct fs_in *in);
const uint8_t *fs_get_blob(struct fs_in *in, size_t max, uint32_t *ret_len); /* borrowed from the body */
void fs_get_str(struct fs_in *in, char *out, size_t cap); /* valid only without NUL inside */
void fs_get_volume(struct fs_in *in, struct fs_volume *v);
void fs_get_opened(struct fs_in *in, struct fs_opened *v);
void fs_get_attr(struct fs_in *in, struct fs_attr *a);
void fs_get_entry(struct fs_in *in, struct fs_entry *e);
void fs_get_run(struct fs_in *in, struct fs_run *r);
bool fs_in_done(const struct fs_in *in); /* all read, nothing bad */

/* A name that may stand in a directory listing of ours: 1..FS_NAME_MAX bytes, no '/', no NUL, not "." or "..". */
bool fs_name_ok(const char *name, size_t len);
/* True when the pieces are sorted, without overlap or gap, cover v->size and lie inside an image of @image_size bytes. */
bool fs_volume_ok(const struct fs_volume *v, uint64_t image_size);
/* Where byte @off of the volume lies in the image, and how many bytes follow there in one piece; 0: behind the end. */
uint64_t fs_volume_map(const struct fs_volume *v, uint64_t off, uint64_t *ret_image_off);
#endif
