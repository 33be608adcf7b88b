/* What a disk that several hosts may serve must hold while hosts die, stop and are cut off: every write says which host it was sent to, which
 * disk it is of and its number, and each piece of 4 KiB has one write under way at most. What was answered must be there, flushed or not;
 * what was not answered may be there until the next owner has looked, and either way from then on. A piece that is older than what was answered, but
 * not than what was flushed, is told apart: that is what a disk may be that has lost writes with a device, and says so. All calls from any thread. */
#ifndef FAULT_ORACLE_H
#define FAULT_ORACLE_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FO_PIECE 4096u /* bytes */
#define FO_PIECES 128u
#define FO_HOSTS 8u

struct fo;
struct fo_tally {
    uint64_t acked, reads, settled; /* settled: times that somebody looked at everything */
    uint64_t changes;  /* the owner became another one */
    uint64_t from[FO_HOSTS]; /* of these: it had been this one */
    uint64_t stale;    /* a write that was given up for lost turned up later */
    uint64_t lost;     /* answered and flushed, and not there, or seen and not there any more */
    uint64_t older;    /* answered, and not there when somebody looked at everything; nobody had flushed it */
    uint64_t garbage;  /* bytes that are no write of this piece */
    int owner;         /* -1: nobody yet */
};
struct fo *fo_new(unsigned disk, uint64_t run); /* @run: another one each time that the disk is used */
void fo_free(struct fo *o);
void fo_tally(struct fo *o, struct fo_tally *ret);

/* A piece that nothing is under way on, for a write or a read through @host: its number, or -1 (@host is not the owner, none is free). A
 * write fills @data (FO_PIECE) and has a number from now on; a read has 0. */
int fo_begin(struct fo *o, unsigned host, uint64_t random, bool write, uint8_t *data, uint64_t *ret_number);
/* That write was answered with GOOD. */
void fo_wrote(struct fo *o, unsigned piece, uint64_t number);
/* A flush: what it covers, to be asked before it is sent; it was answered with GOOD. */
uint64_t fo_flush_begin(struct fo *o);
void fo_flushed(struct fo *o, uint64_t covers);
/* That read was answered with GOOD and @data. */
void fo_read(struct fo *o, unsigned host, unsigned piece, const uint8_t *data);
/* That read will not be answered. (A write that will not stays open until the next look.) */
void fo_read_lost(struct fo *o, unsigned host, unsigned piece);
/* To be asked before everything is looked at. */
uint64_t fo_looks(struct fo *o);
/* Everything was read through @host (FO_PIECES pieces): it is the owner, and what it found is what the disk holds. False: somebody else has
 * looked since @looks, look again. */
bool fo_settle(struct fo *o, unsigned host, uint64_t looks, const uint8_t *data);
#endif
