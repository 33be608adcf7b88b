#!/bin/bash
# Linked clones, and full ones.
#   linked   1,000 of a disk of 1 GiB, and of one of 64 GiB all of whose map exists, counted below the datastore: seconds (goal 10), KiB written for each and
#            KiB of space each takes (64), data copied (none); a clone with 0 to 50,000 changes deleted: that its cost follows the changes, not the image
#   command  the same from the command line, from a target that serves the image: `granary snapshot clone --count 1000`
#   full     a disk of 64 GiB with 512 MiB of data copied by its extents
#   peers    qemu-img create -b a thousand times; a linked clone of it removed; qemu-img convert
# Usage: tests/bench/clones.sh [linked] [command] [full] [peers]      all by default
# DIR: where datastores and images go (/dev/shm; needs 4 GiB). WRAP: put in front of programs ("chrt -f 10").
NAME=clones
# shellcheck source=tests/lib/bench.sh
. "$(dirname "$0")/../lib/bench.sh"
what=("$@"); [ ${#what[@]} -gt 0 ] || what=(linked command full peers)
echo "clones: $(nproc) CPUs, Linux $(uname -r)${WRAP:+, under $WRAP}"
ms() { local t; t=$(date +%s%N); "$@" > /dev/null || die "$* failed" >&2; echo $((($(date +%s%N) - t) / 1000000)); } # COMMAND...: how long it took

linked() {
    local gib
    $WRAP "$B/tests/bench/snapshot_many" "$dir" clones 1000 > "$dir/json" || exit 1
    jq -r 'select(.what == "clones") | "  \(.clones) clones of \(."image-gib") GiB: \(.seconds) s, \(."kib-written-each") KiB written for each, \(."kib-taken-each") KiB taken by each, \(."data-written") bytes of data written"' "$dir/json"
    for gib in 1 64; do
        sum() { jq "select(.what == \"clones\" and .\"image-gib\" == $gib) | $1" "$dir/json"; }
        goal "1,000 clones of $gib GiB: seconds" "$(sum .seconds)" max 10
        goal "1,000 clones of $gib GiB: KiB each, taken or written" "$(sum '[."kib-written-each", ."kib-taken-each"] | max')" max 64
    done
    jq -r 'select(.what == "delete-clone") | "  a clone of \(."image-gib") GiB with \(.changes) changes deleted: answered after \(."answered-ms") ms, free after \(."free-after-ms") ms, \(."read-kib") KiB read, \(."written-kib") KiB written, \(."freed-mib") MiB freed"' "$dir/json"
}
image() { # NAME SIZE: served, with 512 MiB of data at its front, as a snapshot
    if [ ! -d "$dir/home1" ]; then
        mkdir "$dir/home1"
        on 1 datastore create c "$dir/ds" --size 8G
        up 1
    fi
    on 1 disk create "c/$1" --size "$2"
    "$B/tests/bench/iscsi_load" "${at[1]}" "$iqn:c:$1" --rw write --bs 1M --depth 4 --size 512M --time 5 > /dev/null || die "filling failed"
    on 1 snapshot create "c/$1" --name gold
}
taken() { GRANARY_HOME=$dir/home1 "$B/bin/granary" datastore info c --json | jq '.size - .free'; }
command_line() {
    local t0 t
    image image 64G
    t0=$(taken)
    t=$(ms on 1 snapshot clone c/image@gold 'c/many/#' --count 1000) || exit 1
    goal "granary snapshot clone --count 1000, served: seconds" "$(awk -v t="$t" 'BEGIN { print t / 1000 }')" max 10
    echo "  $((($(taken) - t0) / 1000)) bytes of space taken by each"
    t=$(ms on 1 disk delete c/many/500) || exit 1
    echo "  one of them deleted: $t ms"
}
full() {
    local t0 t
    image big 64G
    t0=$(taken)
    t=$(ms on 1 snapshot clone c/big@gold c/copy --full) || exit 1
    echo "  a full clone of 64 GiB with 512 MiB of data: $t ms, $(($(taken) - t0 >> 20)) MiB of space taken"
}
peers() {
    local t i
    command -v qemu-img > /dev/null || { echo "  qcow2 is left out (scripts/setup --bench)"; return; }
    qemu-img create -q -f qcow2 "$dir/image.qcow2" 64G
    qemu-img bench -w -c 512 -d 4 -s 1M --pattern=90 -f qcow2 "$dir/image.qcow2" > /dev/null || die "qemu-img bench failed"
    mkdir "$dir/qcow2"
    create() { for i in $(seq 1000); do qemu-img create -q -f qcow2 -b ../image.qcow2 -F qcow2 "$dir/qcow2/$i.qcow2" || return; done; }
    t=$(ms create) || exit 1
    echo "  qemu-img create -b, 1,000 times: $t ms, $(($(du -s --block-size=1 "$dir/qcow2" | cut -f1) / 1000)) bytes of space taken by each"
    t=$(ms qemu-img convert -f qcow2 -O qcow2 "$dir/image.qcow2" "$dir/full.qcow2")
    echo "  qemu-img convert of 64 GiB with 512 MiB of data: $t ms, $(($(du --block-size=1 "$dir/full.qcow2" | cut -f1) >> 20)) MiB of space taken"
    rm -rf "$dir/qcow2" "$dir"/*.qcow2
}
for w in "${what[@]}"; do
    case $w in linked | full | peers) $w ;; command) command_line ;; *) die "'$w': linked, command, full or peers" ;; esac
done
