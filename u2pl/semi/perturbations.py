"""Perturbations of the encoder's maps, between encoder and decoder.

A perturbation maps `Features` to `Features`; `Segmenter` applies it.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from input_pipeline import batch as batch_lib
from segcore.models import features as features_lib
from segcore.train import update as update_lib


def drop_channels(
  x: Float[Array, 'B h w D'], kept: Bool[Array, 'B D'], rate: float
) -> Float[Array, 'B h w D']:
  """Clears whole channels of an example, and scales the others up.

  Args:
    x: map.
    kept: channels of each example that are not cleared.
    rate: probability with which channels are cleared.
  """
  return x * (kept / (1 - rate)).astype(x.dtype)[:, None, None]


def sample_kept_channels(
  keys: Array, num_channels: int, rate: float
) -> Bool[Array, 'B D']:
  """Draws which channels each example keeps.

  Args:
    keys: one key for each example, [B]: draws do not depend on the device.
    num_channels: number D of channels.
    rate: probability with which a channel is cleared.
  """
  return jax.vmap(
    lambda key: jax.random.bernoulli(key, 1 - rate, (num_channels,))
  )(keys)


def with_dropped_channels(
  features: features_lib.Features, rng: Array, rate: float
) -> features_lib.Features:
  """Adds to each example a copy whose maps have dropped channels (UniMatch).

  Each map has draws of its own. Rows are those of `batch.join_batch_rows`: an
  example, its copy, the next example.

  Args:
    features: maps of the encoder, of B examples.
    rng: key of the draws.
    rate: probability with which a channel is cleared.

  Returns:
    Maps of 2B examples.
  """
  maps = []
  for i, each in enumerate(features.maps):
    x = each.array
    keys = update_lib.row_prng_keys(jax.random.fold_in(rng, i), len(x))
    kept = sample_kept_channels(keys, x.shape[-1], rate)
    dropped = drop_channels(x, kept, rate)
    maps.append(each.replace(array=batch_lib.join_batch_rows([x, dropped])))
  return features_lib.Features(tuple(maps))


def complementary_factors(
  kept: Bool[Array, 'B D'], whole: Bool[Array, 'B']
) -> Float[Array, 'B V D']:
  """Computes the factors of the channels of two views of each example.

  A channel that one view keeps, with the factor 2, is cleared in the other one;
  examples of `whole` keep all channels of both. Source: UniMatch V2 (Yang et
  al. 2025), complementary dropout.

  Args:
    kept: channels that the first view keeps.
    whole: examples without dropout.
  """
  first = 2.0 * kept
  factors = jnp.stack([first, 2.0 - first], axis=1)
  return jnp.where(whole[:, None, None], 1.0, factors)


def drop_complementary_channels(
  features: features_lib.Features, rng: Array, num_whole: int
) -> features_lib.Features:
  """Drops complementary channels of two views of each example (UniMatch V2).

  Maps of equal width, as those of a plain ViT, have the same channels dropped.

  Args:
    features: maps of the encoder; rows are those of `batch.join_batch_rows` of
      the two views.
    rng: key of the draws.
    num_whole: number of examples that keep all of their channels.
  """
  whole_rng, channel_rng = jax.random.split(rng)
  num_examples = len(features.maps[0].array) // 2
  order = jax.random.permutation(whole_rng, num_examples)
  keys = update_lib.row_prng_keys(channel_rng, num_examples)
  maps = []
  for each in features.maps:
    x = each.array
    # By the width alone: the same key gives maps of one width the same draws.
    kept = sample_kept_channels(keys, x.shape[-1], 0.5)
    factors = complementary_factors(kept, order < num_whole)
    factors = factors.reshape(len(x), 1, 1, -1).astype(x.dtype)
    maps.append(each.replace(array=x * factors))
  return features_lib.Features(tuple(maps))
