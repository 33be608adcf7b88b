/* Inside of the iSCSI bdev: bdev_iscsi*.c only.
 *
 *   bdev_iscsi.c        opening, geometry, and requests cut into commands
 *   bdev_iscsi_dial.c   one session: resolve, connect, log in, follow redirects
 *   bdev_iscsi_unit.c   what the logical unit says it is
 *   bdev_iscsi_cmd.c    command descriptor blocks, and what the answers mean
 *   bdev_iscsi_queue.c  sending, answers, trying again
 *   bdev_iscsi_done.c   what waits, and what is done
 *   bdev_iscsi_link.c   losing a session and making the next one
 *   bdev_iscsi_dirty.c  what is written but not flushed
 *   bdev_iscsi_fence.c  persistent reservations */
#ifndef GR_BDEV_ISCSI_INT_H
#define GR_BDEV_ISCSI_INT_H
#include "common/bdev_iscsi.h"
#include "common/fiber.h"
#include <iscsi/iscsi.h>
#include <iscsi/scsi-lowlevel.h>

#define ISCSI_DEPTH 256          /* commands with libiscsi at a time */
#define ISCSI_PIECE (512u << 10) /* bytes of one READ or WRITE at most */
#define ISCSI_ZERO_PIECE (UINT64_C(32) << 20) /* bytes of one WRITE SAME at most */
#define ISCSI_IOV 64             /* parts of one command's memory */
#define ISCSI_DESCRIPTORS 256    /* of one GET LBA STATUS */
#define ISCSI_REDIRECTS 8        /* of one log-in */

/* What the logical unit says it is. */
struct isc_unit {
    uint64_t size;                   /* bytes */
    uint32_t block, physical, piece; /* bytes; piece: of one command */
    uint32_t caw_blocks;             /* COMPARE AND WRITE takes so many; 0: there is none */
    uint64_t same_bytes;             /* of one WRITE SAME */
    uint32_t granule;                /* bytes, of unmapping */
    bool lbpme, lbprz, lbpws;        /* thin; unmapped blocks read as zeros; WRITE SAME unmaps */
    bool modes_known, wce, dpofua, write_protected;
    uint8_t id[256];                 /* VPD page 83h as it came */
    size_t id_len;
};
struct isc_session {
    struct iscsi_context *ctx;
    int lun;
    int watch_fd; /* a duplicate of libiscsi's descriptor, which libiscsi may close at any time */
    int lib_fd;   /* libiscsi's own number */
};
struct isc_dev;
struct isc_req { /* one gr_bio */
    struct gr_bio *bio;
    struct gr_chan *ch;
    unsigned pending;
    int status;
    bool then_flush; /* done only when what it wrote is flushed */
    struct isc_req *next;
};
enum isc_kind { ISC_READ, ISC_WRITE, ISC_ZERO, ISC_FLUSH, ISC_CAW, ISC_STATUS, ISC_QUESTION };
struct isc_sub { /* one SCSI command */
    struct isc_dev *dev;
    struct isc_req *req; /* NULL: a question */
    struct isc_sub *prev, *next;
    enum isc_kind kind;
    bool fua;
    bool unmap;       /* ISC_ZERO: space may be given back */
    bool unsure;      /* ISC_CAW: its answer was lost; sent as a read of the range into @seen */
    uint64_t seq;     /* of its first sending: commands of a lost session go out in this order again */
    uint64_t off, len;
    uint64_t at;      /* ISC_ZERO by plain writes: bytes done */
    uint8_t *bounce;  /* the request's vector does not fit as it is; CAW: both halves */
    uint8_t *seen;
    struct scsi_iovec *iov;
    int n_iov;
    struct scsi_task *task; /* while it is with libiscsi */
    uint64_t sent_ns, first_ns; /* and when it was sent first */
    uint64_t nonce; /* planted in every sector before a read */
    unsigned tries;
    uint64_t mark;             /* ISC_FLUSH: what of the dirty it makes durable */
    struct isc_sub *then;      /* ISC_FLUSH: what waits for it */
    struct isc_answer *answer; /* ISC_QUESTION */
};
struct isc_list {
    struct isc_sub *head, *tail;
};
enum isc_state {
    ISC_LIVE,
    ISC_DOWN,    /* no session, and nobody makes one */
    ISC_DIALING, /* a fiber makes one; with a session when it asks the unit questions */
    ISC_DEAD,    /* for ever */
};
struct isc_answer { /* to a question */
    bool done;
    int status;             /* SCSI status, or libiscsi's that there is none */
    struct scsi_task *task; /* with parameter data or sense */
    struct gr_fiber *waiter;
};
struct isc_dirty;
struct isc_dev {
    struct gr_bdev bdev;
    struct gr_loop *loop;
    char *url, *initiator, *chap_user, *chap_secret, *target_user, *target_secret;
    uint8_t isid[6];
    bool url_secret, read_only;
    uint64_t timeout_ms, patience_ms;
    unsigned reconnects, failures; /* failures: sessions in a row that carried nothing */
    struct isc_unit unit;
    enum isc_state state;
    int dead;
    uint64_t down_since_ns;
    struct isc_session session;
    struct gr_watch watch;
    bool watching, lost, tearing, closing, given_up;
    uint64_t answered_ns; /* the last answer of the unit */
    bool look;     /* the unit may have changed, or thrown us out: see before anything else is sent */
    bool looking;  /* a fiber does */
    bool paused;   /* nothing is sent until the timer rings */
    bool no_lba_status, no_write_same, caw_no_fua;
    struct gr_timer age, pause; /* age: of the oldest command; pause: before commands are tried again */
    uint64_t nonce; /* of the last read */
    struct isc_list waiting, busy;
    unsigned n_busy;
    uint64_t seq;
    struct gr_defer kick, announce;
    bool news_fenced, news_resized;
    int flush_error; /* final */
    struct isc_dirty *dirty;
    /* the fence */
    uint64_t key, lost_key; /* registered under, 0: not; under which we were thrown out */
    bool fenced;
    struct gr_fmutex fence_lock; /* one operation at a time */
    bool fencing;                /* one is under way */
    struct gr_fqueue settled; /* woken when a session is live, when there will be none, and when a fiber ends */
    unsigned fibers;
    struct gr_err why; /* of the last failed log-in */
};
/* Per channel: requests that are done, to be told on the channel's loop. */
struct isc_chan {
    struct isc_req *head, *tail;
    struct gr_defer complete;
};

/* ---- bdev_iscsi_dial.c ---- */
/* Fiber: a session that is logged in, or an error that names the portal; the unit was not asked anything. */
int isc_dial(struct isc_dev *d, struct isc_session *ret, struct gr_err *err);
void isc_hang_up(struct isc_session *s); /* ends what is in flight with SCSI_STATUS_CANCELLED */
/* The URL without a secret: for messages. "iscsi://user%secret@host/…" → "iscsi://host/…" */
void isc_url_text(const char *url, char out[128]);

/* ---- bdev_iscsi_unit.c ---- */
/* Fiber: ask the unit what it is, over the session that is up. */
int isc_examine(struct isc_dev *d, struct isc_unit *ret, struct gr_err *err);
int isc_ask_modes(struct isc_dev *d, struct isc_unit *u, struct gr_err *err);
/* 0, or -ESTALE with what is different: the bytes of @now are not ours. */
int isc_same_unit(const struct isc_unit *was, const struct isc_unit *now, struct gr_err *err);

/* ---- bdev_iscsi_cmd.c ---- */
/* The command of @s; its data vectors are set. NULL: out of memory. */
struct scsi_task *isc_command(struct isc_sub *s);
/* A command without much data: @in bytes expected, or @out_len sent (copied into the task). */
struct scsi_task *isc_small_command(const uint8_t *cdb, size_t cdb_len, size_t in, const void *out, size_t out_len);
/* What a command's final answer means: 0 or a code. READ data is checked, EXTENTS filled, miscompare_off set. */
int isc_result(struct isc_sub *s, int status, const struct scsi_task *t);
struct isc_sense {
    uint8_t key;
    uint16_t asc; /* ASC << 8 | ASCQ */
    bool has_info;
    uint64_t info;
};
struct isc_sense isc_sense(const struct scsi_task *t); /* of CHECK CONDITION; all 0 when there is no sense data */
const char *isc_status_text(int status, const struct scsi_task *t, char out[96]);
void isc_blind(struct gr_bio *bio);                    /* EXTENTS of who cannot tell: all data */
void isc_zero_vector(struct isc_sub *s);               /* ISC_ZERO: what its next command sends */

/* ---- bdev_iscsi_queue.c ---- */
/* Send what waits, or see to it that a session comes. */
void isc_kick(struct isc_dev *d);
void isc_update(struct isc_dev *d); /* what the loop watches for */
void isc_pump(struct isc_dev *d, int events);
/* Fiber: ask over the session that is up, and wait. 0: @ret is answered, its task is the caller's to free. UNIT ATTENTION, BUSY and the
 * like are tried again. -ECONNRESET: the session broke. */
int isc_ask(struct isc_dev *d, const uint8_t *cdb, size_t cdb_len, size_t in, const void *out, size_t out_len, struct isc_answer *ret);
/* Fiber: the same with a command of the queue's; consumed. 0 or a code. */
int isc_ask_sub(struct isc_dev *d, struct isc_sub *s);

/* ---- bdev_iscsi_done.c ---- */
void isc_unlink(struct isc_list *l, struct isc_sub *s);
void isc_insert(struct isc_list *l, struct isc_sub *s); /* in order of seq: what goes back comes before what came later */
void isc_enqueue(struct isc_dev *d, struct isc_sub *s); /* a new one; kicks later this turn */
void isc_again(struct isc_sub *s);
/* One more command of @r: a flush, and when that is done @then (NULL allowed). 0 or a code. */
int isc_add_flush(struct isc_req *r, struct isc_sub *then);
void isc_finish(struct isc_sub *s, int status); /* takes @s */
void isc_fail_waiting(struct isc_dev *d, int code);
void isc_run_done(void *isc_chan); /* deferred: tell the channel's requests */

/* ---- bdev_iscsi_link.c ---- */
void isc_lose(struct isc_dev *d);
int isc_attach(struct isc_dev *d);
void isc_detach(struct isc_dev *d);
void isc_start_dialing(struct isc_dev *d);
void isc_start_looking(struct isc_dev *d);
/* Fiber: wait for a session. 0 or why there is none. */
int isc_wait_live(struct isc_dev *d, struct gr_err *err);
void isc_sleep_ms(struct isc_dev *d, uint64_t ms); /* fiber; shorter when the device is closed */
void isc_back_off(struct isc_dev *d);              /* the same, before the next log-in: the longer, the more have failed in a row */

/* ---- bdev_iscsi_dirty.c ---- */
struct isc_dirty *isc_dirty_new(void);
void isc_dirty_free(struct isc_dirty *y); /* NULL allowed */
/* @s changed bytes and was answered. What the device may still forget is kept until a flush that is sent from now on; what is durable
 * takes the place of what was kept of its range. False: no room, flush before the request is done. */
bool isc_dirty_note(struct isc_dirty *y, const struct isc_sub *s, bool durable);
bool isc_dirty_overlaps(const struct isc_dirty *y, uint64_t off, uint64_t len);
uint64_t isc_dirty_mark(const struct isc_dirty *y); /* all that was noted so far */
void isc_dirty_clean(struct isc_dirty *y, uint64_t mark);
/* Fiber: write all of it again. 0, -ECONNRESET, or a code: something is lost. */
int isc_dirty_replay(struct isc_dev *d);

/* ---- bdev_iscsi_fence.c ---- */
extern const struct gr_fence_ops isc_fence_ops;
uint64_t isc_silent_ms(struct gr_bdev *bdev);
void isc_give_up(struct gr_bdev *bdev);
void isc_fenced(struct isc_dev *d); /* everything ends with -GR_EFENCED from now on */
/* Fiber, the session is up: are we still registered, and is the reservation there? 0, -GR_EFENCED, or why nobody knows. */
int isc_check_place(struct isc_dev *d, struct gr_err *err);
#endif
