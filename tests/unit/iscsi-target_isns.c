/* iSNS messages: the bytes of RFC 4171, and answers that are too short, of others, or refuse. */
#include "common/cleanup.h"
#include "common/endian.h"
#include "common/err.h"
#include "iscsi-target/isns.h"
#include "tests/lib/test.h"
#include <stdlib.h>
#include <string.h>

static void layout(void **state)
{
    gr_auto_free struct tgt_isns_msg *m = calloc(1, sizeof *m);
    static const uint8_t want[] = {0, 1, 0, 1, 0, 44, 0x9c, 0, 0, 7, 0, 0,                        /* header */
                                   0, 0, 0, 32, 0, 0, 0, 8, 'i', 'q', 'n', '.', 'a', 0, 0, 0,     /* name, NUL, padded */
                                   0, 0, 0, 0, 0, 0, 0, 0,                                        /* delimiter */
                                   0, 0, 0, 33, 0, 0, 0, 4, 0, 0, 0, 1,                           /* a target */
                                   0, 0, 0, 1, 0, 0, 0, 0};                                       /* an empty value */
    tgt_isns_begin(m, ISNS_DEV_ATTR_REG, 1, 7);
    tgt_isns_text(m, ISNS_NAME, "iqn.a");
    tgt_isns_bytes(m, ISNS_DELIMITER, NULL, 0);
    tgt_isns_number(m, ISNS_NODE_TYPE, 1);
    tgt_isns_bytes(m, ISNS_ENTITY, NULL, 0);
    tgt_isns_end(m);
    assert_int_equal(m->len, sizeof want);
    assert_memory_equal(m->bytes, want, sizeof want);
}

static void full(void **state)
{
    gr_auto_free struct tgt_isns_msg *m = calloc(1, sizeof *m);
    tgt_isns_begin(m, ISNS_DEV_ATTR_REG, 0, 1);
    while (!m->full)
        tgt_isns_text(m, ISNS_NAME, "iqn.2026-11.local.granary:a:disk:of:some:length");
    assert_true(m->len <= ISNS_HEADER + ISNS_PAYLOAD_MAX);
    tgt_isns_end(m);
    assert_int_equal(tgt_isns_payload(m->bytes), m->len - ISNS_HEADER);
}

static void answers(void **state)
{
    uint8_t p[ISNS_HEADER + 4] = {0, 1, 0x80, 1, 0, 4, 0x4c, 0, 0, 7, 0, 0, 0, 0, 0, 0};
    assert_int_equal(tgt_isns_payload(p), 4);
    assert_int_equal(tgt_isns_status(p, sizeof p, ISNS_DEV_ATTR_REG, 7), 0);
    assert_int_equal(tgt_isns_status(p, sizeof p, ISNS_DEV_ATTR_REG, 8), -GR_EPROTO);
    assert_int_equal(tgt_isns_status(p, sizeof p, ISNS_DEV_DEREG, 7), -GR_EPROTO);
    for (size_t n = 0; n < sizeof p; n++)
        assert_int_equal(tgt_isns_status(p, n, ISNS_DEV_ATTR_REG, 7), -GR_EPROTO);
    p[15] = 3;
    assert_int_equal(tgt_isns_status(p, sizeof p, ISNS_DEV_ATTR_REG, 7), 3);
    memset(p + 12, 0xff, 4);
    assert_true(tgt_isns_status(p, sizeof p, ISNS_DEV_ATTR_REG, 7) > 0);
    p[0] = 9;
    assert_int_equal(tgt_isns_payload(p), -GR_EPROTO);
    p[0] = 0;
    gr_put_be16(p + 4, 0xffff);
    assert_int_equal(tgt_isns_payload(p), -GR_EPROTO);
}

TEST_MAIN(TEST(layout), TEST(full), TEST(answers))
