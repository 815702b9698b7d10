"""Stage `frozen_distance`: distance matching by any encoder (§8.1.3 a)."""

import dataclasses
import functools

from etils import epy

from pass_luss.protocols import protocol_options
from pass_luss.stages import frozen
from runtime import console
from runtime.option_ranges import AtLeastOne, Positive

with epy.lazy_imports():
  from pass_luss.protocols import distance, frozen_encoder, segment


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrozenDistanceOptions(frozen.FrozenOptions):
  """Options of distance matching by any encoder.

  Attributes:
    neighbors: k of the kNN vote.
    temperature: temperature of the neighbors' weights, in units of cosine
      similarity.
    enlarge: factor by which maps are enlarged; PASS has 4 at stride 32.
  """

  neighbors: AtLeastOne = 10
  temperature: Positive[float] = 0.07
  enlarge: AtLeastOne = 1


class FrozenDistanceStage(frozen.FrozenStage):
  """Labels each cell by a vote of the nearest regions of the labeled images."""

  name = 'frozen_distance'
  options: FrozenDistanceOptions

  def describe_protocol(self, encoder: 'frozen_encoder.FrozenEncoder') -> str:
    """Describes the vote of the nearest regions."""
    block = self.options
    return (
      f'{block.neighbors} nearest regions, temperature {block.temperature}, '
      f'cells of {encoder.stride} pixels, enlarged {block.enlarge} times, '
      f'short side {encoder.short_side}'
    )

  def fit(self, inputs: frozen.FitInputs) -> frozen.FrozenFit:
    """Builds the bank of labeled regions that votes for the class of a cell."""
    block, context = self.options, self.context
    encoder, labeled = inputs.encoder, inputs.labeled
    maps = encoder.feature_maps(
      functools.partial(encoder.enlarged_features, factor=block.enlarge)
    )
    matcher = distance.DistanceMatcher(
      encoder.segmenter,
      encoder.state,
      protocol_options.DistanceOptions(
        neighbors=block.neighbors,
        temperature=block.temperature,
        batch_size=block.batch_size,
      ),
      context.mesh,
      context.operation.reading,
      maps,
      self.path,
    )
    bank = matcher.build_bank(labeled)
    console.print_line(f'{labeled.name}: {len(bank.labels)} regions')
    predictor = matcher.vote_predictor(bank)
    return frozen.FrozenFit(
      lambda split: segment.CellPredictions(
        split,
        predictor,
        block.batch_size,
        context.mesh,
        ('label',),
        context.operation.reading,
        log_progress=True,
      ),
      encoder.state,
      {'num_rows': len(bank.labels)},
    )
