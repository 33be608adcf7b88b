#include "tests/lib/cluster_oracle.h"
#include "tests/lib/test.h"
#include <stdlib.h>
#include <string.h>

void cl_fill(uint8_t *b, unsigned disk, unsigned piece, uint64_t number)
{
    uint64_t w[8] = { 0x5441504d41545321ull, disk, piece, number, number * 0x9e3779b97f4a7c15ull, disk ^ number, piece ^ number, number };
    for (unsigned i = 0; i < 4096; i += sizeof w)
        memcpy(b + i, w, sizeof w);
}

uint64_t cl_number_of(const uint8_t *b, unsigned disk, unsigned piece)
{
    static const uint8_t zeros[4096];
    uint8_t want[4096];
    uint64_t w[4];
    if (memcmp(b, zeros, sizeof zeros) == 0)
        return 0;
    memcpy(w, b, sizeof w);
    cl_fill(want, disk, piece, w[3]);
    if (memcmp(b, want, sizeof want) != 0)
        fail_msg("disk %u piece %u: bytes that are no write of it (they say disk %llu piece %llu number %llu)", disk, piece, (unsigned long long)w[1],
                 (unsigned long long)w[2], (unsigned long long)w[3]);
    return w[3];
}

static void put(struct cl_write *w)
{
    if (w->answered && w->fate != CL_OPEN)
        free(w);
}

static void all_flushed(struct cl_piece *p)
{
    p->flushed = p->is;
    free(p->since);
    p->since = NULL;
    p->n_since = 0;
}

struct cl_write *cl_sent(struct cl_site *t, unsigned disk, unsigned piece, unsigned session)
{
    struct cl_piece *p = &t->disk[disk].piece[piece];
    struct cl_write *w = calloc(1, sizeof *w);
    assert_non_null(w);
    *w = (struct cl_write){ .disk = disk, .piece = piece, .number = ++t->numbers, .session = session };
    if (t->disk[disk].session == session) {
        w->next = p->maybe;
        p->maybe = w;
    } else {
        w->fate = CL_LOST; /* the disk is another's already: this one does not know yet */
    }
    return w;
}

/* Some found the piece when they took the disk over; others could not read it, and its owner is not this session any more. */
static bool still_open(const struct cl_site *t, const struct cl_write *w)
{
    return w->fate == CL_OPEN && t->disk[w->disk].session == w->session;
}

static void is_now(struct cl_site *t, struct cl_piece *p, uint64_t number)
{
    p->is = number;
    p->doubt = false;
    p->since = realloc(p->since, (p->n_since + 1) * sizeof *p->since);
    assert_non_null(p->since);
    p->since[p->n_since++] = (struct cl_acked){ number, t->acked };
}

void cl_answered(struct cl_site *t, struct cl_write *w, int status)
{
    struct cl_piece *p = &t->disk[w->disk].piece[w->piece];
    w->answered = true;
    if (status == 0 && w->fate == CL_LOST)
        fail_msg("disk %u piece %u: write %llu was acknowledged, but the next owner did not find it", w->disk, w->piece, (unsigned long long)w->number);
    t->acked += status == 0;
    if (status == 0 && still_open(t, w)) {
        while (p->maybe) { /* older ones that failed, and itself */
            struct cl_write *m = p->maybe;
            p->maybe = m->next;
            m->fate = CL_KEPT;
            if (m != w)
                put(m);
        }
        is_now(t, p, w->number);
    }
    put(w);
}

void cl_found(struct cl_site *t, unsigned disk, unsigned piece, uint64_t number)
{
    struct cl_piece *p = &t->disk[disk].piece[piece];
    bool known = number == p->is;
    while (p->maybe) {
        struct cl_write *w = p->maybe;
        p->maybe = w->next;
        w->fate = w->number == number ? CL_KEPT : CL_LOST;
        known |= w->number == number;
        put(w);
    }
    if (!known && p->doubt) {
        known = number == p->flushed;
        for (unsigned i = 0; i < p->n_since; i++)
            known |= number == p->since[i].number;
        t->gone += known;
    }
    if (!known)
        fail_msg("disk %u piece %u holds write %llu where %llu was acknowledged", disk, piece, (unsigned long long)number, (unsigned long long)p->is);
    p->is = number;
    p->doubt = false;
    all_flushed(p);
}

void cl_flushed(struct cl_site *t, unsigned disk, uint64_t acked)
{
    for (struct cl_piece *p = t->disk[disk].piece; p < t->disk[disk].piece + CL_PIECES; p++) {
        unsigned n = 0;
        if (p->doubt) /* what is lost of it is lost */
            continue;
        while (n < p->n_since && p->since[n].at <= acked)
            p->flushed = p->since[n++].number;
        if (n == p->n_since)
            all_flushed(p);
        else
            memmove(p->since, p->since + n, (p->n_since -= n) * sizeof *p->since);
    }
}

void cl_poisoned(struct cl_site *t, unsigned session, uint64_t id)
{
    unsigned disk = 0, any = 0;
    while (disk < t->n_disks && t->disk[disk].id != id)
        disk++;
    if (disk == t->n_disks)
        fail_msg("object %llu, which is no disk, has lost writes", (unsigned long long)id);
    struct cl_disk *d = &t->disk[disk];
    for (unsigned i = 0; i < CL_PIECES; i++) {
        any += d->piece[i].n_since + (d->piece[i].maybe != NULL);
        d->piece[i].doubt = true;
    }
    if (d->session != session || !any)
        fail_msg("disk %u is said to have lost writes, and had none since its last flush", disk);
    d->lost_writes = true;
    t->poisoned++;
}

void cl_oracle_free(struct cl_site *t)
{
    for (unsigned i = 0; i < t->n_disks; i++)
        for (unsigned k = 0; k < CL_PIECES; k++) {
            struct cl_piece *p = &t->disk[i].piece[k];
            while (p->maybe) { /* of pieces that nobody could read any more */
                struct cl_write *w = p->maybe;
                p->maybe = w->next;
                w->fate = CL_LOST;
                put(w);
            }
            free(p->since);
        }
    free(t->disk);
}
