"""Predictions for a folder of images, from a finished run.

  python -m ddep.main --config=… --workdir=runs/roads \
    --stage=predict --images=photos --out=found

Writes `labels/NAME.png` (class ids, with the palette), `overlays/NAME.png`, and
with --probs `probs/NAME.npz`, by the protocol of the evaluation and at the size
of the images; `classes.txt` says what the ids mean.
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator, Sequence

import jax
import numpy as np
import PIL.Image
import tqdm
from jax.sharding import Mesh
from jaxtyping import Float, Int

from input_pipeline import datasets
from input_pipeline import loader as loader_lib
from runtime import console, errors, json_files
from segcore.eval import evaluator, inference, panels
from segcore.train import train_state

# Says that a folder holds predictions, which may be written over.
_MARK = 'classes.json'
# A palette PNG has room for so many colors.
_MOST_COLORS = 256


@dataclasses.dataclass(frozen=True)
class Request:
  """What is to be predicted.

  Attributes:
    images: folder, with subfolders.
    out: folder of the results.
    overlays: write images with their prediction laid over.
    probs: write the probability of each class.
  """

  images: pathlib.Path
  out: pathlib.Path
  overlays: bool = True
  probs: bool = False

  def __post_init__(self):
    images, out = self.images.resolve(), self.out.resolve()
    if images == out or images in out.parents:
      raise errors.UserError(
        f'--out: found {self.out}, which is inside of --images={self.images}: '
        'choose a folder outside of it'
      )
    if out.exists() and not (out / _MARK).exists() and any(out.iterdir()):
      # Masks and class lists of a data set have the names of our results.
      raise errors.UserError(
        f'--out: found {self.out}, which holds files that are no predictions: '
        'choose a new folder'
      )


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
  """A network that was trained.

  Attributes:
    state: its parameters.
    predictor: how it is applied.
    classes: name of each class id.
    palette: color of each class id.
    batch_size: global number of images.
    mesh: the devices.
    reading: threads.
  """

  state: train_state.TrainState
  predictor: inference.Labeler
  classes: tuple[str, ...]
  palette: tuple[tuple[int, int, int], ...]
  batch_size: int
  mesh: Mesh
  reading: loader_lib.ReadOptions = loader_lib.ReadOptions()


def run(model: Model, request: Request) -> None:
  """Predicts every image that can be read; lists the others.

  Raises:
    UserError: there is no image, the method has no probabilities, or the
      results cannot be written.
  """
  split, skipped = datasets.open_folder(
    request.images, model.classes, model.palette
  )
  for problem in skipped:
    console.log(f'skipped: {problem}')
  predictor = model.predictor
  if request.probs:
    if not isinstance(predictor, inference.LabelMaps):
      raise errors.UserError('--probs: this method tells the best class only')
    predictor = dataclasses.replace(predictor, output='probs')
  predictions = evaluator.Predictions(
    split=split,
    predictor=predictor,
    batch_size=model.batch_size,
    mesh=model.mesh,
    reading=model.reading,
  )
  with writing(request.out):
    _write_classes(request.out, model.classes, model.palette)
  bar = tqdm.tqdm(
    predictions(model.state),
    total=predictions.local_count(),
    unit='image',
    disable=jax.process_index() != 0,
  )
  for prediction, example in bar:
    with writing(request.out):
      _write(request, model, example, prediction)
  console.log(
    f'{len(split)} images predicted'
    + (f', {len(skipped)} skipped' if skipped else '')
    + f': {request.out}'
  )


@contextlib.contextmanager
def writing(out: pathlib.Path) -> Iterator[None]:
  """Says in one line that a folder cannot be written."""
  try:
    yield
  except OSError as error:
    raise errors.UserError(
      f'cannot write to {out} ({error.strerror or error}): free some space, or '
      'choose another --out'
    ) from error


def encode_label(
  label: Int[np.ndarray, 'H W'], palette: Sequence[tuple[int, int, int]]
) -> PIL.Image.Image:
  """A label map as a PNG: class ids with their colors, or 16-bit class ids."""
  if len(palette) > _MOST_COLORS:
    return PIL.Image.fromarray(label.astype(np.uint16))
  image = PIL.Image.fromarray(label.astype(np.uint8))
  image.putpalette(np.array(palette, np.uint8).tobytes())
  return image


def _write(
  request: Request, model: Model, example, prediction: np.ndarray
) -> None:
  name = example['id'].decode()

  def path(kind: str, suffix: str) -> pathlib.Path:
    # Not `with_suffix`: names may have dots.
    found = request.out / kind / f'{name}{suffix}'
    found.parent.mkdir(parents=True, exist_ok=True)
    return found

  label = prediction
  if request.probs:
    label = np.argmax(prediction, axis=-1)
    _write_probs(path('probs', '.npz'), prediction)
  encode_label(label, model.palette).save(path('labels', '.png'))
  if request.overlays:
    drawn = panels.draw_overlay(example['image'], label, model.palette)
    panels.write_png(path('overlays', '.png'), drawn)


def _write_probs(path: pathlib.Path, probs: Float[np.ndarray, 'H W C']) -> None:
  np.savez_compressed(path, probs=probs.astype(np.float16))


def _write_classes(
  out: pathlib.Path,
  classes: Sequence[str],
  palette: Sequence[tuple[int, int, int]],
) -> None:
  """The class list, in the form in which a folder of masks takes it."""
  out.mkdir(parents=True, exist_ok=True)
  lines = [
    '{} #{:02x}{:02x}{:02x}'.format(name, *color)
    for name, color in zip(classes, palette, strict=True)
  ]
  (out / 'classes.txt').write_text('\n'.join(lines) + '\n')
  json_files.write(out / _MARK, {'classes': classes, 'palette': palette})
