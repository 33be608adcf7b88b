/* Persistent reservations (SPC-4 5.13) as a state machine without I/O: who is registered, who holds what. */
#ifndef TGT_PR_H
#define TGT_PR_H
#include "iscsi-target/iscsi.h"
#include "iscsi-target/target.h"

#define TGT_PR_MAX 256u /* registrations of a LU */
#define TGT_PR_DONE_MAX 32u

enum tgt_pr_type { PR_NONE = 0, PR_WE = 1, PR_EA = 3, PR_WE_RO = 5, PR_EA_RO = 6, PR_WE_AR = 7, PR_EA_AR = 8 };
enum tgt_pr_action { PR_REGISTER = 0, PR_RESERVE = 1, PR_RELEASE = 2, PR_CLEAR = 3, PR_PREEMPT = 4, PR_PREEMPT_ABORT = 5, PR_REGISTER_IGNORE = 6 };
struct tgt_nexus { /* initiator port: name and ISID; there is one target port */
    char initiator[TGT_NAME_MAX + 1];
    uint8_t isid[TGT_ISID_LEN];
};
struct tgt_pr_reg {
    uint64_t key;
    struct tgt_nexus nexus;
};
struct tgt_pr_state {
    uint32_t generation;
    uint8_t type;         /* tgt_pr_type; PR_NONE: no reservation */
    struct tgt_nexus holder; /* unless all registrants hold it */
    bool aptpl;
    unsigned n;
    struct tgt_pr_reg regs[TGT_PR_MAX];
    /* The last requests that other hosts passed on and that were carried out: one whose answer was lost comes again, and is answered only. */
    uint64_t done[TGT_PR_DONE_MAX];
    unsigned n_done;
};
/* What the caller must do to other nexuses afterwards. */
struct tgt_pr_effect {
    uint16_t ua[TGT_PR_MAX]; /* unit attention for the nexus of the same index in @who; 0: none */
    struct tgt_nexus who[TGT_PR_MAX];
    bool removed[TGT_PR_MAX]; /* its registration was preempted (PREEMPT AND ABORT ends its tasks) */
    unsigned n;
};
struct tgt_pr_request {
    enum tgt_pr_action action;
    uint8_t type, scope;
    uint64_t key, new_key; /* RESERVATION KEY, SERVICE ACTION RESERVATION KEY */
    bool aptpl;
};
/* Apply @rq of @who. 0; or a status in the low byte (TGT_CONFLICT), or sense << 8 of a CHECK CONDITION. */
uint32_t tgt_pr_apply(struct tgt_pr_state *s, const struct tgt_nexus *who, const struct tgt_pr_request *rq, struct tgt_pr_effect *eff);
const struct tgt_pr_reg *tgt_pr_find(const struct tgt_pr_state *s, const struct tgt_nexus *who);
bool tgt_pr_was_done(const struct tgt_pr_state *s, uint64_t id);
void tgt_pr_note_done(struct tgt_pr_state *s, uint64_t id); /* the oldest one is forgotten for it */
bool tgt_pr_holds(const struct tgt_pr_state *s, const struct tgt_nexus *who);
/* May @who run a command that reads (@reads) or writes (@writes)? */
bool tgt_pr_allows(const struct tgt_pr_state *s, const struct tgt_nexus *who, bool reads, bool writes);
#endif
