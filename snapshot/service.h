/* The storage service: the datastores of one host (one GRANARY_HOME) and everything that can be asked of them.
 *
 * One implementation, two ways to reach it: granary-storaged serves the methods below on run/storaged.sock; a command that
 * finds nobody there takes the home's storage lock and runs the same methods in its own process (snapshot/client.h).
 *
 * Who owns what: a disk is opened, and thereby owned, by the host that needs it first. A request for a disk that another
 * living host owns is forwarded to that host's service (the address in its slot); a holder without one is a command at
 * work, which is waited for (10 s) and then named (-GR_ELOCKED).
 *
 * Methods (params → result; "disk" is "DATASTORE/PATH"; sizes in bytes, times in seconds since 1970; ? = optional):
 *   datastore.create {"name","devices":[absolute path],"size"?,"preallocate"?,"force"?,"one-host"?}        → as datastore.info
 *   datastore.join {"name","devices":[…],"degraded"?,"rescue"? with "yes":true} → as datastore.info      datastore.leave {"name"}    datastore.destroy {"name","yes":true}
 *   datastore.list → [{"name","state":"joined|degraded|rescue|registered|failed","size","free","used","devices":[…],"error"?}]
 *   datastore.info {"name","owners"?: count their disks} → {"name","uuid","size","free","used","metadata","reserved","devices":[…],"hosts":[{"slot","host",
 *       "state","alive","self","address","portal","generation","disks"?}],"waits":[{"what","disk","host","reason","seconds",…}],"regions","region-size","journal-size","version","stats":{…}}
 *   datastore.check {"name"} parts {"line"} → {"name","sound","errors","objects","nodes","pieces","shared-pieces","regions",
 *       "leaked-units"}
 *   datastore.rescued {"name"}: joined with "rescue" → {"name","missing":[number],"hosts":[whose journal is lost],"whole","damaged","objects":[{"path","type":"disk|file|folder|snapshot",
 *       "state":"whole|behind|damaged|lost","size","lost-data","lost-map","changes-lost","behind"?: host,
 *       "refused": it is not shown,"accepted": it was refused}],"refused": so many}
 *   datastore.grow {"name","size"} → as datastore.info      datastore.recover {"name"} → {"recovered"}
 *   datastore.recover {"name","host","yes":true,"devices"?,"login"?} from this one: where nothing fences it must be certain to be gone → {"name","host","recovered":1}
 *   datastore.devices {"name"} → [{"number","device","uuid","size","free","used","metadata","regions","added","leaving",
 *       "tested":[what was seen when it was tried],"tested-at"?}]; also datastore.info "members"
 *   datastore.replace-device {"name","lost": number,"device","size"?,"yes":true}: lost for good, one that it cannot do without → as datastore.info
 *   datastore.add-device {"name","device","size"?,"force"?} → as datastore.info, and "unaware-hosts": [who has joined and serves nothing]
 *   datastore.open-device {"name","device"} another host is adding it
 *   datastore.remove-device {"name","device"} parts {"done","total"}: bytes moved to the other devices → as datastore.info
 *   datastore.quota {"path":"DS or DS/FOLDER"} → [{"folder","limit","used","free","granted"}]: what is limited there or below
 *   datastore.set-quota {"path":"DS/FOLDER","size": 0 for none} → the same
 *   datastore.resume {"name","id"} another host cannot finish the removal of that object, because something that it needs belongs to this one
 *   datastore.recall-quota {"name"} another host sets one, or needs what was granted here and is not used
 *   datastore.recall-regions {"name"} another host finds no space, and needs what is leased here and not used
 *   datastore.rescan {"name"} another host made it grow → as datastore.info
 *   disk.create {"disk","size","provision"?:"thin|thick|eager"} → as disk.info
 *   disk.list {"path"?: "DS" or "DS/DIR"} → [as disk.info]      with "deleted":true those that are kept for their clones: [{"disk","id","size","held","clones"}]
 *   disk.info {"disk"} → {"disk","size","used","shared"?,"unique"?,"held","physical-block","read-only","removable","iops","bandwidth","burst-ms","provision","uuid","id","snapshots","owner","owner-self","parent","parent-deleted"?,"clones":[disk],"template","mtime"}
 *   disk.set {"disk","read-only"?,"removable"?,"template"?,"iops"?,"bandwidth"?,"burst-ms"?} → as disk.info: how it shows itself as a LUN
 *            (initiators are told by UNIT ATTENTION), and its limits (a second; 0: none)
 *   disk.resize {"disk","size","shrink"?} → as disk.info      disk.delete {"disk"}      disk.release {"disk"}
 *   disk.detach {"disk","rate"?} parts {"done","total"} → as disk.info, and "copied": a clone gets its own blocks; goes on where an earlier one was
 *   disk.defragment {"disk","rate"?,"dry-run"?} parts {"done","total"} → {"disk","dry-run","bytes","runs-before","runs","moved","shared","busy","splintered","damaged"}
 *   disk.promote {"disk"} → as disk.info: a clone and the disk it was cloned from change places
 *   disk.checkpoint {"disk"} makes all that is known of it readable for readers of the datastore elsewhere
 *   disk.import {"disk","file","format"?:"raw|vmdk","extents"?:[…],"provision"?} parts {"done","total"} → as disk.info
 *   disk.export {"disk","snapshot"?,"file","format"?} parts {"done","total"} → {"file","bytes"}
 *   snapshot.create {"disks":[…],"name","expires"?,"group"?} → [{"disk","name","bookmark","group",…}] as snapshot.list. "group": a new UUID for it, by
 *       which whoever does not get the answer undoes it with snapshot.delete; from then on it is refused (GR_ECANCELED)
 *   snapshot.create-by-policy {"paths":[disk, folder or datastore],"expires"?} → the same: an instant for the disks named, one for each folder
 *   snapshot.list {"disk","deleted"?: also those kept for clones} → [{"disk","name","kind":"snapshot|bookmark","id","parent-id","created","size","bookmark",
 *       "clones","clone-disks"?,"current","deleting","pins","group","description","part-of"?,"protected","protected-by"?,"protected-since"?,"protected-why"?,"expires"?,"used"?,"shared"?,"unique"?}]      "bookmark" is the token "uuid:lineage:epoch"
 *   snapshot.describe {"disk","snapshot","description"}: "" removes it
 *   snapshot.part {"disk","snapshot","of"} of which virtual machine's snapshot it is a part, so that it stays with its disk; "": of none any more
 *   snapshot.delete {"disk","snapshot","keep-bookmark"?,"settle"?,"group"?: only the one of it}      snapshot.revert {"disk","snapshot","force"?}
 *   snapshot.clone {"disk","snapshot"?,"to":"DS/NEW","full"?,"provision"?} → as disk.info of the new disk; without "snapshot" of a template. With "targets":[…]
 *       instead of "to": [{"disk","size","uuid","id","parent"}]. With "full" parts {"done","total"}, and nothing is shared
 *   snapshot.policy {"path"} → {"path","policy","from","prefix","keep-last",…}      snapshot.set-policy {"path","prefix"?,"keep-last"?,…|"none"|"clear"} → the same
 *   snapshot.prune {"path","dry-run"?} → [{"disk","name","created","keep","why","deleted"?,"error"?}]
 *   snapshot.protect {"disk","snapshot","by","why"} → as snapshot.list      snapshot.unprotect {"disk","snapshot"}      snapshot.expire {"disk","snapshot","expires"}
 *   snapshot.bookmark {"disk","snapshot","bookmark"} → {"disk","name","bookmark"}
 *   snapshot.diff {"disk","base","to"?} parts [{"offset","length","state":"data|zero"},…] → {"ranges","bytes"}
 *       base: a snapshot, a bookmark or a token
 *   dir.list {"path"} → [{"name","path","type":"dir|file|disk","id","size","used","mtime","encrypted"?,"key"?}]      dir.stat {"path"} → one of them, with
 *       "key-here" of what is encrypted
 *   dir.make {"path"}
 *   dir.rename {"from","to"}      dir.remove {"path"} an empty directory or a file
 *   file.read {"path","offset"?,"length"?} → {"data-b64","size"}  (8 MiB at most in one answer; also of a disk)
 *   file.write {"path","data-b64"} replaces the whole file atomically      file.list {"path"} → all files below, as dir.list
 *   file.take {"path","socket","limit"} a new file of what comes over the unix socket, where the caller listens, until it ends; file.take-encrypted, with
 *       "key", that of a key, the same, encrypted; file.give {"path","socket"} the other way round → all {"bytes","crc"} (CRC32C of all of it)
 *
 *   fs.serve {"name":"DS[/DIR]","dir","socket","uid","gid","again"?} a mount: its descriptor comes over the socket (mnt_int.h). Between hosts, "path" is
 *   "DS": fs.yield {"path","id"} give a file up   fs.stat {"path","id"} → {"held","size",…}   fs.lost {"path","id"} → {"open"}: it has no name any more
 *   fs.locks {"path","id","start","end","exclusive"?,"flock"?} → {"any","conflict"?}
 *
 * Thread rule: as vmfs/vmfs.h: one loop, in fibers. */
#ifndef SNAPSHOT_SERVICE_H
#define SNAPSHOT_SERVICE_H
#include "common/cmd.h"
#include "common/home.h"
#include "common/rpc.h"
#include "common/rules.h"
#include "snapshot/snapshot.h"

/* ---- names ---- */
/* "DATASTORE/PATH[@SNAPSHOT]" taken apart and checked. */
struct snap_path {
    char ds[VMFS_VOLUME_NAME_MAX + 1];
    char path[VMFS_PATH_MAX + 1]; /* inside the datastore, "" = its root; no leading, double or trailing '/' */
    char snap[VMFS_NAME_MAX + 1]; /* "" when none */
};
enum snap_path_kind {
    SNAP_PATH_DISK,     /* a path is needed, no '@' */
    SNAP_PATH_SNAPSHOT, /* path and '@' are needed */
    SNAP_PATH_EITHER,   /* a path is needed, '@' allowed */
    SNAP_PATH_DIR,      /* the path may be missing; no '@' */
};
/* -GR_EUSAGE with a sentence that names what is wrong with @text. Any context. */
int snap_path_parse(const char *text, enum snap_path_kind kind, struct snap_path *ret, struct gr_err *err);
/* 1..63 of [A-Za-z0-9._-], not starting with '.' or '-'. */
int snap_datastore_name_check(const char *name, struct gr_err *err);
#define SNAP_TEMPLATE "granary-template" /* the snapshot that clones of a template start at, when none is named */
/* 1..255 bytes of UTF-8, no '/', '@', ':' or control character, not "." or "..", not starting with "granary.", not SNAP_TEMPLATE */
int snap_name_check(const char *name, struct gr_err *err);

/* ---- the service ---- */
/* Disk images and copying, brought in by the program (the codecs are backup-proxy's). All in fibers. */
struct snap_images {
    /* "vmdk" when the file @path looks like one, else "raw"; NULL and *err when it cannot be read. */
    const char *(*probe)(const char *path, struct gr_err *err);
    /* Open the image @path of @format (not "raw") as a read-only bdev. @extents: further files it may consist of, ended by
     * NULL, or NULL. */
    int (*open)(struct gr_loop *loop, const char *path, const char *format, const char *const *extents, struct gr_bdev **ret,
                struct gr_err *err);
    /* In both, a negative result of @progress ends the work with that code.
     * Write all of @src as an image of @format (not "raw") to the empty file @fd. */
    int (*write)(struct gr_chan *src, const char *name, int fd, const char *format, int (*progress)(void *arg, uint64_t done, uint64_t total),
                 void *arg, struct gr_err *err);
    /* Copy what is not zero of @src to @dst, which reads as zeros. */
    int (*copy)(struct gr_chan *src, struct gr_chan *dst, int (*progress)(void *arg, uint64_t done, uint64_t total), void *arg,
                struct gr_err *err);
};
struct snap_hooks {
    void *arg;
    /* (fiber) Make everybody outside the service let go of @disk ("DS/PATH" or "DS/PATH@SNAP"): sessions end, references on its
     * bdev are put. @only_idle: -GR_ELOCKED naming the user when somebody uses it. May be NULL. */
    int (*release)(void *arg, const char *disk, bool only_idle, struct gr_err *err);
    /* Sessions that use @disk now. May be NULL. */
    unsigned (*users)(void *arg, const char *disk);
    /* Something worth a line in the log; @level: enum gr_log_level. May be NULL. */
    void (*note)(void *arg, int level, const char *text);
};
struct snap_svc_opts {
    struct gr_loop *loop;
    struct gr_home *home;      /* borrowed; its storage lock is held by the caller */
    const char *address;       /* socket under which others reach this service, "" for a command */
    struct snap_hooks hooks;   /* copied */
    const struct snap_images *images; /* NULL: no import and export */
};
struct snap_svc;
int snap_svc_new(const struct snap_svc_opts *opts, struct snap_svc **ret, struct gr_err *err);
/* (fiber) Close all disks, leave all datastores, free. What could not be left in order is warned about. NULL allowed. */
void snap_svc_free(struct snap_svc *s);
/* (fiber) Join every registered datastore. Those that fail stay listed as "failed", are warned about and tried again when they
 * are asked for. Returns how many failed, or a negative code (registry unreadable). */
int snap_svc_join_all(struct snap_svc *s, struct gr_err *err);
/* (fiber) Open every disk that no other host owns; returns how many this host owns now. */
int snap_svc_open_all(struct snap_svc *s);
/* ---- the services of other hosts (fiber) ---- */
/* Connect to the service at @address, as struct snap_place has it. */
int snap_peer_connect(struct snap_svc *s, const char *address, struct gr_rpc_client **ret, struct gr_err *err);
/* One call there: takes the reference of @params; *ret (may be NULL) as from gr_rpc_call(). */
int snap_peer_ask(struct snap_svc *s, const char *address, const char *method, json_t *params, int64_t timeout_ms, json_t **ret, struct gr_err *err);
/* The same to every other living host of the datastore @name that has a service, answers ignored. How many could not be told, with *err naming
 * one of them and the reason; or negative. Takes the reference of @params. */
int snap_svc_tell(struct snap_svc *s, const char *name, const char *method, json_t *params, struct gr_err *err);

/* (fiber) Other machines that share a datastore on logical units reach this host at @address, "ADDRESS" or "ADDRESS:PORT" (IPv6 in brackets):
 * listen there as soon as there is such a datastore. Without a port it is that of last time, or any. */
int snap_svc_link(struct snap_svc *s, const char *address, struct gr_err *err);
const char *snap_svc_link_at(const struct snap_svc *s); /* "ADDRESS:PORT", "" while not */
void snap_svc_unlink(struct snap_svc *s);               /* to be called before the server that has our methods ends; NULL allowed */

/* (fiber) Tell all joined datastores this host's portal ("host:port"), also those behind one that fails: *err names the first that did. */
int snap_svc_set_portal(struct snap_svc *s, const char *portal, struct gr_err *err);

/* (fiber) Bring home what the journals hold, of all joined datastores: leaving them is short then. */
int snap_svc_checkpoint(struct snap_svc *s, struct gr_err *err);
/* Could a program that knows @features (0: it does not say) serve all datastores that we serve? -GR_EVERSION names one that it could not. */
int snap_svc_known_to(struct snap_svc *s, uint64_t features, struct gr_err *err);

/* Where a disk or snapshot is. */
struct snap_place {
    struct gr_bdev *bdev;   /* owned here: a new reference */
    char host[64];          /* else the owner: its name, */
    char portal[128];       /* its portal or "", */
    char address[VMFS_ADDRESS_MAX + 1]; /* the socket of its service or "" */
    struct gr_geometry geometry; /* of snap_svc_find(), owned elsewhere: what the disk looks like, as of the owner's last checkpoint */
};
/* (fiber) Find "DS/PATH[@SNAP]", taking the disk when nobody living owns it. 0: @ret filled. -ENOENT, -GR_ELOCKED: held by a
 * command for more than @wait_ms. @what: who wants it, for those who ask who waits; borrowed meanwhile. */
int snap_svc_find(struct snap_svc *s, const char *name, const char *what, uint64_t wait_ms, struct snap_place *ret, struct gr_err *err);
/* (fiber) Who owns @disk, without taking it. 0: owned here or by nobody (@ret empty); 1: @ret names the owner. */
int snap_svc_owner(struct snap_svc *s, const char *disk, struct snap_place *ret, struct gr_err *err);
/* A number for this host among those that share the datastore of @disk, from 1; it stays when the host comes back, unless another
 * has taken its place. 0: no such datastore. */
unsigned snap_svc_host_number(struct snap_svc *s, const char *disk);
/* (fiber) Call fn(arg, number, owner) for every living host with a portal that shares the datastore of @disk; owner: the disk is its. */
int snap_svc_each_host(struct snap_svc *s, const char *disk, void (*fn)(void *arg, unsigned number, bool owner), void *arg, struct gr_err *err);
/* (fiber) Call fn(arg, "DS/PATH") for every disk of every joined datastore; a negative return ends the walk. */
int snap_svc_each_disk(struct snap_svc *s, int (*fn)(void *arg, const char *disk), void *arg, struct gr_err *err);
/* (fiber) Names of snapshots and bookmarks of @disk, when it is owned here. */
int snap_svc_each_snapshot(struct snap_svc *s, const char *disk, int (*fn)(void *arg, const struct snap_info *info), void *arg,
                           struct gr_err *err);
int snap_svc_resolve_base(struct snap_svc *s, const char *disk, const char *base, struct gr_bookmark *ret, struct gr_err *err);
/* The access rules of disks, kept in their datastores; valid as long as @s. */
struct gr_rules snap_svc_rules(struct snap_svc *s);
/* Add the methods above to a server. */
int snap_svc_serve(struct snap_svc *s, struct gr_rpc_server *server);

/* ---- commands ---- */
/* (fiber) The .with of struct gr_rules_app: the service of this home in this process. */
int snap_cmd_with_rules(struct gr_loop *loop, int (*fn)(void *arg, const struct gr_rules *rules, struct gr_err *err), void *arg, struct gr_err *err);
/* What gr_cmd_main's app must point to for the tables below. */
struct snap_cmd_app {
    struct gr_rules_app rules;        /* for commands of others */
    const struct snap_images *images; /* for commands that work without a daemon */
};
extern const struct gr_cmd snap_datastore_commands[];
extern const struct gr_cmd snap_disk_commands[];
extern const struct gr_cmd snap_key_commands[]; /* key */
extern const struct gr_cmd snap_snapshot_commands[];
extern const struct gr_cmd snap_up_commands[]; /* up, down, status */
#endif
