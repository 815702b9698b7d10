"""Batches of images for passes over all of them, outside of the steps."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping

from jax.sharding import Mesh
from jaxtyping import Array

from input_pipeline import loader as loader_lib
from segcore.distributed import sharding
from segcore.train import workspace as workspace_lib


@dataclasses.dataclass(frozen=True, eq=False)
class ImageBatches:
  """Reads the images of a stream in random orders.

  Attributes:
    stream: the images.
    batch_size: global number of images of a batch.
    mesh: the devices.
    reading: threads and worker processes of the input pipeline.
    workspace: workspace of the stage.
  """

  stream: loader_lib.Stream
  batch_size: int
  mesh: Mesh
  reading: loader_lib.ReadOptions
  workspace: workspace_lib.Workspace

  @property
  def num_images(self) -> int:
    """Returns the number of images."""
    return len(self.stream.records)

  @property
  def num_whole(self) -> int:
    """Returns the number of batches without the last, partial one, at least 1.

    A partial batch would have other batch statistics.
    """
    return max(self.num_images // self.batch_size, 1)

  def read(self, count: int, seed: int) -> Iterator[Mapping[str, Array]]:
    """Yields the first batches of the images in a random order.

    Args:
      count: number of batches.
      seed: seed of the order.

    Raises:
      Preempted: the machine asked to stop; the last checkpoint is kept.
    """
    loader = loader_lib.Loader(
      {'': self.stream}, self.batch_size, seed, self.reading
    )
    with loader.start(0) as batches:
      for batch in loader_lib.prefetch_batches(
        itertools.islice(batches, count), sharding.make_batch_sharder(self.mesh)
      ):
        yield batch
        if self.workspace.preemption.reached():
          raise workspace_lib.Preempted(
            f'{self.workspace.directory} keeps its last checkpoint'
          )
