/* A logical unit of an iSCSI array as a device, through libiscsi's asynchronous calls.
 *
 * One session: requests become commands of limited size, at most ISCSI_DEPTH of them with the target at a time. When the session breaks,
 * what is under way waits and is sent again over the next one, which logs in under the same initiator name and ISID: that is the same
 * I_T nexus (RFC 7143 6.3.5, session reinstatement), so the target has ended the old session's tasks before the new log-in is answered,
 * and its registration for reservations is still ours. So nothing of an old session lands behind what the new one wrote. A request that
 * is sent again is still under way for its caller, and two requests under way on one range have no order: sending it again changes
 * nothing that anybody may rely on. Writes that were done but not flushed are kept in memory and written again first, because the
 * target may have lost them if it was the target that went.
 *
 * A COMPARE_WRITE whose answer was lost is not sent again before the range was read: it holds what was to be written: done (and flushed);
 * it holds what was to be compared: not done, sent again; neither: -GR_EMISCOMPARE, somebody else was there, before or after. So a
 * caller whose images differ each time (a nonce) never takes its own success for somebody else's.
 *
 * RESERVATION CONFLICT, and after a break a registration that is gone: everything ends with -GR_EFENCED until enter() with another key.
 * After a break, a unit that is another one (VPD page 83h), smaller or of another block size is never touched: -ESTALE for ever.
 *
 * The process must ignore SIGPIPE, which libiscsi raises. May be used by channels on any loop of a gang; the session lives on the loop it
 * was opened on. */
#ifndef GR_BDEV_ISCSI_H
#define GR_BDEV_ISCSI_H
#include "common/bdev.h"

struct gr_iscsi_opts {
    const char *initiator;          /* initiator name; NULL: iqn.2026-01.granary:host */
    const uint8_t *isid;            /* 6 bytes (RFC 7143 11.12.5), the same each time a host opens the device; NULL: drawn at random now.
                                       Types 00b, 01b and 10b (first byte 00-3f, 40, 80) */
    const char *chap_user;          /* NULL: no CHAP */
    const char *chap_secret_file;   /* mode 0600 */
    const char *target_user;        /* mutual CHAP: who the target must prove to be; NULL: it need not */
    const char *target_secret_file; /* mode 0600 */
    bool url_secret;                /* take user and secret out of the URL when chap_user is NULL; else a URL with a secret is refused */
    bool read_only;                 /* no request that changes bytes; no fence */
    uint64_t timeout_ms;            /* for a log-in, and for one command before its session is made anew; 0: 30000 */
    uint64_t patience_ms;           /* without a session before requests fail with why; 0: for ever */
    unsigned reconnects;            /* log-ins in a row, without one command answered, before requests fail; 0: any number */
};
/* @url: iscsi://HOST[:PORT]/TARGET/LUN, HOST may be an IPv6 address in brackets. In a fiber; log-in and questions take a while.
 * @opts may be NULL. A log-in that is cut off before it is answered, or before the unit has told what it is, is tried again for five seconds; one that
 * is refused is not. Errors name portal, target and cause: -EINVAL (URL, ISID), -GR_EAUTH, -ECONNREFUSED, -ECONNRESET, -EHOSTUNREACH, -ETIMEDOUT,
 * -GR_EPROTO (an answer that makes no sense), those of gr_secret_read(). */
int gr_bdev_iscsi_open(struct gr_loop *loop, const char *url, const struct gr_iscsi_opts *opts, struct gr_bdev **ret, struct gr_err *err);
#endif
