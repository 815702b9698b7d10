"""Measures what simple features tell of the classes of shapes/natural.

  python benchmarks/natural_data.py [--images=2000] [--tested=400] [--side=64]
      [--picture=FILE.png] [--clusters=RUN/cluster] [--out=FILE.json]

On images of one object: accuracy of the nearest class mean of mean colors, and
of the 20 nearest neighbors by mean color, by a histogram of colors, and by mean
features of the encoder of `pass_shapes.py` with random parameters. On scenes:
shares of the classes. The picture shows images of one object, a class in each
column, and scenes with their labels. The clusters of a run of
`pass_shapes.py:data=natural` are compared with classes and with backgrounds.
"""

import sys
import time
from collections.abc import Sequence

import command_line
import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image

from configs import networks
from input_pipeline import overlays
from input_pipeline.builders import natural, natural_classes, scene_sampling
from input_pipeline.sources import records
from pass_luss.pseudo_labels import cluster, clustering_scores
from runtime import files, options
from segcore.models import network as network_lib

NEIGHBORS = 20
NUM_CLASSES = len(natural_classes.KINDS)
BATCH_SIZE = 100
# Rows of the picture: images of one object, and scenes.
SINGLE_ROWS, SCENE_ROWS = 3, 2
SCENE_COLUMNS = 5


def color_features(samples: Sequence[records.Sample]) -> dict[str, np.ndarray]:
  """Computes mean colors and histograms of 64 colors, each [N, D]."""
  pairs = [(sample.pixels, sample.label > 0) for sample in samples]
  inside = np.stack([image[mask].mean(0) for image, mask in pairs])
  outside = np.stack([image[~mask].mean(0) for image, mask in pairs])
  bins = [image.reshape(-1, 3) // 64 @ [16, 4, 1] for image, _ in pairs]
  counts = np.stack([np.bincount(row, minlength=64) for row in bins])
  return {
    'mean color of the object': inside,
    'mean color of the background': outside,
    'both': np.concatenate([inside, outside], 1),
    'mean color of the image': np.stack([p.mean((0, 1)) for p, _ in pairs]),
    'histogram of colors': np.sqrt(counts),
  }


def random_features(samples: Sequence[records.Sample], seed: int) -> np.ndarray:
  """Computes mean features [N, D] of the encoder with random parameters."""
  encoder = options.build_named_options(
    network_lib.ENCODERS, networks.small_pass().encoder, 'encoder'
  )
  images = np.stack([sample.pixels for sample in samples])
  images = images.astype(np.float32) / 127.5 - 1
  variables = encoder.init(jax.random.PRNGKey(seed), jnp.asarray(images[:1]))

  @jax.jit
  def features(batch):
    return encoder.apply(variables, batch).deepest.array.mean((1, 2))

  parts = np.split(images, range(BATCH_SIZE, len(images), BATCH_SIZE))
  rows = np.concatenate([features(part) for part in parts])
  rows = (rows - rows.mean(0)) / (rows.std(0) + 1e-6)
  return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def nearest_mean_accuracy(
  rows: np.ndarray, classes: np.ndarray, tested: int
) -> float:
  """Computes the accuracy on the last rows of the class means of the others."""
  train = rows[:-tested], classes[:-tested]
  means = [train[0][train[1] == c].mean(0) for c in range(NUM_CLASSES)]
  distances = np.linalg.norm(rows[-tested:, None] - np.stack(means), axis=2)
  return float(np.mean(distances.argmin(1) == classes[-tested:]))


def neighbor_accuracy(
  rows: np.ndarray, classes: np.ndarray, tested: int
) -> float:
  """Computes the accuracy on the last rows of their nearest other rows."""
  train, test = rows[:-tested], rows[-tested:]
  # Squared distances up to a constant of each tested row.
  distances = np.sum(train**2, axis=1) - 2 * test @ train.T
  nearest = np.argsort(distances, axis=1)[:, :NEIGHBORS]
  votes = np.eye(NUM_CLASSES)[classes[:-tested][nearest]].sum(1)
  return float(np.mean(votes.argmax(1) == classes[-tested:]))


def class_shares(samples: Sequence[records.Sample]) -> dict[str, list[float]]:
  """Computes shares of images and of pixels, the background first."""
  pixels = [
    np.bincount(sample.label.ravel(), minlength=NUM_CLASSES + 1)
    for sample in samples
  ]
  shown = np.stack(pixels) > 0
  return {
    'images': shown.mean(0).tolist(),
    'pixels': (np.sum(pixels, axis=0) / np.sum(pixels)).tolist(),
  }


def write_picture(
  path: str, single: natural.NaturalConfig, scenes: natural.NaturalConfig
) -> None:
  """Writes images of one object, then scenes beside their labels, as PNG."""
  rows = []
  for row in range(SINGLE_ROWS):
    first = row * NUM_CLASSES
    samples = [single.draw_sample('val', first + i) for i in range(NUM_CLASSES)]
    rows.append([sample.pixels for sample in samples])
  palette = natural_classes.PALETTE
  for row in range(SCENE_ROWS):
    rows.append([])
    for i in range(SCENE_COLUMNS):
      sample = scenes.draw_sample('val', row * SCENE_COLUMNS + i)
      overlay = overlays.draw_outlined_overlay(
        sample.pixels, sample.label, palette
      )
      rows[-1] += [sample.pixels, overlay]
  picture = np.concatenate([np.concatenate(row, 1) for row in rows])
  # A palette of 256 colors makes the file small.
  PIL.Image.fromarray(picture).quantize(256).save(path, optimize=True)


def score_clusters(
  assignments: np.ndarray, single: natural.NaturalConfig
) -> dict[str, dict[str, float]]:
  """Compares clusters of the training images with classes and backgrounds.

  Args:
    assignments: cluster of each image, [N].
    single: images of one object.

  Raises:
    SystemExit: the clusters are not those of the images.
  """
  count = single.num_images['train']
  if len(assignments) != count:
    raise SystemExit(
      f'--clusters: expected a cluster of each of {count:,} images, got '
      f'{len(assignments):,}'
    )
  scenes = []
  for i in range(count):
    _, rng = scene_sampling.seed_scene(single.name, 'train', i)
    scenes.append(natural.make_natural_scene(single, rng, i))
  classes = np.array([scene.objects[0].class_id - 1 for scene in scenes])
  contexts = [*natural_classes.CONTEXTS]
  backgrounds = np.array([contexts.index(scene.context) for scene in scenes])
  score = clustering_scores.score_clustering
  counts = np.zeros((assignments.max() + 1, len(contexts)))
  np.add.at(counts, (assignments, backgrounds), 1)
  return {
    'clusters and classes': score(assignments, classes),
    'backgrounds and classes': score(backgrounds, classes),
    'clusters and backgrounds': score(assignments, backgrounds)
    | {'purity': float(counts.max(axis=1).sum() / len(assignments))},
  }


def measure(arguments) -> dict[str, object]:
  """Draws the images and measures them.

  Args:
    arguments: flags of the command line.
  """
  # Names seed the images, those of other sizes than 64 end with it.
  suffix = '' if arguments.side == 64 else f'_{arguments.side}'
  scenes, single = natural.natural_configs(arguments.side, suffix)
  if arguments.picture:
    write_picture(arguments.picture, single, scenes)
  if arguments.clusters:
    folder = files.parse_file_path(arguments.clusters, '--clusters')
    return score_clusters(cluster.read_cluster_assignments(folder), single)
  tested = arguments.tested
  start = time.process_time()
  samples = [single.draw_sample('train', i) for i in range(arguments.images)]
  samples += [single.draw_sample('val', i) for i in range(tested)]
  seconds = time.process_time() - start
  classes = np.array([sample.tags[0] - 1 for sample in samples])
  colors = color_features(samples)
  features = colors | {'random encoder': random_features(samples, seed=0)}
  drawn = [scenes.draw_sample('train', i) for i in range(arguments.images)]
  return {
    'images per CPU second': len(samples) / seconds,
    'nearest mean': {
      name: nearest_mean_accuracy(rows, classes, tested)
      for name, rows in colors.items()
    },
    'nearest neighbors': {
      name: neighbor_accuracy(rows, classes, tested)
      for name, rows in features.items()
    },
    'shares in scenes': class_shares(drawn),
  }


def main(argv: Sequence[str]) -> None:
  """Prints the measures, and writes them and the picture."""
  arguments = command_line.parse(
    argv, __doc__, images=2000, tested=400, side=64, picture='', clusters=''
  )
  results = measure(arguments)
  for name, value in results.items():
    print(f'{name}: {value}')
  command_line.write_results(arguments.out, results)


if __name__ == '__main__':
  main(sys.argv[1:])
