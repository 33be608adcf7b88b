#!/bin/sh
# What the inits of the guests have in common; each is this, and then its own steps (the console is its output, the second serial
# line brings the host's answers):
#   STEP ok NAME    a step that went well; STEP bad NAME, with why, ends the guest        ASK NAME   waits for a line from the host
# ME is the initiator's name.
# shellcheck disable=SC2317,SC2034,SC2154 # much of this is used by what is appended
export PATH=/sbin:/bin
finish() { { cat /tmp/dmesg; dmesg; } 2> /dev/null | sed 's/^/DMESG /'; echo "GUEST $1"; sync; poweroff -f; sleep 100; }
bad() { echo "STEP bad $*"; cat /tmp/out; finish bad; }
step() { name=$1; shift; "$@" > /tmp/out 2>&1 || bad "$name: exit $?: $*"; echo "STEP ok $name"; }
refused() { # NAME CMD...: by the target, as an authentication or authorisation failure (iscsiadm exits 24)
    name=$1; shift; "$@" > /tmp/out 2>&1
    status=$?; [ $status = 24 ] || bad "$name: exit $status, wanted 24: $*"
    echo "STEP ok $name"
}
ask() { echo "ASK $1"; read -r answer <&3 || bad "ask $1"; }
until_true() { i=0; until "$@"; do i=$((i + 1)); [ $i -lt 200 ] || return 1; usleep 50000; done; }
same() { [ "$1" = "$2" ] || { echo "'$1' is not '$2'"; return 1; }; }
write_on() { # fsynced files, each with its sum, until told to stop
    n=0
    rm -f /tmp/stop
    until [ -e /tmp/stop ]; do
        n=$((n + 1))
        dd if=/dev/urandom of="/mnt/w/$n.new" bs=100000 count=1 conv=fsync 2> /dev/null || return 1
        mv "/mnt/w/$n.new" "/mnt/w/$(sha256sum < "/mnt/w/$n.new" | cut -c1-64)" || return 1
    done
    echo $n > /tmp/written
}
until_new() { n=$(ls /mnt/w | wc -l); until_true eval '[ $(ls /mnt/w | wc -l) -gt $((n + 5)) ]'; } # five more files were written and synced
devices() { mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev; mount -t tmpfs run /run; mkdir -p /run/lock/iscsi; }
start_up() { # MODULE...
    devices
    exec 3<> /dev/ttyS1
    step serial stty -F /dev/ttyS1 -echo
    for m in virtio_pci virtio_net sd_mod iscsi_tcp "$@"; do step "module-$m" modprobe "$m"; done
    step network until_true ifconfig eth0 10.0.2.15 netmask 255.255.255.0 up
    ifconfig lo up
    echo "InitiatorName=$ME" > /etc/iscsi/initiatorname.iscsi
    iscsid -f > /tmp/iscsid.log 2>&1 &
    step iscsid until_true iscsiadm -m iface
}
