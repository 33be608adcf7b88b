/* INQUIRY and the vital product data pages (SPC-4 6.6, 7.8; SBC-3 6.6). */
#include "common/buf.h"
#include "common/cleanup.h"
#include "iscsi-target/scsi.h"
#include <gnutls/crypto.h>
#include <gnutls/gnutls.h>
#include <stdio.h>

#define PAGE_MAX 1024u

static const char vendor[] = "GRANARY ", product[] = "VIRTUAL-DISK    ";

/* Identity of the LU: the bdev's, or made of the target's name when it has none. */
static void identity(const struct tgt_lu *lu, uint8_t id[16])
{
    static const uint8_t none[16];
    uint8_t digest[32] = {0};
    memcpy(id, lu->geo.uuid, 16);
    if (memcmp(id, none, 16) != 0)
        return;
    if (gnutls_hash_fast(GNUTLS_DIG_SHA256, lu->target, strlen(lu->target), digest) == 0)
        memcpy(id, digest, 16);
}

static uint32_t standard(struct tgt_task *t, uint8_t *p)
{
    static const uint16_t versions[] = {0x00a0 /* SAM-5 */, 0x0960 /* iSCSI */, 0x0460 /* SPC-4 */, 0x04c0 /* SBC-3 */};
    p[0] = t->lun_ok ? 0 : 0x7f;
    p[1] = t->lun_ok && t->lu->geo.removable ? 0x80 : 0; /* RMB */
    p[2] = 6;           /* SPC-4 */
    p[3] = 0x12;        /* HISUP, response data format 2 */
    p[4] = 96 - 5;
    p[5] = 0x18;        /* TPGS: implicit access states; 3PC: EXTENDED COPY */
    p[7] = 0x02;        /* CMDQUE */
    memcpy(p + 8, vendor, 8);
    memcpy(p + 16, product, 16);
    memcpy(p + 32, "1   ", 4);
    for (unsigned i = 0; i < GR_ARRAY_LEN(versions); i++)
        gr_put_be16(p + 58 + 2 * i, versions[i]);
    return 96;
}

static uint32_t page_supported(const struct tgt_lu *lu, uint8_t *p)
{
    static const uint8_t pages[] = {0x00, 0x80, 0x83, 0x86, 0xb0, 0xb1, 0xb2};
    uint32_t n = sizeof pages - (tgt_lu_provisioned(lu) ? 0 : 1);
    memcpy(p + 4, pages, n);
    return n;
}

static void serial_text(const uint8_t id[16], uint8_t ret[32])
{
    static const char hex[] = "0123456789abcdef";
    for (int i = 0; i < 16; i++) {
        ret[2 * i] = (uint8_t)hex[id[i] >> 4];
        ret[2 * i + 1] = (uint8_t)hex[id[i] & 15];
    }
}

static uint32_t page_serial(const struct tgt_lu *lu, uint8_t *p)
{
    uint8_t id[16];
    identity(lu, id);
    serial_text(id, p + 4);
    return 32;
}

static uint32_t designator(uint8_t *p, uint8_t code_set, uint8_t type, const void *data, uint32_t len)
{
    p[0] = (uint8_t)(0x50 | code_set); /* protocol identifier 5: iSCSI (meaningful for port designators) */
    p[1] = type;
    p[3] = (uint8_t)len;
    memcpy(p + 4, data, len);
    return 4 + len;
}

void tgt_lu_naa(const struct tgt_lu *lu, uint8_t naa[16])
{
    identity(lu, naa);
    naa[0] = (uint8_t)(0x60 | (naa[0] & 0x0f)); /* NAA 6: registered extended; unique by the uuid in it */
}

static uint32_t page_identification(const struct tgt_lu *lu, uint8_t *p)
{
    uint8_t id[16], naa[16], text[8 + 32], port[4] = {0};
    uint8_t *d = p + 4;
    identity(lu, id);
    tgt_lu_naa(lu, naa);
    gr_put_be16(port + 2, lu->group);
    d += designator(d, 1, 0x03, naa, 16);
    memcpy(text, vendor, 8);
    serial_text(id, text + 8);
    d += designator(d, 2, 0x01, text, sizeof text);
    d += designator(d, 1, 0x94, port, 4); /* relative target port: one in each group */
    d += designator(d, 1, 0x95, port, 4); /* target port group: this host */
    char name[TGT_NAME_MAX + 16] = {0};
    uint32_t len = (uint32_t)snprintf(name, sizeof name, "%s,t,0x%04x", lu->target, lu->group) + 1;
    len += tgt_pad4(len);
    d += designator(d, 3, 0x98, name, GR_MIN(len, 252u)); /* SCSI name string of the target port */
    return (uint32_t)(d - p - 4);
}

static uint32_t page_extended(uint8_t *p)
{
    p[5] = 0x01; /* SIMPSUP */
    p[6] = 0x01; /* V_SUP: there is a volatile cache */
    return 60;
}

static uint32_t page_limits(const struct tgt_lu *lu, uint8_t *p)
{
    const struct gr_geometry *g = &lu->geo;
    uint32_t max = TGT_BUF_MAX >> lu->shift, granule = g->unmap_granule >> lu->shift, atomic = GR_MIN(g->atomic_bytes, TGT_BUF_MAX) >> lu->shift;
    p[5] = TGT_CAW_MAX;
    gr_put_be16(p + 6, (uint16_t)GR_MIN(GR_MAX(GR_MAX(g->optimal_io, g->physical_block) >> lu->shift, 1u), 0xffffu));
    gr_put_be32(p + 8, max);
    gr_put_be32(p + 12, GR_MIN(TGT_OPTIMAL_TRANSFER >> lu->shift, max));
    gr_put_be32(p + 16, max);
    if (granule) {
        gr_put_be32(p + 20, 0xffffffffu);
        gr_put_be32(p + 24, 256);
        gr_put_be32(p + 28, granule);
        gr_put_be32(p + 32, 0x80000000u); /* UGAVALID, alignment 0 */
    }
    gr_put_be64(p + 36, TGT_WRITE_SAME_MAX);
    if (atomic) {
        gr_put_be32(p + 44, atomic);
        gr_put_be32(p + 48, tgt_lu_atomic_unit(lu));
        gr_put_be32(p + 52, tgt_lu_atomic_unit(lu));
        gr_put_be32(p + 56, atomic);
    }
    return 60;
}

static uint32_t page_characteristics(const struct tgt_lu *lu, uint8_t *p)
{
    gr_put_be16(p + 4, lu->geo.rotational ? 7200 : 1);
    p[7] = 0x50 | 0x03; /* WABEREQ, WACEREQ: reads after an erase give zeros; the form factor (2.5 inch or less) is what initiators
                           expect of a virtual disk */
    return 60;
}

static uint32_t page_provisioning(const struct tgt_lu *lu, uint8_t *p)
{
    p[5] = (lu->geo.unmap_granule ? 0xe0 : 0) | 0x04; /* LBPU, LBPWS, LBPWS10; LBPRZ */
    p[6] = lu->geo.thin ? 2 : 1;
    return 4;
}

void tgt_run_inquiry(struct tgt_task *t)
{
    struct tgt_lu *lu = t->lu;
    uint32_t alloc = gr_get_be16(t->cdb + 3), len;
    bool evpd = t->cdb[1] & 1;
    uint8_t page = t->cdb[2];
    if ((t->cdb[1] & 0xfe) || (!evpd && page)) {
        tgt_check_field(t, TGT_SENSE_INVALID_CDB, true, evpd ? 1 : 2);
        return;
    }
    uint8_t *p = tgt_in_buf(t, PAGE_MAX);
    if (!p)
        return;
    if (!evpd) {
        tgt_in_data(t, standard(t, p), alloc);
        return;
    }
    switch (page) {
    case 0x00:
        len = page_supported(lu, p);
        break;
    case 0x80:
        len = page_serial(lu, p);
        break;
    case 0x83:
        len = page_identification(lu, p);
        break;
    case 0x86:
        len = page_extended(p);
        break;
    case 0xb0:
        len = page_limits(lu, p);
        break;
    case 0xb1:
        len = page_characteristics(lu, p);
        break;
    case 0xb2:
        len = tgt_lu_provisioned(lu) ? page_provisioning(lu, p) : 0;
        break;
    default:
        len = 0;
        break;
    }
    if (!len) {
        tgt_check_field(t, TGT_SENSE_INVALID_CDB, true, 2);
        return;
    }
    p[0] = t->lun_ok ? 0 : 0x7f;
    p[1] = page;
    gr_put_be16(p + 2, (uint16_t)len);
    tgt_in_data(t, len + 4, alloc);
}
