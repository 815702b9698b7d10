"""Report of which parts of a decoder learn from denoising."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import UInt8

from ddep import ablation
from ddep import noise as noise_lib
from input_pipeline import batch as batch_lib
from runtime import files, json_files, progress
from segcore.distributed import sharding
from segcore.eval import bar_chart, panels
from segcore.models import segmenter as segmenter_lib
from segcore.train import tensorboard, train_state
from segcore.train import update as update_lib
from segcore.train import workspace as workspace_lib

# Cells, over all images, with which the last layer is refitted.
_NUM_CELLS = 16_384
# A block that loses less with the mean of its input does not use deeper ones.
_UNUSED = 0.01
# Headings of the groups of metrics, by the end of their names.
_HEADINGS = {
  'zeroed': 'lost where an input is zeroed',
  'averaged': "lost where a block's input is its mean",
  'alone': 'lost where all other maps of the encoder are zeroed',
  'changed': 'change of the parameters',
}


@dataclasses.dataclass(frozen=True)
class DecoderReport:
  """Losses of ablations of a decoder, and how far its blocks have changed.

  Attributes:
    loss: denoising loss of the network as trained.
    constant: loss of the best constant prediction.
    losses: loss of each ablation with the last layer refitted, by the names of
      `ablation.plan_ablations`.
    changes: relative change of each block's parameters, in the order of the
      blocks.
  """

  loss: float
  constant: float
  losses: Mapping[str, float]
  changes: Mapping[str, float]

  @property
  def lost(self) -> dict[str, float]:
    """Returns the share of what was learned that each ablation loses."""
    intact = self.losses['intact']
    return {
      name: ablation.lost_share(loss, intact, self.constant)
      for name, loss in self.losses.items()
      if name != 'intact'
    }

  @property
  def metrics(self) -> dict[str, float]:
    """Returns all numbers by name; shares are lost ones, in [0, 1]."""
    return {
      'loss': self.loss,
      'refitted_loss': self.losses['intact'],
      'constant_loss': self.constant,
      **self._shares,
    }

  @property
  def _shares(self) -> dict[str, float]:
    """Returns the lost shares and the changes."""
    changes = {f'{name}_changed': share for name, share in self.changes.items()}
    return self.lost | changes

  @property
  def groups(self) -> dict[str, dict[str, float]]:
    """Returns the shares as groups of bars, by heading."""
    groups: dict[str, dict[str, float]] = {}
    for name, share in self._shares.items():
      part, _, kind = name.rpartition('_')
      groups.setdefault(_HEADINGS[kind], {})[part.replace('_', ' ')] = share
    return groups

  def draw(self) -> UInt8[np.ndarray, 'height width 3']:
    """Draws the shares as bars."""
    return bar_chart.draw_bar_chart(self.groups)

  def write(
    self,
    workspace: workspace_lib.Workspace,
    split: str,
    num_images: int,
    step: int,
  ) -> list[files.Path]:
    """Writes results.json, a picture, and TensorBoard's scalars; on host 0.

    Args:
      workspace: workspace of the stage.
      split: name of the split of the images.
      num_images: number of the images.
      step: number of steps that were trained.

    Returns:
      The paths of the files.
    """
    entry = {'num_images': num_images, 'metrics': self.metrics}
    results = workspace.directory / 'results.json'
    json_files.write_json(
      results,
      {'step': step, 'digest': workspace.digest, 'splits': {split: entry}},
    )
    pictures = workspace.directory / 'pictures'
    pictures.mkdir(parents=True, exist_ok=True)
    picture = self.draw()
    if jax.process_index() == 0:
      panels.write_picture_png(pictures / 'decoder.png', picture)
    with tensorboard.open_training_tensorboard(
      workspace.directory / 'tensorboard', step
    ) as writer:
      writer.write_images(step, {f'{split}/decoder': picture[None]})
      writer.write_scalars(
        step,
        {
          f'{split}_decoder/{name}': value
          for name, value in self.metrics.items()
          if not math.isnan(value)
        },
      )
    return [results, pictures]

  def describe(self) -> list[str]:
    """Describes the shares in a table, and which blocks learn nothing."""
    kinds = tuple(_HEADINGS)
    rows: dict[str, dict[str, str]] = {}
    for name, share in self._shares.items():
      part, _, kind = name.rpartition('_')
      number = '-' if math.isnan(share) else f'{100 * share:.1f}'
      rows.setdefault(part.replace('_', ' '), {})[kind] = number
    width = max(map(len, rows), default=0)
    return [
      f'which parts of the decoder denoise: loss {self.loss:.4f}, '
      f'{self.losses["intact"]:.4f} with a refitted last layer, '
      f'{self.constant:.4f} of a constant',
      '  in percent of the difference, lost where an input is zeroed, is its '
      'mean, or is alone left; change of the parameters',
      f'  {"":{width}}' + ''.join(f'{kind:>9}' for kind in kinds),
      *(
        f'  {part:{width}}'
        + ''.join(f'{cells.get(kind, ""):>9}' for kind in kinds).rstrip()
        for part, cells in rows.items()
      ),
      *self._describe_unused(),
    ]

  def _describe_unused(self) -> list[str]:
    """Describes the blocks whose results later blocks make no use of."""
    names = [n for n in self.changes if f'{n}_averaged' in self.losses]
    unused = []
    for i, name in enumerate(names):
      if self.lost[f'{name}_averaged'] < _UNUSED:
        unused = names[:i]
    if not unused:
      return []
    return [
      f'  denoising does not train {", ".join(unused)}: less than '
      f'{_UNUSED:.0%} is lost without what is computed there '
      '(docs/methods/ddep.md, Which blocks learn?)'
    ]


@dataclasses.dataclass(frozen=True, eq=False)
class _Denoiser:
  """The two halves of a network that denoises, for one image at a time.

  Attributes:
    segmenter: network with a head `noise`.
    options: options of the noise.
    size: height and width of the images.
    num_cells: cells of the head's map that are sampled.
  """

  segmenter: segmenter_lib.Segmenter
  options: noise_lib.NoiseOptions
  size: tuple[int, int]
  num_cells: int

  def encode(self, variables, image, key):
    """Encodes a noisy image: its maps, condition and prediction target."""
    clean = batch_lib.batch_images_to_symmetric(image[None])
    gamma = noise_lib.sample_noise_gamma(key[None], self.options)
    eps = noise_lib.sample_noise(key[None], clean.shape)
    noisy = noise_lib.corrupt_with_noise(clean, eps, gamma, self.options)
    maps = self.segmenter.apply(
      variables, noisy, method='features', decode=False
    )
    target = noise_lib.denoising_target(clean, eps, gamma, self.options)
    condition = gamma if self.segmenter.conditional else None
    return maps['encoder'], condition, target

  def encode_all(self, variables, images):
    """Encodes images one at a time, each with its own noise."""
    keys = update_lib.row_prng_keys(jax.random.PRNGKey(0), len(images))
    return jax.lax.map(
      lambda pair: self.encode(variables, *pair), (images, keys)
    )

  def decode_all(self, variables, encoded, factors: ablation.Factors):
    """Decodes the encoded images one at a time."""
    return jax.lax.map(
      lambda each: self.decode(variables, each, factors), encoded
    )

  def decode(self, variables, encoded, factors: ablation.Factors):
    """Computes inputs of the head, errors and targets of the sampled cells.

    The last result are the means of the blocks' inputs.
    """
    maps, condition, target = encoded
    read, predicted, means = ablation.decode_ablated(
      self.segmenter, variables, maps, condition, self.size, factors
    )
    cells = ablation.sample_cells(*read.shape[1:3], self.num_cells)
    kernel = self.segmenter.heads.modules['noise'].kernel
    inputs = ablation.gather_head_inputs(read, cells, kernel)
    factor = self.size[0] // read.shape[1]
    errors, targets = (
      ablation.gather_cell_pixels(x, cells, factor)
      for x in (target - predicted, target)
    )
    return inputs[0], errors[0], targets[0], means


def measure_decoder(
  segmenter: segmenter_lib.Segmenter,
  options: noise_lib.NoiseOptions,
  state: train_state.TrainState,
  initial: Mapping[str, Any],
  images: UInt8[np.ndarray, 'N H W 3'],
  mesh: Mesh,
) -> DecoderReport:
  """Measures which parts of a decoder predict the noise of images.

  The noise is that with which images are evaluated during training.

  Args:
    segmenter: network with a head `noise`, without `remat`.
    options: options of the noise.
    state: state after training.
    initial: parameters of the decoder before training.
    images: clean images.
    mesh: the devices; images are processed one at a time.
  """
  num_cells = -(-_NUM_CELLS // len(images))
  denoiser = _Denoiser(segmenter, options, images.shape[1:3], num_cells)
  variables = train_state.train_state_variables(state)

  jit = functools.partial(
    jax.jit, out_shardings=sharding.replicated_sharding(mesh)
  )
  encode, decode = jit(denoiser.encode_all), jit(denoiser.decode_all)
  encoded = encode(variables, images)
  maps, condition, _ = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), encoded
  )
  labels, blocks = ablation.find_decoder_inputs(
    segmenter, variables, maps, condition, denoiser.size
  )
  # The decoder reads no other maps, whatever their factors are.
  others = dict.fromkeys(ablation.encoder_map_labels(maps), np.float32(1))

  def decode_rows(factors):
    progress.record_activity('the ablations of the decoder')
    factors = factors._replace(maps=others | factors.maps)
    *rows, means = jax.device_get(decode(variables, encoded, factors))
    return [x.reshape(-1, x.shape[-1]) for x in rows], means

  zeros = {name: np.zeros(n, np.float32) for name, n in blocks.items()}
  (_, errors, targets), means = decode_rows(
    ablation.plan_ablations(labels, zeros)['intact']
  )
  means = {name: np.mean(x, axis=0) for name, x in means.items()}
  losses = {
    name: ablation.refitted_loss(*decode_rows(factors)[0])
    for name, factors in ablation.plan_ablations(labels, means).items()
  }
  after = jax.device_get(state.params['decoder'])
  changes = {
    name: ablation.relative_change(initial[name], after[name])
    for name in sorted(after, key=lambda name: (*blocks, name).index(name))
  }
  loss = float(np.mean(np.float64(errors) ** 2))
  return DecoderReport(loss, ablation.constant_loss(targets), losses, changes)
