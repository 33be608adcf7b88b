/* Names of disks and snapshots: whatever comes in is taken apart into checked parts, or refused with a sentence. */
#include "common/buf.h"
#include "snapshot/service.h"
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void expect(bool ok)
{
    if (!ok)
        abort();
}

static void parse(const char *text, enum snap_path_kind kind)
{
    struct snap_path p;
    struct gr_err err = {0};
    int r = snap_path_parse(text, kind, &p, &err);
    if (r < 0) {
        expect(r == -GR_EUSAGE && err.text[0] && gr_utf8_ok(err.text, strlen(err.text)));
        return;
    }
    expect(snap_datastore_name_check(p.ds, NULL) == 0);
    expect(kind == SNAP_PATH_DIR || p.path[0]);
    expect(p.path[0] != '/' && !strstr(p.path, "//") && strcmp(p.path, "..") != 0 && !strstr(p.path, "/../"));
    expect(!strpbrk(p.path, "@:") && !strpbrk(p.snap, "@:/"));
    expect((kind != SNAP_PATH_SNAPSHOT || p.snap[0]) && (kind == SNAP_PATH_SNAPSHOT || kind == SNAP_PATH_EITHER || !p.snap[0]));
    expect(gr_utf8_ok(p.path, strlen(p.path)) && gr_utf8_ok(p.snap, strlen(p.snap)));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0 || size > 8192)
        return 0;
    char *text = malloc(size);
    if (!text)
        return 0;
    memcpy(text, data + 1, size - 1);
    text[size - 1] = 0;
    parse(text, (enum snap_path_kind)(data[0] % 4));
    (void)snap_name_check(text, NULL);
    free(text);
    return 0;
}
