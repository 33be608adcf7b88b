/* What a guest's agent sends: the same lines come out however the bytes arrive in pieces, and memory stays bounded. The first
 * byte gives the size of the pieces and whether 0xFF synchronises. Each line is parsed as the clients do. */
#include "common/cleanup.h"
#include "hv/engine.h"
#include "hv/lines.h"
#include <string.h>

#define LINE_MAX_BYTES 256

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int collect(void *arg, char *line, size_t len)
{
    struct gr_buf *b = arg;
    if (len > LINE_MAX_BYTES || strlen(line) > len)
        __builtin_trap();
    json_auto_t *msg = json_loadb(line, len, 0, NULL);
    gr_buf_printf(b, "%zu:%d;", len, json_is_object(msg));
    return gr_buf_add(b, line, len);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!size)
        return 0;
    size_t step = (data[0] & 0x7f) + 1;
    struct hv_lines a = {.max = LINE_MAX_BYTES, .resync = data[0] & 0x80}, b = {.max = LINE_MAX_BYTES, .resync = data[0] & 0x80};
    gr_auto_buf struct gr_buf whole = {0}, pieces = {0};
    hv_lines_feed(&a, (const char *)data + 1, size - 1, collect, &whole);
    for (size_t off = 1; off < size; off += step) {
        hv_lines_feed(&b, (const char *)data + off, GR_MIN(step, size - off), collect, &pieces);
        if (b.buf.len > LINE_MAX_BYTES)
            __builtin_trap();
    }
    if (whole.len != pieces.len || (whole.len && memcmp(whole.data, pieces.data, whole.len)))
        __builtin_trap();
    hv_lines_done(&a);
    hv_lines_done(&b);
    gr_auto_free char *url = strndup((const char *)data + 1, size - 1);
    gr_auto(hv_lun_done) struct hv_lun lun = {0};
    if (url && hv_lun_parse(url, &lun, NULL) == 0 && (!lun.portal || !lun.target || strpbrk(lun.portal, "/@")))
        __builtin_trap();
    return 0;
}
