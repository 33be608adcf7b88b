/* MODE SENSE and MODE SELECT: caching (08h) and control (0Ah) pages; SWP and D_SENSE can be set. */
#include "common/cleanup.h"
#include "iscsi-target/scsi.h"

enum { PAGE_RW_RECOVERY = 0x01, PAGE_CACHING = 0x08, PAGE_CONTROL = 0x0a, PAGE_EXCEPTIONS = 0x1c, PAGE_ALL = 0x3f };

/* One page; @changeable: the mask of what MODE SELECT may change. Its length. */
static uint32_t put_page(const struct tgt_lu *lu, uint8_t page, bool changeable, uint8_t *p)
{
    uint32_t len = page == PAGE_CACHING ? 20 : 12;
    p[0] = page;
    p[1] = (uint8_t)(len - 2);
    if (page == PAGE_CACHING && !changeable)
        p[2] = 0x04; /* WCE: writes are durable after SYNCHRONIZE CACHE or with FUA */
    if (page == PAGE_CONTROL) {
        p[2] = changeable ? 0x04 : lu->d_sense ? 0x04 : 0;
        p[3] = changeable ? 0 : 0x10; /* unrestricted reordering */
        p[4] = changeable ? 0x08 : lu->swp ? 0x08 : 0;
    }
    return len;
}

static uint32_t put_pages(const struct tgt_lu *lu, uint8_t page, bool changeable, uint8_t *p)
{
    static const uint8_t all[] = {PAGE_RW_RECOVERY, PAGE_CACHING, PAGE_CONTROL, PAGE_EXCEPTIONS};
    uint32_t len = 0;
    for (unsigned i = 0; i < GR_ARRAY_LEN(all); i++)
        if (page == PAGE_ALL || page == all[i])
            len += put_page(lu, all[i], changeable, p + len);
    return len;
}

static uint32_t put_descriptor(const struct tgt_lu *lu, bool longlba, uint8_t *p)
{
    uint64_t blocks = lu->geo.size >> lu->shift;
    if (longlba) {
        gr_put_be64(p, blocks);
        gr_put_be32(p + 12, lu->geo.logical_block);
        return 16;
    }
    gr_put_be32(p, (uint32_t)GR_MIN(blocks, (uint64_t)UINT32_MAX));
    gr_put_be24(p + 5, lu->geo.logical_block);
    return 8;
}

void tgt_run_mode_sense(struct tgt_task *t)
{
    struct tgt_lu *lu = t->lu;
    bool ten = t->cdb[0] == 0x5a, dbd = t->cdb[1] & 0x08, longlba = ten && (t->cdb[1] & 0x10);
    uint32_t alloc = ten ? gr_get_be16(t->cdb + 7) : t->cdb[4], head = ten ? 8 : 4;
    uint8_t pc = t->cdb[2] >> 6, page = t->cdb[2] & 0x3f, subpage = t->cdb[3];
    if (pc == 3) {
        tgt_check(t, TGT_SENSE_SAVE_UNSUPPORTED);
        return;
    }
    uint8_t *p = tgt_in_buf(t, 256);
    if (!p)
        return;
    uint32_t desc = dbd ? 0 : put_descriptor(lu, longlba, p + head);
    uint32_t pages = subpage && subpage != 0xff ? 0 : put_pages(lu, page, pc == 1, p + head + desc);
    if (!pages) {
        tgt_check_field(t, TGT_SENSE_INVALID_CDB, true, 2);
        return;
    }
    uint32_t len = head + desc + pages;
    uint8_t specific = (uint8_t)(0x10 | (lu->geo.read_only || lu->swp ? 0x80 : 0)); /* DPOFUA; WP */
    if (ten) {
        gr_put_be16(p, (uint16_t)(len - 2));
        p[3] = specific;
        p[4] = longlba;
        gr_put_be16(p + 6, (uint16_t)desc);
    } else {
        p[0] = (uint8_t)(len - 1);
        p[2] = specific;
        p[3] = (uint8_t)desc;
    }
    tgt_in_data(t, len, alloc);
}

/* Check one page of the list against what may change; its length, or 0: invalid. Applied only when @apply. */
static uint32_t select_page(struct tgt_lu *lu, const uint8_t *p, uint32_t left, bool apply)
{
    uint8_t now[32] = {0}, mask[32] = {0};
    if (left < 2 || (p[0] & 0x40))
        return 0;
    uint8_t page = p[0] & 0x3f;
    uint32_t len = put_pages(lu, page, false, now);
    put_pages(lu, page, true, mask);
    if (page == PAGE_ALL || !len || p[1] != now[1] || len > left)
        return 0;
    for (uint32_t i = 2; i < len; i++)
        if ((p[i] ^ now[i]) & ~mask[i])
            return 0;
    if (apply && page == PAGE_CONTROL) {
        lu->d_sense = p[2] & 0x04;
        lu->swp = p[4] & 0x08;
    }
    return len;
}

void tgt_run_mode_select(struct tgt_task *t)
{
    struct tgt_lu *lu = t->lu;
    bool ten = t->cdb[0] == 0x55, pf = t->cdb[1] & 0x10;
    uint32_t len = GR_MIN(t->out_need, t->out_got), head = ten ? 8 : 4;
    if (!pf || (t->cdb[1] & 1)) { /* page format only; saving is not supported */
        tgt_check_field(t, TGT_SENSE_INVALID_CDB, true, 1);
        return;
    }
    if (!t->out_total) {
        tgt_good(t);
        return;
    }
    if (len < head) {
        tgt_check(t, TGT_SENSE_PARAM_LENGTH);
        return;
    }
    uint32_t desc = ten ? gr_get_be16(t->buf + 6) : t->buf[3];
    if (desc > len - head) {
        tgt_check(t, TGT_SENSE_PARAM_LENGTH);
        return;
    }
    for (int apply = 0; apply < 2; apply++) {
        for (uint32_t pos = head + desc; pos < len;) {
            uint32_t n = select_page(lu, t->buf + pos, len - pos, apply);
            if (!n) {
                tgt_check(t, TGT_SENSE_INVALID_PARAM);
                return;
            }
            pos += n;
        }
    }
    tgt_lu_ua(lu, t->sess, TGT_UA_MODE_CHANGED);
    tgt_good(t);
}
