"""Predictions for a folder of images, from a finished run.

  python -m ddep.main --workdir=runs/roads \
    --stage=predict --images=photos --out=predictions

Writes `labels/NAME.png` (class ids, with the palette), `overlays/NAME.png`, and
with --probs `probs/NAME.npz`, by the protocol of the evaluation and at the size
of the images; `classes.txt` lists the class of each id.
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

from input_pipeline import image_folder, transforms
from input_pipeline import loader as loader_lib
from input_pipeline.sources import image_files
from runtime import console, errors, json_files, threads
from segcore.eval import evaluator, inference, panels
from segcore.train import train_state

# Marks a folder of predictions, which may be overwritten.
_MARKER = 'classes.json'
# Colors of a palette PNG.
_MAX_COLORS = 256


@dataclasses.dataclass(frozen=True)
class Request:
  """Options of a prediction.

  Attributes:
    images: folder of images; its subfolders are included.
    out: folder of the results.
    overlays: whether to write images blended with their predictions.
    probs: whether to write the probability of each class.
    max_megapixels: size above which images are skipped, in million pixels; 0
      for the limit of the training data.
  """

  images: pathlib.Path
  out: pathlib.Path
  overlays: bool = True
  probs: bool = False
  max_megapixels: int = 0

  def __post_init__(self):
    images, out = self.images.resolve(), self.out.resolve()
    if images == out or images in out.parents:
      raise errors.UserError(
        f'--out: expected a folder outside of --images={self.images}, got '
        f'{self.out}'
      )
    if out.exists() and not (out / _MARKER).exists() and any(out.iterdir()):
      # Masks and class lists of a data set have the names of our results.
      raise errors.UserError(
        '--out: expected a new folder or one of predictions, got '
        f'{self.out}, which holds other files'
      )


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
  """A trained network with all that prediction needs.

  Attributes:
    state: training state with the parameters.
    predictor: predictor that applies the network to images.
    classes: name of each class id.
    palette: RGB color of each class id.
    batch_size: global number of images.
    mesh: the devices.
    reading: number of threads that decode images.
    image_options: define the pixels of images, as in training.
  """

  state: train_state.TrainState
  predictor: inference.Labeler
  classes: tuple[str, ...]
  palette: tuple[tuple[int, int, int], ...]
  batch_size: int
  mesh: Mesh
  reading: loader_lib.ReadOptions = loader_lib.ReadOptions()
  image_options: image_files.ImageOptions = image_files.AS_STORED


def predict_images(model: Model, request: Request) -> None:
  """Predicts every image that can be read, and logs the others.

  Args:
    model: trained network and its data.
    request: images, output folder and options of the prediction.

  Raises:
    UserError: there is no image, the method has no probabilities, or the
      results cannot be written.
  """
  options = model.image_options
  if request.max_megapixels:
    options = dataclasses.replace(
      options, max_megapixels=request.max_megapixels
    )
  opened = image_folder.open_image_folder(
    request.images, model.classes, model.palette, options
  )
  split, skipped = opened.split, opened.skipped
  for warning in opened.warnings:
    console.print_line(f'warning: {warning}')
  for problem in skipped:
    console.print_line(f'skipped: {problem}')
  predictions = evaluator.Predictions(
    split=split,
    predictor=_choose_predictor(model, request),
    batch_size=model.batch_size,
    mesh=model.mesh,
    reading=model.reading,
  )
  with explaining_prediction_write_errors(request.out):
    _write_classes(request.out, model.classes, model.palette)

  def write(predicted: tuple[np.ndarray, transforms.Example]) -> None:
    prediction, example = predicted
    with explaining_prediction_write_errors(request.out):
      orientation = opened.orientations.get(example['id'].decode())
      _write(request, model, example, prediction, orientation)

  # In threads, while the devices compute; but probabilities of many classes
  # that wait to be written would fill the memory.
  write_all = map if request.probs else threads.map_in_threads
  bar = tqdm.tqdm(
    write_all(write, predictions(model.state)),
    total=predictions.local_count(),
    unit='image',
    disable=jax.process_index() != 0,
  )
  for _ in bar:
    pass
  console.print_line(
    f'{len(split)} images predicted'
    + (f', {len(skipped)} skipped' if skipped else '')
    + f': {request.out}'
  )


def _choose_predictor(model: Model, request: Request) -> inference.Predictor:
  """Returns the model's predictor, of probabilities if these are requested."""
  predictor = model.predictor
  if not request.probs:
    return predictor
  if not isinstance(predictor, inference.LabelMaps):
    raise errors.UserError(
      '--probs: expected a method with class probabilities, got one that '
      'predicts class ids alone: leave --probs out'
    )
  return dataclasses.replace(predictor, output='probs')


@contextlib.contextmanager
def explaining_prediction_write_errors(out: pathlib.Path) -> Iterator[None]:
  """Turns an OSError while writing to a folder into a UserError."""
  try:
    yield
  except OSError as error:
    raise errors.UserError(
      f'cannot write to {out} ({error.strerror or error}): free some space, or '
      'choose another --out'
    ) from error


def encode_predicted_label_map(
  label: Int[np.ndarray, 'H W'], palette: Sequence[tuple[int, int, int]]
) -> PIL.Image.Image:
  """Encodes a label map as a palette PNG, or as 16-bit gray if it is too long.

  Args:
    label: class ids.
    palette: RGB color of each class; more than 256 do not fit a palette PNG.
  """
  if len(palette) > _MAX_COLORS:
    return PIL.Image.fromarray(label.astype(np.uint16))
  image = PIL.Image.fromarray(label.astype(np.uint8))
  image.putpalette(np.array(palette, np.uint8).tobytes())
  return image


def _write(
  request: Request,
  model: Model,
  example,
  prediction: np.ndarray,
  orientation: int | None,
) -> None:
  """Writes the results of an image, turned back to the pixels of its file."""
  name, image = example['id'].decode(), example['image']
  if orientation is not None:
    prediction = image_files.turn_back_by_exif(prediction, orientation)
    image = image_files.turn_back_by_exif(image, orientation)

  def path(kind: str, suffix: str) -> pathlib.Path:
    # Not `with_suffix`: names may have dots.
    output = request.out / kind / f'{name}{suffix}'
    output.parent.mkdir(parents=True, exist_ok=True)
    return output

  label = prediction
  if request.probs:
    label = np.argmax(prediction, axis=-1)
    _write_probs(path('probs', '.npz'), prediction)
  encode_predicted_label_map(label, model.palette).save(path('labels', '.png'))
  if request.overlays:
    overlay = panels.draw_overlay_with_legend(
      image, label, model.classes, model.palette
    )
    panels.write_picture_png(path('overlays', '.png'), overlay)


def _write_probs(path: pathlib.Path, probs: Float[np.ndarray, 'H W C']) -> None:
  np.savez_compressed(path, probs=probs.astype(np.float16))


def _write_classes(
  out: pathlib.Path,
  classes: Sequence[str],
  palette: Sequence[tuple[int, int, int]],
) -> None:
  """Writes the class list, in the format that a data set of masks reads."""
  out.mkdir(parents=True, exist_ok=True)
  lines = [
    '{} #{:02x}{:02x}{:02x}'.format(name, *color)
    for name, color in zip(classes, palette, strict=True)
  ]
  (out / 'classes.txt').write_text('\n'.join(lines) + '\n')
  json_files.write_json(out / _MARKER, {'classes': classes, 'palette': palette})
