/* Shared by raw_luns.c, raw_registry.c and raw_service.c. */
#ifndef TGT_RAW_INT_H
#define TGT_RAW_INT_H
#include "iscsi-target/raw_lun.h"
#include "iscsi-target/raw_luns.h"

struct raw_lun {
    struct raw_lun *next;
    char *name, *file;
    uint8_t uuid[16];
    bool read_only, leaving; /* leaving: nobody is let in */
    struct tgt_raw_limits limits;
    char *redirect;          /* HOST:PORT that logins are sent to; NULL: served here */
    struct gr_bdev *bdev;    /* open and claimed, or NULL */
    char why[GR_ERR_TEXT];   /* it could not be opened; "": it could, or was not tried */
};
struct tgt_raw {
    struct gr_loop *loop;
    struct gr_home *home;
    struct tgt_directory below;
    struct tgt_server *server; /* NULL: nothing is served */
    void (*note)(void *arg, int level, const char *text);
    void *note_arg;
    struct gr_fmutex lock;     /* changes of the list and openings, one at a time */
    struct raw_lun *luns;      /* in the order of their names */
    bool stop, watching;
    struct gr_fqueue wake, ended;
};
struct raw_lun *tgt_raw_find(const struct tgt_raw *raw, const char *name);
/* Takes its place in the list; the list owns it. */
void tgt_raw_link(struct tgt_raw *raw, struct raw_lun *l);
void tgt_raw_unlink(struct tgt_raw *raw, struct raw_lun *l);
void tgt_raw_lun_free(struct raw_lun *l); /* closes it; NULL allowed */
int tgt_raw_load(struct tgt_raw *raw, struct gr_err *err); /* conf/luns.json into the list */
/* (fiber, locked) Write conf/luns.json, without @except (may be NULL). */
int tgt_raw_save(struct tgt_raw *raw, const struct raw_lun *except, struct gr_err *err);
/* (fiber, locked) Open it unless it is. @create: its file is made with @size bytes. */
int tgt_raw_open(struct tgt_raw *raw, struct raw_lun *l, bool create, uint64_t size, struct gr_err *err);
/* New memory, NULL: out of memory. */
char *tgt_raw_store_dir(const struct tgt_raw *raw, const struct raw_lun *l);
json_t *tgt_raw_row(const struct raw_lun *l);
/* Read "iops", "bandwidth", "burst-ms" of @o into @limits; what is absent stays. */
int tgt_raw_read_limits(json_t *o, struct tgt_raw_limits *limits, struct gr_err *err);
int tgt_raw_name_check(const char *name, struct gr_err *err);
/* HOST:PORT with both, as a login redirect takes it. */
int tgt_raw_address_check(const char *address, struct gr_err *err);
#endif
