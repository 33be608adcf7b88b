/* What a disk's store says of a sanitize operation decides about all of its bytes: what this release does not know is not carried out. */
#include "iscsi-target/sanitize.h"
#include "tests/lib/inisess.h"
#include <string.h>

static struct tgtfix fix = {.store = true};

static int keep(struct tgtfix *f, void *arg)
{
    const struct gr_bdev *b = tgt_lu_find(f->server, "t/disk")->bdev;
    struct gr_err err;
    return b->ops->attr_set(tgt_lu_find(f->server, "t/disk")->bdev, "sanitize", arg, sizeof(struct tgt_sanitize_record), &err);
}

static void unknown_action(void **state)
{
    static const uint8_t actions[] = {0, TGT_SANITIZE_EXIT_FAILURE, 200};
    const uint8_t write10[10] = {0x2a, [8] = 1};
    uint8_t block[512];
    struct ini i;
    struct ini_result res;
    memset(block, 'k', sizeof block);
    for (size_t k = 0; k < sizeof actions; k++) {
        struct tgt_sanitize_record rec = {.version = 1, .action = actions[k], .count = 1};
        tgtfix_login(&fix, &i, INISESS_NAME ":a");
        assert_int_equal(ini_cmd(&i, write10, 10, block, sizeof block, NULL, 0, &res), 0);
        assert_int_equal(res.status, 0);
        assert_int_equal(tgtfix_call(&fix, keep, &rec), 0);
        ini_close(&i);
        tgtfix_wait_sessions(&fix, 0);
        assert_int_equal(ini_connect(&i, "127.0.0.1", fix.port), 0);
        assert_int_equal(ini_login(&i, INISESS_NAME ":a", TGTFIX_TARGET, NULL, 0), 0);
        assert_int_not_equal(i.login_status, 0);
        ini_close(&i);
        const uint8_t *page = gr_mem_page(fix.mem, 0, true);
        assert_int_equal(page[0], 'k');
        tgtfix_stop(&fix); /* what it keeps is thrown away */
        tgtfix_start(&fix);
    }
}

TGTFIX_MAIN(NULL, NULL, TGTFIX_CASE(unknown_action))
