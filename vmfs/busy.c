#include "vmfs/busy.h"
#include "common/cleanup.h"
#include "common/seam.h"
#include "vmfs/format.h"
#include <errno.h>
#include <stdlib.h>

#define WORD_BITS 64u
#define WORDS(bits) (((bits) + WORD_BITS - 1) / WORD_BITS)
#define LOOK 512u /* units to either side of what becomes free that are looked at for its run */

bool bits_get(const uint64_t *w, uint32_t i)
{
    return w[i / WORD_BITS] >> (i % WORD_BITS) & 1;
}

uint32_t bits_set(uint64_t *w, uint32_t first, uint32_t n, bool set)
{
    uint32_t changed = 0;
    while (n) {
        uint32_t at = first % WORD_BITS, k = GR_MIN(n, WORD_BITS - at);
        uint64_t mask = (k == WORD_BITS ? UINT64_MAX : (1ull << k) - 1) << at, *p = &w[first / WORD_BITS];
        uint64_t change = mask & (set ? ~*p : *p);
        *p ^= change;
        changed += (uint32_t)__builtin_popcountll(change);
        first += k;
        n -= k;
    }
    return changed;
}

/* The first set (@set) or clear bit in [@i, @end); @end: there is none. */
static uint32_t bits_next(const uint64_t *w, uint32_t i, uint32_t end, bool set)
{
    while (i < end) {
        uint64_t left = (set ? w[i / WORD_BITS] : ~w[i / WORD_BITS]) >> (i % WORD_BITS);
        if (left)
            return GR_MIN(i + (uint32_t)__builtin_ctzll(left), end);
        i += WORD_BITS - i % WORD_BITS;
    }
    return end;
}

int busy_init(struct vbusy *b, uint32_t n_units)
{
    uint32_t n_blocks = n_units / VMFS_BLOCK_PIECES;
    *b = (struct vbusy){ .n_units = n_units, .free = n_units, .free_blocks = n_blocks, .run_bound = n_units };
    b->units = gr_zalloc(WORDS(n_units) * sizeof *b->units);
    b->blocks = gr_zalloc(WORDS(n_blocks) * sizeof *b->blocks);
    if (!b->units || !b->blocks) {
        busy_done(b);
        return -ENOMEM;
    }
    bits_set(b->blocks, 0, n_blocks, true);
    return 0;
}

void busy_done(struct vbusy *b)
{
    free(b->units);
    free(b->blocks);
    *b = (struct vbusy){0};
}

/* Length of the free run around the free units [first, first + n), as far as it is looked at; longer than that: all units. */
static uint32_t run_around(const struct vbusy *b, uint32_t first, uint32_t n)
{
    uint32_t low = first > LOOK ? first - LOOK : 0, high = GR_MIN(b->n_units, first + n + LOOK);
    uint32_t end = bits_next(b->units, first + n, high, true), begin = first;
    while (begin > low && !bits_get(b->units, begin - 1))
        begin--;
    bool more = (begin == low && low) || (end == high && high < b->n_units);
    return more ? b->n_units : end - begin;
}

static bool block_free(const struct vbusy *b, uint32_t k)
{
    uint32_t first = k * VMFS_BLOCK_PIECES;
    return !(b->units[first / WORD_BITS] >> (first % WORD_BITS) & ((1u << VMFS_BLOCK_PIECES) - 1));
}

uint32_t busy_set(struct vbusy *b, uint32_t first, uint32_t n, bool taken)
{
    uint32_t changed = n ? bits_set(b->units, first, n, taken) : 0;
    if (!changed)
        return 0;
    b->free = taken ? b->free - changed : b->free + changed;
    for (uint32_t k = first / VMFS_BLOCK_PIECES; k <= (first + n - 1) / VMFS_BLOCK_PIECES; k++) {
        bool whole = block_free(b, k);
        uint32_t c = bits_set(b->blocks, k, 1, whole);
        b->free_blocks = whole ? b->free_blocks + c : b->free_blocks - c;
    }
    if (!taken && b->run_bound < b->n_units)
        b->run_bound = GR_MAX(b->run_bound, run_around(b, first, n));
    return changed;
}

void busy_load(struct vbusy *b, const uint64_t *taken)
{
    for (uint32_t i = bits_next(taken, 0, b->n_units, true); i < b->n_units;) {
        uint32_t end = bits_next(taken, i, b->n_units, false);
        busy_set(b, i, end - i, true);
        i = bits_next(taken, end, b->n_units, true);
    }
}

bool busy_take_block(struct vbusy *b, uint32_t *ret)
{
    uint32_t n = b->n_units / VMFS_BLOCK_PIECES;
    if (!b->free_blocks)
        return false;
    uint32_t k = bits_next(b->blocks, b->block_hint, n, true);
    if (k == n)
        k = bits_next(b->blocks, 0, n, true);
    busy_set(b, k * VMFS_BLOCK_PIECES, VMFS_BLOCK_PIECES, true);
    b->block_hint = k + 1 < n ? k + 1 : 0;
    *ret = k * VMFS_BLOCK_PIECES;
    return true;
}

/* The first run of @want that begins in [from, to); *longest grows to the longest seen. */
static bool find_between(const struct vbusy *b, uint32_t want, uint32_t from, uint32_t to, uint32_t *longest, uint32_t *ret)
{
    for (uint32_t i = bits_next(b->units, from, to, false); i < to;) {
        uint32_t end = bits_next(b->units, i, b->n_units, true);
        *longest = GR_MAX(*longest, end - i);
        if (end - i >= want) {
            *ret = i;
            return true;
        }
        i = bits_next(b->units, GR_MIN(end, to), to, false);
    }
    return false;
}

bool busy_find_run(struct vbusy *b, uint32_t want, uint32_t *ret)
{
    uint32_t longest = 0;
    if (b->run_bound < want)
        return false;
    if (find_between(b, want, b->run_hint, b->n_units, &longest, ret) || find_between(b, want, 0, b->run_hint, &longest, ret)) {
        b->run_hint = *ret;
        return true;
    }
    b->run_bound = longest;
    return false;
}
