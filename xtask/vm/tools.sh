#!/usr/bin/env bash
# tools.sh CACHE    makes CACHE/tools-KEY.img, the guest's root, and prints that path.
# It holds busybox' applets, the programs below with their shared libraries, and Python with
# its standard library where the machine has it. KEY is over the scripts and the programs.
set -euo pipefail
cache=$(mkdir -p "$1" && cd "$1" && pwd)
here=$(cd "$(dirname "$0")" && pwd)
export PATH=$PATH:/usr/sbin:/sbin
# Without these the lab can't run; xtask's set-up has installed them.
needed=(bash ip tc ss bridge wg ping tcpdump nft iperf3 socat timeout sleep stat date sort grep sed awk)
# Better than busybox' applets of the same name, or of use to who looks round.
wanted=(bpftool wg-quick ps pgrep pkill sysctl ethtool conntrack nsenter unshare mount umount jq cat ls head tail tr cut wc od seq stty)

programs=()
for program in "${needed[@]}"; do
    programs+=("$(type -P "$program")") || { echo "tools: this machine has no $program" >&2; exit 1; }
done
for program in "${wanted[@]}"; do
    if file=$(type -P "$program"); then programs+=("$file"); fi
done
# Ask the interpreter itself where its parts are: a Debian one and a pyenv one differ.
python=$(python3 "$here/python.py" paths 2>/dev/null) || python=

key=$( { cat "$here/tools.sh" "$here/guest" "$here/python.py"; stat -L -c '%n %s %Y' "${programs[@]}"; echo "$python"; } | sha256sum | cut -c1-12)
image=$cache/tools-$key.img
exec 9>"$cache/tools.lock"; flock 9
[[ -e $image ]] && { touch "$image"; echo "$image"; exit; }

root=$cache/tools.d
rm -rf "$root"; mkdir -p "$root"/{dev,proc,sys,tmp,out,payload,run,mnt,root,etc,opt,usr/bin,usr/sbin,usr/lib,usr/lib64,usr/local/bin,var}
for dir in bin sbin lib lib64; do ln -s "usr/$dir" "$root/$dir"; done
ln -s /run "$root/var/run"
cp "$(type -P busybox)" "$root/usr/bin/busybox"
for applet in $("$root/usr/bin/busybox" --list); do
    [[ $applet == busybox ]] || ln -s busybox "$root/usr/bin/$applet"
done
ln -s ../bin/busybox "$root/usr/sbin/modprobe"           # the kernel asks for it by that path

# Libraries go where the loader of this machine looks for them.
libraries_of() { { ldd "$@" 2>/dev/null || true; } | sed -n 's/.*=> \(\/[^ ]*\) (.*/\1/p; s/^[[:space:]]*\(\/[^ ]*\) (.*/\1/p' | sort -u; }
copy_libraries() {
    local library to
    while read -r library; do
        to=$root/$(readlink -f "$(dirname "$library")")
        mkdir -p "$to"; cp -L "$library" "$to/"
    done
}
for program in "${programs[@]}"; do
    to=$root/usr/bin/$(basename "$program")
    rm -f "$to"; cp -L "$program" "$to"
done
libraries_of "${programs[@]}" | copy_libraries
if [[ -n $python ]]; then
    python3 "$here/python.py" copy "$root"
    find "$root" -name '*.so' -path '*python*' -o -name 'python3*' -path '*/bin/*' -type f | while read -r file; do
        libraries_of "${file#"$root"}"
    done | sort -u | copy_libraries
fi

cp "$here/guest" "$root/.guest"
# tcpdump becomes the user that Debian built it for, and ends where there is none. Here it is root by another name:
# all in the guest is, and so it can write where COMMAND wants its captures.
printf '%s:x:0:0:root:/root:/bin/bash\n' root tcpdump >"$root/etc/passwd"
printf '%s:x:0:\n' root tcpdump >"$root/etc/group"
printf '127.0.0.1 localhost\n::1 localhost\n' >"$root/etc/hosts"
cp /etc/protocols /etc/services "$root/etc/" 2>/dev/null || true
mkdir -p "$root/etc/iproute2"
cp -rL /etc/iproute2/. /usr/share/iproute2/. "$root/etc/iproute2/" 2>/dev/null || true

mkfs.erofs -Enoinline_data --all-root "$image.new" "$root" >/dev/null
rm -rf "$root"
mv "$image.new" "$image"
{ ls -t "$cache"/tools-*.img | tail -n +4 | xargs -r rm -f; } 2>/dev/null || true
echo "tools: $(du -sh "$image" | cut -f1)" >&2
echo "$image"
