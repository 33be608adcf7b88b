/* Fuzz target: what strangers say to the mover's gate before TLS. The first byte says how many bytes come at a time. */
#include "iscsi-target/gate_nego.h"
#include "common/cleanup.h"
#include <assert.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct gate_nego n;
    if (size < 1)
        return 0;
    size_t step = 1 + data[0], at = 1, fed = 0;
    gate_nego_init(&n);
    assert(n.answer_len == GATE_HELLO_LEN);
    while (at < size) {
        size_t wants = gate_nego_wants(&n), len = GR_MIN(GR_MIN(step, wants), size - at);
        assert(wants > 0);
        gr_auto_free uint8_t *bytes = malloc(len); /* of exactly that size, for the sanitizer */
        memcpy(bytes, data + at, len);
        enum gate_act act = gate_nego_feed(&n, bytes, len);
        at += len;
        fed += len;
        assert(n.answer_len <= GATE_ANSWER_MAX);
        assert(len == wants || (act == GATE_READ && !n.answer_len)); /* nothing happens in the middle of something */
        if (act == GATE_READ)
            continue;
        assert(act == GATE_WRONG ? n.reason && !n.answer_len : n.answer_len == 20);
        /* flags and one whole option at least; and the last thing before TLS was STARTTLS without data */
        assert(act == GATE_WRONG || fed >= 20);
        assert(act != GATE_TLS || !memcmp(data + at - 16, "IHAVEOPT\0\0\0\5\0\0\0", 16));
        return 0;
    }
    return 0;
}
