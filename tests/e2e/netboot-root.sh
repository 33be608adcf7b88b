#!/bin/sh
# /sbin/start of the disk in 229-netboot.sh: we run from the LUN. Writes a file and ends.
export PATH=/sbin:/bin
mount -t proc proc /proc; mount -t sysfs sys /sys
grep -q '^/dev/sda2 / ext4' /proc/mounts && echo "STEP ok root-is-the-lun"
ls -d /sys/block/[svnx]* | sed 's/^/BLOCK /'
(cd / && sha256sum -c /SUMS) > /dev/null && echo "STEP ok files-of-root"
mount -o remount,rw / && echo "booted $(cat /proc/sys/kernel/random/boot_id)" >> /BOOTED && sync && mount -o remount,ro / && echo "STEP ok written"
echo "GUEST ok"
poweroff -f
