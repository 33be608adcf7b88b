/* The free-space index of a region beside a plain array of the same units. */
#include "tests/lib/test.h"
#include "vmfs/busy.h"
#include "vmfs/format.h"
#include <string.h>

#define UNITS 4096u

struct model {
    bool taken[UNITS];
};

static uint32_t longest_run(const struct model *m)
{
    uint32_t best = 0, len = 0;
    for (uint32_t i = 0; i < UNITS; i++) {
        len = m->taken[i] ? 0 : len + 1;
        best = len > best ? len : best;
    }
    return best;
}

static uint32_t whole_blocks(const struct model *m)
{
    uint32_t n = 0;
    for (uint32_t k = 0; k < UNITS; k += VMFS_BLOCK_PIECES) {
        bool any = false;
        for (uint32_t i = 0; i < VMFS_BLOCK_PIECES; i++)
            any = any || m->taken[k + i];
        n += !any;
    }
    return n;
}

static void set(struct vbusy *b, struct model *m, uint32_t first, uint32_t n, bool taken)
{
    uint32_t expected = 0;
    for (uint32_t i = first; i < first + n; i++) {
        expected += m->taken[i] != taken;
        m->taken[i] = taken;
    }
    assert_int_equal(busy_set(b, first, n, taken), expected);
}

static void take_run(struct vbusy *b, struct model *m, uint32_t want)
{
    uint32_t at = 0, longest = longest_run(m);
    assert_true(b->run_bound >= longest);
    if (!busy_find_run(b, want, &at)) {
        assert_true(longest < want);
        assert_true(b->run_bound < want);
        return;
    }
    assert_true(longest >= want);
    for (uint32_t i = at; i < at + want; i++)
        assert_false(m->taken[i]);
    set(b, m, at, want, true);
}

static void against_a_model(void **state)
{
    uint64_t rnd = test_seed();
    for (unsigned round = 0; round < 20; round++) {
        struct vbusy b;
        struct model m = {0};
        uint32_t at, most = 1u + (uint32_t)(test_rand(&rnd) % (round % 2 ? 4 : 700)); /* splinters, and long runs */
        assert_int_equal(busy_init(&b, UNITS), 0);
        for (unsigned step = 0; step < 4000; step++) {
            uint32_t first = (uint32_t)(test_rand(&rnd) % UNITS), n = 1u + (uint32_t)(test_rand(&rnd) % most);
            n = n > UNITS - first ? UNITS - first : n;
            switch (test_rand(&rnd) % 4) {
            case 0:
                set(&b, &m, first, n, true);
                break;
            case 1:
                set(&b, &m, first, n, false);
                break;
            case 2:
                take_run(&b, &m, n);
                break;
            default:
                if (busy_take_block(&b, &at)) {
                    for (uint32_t i = 0; i < VMFS_BLOCK_PIECES; i++) {
                        assert_false(m.taken[at + i]);
                        m.taken[at + i] = true;
                    }
                } else {
                    assert_int_equal(whole_blocks(&m), 0);
                }
            }
            if (step % 64 == 0) {
                uint32_t free = 0;
                for (uint32_t i = 0; i < UNITS; i++) {
                    free += !m.taken[i];
                    assert_int_equal(bits_get(b.units, i), m.taken[i]);
                }
                assert_int_equal(b.free, free);
                assert_int_equal(b.free_blocks, whole_blocks(&m));
                struct vbusy copy;
                assert_int_equal(busy_init(&copy, UNITS), 0);
                busy_load(&copy, b.units);
                assert_int_equal(copy.free, free);
                assert_int_equal(copy.free_blocks, b.free_blocks);
                assert_memory_equal(copy.units, b.units, UNITS / 8);
                busy_done(&copy);
            }
        }
        busy_done(&b);
    }
}

/* What a splintered region answers without a search: the second question costs nothing. */
static void splinters(void **state)
{
    struct vbusy b;
    uint32_t at;
    assert_int_equal(busy_init(&b, UNITS), 0);
    for (uint32_t i = 0; i < UNITS; i += 2)
        busy_set(&b, i, 1, true);
    assert_int_equal(b.free_blocks, 0);
    assert_false(busy_take_block(&b, &at));
    assert_false(busy_find_run(&b, 2, &at));
    assert_int_equal(b.run_bound, 1);
    assert_true(busy_find_run(&b, 1, &at));
    busy_set(&b, 100, 1, false); /* 99, 100, 101 */
    assert_int_equal(b.run_bound, 3);
    assert_true(busy_find_run(&b, 3, &at));
    assert_int_equal(at, 99);
    busy_done(&b);
}

TEST_MAIN(TEST(against_a_model), TEST(splinters))
