"""A small DAFormer, its batches and states, for tests.

Images have a side of 32 pixels, the one map of the encoder 8 x 8 cells. Its
network has all that adaptation treats differently from other methods: batch
norms, stochastic depth and dropout.
"""

import jax.numpy as jnp
import numpy as np

from segcore.models import heads as heads_lib
from segcore.models import segmenter
from segcore.models.decoders import segformer
from segcore.models.encoders import mit
from segcore.train import update as update_lib
from tests.u2pl import inputs
from u2pl.adapt import daformer, feature_distance, self_training
from u2pl.adapt import options as options_lib

CLASSES, SIZE, BATCH, NUM_STEPS = 5, 32, 2, 40
THINGS = (1, 2, 4)
GROUPS = (
  ('^encoder/.*norm', 1.0, 0.0),
  ('^(decoder|heads)/', 10.0, 1.0),
)
SELF_TRAINING = self_training.SelfTrainingOptions(
  threshold=0.35, ignored_top=3, ignored_bottom=7
)
DAFORMER = options_lib.LearnOptions(
  self_training=SELF_TRAINING,
  feature_distance=feature_distance.FeatureDistanceOptions(
    weight=0.05, classes=THINGS, min_share=0.4
  ),
)
SOURCE_ONLY = options_lib.LearnOptions(
  self_training=None, feature_distance=None
)
PLUS = options_lib.LearnOptions(
  self_training=self_training.SelfTrainingOptions(
    threshold=0.35,
    ignored_top=3,
    ignored_bottom=7,
    filtered=True,
    reverse=0.1,
    denoise='raw',
  ),
  feature_distance=DAFORMER.feature_distance,
  contrast=inputs.CONTRAST,
  prototype_momentum=0.9,
  start_step=2,
)


def make_network(options, dtype=jnp.float64):
  heads = {
    'logits': heads_lib.PixelClassifier(
      CLASSES, nearest=True, init_deviation=0.5, dtype=dtype
    )
  }
  if options.feature_distance:
    heads[options_lib.FEATURES] = heads_lib.EncoderMap()
  if options.needs_representations:
    heads['rep'] = heads_lib.ConvBlocksHead(
      8, width=8, dropout_rate=0.0, nearest=True, dtype=dtype
    )
  return segmenter.Segmenter(
    mit.MiT(
      hidden_sizes=(8,),
      num_layers=(2,),
      num_heads=(2,),
      strides=(4,),
      reductions=(2,),
      mlp_ratio=1,
      drop_path_rate=0.3,
      dtype=dtype,
    ),
    segformer.SegFormer(width=8, dtype=dtype),
    heads,
  )


def make_method(options=DAFORMER, dtype=jnp.float64):
  optimizer = inputs.make_adamw('warmed_poly', 10, GROUPS)
  return daformer.DAFormer(
    segmenter=make_network(options, dtype),
    update=update_lib.Update(segmenter.SUBMODULES, optimizer, NUM_STEPS),
    options=options,
    num_classes=CLASSES,
  )


def draw_batch(seed=0, batch=BATCH):
  rng = np.random.default_rng(seed)

  def stream():
    # Coarse, as real labels are; some pixels are ignored.
    coarse = rng.integers(-1, CLASSES, (batch, 3, 3))
    image, label = inputs.draw_shaded_images(rng, coarse, CLASSES + 1, SIZE)
    return {'image': image.astype(np.uint8), 'label': label.astype(np.int16)}

  return {'source': stream(), 'target': stream()}


def init_state(trained, step=0, batch=None):
  return inputs.init_state(trained, batch or draw_batch(), step)
