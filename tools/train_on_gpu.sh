#!/usr/bin/env bash
# Train on a machine that is reached by short commands only: start in the background, poll, collect.
#
#   tools/train_on_gpu.sh start DATA MINUTES [RECIPE]   DATA holds tokens.tar.xz and tokenizer/, as `pack` leaves them
#   tools/train_on_gpu.sh poll [SECONDS]                prints progress until the run ends or SECONDS have passed
#   tools/train_on_gpu.sh collect OUT                   copies model, log, curve, report and master weights, flat
#   tools/train_on_gpu.sh snapshot OUT                  exports the latest checkpoint of a run that is still going
#   tools/train_on_gpu.sh pack RUN DATA                 compresses a prepared run folder into DATA
#
# The run lives in $STENO_RUN (default /tmp/steno-run), apart from the checkout, which may change under it.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
run=${STENO_RUN:-/tmp/steno-run}
python=${PYTHON:-python3}
export PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false

flat() { # every file of a run that is worth keeping, side by side in one folder
    mkdir -p "$1"
    cp "$2"/model/model.safetensors "$1"/
    tar -C "$2" -czf "$1"/rest.tgz --exclude=model.safetensors --exclude='*.safetensors' model master log.jsonl curve.png report.json train.log
    local number=0
    for part in "$2"/master/*.safetensors; do
        number=$((number + 1))
        cp "$part" "$1/master-$number.safetensors"
    done
    ls -l "$1"
}

case ${1:-} in
start)
    data=$2 minutes=$3 recipe=${4:-$here/src/steno/train/nib_gpu.toml}
    test ! -e "$run" || { echo "$run exists: a run is there already. Poll it, or name another STENO_RUN." >&2; exit 2; }
    mkdir -p "$run/tokens" "$run/code"
    cp -r "$here/src/steno" "$run/code/"
    cp "$recipe" "$run/recipe.toml"
    cp -r "$data/tokenizer" "$run/"
    tar -C "$run/tokens" -xJf "$data/tokens.tar.xz"
    cd "$run"
    PYTHONPATH="$run/code" setsid nohup bash -c \
        '"$0" -m steno train "$1/recipe.toml" --out "$1" --minutes "$2"; echo $? >"$1/exit"' \
        "$python" "$run" "$minutes" >"$run/train.log" 2>&1 </dev/null &
    sleep 1
    echo "started; $run/log.jsonl is its log"
    ;;
poll)
    until [ -e "$run/exit" ] || [ "$SECONDS" -ge "${2:-540}" ]; do
        sleep 2
    done
    tail -n 6 "$run/train.log" | tr '\r' '\n' | tail -n 6
    grep valid "$run/log.jsonl" | tail -n 3 || true
    tail -n 2 "$run/log.jsonl" || true
    if [ -e "$run/exit" ]; then echo "ended with $(cat "$run/exit")"; else echo "still training"; fi
    ;;
collect)
    test -e "$run/exit" || { echo "the run has not ended: poll it first" >&2; exit 2; }
    flat "$2" "$run"
    cat "$run/report.json"
    ;;
snapshot)
    rm -rf "$run/snapshot"
    mkdir -p "$run/snapshot"
    ln -s "$run/tokens" "$run/tokenizer" "$run/snapshot/"
    cp "$run/checkpoint.pt" "$run/log.jsonl" "$run/train.log" "$run/snapshot/"
    PYTHONPATH="$run/code" "$python" -m steno train "$run/recipe.toml" --out "$run/snapshot" --finish --no-score
    flat "$2" "$run/snapshot"
    ;;
pack)
    mkdir -p "$3"
    cp -r "$2/tokenizer" "$2/corpus/manifest.json" "$3/"
    tar -C "$2/tokens" -cf - . | xz -9e --lzma2=preset=9e,lc=0,lp=1,pb=1,dict=256MiB >"$3/tokens.tar.xz"
    ls -l "$3"
    ;;
*)
    sed -n '2,10p' "$0" >&2
    exit 2
    ;;
esac
