#include "iscsi-target/isns.h"
#include "common/endian.h"
#include <string.h>

#define VERSION 1u
enum { FLAG_CLIENT = 0x8000, FLAG_REPLACE = 0x1000, FLAG_LAST = 0x0800, FLAG_FIRST = 0x0400 };

void tgt_isns_begin(struct tgt_isns_msg *m, uint16_t function, int replace, uint16_t transaction)
{
    gr_put_be16(m->bytes, VERSION);
    gr_put_be16(m->bytes + 2, function);
    gr_put_be16(m->bytes + 6, (uint16_t)(FLAG_CLIENT | FLAG_LAST | FLAG_FIRST | (replace ? FLAG_REPLACE : 0)));
    gr_put_be16(m->bytes + 8, transaction);
    gr_put_be16(m->bytes + 10, 0);
    m->len = ISNS_HEADER;
    m->full = 0;
}

void tgt_isns_bytes(struct tgt_isns_msg *m, uint32_t tag, const void *data, size_t len)
{
    size_t padded = (len + 3) & ~(size_t)3;
    if (padded > sizeof m->bytes - m->len || sizeof m->bytes - m->len - padded < 8) {
        m->full = 1;
        return;
    }
    uint8_t *p = m->bytes + m->len;
    gr_put_be32(p, tag);
    gr_put_be32(p + 4, (uint32_t)padded);
    memset(p + 8, 0, padded);
    if (len)
        memcpy(p + 8, data, len);
    m->len += 8 + padded;
}

void tgt_isns_number(struct tgt_isns_msg *m, uint32_t tag, uint32_t value)
{
    uint8_t b[4];
    gr_put_be32(b, value);
    tgt_isns_bytes(m, tag, b, sizeof b);
}

void tgt_isns_text(struct tgt_isns_msg *m, uint32_t tag, const char *text)
{
    tgt_isns_bytes(m, tag, text, strlen(text) + 1);
}

void tgt_isns_end(struct tgt_isns_msg *m)
{
    gr_put_be16(m->bytes + 4, (uint16_t)(m->len - ISNS_HEADER));
}

int tgt_isns_payload(const uint8_t p[ISNS_HEADER])
{
    uint16_t len = gr_get_be16(p + 4);
    return gr_get_be16(p) == VERSION && len <= ISNS_PAYLOAD_MAX ? len : -GR_EPROTO;
}

int tgt_isns_status(const uint8_t *p, size_t len, uint16_t function, uint16_t transaction)
{
    if (len < ISNS_HEADER + 4 || gr_get_be16(p + 2) != (ISNS_RESPONSE | function) || gr_get_be16(p + 8) != transaction)
        return -GR_EPROTO;
    return (int)(gr_get_be32(p + ISNS_HEADER) & 0x7fffffff);
}
