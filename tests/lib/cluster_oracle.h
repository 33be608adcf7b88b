/* What the disks of a simulated site (cluster.h) may show. A piece holds what was acknowledged, or what a session had under way that ended meanwhile; whoever
 * takes a disk over finds one of these, and what he has found it is from then on. Of a disk that has lost writes with a device, and said so, a piece
 * may be as old as its last flush; which one it is is seen when it can be read. */
#ifndef CLUSTER_ORACLE_H
#define CLUSTER_ORACLE_H
#include "tests/lib/cluster.h"

#define CL_PIECES 48u /* of a disk that are used */

struct cl_write { /* that was sent */
    unsigned disk, piece;
    uint64_t number;
    enum { CL_OPEN, CL_KEPT, CL_LOST } fate; /* what the next owner found */
    bool answered;
    unsigned session;
    struct cl_write *next;
};
struct cl_acked {
    uint64_t number, at; /* as many writes had been acknowledged */
};
struct cl_piece {
    uint64_t is;             /* acknowledged, or found by whoever took over */
    uint64_t flushed;        /* the same, behind a flush; or found */
    struct cl_acked *since;  /* what was acknowledged since, */
    unsigned n_since;        /* oldest first */
    bool doubt;              /* its disk has lost writes since it was written, or read by who took the disk over */
    struct cl_write *maybe;  /* sent, not answered, by the session that owns the disk */
};
struct cl_disk {
    uint64_t id;
    unsigned session; /* whose the disk is; 0: nobody's yet */
    bool lost_writes; /* and nobody has accepted it */
    struct cl_piece piece[CL_PIECES];
};

void cl_fill(uint8_t *b, unsigned disk, unsigned piece, uint64_t number); /* 4096 bytes */
uint64_t cl_number_of(const uint8_t *b, unsigned disk, unsigned piece);   /* of the write that these bytes are; 0: zeros */
struct cl_write *cl_sent(struct cl_site *t, unsigned disk, unsigned piece, unsigned session);
void cl_answered(struct cl_site *t, struct cl_write *w, int status); /* @w is given back */
/* A new owner of the disk has read write @number. */
void cl_found(struct cl_site *t, unsigned disk, unsigned piece, uint64_t number);
/* A flush has ended well that was sent when @acked writes were acknowledged (cl_site.acked). */
void cl_flushed(struct cl_site *t, unsigned disk, uint64_t acked);
/* Session @session has lost a device, and says that object @id has lost writes with it. */
void cl_poisoned(struct cl_site *t, unsigned session, uint64_t id);
void cl_oracle_free(struct cl_site *t);
#endif
