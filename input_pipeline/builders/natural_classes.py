"""Classes and contexts of the data sets shapes/natural.

A class has an outline, colors, a texture and a context: the background on which
most of its objects lie. None of them suffices to recognize it.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class NaturalTint:
  """Describes a color by hue, saturation and luma.

  Attributes:
    hue: angle on the color circle in degrees; red is 0, green 120, blue 240.
    saturation: fraction, in [0, 1], of the largest saturation at this luma.
    luma: brightness in [0, 1].
  """

  hue: float
  saturation: float
  luma: float


@dataclasses.dataclass(frozen=True)
class NaturalOutline:
  """An outline r(t) = 1 - depth * |sin(lobes * t / 2)|^power, stretched.

  Attributes:
    lobes: number of tips; 0 for an ellipse.
    depth: depth of the notches between the tips, in [0, 1).
    power: 1 or less for pointed tips, more for round ones.
    aspect: length along the axis t = 0 relative to the width.
  """

  lobes: int
  depth: float = 0.0
  power: float = 1.0
  aspect: float = 1.0


@dataclasses.dataclass(frozen=True)
class NaturalTexture:
  """A sum of random waves, through a sigmoid.

  Attributes:
    cycles: range of the frequencies, in cycles per radius of an object or per
      side of the image.
    axis: mean direction of the waves, in radians; of objects relative to the
      axis of the outline.
    spread: largest deviation from that direction; pi/2 has no direction.
    sharpness: slope of the sigmoid: below 1 for soft, above 3 for hard edges.
    decay: amplitudes fall by this power of the frequency.
  """

  cycles: tuple[float, float]
  axis: float = 0.0
  spread: float = np.pi / 2
  sharpness: float = 1.0
  decay: float = 0.0


@dataclasses.dataclass(frozen=True)
class NaturalContext:
  """A kind of background: two tones that a texture mixes."""

  tones: tuple[NaturalTint, NaturalTint]
  texture: NaturalTexture


@dataclasses.dataclass(frozen=True)
class NaturalClass:
  """A class of objects.

  Attributes:
    outline: mean outline.
    tones: pairs of tones that the texture mixes; an object has one of the
      pairs, varied.
    texture: texture of the surface.
    context: name of the most frequent background.
    color: color of the class in pictures of labels, RGB 0 to 255.
  """

  outline: NaturalOutline
  tones: tuple[tuple[NaturalTint, NaturalTint], ...]
  texture: NaturalTexture
  context: str
  color: tuple[int, int, int]


CONTEXTS = {
  'meadow': NaturalContext(
    (NaturalTint(105.0, 0.55, 0.36), NaturalTint(85.0, 0.55, 0.55)),
    NaturalTexture((6.0, 22.0), spread=0.35, decay=0.5),
  ),
  'soil': NaturalContext(
    (NaturalTint(25.0, 0.50, 0.22), NaturalTint(35.0, 0.40, 0.42)),
    NaturalTexture((3.0, 20.0), sharpness=1.5, decay=0.5),
  ),
  'sand': NaturalContext(
    (NaturalTint(35.0, 0.40, 0.50), NaturalTint(42.0, 0.45, 0.68)),
    NaturalTexture((5.0, 10.0), axis=np.pi / 2, spread=0.25),
  ),
  'water': NaturalContext(
    (NaturalTint(210.0, 0.60, 0.30), NaturalTint(190.0, 0.50, 0.52)),
    NaturalTexture((2.0, 9.0), axis=np.pi / 2, spread=0.5, decay=1.0),
  ),
  'rock': NaturalContext(
    (NaturalTint(30.0, 0.08, 0.33), NaturalTint(220.0, 0.06, 0.56)),
    NaturalTexture((1.0, 22.0), sharpness=1.5, decay=1.0),
  ),
}

# From the most to the least frequent.
KINDS = {
  'leaf': NaturalClass(
    NaturalOutline(2, 0.60, 0.9, 1.1),
    (
      (NaturalTint(100.0, 0.60, 0.42), NaturalTint(130.0, 0.60, 0.24)),
      (NaturalTint(35.0, 0.70, 0.55), NaturalTint(15.0, 0.70, 0.32)),
    ),
    NaturalTexture((1.5, 2.2), axis=0.5, spread=0.12, sharpness=3.0),
    'soil',
    (60, 180, 75),
  ),
  'blossom': NaturalClass(
    NaturalOutline(5, 0.50, 4.0),
    (
      (NaturalTint(320.0, 0.50, 0.65), NaturalTint(340.0, 0.70, 0.42)),
      (NaturalTint(50.0, 0.10, 0.88), NaturalTint(50.0, 0.60, 0.68)),
    ),
    NaturalTexture((0.4, 0.8), sharpness=0.8),
    'meadow',
    (240, 50, 230),
  ),
  'pebble': NaturalClass(
    NaturalOutline(0, aspect=1.3),
    (
      (NaturalTint(30.0, 0.10, 0.62), NaturalTint(30.0, 0.15, 0.42)),
      (NaturalTint(220.0, 0.12, 0.38), NaturalTint(210.0, 0.10, 0.56)),
    ),
    NaturalTexture((0.5, 6.0), decay=1.0),
    'rock',
    (128, 128, 128),
  ),
  'shell': NaturalClass(
    NaturalOutline(1, 0.55, 1.0, 0.95),
    (
      (NaturalTint(40.0, 0.30, 0.78), NaturalTint(20.0, 0.50, 0.48)),
      (NaturalTint(330.0, 0.25, 0.72), NaturalTint(350.0, 0.40, 0.46)),
    ),
    NaturalTexture((2.4, 3.2), axis=np.pi / 2, spread=0.08, sharpness=4.0),
    'sand',
    (255, 225, 25),
  ),
  'jellyfish': NaturalClass(
    NaturalOutline(3, 0.30, 2.0, 1.25),
    (
      (NaturalTint(330.0, 0.30, 0.76), NaturalTint(300.0, 0.40, 0.52)),
      (NaturalTint(200.0, 0.35, 0.80), NaturalTint(225.0, 0.45, 0.56)),
    ),
    NaturalTexture((0.8, 1.3), axis=np.pi / 2, spread=0.4, sharpness=1.0),
    'water',
    (70, 240, 240),
  ),
  'clover': NaturalClass(
    NaturalOutline(3, 0.65, 4.0),
    (
      (NaturalTint(125.0, 0.55, 0.34), NaturalTint(110.0, 0.50, 0.56)),
      (NaturalTint(145.0, 0.50, 0.26), NaturalTint(120.0, 0.50, 0.44)),
    ),
    NaturalTexture((0.6, 1.2), axis=0.0, spread=0.6, sharpness=2.0),
    'meadow',
    (0, 110, 60),
  ),
  'beetle': NaturalClass(
    NaturalOutline(0, aspect=1.8),
    (
      (NaturalTint(240.0, 0.40, 0.14), NaturalTint(190.0, 0.60, 0.40)),
      (NaturalTint(10.0, 0.85, 0.38), NaturalTint(0.0, 0.10, 0.09)),
    ),
    NaturalTexture((1.2, 1.7), sharpness=6.0),
    'soil',
    (230, 25, 75),
  ),
  'starfish': NaturalClass(
    NaturalOutline(5, 0.66, 0.8),
    (
      (NaturalTint(20.0, 0.75, 0.48), NaturalTint(40.0, 0.60, 0.68)),
      (NaturalTint(350.0, 0.60, 0.38), NaturalTint(20.0, 0.55, 0.58)),
    ),
    NaturalTexture((2.0, 3.0), sharpness=3.0),
    'sand',
    (245, 130, 48),
  ),
  'crystal': NaturalClass(
    NaturalOutline(4, 0.36, 1.0, 1.25),
    (
      (NaturalTint(190.0, 0.35, 0.78), NaturalTint(220.0, 0.50, 0.44)),
      (NaturalTint(290.0, 0.40, 0.66), NaturalTint(270.0, 0.55, 0.34)),
    ),
    NaturalTexture((0.6, 1.1), axis=0.8, spread=0.5, sharpness=8.0),
    'rock',
    (0, 80, 220),
  ),
  'urchin': NaturalClass(
    NaturalOutline(11, 0.35, 0.9),
    (
      (NaturalTint(280.0, 0.45, 0.20), NaturalTint(300.0, 0.45, 0.38)),
      (NaturalTint(20.0, 0.40, 0.16), NaturalTint(350.0, 0.50, 0.34)),
    ),
    NaturalTexture((3.0, 6.0), sharpness=2.0),
    'water',
    (145, 30, 180),
  ),
}

CLASSES = ('background', *KINDS)
PALETTE = ((24, 24, 24), *(kind.color for kind in KINDS.values()))
# Probability of each class of an object in scenes of several: Zipf's law.
FREQUENCIES = 1 / np.arange(1, len(KINDS) + 1)
FREQUENCIES /= FREQUENCIES.sum()
# Probability that an object lies in the context of its class.
CONTEXT_FIT = 0.7


def natural_context_probabilities() -> np.ndarray:
  """Returns the probability [classes, contexts] of a context given a class."""
  homes = np.array([kind.context for kind in KINDS.values()])
  fits = homes[:, None] == np.array(list(CONTEXTS))
  return np.where(fits, CONTEXT_FIT, (1 - CONTEXT_FIT) / (len(CONTEXTS) - 1))
