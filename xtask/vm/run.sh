#!/usr/bin/env bash
# run.sh -k KERNEL_DIR -i TOOLS_IMG [OPTION…] -- CMD…
# Boots the kernel that kernel.sh made on the root that tools.sh made, and runs CMD as root.
# Standard input, output, error and the exit status are CMD's.
#   -p DIR    our programs: /opt/kubeveil, first on PATH
#   -d DIR    payload: CMD's working folder; what CMD writes there is gone afterwards
#   -o DIR    what CMD leaves in /out is unpacked there
#   -e N=V    a variable of CMD's environment (more than once)
#   -T 300    seconds until CMD is ended: exit status 124
#   -t        CMD gets a terminal (for an interactive shell)
#   -c 1      virtual CPUs          -m 2G   memory      -C qemu64   CPU model
#   -n PORT   a way in: this port of 127.0.0.1 is the guest's port 2222, which also reaches this machine as 10.0.2.2
#   -s FILE   a disk that is written to: /dev/disk-scratch
#   -l LOG    keep the kernel's log (else shown only when the guest dies: exit status 125)
# KUBEVEIL_VM_WATCH=PID in the environment: end when that process is gone.
set -euo pipefail
kernel= tools= programs= payload= out= limit=0 tty= cpus=1 memory=2G cpu=qemu64 keep= way_in= scratch= watched=${KUBEVEIL_VM_WATCH:-}
environment=()
usage() { sed -n '2,16s/^# \?//p' "$0" >&2; exit 2; }
while getopts k:i:p:d:o:e:T:tc:m:C:n:s:l: option; do
    case $option in
        k) kernel=$OPTARG ;; i) tools=$OPTARG ;; p) programs=$OPTARG ;; d) payload=$OPTARG ;;
        o) out=$OPTARG ;; e) environment+=("$OPTARG") ;; T) limit=$OPTARG ;; t) tty=1 ;;
        c) cpus=$OPTARG ;; m) memory=$OPTARG ;; C) cpu=$OPTARG ;;
        n) way_in=$OPTARG ;; s) scratch=$OPTARG ;; l) keep=$OPTARG ;;
        *) usage ;;
    esac
done
shift $((OPTIND - 1))
[[ -n $kernel && -n $tools && $# -ge 1 ]] || usage
export PATH=$PATH:/usr/sbin:/sbin

work=$(mktemp -d)
pids=() qemu_pid=
cleanup() {
    trap '' INT TERM HUP
    [[ -z $qemu_pid ]] || kill "$qemu_pid" 2>/dev/null || true
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    if [[ -n $keep ]]; then cp "$work/console" "$keep" 2>/dev/null || true; fi
    rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 129' HUP; trap 'exit 130' INT; trap 'exit 143' TERM

# The command as a disk of its own, read by bash as a script; newlines fill the last sector.
{ for pair in "${environment[@]}"; do printf 'export %q\n' "$pair"; done
  printf 'exec '; printf '%q ' "$@"; echo; } >"$work/command"
size=$(stat -c %s "$work/command")
head -c $((512 - size % 512)) /dev/zero | tr '\0' '\n' >>"$work/command"

# -Enoinline_data: whole blocks only, quick to make (60 MB in 0.1 s). Not compressed.
mkdir "$work/empty"
for pair in "payload ${payload:-$work/empty}" "programs ${programs:-$work/empty}"; do
    mkfs.erofs -Enoinline_data --all-root "$work/${pair%% *}" "${pair#* }" >"$work/mkfs" 2>&1 ||
        { echo "run.sh: ${pair#* } could not be made a disk of:" >&2; cat "$work/mkfs" >&2; exit 125; }
done

disks=() ports=()
disk() { disks+=(-drive "file=$2,if=none,id=$1,format=raw,readonly=on" -device "virtio-blk-pci,drive=$1,serial=$1"); }
port() { ports+=(-chardev "$2,id=$1" -device "virtserialport,chardev=$1,name=$1"); }
disk tools "$tools"; disk modules "$kernel/modules.img"
for name in payload programs command; do disk "$name" "$work/$name"; done
if [[ -n $scratch ]]; then
    disks+=(-drive "file=$scratch,if=none,id=scratch,format=raw,cache=unsafe" -device virtio-blk-pci,drive=scratch,serial=scratch)
fi
network=()
if [[ -n $way_in ]]; then
    network=(-netdev "user,id=way-in,hostfwd=tcp:127.0.0.1:$way_in-:2222" -device virtio-net-pci,netdev=way-in)
fi

# One port a stream: QEMU discards what the guest writes to a port whose other direction has ended.
mkfifo "$work/stdin" "$work/stdout" "$work/stderr" "$work/files"
cat "$work/stdout" & pids+=($!); reader_out=$!
cat "$work/stderr" >&2 & pids+=($!); reader_err=$!
# Through cat: tar that reads the pipe itself stops in the midst of many files.
if [[ -n $out ]]; then mkdir -p "$out"; cat "$work/files" | tar -C "$out" --no-same-owner -xf - 2>"$work/tar" &
else cat "$work/files" >/dev/null & fi
pids+=($!); reader_files=$!
: >"$work/control"
port stdout "file,path=$work/stdout,append=on"
port stderr "file,path=$work/stderr,append=on"
port files "file,path=$work/files,append=on"
port control "file,path=$work/control"

append="console=ttyS0 loglevel=5 panic=-1 reboot=t nokaslr mitigations=off random.trust_cpu=on tsc=reliable"
append+=" no_timer_check rcupdate.rcu_expedited=1 cryptomgr.notests 8250.nr_uarts=1 audit=0 rdinit=/init guest.limit=$limit"
if [[ -n $tty ]]; then
    size=$(stty size 2>/dev/null || echo 24 80)
    append+=" guest.tty=${size/ /x}"
    ports+=(-chardev stdio,id=tty,signal=off -device virtconsole,chardev=tty)
else
    port stdin stdio,signal=off
fi

# Not -machine microvm: 0.8 s faster, but its only clock is the PIT, which the kernel fails to
# calibrate against when the host is busy; then it hangs. pc has the PM timer.
# Not -cpu max: under emulation it is slower (`rep movsb` byte by byte, vectors cost more than C).
qemu=(qemu-system-x86_64 -nodefaults -no-user-config -display none -no-reboot
    -machine pc,hpet=off
    -accel "tcg,thread=multi,tb-size=256" -cpu "$cpu" -smp "$cpus" -m "$memory"
    -kernel "$kernel/vmlinux" -initrd "$kernel/initramfs" -append "$append"
    -serial "file:$work/console"
    -device virtio-serial-pci "${disks[@]}" "${network[@]}" "${ports[@]}")
# In the background, so that a signal to this script is acted upon at once.
if [[ -n $tty ]]; then
    saved=$(stty -g)
    "${qemu[@]}" <&0 2>"$work/qemu" & qemu_pid=$!        # makes the terminal raw
else
    # A relay, since qemu makes what it reads itself non-blocking, for all who share it.
    cat <&0 >"$work/stdin" & pids+=($!); relay=$!
    "${qemu[@]}" <"$work/stdin" >/dev/null 2>"$work/qemu" & qemu_pid=$!
fi

# Ends a guest that does not boot, that outlives its limit (the guest should have kept it
# itself, with /out), or that nobody waits for any more.
watch() {
    local boot_limit=180 second=0 booted=
    while sleep 1; do
        second=$((second + 1))
        if [[ -z $booted ]]; then
            if [[ -s $work/control ]]; then booted=$second
            elif ((second > boot_limit)); then echo "no boot within $boot_limit s" >"$work/ended"; break; fi
        elif ((limit > 0 && second - booted > limit + 60)); then echo limit >"$work/ended"; break; fi
        [[ -z $watched ]] || kill -0 "$watched" 2>/dev/null || { echo "its caller is gone" >"$work/ended"; break; }
    done
    kill "$qemu_pid" 2>/dev/null
}
watch & pids+=($!); watcher=$!
wait "$qemu_pid" || true
qemu_pid=
kill "$watcher" 2>/dev/null || true
if [[ -n $tty ]]; then stty "$saved" || true; else kill "$relay" 2>/dev/null || true; fi
wait "$reader_out" "$reader_err" || true
wait "$reader_files" || echo "run.sh: /out came back incomplete: $(cat "$work/tar")" >&2
pids=()
[[ $(cat "$work/ended" 2>/dev/null) != limit ]] || { echo "run.sh: ended after $limit s" >&2; exit 124; }
exit_status=$(sed -n 's/^exit //p' "$work/control")
if [[ -z $exit_status ]]; then
    echo "run.sh: the guest ended without a status ($(cat "$work/ended" 2>/dev/null || echo 'it died'))" >&2
    cat "$work/qemu" >&2
    tail -n 40 "$work/console" >&2 2>/dev/null || true
    exit 125
fi
[[ -z ${VM_TIMES:-} ]] || sed -n 's/^boot /run.sh: boot /p' "$work/control" >&2
# A command that has a limit of its own says 124 too, sooner.
((exit_status != 124 || limit == 0 || SECONDS < limit)) || echo "run.sh: ended after $limit s" >&2
exit "$exit_status"
