#!/bin/bash
# timeout: 900
# Damaged and hostile guest file systems: the reader may fail, the mount answers with I/O errors and lives.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/guest-images.sh"
requires mke2fs mkfs.vfat mcopy mkntfs ntfscp python3
requires_root
[ -c /dev/fuse ] || skip "no /dev/fuse"
walker=$(dirname "$0")/walk-hostile.py
seed=${GRANARY_SEED:-$RANDOM}
rounds=${GRANARY_ROUNDS:-6}
mkdir -p "$T/m"
on_exit 'granary-mount --unmount --force "$T/m"'
touched=0

# Mount IMAGE, touch all of it, see that the daemon still is there and answers, unmount.
try_image() { # NAME IMAGE
    local pid
    run_check granary-mount --image "$2" "$T/m"
    pid=$(jq .pid "$GRANARY_HOME"/state/intents/mount-*.json)
    timeout 300 python3 "$walker" "$T/m" > "$T/walk" 2>&1 || { cat "$T/walk"; fail "$1 (seed $seed): $(tail -n 1 "$T/walk")"; }
    [ -d "/proc/$pid" ] || fail "$1 (seed $seed): the daemon died"
    head -c 100 "$T/m/disk0/disk.raw" > /dev/null || fail "$1 (seed $seed): no answer"
    run_check granary-mount --unmount "$T/m"
    touched=$((touched + 1))
    grep -q ' 0 errors' "$T/walk" || echo "  $1: $(cat "$T/walk")"
}

guest_tree "$T/src"
rm -f "$T/src/sparse"
truncate -s 24M "$T/ext4"; mke2fs -q -t ext4 -d "$T/src" "$T/ext4"
make_fat "$T/fat" 20 16 "$T/src"
make_ntfs "$T/ntfs" 16 "$T/src"

# the source package comes while the rest is done
mkdir -p "$T/apt/lists/partial" "$T/corpus"
echo "deb-src http://deb.debian.org/debian bookworm main" > "$T/apt/sources.list"
apt=(apt-get -q -o "Dir::Etc::sourcelist=$T/apt/sources.list" -o Dir::Etc::sourceparts=/dev/null -o "Dir::State::lists=$T/apt/lists"
    -o APT::Sandbox::User=root -o Acquire::http::Timeout=20)
source_package() { cd "$T/apt" && timeout 120 "${apt[@]}" update && timeout 120 "${apt[@]}" source --download-only e2fsprogs; }
source_package > "$T/apt/log" 2>&1 &
coming=$!
track $coming

echo "truncated"
for fs in ext4 fat ntfs; do
    for kib in 2 64 1000 5000; do
        head -c "${kib}K" "$T/$fs" > "$T/cut"
        try_image "$fs cut to $kib KiB" "$T/cut"
    done
done

echo "random damage, seed $seed"
for fs in ext4 fat ntfs; do
    for i in $(seq "$rounds"); do
        python3 - "$T/$fs" "$T/hurt" "$seed-$fs-$i" <<'PY'
import random, sys
r = random.Random(sys.argv[3])
b = bytearray(open(sys.argv[1], "rb").read())
# where metadata is: the first part, and places that are not all zero
for _ in range(r.choice([1, 10, 200, 2000])):
    at = r.randrange(min(len(b), 2 << 20)) if r.random() < 0.8 else r.randrange(len(b))
    kind = r.random()
    if kind < 0.4:
        b[at] ^= 1 << r.randrange(8)
    elif kind < 0.8:
        b[at:at + 4] = r.choice([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", r.randbytes(4)])
    else:
        n = r.randrange(512)
        b[at:at + n] = r.randbytes(len(b[at:at + n]))
open(sys.argv[2], "wb").write(b)
PY
        try_image "$fs, damage $i" "$T/hurt"
    done
done
check "as many as meant" test "$touched" -eq $((12 + 3 * rounds))

echo "the corrupted images of e2fsprogs"
if wait $coming &&
    tar -xzf "$T"/apt/e2fsprogs_*.orig.tar.gz -C "$T/corpus" --wildcards '*/tests/f_*/image.gz' 2> /dev/null; then
    n=0
    for gz in "$T"/corpus/*/tests/f_*/image.gz; do
        gunzip -c "$gz" > "$T/image"
        truncate -s %512 "$T/image"
        try_image "$(basename "$(dirname "$gz")")" "$T/image"
        n=$((n + 1))
    done
    echo "$n images of e2fsprogs"
    check "the corpus is there" test "$n" -gt 150
else
    echo "source package of e2fsprogs not to be had: that part is skipped"
    part_skipped=1
fi
check "no record left" test -z "$(ls "$GRANARY_HOME/state/intents")"
[ -z "${part_skipped:-}" ] || exit 77
