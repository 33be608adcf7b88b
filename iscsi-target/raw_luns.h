/* The raw LUNs of a home: which there are (conf/luns.json), opening them, and the directory in which the target finds them beside its disks.
 *
 *   {"version": 1, "luns": {"array1": {"file": "/srv/array1.img", "uuid": "…", "read-only": false, "iops": 0, "bandwidth": 0, "burst-ms": 0,
 *                                    "redirect": "host:port"?}}}
 *
 * A raw LUN is called by a name without '/', so that it is never taken for a disk ("DS/PATH"). Access rules, CHAP, masks, statistics are
 * those of the target, under that name. One that cannot be opened is tried again at each login; one that is redirected is not opened.
 * Thread rule: as target.h; functions marked (fiber) may suspend. */
#ifndef TGT_RAW_LUNS_H
#define TGT_RAW_LUNS_H
#include "common/home.h"
#include "iscsi-target/target.h"

#define TGT_RAW_NAME_MAX 128u /* bytes */

struct tgt_raw;
/* Read conf/luns.json; nothing is opened yet. @below: the directory of everything else, copied (all zero: there is nothing else). */
int tgt_raw_new(struct gr_loop *loop, struct gr_home *home, const struct tgt_directory *below, struct tgt_raw **ret, struct gr_err *err);
/* (fiber) Closes what nobody else holds open. After the server. NULL allowed. */
void tgt_raw_free(struct tgt_raw *raw);
/* The directory for a server: raw LUNs, and what is below. */
struct tgt_directory tgt_raw_directory(struct tgt_raw *raw);
/* (fiber) @server asks that directory: open them all, and look after their room. What cannot be opened is told to @note, and not served.
 * @patience_ms: how long one that is in use is tried; a process that was killed holds its files until the kernel has ended what it had under way. */
#define TGT_RAW_GHOST_MS 2000u
int tgt_raw_serve(struct tgt_raw *raw, struct tgt_server *server, void (*note)(void *arg, int level, const char *text), void *note_arg,
                   unsigned patience_ms, struct gr_err *err);
/* All of them: [{"disk","file","size","uuid","read-only","iops","bandwidth","burst-ms","redirect","error"}]; a new array. */
json_t *tgt_raw_list(const struct tgt_raw *raw);

/* RPC: add with arg = the struct tgt_raw; also for a home whose daemon does not run, under its lock.
 *   lun.add {"lun","file","size"?,"read-only"?,"uuid"?}   → {"disk","file",…}; size: the file is made
 *   lun.remove {"lun","force"?}                           the bytes stay; -GR_ELOCKED while sessions use it, unless forced
 *   lun.resize {"lun","size"}                             it grows; sessions are told
 *   lun.set {"lun","iops"?,"bandwidth"?,"burst-ms"?}      limits, as of disks; 0: none
 *   lun.redirect {"lun","to"?}                            logins are sent to HOST:PORT, sessions end, the file is let go; none: served again */
extern const struct gr_rpc_method tgt_raw_methods[];
/* Commands "lun add|remove|resize|set|redirect". */
extern const struct gr_cmd tgt_raw_commands[];
#endif
