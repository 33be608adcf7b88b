/* Inside of the iSCSI source: source_iscsi_dial.c makes sessions, source_iscsi.c carries requests over them. */
#ifndef SOURCE_ISCSI_INT_H
#define SOURCE_ISCSI_INT_H
#include "backup-proxy/source.h"
#include "common/fiber.h"
#include <iscsi/iscsi.h>
#include <iscsi/scsi-lowlevel.h>

#define SAN_DESCRIPTORS 256 /* of one GET LBA STATUS */
#define SAN_MAX_IOV 64

/* What the logical unit says it is; after a reconnect it must say the same. */
struct san_unit {
    uint64_t size;
    uint32_t block, max_piece; /* bytes */
    bool lbpme, lbprz;
    uint8_t id[256]; /* VPD 83h as it came */
    size_t id_len;
};
struct san_session {
    struct iscsi_context *ctx;
    int lun;
    int watch_fd; /* a duplicate of libiscsi's descriptor, which libiscsi may close at any time */
    int lib_fd;   /* libiscsi's own number */
};
struct san_source;
struct san_req { /* one gr_bio */
    struct gr_bio *bio;
    unsigned pending;
    int status;
};
struct san_sub { /* one SCSI command */
    struct san_source *src;
    struct san_req *req;
    struct san_sub *next;
    uint64_t off;
    uint32_t len;
    uint8_t *bounce; /* the request's vector does not fit; else NULL */
    struct scsi_iovec *iov;
    int n_iov;
    struct scsi_task *task; /* while it is with libiscsi */
    unsigned tries;
    int status;
};
enum san_state { SAN_LIVE, SAN_DOWN, SAN_DIALING, SAN_DEAD };
struct san_source {
    struct gr_bdev bdev;
    struct gr_loop *loop;
    char *url, *initiator, *chap_user, *chap_secret;
    uint64_t timeout_ms;
    unsigned reconnects, failures; /* failures: sessions in a row that carried nothing */
    struct san_unit unit;
    enum san_state state;
    int dead; /* why */
    struct san_session session;
    struct gr_watch watch;
    bool watching, progress, lost, tearing, no_lba_status;
    struct gr_timer silence, pause; /* pause: before a command is tried again */
    uint64_t nonce; /* planted in every sector before a read */
    struct san_sub *busy, *waiting, *done, *done_tail; /* with libiscsi; for a session; finished */
    struct gr_defer complete, flush;
};
/* Fiber: log in and examine the unit. On success @s is a session whose unit is *@ret_unit. */
int san_dial(struct san_source *src, struct san_session *s, struct san_unit *ret_unit, struct gr_err *err);
void san_hang_up(struct san_session *s); /* ends what is in flight with SCSI_STATUS_CANCELLED */
void san_source_free(struct san_source *src);
void san_source_ready(struct san_source *src, const char *name); /* session and unit are set: become a bdev */
#endif
