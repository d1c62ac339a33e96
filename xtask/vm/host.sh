#!/usr/bin/env bash
# host.sh [OPTION…] -- CMD…    (as root)
# Runs CMD on this machine's kernel, in namespaces of its own (mounts, network, processes), so
# that whatever it leaves (links, mounts, pinned programs, daemons) ends with it, whatever happens
# to it. Options as in run.sh:
#   -p DIR    our programs, first on PATH       -d DIR    CMD's working folder
#   -o DIR    where /out is                     -e N=V    a variable of CMD's environment
#   -T 300    seconds until CMD is ended: exit status 124
#   -l LOCK   a file that tells whether others use the folders below
set -euo pipefail
programs= payload= out= limit=0 lock= environment=()
usage() { sed -n '2,9s/^# \?//p' "$0" >&2; exit 2; }
while getopts p:d:o:e:T:l: option; do
    case $option in
        p) programs=$OPTARG ;; d) payload=$OPTARG ;; o) out=$OPTARG ;; e) environment+=("$OPTARG") ;;
        T) limit=$OPTARG ;; l) lock=$OPTARG ;; *) usage ;;
    esac
done
shift $((OPTIND - 1))
[[ -n $lock && $# -ge 1 ]] || usage
((EUID == 0)) || { echo "host.sh: only root can make a lab" >&2; exit 125; }

# Two mount points have to be there outside too; who made one takes it away, if nobody uses it.
exec 9>"$lock"; flock -s 9
made=()
for folder in /out /run/netns; do
    [[ -d $folder ]] || { mkdir "$folder" && made+=("$folder"); }
done
work=$(mktemp -d)
cleanup() {
    rm -rf --one-file-system "$work"
    if flock -xn 9; then for folder in "${made[@]}"; do rmdir "$folder" 2>/dev/null || true; done; fi
}
trap cleanup EXIT
mkdir "$work/tmp" "$work/out" "$work/empty"

# The first process of the namespaces stays a shell: it has to collect orphans.
inside='
set -e
mount --bind "$1" /out
mount -t tmpfs tmpfs /run/netns
mount -t sysfs sysfs /sys
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup2 /sys/fs/cgroup 2>/dev/null || true
ip link set lo up
cd "$2"; limit=$3; shift 3
set +e
timeout --foreground -k 5 "$limit" "$@"
exit $?'
status=0
started=$SECONDS
env PATH="$programs:$PATH:/usr/sbin:/sbin" TMPDIR="$work/tmp" "${environment[@]}" \
    unshare --mount --net --pid --fork --kill-child --mount-proc --propagation private -- \
    bash -c "$inside" inside "${out:-$work/out}" "${payload:-$work/empty}" "$limit" "$@" 9>&- || status=$?
if [[ -n $out && -n ${SUDO_UID:-} ]]; then chown -R "$SUDO_UID:${SUDO_GID:-$SUDO_UID}" "$out"; fi
if ((limit > 0 && SECONDS - started >= limit && (status == 124 || status == 137))); then
    echo "host.sh: ended after $limit s" >&2
    exit 124
fi
exit "$status"
