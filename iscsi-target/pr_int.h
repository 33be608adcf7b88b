/* Inside of persistent reservations: pr.c (the commands), pr_store.c (how they are kept), pr_remote.c (from and to other hosts); pr_state.c is
 * pure. */
#ifndef TGT_PR_INT_H
#define TGT_PR_INT_H
#include "iscsi-target/pr.h"
#include "iscsi-target/scsi.h"

struct tgt_pr {
    struct gr_fmutex lock; /* one PERSISTENT RESERVE OUT at a time */
    struct tgt_pr_state state;
    struct tgt_pr_state before;
    struct tgt_pr_effect effect;
};
#define TGT_PR_IN_MAX (8u + TGT_PR_MAX * (24 + 4 + TGT_NAME_MAX + 32)) /* bytes of parameter data at most */
#define TGT_PR_OUT_LEN 24u                                             /* bytes of a parameter list: SPEC_I_PT is not offered */

struct tgt_pr *tgt_pr_of(struct tgt_lu *lu); /* made at need; NULL: out of memory */
struct tgt_pr_answer {
    uint8_t status;
    uint32_t sense; /* of CHECK CONDITION */
    bool in_list;   /* byte 20 of the parameter list is what is wrong */
};
struct tgt_pr_order { /* a PERSISTENT RESERVE OUT */
    const struct tgt_sess *self; /* of this session; NULL: it is on another host */
    const struct tgt_nexus *who;
    const uint8_t *cdb, *list;
    uint64_t id; /* it was passed on under this number: carried out once. 0: it was not */
    const struct gr_rpc_call *call; /* by which it was passed on: given up by whoever did, it is not carried out any more. NULL: by none */
};
/* (fiber) For the unit that is owned here. */
void tgt_pr_out(struct tgt_lu *lu, const struct tgt_pr_order *o, struct tgt_pr_answer *ret);
void tgt_pr_out_here(struct tgt_task *t, uint64_t id); /* the same, of @t: answers it */
void tgt_pr_answer(struct tgt_task *t, const struct tgt_pr_answer *a);
/* Parameter data of a PERSISTENT RESERVE IN into @p of TGT_PR_IN_MAX zeroed bytes; its length. */
uint32_t tgt_pr_in(const struct tgt_lu *lu, const uint8_t *cdb, uint8_t *p);
/* Make @s durable, as what replaces lu->pr->before. */
int tgt_pr_save(struct tgt_lu *lu, const struct tgt_pr_state *s);

/* ---- pr_remote.c ---- */
/* (fiber) The unit is in standby here: its owner does what @t asks. Answers it. */
void tgt_pr_ask_owner(struct tgt_task *t);
/* The number of a PERSISTENT RESERVE OUT whose outcome its session does not know, when @t is that one, sent again; 0. */
uint64_t tgt_pr_again(struct tgt_task *t);
/* Sessions of those who are concerned may be on other hosts: they are told, soon. */
void tgt_pr_tell_hosts(struct tgt_lu *lu, const struct tgt_pr_effect *e);

/* Texts of 2 digits a byte; @ret: 2 n + 1 bytes. */
void tgt_hex_text(const uint8_t *p, size_t n, char *ret);
void tgt_isid_text(const uint8_t isid[TGT_ISID_LEN], char ret[13]);
bool tgt_hex_bytes(const char *text, uint8_t *ret, size_t n);
#endif
