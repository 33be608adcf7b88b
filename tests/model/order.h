/* The order in which hosts take disks from each other, as a transition system that can be explored and that the code is held to.
 *
 * A process steps where a device would see it: a block read, a compare-and-write, a write, a key registered or ejected. Each step has a
 * guard, which says what the process must have seen or done before: the guards are the order. model_step() is the only place where they
 * stand; explore.c tries every step in every state, conform.c asks it about every request that the code sends.
 *
 * Nothing is said about when a process does its next step: without the clock anyone may be as slow as it likes for as long as it likes, which
 * is what stopped, dead and cut off processes look like from outside. So whatever holds then holds under any number of those, and any
 * time-out may be wrong. With the clock (tests/model/clock.c) processes that are well answer alarms in time, what ails them is counted, and
 * it can be said that nobody was ejected who was well, and that whoever is left gets on.
 *
 * A state is bytes, all of it equality: whether a block is still as somebody read it, whether a lock's generation is its slot's present one.
 * Numbers that only ever grow (generations, nonces, versions) do not occur, so the states are finitely many without any limit on how often
 * disks change hands. */
#ifndef MODEL_ORDER_H
#define MODEL_ORDER_H
#include <stdbool.h>
#include <stdint.h>

enum m_kind {
    M_START,        /* process p begins, under a new key */
    M_ENTER,        /* registers with device d */
    M_READ_SLOT,    /* p reads slot a */
    M_CLAIM,        /* compare-and-write: the free slot a becomes p's */
    M_READ_LOCK,    /* p reads the lock of disk a */
    M_LOCK,         /* compare-and-write: the lock of disk a becomes p's, and it may read it */
    M_DATA,         /* a write of disk a reaches its device, which takes it in */
    M_LAND,         /* and does it */
    M_RECORD,       /* the record of it is in p's journal: acknowledged */
    M_CHECKPOINT,   /* disk a is brought home */
    M_TAIL,         /* p writes its slot a: the journal begins further on */
    M_RELEASE_B,    /* disk a is given up: second copy of its home block */
    M_RELEASE_A,    /* first copy, with the lock free */
    M_ASK,          /* p writes into the alarm of slot a, or finds it asked already */
    M_LOOK,         /* p looks whether it is answered */
    M_ANSWER,       /* p answers the alarm of slot a */
    M_EJECT,        /* p ejects the key that slot a names from device d */
    M_MARK,         /* compare-and-write: slot a becomes REPLAYING under p's key */
    M_READ_JOURNAL, /* of slot a, all of it */
    M_HOME,         /* what it says of disk d goes home */
    M_FREE,         /* slot a becomes free, under a new generation */
    M_SLOT_BACK,    /* the answer of M_CLAIM or M_MARK was lost, it was sent again and miscompared: p reads slot a */
    M_LOCK_BACK,    /* the same for M_LOCK */
    M_GIVE_UP,      /* clock: p, cut off, cannot go on recovering slot a, and has waited for long enough */
    M_LEAVE,        /* p frees its own slot and goes */
    M_NOTICE,       /* p finds out that it was ejected, and drops everything */
    M_TICK,         /* clock: time passes; whoever is well has answered what was asked before the last one */
    M_CRASH,        /* faults, with the clock only */
    M_PAUSE,
    M_RESUME,
    M_CUT,
    M_HEAL,
    M_STALL,
    M_STALL_END,
    M_KINDS
};
struct m_act {
    uint8_t kind, p, a, d, lost; /* lost: a compare-and-write whose answer is */
};

enum m_slot_state { MS_FREE, MS_HOST, MS_READER, MS_REPLAYING }; /* the format's numbers */
struct m_slot {
    uint16_t state : 2, key : 5, home : 4; /* key: process + 1 that answers for it; home: host + 1 whose name it bears */
    uint16_t asked : 1, old : 1;           /* the alarm is not answered; clock: and was not at the last tick */
};
struct m_disk {
    uint32_t lock : 4, valid : 1; /* slot + 1; its generation is that slot's present one */
    uint32_t owner : 5;           /* process + 1 that opened it last: to judge, nobody reads it */
    uint32_t home_ok : 1;         /* home says what was acknowledged last */
    uint32_t recorded : 4, record_ok : 4; /* slots whose journal has records of it; says what was acknowledged last */
};
enum m_status { MP_OUT, MP_ENTERING, MP_JOINING, MP_JOINED, MP_OVER };
enum m_health { MH_WELL, MH_PAUSED_SENT, MH_PAUSED, MH_DEAD_SENT, MH_DEAD }; /* SENT: one request of it may still arrive */
struct m_proc {
    uint32_t host : 4, status : 3, reg : 2; /* reg: devices its key is registered with */
    uint32_t slot : 4, slot_valid : 1;      /* slot + 1; the generation it knows is the present one */
    uint32_t health : 3, cut : 2;           /* clock: devices it is cut off from */
    uint32_t failed : 1;                    /* clock: it has given up what it had begun */
    uint32_t charge : 8;                    /* slots it answers for */
};
enum m_take_phase { MT_NONE, MT_READ, MT_ASKED, MT_SILENT, MT_ENDED, MT_SECOND, MT_MARKED, MT_REPLAY };
struct m_take { /* what a process knows of a slot, and how far it is in taking it over */
    uint32_t phase : 3, state : 2, key : 5;  /* as read */
    uint32_t same_block : 1, same_gen : 1;   /* the block is as read; the process that has it is */
    uint32_t standing : 1;                   /* what it asked is not answered */
    uint32_t looks : 5, looked : 1;          /* without an answer; looked since the last tick */
    uint32_t ejected : 2;                    /* devices */
    uint32_t unsure : 1, excused : 1;        /* an answer was lost; clock: whoever has it was not well meanwhile */
    uint32_t recorded : 4, record_ok : 4;    /* disks, as the journal was read */
};
enum m_hold_phase { MK_NONE, MK_READ, MK_VOID, MK_COUNTS, MK_OPEN, MK_HALF };
enum m_write { MW_CLEAN, MW_SENT, MW_LANDED, MW_RECORDED };
struct m_hold { /* what a process knows of a disk */
    uint16_t phase : 3, lock : 4;   /* slot + 1, as read */
    uint16_t same : 1, unsure : 1;  /* the block is as read; an answer was lost */
    uint16_t write : 3, pending : 1; /* how far a write is; the device has taken one in */
};

/* The steps of the order that can be left out, to see what they are for. */
#define M_STEPS(X)                                                                                                                   \
    X(ASK, "ask before ejecting")                                                                                                    \
    X(PATIENCE, "wait for the answer")                                                                                               \
    X(OWN_LOOKS, "count only looks that the device answered")                                                                        \
    X(ANSWER, "answer one's own alarm")                                                                                              \
    X(ANSWER_FOR, "answer for the slot that is recovered")                                                                           \
    X(ANSWER_FIRST, "begin to answer before the slot is taken")                                                                      \
    X(EJECT_0, "eject from the first device")                                                                                        \
    X(EJECT_1, "eject from the second device")                                                                                       \
    X(DRAIN, "eject drains what the device has taken in (ABORT)")                                                                    \
    X(SECOND_LOOK, "second look at the slot, after ejecting")                                                                        \
    X(SLOT_NEWER, "refuse a slot that moved on since that look")                                                                     \
    X(SLOT_COMPARE, "compare in the write that takes the slot over")                                                                 \
    X(MARK, "mark the slot REPLAYING")                                                                                               \
    X(KEY, "the recoverer's key in the slot")                                                                                        \
    X(REPLAY, "replay")                                                                                                              \
    X(REPLAY_FIRST, "replay before the slot is free")                                                                                \
    X(COUNTS_REPLAYING, "locks of a slot that is REPLAYING count")                                                                   \
    X(FREE_GENERATION, "free the slot under a new generation")                                                                       \
    X(CLAIM_COMPARE, "compare in the write that claims a slot")                                                                      \
    X(LOCK_COMPARE, "compare in the write that takes a lock")                                                                        \
    X(LOCK_THEN_SLOT, "read the holder's slot after its lock")                                                                       \
    X(READ_BACK, "read back after a miscompare (nonce)")                                                                             \
    X(HOME_FIRST, "bring a disk home before it is given up")                                                                         \
    X(RELEASE_LAST, "write the copy with the free lock last")
enum m_step {
#define X(name, text) MX_##name,
    M_STEPS(X)
#undef X
        M_N_STEPS
};
extern const char *const m_step_text[M_N_STEPS];

struct model {
    uint8_t hosts, procs, slots, disks, devices;
    bool clock, observed; /* observed: it is shown what happens, and need not keep the number of states low */
    bool slow_devices;    /* a write may be taken in and done later: with draining that is the same as sent later */
    bool still;           /* nobody writes to disks or gives them up: about who is ejected, and who gets on */
    uint8_t faults, fault_kinds; /* clock: at most so many, of these kinds (bits 0 to 4: crash, pause, lost answer, cut, stall) */
    uint8_t losses;       /* without the clock: answers that are lost, at most */
    uint8_t restarts;     /* of processes, at most */
    uint8_t looks;        /* in a row without an answer, and it is silence */
    uint32_t without;     /* 1 << m_step: left out */
    unsigned at_slots, at_disks, at_procs, at_takes, at_holds, size; /* layout, model_layout() */
};
struct m_head {
    uint8_t faults, losses, restarts, stalled; /* so far */
};

void model_layout(struct model *m); /* counts -> layout */
/* Hosts that joined long ago, host i in slot i; disk k was opened by host k. */
void model_begin(const struct model *m, uint8_t *st);
/* 1: done. 0: the order does not allow it: *ret_why. -1: done, and a promise is broken: *ret_why. */
int model_step(const struct model *m, uint8_t *st, struct m_act a, const char **ret_why);
/* With the clock: nothing is left to be recovered, or nobody is there to do it. */
bool model_good(const struct model *m, uint8_t *st);
void model_say(const struct m_act *a, char *buf, unsigned len);

_Static_assert(sizeof(struct m_slot) == 2 && sizeof(struct m_disk) == 4 && sizeof(struct m_proc) == 4 && sizeof(struct m_take) == 4 &&
                   sizeof(struct m_hold) == 2,
               "states are many");
static inline struct m_head *m_head(uint8_t *st) { return (struct m_head *)st; }
static inline struct m_slot *m_slot(const struct model *m, uint8_t *st, unsigned s) { return (struct m_slot *)(st + m->at_slots) + s; }
static inline struct m_disk *m_disk(const struct model *m, uint8_t *st, unsigned k) { return (struct m_disk *)(st + m->at_disks) + k; }
static inline struct m_proc *m_proc(const struct model *m, uint8_t *st, unsigned p) { return (struct m_proc *)(st + m->at_procs) + p; }
static inline struct m_take *m_take(const struct model *m, uint8_t *st, unsigned p, unsigned s)
{
    return (struct m_take *)(st + m->at_takes) + p * m->slots + s;
}
static inline struct m_hold *m_hold(const struct model *m, uint8_t *st, unsigned p, unsigned k)
{
    return (struct m_hold *)(st + m->at_holds) + p * m->disks + k;
}
#endif
