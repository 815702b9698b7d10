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
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Int16

from input_pipeline.builders import files
from input_pipeline.sources import archives, audit, masks, records
from input_pipeline.sources.audit import Listing
from runtime import errors

SPLIT = '{split}'
UNLABELED = 'unlabeled'
MAX_CLASSES = 2**15 - 2  # Class id + 1 is read back as int16.

_COLOR = r'#[0-9a-fA-F]{6}|\d+\s*,\s*\d+\s*,\s*\d+'
_CLASS_LINE = re.compile(rf'(?P<name>.*?\S)(?:\s+(?P<color>{_COLOR}))?\s*')


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
    ignore: value, or color, of pixels without a class; None if there are
      none. If it is one of the class list's, that line is no class.
    without_mask: 'error' refuses images that have no mask, 'unlabeled' makes
      them a split of this name.
  """

  masks: str
  classes: str
  ignore: int | masks.Color | None = None
  without_mask: str = 'error'

  def __post_init__(self):
    super().__post_init__()
    if self.without_mask not in audit.WITHOUT_MASK:
      raise errors.UserError(
        f'without_mask is {self.without_mask!r}: expected one of '
        f'{audit.WITHOUT_MASK}'
      )
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
    images = pathlib.PurePath(self.images)
    if pathlib.PurePath(self.masks).is_relative_to(images):
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
    values: of each class id in palette and gray masks.
    colors: of each class id in RGB masks; empty if there is no such table.
    ignored_values: of pixels without a class.
    ignored_colors: of pixels without a class.
  """

  names: tuple[str, ...]
  values: tuple[int, ...]
  colors: tuple[masks.Color, ...] = ()
  ignored_values: tuple[int, ...] = ()
  ignored_colors: tuple[masks.Color, ...] = ()

  def read(self, file: archives.File) -> Int16[np.ndarray, 'H W']:
    """Class ids of a mask file, -1 where ignored.

    Raises:
      UserError: what is wrong with it; without the file's name.
    """
    pixels = masks.read_pixels(file)
    if pixels.ndim == 2:
      return masks.table_of(self.values, self.ignored_values).apply(pixels)
    if not self.colors:
      raise errors.UserError(
        'is an RGB mask, but the class list has no colors: write its lines as '
        '`name R,G,B`, or save the mask with a palette'
      )
    table = masks.table_of(
      map(masks.code_of, self.colors),
      map(masks.code_of, self.ignored_colors),
      self.names,
    )
    return table.apply(pixels.astype(np.int32) @ [1 << 16, 1 << 8, 1])


@dataclasses.dataclass(eq=False)
class Config(tfds.core.BuilderConfig):
  """A folder as it was found: the name tells its content, `code` its masks.

  Attributes:
    code: of the masks, if there are any.
    unlabeled: whether there are images without one where others have one.
  """

  # A list of thousand classes would fill the log.
  code: MaskCode | None = dataclasses.field(default=None, repr=False)
  unlabeled: bool = False


def parse_color(text: str) -> masks.Color:
  """The color of 'R,G,B' or '#rrggbb'.

  Raises:
    UserError: it is neither.
  """
  text = text.strip()
  if re.fullmatch(_COLOR, text):
    if text.startswith('#'):
      return masks.color_of(int(text[1:], 16))
    red, green, blue = (int(part) for part in text.split(','))
    if max(red, green, blue) <= 255:
      return red, green, blue
  raise errors.UserError(
    f'{text!r} is no color: expected R,G,B of 0 to 255 each, or #rrggbb'
  )


def parse_ignore(text: str) -> int | masks.Color | None:
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
    return parse_color(text)
  except errors.UserError:
    raise errors.UserError(
      f'ignore is {text!r}: expected a value as 255, or a color as '
      '255,255,255 or #ffffff'
    ) from None


def read_classes(
  path: pathlib.Path, ignore: int | masks.Color | None = None
) -> MaskCode:
  """Reads a class list: `name`, `name R,G,B` or `name #rrggbb` a line.

  A line whose value (its number, from 0) or color is `ignore` is no class;
  the class ids of the lines below it are one less than their values.

  Raises:
    UserError: the file is missing or names the wrong line in it.
  """
  try:
    lines = path.read_text('utf-8-sig').rstrip().splitlines()
  except OSError as error:
    reason = error.strerror or error
    raise errors.UserError(
      f'classes: cannot read {path}: {reason}: give a text file with a class a '
      'line'
    ) from error
  except UnicodeDecodeError as error:
    raise errors.UserError(
      f'classes: {path} is not UTF-8 text: save it as UTF-8'
    ) from error
  names, colors = [], []
  for number, line in enumerate(lines, 1):
    where = f'classes: {path}, line {number}'
    match = _CLASS_LINE.fullmatch(line.strip())
    if match is None:
      raise errors.UserError(
        f'{where} is empty: expected a class, line i names value i of the masks'
      )
    names.append(match['name'])
    try:
      colors.append(match['color'] and parse_color(match['color']))
    except errors.UserError as error:
      raise errors.UserError(f'{where}: {error}') from error
    if names[-1] in names[:-1]:
      raise errors.UserError(
        f'{where} names {names[-1]!r} a second time: rename one of the two'
      )
    if colors[-1] and colors[-1] in colors[:-1]:
      raise errors.UserError(
        f'{where} gives {masks.color_text(colors[-1])} to a second class: '
        'expected another color for each'
      )
    if (colors[-1] is None) != (colors[0] is None):
      raise errors.UserError(
        f'{where}: expected a color for every class or for none'
      )
  return _mask_code(path, names, [c for c in colors if c], ignore)


def split_of(example_id: str, val_fraction: float, seed: int) -> str:
  """'val' for a part of all ids, 'train' for the others; see the module."""
  digest = hashlib.sha256(f'{seed}:{example_id}'.encode()).digest()
  at = int.from_bytes(digest[:8], 'big') / 2**64
  return 'val' if at < val_fraction else 'train'


class ImageFolder(files.FileBuilder):
  """Images of a folder and its subfolders, without labels.

  The id of an image is its path within the folder, without suffix, after the
  name of its split where splits are folders.
  """

  VERSION = tfds.core.Version('1.1.0')
  remedy = audit.SKIP_REMEDY

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
    self.on_bad_example = options.on_bad_example
    super().__init__(config=config or self._config(), **kwargs)
    self._original_state['options'] = options  # What pickling sends.

  def contents(self) -> records.Contents:
    """No classes, and neither masks nor tags."""
    return records.Contents((), (), labels=False, tags=False)

  def scan(self) -> Mapping[str, Listing]:
    """The files of each split."""
    return _list_splits(self._options)

  def _config(self) -> Config:
    """Says what the folder is like."""
    listings = self.listings()
    code = self._read_code()
    name = _config_name(self._options, code, listings)
    return Config(name=name, code=code, unlabeled=UNLABELED in listings)

  def _read_code(self) -> MaskCode | None:
    return None


class ImageMaskFolder(ImageFolder):
  """Images with masks of the same names, and a list of classes."""

  def __init__(self, options: ImageMaskFolderOptions, **kwargs: Any):
    super().__init__(options, **kwargs)

  def contents(self) -> records.Contents:
    """The classes of the list, in its colors or in those of Pascal VOC."""
    code = self.builder_config.code
    colors = code.colors or masks.palette(len(code.names))
    return records.Contents(code.names, colors, labels=True, tags=True)

  def lacks(self) -> Mapping[str, Sequence[str]]:
    """Masks, and so tags, of the images that have none."""
    without = self.builder_config.unlabeled
    return {UNLABELED: ('label', 'tags')} if without else {}

  def read_mask(self, file: archives.File) -> Int16[np.ndarray, 'H W']:
    """Class ids by the class list."""
    return self.builder_config.code.read(file)

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
  """Refuses what is neither a value, a color nor None."""
  is_value = isinstance(ignore, int) and 0 <= ignore < 2**16
  is_color = (
    isinstance(ignore, tuple)
    and len(ignore) == 3
    and all(isinstance(part, int) and 0 <= part <= 255 for part in ignore)
  )
  if ignore is not None and not is_value and not is_color:
    raise errors.UserError(
      f'ignore is {ignore!r}: expected a value of 0 to 65535, a color of '
      'three values of 0 to 255, or None'
    )


def _mask_code(
  path: pathlib.Path,
  names: Sequence[str],
  colors: Sequence[masks.Color],
  ignore: int | masks.Color | None,
) -> MaskCode:
  """The meaning of masks, once the ignored line is taken out of the list."""
  if isinstance(ignore, tuple) and not colors:
    raise errors.UserError(
      f'ignore is the color {masks.color_text(ignore)}, but {path} has no '
      'colors: expected a value'
    )
  values = range(len(names))
  kept = [i for i in values if ignore not in (i, *colors[i : i + 1])]
  ignored = [i for i in values if i not in kept]
  if not 0 < len(kept) <= MAX_CLASSES:
    raise errors.UserError(
      f'classes: {path} has {len(kept)} classes, expected 1 to {MAX_CLASSES}'
    )
  # A line's value and color are ignored together; others stand for themselves.
  ignored_values = ignored or ([ignore] if isinstance(ignore, int) else [])
  ignored_colors = (
    [colors[i] for i in ignored]
    if ignored
    else [ignore] * isinstance(ignore, tuple)
  )
  return MaskCode(
    names=tuple(names[i] for i in kept),
    values=tuple(kept),
    colors=tuple(colors[i] for i in kept) if colors else (),
    ignored_values=tuple(ignored_values),
    ignored_colors=tuple(ignored_colors) if colors else (),
  )


def _list_splits(options: ImageFolderOptions) -> Mapping[str, Listing]:
  """The files of each split."""
  source = pathlib.Path(options.source).expanduser()
  if not source.is_dir():
    raise errors.UserError(
      f'source: there is no folder {source}: give the folder of the images'
    )
  mask = getattr(options, 'masks', None)
  without = getattr(options, 'without_mask', None)
  if SPLIT not in options.images:
    found = audit.list_examples(
      source / options.images,
      None if mask is None else source / mask,
      without_mask=without,
    )
    listings = {'train': found}
  else:
    listings = {
      split: audit.list_examples(
        source / options.images.replace(SPLIT, split),
        None if mask is None else source / mask.replace(SPLIT, split),
        prefix=f'{split}/',
        without_mask=without,
      )
      for split in _split_folders(source, options.images)
    }
  apart = {}
  if without == UNLABELED:
    listings, apart = _apart(listings)
  if SPLIT not in options.images:
    listings = _cut(listings['train'], options)
  return {**listings, **apart}


def _apart(
  listings: Mapping[str, Listing],
) -> tuple[Mapping[str, Listing], Mapping[str, Listing]]:
  """The splits of images with masks, and that of those without, if any are."""
  if UNLABELED in listings:
    raise errors.UserError(
      f'without_mask={UNLABELED}: there is a folder of this name at '
      f'{SPLIT}, expected others'
    )
  masked, without = {}, []
  for split, listing in listings.items():
    own = [example for example in listing.examples if example.mask]
    without += [example for example in listing.examples if not example.mask]
    masked[split] = dataclasses.replace(listing, examples=tuple(own))
  return masked, {UNLABELED: Listing(tuple(without))} if without else {}


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
    raise errors.UserError(
      f'images: there is no folder {source / images}: expected one for each '
      'split'
    )
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
  source = pathlib.Path(options.source).expanduser()
  files = [
    (
      split,
      example.id,
      *archives.stamp(example.image),
      *archives.stamp(example.mask),
    )
    for split, listing in listings.items()
    for example in listing.examples
  ]
  # What becomes bad is told, so it is another state, too.
  files += [
    (split, os.path.relpath(problem.file, source))
    for split, listing in listings.items()
    for problem in listing.problems
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
  name = source.resolve().name
  return f'{re.sub(r"[^a-zA-Z0-9_]", "_", name) or "root"}-{digest}'
