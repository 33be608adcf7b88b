#!/bin/bash
# Our VMDK against everybody else's reader, theirs against ours: byte for byte.
. "$(dirname "$0")/lib.sh"
requires qemu-img 7z truncate cmp
tool=$BUILD/tests/tools/vmdk_convert
[ -x "$tool" ] || skip "needs $tool (make tools)"
cd "$T"
for size in 1024 11776 1048576 70000128 104857600; do
    truncate -s "$size" a.raw
    dd if=/dev/urandom of=a.raw bs=512 count=1 conv=notrunc status=none
    if [ "$size" -gt 2000000 ]; then
        dd if=/dev/urandom of=a.raw bs=4096 seek=333 count=700 conv=notrunc status=none
        [ -e text ] || (find /usr/include -name '*.h' -exec cat {} + 2> /dev/null | head -c 9000000 > text) || true
        dd if=text of=a.raw bs=65536 seek=700 conv=notrunc status=none
        truncate -s "$size" a.raw
    fi
    rm -f ./*.vmdk ./*.out
    run_check "$tool" export a.raw ours.vmdk
    check "qemu-img reads ours ($size)" qemu-img compare -f raw -F vmdk a.raw ours.vmdk
    7z x -so -tvmdk ours.vmdk > seven.out 2> 7z.err
    check "7z reads ours ($size)" equal a.raw seven.out
    if command -v vmdkmount > /dev/null && [ -e /dev/fuse ]; then
        mkdir -p m
        if vmdkmount ours.vmdk m > vmdk.err 2>&1; then
            cp m/vmdk1 vmdk.out
            umount m || fusermount -u m
            check "libvmdk reads ours ($size)" equal a.raw vmdk.out
        else
            cat vmdk.err; fail "libvmdk does not open ours ($size)"
        fi
    fi
    "$tool" stream a.raw | cat > piped.vmdk
    check "a pipe takes it ($size)" qemu-img compare -f raw -F vmdk a.raw piped.vmdk
    for sub in streamOptimized monolithicSparse monolithicFlat; do
        qemu-img convert -f raw -O vmdk -o subformat=$sub a.raw theirs.vmdk
        named=()
        [ $sub = monolithicFlat ] && named=(theirs-flat.vmdk)
        run_check "$tool" import theirs.vmdk back.raw "${named[@]}"
        check "we read qemu's $sub ($size)" equal a.raw back.raw
        rm -f theirs*.vmdk back.raw
    done
done
# an image whose descriptor names a file of the host is refused, and that file stays unread
printf '# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType="monolithicFlat"\nRW 1 FLAT "/etc/passwd" 0\n' > evil.vmdk
run_mustfail 1 "names the extent file '/etc/passwd'" "$tool" import evil.vmdk evil.raw
check "nothing was made of it" test ! -e evil.raw
