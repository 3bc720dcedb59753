#!/usr/bin/env python3
"""Speed of lipgpt's `paper` preset in PyTorch, on the CPU: the same model, the same training step.

    pip install torch numpy
    python3 dev/peers/peer_torch.py [--threads N] [--batch 64] [--steps 5] [--compile]

Times forward, backward, Muon and soft cap on random tokens, in fp32, and prints `name<TAB>value`
lines: peer, version, threads, step_seconds_median, tokens_per_second. The learning rate is fixed,
so the coupling of the soft cap is solved once. --compile runs the step through torch.compile (which
needs a C++ compiler) and goes on without it, saying so, where that fails.

Kept fast the way PyTorch likes it: weights of one shape live in one stack, so that the optimizer is
a few batched products; the layers use views of the stack, and W_q, W_k, W_v are one view, hence one
product. Wide matrices are stored transposed: every stack has its smaller side last.
"""

import argparse
import math
import os
import statistics
import sys
import time

try:
    import torch
    import torch.nn.functional as F
except ImportError as error:
    sys.exit(f"peer_torch.py: PyTorch cannot be loaded ({error}): pip install torch numpy")

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


class Stack:
    """n matrices of one shape: weights w, gradients g, momentum m, each (n, rows, cols).

    scale  (n,)  sqrt(fan_out / fan_in), the largest singular value of a matrix of RMS->RMS norm 1
    share  (n,)  part of the learning rate
    """

    def __init__(self, rows, cols, scale, share, start):
        column = lambda values: torch.tensor(values).view(-1, 1, 1)
        self.scale = column(scale)
        self.update = column([ETA * s for s in share])
        self.a = column([coupling(ETA * s) for s in share])
        q = torch.linalg.qr(torch.randn(len(scale), rows, cols)).Q
        self.w = (q * self.scale * column(start)).contiguous()
        self.g = torch.zeros_like(self.w)
        self.m = torch.zeros_like(self.w)

    def leaf(self, view):
        """A parameter that shares the memory of the stack, as does its gradient."""
        parameter = view(self.w).detach().requires_grad_()
        parameter.grad = view(self.g)
        return parameter


class Model:
    def __init__(self):
        L = BLOCKS
        self.square = Stack(D, D, [1.0] * 4 * L, [SHARE, SHARE, SHARE, SHARE / 3] * L,
                            [1.0, 1.0, 1.0, 0.0] * L)                           # q, k, v, o
        self.tall = Stack(4 * D, D, [2.0, 0.5] * L, [SHARE / 3] * 2 * L, [1.0, 0.0] * L)
        self.ends = Stack(D, V, [math.sqrt(V / D)], [SHARE_ENDS], [0.0])
        self.stacks = self.square, self.tall, self.ends
        rows = torch.randn(V, D)
        self.embedding = (rows / rms(rows)).requires_grad_()                    # (V, D)
        self.embedding.grad = torch.zeros(V, D)
        self.embedding_m = torch.zeros(V, D)
        self.blocks = [(
            self.square.leaf(lambda x, i=4 * b: x[i:i + 3].view(3 * D, D)),     # W_q, W_k, W_v
            self.square.leaf(lambda x, i=4 * b + 3: x[i]),                      # W_o
            self.tall.leaf(lambda x, i=2 * b: x[i]),                            # W_in
            self.tall.leaf(lambda x, i=2 * b + 1: x[i]),                        # W_out^T (4D, D)
        ) for b in range(L)]
        self.head = self.ends.leaf(lambda x: x[0])                              # W_head^T (D, V)
        angle = torch.arange(T)[:, None] * 10000.0 ** (-torch.arange(DH // 2) / (DH // 2))
        self.cos, self.sin = angle.cos(), angle.sin()                           # (T, DH/2)


def rms(rows):
    return rows.square().mean(-1, keepdim=True).sqrt()


def rope(x, cos, sin):
    first, second = x.chunk(2, -1)
    return torch.cat((cos * first - sin * second, cos * second + sin * first), -1)


def loss_of(model, tokens, targets):
    """Mean cross entropy of a batch; tokens and targets are (B, T)."""
    B = len(tokens)
    x = F.embedding(tokens, model.embedding)
    for qkv, out, up, down in model.blocks:
        q, k, v = F.linear(x, qkv).view(B, T, 3, HEADS, DH).permute(2, 0, 3, 1, 4)
        q, k = rope(q, model.cos, model.sin), rope(k, model.cos, model.sin)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1 / DH)
        y = F.linear(y.transpose(1, 2).reshape(B, T, D), out) / 3
        x = torch.lerp(x, y, ALPHA)
        y = F.gelu(F.linear(x, up), approximate="tanh") / GELU_SLOPE
        x = torch.lerp(x, y @ down, ALPHA)
    return F.cross_entropy((x @ model.head).view(-1, V), targets.view(-1))


def orthogonalize(x):
    """Singular values to (almost) 1, never above."""
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-20)
    for a, b, c in NEWTON_SCHULZ:
        s = x.mT @ x
        x = torch.baddbmm(x, x, torch.baddbmm(s, s, s, beta=b, alpha=c), beta=a)
    return x


def muon_and_cap(w, g, m, scale, update, a):
    m.lerp_(g, 1 - BETA)
    w.sub_(scale * update * orthogonalize(m))
    w.div_(scale)
    w.sub_(a * (w @ (w.mT @ w)))
    w.add_(a * (w @ (w.mT @ w)))
    w.mul_(scale)


def embedding_step(w, g, m):
    m.lerp_(g, 1 - BETA)
    w.sub_(ETA * SHARE_ENDS * m / rms(m).clamp(min=1 / 16))
    w.div_(rms(w).clamp(min=1))


def train_step(model, tokens, targets, loss_of=loss_of, muon_and_cap=muon_and_cap):
    for stack in model.stacks:
        stack.g.zero_()
    model.embedding.grad.zero_()
    loss = loss_of(model, tokens, targets)
    loss.backward()
    with torch.no_grad():
        for s in model.stacks:
            muon_and_cap(s.w, s.g, s.m, s.scale, s.update, s.a)
        embedding_step(model.embedding, model.embedding.grad, model.embedding_m)
    return loss.item()


def measure(batch, warmup, steps, **compiled):
    """Seconds of each timed step."""
    torch.manual_seed(0)
    model = Model()
    seconds = []
    for step in range(warmup + steps):
        text = torch.randint(V, (batch, T + 1))
        tokens, targets = text[:, :-1].contiguous(), text[:, 1:].contiguous()
        start = time.perf_counter()
        loss = train_step(model, tokens, targets, **compiled)
        seconds.append(time.perf_counter() - start)
        print(f"step {step + 1}: loss {loss:.4f}, {seconds[-1]:.3f} s", file=sys.stderr)
    return seconds[warmup:]


def main():
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=cores, help="default: all, %(default)s")
    parser.add_argument("--batch", type=int, default=64, help="windows a step (%(default)s)")
    parser.add_argument("--steps", type=int, default=5, help="timed steps (%(default)s)")
    parser.add_argument("--warmup", type=int, default=2, help="steps before (%(default)s)")
    parser.add_argument("--compile", action="store_true", help="use torch.compile")
    args = parser.parse_args()
    if min(args.threads, args.batch, args.steps) < 1 or args.warmup < 0:
        parser.error("--threads, --batch and --steps take at least 1, --warmup at least 0")
    torch.set_num_threads(args.threads)

    peer, seconds = "torch-eager", None
    if args.compile:
        try:
            seconds = measure(args.batch, args.warmup, args.steps, loss_of=torch.compile(loss_of),
                              muon_and_cap=torch.compile(muon_and_cap))
            peer = "torch-compile"
        except Exception as error:      # whatever the compiler lacks on this machine
            reason = (str(error).strip() or repr(error)).splitlines()[0]
            print(f"torch.compile failed ({reason}); going on without it", file=sys.stderr)
    if seconds is None:
        seconds = measure(args.batch, args.warmup, args.steps)
    median = statistics.median(seconds)
    for name, value in (("peer", peer), ("version", torch.__version__), ("threads", args.threads),
                        ("step_seconds_median", f"{median:.4f}"),
                        ("tokens_per_second", f"{args.batch * T / median:.0f}")):
        print(name, value, sep="\t")


if __name__ == "__main__":
    main()
