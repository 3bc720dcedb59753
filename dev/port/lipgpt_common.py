"""What is the same in every framework, in NumPy: settings and the table of tensors, the generator
and initial values, texts, checkpoints, both bounds, golden files, and the six commands.

A port has a class Run, and calls main(Run). dev/porting.md explains; T, d, H, dh, F, L, V and all
names are those of lipgpt.c. Weights and momenta are dicts {name: array (rows, cols)}.
"""

import argparse
import glob
import itertools
import math
import os
import sys
import tempfile
import time
from functools import partial
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

# ------------------------------------------------------------------------------------------------
# Settings, as in lipgpt's metadata, with _ for -; and the table of tensors.

PAPER = dict(
    data="data/tinyshakespeare.txt", val_data="", preset="paper", lipschitz=0.0, steps=2000,
    batch=64, seed=0,
    tokens=500, temperature=0.8, eval_every=100, sample_every=500, width=256, heads=4, blocks=3,
    context=256, mlp_ratio=4, activation="gelu", position_bias=0, bias=0, optimizer="muon",
    lr=0.5, momentum=0.9, beta2=0.95, weight_decay=0.0, constraint="soft", cap_qk=1.2, cap_v=1.2,
    cap_o=1.2, cap_in=1.2, cap_out=1.2, cap_head=1.2, cap_embed=1.0, cap_bias=0.25,
    spectral_decay=0.01, alpha=0.0, residual="convex", attention_factor=1 / 3, softmax_scale=1.0,
    value_ratio=1, attention_blocks=0, position_only=0, per_head=0, mass=32.0, share_growth=0.0,
    share_embed=1.0, share_head=1.0, share_bias=0.1, margin=0.0, lanes=8)
TIGHT = PAPER | dict(
    preset="tight", lipschitz=100.0, batch=16, eval_every=200, activation="maxmin", lr=0.1,
    residual="concat", blocks=2, attention_blocks=1, heads=8, value_ratio=2, mlp_ratio=8,
    position_bias=1, bias=1, per_head=1, attention_factor=1.0, share_embed=500.0, share_head=20.0,
    cap_qk=0.1, cap_v=1.0, cap_o=1.0, cap_in=2.5, cap_out=1.5, cap_head=6.0)
LARGE = PAPER | dict(           # for internet text: see preset_config
    preset="145m", width=768, heads=6, blocks=12, context=1024, batch=512, lanes=2, steps=1335,
    constraint="normalize", share_head=8.0, cap_qk=1.0, cap_v=1.0, cap_o=1.0, cap_in=1.0,
    cap_out=1.0, cap_head=8.0)
LATER = {"val-data": "", "residual": "convex", "share-growth": "0", "value-ratio": "1",
         "attention-blocks": "0", "position-only": "0", "margin": "0"} # what older files do not say
SCALED = "cap_head", "cap_qk", "cap_in", "cap_out"      # by a budget; the first alone with concat
CAPS = SCALED + ("cap_v", "cap_o")                      # what --cap sets, and a budget excludes
PREFIXES = "", "momentum.", "second."        # of the tensors in a checkpoint
WORDS = dict(preset=("tight", "paper", "145m"), activation=("gelu", "maxmin"),
             residual=("convex", "plain", "concat"), optimizer=("muon", "adamw"),
             constraint=("soft", "hard", "normalize", "stiefel", "hammer", "decay"))
AGAIN = "data", "val_data", "steps"          # what may be given when a run is resumed
AMPLIFIED = ("initial", "gradient", "momentum_after", "second_after", "update",
             "after")                                   # what float32 blurs
PER_TENSOR = AMPLIFIED + ("u", "soft_cap", "norm")      # one row of check is of all tensors
EPSILON = 2.0**-52
ROUNDING = 1e-6                 # what float may add to a norm
GELU_DIVISOR = 1.1289
GELU_SLOPE = 1.1289931          # the largest slope of GELU's tanh form, without the divisor
NEWTON_SCHULZ = [tuple(k / 1024 for k in row) for row in (
    (3955, -8306, 5008), (3735, -6681, 3463), (3799, -6499, 3211),
    (4019, -6385, 2906), (2677, -3029, 1162), (2172, -1833, 682))]


class Tensor(NamedTuple):
    rows: int           # fan_out; or one embedding, one bias vector per row
    cols: int           # fan_in
    cap: float          # largest RMS->RMS norm, or RMS norm of a row; 0: none
    share: float        # of the learning rate: u = eta share is the norm of an update
    kind: str = "matrix"        # or embed or bias, whose norm is that of the largest row
    heads: int = 0      # H for W_q, W_k, W_v, whose heads have norms of their own in the bound
    slices: int = 1     # H if every head's rows are updated and capped as a matrix of their own

    @property
    def unit(self):     # sigma_max of a matrix (or slice) of RMS->RMS norm 1; rows stay as they are
        return math.sqrt(self.rows / self.slices / self.cols) if self.kind == "matrix" else 1


def plan(c):
    """{name: Tensor}, in the order of the checkpoint and of the random draws."""
    d, F, L, V, H = c.width, c.width * c.mlp_ratio, c.blocks, c.vocabulary_size, c.heads
    end, body, g = 1 / (c.mass + 2), c.mass / (c.mass + 2), c.share_growth
    n, stream = d * c.value_ratio, d if c.residual == "concat" else 0     # columns of W_o, W_out
    per_head = dict(heads=H, slices=H if c.per_head else 1)
    share_embed = end * c.share_embed * (g**-L if g else 1)
    table = {"embedding.weight": Tensor(V, d, c.cap_embed, share_embed, "embed")}
    for l in range(L):
        mlp = body / (6 * L) * g**(l + 1 - L) if g else body / 3
        qkv, o = (mlp / 2, mlp / 2) if g else (body, body / 3)
        here = not c.attention_blocks or l < c.attention_blocks     # else no rows
        qk = 0 if c.position_only else here * d
        block = {
            "attention.query.weight": Tensor(qk, d, c.cap_qk, qkv, **per_head),
            "attention.key.weight": Tensor(qk, d, c.cap_qk, qkv, **per_head),
            "attention.value.weight": Tensor(here * n, d, c.cap_v, qkv, **per_head),
            "attention.position_bias":
                Tensor(here * H * c.position_bias, c.context, 0, c.share_bias, "bias"),
            "attention.output.weight": Tensor(here * d, stream + n, c.cap_o, o),
            "mlp.in.weight": Tensor(F, d, c.cap_in, mlp),
            "mlp.in.bias": Tensor(c.bias, F, c.cap_bias, c.share_bias, "bias"),
            "mlp.out.weight": Tensor(d, stream + F, c.cap_out, mlp)}
        table |= {f"blocks.{l}.{name}": t for name, t in block.items()}
    table["head.weight"] = Tensor(V, d, c.cap_head, end * c.share_head)
    table["head.bias"] = Tensor(c.bias, V, 0, c.share_bias, "bias")
    return {name: t for name, t in table.items() if t.rows}


def constants(c):
    """keep, alpha, alpha times the factor on attention, and s / dh, rounded as the network's. A
    layer is keep x + alpha F(x) W^T; if keep is 0, the residual is concat: [x, alpha F(x)] W^T."""
    keep, alpha = dict(convex=(1 - c.alpha, c.alpha), plain=(1, 1), concat=(0, 1))[c.residual]
    exact = keep, alpha, alpha * c.attention_factor, c.softmax_scale * c.heads / c.width
    return tuple(float(np.dtype(c.dtype).type(x)) for x in exact)


def bisect(low, high, below):
    """Both ends of where below, true at low, becomes false."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) else (low, middle)
    return low, high


def soft_cap_strengths(top, cap):
    """The coupling: each p of x <- x - p x^3, x <- x + p x^3 that takes singular values from at
    most top to at most cap: one, or one for every 23 % that are to be taken off."""
    strengths, top, cap = [], top * (1 + ROUNDING), cap * (1 - ROUNDING)
    while cap and top > cap:
        goal = max(cap, 0.77 * top)
        off = (top - goal) / top        # x^4 - 3 x^3 + 3 x^2, with x = p top^2
        x = bisect(0.0, 1 / 3, lambda x: x * x * (x * x - 3 * x + 3) < off)[1]
        strengths.append(x / top**2)
        top = goal
    return strengths


def strengths_after(c, t, u):
    """Of a tensor's soft cap after an update of norm u, whose sum with the weight is known."""
    most = t.cap * max(0, 1 - c.weight_decay * u) + u
    return soft_cap_strengths(most, t.cap) if t.kind == "matrix" else []


# ------------------------------------------------------------------------------------------------
# Random numbers (splitmix64), initial values, texts.

class Rng:
    def __init__(self, state):
        self.state = int(state)

    def draws(self, n):
        """The next n numbers, uint64."""
        step = 0x9e3779b97f4a7c15
        z = np.uint64(self.state) + np.uint64(step) * np.arange(1, n + 1, dtype=np.uint64)
        self.state = (self.state + step * n) % 2**64
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xbf58476d1ce4e5b9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94d049bb133111eb)
        return z ^ (z >> np.uint64(31))

    def uniform(self, n):
        return (self.draws(n) >> np.uint64(11)) * 2.0**-53

    def normal(self, n):        # Box-Muller: two draws for one number
        u = self.uniform(2 * n)
        return np.sqrt(-2 * np.log(1 - u[::2])) * np.cos(2 * np.pi * u[1::2])


def initial(c, rng, update):
    """The weights at step 0. Only E, W_q, W_k, W_v and W_in are drawn, with concat W_o and W_out,
    too; the others start at zero, but head h of block l looks h H^l tokens back, with concat
    (h + 1) (H + 1)^l."""
    w, first = {}, int(c.residual == "concat")
    drawn = ("mlp.in.weight",) + first * ("attention.output.weight", "mlp.out.weight")
    for name, t in plan(c).items():
        W, norm = np.zeros((t.rows, t.cols), c.dtype), min(1, t.cap) if t.cap else 1
        if t.kind == "embed" or t.heads or name.endswith(drawn):
            W = rng.normal(W.size).reshape(W.shape).astype(c.dtype)
            W = norm * t.unit * update(t, update(t, W))     # twice: once is not near enough to 1
        if name.endswith("position_bias"):
            for h in range(c.heads):
                back = (h + first) * (c.heads + first) ** int(name.split(".")[1])
                W[h, back:back + 1] = 6
        w[name] = np.asarray(W, c.dtype)
    return w


SHARD_MAGIC = (20240520).to_bytes(4, "little")


class Text:
    """Tokens of a text (its bytes, by their place in the vocabulary) or of shards (uint16, which
    stay in their files): a list of arrays that train, and one that validates."""

    def __init__(self, pattern, validation, c):
        one = not set("*[") & set(pattern) or os.path.exists(pattern)
        paths = (not one and sorted(glob.glob(pattern))) or [pattern]
        paths = [path for path in paths + [validation] if path]
        try:
            self.raw = [np.memmap(path, np.uint8, "r") for path in paths]
        except (OSError, ValueError) as error:      # ValueError: of an empty file
            sys.exit(f"cannot read the text: {error}; give another --data or --val-data")
        for path in paths[:-1] if validation else ():
            if os.path.samefile(path, validation):
                sys.exit(f"{path} trains and validates: leave it out of --data, or --val-data away")
        for raw in self.raw:
            if not one and raw.filename != validation and raw[:4].tobytes() != SHARD_MAGIC:
                sys.exit(f"{raw.filename} is text, but patterns are for token shards: join texts into one")
            if raw[8:9].tobytes() == b"{" and int.from_bytes(raw[:8].tobytes(), "little") < len(raw):
                sys.exit(f"{raw.filename} is a safetensors file, not text")
        tokens = [self.tokens_of(raw, c) for raw in self.raw]
        for raw, own in list(zip(self.raw, tokens))[:len(paths) - bool(validation)]:
            if len(own) < 2 * (c.context + 1):
                sys.exit(f"{raw.filename} has {len(own)} tokens, too few for windows of {c.context}"
                         " + 1: give a longer text or a smaller --context")
        if not validation:
            tokens[-1:] = np.split(tokens[-1], [int(0.9 * len(tokens[-1]))])
        *self.train, self.validation = tokens

    @staticmethod
    def tokens_of(raw, c):
        symbols = b""
        if raw[:4].tobytes() == SHARD_MAGIC:
            version, count = raw[4:12].view(np.int32) if len(raw) >= 1024 else (0, 0)
            if version != 1 or len(raw) != 1024 + 2 * int(count):
                sys.exit(f"{raw.filename} announces version {version} and {count} tokens but has "
                         f"{len(raw)} bytes: fetch the shard again")
            if c.vocabulary:
                sys.exit(f"{raw.filename} is a token shard, not text as the model's data is")
            tokens = raw[1024:].view(np.uint16)
            size = int(tokens.max()) // 128 * 128 + 128
            if c.vocabulary_size and tokens.max() >= c.vocabulary_size:
                sys.exit(f"{raw.filename} has tokens that the model does not know")
        else:
            if c.vocabulary_size and not c.vocabulary:
                sys.exit(f"{raw.filename} is text, not a token shard: --vocabulary is for shards")
            symbols = bytes.fromhex(c.vocabulary) or np.unique(raw).tobytes()
            if not np.isin(raw, list(symbols)).all():
                sys.exit(f"{raw.filename} has bytes that the model does not know")
            tokens, size = np.searchsorted(list(symbols), raw), len(symbols)
            if size < 2:
                sys.exit(f"{raw.filename} has only one distinct byte: give a text")
        if not c.vocabulary_size:
            c.vocabulary, c.vocabulary_size = symbols.hex(), size
        return tokens

    def fingerprint(self):      # FNV-1a of all files: some 20 s for 100M tokens
        value = 0xcbf29ce484222325
        for raw in self.raw:
            for byte in raw.tobytes():
                value = (value ^ byte) * 0x100000001b3 % 2**64
        return str(value)


def batch_of(texts, c, rng):
    """A training batch: c.batch windows of T + 1 tokens that begin at the generator's next draws,
    none across two texts; tokens and targets (batch, T)."""
    ends = np.cumsum([len(tokens) - c.context for tokens in texts])
    windows = []
    for start in (rng.draws(c.batch) % np.uint64(ends[-1])).astype(int):
        i = np.searchsorted(ends, start, "right")
        begin = start - (ends[i - 1] if i else 0)
        windows.append(texts[i][begin:begin + c.context + 1])
    windows = np.array(windows, np.int32)
    return windows[:, :-1], windows[:, 1:]


def windows_of(split, T, paper_slice):
    """Validation: the split in consecutive windows, the last one shorter; or the paper's 1280, one
    token apart, at its beginning."""
    starts = range(min(1280, max(1, len(split) - T)) if paper_slice else len(split))
    return [split[i:i + T + 1] for i in starts[::1 if paper_slice else T] if i < len(split) - 1]


# ------------------------------------------------------------------------------------------------
# Checkpoints.

def checkpoint_load(path):
    """Settings, with step and rng, and all tensors of a checkpoint or a golden file."""
    try:
        with safe_open(path, "numpy") as file:
            text, tensors = file.metadata(), {x: file.get_tensor(x) for x in file.offset_keys()}
    except (OSError, SafetensorError) as error:
        sys.exit(f"cannot read {path}: {error}; give a checkpoint that lipgpt or a port wrote")
    formats = "lipgpt 3", "lipgpt golden"
    if "vocabulary" not in (text or {}) or not text.get("format", "").startswith(formats):
        sys.exit(f"{path} is no checkpoint of format lipgpt 3: give one")
    plain = {"residual": "plain"} if text.get("plain-residual") == "1" else {}
    text = LATER | plain | text
    known = {name.replace("_", "-") for name in PAPER} | {"plain-residual", "eval-windows"}
    unknown = set(text.get("settings", "").split()) - known
    if unknown:
        sys.exit(f"{path} has settings that are not known here: {unknown}")
    c = SimpleNamespace(**{name: type(default)(text[name.replace("_", "-")])
                           for name, default in PAPER.items()})
    c.vocabulary, c.vocabulary_size = text["vocabulary"], int(text["vocabulary_size"])
    c.step, c.rng, c.text = int(text["step"]), int(text["rng"]), text.get("text", "")
    c.fingerprint, c.eval_windows = text.get("data_fingerprint"), text.get("eval-windows")
    c.dtype = tensors["embedding.weight"].dtype.name
    return c, tensors


def sets_of(c, tensors):
    """Three dicts {name: array}: weights, momenta and AdamW's squares, or None."""
    return [{name: tensors[prefix + name].reshape(t.rows, t.cols).astype(c.dtype)
             for name, t in plan(c).items()} if prefix + "embedding.weight" in tensors else None
            for prefix in PREFIXES]


def checkpoint_save(path, c, sets):
    _, sound, paper = bounds(c, norms_of(c, sets[0]))
    text = {name.replace("_", "-"): f"{value:.17g}" if isinstance(value, float) else str(value)
            for name, value in vars(c).items() if name in PAPER}
    if getattr(c, "eval_windows", None):    # lipgpt's own: kept for it
        text["eval-windows"] = c.eval_windows
    broken = [x for tensors in sets for x, y in (tensors or {}).items() if not np.isfinite(y).all()]
    if broken:
        sys.exit(f"step {c.step}: {broken[0]} is not finite: lower --lr or set caps; {path} stays as it was")
    text |= dict(
        format="lipgpt 3", settings=" ".join(text), step=str(c.step), rng=str(c.rng),
        data_fingerprint=c.fingerprint, certificate_log10=f"{sound[-1]:.17g}",
        paper_bound_log10=f"{paper[-1]:.17g}", constrained=str(int(is_constrained(c))),
        vocabulary_size=str(c.vocabulary_size), vocabulary=c.vocabulary)
    save_file({prefix + name: np.ascontiguousarray(x) for prefix, tensors in zip(PREFIXES, sets)
               for name, x in (tensors or {}).items()}, path, text)


# ------------------------------------------------------------------------------------------------
# Norms and both bounds, in float64.

def spectral_norm(W):
    """Both ends of sigma_max(W), by Gram iteration from above and by its largest row from below,
    and that row: nearly the top singular vector, on W's smaller side."""
    a = W.T if W.shape[0] > W.shape[1] else W
    (n, k), G, log_norm = a.shape, a @ a.T, 0.0
    if not G.any():
        return 0.0, 0.0, G[0]
    for i in range(13):         # the square of the matrix at the start, then 12 squarings
        G = G @ G if i else G
        norm = np.linalg.norm(G)
        G, log_norm = G / norm, log_norm + math.log(norm) / 2**i
    v, error = G[np.argmax((G * G).sum(1))], 8 * (k + 64) * n * EPSILON
    v = v / np.linalg.norm(v)
    return np.linalg.norm(v @ a) * (1 - error), math.exp(log_norm / 2) * (1 + error), v


def bracket_width(n):
    """The most that an upper end exceeds its norm by, with room for rounding."""
    return n ** 2.0**-14 * (1 + 10 * ROUNDING)


def norms_of(c, w):
    """{name: (1 + heads, 2)}: RMS->RMS norms from below and above: the whole, then every head."""
    norms = {}
    for name, t in plan(c).items():
        W = np.asarray(w[name], float)
        if t.kind == "matrix":
            parts = [W] + (np.split(W, t.heads) if t.heads else [])
            norms[name] = np.array([spectral_norm(x)[:2] for x in parts])
            norms[name] *= [[math.sqrt(t.cols / len(x))] for x in parts]
        else:
            largest, error = np.sqrt(np.mean(W * W, 1)).max(), (t.cols + 8) * EPSILON
            norms[name] = np.array([[largest * (1 - error), largest * (1 + error)]])
    return norms


def bounds(c, norms, radius=None):
    """What embeddings of norm <= radius (None: the table's) can do. Three lists: |x| before every
    layer and after the last; log10 of the sound bound and of the paper's, at the start, after
    every layer, and after the head."""
    keep, alpha, factor, scale = constants(c)
    d, none = c.width, np.zeros((1 + c.heads, 2))
    gelu = c.activation == "gelu"
    slope, shrink = (GELU_SLOPE / GELU_DIVISOR, 1 / GELU_DIVISOR) if gelu else (1, 1)
    log10 = lambda x: math.log10(x) if x > 0 else -math.inf
    end, head = norms["embedding.weight"][0, 1], log10(norms["head.weight"][0, 1])
    a, sound = [end if radius is None else radius], [0.0]
    paper, p = [log10(end)], 1.0        # p: |x| as the paper has it

    def residual(W, alpha, columns, x, F):
        """Both constants or both norms, of the stream and of F with so many columns, after W."""
        if not keep:
            return W * math.sqrt((d * x * x + columns * (alpha * F)**2) / (d + columns))
        return keep * x + alpha * W * F

    for l in range(c.blocks):
        of = lambda name: norms.get(f"blocks.{l}.{name}", none)[:, 1]
        q, k, v = (of(f"attention.{name}.weight") for name in ("query", "key", "value"))
        w_in, b_in = of("mlp.in.weight")[0], of("mlp.in.bias")[0]
        attend = partial(residual, of("attention.output.weight")[0], factor, d * c.value_ratio)
        if f"blocks.{l}.attention.output.weight" not in norms:
            attend = lambda x, F: x
        mlp = partial(residual, of("mlp.out.weight")[0], alpha, d * c.mlp_ratio)
        score = scale * d / c.heads * q[1:] * k[1:] * a[-1]**2
        heads, most = (math.sqrt(np.mean(x**2)) for x in (v[1:] * (1 + 2 * score), v[1:]))
        sound.append(sound[-1] + log10(attend(1, heads)))
        a.append(attend(a[-1], most * a[-1]))
        sound.append(sound[-1] + log10(mlp(1, slope * w_in)))
        a.append(mlp(a[-1], shrink * (w_in * a[-1] + b_in)))
        attention = v[0] * (1 + 2 * p * p * q[0] * k[0]) * c.softmax_scale
        paper.append(paper[-1] + log10(attend(1, attention)))
        p = attend(p, v[0] * p)
        paper.append(paper[-1] + log10(mlp(1, w_in * shrink)))
        p = mlp(p, w_in * shrink * p)
    rounding = EPSILON * (c.heads + 64) * (2 * c.blocks + 2)**2 * (1 + max(map(abs, sound)))
    sound.append(sound[-1] + rounding + head)
    return a, sound, paper + [paper[-1] + head]


def apply_budget(c):
    """Scale the caps so that the sound bound of any weights below them is at most c.lipschitz."""
    caps = {name: getattr(c, name) for name in SCALED[:1 if c.residual == "concat" else None]}

    def bound_at(factor):
        vars(c).update({name: cap * factor for name, cap in caps.items()})
        norms = {}
        for name, t in plan(c).items():     # as measured, from above, with room for rounding
            upper = t.cap * bracket_width(min(t.rows, t.cols))
            rest = [upper * (1 if t.slices > 1 else math.sqrt(c.heads))] * t.heads
            norms[name] = np.array([[upper, upper]] + [[x, x] for x in rest])
        return bounds(c, norms)[1][-1]

    if not is_constrained(c):
        sys.exit("--lipschitz cannot be held with a cap of 0: give it a positive cap, or --lipschitz 0")
    allowed = math.log10(c.lipschitz)
    holds = lambda log_factor: bound_at(math.exp(log_factor)) <= allowed
    if not holds(math.log(0.05)):
        sys.exit(f"--lipschitz {c.lipschitz:g} is too small: the smallest possible with its settings is "
                 f"{1.001 * 10 ** bound_at(0.05):.4g}")
    bound_at(math.exp(bisect(math.log(0.05), math.log(1000), holds)[0]))


def is_constrained(c):
    bias = [c.cap_bias] if c.bias else []
    there = [cap for cap in CAPS if cap != "cap_qk" or not c.position_only]
    return (all([getattr(c, cap) for cap in there] + [c.cap_embed] + bias)
            and c.constraint not in ("hammer", "decay"))


def rooms(W_head, logits, error):
    """At every position of logits (T, V): how far the trunk's output may move, in RMS norm, before
    the largest logit can change; what float may have added to a gap, relative to the largest logit,
    is taken off. (lipgpt takes off more where |W_head| |x| is larger than all logits.)"""
    room = []
    for z in logits:
        i = np.argmax(z)
        reach = np.linalg.norm(W_head[i] - W_head, axis=1) * math.sqrt(W_head.shape[1])
        others = reach > 0
        gaps = np.maximum(z[i] - z[others] - error * np.abs(z).max(), 0)
        room.append(np.min(gaps / reach[others], initial=np.inf))
    return np.array(room)


def trunk_reach(c, norms, eps):
    """How far the trunk's output moves at most if every embedding moves by eps."""
    _, sound, _ = bounds(c, norms, norms["embedding.weight"][0, 1] + eps)
    head = norms["head.weight"][0, 1]       # 0 before the first step
    return eps * 10 ** (sound[-1] - math.log10(head)) if head else math.inf


def certified_radius(c, norms, room):
    """How far every embedding may move before the trunk's output can have moved by room."""
    most = room / trunk_reach(c, norms, 1e-300) * 1e-300
    return bisect(0.0, most, lambda eps: room > trunk_reach(c, norms, eps))[0]


# ------------------------------------------------------------------------------------------------
# The commands.

def check(Run, path, single):
    """Print one row per quantity of a golden file, in its order; returns how many failed."""
    c, golden = checkpoint_load(path)
    c.dtype = "float32" if single else c.dtype
    eta, table, sets = c.lr * (1 - c.step / c.steps), plan(c), sets_of(c, golden)
    norms, run = norms_of(c, sets[0]), Run(c, *sets)
    if "batch.tokens" not in golden:
        sys.exit(f"{path} is no golden file: make one of a checkpoint with build/golden")
    tokens, targets = (golden[f"batch.{x}"].astype(int) for x in ("tokens", "targets"))
    mine = {"batch.tokens": tokens, "batch.targets": targets}
    if c.text:      # the generator and the rule of windows
        ids = np.searchsorted(list(bytes.fromhex(c.vocabulary)), list(c.text.encode()))
        drawn = batch_of([ids[:int(0.9 * len(ids))]], c, Rng(c.rng))
        mine = dict(zip(mine, drawn))
        mine |= {f"initial.{name}": w for name, w in initial(c, Rng(c.seed), Run.update).items()}
        rest = {f"initial.{name}": np.zeros((t.rows, t.cols)) for name, t in table.items()}
        golden = rest | golden      # the others started at zero
    mine |= run.golden(tokens, targets)
    mine["loss"] = run.losses(tokens[:1], targets[:1])[0]
    room = rooms(np.asarray(sets[0]["head.weight"], float), np.asarray(mine["logits"], float), 2e-14)
    mine["certified_radius"] = [certified_radius(c, norms, x) for x in room]
    names = "activation_bound", "certificate.log10", "paper_bound.log10"
    mine |= zip(names, bounds(c, norms))
    mine |= {"eta": eta, "batch.loss": run.step(tokens, targets, eta)}
    for prefix, tensors in zip(("", "momentum_", "second_"), run.sets()):
        mine |= {f"{prefix}after.{name}": x for name, x in (tensors or {}).items()}
    for name, t in table.items():
        u = eta * t.share
        mine |= {f"norm.{name}": norms[name], f"u.{name}": u,
                 f"update.{name}": run.update(t, mine["momentum_after." + name]),
                 f"soft_cap.{name}": strengths_after(c, t, u)}
    rows = {}
    given = {prefix + name for prefix in PREFIXES for name in table}
    for name in [x for x in golden if x not in given]:
        theirs, ours = golden[name].ravel(), np.asarray(mine.get(name, ()), float).ravel()
        error = np.inf
        if ours.size == theirs.size:
            error = np.abs(ours - theirs).max() / (np.abs(theirs).max() or 1)
        kind = name.split(".")[0]
        label = kind if kind in PER_TENSOR else name
        if not error <= rows.get(label, (-1, ""))[0]:       # NaN is worst, and stays
            rows[label] = error, name
    print(f"{path}, {c.dtype}\nquantity\tlargest_error\ttolerance\t\tworst")
    failed = 0
    for label, (error, name) in rows.items():
        limit = 1e-10 if not single else 2e-4 if label in AMPLIFIED else 1e-5
        good = error <= limit
        failed += not good
        print(label, f"{error:.1e}", f"{limit:g}", "ok" if good else "FAILED", name, sep="\t")
    return failed


def score(run, split, paper_slice):
    """Mean loss and share of right predictions over a split's windows, 16 at a time."""
    sums = np.zeros(3)
    for _, alike in itertools.groupby(windows_of(split, run.c.context, paper_slice), len):
        while part := list(itertools.islice(alike, 16)):
            loss, right = run.losses(np.array(part)[:, :-1], np.array(part)[:, 1:])
            sums += np.sum(loss, dtype=float), np.sum(right), right.size
    return sums[0] / sums[2], sums[1] / sums[2]


def print_bounds(run, norms):
    c = run.c
    a, sound, paper = bounds(c, norms)
    for name, value in (("certificate", sound[-1]), ("paper_bound", paper[-1])):
        print(f"{name}\t{10**value if value < 300 else np.inf:.9g}\n{name}_log10\t{value:.9f}")
    if not is_constrained(c):
        print("note\tnot constrained: this is a measurement of these weights, not a guarantee")
    print("\nweight\tlower\tupper\tcap")
    for name, t in plan(c).items():
        for i, (lower, upper) in enumerate(norms[name]):
            own = t.cap and (i > 0) == (t.slices > 1)
            head = f"[head {i - 1}]" if i else ""
            print(f"{name}{head}\t{lower:.9g}\t{upper:.9g}\t{f'{t.cap:g}' if own else '-'}")
    print("\nlayers_passed\tactivation_bound\tcertificate_log10\tpaper_bound_log10")
    for i, row in enumerate(zip(a, sound, paper)):
        print(i, *(f"{x:.9g}" for x in row), sep="\t")


def print_predictions(run, norms, split, count):
    """Shares of positions that are right and provably stay so when every embedding moves by eps."""
    W_head, found = np.asarray(run.sets()[0]["head.weight"], float), []
    windows = windows_of(split, run.c.context, False)
    count = min(count, len(windows))
    for i in range(count):
        window = windows[len(windows) * i // count]
        z = np.asarray(run.logits(window[:-1]), float)
        found.extend(np.where(np.argmax(z, 1) == window[1:], rooms(W_head, z, 1e-5), -1))
    print(f"\neps\tcertified_accuracy\t({count} windows)")
    for eps in (0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5):
        reach = trunk_reach(run.c, norms, eps) if eps else -0.5
        print(f"{eps:g}\t{np.mean(np.array(found) > reach):.4f}")


def sample(run, o):
    """Write a prompt and what follows, drawn as lipgpt draws it: the first token whose cumulative
    probability passes a random number. Tokens after a position change nothing there, so the window
    is filled up with zeros."""
    c, rng, symbols = run.c, Rng(o.seed or 0), bytes.fromhex(run.c.vocabulary)
    tokens = 500 if o.tokens is None else o.tokens
    temperature = 0.8 if o.temperature is None else o.temperature
    for byte in os.fsencode(o.prompt):
        if byte not in symbols:
            sys.exit(f"byte {byte} of --prompt is not known to the model: use its text's characters")
    window = [symbols.index(byte) for byte in os.fsencode(o.prompt)]
    text, window = list(window), window or [max(symbols.find(b"\n"), 0)]
    for _ in range(tokens):
        window = window[-c.context:]
        z = run.logits(np.array(window + [0] * (c.context - len(window))))[len(window) - 1]
        z, point = np.asarray(z, float), rng.uniform(1)[0]
        p = np.cumsum(np.exp((z - z.max()) / max(temperature, 1e-6)))
        token = np.searchsorted(p / p[-1], point, "right") if temperature else np.argmax(z)
        window, text = window + [int(token)], text + [int(token)]
    print(bytes(symbols[i] for i in text).decode(errors="replace") if symbols else text)


def new_settings(o):
    """The preset with what is given; a cap given by hand takes the place of the budget, but with
    concat, whose budget scales the head's cap alone, stands beside it."""
    size = o.vocabulary or (50304 if o.preset == "145m" else 0)
    c = SimpleNamespace(**{"paper": PAPER, "145m": LARGE}.get(o.preset, TIGHT), vocabulary="",
                        vocabulary_size=size, step=0, dtype="float32")
    given = {name: o.cap for name in CAPS if o.cap is not None}
    given |= {name: getattr(o, name) for name in PAPER if getattr(o, name) is not None}
    vars(c).update(given)
    if c.preset == "tight" and 0 < c.lipschitz < 20:
        small = dict(momentum=0.98, share_embed=2000.0)
        if c.lipschitz < 10:
            small |= dict(position_only=1, cap_in=1.5 if c.lipschitz >= 4 else 1.0, cap_out=1.0, lr=0.3)
        vars(c).update(small | given)
    loose = c.constraint in ("hammer", "decay")
    if o.lipschitz is None and (set(CAPS) & set(given) or loose):
        c.lipschitz = 0.0
    alone = c.residual == "concat" and o.cap is None and o.cap_head is None
    if c.lipschitz and (loose or set(CAPS) & set(given) and not alone):
        sys.exit("--lipschitz chooses the caps: give one or the other")
    c.alpha, c.rng = c.alpha or 0.5 / c.blocks, c.seed
    if c.width % c.heads or c.width // c.heads % 2:
        sys.exit(f"--heads {c.heads} must divide --width {c.width} into even parts")
    return c


def take_place(out, resume, read):
    """Make sure that a run can save there; what another run left there stays, under another name."""
    folder, old, number = os.path.dirname(os.path.abspath(out)), out + ".old", 1
    try:
        os.makedirs(folder, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        sys.exit(f"cannot write {out}: {error.strerror}; choose another --out")
    if os.path.exists(out) and not os.path.isfile(out):
        sys.exit(f"{out} is not a regular file: choose another --out")
    if not os.path.exists(out) or resume and os.path.samefile(out, resume):
        return
    for path in read:
        if os.path.samefile(path, out):
            sys.exit(f"{path} is read, too: choose another --out")
    while os.path.exists(old):
        number += 1
        old = f"{out}.old{number}"
    os.rename(out, old)
    print(f"{out} is there already; it is kept as {old}", file=sys.stderr)


def start(Run, c, rng):
    """A run of a new model, its weights drawn."""
    if c.lipschitz:
        apply_budget(c)
    w = initial(c, rng, Run.update)
    zeros = {name: np.zeros_like(x) for name, x in w.items()}
    c.rng = rng.state
    return Run(c, w, zeros, zeros if c.optimizer == "adamw" else None)


def bench(Run, o):
    """Training steps on random tokens, by the clock: the median of five, after two to warm up."""
    c, seconds, rng = new_settings(o), [], Rng(0)
    c.vocabulary_size = c.vocabulary_size or 65
    run = start(Run, c, rng)
    text = (rng.draws(100000) % np.uint64(c.vocabulary_size)).astype(int)
    for _ in range(7):
        tokens, targets = batch_of([text], c, rng)
        begin = time.perf_counter()
        run.step(tokens, targets, c.lr)
        seconds.append(time.perf_counter() - begin)
    median = np.median(seconds[2:])
    rate = c.batch * c.context / median
    print(f"{' '.join(sys.argv)}: {median:.3f} s a step, {rate:.0f} tokens/s")


def train(Run, o):
    if o.resume:
        c, tensors = checkpoint_load(o.resume)
        known = c.fingerprint
        c.steps, c.data = o.steps or c.steps, o.data or c.data
        c.val_data = c.val_data if o.val_data is None else o.val_data
        text, run = Text(c.data, c.val_data, c), Run(c, *sets_of(c, tensors))
    else:
        c = new_settings(o)
        text, rng = Text(c.data, c.val_data, c), Rng(c.seed)
        run = start(Run, c, rng)
    out = o.out or o.resume or "out/lipgpt.safetensors"
    c.fingerprint = text.fingerprint()
    if o.resume and known != c.fingerprint:
        sys.exit(f"{c.data} is not the text of the run: give the same --data and --val-data")
    if run.rank == 0:
        take_place(out, o.resume, [raw.filename for raw in text.raw])
    rng, seconds = Rng(c.rng), []
    end = c.steps if o.stop is None or o.stop < 0 else min(c.steps, o.stop)
    if run.rank == 0:
        print("step\ttrain_loss\tfull_loss\tfull_accuracy\tcertificate_log10\ttokens_per_second")
    if c.step >= end and run.rank == 0:
        checkpoint_save(out, c, run.sets())
    while c.step < end:
        begin = time.perf_counter()
        loss = run.step(*batch_of(text.train, c, rng), c.lr * (1 - c.step / c.steps))
        seconds.append(time.perf_counter() - begin)
        c.step, c.rng = c.step + 1, rng.state
        if (c.step % c.eval_every == 0 or c.step == end) and run.rank == 0:
            full, right = score(run, text.validation, False)
            sound = bounds(c, norms_of(c, run.sets()[0]))[1][-1]
            print(f"{c.step}\t{loss:.9g}\t{full:.9g}\t{right:.6f}\t{sound:.9f}\t"
                  f"{c.batch * c.context / np.median(seconds[-20:]):.0f}", flush=True)
            checkpoint_save(out, c, run.sets())


def main(Run, doc):
    parser = argparse.ArgumentParser(
        usage="see below, or the preset tables in lipgpt_common.py", description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("command", choices=("check", "eval", "certify", "train", "sample", "bench"))
    parser.add_argument("files", nargs="*", help="golden files of check")
    parser.add_argument("--float32", action="store_true", help="check in float32")
    for name in ("model", "out", "resume"):
        parser.add_argument("--" + name)
    parser.add_argument("--prompt", default="")
    parser.add_argument("--cap", type=float), parser.add_argument("--stop", type=int)
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--vocabulary", type=int)
    for name, default in PAPER.items():
        parser.add_argument("--" + name.replace("_", "-"), type=type(default), choices=WORDS.get(name))
    Run.options(parser)
    o = Run.given = parser.parse_intermixed_args()
    if o.files and o.command != "check":
        parser.error(f"{o.files[0]}: give it with --data, --model or --resume; only check takes files")
    for name in (*PAPER, "cap", "vocabulary") if o.command == "train" and o.resume else ():
        if name not in AGAIN and getattr(o, name) is not None:
            parser.error(f"--{name.replace('_', '-')} comes from the checkpoint when a run is resumed")
    if o.command == "check":
        golden = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "golden")
        files = o.files or [f"{golden}/{x}.safetensors" for x in ("paper", "tight", "concat")]
        sys.exit(sum([check(Run, path, o.float32) for path in files]) > 0)
    if o.command in ("train", "bench"):
        return train(Run, o) if o.command == "train" else bench(Run, o)
    c, tensors = checkpoint_load(o.model or "out/lipgpt.safetensors")
    run = Run(c, sets_of(c, tensors)[0], None, None)
    if o.command == "sample":
        return sample(run, o)
    paths = (o.data or "", o.val_data or "")
    if paths == ("", "") and o.command == "eval":
        paths = ("", c.val_data) if c.val_data else (c.data, "")
    text = Text(*paths, c) if any(paths) else None
    for name, paper_slice in (("full", False), ("slice", True)) if text else ():
        if paper_slice and not c.vocabulary:    # of shards
            continue
        loss, right = score(run, text.validation, paper_slice)
        print(f"{name}_loss\t{loss:.9g}\n{name}_accuracy\t{right:.9g}")
    norms = norms_of(c, run.sets()[0])
    print_bounds(run, norms)
    if o.command == "certify" and text:
        print_predictions(run, norms, text.validation, o.windows)
