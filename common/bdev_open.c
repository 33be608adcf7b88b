/* Devices by name. */
#include "common/bdev_open.h"
#include "common/bdev_iscsi.h"
#include "common/buf.h"
#include "common/cleanup.h"
#include "common/crc.h"
#include "common/endian.h"
#include <errno.h>
#include <linux/magic.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#ifndef SMB2_SUPER_MAGIC
#define SMB2_SUPER_MAGIC 0xFE534D42
#endif
#ifndef CIFS_SUPER_MAGIC
#define CIFS_SUPER_MAGIC 0xFF534D42
#endif

#define INITIATOR "iqn.2026-11.local.granary:host-"

bool gr_device_is_lun(const char *name)
{
    return strncmp(name, "iscsi://", 8) == 0;
}

int gr_device_name_check(const char *name, struct gr_err *err)
{
    if (name[0] == '/' || gr_device_is_lun(name))
        return 0;
    return gr_fail(err, -GR_EUSAGE, "%.200s: a device is given by its absolute path or as iscsi://HOST[:PORT]/TARGET/LUN", name);
}

static int refuse_network_fs(const char *path, struct gr_err *err)
{
    struct statfs fs;
    if (statfs(path, &fs) < 0)
        return gr_fail(err, -errno, "%s: cannot look at its file system: %s", path, strerror(errno));
    switch ((unsigned long)fs.f_type) {
    case NFS_SUPER_MAGIC:
    case SMB_SUPER_MAGIC:
    case SMB2_SUPER_MAGIC:
    case CIFS_SUPER_MAGIC:
    case CEPH_SUPER_MAGIC:
    case V9FS_MAGIC:
    case AFS_SUPER_MAGIC:
        return gr_fail(err, -EOPNOTSUPP,
                       "%s: on a network file system, whose locks cannot fence a lost host; use a local file, a block device or a LUN", path);
    }
    return 0;
}

static int open_path(struct gr_loop *loop, const char *path, struct gr_bdev **ret, struct gr_err *err)
{
    struct stat st;
    if (stat(path, &st) < 0)
        return gr_fail(err, -errno, "%s: %s", path, errno == ENOENT ? "no such device or file" : strerror(errno));
    if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
        return gr_fail(err, -EINVAL, "%s: neither a regular file nor a block device", path);
    if (S_ISREG(st.st_mode) && st.st_size == 0)
        return gr_fail(err, -GR_EFORMAT, "%s: an empty file, no datastore", path);
    int r = S_ISREG(st.st_mode) ? refuse_network_fs(path, err) : 0;
    struct gr_file_opts o = {.direct = true, .exclusive = S_ISBLK(st.st_mode)};
    return r < 0 ? r : gr_bdev_file_open(loop, path, &o, ret, err);
}

/* The initiator's name and ISID (of the random type, RFC 7143 11.12.5) are the host's: after a restart it is the same nexus, and the
 * target has ended what the earlier one had under way before it answers the log-in. */
static int open_lun(struct gr_loop *loop, const char *url, const struct gr_device_opts *opts, struct gr_bdev **ret, struct gr_err *err)
{
    const struct gr_device_login *l = &opts->login;
    uint8_t uuid[16] = {0}, isid[6] = {0x80};
    char text[37];
    if (opts->host_uuid)
        memcpy(uuid, opts->host_uuid, sizeof(uuid));
    memcpy(isid + 1, uuid, 3);
    gr_put_be16(isid + 4, (uint16_t)gr_crc32c(0, url, strlen(url))); /* units of one target are sessions apart */
    gr_uuid_format(uuid, text);
    gr_auto_free char *name = opts->host_uuid ? gr_asprintf(INITIATOR "%s%s", text, opts->stranger ? "-probe" : "") : gr_asprintf(INITIATOR "reader");
    if (!name)
        return gr_fail(err, -ENOMEM, "%s: out of memory", url);
    struct gr_iscsi_opts o = {.initiator = name, .isid = opts->host_uuid ? isid : NULL, .chap_user = l->user, .chap_secret_file = l->secret_file,
                              .target_user = l->target_user, .target_secret_file = l->target_secret_file,
                              .timeout_ms = opts->patience_ms, .patience_ms = opts->patience_ms};
    return gr_bdev_iscsi_open(loop, url, &o, ret, err);
}

int gr_device_open(struct gr_loop *loop, const char *name, const struct gr_device_opts *opts, struct gr_bdev **ret, struct gr_err *err)
{
    int r = gr_device_name_check(name, err);
    if (r < 0)
        return r;
    return gr_device_is_lun(name) ? open_lun(loop, name, opts, ret, err) : open_path(loop, name, ret, err);
}
