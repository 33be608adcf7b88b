# shellcheck shell=bash
# Sourced by what makes disks that boot (guest-image, tests): GPT, one ext4 partition, and GRUB for a BIOS. Nothing is mounted.
grub_dir=/usr/lib/grub/i386-pc
[ -r "$grub_dir/boot.img" ] || { echo "guest-disk: $grub_dir/boot.img is missing: install grub-pc-bin" >&2; exit 1; }
# make_grub CORE: what reads /boot/grub/grub.cfg of the partition
make_grub() {
    grub-mkimage -d "$grub_dir" -O i386-pc -p '(hd0,gpt2)/boot/grub' -o "$1" biosdisk part_gpt ext2 normal linux
}
# gpt_disk FILE BYTES [bios-boot]: a sparse file with a GPT and one Linux partition from 1 MiB on
gpt_disk() {
    rm -f "$1"
    truncate -s "$2" "$1"
    {
        echo 'label: gpt'
        echo 'first-lba: 34'
        [ -z "${3-}" ] || echo 'start=34, size=2014, type=21686148-6449-6E6F-744E-656564454649'
        echo "start=2048, size=$((($2 >> 20) * 2048 - 4096)), type=0FC63DAF-8483-4772-8E79-3D69D8477DE4"
    } | sfdisk --quiet --no-reread --no-tell-kernel --wipe never "$1"
}
# make_ext4 FILE DISK_BYTES UUID LABEL DIR: fills the partition made by gpt_disk with DIR
make_ext4() {
    mke2fs -q -F -t ext4 -O ^metadata_csum_seed,^orphan_file -m 1 -U "$3" -L "$4" -d "$5" \
        -E offset=1048576,nodiscard,lazy_itable_init=0,root_owner=0:0 "$1" $((($2 >> 20) * 1024 - 2048))k
}
le() { # le VALUE BYTES: little-endian bytes
    local v=$1 i
    for ((i = 0; i < $2; i++)); do printf "\\x$(printf %02x $((v & 255)))"; v=$((v >> 8)); done
}
poke() { dd of="$1" bs=1 seek="$2" conv=notrunc status=none; }
# embed_grub DISK CORE
# core.img lies in one piece from sector 34 on.  Its first sector loads the rest: {first sector, count, segment} at 500.
# boot.img, 440 bytes before the disk signature, loads that first sector: its address is at 0x5c.
embed_grub() {
    local sectors
    sectors=$((($(stat -c %s "$2") + 511) / 512))
    [ "$sectors" -le 2014 ] || { echo "guest-disk: GRUB's core is too large ($sectors sectors)" >&2; return 1; }
    dd if="$2" of="$1" bs=512 seek=34 conv=notrunc status=none
    { le 35 8; le $((sectors - 1)) 2; } | poke "$1" $((34 * 512 + 500))
    head -c 440 "$grub_dir/boot.img" | poke "$1" 0
    le 34 8 | poke "$1" $((0x5c))
    le $((0x9090)) 2 | poke "$1" $((0x66))
}
