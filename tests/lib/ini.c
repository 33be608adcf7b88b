#include "tests/lib/ini.h"
#include "common/cleanup.h"
#include "common/crc.h"
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int ini_connect(struct ini *i, const char *host, const char *port)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *ai = NULL;
    int one = 1;
    memset(i, 0, sizeof *i);
    i->fd = -1;
    i->timeout_ms = 5000;
    i->max_send_dsl = 8192;
    i->max_burst = 262144;
    i->first_burst = 65536;
    i->immediate_data = i->initial_r2t = 1;
    memcpy(i->isid, "\x80\x12\x34\x56\x00\x01", 6);
    if (getaddrinfo(host, port, &hints, &ai))
        return -EINVAL;
    i->fd = socket(ai->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int r = i->fd < 0 || connect(i->fd, ai->ai_addr, ai->ai_addrlen) < 0 ? -errno : 0;
    freeaddrinfo(ai);
    if (!r)
        setsockopt(i->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return r;
}

void ini_close(struct ini *i)
{
    if (i->fd >= 0)
        close(i->fd);
    i->fd = -1;
}

int ini_send_raw(struct ini *i, const void *data, size_t len)
{
    const char *p = data;
    while (len) {
        ssize_t n = send(i->fd, p, len, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n ? -errno : -EPIPE;
        p += n;
        len -= (size_t)n;
    }
    return 0;
}

int ini_send(struct ini *i, uint8_t *bhs, const void *data, uint32_t len)
{
    static const uint8_t zeros[4];
    uint8_t head[TGT_BHS_LEN + 4], tail[8];
    size_t head_len = TGT_BHS_LEN, tail_len = tgt_pad4(len);
    int r;
    gr_put_be24(bhs + 5, len);
    memcpy(head, bhs, TGT_BHS_LEN);
    if (i->header_digest) {
        tgt_digest_put(head + TGT_BHS_LEN, gr_crc32c(0, head, TGT_BHS_LEN));
        head_len += 4;
    }
    memcpy(tail, zeros, 4);
    if (i->data_digest && len) {
        tgt_digest_put(tail + tail_len, gr_crc32c(gr_crc32c(0, data, len), zeros, tail_len));
        tail_len += 4;
    }
    if ((r = ini_send_raw(i, head, head_len)) < 0)
        return r;
    if (len && (r = ini_send_raw(i, data, len)) < 0)
        return r;
    return tail_len && len ? ini_send_raw(i, tail, tail_len) : 0;
}

static int recv_all(struct ini *i, void *buf, size_t len)
{
    char *p = buf;
    while (len) {
        struct pollfd pf = {i->fd, POLLIN, 0};
        int r = poll(&pf, 1, i->timeout_ms);
        if (r == 0)
            return -ETIMEDOUT;
        ssize_t n = recv(i->fd, p, len, 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return -EPIPE;
        p += n;
        len -= (size_t)n;
    }
    return 0;
}

int ini_recv(struct ini *i, uint8_t *bhs, void *data, size_t cap)
{
    uint8_t digest[4], pad[4], skip[4096];
    int r = recv_all(i, bhs, TGT_BHS_LEN);
    if (r < 0)
        return r;
    if (i->header_digest) {
        if ((r = recv_all(i, digest, 4)) < 0)
            return r;
        if (tgt_digest_get(digest) != gr_crc32c(0, bhs, TGT_BHS_LEN))
            return -EBADMSG;
    }
    uint32_t len = tgt_bhs_dsl(bhs);
    size_t take = len < cap ? len : cap;
    uint32_t crc = 0;
    if (take && (r = recv_all(i, data, take)) < 0)
        return r;
    if (take)
        crc = gr_crc32c(0, data, take);
    for (size_t left = len - take; left; left -= take) {
        take = left < sizeof skip ? left : sizeof skip;
        if ((r = recv_all(i, skip, take)) < 0)
            return r;
        crc = gr_crc32c(crc, skip, take);
    }
    if ((r = recv_all(i, pad, tgt_pad4(len))) < 0)
        return r;
    if (i->data_digest && len) {
        if ((r = recv_all(i, digest, 4)) < 0)
            return r;
        if (tgt_digest_get(digest) != gr_crc32c(crc, pad, tgt_pad4(len)))
            return -EBADMSG;
    }
    if (tgt_bhs_opcode(bhs) != TGT_OP_LOGIN_RSP)
        i->maxcmdsn = gr_get_be32(bhs + 32);
    return (int)len;
}

const char *ini_key(const struct ini *i, const char *key)
{
    size_t n = strlen(key);
    for (size_t pos = 0; pos < i->text_len; pos += strlen(i->text + pos) + 1)
        if (!strncmp(i->text + pos, key, n) && i->text[pos + n] == '=')
            return i->text + pos + n + 1;
    return NULL;
}

int ini_login_request(struct ini *i, unsigned csg, unsigned nsg, int transit, const char *keys, size_t keys_len)
{
    uint8_t b[TGT_BHS_LEN];
    tgt_bhs_start(b, TGT_OP_LOGIN, (uint8_t)(csg << 2 | (transit ? 0x80 | nsg : 0)), i->itt, 0);
    b[0] |= TGT_IMMEDIATE;
    memcpy(b + 8, i->isid, 6);
    gr_put_be16(b + 14, i->tsih);
    gr_put_be16(b + 20, i->cid);
    gr_put_be32(b + 24, i->cmdsn);
    gr_put_be32(b + 28, i->expstatsn);
    int r = ini_send(i, b, keys, (uint32_t)keys_len);
    if (r < 0)
        return r;
    r = ini_recv(i, b, i->text, sizeof i->text - 1);
    if (r < 0)
        return r;
    if (tgt_bhs_opcode(b) != TGT_OP_LOGIN_RSP || (size_t)r >= sizeof i->text)
        return -EPROTO;
    i->text_len = (size_t)r;
    i->text[r] = 0;
    i->login_status = gr_get_be16(b + 36);
    i->expstatsn = gr_get_be32(b + 24) + 1;
    i->maxcmdsn = gr_get_be32(b + 32);
    if ((b[1] & 0x83) == 0x83)
        i->tsih = gr_get_be16(b + 14);
    return b[1];
}

static void take_params(struct ini *i)
{
    const char *v;
    if ((v = ini_key(i, "MaxRecvDataSegmentLength")))
        i->max_send_dsl = strtoul(v, NULL, 0);
    if ((v = ini_key(i, "MaxBurstLength")))
        i->max_burst = strtoul(v, NULL, 0);
    if ((v = ini_key(i, "FirstBurstLength")))
        i->first_burst = strtoul(v, NULL, 0);
    if ((v = ini_key(i, "ImmediateData")))
        i->immediate_data = *v == 'Y';
    if ((v = ini_key(i, "InitialR2T")))
        i->initial_r2t = *v == 'Y';
    if ((v = ini_key(i, "HeaderDigest")))
        i->header_digest = *v == 'C';
    if ((v = ini_key(i, "DataDigest")))
        i->data_digest = *v == 'C';
}

int ini_login(struct ini *i, const char *initiator, const char *target, const char *extra, size_t extra_len)
{
    char keys[4096];
    int n = snprintf(keys, sizeof keys, "InitiatorName=%s%cTargetName=%s%cSessionType=Normal", initiator, 0, target, 0) + 1;
    if (extra_len > sizeof keys - (size_t)n)
        return -E2BIG;
    if (extra_len)
        memcpy(keys + n, extra, extra_len);
    int r = ini_login_request(i, 1, 3, 1, keys, (size_t)n + extra_len);
    if (r < 0)
        return r;
    if (i->login_status)
        return 0;
    for (int k = 0; k < 8 && (r & 0x83) != 0x83; k++) /* a target may need another round */
        if ((r = ini_login_request(i, 1, 3, 1, NULL, 0)) < 0)
            return r;
    take_params(i);
    return (r & 0x83) == 0x83 ? 0 : -EPROTO;
}

void ini_cmd_bhs(struct ini *i, uint8_t *bhs, const uint8_t *cdb, unsigned cdb_len, uint8_t flags, uint32_t edtl)
{
    tgt_bhs_start(bhs, TGT_OP_SCSI_CMD, flags, ++i->itt, 0);
    gr_put_be32(bhs + 20, edtl);
    gr_put_be32(bhs + 24, i->cmdsn++);
    gr_put_be32(bhs + 28, i->expstatsn);
    memcpy(bhs + 32, cdb, cdb_len < 16 ? cdb_len : 16);
}

/* Answer an R2T with Data-Outs. */
static int solicited(struct ini *i, const uint8_t *r2t, const uint8_t *out, uint32_t out_len)
{
    uint32_t off = gr_get_be32(r2t + 40), len = gr_get_be32(r2t + 44), sn = 0;
    if (len > out_len || off > out_len - len)
        return -EPROTO;
    while (len) {
        uint8_t b[TGT_BHS_LEN];
        uint32_t n = len < i->max_send_dsl ? len : (uint32_t)i->max_send_dsl;
        tgt_bhs_start(b, TGT_OP_DATA_OUT, n == len ? TGT_FINAL : 0, tgt_bhs_itt(r2t), n);
        gr_put_be32(b + 20, gr_get_be32(r2t + 20));
        gr_put_be32(b + 28, i->expstatsn);
        gr_put_be32(b + 36, sn++);
        gr_put_be32(b + 40, off);
        int r = ini_send(i, b, out + off, n);
        if (r < 0)
            return r;
        off += n;
        len -= n;
    }
    return 0;
}

int ini_cmd(struct ini *i, const uint8_t *cdb, unsigned cdb_len, const void *out, uint32_t out_len, void *in, uint32_t in_len,
            struct ini_result *ret)
{
    uint8_t b[TGT_BHS_LEN], flags = (uint8_t)(TGT_FINAL | (out_len ? TGT_CMD_WRITE : 0) | (in_len ? TGT_CMD_READ : 0));
    uint32_t now = 0;
    memset(ret, 0, sizeof *ret);
    if (i->immediate_data && out_len) {
        now = out_len < i->first_burst ? out_len : (uint32_t)i->first_burst;
        now = now < i->max_send_dsl ? now : (uint32_t)i->max_send_dsl;
    }
    ini_cmd_bhs(i, b, cdb, cdb_len, flags, out_len ? out_len : in_len);
    uint32_t itt = i->itt;
    int r = ini_send(i, b, out, now);
    while (r >= 0) {
        gr_auto_free uint8_t *seg = malloc(262144);
        r = ini_recv(i, b, seg, 262144);
        if (r < 0)
            return r;
        if (tgt_bhs_itt(b) != itt)
            return -EPROTO;
        unsigned op = tgt_bhs_opcode(b);
        if (op == TGT_OP_R2T) {
            r = solicited(i, b, out, out_len);
        } else if (op == TGT_OP_DATA_IN) {
            uint32_t off = gr_get_be32(b + 40);
            if (off > in_len || (uint32_t)r > in_len - off)
                return -EPROTO;
            memcpy((uint8_t *)in + off, seg, (size_t)r);
            ret->in_len += (size_t)r;
            if (!(b[1] & 1))
                continue;
            ret->flags = b[1];
            ret->status = b[3];
            ret->residual = gr_get_be32(b + 44);
            i->expstatsn = gr_get_be32(b + 24) + 1;
            return 0;
        } else if (op == TGT_OP_SCSI_RSP) {
            ret->flags = b[1];
            ret->response = b[2];
            ret->status = b[3];
            ret->residual = gr_get_be32(b + 44);
            i->expstatsn = gr_get_be32(b + 24) + 1;
            if (r > 2) {
                ret->sense_len = gr_get_be16(seg);
                if (ret->sense_len > sizeof ret->sense || ret->sense_len > (unsigned)r - 2)
                    return -EPROTO;
                memcpy(ret->sense, seg + 2, ret->sense_len);
            }
            return 0;
        } else {
            return -EPROTO;
        }
    }
    return r;
}

int ini_tmf(struct ini *i, unsigned function, uint32_t ref_itt, uint32_t ref_cmdsn, uint8_t *ret_response)
{
    uint8_t b[TGT_BHS_LEN], seg[64];
    tgt_bhs_start(b, TGT_OP_TMF, (uint8_t)(TGT_FINAL | function), ++i->itt, 0);
    b[0] |= TGT_IMMEDIATE;
    gr_put_be32(b + 20, ref_itt);
    gr_put_be32(b + 24, i->cmdsn);
    gr_put_be32(b + 28, i->expstatsn);
    gr_put_be32(b + 32, ref_cmdsn);
    uint32_t itt = i->itt;
    int r = ini_send(i, b, NULL, 0);
    while (r >= 0) {
        r = ini_recv(i, b, seg, sizeof seg);
        if (r < 0)
            return r;
        if (tgt_bhs_opcode(b) != TGT_OP_TMF_RSP || tgt_bhs_itt(b) != itt)
            continue; /* answers of commands that were faster */
        *ret_response = b[2];
        i->expstatsn = gr_get_be32(b + 24) + 1;
        return 0;
    }
    return r;
}

int ini_logout(struct ini *i)
{
    uint8_t b[TGT_BHS_LEN], seg[64];
    tgt_bhs_start(b, TGT_OP_LOGOUT, TGT_FINAL, ++i->itt, 0);
    b[0] |= TGT_IMMEDIATE;
    gr_put_be32(b + 24, i->cmdsn);
    gr_put_be32(b + 28, i->expstatsn);
    int r = ini_send(i, b, NULL, 0);
    while (r >= 0) {
        r = ini_recv(i, b, seg, sizeof seg);
        if (r >= 0 && tgt_bhs_opcode(b) == TGT_OP_LOGOUT_RSP)
            return b[2];
    }
    return r;
}
