/* The LAN data mover: an NBD server (fixed newstyle, structured replies, TLS) over gr_bdev.
 *
 * Wire: the NBD protocol document (NetworkBlockDevice/nbd doc/proto.md); what Granary adds to it is in docs/mover.md:
 * the metadata context "granary:changed:BASE", the naming of exports and the limits.
 *
 * Exports come from a directory (struct mover_dir) that the program provides: "DS/PATH" is a live disk, "DS/PATH@SNAP" a
 * snapshot; the mover itself knows neither. Security: TLS with a client certificate of the site's CA or with a
 * pre-shared key is required unless the program explicitly asks for plain text. TLS is spoken by one sandboxed child process, the gate
 * (the same program, executed again: see mover_gate_main()); what a client says comes here only after it has proved itself there.
 *
 * Thread rule: everything is for the loop's own thread. Functions marked "fiber" must be called inside a fiber. The
 * callbacks of struct mover_dir run inside a fiber of that loop and may suspend. */
#ifndef MOVER_H
#define MOVER_H
#include "common/bdev.h"
#include <stddef.h>

/* One opened export. */
struct mover_export {
    struct gr_bdev *bdev; /* a reference that the mover releases with gr_bdev_put() when the connection ends */
    bool writable;        /* clients may write (ignored when the geometry says read_only) */
    char description[128]; /* for people (NBD_INFO_DESCRIPTION, NBD_OPT_LIST); may be empty */
};
/* Receives one name of a listing; returns 0 to go on, negative to stop (the lister returns that code). */
typedef int (*mover_name_fn)(void *ctx, const char *name, const char *description);

/* Where exports come from. Names are NUL-terminated, 1..4096 bytes, without control characters: checked by the mover. */
struct mover_dir {
    void *arg;
    /* Open export @name. Errors: -ENOENT no such export; any other: the client is told it is unavailable. */
    int (*open)(void *arg, const char *name, struct mover_export *ret, struct gr_err *err);
    /* Call @fn for every export a client may see. NULL: listing is refused by policy. */
    int (*list)(void *arg, mover_name_fn fn, void *ctx, struct gr_err *err);
    /* Turn @base (name of a snapshot or bookmark of the disk behind @export_name) into a bookmark. -ENOENT: none of that
     * name. May be NULL. Textual tokens (gr_bookmark_parse) never come here: the bdev itself judges them. */
    int (*resolve_base)(void *arg, const char *export_name, const char *base, struct gr_bookmark *ret, struct gr_err *err);
    /* Call @fn for every base name known for @export_name (NBD_OPT_LIST_META_CONTEXT). May be NULL. */
    int (*list_bases)(void *arg, const char *export_name, mover_name_fn fn, void *ctx, struct gr_err *err);
};

enum mover_security {
    MOVER_TLS,            /* default: TLS 1.2 or 1.3, client certificate or PSK required */
    MOVER_PLAIN_LOOPBACK, /* plain text; refused on anything but a loopback address */
    MOVER_PLAIN_ANYWHERE, /* plain text on any address: only for an explicit --insecure */
};
enum mover_log_level { MOVER_LOG_WARN, MOVER_LOG_INFO };

struct mover_opts {
    enum mover_security security;
    const char *pki_dir;  /* MOVER_TLS: directory with ca-cert.pem, server-cert.pem, server-key.pem; NULL: no certificates */
    const char *gate_exe; /* MOVER_TLS: program that calls mover_gate_main(); NULL: /proc/self/exe */
    const char *psk_file; /* MOVER_TLS: lines "user:hexkey", mode 0600; NULL: no pre-shared keys. At least one of both. */
    struct mover_dir dir;
    /* What the daemon should log (the library does not): one sentence, already escaped. May be NULL. */
    void (*log)(void *arg, enum mover_log_level level, const char *text);
    void *log_arg;
    /* Limits; 0 takes the default in brackets. */
    unsigned max_connections;      /* all phases [256] */
    unsigned max_negotiating;      /* not yet authenticated or still choosing an export [64]; 16 of one address at most */
    unsigned max_requests;         /* in flight per connection [256] */
    uint64_t max_inflight_bytes;   /* data of requests in flight per connection [64 MiB]; of all connections: 8 times that */
    uint64_t negotiate_timeout_ms; /* from accept to the transmission phase [15000] */
    uint64_t stall_timeout_ms;     /* a request cut in the middle, or replies that the peer does not take [30000] */
    uint64_t idle_timeout_ms;      /* no request for so long [0: for ever; TCP keep-alive finds dead peers] */
};

struct mover_server;
/* Make a server; reads certificates and keys, starts the gate. Copies @opts and its strings (not gate_exe). Errors: -EINVAL (no credentials for
 * MOVER_TLS), what reading the files gives, -GR_EAUTH (a key or PSK file that others can read), -ENOMEM. */
int mover_server_new(struct gr_loop *loop, const struct mover_opts *opts, struct mover_server **ret, struct gr_err *err);
/* Listen on "HOST:PORT", "[V6]:PORT" or ":PORT" (any address); PORT 0 takes a free one. Host names are resolved through the
 * blocking resolver: give addresses where that matters. May be called several times. Errors: -GR_EAUTH (plain text on a
 * non-loopback address), -EADDRINUSE, -EINVAL. */
int mover_server_listen(struct mover_server *s, const char *host_port, struct gr_err *err);
/* Take over a listening socket (bound by a privileged parent); the server closes it. */
int mover_server_listen_fd(struct mover_server *s, int fd, struct gr_err *err);
/* Serve one already connected socket (socketpair, inherited); the server closes it. */
int mover_server_adopt(struct mover_server *s, int fd, struct gr_err *err);
/* The @i-th listening socket, for a hand-over; borrowed. -1: there are not so many. */
int mover_server_listener(const struct mover_server *s, unsigned i);
/* ---- another process takes this one's place, and clients see a pause ---- */
/* Fiber. Nobody new is let in, and connections stay at their next boundary between messages, with no request at work. -EBUSY: names one that does
 * not come to rest, and everything goes on as before. Else mover_server_bequeath() is next, or resume. */
int mover_server_rest(struct mover_server *s, uint64_t timeout_ms, struct gr_err *err);
void mover_server_resume(struct mover_server *s);
/* At rest: connections, and the gates that speak TLS for them, go along. What cannot is cut when the server is stopped, which is next. 0, or what
 * stood in the way of one. */
struct tgt_heritage;
int mover_server_bequeath(struct mover_server *s, struct tgt_heritage *h);
/* Fiber. Go on with them; returns when each has its export open again, or is lost (and told in the log): how many are. */
int mover_server_inherit(struct mover_server *s, struct tgt_heritage *h);
/* Fiber. @fn, which may wait, for each export that is open now: of a connection that ends meanwhile too. What it returns that is not 0 ends it, and
 * is returned; -ENOMEM. */
int mover_server_each_export(const struct mover_server *s, int (*fn)(void *arg, const char *name, const char *peer), void *arg);
/* First bound port (host order); 0 when not listening. */
unsigned mover_server_port(const struct mover_server *s);
/* Fiber. End every connection whose export is @name or, with @prefix, starts with it, and wait until the mover holds no
 * reference on those bdevs any more (needed before a snapshot is deleted). Connections still inside dir.open are ended too, but
 * not waited for. Not to be called from the other callbacks of struct mover_dir. */
void mover_server_drop(struct mover_server *s, const char *name, bool prefix);
/* Fiber. Stop listening, let requests in flight finish, end all connections, free the server. NULL allowed. */
void mover_server_stop(struct mover_server *s);

/* Call first thing in main() of every program that makes a mover_server with MOVER_TLS: when this process is the gate, runs it and returns
 * its exit status (>= 0); else returns -1. */
int mover_gate_main(int argc, char **argv);

struct mover_stats {
    unsigned connections, negotiating;
    unsigned strangers; /* of both: those that have proved nothing yet */
    uint64_t signatures; /* of the server's key, made for the gate */
    uint64_t accepted, refused;           /* refused: over a limit, failed TLS, protocol errors in negotiation */
    uint64_t requests, bytes_read, bytes_written; /* bytes of payload */
};
void mover_server_stats(const struct mover_server *s, struct mover_stats *ret);

/* ---- changed-since ---- */
#define MOVER_CONTEXT_CHANGED "granary:changed:" /* + name of a snapshot or bookmark, or a bookmark token */
/* Flags of that context's extents. Unchanged extents always have flags 0. */
enum mover_changed_flags {
    MOVER_CHANGED = 1,      /* may differ from what the base held */
    MOVER_CHANGED_ZERO = 2, /* changed, and reads as zeros now */
    MOVER_CHANGED_HOLE = 4, /* changed, and no space is held for it now (implies ZERO) */
};

/* "nbds://HOST:PORT/EXPORT?tls-certificates=DIR" as libnbd's tools take it, or "nbd://..." when @pki_dir is NULL. @host_port
 * as given to clients. New memory; NULL when out of memory. */
char *mover_url(const char *host_port, const char *export_name, const char *pki_dir);

/* ---- site PKI (mover_pki.c): X.509, ECDSA P-256, through GnuTLS; layout as libnbd, nbdkit and QEMU expect it ----
 * Keys are written 0600, directories made 0700, every file replaced atomically. Blocking (milliseconds). */
#define MOVER_PKI_DAYS 3650
/* DIR/ca-cert.pem, ca-key.pem. -EEXIST when there already is a CA. */
int mover_pki_make_ca(const char *dir, const char *site, struct gr_err *err);
/* DIR/server-cert.pem, server-key.pem, signed by DIR's CA; SANs: localhost, 127.0.0.1, ::1, and @hosts (names or
 * addresses). Replaces what is there. */
int mover_pki_make_server(const char *dir, const char *const *hosts, size_t n_hosts, struct gr_err *err);
/* OUT_DIR/ca-cert.pem, client-cert.pem, client-key.pem, signed by DIR's CA: all that a client needs. @out_dir may be @dir. */
int mover_pki_make_client(const char *dir, const char *name, const char *out_dir, struct gr_err *err);
/* Make whatever of CA, server and client certificate is missing in DIR; a server certificate that lacks one of @hosts or
 * ends within 30 days is made anew. Safe beside another process doing the same. */
int mover_pki_ensure(const char *dir, const char *const *hosts, size_t n_hosts, struct gr_err *err);
/* Make a PSK file with one random 256-bit key for @user, 0600. -EEXIST when the file exists. */
int mover_psk_make(const char *path, const char *user, struct gr_err *err);
#endif
