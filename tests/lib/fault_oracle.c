#include "tests/lib/fault_oracle.h"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAGIC 0x4d4154524958212full

enum fate { OPEN, KEPT, LOST };
struct write {
    unsigned piece;
    unsigned char fate;
    uint64_t answered; /* as which of all; 0: not */
};
struct piece {
    uint64_t is, open; /* numbers: answered or found; under way, or not answered. 0: none */
    bool reading;
};
struct fo {
    pthread_mutex_t lock;
    unsigned disk;
    uint64_t run;      /* tells its writes from those of others that used the disk before */
    uint8_t *before;   /* what the disk held then: number 0 */
    struct piece piece[FO_PIECES];
    struct write *writes; /* by number */
    size_t n, cap;
    uint64_t flushed;  /* what was answered as one of so many is durable */
    struct fo_tally t;
};

static void complain(const struct fo *o, unsigned piece, const char *what, uint64_t found)
{
    const struct piece *p = &o->piece[piece];
    fprintf(stderr, "disk %u piece %u: %s: write %llu, where %llu was answered and %llu is open\n", o->disk, piece, what, (unsigned long long)found,
            (unsigned long long)p->is, (unsigned long long)p->open);
}

static void fill(const struct fo *o, uint8_t *data, unsigned host, unsigned piece, uint64_t number)
{
    uint64_t w[8] = { MAGIC, host, o->disk, piece, number, o->run, number * 0x9e3779b97f4a7c15ull, ~number };
    for (size_t i = 0; i < FO_PIECE; i += sizeof w)
        memcpy(data + i, w, sizeof w);
}

/* The number of the write these bytes are; 0: of before; UINT64_MAX: none of this piece. */
static uint64_t number_of(const struct fo *o, const uint8_t *data, unsigned piece)
{
    uint8_t want[FO_PIECE];
    uint64_t w[5];
    memcpy(w, data, sizeof w);
    if (memcmp(data, o->before + (size_t)piece * FO_PIECE, FO_PIECE) == 0)
        return 0;
    fill(o, want, (unsigned)w[1], piece, w[4]);
    return memcmp(data, want, sizeof want) == 0 && w[4] && w[4] < o->n && o->writes[w[4]].piece == piece ? w[4] : UINT64_MAX;
}

struct fo *fo_new(unsigned disk, uint64_t run)
{
    struct fo *o = calloc(1, sizeof *o);
    if (!o || !(o->before = calloc(FO_PIECES, FO_PIECE)))
        abort();
    o->run = run;
    pthread_mutex_init(&o->lock, NULL);
    o->disk = disk;
    o->n = 1;
    o->t.owner = -1;
    return o;
}

void fo_free(struct fo *o)
{
    free(o->writes);
    free(o->before);
    pthread_mutex_destroy(&o->lock);
    free(o);
}

void fo_tally(struct fo *o, struct fo_tally *ret)
{
    pthread_mutex_lock(&o->lock);
    *ret = o->t;
    pthread_mutex_unlock(&o->lock);
}

static uint64_t number_new(struct fo *o, unsigned piece)
{
    if (o->n >= o->cap) {
        o->cap = o->cap ? o->cap * 2 : 4096;
        o->writes = realloc(o->writes, o->cap * sizeof *o->writes);
        if (!o->writes)
            abort();
    }
    o->writes[o->n] = (struct write){ piece, OPEN, 0 };
    return o->n++;
}

int fo_begin(struct fo *o, unsigned host, uint64_t random, bool write, uint8_t *data, uint64_t *ret_number)
{
    int got = -1;
    pthread_mutex_lock(&o->lock);
    for (unsigned i = 0; i < FO_PIECES && got < 0 && o->t.owner == (int)host; i++) {
        unsigned k = (unsigned)((random + i) % FO_PIECES);
        if (!o->piece[k].open && !o->piece[k].reading)
            got = (int)k;
    }
    if (got >= 0) {
        struct piece *p = &o->piece[got];
        *ret_number = write ? number_new(o, (unsigned)got) : 0;
        p->open = *ret_number;
        p->reading = !write;
        if (write)
            fill(o, data, host, (unsigned)got, *ret_number);
    }
    pthread_mutex_unlock(&o->lock);
    return got;
}

void fo_wrote(struct fo *o, unsigned piece, uint64_t number)
{
    struct piece *p = &o->piece[piece];
    pthread_mutex_lock(&o->lock);
    o->t.acked++;
    if (o->writes[number].fate == LOST) {
        complain(o, piece, "answered, but the next owner did not find it", number);
        o->t.older++;
    } else if (p->open == number) {
        o->writes[number].fate = KEPT;
        o->writes[number].answered = o->t.acked;
        p->is = number;
        p->open = 0;
    }
    pthread_mutex_unlock(&o->lock);
}

uint64_t fo_flush_begin(struct fo *o)
{
    struct fo_tally t;
    fo_tally(o, &t);
    return t.acked;
}

void fo_flushed(struct fo *o, uint64_t covers)
{
    pthread_mutex_lock(&o->lock);
    if (covers > o->flushed)
        o->flushed = covers;
    pthread_mutex_unlock(&o->lock);
}

/* Nothing behind @found that its piece was written with is durable. It is what the piece is from now on, so what is behind it must not turn up again. */
static bool only_older(struct fo *o, unsigned piece, uint64_t found)
{
    for (size_t i = found + 1; i < o->n; i++)
        if (o->writes[i].piece == piece && o->writes[i].answered && o->writes[i].answered <= o->flushed)
            return false;
    for (size_t i = found + 1; i < o->n; i++)
        if (o->writes[i].piece == piece)
            o->writes[i] = (struct write){ piece, LOST, 0 };
    return true;
}

/* @found is in the piece, and must be what was answered or, for who @settles, what is open. */
static bool look(struct fo *o, unsigned piece, uint64_t found, bool settles)
{
    const struct piece *p = &o->piece[piece];
    if (found == p->is || (settles && p->open && found == p->open))
        return true;
    if (found == UINT64_MAX) {
        complain(o, piece, "bytes that are no write of it", found);
        o->t.garbage++;
    } else if (found && o->writes[found].fate == LOST) {
        complain(o, piece, "a stale write", found);
        o->t.stale++;
    } else if (settles && found < p->is && only_older(o, piece, found)) {
        complain(o, piece, "older than what was answered, not than what was flushed", found);
        o->t.older++;
    } else {
        complain(o, piece, "what was answered is lost", found);
        o->t.lost++;
    }
    return false;
}

void fo_read(struct fo *o, unsigned host, unsigned piece, const uint8_t *data)
{
    pthread_mutex_lock(&o->lock);
    if (o->t.owner == (int)host && o->piece[piece].reading) { /* else another owner has looked meanwhile, and this answer is of before */
        look(o, piece, number_of(o, data, piece), false);
        o->piece[piece].reading = false;
        o->t.reads++;
    }
    pthread_mutex_unlock(&o->lock);
}

void fo_read_lost(struct fo *o, unsigned host, unsigned piece)
{
    pthread_mutex_lock(&o->lock);
    if (o->t.owner == (int)host)
        o->piece[piece].reading = false;
    pthread_mutex_unlock(&o->lock);
}

uint64_t fo_looks(struct fo *o)
{
    struct fo_tally t;
    fo_tally(o, &t);
    return t.settled;
}

bool fo_settle(struct fo *o, unsigned host, uint64_t looks, const uint8_t *data)
{
    pthread_mutex_lock(&o->lock);
    bool ok = o->t.settled == looks;
    if (ok && !looks)
        memcpy(o->before, data, (size_t)FO_PIECES * FO_PIECE);
    for (unsigned i = 0; i < FO_PIECES && ok; i++) {
        struct piece *p = &o->piece[i];
        uint64_t found = number_of(o, data + (size_t)i * FO_PIECE, i);
        look(o, i, found, true);
        if (p->open)
            o->writes[p->open].fate = found == p->open ? KEPT : LOST;
        if (found != UINT64_MAX)
            p->is = found;
        p->open = 0;
        p->reading = false;
    }
    if (ok) {
        o->t.settled++;
        if (o->t.owner != (int)host && o->t.owner >= 0) {
            o->t.changes++;
            o->t.from[o->t.owner]++;
        }
        o->t.owner = (int)host;
    }
    pthread_mutex_unlock(&o->lock);
    return ok;
}
