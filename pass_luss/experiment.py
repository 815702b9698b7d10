"""The fields of a PASS config."""

import dataclasses
from typing import Literal

from pass_luss.protocols.protocol_options import DistanceOptions
from pass_luss.pseudo_labels.label_options import ClusterOptions, LabelOptions
from pass_luss.stages.attend import AttendOptions
from pass_luss.stages.classify import ClassifyOptions
from pass_luss.stages.cluster_images import ClusterImagesOptions
from pass_luss.stages.cluster_masks import (
  ClusterMasksOptions,
  SegmentMasksOptions,
)
from pass_luss.stages.finetune import FinetuneOptions
from pass_luss.stages.frozen_distance import FrozenDistanceOptions
from pass_luss.stages.frozen_kmeans import FrozenKmeansOptions
from pass_luss.stages.frozen_knn import FrozenKnnOptions
from pass_luss.stages.represent import RepresentOptions
from pass_luss.stages.represent_masks import RepresentMasksOptions
from pass_luss.stages.represent_pixels import RepresentPixelsOptions
from pass_luss.stages.salient_masks import SalientMasksOptions
from pass_luss.stages.segment import SegmentOnOptions, SegmentOptions
from pass_luss.stages.segment_cam import LabelCamOptions, SegmentCamOptions
from pass_luss.stages.segment_pixels import SegmentPixelsOptions
from pass_luss.stages.subdivide import SubdivideOptions
from segcore.experiment import data as data_lib
from segcore.experiment import experiment_fields


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment(experiment_fields.Experiment):
  """A whole PASS config; of stages that do not run, blocks may be None.

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
    segment_on: label maps of either network on another data set.
    cluster_images: clusters of images by any encoder, as image-level labels.
    classify: classifier, or SEAM, trained on image-level labels.
    subdivide1: sub-categories of the first round of SC-CAM.
    classify1: first round of SC-CAM.
    subdivide2: sub-categories of the second round.
    classify2: second round.
    subdivide3: sub-categories of the third round.
    classify3: third round.
    segment_cam: label maps of class activation maps.
    label_cam: label maps of the training images, whose classes are given.
    retrain: training on the label maps of `label_cam`.
    segment_retrained: label maps of the network trained on these.
    represent_pixels: training on clusters of pixels, MDC or PiCIE.
    segment_pixels: label maps of clusters of pixels.
    salient_masks: masks of the salient objects of the training images.
    represent_masks: MaskContrast on these masks.
    cluster_masks: clusters of images by the descriptors of their masks.
    segment_masks: label maps of saliency and of these clusters.
    frozen_knn: dense nearest neighbors of any encoder, without training.
    frozen_distance: distance matching of any encoder.
    frozen_kmeans: k-means segments of any encoder.
  """

  program: Literal['pass_luss.main']
  images: data_lib.Images | None = None
  represent: RepresentOptions | None = None
  distance: DistanceOptions = DistanceOptions()
  attend: AttendOptions | None = None
  cluster: ClusterOptions = ClusterOptions()
  label: LabelOptions = LabelOptions()
  finetune: FinetuneOptions | None = None
  segment: SegmentOptions = SegmentOptions()
  semi: FinetuneOptions | None = None
  segment_semi: SegmentOptions = SegmentOptions()
  segment_on: SegmentOnOptions | None = None
  cluster_images: ClusterImagesOptions | None = None
  classify: ClassifyOptions | None = None
  subdivide1: SubdivideOptions = SubdivideOptions()
  classify1: ClassifyOptions | None = None
  subdivide2: SubdivideOptions = SubdivideOptions()
  classify2: ClassifyOptions | None = None
  subdivide3: SubdivideOptions = SubdivideOptions()
  classify3: ClassifyOptions | None = None
  segment_cam: SegmentCamOptions = SegmentCamOptions()
  label_cam: LabelCamOptions = LabelCamOptions()
  retrain: FinetuneOptions | None = None
  segment_retrained: SegmentOptions = SegmentOptions()
  represent_pixels: RepresentPixelsOptions | None = None
  segment_pixels: SegmentPixelsOptions = SegmentPixelsOptions()
  salient_masks: SalientMasksOptions = SalientMasksOptions()
  represent_masks: RepresentMasksOptions | None = None
  cluster_masks: ClusterMasksOptions = ClusterMasksOptions()
  segment_masks: SegmentMasksOptions = SegmentMasksOptions()
  frozen_knn: FrozenKnnOptions | None = None
  frozen_distance: FrozenDistanceOptions | None = None
  frozen_kmeans: FrozenKmeansOptions | None = None

  def __post_init__(self):
    self._require_blocks()
    self._check_attention()
    unsupervised, semi = (x and x.split for x in (self.finetune, self.semi))
    if unsupervised or semi == '':
      raise ValueError(
        "expected finetune.split='' for pseudo-labels and a split with masks "
        f'in semi.split, got finetune.split={unsupervised!r} and '
        f'semi.split={semi!r}'
      )

  def _check_attention(self) -> None:
    """Raises ValueError unless attention has a projection and prototypes."""
    if 'attend' not in self.stages:
      return
    is_fresh, clusters = (
      self.attend.fresh_projection,
      self.represent.learn.clusters,
    )
    if not clusters and not is_fresh:
      raise ValueError(
        "stages: 'attend' needs represent.learn.clusters, got None; or "
        'attend.fresh_projection=True'
      )
    if clusters and is_fresh:
      raise ValueError(
        'attend.fresh_projection: expected False, as represent.learn.clusters '
        'trains a projection, got True'
      )

  def _require_blocks(self) -> None:
    """Raises ValueError if stages read blocks that are None."""
    if all(name.startswith('frozen_') for name in self.stages):
      return
    needed = 'images', 'represent', 'attend', 'finetune', 'semi'
    others = 'segment_cam', 'represent_pixels', 'represent_masks'
    if {*others} & {*self.stages}:
      run = 'represent', 'represent_pixels', 'represent_masks'
      needed = 'images', *(name for name in run if name in self.stages)
    missing = [name for name in needed if getattr(self, name) is None]
    if missing:
      raise ValueError(
        f'{missing[0]}: expected a block, as {self.stages} are among stages, '
        'got None'
      )
