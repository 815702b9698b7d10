"""A user's own images, with masks or without, as TFDS builders.

  options = ImageMaskFolderOptions(
    source='~/roads', images='images', masks='masks', classes='classes.txt',
    ignore=255, val_fraction=0.1,
  )
  ImageMaskFolder(options, data_dir=data_dir).download_and_prepare()

Splits are either folders, written as `{split}` in `images` and `masks`
(`images='{split}/photos'`), or cut from one folder by `val_fraction`. The rule
of the cut: the first 8 bytes of sha256('SEED:ID'), as a big-endian fraction of
2**64, are below `val_fraction`: then the image belongs to `val`, else to
`train`. So an image keeps its split whatever is added or removed.

The name of a TFDS config ends with a digest of the options and of the names,
sizes and times of all files: a changed folder is another config and prepared
anew, and a folder that is moved is not.
"""

import dataclasses
import hashlib
import json
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Int16

from input_pipeline import audit, batch, errors
from input_pipeline.audit import Audit, Example, Listing
from input_pipeline.builders import records

Colour = tuple[int, int, int]

SPLIT = '{split}'
MAX_CLASSES = 2**15 - 2  # Class id + 1 is read back as int16.

_COLOUR = r'#[0-9a-fA-F]{6}|\d+\s*,\s*\d+\s*,\s*\d+'
_CLASS_LINE = re.compile(rf'(?P<name>.*?\S)(?:\s+(?P<colour>{_COLOUR}))?\s*')


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageFolderOptions:
  """Where images are and how they are split.

  Attributes:
    source: folder of everything.
    images: folder of the images in `source`; '' is `source` itself. With
      `{split}` as one of its parts, each folder there is a split.
    val_fraction: part of the images that becomes `val`, in [0, 1).
    split_seed: chooses which.
    on_bad_example: 'error' refuses all for one bad file, 'skip' leaves it out.
  """

  source: str
  images: str = ''
  val_fraction: float = 0.0
  split_seed: int = 0
  on_bad_example: str = 'error'

  def __post_init__(self):
    if not self.source:
      raise errors.UserError('source is empty: give the folder of the images')
    if not 0 <= self.val_fraction < 1:
      raise errors.UserError(
        f'val_fraction is {self.val_fraction}: expected 0 or more, and below 1'
      )
    if self.on_bad_example not in audit.ON_BAD_EXAMPLE:
      raise errors.UserError(
        f'on_bad_example is {self.on_bad_example!r}: expected one of '
        f'{audit.ON_BAD_EXAMPLE}'
      )
    _check_pattern('images', self.images)
    if SPLIT in self.images and self.val_fraction:
      raise errors.UserError(
        f'val_fraction is {self.val_fraction}, but images={self.images!r} has '
        'its splits in folders: set val_fraction=0'
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageMaskFolderOptions(ImageFolderOptions):
  """Where images and masks are, and what the masks mean.

  Attributes:
    masks: folder of the masks in `source`, with `{split}` where `images` has
      it.
    classes: file in `source` with a class a line: `name`, `name R,G,B` or
      `name #rrggbb`. Line i, from 0, names value i of the masks.
    ignore: value, or colour, of pixels without a class; None if there are
      none. If it is one of the class list's, that line is no class.
  """

  masks: str
  classes: str
  ignore: int | Colour | None = None

  def __post_init__(self):
    super().__post_init__()
    if not self.masks:
      raise errors.UserError('masks is empty: give the folder of the masks')
    if not self.classes:
      raise errors.UserError(
        'classes is empty: give the file of the class list'
      )
    _check_pattern('masks', self.masks)
    if (SPLIT in self.images) != (SPLIT in self.masks):
      raise errors.UserError(
        f'masks is {self.masks!r} where images is {self.images!r}: expected '
        '{split} in both or in neither'
      )
    images, masks = pathlib.PurePath(self.images), pathlib.PurePath(self.masks)
    if masks.is_relative_to(images):
      raise errors.UserError(
        f'masks is {self.masks!r}, inside images={self.images!r}: expected '
        'folders beside each other, or masks are taken for images'
      )
    _check_ignore(self.ignore)


@dataclasses.dataclass(frozen=True)
class MaskCode:
  """What the pixels of masks mean.

  Attributes:
    names: of each class id.
    values: of each class id in palette and grey masks.
    colours: of each class id in RGB masks; empty if there is no such table.
    ignored_values: of pixels without a class.
    ignored_colours: of pixels without a class.
  """

  names: tuple[str, ...]
  values: tuple[int, ...]
  colours: tuple[Colour, ...] = ()
  ignored_values: tuple[int, ...] = ()
  ignored_colours: tuple[Colour, ...] = ()

  def read(self, path: pathlib.Path) -> Int16[np.ndarray, 'H W']:
    """Class ids of a mask file, -1 where ignored.

    Raises:
      UserError: what is wrong with it; without the file's name.
    """
    pixels = read_mask(path)
    coloured = pixels.ndim == 3
    if coloured and not self.colours:
      raise errors.UserError(
        'is an RGB mask, but the class list has no colours: write its lines as '
        '`name R,G,B`, or save the mask with a palette'
      )
    known, ignored = self.values, self.ignored_values
    codes = pixels.astype(np.int32)
    if coloured:
      known = [_code(colour) for colour in self.colours]
      ignored = [_code(colour) for colour in self.ignored_colours]
      codes = codes @ np.array([1 << 16, 1 << 8, 1], np.int32)
    keys = np.array([*known, *ignored], np.int32)
    ids = np.full(len(keys), batch.IGNORE, np.int16)
    ids[: len(known)] = np.arange(len(known))
    order = np.argsort(keys)
    at = np.searchsorted(keys, codes, sorter=order)
    at = order[np.minimum(at, len(keys) - 1)]
    unknown = keys[at] != codes
    if unknown.any():
      raise errors.UserError(self._unknown(codes[unknown], coloured))
    return ids[at]

  def _unknown(self, codes: np.ndarray, coloured: bool) -> str:
    """Says which pixels have no meaning, and which would."""
    found, counts = np.unique(codes, return_counts=True)
    first = int(counts.argmax())
    count = f'{counts[first]:,} pixels'
    if len(found) > 1:
      kind = 'colours' if coloured else 'values'
      count += f'; the most frequent of {len(found):,} such {kind}'
    code = int(found[first])
    if coloured:
      what = f'colour {_text(_colour(code))}'
      allowed = [
        f'{_text(colour)} {name!r}'
        for colour, name in zip(self.colours, self.names, strict=True)
      ]
      if len(allowed) > 8:
        allowed[8:] = [f'… ({len(allowed)} classes)']
      allowed += [
        f'{_text(colour)} (ignored)' for colour in self.ignored_colours
      ]
    else:
      what = f'value {code}'
      allowed = _ranges(self.values)
      allowed += [f'{value} (ignored)' for value in self.ignored_values]
    allowed = ', '.join(allowed)
    return f'{what} ({count}) is no class: allowed are {allowed}'


@dataclasses.dataclass(eq=False)
class Config(tfds.core.BuilderConfig):
  """A folder as it was found: the name tells its content, `code` its masks."""

  # A list of thousand classes would fill the log.
  code: MaskCode | None = dataclasses.field(default=None, repr=False)


def parse_colour(text: str) -> Colour:
  """The colour of 'R,G,B' or '#rrggbb'.

  Raises:
    UserError: it is neither.
  """
  text = text.strip()
  if re.fullmatch(_COLOUR, text):
    if text.startswith('#'):
      return _colour(int(text[1:], 16))
    red, green, blue = (int(part) for part in text.split(','))
    if max(red, green, blue) <= 255:
      return red, green, blue
  raise errors.UserError(
    f'{text!r} is no colour: expected R,G,B of 0 to 255 each, or #rrggbb'
  )


def parse_ignore(text: str) -> int | Colour | None:
  """What `ignore` is on a command line: '', '255', '255,255,255', '#ffffff'.

  Raises:
    UserError: it is none of these.
  """
  text = text.strip()
  if not text:
    return None
  if re.fullmatch(r'\d+', text):
    return int(text)
  try:
    return parse_colour(text)
  except errors.UserError:
    raise errors.UserError(
      f'ignore is {text!r}: expected a value as 255, or a colour as '
      '255,255,255 or #ffffff'
    ) from None


def read_mask(path: pathlib.Path) -> np.ndarray:
  """The pixels of a mask as they are stored in the PNG.

  Palette masks give their indices, not their colours (which OpenCV would
  give); grey ones of any depth their values.

  Returns:
    Values [H, W], or colours uint8 [H, W, 3].

  Raises:
    UserError: what is wrong with it; without the file's name.
  """
  data = path.read_bytes()
  image = audit.load(data, ('PNG',))
  depth = data[24]  # Of the PNG's header, in bits.
  if image.mode == 'L' and depth in (2, 4):
    # PIL stretches these to 0…255.
    return np.asarray(image) // (255 // (2**depth - 1))
  if image.mode in ('1', 'L', 'P', 'I', 'I;16', 'RGB'):
    return np.asarray(image)
  if image.mode == 'RGBA' and image.getextrema()[3] == (255, 255):
    return np.asarray(image)[..., :3]
  raise errors.UserError(
    f'has pixels of PIL mode {image.mode!r}: expected a palette, grey of 8 or '
    '16 bits, or RGB without transparency'
  )


def read_classes(
  path: pathlib.Path, ignore: int | Colour | None = None
) -> MaskCode:
  """Reads a class list: `name`, `name R,G,B` or `name #rrggbb` a line.

  A line whose value (its number, from 0) or colour is `ignore` is no class;
  the class ids of the lines below it are one less than their values.

  Raises:
    UserError: the file is missing or names the wrong line in it.
  """
  try:
    lines = path.read_text('utf-8-sig').rstrip().splitlines()
  except OSError as error:
    reason = error.strerror or error
    raise errors.UserError(f'classes: cannot read {path}: {reason}') from error
  except UnicodeDecodeError as error:
    raise errors.UserError(f'classes: {path} is not UTF-8 text') from error
  names, colours = [], []
  for number, line in enumerate(lines, 1):
    where = f'classes: {path}, line {number}'
    match = _CLASS_LINE.fullmatch(line.strip())
    if match is None:
      raise errors.UserError(
        f'{where} is empty: expected a class, line i names value i of the masks'
      )
    names.append(match['name'])
    try:
      colours.append(match['colour'] and parse_colour(match['colour']))
    except errors.UserError as error:
      raise errors.UserError(f'{where}: {error}') from error
    if names[-1] in names[:-1]:
      raise errors.UserError(f'{where} names {names[-1]!r} a second time')
    if colours[-1] and colours[-1] in colours[:-1]:
      raise errors.UserError(
        f'{where} gives {_text(colours[-1])} to a second class'
      )
    if (colours[-1] is None) != (colours[0] is None):
      raise errors.UserError(
        f'{where}: expected a colour for every class or for none'
      )
  return _mask_code(path, names, [c for c in colours if c], ignore)


def palette(num_classes: int) -> tuple[Colour, ...]:
  """Colours for classes that come without: those of Pascal VOC.

  Bits 0, 3, 6, … of a class id are the highest bits of red, bits 1, 4, … those
  of green and 2, 5, … those of blue.
  """

  def channel(class_id: int, first: int) -> int:
    bits = ((class_id >> (3 * i + first)) & 1 for i in range(8))
    return sum(bit << (7 - i) for i, bit in enumerate(bits))

  return tuple(
    (channel(i, 0), channel(i, 1), channel(i, 2)) for i in range(num_classes)
  )


def split_of(example_id: str, val_fraction: float, seed: int) -> str:
  """'val' for a part of all ids, 'train' for the others; see the module."""
  digest = hashlib.sha256(f'{seed}:{example_id}'.encode()).digest()
  at = int.from_bytes(digest[:8], 'big') / 2**64
  return 'val' if at < val_fraction else 'train'


def labelled_record(example: Example, code: MaskCode) -> records.Record:
  """The record of an image with a mask; its tags are the mask's classes."""
  label = code.read(example.mask)
  return {
    'image': example.image.read_bytes(),
    'label': records.encode_label(label, len(code.names)),
    'tags': np.unique(label[label >= 0]).tolist(),
    'id': example.id,
  }


class ImageFolder(records.Builder):
  """Images of a folder and its subfolders, without labels.

  The id of an image is its path within the folder, without suffix.
  """

  VERSION = tfds.core.Version('1.0.0')

  def __init__(
    self,
    options: ImageFolderOptions,
    *,
    config: Config | None = None,
    **kwargs: Any,
  ):
    """Lists the folder, unless it is told what was found.

    Args:
      options: where the images are.
      config: of a builder made before (other processes are sent it).
      **kwargs: `data_dir`, where records are prepared.

    Raises:
      UserError: a folder is missing or empty.
    """
    self._options = options
    self._listed: tuple[Mapping[str, Listing], Config] | None = None
    self._audit: Audit | None = None
    super().__init__(config=config or self._list()[1], **kwargs)
    self._original_state['options'] = options  # What pickling sends.

  def contents(self) -> records.Contents:
    """No classes, and neither masks nor tags."""
    return records.Contents((), (), labels=False, tags=False)

  def audit(self) -> Audit:
    """Decodes all files, once.

    Raises:
      UserError: one of them is bad, and `on_bad_example` is 'error'.
    """
    if self._audit is None:
      listings, config = self._list()
      code = config.code
      self._audit = audit.run(
        {split: listing.examples for split, listing in listings.items()},
        code.names if code else (),
        code.read if code else None,
        problems=[p for found in listings.values() for p in found.problems],
        warnings=[w for found in listings.values() for w in found.warnings],
        on_bad_example=self._options.on_bad_example,
      )
    return self._audit

  def splits(self) -> Mapping[str, Iterator[records.Record]]:
    """The records of what the audit found usable, sorted by id."""
    return {
      split: (self._record(example) for example in examples)
      for split, examples in self.audit().examples.items()
    }

  def _record(self, example: Example) -> records.Record:
    return {'image': example.image.read_bytes(), 'id': example.id}

  def _list(self) -> tuple[Mapping[str, Listing], Config]:
    """The files of each split and the config they make; listed once."""
    if self._listed is None:
      listings = _list_splits(self._options)
      code = self._read_code()
      name = _config_name(self._options, code, listings)
      self._listed = listings, Config(name=name, code=code)
    return self._listed

  def _read_code(self) -> MaskCode | None:
    return None


class ImageMaskFolder(ImageFolder):
  """Images with masks of the same names, and a list of classes."""

  def __init__(self, options: ImageMaskFolderOptions, **kwargs: Any):
    super().__init__(options, **kwargs)

  def contents(self) -> records.Contents:
    """The classes of the list, in its colours or in those of Pascal VOC."""
    code = self.builder_config.code
    colours = code.colours or palette(len(code.names))
    return records.Contents(code.names, colours, labels=True, tags=True)

  def _record(self, example: Example) -> records.Record:
    return labelled_record(example, self.builder_config.code)

  def _read_code(self) -> MaskCode:
    options = self._options
    path = pathlib.Path(options.source).expanduser() / options.classes
    return read_classes(path, options.ignore)


def _check_pattern(field: str, pattern: str) -> None:
  """Refuses `{split}` anywhere but as one whole part of a path."""
  parts = pathlib.PurePath(pattern).parts
  if pattern.count(SPLIT) != parts.count(SPLIT) or parts.count(SPLIT) > 1:
    raise errors.UserError(
      f'{field} is {pattern!r}: expected {SPLIT} once, as a folder of its own'
    )


def _check_ignore(ignore: Any) -> None:
  """Refuses what is neither a value, a colour nor None."""
  is_value = isinstance(ignore, int) and 0 <= ignore < 2**16
  is_colour = (
    isinstance(ignore, tuple)
    and len(ignore) == 3
    and all(isinstance(part, int) and 0 <= part <= 255 for part in ignore)
  )
  if ignore is not None and not is_value and not is_colour:
    raise errors.UserError(
      f'ignore is {ignore!r}: expected a value of 0 to 65535, a colour of '
      'three values of 0 to 255, or None'
    )


def _mask_code(
  path: pathlib.Path,
  names: Sequence[str],
  colours: Sequence[Colour],
  ignore: int | Colour | None,
) -> MaskCode:
  """The meaning of masks, once the ignored line is taken out of the list."""
  if isinstance(ignore, tuple) and not colours:
    raise errors.UserError(
      f'ignore is the colour {_text(ignore)}, but {path} has no colours: '
      'expected a value'
    )
  values = range(len(names))
  kept = [i for i in values if ignore not in (i, *colours[i : i + 1])]
  ignored = [i for i in values if i not in kept]
  if not 0 < len(kept) <= MAX_CLASSES:
    raise errors.UserError(
      f'classes: {path} has {len(kept)} classes, expected 1 to {MAX_CLASSES}'
    )
  # A line's value and colour are ignored together; others stand for themselves.
  ignored_values = ignored or ([ignore] if isinstance(ignore, int) else [])
  ignored_colours = (
    [colours[i] for i in ignored]
    if ignored
    else [ignore] * isinstance(ignore, tuple)
  )
  return MaskCode(
    names=tuple(names[i] for i in kept),
    values=tuple(kept),
    colours=tuple(colours[i] for i in kept) if colours else (),
    ignored_values=tuple(ignored_values),
    ignored_colours=tuple(ignored_colours) if colours else (),
  )


def _list_splits(options: ImageFolderOptions) -> Mapping[str, Listing]:
  """The files of each split."""
  source = pathlib.Path(options.source).expanduser()
  if not source.is_dir():
    raise errors.UserError(f'source: there is no folder {source}')
  masks = getattr(options, 'masks', None)
  if SPLIT not in options.images:
    listing = audit.list_examples(
      source / options.images, None if masks is None else source / masks
    )
    return _cut(listing, options)
  return {
    split: audit.list_examples(
      source / options.images.replace(SPLIT, split),
      None if masks is None else source / masks.replace(SPLIT, split),
    )
    for split in _split_folders(source, options.images)
  }


def _split_folders(source: pathlib.Path, images: str) -> list[str]:
  """Names of the folders that stand at `{split}`."""
  parts = pathlib.PurePath(images).parts
  at = parts.index(SPLIT)
  above = source.joinpath(*parts[:at])
  below = parts[at + 1 :]
  names = sorted(
    path.name
    for path in (above.iterdir() if above.is_dir() else ())
    if path.joinpath(*below).is_dir() and not path.name.startswith('.')
  )
  if not names:
    raise errors.UserError(f'images: there is no folder {source / images}')
  for name in names:
    if not re.fullmatch(r'\w+', name) or name == 'all':
      raise errors.UserError(
        f'images: the folder {above / name} cannot be a split: expected a name '
        "of letters, digits and _, and not 'all'"
      )
  return names


def _cut(
  listing: Listing, options: ImageFolderOptions
) -> Mapping[str, Listing]:
  """Cuts a folder into train and val; what is wrong with it goes to train."""
  if not options.val_fraction:
    return {'train': listing}
  cut = {'train': [], 'val': []}
  for example in listing.examples:
    split = split_of(example.id, options.val_fraction, options.split_seed)
    cut[split].append(example)
  for split, examples in cut.items():
    if not examples and listing.examples:
      raise errors.UserError(
        f'val_fraction={options.val_fraction} leaves no image for {split} of '
        f'{len(listing.examples)}: choose another val_fraction or split_seed'
      )
  return {
    'train': dataclasses.replace(listing, examples=tuple(cut['train'])),
    'val': Listing(tuple(cut['val'])),
  }


def _config_name(
  options: ImageFolderOptions,
  code: MaskCode | None,
  listings: Mapping[str, Listing],
) -> str:
  """Name of the folder, and a digest of all that decides its records."""
  files = [
    (split, example.id, *_stamp(example.image), *_stamp(example.mask))
    for split, listing in listings.items()
    for example in listing.examples
  ]
  decides = {
    'code': dataclasses.asdict(code) if code else None,
    'files': files,
    'on_bad_example': options.on_bad_example,
    'split_seed': options.split_seed,
    'val_fraction': options.val_fraction,
  }
  text = json.dumps(decides, sort_keys=True)
  digest = hashlib.sha256(text.encode()).hexdigest()[:12]
  name = pathlib.Path(options.source).expanduser().resolve().name
  return f'{re.sub(r"[^a-zA-Z0-9_]", "_", name) or "root"}-{digest}'


def _stamp(path: pathlib.Path | None) -> tuple[str, int, int] | tuple[()]:
  """Suffix, bytes and time of change of a file."""
  if path is None:
    return ()
  stat = path.stat()
  return path.suffix, stat.st_size, stat.st_mtime_ns


def _code(colour: Colour) -> int:
  red, green, blue = colour
  return (red << 16) | (green << 8) | blue


def _colour(code: int) -> Colour:
  return code >> 16, (code >> 8) & 255, code & 255


def _text(colour: Colour) -> str:
  return ','.join(str(part) for part in colour)


def _ranges(values: Sequence[int]) -> list[str]:
  """Runs of increasing values: [0, 2, 3, 4] is ['0', '2…4']."""
  runs: list[list[int]] = []
  for value in values:
    if runs and value == runs[-1][-1] + 1:
      runs[-1].append(value)
    else:
      runs.append([value])
  return [
    f'{run[0]}…{run[-1]}' if len(run) > 1 else f'{run[0]}' for run in runs
  ]
