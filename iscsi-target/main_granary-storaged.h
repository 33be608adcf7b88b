/* What the parts of granary-storaged share: main_granary-storaged.c starts and ends it, _target.c and _mover.c are what its target and its mover
 * see of the volumes, _requests.c what it answers itself. */
#ifndef MAIN_GRANARY_STORAGED_H
#define MAIN_GRANARY_STORAGED_H
#include "common/audit.h"
#include "common/log.h"
#include "iscsi-target/handover.h"
#include "iscsi-target/isns.h"
#include "iscsi-target/raw_luns.h"
#include "iscsi-target/storaged_options.h"
#include "snapshot/expose.h"

#define LOGIN_WAIT_MS 10000u /* how long a login waits for a disk that changes hands */
#define RESERVE_WAIT_MS 3000u /* how long a disk's owner is asked about reservations: twice that is well below what any initiator gives a command */

struct daemon {
    struct storaged_options o;
    struct gr_loop *loop;
    struct gr_gang *gang;
    struct gr_home *home;
    int lock, heir; /* heir: a socket to who takes our place, -1: nobody */
    struct tgt_heritage heritage;
    char *pki_dir, *socket_path, *pid_path;
    struct snap_svc *svc;
    struct tgt_raw *raw;
    struct tgt_server *tgt;
    struct tgt_portals portals;
    struct tgt_isns *isns;
    struct mover_server *mover;
    struct gr_rpc_server *rpc;
    struct gr_audit audit;
    struct snap_exposures *exposures;
    char mover_addr[TGT_SHOWN];
    uint64_t started_ns;
    bool stop, rests; /* rests: it comes to rest for who takes its place */
    struct gr_fqueue stop_wait;
};

/* _target.c: the disks of the volumes, for the target. */
struct tgt_directory storaged_disks(struct daemon *d);

/* _mover.c. All of the mover that takes time before anybody is listened to; who takes another daemon's place does it before he asks. */
int storaged_make_mover(struct daemon *d, struct gr_err *err);
/* Listen, on the sockets of the daemon before us where there are any. */
int storaged_start_mover(struct daemon *d, struct gr_err *err);
/* Where our mover serves @name: new memory, NULL: it does not. */
char *storaged_nbd_url(struct daemon *d, const char *name);
/* The same of another machine's mover, from what that answered (mover_lend.h). */
char *storaged_lent_url(struct daemon *d, const char *disk, const char *address, json_t *res);

/* _requests.c: answer on run/storaged.sock, from the requests of the daemon before us on. */
int storaged_serve(struct daemon *d, struct gr_err *err);
/* What snapshots that are exposed for backups ask of the target and the mover. */
struct snap_expose_hooks storaged_exposures(struct daemon *d);
#endif
