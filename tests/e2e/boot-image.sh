# shellcheck shell=bash
# Sourced by tests that need a guest that boots: boot_image sets SYSTEM_IMAGE and DATA_IMAGE to images that scripts/guest-cached
# made, once for each version of the guest. Read-only: copy what is written to.
#   machine [OPTION...]   makes ds/web of them, with 192 MiB of memory, in the site that is up; the options are for importing the data disk
#   state FILTER          what jq makes of what is told of it      guest 'COMMANDS'   runs them there
#   guest_counts          it counts from now on, in its memory, in /run/c/n
boot_image() {
    requires qemu-system-x86_64 jq mmdebstrap
    requires_root
    "$TOP/scripts/guest-cached" > "$T/images" || fail "the guest image could not be made"
    SYSTEM_IMAGE=$(head -n 1 "$T/images") DATA_IMAGE=$(tail -n 1 "$T/images")
    export SYSTEM_IMAGE DATA_IMAGE
}
machine() { # [OPTION...]
    run_check granary disk import "$SYSTEM_IMAGE" ds/web/root --format raw
    run_check granary disk import "$DATA_IMAGE" ds/web/data --format raw "$@"
    run_check granary vm create ds/web --disk ds/web/root --disk ds/web/data --memory 192M
}
state() { granary vm info web --json | jq -r "$1"; }
guest() { granary vm exec web -- /bin/sh -c "$1"; }
guest_counts() {
    guest 'mkdir -p /run/c; (n=0; while :; do n=$((n + 1)); echo $n > /run/c/new; mv /run/c/new /run/c/n; sleep 0.05; done) > /dev/null 2>&1 & echo ok' > "$T/out" ||
        fail "the counter does not start"
}
