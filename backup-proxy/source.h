/* Sources of a backup that are reached over a network: each is a read-only gr_bdev, asynchronous on the loop, with a deep
 * queue. READ and EXTENTS work; everything else gives -GR_EREADONLY. A source that broke fails its requests with the
 * reason; nothing is ever retried by a caller in the belief that it might have been written.
 *
 * What a server says is checked (sizes, lengths, extents that do not move on), because it may be a stranger's.
 *
 * Thread rule: the loop's own thread. Open functions: in a fiber. Errors carry a sentence that names host and export. */
#ifndef BP_SOURCE_H
#define BP_SOURCE_H
#include "common/bdev.h"

/* ---- NBD (libnbd): the transport `lan` ---- */
struct bp_nbd_opts {
    const char *uri;       /* nbds://HOST[:PORT]/EXPORT?..., nbd://..., nbd+unix:///EXPORT?socket=PATH, ... */
    const char *cert_dir;  /* certificates (ca-cert.pem, client-cert.pem, client-key.pem); NULL: what the URI says */
    const char *psk_file;  /* pre-shared keys, for the user @psk_user; NULL: none */
    const char *psk_user;
    bool require_tls;      /* refuse a server that does not do TLS, whatever the URI says */
    /* Ask for changes since this point: EXTENTS with an equal bio.base then answers `changed`. The open fails with -ENOENT
     * when the server cannot tell (then open again without it and read all). NULL: EXTENTS with a base: -EOPNOTSUPP. */
    const struct gr_bookmark *base;
    unsigned connections;  /* 0: 1. More only when the server says it may (multi-conn). */
    uint64_t timeout_ms;   /* connect, handshake, and silence with requests in flight; 0: 60000 */
};
int bp_source_nbd_open(struct gr_loop *loop, const struct bp_nbd_opts *opts, struct gr_bdev **ret, struct gr_err *err);

/* ---- iSCSI (libiscsi): the transport `san` ---- */
struct bp_iscsi_opts {
    const char *url;        /* iscsi://[USER[%SECRET]@]HOST[:PORT]/IQN/LUN */
    const char *initiator;  /* initiator name; NULL: iqn.2026-01.granary:proxy */
    const char *chap_user;  /* NULL: what the URL says */
    const char *chap_secret_file; /* mode 0600; NULL: none */
    uint64_t timeout_ms;    /* log-in, and silence with requests in flight before the session is made anew; 0: 30000 */
    unsigned reconnects;    /* in a row without one success before requests fail; 0: 12, about 20 s */
};
int bp_source_iscsi_open(struct gr_loop *loop, const struct bp_iscsi_opts *opts, struct gr_bdev **ret, struct gr_err *err);
#endif
