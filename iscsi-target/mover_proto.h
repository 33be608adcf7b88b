/* NBD on the wire: constants and fixed structures of the protocol document (doc/proto.md of the NBD project), fixed
 * newstyle only. All integers are big-endian. */
#ifndef MOVER_PROTO_H
#define MOVER_PROTO_H
#include "common/endian.h"

#define NBD_MAGIC UINT64_C(0x4e42444d41474943)        /* "NBDMAGIC" */
#define NBD_OPTS_MAGIC UINT64_C(0x49484156454f5054)   /* "IHAVEOPT" */
#define NBD_REP_MAGIC UINT64_C(0x0003e889045565a9)
#define NBD_REQUEST_MAGIC UINT32_C(0x25609513)
#define NBD_SIMPLE_REPLY_MAGIC UINT32_C(0x67446698)
#define NBD_STRUCTURED_REPLY_MAGIC UINT32_C(0x668e33ef)

/* handshake flags (server and client) */
#define NBD_FLAG_FIXED_NEWSTYLE 1
#define NBD_FLAG_NO_ZEROES 2

#define NBD_MAX_STRING 4096

enum nbd_opt {
    NBD_OPT_EXPORT_NAME = 1,
    NBD_OPT_ABORT = 2,
    NBD_OPT_LIST = 3,
    NBD_OPT_STARTTLS = 5,
    NBD_OPT_INFO = 6,
    NBD_OPT_GO = 7,
    NBD_OPT_STRUCTURED_REPLY = 8,
    NBD_OPT_LIST_META_CONTEXT = 9,
    NBD_OPT_SET_META_CONTEXT = 10,
};
#define NBD_REP_ERR(n) (UINT32_C(0x80000000) + (n))
#define NBD_REP_ACK 1u
#define NBD_REP_SERVER 2u
#define NBD_REP_INFO 3u
#define NBD_REP_META_CONTEXT 4u
#define NBD_REP_ERR_UNSUP NBD_REP_ERR(1)
#define NBD_REP_ERR_POLICY NBD_REP_ERR(2)
#define NBD_REP_ERR_INVALID NBD_REP_ERR(3)
#define NBD_REP_ERR_TLS_REQD NBD_REP_ERR(5)
#define NBD_REP_ERR_UNKNOWN NBD_REP_ERR(6)
#define NBD_REP_ERR_SHUTDOWN NBD_REP_ERR(7)
#define NBD_REP_ERR_TOO_BIG NBD_REP_ERR(9)

enum nbd_info { NBD_INFO_EXPORT, NBD_INFO_NAME, NBD_INFO_DESCRIPTION, NBD_INFO_BLOCK_SIZE };

/* transmission flags */
#define NBD_FLAG_HAS_FLAGS (1 << 0)
#define NBD_FLAG_READ_ONLY (1 << 1)
#define NBD_FLAG_SEND_FLUSH (1 << 2)
#define NBD_FLAG_SEND_FUA (1 << 3)
#define NBD_FLAG_ROTATIONAL (1 << 4)
#define NBD_FLAG_SEND_TRIM (1 << 5)
#define NBD_FLAG_SEND_WRITE_ZEROES (1 << 6)
#define NBD_FLAG_SEND_DF (1 << 7)
#define NBD_FLAG_CAN_MULTI_CONN (1 << 8)
#define NBD_FLAG_SEND_CACHE (1 << 10)

enum nbd_cmd {
    NBD_CMD_READ = 0,
    NBD_CMD_WRITE = 1,
    NBD_CMD_DISC = 2,
    NBD_CMD_FLUSH = 3,
    NBD_CMD_TRIM = 4,
    NBD_CMD_CACHE = 5,
    NBD_CMD_WRITE_ZEROES = 6,
    NBD_CMD_BLOCK_STATUS = 7,
};
#define NBD_CMD_FLAG_FUA (1 << 0)
#define NBD_CMD_FLAG_NO_HOLE (1 << 1)
#define NBD_CMD_FLAG_DF (1 << 2)
#define NBD_CMD_FLAG_REQ_ONE (1 << 3)

#define NBD_REPLY_FLAG_DONE 1
#define NBD_REPLY_TYPE_NONE 0
#define NBD_REPLY_TYPE_OFFSET_DATA 1
#define NBD_REPLY_TYPE_OFFSET_HOLE 2
#define NBD_REPLY_TYPE_BLOCK_STATUS 5
#define NBD_REPLY_TYPE_ERROR 32769

/* flags of base:allocation */
#define NBD_STATE_HOLE 1
#define NBD_STATE_ZERO 2

enum nbd_errno {
    NBD_EPERM = 1,
    NBD_EIO = 5,
    NBD_ENOMEM = 12,
    NBD_EINVAL = 22,
    NBD_ENOSPC = 28,
    NBD_EOVERFLOW = 75,
    NBD_ENOTSUP = 95,
    NBD_ESHUTDOWN = 108,
};

struct nbd_opt_wire {      /* OFFSET SIZE */
    gr_be64 magic;         /*   0  8  NBD_OPTS_MAGIC        */
    gr_be32 option;        /*   8  4                        */
    gr_be32 length;        /*  12  4  bytes that follow     */
} __attribute__((packed));
GR_SIZE(struct nbd_opt_wire, 16);

struct nbd_rep_wire {      /* OFFSET SIZE */
    gr_be64 magic;         /*   0  8  NBD_REP_MAGIC         */
    gr_be32 option;        /*   8  4                        */
    gr_be32 type;          /*  12  4                        */
    gr_be32 length;        /*  16  4                        */
} __attribute__((packed));
GR_SIZE(struct nbd_rep_wire, 20);

struct nbd_request_wire {  /* OFFSET SIZE */
    gr_be32 magic;         /*   0  4  NBD_REQUEST_MAGIC     */
    gr_be16 flags;         /*   4  2  NBD_CMD_FLAG_*        */
    gr_be16 type;          /*   6  2  enum nbd_cmd          */
    gr_be64 cookie;        /*   8  8  the client's          */
    gr_be64 offset;        /*  16  8  bytes                 */
    gr_be32 length;        /*  24  4  bytes                 */
} __attribute__((packed));
GR_SIZE(struct nbd_request_wire, 28);

struct nbd_simple_wire {   /* OFFSET SIZE */
    gr_be32 magic;         /*   0  4  NBD_SIMPLE_REPLY_MAGIC */
    gr_be32 error;         /*   4  4  enum nbd_errno        */
    gr_be64 cookie;        /*   8  8                        */
} __attribute__((packed));
GR_SIZE(struct nbd_simple_wire, 16);

struct nbd_chunk_wire {    /* OFFSET SIZE */
    gr_be32 magic;         /*   0  4  NBD_STRUCTURED_REPLY_MAGIC */
    gr_be16 flags;         /*   4  2  NBD_REPLY_FLAG_DONE   */
    gr_be16 type;          /*   6  2  NBD_REPLY_TYPE_*      */
    gr_be64 cookie;        /*   8  8                        */
    gr_be32 length;        /*  16  4  bytes that follow     */
} __attribute__((packed));
GR_SIZE(struct nbd_chunk_wire, 20);
#endif
