#!/bin/bash
# A guest with Linux's own initiator (scripts/guest-initiator) under TCG, for tests that source this behind lib.sh.
# shellcheck disable=SC2154,SC2034 # T and TOP are lib.sh's; console is used by who sources this
"$TOP/scripts/guest-initiator" > "$T/guest" || fail "the guest could not be made"
kernel=$(head -n 1 "$T/guest")
ram=$(tail -n 1 "$T/guest")
console=$T/console.log
has() { grep -aq "^$1"$'\r*$' "$console"; }
ended() { case $(ps -o stat= -p "$(cat "$T/guest.pid")") in '' | Z*) ;; *) return 1 ;; esac; }
asks() { # NAME: the guest waits for us
    wait_for 180 eval "has 'ASK $1' || has 'GUEST .*' || ended"
    has "ASK $1" || { why; fail "the guest did not come to '$1'"; }
    echo "# $SECONDS s: $1"
}
why() { grep -a -A 20 'STEP bad' "$console" | grep -av DMESG; }
answer() { echo "${1:-go}" > "$T/go.in"; }
entry() { # NAME MODE SIZE: the head of a file in an archive (cpio "newc")
    printf '070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\0' 1 "$2" 0 0 1 0 "$3" 0 0 0 0 $((${#1} + 1)) 0 "$1"
}
pad() { truncate -s %4 "$T/ram"; }
add() { # NAME MODE FILE: to the guest's RAM disk, whose archives add up
    entry "$1" "$2" "$(stat -c %s "$3")" >> "$T/ram"; pad
    cat "$3" >> "$T/ram"; pad
}
guest_ram() { # STEPS [NAME=FILE]...: makes the RAM disk $T/ram, which runs guest-lib.sh and then STEPS
    local steps=$1 file
    shift
    cat "$TOP/tests/e2e/guest-lib.sh" "$steps" > "$T/init"
    cp "$ram" "$T/ram"; pad
    add init $((0100755)) "$T/init"
    for file in "$@"; do add "${file%%=*}" $((0100644)) "${file#*=}"; done
    entry TRAILER!!! 0 0 >> "$T/ram"; pad
}
start_guest() { # STEPS "KERNEL ARGUMENTS" [NAME=FILE]...
    local steps=$1 arguments=$2
    shift 2
    guest_ram "$steps" "$@"
    mkfifo "$T/go.in" "$T/go.out"
    start guest qemu-system-x86_64 -accel tcg -cpu max -m 256M -nodefaults -no-user-config -display none -no-reboot \
        -kernel "$kernel" -initrd "$T/ram" -nic user,model=virtio-net-pci,restrict=off \
        -append "console=ttyS0 loglevel=2 mitigations=off panic=-1 net.ifnames=0 $arguments" \
        -serial "file:$console" -chardev "pipe,id=go,path=$T/go" -serial chardev:go
}
end_guest() { # STEPS: it came to its end, through all of its steps
    wait_for 180 eval 'has "GUEST .*" || ended'
    has 'GUEST ok' || { why; fail "the guest did not come to its end"; }
    wait_for 20 ended
    sed -En 's/^ *(step|refused) ([a-z0-9-]+) .*/\2/p' "$TOP/tests/e2e/guest-lib.sh" "$1" > "$T/steps"
    check "many steps" test "$(wc -l < "$T/steps")" -gt 10
    while read -r name; do check "step $name" has "STEP ok $name"; done < "$T/steps"
}
