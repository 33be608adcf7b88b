#include "backup-proxy/fsread_journal.h"
#include "common/endian.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define MAGIC 0xc03b3998u
#define BLOCKS_MAX (1u << 20) /* of a journal: 4 GiB with 4 KiB blocks */
enum { DESCRIPTOR = 1, COMMIT = 2, SUPER_V1 = 3, SUPER_V2 = 4, REVOKE = 5 };
enum { F_REVOKE = 1, F_64BIT = 2, F_ASYNC = 4, F_CSUM_V2 = 8, F_CSUM_V3 = 16, F_FAST = 32 };
enum { TAG_ESCAPED = 1, TAG_SAME_UUID = 2, TAG_LAST = 8 };
enum pass { SCAN, REVOKES, REPLAY };

/* Open hash of 64-bit keys. */
struct entry {
    uint64_t key;   /* file system block + 1; 0: free */
    uint32_t value; /* REVOKES: sequence. overlay: journal block */
    bool escaped;
};
struct table {
    struct entry *e;
    size_t len, n; /* len is a power of two */
};
struct fsread_overlay {
    const struct fs_image *img;
    const struct fs_volume *vol;
    uint32_t bs;
    struct table blocks;
    uint64_t *where; /* volume offset of each journal block */
    uint32_t n_where;
};
struct journal {
    struct fsread_overlay *o;
    uint32_t first, maxlen, start, sequence, features;
    uint32_t end; /* sequence behind the last committed transaction */
    struct table revoked;
    uint8_t *block;
};

/* ---- table ---- */
static struct entry *slot(const struct table *t, uint64_t key)
{
    size_t at = (size_t)(key * 0x9e3779b97f4a7c15u >> 20) & (t->len - 1);
    while (t->e[at].key && t->e[at].key != key)
        at = (at + 1) & (t->len - 1);
    return &t->e[at];
}

static struct entry *find(const struct table *t, uint64_t block)
{
    struct entry *e = t->len ? slot(t, block + 1) : NULL;
    return e && e->key ? e : NULL;
}

static int put(struct table *t, uint64_t block, uint32_t value, bool escaped)
{
    if (t->n * 2 >= t->len) {
        struct table bigger = {.len = t->len ? t->len * 2 : 256, .n = t->n};
        bigger.e = calloc(bigger.len, sizeof *bigger.e);
        if (!bigger.e)
            return -ENOMEM;
        for (size_t i = 0; i < t->len; i++)
            if (t->e[i].key)
                *slot(&bigger, t->e[i].key) = t->e[i];
        free(t->e);
        *t = bigger;
    }
    struct entry *e = slot(t, block + 1);
    t->n += !e->key;
    *e = (struct entry){.key = block + 1, .value = value, .escaped = escaped};
    return 0;
}

/* ---- reading the ring ---- */
static int read_block(struct journal *j, uint32_t index, uint8_t *buf)
{
    const struct fsread_overlay *o = j->o;
    if (index >= o->n_where)
        return -EINVAL;
    return fs_parts_read(o->img, o->vol, o->where[index], buf, o->bs);
}

static uint32_t next_index(const struct journal *j, uint32_t index)
{
    return index + 1 >= j->maxlen ? j->first : index + 1;
}

static size_t tag_bytes(const struct journal *j)
{
    if (j->features & F_CSUM_V3)
        return 16;
    size_t n = 12 + (j->features & F_CSUM_V2 ? 2 : 0);
    return j->features & F_64BIT ? n : n - 4;
}

/* sequences wrap: a before b */
static bool before(uint32_t a, uint32_t b)
{
    return (int32_t)(a - b) < 0;
}

static int take_tag(struct journal *j, const uint8_t *tag, uint32_t flags, uint32_t index, uint32_t seq)
{
    uint64_t block = gr_get_be32(tag);
    if (j->features & F_64BIT)
        block |= (uint64_t)gr_get_be32(tag + 8) << 32;
    const struct entry *r = find(&j->revoked, block);
    if (r && !before(r->value, seq))
        return 0; /* freed later: its old content must not come back */
    if (block > UINT64_MAX / j->o->bs - 1)
        return 0;
    return put(&j->o->blocks, block, index, flags & TAG_ESCAPED);
}

/* Tags of a descriptor block; *index moves over the blocks they tell about. */
static int walk_descriptor(struct journal *j, enum pass pass, uint32_t seq, uint32_t *index, uint32_t *budget)
{
    size_t size = tag_bytes(j), at = 12, end = j->o->bs - (j->features & (F_CSUM_V2 | F_CSUM_V3) ? 4 : 0);
    while (end - at >= size && *budget) {
        const uint8_t *tag = j->block + at;
        uint32_t flags = j->features & F_CSUM_V3 ? gr_get_be32(tag + 4) : gr_get_be16(tag + 6);
        int rc = pass == REPLAY ? take_tag(j, tag, flags, *index, seq) : 0;
        if (rc < 0)
            return rc;
        *index = next_index(j, *index);
        --*budget;
        at += size;
        if (!(flags & TAG_SAME_UUID))
            at += 16;
        if ((flags & TAG_LAST) || at > end)
            break;
    }
    return 0;
}

static int walk_revokes(struct journal *j, uint32_t seq)
{
    size_t size = j->features & F_64BIT ? 8 : 4, end = gr_get_be32(j->block + 12);
    if (end > j->o->bs)
        return 0;
    for (size_t at = 16; end >= size && at <= end - size; at += size) {
        uint64_t block = size == 8 ? gr_get_be64(j->block + at) : gr_get_be32(j->block + at);
        const struct entry *old = find(&j->revoked, block);
        if (old && before(seq, old->value))
            continue;
        int rc = put(&j->revoked, block, seq, false);
        if (rc < 0)
            return rc;
    }
    return 0;
}

/* Walk the ring once from its start. SCAN finds where it ends, the others go up to there. */
static int walk(struct journal *j, enum pass pass)
{
    uint32_t index = j->start, seq = j->sequence, budget = j->maxlen;
    int rc = 0;
    while (rc == 0 && budget && (pass == SCAN || before(seq, j->end))) {
        rc = read_block(j, index, j->block);
        if (rc < 0 || gr_get_be32(j->block) != MAGIC || gr_get_be32(j->block + 8) != seq)
            break;
        index = next_index(j, index);
        budget--;
        switch (gr_get_be32(j->block + 4)) {
        case DESCRIPTOR: rc = walk_descriptor(j, pass, seq, &index, &budget); break;
        case REVOKE: rc = pass == REVOKES ? walk_revokes(j, seq) : 0; break;
        case COMMIT:
            seq++;
            if (pass == SCAN)
                j->end = seq;
            break;
        default: return 0;
        }
    }
    return rc;
}

static int read_super(struct journal *j)
{
    int rc = read_block(j, 0, j->block);
    if (rc < 0)
        return rc;
    uint32_t type = gr_get_be32(j->block + 4);
    j->maxlen = gr_get_be32(j->block + 16);
    j->first = gr_get_be32(j->block + 20);
    j->sequence = j->end = gr_get_be32(j->block + 24);
    j->start = gr_get_be32(j->block + 28);
    j->features = type == SUPER_V2 ? gr_get_be32(j->block + 40) : 0;
    if (gr_get_be32(j->block) != MAGIC || (type != SUPER_V1 && type != SUPER_V2) || gr_get_be32(j->block + 12) != j->o->bs ||
        j->maxlen < 2 || j->maxlen > j->o->n_where || j->first < 1 || j->first >= j->maxlen || j->start >= j->maxlen)
        return -EINVAL;
    return j->features & ~(uint32_t)(F_REVOKE | F_64BIT | F_ASYNC | F_CSUM_V2 | F_CSUM_V3 | F_FAST) ? -EINVAL : 0;
}

static int place_blocks(struct fsread_overlay *o, const struct fs_run *runs, unsigned n_runs)
{
    uint64_t total = 0;
    for (unsigned i = 0; i < n_runs; i++) {
        if (runs[i].file_off != total || runs[i].len % o->bs || runs[i].len / o->bs > BLOCKS_MAX - total / o->bs)
            return -EINVAL; /* a journal has no holes */
        total += runs[i].len;
    }
    o->where = calloc((size_t)(total / o->bs) + 1, sizeof *o->where);
    if (!o->where)
        return -ENOMEM;
    for (unsigned i = 0; i < n_runs; i++)
        for (uint64_t at = 0; at < runs[i].len; at += o->bs)
            o->where[o->n_where++] = runs[i].volume_off + at;
    return 0;
}

int fsread_journal_load(const struct fs_image *img, const struct fs_volume *vol, uint32_t block_size, const struct fs_run *runs,
                        unsigned n_runs, struct fsread_overlay **ret)
{
    struct fsread_overlay *o = calloc(1, sizeof *o);
    struct journal j = {.o = o, .block = malloc(block_size)};
    int rc = o && j.block ? 0 : -ENOMEM;
    *ret = NULL;
    if (rc == 0) {
        *o = (struct fsread_overlay){.img = img, .vol = vol, .bs = block_size};
        rc = place_blocks(o, runs, n_runs);
    }
    if (rc == 0)
        rc = read_super(&j);
    if (rc == 0 && j.start)
        rc = walk(&j, SCAN);
    if (rc == 0 && j.start)
        rc = walk(&j, REVOKES);
    if (rc == 0 && j.start)
        rc = walk(&j, REPLAY);
    free(j.block);
    free(j.revoked.e);
    if (rc < 0 || o->blocks.n == 0) {
        fsread_overlay_free(o);
        return rc;
    }
    *ret = o;
    return (int)o->blocks.n;
}

void fsread_overlay_free(struct fsread_overlay *o)
{
    if (!o)
        return;
    free(o->blocks.e);
    free(o->where);
    free(o);
}

/* ---- using it ---- */
static int patch(const struct fsread_overlay *o, const struct entry *e, uint8_t *buf, size_t len, uint64_t in_block)
{
    uint8_t magic[4];
    uint64_t at = o->where[e->value]; /* walk() took blocks of the ring only */
    int rc = fs_parts_read(o->img, o->vol, at + in_block, buf, len);
    gr_put_be32(magic, MAGIC);
    for (size_t i = 0; rc == 0 && e->escaped && in_block + i < 4 && i < len; i++)
        buf[i] = magic[in_block + i];
    return rc;
}

int fsread_overlay_apply(const struct fsread_overlay *o, uint8_t *buf, size_t len, uint64_t off)
{
    for (size_t at = 0; at < len;) {
        uint64_t pos = off + at, in = pos % o->bs;
        size_t n = len - at < o->bs - in ? len - at : (size_t)(o->bs - in);
        const struct entry *e = find(&o->blocks, pos / o->bs);
        int rc = e ? patch(o, e, buf + at, n, in) : 0;
        if (rc < 0)
            return rc;
        at += n;
    }
    return 0;
}

bool fsread_overlay_touches(const struct fsread_overlay *o, uint64_t off, uint64_t len)
{
    if (len == 0)
        return false;
    uint64_t first = off / o->bs, last = (off + len - 1) / o->bs;
    if (last - first < o->blocks.n) {
        for (uint64_t b = first; b <= last; b++)
            if (find(&o->blocks, b))
                return true;
        return false;
    }
    for (size_t i = 0; i < o->blocks.len; i++)
        if (o->blocks.e[i].key && o->blocks.e[i].key - 1 >= first && o->blocks.e[i].key - 1 <= last)
            return true;
    return false;
}
