#!/usr/bin/env bash
# Builds the release binary with a static libc, as the Dockerfile does, and prints its path on standard output.
# The gnu target does: naming it keeps the flag away from build scripts and procedural macros, which cannot be static.
set -eu
cd "$(dirname "$0")/.."
target=$(rustc -vV | sed -n 's/^host: //p')
# getrandom looks its system call up by name, which a static binary cannot, and would read /dev/urandom, which an empty
# root does not have: it is told to make the call.
RUSTFLAGS='-C target-feature=+crt-static --cfg getrandom_backend="linux_getrandom"' cargo build --release --locked --bin assayd --target "$target" >&2
binary=$(realpath "${CARGO_TARGET_DIR:-target}/$target/release/assayd")
# A dynamic binary names its loader in an INTERP header, a static one has none.
if readelf -l "$binary" 2>/dev/null | grep -q INTERP; then
    echo "static-build: $binary is not static" >&2
    exit 1
fi
printf '%s\n' "$binary"
