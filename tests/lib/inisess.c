#include "tests/lib/inisess.h"
#include "common/cleanup.h"
#include "tests/lib/test.h"
#include <string.h>

int inisess_open(const struct tgtfix *f, struct ini *i, const struct ini *first, uint16_t cid, const char *target, const char *keys, size_t len)
{
    assert_int_equal(ini_connect(i, "127.0.0.1", f->port), 0);
    i->cid = cid;
    i->cmdsn = 1;
    if (first) {
        i->tsih = first->tsih;
        i->cmdsn = first->cmdsn;
        i->max_burst = first->max_burst;
        i->immediate_data = first->immediate_data;
        i->initial_r2t = first->initial_r2t;
    }
    assert_int_equal(ini_login(i, INISESS_NAME, target, keys, len), 0);
    i->timeout_ms = 3000;
    return i->login_status;
}

void inisess_lead(const struct tgtfix *f, struct ini *i, const char *target, const char *keys, size_t len)
{
    assert_int_equal(inisess_open(f, i, NULL, 0, target, keys, len), 0);
    assert_int_not_equal(i->tsih, 0);
    inix_ready(i);
}
void inisess_check_disk(const struct tgtfix *f, uint32_t lba, const uint8_t *want, uint32_t blocks)
{
    static uint8_t in[1u << 20];
    struct ini i;
    struct ini_result r;
    uint8_t cdb[10];
    assert_int_equal(ini_connect(&i, "127.0.0.1", f->port), 0);
    i.isid[5] = 77;
    assert_int_equal(ini_login(&i, INISESS_NAME ":checker", TGTFIX_TARGET, NULL, 0), 0);
    inix_ready(&i);
    inix_rw_cdb(cdb, false, lba, blocks);
    assert_int_equal(ini_cmd(&i, cdb, 10, NULL, 0, in, blocks * INIX_BLOCK, &r), 0);
    assert_int_equal(r.status, 0);
    assert_memory_equal(in, want, blocks * INIX_BLOCK);
    ini_logout(&i);
    ini_close(&i);
}
