#!/usr/bin/env python3
"""lipgpt in JAX: model, loss, Muon and caps as pure functions; grad, vmap and jit.

    pip install jax numpy safetensors
    lipgpt_jax.py check [FILE ...] [--float32]      against golden files: one row per quantity
    lipgpt_jax.py eval --model CHECKPOINT [--data FILE]
    lipgpt_jax.py certify --model CHECKPOINT [--data FILE]
    lipgpt_jax.py train --data FILE --out CHECKPOINT [--preset tight|paper] [--width 128 ...]
    lipgpt_jax.py train --resume CHECKPOINT [--out CHECKPOINT] [--data FILE] [--steps N]
    lipgpt_jax.py sample --model CHECKPOINT [--prompt TEXT] [--tokens N] [--temperature X]
    lipgpt_jax.py bench [--preset paper]            seconds of a step on random tokens

Options have lipgpt's names; checkpoints go both ways. Of the optimizers and constraints only Muon
and the soft cap are here (lipgpt_torch.py has all). What is no matter of the framework stands in
lipgpt_common.py; dev/porting.md explains. T, d, H, dh, F, L, V and all names are lipgpt.c's.
"""

import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from lipgpt_common import GELU_DIVISOR, NEWTON_SCHULZ, constants, main, plan, strengths_after

jax.config.update("jax_enable_x64", True)       # for check; weights of float32 stay so

# ------------------------------------------------------------------------------------------------
# The model. Positions of all windows are rows of one matrix, (B T, d): XLA's products like that.


def rope(x):
    """Rotate x (B, H, T, dh), at t by t 10000^(-i / (dh/2)); the halves of a head are paired."""
    half = x.shape[3] // 2
    angle = np.arange(x.shape[2])[:, None] * 10000.0 ** (-np.arange(half) / half)
    cos, sin = np.cos(angle).astype(x.dtype), np.sin(angle).astype(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate((cos * first - sin * second, cos * second + sin * first), -1)


def attention(c, p, x, B, scale):
    """concat_h(A_h v_h) (B T, n) of x (B T, d), and what is on the way; p: a block's weights."""
    T, H = len(x) // B, c.heads
    part = lambda name: (x @ p[f"attention.{name}.weight"].T).reshape(B, T, H, -1).swapaxes(1, 2)
    v, scores, inside = part("value"), jnp.zeros((B, H, T, T), x.dtype), {}
    if not c.position_only:
        q, k = rope(part("query")), rope(part("key"))
        scores, inside = (scale * q) @ k.mT, dict(q=q.swapaxes(1, 2), k=k.swapaxes(1, 2))
    distance = np.arange(T)[:, None] - np.arange(T)
    if c.position_bias:
        scores += p["attention.position_bias"][:, np.maximum(distance, 0)]
    A = jax.nn.softmax(jnp.where(distance >= 0, scores, -jnp.inf), -1)
    y = (A @ v).swapaxes(1, 2).reshape(B * T, -1)
    return y, inside | dict(v=v.swapaxes(1, 2), scores=jnp.tril(scores), A=A, y=y)


def residual(keep, alpha, W, x, h):
    """x (B T, d) with a layer's h: keep x + alpha h W^T; or, where keep is 0, [x, alpha h] W^T."""
    return keep * x + alpha * (h @ W.T) if keep else jnp.concatenate((x, alpha * h), -1) @ W.T


def activation(c, z):
    """GELU / 1.1289, or MaxMin: units i and i + F/2 become their max and their min."""
    if c.activation == "gelu":
        return jax.nn.gelu(z, approximate=True) / GELU_DIVISOR
    first, second = jnp.split(z, 2, -1)
    swap = first < second                       # not of equals: gradients go to both as they came
    return jnp.concatenate((jnp.where(swap, second, first), jnp.where(swap, first, second)), -1)


def forward(c, w, tokens):
    """Logits (B, T, V) of tokens (B, T), and all that stands on the way, which jit leaves out."""
    keep, alpha, attention_alpha, scale = constants(c)
    x, seen = w["embedding.weight"][tokens.ravel()], {}
    for l in range(c.blocks):
        b = f"blocks.{l}."
        p = {name.removeprefix(b): weight for name, weight in w.items() if name.startswith(b)}
        mid, inside = x, {}
        if "attention.output.weight" in p:      # else a block without attention
            y, inside = attention(c, p, x, len(tokens), scale)
            mid = residual(keep, attention_alpha, p["attention.output.weight"], x, y)
        z = mid @ p["mlp.in.weight"].T
        if c.bias:
            z += p["mlp.in.bias"][0]
        a = activation(c, z)
        here = dict(x=x, **inside, mid=mid, z=z, a=a)
        seen |= {b + name: value for name, value in here.items()}
        x = residual(keep, alpha, p["mlp.out.weight"], mid, a)
    logits = x @ w["head.weight"].T
    if c.bias:
        logits += w["head.bias"][0]
    return logits.reshape(*tokens.shape, -1), seen | {"last": x, "logits": logits}


def losses(c, w, tokens, targets, margin=0):
    """-log p of every target (B, T), its logit less the margin, and whether that is the largest."""
    logits, _ = forward(c, w, tokens)
    if margin:
        logits -= margin * jax.nn.one_hot(targets, logits.shape[-1], dtype=logits.dtype)
    right = jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
    return jax.nn.logsumexp(logits, -1) - right, jnp.argmax(logits, -1) == targets


def mean_loss(c, w, tokens, targets):
    return jnp.mean(losses(c, w, tokens, targets, c.margin)[0])


# ------------------------------------------------------------------------------------------------
# Muon and the soft cap.

def orthogonalize(x):
    """All singular values of x (..., n, k), n <= k, near 1 and never above; zero stays zero."""
    x = x / jnp.maximum(jnp.linalg.norm(x, axis=(-2, -1), keepdims=True), 1e-30)
    for a, b, c in NEWTON_SCHULZ:
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x


def widen(t, W):
    """W (rows, cols) by slices (slices, n, k), n <= k, each the wide one of itself and its W^T."""
    x = W.reshape(t.slices, -1, t.cols)
    return x.mT if x.shape[1] > t.cols else x


def narrow(t, x):
    """The way back."""
    return (x.mT if t.rows > t.slices * t.cols else x).reshape(t.rows, t.cols)


def rms(rows):
    return jnp.sqrt(jnp.mean(rows * rows, -1, keepdims=True))


def update(t, m):
    """The direction of a step down the momentum m (rows, cols): before unit, share and eta."""
    if t.kind == "matrix":
        return narrow(t, orthogonalize(widen(t, m)))
    return m / jnp.maximum(rms(m), 1 / 16) if t.kind == "embed" else jnp.sign(m)


def soft_cap(x, strengths):
    """Takes the singular values of x (slices, n, k) back below the cap."""
    for p in strengths:
        x = x - p * (x @ x.mT) @ x
        x = x + p * (x @ x.mT) @ x
    return x


def step_tensor(c, t, W, m, eta, strengths):
    """W (rows, cols) after a step down the momentum m; in units where its cap is one of sigma."""
    u = eta * t.share
    if t.kind == "matrix":
        W = W / t.unit * jnp.maximum(0, 1 - c.weight_decay * u) - u * update(t, m)
        return narrow(t, soft_cap(widen(t, W), strengths)) * t.unit
    W = W - u * update(t, m)
    return W / jnp.maximum(rms(W) / t.cap, 1) if t.cap else W


def step(c, w, m, tokens, targets, eta, strengths):
    """Weights, momenta and loss of a training step; strengths {name: [p, ...]} of the soft caps."""
    loss, g = jax.value_and_grad(partial(mean_loss, c))(w, tokens, targets)
    m = {name: c.momentum * m[name] + (1 - c.momentum) * g[name] for name in w}
    w = {name: step_tensor(c, t, w[name], m[name], eta, strengths[name])
         for name, t in plan(c).items()}
    return w, m, loss


# ------------------------------------------------------------------------------------------------
# What lipgpt_common.py asks of a port.

class Run:
    """Settings c with weights and momenta, which step changes; arrays go in and out as NumPy's."""
    rank = 0

    def __init__(self, c, w, m, second):
        if m and (c.optimizer, c.constraint, second) != ("muon", "soft", None):
            sys.exit("lipgpt_jax.py trains with Muon and the soft cap only")
        self.c, self.table, self.dtype = c, plan(c), jnp.dtype(c.dtype)
        self.w, self.m = ({name: jnp.asarray(x, self.dtype) for name, x in (tensors or {}).items()}
                          for tensors in (w, m))
        self.caps = {}
        self.compiled_step = jax.jit(partial(step, c), donate_argnums=(0, 1))
        self.compiled_losses = jax.jit(partial(losses, c))
        self.compiled_logits = jax.jit(lambda w, tokens: forward(c, w, tokens[None])[0][0])

    @staticmethod
    def options(parser):
        pass

    update = staticmethod(update)

    def sets(self):
        return jax.device_get(self.w), jax.device_get(self.m), None

    def losses(self, tokens, targets):
        return jax.device_get(self.compiled_losses(self.w, tokens, targets))

    def logits(self, tokens):
        return self.compiled_logits(self.w, tokens)

    def strengths(self, eta):
        """Of all soft caps. As eta falls they become fewer: zeros, which act not, take their place,
        so that jit compiles once."""
        for name, t in self.table.items():
            found = strengths_after(self.c, t, eta * t.share)
            room = max(len(found), len(self.caps.get(name, ())))
            self.caps[name] = np.array(found + [0.0] * (room - len(found)), self.dtype)
        return self.caps

    def step(self, tokens, targets, eta):
        scale, strengths = jnp.asarray(eta, self.dtype), self.strengths(eta)
        self.w, self.m, loss = self.compiled_step(self.w, self.m, tokens, targets, scale, strengths)
        return float(loss)

    def golden(self, tokens, targets):
        """Named as in a golden file: the forward pass of the first window, and gradients."""
        _, seen = forward(self.c, self.w, tokens[:1])
        g = jax.grad(partial(mean_loss, self.c))(self.w, tokens, targets)
        return seen | {f"gradient.{name}": x for name, x in g.items()}


if __name__ == "__main__":
    main(Run, __doc__)
