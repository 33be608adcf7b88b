/* What the files of the login process's parent share: login_parent.c (the process, its questions, hand-over), login_chap.c (proofs). */
#ifndef TGT_LOGIN_PARENT_H
#define TGT_LOGIN_PARENT_H
#include "common/buf.h"
#include "iscsi-target/guesses.h"
#include "common/helper.h"
#include "iscsi-target/login.h"
#include "iscsi-target/login_ipc.h"
#include "iscsi-target/target_int.h"

#define TGT_CHALLENGE_LEN 32u
struct tgt_slot {
    bool used, discovery, busy, approved, need_chap, authenticated, challenged;
    uint32_t gen;
    unsigned portal_flags; /* of the portal it came through, which may be closed by now */
    uint8_t isid[TGT_ISID_LEN];
    uint16_t tsih, cid;
    bool open;
    char initiator[TGT_NAME_MAX + 1], target[TGT_NAME_MAX + 1], address[64], local[64];
    char disk[1024];
    struct tgt_lu *lu; /* a user is held from the approval on */
    unsigned alg;
    uint8_t id, challenge[TGT_CHALLENGE_LEN];
    struct gr_buf listing;
    bool listed;
};
struct tgt_login_parent {
    struct tgt_server *s;
    struct gr_helper process;
    struct tgt_msg in, out;
    struct tgt_guesses guesses;
    bool quiet;             /* no login is under way in the process, which lets nobody in */
    uint32_t turn;          /* of being deaf */
    uint64_t deaf_until_ns; /* so long logins under way are waited for */
    struct tgt_slot slots[TGT_SLOTS_MAX];
};
/* A question being answered in a fiber. */
struct tgt_job {
    struct tgt_server *s;
    uint32_t slot, gen, spawn;
    int fd;
    unsigned status; /* refusal that is given late */
    struct tgt_slot taken; /* hand-over: what the slot held. The login process may use the slot again at once. */
    struct tgt_msg msg;
};

/* Answer the login in that slot. */
void tgt_login_answer(struct tgt_login_parent *p, uint32_t slot, uint32_t gen, enum tgt_msg_type type);
/* A question that is answered in a fiber. new: NULL without memory, @fd is closed; @take: what the slot holds goes along, the slot is free.
 * run: fn(job) ends with tgt_job_end(). slot: NULL when the login is gone. */
struct tgt_job *tgt_job_new(struct tgt_login_parent *p, uint32_t slot, int fd, bool take);
void tgt_job_run(struct tgt_job *j, void (*fn)(void *));
struct tgt_slot *tgt_job_slot(const struct tgt_job *j);
void tgt_job_end(struct tgt_job *j);
/* Messages about proofs; false: the login process broke the protocol. */
bool tgt_on_chap_start(struct tgt_login_parent *p, struct tgt_slot *sl);
bool tgt_on_chap_verify(struct tgt_login_parent *p, struct tgt_slot *sl);
#endif
