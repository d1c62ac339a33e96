#!/usr/bin/env bash
# kernel.sh CACHE VERSION    (6.12, 6.1: as Debian names them; canary: one that is newer than both)
# Makes CACHE/kernel-VERSION-KEY/{vmlinux,initramfs,modules.img,release}, prints that folder.
# KEY is over this script and what goes into the image: a changed one makes a new folder.
# KUBEVEIL_KERNEL_DEB names a kernel package to take instead of apt's.
set -euo pipefail
cache=$(mkdir -p "$1" && cd "$1" && pwd) version=$2
here=$(cd "$(dirname "$0")" && pwd)
export PATH=$PATH:/usr/sbin:/sbin
log() { echo "kernel: $*" >&2; }
# The newest with WireGuard and BTF when this was written, and where it is.
canary=7.3.4+deb13-amd64 suite=trixie-backports

key=$(cat "$here/kernel.sh" "$here/init" "$here/modules" - <<<"${KUBEVEIL_KERNEL_DEB:-}" | sha256sum | cut -c1-12)
dir=$cache/kernel-$version-$key
exec 9>"$cache/kernel.lock"; flock 9                     # two at once: the second waits
[[ -e $dir/release ]] && { touch "$dir"; echo "$dir"; exit; }

# From another suite than this machine's, so with lists of its own. Its kernel and modules are packages by themselves.
fetch_canary() {   # FOLDER
    local lists=$1/apt mirror
    mirror=$(apt-get indextargets --format '$(SITE)' 'Origin: Debian' 'Label: Debian' | head -1)
    [[ -n $mirror ]] || { log "apt knows no archive of Debian's; set KUBEVEIL_KERNEL_DEB"; exit 1; }
    mkdir -p "$lists"/{lists,cache/archives}/partial
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" >"$lists/sources.list"
    apt_get() {
        apt-get -q -o APT::Sandbox::User=root -o Dir::Etc::sourcelist="$lists/sources.list" -o Dir::Etc::sourceparts=- \
            -o Dir::State::lists="$lists/lists" -o Dir::Cache="$lists/cache" "$@" >&2
    }
    apt_get update
    (cd "$1" && apt_get download linux-{base,binary,modules}-"$canary") ||
        { log "$suite has no kernel $canary any more; name a newer one here, or set KUBEVEIL_KERNEL_DEB"; exit 1; }
    for package in "$1"/*.deb; do dpkg-deb -x "$package" "$1"; rm "$package"; done
    rm -r "$lists"
}

# The package unpacked, not installed. Not the metapackage itself: its dependency names the image.
fetch() {   # FOLDER
    if [[ -n ${KUBEVEIL_KERNEL_DEB:-} ]]; then dpkg-deb -x "$KUBEVEIL_KERNEL_DEB" "$1"; return; fi
    if [[ $version == canary ]]; then fetch_canary "$1"; return; fi
    local meta image
    case $version in 6.1) meta=linux-image-amd64 ;; *) meta=linux-image-$version-amd64 ;; esac
    image_of() { apt-cache depends "$meta" 2>/dev/null | sed -n 's/.*Depends: \(linux-image-.*\)/\1/p' | head -1; }
    image=$(image_of); [[ -n $image ]] || { ${SUDO:-} apt-get -q update >&2; image=$(image_of); }
    [[ -n $image ]] || { log "apt has no $meta; set KUBEVEIL_KERNEL_DEB to Debian's package of a kernel with WireGuard"; exit 1; }
    log "$image"
    (cd "$1" && apt-get -q -o APT::Sandbox::User=root download "$image" >&2 && dpkg-deb -x ./*.deb . && rm ./*.deb)
}
unpacked=$cache/unpacked-$version${KUBEVEIL_KERNEL_DEB:+-$key}
[[ $version == canary && -z ${KUBEVEIL_KERNEL_DEB:-} ]] && unpacked=$cache/unpacked-$canary
if [[ ! -e $unpacked/done ]]; then
    rm -rf "$unpacked"; mkdir -p "$unpacked"
    fetch "$unpacked"
    touch "$unpacked/done"
fi
modules=$(dirname "$(find "$unpacked" -path '*/lib/modules/*/kernel' -type d | head -1)")
release=$(basename "$modules")
rm -rf "$dir.new"; mkdir -p "$dir.new"

# The kernel, decompressed here: under emulation the guest would need 1 to 3 s for it.
is_elf() { [[ $(head -c4 "$1" | tail -c3) == ELF ]]; }
bzimage=$unpacked/boot/vmlinuz-$release
[[ -e $bzimage ]] || bzimage=$modules/vmlinuz
for method in '\x28\xb5\x2f\xfd zstd' '\xfd7zXZ\x00 xz'; do
    read -r magic program <<<"$method"
    for at in $(LC_ALL=C grep -aboP "$magic" "$bzimage" | cut -d: -f1); do
        tail -c+$((at + 1)) "$bzimage" | "$program" -dcq >"$dir.new/vmlinux" 2>/dev/null || true
        is_elf "$dir.new/vmlinux" && break 2
    done
done
is_elf "$dir.new/vmlinux" || { log "no kernel found in $bzimage"; exit 1; }

# The modules of the list with what they need, decompressed, with a depmod of their own
# (the full modules.alias is 1.5 MB, and slow to read for busybox under emulation).
depmod -b "${modules%/lib/modules/*}" "$release"
tree=$dir.new/tree/usr/lib/modules/$release              # usr/lib: a `lib` would hide the tools' lib -> usr/lib
mkdir -p "$tree"
cp "$modules"/modules.{builtin,builtin.modinfo,order} "$tree/"
while read -r name; do
    [[ -z $name || $name == \#* ]] && continue
    modprobe -d "${modules%/lib/modules/*}" -S "$release" --show-depends "$name" 2>/dev/null ||
        log "no module $name in $release"
done <"$here/modules" | sed -n 's/^insmod \([^ ]*\).*/\1/p' | sort -u | while read -r file; do
    to=$tree/${file#"$modules/"}
    mkdir -p "$(dirname "$to")"
    case $file in
        *.xz) xz -dc "$file" >"${to%.xz}" ;;
        *.zst) zstd -dcq "$file" >"${to%.zst}" ;;
        *) cp "$file" "$to" ;;
    esac
done
ln -s usr/lib "$dir.new/tree/lib"
depmod -b "$dir.new/tree" "$release"
mkfs.erofs -Enoinline_data --all-root "$dir.new/modules.img" "$dir.new/tree" >/dev/null

# The initramfs: busybox, init, and the modules without which no disk can be read.
root=$dir.new/initramfs.d
mkdir -p "$root"/{bin,dev,proc,sys,m,new}
cp "$(command -v busybox)" "$root/bin/busybox"
cp "$here/init" "$root/init"; chmod +x "$root/init"
for name in virtio_pci virtio_blk virtio_console erofs overlay; do
    modprobe -d "$dir.new/tree" -S "$release" --show-depends "$name" 2>/dev/null || true
done | sed -n 's/^insmod \([^ ]*\).*/\1/p' | awk '!seen[$0]++' | while read -r file; do
    cp "$file" "$root/m/"
    echo "/m/$(basename "$file")"
done >"$root/m/list"
(cd "$root" && find . | cpio -o -H newc --quiet -R 0:0) >"$dir.new/initramfs"

rm -rf "$dir.new/tree" "$root"
echo "$release" >"$dir.new/release"
rm -rf "$dir"; mv "$dir.new" "$dir"
# Older ones of this version: the newest three stay, a running guest may still read one.
{ ls -dt "$cache/kernel-$version"-*/ | tail -n +4 | xargs -r rm -rf; } 2>/dev/null || true
log "$release: $(du -sh "$dir" | cut -f1)"
echo "$dir"
