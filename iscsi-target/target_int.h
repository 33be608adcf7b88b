/* What the files of iscsi-target/ share: server, logical unit, session, connection, task.
 *
 * Ownership: the server owns LUs and sessions; a session owns its connections and its tasks (a fixed array). A task whose device
 * I/O is under way when its session ends is an orphan: it keeps the session's memory and, for writes, its range lock until the
 * device has answered, so that a late duplicate cannot land behind a newer acknowledged write.
 *
 * A task has allegiance to one connection (RFC 7143 4.2.2.5): its data and its answer travel there. At error recovery level 2 a
 * connection that breaks leaves its tasks without one, until the initiator reassigns them or the time to retain is over. */
#ifndef TGT_INTERNAL_H
#define TGT_INTERNAL_H
#include "common/buf.h"
#include "iscsi-target/lun_access.h"
#include "iscsi-target/iscsi.h"
#include "iscsi-target/latency.h"
#include "iscsi-target/nego.h"
#include "iscsi-target/buf_pool.h"
#include "iscsi-target/target.h"
#include <stdatomic.h>

/* ---- limits: everything that a peer can grow has one ---- */
#define TGT_WINDOW 256u          /* commands of a session that are accepted and not answered (CmdSN window) */
#define TGT_TASKS 512u           /* task slots of a session: window, immediate ones, answers not yet sent */
#define TGT_IMMEDIATE_MAX 64u    /* immediate commands under way */
#define TGT_MISC_MAX 64u         /* answers other than of commands (NOP, text, TMF, reject) not yet sent: then reading stops */
#define TGT_R2T_MAX 8u           /* outstanding R2Ts of a task */
#define TGT_CONNS_MAX 8u         /* connections of a session */
#define TGT_HELD_MAX 16u         /* requests other than commands that wait for their CmdSN */
#define TGT_HELD_BYTES 8192u     /* data of one of them */
#define TGT_UNACKED_MAX 128u     /* answers of a session kept until acknowledged (error recovery level 1 and 2) */
#define TGT_UNACKED_BYTES (16u << 20) /* their data, of a session */
#define TGT_RX_BYTES (128u << 10)
#define TGT_TX_PDUS 256u
#define TGT_UA_MAX 16u           /* all that can be told: none is lost */
#define TGT_TEXT_IN_MAX 8192u    /* text of one exchange in full feature phase */
#define TGT_SESSION_BYTES (64u << 20) /* data buffers of a session; more: TASK SET FULL, or the command waits */
/* Long reads of a session from a medium in memory, read or not yet sent: they are sent while they are in a core's cache (0.91 instead of 0.79 of nbdkit's
 * rate at 1 MiB and depth 32, for 0.42 instead of 0.50 s of CPU per GiB). */
#define TGT_LONG_READ (256u << 10)
#define TGT_WINDOW_BYTES (2u << 20)
#define TGT_SERVER_BYTES (768u << 20)
#define TGT_FIBERS_MAX 128u      /* slow commands running at once in a server; more wait, */
#define TGT_FIBERS_OWN 8u        /* unless fewer than these are of their LU */
#define TGT_BAD_DATA_MAX 4096u   /* Data-Outs in a row that belong to no task: then the connection is closed */

struct tgt_task;
struct tgt_sess;
struct tgt_conn;
struct tgt_lu;

/* ---- ranges of a LU that are being read or written ---- */
struct tgt_range {
    uint64_t off, len; /* bytes */
    bool excl;         /* nothing else may overlap */
    bool active;
    void (*go)(struct tgt_range *r); /* called when it had to wait and now holds */
    struct tgt_range *prev, *next;
};
struct tgt_ranges {
    struct tgt_range *active, *waiting, *waiting_last;
    unsigned n_excl; /* exclusive ones, waiting or active: 0 is the fast path */
};
/* True: it holds. False: it waits, r->go will be called. */
bool tgt_range_begin(struct tgt_ranges *rs, struct tgt_range *r);
void tgt_range_end(struct tgt_ranges *rs, struct tgt_range *r); /* active or waiting */
void tgt_range_seal(struct tgt_ranges *rs, struct tgt_range *r); /* an active one becomes exclusive (its session is gone) */

/* ---- limits of a LU: lu_limit.c ---- */
struct tgt_limit {
    uint64_t ops_until, bytes_until; /* used up to this moment, ns */
    struct tgt_task *waiters, *waiters_last;
    struct gr_timer timer;
};
/* True: @t may go on. False: it is put off; tgt_scsi_resume() comes when its turn has. */
bool tgt_limit_pass(struct tgt_task *t);
void tgt_limit_leave(struct tgt_task *t); /* it is put off, and does not want any more */
void tgt_limit_changed(struct tgt_lu *lu);

/* ---- fair shares between LUs: lu_share.c ---- */
struct tgt_share {
    uint64_t turn;           /* of the loop, that is counted */
    unsigned begun, running; /* commands in that turn; under way */
    struct tgt_task *waiters, *waiters_last;
};
/* True: @t may go on. False: it waits; tgt_scsi_resume() comes when its LU's turn has. */
bool tgt_share_pass(struct tgt_task *t);
void tgt_share_done(struct tgt_task *t);  /* it ended */
void tgt_share_leave(struct tgt_task *t); /* it waits, and does not want any more */

/* ---- slow commands of a LU: lu_fibers.c ---- */
struct tgt_fibers {
    unsigned running;
    struct tgt_task *waiters, *waiters_last;
};
void tgt_fiber_leave(struct tgt_task *t); /* it waits, and does not want any more */

/* ---- task ---- */
enum tgt_state {
    TASK_FREE,
    TASK_HELD,    /* its CmdSN's turn has not come */
    TASK_COLLECT, /* data from the initiator is still to come */
    TASK_WAIT,    /* for a buffer, a range or a fiber */
    TASK_RUN,     /* with the device or a fiber */
    TASK_REPLY,   /* answer is being sent */
};
struct tgt_r2t {
    uint32_t ttt, off, len, got, datasn, sn;
    bool due;    /* to be sent, or sent again */
    bool broken; /* a Data-Out of it was lost: what follows in the sequence is thrown away, the rest is asked for anew */
};
/* An answer that carries a StatSN, until ExpStatSN acknowledges it; part of a task or of a tgt_misc. */
struct tgt_unacked {
    struct tgt_unacked *next;
    uint32_t statsn;
    bool listed, is_task;
    bool again;  /* asked for by a Status SNACK */
};
struct tgt_tmf_wait { /* a task management function waiting for tasks to end, then for acknowledgements (ack_fence.c) */
    struct tgt_tmf_wait *next;
    struct tgt_conn *conn;
    uint32_t itt, tasks; /* how many are still to end */
    uint8_t response;
    bool cold_reset, many; /* many: it ends all tasks there are, and its response is fenced */
    bool unsure;           /* no memory to wait for all of them */
};
struct tgt_tmf_more { /* one more that waits for a task */
    struct tgt_tmf_more *next;
    struct tgt_tmf_wait *w;
};
struct tgt_task {
    struct tgt_sess *sess;
    struct tgt_conn *conn;      /* its allegiance; NULL: that connection is gone */
    struct tgt_lu *lu;
    const struct tgt_cmd *cmd;
    struct tgt_task *hash_next; /* or the next free one */
    struct tgt_task *tx_next;
    struct tgt_task *wait_next; /* server's queues for buffers and fibers */
    uint16_t index;
    uint8_t state, flags;       /* tgt_state; byte 1 of the command */
    bool immediate, counted, in_tx, aborted, waiting_buf, waiting_fiber, waiting_limit, waiting_share, in_fiber, done_pending;
    bool shared;                /* counts in its LU's share */
    bool failed_early;          /* answered before its data came */
    bool receiving;             /* held until its immediate data is known to be whole */
    bool lun_ok;
    bool windowed;              /* its buffer counts in the session's window of long reads */
    uint8_t cdb[16];
    uint32_t itt, cmdsn, edtl;
    uint64_t began_ns;
    uint32_t early;             /* sense of a held command that failed before its turn */
    struct tgt_tmf_wait *tmf;   /* waits for its end; */
    struct tgt_tmf_more *tmf_more; /* and who came later */
    /* data */
    uint8_t *buf;
    uint32_t cap;
    uint32_t out_total;         /* bytes the CDB wants from the initiator */
    uint32_t out_need, out_got; /* bytes we take; contiguous from 0 */
    uint32_t in_total, in_len;  /* bytes the command has for the initiator; what of it is sent */
    /* data-out sequences */
    bool unsolicited;           /* unsolicited Data-Outs are still due */
    bool unsol_broken;          /* one of them was lost */
    uint32_t unsol_datasn, unsol_limit;
    uint32_t r2t_off, r2tsn, r2t_seq, n_r2t;
    struct tgt_r2t r2t[TGT_R2T_MAX];
    /* device */
    struct gr_bio bio;
    struct iovec iov, iov2;
    struct tgt_range range;
    /* answer */
    uint8_t status, sense_len;
    uint8_t sense[44];
    uint32_t tx_off, datasn;
    /* recovery */
    struct tgt_unacked unacked;
    uint16_t in_ring;           /* PDUs of it that wait in the ring of its connection */
    bool answered, collapsed;   /* its status is in the ring or out; in the last Data-In */
    bool separate;              /* the status may not travel in a Data-In: it echoes snack_tag */
    uint32_t segment;           /* longest Data-In: what the connection negotiated when the numbering began */
    uint32_t base_sn, base_off; /* Data-In number base_sn began at base_off; what lies below is acknowledged */
    uint32_t again_sn, again_end; /* Data-In numbers to send again */
    uint32_t snack_tag;
};

/* ---- connection and session ---- */
struct tgt_misc { /* a PDU to send that belongs to no task */
    struct tgt_misc *next;
    struct tgt_unacked unacked;
    uint8_t bhs[TGT_BHS_LEN];
    bool takes_statsn, in_ring, fences;
    enum tgt_after { AFTER_NOTHING, AFTER_CLOSE_CONN, AFTER_CLOSE_SESSION } after; /* when it is out */
    uint32_t len;
    uint8_t data[];
};
struct tgt_request { /* one from the initiator that is neither a command nor data: NOP, text, task management, logout */
    struct tgt_request *next;
    struct tgt_conn *conn;
    uint8_t bhs[TGT_BHS_LEN];
    uint32_t len;
    uint8_t data[];
};
struct tgt_tx {
    uint8_t head[TGT_BHS_LEN + 4], tail[8]; /* header and its digest; padding and data digest */
    uint8_t head_len, tail_len;
    bool ends;             /* the task's answer is complete with it */
    const uint8_t *data;
    uint32_t len;
    struct tgt_task *task; /* whose memory it uses, or NULL */
    struct tgt_misc *misc;
};
enum tgt_rx_phase { RX_HEADER, RX_DATA, RX_TAIL, RX_PARK };
struct tgt_unsure { /* a PERSISTENT RESERVE OUT that the disk's owner may have carried out: when it comes again it is the same one */
    uint64_t id; /* under which it was passed on; 0: none */
    uint8_t cdb[10], list[24];
    unsigned told; /* how often its initiator has heard that its registration was taken away: what it asks from then on is another one */
};
struct tgt_sess_stats {
    uint64_t reads, writes, read_bytes, write_bytes, others, errors;
    struct tgt_latency read_latency, write_latency; /* from the command's arrival to its answer */
};
/* ---- stats.c ---- */
void tgt_stats_add(struct tgt_sess_stats *sum, const struct tgt_sess_stats *st);
json_t *tgt_stats_save(const struct tgt_sess_stats *st);            /* new, NULL: out of memory */
void tgt_stats_load(struct tgt_sess_stats *sum, json_t *o);         /* adds what save() told; absent is none */
struct tgt_conn {
    struct tgt_sess *sess;
    struct tgt_server *server;
    struct tgt_conn *next;                /* of its session */
    uint16_t cid;
    char address[64];
    int fd;                               /* -1: closed */
    atomic_bool in_call;                  /* its loop's thread is in a system call of it with the gang open: it may not be closed */
    struct gr_watch watch;
    struct gr_defer flush, reap;
    unsigned holds;                       /* others who hold this memory (TMF waits, text in a fiber) */
    struct tgt_params params;             /* those of the session, and this connection's digests and segment length */
    uint64_t heard_ns;
    bool closing;                         /* nothing more is read; ends when the queue is out */
    bool paused;                          /* reading stopped until answers are out */
    bool parsing, logout_sent;
    unsigned nop_outstanding, bad_data;
    /* receive */
    uint8_t *rx_buf;
    uint32_t rx_pos, rx_end;
    enum tgt_rx_phase rx_phase;
    uint8_t rx_bhs[TGT_BHS_LEN];
    uint32_t rx_len, rx_left;             /* of the data segment */
    uint8_t *rx_to;                       /* where the segment goes (start); NULL: thrown away */
    struct tgt_task *rx_task;
    struct tgt_request *rx_request;
    char *text;
    uint32_t text_len, text_off;
    struct gr_buf *listing;               /* SendTargets answer that did not fit in one PDU */
    /* coming to rest (rest.c): requests that are left for later, and, later, what is read before the socket */
    struct gr_buf parked, replay;
    uint32_t park_left;
    size_t replay_off;
    bool unread;                          /* tgt_conn_unread() is to be done once what is being received has come */
    /* send */
    struct tgt_task *tx_tasks, *tx_tasks_last;
    struct tgt_misc *tx_misc, *tx_misc_last;
    unsigned n_misc;
    struct tgt_tx *tx;
    unsigned tx_head, tx_count;
    uint32_t tx_done;                     /* bytes of the head PDU that are out */
    bool flushing;                        /* its loop's thread is sending from the ring */
    uint32_t statsn, acked;               /* the next one; the first that the initiator has not acknowledged */
    uint32_t fence;                       /* what @acked must reach while @fenced */
    bool fenced;
    struct tgt_unacked *unacked, *unacked_last;
};
struct tgt_sess {
    struct tgt_server *server;
    struct gr_loop *loop;
    struct tgt_lu *lu;
    struct tgt_sess *prev, *next;         /* server's list */
    uint32_t id;
    uint16_t tsih;
    uint8_t isid[TGT_ISID_LEN];
    char initiator[TGT_NAME_MAX + 1];
    char address[64];                     /* of the last connection made */
    uint64_t started_ns;
    struct tgt_params params;             /* as the first connection negotiated them */
    struct tgt_conn *conns;
    unsigned n_conns;
    struct gr_defer reap;
    struct gr_timer retain;               /* tasks without a connection are given up */
    struct tgt_tmf_wait *fenced, *fenced_last; /* responses that wait for acknowledgements */
    struct tgt_conn *first;               /* only this one sends statuses, until its response is acknowledged */
    bool ended;
    bool stands_by;                       /* its portal does not redirect: the disk may be another host's */
    bool prevents;                        /* medium removal: PREVENT ALLOW MEDIUM REMOVAL */
    unsigned running;                     /* tasks with the device or a fiber: they hold this memory */
    unsigned holds;                       /* others who hold this memory: connections, copies */
    /* commands */
    uint32_t expcmdsn, outstanding, n_immediate;
    struct tgt_task *tasks, *free_tasks, *held;
    struct tgt_request *held_requests;
    unsigned n_held_requests;
    struct tgt_task *hash[TGT_TASKS];
    unsigned n_free;
    size_t buf_bytes, window_bytes, unacked_bytes;
    unsigned n_unacked;
    /* unit attentions: ASC << 8 | ASCQ, first come first served */
    uint16_t ua[TGT_UA_MAX];
    unsigned n_ua;
    struct tgt_unsure unsure;
    struct tgt_sess_stats stats;
};

/* ---- logical unit ---- */
struct tgt_pr;
struct tgt_lu {
    struct tgt_server *server;
    struct tgt_lu *next;
    char disk[1024];
    char target[TGT_NAME_MAX + 1];
    struct gr_bdev *bdev;       /* NULL: nobody is logged in */
    struct gr_chan *chan;
    struct gr_geometry geo;
    unsigned shift;             /* log2 of the logical block */
    struct gr_listener listener;
    struct tgt_ranges ranges;
    struct tgt_limit limit;
    struct tgt_share share;
    struct tgt_fibers fibers;
    unsigned n_sessions, users; /* users: sessions, orphans, logins under way */
    bool releasing, fenced, has_store; /* has_store: the bdev keeps attributes */
    bool opening;               /* what the disk keeps is not known yet: nobody logs in */
    bool standby, looking;      /* owned elsewhere, no bdev; whether that still holds is being looked at */
    uint64_t looked_ns, looks;  /* the last of them began; how many there were */
    uint16_t group;             /* target port group of this host */
    struct tgt_sess *reserved;  /* RESERVE(6) */
    struct tgt_pr *pr;
    bool swp, d_sense;
    bool ejected;               /* a removable medium, until it is loaded again or nobody is logged in */
    struct tgt_copy_result *copies; /* EXTENDED COPY results */
    struct tgt_sanitize *sanitize;  /* NULL: none was asked for */
    char *incarnations;         /* "uuid n\n" of hv's initiators, durable where the bdev has a store */
    struct gr_fmutex starts;    /* one of them is looked at, and stored, at a time */
    struct tgt_sess_stats stats; /* of sessions that have ended */
};
/* Holes exist and can be told (GET LBA STATUS), even where nobody may make one: a read-only snapshot of a thin disk. */
static inline bool tgt_lu_provisioned(const struct tgt_lu *lu)
{
    return lu->geo.unmap_granule || lu->geo.thin;
}

/* Blocks that an atomic write begins at and is made of multiples of: a physical block. */
static inline uint32_t tgt_lu_atomic_unit(const struct tgt_lu *lu)
{
    return lu->geo.physical_block > lu->geo.logical_block ? lu->geo.physical_block >> lu->shift : 1;
}

struct tgt_portal {
    int fd;
    unsigned flags;
    uint32_t id; /* never used again: what the login process says of a portal that was closed meanwhile meets no other */
    bool loopback;
    char name[TGT_SHOWN]; /* HOST:PORT as it was asked for, with its port */
    char text[64];        /* "address:port" for URLs */
};
struct tgt_login_parent;
struct tgt_server {
    struct gr_loop *loop;
    struct tgt_server_opts opts;
    struct tgt_directory dir;
    char host[37], boot[37]; /* this machine and its present start */
    struct tgt_access *access;
    struct tgt_login_parent *login;
    struct tgt_portal portals[TGT_PORTALS];
    unsigned n_portals;
    uint32_t next_portal;
    struct tgt_sess *sessions;
    unsigned n_sessions;
    unsigned busy_fibers;       /* lookups and commands in fibers: free waits for them */
    unsigned n_logins;          /* of them, what logins have asked for */
    struct tgt_lu *lus;
    struct tgt_pool pool;
    struct tgt_task *buf_waiters, *buf_waiters_last;
    unsigned n_fibers, n_fiber_waiters, n_sharing; /* n_sharing: LUs that are at work */
    struct gr_defer share_turn;
    uint32_t next_id;
    uint16_t next_tsih;
    bool stopping;
    bool deaf;                  /* nobody is let in: who comes waits in the socket, the login process has none */
    bool resting;               /* nothing new is begun: rest.c */
    uint64_t rest_ns;           /* since then */
    struct gr_fqueue changed;   /* a session has ended, a LU is idle */
    struct gr_timer tick;
};

/* ---- target_portal.c ---- */
const struct tgt_portal *tgt_portal_of(const struct tgt_server *s, uint32_t id); /* NULL: it is closed */
/* "address:port" at which the peer of @fd reaches us: where it did, or, when nothing listens there any more, our first portal. */
void tgt_told_address(struct tgt_server *s, int fd, char ret[64]);
void tgt_portals_close(struct tgt_server *s); /* at the end */
/* Listens already; takes @fd. @name: how it was asked for, NULL: as it is bound. */
int tgt_server_adopt(struct tgt_server *s, int fd, unsigned flags, const char *name, struct gr_err *err);
/* ---- target_service.c ---- */
/* Method lun.rules-changed {"disks"}: another host has changed their rules in the datastore; sessions that may not be any more end. (fiber) */
int tgt_rules_changed(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err);
/* ---- target_server.c ---- */
void tgt_note(struct tgt_server *s, int level, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* ---- lu.c ---- (fiber) */
struct tgt_lu *tgt_lu_find(struct tgt_server *s, const char *disk);
struct tgt_lu *tgt_lu_known(struct tgt_server *s, const char *disk); /* the same, made when there is none, not opened; NULL: no memory, no name */
/* Find or open the LU of @disk for a login; holds a user. 0, or negative; -EREMCHG: redirect filled. @standby: rather than
 * redirected, it is there in standby. */
int tgt_lu_acquire(struct tgt_server *s, const char *disk, const char *initiator, bool standby, struct tgt_lu **ret, char redirect[300],
                   struct gr_err *err);
int tgt_lu_shape(struct tgt_lu *lu, const struct gr_geometry *g); /* 0, -EINVAL */
uint16_t tgt_group_of(struct tgt_server *s, const char *disk); /* this host's target port group */
void tgt_lu_user_put(struct tgt_lu *lu);
void tgt_lu_free_all(struct tgt_server *s);
void tgt_lu_ua(struct tgt_lu *lu, const struct tgt_sess *except, uint16_t ua);
/* Incarnation rule for "…:vm-<uuid>:<n>": 0 may log in (older ones are dropped), -GR_EFENCED: a newer one was seen. (fiber) */
int tgt_lu_incarnation(struct tgt_lu *lu, const char *initiator, struct gr_err *err);
bool tgt_incarnation_split(const char *initiator, char uuid[37], uint64_t *ret_n);
/* A standby LU now owned here becomes active: takes @bdev; sessions but @asked are told. (fiber) */
int tgt_lu_activate(struct tgt_lu *lu, struct gr_bdev *bdev, const struct tgt_sess *asked, struct gr_err *err);
/* ---- lu_standby.c ---- */
/* Is a standby LU still owned elsewhere? Waits; it may be active, or its sessions closed, afterwards. (fiber) */
void tgt_lu_look(struct tgt_lu *lu, const struct tgt_sess *asked);
/* The same in the background, once a second at most. */
void tgt_lu_look_soon(struct tgt_lu *lu);
/* ---- login_parent.c ---- */
int tgt_login_start(struct tgt_server *s, struct gr_err *err);
int tgt_login_listen(struct tgt_server *s, const struct tgt_portal *p);
void tgt_login_unlisten(struct tgt_server *s, uint32_t portal);
void tgt_login_stop(struct tgt_server *s); /* no new logins */
void tgt_login_let_go(struct tgt_server *s, const struct tgt_lu *lu); /* those to it that are under way use it no longer, and are refused in the end */
void tgt_login_free(struct tgt_server *s);
/* Listing of targets for @initiator ("All" or one name) as SendTargets text; @address: "host:port" it reached us at. (fiber) */
struct gr_buf;
int tgt_list_targets(struct tgt_server *s, const char *initiator, const char *which, bool open, const char *address, struct gr_buf *ret);
/* ---- sess.c ---- */
struct tgt_sess_start {
    int fd; /* taken */
    struct tgt_lu *lu; /* user taken */
    const char *initiator, *address, *text;
    struct tgt_params params;
    uint8_t isid[TGT_ISID_LEN], flags;
    bool stands_by;
    uint16_t cid, tsih; /* tsih: of the session to join, 0: a new one */
    uint32_t itt, cmdsn, statsn, acked, text_len; /* acked: the first StatSN not acknowledged */
};
/* Takes fd and user. A session to join must be joinable. 0 or negative. */
int tgt_sess_login(struct tgt_server *s, const struct tgt_sess_start *start);
/* A session without a connection yet; takes the user, not the descriptor. NULL: no memory, nothing is taken. */
struct tgt_sess *tgt_sess_make(struct tgt_server *s, const struct tgt_sess_start *start);
/* May a connection be added? TGT_LOGIN_OK, or the status that refuses it. */
unsigned tgt_sess_joinable(struct tgt_server *s, const struct tgt_sess_start *start);
/* End it now: sockets closed, tasks dropped, those with the device orphaned. The memory goes from the loop later. */
void tgt_sess_close(struct tgt_sess *sess, const char *why);
void tgt_sess_unhold(struct tgt_sess *sess);
void tgt_sess_retain(struct tgt_sess *sess); /* a connection is gone: its tasks may be reassigned for as long as was agreed on */
void tgt_sess_ask_logout(struct tgt_sess *sess); /* async message: please log out */
void tgt_sess_ua(struct tgt_sess *sess, uint16_t ua);
uint16_t tgt_sess_ua_next(struct tgt_sess *sess); /* the first of those that there are, which its initiator is told now */
void tgt_sess_tick(struct tgt_sess *sess);    /* every few seconds */
uint32_t tgt_sess_maxcmdsn(const struct tgt_sess *sess);
/* ---- conn.c ---- */
/* Takes start->fd when it succeeds. @ret NULL: the login is answered; else it was long ago. */
int tgt_conn_new(struct tgt_sess *sess, const struct tgt_sess_start *start, struct tgt_conn **ret);
struct tgt_conn *tgt_conn_find(const struct tgt_sess *sess, uint16_t cid);
enum tgt_leave { LEAVE_DROP, LEAVE_KEEP }; /* the tasks of a connection end with it, or wait to be reassigned */
void tgt_conn_close(struct tgt_conn *c, enum tgt_leave tasks, const char *why);
/* It broke: what error recovery level was agreed on decides how much ends with it. */
void tgt_conn_lost(struct tgt_conn *c, const char *why);
void tgt_conn_unhold(struct tgt_conn *c);
void tgt_conn_tick(struct tgt_conn *c);
void tgt_conn_ping(struct tgt_conn *c); /* NOP-In: the answer to it acknowledges what was sent; none while several are unanswered */
struct tgt_misc *tgt_misc_new(struct tgt_conn *c, enum tgt_opcode op, uint8_t flags, uint32_t itt, uint32_t len);
void tgt_misc_send(struct tgt_conn *c, struct tgt_misc *m); /* StatSN and windows are filled in when it goes out */
void tgt_conn_reject(struct tgt_conn *c, const uint8_t *bhs, enum tgt_reject reason);
/* ---- conn_rx.c, conn_tx.c ---- */
void tgt_rx_ready(struct tgt_conn *c);
void tgt_rx_turn(struct tgt_conn *c);    /* the same as a callback of the loop: opens the gang for the system call. @c is held */
bool tgt_rx_must_wait(const struct tgt_conn *c); /* reading stays paused */
/* ---- rest.c ---- */
/* What to do, while sessions come to rest, with the request whose header @b is there. */
enum tgt_rest { REST_TAKE, REST_LEAVE, REST_PARK };
enum tgt_rest tgt_rest_of(const struct tgt_conn *c, const uint8_t *b);
bool tgt_sess_rests(const struct tgt_sess *sess);
const struct tgt_sess *tgt_server_restless(const struct tgt_server *s); /* one that does not rest yet, or NULL */
int tgt_conn_unread(struct tgt_conn *c); /* at rest: all that was received and not acted on becomes its replay. 0, -ENOMEM */
void tgt_tx_kick(struct tgt_conn *c);   /* something is ready: sent later this turn, together with the rest */
void tgt_tx_flush(struct tgt_conn *c);  /* now, as far as the socket takes it */
void tgt_tx_turn(struct tgt_conn *c);   /* the same as a callback of the loop: opens the gang for the system call. @c is held */
void tgt_tx_drop(struct tgt_conn *c);
void tgt_tx_forget(struct tgt_task *t); /* what waits in the ring of it goes out without it */
/* ---- request.c ---- */
bool tgt_pdu_header(struct tgt_conn *c, const uint8_t *ahs); /* false: the connection was closed */
void tgt_pdu_whole(struct tgt_conn *c);
void tgt_pdu_bad_data(struct tgt_conn *c);     /* its data digest was wrong */
void tgt_requests_leave(struct tgt_conn *c, enum tgt_leave how);
/* ---- recovery.c ---- */
void tgt_ack(struct tgt_conn *c, uint32_t expstatsn);
void tgt_unacked_add(struct tgt_conn *c, struct tgt_unacked *u, uint32_t statsn);
void tgt_unacked_drop(struct tgt_conn *c);
void tgt_unacked_remove(struct tgt_conn *c, struct tgt_unacked *u);
void tgt_snack(struct tgt_conn *c);
uint8_t tgt_reassign(struct tgt_conn *c, const uint8_t *bhs); /* TASK REASSIGN: the response */
uint32_t tgt_data_in_off(const struct tgt_task *t, uint32_t sn);
/* ---- kept.c: answers that another process goes on keeping ---- */
#define TGT_KEPT_BYTES (64u << 20) /* data of all that are carried; of each session not more than it keeps. Beyond that the oldest are given up */
struct tgt_kept_data {
    int file; /* -1: none yet, or none came */
    uint64_t used;
};
bool tgt_task_kept(const struct tgt_task *t); /* nothing is at work for it: it is there to be asked for again, or to be reassigned */
json_t *tgt_kept_save(struct tgt_conn *c, struct tgt_kept_data *data);       /* new: what is kept of @c; NULL: out of memory */
json_t *tgt_unassigned_save(struct tgt_sess *sess, struct tgt_kept_data *data); /* new: tasks whose connection was lost */
void tgt_kept_load(struct tgt_conn *c, json_t *list, const struct tgt_kept_data *data); /* what cannot be is not kept: a SNACK for it is refused */
void tgt_unassigned_load(struct tgt_sess *sess, json_t *list, const struct tgt_kept_data *data);
/* ---- text in full feature phase: ffp_text.c ---- */
void tgt_ffp_text(struct tgt_conn *c, const struct tgt_request *rq);
/* ---- a command arrives: sess_cmd.c ---- */
void tgt_task_command(struct tgt_conn *c, bool bad_ahs);     /* header of a SCSI command */
void tgt_task_data_out(struct tgt_conn *c);
void tgt_task_segment(struct tgt_task *t);     /* the segment being received for it is whole */
void tgt_task_segment_bad(struct tgt_conn *c); /* or broken */
void tgt_task_resend_r2ts(struct tgt_task *t); /* ask anew for what is missing */
bool tgt_task_advance(struct tgt_sess *sess);  /* start the held command whose turn has come: true */
void tgt_task_go_on(struct tgt_task *t);       /* more of its data is there, or may come: ask for it, or run the command */
uint32_t tgt_task_data_room(const struct tgt_task *t); /* bytes that its data may need */
/* ---- a task: sess_task.c ---- */
struct tgt_task *tgt_task_find(struct tgt_sess *sess, uint32_t itt);
struct tgt_task *tgt_task_blank(struct tgt_sess *sess, uint32_t itt); /* one of the free ones, which there must be; of no connection */
void tgt_task_unhold(struct tgt_sess *sess, struct tgt_task *t);
void tgt_task_stop_receiving(struct tgt_task *t); /* the rest of the segment being received for it is thrown away */
void tgt_task_release(struct tgt_task *t);
void tgt_task_leave(struct tgt_task *t, enum tgt_leave how); /* its connection ends */
void tgt_task_to_send(struct tgt_task *t);
void tgt_task_abort(struct tgt_task *t, struct tgt_tmf_wait *tmf);
void tgt_task_done(struct tgt_task *t);        /* the command has its status: answer */
int tgt_task_buf(struct tgt_task *t, uint32_t len); /* 0; -EAGAIN: over the limit for now; -ENOMEM */
int tgt_task_read_buf(struct tgt_task *t, uint32_t len); /* the same, within the window of long reads */
void tgt_task_wait_buf(struct tgt_task *t);
/* Queues of tasks that wait, by their wait_next. */
void tgt_queue_add(struct tgt_task **head, struct tgt_task **last, struct tgt_task *t);
void tgt_queue_remove(struct tgt_task **head, struct tgt_task **last, struct tgt_task *t); /* not there: nothing happens */
void tgt_bufs_retry(struct tgt_server *s);
/* ---- tmf.c ---- */
void tgt_tmf_request(struct tgt_conn *c, const uint8_t *bhs);
void tgt_tmf_wait_for(struct tgt_tmf_wait *w, struct tgt_task *t); /* @w NULL: nothing happens */
void tgt_tmf_task_ended(struct tgt_task *t); /* told to all that wait for it. May close sessions */
void tgt_tmf_answer(struct tgt_tmf_wait *w); /* its tasks have ended and no fence is before it: takes @w. May close sessions */
/* ---- ack_fence.c ---- */
/* True: other connections have not acknowledged all that was sent there; takes @w, and answers it when they have, or have ended. */
bool tgt_fence_hold(struct tgt_tmf_wait *w);
void tgt_fence_response(struct tgt_conn *c, struct tgt_misc *m); /* @m is about to be queued: statuses on other connections wait for its acknowledgement */
void tgt_fence_sent(struct tgt_conn *c);   /* it has its StatSN */
void tgt_fence_acked(struct tgt_conn *c);  /* @c is fenced and its acked has moved. May close sessions */
void tgt_fence_look(struct tgt_sess *sess); /* a connection has ended. The same */
#endif
