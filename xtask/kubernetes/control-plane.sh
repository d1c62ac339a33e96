#!/usr/bin/env bash
# control-plane.sh CACHE    prints the path of a folder in CACHE with etcd (Debian's package, unpacked and not installed),
# kube-apiserver, kubectl and helm (built from the Go modules that go.mod and go.sum here and in helm/ pin).
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=$(mkdir -p "$1/kubernetes" && cd "$1/kubernetes" && pwd)
exec 9>"$cache/lock"; flock 9
pinned() { sed -n "s|^.*$2 v\([0-9.]*\).*|\1|p" "$1/go.mod" | head -1; }   # FOLDER MODULE
version=$(pinned "$here" k8s.io/kubernetes)
# The same files, the same programs.
bin=$cache/$version-$(cat "$here"/{go.mod,go.sum,helm/go.mod,helm/go.sum,control-plane.sh} | sha256sum | cut -c1-12)
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

build() {   # FOLDER PACKAGE FLAGS
    local program=$bin/$(basename "$2")
    [[ ! -x $program ]] || return 0
    echo "building $(basename "$2")" >&2
    (cd "$1" && CGO_ENABLED=0 GOFLAGS=-mod=readonly nice "$go" build -trimpath -ldflags="-s -w$3" -o "$program.new" "$2")
    mv "$program.new" "$program"
}
version_of_kubernetes=""
for pair in "gitVersion=v$version" "gitMajor=${version%%.*}" "gitMinor=$(cut -d. -f2 <<<"$version")"; do
    version_of_kubernetes+=" -X k8s.io/component-base/version.$pair"
done
for program in kube-apiserver kubectl; do build "$here" "k8s.io/kubernetes/cmd/$program" "$version_of_kubernetes"; done

# Without a cluster helm renders for the Kubernetes whose client library it has (its Makefile sets the same).
library=$(pinned "$here/helm" k8s.io/client-go)
version_of_helm=" -X helm.sh/helm/v3/internal/version.version=v$(pinned "$here/helm" helm.sh/helm/v3)"
for package in chartutil lint/rules; do
    version_of_helm+=" -X helm.sh/helm/v3/pkg/$package.k8sVersionMajor=1"
    version_of_helm+=" -X helm.sh/helm/v3/pkg/$package.k8sVersionMinor=$(cut -d. -f2 <<<"$library")"
done
build "$here/helm" helm.sh/helm/v3/cmd/helm "$version_of_helm"
echo "$bin"
