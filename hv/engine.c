#include "hv/engine.h"
#include "common/cleanup.h"
#include "common/seam.h"
#include <string.h>

const char *hv_state_name(enum hv_state s)
{
    switch (s) {
    case HV_OFF:
        return "off";
    case HV_RUNNING:
        return "running";
    case HV_SUSPENDED:
        return "suspended";
    case HV_NO_SPACE:
        return "no-space";
    case HV_IO_ERROR:
        return "io-error";
    case HV_PANICKED:
        return "panicked";
    case HV_ENGINE_FAILED:
        return "engine-failed";
    }
    return "unknown";
}

const char *hv_accel_name(enum hv_accel a)
{
    return a == HV_ACCEL_KVM ? "kvm" : "tcg";
}

/* New memory for [p, end). */
static char *cut(const char *p, const char *end)
{
    return gr_asprintf("%.*s", (int)(end - p), p);
}

int hv_lun_parse(const char *url, struct hv_lun *ret, struct gr_err *err)
{
    static const char scheme[] = "iscsi://";
    gr_auto(hv_lun_done) struct hv_lun l = {0};
    size_t len = strlen(url);
    if (len > 1024 || !gr_utf8_ok(url, len) || strncmp(url, scheme, sizeof scheme - 1))
        return gr_fail(err, -EINVAL, "what storage gave as a disk's address is no iSCSI URL");
    const char *p = url + sizeof scheme - 1, *host = p, *slash = strchr(p, '/');
    const char *lun = slash ? strrchr(slash + 1, '/') : NULL;
    uint64_t number = 0;
    if (!lun || lun == slash + 1 || gr_parse_u64(lun + 1, 0, 16383, &number, NULL) < 0)
        return gr_fail(err, -EINVAL, "the iSCSI URL of a disk does not end in /TARGET/LUN");
    for (const char *at = p; at < slash; at++)
        if (*at == '@')
            host = at + 1;
    if (host == slash)
        return gr_fail(err, -EINVAL, "the iSCSI URL of a disk names no host");
    if (host > p) {
        const char *percent = memchr(p, '%', (size_t)(host - 1 - p));
        l.user = cut(p, percent ? percent : host - 1);
        if (!l.user || (percent && gr_buf_add(&l.secret, percent + 1, (size_t)(host - 1 - percent - 1)) < 0))
            return gr_fail(err, -ENOMEM, "out of memory");
    }
    const char *colon = NULL;
    for (const char *c = host; c < slash; c++)
        colon = *c == ':' ? c : *c == ']' ? NULL : colon;
    l.portal = colon ? cut(host, slash) : gr_asprintf("%.*s:3260", (int)(slash - host), host);
    l.target = cut(slash + 1, lun);
    l.lun = (unsigned)number;
    if (!l.portal || !l.target)
        return gr_fail(err, -ENOMEM, "out of memory");
    *ret = l;
    l = (struct hv_lun){0};
    return 0;
}

void hv_lun_done(struct hv_lun *l)
{
    free(l->portal);
    free(l->target);
    free(l->user);
    if (l->secret.data)
        explicit_bzero(l->secret.data, l->secret.cap);
    gr_buf_done(&l->secret);
    *l = (struct hv_lun){0};
}
