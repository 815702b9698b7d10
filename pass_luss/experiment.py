"""The fields of a PASS config."""

import dataclasses
from typing import Literal

from pass_luss.protocols.distance import DistanceOptions
from pass_luss.pseudo_labels.cluster import ClusterOptions
from pass_luss.pseudo_labels.labeler import LabelOptions
from pass_luss.stages.attend import AttendOptions
from pass_luss.stages.finetune import FinetuneOptions
from pass_luss.stages.represent import RepresentOptions
from pass_luss.stages.segment import SegmentOnOptions, SegmentOptions
from segcore.experiment import data as data_lib
from segcore.experiment import program as program_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment(program_lib.Experiment):
  """A whole PASS config.

  Attributes:
    images: data set that is clustered, labeled and segmented.
    represent: step 1, pretraining of the encoder on images alone.
    distance: protocol of the encoder, by nearest labeled regions.
    attend: step 2a, pixel attention.
    cluster: step 2b, centroids.
    label: step 2c, a pseudo-label map for each image.
    finetune: step 3, training on the pseudo-labels.
    segment: label maps of the fine-tuned network.
    semi: training on masks, the semi-supervised protocol.
    segment_semi: label maps of the network trained on masks.
    segment_on: label maps of either network on another data set; may be None.
  """

  program: Literal['pass_luss.main']
  images: data_lib.Images
  represent: RepresentOptions
  distance: DistanceOptions = DistanceOptions()
  attend: AttendOptions
  cluster: ClusterOptions = ClusterOptions()
  label: LabelOptions = LabelOptions()
  finetune: FinetuneOptions
  segment: SegmentOptions = SegmentOptions()
  semi: FinetuneOptions
  segment_semi: SegmentOptions = SegmentOptions()
  segment_on: SegmentOnOptions | None = None

  def __post_init__(self):
    if 'attend' in self.stages and not self.represent.learn.clusters:
      raise ValueError(
        "stages: 'attend' needs represent.learn.clusters, got None"
      )
    if bool(self.finetune.split) or not self.semi.split:
      raise ValueError(
        "expected finetune.split='' for pseudo-labels and a split with masks "
        f'in semi.split, got finetune.split={self.finetune.split!r} and '
        f'semi.split={self.semi.split!r}'
      )
