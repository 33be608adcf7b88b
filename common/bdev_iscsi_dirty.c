/* What was written and answered but not flushed: a target that went away may have lost it, so it is kept, and written again over the next
 * session before anything else. Only of ranges that no other host writes before we have flushed, which whoever hands something over does;
 * what all hosts share is changed by COMPARE AND WRITE and writes with FUA, which are durable and take the place of what was kept. Who
 * was thrown out meanwhile writes nothing again: the registration is looked at first. */
#include "common/bdev_iscsi_int.h"
#include "common/cleanup.h"
#include "common/iov.h"
#include <stdlib.h>
#include <string.h>

#define DIRTY_BYTES (UINT64_C(64) << 20)
enum { DIRTY_MAX = 8192 };

struct piece {
    struct piece *next;
    uint64_t off, len, mark;
    bool zeros, unmap;
    uint8_t data[];
};
struct isc_dirty {
    struct piece *head, **tail; /* in the order they were answered */
    uint64_t bytes, mark;
    unsigned n;
};

struct isc_dirty *isc_dirty_new(void)
{
    struct isc_dirty *y = gr_zalloc(sizeof(*y));

    if (y)
        y->tail = &y->head;
    return y;
}

static void drop(struct isc_dirty *y, struct piece **at)
{
    struct piece *p = *at;

    *at = p->next;
    if (!p->next)
        y->tail = at;
    y->bytes -= p->zeros ? 0 : p->len;
    y->n--;
    free(p);
}

void isc_dirty_free(struct isc_dirty *y)
{
    while (y && y->head)
        drop(y, &y->head);
    free(y);
}

static struct piece *piece_new(uint64_t off, uint64_t len, bool zeros, bool unmap, uint64_t mark)
{
    struct piece *p = gr_alloc(sizeof(*p) + (zeros ? 0 : len));

    if (p)
        *p = (struct piece){.off = off, .len = len, .zeros = zeros, .unmap = unmap, .mark = mark};
    return p;
}

static void link_piece(struct isc_dirty *y, struct piece **at, struct piece *p)
{
    p->next = *at;
    *at = p;
    if (!p->next)
        y->tail = &p->next;
    y->bytes += p->zeros ? 0 : p->len;
    y->n++;
}

/* The part [off, off+len) of *@at as a piece of its own behind it. */
static bool keep_part(struct isc_dirty *y, struct piece **at, uint64_t off, uint64_t len)
{
    struct piece *p = *at, *part = piece_new(off, len, p->zeros, p->unmap, p->mark);

    if (!part)
        return false;
    if (!p->zeros)
        memcpy(part->data, p->data + (off - p->off), len);
    link_piece(y, &p->next, part);
    return true;
}

/* The range holds something newer: nothing of it is written again. */
static bool cut(struct isc_dirty *y, uint64_t off, uint64_t len)
{
    for (struct piece **at = &y->head; *at;) {
        struct piece *p = *at;
        uint64_t end = p->off + p->len;
        if (p->off >= off + len || end <= off) {
            at = &p->next;
            continue;
        }
        if ((end > off + len && !keep_part(y, at, off + len, end - off - len)) || (p->off < off && !keep_part(y, at, p->off, off - p->off)))
            return false;
        drop(y, at);
    }
    return true;
}

bool isc_dirty_note(struct isc_dirty *y, const struct isc_sub *s, bool durable)
{
    if (durable)
        return cut(y, s->off, s->len);
    struct piece *p = piece_new(s->off, s->len, s->kind == ISC_ZERO, s->unmap, y->mark + 1);
    if (!p)
        return false;
    if (s->kind == ISC_WRITE && s->bounce)
        memcpy(p->data, s->bounce, s->len);
    else if (s->kind == ISC_WRITE)
        gr_iov_get(s->req->bio->iov, s->req->bio->iovcnt, s->off - s->req->bio->off, p->data, s->len);
    y->mark++;
    link_piece(y, y->tail, p);
    return y->bytes < DIRTY_BYTES && y->n < DIRTY_MAX;
}

bool isc_dirty_overlaps(const struct isc_dirty *y, uint64_t off, uint64_t len)
{
    const struct piece *p = y->head;

    while (p && (p->off >= off + len || p->off + p->len <= off))
        p = p->next;
    return p;
}

uint64_t isc_dirty_mark(const struct isc_dirty *y)
{
    return y->mark;
}

void isc_dirty_clean(struct isc_dirty *y, uint64_t mark)
{
    for (struct piece **at = &y->head; *at;) {
        if ((*at)->mark <= mark)
            drop(y, at);
        else
            at = &(*at)->next;
    }
}

/* One after the other: what overlaps has an order. */
int isc_dirty_replay(struct isc_dev *d)
{
    struct scsi_iovec iov[ISCSI_IOV];
    int r = 0;

    for (struct piece *p = d->dirty->head; p && r >= 0; p = p->next) {
        struct isc_sub s = {.dev = d, .kind = p->zeros ? ISC_ZERO : ISC_WRITE, .unmap = p->unmap, .off = p->off, .len = p->len, .iov = iov,
                            .n_iov = 1};
        iov[0] = (struct scsi_iovec){p->data, p->len};
        r = isc_ask_sub(d, &s);
        if (r == -GR_ERESERVED)
            r = -GR_EFENCED;
    }
    return r;
}
