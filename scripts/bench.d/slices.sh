# shellcheck shell=bash disable=SC2154,SC2034 # what the others set, and use
# What has crossed by the ledger, `out in`: of each attempt its last line.
crossed() {
    find sbox/.bak/ledger -name '*.jsonl' -exec cat {} + |
        jq -rs '[group_by(.id)[] | last | select(.type == "attempt")] | "\(map(.wire_out) | add // 0) \(map(.wire_in) | add // 0)"'
}

# Passes with the limits $@, the last of them as often as it takes; `out in` of all of them together.
passes() {
    rm -rf sfar sbox && cp -a --sparse=always sfar.made sfar && cp -al sbox.made sbox && rm -rf sbox/.bak && cp -a sbox.made/.bak sbox/
    local before after limit n=0
    before=$(crossed)
    while [ -n "$(find sbox -name '*.dump.json' -not -path '*/.bak/*')" ]; do
        limit=$1 n=$((n + 1))
        [ $# -eq 1 ] || shift
        bak-sync -q --store sstore --outbox sbox --dest "$dest" --ssh "$ssh" --limit "$limit" || return
        [ $n -lt 200 ] || { say "it does not end at $limit" >&2 && exit 1; }
    done
    diff -rq --exclude='*.json' --exclude='.*' sstore sfar >&2 || return
    after=$(crossed)
    echo "$before $after $n" | awk '{ print $3 - $1, $4 - $2, $5 }'
}

# A dump that is cut and goes on costs as much as one that is not. A cut at 10 % is one after about a tenth of what crosses
# outwards in one go, in the usual way; each pass may also cost what comes back.
bench_slices() {
    start_sshd
    make_wire_image
    local format case dest="b=127.0.0.1:$dir/sfar" whole out in back at got
    for format in ${FORMATS:-raw qcow2-plain qcow2}; do
        for case in ${CASES:-N S C}; do # N: no basis
            rm -rf sstore sfar* sbox* images/* && mkdir sstore sfar
            cp --sparse=always wire.raw images/vm.raw
            bak-sync --outbox sbox --dest "$dest" --ssh "$ssh" --init
            send_day() {
                bak-dump -q --store sstore --images images --format "$format" --reserve 0 --now "$1" --all
                bak-link -q --store sstore --outbox sbox --dest "$dest" --now "$1"
            }
            if [ "$case" != N ]; then
                send_day 2026-11-19T01:00:00Z
                bak-sync -q --outbox sbox --dest "$dest" --ssh "$ssh"
                change_image "$case" images/vm.raw
            fi
            send_day 2026-11-20T01:00:00Z
            mkdir -p sbox/.bak/ledger
            mv sfar sfar.made && mv sbox sbox.made && mkdir sfar
            whole=$(passes none)
            out=${whole%% *} in=$(echo "$whole" | cut -d' ' -f2)
            # Nothing but a few words comes back where the delta is made here.
            back=10000
            [ "$case" != N ] || back=$((in * 3 / 2))
            for at in 10 50 90 slices; do
                if [ $at = slices ]; then
                    got=$(passes $((out / 10 + back + 20000)))
                else
                    got=$(passes $((out * at / 100 + back + 20000)) none)
                fi
                row "slices, $format, $case, $at: MB out, one go ($(echo "$got $in" | awk '{ printf "in %.2f, %.2f; %d passes", $2 / 1e6, $4 / 1e6, $3 }'))" \
                    "$(echo "$got" | awk '{ printf "%.2f", $1 / 1e6 }')" "$(awk -v b="$out" 'BEGIN { printf "%.2f", b / 1e6 }')" "$(ratio "${got%% *}" "$out")" 1.1
            done
        done
    done
}
