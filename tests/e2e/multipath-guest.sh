#!/bin/sh
# The steps of the guest in 228-multipath.sh, behind guest-lib.sh. From the kernel's command line come T (the target) and PA, PB, the
# ports of the two hosts' portals that never redirect.
# shellcheck disable=SC2153,SC2154,SC2034 # T, PA and PB are given; the rest is guest-lib.sh's
ME=iqn.2026-11.org.example:multi
start_up dm-multipath dm-service-time scsi_dh_alua
state() { multipathd show paths raw format '%i %d %t %T %p' 2> /dev/null; }
path_by() { # PORT: the disk behind it
    for s in /sys/class/iscsi_session/session*; do
        grep -q "^$1$" "$s"/device/connection*/iscsi_connection/connection*/persistent_port 2> /dev/null || continue
        for d in "$s"/device/target*/*:*/block/sd*; do [ -e "$d" ] && echo "${d##*/}" && return; done
    done
    return 1
}
is_state() { # PORT DM-STATE CHECKER PRIORITY
    d=$(path_by "$1") && state | grep -qE "^[0-9:]+ +$d +$2 +$3 +$4"
}
step_paths() { name=$1; shift; step "$name" until_true all "$@"; }
all() { is_state "$PA" "$1" "$2" "$3" && is_state "$PB" "$4" "$5" "$6" || { state; return 1; }; }
map() { ls /dev/mapper/36*; }

mkdir -p /etc/multipath
cp /multipath.conf /etc/multipath.conf
printf 'defaults {\nfind_multipaths no\npolling_interval 1\nmax_polling_interval 2\n}\n' >> /etc/multipath.conf
mount -t tmpfs tmp /var/lib/iscsi
systemd-udevd --daemon > /tmp/udevd.log 2>&1
udevadm trigger
step udev udevadm settle
multipathd -d -s -v3 > /tmp/multipathd.log 2>&1 &
step multipathd until_true sh -c "multipathd show daemon | grep -E 'running|idle'"
for p in $PA $PB; do
    step node-new iscsiadm -m node -T "$T" -p "10.0.2.2:$p" -o new
    for k in session.timeo.replacement_timeout=3 conn[0].timeo.noop_out_interval=1 conn[0].timeo.noop_out_timeout=2; do
        step "set-${k%=*}" iscsiadm -m node -T "$T" -p "10.0.2.2:$p" -o update -n "node.${k%=*}" -v "${k#*=}"
    done
    step login iscsiadm -m node -T "$T" -p "10.0.2.2:$p" --login
done
step one-map until_true map
step tags sh -c "iscsiadm -m session | tee /tmp/sessions; [ \$(sed -n 's/.*,\\([0-9]*\\) .*/\\1/p' /tmp/sessions | sort -u | wc -l) = 2 ]"
step_paths a-active active ready 50 active ghost 1
step handler sh -c "cat /sys/block/$(path_by "$PA")/device/dh_state | grep -q alua"
step access sh -c "grep -q active /sys/block/$(path_by "$PA")/device/access_state && grep -q standby /sys/block/$(path_by "$PB")/device/access_state"
dev=$(map)
step size same "$(blockdev --getsize64 "$dev")" "$((160 << 20))"
step mkfs /sbin/mke2fs -q -F -t ext4 -m 0 "$dev"
step mount mount -t ext4 "$dev" /mnt
mkdir /mnt/w
write_on &
writer=$!
step writing until_new
ask kill-a
step went-on-b until_new
step_paths b-active '(failed|active)' '[a-z]+' '[0-9]+' active ready 50
ask start-a
step_paths a-standby active ghost 1 active ready 50
step went-on-still until_new
ask stop-b
step back-on-a until_new
step_paths a-active-again active ready 50 '(failed|active)' '[a-z]+' '[0-9]+'
ask start-b
step_paths b-standby active ready 50 active ghost 1
ask drop
step after-drop until_new
step_paths both-again active ready 50 active ghost 1
touch /tmp/stop
wait $writer || bad writer
echo "STEP ok writer"
step written test "$(cat /tmp/written)" -gt 20
step sums sh -c 'cd /mnt/w && for f in *; do [ "$(sha256sum < $f | cut -c1-64)" = $f ] || exit 1; done'
step unmount umount /mnt
step fsck /sbin/e2fsck -fn "$dev"
step flush multipath -f "${dev##*/}"
step logout iscsiadm -m node --logoutall=all
finish ok
