"""Stages that train, and one between them that does not."""

import dataclasses

import numpy as np

from input_pipeline import transforms
from segcore.eval import evaluator as evaluator_lib
from segcore.eval import inference
from segcore.experiment import stage
from segcore.train import train_state
from segcore.weights import load
from tests.support import fake_data, fake_network, meshes
from tests.support import fake_methods as fakes


@dataclasses.dataclass(frozen=True)
class ClusterLabels:
  """Gives every pixel the cluster of its image."""

  clusters: dict[str, int]

  def __call__(self, example, rng):
    del rng
    cluster = self.clusters[example['id'].decode()]
    label = np.full(example['image'].shape[:2], cluster, np.int16)
    return {**example, 'label': label}


class Experiment:
  """Views, then clusters of their embeddings, then two streams.

  Attributes:
    log: names of the stages that began.
    breaks: a stage that is interrupted when half of its output is written.
  """

  def __init__(self, breaks=''):
    self.log = []
    self.breaks = breaks
    self.mesh = meshes.mesh_of()
    self.split = fake_data.coordinate_split(10)

  def run(self, workdir, **options):
    stage.run_stages(
      [
        stage.Stage('represent', {}, self.represent),
        stage.Stage('cluster', {'k': 4}, self.cluster, ('represent',)),
        stage.Stage('segment', {}, self.segment, ('represent', 'cluster')),
      ],
      workdir,
      **options,
    )

  def represent(self, place):
    self.log.append('represent')
    fakes.train('multi_view', place.directory, self.mesh)
    return [place.directory / 'checkpoints']

  def cluster(self, place):
    self.log.append('cluster')
    result = load.read_weight_variables(place.needed['represent'])
    predictions = evaluator_lib.Predictions(
      split=self.split,
      predictor=inference.ImageScores(fakes.multi_view(), fake_network.STRIDE),
      batch_size=8,
      mesh=self.mesh,
    )
    pairs = predictions(train_state.inference_train_state(result, self.mesh))
    rows = {example['id'].decode(): row for row, example in pairs}
    output = place.directory / 'clusters.npz'
    if self.breaks == 'cluster':
      output.write_bytes(b'half')
      raise KeyboardInterrupt
    ids = sorted(rows)
    centers, nearest = k_means(np.stack([rows[i] for i in ids]), 4)
    np.savez(output, ids=ids, nearest=nearest, centers=centers)
    return [output]

  def segment(self, place):
    self.log.append('segment')
    with np.load(place.needed['cluster'] / 'clusters.npz') as file:
      clusters = dict(zip(file['ids'], map(int, file['nearest']), strict=True))
    decode = transforms.Decode(fake_data.NUM_CLASSES)
    labels = transforms.Compose((decode, ClusterLabels(clusters)))
    self.batches = fake_data.make_two_stream_loader(
      self.split, labels, self.split
    )
    self.loaded = load.load_weight_parts(
      place.needed['represent'],
      ('encoder',),
      fakes.two_stream().segmenter,
      (1, 16, 16, 3),
    )
    self.state = fakes.train(
      'two_stream',
      place.directory,
      self.mesh,
      batches=self.batches,
      loaded=self.loaded,
    )
    return [place.directory / 'checkpoints']


def k_means(rows, k):
  """Returns centers, begun at the first rows, and the nearest of each row."""
  centers = rows[:k]
  for _ in range(5):
    nearest = np.argmin(np.square(rows[:, None] - centers).sum(axis=-1), axis=1)
    centers = np.stack(
      [
        rows[nearest == i].mean(axis=0) if np.any(nearest == i) else centers[i]
        for i in range(k)
      ]
    )
  return centers, nearest
