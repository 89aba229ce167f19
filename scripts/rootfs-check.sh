#!/usr/bin/env bash
# rootfs-check.sh BINARY: what the image's final stage is, without a container engine. Lays the static binary, the demo
# and the host's certificates into an empty root, starts the daemon there by chroot as user 65532, waits until
# `assayd healthcheck` says ready, looks for the demo's scores, stops it with SIGTERM and wants exit code 0.
# Everything but the state folder is owned by root, so the daemon can write nowhere else. Needs root (chroot).
set -eu
binary=$(realpath "${1:?the static binary}")
here=$(cd "$(dirname "$0")/.." && pwd)
root=$(mktemp -d)
port=${ROOTFS_CHECK_PORT:-18484}
# By its full path: it is looked for without our PATH, and lies where only root looks.
chroot=$(PATH=$PATH:/usr/sbin:/sbin command -v chroot)
pid=
finish() {
    [ -z "$pid" ] || kill -KILL "$pid" 2>/dev/null || true
    rm -rf "$root"
}
trap finish EXIT

chmod 0755 "$root"
install -D -m 0755 "$binary" "$root/usr/bin/assayd"
install -d -m 0755 "$root/etc/assayd" "$root/etc/ssl/certs"
install -d -m 0700 -o 65532 -g 65532 "$root/var/lib/assayd"
cp -r "$here/monitors" "$root/etc/assayd/monitors"
sed "s/^listen:.*/listen: 127.0.0.1:$port/" "$here/assayd.yaml" > "$root/etc/assayd/assayd.yaml"
chmod -R a+rX "$root/etc"
[ ! -f /etc/ssl/certs/ca-certificates.crt ] || cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"

inside() {
    env -i ASSAYD_CONFIG=/etc/assayd/assayd.yaml ASSAYD_STATE=/var/lib/assayd SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt \
        "$chroot" --userspec=65532:65532 --groups= "$root" /usr/bin/assayd "$@"
}
fail() {
    echo "rootfs-check: $1" >&2
    sed 's/^/    /' "$root/var/lib/log" >&2 || true
    exit 1
}

inside --version
inside validate || fail "the shipped files are not sound"
# `exec`: the signal has to reach the daemon itself, not a shell before it.
(exec env -i ASSAYD_CONFIG=/etc/assayd/assayd.yaml ASSAYD_STATE=/var/lib/assayd \
    "$chroot" --userspec=65532:65532 --groups= "$root" /usr/bin/assayd run) > "$root/var/lib/log" 2>&1 &
pid=$!

waited=0
until inside healthcheck 2>/dev/null; do
    kill -0 "$pid" 2>/dev/null || fail "the daemon ended before it was ready"
    waited=$((waited + 1))
    [ "$waited" -le 100 ] || fail "not ready after 20 s"
    sleep 0.2
done

waited=0
until [ -s "$root/var/lib/assayd/demo-scores.jsonl" ]; do
    waited=$((waited + 1))
    [ "$waited" -le 100 ] || fail "the demo has no scores after 20 s"
    sleep 0.2
done

user=$(awk '/^Uid:/ { print $2 }' "/proc/$pid/status")
[ "$user" = 65532 ] || fail "the daemon runs as user $user"
kill -TERM "$pid"
code=0
wait "$pid" || code=$?
pid=
[ "$code" = 0 ] || fail "exit code $code after SIGTERM"
strays=$(find "$root" -xdev -user 65532 -not -path "$root/var/lib/assayd*" | head -5)
[ -z "$strays" ] || fail "written outside the state folder: $strays"
echo "rootfs-check: ready, judged $(wc -l < "$root/var/lib/assayd/demo-scores.jsonl") scores, stopped with exit code 0, as user 65532 in an empty root"
