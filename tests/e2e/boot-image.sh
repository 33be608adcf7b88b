# shellcheck shell=bash
# Sourced by tests that need a guest that boots: boot_image sets SYSTEM_IMAGE and DATA_IMAGE to images made by
# scripts/guest-image and kept in build/guest. Read-only: copy what is written to.
boot_image() {
    local images
    images=$("$TOP/scripts/guest-cached") || fail "the guest image could not be made"
    SYSTEM_IMAGE=$(head -n 1 <<< "$images") DATA_IMAGE=$(tail -n 1 <<< "$images")
    export SYSTEM_IMAGE DATA_IMAGE
}
