"""Optimizers and schedules of PASS in slow, obvious numpy.

See `pass_pretraining` for symbols and conventions.

§2.1  swav_learning_rate(step, steps, base, final)
§2.9  larc(w, g, weight_decay, trust)               g
      sgd_momentum(w, m, g, lr, momentum)           w, m
      larc_sgd_steps(weights, gradients, learning_rates, ...)
§2.10 lars(w, g, weight_decay, trust)               g
      pixpro_learning_rate(step, steps, warmup_steps, base, final)
      momentum(k, total, base), ema(target, online, m)
"""

import math

import numpy as np

# §2.1 Learning rate


def swav_learning_rate(step, steps, base=0.6, final=0.0006):
  """Decays by a cosine from base at step 0 to final at `steps` (§2.1)."""
  return final + 0.5 * (base - final) * (1 + math.cos(math.pi * step / steps))


# §2.9 LARC


def _norm(x):
  return math.sqrt((np.asarray(x, np.float64) ** 2).sum())


def larc(w, g, weight_decay=1e-6, trust=0.001):
  """Scales a gradient; it stays raw if |w| or |g| is 0 (§2.9)."""
  w, g = np.asarray(w, np.float64), np.asarray(g, np.float64)
  norm_w, norm_g = _norm(w), _norm(g)
  if norm_w == 0 or norm_g == 0:
    return g
  scale = trust * norm_w / (norm_g + weight_decay * norm_w + 1e-8)
  return (g + weight_decay * w) * scale


def sgd_momentum(w, m, g, lr, momentum=0.9):
  """Computes the new w and m; m is None before the first step (§2.9)."""
  m = g if m is None else momentum * m + g
  return w - lr * m, m


def larc_sgd_steps(
  weights,
  gradients,
  learning_rates,
  weight_decay=1e-6,
  trust=0.001,
  momentum=0.9,
):
  """Takes steps of `larc` and `sgd_momentum`; weights and momenta (§2.9).

  Args:
    weights: arrays by name; not changed.
    gradients: of each step, arrays by name; a name left out is frozen, its
      weights and its momentum stay as they are.
    learning_rates: of each step.
    weight_decay: of all tensors.
    trust: of LARC.
    momentum: of SGD.
  """
  weights = {name: np.array(w, np.float64) for name, w in weights.items()}
  momenta = {}
  for step, lr in zip(gradients, learning_rates, strict=True):
    for name, g in step.items():
      weights[name], momenta[name] = sgd_momentum(
        weights[name],
        momenta.get(name),
        larc(weights[name], g, weight_decay, trust),
        lr,
        momentum,
      )
  return weights, momenta


# §2.10 PixPro


def lars(w, g, weight_decay=1e-5, trust=0.001):
  """Scales a gradient of two axes or more, as PixPro does (§2.10)."""
  w, g = np.asarray(w, np.float64), np.asarray(g, np.float64)
  if w.ndim <= 1:
    return g
  g = g + weight_decay * w
  if _norm(w) == 0 or _norm(g) == 0:
    return g
  return g * trust * _norm(w) / (_norm(g) + 1e-8)


def pixpro_learning_rate(step, steps, warmup_steps, base=1.0, final=1e-6):
  """Warms up from base / 100 to base, then decays by a cosine (§2.10)."""
  if step < warmup_steps:
    first = base / 100
    return first + (base - first) * step / warmup_steps
  return swav_learning_rate(
    step - warmup_steps, steps - warmup_steps, base, final
  )


def momentum(k, total, base=0.99):
  """Computes m(k) of the key network, from base to 1 (§2.10)."""
  return 1 - (1 - base) * (math.cos(math.pi * k / total) + 1) / 2


def ema(target, online, m):
  """Computes m target + (1 - m) online, the key network (§2.10)."""
  return m * target + (1 - m) * online
