"""Accuracy against the bound, per optimizer and constraint, one training run per row of dev/tradeoff.tsv.

    make lipgpt build/mlp                             the two programs that the runs need
    python3 dev/tradeoff.py --list                    what is there already, and what would be run
    python3 dev/tradeoff.py [--task T] [METHOD ...]   run the missing rows (all, or that task's, those methods')
    python3 dev/tradeoff.py --task attack             two perceptrons of equal accuracy, under attack
    python3 dev/tradeoff.py --plot                    only draw dev/tradeoff*.png (needs matplotlib)

Tasks: cifar, the paper's perceptron, 20 epochs, measured on the last 5,000 training images, which are held out;
shakespeare, the paper's network, 500 steps of 16 windows (2.05M tokens), measured on the whole validation split.
Each method first tries learning rates at its first strength, with a quarter of the budget, on a held-out tail of
the training split (rows `cifar-rates`, `shakespeare-rates`): from the optimizer's usual rate it climbs to the one
with the best accuracy on the grid, whose neighbours are both worse. That rate serves all its strengths. Rates
come first; then the method with the fewest points, whose strengths are ordered so that few are spread widely.

Runs are resumable row by row: what stands in the table is not run again; a run that was cut off begins anew.
--jobs N runs N at a time; set OMP_NUM_THREADS, too. --seed N adds rows of another seed, --strengths S,T,.. only those
of some strengths. --cifar FOLDER and --text FILE take data from elsewhere; --note TEXT goes into CIFAR-10's rows (say
so if the images are recompressed).
"""
import argparse
import concurrent.futures
import csv
import fcntl
import os
import subprocess
import sys
import threading
import time

from frontier import append_row, log10_of

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TABLE = os.path.join(ROOT, "dev", "tradeoff.tsv")
OUT = os.path.join(ROOT, "out", "tradeoff")
KEY = "task method strength lr seed".split()
# certified, attacked: accuracy at the l2 radii of RADII; norms: of the last hidden matrix, after every epoch
COLUMNS = KEY + ("certificate paper_bound loss accuracy certified attacked largest_norm_over_cap norms "
                 "seconds note command").split()
RADII = (36 / 255, 72 / 255, 108 / 255, 0.5, 1, 2)
RATES = {"muon": "0.03 0.1 0.3 1 3 10".split(), "adamw": "0.0001 0.0003 0.001 0.003 0.01 0.03".split()}
USUAL = {"muon": "1", "adamw": "0.003"}
CAPS = {"cifar": "4.86 2 10 3 7 1.5".split(), "shakespeare": "2 1.2 4 0.8 3 6".split()}
DECAYS = {"cifar": "1 10 0.1 3 0.3 30".split(), "shakespeare": "3 30 0.3 10 1 0.1".split()}  # of AdamW
METHODS = [f"{optimizer}-{constraint}" for constraint, optimizers in (
    ("soft", ["muon"]), ("weight-decay", ["adamw", "muon"]), ("normalize", ["muon", "adamw"]), ("hard", ["muon"]),
    ("stiefel", ["muon"]), ("hammer", ["adamw", "muon"])) for optimizer in optimizers]


def strengths(task, method):
    """Caps, the first one for the learning rates; or decays: Muon's of lambda alone holds norms at 1 / lambda."""
    task = task.split("-")[0]
    if method == "adamw-weight-decay":
        return DECAYS[task]
    return [f"{1 / float(cap):.4g}" for cap in CAPS[task]] if method == "muon-weight-decay" else CAPS[task]


def options_of(method, strength):
    optimizer, constraint = method.split("-", 1)
    free = ["--cap", "0", "--weight-decay", strength]
    return ["--optimizer", optimizer] + (free if constraint == "weight-decay" else
                                         ["--constraint", constraint, "--cap", strength])


def read_rows():
    if not os.path.exists(TABLE):
        return []
    with open(TABLE, newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def best_rate(task, method, rows):
    """The best rate so far, and the one to be tried next, or None."""
    grid = RATES[method.split("-")[0]]
    tried = {row["lr"]: float(row["accuracy"]) for row in rows
             if row["task"] == task + "-rates" and row["method"] == method}
    best = max(tried, key=tried.get) if tried else USUAL[method.split("-")[0]]
    place = grid.index(best)
    wanted = [rate for rate in [best] + grid[max(0, place - 1):place + 2] if rate not in tried]
    return best, wanted[0] if wanted else None


def state_of(task, method, rows, seed, only):
    """How many points a method has, -1 before its rate is known; the keys of the runs that seem to be missing."""
    best, trial = best_rate(task, method, rows)
    there = {tuple(row[name] for name in KEY) for row in rows}
    points = [(task, method, strength, best, seed) for strength in strengths(task, method)
              if not only or strength in only]
    missing = [point for point in points if point not in there]
    if trial:
        return -1, [(task + "-rates", method, strengths(task, method)[0], trial, "0")] + missing
    return len(points) - len(missing), missing


def attack_pair(rows):
    """The best model of AdamW with weight decay, and that of Muon with the soft cap of the nearest accuracy."""
    points = {method: [row for row in rows if (row["task"], row["method"], row["seed"], row["lr"]) ==
                       ("cifar", method, "0", best_rate("cifar", method, rows)[0])]
              for method in ("adamw-weight-decay", "muon-soft")}
    if not all(points.values()):
        sys.exit("tradeoff: an attack wants rows of adamw-weight-decay and muon-soft")
    goal = max(points["adamw-weight-decay"], key=lambda row: float(row["accuracy"]))
    twin = min(points["muon-soft"], key=lambda row: abs(float(row["accuracy"]) - float(goal["accuracy"])))
    keys = [("cifar-attack", row["method"], row["strength"], row["lr"], "0") for row in (goal, twin)]
    return [key for key in keys if key not in {tuple(row[name] for name in KEY) for row in rows}]


def next_run(arguments, busy):
    """The key of the run that comes next, or None, if all is there or others must end first."""
    rows, candidates = read_rows(), []
    if arguments.task == "attack":
        return next((key for key in attack_pair(rows) if key not in busy), None)
    for task in [arguments.task] if arguments.task in CAPS else CAPS:
        for method in arguments.methods or METHODS:
            points, missing = state_of(task, method, rows, arguments.seed, arguments.strengths)
            running = [key for key in busy if key[:2] in ((task, method), (task + "-rates", method))]
            missing = [key for key in missing if key not in busy]
            if missing and not any(key[0].endswith("-rates") for key in running):  # else its rate is awaited
                candidates.append((points + len(running), missing[0]))
        if candidates:
            return min(candidates, key=lambda pair: pair[0])[1]
    return None


def train(command, where):
    """Standard output and error, or None for both: it diverged, which is a result, too."""
    if not os.path.exists(os.path.join(ROOT, command[0])):
        sys.exit(f"tradeoff: {command[0]} is not there; run make lipgpt build/mlp")
    done = subprocess.run(command + where, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    if "is not finite" in done.stderr:
        return None, None
    if done.returncode:
        why = done.stderr.splitlines()[-1:] if done.returncode > 0 else ["killed by signal", str(-done.returncode)]
        sys.exit(f"tradeoff: {' '.join(command)}: {' '.join(why)}")
    return done.stdout, done.stderr


def table_of(text, start):
    """The table in a text whose header begins with `start`, to the end."""
    return list(csv.DictReader(text[text.index(start):].splitlines(), delimiter="\t"))


def run(key, arguments):
    """Train; the row that says what came of it."""
    task, method, strength, rate, seed = key
    trial, model = task.endswith("-rates"), os.path.join(OUT, "-".join(key) + ".safetensors")
    row = dict(zip(KEY, key))
    if task.startswith("cifar"):
        row["note"] = arguments.note
        command = ["build/mlp", "train", "--preset", "paper", "--epochs", "5" if trial else "20",
                   "--holdout", "1000" if task == "cifar-attack" else "5000"]
        where = ["--data", arguments.cifar, "--out", model]
    else:
        text, log = arguments.text, os.path.join(OUT, "-".join(key) + ".tsv")
        if trial:  # the training split alone, of which the last tenth is held out in turn
            text = model + ".split"
            try:
                with open(arguments.text, "rb") as whole, open(text, "wb") as part:
                    part.write(whole.read(os.path.getsize(arguments.text) * 9 // 10))
            except OSError as error:
                sys.exit(f"tradeoff: cannot take a part of {arguments.text}: {error.strerror}; give another --text")
        command = ["./lipgpt", "train", "--preset", "paper", "--steps", "125" if trial else "500", "--batch", "16",
                   "--eval-every", "125", "--sample-every", "0"]
        where = ["--data", text, "--out", model, "--log", log]
    command += options_of(method, strength) + ["--lr", rate, "--seed", seed]
    row["command"], began = " ".join(command), time.time()
    output, progress = train(command, where)
    row["seconds"] = f"{time.time() - began:.1f}"
    if output is None:
        return dict(row, certificate="inf", loss="inf", accuracy="0")
    row.update((name.replace("full_", ""), value) for name, _, value in
               (line.partition("\t") for line in output.splitlines()) if name.replace("full_", "") in
               ("certificate", "paper_bound", "loss", "accuracy"))
    if task.startswith("cifar"):
        reports = table_of(progress, "epoch\t")
        row["norms"] = " ".join(f"{float(report['last_hidden_norm']):.4f}" for report in reports)
        if task == "cifar-attack":
            output, _ = train(["build/mlp", "certify", "--data", arguments.cifar, "--model", model], [])
        table = table_of(output, "l2_radius\t")
        row["certified"] = " ".join(line["certified_accuracy"] for line in table)
        row["attacked"] = " ".join(line.get("accuracy_under_attack", "") for line in table).strip()
    else:
        with open(log) as file:
            reports = table_of(file.read(), "step\t")
    row["largest_norm_over_cap"] = f"{max(float(report['largest_norm_over_cap']) for report in reports):.6f}"
    return row


def work(arguments, busy, lock):
    """One worker: run what comes next until nothing is left to do."""
    while True:
        with lock:
            key = next_run(arguments, busy)
            if key:
                busy.add(key)
                print(*key, flush=True)
            elif not busy:
                return
        if not key:
            time.sleep(1)
            continue
        try:
            row = run(key, arguments)
            with lock:
                append_row(TABLE, COLUMNS, row)
        finally:
            with lock:
                busy.discard(key)


def chosen(task, method, rows):
    """A method's points: its rows at its rate that did not diverge."""
    rate = best_rate(task, method, rows)[0]
    return [row for row in rows if (row["task"], row["method"], row["lr"]) == (task, method, rate)
            and row["certificate"] != "inf"]


def plot():
    try:
        import matplotlib
    except ImportError:
        sys.exit("tradeoff: matplotlib is missing, so nothing was drawn: pip install matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    rows = read_rows()
    constraints = list(dict.fromkeys(method.split("-", 1)[1] for method in METHODS))
    style = {method: dict(color=f"C{constraints.index(method.split('-', 1)[1])}", markersize=5,
                          marker="o" if method.startswith("muon") else "s",
                          linestyle="-" if method.startswith("muon") else "--") for method in METHODS}

    def finish(figure, name):
        for ax in figure.axes:
            ax.grid(alpha=0.3)
            ax.legend(fontsize=8, framealpha=0.5)
        figure.tight_layout()
        figure.savefig(os.path.join(ROOT, "dev", name), dpi=110)

    tasks = [task for task in CAPS if any(row["task"] == task for row in rows)]
    figure, grid = plt.subplots(len(tasks), 2, figsize=(11, 4.3 * len(tasks)), squeeze=False)
    for axes, task in zip(grid, tasks):
        for method in METHODS:
            points = sorted(chosen(task, method, rows), key=lambda row: log10_of(row["certificate"]))
            for ax, column, scale in zip(axes, ("accuracy", "loss"), (100, 1)):
                for bound, look in (("certificate", dict(label=method)), ("paper_bound", dict(alpha=0.25))):
                    for first in (True, False):  # a line through the points of seed 0, dots for other seeds
                        pairs = [(log10_of(row[bound]), scale * float(row[column])) for row in points
                                 if row[bound] and (row["seed"] == "0") == first]
                        if pairs and first:
                            ax.plot(*zip(*pairs), **style[method], **look)
                        elif pairs:
                            ax.plot(*zip(*pairs), **dict(style[method], linestyle="none", alpha=0.5))
        for ax, label in zip(axes, ("validation accuracy, %", "validation loss, nats")):
            ax.set(xlabel="log10 of the sound bound" + ("; faint: of the paper's formula" if task != "cifar" else ""),
                   ylabel=label, title="CIFAR-10, perceptron" if task == "cifar" else "Shakespeare, transformer")
        losses = sorted(float(row["loss"]) for row in rows if row["task"] == task)
        axes[1].set_ylim(losses[0] - 0.05, min(4.2, losses[-1] + 0.05))  # above 4.2, guessing is better
    finish(figure, "tradeoff.png")

    figure, ax = plt.subplots(figsize=(7, 4.5))
    for row in (row for row in rows if row["task"] == "cifar-attack"):
        for column, line in (("attacked", "-"), ("certified", ":")):
            ax.plot((0,) + RADII, [100 * float(x) for x in [row["accuracy"]] + row[column].split()],
                    color=style[row["method"]]["color"], linestyle=line, marker="o",
                    label=f"{row['method']} {row['strength']}, bound {float(row['certificate']):.3g}: {column}")
    ax.set(xlabel="l2 radius", ylabel="accuracy on 1,000 held-out images, %")
    finish(figure, "tradeoff-attack.png")

    figure, ax = plt.subplots(figsize=(8, 5))
    for method in (method for method in METHODS if method != "adamw-weight-decay"):  # that has no cap
        middle = strengths("cifar", method)[0]
        cap = 1 / float(middle) if method == "muon-weight-decay" else float(middle)
        for row in [row for task in ("cifar", "cifar-rates") for row in rows if row["norms"] and
                    [row[name] for name in KEY[:3]] == [task, method, middle]][:1]:
            norms = [float(norm) / cap for norm in row["norms"].split()]
            ax.semilogy([(epoch + 1) / len(norms) for epoch in range(len(norms))], norms, **style[method],
                        label=f"{method}, {len(norms)} epochs")
    ax.axhline(1, color="gray", linewidth=0.8)
    ax.set(xlabel="part of the training", xlim=(0, 1.5), ylabel="norm / cap of the last hidden matrix")
    ax.set_yticks((0.5, 0.7, 1, 1.5, 2, 3), (0.5, 0.7, 1, 1.5, 2, 3))
    ax.minorticks_off()
    finish(figure, "tradeoff-norms.png")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", metavar="METHOD")
    parser.add_argument("--task", choices=("cifar", "shakespeare", "attack"))
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--plot", action="store_true")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seed", default="0")
    parser.add_argument("--strengths", type=lambda text: text.split(","), default=[], metavar="S,T,..")
    parser.add_argument("--cifar", default=os.path.join(ROOT, "data", "cifar-10-batches-bin"))
    parser.add_argument("--text", default=os.path.join(ROOT, "data", "tinyshakespeare.txt"))
    parser.add_argument("--note", default="")
    arguments = parser.parse_args()
    arguments.cifar, arguments.text = os.path.abspath(arguments.cifar), os.path.abspath(arguments.text)
    if arguments.jobs < 1:
        parser.error(f"--jobs takes a whole number from 1 on, got {arguments.jobs}")
    if set(arguments.methods) - set(METHODS):
        parser.error(f"methods are {', '.join(METHODS)}")
    known = sorted({strength for task in CAPS for method in METHODS for strength in strengths(task, method)}, key=float)
    if set(arguments.strengths) - set(known):
        parser.error(f"strengths are {', '.join(known)}")
    if arguments.list and arguments.task == "attack":
        print("attack missing:", *(" ".join(key[1:3]) + "," for key in attack_pair(read_rows())))
    elif arguments.list:
        for task in [arguments.task] if arguments.task in CAPS else CAPS:
            for method in arguments.methods or METHODS:
                points, missing = state_of(task, method, read_rows(), arguments.seed, arguments.strengths)
                print(task, method, "its rate" if points < 0 else f"{points} points", "missing:",
                      *(" ".join((key[0], key[2], "at", key[3])) + "," for key in missing))
    elif arguments.plot:
        plot()
    else:
        os.makedirs(OUT, exist_ok=True)
        tasks = [arguments.task] if arguments.task else CAPS
        locks = [open(os.path.join(OUT, task + ".lock"), "w") for task in tasks]
        try:    # they end with this process
            for lock in locks:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            sys.exit(f"tradeoff: another process is at {' or '.join(tasks)}: wait for it, or give it --jobs")
        busy, lock = set(), threading.Lock()
        with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
            for worker in [pool.submit(work, arguments, busy, lock) for _ in range(arguments.jobs)]:
                worker.result()


if __name__ == "__main__":
    main()
