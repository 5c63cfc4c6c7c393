#!/usr/bin/env bash
# Two machines share a database over NFSv4.2. For a guest; tests/long/run starts it.
#     scripts/guest -m 3072 tests/long/nfs.sh TARGET/debug [CASE…]       default: all cases
# 1. They exclude each other: of many who compare and swap, one wins, and no update is lost.
# 2. Who waits in vain is told which machine has the lock. The file server, too, uses the database.
# 3. A machine is cut off in the middle of its step, after each system call of it that matters. The server forgets it, and
#    the other machine commits. What the first one does afterwards must fail, and must change nothing. Thrice: it goes on
#    when the network is back; it goes on while cut off, so that a request is repeated afterwards; it goes on while only
#    the replies are lost, so that a request is repeated that has been carried out.
# 4. Two machines have the same host name. The server takes them for one that starts again and again, and both get the lock:
#    they may fail, but what one was told to be done stays done.
# 5. A claim is lost like that: its holder must not set CLEAN.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=tests/long/nfs-lib.sh
. "$here/nfs-lib.sh"
# shellcheck source=tests/long/stopped.sh
. "$here/stopped.sh"

work=$(mktemp -d)
cp "$1/bak-state" /run/bin/
PATH=/run/bin:$PATH
begun=$SECONDS problems=0
note() { printf '   %s\n' "$*"; }
problem() {
    printf 'NOT OK: %s\n' "$*"
    problems=$((problems + 1))
}
headline() {
    printf '== %s (after %s s)\n' "$*" "$((SECONDS - begun))"
}

# database NAME LINE… makes one with these lines.
database() {
    local dir=/srv/nfs/$1
    shift
    mkdir "$dir"
    printf 'TOOL_VERSION: 0.0\nDB_VERSION: 1.0\n' >"$dir/vmtool-db-version"
    printf '%s\n' "$@" >"$dir/vmtool-statedb"
}
# What the server itself sees.
status_of() { sed -n "s/^$2://p" "/srv/nfs/$1/vmtool-statedb"; }
sound() { bak-state list -q --db "/srv/nfs/$1" 2>"$work/list.err" || problem "$1 does not parse: $(cat "$work/list.err")"; }

# --- many at once

# A worker's moves on DB: a rush for the guests r1…, some rounds of each of three moves with the guests c1…, and a guest of
# its own. Prints what it has won; what failed otherwise than by having lost goes to standard error.
cat >"$work/worker" <<'END'
db=$1 me=$2 rounds=$3
move() { # FROM TO GUEST
    local out
    if out=$(bak-state set -q --wait 120s --db "$db" --from "$1" "$2" "$3" 2>&1); then
        echo "$3 $1 $2"
    elif ! [[ $out =~ "it is "[A-Z_]+", not $1" ]]; then
        echo "$out" >&2
    fi
}
for guest in r1 r2 r3 r4; do move NEW BACKUP_NECESSARY $guest; done
for ((i = 0; i < rounds; i++)); do
    guest=c$(((i + me) % 3 + 1))
    move BACKUP_NECESSARY BACKUP_IN_PROGRESS $guest
    move BACKUP_IN_PROGRESS CLEAN $guest
    move CLEAN BACKUP_NECESSARY $guest
    for to in ARCHIVED BACKUP_NECESSARY; do
        if bak-state set -q --wait 120s --db "$db" $to own$me; then
            echo "own$me set $to"
        else
            echo "own$me set unknown"
        fi
    done
done
END

# many DB ROUNDS CLIENT…: three workers on each. With $may_fail some may have failed, perhaps after it was done.
many() {
    local db=$1 rounds=$2 who me=0 pids=()
    shift 2
    database "$db" {r1,r2,r3,r4}:NEW {c1,c2,c3,own1,own2,own3,own4,own5,own6}:BACKUP_NECESSARY
    for who in "$@"; do
        for _ in 1 2 3; do
            me=$((me + 1))
            on "$who" timeout 150 bash "$work/worker" "/mnt/$db" $me "$rounds" >"$work/$db.$me" 2>"$work/$db.$me.err" &
            pids+=($!)
        done
    done
    wait "${pids[@]}" || problem "$db: a worker did not come to its end"
    cat "$work/$db".? >"$work/$db.won"
    cat "$work/$db".?.err >"$work/$db.err"
    won() { grep -c "^$1" "$work/$db.won" || true; }
    local guest is should n taken finished
    for guest in r1 r2 r3 r4; do
        n=$(won "$guest ") is=$(status_of "$db" $guest)
        [ "$n $is" = '1 BACKUP_NECESSARY' ] || { [ -n "$may_fail" ] && [ "$n" = 0 ]; } || problem "$db: $guest has $n winners, and is $is"
    done
    for guest in c1 c2 c3; do
        taken=$(won "$guest BACKUP_NECESSARY") finished=$(won "$guest BACKUP_IN_PROGRESS") n=$(won "$guest CLEAN")
        case $((taken - finished))$((finished - n)) in
        00) should=BACKUP_NECESSARY ;;
        10) should=BACKUP_IN_PROGRESS ;;
        01) should=CLEAN ;;
        *) should=impossible ;;
        esac
        is=$(status_of "$db" $guest)
        [ "$is" = $should ] || [ -s "$work/$db.err" ] || problem "$db: $guest is $is, though $taken took it, $finished finished it, $n set it back"
    done
    for ((n = 1; n <= me; n++)); do
        should=$(awk -v own="own$n" '$1 == own { last = $3 } END { print last }' "$work/$db.$n") is=$(status_of "$db" own$n)
        [ "$is" = "${should:-BACKUP_NECESSARY}" ] || [ "$should" = unknown ] || problem "$db: own$n is $is, and was last set to $should"
    done
    sound "$db"
    note "$db: $(grep -vc unknown "$work/$db.won") updates, $(wc -l <"$work/$db.err") lines of failures"
}

# Whether the server took no notice of the client of that host name for longer than the lease; it then keeps the client's
# locks until somebody else wants them.
given_up() { grep -lE "^name: \"Linux NFSv4.2 $1\"" /proc/fs/nfsd/clients/*/info | xargs grep -q '^status: courtesy'; }

set_a='bak-state set --wait 60s --db DB --from NEW BACKUP_NECESSARY web'
# shellcheck disable=SC2016
set_b='bak-state set --wait 60s --db "$db" --from NEW ARCHIVED web'
observe_a='bak-state observe --wait 60s --db DB -'
# shellcheck disable=SC2016
observe_b='bak-state observe -q --wait 60s --db "$db" - </run/seen-b && bak-state set -q --wait 60s --db "$db" ARCHIVED web'
seen() { printf '{"v":1,"type":"guest","vm":"%s","kind":"qemu","driver":"image","uid":"uid-%s"}\n' "$1" "$1"; }
seen a >/run/seen-a
seen b >/run/seen-b

# judge: of two who want to move the guest from the same status one has, and it stays so. With $may_fail perhaps none.
judge() {
    local id a b web said counts=()
    for id in "${ids[@]}"; do
        a=${a_status[$id]} b=${b_status[$id]} web=$(status_of "$id" web)
        said="first machine: $a $(tr '\n' ' ' <"$work/$id.err"), other machine: $b $(tr '\n' ' ' <"$work/$id.b"), web is $web"
        sound "$id"
        [ "$a" = 0 ] || [ -s "$work/$id.err" ] || problem "$id: failed without a word; $said"
        case $id in
        observe*)
            { [ "$b" = 0 ] && [ "$web" = ARCHIVED ] && [ -n "$(status_of "$id" b)" ] && grep -q '"uid":"uid-b"' "/srv/nfs/$id/vmtool-details"; } ||
                problem "$id: what the other machine did is gone; $said"
            [ "$a" != 0 ] || { [ -n "$(status_of "$id" a)" ] && grep -q '"uid":"uid-a"' "/srv/nfs/$id/vmtool-details"; } ||
                problem "$id: what the first machine did is gone; $said"
            ;;
        *)
            [ "$b" = 0 ] || [ -n "$may_fail" ] || grep -q 'it is BACKUP_NECESSARY, not NEW' "$work/$id.b" || problem "$id: $said"
            case $a-$b-$web in
            0-0-*) problem "$id: both have won; $said" ;;
            0-*-BACKUP_NECESSARY | *-0-ARCHIVED) ;;
            # It was told nothing of its success: the last call came to nothing, or its reply was lost.
            *-BACKUP_NECESSARY) ;;
            *-NEW) [ -n "$may_fail" ] || problem "$id: $said" ;;
            *) problem "$id: $said" ;;
            esac
            ;;
        esac
        counts+=("${id%%-*} first=$a other=$b web=$web")
    done
    printf '%s\n' "${counts[@]}" | sort | uniq -c | sed 's/^/   /'
}

case_1() {
    headline '1. many at once'
    many both 3 a b
    [ ! -s "$work/both.err" ] || problem "failures among honest machines: $(sort "$work/both.err" | uniq -c | head -n 5)"
}

case_2() {
    headline '2. who has the lock'
    database held web:NEW
    stop held a fdatasync 1 bak-state set --db /mnt/held BACKUP_NECESSARY web
    await_stopped held
    local rc=0
    on b bak-state set --db /mnt/held --wait 1s ARCHIVED web 2>"$work/held.b" || rc=$?
    { [ $rc -eq 3 ] && grep -q 'bak-state (pid [0-9]* on node-a)' "$work/held.b"; } || problem "exit status $rc, $(cat "$work/held.b")"
    note "exit status $rc: $(cat "$work/held.b")"
    go_on held
    join held
    [ "${a_status[held]}$(status_of held web)" = 0BACKUP_NECESSARY ] || problem "the holder: $(cat "$work/held.err")"
    # By reading, a client gets the promise that it will be asked before others write.
    on b cat /mnt/held/vmtool-{dblock,statedb} >/dev/null
    bak-state set -q --db /srv/nfs/held ARCHIVED web 2>"$work/server.err" || problem "on the server itself: $(cat "$work/server.err")"
}

# Where to stop: found out once.
find_points() {
    [ ! -e "$work/points-set" ] || return 0
    database set web:NEW x:NEW
    database observe web:NEW x:NEW
    # The last writer was another machine: whoever comes next clears away after it, as in life.
    on b bak-state set -q --db /mnt/set BACKUP_NECESSARY x
    on b bak-state observe -q --db /mnt/observe - <<<"$(seen z)"
    cp -a /srv/nfs/set /srv/nfs/trace-set
    cp -a /srv/nfs/observe /srv/nfs/trace-observe
    # shellcheck disable=SC2086
    points "$work/points-set" a ${set_a//DB//mnt/trace-set}
    # shellcheck disable=SC2086
    points "$work/points-observe" a ${observe_a//DB//mnt/trace-observe} </run/seen-a
    # Requests to clear away what the writer before has left are alike: the last of them will do.
    awk '$1 == "unlinkat" { last = $0; next } last && $1 != "openat" { print last; last = "" } { print }' "$work/points-set" >"$work/points-few"
    # Up to the second file `observe` is the same as `set`.
    tail -n 9 "$work/points-observe" >"$work/points-end"
    note "stopped after: $(tr '\n' ',' <"$work/points-set")"
}

# claim DB CLIENT COMMAND: one that waits for /run/DB.CLIENT before COMMAND.
claim() {
    local db=$1 client=$2
    on "$client" bak-state claim --wait 60s --db "/mnt/$db" web -- \
        sh -c "echo begun; until [ -e /run/$db.$client ]; do sleep 0.1; done; $3" >"$work/$db.$client.out" 2>"$work/$db.$client.err" &
    stopped_pid[$db.$client]=$!
    until_true 60 grep -q begun "$work/$db.$client.out" || problem "$db: $client did not begin: $(cat "$work/$db.$client.err")"
}

case_3() {
    headline '3. cut off in the middle of a step; 5. with a claim'
    find_points
    ids=()
    # shellcheck disable=SC2086
    {
        stop_at set later a "$work/points-set" $set_a
        stop_at set cut a "$work/points-few" $set_a
        stop_at set replies a "$work/points-few" $set_a
        input=/run/seen-a
        stop_at observe later a "$work/points-end" $observe_a
        stop_at observe cut a "$work/points-end" $observe_a
        input=/dev/null
    }
    note "${#ids[@]} processes are stopped (after $((SECONDS - begun)) s)"
    local db
    for db in claim-held claim-done; do
        database $db web:BACKUP_NECESSARY
        claim $db a true
    done

    cut a replies
    go_on_all '*-replies-*'
    sleep 2 # for their requests, of which nothing tells from outside
    cut a requests
    go_on_all '*-cut-*'
    local then=$SECONDS
    until_true 60 given_up node-a || problem 'the server does not give up the machine that was cut off'
    other b "case \$db in *observe*) $observe_b ;; *) $set_b ;; esac"
    note "the other machine was done $((SECONDS - then)) s after the cut"
    claim claim-held b true
    claim claim-done b false
    touch /run/claim-done.b
    join claim-done.b

    then=$SECONDS
    heal a
    go_on_all '*-later-*'
    touch /run/claim-{held,done}.a
    join "${ids[@]}" claim-held.a claim-done.a
    note "the first machine was done $((SECONDS - then)) s after it was back"
    judge
    judge_claim claim-held BACKUP_IN_PROGRESS
    judge_claim claim-done BACKUP_NECESSARY
    touch /run/claim-held.b
    join claim-held.b
    [ "${a_status[claim-held.b]}$(status_of claim-held web)" = 0CLEAN ] || problem "claim-held: the new holder: $(cat "$work/claim-held.b.err")"
}

judge_claim() { # DB STATUS
    local a=$1.a is
    is=$(status_of "$1" web)
    note "$1: the first machine said: ${a_status[$a]} $(cat "$work/$a.err")"
    [ "$is" = "$2" ] || problem "$1: web is $is, not $2"
    { [ "${a_status[$a]}" != 0 ] && [ -s "$work/$a.err" ]; } || problem "$1: the loss of a claim was not told"
}

case_4() {
    headline '4. two machines with the same host name'
    client t1 twin
    client t2 twin
    note "the server's clients: $(server_clients | tr '\n' ' ')"
    find_points
    ids=() may_fail=y
    database twin-set web:NEW
    on t2 bak-state set -q --db /mnt/twin-set --force NEW web || note 'a machine could not write alone'
    # shellcheck disable=SC2086
    stop_at twin-set later t1 "$work/points-set" ${set_a}
    other t2 "$set_b"
    go_on_all '*'
    join "${ids[@]}"
    judge
    many twins 2 t1 t2
    sort "$work/twins.err" | sed 's/^.*: our lock/…: our lock/; s/pid [0-9]*/pid …/g' | sort | uniq -c | sort -rn | head -n 5
}

server /srv/nfs
client a node-a
client b node-b
[ "$(server_clients | wc -l)" = 2 ] || problem "the server has not two clients: $(server_clients)"
note "the server's clients: $(server_clients | tr '\n' ' ')"

shift
[ $# -gt 0 ] || set -- 1 2 3 4
for name; do
    "case_$name"
done
headline 'the end'
dmesg | grep -iE 'nfs|lockd' | tail -n 5 || true
[ $problems -eq 0 ] || { echo "$problems problems" && exit 1; }
echo 'all is well'
