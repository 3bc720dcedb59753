#!/usr/bin/env python3
"""Tests of tradeoff.py and frontier.py: which run comes next, what becomes a row, what stops. Nothing is trained.

    python3 dev/test_tradeoff.py        make test runs it, too
"""
import argparse
import array
import fcntl
import json
import os
import sys
import tempfile

DEV = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, DEV)
sys.dont_write_bytecode = True
import frontier
import tradeoff

counts = {True: 0, False: 0}
TRAIN = tradeoff.train
BEST = {"muon": "0.1", "adamw": "0.01"}  # here
EPOCHS = "epoch\tloss\tlargest_norm_over_cap\tlast_hidden_norm\n1\t2.5\t1.25\t2\n2\t2\t1.125\t3\n"
RESULTS = ("accuracy\t0.5\nloss\t2\ncertificate\t10^400\nnorm\t1\t2\n\nl2_radius\tcertified_accuracy\n"
           "0.1\t0.4\n0.2\t0.25\n")


def check(good, *what):
    counts[bool(good)] += 1
    if not good:
        print("FAILED:", *what)


def pretend(key):
    """A row as if it had been run: the further from the best rate, the worse."""
    optimizer = key[1].split("-")[0]
    grid = tradeoff.RATES[optimizer]
    accuracy = 0.5 - 0.1 * abs(grid.index(key[3]) - grid.index(BEST[optimizer]))
    return dict(zip(tradeoff.KEY, key), certificate="10", loss="1", accuracy=str(accuracy))


def test_order():
    settings = argparse.Namespace(task="cifar", methods=["muon-soft", "adamw-hammer"], seed="0", strengths=[])
    order = []
    while key := tradeoff.next_run(settings, set()):
        check(key not in order and len(order) < 50, key, "again")
        order.append(key)
        tradeoff.append_row(tradeoff.TABLE, tradeoff.COLUMNS, pretend(key))
    rates = [key for key in order if key[0] == "cifar-rates"]
    check(order[:len(rates)] == rates, "rates come first", order)
    check([key[3] for key in rates if key[1] == "muon-soft"] == ["1", "0.3", "0.1", "0.03"], rates)
    check([key[3] for key in rates if key[1] == "adamw-hammer"] == ["0.003", "0.001", "0.01", "0.03"], rates)
    points = order[len(rates):]
    check([key[1] for key in points] == settings.methods * 6, "in turn", points)
    check(all(key[3] == BEST[key[1].split("-")[0]] for key in points), "at the best rate", points)
    check([key[2] for key in points[::2]] == tradeoff.CAPS["cifar"], points)
    settings.seed = "1"
    check(tradeoff.next_run(settings, set()) == ("cifar", "muon-soft", "4.86", "0.1", "1"), "of another seed")
    settings.methods = ["muon-hard"]
    first = tradeoff.next_run(settings, set())
    check(tradeoff.next_run(settings, {first}) is None, "a rate is awaited")
    settings.methods = ["muon-soft"]
    check(tradeoff.next_run(settings, {("cifar", "muon-soft", "4.86", "0.1", "1")})[2] == "2", "one is running")
    settings.strengths = ["3"]
    check(tradeoff.next_run(settings, set()) == ("cifar", "muon-soft", "3", "0.1", "1"), "of that strength")
    check(tradeoff.next_run(settings, {("cifar", "muon-soft", "3", "0.1", "1")}) is None, "and of no other")


def test_pair():
    rows = [pretend(("cifar", "adamw-weight-decay", "1", "0.003", "0")),
            pretend(("cifar", "muon-soft", "2", "1", "0")), pretend(("cifar", "muon-soft", "3", "1", "0"))]
    rows[1]["accuracy"] = "0.41"
    check([key[2] for key in tradeoff.attack_pair(rows)] == ["1", "2"], "the nearest one")
    rows.append(dict(rows[0], task="cifar-attack"))
    check([key[2] for key in tradeoff.attack_pair(rows)] == ["2"], "one is there")


def test_rows():
    settings = argparse.Namespace(cifar="c", text="t", note="n")
    calls = []
    tradeoff.train = lambda command, where: calls.append(command) or (RESULTS, EPOCHS)
    row = tradeoff.run(("cifar", "muon-hammer", "3", "1", "2"), settings)
    check(row["certificate"] == "10^400" and row["accuracy"] == "0.5" and row["certified"] == "0.4 0.25", row)
    check(row["norms"] == "2.0000 3.0000" and row["largest_norm_over_cap"] == "1.250000", row)
    check(row["attacked"] == "" and row["note"] == "n" and set(row) <= set(tradeoff.COLUMNS), row)
    check(row["command"].endswith("--optimizer muon --constraint hammer --cap 3 --lr 1 --seed 2"), row)
    tradeoff.train = lambda command, where: (None, None)
    row = tradeoff.run(("cifar", "muon-weight-decay", "0.5", "1", "0"), settings)
    check(row["certificate"] == "inf" and "--cap 0 --weight-decay 0.5" in row["command"], "it diverged", row)
    check(tradeoff.chosen("cifar", "muon-weight-decay", [row]) == [], "drawn though it diverged")


def stops(reason, program, *arguments):
    """The sentence that a call ends with."""
    try:
        ended = program(*arguments)
    except SystemExit as exit:
        ended = exit.code
    check(reason in str(ended), reason, ended)


def test_stops():
    sys.argv = ["tradeoff.py", "--task", "cifar", "--text", "here"]
    with open(os.path.join(tradeoff.OUT, "cifar.lock"), "w") as lock:  # as if another process were at it
        fcntl.flock(lock, fcntl.LOCK_EX)
        stops("another process is at cifar", tradeoff.main)
    settings = argparse.Namespace(text="no-such-text")
    key = "shakespeare-rates", "muon-soft", "2", "1", "0"
    stops("cannot take a part of no-such-text", tradeoff.run, key, settings)
    tradeoff.train = TRAIN
    stops("killed by signal 9", tradeoff.train, [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], [])

    model, ran = os.path.join(DEV, "lipgpt-3.safetensors"), []
    right = ["--preset", "tight", "--lipschitz", "8", "--cap", "2"]
    check(frontier.check_model(model, right) is None, "a model of that run")
    stops("--lipschitz 8, not 2", frontier.check_model, model, right[:2] + ["--lipschitz", "2"])
    frontier.run = lambda *arguments: ran.append(arguments)
    with open(os.path.join(frontier.OUT, "a.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        frontier.run_alone("a", right, "text")
    check(not ran, "another process is at it", ran)
    frontier.run_alone("a", right, "text")
    check(len(ran) == 1, "it runs", ran)
    frontier.append_row(frontier.TABLE, ["preset"], {"preset": "a"}, {"preset": "b"})
    frontier.run_alone("b", right, "text")
    check(len(ran) == 1, "its row is there", ran)


def test_scale():
    numbers = {"embedding.weight": [5.0, 7.0], "head.weight": [3.0, -6.0], "head.bias": [1.5]}
    for dtype, kind in (("F32", "f"), ("F64", "d")):
        tensors, body = {"__metadata__": {"format": "x"}}, b""
        for name, values in numbers.items():
            begin, body = len(body), body + array.array(kind, values).tobytes()
            tensors[name] = {"dtype": dtype, "shape": [len(values)], "data_offsets": [begin, len(body)]}
        header = json.dumps(tensors).encode()
        model = os.path.join(frontier.OUT, "model")
        with open(model, "wb") as file:
            file.write(len(header).to_bytes(8, "little") + header + body)
        frontier.scale_head(model, 3, model + ".scaled")
        with open(model + ".scaled", "rb") as file:
            scaled = file.read()
        check(list(array.array(kind, scaled[8 + len(header):])) == [5, 7, 1, -2, 0.5], dtype, scaled)
        check(scaled[:8 + len(header)] == len(header).to_bytes(8, "little") + header, "the header stays")
    stops("is no checkpoint to scale", frontier.scale_head, __file__, 3, model)
    stops("is no checkpoint to scale", frontier.scale_head, "none", 3, model)


def main():
    with tempfile.TemporaryDirectory() as directory:
        tradeoff.TABLE, frontier.TABLE = (os.path.join(directory, name) for name in ("table.tsv", "frontier.tsv"))
        tradeoff.OUT = frontier.OUT = directory
        test_order()
        test_pair()
        test_rows()
        test_stops()
        test_scale()
    print(f"tradeoff: {counts[True]} passed, {counts[False]} failed")
    return counts[False] != 0


if __name__ == "__main__":
    sys.exit(main())
