"""Compares prediction and evaluation of images of many sizes with torch.

  python benchmarks/predict.py [--images=60] [--sizes=20] [--side=256]
      [--short_side=0] [--threads=2] [--rounds=3] [--out=FILE.json]

A folder of JPEGs with masks, whose sides vary by half around `--side`, is
predicted as by `--stage=predict` and evaluated, by the network of the configs
of own data (EfficientNet-Lite0 with a U-Net) with random values. torch has a
plain loop over the images: read with cv2, pad to the stride, forward pass,
upsampling, argmax, and write the label map or count it. With `--short_side`
both first resize each image, as the configs of own data do. Both run in turns.
The first round is reported by itself, with the number of programs that it
compiles. Without torch, this code alone is timed.
"""

import os
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

# Before OpenMP is loaded: by default its idle threads spin.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

import command_line
import compilations
import cv2
import image_folders
import jax
import numpy as np

from configs import networks
from input_pipeline import datasets
from segcore.distributed import sharding
from segcore.eval import evaluator, inference, metrics, predict, protocols
from segcore.models import heads, network, network_options
from segcore.train import method, train_state

try:
  import torch
  import torch_efficientnet
except ImportError:
  torch = None

STRIDE = 32
# Of images that are not resized first, as in the configs of own data.
SIZE_MULTIPLE = 64
BATCH_SIZE = 8


def make_folder(folder: pathlib.Path, count: int, num_sizes: int, side: int):
  """Writes images with masks of different sizes."""
  image_folders.create(folder)
  rng = np.random.default_rng(0)
  sizes = rng.integers(side // 2, side * 3 // 2, (num_sizes, 2))
  for i in range(count):
    size = tuple(int(n) for n in sizes[i % num_sizes][::-1])
    mask = cv2.resize(image_folders.draw_mask(rng), size, interpolation=0)
    image = np.repeat(12 * mask[..., None], 3, axis=2)
    image += rng.integers(0, 12, image.shape, np.uint8)
    image_folders.write_image(folder / 'images' / f'{i:04}.jpg', image)
    cv2.imwrite(str(folder / 'masks' / f'{i:04}.png'), mask)


def make_model(mesh: Any, short_side: int) -> predict.Model:
  """Builds the network with random values."""
  segmenter = network.build_network(
    network_options.NetworkOptions(
      **networks.named('efficientnet+unet').to_dict()
    ),
    {'logits': heads.ConvHead(image_folders.CLASSES, stride=4)},
    'network',
  )
  images = np.zeros((1, STRIDE, STRIDE, 3), np.float32)
  variables = jax.jit(segmenter.init)(jax.random.PRNGKey(0), images)
  classes = tuple(f'class{i}' for i in range(image_folders.CLASSES))
  return predict.Model(
    state=train_state.inference_train_state(variables, mesh),
    predictor=inference.LabelMaps(
      method.HeadScores(segmenter),
      image_folders.CLASSES,
      protocols.ProtocolOptions(
        size_multiple=SIZE_MULTIPLE, short_side=short_side
      ),
      segmenter.size_multiple,
    ),
    classes=classes,
    palette=tuple((i, i, i) for i in range(len(classes))),
    batch_size=BATCH_SIZE,
    mesh=mesh,
  )


def in_torch(
  folder: pathlib.Path, out: pathlib.Path, short_side: int
) -> dict[str, Callable[[], Any]]:
  """Builds the loops over the images: prediction, evaluation."""
  model = torch_efficientnet.Network(image_folders.CLASSES, None)
  model = model.to(memory_format=torch.channels_last).eval()
  out.mkdir()

  def labels(path: pathlib.Path) -> np.ndarray:
    image = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    size = image.shape[:2]
    if short_side:
      width, height = (short_side * n // min(size) for n in size[::-1])
      image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    height, width = image.shape[:2]
    image = cv2.copyMakeBorder(
      image, 0, -height % STRIDE, 0, -width % STRIDE, cv2.BORDER_REFLECT
    )
    x = torch.from_numpy(image.astype(np.float32) / 127.5 - 1)[None]
    with torch.inference_mode():
      logits = torch.nn.functional.interpolate(
        model(x.permute(0, 3, 1, 2)), image.shape[:2], mode='bilinear'
      )
      logits = logits[:, :, :height, :width]
      if short_side:
        logits = torch.nn.functional.interpolate(logits, size, mode='bilinear')
      return logits[0].argmax(0).to(torch.uint8).numpy()

  paths = sorted((folder / 'images').iterdir())

  def predict_all() -> None:
    for path in paths:
      cv2.imwrite(str(out / f'{path.stem}.png'), labels(path))

  def evaluate() -> None:
    size = image_folders.CLASSES
    counts = np.zeros(size**2, np.int64)
    for path in paths:
      mask = cv2.imread(str(folder / 'masks' / f'{path.stem}.png'), -1)
      cells = size * mask.astype(np.int64) + labels(path)
      counts += np.bincount(cells.ravel(), minlength=size**2)

  return {'prediction': predict_all, 'evaluation': evaluate}


def in_jax(
  folder: pathlib.Path, out: pathlib.Path, short_side: int
) -> tuple[dict[str, Callable[[], Any]], int]:
  """Builds prediction and evaluation; returns the number of groups, too."""
  model = make_model(sharding.make_mesh(), short_side)
  request = predict.Request(folder / 'images', out, overlays=False)
  split = datasets.open_dataset_split(
    image_folders.data_options(folder), 'train', str(folder / 'records')
  )
  predictions = evaluator.Predictions(
    split, model.predictor, BATCH_SIZE, model.mesh, ('label',)
  )
  evaluate = evaluator.Evaluator(
    predictions,
    (metrics.ConfusionMatrix.empty(image_folders.CLASSES),),
    'label',
  )
  groups = {model.predictor.group(size) for size in split.sizes()}
  return {
    'prediction': lambda: predict.predict_images(model, request),
    'evaluation': lambda: evaluate(model.state),
  }, len(groups)


def main(argv: Sequence[str]) -> None:
  """Runs the comparison and prints it."""
  arguments = command_line.parse_on_cores(
    argv, __doc__, images=60, sizes=20, side=256, short_side=0, rounds=3
  )
  cv2.setNumThreads(0)
  if torch:
    torch.set_num_threads(arguments.threads)
  results: dict[str, Any] = {'arguments': vars(arguments)}
  lines = []
  with tempfile.TemporaryDirectory() as temporary:
    folder = pathlib.Path(temporary) / 'photographs'
    make_folder(folder, arguments.images, arguments.sizes, arguments.side)
    out, side = pathlib.Path(temporary), arguments.short_side
    own, groups = in_jax(folder, out / 'jax', side)
    others = {}
    if torch:
      others = in_torch(folder, out / 'torch', side)
    compiled: list[float] = []
    compilations.listen_to_compilations(compiled.append)
    start = time.perf_counter()
    own['prediction']()
    results['first'] = time.perf_counter() - start
    results['groups'], results['programs'] = groups, len(compiled)
    print(
      f'the first prediction, of {arguments.images} images in {groups} groups '
      f'of sizes: {results["first"]:.1f} s, of which {sum(compiled):.1f} s for '
      f'compiling {len(compiled)} programs'
    )
    for name, run in own.items():
      sides = {'jax': run}
      if torch:
        sides['torch'] = others[name]
      seconds = command_line.alternate(sides, arguments.rounds)
      rate = arguments.images / statistics.median(seconds['jax'])
      given = name, f'{rate:.1f} images/s'
      line = command_line.Line(*given)
      if torch:
        line = command_line.Line.of_rounds(
          *given, 'torch, image by image', seconds['jax'], seconds['torch']
        )
      results[name] = seconds
      lines.append(line)
      share = f', {line.share:.2f} of the time of torch' if torch else ''
      print(f'{name}: {line.value}{share}', flush=True)
  command_line.write_results(arguments.out, results, lines)


if __name__ == '__main__':
  main(sys.argv[1:])
