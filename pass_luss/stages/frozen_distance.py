"""Stage `frozen_distance`: distance matching by any encoder (§8.1.3 a)."""

import dataclasses
import functools

from input_pipeline import datasets
from pass_luss.protocols import distance, frozen_encoder, segment
from pass_luss.stages import frozen
from runtime import console
from runtime import options as options_lib
from segcore.train import workspace as workspace_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrozenDistanceOptions(frozen.FrozenOptions):
  """Options of distance matching by any encoder.

  Attributes:
    neighbors: k of the kNN vote.
    temperature: temperature of the neighbors' weights, in units of cosine
      similarity.
    enlarge: factor by which maps are enlarged; PASS has 4 at stride 32.
  """

  neighbors: int = 10
  temperature: float = 0.07
  enlarge: int = 1

  def __post_init__(self):
    super().__post_init__()
    options_lib.check_options_in_range(self, 'neighbors', 'enlarge', least=1)
    options_lib.check_options_positive(self, 'temperature')


class FrozenDistanceStage(frozen.FrozenStage):
  """Labels cells by the nearest regions of the labeled images."""

  name = 'frozen_distance'
  options: FrozenDistanceOptions

  def describe_protocol(self, encoder: frozen_encoder.FrozenEncoder) -> str:
    """Describes the protocol in words, for results.json."""
    block = self.options
    return (
      f'{block.neighbors} nearest regions, temperature {block.temperature}, '
      f'cells of {encoder.stride} pixels, enlarged {block.enlarge} times, '
      f'short side {encoder.short_side}'
    )

  def fit(
    self,
    encoder: frozen_encoder.FrozenEncoder,
    labeled: datasets.Split,
    workspace: workspace_lib.Workspace,
  ) -> frozen.FrozenFit:
    """Builds the bank of regions, and the predictor by its nearest ones."""
    del workspace
    block, context = self.options, self.context
    maps = encoder.feature_maps(
      functools.partial(encoder.enlarged_features, factor=block.enlarge)
    )
    matcher = distance.DistanceMatcher(
      encoder.segmenter,
      encoder.state,
      distance.DistanceOptions(
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
