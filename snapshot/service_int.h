/* Inside of the storage service; only snapshot/service*.c include it. */
#ifndef SNAPSHOT_SERVICE_INT_H
#define SNAPSHOT_SERVICE_INT_H
#include "common/cleanup.h"
#include "common/bdev_open.h"
#include "common/link.h"
#include "common/log.h"
#include "common/retain.h"
#include "snapshot/service.h"

#define SNAP_WAIT_MS 10000u            /* how long a request waits for a command that holds what it needs */
#define SNAP_SETTLE_MS 30000u          /* how long a command that deleted something gives its space back */
#define SNAP_TIDY_MS 1000u             /* how long any other command gives back what a killed one left */
#define SNAP_EXPORT_PREFIX "granary.export." /* snapshots of an export under way; what is found at first open is left over */
#define SNAP_GROUP_PREFIX "granary.group." /* snapshots of a group that is not decided yet: service_group.c */
#define SNAP_GROUP_MAX 256u             /* disks in one instant */
#define SNAP_TMP_DIR "granary.tmp" /* folder of disks that are being filled, and of files that are being written whole; what no living host owns in it is removed at join */
#define SNAP_SUB_MS 60000                /* a part of a request that another host does */
#define SNAP_TELL_MS 10000               /* what another host gets to answer in */
#define SNAP_PROGRESS_NS 500000000ull  /* between two words on how far a long request has come */
#define SNAP_FILE_MAX (8u << 20)       /* bytes of a file in one answer */

/* A disk that this host holds open, and so owns. */
struct snap_handle {
    struct snap_handle *next;
    char *path; /* inside the datastore */
    struct vmfs_disk *disk; /* NULL: freed, but for the memory, as long as somebody looks */
    unsigned users; /* requests at work on it */
    unsigned passes; /* of them, those that stop when somebody needs the disk for himself */
    unsigned wanted; /* somebody does */
    unsigned mounted; /* open for writing through a mount (mnt_int.h): nobody else may use it */
    unsigned looks; /* requests that see whether its name still leads to it: they are no users, and it may be freed while they are at it */
    bool closing;   /* goes away: nobody new */
};
struct snap_wait { /* a request that waits for a disk, as long as it does */
    const char *what; /* "login of iqn…", or a method */
    const char *path; /* inside the datastore */
    uint64_t since_ns;
    bool moving;      /* the disk changes hands */
    char host[64];    /* where a command is at work on it; "" not known to be that */
    struct snap_wait *next;
};
struct snap_moving { /* a disk between two hosts */
    const char *path;
    struct snap_moving *next;
};
struct snap_table { /* of what is said of disks and folders (service_table.c) */
    const char *place, *what; /* the file that has it; in messages */
    const char *hint;         /* behind the message that a row is too long, or "" */
    uint64_t id, version;     /* of the object, and what was read of it last; 0: none */
    json_t *rows;             /* by UUID; NULL: none */
    struct gr_fmutex reading, changing;
};
struct snap_ds {
    struct snap_ds *next;
    char name[VMFS_VOLUME_NAME_MAX + 1];
    char *devices[VMFS_DEVICES_MAX]; /* names, as in common/bdev_open.h */
    unsigned n_devices;
    bool degraded;                /* join also when a device is missing */
    bool rescue;                  /* one is lost for good: what is left is read, nothing is written */
    uint64_t *accepted;           /* with that: objects that are shown, though they may have other disks' bytes */
    size_t n_accepted;
    json_t *login_row;            /* NULL: without */
    struct gr_device_login login; /* strings of login_row */
    struct gr_bdev *bdevs[VMFS_DEVICES_MAX]; /* while joined */
    bool lost[VMFS_DEVICES_MAX];             /* it failed here: joined without it, until it is added again or the daemon starts anew */
    struct vmfs *v;                          /* NULL: not joined */
    char error[GR_ERR_TEXT];                 /* why not */
    unsigned users;
    bool leaving;
    bool ejected; /* another host took our place, or a device was lost: a fiber is at joining again */
    unsigned back; /* with that: 1 + the place of a device that is there again: left, and joined with it; 0: none */
    struct snap_svc *svc;
    struct snap_handle *handles;
    struct snap_moving *moving;
    struct snap_wait *waits;
    struct snap_table rules, policies;
    struct mnt_vol *fs; /* what mounts have open in it; NULL: nothing yet. mnt_int.h */
};
#define SNAP_UNDONE_MAX 256u
struct snap_svc {
    struct snap_svc_opts o;
    char *address;
    char portal[128];
    struct gr_fmutex lock; /* joining, leaving, the registry */
    unsigned rejoining, parts; /* fibers */
    struct snap_group *groups; /* parts of instants of several hosts, under way or just over */
    struct {
        struct snap_taking *takings;         /* under way */
        uint8_t groups[SNAP_UNDONE_MAX][16]; /* given up: the last of them, in a ring */
        unsigned n;
        struct gr_fqueue over;
    } undo;
    bool ending;
    const char *gone; /* while a datastore is joined: vmfs_join_opts.gone */
    struct gr_fqueue wake;
    struct gr_rpc_server *server; /* that has our methods */
    struct {
        struct gr_link_key *key;
        struct gr_link *process; /* when it was needed */
        char wanted[80], at[88]; /* where to listen, and where we do: "" not (yet) */
    } link;
    struct snap_ds *list;
    struct mnt_mount *mounts; /* mnt_int.h */
};

/* One request. */
struct snap_op {
    struct snap_svc *s;
    struct gr_rpc_call *call;
    const char *method;
    json_t *params; /* borrowed */
    json_t **ret;   /* result: a new reference */
    struct gr_err *err;
    struct snap_place owner; /* set when what is asked for belongs to another host with a service */
    bool forward;
    const char *forward_as; /* the owner is asked by this name instead: a release that would not know what is asked for does not know it */
};
typedef int (*snap_op_fn)(struct snap_op *op);
/* Run @fn; when it finds the thing owned elsewhere, ask the owner and pass its answer on. */
int snap_op_run(void *arg, struct gr_rpc_call *call, const char *method, snap_op_fn fn, json_t *params, json_t **ret, struct gr_err *err);
/* Ask op->owner the same; its answer becomes the result. */
int snap_op_forward(struct snap_op *op, const char *method);
#define SNAP_METHOD(fn, name)                                                                                             \
    static int rpc_##fn(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret_result, struct gr_err *err)     \
    {                                                                                                                     \
        return snap_op_run(arg, call, name, fn, params, ret_result, err);                                                 \
    }
/* Params: parse the path under @key. */
int snap_op_path(struct snap_op *op, const char *key, enum snap_path_kind kind, struct snap_path *ret);
/* The same, and the datastore that the path is in, as snap_ds_get gives it. */
int snap_op_path_ds(struct snap_op *op, const char *key, enum snap_path_kind kind, struct snap_path *ret, struct snap_ds **ret_ds);
/* A name of a snapshot or bookmark under @key, checked. */
int snap_op_name(struct snap_op *op, const char *key, const char **ret);
/* Give @o (reference taken, NULL: out of memory) as the result. */
int snap_op_result(struct snap_op *op, json_t *o);
/* "provision" and "physical-block" of a new disk, or their defaults. */
int snap_op_shape(struct snap_op *op, enum vmfs_provision *ret_provision, uint32_t *ret_physical);

/* The datastore @name, joined when it is not yet; put it back. */
int snap_ds_get(struct snap_svc *s, const char *name, struct snap_ds **ret, struct gr_err *err);
void snap_ds_put(struct snap_ds *ds);
struct snap_ds *snap_ds_find(struct snap_svc *s, const char *name);
void snap_ds_rejoin(struct snap_ds *ds); /* leave it and join it again in the background, as it is registered now */
/* With s->lock held; it is given back while snap_ds_leave() waits for requests that are at work on @ds, which is not removed meanwhile. */
int snap_ds_join(struct snap_svc *s, struct snap_ds *ds, struct gr_err *err);
int snap_ds_leave(struct snap_svc *s, struct snap_ds *ds, bool only_idle, struct gr_err *err);
int snap_ds_add(struct snap_svc *s, const char *name, json_t *devices, json_t *login, struct snap_ds **ret, struct gr_err *err); /* not yet saved */
/* {"user","secret-file","target-user"?,"target-secret-file"?}; strings borrowed from @row, which may be NULL. */
int snap_login_get(json_t *row, struct gr_device_login *ret, struct gr_err *err);
void snap_ds_remove(struct snap_svc *s, struct snap_ds *ds);
int snap_registry_load(struct snap_svc *s, struct gr_err *err);
int snap_registry_save(struct snap_svc *s, struct gr_err *err);
int snap_ds_accept(struct snap_ds *ds, uint64_t id); /* one more of ds->accepted */

/* A datastore and a disk of it, open here. */
struct snap_disk {
    struct snap_ds *ds;
    struct snap_handle *h;
};
/* Open @p's disk for a request: takes it when nobody living owns it. Owned elsewhere: -GR_ELOCKED, and the op is marked for
 * forwarding. Release with snap_disk_put. */
int snap_disk_get(struct snap_op *op, const struct snap_path *p, struct snap_disk *ret);
void snap_disk_put(struct snap_disk *d);
/* The same outside a request; @what: who shows up as waiting (snap_waits_rows). @ret_owner (may be NULL) is filled on -GR_ELOCKED when the owner
 * is known. */
int snap_handle_get(struct snap_svc *s, struct snap_ds *ds, const char *path, const char *what, uint64_t wait_ms, struct snap_handle **ret,
                    struct snap_place *ret_owner, struct gr_err *err);
/* ---- who waits for whom (service_wait.c) ---- */
void snap_wait_begin(struct snap_ds *ds, struct snap_wait *w);
void snap_wait_end(struct snap_ds *ds, struct snap_wait *w);
/* [{"what","disk","host","reason","seconds","asked"?,"silent"?,"patience"?,"ejected"?}]: who waits in this process, and for which hosts. NULL: *err. */
json_t *snap_waits_rows(struct snap_ds *ds, struct gr_err *err);
/* How many disks each host owns, as "disks" of the rows of hosts. */
int snap_owners_count(struct snap_ds *ds, json_t *hosts, struct gr_err *err);
/* Everybody lets go of the disk and it is closed; @d holds nothing of it afterwards but the datastore. On failure it stays. */
int snap_disk_drop(struct snap_svc *s, struct snap_disk *d, bool only_idle, struct gr_err *err);
/* ---- links (service_link.c) ---- */
/* Do the hosts of @ds meet on links, and not on sockets of one machine? */
bool snap_ds_links(const struct snap_ds *ds);
/* This home's public key; borrowed. */
int snap_link_key(struct snap_svc *s, const uint8_t **ret, struct gr_err *err);
/* Listen, if that was asked for and is not so yet. */
int snap_link_up(struct snap_svc *s, struct gr_err *err);
/* Who comes over a link is served by @server. */
void snap_link_serve(struct snap_svc *s, struct gr_rpc_server *server);
void snap_link_end(struct snap_svc *s);
/* What our slot in @ds says of how we are reached; and how the host in another slot is, for snap_peer_connect(). */
void snap_own_address(const struct snap_svc *s, const struct snap_ds *ds, char ret[VMFS_ADDRESS_MAX + 1]);
void snap_peer_address(const struct snap_ds *ds, const struct vmfs_slot_info *i, char ret[VMFS_ADDRESS_MAX + 1]);

/* Who is in a slot. */
void snap_place_of_host(const struct snap_ds *ds, const struct vmfs_slot_info *i, struct snap_place *ret);
int snap_place_of_slot(struct snap_ds *ds, int slot, struct snap_place *ret, struct gr_err *err); /* 1: filled; 0: nobody living, or this host */
/* snap_svc_tell() of a datastore at hand. */
/* service_quota.c: struct vmfs_join_opts.recall, argument the datastore. */
int snap_quota_recall(void *ds, struct gr_err *err);
/* service_regions.c: struct vmfs_join_opts.recall_regions. */
int snap_regions_recall(void *ds, struct gr_err *err);
/* All of them at once, so that one that does not answer costs SNAP_TELL_MS in all. How many could not be told, or an error. */
int snap_ds_tell(struct snap_ds *ds, const char *method, json_t *params, struct gr_err *err);
struct snap_handle *snap_handle_find(struct snap_ds *ds, const char *path);
/* What is at @path, as its open handle knows it where there is one. */
int snap_stat(struct snap_ds *ds, const char *path, struct vmfs_stat *ret, struct gr_err *err);
/* Who owns @path: 0 nobody or this host, 1 @ret is filled, or an error. */
int snap_owner_of(struct snap_ds *ds, const char *path, struct snap_place *ret, struct gr_err *err);
unsigned snap_users_of(struct snap_svc *s, const struct snap_ds *ds, const char *path);
/* Refuse when sessions use the disk: -GR_ELOCKED. @what: "be deleted". */
int snap_refuse_in_use(struct snap_svc *s, const struct snap_disk *d, const char *what, struct gr_err *err);
/* Refuse when a mount has the disk open for writing: the kernel keeps what it read and what it has not written yet. */
int snap_refuse_shown(const struct snap_disk *d, struct gr_err *err);
/* A line for the log: snap_warn() of what somebody should look into, notices of what was done. */
void snap_note(struct snap_svc *s, enum gr_log_level level, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
#define snap_warn(s, ...) snap_note(s, GR_LOG_WARN, __VA_ARGS__)

/* ---- tables in a datastore (service_table.c) ---- */
void snap_table_key(const uint8_t uuid[16], char ret[33]);
int snap_table_look(struct snap_ds *ds, struct snap_table *t, struct gr_err *err); /* t->rows are as they are now */
int snap_table_row(const struct snap_ds *ds, const struct snap_table *t, const char *uuid, json_t **ret, struct gr_err *err); /* borrowed; NULL: none */
/* fn(arg) gives rows that are to be kept, {UUID: row}, from those that are, with the lock; an empty row is removed. Durable, and other hosts see it. */
typedef int (*snap_rows_fn)(void *arg, struct snap_ds *ds, json_t *ret_rows, struct gr_err *err);
int snap_table_change(struct snap_ds *ds, struct snap_table *t, snap_rows_fn fn, void *arg, struct gr_err *err);
void snap_table_free(struct snap_table *t); /* read anew when it is needed */
int snap_table_sweep(struct snap_ds *ds, struct snap_table *t, struct gr_err *err); /* rows of what is not there any more are dropped: how many */

/* ---- rules of disks (service_rules.c) ---- */
/* What was deleted has no rules any more: the disk @uuid, or its snapshot @snap. What cannot be done is warned about. */
void snap_rules_forget(struct snap_ds *ds, const uint8_t uuid[16], const char *snap);
/* Snapshots are about to change hands with what is said of single ones (disk.promote). From begin on it is said of both disks, so that there is no moment
 * in which one is open to more than it was; after end of that which has it. Whatever came of it, end follows a begin, also one that failed. */
struct snap_handing {
    char from[33], to[33];   /* keys of the disk that has them and of the clone */
    struct vmfs_disk *clone; /* open here; with snapshots of its own it cannot be promoted, and what is said of them stays */
    json_t *added;           /* {name: true}: what is said of the clone's for the time being; NULL: nothing is to be handed on */
};
int snap_rules_hand_begin(struct snap_ds *ds, struct snap_handing *h, struct gr_err *err);
void snap_rules_hand_end(struct snap_ds *ds, struct snap_handing *h, bool done);

/* ---- datastores shown as file systems (mnt_int.h) ---- */
extern const struct gr_rpc_method snap_fs_methods[];
/* A mount of @ds, NULL when there is none. */
const char *mnt_mounted_on(const struct snap_ds *ds);
void mnt_end_all(struct snap_svc *s); /* mounts end here; who holds them may give them to the next process (fiber) */
void mnt_vol_close(struct snap_ds *ds); /* the volume is about to be left, no request is at work: nothing of it stays open (fiber) */
void mnt_vol_free(struct snap_ds *ds);
/* -EINVAL when the file at @path (or, if there is none, its folder) lies in a mounted datastore. Addresses pass. */
int snap_refuse_mounted(const char *path, struct gr_err *err);
/* Does another host have object @id open, which has no name? (fiber) */
bool mnt_in_use_elsewhere(struct snap_ds *ds, uint64_t id);
/* Sessions, exposures and readers let go of the disk at @path; @only_idle: -GR_ELOCKED when somebody uses it. */
int snap_release_hook(struct snap_svc *s, const struct snap_ds *ds, const char *path, bool only_idle, struct gr_err *err);
/* Whoever holds the object open, its owner, has to do it: -GR_ELOCKED, and the request is marked for forwarding. */
int snap_refuse_foreign(struct snap_op *op, struct snap_ds *ds, const char *path);
/* Close what is open at or below @path, if nobody uses it: it is about to be renamed or removed. */
int snap_close_below(struct snap_svc *s, struct snap_ds *ds, const char *path, struct gr_err *err);

bool snap_is_below(const char *path, const char *dir); /* or the same; "" is above all */
/* Walk the entries of @dir in the order of their names. fn: 0 go on, SNAP_WALK_INTO go into this folder, negative: stop. */
#define SNAP_WALK_INTO 1
typedef int (*snap_walk_fn)(void *arg, const char *path, const struct vmfs_stat *st);
int snap_walk(struct snap_ds *ds, const char *dir, snap_walk_fn fn, void *arg, struct gr_err *err);

/* Result rows. */
json_t *snap_disk_row(struct snap_ds *ds, const char *path, const struct vmfs_stat *st);
/* How much of its space is its own, for a row of a disk or a snapshot: bytes. */
void snap_usage_row(json_t *row, uint64_t used, uint64_t unique);
json_t *snap_info_row(const char *ds, const char *path, const struct snap_info *info);
static inline void snap_json_decref(json_t **o)
{
    json_decref(*o);
}
#define snap_auto_json gr_auto(snap_json_decref)
extern const struct gr_rpc_method snap_datastore_methods[], snap_disk_methods[], snap_snapshot_methods[], snap_file_methods[], snap_stream_methods[], snap_move_methods[],
    snap_group_methods[], snap_key_methods[], snap_quota_methods[], snap_region_methods[], snap_origin_methods[], snap_clone_methods[], snap_policy_methods[], snap_prune_methods[], snap_defragment_methods[];
void snap_passes_stop(struct snap_svc *s, struct snap_handle *h); /* service_defragment.c: until none is at work, or too long */
/* ---- encrypted disks (service_key.c) ---- */
/* The key that params "encrypt", "key" and "key-file" ask for a new disk; 0: it is not encrypted. */
int snap_op_encrypt(struct snap_op *op, uint64_t *ret_key);
void snap_key_row(uint64_t key_id, json_t *row); /* "encrypted" and "key" of a disk's or file's row */
/* The disk closed, so that it can end; with or without its key. Put it back with snap_disk_put(). */
int snap_disk_get_to_end(struct snap_op *op, const struct snap_path *p, const char *what, struct snap_disk *ret, struct vmfs_stat *st);
/* ---- templates (service_template.c) ---- */
/* The snapshot SNAP_TEMPLATE of a template is there, and is what the disk is. */
int snap_template_ready(const struct snap_disk *d, struct gr_err *err);
/* ---- what was cloned from what (service_origin.c) ---- */
struct snap_origins; /* of one datastore, by name */
struct snap_kin { /* of a disk */
    uint64_t id, origin_id, origin_snapshot, clones;
};
struct snap_kin snap_kin_of(const struct vmfs_stat *st);
int snap_origins_find(struct snap_ds *ds, struct snap_origins **ret, struct gr_err *err); /* of all disks */
int snap_origins_of(struct snap_ds *ds, const struct snap_kin *kin, struct snap_origins **ret, struct gr_err *err); /* what concerns this one */
/* Or of all that a walk of the caller's comes by. */
int snap_origins_new(struct snap_ds *ds, struct snap_origins **ret, struct gr_err *err);
int snap_origins_note(struct snap_origins *o, const char *path, const struct vmfs_stat *st);
void snap_origins_free(struct snap_origins *o); /* NULL allowed */
json_t *snap_origins_clones(const struct snap_origins *o, uint64_t id, uint64_t snapshot); /* names of clones of it (0: of any snapshot) */
void snap_origins_row(const struct snap_origins *o, const struct snap_kin *kin, json_t *row); /* "clones", and of a clone "parent" */
/* Disks that were deleted, and are kept for their clones: those that were below the folder @below. */
int snap_list_deleted(struct snap_ds *ds, const char *below, json_t *a, struct gr_err *err);
void snap_tell_resume(void *ds, uint64_t id, unsigned slot); /* struct vmfs_join_opts.resume */
/* ---- snapshots, also for other methods: service_snapshot.c ---- */
int snap_op_snapshot_create(struct snap_op *op);
int snap_op_snapshot_list(struct snap_op *op);
int snap_op_snapshot_delete(struct snap_op *op);
/* One of them with @params (taken) in the course of another request, here or at the owner. */
int snap_op_sub(struct snap_op *op, snap_op_fn fn, const char *method, json_t *params, json_t **ret, struct gr_err *err);
/* ---- instants that were given up by who asked for them (service_undo.c) ---- */
struct snap_taking {
    struct snap_taking *next;
    bool given; /* with a number chosen by who asks */
    uint8_t group[16];
};
/* "group" of params, a UUID; *ret_given: it is there. */
int snap_op_group(struct snap_op *op, uint8_t ret[16], bool *ret_given);
/* One is being taken until snap_taking_end() (also after a failure). -GR_ECANCELED: it was undone already; check that again after waiting. */
int snap_taking_begin(struct snap_op *op, struct snap_taking *t);
int snap_taking_check(const struct snap_svc *s, const struct snap_taking *t, struct gr_err *err);
bool snap_undone(const struct snap_svc *s, const uint8_t group[16]); /* it was given up */
void snap_taking_end(struct snap_svc *s, struct snap_taking *t);
/* None of it will be taken here from now on: refuses those to come, and waits for those under way. What is there is the caller's to delete. */
void snap_undo(struct snap_svc *s, const uint8_t group[16]);
/* ---- policies (service_policy.c) ---- */
struct snap_policy {
    bool none; /* there is none, or it says so */
    struct gr_keep keep;
    char prefix[64];
    char from[VMFS_VOLUME_NAME_MAX + VMFS_PATH_MAX + 2]; /* the disk or folder that has it */
};
/* What counts for the disk or folder @path: its own, or that of the nearest folder above. */
int snap_policy_find(struct snap_ds *ds, const char *path, struct snap_policy *ret, struct gr_err *err);
void snap_policy_forget(struct snap_ds *ds, const uint8_t uuid[16]); /* its disk or folder was deleted */
/* ---- new disks that are filled before they have their name (service_image.c) ---- */
struct snap_shape {
    uint64_t size;
    enum vmfs_provision provision;
    uint32_t physical;
    uint64_t key; /* 0: not encrypted */
};
/* fill(arg, disk, progress, progress_arg, err) writes it; @progress sends parts to the caller of @op, and fails when that is gone. */
typedef int (*snap_progress_fn)(void *arg, uint64_t done, uint64_t total);
int snap_fill_as(struct snap_op *op, struct snap_ds *ds, const char *path, const struct snap_shape *shape,
                 int (*fill)(void *arg, struct gr_chan *to, snap_progress_fn progress, void *progress_arg, struct gr_err *err), void *arg);
/* ---- an instant of several hosts (service_group.c) ---- */
struct snap_member {
    const char *disk;               /* "DS/PATH" */
    uint64_t id;                    /* object */
    const struct snap_place *where; /* NULL: owned here */
};
/* Take the snapshot of all @n disks, some of which are @own; rows of the others' as well are added to @rows. */
int snap_group_lead(struct snap_op *op, struct snap_ds *ds, const struct snap_new *new, const struct snap_disk *own, unsigned n_own, const struct snap_member *all,
                    size_t n, json_t *rows);
bool snap_group_under_way(const struct snap_svc *s, const uint8_t group[16]); /* a part of it here is not settled */
/* @temp, a snapshot of a group, was found when its disk was opened. */
void snap_group_recover(struct snap_svc *s, struct snap_ds *ds, struct vmfs_disk *disk, const char *temp);
/* At join: folders that nobody needs. */
/* A disk that was opened, with none of its group's snapshots left to be settled: its former owner may have died before it could sign off. */
void snap_group_sign(struct snap_ds *ds, struct vmfs_disk *disk);
void snap_clean_groups(struct snap_ds *ds);
/* Remove what killed imports left in @ds. */
void snap_clean_tmp(struct snap_svc *s, struct snap_ds *ds);
/* Params of datastore.*: "devices" as names of devices (borrowed from *ret); the registered datastore that "name" names. */
int snap_op_devices(struct snap_op *op, json_t **ret, const char *paths[VMFS_DEVICES_MAX], unsigned *ret_n);
int snap_op_named(struct snap_op *op, struct snap_ds **ret);
int snap_op_ds(struct snap_op *op, struct snap_ds **ret); /* the one "name" says, joined; snap_ds_put() */
int snap_op_check(struct snap_op *op);
int snap_op_repair(struct snap_op *op);
int snap_op_scrub(struct snap_op *op);
int snap_op_accept_loss(struct snap_op *op);
int snap_op_rescued(struct snap_op *op);
int snap_op_device_replace(struct snap_op *op);
/* With the lock held: put the datastore into the registry and join it; a failure leaves the registry as it was. */
int snap_op_register(struct snap_op *op, const char *name, json_t *devices, struct snap_ds **ret); /* with params "login" */
/* The result datastore.info gives. */
int snap_op_datastore(struct snap_op *op, struct snap_ds *ds);
int snap_op_datastore_create(struct snap_op *op);
int snap_op_datastore_destroy(struct snap_op *op);
int snap_op_datastore_recover(struct snap_op *op);
/* The devices of a joined datastore, as datastore.devices has them; NULL with *err, or out of memory. */
json_t *snap_member_rows(struct snap_ds *ds, struct gr_err *err);
/* What the device of that number is called here; NULL: it is missing, and not known by name. */
const char *snap_member_name(const struct snap_ds *ds, unsigned number);
int snap_op_devices_list(struct snap_op *op);
int snap_op_device_add(struct snap_op *op);
int snap_op_device_open(struct snap_op *op);
int snap_op_device_remove(struct snap_op *op);
/* Devices that were about to be added when that ended are forgotten; @ds has just been joined. The lock is held. */
void snap_ds_prune(struct snap_svc *s, struct snap_ds *ds);
/* The other hosts see the new space at their next start, or now. */
void snap_tell_grown(struct snap_ds *ds);
bool snap_fenced(const struct snap_ds *ds); /* this host gave it up */
int snap_op_disk_import(struct snap_op *op);
int snap_op_disk_export(struct snap_op *op);
#endif
