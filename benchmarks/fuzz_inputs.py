"""Small data sets with one mutation, and the label counts they must have.

`Inputs(folder).run(seed)` writes one of the data sets of `SETS`, mutates it,
checks it in this process, and returns an outcome:

  same            the counts of the whole data set
  refused         a message of one line
  reported        other counts, with a line of the report that was not there
  traceback       an exception that is no UserError      (a fault)
  silent change   other counts, and nothing says so      (a fault)
  bad message     a message without a file or a field    (a fault)
"""

import contextlib
import io
import pathlib
import random
import shutil
import struct
import tarfile
import unicodedata
import warnings
import zipfile
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import PIL.Image

from input_pipeline import datasets
from input_pipeline.sources import audit
from runtime import errors

_SIZE = (14, 18)
_CLASSES = (('sky', (0, 0, 0)), ('road', (200, 30, 30)), ('car', (30, 30, 200)))
_IGNORE = 255
_NAMES = ('a', 'b', 'straße')


class Counts(NamedTuple):
  """Pixels of each class by name, of no class, and the number of images."""

  pixels: dict[str, int]
  ignored: int
  images: int


class Result(NamedTuple):
  """The result of checking a data set: counts and the lines of its report."""

  counts: Counts
  lines: tuple[str, ...]


# Drawing and encoding.


def _photograph(rng: np.random.Generator) -> np.ndarray:
  return rng.integers(0, 256, (*_SIZE, 3), np.uint8)


def _labels(rng: np.random.Generator) -> np.ndarray:
  """Draws a mask of the values 0, 1, 2 and a few ignored pixels."""
  mask = rng.integers(0, 3, _SIZE, np.uint8)
  mask[0, :5] = _IGNORE
  return mask


def _encoded(pixels: Any, kind: str = 'PNG', **options: Any) -> bytes:
  data = io.BytesIO()
  image = pixels
  if not isinstance(image, PIL.Image.Image):
    image = PIL.Image.fromarray(image)
  image.save(data, kind, **options)
  return data.getvalue()


def _colored(mask: np.ndarray) -> np.ndarray:
  table = np.full((256, 3), 255, np.uint8)
  for i, (_, color) in enumerate(_CLASSES):
    table[i] = color
  return table[mask]


def _palette_image(mask: np.ndarray, colors: bytes) -> PIL.Image.Image:
  image = PIL.Image.fromarray(mask)
  image.putpalette(colors)
  return image


def _class_colors() -> bytes:
  table = _colored(np.arange(256, dtype=np.uint8)[None])[0]
  return table.tobytes()


# Data sets.


class DataSet:
  """A data set: writes itself, and knows its options.

  Attributes:
    name: of the data set.
    options: of `DataOptions`.
    colors: whether the class list has colors.
  """

  def __init__(self, name: str, colors: bool = False, **options: str):
    self.name = name
    self.colors = colors
    self.options = options

  def write(self, source: pathlib.Path) -> None:
    """Writes the files."""
    rng = np.random.default_rng(0)
    for folder, split in self.folders():
      for name in _NAMES:
        mask = _labels(rng)
        _write(
          source / folder / f'{name}.jpg', _encoded(_photograph(rng), 'JPEG')
        )
        data = _encoded(_colored(mask)) if self.colors else _encoded(mask)
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
    found = sorted(source.glob(patterns[kind]))
    return [f for f in found if kind != 'archive' or f.suffix != '.txt']


class Split(DataSet):
  """A folder whose splits are folders."""

  def folders(self) -> Sequence[tuple[str, str]]:
    """Returns those of two splits."""
    return [('train/images', 'train/masks'), ('val/images', 'val/masks')]


class Archives(DataSet):
  """A published data set, in its archives."""

  def write(self, source: pathlib.Path) -> None:
    """Writes the archives."""
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
            _encoded(_photograph(rng), 'JPEG'),
          )
          _write(source / f'{split}/labels/{name}.png', _encoded(mask))


def _write_ade(source: pathlib.Path, rng: np.random.Generator) -> None:
  root = 'ADEChallengeData2016'
  with zipfile.ZipFile(source / f'{root}.zip', 'w') as archive:
    for folder, name in (('training', 'train'), ('validation', 'val')):
      for number in (1, 2):
        stem = f'{folder}/ADE_{name}_{number:08}'
        image = _encoded(_photograph(rng), 'JPEG')
        archive.writestr(f'{root}/images/{stem}.jpg', image)
        mask = _encoded(_labels(rng) % 151)
        archive.writestr(f'{root}/annotations/{stem}.png', mask)


def _write_voc(source: pathlib.Path, rng: np.random.Generator) -> None:
  root = 'VOCdevkit/VOC2012'
  files = {
    f'{root}/ImageSets/Segmentation/train.txt': b'2007_000001\n2007_000003\n',
    f'{root}/ImageSets/Segmentation/val.txt': b'2007_000002\n',
  }
  for name in ('2007_000001', '2007_000002', '2007_000003'):
    files[f'{root}/JPEGImages/{name}.jpg'] = _encoded(_photograph(rng), 'JPEG')
    files[f'{root}/SegmentationClass/{name}.png'] = _encoded(_labels(rng))
  with tarfile.open(source / 'VOCtrainval_11-May-2012.tar', 'w') as archive:
    for name, data in files.items():
      entry = tarfile.TarInfo(name)
      entry.size = len(data)
      archive.addfile(entry, io.BytesIO(data))


def class_list(colors: bool) -> str:
  """Returns the text of the class list."""
  lines = [
    f'{name} {",".join(map(str, color))}' if colors else name
    for name, color in _CLASSES
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


# Mutations: change the files of a data set; return a description, or None where
# they do not apply. They must leave the counts as they are, or be reported.

Mutation = Callable[[random.Random, DataSet, pathlib.Path], str | None]


def _mutate_bytes(rng: random.Random, data: bytes) -> tuple[bytes, str]:
  """Flips, cuts, repeats, removes or replaces bytes."""
  changed = bytearray(data)
  size = len(changed)
  start = rng.randrange(size) if size else 0
  stop = min(size, start + rng.choice((1, 2, 8, 64)))
  kind = rng.choice(
    ('flip', 'flip', 'cut', 'zero', 'remove', 'repeat', 'random', 'empty')
  )
  if kind == 'flip' and size:
    changed[start] ^= 1 << rng.randrange(8)
  elif kind == 'cut':
    del changed[start:]
  elif kind == 'zero':
    changed[start:stop] = bytes(stop - start)
  elif kind == 'remove':
    del changed[start:stop]
  elif kind == 'repeat':
    changed[start:start] = changed[start:stop]
  elif kind == 'random':
    changed[start:stop] = rng.randbytes(stop - start)
  elif kind == 'empty':
    changed.clear()
  return bytes(changed), f'{kind} at {start} of {size}'


def _bytes_of(kind: str) -> Mutation:
  """Returns a mutation of the bytes of a file of a kind."""

  def mutate(
    rng: random.Random, data_set: DataSet, source: pathlib.Path
  ) -> str | None:
    files = data_set.files(source, kind)
    if not files:
      return None
    path = rng.choice(files)
    data, text = _mutate_bytes(rng, path.read_bytes())
    path.write_bytes(data)
    return f'{path.name}: {text}'

  return mutate


def _mask_as(
  rng: random.Random, data_set: DataSet, source: pathlib.Path
) -> str | None:
  """Writes a mask in another kind of PNG, or of other values."""
  files = data_set.files(source, 'mask')
  if not files:
    return None
  path = rng.choice(files)
  stored = np.asarray(PIL.Image.open(path))
  mask = stored
  if stored.ndim == 3:  # Back from colors.
    codes = {tuple(color): i for i, (_, color) in enumerate(_CLASSES)}
    mask = np.array(
      [[codes.get(tuple(map(int, x)), _IGNORE) for x in row] for row in stored],
      np.uint8,
    )
  name, change = rng.choice([*(_KINDS_OF_MASKS.items()), *_OTHER_MASKS.items()])
  path.write_bytes(change(mask, rng))
  return f'{path.name} as {name}'


# Of the same labels, for those who read them so.
_KINDS_OF_MASKS = {
  'gray': lambda mask, rng: _encoded(mask),
  'gray of 16 bits': lambda mask, rng: _encoded(mask.astype(np.uint16)),
  'gray of 32 bits': lambda mask, rng: _encoded(
    PIL.Image.fromarray(mask.astype(np.int32))
  ),
  'palette': lambda mask, rng: _encoded(_palette_image(mask, _class_colors())),
  'palette in another order': lambda mask, rng: _encoded(
    PIL.Image.fromarray(_colored(mask)).quantize(5)
  ),
  'RGB': lambda mask, rng: _encoded(_colored(mask)),
  'RGBA': lambda mask, rng: _encoded(
    PIL.Image.fromarray(_colored(mask)).convert('RGBA')
  ),
  'gray + alpha': lambda mask, rng: _encoded(
    PIL.Image.fromarray(mask).convert('LA')
  ),
}
# Of other labels, or of none: any count will do if it is reported.
_OTHER_MASKS = {
  'inverted bits': lambda mask, rng: _encoded(~mask),
  'contrast-stretched': lambda mask, rng: _encoded(
    (mask * 85).astype(np.uint8)
  ),
  'two colors': lambda mask, rng: _encoded(
    PIL.Image.fromarray(((mask > 0) * 255).astype(np.uint8)).convert('1')
  ),
  'turned': lambda mask, rng: _encoded(np.ascontiguousarray(mask.T)),
  'smaller': lambda mask, rng: _encoded(np.ascontiguousarray(mask[::2, ::2])),
  'one pixel': lambda mask, rng: _encoded(mask[:1, :1]),
  'transparent': lambda mask, rng: _encoded(
    PIL.Image.fromarray(_colored(mask)).convert('RGBA').resize(mask.shape[::-1])
  ),
  'JPEG called PNG': lambda mask, rng: _encoded(mask, 'JPEG'),
  'GIF called PNG': lambda mask, rng: _encoded(mask, 'GIF'),
  'BMP called PNG': lambda mask, rng: _encoded(mask, 'BMP'),
  'TIFF called PNG': lambda mask, rng: _encoded(mask, 'TIFF'),
  'a bomb': lambda mask, rng: _bomb(rng.choice((2**16, 2**31 - 1, 0))),
  'text': lambda mask, rng: b'404: Not Found\n',
}


def _bomb(side: int) -> bytes:
  """Returns a PNG of a header that declares a huge image, or an empty one."""
  head = struct.pack('>IIBBBBB', side, side, 8, 0, 0, 0, 0)
  chunks = [(b'IHDR', head), (b'IDAT', b''), (b'IEND', b'')]
  return b'\x89PNG\r\n\x1a\n' + b''.join(
    struct.pack('>I', len(data))
    + kind
    + data
    + struct.pack('>I', zipfile.crc32(kind + data))
    for kind, data in chunks
  )


def _image_as(
  rng: random.Random, data_set: DataSet, source: pathlib.Path
) -> str | None:
  """Writes an image in another format or mode, often under its old name."""
  files = data_set.files(source, 'image')
  if not files:
    return None
  path = rng.choice(files)
  image = PIL.Image.open(path)
  image.load()
  kind = rng.choice(('JPEG', 'PNG', 'GIF', 'BMP', 'TIFF', 'WEBP', 'ICO', 'PPM'))
  mode = rng.choice(('RGB', 'L', 'RGBA', 'P', '1', 'CMYK', 'I;16', 'F', 'LA'))
  exif = PIL.Image.Exif()
  orientation = rng.choice((None, None, 1, 3, 6, 9))
  if orientation:
    exif[0x0112] = orientation
  try:
    image = image.convert('I' if mode == 'I;16' else mode)
    data = _encoded(image, kind, **({'exif': exif} if orientation else {}))
  except (OSError, ValueError, KeyError, TypeError):
    return None  # Pillow writes no such file.
  suffix = rng.choice(
    (path.suffix, f'.{kind.lower()}', f'.{kind}', '.jpeg', '.png')
  )
  path.unlink()
  path.with_suffix(suffix).write_bytes(data)
  return f'{path.name} as {kind} {mode}, orientation {orientation}, {suffix}'


def _rename(
  rng: random.Random, data_set: DataSet, source: pathlib.Path
) -> str | None:
  """Gives an image, a mask or both another name."""
  images = data_set.files(source, 'image')
  if not images:
    return None
  image = rng.choice(images)
  masks = [f for f in data_set.files(source, 'mask') if f.stem == image.stem]
  paths = rng.choice(([image], masks[:1], [image, *masks[:1]]))
  change = rng.choice(tuple(_NAME_CHANGES.values()))
  for path in paths:
    new = change(path.name)
    if not new or (new.startswith('.') and len(paths) > 1):
      return None
    try:
      path.rename(path.with_name(new))
    except (OSError, ValueError):
      return None  # The file system has no such name.
  return f'{[p.name for p in paths]} named {new!r}'


_NAME_CHANGES: dict[str, Callable[[str], str]] = {
  'upper case': lambda name: name.upper(),
  'capital suffix': lambda name: name[:-3] + name[-3:].upper(),
  'decomposed': lambda name: unicodedata.normalize('NFD', 'é' + name),
  'space': lambda name: ' ' + name,
  'space before the suffix': lambda name: name[:-4] + ' ' + name[-4:],
  'line break': lambda name: 'x\ny' + name,
  'hidden': lambda name: '.' + name,
  'not UTF-8': lambda name: 'x\udcff' + name,
  'long': lambda name: 'x' * 240 + name,
  'no suffix': lambda name: name[:-4],
  'two suffixes': lambda name: name + '.png',
  'backup': lambda name: name + '~',
  'emoji': lambda name: '🚗' + name,
  'percent': lambda name: '%s{split}' + name,
  'mask ending': lambda name: name[:-4] + '_mask' + name[-4:],
  'tab': lambda name: '\t' + name,
}


def _clutter(
  rng: random.Random, data_set: DataSet, source: pathlib.Path
) -> str | None:
  """Adds what does not belong: links, folders, copies, other files."""
  folders = sorted({f.parent for f in data_set.files(source, 'image')}) or [
    source
  ]
  folder = rng.choice(folders)
  kind = rng.choice(
    ('loop', 'dangling', 'folder', 'copy', 'Thumbs.db', 'empty', 'mac', 'other')
  )
  if kind == 'loop':
    (folder / 'loop').symlink_to(folder)
  elif kind == 'dangling':
    (folder / 'gone.jpg').symlink_to(folder / 'nowhere.jpg')
  elif kind == 'folder':
    (folder / 'folder.jpg').mkdir()
  elif kind == 'copy':
    for file in sorted(folder.glob('*.jpg'))[:1]:
      shutil.copy(file, file.with_suffix('.jpeg'))
  elif kind == 'Thumbs.db':
    (folder / 'Thumbs.db').write_bytes(b'\0' * 100)
  elif kind == 'empty':
    (folder / 'empty.png').write_bytes(b'')
  elif kind == 'mac':
    (folder / '._a.jpg').write_bytes(b'\0' * 100)
  else:
    (folder / f'x.{rng.choice(("tif", "gif", "json", "txt", "npy"))}').touch()
  return f'{kind} in {folder.name}'


def _remove(
  rng: random.Random, data_set: DataSet, source: pathlib.Path
) -> str | None:
  """Removes a mask, an image, a list, or a folder."""
  files = [
    f
    for kind in ('image', 'mask', 'list')
    for f in data_set.files(source, kind)
  ]
  if not files:
    return None
  path = rng.choice([*files, *sorted({f.parent for f in files} - {source})])
  shutil.rmtree(path) if path.is_dir() else path.unlink()
  return f'{path.name} removed'


def _class_list_as(
  rng: random.Random, data_set: DataSet, source: pathlib.Path
) -> str | None:
  """Writes the class list as other programs do."""
  path = source / 'classes.txt'
  if not path.exists():
    return None
  text = path.read_text()
  name, change = rng.choice(tuple(_LISTS.items()))
  path.write_bytes(change(text, rng))
  return f'class list: {name}'


_LISTS: dict[str, Callable[[str, random.Random], bytes]] = {
  'BOM': lambda text, rng: text.encode('utf-8-sig'),
  'UTF-16': lambda text, rng: text.encode('utf-16'),
  'Windows': lambda text, rng: text.replace('\n', '\r\n').encode(),
  'old Mac': lambda text, rng: text.replace('\n', '\r').encode(),
  'no line break at the end': lambda text, rng: text.rstrip().encode(),
  'blank lines at the end': lambda text, rng: (text + '\n\n').encode(),
  'blank line within': lambda text, rng: text.replace('\n', '\n\n', 1).encode(),
  'labelme': lambda text, rng: ('__ignore__\n' + text).encode(),
  'CVAT': lambda text, rng: (
    '# label:color_rgb:parts:actions\n' + text
  ).encode(),
  'Roboflow': lambda text, rng: (
    'Pixel Value, Class\n'
    + ''.join(f'{i}, {x}\n' for i, x in enumerate(text.split('\n')[:-1]))
  ).encode(),
  'numbered': lambda text, rng: ''.join(
    f'{i} {x}\n' for i, x in enumerate(text.split('\n')[:-1])
  ).encode(),
  'doubled line': lambda text, rng: (text + text.split('\n')[0]).encode(),
  'spaces': lambda text, rng: text.replace('\n', '  \n').encode(),
  'one line': lambda text, rng: text.replace('\n', ' ').encode(),
  'latin-1': lambda text, rng: ('straße\n' + text).encode('latin-1'),
  'null bytes': lambda text, rng: text.replace('\n', '\0').encode(),
  'huge': lambda text, rng: text.encode() * 20_000,
  'empty': lambda text, rng: b'',
  'color of 256': lambda text, rng: (text + 'x 256,0,0\n').encode(),
  'color that is none': lambda text, rng: (text + 'x #12345g\n').encode(),
}

MUTATIONS: tuple[Mutation, ...] = (
  *(_bytes_of(kind) for kind in ('image', 'mask', 'mask', 'list')),
  *(_bytes_of('archive'), _bytes_of('archive'), _mask_as, _mask_as, _image_as),
  *(_rename, _rename, _clutter, _remove, _class_list_as),
)


class Inputs:
  """Runs mutations in a folder of its own."""

  def __init__(self, folder: pathlib.Path):
    self._folder = folder
    self._whole: dict[int, Result] = {}
    for i, data_set in enumerate(SETS):
      data_set.write(folder / f'{i}')
      self._whole[i] = self._check(data_set, folder / f'{i}')

  def run(self, seed: int) -> tuple[str, str]:
    """Mutates a data set and checks it; returns outcome and description."""
    rng = random.Random(seed)
    text = None
    while text is None:
      place = rng.randrange(len(SETS))
      data_set, source = SETS[place], self._folder / 'mutated'
      shutil.rmtree(source, ignore_errors=True)
      shutil.copytree(self._folder / f'{place}', source)
      options = dict(data_set.options)
      if data_set.name == 'image_mask_folder' and rng.random() < 0.5:
        options['on_bad_example'] = 'skip'
      text = rng.choice(MUTATIONS)(rng, data_set, source)
    text = f'{data_set.name}: {text}'
    try:
      result = self._check(data_set, source, options)
    except errors.UserError as error:
      return _judge_message(str(error), text)
    except Exception as error:
      return 'traceback', f'{text}: {type(error).__name__}: {error}'
    whole = self._whole[place]
    if result.counts == whole.counts:
      return 'same', text
    if {*result.lines} - {*whole.lines}:
      return 'reported', text
    return 'silent change', f'{text}: {whole.counts} -> {result.counts}'

  def _check(
    self, data_set: DataSet, source: pathlib.Path, options: Any = None
  ) -> Result:
    """Checks a data set as `prepare --check` does."""
    options = datasets.DataOptions(
      data_set.name,
      source=str(source),
      **(data_set.options if options is None else options),
    )
    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
      warnings.simplefilter('ignore')
      builder = datasets.builder(options, str(self._folder / 'records'))
      result, _ = builder.check()
    return Result(_counts_of(result), _lines_of(result))


def _counts_of(result: audit.Audit) -> Counts:
  pixels = dict.fromkeys(result.classes, 0)
  for counts in result.counts.values():
    for name, value in zip(result.classes, counts.pixels, strict=False):
      pixels[name] += value
  return Counts(
    {name: value for name, value in pixels.items() if value},
    sum(counts.ignored for counts in result.counts.values()),
    sum(counts.num_images for counts in result.counts.values()),
  )


def _lines_of(result: audit.Audit) -> tuple[str, ...]:
  """Returns the warnings and the skipped files of a report."""
  return (*result.warnings, *map(str, result.skipped))


def _judge_message(message: str, text: str) -> tuple[str, str]:
  """Returns whether a refusal can be understood."""
  is_short = all(len(line) < 2000 for line in message.splitlines())
  if not is_short or 'Traceback' in message or ':' not in message:
    return 'bad message', f'{text}: {message}'
  return 'refused', text
