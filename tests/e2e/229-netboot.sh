#!/bin/bash
# A machine without a disk boots from a LUN: iPXE (QEMU's network card) logs in with CHAP, GRUB and the kernel are read through it, and
# Linux finds the LUN again by the firmware's table (iBFT) and runs from it.
# shellcheck disable=SC2154 # kernel, ram and console are guest.sh's
# timeout: 600
# guest
. "$(dirname "$0")/lib.sh"
requires qemu-system-x86_64 jq apt-get grub-mkimage sfdisk mke2fs debugfs
rom=/usr/lib/ipxe/qemu/pxe-e1000.rom
[ -e "$rom" ] || skip "$rom is not there: install ipxe-qemu"
. "$(dirname "$0")/guest.sh"
. "$TOP/scripts/guest-disk.sh"
steps=$TOP/tests/e2e/netboot-guest.sh me=iqn.2026-11.org.example:netboot

# --- the disk: GRUB, kernel, initial RAM disk, and a root made of the same programs
root=$T/root size=$((256 << 20))
mkdir -p "$root/boot/grub"
(cd "$root" && cpio -id --quiet < "$ram") || fail "the programs could not be had"
guest_ram "$steps"
cp "$kernel" "$root/boot/vmlinuz"
gzip -9c "$T/ram" > "$root/boot/initrd" # GRUB reads it through the BIOS, a little at a time
install -m 755 "$TOP/tests/e2e/netboot-root.sh" "$root/sbin/start"
printf 'linux /boot/vmlinuz console=ttyS0 loglevel=2 mitigations=off panic=-1 net.ifnames=0\ninitrd /boot/initrd\nboot\n' > "$root/boot/grub/grub.cfg"
(cd "$root" && find bin sbin boot usr lib -type f -exec sha256sum {} + > SUMS)
make_grub "$T/core.img"
gpt_disk "$T/disk.raw" $size bios-boot
make_ext4 "$T/disk.raw" $size 5f7a3c6e-4f53-4a0e-9a53-3d3f64c7b0a1 root "$root"
embed_grub "$T/disk.raw" "$T/core.img"

run_check granary datastore create ds "$T/ds.img" --size 1G
run_check granary disk import "$T/disk.raw" ds/boot --format raw
run_check granary up --portal 127.0.0.1:0 --mover 127.0.0.1:0
port=$(granary status --json | jq -r '.portal | split(":")[1]')
echo a-secret-for-boots > "$T/secret"; chmod 600 "$T/secret"
run_check granary lun chap ds/boot --user joe --secret-file "$T/secret"
run_check granary lun acl ds/boot --allow $me
target=$(granary lun list ds/boot --json | jq -r '.[0].target')

mkdir "$T/tftp"
cat > "$T/tftp/boot.ipxe" <<EOF
#!ipxe
set initiator-iqn $me
set username joe
set password a-secret-for-boots
sanboot iscsi:10.0.2.2::$port:0:$target
EOF
start guest qemu-system-x86_64 -accel tcg -cpu max -m 256M -nodefaults -no-user-config -display none -no-reboot -boot n \
    -netdev "user,id=n,tftp=$T/tftp,bootfile=boot.ipxe" -device "e1000,netdev=n,romfile=$rom" -serial "file:$console"
wait_for 240 eval 'has "GUEST .*" || ended'
has 'GUEST ok' || { why; fail "the guest did not come to its end"; }
wait_for 20 ended
sed -En 's/^ *step ([a-z-]+) .*/\1/p' "$steps" > "$T/steps"
printf '%s\n' root-is-the-lun files-of-root written >> "$T/steps"
while read -r name; do check "step $name" has "STEP ok $name"; done < "$T/steps"
check "the table names the initiator" has "IBFT initiator/initiator-name $me"
check "the table names the target" has "IBFT target0/target-name $target"
check "the table has the CHAP name" has "IBFT target0/chap-name joe"
check "the only disk is the LUN" test "$(grep -ac '^BLOCK ' "$console")" = 1
echo "# booted and ended after $SECONDS s"
run_check granary disk export ds/boot "$T/after.raw"
dd if="$T/after.raw" of="$T/part.raw" bs=1M skip=1 status=none
run_check debugfs -R 'cat /BOOTED' "$T/part.raw"
check "it wrote to its disk" test "$(grep -c ^booted "$T/out")" = 1
run_check granary down
