/* granary: the command line. Each module brings its commands as a table; here they become one program. */
#include "backup-proxy/cmd_mount.h"
#include "backup-proxy/cmd_proxy.h"
#include "backup-proxy/image_ops.h"
#include "common/audit.h"
#include "common/cmd.h"
#include "common/link.h"
#include "hv/cmd_vm.h"
#include "iscsi-target/raw_luns.h"
#include "snapshot/service.h"

int main(int argc, char **argv)
{
    int r = gr_link_main(argc, argv);
    if (r >= 0)
        return r;
    static const struct snap_images images = {bp_image_probe, bp_image_open, bp_image_write, bp_image_copy};
    static const struct gr_cmd *const tables[] = {
        snap_up_commands, snap_datastore_commands, snap_disk_commands, snap_key_commands, tgt_commands, tgt_raw_commands, tgt_portal_commands, snap_snapshot_commands, hv_vm_commands, hv_vm_snapshot_commands,
        bp_backup_commands, bp_restore_commands, mount_cmds, gr_audit_commands, NULL,
    };
    struct snap_cmd_app app = {.rules = {snap_cmd_with_rules}, .images = &images};
    return gr_cmd_main(argc, argv, "granary", "storage virtualization and consolidated backup", tables, &app);
}
