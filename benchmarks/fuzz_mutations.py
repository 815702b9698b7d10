"""Mutations of the bytes and names of the files of a data set.

Each changes one thing, and returns a description, or None where it does not
apply. The label counts must stay as they are, or the report must say why not.
"""

import pathlib
import random
import shutil
import struct
import unicodedata
import zipfile
from collections.abc import Callable

import fuzz_sets
import image_folders
import numpy as np
import PIL.Image

Mutation = Callable[
  [random.Random, fuzz_sets.DataSet, pathlib.Path], str | None
]


def mutate_bytes(rng: random.Random, data: bytes) -> tuple[bytes, str]:
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


def _of_random_file(
  kind: str,
  change: Callable[
    [random.Random, fuzz_sets.DataSet, pathlib.Path], str | None
  ],
) -> Mutation:
  """Returns a mutation that changes one of the files of a kind, if any."""

  def mutate(
    rng: random.Random, data_set: fuzz_sets.DataSet, source: pathlib.Path
  ) -> str | None:
    files = data_set.files(source, kind)
    return change(rng, data_set, rng.choice(files)) if files else None

  return mutate


def _change_bytes(
  rng: random.Random, data_set: fuzz_sets.DataSet, path: pathlib.Path
) -> str:
  """Changes the bytes of a file."""
  del data_set
  data, text = mutate_bytes(rng, path.read_bytes())
  path.write_bytes(data)
  return f'{path.name}: {text}'


def _mask_as(
  rng: random.Random, data_set: fuzz_sets.DataSet, path: pathlib.Path
) -> str:
  """Writes a mask in another kind of PNG, or of other values."""
  stored = np.asarray(PIL.Image.open(path))
  mask = stored
  if stored.ndim == 3:  # Back from colors.
    codes = {tuple(color): i for i, (_, color) in enumerate(fuzz_sets.CLASSES)}
    mask = np.array(
      [
        [codes.get(tuple(map(int, x)), fuzz_sets.IGNORE) for x in row]
        for row in stored
      ],
      np.uint8,
    )
  kinds = {**_KINDS_OF_MASKS, **_OTHER_MASKS}
  if data_set.name != 'image_mask_folder':
    # Published masks are values: nobody can tell that a palette was reordered.
    del kinds['palette in another order']
  if not data_set.colors:
    del kinds['two colors']  # 0 and 1 are classes.
  name, change = rng.choice([*kinds.items()])
  path.write_bytes(change(mask, rng))
  return f'{path.name} as {name}'


# Of the same labels, for those who read them so.
_KINDS_OF_MASKS = {
  'gray': lambda mask, rng: image_folders.encoded(mask),
  'gray of 16 bits': lambda mask, rng: image_folders.encoded(
    mask.astype(np.uint16)
  ),
  'palette': lambda mask, rng: image_folders.encoded(
    fuzz_sets.palette_image(mask, fuzz_sets.class_colors())
  ),
  'palette in another order': lambda mask, rng: image_folders.encoded(
    PIL.Image.fromarray(fuzz_sets.colored(mask)).quantize(5)
  ),
  'RGB': lambda mask, rng: image_folders.encoded(fuzz_sets.colored(mask)),
  'RGBA': lambda mask, rng: image_folders.encoded(
    PIL.Image.fromarray(fuzz_sets.colored(mask)).convert('RGBA')
  ),
  'gray + alpha': lambda mask, rng: image_folders.encoded(
    PIL.Image.fromarray(mask).convert('LA')
  ),
}
# Of other labels, or of none: any count will do if it is reported.
_OTHER_MASKS = {
  'inverted bits': lambda mask, rng: image_folders.encoded(~mask),
  'contrast-stretched': lambda mask, rng: image_folders.encoded(
    (mask * 85).astype(np.uint8)
  ),
  'two colors': lambda mask, rng: image_folders.encoded(
    PIL.Image.fromarray(((mask > 0) * 255).astype(np.uint8)).convert('1')
  ),
  'turned': lambda mask, rng: image_folders.encoded(
    np.ascontiguousarray(mask.T)
  ),
  'smaller': lambda mask, rng: image_folders.encoded(
    np.ascontiguousarray(mask[::2, ::2])
  ),
  'one pixel': lambda mask, rng: image_folders.encoded(mask[:1, :1]),
  'transparent': lambda mask, rng: image_folders.encoded(
    PIL.Image.fromarray(fuzz_sets.colored(mask))
    .convert('RGBA')
    .resize(mask.shape[::-1])
  ),
  'JPEG called PNG': lambda mask, rng: image_folders.encoded(mask, 'JPEG'),
  'GIF called PNG': lambda mask, rng: image_folders.encoded(mask, 'GIF'),
  'BMP called PNG': lambda mask, rng: image_folders.encoded(mask, 'BMP'),
  'TIFF called PNG': lambda mask, rng: image_folders.encoded(mask, 'TIFF'),
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
  rng: random.Random, data_set: fuzz_sets.DataSet, path: pathlib.Path
) -> str | None:
  """Writes an image in another format or mode, often under its old name."""
  del data_set
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
    data = image_folders.encoded(
      image, kind, **({'exif': exif} if orientation else {})
    )
  except (OSError, ValueError, KeyError, TypeError):
    return None  # Pillow writes no such file.
  suffix = rng.choice(
    (path.suffix, f'.{kind.lower()}', f'.{kind}', '.jpeg', '.png')
  )
  path.unlink()
  path.with_suffix(suffix).write_bytes(data)
  return f'{path.name} as {kind} {mode}, orientation {orientation}, {suffix}'


def _rename(
  rng: random.Random, data_set: fuzz_sets.DataSet, source: pathlib.Path
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
  rng: random.Random, data_set: fuzz_sets.DataSet, source: pathlib.Path
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
  rng: random.Random, data_set: fuzz_sets.DataSet, source: pathlib.Path
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
  rng: random.Random, data_set: fuzz_sets.DataSet, source: pathlib.Path
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
  *(
    _of_random_file(kind, _change_bytes)
    for kind in ('image', 'mask', 'mask', 'list', 'archive', 'archive')
  ),
  *(_of_random_file('mask', _mask_as), _of_random_file('mask', _mask_as)),
  _of_random_file('image', _image_as),
  *(_rename, _rename, _clutter, _remove, _class_list_as),
)
