/* Parsing of what a client sends: option data and request headers. Pure functions over bytes. */
#include "iscsi-target/mover_int.h"
#include <string.h>

int mover_opt_name(const uint8_t *data, size_t len, char ret[NBD_MAX_STRING + 1])
{
    if (len < 1 || len > NBD_MAX_STRING || !gr_utf8_ok((const char *)data, len) || memchr(data, 0, len))
        return -EINVAL;
    memcpy(ret, data, len);
    ret[len] = 0;
    return 0;
}

/* u32 length, then the name: the common head of INFO, GO and *_META_CONTEXT. */
static int take_name(const uint8_t *data, size_t len, size_t *pos, char ret[NBD_MAX_STRING + 1])
{
    if (len - *pos < 4)
        return -EINVAL;
    uint32_t n = gr_get_be32(data + *pos);
    if (n > len - *pos - 4)
        return -EINVAL;
    int r = mover_opt_name(data + *pos + 4, n, ret);
    if (r < 0)
        return r;
    *pos += 4 + n;
    return 0;
}

int mover_opt_parse_info(const uint8_t *data, size_t len, struct mover_opt_info *ret)
{
    struct mover_opt_info o = {0};
    size_t pos = 0;
    int r = take_name(data, len, &pos, o.name);
    if (r < 0)
        return r;
    if (len - pos < 2)
        return -EINVAL;
    size_t n = gr_get_be16(data + pos);
    pos += 2;
    if ((len - pos) % 2 || n != (len - pos) / 2)
        return -EINVAL;
    for (; pos < len; pos += 2) {
        unsigned info = gr_get_be16(data + pos);
        o.want_name |= info == NBD_INFO_NAME;
        o.want_description |= info == NBD_INFO_DESCRIPTION;
        o.want_block_size |= info == NBD_INFO_BLOCK_SIZE;
    }
    *ret = o;
    return 0;
}

int mover_opt_next_query(const uint8_t *data, size_t len, size_t *pos, char ret[NBD_MAX_STRING + 1])
{
    return take_name(data, len, pos, ret);
}

int mover_opt_parse_meta(const uint8_t *data, size_t len, struct mover_opt_meta *ret)
{
    struct mover_opt_meta o = {0};
    size_t pos = 0;
    int r = take_name(data, len, &pos, o.name);
    if (r < 0)
        return r;
    if (len - pos < 4)
        return -EINVAL;
    o.n_queries = gr_get_be32(data + pos);
    o.first = pos += 4;
    if (o.n_queries > (len - pos) / 4)
        return -EINVAL;
    char query[NBD_MAX_STRING + 1];
    for (uint32_t i = 0; i < o.n_queries; i++)
        if (mover_opt_next_query(data, len, &pos, query) < 0)
            return -EINVAL;
    if (pos != len)
        return -EINVAL;
    *ret = o;
    return 0;
}

int mover_request_parse(const uint8_t wire[28], struct mover_request *ret)
{
    struct nbd_request_wire w;
    memcpy(&w, wire, sizeof(w));
    if (gr_be32_get(w.magic) != NBD_REQUEST_MAGIC)
        return -GR_EPROTO;
    *ret = (struct mover_request){
        .flags = gr_be16_get(w.flags),
        .type = gr_be16_get(w.type),
        .cookie = gr_be64_get(w.cookie),
        .off = gr_be64_get(w.offset),
        .len = gr_be32_get(w.length),
    };
    return 0;
}
