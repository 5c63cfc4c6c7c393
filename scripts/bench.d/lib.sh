# shellcheck shell=bash disable=SC2154,SC2034 # what the others set, and use
# A tree of about $1 MB: files of this system, and noise.
content() {
    mkdir -p "$2/sys"
    find /usr/lib /usr/bin -xdev -type f -size +20k -print0 2>/dev/null | sort -z |
        python3 -c '
import os, shutil, sys
limit, to, sum = int(sys.argv[1]) * 500_000, sys.argv[2], 0
for i, name in enumerate(sys.stdin.buffer.read().split(b"\0")):
    if name and sum < limit:
        sum += os.path.getsize(name)
        shutil.copyfile(name, os.path.join(to, "sys", str(i)))
' "$1" "$2"
    head -c "$(($1 * 500000))" /dev/urandom >"$2/noise"
}

# median seconds of `$2`, with `$1` before each run; five runs after a warm-up
seconds() { hyperfine --style none --warmup 1 --runs "${RUNS:-5}" --prepare "$1" --export-json time.json "$2" >/dev/null && jq '.results[0].median' time.json; }

# by_turns PREPARE COMMAND PREPARE COMMAND: median seconds of ours and of the bare tool into `$ours` and `$bare`, measured by turns after
# a warm-up, so that what else the machine does disturbs both alike.
by_turns() {
    local turn
    : >ours.times && : >bare.times
    for ((turn = 0; turn <= ${RUNS:-5}; turn++)); do
        hyperfine --style none --runs 1 --prepare "$1" --export-json time.json "$2" >/dev/null && jq '.results[0].median' time.json >>ours.times
        hyperfine --style none --runs 1 --prepare "$3" --export-json time.json "$4" >/dev/null && jq '.results[0].median' time.json >>bare.times
    done
    ours=$(median <ours.times) bare=$(median <bare.times)
}

# of all lines but the first
median() { tail -n +2 | sort -n | awk '{ v[NR] = $1 } END { print (v[int((NR + 1) / 2)] + v[int(NR / 2) + 1]) / 2 }'; }

start_sshd() {
    [ -z "$sshd" ] || return 0
    port=$((20000 + RANDOM % 20000))
    mkdir -p ssh && chmod 700 ssh
    ssh-keygen -q -t ed25519 -N '' -f ssh/host
    ssh-keygen -q -t ed25519 -N '' -f ssh/user
    [ "$(id -u)" -ne 0 ] || mkdir -p /run/sshd
    # SHLVL: bash over there would read the start-up files of whoever runs this, once for each run of rsync; some take a third of a
    # second, which is nothing of ours or of rsync's.
    printf '%s\n' "Port $port" 'ListenAddress 127.0.0.1' "HostKey $dir/ssh/host" "AuthorizedKeysFile $dir/ssh/user.pub" \
        'PidFile none' 'UsePAM no' 'StrictModes no' 'SetEnv SHLVL=1' >ssh/conf
    printf '[127.0.0.1]:%s %s\n' "$port" "$(cat ssh/host.pub)" >ssh/known
    "$(command -v sshd)" -D -e -f ssh/conf 2>ssh/log &
    sshd=$!
    until (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do sleep 0.1; done
    ssh="ssh -F none -p $port -i $dir/ssh/user -o UserKnownHostsFile=$dir/ssh/known"
}

make_big() {
    [ -e big/big.raw ] && return 0
    mkdir -p big
    content "$(scaled 524)" tree
    mkfs.ext4 -q -d tree big/big.raw 2G >/dev/null 2>&1
    rm -rf tree
}

# A store at $1 of $2 guests with $3 dumps each: files of a byte, sidecars of about 700 bytes.
many() {
    python3 - "$@" <<'PY'
import datetime, json, os, sys
top, guests, each = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
sha = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
for g in range(guests):
    vm = f"vm-{g:05d}"
    os.makedirs(f"{top}/{vm}")
    for d in range(each):
        time = datetime.datetime(2026, 11, 1) + datetime.timedelta(minutes=d * 199 + g % 190)
        start = time.strftime("%Y%m%dT%H%M%SZ")
        stem, text = f"{vm}-{start}", time.strftime("%Y-%m-%dT%H:%M:%SZ")
        file = {"name": f"{stem}.qcow2", "bytes": 1, "sha256": sha, "disk": 0, "format": "qcow2",
                "source": f"/var/lib/libvirt/images/{vm}.qcow2", "virtual": 1 << 34}
        dump = {"v": 1, "type": "dump", "id": f"{vm}@{start}", "vm": vm, "name": f"guest number {g}",
                "uid": f"6d0c1f4e-0000-4000-8000-{g:012d}", "kind": "qemu", "driver": "image", "node": "pve1",
                "tags": ["prod", "linux"], "pool": "web", "mode": "stopped", "started": text, "finished": text,
                "stem": stem, "bytes": 1, "files": [file], "fingerprint": sha, "size": 1 << 34}
        with open(f"{top}/{vm}/{stem}.qcow2", "wb") as data:
            data.write(b"x")
        with open(f"{top}/{vm}/{stem}.dump.json", "w") as sidecar:
            sidecar.write(json.dumps(dump, separators=(",", ":")) + "\n")
PY
}

# $1 dumps of $2 guests, one after the other back from now; the guests by turns.
starts() {
    python3 - "$1" "$2" <<'PY'
import sys
from datetime import datetime, timedelta
records, guests = int(sys.argv[1]), int(sys.argv[2])
now = datetime(2026, 11, 20, 12)
for n in range(records):
    print((now - timedelta(seconds=n // guests * 21600 + n % guests * 60)).strftime("%Y-%m-%dT%H:%M:%SZ"), f"vm-{n % guests}")
PY
}

# Dumps of one byte into the store $1, by lines of starts.
dumps() {
    python3 - "$1" "$2" <<'PY'
import json, os, sys
from datetime import datetime
store = sys.argv[1]
for line in open(sys.argv[2]):
    start, vm = line.split()
    stem = f"{vm}-" + start.replace("-", "").replace(":", "")
    os.makedirs(f"{store}/{vm}", exist_ok=True)
    name = f"{stem}.raw"
    with open(f"{store}/{vm}/{name}", "w") as out:
        out.write("x")
    written = datetime.fromisoformat(start.replace("Z", "+00:00")).timestamp()
    os.utime(f"{store}/{vm}/{name}", (written, written))
    record = {"v": 1, "type": "dump", "id": f"{vm}@" + stem[len(vm) + 1:], "vm": vm, "kind": "qemu", "driver": "image", "started": start,
              "finished": start, "stem": stem, "bytes": 1, "files": [{"name": name, "bytes": 1, "sha256": "0" * 64}]}
    with open(f"{store}/{vm}/{stem}.dump.json", "w") as out:
        out.write(json.dumps(record) + "\n")
PY
}

# The most memory that a program itself has used, in MiB; not what it started.
peak() {
    "$@" >/dev/null &
    local pid=$! most=0 now
    while kill -0 $pid 2>/dev/null; do
        now=$(awk '/VmHWM/ { print $2 }' /proc/$pid/status 2>/dev/null || true)
        [ -z "$now" ] || [ "$now" -le "$most" ] || most=$now
        sleep 0.01
    done
    wait $pid
    awk -v k="$most" 'BEGIN { printf "%.1f", k / 1024 }'
}

# Records of $1 guests.
guests() {
    python3 - "$1" <<'PY'
import json, sys
for i in range(int(sys.argv[1])):
    print(json.dumps({"v": 1, "type": "guest", "vm": f"vm-{i:06d}", "name": f"guest {i}", "uid": f"6d0c1f4e-{i:012d}", "kind": "qemu",
                      "driver": "image", "node": "pve1", "state": "stopped", "live": False, "size": 1 << 33, "fingerprint": f"{i:064d}"}))
PY
}
