"""Drawn scenes of two discs with exact masks, in folders of many kinds."""

import numpy as np
import PIL.Image

from benchmarks import image_folders
from input_pipeline import datasets, prepare

WIDTH, HEIGHT = 48, 36
NAMES = tuple(f's{i:02}' for i in range(6))
COLORS = ((90, 100, 95), (210, 60, 50), (60, 80, 200))
# Of a class list: background, red, blue.
LIST_COLORS = ((0, 0, 0), (255, 0, 0), (0, 0, 255))
NAMED = 'background\nred\nblue\n'
COLORED = 'background 0,0,0\nred 255,0,0\nblue 0,0,255\n'
BLACK_WHITE = 'background 0,0,0\nobject 255,255,255\n'


def ids(i):
  """Returns the class ids of scene i: a red disc above, a blue one below."""
  rows, columns = np.mgrid[:HEIGHT, :WIDTH]
  out = np.zeros((HEIGHT, WIDTH), np.uint8)
  out[(rows - 9) ** 2 + (columns - 8 - 2 * i) ** 2 < 30] = 1
  out[(rows - 26) ** 2 + (columns - 38 + i) ** 2 < 40] = 2
  return out


def pixels(i):
  """Returns the image of scene i."""
  return np.array(COLORS, np.uint8)[ids(i)]


def count(class_id, names=NAMES):
  """Returns the pixels of a class in the scenes of these names."""
  return sum(int((ids(NAMES.index(n)) == class_id).sum()) for n in names)


COUNTS = [count(i) for i in range(3)]


encoded = image_folders.encoded


def palette_mask(values, colors):
  """Returns a palette image."""
  image = PIL.Image.fromarray(np.asarray(values, np.uint8), 'L')
  image.putpalette(np.array(colors, np.uint8).tobytes())
  return image


def write(
  source,
  image=lambda i: ('.png', encoded(pixels(i))),
  mask=lambda i: ('.png', encoded(ids(i))),
  classes=NAMED,
):
  """Writes images and masks, whose endings and bytes are functions of i."""
  for folder, make in (('images', image), ('masks', mask)):
    (source / folder).mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(NAMES):
      if made := make(i):
        (source / folder / f'{name}{made[0]}').write_bytes(made[1])
  (source / 'classes.txt').write_text(classes)
  return source


def check(source, **fields):
  """Checks a folder of `write`; returns the audit."""
  data_dir = str(source.parent / 'records')
  options = image_folders.data_options(source, **fields)
  return datasets.dataset_builder(options, data_dir).check()[0]


def counts(source, **fields):
  """Returns the pixels of each class of train."""
  return list(check(source, **fields).counts['train'].pixels)


def run_check(source, *arguments):
  """Runs the command line that checks a folder; returns the exit status."""
  return prepare.main(
    [
      'image_mask_folder',
      f'--source={source}',
      f'--data_dir={source.parent / "records"}',
      *('--images=images', '--masks=masks', '--classes=classes.txt'),
      '--check',
      *arguments,
    ]
  )
