/* EXTENDED COPY (LID1) and RECEIVE COPY RESULTS (SPC-4 6.4, 6.24): blocks from LU to LU without passing the initiator. A LU
 * may be named only when the same initiator is logged in to it now: what it could not read or write itself, it cannot copy.
 * Inside one volume the device shares blocks (GR_OP_COPY); else we read and write. */
#include "common/cleanup.h"
#include "common/seam.h"
#include "iscsi-target/pr.h"
#include "iscsi-target/scsi.h"
#include <stdlib.h>

#define CSCD_MAX 16u
#define SEGMENT_MAX 64u
#define LIST_MAX (32 * CSCD_MAX + 28 * SEGMENT_MAX) /* bytes of descriptors */
#define RESULTS 16u
#define PIECE (1u << 20)
#define SHARE_PIECE (64u << 20)

struct tgt_copy_result {
    struct tgt_copy_result *next;
    uint32_t sess_id;
    uint8_t list_id, status; /* 1: done, 2: failed */
    uint16_t segments;
    uint64_t bytes;
};
struct copy {
    struct tgt_task *t;
    struct tgt_sess *cscd[CSCD_MAX]; /* sessions, held: their LUs stay open */
    unsigned n_cscd, n_seg;
    uint16_t segments;
    uint64_t bytes;
};

void tgt_copies_free(struct tgt_lu *lu)
{
    while (lu->copies) {
        struct tgt_copy_result *r = lu->copies;
        lu->copies = r->next;
        free(r);
    }
}

static void remember(struct tgt_task *t, uint8_t list_id, uint8_t status, const struct copy *c)
{
    struct tgt_copy_result *r = gr_zalloc(sizeof *r), **p = &t->lu->copies;
    if (!r)
        return;
    *r = (struct tgt_copy_result){.next = *p, .sess_id = t->sess->id, .list_id = list_id, .status = status, .segments = c->segments, .bytes = c->bytes};
    *p = r;
    for (unsigned n = 0; *p; n++) {
        if (n < RESULTS) {
            p = &(*p)->next;
            continue;
        }
        r = *p;
        *p = r->next;
        free(r);
    }
}

/* The session of this initiator on the LU with that NAA designator. */
static struct tgt_sess *by_designator(struct tgt_task *t, const uint8_t *d)
{
    if ((d[4] & 0x0f) != 1 || (d[5] & 0x3f) != 3 || d[7] != 16)
        return NULL;
    for (struct tgt_sess *o = t->sess->server->sessions; o; o = o->next) {
        uint8_t naa[16];
        tgt_lu_naa(o->lu, naa);
        if (!strcmp(o->initiator, t->sess->initiator) && !memcmp(naa, d + 8, 16))
            return o;
    }
    return NULL;
}

static uint32_t find_luns(struct copy *c, const uint8_t *list)
{
    for (unsigned i = 0; i < c->n_cscd; i++) {
        const uint8_t *d = list + 32 * i;
        if (d[0] != 0xe4)
            return TGT_SENSE_COPY_DESC_TYPE;
        c->cscd[i] = by_designator(c->t, d);
        if (!c->cscd[i])
            return TGT_SENSE_COPY_UNREACHABLE;
        c->cscd[i]->holds++;
    }
    return 0;
}

static int read_write(struct tgt_lu *src, uint64_t from, struct tgt_lu *dst, uint64_t to, uint64_t len)
{
    uint32_t cap;
    struct tgt_pool *pool = &src->server->pool;
    uint8_t *p = tgt_buf_get(pool, PIECE, &cap);
    int r = p ? 0 : -ENOMEM;
    for (uint64_t done = 0; !r && done < len; done += PIECE) {
        uint64_t n = GR_MIN((uint64_t)PIECE, len - done);
        r = gr_pread(src->chan, p, n, from + done);
        if (!r)
            r = gr_pwrite(dst->chan, p, n, to + done, 0);
    }
    if (p)
        tgt_buf_put(pool, p, cap);
    return r;
}

static int copy_blocks(struct tgt_lu *src, uint64_t from, struct tgt_lu *dst, uint64_t to, uint64_t len)
{
    int r = 0;
    for (uint64_t done = 0; !r && done < len; done += SHARE_PIECE) {
        uint64_t n = GR_MIN((uint64_t)SHARE_PIECE, len - done);
        struct gr_bio bio = {.op = GR_OP_COPY, .off = to + done, .len = n, .copy_src = src->chan, .copy_src_off = from + done};
        r = gr_submit_wait(dst->chan, &bio);
        if (r == -EOPNOTSUPP || r == -EINVAL || r == -GR_ERANGE)
            r = read_write(src, from + done, dst, to + done, n);
    }
    return r;
}

static bool within(const struct tgt_lu *lu, uint64_t lba, uint64_t blocks)
{
    uint64_t capacity = lu->geo.size >> lu->shift;
    return lba <= capacity && blocks <= capacity - lba;
}

/* Would that initiator be let write (or read) there by itself? */
static bool permitted(const struct tgt_sess *sess, bool write)
{
    static const uint8_t read10[16] = {0x28}, write10[16] = {0x2a};
    uint32_t sense;
    int progress;
    return !sess->ended && !tgt_scsi_refusal(sess->lu, sess, tgt_scsi_lookup(write ? write10 : read10, &sense), &progress);
}

static uint32_t segment(struct copy *c, const uint8_t *d)
{
    unsigned from = gr_get_be16(d + 4), to = gr_get_be16(d + 6);
    uint64_t blocks = gr_get_be16(d + 10), src_lba = gr_get_be64(d + 12), dst_lba = gr_get_be64(d + 20);
    if (d[0] != 0x02)
        return TGT_SENSE_COPY_SEG_TYPE;
    if (gr_get_be16(d + 2) != 0x18)
        return TGT_SENSE_INVALID_PARAM;
    if (from >= c->n_cscd || to >= c->n_cscd)
        return TGT_SENSE_COPY_ABORTED;
    struct tgt_sess *ss = c->cscd[from], *ds = c->cscd[to];
    struct tgt_lu *src = ss->lu, *dst = ds->lu;
    uint64_t len = blocks << (d[1] & 0x02 ? dst->shift : src->shift);
    if (len & (src->geo.logical_block - 1) || len & (dst->geo.logical_block - 1))
        return TGT_SENSE_INVALID_PARAM;
    if (!within(src, src_lba, len >> src->shift) || !within(dst, dst_lba, len >> dst->shift))
        return TGT_SENSE_COPY_ABORTED;
    if (!permitted(ss, false) || !permitted(ds, true))
        return TGT_SENSE_COPY_ABORTED;
    struct tgt_task wait = {.lu = dst}; /* the range of another LU cannot live in our task */
    if (len) {
        tgt_fiber_range(&wait, dst_lba << dst->shift, len, true);
        int r = !permitted(ss, false) || !permitted(ds, true) ? -GR_ERESERVED /* since it waited */
                                                               : copy_blocks(src, src_lba << src->shift, dst, dst_lba << dst->shift, len);
        tgt_range_end(&dst->ranges, &wait.range);
        if (r < 0)
            return TGT_SENSE_COPY_ABORTED;
    }
    c->segments++;
    c->bytes += len;
    return 0;
}

static uint32_t run(struct copy *c, const uint8_t *p, uint32_t len)
{
    if (len < 16)
        return TGT_SENSE_PARAM_LENGTH;
    uint32_t cscd = gr_get_be16(p + 2), seg = gr_get_be32(p + 8), inl = gr_get_be32(p + 12), pos = 16;
    if (cscd > len - 16 || seg > len - 16 - cscd)
        return TGT_SENSE_PARAM_LENGTH;
    if (cscd > LIST_MAX || seg > LIST_MAX - cscd)
        return TGT_SENSE_PARAM_LENGTH;
    if (cscd / 32 > CSCD_MAX)
        return TGT_SENSE_COPY_TARGETS;
    if (inl)
        return 0x05260b; /* inline data length exceeded */
    c->n_cscd = cscd / 32;
    uint32_t sense = find_luns(c, p + pos);
    pos += cscd;
    /* every descriptor is looked at before the first block moves */
    for (uint32_t at = 0; !sense && at < seg; at += 28, c->n_seg++) {
        if (p[pos + at] != 0x02)
            sense = TGT_SENSE_COPY_SEG_TYPE;
        else if (seg - at < 28)
            sense = TGT_SENSE_PARAM_LENGTH;
        else if (c->n_seg >= SEGMENT_MAX)
            sense = TGT_SENSE_COPY_SEGMENTS;
    }
    for (unsigned i = 0; !sense && i < c->n_seg && !c->t->aborted; i++)
        sense = segment(c, p + pos + 28 * i);
    return sense;
}

void tgt_run_extended_copy(struct tgt_task *t)
{
    struct copy c = {.t = t};
    if (!t->out_total) {
        tgt_good(t);
        return;
    }
    uint32_t sense = run(&c, t->buf, GR_MIN(t->out_need, t->out_got));
    for (unsigned i = 0; i < c.n_cscd; i++)
        if (c.cscd[i])
            tgt_sess_unhold(c.cscd[i]);
    if (GR_MIN(t->out_need, t->out_got) >= 2 && (t->buf[1] >> 3 & 3) != 3) /* list id usage 3: no results are kept */
        remember(t, t->buf[0], sense ? 2 : 1, &c);
    if (sense)
        tgt_check(t, sense);
    else
        tgt_good(t);
}

void tgt_run_copy_status(struct tgt_task *t)
{
    const struct tgt_copy_result *r = t->lu->copies;
    while (r && (r->sess_id != t->sess->id || r->list_id != t->cdb[2]))
        r = r->next;
    if (!r) {
        tgt_check_field(t, TGT_SENSE_INVALID_CDB, true, 2);
        return;
    }
    uint8_t *p = tgt_in_buf(t, 12);
    if (!p)
        return;
    bool kib = r->bytes > UINT32_MAX;
    gr_put_be32(p, 8);
    p[4] = r->status;
    gr_put_be16(p + 5, r->segments);
    p[7] = kib;
    gr_put_be32(p + 8, (uint32_t)(kib ? r->bytes >> 10 : r->bytes));
    tgt_in_data(t, 12, gr_get_be32(t->cdb + 10));
}

void tgt_run_copy_operating(struct tgt_task *t)
{
    uint8_t *p = tgt_in_buf(t, 46);
    if (!p)
        return;
    gr_put_be32(p, 46 - 4);
    p[4] = 0x01; /* SNLID: a list without an identifier is allowed */
    gr_put_be16(p + 8, CSCD_MAX);
    gr_put_be16(p + 10, SEGMENT_MAX);
    gr_put_be32(p + 12, LIST_MAX);
    gr_put_be32(p + 16, 0xffffu * t->lu->geo.logical_block);
    gr_put_be16(p + 34, (uint16_t)TGT_FIBERS_MAX);
    p[36] = (uint8_t)TGT_FIBERS_MAX;
    p[37] = (uint8_t)t->lu->shift;
    p[43] = 2;
    p[44] = 0x02;
    p[45] = 0xe4;
    tgt_in_data(t, 46, gr_get_be32(t->cdb + 10));
}
