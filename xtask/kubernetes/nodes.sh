#!/usr/bin/env bash
# nodes.sh CACHE    prints the path of a folder in CACHE with kube-controller-manager, kube-scheduler, and root.img: the root
# of the nodes and of the VM around them, with kubelet, kube-proxy, containerd, runc, CNI plugins, one image for pods and flannel's.
# These are built from the Go modules that go.mod and go.sum here, in cni/ and in flannel/ pin; the rest is Debian's.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=$(mkdir -p "$1/kubernetes" && cd "$1/kubernetes" && pwd)
export PATH=$PATH:/usr/sbin:/sbin
exec 9>"$cache/nodes.lock"; flock 9
packages="busybox-static bash coreutils grep sed util-linux mount iproute2 iputils-ping containerd runc iptables nftables
 ipset conntrack ethtool procps kmod tcpdump socat wireguard-tools bpftool ca-certificates base-passwd netbase"
# shellcheck source=xtask/kubernetes/go.sh
source "$here/go.sh"
# The same files, the same programs and the same disk.
modules="go.mod go.sum cni/go.mod cni/go.sum flannel/go.mod flannel/go.sum"
# shellcheck disable=SC2086
built=$cache/programs-$(key_of $modules go.sh nodes.sh)
# shellcheck disable=SC2086
nodes=$cache/nodes-$(cd "$here" && key_of $modules go.sh nodes.sh node/* ../vm/guest)
[[ ! -e $nodes/root.img ]] || { touch "$nodes"; echo "$nodes"; exit; }

mkdir -p "$built"
for program in kube-controller-manager kube-scheduler kubelet kube-proxy; do build "$built" "$here" "k8s.io/kubernetes/cmd/$program" "$version_of_kubernetes"; done
plugins=(main/bridge main/loopback ipam/host-local meta/portmap)
for plugin in "${plugins[@]}"; do build "$built" "$here/cni" "github.com/containernetworking/plugins/plugins/$plugin"; done

# A part of it is C; static the other way, since its image has no library.
CGO=1 build "$built" "$here/flannel" github.com/flannel-io/flannel " -extldflags=-static" 2>"$built/flannel.log" || { cat "$built/flannel.log" >&2; exit 1; }

# The whole closure of the packages, downloaded and not installed: apt is shown that nothing is installed.
debs=$cache/debs-$(sha256sum <<<"$packages" | cut -c1-12)
if [[ ! -e $debs/done ]]; then
    echo "downloading Debian's packages of the nodes" >&2
    rm -rf "$debs"; mkdir -p "$debs/partial"; : >"$debs/status"
    download() {
        # shellcheck disable=SC2086
        ${SUDO:-} apt-get -q install -y --no-install-recommends --download-only -o Debug::NoLocking=1 -o APT::Sandbox::User=root \
            -o Dir::State::status="$debs/status" -o Dir::Cache::archives="$debs" $packages >&2
    }
    download || { ${SUDO:-} apt-get -q update >&2; download; }
    touch "$debs/done"
fi

echo "making the nodes' disk" >&2
rm -rf "$nodes.new"; root=$nodes.new/root; mkdir -p "$root"/usr/{bin,sbin,lib,lib64}
# Links first: a package's /bin has to land in /usr/bin.
for dir in bin sbin lib lib64; do ln -s "usr/$dir" "$root/$dir"; done
for deb in "$debs"/*.deb; do
    dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$root" --keep-directory-symlink --exclude='./usr/share/doc' --exclude='./usr/share/man' \
        --exclude='./usr/share/locale' --exclude='./usr/share/perl*' --exclude='./usr/lib/*/perl*' --exclude='./usr/lib/*/gconv'
done
mkdir -p "$root"/{proc,sys,dev,run,tmp,data,lower,mnt,out,payload,root} "$root"/opt/{node,images,cni/bin,kubeveil}
# What the packages would have done when they were installed.
for table in iptables ip6tables; do
    for which in '' -save -restore; do ln -sf "$table-nft$which" "$root/usr/sbin/$table$which"; done
done
printf '%s:x:0:0:root:/root:/bin/bash\n' root tcpdump >"$root/etc/passwd"
printf '%s:x:0:\n' root tcpdump >"$root/etc/group"
printf '127.0.0.1 localhost\n::1 localhost\n' >"$root/etc/hosts"; : >"$root/etc/resolv.conf"
rm -rf "$root/var/run"; ln -s /run "$root/var/run"
ln -sf bash "$root/usr/bin/sh"; ln -s busybox "$root/usr/bin/hostname"
cp "$here/../vm/guest" "$root/.guest"
cp "$here"/node/* "$root/opt/node/"
cp "$built"/{kubelet,kube-proxy} "$root/usr/bin/"
for plugin in "${plugins[@]}"; do cp "$built/${plugin#*/}" "$root/opt/cni/bin/"; done

# Images as archives that `ctr images import` reads.
pack() { tar -C "$1" --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -cf "$2" "${@:3}"; }
image() {   # FOLDER NAME ENTRYPOINT
    local made=$nodes.new/image-$2; mkdir -p "$made"
    pack "$1" "$made/layer.tar" .
    cat >"$made/config.json" <<JSON
{"architecture":"amd64","os":"linux","config":{"Entrypoint":[$3],"Env":["PATH=/bin:/sbin"]},
 "rootfs":{"type":"layers","diff_ids":["sha256:$(sha256sum "$made/layer.tar" | cut -d' ' -f1)"]}}
JSON
    echo "[{\"Config\":\"config.json\",\"RepoTags\":[\"kubeveil.test/$2:1\"],\"Layers\":[\"layer.tar\"]}]" >"$made/manifest.json"
    pack "$made" "$root/opt/images/$2.tar" manifest.json config.json layer.tar
}
# busybox with its applets.
tools=$nodes.new/tools; mkdir -p "$tools"/{bin,tmp,etc}
cp "$root/usr/bin/busybox" "$tools/bin/"
for applet in $("$tools/bin/busybox" --list); do [[ $applet == busybox ]] || ln -s busybox "$tools/bin/$applet"; done
image "$tools" tools '"/bin/sleep","1000000"'
# It runs nft: its manifest mounts the node's /usr.
flannel=$nodes.new/flannel; mkdir -p "$flannel"/{usr,opt}
for dir in bin sbin lib lib64; do ln -s "usr/$dir" "$flannel/$dir"; done
cp "$built/flannel" "$flannel/opt/"
image "$flannel" flannel '"/opt/flannel"'

mkfs.erofs -Enoinline_data --all-root "$nodes.new/root.img" "$root" >/dev/null
cp "$built"/kube-{controller-manager,scheduler} "$nodes.new/"
rm -rf "$root" "$nodes.new"/{image-*,tools,flannel} "$nodes"; mv "$nodes.new" "$nodes"
# Older ones: the newest three stay, a running VM may still read one.
{ ls -dt "$cache"/nodes-*/ | tail -n +4 | xargs -r rm -rf; } 2>/dev/null || true
echo "$nodes"
