"""A small AFA, its batches and states, for tests.

Images have a side of 32 pixels; the maps of the encoder have 8 x 8 and 4 x 4
cells. The network has batch norms, stochastic depth and dropout.
"""

import jax
import jax.numpy as jnp
import numpy as np

from segcore.models import heads as heads_lib
from segcore.models import segmenter
from segcore.models.decoders import segformer
from segcore.models.encoders import mit
from segcore.ops import dense_energy, pixel_adaptive_refinement
from segcore.train import optimizers
from segcore.train import update as update_lib
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
  num_anchors=6,
  num_negatives=4,
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
  optimizer = optimizers.OptimizerOptions(
    learning_rate=1e-3,
    schedule='switched_poly',
    poly_power=1.0,
    warmup_steps=3,
    warmup_start=1e-6,
    weight_decay=0.01,
    groups=GROUPS,
  )
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
  label = coarse.repeat(11, 1).repeat(11, 2)[:, :SIZE, :SIZE]
  shades = rng.integers(40, 200, (CLASSES + 1, 3))[label]
  image = shades + rng.integers(-30, 30, (batch, SIZE, SIZE, 3))
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


def spec(batch):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)


def init_state(trained, step=0, batch=None):
  batch = batch or draw_batch()
  init = jax.jit(lambda rng: trained.init(rng, spec(batch), None))
  state = init(jax.random.PRNGKey(0))
  return state.replace(step=jnp.int32(step))
