#!/bin/bash
# TLS of the data mover with stock clients: our certificate, our PSK, and everybody else refused.
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"
requires nbdinfo nbdcopy qemu-img jq
demo=$BUILD/tests/tools/mover_demo
head -c 8388608 /dev/urandom > "$T/disk.raw"
run_check "$demo" --make-pki "$T/pki" mover.example 192.0.2.7
run_check "$demo" --make-pki "$T/other"                    # a CA that is not ours
run_check "$demo" --make-client "$T/pki" "$T/proxy dir"
run_check "$demo" --make-psk "$T/keys.psk" alice
run_check "$demo" --make-psk "$T/wrong.psk" alice
for f in ca-key server-key client-key; do check "$f is private" test "$(stat -c %a "$T/pki/$f.pem")" = 600; done
check 'a client directory holds no CA key' test ! -e "$T/proxy dir/ca-key.pem"
before=$(sha256sum "$T/pki/server-cert.pem")
run_check "$demo" --make-pki "$T/pki" mover.example
check 'nothing is made anew without need' test "$before" = "$(sha256sum "$T/pki/server-cert.pem")"
run_check "$demo" --make-pki "$T/pki" another.example
check 'a new host name makes a new server certificate' test "$before" != "$(sha256sum "$T/pki/server-cert.pem")"

start demo "$demo" --pki "$T/pki" --psk "$T/keys.psk" --listen 127.0.0.1:0 "ds/d1@s=file:$T/disk.raw"
wait_for 10 grep -q '^port' "$T/demo.log"
at=127.0.0.1:$(sed -n 's/^port //p' "$T/demo.log")

run_check nbdinfo --json "nbds://$at/ds/d1%40s?tls-certificates=$T/pki"
check 'TLS is on' jq -e '.TLS and .exports[0].is_read_only' "$T/out"
run_check nbdinfo --list "nbds://$at/?tls-certificates=$T/pki"
run_check nbdcopy "nbds://$at/ds/d1%40s?tls-certificates=${T// /%20}/proxy%20dir" "$T/copy.raw"
check 'every byte through TLS' cmp "$T/disk.raw" "$T/copy.raw"
printf '[overrides]\ndisabled-version = tls1.3\n' > "$T/no13"
run_check env GNUTLS_SYSTEM_PRIORITY_FILE="$T/no13" nbdcopy "nbds://$at/ds/d1%40s?tls-certificates=$T/pki" "$T/copy12.raw"
check 'every byte through TLS 1.2' cmp "$T/disk.raw" "$T/copy12.raw"
printf '[overrides]\ndisabled-version = tls1.3\ndisabled-version = tls1.2\nenabled-version = tls1.1\n' > "$T/old"
run_mustfail 1 '.' env GNUTLS_SYSTEM_PRIORITY_FILE="$T/old" nbdinfo "nbds://$at/ds/d1%40s?tls-certificates=$T/pki"
run_check nbdinfo --json "nbds://alice@$at/ds/d1%40s?tls-psk-file=$T/keys.psk"
check 'TLS by PSK' jq -e '.TLS' "$T/out"
run_check qemu-img convert --object "tls-creds-x509,id=t,dir=$T/pki,endpoint=client" -O raw \
    --image-opts "driver=nbd,host=127.0.0.1,port=${at#*:},export=ds/d1@s,tls-creds=t" "$T/qemu.raw"
check 'qemu-img with tls-creds' cmp "$T/disk.raw" "$T/qemu.raw"

# refused: plain text, no certificate, another CA's certificate, a server's certificate shown by a client, a wrong key or user
run_mustfail 1 'TLS|tls' nbdinfo "nbd://$at/ds/d1%40s"
run_mustfail 1 'not supported|TLS' nbdinfo --list "nbd://$at/"
mkdir "$T/none" && cp "$T/pki/ca-cert.pem" "$T/none/"
run_mustfail 1 '.' nbdinfo "nbds://$at/ds/d1%40s?tls-certificates=$T/none"
mkdir "$T/foreign" && cp "$T/pki/ca-cert.pem" "$T/foreign/" && cp "$T/other/client-"*.pem "$T/foreign/"
run_mustfail 1 '.' nbdinfo "nbds://$at/ds/d1%40s?tls-certificates=$T/foreign"
mkdir "$T/server" && cp "$T/pki/ca-cert.pem" "$T/server/"
for k in cert key; do cp "$T/pki/server-$k.pem" "$T/server/client-$k.pem"; done
run_mustfail 1 '.' nbdinfo "nbds://$at/ds/d1%40s?tls-certificates=$T/server"
run_mustfail 1 '.' nbdinfo "nbds://$at/ds/d1%40s?tls-certificates=$T/other"   # does not trust us, nor we it
run_mustfail 1 '.' nbdinfo "nbds://alice@$at/ds/d1%40s?tls-psk-file=$T/wrong.psk"
sed 's/alice/mallory/' "$T/keys.psk" > "$T/mallory.psk"
run_mustfail 1 '.' nbdinfo "nbds://mallory@$at/ds/d1%40s?tls-psk-file=$T/mallory.psk"
check 'the log names the reason' grep -q 'refused: .*certificate' "$T/demo.log"
run_check nbdinfo --size "nbds://$at/ds/d1%40s?tls-certificates=$T/pki"        # and it still serves
stop demo
check 'each of those with a handshake was counted' grep -Eq 'refused [67] connections' "$T/demo.log"

# refused at the start: no credentials, an open key file, an open PSK file, plain text for others
run_mustfail 1 'certificate directory or a PSK' "$demo" "d=file:$T/disk.raw"
chmod 644 "$T/keys.psk"
run_mustfail 1 'keys.psk' "$demo" --psk "$T/keys.psk" "d=file:$T/disk.raw"
cp -r "$T/pki" "$T/open" && chmod 640 "$T/open/server-key.pem"
run_mustfail 1 'server-key.pem' "$demo" --pki "$T/open" "d=file:$T/disk.raw"
run_mustfail 1 'plain text' "$demo" --plain --listen 0.0.0.0:0 "d=file:$T/disk.raw"
run_mustfail 1 'plain text' "$demo" --plain --listen '[::]:0' "d=file:$T/disk.raw"
