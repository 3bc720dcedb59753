#!/usr/bin/env bash
# Memory, the other way than sanitizers: three steps of training, certify and sample of a NO_OMP build
# under valgrind, without an error or a lost block.       dev/valgrind.sh, from the top
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p build
work=$(mktemp -d build/valgrind-XXXXXX)
trap 'rm -r "$work"' EXIT
${CC:-cc} -std=c11 -O1 -g -Wno-unknown-pragmas lipgpt.c -o "$work/lipgpt" -lm
check() {
    echo "valgrind: lipgpt $1"
    valgrind --quiet --error-exitcode=9 --leak-check=full --show-leak-kinds=all \
        --errors-for-leak-kinds=all "$work/lipgpt" "$@" > "$work/output"
}
for optimizer in muon adamw; do
    check train --data README.md --steps 3 --eval-every 2 --sample-every 2 --tokens 9 --batch 2 \
        --width 16 --heads 2 --blocks 2 --context 8 --optimizer "$optimizer" \
        --out "$work/$optimizer" --log "$work/$optimizer.log"
    check train --resume "$work/$optimizer" --steps 4 --log "$work/$optimizer.log"
    check certify --model "$work/$optimizer" --data README.md --windows 2
    check sample --model "$work/$optimizer" --tokens 20
done
echo "no error, no lost block"
