/* LVM2 physical volumes: linear and striped-over-one logical volumes whose physical volumes all lie on this disk.
 * Runs inside the sandboxed reader: the image is hostile. Needs libc only. */
#ifndef FS_LVM_H
#define FS_LVM_H
#include "backup-proxy/fs_parts.h"
/* Look into each of vols[0..n) for a physical volume and append the logical volumes found (FS_V_LV, label
 * "group/volume") behind them, at most @max in all. Volumes with other segment types, missing or foreign parts are left
 * out. Returns the new count, or a negative errno when the image cannot be read. */
int fs_lvm_scan(const struct fs_image *img, struct fs_volume *vols, unsigned n, unsigned max);
#endif
