# shellcheck shell=bash
# Sourced by tests that need a guest that boots: boot_image sets SYSTEM_IMAGE and DATA_IMAGE to images that scripts/guest-cached
# made, once for each version of the guest. Read-only: copy what is written to.
boot_image() {
    "$TOP/scripts/guest-cached" > "$T/images" || fail "the guest image could not be made"
    SYSTEM_IMAGE=$(head -n 1 "$T/images") DATA_IMAGE=$(tail -n 1 "$T/images")
    export SYSTEM_IMAGE DATA_IMAGE
}
