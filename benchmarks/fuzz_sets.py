"""Small data sets, in folders and in archives, for `fuzz_mutations`."""

import io
import pathlib
import tarfile
import zipfile
from collections.abc import Mapping, Sequence

import image_folders
import numpy as np
import PIL.Image
import scipy.io

_SIZE = (14, 18)
CLASSES = (('sky', (0, 0, 0)), ('road', (200, 30, 30)), ('car', (30, 30, 200)))
IGNORE = 255
_NAMES = ('a', 'b', 'straße')


# Drawing and encoding.


def _photograph(rng: np.random.Generator) -> np.ndarray:
  return rng.integers(0, 256, (*_SIZE, 3), np.uint8)


def _labels(rng: np.random.Generator) -> np.ndarray:
  """Draws a mask of the values 0, 1, 2 and a few ignored pixels."""
  mask = rng.integers(0, 3, _SIZE, np.uint8)
  mask[0, :5] = IGNORE
  return mask


def colored(mask: np.ndarray) -> np.ndarray:
  """Returns the colors of the class list in place of values."""
  table = np.full((256, 3), 255, np.uint8)
  for i, (_, color) in enumerate(CLASSES):
    table[i] = color
  return table[mask]


def palette_image(mask: np.ndarray, colors: bytes) -> PIL.Image.Image:
  """Returns a mask with a palette of 256 colors."""
  image = PIL.Image.fromarray(mask)
  image.putpalette(colors)
  return image


def class_colors() -> bytes:
  """Returns the palette in which each value has the color of its class."""
  table = colored(np.arange(256, dtype=np.uint8)[None])[0]
  return table.tobytes()


def write_photograph(path: pathlib.Path, seed: int) -> None:
  """Writes an image of noise as PNG."""
  _write(path, image_folders.encoded(_photograph(np.random.default_rng(seed))))


# Data sets.


class DataSet:
  """A data set: writes itself, and knows its options.

  Attributes:
    name: name of the data set.
    options: fields of `DataOptions`.
    colors: whether the class list has colors.
  """

  def __init__(self, name: str, colors: bool = False, **options: str):
    self.name = name
    self.colors = colors
    self.options = options

  def write(self, source: pathlib.Path) -> None:
    """Writes images, masks and class list into the folder `source`."""
    rng = np.random.default_rng(0)
    for folder, split in self.folders():
      for name in _NAMES:
        mask = _labels(rng)
        _write(
          source / folder / f'{name}.jpg',
          image_folders.encoded(_photograph(rng), 'JPEG'),
        )
        data = (
          image_folders.encoded(colored(mask))
          if self.colors
          else image_folders.encoded(mask)
        )
        _write(source / split / f'{name}.png', data)
    _write(source / 'classes.txt', class_list(self.colors).encode())

  def folders(self) -> Sequence[tuple[str, str]]:
    """Returns the folders of images and of masks."""
    return [('images', 'masks')]

  def files(self, source: pathlib.Path, kind: str) -> list[pathlib.Path]:
    """Returns the files of a kind: 'image', 'mask', 'list' or 'archive'."""
    patterns = {
      'image': '**/*.jpg',
      'mask': '**/*.png',
      'list': '**/*.txt',
      'archive': '*.[zt]*',
    }
    paths = sorted(source.glob(patterns[kind]))
    return [f for f in paths if kind != 'archive' or f.suffix != '.txt']


class Split(DataSet):
  """A folder whose splits are folders."""

  def folders(self) -> Sequence[tuple[str, str]]:
    """Returns those of two splits."""
    return [('train/images', 'train/masks'), ('val/images', 'val/masks')]


class Archives(DataSet):
  """A published data set, in its archives."""

  def write(self, source: pathlib.Path) -> None:
    """Writes the official files, with generated images, into `source`."""
    source.mkdir(parents=True)
    rng = np.random.default_rng(0)
    if self.name == 'ade20k':
      _write_ade(source, rng)
    elif self.name == 'voc2012':
      _write_voc(source, rng)
    else:
      for split in ('train', 'val'):
        for name in ('0001', '0002'):
          mask = _labels(rng) % 12
          _write(
            source / f'{split}/images/{name}.jpg',
            image_folders.encoded(_photograph(rng), 'JPEG'),
          )
          _write(
            source / f'{split}/labels/{name}.png', image_folders.encoded(mask)
          )


def _write_ade(source: pathlib.Path, rng: np.random.Generator) -> None:
  root = 'ADEChallengeData2016'
  with zipfile.ZipFile(source / f'{root}.zip', 'w') as archive:
    for folder, name in (('training', 'train'), ('validation', 'val')):
      for number in (1, 2):
        stem = f'{folder}/ADE_{name}_{number:08}'
        image = image_folders.encoded(_photograph(rng), 'JPEG')
        archive.writestr(f'{root}/images/{stem}.jpg', image)
        mask = image_folders.encoded(_labels(rng) % 151)
        archive.writestr(f'{root}/annotations/{stem}.png', mask)


def _write_voc(source: pathlib.Path, rng: np.random.Generator) -> None:
  root = 'VOCdevkit/VOC2012'
  files = {
    f'{root}/ImageSets/Segmentation/train.txt': b'2007_000001\n2007_000003\n',
    f'{root}/ImageSets/Segmentation/val.txt': b'2007_000002\n',
  }
  names = ('2007_000001', '2007_000002', '2007_000003', '2008_000004')
  for name in names:
    files[f'{root}/JPEGImages/{name}.jpg'] = image_folders.encoded(
      _photograph(rng), 'JPEG'
    )
  for name in names[:3]:
    files[f'{root}/SegmentationClass/{name}.png'] = image_folders.encoded(
      _labels(rng)
    )
  _write_tar(source / 'VOCtrainval_11-May-2012.tar', files)
  boundary = io.BytesIO()
  labels = {'GTcls': {'Segmentation': _labels(rng) % 21}}
  scipy.io.savemat(boundary, labels, do_compression=True)
  name = 'benchmark_RELEASE/dataset/cls/2008_000004.mat'
  _write_tar(source / 'benchmark.tgz', {name: boundary.getvalue()}, 'w:gz')


def _write_tar(
  path: pathlib.Path, files: Mapping[str, bytes], mode: str = 'w'
) -> None:
  with tarfile.open(path, mode) as archive:
    for name, data in files.items():
      entry = tarfile.TarInfo(name)
      entry.size = len(data)
      archive.addfile(entry, io.BytesIO(data))


def class_list(colors: bool) -> str:
  """Returns the text of the class list."""
  lines = [
    f'{name} {",".join(map(str, color))}' if colors else name
    for name, color in CLASSES
  ]
  return '\n'.join(lines) + '\n'


def _write(path: pathlib.Path, data: bytes) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(data)


_FOLDER = {
  'images': 'images',
  'masks': 'masks',
  'classes': 'classes.txt',
}
SETS = (
  DataSet('image_mask_folder', ignore='255', **_FOLDER),
  DataSet('image_mask_folder', True, ignore='255,255,255', **_FOLDER),
  Split(
    'image_mask_folder',
    ignore='255',
    images='{split}/images',
    masks='{split}/masks',
    classes='classes.txt',
  ),
  Archives('camvid'),
  Archives('ade20k'),
  Archives('voc2012'),
)
