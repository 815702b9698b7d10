"""Streams of AEL: second labeled images, and pairs of unlabeled ones."""

import dataclasses
from typing import Any

from input_pipeline import datasets, paired_stream, samplers, transforms
from segcore.experiment import data as data_lib
from u2pl.semi import equalization


@dataclasses.dataclass(frozen=True)
class PairedImageStream(data_lib.ImageStream):
  """Augmented images of a split, every second one drawn by its class.

  Attributes:
    redraw_every: number of steps after which the classes that images show are
      read from the training state.
  """

  redraw_every: int = 0

  def open(self) -> paired_stream.PairedStream:
    """Returns the stream for the loader."""
    return paired_stream.PairedStream(
      self.split.records,
      self.transform,
      read_sampler=equalization.read_sampler,
      redraw_every=self.redraw_every,
    )


def equalized_streams(
  labeled: datasets.Split,
  streams: data_lib.Streams,
  scales: tuple[float, float],
  steps_per_epoch: int,
) -> dict[str, data_lib.ImageStream]:
  """Builds the streams in which AEL differs from other methods.

  Args:
    labeled: labeled images, each of them once.
    streams: streams 'labeled' and 'unlabeled' of other methods.
    scales: least and largest factor by which second labeled images are resized.
    steps_per_epoch: number of steps of an epoch.

  Returns:
    Streams 'pasted' and 'unlabeled'.
  """
  first, unlabeled = streams['labeled'], streams['unlabeled']
  return {
    'pasted': data_lib.ImageStream(
      labeled,
      _with_scales(first.crop, scales),
      first.flips,
      first.keep,
      samplers.UniformSampler(len(labeled)),
    ),
    'unlabeled': PairedImageStream(
      unlabeled.split,
      unlabeled.crop,
      unlabeled.flips,
      unlabeled.keep,
      redraw_every=steps_per_epoch,
    ),
  }


def _with_scales(crop: Any, scales: tuple[float, float]) -> Any:
  """Returns the crop with other scales, as often below as above 1.

  Crops that choose the visible part of an image have no scales.
  """
  if not isinstance(crop, transforms.RandomCrop):
    return crop
  return dataclasses.replace(crop, scales=scales, balanced=True)
