/* The iSCSI target: serves disks (struct gr_bdev) as LUN 0 of one target each, on one gr_loop or on the loops of a gang: each session
 * then lives on one of them, those of one LUN on all.
 *
 * main gives a directory (what disks exist, who owns them); the server gives portals, sessions, access control and the
 * RPC methods lun.* and session.*. Unauthenticated sockets live in one sandboxed child process (the same program,
 * executed again: see tgt_login_main()); a socket reaches this process only after its login was checked here.
 *
 * Names: the target name of disk "ds1/web01" is "iqn.2026-11.local.granary:ds1:web01": '/' becomes ':', [a-z0-9.] stay,
 * '-' becomes "--", every other byte "-" and two hex digits; names beyond 223 bytes are replaced by a hash. The same on
 * every host. "ds1/web01@nightly" (a snapshot) is a target too when the directory knows it.
 *
 * Thread rule: everything is for the loop's own thread. Functions marked (fiber) may suspend. */
#ifndef TGT_TARGET_H
#define TGT_TARGET_H
#include "common/bdev.h"
#include "common/cmd.h"
#include "common/gang.h"
#include "common/rpc.h"
#include "common/rules.h"

#define TGT_NAME_MAX 223 /* bytes of an iSCSI name, RFC 7143 4.2.7.1 */
#define TGT_IQN_PREFIX "iqn.2026-11.local.granary:"
#define TGT_PORTALS 16u /* that may be open at once */
#define TGT_SHOWN 300   /* bytes of "HOST:PORT" as it is told to others */

/* Answer of a lookup. */
struct tgt_place {
    struct gr_bdev *bdev; /* the disk is owned here: a new reference, passed to the server */
    char redirect[300];   /* else "host:port" of the owner's portal ("[v6]:port") for a login redirect (status 0x0101) */
    struct gr_geometry geometry; /* with a redirect: what the disk looks like, for a portal that never redirects */
};
/* A host that serves a disk: its target port group (one port each), SPC-4 5.15.2. */
struct tgt_group {
    uint16_t id;
    bool active; /* owns the disk; else standby */
};
#define TGT_GROUPS_MAX 64u
struct tgt_directory {
    void *arg;
    /* (fiber) Find @disk ("ds1/web01", "ds1/web01@snap") for a login; may take the disk over first (10 s at most).
     * 0: *ret filled with exactly one of bdev and redirect. -ENOENT: no such disk. -GR_ELOCKED: owned elsewhere, cannot
     * be served now (the initiator is told to try again). @initiator: who asks. */
    int (*lookup)(void *arg, const char *disk, const char *initiator, struct tgt_place *ret, struct gr_err *err);
    /* (fiber) Call each(each_arg, disk) for every disk that is a LUN. A negative return of each ends the walk. */
    int (*list)(void *arg, int (*each)(void *each_arg, const char *disk), void *each_arg, struct gr_err *err);
    /* Optional: URL under which the mover serves @disk, new memory or NULL; shown by lun.list. */
    char *(*nbd_url)(void *arg, const char *disk);
    /* Optional: portal ("host:port") to show in URLs of @disk when another host owns it; new memory, NULL: ours. */
    char *(*portal)(void *arg, const char *disk);
    /* Optional: this host's target port group and portal group tag for @disk, 1 when absent. It must not change while sessions exist. */
    uint16_t (*group)(void *arg, const char *disk);
    /* Optional (fiber): all hosts that serve @disk, at most @max; how many, or negative. */
    int (*groups)(void *arg, const char *disk, struct tgt_group *ret, unsigned max);
    /* Optional (fiber): ask the host that owns @disk, or tell all others that serve it, by one of tgt_host_methods. Both take the reference of
     * @params. 0; tell: or how many could not be told; negative: nobody was reached; -ETIMEDOUT of the owner: it is there, and silent. */
    int (*ask_owner)(void *arg, const char *disk, const char *method, json_t *params, json_t **ret, struct gr_err *err);
    int (*tell_hosts)(void *arg, const char *disk, const char *method, json_t *params, struct gr_err *err);
    /* Optional: add to (or correct) what lun.list says of @disk. */
    void (*describe)(void *arg, const char *disk, json_t *row);
};

struct tgt_server_opts {
    struct gr_loop *loop;
    struct gr_gang *gang;      /* optional: of @loop; its loops share the sessions */
    struct tgt_directory dir;  /* copied */
    const char *access_path;   /* access.json (conf/access.json of the home): masks, ACLs, CHAP; NULL: in memory only */
    const struct gr_rules *rules; /* where disks have theirs, copied; NULL: in that file, too */
    const char *login_exe;     /* program that calls tgt_login_main(); NULL: /proc/self/exe */
    const char *host;          /* which machine this is, for what is kept of reservations; NULL: "" */
    const char *boot;          /* and which start of it; NULL: as the kernel says */
    unsigned login_timeout_ms; /* whole login; 0: 15000 */
    unsigned max_half_open;    /* logins under way, in total; 0: 512 */
    unsigned max_half_open_per_address; /* 0: 64 */
    unsigned max_sessions;     /* 0: 256 */
    void (*note)(void *arg, int level, const char *text); /* optional: something worth a line in the log */
    void *note_arg;
    /* Optional: an initiator destroys the content of a disk; begins, and later ended (common/audit.h). In a fiber, which may suspend. */
    void (*witness)(void *arg, const struct gr_rpc_seen *seen);
    void *witness_arg;
};
struct tgt_server;
/* (fiber) Make a server and start its login process; rules of disks in access.json are brought over to @rules. Errors: damaged access.json (-GR_EFORMAT), -ENOMEM, failures to start. */
int tgt_server_new(const struct tgt_server_opts *opts, struct tgt_server **ret, struct gr_err *err);
/* Ends everything at once (sessions are cut). After tgt_server_shutdown() nothing is left to cut. NULL allowed. (fiber):
 * waits for the devices to answer what is in flight. */
void tgt_server_free(struct tgt_server *s);

enum tgt_portal_flags {
    TGT_PORTAL_INSECURE = 1,  /* allow targets without ACL and CHAP on an address that is not loopback */
    TGT_PORTAL_MULTIPATH = 2, /* never redirect: a disk owned elsewhere is there in standby (ALUA), and becomes active when the
                                 directory gives it to us */
    TGT_PORTAL_ANY_PORT = 4,  /* its port was given as 0; set by tgt_server_listen() */
};
/* (fiber) Listen on "HOST:PORT", "[V6]:PORT", "HOST" (port 3260); port 0 takes a free one. May be called several times, also while
 * serving. Refused (-GR_EAUTH) on anything but loopback while access.json knows no ACL and no CHAP at all, unless
 * TGT_PORTAL_INSECURE; -EEXIST: it is open. *ret_port (may be NULL): the port taken. */
int tgt_server_listen(struct tgt_server *s, const char *portal, unsigned flags, uint16_t *ret_port, struct gr_err *err);
/* No new logins at @portal, and an end to those under way; sessions stay. -ENOENT: none such; -EBUSY: it is the last one that
 * redirects, by which disks are found. *ret_sessions (may be NULL): those that came through it. */
int tgt_server_unlisten(struct tgt_server *s, const char *portal, unsigned *ret_sessions, struct gr_err *err);
struct tgt_portal_info {
    const char *name;  /* HOST:PORT, borrowed */
    unsigned flags;    /* enum tgt_portal_flags */
    unsigned sessions; /* that have a connection through it */
    bool loopback;
};
/* The portal number @i of those that are open, in the order of their opening. False: there are not so many. */
bool tgt_server_portal_at(const struct tgt_server *s, unsigned i, struct tgt_portal_info *ret);
/* Orderly end (fiber): no new logins, initiators are asked to log out, in-flight commands finish; what is left after
 * @timeout_ms is cut. Returns the number of sessions cut. */
int tgt_server_shutdown(struct tgt_server *s, uint64_t timeout_ms);
/* The disk is going away, moves to another host, or was replaced (fiber): end its sessions (with @redirect, "host:port",
 * they are asked to log in again, where they will be redirected), wait for its I/O, close the bdev. 0, or -EBUSY with
 * @only_idle when sessions exist: names the initiator. Sessions made afterwards look the disk up again. */
int tgt_server_release(struct tgt_server *s, const char *disk, bool only_idle, struct gr_err *err);
/* Number of logged-in sessions of @disk (NULL: all). */
unsigned tgt_server_sessions(struct tgt_server *s, const char *disk);
/* First portal that redirects, as "host:port" for URLs (a wildcard address is shown as this host's loopback), or NULL. Borrowed. */
const char *tgt_server_portal(struct tgt_server *s);
/* "iscsi://host:port/iqn…/0": usable verbatim in libiscsi's tools and qemu-img. New memory, NULL: no portal. */
char *tgt_server_url(struct tgt_server *s, const char *disk);

/* Disk name <-> target name. name_of: 0 or -EINVAL (empty). disk_of: 0, -EINVAL not one of ours, -GR_ERANGE hashed. */
int tgt_name_of(const char *disk, char ret[TGT_NAME_MAX + 1]);
int tgt_disk_of(const char *name, char *ret, size_t size);

/* RPC: add with arg = the server.
 *   lun.list {"disk"?}                    → [{"disk","target","iscsi-url","nbd-url","file","masked","size","initiators":[…],"chap-user","mutual-user","sessions"}];
 *                                         of raw LUNs also "uuid","read-only","iops","bandwidth","burst-ms","redirect","error"
 *   (in answers of lun.mask, lun.unmask, lun.acl, lun.chap: "warning"? names a host that could not be told)
 *   lun.mask {"disk"} | lun.unmask        a masked disk cannot be found or logged in to; its sessions end
 *   lun.acl {"disk","allow":[…]?,"deny":[…]?}  → {"disk","initiators":[…]}; deny drops that initiator's sessions
 *   lun.chap {"disk","user","secret","mutual-user"?,"mutual-secret"?} | {"disk","off":true}; secrets are never shown; disk "discovery": of discovery
 *                                         sessions
 *   lun.stat {"disk"?}                    → [{"disk","reads","read-bytes","writes","write-bytes","errors","read-latency":{…},…}]
 *   session.list {"disk"?}                → [{"id","disk","initiator","address","isid","age","depth","reads","writes",…}]
 *   session.drop {"id"}                   cut it (the initiator may log in again) */
extern const struct gr_rpc_method tgt_service[];
/* Those that other hosts call: iscsi-target/pr_remote.c has them, and lun.rules-changed {"disks":[…]}: their rules in the datastore were changed. */
extern const struct gr_rpc_method tgt_host_methods[];
/* Commands "portal list|add|remove"; iscsi-target/portals.h has the methods. */
extern const struct gr_cmd tgt_portal_commands[];
/* Commands "lun list|mask|unmask|acl|chap|stat" and "session list|drop"; they call the above over run/storaged.sock of the
 * home. The app of gr_cmd_main is not used. */
extern const struct gr_cmd tgt_commands[];

/* Call first thing in main() of every program that makes a tgt_server: when this process is the login child, runs it and
 * returns its exit status (>= 0); else returns -1. */
int tgt_login_main(int argc, char **argv);
#endif
