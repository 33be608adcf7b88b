#!/bin/sh
# The initial RAM disk's steps in 229-netboot.sh, behind guest-lib.sh: what the firmware's table (iBFT) says is logged in to again by
# Linux itself, and the root file system is on that disk. What runs there then is /sbin/start.
# shellcheck disable=SC2034,SC2154 # shared with guest-lib.sh
ME=none # the table names it
devices
for m in e1000 sd_mod iscsi_tcp iscsi_ibft ext4; do step "module-$m" modprobe "$m"; done
step table test -d /sys/firmware/ibft/target0
for f in initiator/initiator-name target0/target-name target0/chap-name ethernet0/ip-addr; do echo "IBFT $f $(cat "/sys/firmware/ibft/$f")"; done
step network-of-table iscsistart -N
step login-of-table iscsistart -b
step root-disk until_true test -b /dev/sda2
step root mount -t ext4 /dev/sda2 /mnt
umount /run; umount /sys; umount /proc
exec switch_root -c /dev/console /mnt /sbin/start
