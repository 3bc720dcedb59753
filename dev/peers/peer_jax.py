#!/usr/bin/env python3
"""Speed of lipgpt's `paper` preset in JAX, on the CPU: the same model, the same training step.

    pip install jax
    python3 dev/peers/peer_jax.py [--threads N] [--batch 64] [--steps 5] [--warmup 2]

Times forward, backward, Muon and soft cap on random tokens, in fp32, as one jitted function, and
prints `name<TAB>value` lines: peer, version, threads, step_seconds_median, tokens_per_second. The
learning rate is constant, so the coupling of the soft cap is solved once.

JAX has no option for the number of CPU threads: it takes as many as the process has cores, so
--threads pins the process to that many (on Linux; elsewhere all cores are used).

Weights of one shape live in one stack, so that the optimizer is a few batched products. Wide
matrices are stored transposed: every stack has its smaller side last.
"""

import argparse
import math
import os
import statistics
import sys
import time

V, T, D, HEADS, BLOCKS = 65, 256, 256, 4, 3
DH = D // HEADS
ALPHA = 1 / (2 * BLOCKS)                # weight of each residual branch
GELU_SLOPE = 1.1289
BETA, ETA, CAP = 0.9, 0.1, 1.2          # momentum, learning rate, largest RMS->RMS norm
MASS = 32
SHARE = MASS / (MASS + 2)               # of W_q, W_k, W_v; the others get a third of it
SHARE_ENDS = 1 / (MASS + 2)             # of the embedding and the head
NEWTON_SCHULZ = [tuple(k / 1024 for k in row) for row in (
    (3955, -8306, 5008), (3735, -6681, 3463), (3799, -6499, 3211),
    (4019, -6385, 2906), (2677, -3029, 1162), (2172, -1833, 682))]

# name: (rows, cols, sqrt(fan_out / fan_in), share of the learning rate, norm at the start)
STACKS = {
    "square": (D, D, [1.0] * 4 * BLOCKS, [SHARE, SHARE, SHARE, SHARE / 3] * BLOCKS,
               [1.0, 1.0, 1.0, 0.0] * BLOCKS),                  # W_q, W_k, W_v, W_o of each block
    "tall": (4 * D, D, [2.0, 0.5] * BLOCKS, [SHARE / 3] * 2 * BLOCKS,
             [1.0, 0.0] * BLOCKS),                              # W_in, W_out^T of each block
    "head": (D, V, [math.sqrt(V / D)], [SHARE_ENDS], [0.0]),    # W_head^T
}


def options():
    """The command line, read before JAX starts its threads."""
    pin = hasattr(os, "sched_setaffinity")
    cores = sorted(os.sched_getaffinity(0)) if pin else list(range(os.cpu_count()))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=len(cores),
                        help="default: all cores, %(default)s")
    parser.add_argument("--batch", type=int, default=64, help="windows a step (%(default)s)")
    parser.add_argument("--steps", type=int, default=5, help="timed steps (%(default)s)")
    parser.add_argument("--warmup", type=int, default=2, help="steps before (%(default)s)")
    args = parser.parse_args()
    if min(args.threads, args.batch, args.steps) < 1 or args.warmup < 0:
        parser.error("--threads, --batch and --steps take at least 1, --warmup at least 0")
    if args.threads > len(cores) or not pin:
        args.threads = len(cores)
        print(f"using all {len(cores)} cores", file=sys.stderr)
    if pin:
        os.sched_setaffinity(0, cores[:args.threads])
    return args


args = options()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
try:
    import jax
    import jax.numpy as jnp
except ImportError as error:
    sys.exit(f"peer_jax.py: JAX cannot be loaded ({error}): pip install jax")


def coupling(update):
    """The a of the soft cap that brings norm CAP + update, the most a step can reach, to CAP."""
    k = CAP + update
    low, high = 0.0, 1 / 3
    for _ in range(60):
        t = (low + high) / 2
        if t**4 - 3 * t**3 + 3 * t**2 < update / k:
            low = t
        else:
            high = t
    return high / k**2


def column(values):
    return jnp.array(values, jnp.float32)[:, None, None]


def rms(rows):
    return jnp.sqrt(jnp.mean(rows**2, -1, keepdims=True))


def initial(key):
    """The weights: stacks (n, rows, cols) and the embedding (V, D)."""
    weights = {}
    for name, (rows, cols, scale, _, start) in STACKS.items():
        key, use = jax.random.split(key)
        q, _ = jnp.linalg.qr(jax.random.normal(use, (len(scale), rows, cols)))
        weights[name] = q * column(scale) * column(start)
    table = jax.random.normal(key, (V, D))
    return {**weights, "embedding": table / rms(table)}


def rope(x):
    """x is (B, HEADS, T, DH); the halves of a head are paired."""
    angle = jnp.arange(T)[:, None] * 10000.0 ** (-jnp.arange(DH // 2) / (DH // 2))
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    first, second = jnp.split(x, 2, -1)
    return jnp.concatenate((cos * first - sin * second, cos * second + sin * first), -1)


def attention(q, k, v):
    """Causal, per head, all (B, HEADS, T, DH); on a CPU faster than jax.nn's own."""
    scores = (rope(q) / DH) @ rope(k).mT
    scores = jnp.where(jnp.tril(jnp.ones((T, T), bool)), scores, -jnp.inf)
    return jax.nn.softmax(scores, -1) @ v


def loss_of(weights, tokens, targets):
    """Mean cross entropy of a batch; tokens and targets are (B, T)."""
    B = len(tokens)
    x = weights["embedding"][tokens.ravel()]                    # (B T, D)
    for block in range(BLOCKS):
        square, tall = weights["square"][4 * block:], weights["tall"][2 * block:]
        qkv = x @ square[:3].reshape(3 * D, D).T
        y = attention(*qkv.reshape(B, T, 3, HEADS, DH).transpose(2, 0, 3, 1, 4))
        y = y.transpose(0, 2, 1, 3).reshape(B * T, D) @ square[3].T / 3
        x = (1 - ALPHA) * x + ALPHA * y
        y = jax.nn.gelu(x @ tall[0].T, approximate=True) / GELU_SLOPE
        x = (1 - ALPHA) * x + ALPHA * (y @ tall[1])
    logits = x @ weights["head"][0]
    right = jnp.take_along_axis(logits, targets.reshape(-1, 1), -1)[:, 0]
    return jnp.mean(jax.nn.logsumexp(logits, -1) - right)


def orthogonalize(x):
    """Singular values to (almost) 1, never above."""
    x = x / (jnp.linalg.norm(x, axis=(1, 2), keepdims=True) + 1e-20)
    for a, b, c in NEWTON_SCHULZ:
        s = x.mT @ x
        x = a * x + x @ (b * s + c * (s @ s))
    return x


def train_step(weights, momentum, tokens, targets):
    loss, gradient = jax.value_and_grad(loss_of)(weights, tokens, targets)
    momentum = jax.tree.map(lambda m, g: BETA * m + (1 - BETA) * g, momentum, gradient)
    new = {}
    for name, (_, _, scale, share, _) in STACKS.items():
        a = column([coupling(ETA * s) for s in share])
        w = weights[name] / column(scale) - ETA * column(share) * orthogonalize(momentum[name])
        w = w - a * (w @ (w.mT @ w))
        w = w + a * (w @ (w.mT @ w))
        new[name] = w * column(scale)
    m = momentum["embedding"]
    table = weights["embedding"] - ETA * SHARE_ENDS * m / jnp.maximum(rms(m), 1 / 16)
    new["embedding"] = table / jnp.maximum(rms(table), 1)
    return new, momentum, loss


def main():
    key = jax.random.key(0)
    weights = initial(key)
    momentum = jax.tree.map(jnp.zeros_like, weights)
    step = jax.jit(train_step, donate_argnums=(0, 1))
    seconds = []
    for i in range(args.warmup + args.steps):
        text = jax.random.randint(jax.random.fold_in(key, i), (args.batch, T + 1), 0, V)
        tokens, targets = jax.block_until_ready((text[:, :-1], text[:, 1:]))
        start = time.perf_counter()
        weights, momentum, loss = jax.block_until_ready(step(weights, momentum, tokens, targets))
        seconds.append(time.perf_counter() - start)
        print(f"step {i + 1}: loss {loss:.4f}, {seconds[-1]:.3f} s", file=sys.stderr)
    median = statistics.median(seconds[args.warmup:])
    for name, value in (("peer", "jax-jit"), ("version", jax.__version__),
                        ("threads", args.threads), ("step_seconds_median", f"{median:.4f}"),
                        ("tokens_per_second", f"{args.batch * T / median:.0f}")):
        print(name, value, sep="\t")


if __name__ == "__main__":
    main()
