#!/bin/bash
# Guest file systems that only other systems write: exFAT, and NTFS with compressed, sparse and fragmented files.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/guest-images.sh"
requires mkfs.exfat mkntfs ntfs-3g fusermount3 python3
requires_root
[ -c /dev/fuse ] || skip "no /dev/fuse"
mkdir -p "$T/m" "$T/ntfs.d" "$T/src"
on_exit 'granary-mount --unmount --force "$T/m"'
on_exit 'umount "$T/ntfs.d"'
d=$T/m/disk0/whole

echo "NTFS by ntfs-3g (in user space)"
truncate -s 64M "$T/ntfs.img"
mkntfs -F -Q -q -C "$T/ntfs.img" > /dev/null 2>&1
ntfs-3g -o compression "$T/ntfs.img" "$T/ntfs.d" || skip "ntfs-3g cannot mount here"
python3 - "$T/ntfs.d" "$T/src" <<'PY'
import os, random, struct, sys
top, src = sys.argv[1:]
r = random.Random(7)
os.mkdir(top + "/packed")
os.setxattr(top + "/packed", "system.ntfs_attrib_be", struct.pack(">I", 0x810)) # what is made in it is compressed
text = b"".join(b"%d the quick brown fox " % (i // 3) for i in range(60000))
files = {
    "packed/text": text,
    "packed/mixed": b"".join(r.randbytes(5000) + bytes(r.randrange(20000)) + text[:r.randrange(30000)] for _ in range(30)),
    "packed/noise": r.randbytes(300000),
    "packed/tiny": b"resident",
    "packed/zeros": bytes(1 << 20),
    "plain": r.randbytes(1234567),
    "tiny": b"resident as well",
    "Ünïcode ☃ name with a very long tail " + "x" * 180: b"named\n",
}
for name, data in files.items():
    for base in (top, src):
        os.makedirs(os.path.dirname(os.path.join(base, name)), exist_ok=True)
        with open(os.path.join(base, name), "wb") as f:
            f.write(data)
# holes, and two files that grow in turns
for base in (top, src):
    with open(base + "/holes", "wb") as f:
        f.write(b"start"); f.seek(9 << 20); f.write(b"end"); f.truncate(12 << 20)
    a, b = open(base + "/one", "wb", 0), open(base + "/two", "wb", 0)
    for i in range(200):
        a.write(bytes([i]) * 5000); b.write(bytes([255 - i]) * 7000)
    os.makedirs(base + "/many")
    for i in range(2000):
        open(f"{base}/many/file number {i}", "w").write(str(i))
PY
packed=$(python3 -c 'import os,struct,sys; print(struct.unpack(">I", os.getxattr(sys.argv[1], "system.ntfs_attrib_be"))[0] & 0x800)' "$T/ntfs.d/packed/text")
check "the test's file is compressed" test "$packed" = 2048
umount "$T/ntfs.d"
tree_hashes "$T/src" > "$T/want"
run_check granary-mount --image "$T/ntfs.img" "$T/m"
tree_hashes "$d" > "$T/got"
check "NTFS content" diff "$T/want" "$T/got"
run_check granary-mount --unmount "$T/m"

echo "exFAT"
truncate -s 32M "$T/exfat.img"
mkfs.exfat -L GUESTEX "$T/exfat.img" > /dev/null
rm -rf "$T/src"; mkdir "$T/src"
python3 - "$T/exfat.img" "$T/src" <<'PY'
# No tool writes files into an exFAT image without mounting it: file entries by hand (Microsoft's exFAT specification, section 7).
import os, random, struct, sys
path, src = sys.argv[1:]
b = bytearray(open(path, "rb").read())
sector = 1 << b[108]
fat, heap, clusters, root = struct.unpack_from("<I", b, 80)[0] * sector, struct.unpack_from("<I", b, 88)[0] * sector, \
    struct.unpack_from("<I", b, 92)[0], struct.unpack_from("<I", b, 96)[0]
size = sector << b[109]
at = lambda cluster: heap + (cluster - 2) * size
bitmap = None
for off in range(at(root), at(root) + size, 32):
    if b[off] == 0x81:
        bitmap = at(struct.unpack_from("<I", b, off + 20)[0])
next_free = 1000
def allocate(n, chained):
    global next_free
    got = list(range(next_free, next_free + 2 * n, 2 if chained else 1))[:n]
    next_free += 2 * n
    for i, c in enumerate(got):
        b[bitmap + (c - 2) // 8] |= 1 << (c - 2) % 8
        if chained:
            struct.pack_into("<I", b, fat + 4 * c, got[i + 1] if i + 1 < n else 0xffffffff)
    return got
def entry_set(name, first, length, chained, directory):
    units = name.encode("utf-16-le")
    parts = [units[i:i + 30].ljust(30, b"\0") for i in range(0, len(units), 30)]
    stamp = (2020 - 1980) << 25 | 3 << 21 | 4 << 16 | 5 << 11 | 6 << 5 | 4
    e = bytearray(struct.pack("<BBHHHIII5B7x", 0x85, 1 + len(parts), 0, 0x10 if directory else 0x20, 0, stamp, stamp, stamp, 0, 0, 0x80, 0x80, 0x80))
    e += struct.pack("<BBBBHHQIIQ", 0xc0, 1 if chained else 3, 0, len(units) // 2, 0, 0, length, 0, first, length)
    for p in parts:
        e += b"\xc1\0" + p
    total = 0
    for i, x in enumerate(e):
        if i not in (2, 3):
            total = ((total << 15 | total >> 1) + x) & 0xffff
    struct.pack_into("<H", e, 2, total)
    return e
def store(data, chained):
    cs = allocate(-(-len(data) // size) or 1, chained)
    for i, c in enumerate(cs):
        part = data[i * size:(i + 1) * size]
        b[at(c):at(c) + len(part)] = part
    return cs[0]
def put_file(name, data, chained):
    with open(os.path.join(src, name), "wb") as f:
        f.write(data)
    return entry_set(name.split("/")[-1], store(data, chained) if data else 0, len(data), chained, False)
r = random.Random(3)
os.mkdir(src + "/folder")
inner = b"".join(put_file(f"folder/inner {i}.bin", r.randbytes(100 + 3000 * i), i % 2) for i in range(5)).ljust(size, b"\0")
top = put_file("contiguous.bin", r.randbytes(700001), False) + put_file("chained.bin", r.randbytes(500003), True) + \
    put_file("a name that needs more than one entry – Ä.txt", b"text", False) + put_file("empty", b"", False)
top += entry_set("folder", store(inner, False), size, False, True)
off = at(root)
while b[off]:
    off += 32
b[off:off + len(top)] = top
open(path, "wb").write(b)
PY
tree_hashes "$T/src" > "$T/want"
run_check granary-mount --image "$T/exfat.img" "$T/m"
check "exFAT is known" test "$(jq -r '.volumes[0]."file-system"' "$T/m/disk0/partitions.json")" = exfat
tree_hashes "$d" > "$T/got"
check "exFAT content" diff "$T/want" "$T/got"
check "exFAT time" test "$(stat -c %Y "$d/chained.bin")" = "$(date -d '2020-03-04 05:06:08 UTC' +%s)"
run_check granary-mount --unmount "$T/m"
