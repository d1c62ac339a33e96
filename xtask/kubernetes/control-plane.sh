#!/usr/bin/env bash
# control-plane.sh CACHE    prints the path of a folder in CACHE with etcd (Debian's package, unpacked and not installed),
# kube-apiserver and kubectl (built from the Go modules that go.mod and go.sum beside this file pin).
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=$(mkdir -p "$1/kubernetes" && cd "$1/kubernetes" && pwd)
exec 9>"$cache/lock"; flock 9
version=$(sed -n 's|^.*k8s.io/kubernetes v\([0-9.]*\).*|\1|p' "$here/go.mod" | head -1)
# The same files, the same programs.
bin=$cache/$version-$(cat "$here"/{go.mod,go.sum,control-plane.sh} | sha256sum | cut -c1-12)
mkdir -p "$bin"

# A Go that is older than what go.mod asks for fetches the one that it asks for; one that can't yet (before 1.21) is helped:
# the toolchain is a module like any other.
toolchain=go1.25.5
go=$(command -v go)
if ! "$go" version | grep -Eq 'go1\.(2[1-9]|[3-9][0-9])'; then
    module=golang.org/toolchain@v0.0.1-$toolchain.linux-$("$go" env GOARCH)
    folder=$(cd "$cache" && GOFLAGS='' "$go" mod download -json "$module" | sed -n 's/.*"Dir": "\(.*\)",/\1/p')
    chmod -R u+w "$folder" && chmod +x "$folder"/bin/* "$folder"/pkg/tool/*/*
    go=$folder/bin/go
fi

if [[ ! -x $bin/etcd ]]; then
    work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
    (cd "$work"
     apt-get -q download etcd-server >&2 || { ${SUDO:-} apt-get -q update >&2; apt-get -q download etcd-server >&2; }
     dpkg-deb -x ./etcd-server_*.deb .
     mv usr/bin/etcd "$bin/etcd")
fi

flags="-s -w"
for pair in "gitVersion=v$version" "gitMajor=${version%%.*}" "gitMinor=$(cut -d. -f2 <<<"$version")"; do
    flags+=" -X k8s.io/component-base/version.$pair"
done
for program in kube-apiserver kubectl; do
    if [[ ! -x $bin/$program ]]; then
        echo "building $program $version" >&2
        (cd "$here" && CGO_ENABLED=0 GOFLAGS=-mod=readonly nice "$go" build -trimpath -ldflags="$flags" \
            -o "$bin/$program.new" "k8s.io/kubernetes/cmd/$program")
        mv "$bin/$program.new" "$bin/$program"
    fi
done
echo "$bin"
