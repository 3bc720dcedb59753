"""Runs in a picture: their logs, and the certificates of their checkpoints layer by layer.

    make plot                                     out/log.tsv and out/lipgpt.safetensors -> out/plot.png
    make plot FILES='a.tsv b.tsv a.safetensors'   several of both, overlaid
    python3 dev/plot.py FILE ... [--out PICTURE] [--lipgpt PROGRAM]

Needs matplotlib, and ./lipgpt for checkpoints: what `certify` prints is drawn. Bounds that no double holds
are drawn, too: all of them are log10.
"""
import argparse
import csv
import math
import os
import subprocess
import sys

LOGS = (("loss", "validation, nats; dotted: training"), ("accuracy", "validation, %"),
        ("certificate", "log10 K; dashed: the budget"), ("largest_norm_over_cap", "largest norm / its cap"),
        ("largest_activation", "largest |x| seen"))
LAYERS = "log10 K, layer by layer"
BOUNDS = "certificate", "paper_bound"


def stop(reason):
    sys.exit(f"plot: {reason}")


def log10_of(text):  # lipgpt prints 10^x where x is too large
    bound = float(text[3:]) if text.startswith("10^") else float(text)
    return bound if text.startswith("10^") else math.log10(bound) if bound > 0 else math.nan


def read_log(path):
    """Column -> numbers; loss and accuracy of the whole validation split or, as logged, of a part."""
    with open(path, newline="", errors="replace") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    if not rows or not {"step", "certificate", "largest_norm_over_cap"} <= set(rows[0]) or None in rows[-1].values():
        stop(f"{path} is no log of lipgpt with at least one row")
    names = {name.replace("part_", "").replace("full_", ""): name for name in rows[0]}
    try:
        return {name: [(log10_of if name in BOUNDS else float)(row[own]) for row in rows]
                for name, own in names.items()}
    except (ValueError, TypeError) as error:
        stop(f"{path} is no log of lipgpt: {error}")


def certify(program, path):
    """The budget of a checkpoint, 0 for none, and (layer, log10 K up to there)."""
    try:
        run = subprocess.run([program, "certify", "--model", path], capture_output=True, text=True)
    except OSError as error:
        stop(f"cannot run {program}: {error.strerror}; run make, or give --lipgpt PROGRAM")
    if run.returncode:
        stop(run.stderr.strip())
    lines = [line.split("\t") for line in run.stdout.splitlines()]
    first = next(i for i, line in enumerate(lines) if line[0] == "layer") + 1
    column = lines[first - 1].index("certificate")
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length).decode()
    budget = header.split('"lipschitz":"')[1].split('"')[0]
    return float(budget), [(line[0], log10_of(line[column])) for line in lines[first:] if len(line) > column]


def place(layer, blocks):
    """Where a layer stands on the axis: embedding 0, then attention and MLP of every block, the head."""
    if layer in ("embedding", "head"):
        return 0 if layer == "embedding" else 2 * blocks + 1
    _, block, kind = layer.split(".")
    return 2 * int(block) + 1 + (kind == "mlp")


def draw(options):
    try:
        import matplotlib
    except ImportError:
        stop("matplotlib is missing: pip install matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    figure, grid = plt.subplots(2, 3, figsize=(15, 8))
    kinds = sorted(figure.canvas.get_supported_filetypes())
    if os.path.splitext(options.out)[1][1:] not in kinds:
        stop(f"--out {options.out} is no picture: let it end in .{', .'.join(kinds)}")
    axes = dict(zip([name for name, _ in LOGS] + [LAYERS], grid.flat))
    for path in options.files:
        if not os.path.isfile(path):
            stop(f"{path} is not there; run make train, or name the files")
    logs = [path for path in options.files if path.endswith(".tsv")]
    models = [path for path in options.files if not path.endswith(".tsv")]
    for i, path in enumerate(logs):
        log, color = read_log(path), f"C{i % 10}"
        for name, _ in LOGS:
            scale = 100 if name == "accuracy" else 1
            axes[name].plot(log["step"], [scale * y for y in log[name]], color=color, label=path)
        axes["loss"].plot(log["step"], log["train_loss"], ":", color=color)
    certified = [certify(options.lipgpt, path) for path in models]
    blocks = max([int(layers[-2][0].split(".")[1]) + 1 for _, layers in certified], default=1)
    for i, (budget, layers) in enumerate(certified):
        color = f"C{i % 10}"
        axes[LAYERS].plot([place(name, blocks) for name, _ in layers], [K for _, K in layers], "o-",
                          color=color, label=models[i])
        for name in ("certificate", LAYERS) if budget > 0 else ():
            axes[name].axhline(math.log10(budget), color=color, linestyle="--")
    for name, label in LOGS + ((LAYERS, LAYERS),):
        axes[name].set(ylabel=label, xlabel="" if name == LAYERS else "step")
        axes[name].grid(alpha=0.3)
    names = [f"{block}.{kind}" for block in range(blocks) for kind in ("attention", "mlp")]
    axes[LAYERS].set_xticks(range(2 * blocks + 2), ["embedding", *names, "head"], rotation=60)
    for ax in (axes["loss"], axes[LAYERS]):
        if ax.get_legend_handles_labels()[1]:
            ax.legend()
    figure.tight_layout()
    os.makedirs(os.path.dirname(os.path.abspath(options.out)), exist_ok=True)
    figure.savefig(options.out, dpi=100)
    print(options.out)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", default=["out/log.tsv", "out/lipgpt.safetensors"])
    parser.add_argument("--out", default="out/plot.png")
    parser.add_argument("--lipgpt", default=os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lipgpt"))
    draw(parser.parse_args())


if __name__ == "__main__":
    main()
