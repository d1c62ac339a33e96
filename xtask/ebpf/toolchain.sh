#!/usr/bin/env bash
# toolchain.sh CACHE    prints CACHE/ebpf-KEY/cargo-bpf, a cargo that builds for bpfel-unknown-none.
#   cargo-bpf build --release      (in an aya-ebpf crate)
# Called again it finds everything there. KEY is over this script and the rustc in use.
#
# A stable rustc can't build for BPF by itself: it lacks `core` for that target, and the
# linker. Three ways to `core`, the first that this machine allows:
#   1  rustc has its own library's source (`rust-src`): -Zbuild-std
#   2  Debian's rustc-web packages hold `core` for BPF, prebuilt; unpacked here, not installed
#   3  rustup can fetch `rust-src`: then as 1
set -euo pipefail
linker_version=0.13.0
log() { echo "toolchain: $*" >&2; }

key=$( { cat "$0"; rustc -vV; } | sha256sum | cut -c1-12)
cache=$(mkdir -p "$1/ebpf-$key" && cd "$1/ebpf-$key" && pwd)
exec 9>"$cache/lock"; flock 9                            # two builds at once: the second waits
if [[ -e $cache/way ]]; then
    [[ $(<"$cache/way") != 1 || -f $(rustc --print sysroot)/lib/rustlib/src/rust/library/core/src/lib.rs ]] &&
        { touch "$cache"; echo "$cache/cargo-bpf"; exit; }
    rm "$cache/way"
fi

sysroot=$(rustc --print sysroot)
has_source() { [[ -f $sysroot/lib/rustlib/src/rust/library/core/src/lib.rs ]]; }
debian_version() { apt-cache show libstd-rust-web-dev-bpf 2>/dev/null | sed -n 's/^Version: //p' | head -1; }

way=2 version=
if has_source; then way=1
elif [[ ! -e $cache/debian/done ]]; then
    if command -v apt-get >/dev/null; then
        version=$(debian_version)
        [[ -n $version ]] || { ${SUDO:-} apt-get -q update >&2 && version=$(debian_version); }
    fi
    if [[ -z $version ]]; then
        log "adding rustc's own source by rustup: core has to be built for BPF"
        command -v rustup >/dev/null && rustup component add rust-src >&2 && has_source || {
            log "neither Debian's rustc-web packages nor rust-src are to be had here."
            log "install the source of this rustc's library (rustup component add rust-src), then try again"
            exit 1; }
        way=1
    fi
fi

if [[ $way == 1 ]]; then
    llvm=$(ls "$sysroot"/lib/libLLVM*.so* "$sysroot"/lib/libLLVM.so.* 2>/dev/null | head -1)
    [[ -n $llvm ]] || { log "no libLLVM beside $sysroot/lib: bpf-linker needs the compiler's own LLVM"; exit 1; }
else
    # All packages of one version, or the rlibs are refused ("compiled by another rustc").
    root=$cache/debian
    if [[ ! -e $root/done ]]; then
        series=$(cut -d. -f1,2 <<<"$version")            # 1.96.0+dfsg1-… -> 1.96
        std=libstd-rust-web-$series
        llvm_package=$(apt-cache depends "$std=$version" | sed -n 's/.*Depends: \(libllvm[0-9]*\).*/\1/p')
        log "Debian's rustc-web $version with $llvm_package: core for BPF, 120 MB"
        rm -rf "$cache/debs" "$root"; mkdir -p "$cache/debs" "$root"
        (cd "$cache/debs" && apt-get -q -o APT::Sandbox::User=root download "rustc-web=$version" "$std=$version" \
            "libstd-rust-web-dev=$version" "libstd-rust-web-dev-bpf=$version" "$llvm_package" >&2)
        for deb in "$cache"/debs/*.deb; do dpkg-deb -x "$deb" "$root"; done
        rm -rf "$cache/debs" "$root/usr/share"
        touch "$root/done"
    fi
    libs=$(dirname "$(find "$root/usr/lib" -name 'libLLVM.so.*' | head -1)")
    llvm=$(ls "$libs"/libLLVM.so.* | head -1)
    cat >"$cache/rustc" <<EOS
#!/bin/sh
LD_LIBRARY_PATH='$libs' exec '$root/usr/bin/rustc' --sysroot '$root/usr' "\$@"
EOS
    chmod +x "$cache/rustc"
    # Missing system libraries show here and not in the midst of a build.
    "$cache/rustc" -vV >/dev/null || { ldd "$llvm" | grep 'not found' >&2; exit 1; }
fi

# bpf-linker against the LLVM of the very rustc that makes the bitcode: never older than it.
soname=$(basename "$llvm")                               # libLLVM.so.22.1[-rust-…]
major=$(sed 's/[^0-9]*\([0-9]*\).*/\1/' <<<"$soname")
log "building bpf-linker $linker_version against LLVM $major ($soname)"
rm -rf "$cache/llvm"; mkdir -p "$cache/llvm/lib"
ln -s "$llvm" "$cache/llvm/lib/libLLVM.so"
[[ $soname == libLLVM.so ]] || ln -s "$llvm" "$cache/llvm/lib/$soname"
LLVM_PREFIX=$cache/llvm CARGO_TARGET_DIR=$cache/linker-build CARGO_PROFILE_RELEASE_DEBUG=0 \
CARGO_ENCODED_RUSTFLAGS="-Clink-arg=-Wl,-rpath,$(dirname "$llvm"),--disable-new-dtags" \
    cargo install -q bpf-linker --version "$linker_version" --no-default-features \
    --features "llvm-$major" --locked --force --root "$cache" >&2
rm -rf "$cache/linker-build"

{
    echo '#!/bin/sh'
    if [[ $way == 2 ]]; then echo "export RUSTC='$cache/rustc'; std="; else echo 'std=-Zbuild-std=core'; fi
    cat <<EOS
unset RUSTFLAGS RUSTC_WRAPPER RUSTC_WORKSPACE_WRAPPER
# aya-ebpf's features of the nightly compiler, on a stable one.
export RUSTC_BOOTSTRAP=1 CARGO_BUILD_TARGET=bpfel-unknown-none
export CARGO_ENCODED_RUSTFLAGS="\$(printf -- '-Cdebuginfo=2\\037-Clink-arg=--btf\\037-Clinker=%s' '$cache/bin/bpf-linker')"
command=\$1; shift
exec cargo "\$command" \$std "\$@"
EOS
} >"$cache/cargo-bpf.new"
chmod +x "$cache/cargo-bpf.new"; mv "$cache/cargo-bpf.new" "$cache/cargo-bpf"
echo "$way" >"$cache/way"
# Older ones: the newest two stay.
{ ls -dt "$1"/ebpf-*/ | tail -n +3 | xargs -r rm -rf; } 2>/dev/null || true
log "ready (way $way)"
echo "$cache/cargo-bpf"
