"""Stream of unlabeled images with two crops of each."""

import dataclasses

from input_pipeline import second_crops, transforms
from segcore.experiment import data as data_lib


@dataclasses.dataclass(frozen=True)
class TwoCropStream(data_lib.ImageStream):
  """Augmented images of a split, each of which is augmented twice."""

  @property
  def transform(self) -> transforms.Transform:
    """Builds the transform that decodes a record and augments it twice."""
    decode, *augment = super().transform.transforms
    return second_crops.SecondCrops(decode, transforms.Compose(tuple(augment)))
