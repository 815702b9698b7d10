"""Parameter counts of the published networks (spec §2.4, §3.1)."""

import jax
import jax.numpy as jnp
import pytest

from pass_luss.pretrain import (
  heads,
  objective_choice,
  objective_list,
  objective_options,
)
from segcore.models import segmenter
from segcore.models.encoders import resnet


def published_network(depth):
  """Builds the encoder and sizes of S50, or of S300 and S919."""
  kind, blocks = {
    18: ('basic', (2, 2, 2, 2)),
    50: ('bottleneck', (3, 4, 6, 3)),
  }[depth]
  sizes = (512, 128, 500) if depth == 18 else (2048, 128, 3000)
  encoder = resnet.DilatedResNet(
    blocks=blocks, unit=kind, stem='plain', output_stride=32, zero_init=False
  )
  return encoder, objective_options.HeadSizes(*sizes)


@pytest.mark.parametrize(
  ('depth', 'stages', 'backbone', 'total'),
  [
    (18, (3,), 11_176_512, 12_919_488),
    (50, (3,), 23_508_032, 47_809_216),
    (50, (3, 2), 23_508_032, 55_425_856),
  ],
)
def test_published_parameter_counts(depth, stages, backbone, total):
  encoder, sizes = published_network(depth)
  options = objective_choice.ObjectiveOptions(
    shallow=objective_options.D2SOptions(stages)
  )
  net = segmenter.Segmenter(
    encoder,
    None,
    objective_list.build_objective_heads(
      objective_list.build_objectives(options, sizes), jnp.float32
    ),
  )
  shapes = jax.eval_shape(
    net.init, jax.random.PRNGKey(0), jnp.zeros((1, 224, 224, 3))
  )['params']

  def count(tree):
    return sum(x.size for x in jax.tree.leaves(tree))

  assert count(shapes['encoder']) == backbone
  assert count(shapes) == total


@pytest.mark.parametrize(
  ('size', 'expected'), [(512, 527_872), (2048, 8_402_944)]
)
def test_published_parameter_counts_of_attention(size, expected):
  shapes = jax.eval_shape(
    heads.AttentionHead().init,
    jax.random.PRNGKey(0),
    jnp.zeros((1, 7, 7, size)),
  )['params']
  assert sum(x.size for x in jax.tree.leaves(shapes)) == expected
