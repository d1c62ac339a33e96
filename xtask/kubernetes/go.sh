# Sourced by what builds programs from Go modules; `here` is this folder, `cache` the one that keeps what is made.
# shellcheck shell=bash
pinned() { sed -n "s|^.*$2 v\([0-9.]*\).*|\1|p" "$1/go.mod" | head -1; }   # FOLDER MODULE
key_of() { (cd "$here" && cat "$@") | sha256sum | cut -c1-12; }            # FILE…

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

build() {   # INTO FOLDER PACKAGE [FLAGS]
    local program=$1/$(basename "$3")
    [[ ! -x $program ]] || return 0
    echo "building $(basename "$3")" >&2
    (cd "$2" && CGO_ENABLED=${CGO:-0} GOFLAGS=-mod=readonly nice "$go" build -trimpath -ldflags="-s -w${4:-}" -o "$program.new" "$3")
    mv "$program.new" "$program"
}

version=$(pinned "$here" k8s.io/kubernetes)
version_of_kubernetes=""
for pair in "gitVersion=v$version" "gitMajor=${version%%.*}" "gitMinor=$(cut -d. -f2 <<<"$version")"; do
    version_of_kubernetes+=" -X k8s.io/component-base/version.$pair"
done
