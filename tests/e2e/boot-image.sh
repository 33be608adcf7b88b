# shellcheck shell=bash
# Sourced by tests that need a guest that boots: boot_image NAME sets SYSTEM_IMAGE and DATA_IMAGE to images made by
# scripts/guest-image, made once for each version of that script and kept in build/guest. Read-only: copy what is written to.
boot_image() {
    local dir=$TOP/build/guest key
    key=$(cat "$TOP/scripts/guest-image" "$TOP"/scripts/guest/* | sha256sum | cut -c1-12)
    mkdir -p "$dir"
    SYSTEM_IMAGE=$dir/system-$key.raw DATA_IMAGE=$dir/data-$key.raw
    exec 8> "$dir/lock"
    flock 8
    if [ ! -e "$SYSTEM_IMAGE" ] || [ ! -e "$DATA_IMAGE" ]; then
        rm -f "$dir"/system-* "$dir"/data-*
        "$TOP/scripts/guest-image" --data "$DATA_IMAGE" "$SYSTEM_IMAGE" 8>&- || fail "the guest image could not be made"
    fi
    exec 8>&-
    export SYSTEM_IMAGE DATA_IMAGE
}
