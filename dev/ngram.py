#!/usr/bin/env python3
"""What counting alone reaches: Witten-Bell interpolated character n-grams, orders 1 to 8.

    python3 dev/ngram.py [TEXT]           TEXT defaults to data/tinyshakespeare.txt

The yardstick for lipgpt's losses and accuracies. Counts come from the first int(0.9 n) bytes of the
text, the rest is the validation split. With N(h) occurrences of a context h followed by D(h)
different characters, and h' the context without its oldest character,

    p(c | h) = (N(h c) + D(h) p(c | h')) / (N(h) + D(h)),    p(c | h) = p(c | h') if h was not seen,

down to the empty context, which is mixed with 1/V. An order-n model looks at n - 1 characters.

Evaluated as lipgpt evaluates a transformer of context T = 256, which sees the window and nothing
before it: the j-th target of a window (j = 1 .. T) has min(j, n - 1) characters of context.
    slice   the paper's: the T-character windows that start at 0, 1 .. 1279 of the split; a target
            counts once for each window it occurs in
    full    the whole split in consecutive windows of T, each target once (the first character of
            the split is nobody's target)
Use --window 1000000 to see what the cut at window borders costs on the full split.

Prints a table of tab-separated columns; losses are in nats per character, accuracies in percent.
Standard library only; about fifteen seconds on one core.
"""

import argparse
import math
import sys
from collections import Counter, defaultdict

MAX_ORDER = 8
T = 256
SLICE_WINDOWS = 1280


class WittenBell:
    """Counts of all n-grams up to max_order; distributions are computed when first asked for."""

    def __init__(self, text, alphabet, max_order):
        self.alphabet = alphabet
        self.next = defaultdict(dict)               # context -> {id of next character: count}
        ids = {c: i for i, c in enumerate(alphabet)}
        for n in range(1, max_order + 1):
            grams = Counter(text[i:i + n] for i in range(len(text) - n + 1))
            for gram, count in grams.items():
                self.next[gram[:-1]][ids[gram[-1]]] = count
        self.known = {}                             # context -> list of V probabilities

    def distribution(self, context):
        if context in self.known:
            return self.known[context]
        if context:
            shorter = self.distribution(context[1:])
        else:
            shorter = [1 / len(self.alphabet)] * len(self.alphabet)
        seen = self.next.get(context)
        if not seen:
            result = shorter
        else:
            total = sum(seen.values()) + len(seen)
            weight = len(seen) / total
            result = [weight * p for p in shorter]
            for c, count in seen.items():
                result[c] += count / total
        self.known[context] = result
        return result


def evaluate(model, text, order, starts, window):
    """Loss in nats and share of right guesses, averaged over all targets of all windows."""
    ids = {c: i for i, c in enumerate(model.alphabet)}
    scores = {}                                     # (target position, context length) -> score
    loss = hits = targets = 0
    for start in starts:
        for position in range(start + 1, min(start + window, len(text) - 1) + 1):
            key = position, min(position - start, order - 1)
            if key not in scores:
                p = model.distribution(text[position - key[1]:position])
                target = ids[text[position]]
                scores[key] = -math.log(p[target]), p.index(max(p)) == target
            loss += scores[key][0]
            hits += scores[key][1]
            targets += 1
    return loss / targets, hits / targets


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", nargs="?", default="data/tinyshakespeare.txt")
    parser.add_argument("--window", type=int, default=T,
                        help="window length on the full split (default: %(default)s)")
    args = parser.parse_args()
    if args.window < 1:
        parser.error("--window takes a whole number of characters, at least 1")
    try:
        with open(args.text, "rb") as file:
            data = file.read()
    except OSError as error:
        sys.exit(f"ngram.py: cannot read {args.text}: {error.strerror}; "
                 "prepare_data.py fetches the default text.")
    cut = int(0.9 * len(data))
    train, validation = data[:cut], data[cut:]
    if len(validation) < SLICE_WINDOWS + T:
        sys.exit(f"ngram.py: {args.text} is too short: its last tenth has {len(validation)} "
                 f"characters, the slice alone takes {SLICE_WINDOWS + T}.")
    model = WittenBell(train, sorted(set(data)), MAX_ORDER)
    print("order", "slice_loss", "slice_accuracy", "full_loss", "full_accuracy", sep="\t")
    for order in range(1, MAX_ORDER + 1):
        part = evaluate(model, validation, order, range(SLICE_WINDOWS), T)
        whole = evaluate(model, validation, order, range(0, len(validation) - 1, args.window),
                         args.window)
        print(order, f"{part[0]:.4f}", f"{100 * part[1]:.2f}", f"{whole[0]:.4f}",
              f"{100 * whole[1]:.2f}", sep="\t", flush=True)


if __name__ == "__main__":
    main()
