/* Units with more owners than one: a list per region, ascending and apart, neighbours that are alike put together. What is not on
 * it has one owner, or none. */
#include "common/seam.h"
#include "vmfs/internal.h"

static uint32_t end_of(const struct vshare *s) { return s->at + s->units; }

/* The first entry that ends behind @at. */
static size_t find(const struct vregion *r, uint32_t at)
{
    size_t lo = 0, hi = r->n_shares;
    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        if (end_of(&r->shares[mid]) > at)
            hi = mid;
        else
            lo = mid + 1;
    }
    return lo;
}

bool share_at(const struct vregion *r, uint32_t at, uint32_t units, uint32_t *ret_units)
{
    size_t i = find(r, at);
    if (i == r->n_shares || r->shares[i].at >= at + units) {
        *ret_units = units;
        return false;
    }
    bool shared = r->shares[i].at <= at;
    *ret_units = GR_MIN(units, shared ? end_of(&r->shares[i]) - at : r->shares[i].at - at);
    return shared;
}

/* Room for @more entries: the changes below cannot fail half-way. */
static int room(struct vregion *r, size_t more)
{
    if (r->n_shares + more <= r->cap_shares)
        return 0;
    size_t cap = GR_MAX(r->cap_shares * 2, r->n_shares + more + 16);
    struct vshare *a = gr_realloc(r->shares, cap * sizeof *a);
    if (!a)
        return -ENOMEM;
    r->shares = a;
    r->cap_shares = cap;
    return 0;
}

static void insert(struct vregion *r, size_t i, struct vshare s)
{
    memmove(r->shares + i + 1, r->shares + i, (r->n_shares - i) * sizeof s);
    r->shares[i] = s;
    r->n_shares++;
}

/* No entry reaches over @at. */
static void split(struct vregion *r, uint32_t at)
{
    size_t i = find(r, at);
    if (i == r->n_shares || r->shares[i].at >= at)
        return;
    struct vshare tail = { at, end_of(&r->shares[i]) - at, r->shares[i].more };
    r->shares[i].units = at - r->shares[i].at;
    insert(r, i + 1, tail);
}

/* Entries from @first up to the one behind unit @end: without empty ones, those that are alike in one. */
static void tidy(struct vregion *r, size_t first, uint32_t end)
{
    size_t from = first ? first - 1 : 0, to = from, stop = from;
    while (stop < r->n_shares && r->shares[stop].at <= end)
        stop++;
    for (size_t i = from; i < stop; i++) {
        struct vshare s = r->shares[i];
        if (!s.more)
            continue;
        if (to > from && end_of(&r->shares[to - 1]) == s.at && r->shares[to - 1].more == s.more)
            r->shares[to - 1].units += s.units;
        else
            r->shares[to++] = s;
    }
    memmove(r->shares + to, r->shares + stop, (r->n_shares - stop) * sizeof *r->shares);
    r->n_shares -= stop - to;
}

int share_change(struct vregion *r, uint32_t at, uint32_t units, bool more)
{
    uint32_t end = at + units;
    size_t overlapped = find(r, end) - find(r, at);
    if (room(r, overlapped + 4) < 0)
        return -ENOMEM;
    split(r, at);
    split(r, end);
    size_t first = find(r, at);
    for (size_t i = first; at < end; i++) {
        uint32_t next = i < r->n_shares ? GR_MIN(r->shares[i].at, end) : end;
        if (next > at) { /* one owner so far */
            if (more)
                insert(r, i, (struct vshare){ at, next - at, 1 });
            at = next;
            if (more)
                continue;
        }
        if (at < end) {
            r->shares[i].more += more ? 1 : -1u;
            at = end_of(&r->shares[i]);
        }
    }
    tidy(r, first, end);
    r->shares_dirty = true;
    return 0;
}

int share_cut(struct vregion *r, uint32_t at, uint32_t units)
{
    if (room(r, 4) < 0)
        return -ENOMEM;
    split(r, at);
    split(r, at + units);
    for (size_t i = find(r, at); i < r->n_shares && r->shares[i].at < at + units; i++)
        r->shares[i].more = 0;
    tidy(r, find(r, at), at + units);
    r->shares_dirty = true;
    return 0;
}

/* ---- at home ---- */
uint32_t share_blob_units(const struct vregion *r)
{
    size_t bytes = r->n_shares * sizeof(struct vmfs_share_disk);
    return bytes ? (uint32_t)((bytes + sizeof(struct vmfs_hdr_disk) + VMFS_UNIT - 1) / VMFS_UNIT) : 0;
}

void share_blob_encode(const struct vregion *r, void *units)
{
    struct vmfs_share_disk *d = (struct vmfs_share_disk *)((uint8_t *)units + sizeof(struct vmfs_hdr_disk));
    for (size_t i = 0; i < r->n_shares; i++)
        d[i] = (struct vmfs_share_disk){ gr_le32_of(r->shares[i].at), gr_le32_of(r->shares[i].units), gr_le32_of(r->shares[i].more) };
}

bool share_list_ok(const struct vmfs_share_disk *d, size_t n, uint32_t units)
{
    uint64_t last = 0;
    for (size_t i = 0; i < n; i++) {
        uint64_t at = gr_le32_get(d[i].at), len = gr_le32_get(d[i].units);
        if (at < last || !len || at + len > units || !gr_le32_get(d[i].more))
            return false;
        last = at + len;
    }
    return true;
}

static int list_load(struct vmfs *v, struct vregion *r, struct gr_err *err)
{
    uint8_t *b = vunits_alloc(r->shares_units);
    const struct vmfs_share_disk *d = (const struct vmfs_share_disk *)(b + sizeof(struct vmfs_hdr_disk));
    size_t n = r->shares_bytes / sizeof *d;
    int rc = b ? vdev_read(v, r->shares_addr, r->shares_units, b) : -ENOMEM;
    if (rc == 0)
        rc = vblock_check(v, b, VMFS_T_BLOB, r->shares_units, r->shares_addr, err);
    if (rc == 0 && !share_list_ok(d, n, r->units))
        rc = gr_fail(err, -GR_ECORRUPT, "region %u: rule 7: its list of shared units", r->index);
    if (rc == 0)
        rc = room(r, n);
    for (size_t i = 0; rc == 0 && i < n; i++)
        r->shares[r->n_shares++] = (struct vshare){ gr_le32_get(d[i].at), gr_le32_get(d[i].units), gr_le32_get(d[i].more) };
    free(b);
    return rc;
}

int share_load(struct vmfs *v, struct vregion *r, const struct vmfs_region_disk *h, struct gr_err *err)
{
    r->shares_addr = gr_le64_get(h->shares_addr);
    r->shares_bytes = gr_le32_get(h->shares_bytes);
    r->shares_units = gr_le32_get(h->shares_units);
    if (!r->shares_addr)
        return 0;
    if (!space_addr_ok(v, r->shares_addr, r->shares_units) || r->shares_units > VMFS_SHARES_UNITS_MAX || !r->shares_bytes ||
        r->shares_bytes % sizeof(struct vmfs_share_disk) ||
        r->shares_bytes > (uint64_t)r->shares_units * VMFS_UNIT - sizeof(struct vmfs_hdr_disk))
        return gr_fail(err, -GR_ECORRUPT, "region %u: rule 7: where its list of shared units lies", r->index);
    r->shares_addr = moved_addr(v, r->shares_addr, r->shares_units, NULL);
    return list_load(v, r, err);
}
