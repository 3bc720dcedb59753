"""The frontier: accuracy against the sound bound, one training run per row of dev/frontier.tsv.

    make lipgpt search                              the two programs that the runs need
    python3 dev/frontier.py --list                  what would be run, and what is there already
    python3 dev/frontier.py [NAME ...]              run the missing rows (all, or those named)
    python3 dev/frontier.py --jobs 2 [NAME ...]     two at a time, each with half of the threads
    python3 dev/frontier.py --plot                  only draw dev/frontier.png and dev/robustness.png
                                                    (needs matplotlib)
    python3 dev/frontier.py --scale MODEL 30 OUT    MODEL with its head divided by 30: accuracy for nothing
    python3 dev/frontier.py --public MODEL          what the paper's public code would print for MODEL's norms

Runs are resumable: a row that stands in the table is not run again, and a run that was cut off goes on
from its checkpoint in out/frontier/. Each takes about a quarter of an hour on two cores (8M tokens),
the long ones an hour. --data FILE takes another text. A run trains with ./lipgpt; every number of its
row, the lower bound too, comes from build/search, and so do the rows of dev/robustness.tsv, certified
accuracy and accuracy under attack on 64 windows of the validation split. The column `command` keeps the
names that options had on the day of the run. Rows convex-* are what tight was until commit 59c5db3; the
program of that day runs their commands. What the rows say stands in dev/frontier.md.
"""
import argparse
import array
import concurrent.futures
import csv
import fcntl
import json
import math
import os
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TABLE = os.path.join(ROOT, "dev", "frontier.tsv")
ROBUSTNESS = os.path.join(ROOT, "dev", "robustness.tsv")
OUT = os.path.join(ROOT, "out", "frontier")
COLUMNS = ("preset steps batch seed certificate paper_bound lower_bound full_loss full_accuracy "
           "slice_loss slice_accuracy largest_activation seconds command").split()
ROBUST = "preset eps certified attacked windows".split()
BUDGETS = (1, 2, 5, 10, 30, 100, 300, 1000)
SHORT = ["--steps", "2000", "--batch", "16"]   # 8.2M tokens
LONG = ["--steps", "2000", "--batch", "64"]    # the paper's 33M
SMALL = ["--steps", "8000", "--batch", "16", "--eval-every", "1000"]  # the same, for a small K
LONGER = ["--steps", "3000", "--batch", "64"]  # 49M
MEASURED = ["--steps", "", "--batch", ""]      # not trained: made of another row's model
EDGE = 3.5  # log10 of the picture's largest bound
COUNTING = 1.702  # loss, full validation: the best line of dev/ngram.py
NANOGPT = 1.4697  # loss that nanoGPT's README reports for its 10.7M parameters, on the same split

# The run of the paper's headline, as far as it is known (dev/headline.md): plain residuals, no 1/3, steps
# that grow with depth; and the caps that its code's coupling really held, as multiples of the nominal one.
HEADLINE = ["--preset", "paper", "--residual", "plain", "--attention-factor", "1", "--share-growth", "8"]
HELD = {"1.4": ["--cap", "1.4", "--cap-in", "1.608", "--cap-out", "1.219", "--cap-head", "1.222"],
        "1.2": ["--cap", "1.2", "--cap-in", "1.378", "--cap-out", "1.045", "--cap-head", "1.047"]}
RATE = "9.00628"  # of the 12 that were tried; the next lower one is 4.811


def planned():
    """Name -> arguments of every row."""
    runs = {}
    for preset in ("tight", "paper"):
        for budget in BUDGETS[preset == "paper":]:
            runs[f"{preset}-{budget}"] = ["--preset", preset, "--lipschitz", str(budget)] + SHORT
        # with paper's learning rate, nothing holds it: it diverges
        runs[f"{preset}-free"] = ["--preset", preset, "--cap", "0", "--lr", "0.1"] + SHORT
    for budget, seeds in ((2, 2), (10, 2), (30, 1), (100, 1)):
        for seed in range(seeds):
            runs[f"tight-{budget}-long-{seed}"] = ["--preset", "tight", "--lipschitz", str(budget),
                                                   "--seed", str(seed)] + (SMALL if budget < 20 else LONG)
    runs["wide-2"] = ["--preset", "tight", "--lipschitz", "2", "--mlp-ratio", "16"] + SHORT
    for budget in ("2", "10"):
        runs[f"wider-{budget}"] = ["--preset", "tight", "--lipschitz", budget, "--mlp-ratio", "16",
                                   "--value-ratio", "4", "--share-embed", "8000"] + SHORT
    for margin in ("1", "4"):
        runs[f"margin-2-{margin}"] = ["--preset", "tight", "--lipschitz", "2", "--margin", margin] + SHORT
    for rate in (6, 10):
        runs[f"headline-{rate}"] = HEADLINE + ["--cap", "1.2", "--lr", str(rate)] + LONG
    for cap, held in HELD.items():
        runs[f"headline-{cap}"] = HEADLINE + held + ["--lr", RATE] + LONG
    runs["headline-1.4-low"] = HEADLINE + HELD["1.4"] + ["--lr", "4.811"] + LONG
    for seed in ("1", "2"):
        runs[f"headline-1.4-seed-{seed}"] = HEADLINE + HELD["1.4"] + ["--lr", RATE, "--seed", seed] + LONG
    return runs


def read_rows(table=TABLE):
    if not os.path.exists(table):
        return []
    with open(table, newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def values(text):
    """name -> value of the lines name<TAB>value."""
    return dict(line.split("\t")[:2] for line in text.splitlines() if line.count("\t") == 1)


def check_model(model, arguments):
    """That a checkpoint from earlier is of the run that is asked for, not of what its name once meant."""
    with open(model, "rb") as file:
        found = json.loads(file.read(int.from_bytes(file.read(8), "little")))["__metadata__"]
    for key, value in zip(arguments[::2], arguments[1::2]):
        number = f"{float(value):.17g}" if value[0].isdigit() else value
        if found.get(key[2:], value) not in (value, number):    # --cap is not in it
            sys.exit(f"frontier: {model} was trained with {key} {found[key[2:]]}, not {value}: move it away")


def run_alone(name, arguments, data):
    """run, unless another process is at it, or was."""
    with open(os.path.join(OUT, name + ".lock"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return print(name, "is run by another process", flush=True)
        if name not in {row["preset"] for row in read_rows(TABLE)}:
            run(name, arguments, data)


def run(name, arguments, data):
    """Train, or go on, then search from below; append the row."""
    model, log = os.path.join(OUT, name + ".safetensors"), os.path.join(OUT, name + ".tsv")
    command = [os.path.join(ROOT, "lipgpt"), "train", "--data", data, "--log", log]
    there = os.path.exists(model)
    if there:
        check_model(model, arguments)
    if there and last_step(log, arguments):
        print(f"{name} is trained already; {model} is measured", flush=True)
    else:
        command += ["--resume", model] if there else ["--out", model, "--sample-every", "0"] + arguments
        print(name, " ".join(command), flush=True)
        subprocess.run(command, check=True)
    given = dict(zip(arguments[::2], arguments[1::2]))
    measure(name, model, data, {"steps": given["--steps"], "batch": given["--batch"], "seed": given.get("--seed", "0"),
                                "seconds": f"{elapsed(log):.1f}",
                                "command": " ".join(["./lipgpt", "train"] + arguments)})


def measure(name, model, data, row):
    """Append what build/search says of a model to both tables; row is what it can't know."""
    windows = 64 if name not in {row["preset"] for row in read_rows(ROBUSTNESS)} else 0
    text = subprocess.run(
        [os.path.join(ROOT, "build", "search"), "--model", model, "--data", data, "--windows", str(windows)],
        check=True, stdout=subprocess.PIPE, text=True).stdout
    found = values(text)
    if windows:     # first: a row of TABLE says that all is done
        append_row(ROBUSTNESS, ROBUST, *(dict(zip(ROBUST, [name, *line.split("\t"), windows]))
                                         for line in text[text.index("\neps\t"):].splitlines()[2:]))
    if name not in {row["preset"] for row in read_rows(TABLE)}:
        append_row(TABLE, COLUMNS, {"preset": name, **row, **{key: found[key] for key in COLUMNS if key in found}})
    elif not windows:
        print(f"frontier: {name} stands in both tables already, nothing was added", file=sys.stderr)


def scale_head(model, divisor, out):
    """A model with W_head and its bias divided: K falls as much, and every prediction stays."""
    try:
        with open(model, "rb") as file:
            size = file.read(8)
            length = int.from_bytes(size, "little")
            tensors = json.loads(header := file.read(min(length, 1 << 27)))
            body = bytearray(file.read())
        for tensor in (tensors[name] for name in ("head.weight", "head.bias") if name in tensors):
            begin, end = tensor["data_offsets"]
            kind = {"F32": "f", "F64": "d"}[tensor["dtype"]]
            body[begin:end] = array.array(kind, [x / divisor for x in array.array(kind, body[begin:end])]).tobytes()
    except (OSError, ValueError, KeyError, TypeError) as error:
        sys.exit(f"frontier: {model} is no checkpoint to scale: {error}")
    with open(out, "wb") as file:
        file.write(size + header + body)


def append_row(table, columns, *rows):
    """More rows of a table in a file, with its header if they are the first."""
    fresh = not os.path.exists(table)
    with open(table, "a", newline="") as file:
        writer = csv.DictWriter(file, columns, delimiter="\t", lineterminator="\n")
        if fresh:
            writer.writeheader()
        writer.writerows(rows)


def read_log(log):
    with open(log) as file:
        return list(csv.DictReader(file, delimiter="\t"))


def elapsed(log):
    """Seconds of training: those of a resumed run start at 0 again."""
    total = before = 0
    for row in read_log(log):
        now = float(row["seconds"])
        total, before = total + now - (before if now > before else 0), now
    return total


def last_step(log, arguments):
    """Whether the log shows the run's last step."""
    rows = read_log(log) if os.path.exists(log) else []
    return bool(rows) and rows[-1]["step"] == arguments[arguments.index("--steps") + 1]


def public_formula(model, backwards, scores):
    """What the paper's public code says of a model's norms: its accounting of the network that the paper
    describes (convex residuals, 1/3, gelu/1.1289), whatever the model's is. The public code walks the blocks
    `backwards`; without `scores` the term of the scores, 2 |q| |k|, is left out."""
    text = subprocess.run([os.path.join(ROOT, "lipgpt"), "certify", "--model", model],
                          check=True, stdout=subprocess.PIPE, text=True).stdout
    rows = [line.split("\t") for line in text.splitlines()]
    norms = {row[0]: float(row[2]) for row in rows if len(row) == 4 and row[0].endswith(".weight")}
    blocks = 1 + max(int(name.split(".")[1]) for name in norms if name.startswith("blocks"))
    alpha, bound, largest = 1 / (2 * blocks), norms["embedding.weight"], 1
    if len([name for name in norms if name.endswith(("query.weight", "key.weight"))]) < 2 * blocks:
        sys.exit(f"frontier: {model} has blocks without q and k, which the public code does not know")
    for block in range(blocks)[::-1 if backwards else 1]:
        query, key, value, out, up, down = (norms[f"blocks.{block}.{name}.weight"] for name in (
            "attention.query", "attention.key", "attention.value", "attention.output", "mlp.in", "mlp.out"))
        attention = 1 + (2 * largest ** 2 * query * key if scores else 0)
        bound *= 1 - alpha + alpha / 3 * out * value * attention
        largest *= 1 - alpha + alpha / 3 * out * value
        bound *= 1 - alpha + alpha * down * up / 1.1289
        largest *= 1 - alpha + alpha * down * up / 1.1289
    return bound * norms["head.weight"]


def log10_of(bound):
    """Of a bound as lipgpt prints it: a number, or 10^x where that would be too large."""
    return float(bound[3:]) if bound.startswith("10^") else math.log10(float(bound))


def plot():
    try:
        import matplotlib
    except ImportError:
        sys.exit("frontier: matplotlib is missing, so nothing was drawn: pip install matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(figsize=(9, 4.5))
    for family, tokens, style, label in (
            ("tight", SHORT, "C0o", "tight, 8M tokens"), ("tight", LONG, "C0D", "tight, 33M tokens"),
            ("tight", SMALL, "C0D", None),
            ("wider", SHORT, "C5o", "tight, wider, 8M tokens"),
            ("convex", SHORT, "C1o", "convex residuals, 8M"), ("convex", LONG, "C1D", "convex, 33M"),
            ("convex", LONGER, "C1*", "convex, 49M"),
            ("scaled", MEASURED, "C4x", "convex-60-long, its head / 30"),
            ("paper", SHORT, "C2s", "the paper's network, 8M tokens"),
            ("headline", LONG, "C3^", "its headline's likely network, 33M")):
        rows = [(log10_of(row["certificate"]), float(row["full_loss"])) for row in read_rows()
                if row["preset"].startswith(family) and [row["steps"], row["batch"]] == tokens[1:4:2]]
        if rows:
            axes.semilogx([10 ** min(x, EDGE) for x, y in rows], [y for x, y in rows], style,
                          label=label, clip_on=False)
        beyond = [row for row in rows if row[0] > EDGE]  # miles away: at the edge
        if beyond and family != "convex":
            axes.annotate(f"$10^{{{beyond[0][0]:.0f}}}\\to$", (10 ** EDGE, max(y for _, y in beyond)), (-8, 2),
                          ha="right", textcoords="offset points", fontsize=9)
    axes.axhline(COUNTING, color="gray", linestyle="--", label="counting 6-grams (dev/ngram.py)")
    axes.axhline(NANOGPT, color="gray", linestyle=":", label="nanoGPT, 10.7M parameters, no bound")
    axes.set_xlim(0.7, 10 ** EDGE)
    axes.set_yscale("log")
    axes.set_yticks((1.4, 1.6, 1.8, 2, 2.5, 3, 4), ("1.4", "1.6", "1.8", "2", "2.5", "3", "4"))
    axes.minorticks_off()
    axes.set_xlabel("sound Lipschitz bound K, embeddings to logits")
    axes.set_ylabel("loss on the full validation split")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    figure.tight_layout()
    figure.savefig(os.path.join(ROOT, "dev", "frontier.png"), dpi=120)

    figure, axes = plt.subplots(figsize=(7, 4.5))
    names = [f"tight-{budget}" for budget in BUDGETS] + ["paper-100", "scaled-60-long-0", "headline-1.4"]
    names = [name for name in names if name in {row["preset"] for row in read_rows(ROBUSTNESS)}]
    for i, name in enumerate(names):
        rows = [row for row in read_rows(ROBUSTNESS) if row["preset"] == name]
        eps = [float(row["eps"]) for row in rows]
        for key, line in (("attacked", "-"), ("certified", "--")):
            axes.plot(eps, [100 * float(row[key]) for row in rows], f"C{i}{line}", marker=".",
                      label=name if line == "-" else None)
    axes.set_xscale("symlog", linthresh=0.01)
    axes.set_xlabel("every embedding moves by eps (RMS norm)")
    axes.set_ylabel("right predictions, %: under attack -, certified - -")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(os.path.join(ROOT, "dev", "robustness.png"), dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--plot", action="store_true")
    parser.add_argument("--public", metavar="MODEL")
    parser.add_argument("--scale", nargs=3, metavar=("MODEL", "DIVISOR", "OUT"))
    parser.add_argument("--measure", nargs=2, metavar=("NAME", "MODEL"), help="rows of a model that is there")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--data", default=os.path.join(ROOT, "data", "tinyshakespeare.txt"))
    options = parser.parse_args()
    if options.jobs < 1:
        parser.error(f"--jobs takes a whole number from 1 on, got {options.jobs}")
    runs, done = planned(), {row["preset"] for row in read_rows()}
    unknown = [name for name in options.names if name not in runs]
    if unknown:
        sys.exit(f"frontier: no run is called {unknown[0]}; see --list")
    if options.scale:
        model, divisor, out = options.scale
        if not divisor.replace(".", "", 1).isdigit() or not float(divisor):
            parser.error(f"--scale takes a DIVISOR above 0, got {divisor}")
        return scale_head(model, float(divisor), out)
    if options.measure:
        return measure(*options.measure, options.data, {})
    if options.public:
        for scores in (True, False):
            for backwards in (True, False):
                print("public_formula", "last block first" if backwards else "first block first",
                      "with scores" if scores else "without scores",
                      f"{public_formula(options.public, backwards, scores):.4g}", sep="\t")
        return
    if options.list:
        for name, arguments in runs.items():
            print("done   " if name in done else "missing", name, " ".join(arguments))
        return
    if not options.plot:
        missing = [name for name in options.names or runs if name not in done]
        os.makedirs(OUT, exist_ok=True)
        for program in ("lipgpt", "build/search"):
            if missing and not os.path.exists(os.path.join(ROOT, program)):
                sys.exit(f"frontier: {program} is not there; run make lipgpt search")
        if options.jobs > 1:
            os.environ["OMP_NUM_THREADS"] = str(max(1, os.cpu_count() // options.jobs))
        with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
            ahead = [pool.submit(run_alone, name, runs[name], options.data) for name in missing]
            try:
                for done_run in ahead:
                    done_run.result()
            except KeyboardInterrupt:   # what has not begun does not begin
                for waiting in ahead:
                    waiting.cancel()
                raise
    plot()


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:  # which has said why
        sys.exit(f"frontier: {' '.join(error.cmd)} ended with status {error.returncode}")
    except KeyboardInterrupt:
        sys.exit("frontier: interrupted; run the same again to go on")
