# shellcheck shell=bash
# Sourced by tests of file-level access: disk images with real file systems, made without any kernel mount.
# The programs come from e2fsprogs, dosfstools, mtools, ntfs-3g, gdisk and fdisk.

# A tree with what a guest has: sizes around block borders, holes, links, odd names, modes, owners, old times, devices.
guest_tree() { # DIR
    local d=$1 i
    mkdir -p "$d/docs/deep/er/still" "$d/empty"
    head -c 3000000 /dev/urandom > "$d/big.bin"
    for i in 1 1023 1024 4095 4096 4097 65536 1048577; do head -c "$i" /dev/urandom > "$d/size-$i"; done
    echo hello > "$d/hello.txt"
    : > "$d/zero"
    ln "$d/hello.txt" "$d/docs/hard"
    ln -s /etc/passwd "$d/absolute"
    ln -s ../hello.txt "$d/docs/relative"
    ln -s "$(printf 'x%.0s' $(seq 200))" "$d/docs/long-link"
    truncate -s 40M "$d/sparse"
    printf middle | dd of="$d/sparse" bs=1 seek=20000000 conv=notrunc status=none
    for i in $(seq 300); do echo "$i" > "$d/docs/file$i"; done
    echo x > "$d/naïve – Ärger 漢字"
    echo x > "$d/docs/$(printf 'n%.0s' $(seq 255))"
    chmod 4711 "$d/hello.txt"; chmod 600 "$d/size-1"; chmod 1777 "$d/empty"
    chown 1000:1001 "$d/docs/file1"
    mkfifo "$d/docs/fifo"
    mknod "$d/docs/null" c 1 3 2> /dev/null || true
    find "$d" -exec touch -h -d '2001-02-03 04:05:06 UTC' {} +
    touch -d '1975-05-05 01:02:03 UTC' "$d/docs/file2"
}

# One line per object: path, type, mode, owner, size (files), links (files), time, link target.
tree_listing() { # DIR
    (cd "$1" && find . -mindepth 1 -name lost+found -prune -o -mindepth 1 -type f -printf '%p %y %m %U %G %s %n %T@ %l\n' \
        -o -mindepth 1 -printf '%p %y %m %U %G %T@ %l\n' | sort)
}
tree_hashes() { # DIR
    (cd "$1" && find . -name lost+found -prune -o -type f -print0 | sort -z | xargs -0 sha256sum)
}

# Put partition image PART at MIB of the disk image.
put_part() { # DISK PART MIB
    dd if="$2" of="$1" bs=1M seek="$3" conv=notrunc,sparse status=none
}

make_fat() { # IMAGE SIZE-MIB BITS TREE
    truncate -s "$2M" "$1"
    mkfs.vfat -F "$3" -n GUESTFAT "$1" > /dev/null
    mmd -i "$1" ::/dir ::/dir/sub
    mcopy -m -i "$1" "$4/big.bin" "$4/hello.txt" "$4/zero" ::/
    mcopy -m -i "$1" "$4"/size-* ::/dir/sub/
    mcopy -m -i "$1" "$4/docs/file17" '::/dir/a long name, with Spaces.txt'
    mcopy -i "$1" "$4/hello.txt" ::/gone.txt
    mdel -i "$1" ::/gone.txt
}

make_ntfs() { # IMAGE SIZE-MIB TREE
    truncate -s "$2M" "$1"
    mkntfs -F -Q -q -C -L GUESTNTFS "$1" > /dev/null 2>&1
    local f
    for f in big.bin hello.txt zero size-1 size-4097 size-1048577; do ntfscp -q "$1" "$3/$f" "$f"; done
}
