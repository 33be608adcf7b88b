/* A logical unit as a source: the iSCSI bdev, read-only, which gives up after a bounded number of log-ins. */
#include "backup-proxy/source.h"
#include "common/bdev_iscsi.h"

#define RECONNECTS 12

int bp_source_iscsi_open(struct gr_loop *loop, const struct bp_iscsi_opts *opts, struct gr_bdev **ret, struct gr_err *err)
{
    const struct gr_iscsi_opts o = {
        .initiator = opts->initiator ? opts->initiator : "iqn.2026-01.granary:proxy",
        .chap_user = opts->chap_user,
        .chap_secret_file = opts->chap_secret_file,
        .url_secret = true,
        .read_only = true,
        .timeout_ms = opts->timeout_ms,
        .reconnects = opts->reconnects ? opts->reconnects : RECONNECTS,
    };

    return gr_bdev_iscsi_open(loop, opts->url, &o, ret, err);
}
