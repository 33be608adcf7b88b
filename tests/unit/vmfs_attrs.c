/* Attributes of an object in memory: found by key however many there are and in whatever order they were put, replaced, removed or read. */
#include "common/cleanup.h"
#include "tests/lib/test.h"
#include "vmfs/internal.h"
#include "vmfs/notes.h"
#include <stdio.h>
#include <stdlib.h>

#define KEYS 3000u /* of a thousand snapshots, three kinds */

static void key_of(unsigned i, char ret[33])
{
    static const char *const kind[] = { "protected", "protect", "expires" }; /* one begins as another does */
    vobj_note_key(kind[i % 3], i / 3 * 37, ret);
}

static void put(struct vobj *o, unsigned *model, unsigned i, unsigned val)
{
    char key[40];
    key_of(i, key);
    size_t len = strlen(key);
    memcpy(key + len, "rest", 5); /* what lies behind the key is not part of it */
    assert_int_equal(vobj_attr_put(o, key, len, &val, val ? sizeof val : 0), 0);
    model[i] = val;
}

static void compare(const struct vobj *o, const unsigned *model)
{
    size_t n = 0;
    for (unsigned i = 0; i < KEYS; i++) {
        char key[33];
        key_of(i, key);
        const struct vattr *a = vobj_attr(o, key);
        assert_int_equal(a != NULL, model[i] != 0);
        if (a) {
            assert_string_equal(a->key, key);
            assert_int_equal(a->len, sizeof(unsigned));
            assert_memory_equal(a->val, &model[i], sizeof(unsigned));
        }
        n += a != NULL;
    }
    assert_int_equal(o->n_attrs, n);
    for (size_t i = 1; i < n; i++)
        assert_true(strcmp(o->attrs[i - 1].key, o->attrs[i].key) < 0);
}

static void any_order(void **state)
{
    uint64_t rng = test_seed();
    struct vobj o = { 0 };
    unsigned *model = calloc(KEYS, sizeof *model);
    (void)state;
    for (unsigned i = 0; i < 20000; i++) {
        put(&o, model, (unsigned)(test_rand(&rng) % KEYS), test_rand(&rng) % 3 ? i + 1 : 0);
        if (i % 2000 == 0)
            compare(&o, model);
    }
    compare(&o, model);
    for (size_t i = o.n_attrs; i > 1; i--) { /* as an older release may have written them */
        size_t k = test_rand(&rng) % i;
        struct vattr a = o.attrs[i - 1];
        o.attrs[i - 1] = o.attrs[k];
        o.attrs[k] = a;
    }
    vobj_attrs_sort(&o);
    compare(&o, model);
    for (unsigned i = 0; i < KEYS; i++)
        put(&o, model, i, 0);
    assert_int_equal(o.n_attrs, 0);
    assert_null(vobj_attr(&o, "expires-0"));
    free(o.attrs);
    free(model);
}

TEST_MAIN(TEST(any_order))
