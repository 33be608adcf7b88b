/* Fuzz target: option data and request headers of the data mover's clients. The first byte chooses the parser. */
#include "iscsi-target/mover_int.h"
#include <assert.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void info(const uint8_t *data, size_t size)
{
    struct mover_opt_info o;
    if (mover_opt_parse_info(data, size, &o) >= 0)
        assert(o.name[0] && strlen(o.name) <= NBD_MAX_STRING);
}

static void meta(const uint8_t *data, size_t size)
{
    struct mover_opt_meta m;
    char q[NBD_MAX_STRING + 1];
    if (mover_opt_parse_meta(data, size, &m) < 0)
        return;
    size_t pos = m.first;
    for (uint32_t i = 0; i < m.n_queries; i++)
        assert(mover_opt_next_query(data, size, &pos, q) == 0 && q[0]); /* what was checked once parses again */
    assert(pos == size);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1)
        return 0;
    uint8_t kind = data[0] % 4;
    data++;
    size--;
    char name[NBD_MAX_STRING + 1];
    struct mover_request rq;
    if (kind == 0)
        info(data, size);
    else if (kind == 1)
        meta(data, size);
    else if (kind == 2 && mover_opt_name(data, size, name) == 0)
        assert(strlen(name) == size);
    else if (kind == 3 && size >= 28)
        (void)mover_request_parse(data, &rq);
    return 0;
}
