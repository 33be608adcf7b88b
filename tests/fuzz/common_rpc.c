/* A peer's bytes: frames are found and parsed, or refused. */
#include "common/rpc_wire.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct gr_err err = {0};
    for (size_t used = 0; size > 0; data += used, size -= used) {
        json_t *obj = NULL;
        int r = rpc_frame_decode((const char *)data, size, &used, &obj, &err);
        if (r <= 0) {
            if (r == 0 && used <= size)
                __builtin_trap(); /* it must ask for more than it has */
            return 0;
        }
        struct gr_buf out = {0};
        json_t *again = NULL;
        size_t used2 = 0;
        /* what was accepted is written and read again as the same */
        if (rpc_frame_encode(obj, &out) == 0 &&
            (rpc_frame_decode(out.data, out.len, &used2, &again, &err) != 1 || used2 != out.len || !json_equal(obj, again)))
            __builtin_trap();
        gr_buf_done(&out);
        json_decref(again);
        json_decref(obj);
    }
    return 0;
}
