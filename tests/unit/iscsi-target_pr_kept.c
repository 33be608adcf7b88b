/* What is kept of persistent reservations when the process that serves the disk is another: all of them, unless the machine that served it
 * last was started anew, and then those with APTPL. */
#include "common/cleanup.h"
#include "iscsi-target/pr.h"
#include "tests/lib/inisess.h"
#include <string.h>

static struct tgtfix fix;

static void reserve(bool aptpl)
{
    const uint8_t cdb[10] = {0x5f, PR_REGISTER_IGNORE, [8] = 24}, hold[10] = {0x5f, PR_RESERVE, PR_EA_RO, [8] = 24};
    uint8_t list[24] = {[20] = aptpl};
    struct ini i;
    struct ini_result res;
    tgtfix_login(&fix, &i, INISESS_NAME ":holder");
    gr_put_be64(list + 8, 0xa1);
    assert_int_equal(ini_cmd(&i, cdb, 10, list, 24, NULL, 0, &res), 0);
    assert_int_equal(res.status, 0);
    gr_put_be64(list, 0xa1);
    assert_int_equal(ini_cmd(&i, hold, 10, list, 24, NULL, 0, &res), 0);
    assert_int_equal(res.status, 0);
    ini_close(&i);
}

static bool is_reserved(void)
{
    const uint8_t cdb[10] = {0x28, [8] = 1};
    uint8_t in[512];
    struct ini i;
    struct ini_result res;
    tgtfix_login(&fix, &i, INISESS_NAME ":stranger");
    assert_int_equal(ini_cmd(&i, cdb, 10, NULL, 0, in, sizeof in, &res), 0);
    assert_true(res.status == 0 || res.status == 0x18);
    ini_close(&i);
    return res.status == 0x18;
}

static void next_owner(const char *host, const char *boot)
{
    fix.store = false; /* what it has is not thrown away */
    tgtfix_stop(&fix);
    fix = (struct tgtfix){.store = true, .host = host, .boot = boot};
    tgtfix_start(&fix);
}

static int begin(void **state)
{
    fix = (struct tgtfix){.store = true, .host = "a", .boot = "1"};
    tgtfix_start(&fix);
    return 0;
}

static int end(void **state)
{
    tgtfix_stop(&fix);
    return 0;
}

static void without_aptpl(void **state)
{
    reserve(false);
    assert_true(is_reserved());
    next_owner("a", "1"); /* killed, and there again */
    assert_true(is_reserved());
    next_owner("b", "1"); /* another host took it over */
    assert_true(is_reserved());
    next_owner("a", "2"); /* and gave it back, when the first machine had been started anew: the disk was not without power */
    assert_true(is_reserved());
    next_owner("a", "3"); /* but now it was */
    assert_false(is_reserved());
    next_owner("a", "2");
    assert_false(is_reserved());
}

static void with_aptpl(void **state)
{
    reserve(true);
    next_owner("a", "2");
    assert_true(is_reserved());
    next_owner("b", "1");
    assert_true(is_reserved());
}

static uint8_t out(struct ini *i, enum tgt_pr_action action, uint8_t type, uint64_t key, uint64_t new_key)
{
    const uint8_t cdb[10] = {0x5f, (uint8_t)action, type, [8] = 24};
    uint8_t list[24] = {[20] = 1};
    struct ini_result res;
    gr_put_be64(list, key);
    gr_put_be64(list + 8, new_key);
    assert_int_equal(ini_cmd(i, cdb, 10, list, 24, NULL, 0, &res), 0);
    return res.status;
}

/* What may read (1) and write (2). */
static unsigned may(const char *name)
{
    const uint8_t reads[10] = {0x28, [8] = 1}, writes[10] = {0x2a, [8] = 1};
    uint8_t block[512] = {0};
    struct ini i;
    struct ini_result r, w;
    tgtfix_login(&fix, &i, name);
    assert_int_equal(ini_cmd(&i, reads, 10, NULL, 0, block, sizeof block, &r), 0);
    assert_int_equal(ini_cmd(&i, writes, 10, block, sizeof block, NULL, 0, &w), 0);
    ini_close(&i);
    return (r.status == 0) | (w.status == 0) << 1;
}

/* Every type means after a restart what it meant before: to who holds it, who is registered, and who is not. */
static void of_all_types(void **state)
{
    static const struct {
        uint8_t type;
        unsigned registered, stranger;
    } types[] = {{PR_WE, 1, 1}, {PR_EA, 0, 0}, {PR_WE_RO, 3, 1}, {PR_EA_RO, 3, 0}, {PR_WE_AR, 3, 1}, {PR_EA_AR, 3, 0}};
    struct ini holder, other;
    for (size_t k = 0; k < GR_ARRAY_LEN(types); k++) {
        tgtfix_login(&fix, &other, INISESS_NAME ":registered");
        tgtfix_login(&fix, &holder, INISESS_NAME ":holder");
        assert_int_equal(out(&other, PR_REGISTER_IGNORE, 0, 0, 0xb1), 0); /* before the holder, in the list */
        assert_int_equal(out(&holder, PR_REGISTER_IGNORE, 0, 0, 0xa1), 0);
        assert_int_equal(out(&holder, PR_RESERVE, types[k].type, 0xa1, 0), 0);
        ini_close(&other);
        ini_close(&holder);
        for (int restarted = 0; restarted < 2; restarted++) {
            assert_int_equal(may(INISESS_NAME ":holder"), 3);
            assert_int_equal(may(INISESS_NAME ":registered"), types[k].registered);
            assert_int_equal(may(INISESS_NAME ":stranger"), types[k].stranger);
            next_owner("a", "1");
        }
        tgtfix_login(&fix, &holder, INISESS_NAME ":holder");
        assert_int_equal(out(&holder, PR_RELEASE, types[k].type, 0xa1, 0), 0); /* nobody else's */
        assert_int_equal(out(&holder, PR_CLEAR, 0, 0xa1, 0), 0);
        ini_close(&holder);
    }
}

#define CASE(f) cmocka_unit_test_setup_teardown(f, begin, end)
TGTFIX_MAIN(NULL, NULL, CASE(without_aptpl), CASE(with_aptpl), CASE(of_all_types))
