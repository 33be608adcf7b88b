/* What is kept of persistent reservations when the process that serves the disk is another: all of them, unless the machine that served it
 * last was started anew, and then those with APTPL. */
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

#define CASE(f) cmocka_unit_test_setup_teardown(f, begin, end)
TGTFIX_MAIN(NULL, NULL, CASE(without_aptpl), CASE(with_aptpl))
