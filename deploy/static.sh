#!/bin/sh
# Builds the one binary that images hold, linked statically and without symbols: dist/amd64/quorate or dist/arm64/quorate.
# Needs the Rust toolchain, a C compiler's linker and glibc's static archive (libc6-dev); used by deploy/Dockerfile and by .ci/run.
set -eu
cd "$(dirname "$0")/.."
target=$(rustc -vV | sed -n 's/^host: //p')
case $target in
  x86_64-*) arch=amd64 ;;
  aarch64-*) arch=arm64 ;;
  *) echo "no name for images of $target" >&2 && exit 1 ;;
esac
# With --target, so that the flags do not reach what runs while building.
RUSTFLAGS="-C target-feature=+crt-static" cargo build --release --locked --target "$target" --package quorate
mkdir -p "dist/$arch"
strip -o "dist/$arch/quorate" "${CARGO_TARGET_DIR:-target}/$target/release/quorate"
