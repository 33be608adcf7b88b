#!/bin/sh
# The steps of the guest in 222-linux-initiator.sh, behind guest-lib.sh.
#   ATTR NAME VALUE what the kernel learnt of the disk
# From the kernel's command line come PORT, A, B and C (targets), USER, SECRET, TUSER and TSECRET (what the target proves to us).
# shellcheck disable=SC2153,SC2154,SC2034 # PORT, A, B and C are given; the rest is shared with guest-lib.sh
me=iqn.2026-11.org.example:linux stranger=iqn.2026-11.org.example:stranger
portal=10.0.2.2:$PORT

node() { t=$1; shift; iscsiadm -m node -T "$t" -p "$portal" "$@"; }
set_key() { node "$1" -o update -n "$2" -v "$3"; }
session_of() { for s in /sys/class/iscsi_session/session*; do [ "$(cat "$s/targetname" 2> /dev/null)" = "$1" ] && echo "$s" && return; done; return 1; }
disk_of() { s=$(session_of "$1") || return 1; for d in "$s"/device/target*/*:*/block/sd*; do [ -e "$d" ] && echo "${d##*/}" && return; done; return 1; }
log_in() { node "$1" --login && until_true disk_of "$1" && until_true test -b "/dev/$(disk_of "$1")"; }
log_out() { node "$1" --logout && ! session_of "$1"; }
attributes() { # DISK
    q=/sys/block/$1/queue d=/sys/block/$1/device
    for f in logical_block_size physical_block_size discard_granularity discard_max_bytes discard_zeroes_data write_zeroes_max_bytes \
             write_same_max_bytes max_sectors_kb optimal_io_size minimum_io_size rotational write_cache fua; do
        echo "ATTR $f $(cat "$q/$f" 2> /dev/null)"
    done
    echo "ATTR size $(cat "/sys/block/$1/size")"
    for f in vendor model rev; do echo "ATTR $f $(cat "$d/$f")"; done
    for f in "$d"/scsi_disk/*; do
        for k in cache_type FUA thin_provisioning provisioning_mode zeroing_mode; do echo "ATTR $k $(cat "$f/$k")"; done
    done
    for f in vpd_pg0 vpd_pg80 vpd_pg83 vpd_pgb0 vpd_pgb1 vpd_pgb2; do echo "ATTR $f $(od -An -v -tx1 "$d/$f" 2> /dev/null | tr -d ' \n')"; done
    echo "ATTR wwid $(cat "$d/wwid")"
}
zeros() { # DISK OFFSET-MIB MIB
    blockdev --flushbufs "/dev/$1"
    dd if="/dev/$1" bs=1M skip="$2" count="$3" 2> /dev/null | cmp - /tmp/zeros && test "$(stat -c %s /tmp/zeros)" = $(($3 << 20))
}
fill() { dd if=/tmp/pattern of="/dev/$1" bs=1M conv=fsync && blockdev --flushbufs "/dev/$1" && ! zeros "$1" 0 8 > /dev/null 2>&1; }

# --- up
ME=$me
start_up

# --- who may see and use what
step discovery sh -c "iscsiadm -m discovery -t st -o nonpersistent -p $portal > /tmp/found && cat /tmp/found && grep -q $A /tmp/found && grep -q $B /tmp/found"
iscsiadm -m iface -I strange -o new > /dev/null
iscsiadm -m iface -I strange -o update -n iface.initiatorname -v $stranger > /dev/null
step strange-node node "$B" -I strange -o new
refused acl-refuses node "$B" -I strange --login
step strange-gone node "$B" -I strange -o delete
for t in "$A" "$B" "$C"; do step node-new node "$t" -o new; done
refused chap-missing node "$A" --login
set_chap() { # SECRET TSECRET
    set_key "$A" node.session.auth.authmethod CHAP && set_key "$A" node.session.auth.username "$USER" &&
        set_key "$A" node.session.auth.password "$1" && set_key "$A" node.session.auth.username_in "$TUSER" &&
        set_key "$A" node.session.auth.password_in "$2"
}
step set-wrong set_chap a-wrong-secret-here "$TSECRET"
refused chap-wrong node "$A" --login
step set-impostor set_chap "$SECRET" not-what-it-proves
step chap-impostor sh -c "! iscsiadm -m node -T $A -p $portal --login"
step set-right set_chap "$SECRET" "$TSECRET"
step login-chap log_in "$A"
for k in Header Data; do step set-digest set_key "$B" "node.conn[0].iscsi.${k}Digest" CRC32C; done
step login-plain log_in "$B"
step digests sh -c "grep -l CRC32C /sys/class/iscsi_connection/connection*/header_digest || grep -l '^1' /sys/class/iscsi_connection/connection*/header_digest"
a=$(disk_of "$A") b=$(disk_of "$B")
attributes "$a"
ask attributes
dmesg -c > /tmp/dmesg # the refused logins are in there

# --- a file system; what is discarded is given back
step mkfs /sbin/mke2fs -q -F -t ext4 -m 0 -E lazy_itable_init=0,lazy_journal_init=0 "/dev/$a"
step mount mount -t ext4 "/dev/$a" /mnt
mkdir /mnt/w
for i in 1 2 3 4; do head -c 2000000 /dev/urandom > /mnt/keep$i; done
head -c 16000000 /dev/urandom > /mnt/drop
step sums sh -c 'cd /mnt && sha256sum keep* > SUMS'
sync
ask filled
rm /mnt/drop
sync
step fstrim /sbin/fstrim -v /mnt
ask trimmed

# --- a snapshot while files are written
write_on &
writer=$!
usleep 500000
ask snapshot
touch /tmp/stop
wait $writer || bad writer
echo "STEP ok writer"
step written test "$(cat /tmp/written)" -gt 1
step unmount umount /mnt

# --- out and in again
step logout log_out "$A"
step login-again log_in "$A"
a=$(disk_of "$A")
step fsck /sbin/e2fsck -fn "/dev/$a"
step mount-again mount -t ext4 "/dev/$a" /mnt
step sums-again sh -c 'cd /mnt && sha256sum -c SUMS'
step sums-written sh -c 'cd /mnt/w && for f in *; do [ "$(sha256sum < $f | cut -c1-64)" = $f ] || exit 1; done'
step unmount-again umount /mnt

# --- zeroes in every manner, on the raw disk with digests
head -c 8388608 /dev/zero > /tmp/zeros
yes granary | head -c 8388608 > /tmp/pattern
step fill fill "$b"
step zeroout /sbin/blkdiscard -z -l 8M "/dev/$b"
step zeroout-zero zeros "$b" 0 8
step fill-same fill "$b"
step write-same sg_write_same --16 --lba=0 --num=16384 --xferlen=512 "/dev/$b"
step write-same-zero zeros "$b" 0 8
step fill-unmap fill "$b"
step write-same-unmap sg_write_same --16 --unmap --lba=0 --num=16384 --xferlen=512 "/dev/$b"
step write-same-unmap-zero zeros "$b" 0 8
step fill-discard fill "$b"
ask full
step discard /sbin/blkdiscard -l 8M "/dev/$b"
step discard-zero zeros "$b" 0 8
ask discarded

# --- the disk grows
ask resize
step notice dd if="/dev/$b" of=/dev/null bs=4k count=1 skip=99 iflag=direct
step told sh -c 'dmesg | grep "Capacity data has changed"'
step rescan sh -c "echo 1 > /sys/block/$b/device/rescan"
step grown same "$(cat "/sys/block/$b/size")" "$answer"
step tail dd if=/dev/zero of="/dev/$b" bs=512 seek=$((answer - 1)) count=1 conv=fsync
quiet() { ! dmesg | grep -iE 'error|reset|abort|tim(ed|ing) out|sense key|offline|refus|warning: '; }

# --- a disk of many terabytes
step login-huge log_in "$C"
c=$(disk_of "$C")
step huge-size same "$(cat "/sys/block/$c/size")" $((3 << 31))
step huge-fill dd if=/tmp/pattern "of=/dev/$c" bs=4096 seek=$(((3 << 28) - 2048)) conv=fsync
step huge-read sh -c "blockdev --flushbufs /dev/$c && dd if=/dev/$c bs=4096 skip=$(((3 << 28) - 2048)) 2> /dev/null | cmp - /tmp/pattern"
ask huge
step huge-discard /sbin/blkdiscard "/dev/$c"
ask empty
step quiet quiet

# --- the disk is taken away and given back: the initiator waits for it
ask mask
dd if="/dev/$c" of=/dev/null bs=4k count=1 skip=99 iflag=direct > /tmp/reader 2>&1 &
reader=$!
ask unmask
wait $reader || bad "reader of the masked disk: $(cat /tmp/reader)"
step logout-huge log_out "$C"

# --- resets, with a reader at work; data that is asked for piece by piece
step fill-reset fill "$b"
dd if="/dev/$b" of=/dev/null bs=64k count=256 iflag=direct > /tmp/reader 2>&1 &
reader=$!
step reset-lun sg_reset -d "/dev/$b"
step reset-target sg_reset -t "/dev/$b"
wait $reader || bad "reader: $(cat /tmp/reader)"
step after-reset sg_turs -n 3 "/dev/$b"
step logout-plain log_out "$B"
for k in session.iscsi.InitialR2T=Yes session.iscsi.ImmediateData=No session.iscsi.MaxBurstLength=65536 session.iscsi.FirstBurstLength=8192 \
         conn[0].iscsi.MaxRecvDataSegmentLength=8192 conn[0].iscsi.DataDigest=None; do
    step "set-${k%=*}" set_key "$B" "node.${k%=*}" "${k#*=}"
done
step login-pieces log_in "$B"
b=$(disk_of "$B")
step fill-pieces fill "$b"
step read-pieces sh -c "dd if=/dev/$b bs=1M count=8 2> /dev/null | cmp - /tmp/pattern"

# --- the daemon is killed and started anew while files are written: the initiator comes back, nothing that was synced is lost
step mount-crash mount -t ext4 "/dev/$a" /mnt
write_on &
writer=$!
ask crash
touch /tmp/stop
wait $writer || bad "writer after the crash"
step written-crash test "$(cat /tmp/written)" -gt 1
step unmount-crash umount /mnt
step fsck-crash /sbin/e2fsck -fn "/dev/$a"
step logout-end log_out "$A"
step logout-pieces log_out "$B"
finish ok
