"""A small AFA, its batches and states, for tests.

Images have a side of 32 pixels; the maps of the encoder have 8 x 8 and 4 x 4
cells. The network has batch norms, stochastic depth and dropout.
"""

import jax.numpy as jnp
import numpy as np

from segcore.models import heads as heads_lib
from segcore.models import segmenter
from segcore.models.decoders import segformer
from segcore.models.encoders import mit
from segcore.ops import dense_energy, pixel_adaptive_refinement
from segcore.train import update as update_lib
from tests.u2pl import inputs
from u2pl.weak import afa
from u2pl.weak import options as options_lib

CLASSES, SIZE, BATCH, NUM_STEPS = 4, 32, 2, 40
DILATIONS, RADIUS = (1, 3), 2
GROUPS = (
  ('^encoder/.*norm', 0.0, 0.0),
  ('^(decoder|heads)/', 10.0, 1.0),
)
AFA = options_lib.LearnOptions(
  cam=options_lib.CamOptions(
    refinement=pixel_adaptive_refinement.PixelAdaptiveOptions(
      dilations=DILATIONS
    )
  ),
  affinity=options_lib.AffinityOptions(radius=RADIUS),
  energy=dense_energy.DenseEnergyOptions(weight=1e-3, distance=4.0, color=40.0),
  class_steps=2,
  refined_steps=4,
)
CONTRAST = options_lib.CamContrastOptions(
  **inputs.FEW_PAIRS,
  capacity=80,
  max_push=20,
  keys_per_image=10,
)


def make_network(options, dtype=jnp.float64):
  heads = {
    'tags': heads_lib.TagHead(CLASSES),
    'logits': heads_lib.PixelClassifier(
      CLASSES + 1, nearest=True, init_deviation=0.5, dtype=dtype
    ),
    'affinity': heads_lib.AffinityHead(),
    'rep': heads_lib.ConvBlocksHead(
      8, width=8, dropout_rate=0.0, nearest=True, dtype=dtype
    ),
  }
  return segmenter.Segmenter(
    mit.MiT(
      hidden_sizes=(8, 8),
      num_layers=(1, 1),
      num_heads=(1, 2),
      strides=(4, 2),
      reductions=(2, 1),
      mlp_ratio=1,
      drop_path_rate=0.3,
      dtype=dtype,
    ),
    segformer.SegFormer(width=8, dtype=dtype),
    {name: heads[name] for name in options.heads},
  )


def make_method(options=AFA, dtype=jnp.float64):
  optimizer = inputs.make_adamw('switched_poly', 3, GROUPS)
  return afa.AFA(
    segmenter=make_network(options, dtype),
    update=update_lib.Update(options.parts, optimizer, NUM_STEPS),
    options=options,
    num_classes=CLASSES,
  )


def draw_batch(seed=0, batch=BATCH):
  """Draws coarse masks, images of their classes, tags and padding."""
  rng = np.random.default_rng(seed)
  coarse = rng.integers(0, CLASSES + 1, (batch, 3, 3))
  image, label = inputs.draw_shaded_images(rng, coarse, CLASSES + 1, SIZE)
  valid = np.ones(label.shape, bool)
  # Of the first image the left and lower edge are padding.
  valid[0, :, :5] = valid[0, 23:] = False
  tags = (coarse[..., None] == np.arange(CLASSES + 1)).any((1, 2))
  return {
    'image': np.where(valid[..., None], image, 0).astype(np.uint8),
    'label': np.where(valid, label, -1).astype(np.int16),
    'tags': tags,
    'valid': valid,
  }


def init_state(trained, step=0, batch=None):
  return inputs.init_state(trained, batch or draw_batch(), step)
