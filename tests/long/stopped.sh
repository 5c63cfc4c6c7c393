# shellcheck shell=bash disable=SC2034,SC2154
# Programs that are stopped in the middle, after a system call of theirs, and go on when told. Uses what nfs.sh has: $work,
# problem; leaves a_status and b_status. One that was started has an id; $work/ID.out and .err is what it says.

# until_true SECONDS COMMAND…
until_true() {
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        [ $SECONDS -lt $end ] || return 1
        sleep 0.1
    done
}
all_gone() {
    local pid
    for pid; do
        ! kill -0 "$pid" 2>/dev/null || return 1
    done
}

# points FILE COMMAND…: the system calls of a run of it that matter, from the lock on to the last rename and its flush, each
# as NAME and NUMBER.
points() {
    local file=$1 client=$2
    shift 2
    on "$client" strace -f -qq -o "$file.trace" "$@" >/dev/null
    awk '
        { sub(/^[0-9]+ +/, "") }
        match($0, /^[a-z0-9_]+\(/) {
            name = substr($0, 1, RLENGTH - 1)
            count[name]++
            if (name == "flock") on = 1
            if (!on || /"\/proc/) next
            if (name ~ /^(flock|p?write(64)?|ftruncate|f(data)?sync|unlinkat|rename(at2?)?)$/ || (name == "openat" && /O_CREAT|dblock/))
                point[++n] = name " " count[name]
            if (name ~ /^rename|fsync$/) last = n
        }
        END { for (i = 1; i <= last; i++) print point[i] }' "$file.trace" >"$file"
    grep -q '^rename' "$file" || problem "no rename in the trace: $file"
}

declare -A stopped_pid=() b_status=() a_status=()
# (No --seccomp-bpf, with which strace sends no signal.)
# stop ID CLIENT NAME NUMBER COMMAND… starts it there, to be stopped after its NUMBER-th call of NAME. Standard input is
# $input.
input=/dev/null
stop() {
    local id=$1 client=$2 name=$3 number=$4
    shift 4
    on "$client" strace -f -qq -o "$work/$id.trace" -e "trace=$name" -e "inject=$name:signal=STOP:when=$number" \
        "$@" <$input >"$work/$id.out" 2>"$work/$id.err" &
    stopped_pid[$id]=$!
}
is_stopped() { grep -q 'stopped by SIGSTOP' "$work/$1.trace" 2>/dev/null; }
stopped_or_gone() { is_stopped "$1" || all_gone "${stopped_pid[$1]}"; }
# await_stopped ID: or it has come to its end before, where $may_fail says so.
may_fail=
await_stopped() {
    [ -z "$may_fail" ] || { until_true 60 stopped_or_gone "$1" && return; }
    { until_true 60 stopped_or_gone "$1" && is_stopped "$1"; } || problem "$1 did not come to where it was to be stopped: $(tail -n 3 "$work/$1".{trace,out,err})"
}
go_on() {
    { [ -n "$may_fail" ] && ! is_stopped "$1"; } || kill -CONT "$(awk '/stopped by SIGSTOP/ { print $1; exit }' "$work/$1.trace")" 2>/dev/null || problem "$1 has not waited"
}
# join ID… waits for them to end, and notes their exit statuses.
join() {
    local id
    for id; do
        if ! until_true 120 all_gone "${stopped_pid[$id]}"; then
            problem "$id did not end"
            kill -KILL "${stopped_pid[$id]}"
        fi
        a_status[$id]=0
        wait "${stopped_pid[$id]}" || a_status[$id]=$?
    done
}

# stop_at KIND VARIANT CLIENT POINTS COMMAND…: a database for each point, from the template of that kind, and the command
# stopped there. `DB` in the command stands for the database.
ids=()
stop_at() {
    local kind=$1 variant=$2 client=$3 points=$4 name number id n=0 batch=()
    shift 4
    while read -r name number <&3; do
        n=$((n + 1))
        id=$kind-$variant-$n-$name$number
        cp -a "/srv/nfs/$kind" "/srv/nfs/$id"
        ids+=("$id")
        stop "$id" "$client" "$name" "$number" "${@//DB//mnt/$id}"
        batch+=("$id")
        if [ ${#batch[@]} -eq 4 ]; then
            for id in "${batch[@]}"; do await_stopped "$id"; done
            batch=()
        fi
    done 3<"$points"
    for id in ${batch[@]+"${batch[@]}"}; do await_stopped "$id"; done
}
go_on_all() { # GLOB
    local id
    for id in "${ids[@]}"; do
        # shellcheck disable=SC2053
        [[ $id != $1 ]] || go_on "$id"
    done
}

# other CLIENT SCRIPT: in each database, a few at once, the other machine's commands; $db is the database.
other() {
    local id pids=()
    for id in "${ids[@]}"; do
        (
            rc=0
            db=/mnt/$id on "$1" timeout 100 bash -c "$2" >"$work/$id.b" 2>&1 || rc=$?
            echo $rc >"$work/$id.rc"
        ) &
        pids+=($!)
        if [ ${#pids[@]} -eq 4 ]; then
            wait "${pids[@]}"
            pids=()
        fi
    done
    [ ${#pids[@]} -eq 0 ] || wait "${pids[@]}"
    for id in "${ids[@]}"; do
        b_status[$id]=$(cat "$work/$id.rc")
    done
}

