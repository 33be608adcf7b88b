/* Leaves whose bytes are made behind the capture.
 *
 * To make a leaf's bytes takes tens of microseconds, and a capture that did it for hundreds of them would hold all requests for as long. So it only gives
 * them their places. The bytes are made behind it, some at a time, and those of a leaf that is about to change before the change: what is written is what
 * was there at the capture. */
#include "common/seam.h"
#include "vmfs/internal.h"

#define AT_ONCE 4u /* leaves: others have their turn in between */

void due_add(struct vmfs *v, struct mnode *n, uint64_t addr, void *buf)
{
    struct vdues *d = &v->dues;
    if (d->n == d->cap) {
        uint32_t cap = d->cap ? d->cap * 2 : 256;
        struct vdue *due = gr_realloc(d->due, cap * sizeof *due);
        if (!due) {
            mnode_encode(v, n, addr, buf);
            return;
        }
        d->due = due;
        d->cap = cap;
    }
    d->due[d->n++] = (struct vdue){ n, addr, buf };
    n->due = d->n;
}

void due_make(struct vmfs *v, struct mnode *n)
{
    if (!n->due)
        return;
    struct vdue *d = &v->dues.due[n->due - 1];
    mnode_encode(v, n, d->addr, d->buf);
    d->n = NULL;
    n->due = 0;
}

void due_make_all(struct vmfs *v)
{
    unsigned made = 0;
    for (uint32_t i = 0; i < v->dues.n; i++) {
        if (!v->dues.due[i].n)
            continue;
        due_make(v, v->dues.due[i].n);
        if (++made % AT_ONCE == 0)
            gr_fiber_yield();
    }
    v->dues.n = 0;
}

void due_forget(struct vmfs *v)
{
    for (uint32_t i = 0; i < v->dues.n; i++)
        if (v->dues.due[i].n)
            v->dues.due[i].n->due = 0;
    v->dues.n = 0;
}

void due_done(struct vmfs *v)
{
    due_forget(v);
    free(v->dues.due);
    v->dues = (struct vdues){ 0 };
}
