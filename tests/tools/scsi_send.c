/* One SCSI command to a LUN, in a session of its own: scsi_send [--in BYTES] [--out FILE] [--port N] [--info on] URL CDB
 * --port: be the initiator port of this number (its ISID), to which reservations belong; default: a port that nobody was yet.
 * --bare on: no redirect is followed, and the unit need not be ready.
 * --info on: "sense K/AA/QQ info N" when the sense names a block (fixed format).
 * CDB: hexadecimal. Prints "good" (with --in: and the data, hexadecimal), "conflict", or "sense K/AA/QQ". Exit 0: an answer came. */
#include <iscsi/iscsi.h>
#include <stdbool.h>
#include <iscsi/scsi-lowlevel.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int fail(const char *what, struct iscsi_context *iscsi)
{
    fprintf(stderr, "scsi_send: %s: %s\n", what, iscsi ? iscsi_get_error(iscsi) : "");
    return 1;
}

static size_t unhex(const char *text, unsigned char *out, size_t max)
{
    size_t n = 0;
    for (; text[0] && text[1] && n < max; text += 2, n++) {
        unsigned byte;
        if (sscanf(text, "%2x", &byte) != 1)
            return 0;
        out[n] = (unsigned char)byte;
    }
    return *text ? 0 : n;
}

static void report(const struct scsi_task *task, unsigned in, bool info)
{
    if (task->status == SCSI_STATUS_CHECK_CONDITION) {
        const unsigned char *s = task->datain.data + 2; /* behind its length */
        printf("sense %x/%02x/%02x", task->sense.key, task->sense.ascq >> 8 & 0xff, task->sense.ascq & 0xff);
        if (info && task->datain.size >= 9 && s[0] == 0xf0)
            printf(" info %u", (unsigned)s[3] << 24 | (unsigned)s[4] << 16 | (unsigned)s[5] << 8 | s[6]);
        printf("\n");
        return;
    }
    printf("%s", task->status == SCSI_STATUS_GOOD ? "good" : task->status == SCSI_STATUS_RESERVATION_CONFLICT ? "conflict" : "other");
    for (int i = 0; i < task->datain.size && (unsigned)i < in; i++)
        printf("%s%02x", i ? "" : " ", task->datain.data[i]);
    printf("\n");
}

int main(int argc, char **argv)
{
    static unsigned char out[1 << 20];
    unsigned char cdb[16] = {0};
    unsigned in = 0, port = 0;
    size_t out_len = 0;
    int at = 1;
    bool bare = false, info = false;
    for (; at + 1 < argc && argv[at][0] == '-'; at += 2) {
        FILE *f = strcmp(argv[at], "--out") ? NULL : fopen(argv[at + 1], "rb");
        if (f) {
            out_len = fread(out, 1, sizeof out, f);
            fclose(f);
        } else if (strcmp(argv[at], "--bare") == 0) {
            bare = strcmp(argv[at + 1], "on") == 0;
        } else if (strcmp(argv[at], "--info") == 0) {
            info = strcmp(argv[at + 1], "on") == 0;
        } else if (strcmp(argv[at], "--port") == 0) {
            port = (unsigned)strtoul(argv[at + 1], NULL, 0);
        } else {
            in = (unsigned)strtoul(argv[at + 1], NULL, 0);
        }
    }
    size_t len = argc - at == 2 ? unhex(argv[at + 1], cdb, sizeof cdb) : 0;
    struct iscsi_context *iscsi = len ? iscsi_create_context("iqn.2026-11.local.granary:scsi-send") : NULL;
    struct iscsi_url *url = iscsi ? iscsi_parse_full_url(iscsi, argv[at]) : NULL;
    if (!url)
        return fail("usage: scsi_send [--in BYTES] [--out FILE] [--port N] URL CDB", iscsi);
    if (port)
        iscsi_set_isid_en(iscsi, 0, port);
    iscsi_set_targetname(iscsi, url->target);
    iscsi_set_session_type(iscsi, ISCSI_SESSION_NORMAL);
    if (bare ? iscsi_connect_sync(iscsi, url->portal) < 0 || iscsi_login_sync(iscsi) < 0 : iscsi_full_connect_sync(iscsi, url->portal, url->lun) < 0)
        return fail("no login", iscsi);
    if (bare) /* takes the attentions */
        scsi_free_scsi_task(iscsi_testunitready_sync(iscsi, url->lun));
    struct scsi_task *task = scsi_create_task((int)len, cdb, in ? SCSI_XFER_READ : out_len ? SCSI_XFER_WRITE : SCSI_XFER_NONE, (int)(in ? in : out_len));
    struct iscsi_data data = {out_len, out};
    if (!task || !iscsi_scsi_command_sync(iscsi, url->lun, task, out_len ? &data : NULL))
        return fail("no answer", iscsi);
    report(task, in, info);
    scsi_free_scsi_task(task);
    iscsi_logout_sync(iscsi);
    iscsi_destroy_url(url);
    iscsi_destroy_context(iscsi);
    return 0;
}
