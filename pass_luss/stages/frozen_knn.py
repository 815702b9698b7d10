"""Stage `frozen_knn`: dense nearest neighbors (spec comparators §8.1.3 c)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epy
from jaxtyping import Float, Float32

from input_pipeline import datasets, resampling
from pass_luss.stages import frozen
from runtime import console, errors
from runtime.option_ranges import AtLeastOne, NonNegative, Positive

with epy.lazy_imports():
  from pass_luss.protocols import (
    frozen_encoder,
    knn,
    patch_memory,
    patch_rows,
    patch_scores,
  )
  from segcore.distributed import sharding
  from segcore.eval import evaluator


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrozenKnnOptions(frozen.FrozenOptions):
  """Options of dense nearest neighbors.

  Attributes:
    neighbors: number of neighbors of a patch.
    temperature: temperature of their weights, in units of cosine similarity.
    rows_per_image: largest number of patches of an image in the memory, those
      of its rarest classes first; 0 for all.
    passes: number of random crops of each labeled image; 0 takes each whole
      image once, as it is.
    unlabeled: treatment of pixels without a class in the memory: 'class_0'
      counts them as class 0, as in the published evaluation; 'left_out' does
      not count them.
  """

  neighbors: AtLeastOne = 30
  temperature: Positive[float] = 0.02
  rows_per_image: NonNegative[int] = 0
  passes: NonNegative[int] = 0
  unlabeled: 'patch_memory.Unlabeled' = 'class_0'


class FrozenKnnStage(frozen.FrozenStage):
  """Labels each patch by a vote of the nearest labeled patches."""

  name = 'frozen_knn'
  options: FrozenKnnOptions

  def describe_protocol(self, encoder: 'frozen_encoder.FrozenEncoder') -> str:
    """Describes the vote of the nearest patches."""
    block = self.options
    text = (
      f'{block.neighbors} nearest patches, temperature {block.temperature}, '
      f'cells of {encoder.stride} pixels, short side {encoder.short_side}'
    )
    if block.rows_per_image:
      text += f', up to {block.rows_per_image} patches of an image'
    if block.passes:
      text += f', {block.passes} random crops of an image'
    return f'{text}; pixels without a class: {block.unlabeled}'

  def fit(self, inputs: frozen.FitInputs) -> frozen.FrozenFit:
    """Builds the memory of labeled patches that votes for each patch."""
    block, mesh = self.options, self.context.mesh
    encoder, memory = inputs.encoder, self._build_memory(inputs)
    console.print_line(f'memory: {len(memory.features):,} patches')
    if block.neighbors > len(memory.features):
      raise errors.UserError(
        f'{self.path}.neighbors: expected at most {len(memory.features)}, the '
        f'number of patches in the memory, got {block.neighbors}'
      )
    vote = knn.make_sharded_soft_vote(mesh, block.neighbors, block.temperature)
    replicated = sharding.replicated_sharding(mesh)
    fields = {
      field.name: getattr(encoder.state, field.name)
      for field in dataclasses.fields(encoder.state)
    }
    predictor = patch_scores.label_map_predictor(encoder, vote)
    return frozen.FrozenFit(
      lambda split: evaluator.Predictions(
        split,
        predictor,
        block.batch_size,
        mesh,
        ('label',),
        self.context.operation.reading,
        log_progress=True,
      ),
      patch_scores.FrozenKnnState(
        **fields, memory=jax.device_put(memory, replicated)
      ),
      {'num_rows': len(memory.features)},
    )

  def _build_memory(self, inputs: frozen.FitInputs) -> 'knn.SoftKnnBank':
    """Builds the memory of the labeled images, the same on all hosts."""
    encoder, labeled, workspace = inputs
    block, channels = self.options, encoder.channels
    side, _ = encoder.input_size((1, 1))
    width = channels + len(labeled.classes)
    self.check_rows(
      self._count_rows(encoder, labeled, side),
      block.neighbors,
      width,
      'neighbors',
    )
    extractor = self.row_extractor(encoder, workspace)
    parts = []
    for number in range(max(block.passes, 1)):
      function, augmentation = encoder.normalized_features, None
      if block.passes:
        function = patch_memory.with_patch_memory_jitter(
          function, block.seed + number
        )
        augmentation = evaluator.Augmentation(
          patch_memory.PatchMemoryCrop(side), (block.seed, number)
        )
      parts.append(
        extractor.extract(
          labeled,
          encoder.feature_maps(function),
          self._row_function(encoder, len(labeled.classes), number),
          width,
          name=f'pass{number}',
          augmentation=augmentation,
        )
      )
    rows = np.concatenate(parts)
    return knn.SoftKnnBank(
      np.ascontiguousarray(rows[:, :channels]),
      np.ascontiguousarray(rows[:, channels:]),
    )

  def _count_rows(
    self,
    encoder: 'frozen_encoder.FrozenEncoder',
    labeled: datasets.Split,
    side: int,
  ) -> int:
    """Counts the rows of the memory, if no patch is left out."""
    block = self.options
    sizes = [(side, side)] if block.passes else labeled.sizes()
    counts = [encoder.count_cells(size) for size in sizes]
    if block.rows_per_image:
      counts = [min(count, block.rows_per_image) for count in counts]
    return sum(counts) * (block.passes * len(labeled) if block.passes else 1)

  def _row_function(
    self,
    encoder: 'frozen_encoder.FrozenEncoder',
    num_classes: int,
    number: int,
  ) -> 'patch_rows.RowFunction':
    """Builds the function from an image to rows of features and labels."""
    block = self.options

    def rows_of(
      index: int, maps: Float[np.ndarray, 'h w D'], example: Mapping[str, Any]
    ) -> Float32[np.ndarray, 'n K']:
      size = tuple(n * encoder.stride for n in maps.shape[:2])
      labels = patch_memory.compute_patch_labels(
        resampling.resize_label_nearest(example['label'], size),
        encoder.stride,
        num_classes,
        block.unlabeled,
      ).reshape(-1, num_classes)
      rng = np.random.default_rng((block.seed, number, index))
      chosen = patch_memory.choose_patches(
        labels, block.rows_per_image, rng.random(len(labels))
      )
      rows = maps.reshape(-1, maps.shape[-1])
      return np.concatenate([rows[chosen], labels[chosen]], axis=1)

    return rows_of
