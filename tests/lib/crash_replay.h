/* What a power cut at any tick of a recorded history could have left on the device. */
#ifndef CRASH_REPLAY_H
#define CRASH_REPLAY_H
#include "tests/lib/crash_image.h"

enum crash_kind {
    CRASH_NOTHING,   /* all that was not flushed is lost */
    CRASH_ALL,       /* all that was submitted is there */
    CRASH_PREFIX,    /* … in order of submission, up to one */
    CRASH_ONE_LOST,  /* all but one */
    CRASH_SUBSET,    /* any of them */
    CRASH_TORN,      /* all up to one of which only some sectors are there */
    CRASH_TORN_SUBSET, /* any of them, each may be torn */
    CRASH_KINDS
};
struct crash_replay;
/* @base: the device before the history (copied). */
struct crash_replay *crash_replay_new(const struct crash_image *base, struct gr_record *record);
void crash_replay_free(struct crash_replay *r);
/* Ticks only grow from call to call. What was completed before a completed flush (or had FUA) is there; of the rest, what
 * @kind and @rng say. */
struct crash_image *crash_replay_cut(struct crash_replay *r, uint64_t tick, enum crash_kind kind, uint64_t *rng);
uint64_t crash_record_ticks(struct gr_record *record); /* newest tick */
#endif
