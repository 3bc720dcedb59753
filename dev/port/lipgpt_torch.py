#!/usr/bin/env python3
"""lipgpt in PyTorch: nn.Module and autograd, Muon and every constraint, and many machines.

    pip install torch numpy safetensors
    lipgpt_torch.py check [FILE ...] [--float32]    against golden files: one row per quantity
    lipgpt_torch.py eval|certify --model CHECKPOINT [--data FILE]
    lipgpt_torch.py train [--resume CHECKPOINT] [--data FILE] [--out CHECKPOINT] [--steps N ...]
    lipgpt_torch.py sample --model CHECKPOINT [--prompt TEXT] [--tokens N] [--temperature X]
    lipgpt_torch.py bench [--preset paper] [--compile]     seconds of a step on random tokens
    torchrun --nproc-per-node N lipgpt_torch.py train ...     the same on N GPUs or processes

Options, B, T, d, H, dh, F, L, V and all names are lipgpt.c's, checkpoints go both ways; --device,
--compile, --micro-batch and --bf16 (of the network's products only) are this program's own. What no
framework changes stands in lipgpt_common.py; dev/porting.md explains.
"""

import os
from itertools import zip_longest

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from lipgpt_common import (GELU_DIVISOR, NEWTON_SCHULZ, ROUNDING, bracket_width, constants, main,
                           plan, soft_cap_strengths, spectral_norm, strengths_after)

# ------------------------------------------------------------------------------------------------
# The model. Its parameters are called as in the checkpoint.

def linear(c, name):
    """The layer of that name in the table of tensors, or None."""
    t = plan(c).get(name + ".weight")
    return t and nn.Linear(t.cols, t.rows, bias=name + ".bias" in plan(c))


class Attention(nn.Module):
    def __init__(self, c, name):
        super().__init__()
        self.heads, self.scale, half = c.heads, constants(c)[3], c.width // c.heads // 2
        self.query, self.key, self.value, self.output = (
            linear(c, f"{name}.{layer}") for layer in ("query", "key", "value", "output"))
        bias = plan(c).get(name + ".position_bias") and torch.zeros(c.heads, c.context)
        self.register_parameter("position_bias", None if bias is None else nn.Parameter(bias))
        angle = np.arange(c.context)[:, None] * 10000.0 ** (-np.arange(half) / half)
        table = torch.tensor(np.stack((np.cos(angle), np.sin(angle))))  # (2, T, dh/2)
        self.register_buffer("table", table, persistent=False)

    def rope(self, x):
        """Rotate x (B, H, T, dh); the two halves of a head are paired."""
        (first, second), (cos, sin) = x.chunk(2, -1), self.table[:, :x.shape[2]]
        return torch.cat((cos * first - sin * second, cos * second + sin * first), -1)

    def forward(self, x, seen):
        """concat_h(A_h v_h) (B, T, n) of x (B, T, d)."""
        B, T, _ = x.shape
        part = lambda linear: linear(x).view(B, T, self.heads, -1).transpose(1, 2)
        v = part(self.value)
        q, k = (self.rope(part(layer)) if layer else torch.zeros_like(v)    # --position-only
                for layer in (self.query, self.key))
        bias, t = self.position_bias, torch.arange(T, device=x.device)
        distance = t[:, None] - t
        if bias is not None:        # what is added to scores, (H, T, T); -infinity for the future
            bias = bias[:, distance.clamp(min=0)].masked_fill(distance < 0, -torch.inf).to(q.dtype)
        y = F.scaled_dot_product_attention(q, k, v, bias, is_causal=bias is None, scale=self.scale)
        y = y.transpose(1, 2).reshape(B, T, -1)
        if seen is not None:        # scaled_dot_product_attention does not show these
            scores = self.scale * q @ k.mT + (0 if bias is None else bias)
            A = scores.masked_fill(distance < 0, -torch.inf).softmax(-1)
            seen.update(q=q.transpose(1, 2), k=k.transpose(1, 2), v=v.transpose(1, 2),
                        scores=scores.tril(), A=A, y=y)
        return y


class Block(nn.Module):
    def __init__(self, c, name):
        super().__init__()
        self.attention, self.gelu = Attention(c, name + ".attention"), c.activation == "gelu"
        self.mlp = nn.ModuleDict({x: linear(c, f"{name}.mlp.{x}") for x in ("in", "out")})
        self.keep, self.alpha, self.attention_alpha, _ = constants(c)

    def activation(self, z):
        """GELU / 1.1289, or MaxMin: units i and i + F/2 become their max and their min."""
        if self.gelu:
            return F.gelu(z, approximate="tanh") / GELU_DIVISOR
        first, second = z.chunk(2, -1)
        swap = first < second       # not of equals: gradients go to both as they came
        return torch.cat((torch.where(swap, second, first), torch.where(swap, first, second)), -1)

    def residual(self, W, alpha, x, h):
        """keep x + alpha h W^T; or, where keep is 0, [x, alpha h] W^T."""
        if not self.keep:
            return W(torch.cat((x, alpha * h), -1))
        return torch.add(self.keep * x, W(h), alpha=alpha)

    def forward(self, x, seen):
        mid, W_o = x, self.attention.output
        if W_o:         # else a block without attention
            mid = self.residual(W_o, self.attention_alpha, x, self.attention(x, seen))
        z = self.mlp["in"](mid)
        a = self.activation(z)
        if seen is not None:
            seen.update(x=x, mid=mid, z=z, a=a)
        return self.residual(self.mlp["out"], self.alpha, mid, a)


class Model(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.embedding = nn.Embedding(c.vocabulary_size, c.width)
        self.blocks = nn.ModuleList(Block(c, f"blocks.{l}") for l in range(c.blocks))
        self.head = linear(c, "head")

    def forward(self, tokens, seen=None):
        """Logits (B, T, V) of tokens (B, T), and the last x; seen: a dict a block for the rest."""
        x = self.embedding(tokens)
        for l, block in enumerate(self.blocks):
            x = block(x, seen and seen[l])
        return self.head(x), x


# ------------------------------------------------------------------------------------------------
# The optimizer. A weight W is worked on as X = W / sqrt(fan_out/fan_in), in slices (slices, n, k),
# n <= k: singular values of X are RMS->RMS norms. Slices of one shape are one stack.

def odd_polynomial(x, a, b, c):
    """(a I + b X X^T + c (X X^T)^2) X of every matrix of the stack x (s, n, k)."""
    gram = x @ x.mT
    return torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)


def orthogonalize(x):
    """All singular values of x (s, n, k) near 1 and never above; zero stays zero."""
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-30)
    for row in NEWTON_SCHULZ:
        x = odd_polynomial(x, *row)
    return x


def matrix_sign(x):
    x = orthogonalize(orthogonalize(x))
    return odd_polynomial(odd_polynomial(x, 1.5, -0.5, 0), 1.5, -0.5, 0)


def soft_cap(x, strengths):
    for p in strengths:
        x = x - p * (x @ x.mT @ x)
        x = x + p * (x @ x.mT @ x)
    return x


def hard_cap(x, cap, norm):
    """Singular values of x (n, k) to min(value, cap): min(w, x) = (w + x - |w - x|) / 2."""
    o = matrix_sign(x[None])[0]
    sign = matrix_sign((cap * torch.eye(len(x)).to(x) - o @ x.mT)[None])[0]
    x = (cap * o + x) / 2 - sign @ (cap * o - x) / 2
    lower, upper, _ = norm(x)
    held = lower <= cap * (1 + ROUNDING) and upper <= cap * bracket_width(len(x))
    return x if held else x * (cap / upper)


def constrain_measured(c, x, cap):
    """A matrix x (n, k), whose norm only measuring tells, back under its cap."""
    norm = lambda x: spectral_norm(x.cpu().double().numpy())
    lower, upper, top = norm(x)
    if not 0 < lower < np.inf:
        return x
    if c.constraint == "soft":
        x = soft_cap(x, soft_cap_strengths(upper, cap))
    elif c.constraint == "hard" and upper > cap:
        x = hard_cap(x, cap, norm)
    elif c.constraint == "normalize" and upper > cap:
        x = x * (cap / upper)
    elif c.constraint in ("hammer", "decay"):       # of the top singular value only
        top = torch.as_tensor(top, dtype=x.dtype, device=x.device)[:, None]
        factor = cap / lower - 1 if c.constraint == "hammer" else -c.spectral_decay
        x = x + factor * top @ (top.mT @ x)
    return x


def widen(t, W):
    x = W.view(t.slices, -1, t.cols)
    return x.mT if x.shape[1] > t.cols else x


def narrow(t, x):
    return x.mT if t.rows > t.slices * t.cols else x


def rms(rows):
    return rows.square().mean(-1, keepdim=True).sqrt()


def update(t, m):
    """The direction of a step down the momentum m (rows, cols): before unit, share and eta."""
    m = torch.as_tensor(m)
    if t.kind == "matrix":
        return narrow(t, orthogonalize(widen(t, m))).reshape(t.rows, t.cols)
    return m / rms(m).clamp(min=1 / 16) if t.kind == "embed" else m.sign()


class Muon(torch.optim.Optimizer):
    """Muon, or AdamW, and the caps after it. One group per tensor."""

    def __init__(self, c, model, momentum, second):
        table, self.c = plan(c), c
        super().__init__([dict(params=[p], tensor=table[name])
                          for name, p in model.named_parameters()], {})
        for name, p in model.named_parameters():
            self.state[p] = {key: torch.as_tensor(x[name]).clone().to(p).view_as(p)
                             for key, x in (("momentum", momentum), ("second", second)) if x}

    @torch.no_grad()
    def step(self, eta):
        c, stacks = self.c, {}
        for group in self.param_groups:
            p, t, muon = group["params"][0], group["tensor"], c.optimizer == "muon"
            state = self.state[p]
            state["momentum"].mul_(c.momentum).add_(p.grad, alpha=1 - c.momentum)
            if not muon:
                state["second"].mul_(c.beta2).addcmul_(p.grad, p.grad, value=1 - c.beta2)
                p.mul_(max(0, 1 - c.weight_decay * eta))
                p.addcdiv_(state["momentum"], state["second"].sqrt() + 1e-8, value=-eta)
            if t.kind == "matrix":
                stacks.setdefault(widen(t, p).shape[1:], []).append((p, t))
                continue
            W, m = p.view(t.rows, t.cols), state["momentum"].view(t.rows, t.cols)
            if muon:
                W.sub_(eta * t.share * update(t, m))
            if t.cap:
                W.div_((rms(W) / t.cap).clamp(min=1))
        for stack in stacks.values():
            self.step_matrices(stack, eta)

    def step_matrices(self, stack, eta):
        """stack: parameters and their tensors, all with slices of one shape (n, k)."""
        c, slices = self.c, [t for _, t in stack for _ in range(t.slices)]
        column = lambda numbers: stack[0][0].new_tensor(numbers).view(-1, 1, 1)
        x = torch.cat([widen(t, p) / t.unit for p, t in stack])
        if c.optimizer == "muon":
            u = column([eta * t.share for t in slices])
            m = torch.cat([widen(t, self.state[p]["momentum"]) for p, t in stack])
            x = x * (1 - c.weight_decay * u).clamp(min=0) - u * orthogonalize(m)
        if c.constraint == "stiefel":
            cap = column([t.cap for t in slices])
            x = torch.where(cap > 0, cap * orthogonalize(x), x)
        elif c.constraint == "soft" and c.optimizer == "muon":
            strengths = [strengths_after(c, t, eta * t.share) for t in slices]
            stages = zip_longest(*strengths, fillvalue=0.0)     # 0 acts not
            x = soft_cap(x, [column(stage) for stage in stages])
        else:
            x = torch.stack([constrain_measured(c, y, t.cap) if t.cap or c.constraint == "decay"
                             else y for y, t in zip(x, slices)])
        for (p, t), part in zip(stack, x.split([t.slices for _, t in stack])):
            p.copy_(narrow(t, part * t.unit).reshape(p.shape))


# ------------------------------------------------------------------------------------------------
# What lipgpt_common.py asks of a port; and one process of many. Every process draws the same
# windows and takes its part; gradients are added up; every process then takes the same step.

class Run:
    update = staticmethod(update)

    def __init__(self, c, w, momentum, second):
        o, self.c = self.given, c
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        device = o.device or ("cuda" if torch.cuda.is_available() else "cpu")
        if device == "cuda":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        if self.world > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if device == "cuda" else "gloo")
        self.device, self.dtype = torch.device(device), getattr(torch, c.dtype)
        self.model = Model(c).to(self.device, self.dtype)
        self.model.load_state_dict({name: torch.as_tensor(w[name]).view_as(p)
                                    for name, p in self.model.named_parameters()})
        self.optimizer = Muon(c, self.model, momentum, second)
        self.network = torch.compile(self.model) if o.compile else self.model

    @staticmethod
    def options(parser):
        parser.add_argument("--device", help="cpu, cuda or another; default: cuda if there is one")
        parser.add_argument("--compile", action="store_true", help="torch.compile the network")
        parser.add_argument("--bf16", action="store_true", help="products in bfloat16")
        parser.add_argument("--micro-batch", type=int, default=64, help="windows at once")

    def sets(self):
        """Weights, momenta and mean squares, as NumPy arrays (rows, cols)."""
        tensors = {name: {"weight": p, **self.optimizer.state[p]}
                   for name, p in self.model.named_parameters()}
        return [{name: np.atleast_2d(x[key].detach().cpu().numpy())
                 for name, x in tensors.items() if key in x}
                for key in ("weight", "momentum", "second")]

    def to_tokens(self, tokens):
        return torch.as_tensor(np.asarray(tokens), dtype=torch.long, device=self.device)

    def token_losses(self, tokens, targets, margin=0):
        """-log p of every target (B, T), its logit less the margin, and the logits (B, T, V)."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.given.bf16):
            logits, _ = self.network(tokens)
        logits = logits.to(self.dtype)
        if margin:
            logits = logits - margin * F.one_hot(targets, logits.shape[-1])
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        return loss.view_as(targets), logits

    @torch.no_grad()
    def losses(self, tokens, targets):
        loss, logits = self.token_losses(self.to_tokens(tokens), self.to_tokens(targets))
        return loss.cpu().numpy(), logits.argmax(-1).cpu().numpy() == targets

    @torch.no_grad()
    def logits(self, tokens):
        return self.network(self.to_tokens(tokens)[None])[0][0].cpu().numpy()

    def gradient(self, tokens, targets):
        """The mean loss of a batch (B, T); every p.grad becomes its gradient."""
        parts = zip(*(self.to_tokens(x[self.rank::self.world]).split(self.given.micro_batch)
                      for x in (tokens, targets)))
        total = torch.zeros((), dtype=self.dtype, device=self.device)
        self.optimizer.zero_grad(set_to_none=False)
        for part in parts:
            loss = self.token_losses(*part, self.c.margin)[0].sum() / tokens.size
            loss.backward()
            total += loss.detach()
        if self.world > 1:          # one message: all gradients and the loss
            sums = [p.grad for p in self.model.parameters()] + [total]
            flat = torch.cat([x.flatten() for x in sums])
            dist.all_reduce(flat)
            for x, piece in zip(sums, flat.split([x.numel() for x in sums])):
                x.copy_(piece.view_as(x))
        return total.item()

    def step(self, tokens, targets, eta):
        loss = self.gradient(tokens, targets)
        self.optimizer.step(eta)
        return loss

    def golden(self, tokens, targets):
        """Named as in a golden file: the forward pass of the first window, and gradients."""
        seen = [{} for _ in self.model.blocks]
        logits, last = self.model(self.to_tokens(tokens[:1]), seen)
        self.gradient(tokens, targets)
        named = {f"blocks.{l}.{name}": x for l in range(len(seen)) for name, x in seen[l].items()}
        named |= dict(last=last, logits=logits)
        return {name: x[0].detach().cpu().numpy() for name, x in named.items()} | {
            f"gradient.{name}": p.grad.cpu().numpy().copy()
            for name, p in self.model.named_parameters()}


if __name__ == "__main__":
    main(Run, __doc__)
    if dist.is_initialized():
        dist.destroy_process_group()
