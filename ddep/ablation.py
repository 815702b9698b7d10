"""Which parts of a decoder a prediction uses: its loss with inputs replaced.

An input of the decoder is an encoder's map, or the map that a block of the
decoder gets from the deeper ones. Replacing it shifts and scales what the head
reads, so the head is refitted by least squares before the loss is measured. The
norms of later blocks still see other statistics where an input is zeroed; where
it is replaced by its mean, only its information is missing.

  ablations = plan_ablations(encoder_map_labels(maps), means)
  read, predicted, _ = decode_ablated(
    segmenter, variables, maps, None, (64, 64), ablations['block1_zeroed']
  )
  loss = refitted_loss(inputs, errors, targets)
  lost_share(loss, intact=0.3, constant=1.0)
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from segcore import types
from segcore.models import features as features_lib
from segcore.models import segmenter as segmenter_lib
from segcore.models.layers import resize

# Strengths of the ridge regression; with the last one it is a bias alone.
_RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 1e9)
# Least difference to the loss of a constant, as a share of it, that counts as
# something learned.
_LEAST_GAIN = 0.01
_HEAD = 'noise'


# By the block's name: the channels of the map that it gets, here their means.
BlockMeans = Mapping[str, Float[np.ndarray, '_']]


class Factors(NamedTuple):
  """Factors, 0 or 1, of the inputs of a decoder.

  Attributes:
    maps: factor of each of the encoder's maps, by its label.
    blocks: factor of the map that each block gets, by the block's name.
    fills: values that replace such a map where its factor is 0.
  """

  maps: Mapping[str, np.float32]
  blocks: Mapping[str, np.float32]
  fills: BlockMeans


def encoder_map_labels(maps: features_lib.Features) -> tuple[str, ...]:
  """Returns a label for each of an encoder's maps: 'stride_16'.

  Maps of one stride have one label, since a decoder reads the last of them.
  Only where all have one stride, as those of a ViT, a label is the map's name.
  """
  if len(maps.strides) == 1:
    return tuple(each.name for each in maps.maps)
  return tuple(f'stride_{each.stride}' for each in maps.maps)


def plan_ablations(
  labels: Sequence[str], means: BlockMeans
) -> dict[str, Factors]:
  """Lists the ablations, by name.

  An input is 'zeroed', a block's also 'averaged' (replaced by its mean); a map
  of the encoder is 'alone' where all its others are zeroed.

  >>> [*plan_ablations(['stride_4', 'stride_8'], {'block0': np.zeros(64)})]
  ['intact', 'stride_4_zeroed', 'stride_4_alone', 'stride_8_zeroed', \
'stride_8_alone', 'block0_zeroed', 'block0_averaged']

  Args:
    labels: labels of the encoder's maps.
    means: mean of the map that each block of the decoder gets.
  """
  labels = [*dict.fromkeys(labels)]
  zeros = {name: np.zeros_like(mean) for name, mean in means.items()}

  def factors(replaced: Sequence[str], fills: BlockMeans = zeros) -> Factors:
    maps, blocks = (
      {name: np.float32(name not in replaced) for name in names}
      for names in (labels, means)
    )
    return Factors(maps, blocks, fills)

  ablations = {'intact': factors(())}
  for label in labels:
    ablations[f'{label}_zeroed'] = factors((label,))
    others = [other for other in labels if other != label]
    ablations[f'{label}_alone'] = factors(others)
  for block in means:
    ablations[f'{block}_zeroed'] = factors((block,))
    ablations[f'{block}_averaged'] = factors((block,), means)
  return ablations


def decode_ablated(
  segmenter: segmenter_lib.Segmenter,
  variables: types.Params,
  maps: features_lib.Features,
  condition: Float[Array, 'B'] | None,
  size: tuple[int, int],
  factors: Factors,
) -> tuple[
  Float[Array, 'B h w D'],
  Float[Array, 'B H W 3'],
  dict[str, Float[Array, '_']],
]:
  """Decodes an encoder's maps with inputs multiplied by factors, or replaced.

  Args:
    segmenter: network with a head `noise`.
    variables: its parameters and batch statistics.
    maps: maps of the encoder.
    condition: noise level of each image, for a conditional decoder.
    size: height and width of the images.
    factors: factor of each input.

  Returns:
    The map that the head reads, the prediction of the head, and the mean of the
    map that each block gets, before it is replaced.
  """
  labels = encoder_map_labels(maps)
  maps = features_lib.Features(
    tuple(
      each.replace(
        array=each.array * factors.maps[label].astype(each.array.dtype)
      )
      for each, label in zip(maps.maps, labels, strict=True)
    )
  )

  means = {}

  def replace_input(next_call, arguments, keywords, context):
    path = context.module.path
    if (
      context.method_name == '__call__'
      and path[:1] == ('decoder',)
      and path[1:] in {(name,) for name in factors.blocks}
    ):
      x, *others = arguments
      factor, fill = factors.blocks[path[1]], factors.fills[path[1]]
      means[path[1]] = jnp.mean(x.astype(jnp.float32), axis=(0, 1, 2))
      replaced = x * factor.astype(x.dtype)
      replaced += ((1 - factor) * fill).astype(x.dtype)
      arguments = (replaced, *others)
    return next_call(*arguments, **keywords)

  with nn.intercept_methods(replace_input):
    outputs = segmenter.apply(variables, maps, condition, size, method=_decode)
  return *outputs, means


def _decode(
  net: segmenter_lib.Segmenter,
  maps: features_lib.Features,
  condition: Float[Array, 'B'] | None,
  size: tuple[int, int],
) -> tuple[Float[Array, 'B h w D'], Float[Array, 'B H W 3']]:
  features = {'encoder': maps, 'decoder': net.decoder(maps, condition, False)}
  outputs = net.apply_heads((_HEAD,), features, size)
  return net.head_map(_HEAD, features), outputs[_HEAD]


def find_decoder_inputs(
  segmenter: segmenter_lib.Segmenter,
  variables: types.Params,
  maps: features_lib.Features,
  condition: Any,
  size: tuple[int, int],
) -> tuple[tuple[str, ...], dict[str, int]]:
  """Finds the inputs of a decoder by tracing it; computes nothing.

  Args:
    segmenter: network with a head `noise`.
    variables: shapes of its parameters and batch statistics.
    maps: shapes of the maps of the encoder.
    condition: shape of the noise levels, for a conditional decoder.
    size: height and width of the images.

  Returns:
    Labels of the encoder's maps that the decoder reads, the deepest first, and
    channels of the maps that blocks get as their first argument, by the name of
    the block, in order.
  """
  blocks: dict[str, int] = {}

  def record(next_call, arguments, keywords, context):
    path = context.module.path
    is_block = path[:1] == ('decoder',) and len(path) == 2
    if is_block and arguments and getattr(arguments[0], 'ndim', 0) == 4:
      blocks[path[1]] = arguments[0].shape[-1]
    return next_call(*arguments, **keywords)

  def decode(arrays, variables, condition):
    given = zip(maps.maps, arrays, strict=True)
    replaced = tuple(each.replace(array=array) for each, array in given)
    return segmenter.apply(
      variables,
      features_lib.Features(replaced),
      condition,
      size,
      method=_decode,
    )

  arrays = [each.array for each in maps.maps]
  with nn.intercept_methods(record):
    jaxpr = jax.make_jaxpr(decode)(arrays, variables, condition).jaxpr
  used = {id(variable) for each in jaxpr.eqns for variable in each.invars}
  labels = [
    label
    for label, variable in zip(
      encoder_map_labels(maps), jaxpr.invars, strict=False
    )
    if id(variable) in used
  ]
  return tuple(dict.fromkeys(reversed(labels))), blocks


def sample_cells(
  height: int, width: int, num_cells: int, seed: int = 0
) -> Int[np.ndarray, 'P 2']:
  """Draws rows and columns of different cells of a map, in random order.

  Args:
    height: rows of the map.
    width: columns of the map.
    num_cells: number of cells; all of them if there are no more.
    seed: seed of the draw.
  """
  order = np.random.default_rng(seed).permutation(height * width)[:num_cells]
  return np.stack(np.divmod(order, width), axis=1)


def gather_head_inputs(
  x: Float[Array, 'B h w D'], cells: Int[np.ndarray, 'P 2'], kernel: int
) -> Float[Array, 'B P D_in']:
  """Gathers what a convolution reads for some cells, with zeros beyond edges.

  Args:
    x: map that is convolved.
    cells: rows and columns of the cells.
    kernel: height and width of the convolution; odd.
  """
  reach = kernel // 2
  x = jnp.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
  parts = [
    x[:, cells[:, 0] + i, cells[:, 1] + j]
    for i in range(kernel)
    for j in range(kernel)
  ]
  return jnp.concatenate(parts, axis=-1)


def gather_cell_pixels(
  x: Shaped[Array, 'B H W C'], cells: Int[np.ndarray, 'P 2'], factor: int
) -> Shaped[Array, 'B P D']:
  """Gathers the values of the factor² pixels of some cells."""
  return resize.space_to_depth(x, factor)[:, cells[:, 0], cells[:, 1]]


def refitted_loss(
  inputs: Float[np.ndarray, 'N D'],
  errors: Float[np.ndarray, 'N D_out'],
  targets: Float[np.ndarray, 'N D_out'],
  ridges: Sequence[float] = _RIDGES,
) -> float:
  """Computes the mean square error with the last layer refitted.

  Ridge regression with a bias, in closed form and float64, of the targets and,
  as a correction of the trained layer, of its errors: (X'X + λI)⁻¹ X'Y, where λ
  is a ridge times the mean of the diagonal of X'X. Each half of the rows is
  predicted by the regression of the other half, so that nothing is gained by
  fitting noise. The result is the least of all losses, and of that as trained.

  Args:
    inputs: what the layer reads, by row, in random order.
    errors: target minus prediction, by row.
    targets: targets, by row.
    ridges: strengths of the penalty, relative to the inputs.
  """
  x = np.float64(inputs)
  x = np.hstack([x - x.mean(axis=0), np.ones((len(x), 1))])
  y = np.float64(np.hstack([errors, targets]))
  halves = [(x[i::2], y[i::2]) for i in (0, 1)]
  sums = [(a.T @ a, a.T @ b, np.sum(b**2, axis=0)) for a, b in halves]
  totals = [np.sum(np.float64(errors) ** 2)]
  for ridge in ridges:
    total = 0.0
    for (square, product, _), (other_square, other_product, other) in (
      sums,
      sums[::-1],
    ):
      penalty = np.full(len(square), ridge * np.mean(np.diag(square)[:-1]))
      penalty = np.maximum(penalty, 1e-12)
      penalty[-1] = 0.0
      weights = np.linalg.solve(square + np.diag(penalty), product)
      total += other + np.sum(
        weights * (other_square @ weights - 2 * other_product), axis=0
      )
    totals += [*total.reshape(2, -1).sum(axis=1)]
  return float(min(totals) / errors.size)


def constant_loss(targets: Float[np.ndarray, 'N D']) -> float:
  """Computes the loss of a layer whose inputs say nothing, refitted.

  Args:
    targets: targets, by row.
  """
  return refitted_loss(np.zeros((len(targets), 1)), targets, targets)


def lost_share(loss: float, intact: float, constant: float) -> float:
  """Computes the share of what was learned that an ablation loses.

  0 where the loss stays, 1 where it becomes that of a constant; NaN where
  nothing was learned, so that nothing can be lost.

  >>> lost_share(0.75, intact=0.5, constant=1.0)
  0.5

  Args:
    loss: loss of the ablation.
    intact: loss without ablation.
    constant: loss of the best constant.
  """
  if constant - intact < _LEAST_GAIN * constant:
    return float('nan')
  return (loss - intact) / (constant - intact)


def relative_change(before: types.Params, after: types.Params) -> float:
  """Computes the norm of a change of parameters over that of the old ones.

  Args:
    before: tree of arrays.
    after: the same tree later.
  """

  def norm(tree) -> float:
    squares = [np.sum(np.float64(x) ** 2) for x in jax.tree.leaves(tree)]
    return float(np.sqrt(sum(squares)))

  change = jax.tree.map(lambda a, b: np.float64(b) - a, before, after)
  return norm(change) / max(norm(before), 1e-12)
