#include "iscsi-target/gate_nego.h"
#include "iscsi-target/mover_int.h"
#include <string.h>

void gate_nego_init(struct gate_nego *n)
{
    memset(n, 0, sizeof *n);
    gr_put_be64(n->answer, NBD_MAGIC);
    gr_put_be64(n->answer + 8, NBD_OPTS_MAGIC);
    gr_put_be16(n->answer + 16, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
    n->answer_len = GATE_HELLO_LEN;
}

size_t gate_nego_wants(const struct gate_nego *n)
{
    switch (n->state) {
    case GATE_FLAGS:
        return 4 - n->got;
    case GATE_OPTION:
        return sizeof n->head - n->got;
    case GATE_DATA:
        return n->left;
    }
    return 0;
}

static enum gate_act wrong(struct gate_nego *n, const char *reason)
{
    n->reason = reason;
    return GATE_WRONG;
}

static void answer(struct gate_nego *n, uint32_t type, const char *text)
{
    struct nbd_rep_wire w = {gr_be64_of(NBD_REP_MAGIC), gr_be32_of(n->option), gr_be32_of(type), gr_be32_of((uint32_t)strlen(text))};
    _Static_assert(sizeof w + 72 <= GATE_ANSWER_MAX, "room for the longest sentence below");
    memcpy(n->answer, &w, sizeof w);
    memcpy(n->answer + sizeof w, text, strlen(text));
    n->answer_len = (uint32_t)(sizeof w + strlen(text));
}

/* The option is here with all of its data. */
static enum gate_act act(struct gate_nego *n, uint32_t data_len)
{
    n->state = GATE_OPTION;
    n->got = 0;
    if (n->option == NBD_OPT_ABORT) {
        answer(n, NBD_REP_ACK, "");
        return GATE_LEFT;
    }
    if (n->option == NBD_OPT_STARTTLS && !data_len) {
        answer(n, NBD_REP_ACK, "");
        return GATE_TLS;
    }
    if (n->option == NBD_OPT_STARTTLS)
        answer(n, NBD_REP_ERR_INVALID, "NBD_OPT_STARTTLS takes no data");
    else
        answer(n, NBD_REP_ERR_TLS_REQD, "this server requires TLS with a client certificate or PSK");
    return GATE_READ;
}

static enum gate_act flags(struct gate_nego *n)
{
    uint32_t f = gr_get_be32(n->head);
    if ((f & ~(uint32_t)(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES)) || !(f & NBD_FLAG_FIXED_NEWSTYLE))
        return wrong(n, "its flags are not those of a fixed newstyle client");
    n->no_zeroes = f & NBD_FLAG_NO_ZEROES;
    n->state = GATE_OPTION;
    n->got = 0;
    return GATE_READ;
}

static enum gate_act option(struct gate_nego *n)
{
    uint32_t len = gr_get_be32(n->head + 12);
    if (gr_get_be64(n->head) != NBD_OPTS_MAGIC)
        return wrong(n, "option without its magic number");
    if (++n->n_options > MOVER_MAX_OPTIONS)
        return wrong(n, "too many options");
    n->option = gr_get_be32(n->head + 8);
    if (n->option == NBD_OPT_EXPORT_NAME) /* has no error reply */
        return wrong(n, "the client asks for an export without TLS");
    if (len > MOVER_MAX_OPTION_SKIP)
        return wrong(n, "an option with too much data");
    if (!len)
        return act(n, 0);
    n->state = GATE_DATA;
    n->left = len;
    return GATE_READ;
}

enum gate_act gate_nego_feed(struct gate_nego *n, const uint8_t *bytes, size_t len)
{
    n->answer_len = 0;
    if (n->state == GATE_DATA) {
        n->left -= (uint32_t)len;
        return n->left ? GATE_READ : act(n, 1);
    }
    memcpy(n->head + n->got, bytes, len);
    n->got += (uint32_t)len;
    if (gate_nego_wants(n))
        return GATE_READ;
    return n->state == GATE_FLAGS ? flags(n) : option(n);
}
