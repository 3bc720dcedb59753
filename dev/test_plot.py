#!/usr/bin/env python3
"""Tests of plot.py: logs, a checkpoint, several of both, and what is refused.

    python3 dev/test_plot.py        make test runs it, too; it needs ./lipgpt

Pictures are drawn, and tested, only where matplotlib is.
"""
import math
import os
import subprocess
import sys
import tempfile

DEV = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, DEV)
sys.dont_write_bytecode = True
import plot

LIPGPT = os.path.join(DEV, "..", "lipgpt")
MODEL = os.path.join(DEV, "lipgpt-3.safetensors")
LOG = ("step\ttokens\ttrain_loss\tpart_loss\tpart_accuracy\tcertificate\tpaper_bound\t"
       "largest_activation\tlargest_norm_over_cap\tlr\tseconds\n"
       "5\t80\t2.5\t2.25\t0.25\t1000\t10^400\t1.5\t1.000000\t0.3\t1.0\n"
       "10\t160\t2\t1.75\t0.5\t10^312.5\tinf\t1.75\t0.750000\t0.2\t2.0\n")
counts = {True: 0, False: 0}


def check(good, *what):
    counts[bool(good)] += 1
    if not good:
        print("FAILED:", *what)


def run(*arguments):
    return subprocess.run([sys.executable, os.path.join(DEV, "plot.py"), "--lipgpt", LIPGPT, *arguments],
                          capture_output=True, text=True)


def refuses(reason, *arguments):
    result = run(*arguments)
    check(result.returncode == 1 and not result.stdout and reason in result.stderr
          and not os.path.exists("out"), reason, result)


def test_numbers():
    log = plot.read_log("a.tsv")
    check(log["step"] == [5, 10] and log["loss"] == [2.25, 1.75] and log["train_loss"] == [2.5, 2], log)
    check(log["certificate"] == [3, 312.5] and log["accuracy"] == [0.25, 0.5], log)
    check(plot.read_log("b.tsv")["loss"] == [2.25, 1.75], "a log of the whole split")
    budget, layers = plot.certify(LIPGPT, MODEL)
    names = ["embedding", "blocks.0.attention", "blocks.0.mlp", "head"]
    printed = subprocess.run([LIPGPT, "certify", "--model", MODEL], capture_output=True, text=True).stdout
    K = dict(line.split("\t")[:2] for line in printed.splitlines() if "\t" in line)["certificate"]
    check(budget == 8 and [name for name, _ in layers] == names, budget, layers)
    check(abs(layers[-1][1] - math.log10(float(K))) < 1e-5, layers, K)
    check([plot.place(name, 1) for name in names] == [0, 1, 2, 3], "places")


def test_pictures():
    sizes = set()
    for files in (["a.tsv"], [MODEL], ["a.tsv", "b.tsv", MODEL, MODEL]):
        result = run(*files, "--out", "new/plot.png")
        check(result.returncode == 0 and result.stdout == "new/plot.png\n", result)
        with open("new/plot.png", "rb") as file:
            picture = file.read()
        check(picture.startswith(b"\x89PNG") and len(picture) > 10000, "a picture of", files)
        sizes.add(len(picture))
    check(len(sizes) == 3, "they are the same picture", sizes)
    refuses("out/log.tsv is not there; run make train")
    refuses("a.st is not there", "a.tsv", "a.st")
    refuses("empty.tsv is no log of lipgpt", "empty.tsv")
    refuses("not a safetensors file", os.path.join(DEV, "plot.py"))
    refuses("cut.tsv is no log of lipgpt", "cut.tsv")
    refuses("frontier.tsv is no log of lipgpt", os.path.join(DEV, "frontier.tsv"))
    refuses("cannot run none", MODEL, "--lipgpt", "none")
    refuses("latin.tsv is no log of lipgpt", "latin.tsv")
    refuses("word.tsv is no log of lipgpt", "word.tsv")
    for name in ("picture", "picture.xyz"):
        refuses(f"--out {name} is no picture", "a.tsv", "--out", name)


def main():
    with tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)
        for name, text in (("a.tsv", LOG), ("b.tsv", LOG.replace("part_", "full_")), ("empty.tsv", ""),
                           ("cut.tsv", LOG[:-9]), ("latin.tsv", LOG.replace("step", "st\xe9p")),
                           ("word.tsv", LOG.replace("\n10\t", "\nmany\t"))):
            with open(name, "w", encoding="latin-1") as file:
                file.write(text)
        test_numbers()
        try:
            import matplotlib
            test_pictures()
        except ImportError:
            print("pictures are not tested: no matplotlib")
            refuses("matplotlib is missing", "a.tsv")
        os.chdir("/")
    print(f"plot: {counts[True]} passed, {counts[False]} failed")
    return counts[False] != 0


if __name__ == "__main__":
    sys.exit(main())
