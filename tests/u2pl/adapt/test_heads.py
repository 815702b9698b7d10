"""The head of representations: which map it reads."""

import jax
import jax.numpy as jnp
import pytest

from segcore.models import heads, segmenter
from segcore.models.decoders import daformer
from segcore.models.encoders import mit
from u2pl.stages import pixel_heads


@pytest.mark.parametrize(
  ('represented', 'features', 'cells'),
  [('fused', 6, 16), ('branches', 4 * 6, 16), ('deepest', 32, 2)],
)
def test_maps_that_representations_are_computed_from(
  represented, features, cells
):
  net = segmenter.Segmenter(
    mit.MiT(
      hidden_sizes=(8, 32),
      num_layers=(1, 1),
      num_heads=(1, 1),
      strides=(4, 8),
      reductions=(2, 1),
    ),
    daformer.DAFormer(6, returns_branches=True),
    {
      'rep': pixel_heads.HeadOptions(
        width=5, representation=3, represented=represented
      ).build_representation(jnp.float32),
      'logits': heads.PixelClassifier(7),
    },
  )
  images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
  variables = jax.eval_shape(net.init, jax.random.key(0), images)
  blocks = variables['params']['heads']['rep']
  assert blocks['block1']['conv']['kernel'].shape == (3, 3, features, 5)
  outputs = jax.eval_shape(
    lambda v, x: net.apply(v, x, heads=('rep', 'logits')), variables, images
  )
  assert outputs['rep'].shape == (1, cells, cells, 3)
  # The classifier reads the fused map, whatever else the decoder returns.
  assert outputs['logits'].shape == (1, 16, 16, 7)
