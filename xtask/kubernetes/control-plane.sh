#!/usr/bin/env bash
# control-plane.sh CACHE    prints the path of a folder in CACHE with etcd (Debian's package, unpacked and not installed),
# kube-apiserver, kubectl and helm (built from the Go modules that go.mod and go.sum here and in helm/ pin).
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=$(mkdir -p "$1/kubernetes" && cd "$1/kubernetes" && pwd)
exec 9>"$cache/lock"; flock 9
# shellcheck source=xtask/kubernetes/go.sh
source "$here/go.sh"
# The same files, the same programs.
bin=$cache/$version-$(key_of go.mod go.sum helm/go.mod helm/go.sum go.sh control-plane.sh)
mkdir -p "$bin"

if [[ ! -x $bin/etcd ]]; then
    work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
    (cd "$work"
     apt-get -q download etcd-server >&2 || { ${SUDO:-} apt-get -q update >&2; apt-get -q download etcd-server >&2; }
     dpkg-deb -x ./etcd-server_*.deb .
     mv usr/bin/etcd "$bin/etcd")
fi

for program in kube-apiserver kubectl; do build "$bin" "$here" "k8s.io/kubernetes/cmd/$program" "$version_of_kubernetes"; done

# Without a cluster helm renders for the Kubernetes whose client library it has (its Makefile sets the same).
library=$(pinned "$here/helm" k8s.io/client-go)
version_of_helm=" -X helm.sh/helm/v3/internal/version.version=v$(pinned "$here/helm" helm.sh/helm/v3)"
for package in chartutil lint/rules; do
    version_of_helm+=" -X helm.sh/helm/v3/pkg/$package.k8sVersionMajor=1"
    version_of_helm+=" -X helm.sh/helm/v3/pkg/$package.k8sVersionMinor=$(cut -d. -f2 <<<"$library")"
done
build "$bin" "$here/helm" helm.sh/helm/v3/cmd/helm "$version_of_helm"
echo "$bin"
