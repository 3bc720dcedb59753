"""Accuracy against the bound, per optimizer and constraint, one training run per row of dev/tradeoff.tsv.

    make build/mlp                                  the program that the runs need
    python3 dev/tradeoff.py --list                  what would be run, and what is there already
    python3 dev/tradeoff.py [METHOD ...]            run the missing rows (all, or those methods')

So far only CIFAR-10, of the paper's two tasks: its perceptron, 20 epochs, measured on the last 5,000 training
images, which are held out. Each method first tries the learning rates of its optimizer at its middle strength;
the best of these (held-out accuracy) serves all its strengths. Runs are resumable row by row: what stands in the
table is not run again. --data FOLDER takes the batches from elsewhere; --note TEXT goes into the rows (say so if
they are recompressed).
"""
import argparse
import csv
import os
import subprocess

from frontier import append_row

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TABLE = os.path.join(ROOT, "dev", "tradeoff.tsv")
OUT = os.path.join(ROOT, "out", "tradeoff")
COLUMNS = ("name task method strength lr seed certificate loss accuracy certified_36 largest_norm_over_cap "
           "seconds note command").split()
COMMON = ["--preset", "paper", "--epochs", "20", "--holdout", "5000"]
CAPS = ["1.5", "2", "3", "4.86", "7", "10"]
RATES = {"muon": ["0.1", "0.3", "1", "3"], "adamw": ["0.0003", "0.001", "0.003", "0.01"]}
# method -> its strengths, the middle one's place, and the options of a strength; muon's decay of lambda alone
# holds norms at 1 / lambda
METHODS = {}
for optimizer in RATES:
    free = ["--optimizer", optimizer, "--cap", "0", "--weight-decay"]
    decays = [f"{1 / float(cap):.4g}" for cap in CAPS] if optimizer == "muon" else ["30", "10", "3", "1", "0.3", "0.1"]
    METHODS[f"{optimizer}-weight-decay"] = (decays, 3, lambda x, free=free: free + [x])
    for constraint in ["normalize", "hammer"] + (["soft", "hard", "stiefel"] if optimizer == "muon" else []):
        METHODS[f"{optimizer}-{constraint}"] = (
            CAPS, 3, lambda x, o=optimizer, k=constraint: ["--optimizer", o, "--constraint", k, "--cap", x])


def read_rows():
    if not os.path.exists(TABLE):
        return []
    with open(TABLE, newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def planned(method, rows):
    """(strength, rate) of a method's runs: the rates first, then, when these are there, the strengths."""
    strengths, middle, _ = METHODS[method]
    rates = RATES[method.split("-")[0]]
    tried = {row["lr"]: float(row["accuracy"]) for row in rows
             if row["method"] == method and row["strength"] == strengths[middle] and row["seed"] == "0"}
    pairs = [(strengths[middle], rate) for rate in rates]
    if all(rate in tried for rate in rates):
        best = max(rates, key=lambda rate: tried[rate])
        pairs += [(strength, best) for strength in strengths if strength != strengths[middle]]
    return pairs


def run(method, strength, rate, data, note):
    """Train, and append the row."""
    name = f"cifar-{method}-{strength}-lr-{rate}"
    options = COMMON + METHODS[method][2](strength) + ["--lr", rate]
    command = [os.path.join(ROOT, "build", "mlp"), "train", "--data", data,
               "--out", os.path.join(OUT, name + ".safetensors")] + options
    print(name, " ".join(command), flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    row = {"name": name, "task": "cifar", "method": method, "strength": strength, "lr": rate, "seed": "0",
           "note": note, "command": " ".join(["build/mlp", "train"] + options)}
    if done.returncode == 0:
        row.update(line.split("\t")[:2] for line in done.stdout.splitlines()
                   if line.split("\t")[0] in ("certificate", "loss", "accuracy"))
        epochs = list(csv.DictReader(done.stderr[done.stderr.index("epoch\t"):].splitlines(), delimiter="\t"))
        row["certified_36"], row["seconds"] = epochs[-1]["certified_36"], epochs[-1]["seconds"]
        row["largest_norm_over_cap"] = max(epochs, key=lambda e: float(e["largest_norm_over_cap"]))[
            "largest_norm_over_cap"]  # after any epoch
    else:  # it diverged: a result, too
        print(done.stderr.splitlines()[-1])
        row.update(certificate="inf", loss="inf", accuracy="0")
    append_row(TABLE, COLUMNS, row)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", metavar="METHOD", help=", ".join(METHODS))
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--data", default=os.path.join(ROOT, "data", "cifar-10-batches-bin"))
    parser.add_argument("--note", default="")
    arguments = parser.parse_args()
    for method in arguments.methods or METHODS:
        if method not in METHODS:
            parser.error(f"{method} is none of {', '.join(METHODS)}")
        while True:
            rows = read_rows()
            there = {(row["strength"], row["lr"]) for row in rows if row["method"] == method}
            missing = [pair for pair in planned(method, rows) if pair not in there]
            if arguments.list:
                print(method, f"{len(there)} there, missing:", *(f"{s} at lr {r}," for s, r in missing))
            if arguments.list or not missing:
                break
            run(method, *missing[0], arguments.data, arguments.note)


if __name__ == "__main__":
    main()
