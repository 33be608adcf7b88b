/* Ranges of a logical unit in use. Commands of one task set are not ordered against each other (SIMPLE tasks), so plain
 * reads and writes never wait for each other; they wait for exclusive ones: read-modify-write commands, and writes whose
 * session is gone while the device still works on them. */
#include "iscsi-target/target_int.h"

static bool overlaps(const struct tgt_range *a, const struct tgt_range *b)
{
    return a->off < b->off + b->len && b->off < a->off + a->len;
}

static bool blocked(const struct tgt_ranges *rs, const struct tgt_range *r)
{
    for (const struct tgt_range *o = rs->active; o; o = o->next)
        if ((r->excl || o->excl) && overlaps(o, r))
            return true;
    for (const struct tgt_range *o = rs->waiting; o && o != r; o = o->next)
        if ((r->excl || o->excl) && overlaps(o, r))
            return true; /* first come, first served */
    return false;
}

static void link_active(struct tgt_ranges *rs, struct tgt_range *r)
{
    r->active = true;
    r->prev = NULL;
    r->next = rs->active;
    if (r->next)
        r->next->prev = r;
    rs->active = r;
}

bool tgt_range_begin(struct tgt_ranges *rs, struct tgt_range *r)
{
    if (r->excl)
        rs->n_excl++;
    if (!rs->n_excl || !blocked(rs, r)) {
        link_active(rs, r);
        return true;
    }
    r->active = false;
    r->next = NULL;
    r->prev = rs->waiting_last;
    if (r->prev)
        r->prev->next = r;
    else
        rs->waiting = r;
    rs->waiting_last = r;
    return false;
}

static void unlink_range(struct tgt_ranges *rs, struct tgt_range *r)
{
    if (r->next)
        r->next->prev = r->prev;
    else if (!r->active)
        rs->waiting_last = r->prev;
    if (r->prev)
        r->prev->next = r->next;
    else if (r->active)
        rs->active = r->next;
    else
        rs->waiting = r->next;
}

void tgt_range_end(struct tgt_ranges *rs, struct tgt_range *r)
{
    unlink_range(rs, r);
    if (r->excl)
        rs->n_excl--;
    struct tgt_range *w = rs->waiting;
    while (w) {
        struct tgt_range *next = w->next;
        if (!blocked(rs, w)) {
            unlink_range(rs, w);
            link_active(rs, w);
            w->go(w);
            next = rs->waiting; /* go() may have changed the queue */
        }
        w = next;
    }
}

void tgt_range_seal(struct tgt_ranges *rs, struct tgt_range *r)
{
    if (r->excl)
        return;
    r->excl = true;
    rs->n_excl++;
}
