"""Builders of a user's own images, with or without masks.

  options = ImageMaskFolderOptions(
    source='~/roads', images='images', masks='masks', classes='classes.txt',
    ignore=255, val_fraction=0.1,
  )
  ImageMaskFolder(options, data_dir=data_dir).download_and_prepare()

Splits are either folders, written as `{split}` in `images` and `masks`
(`images='{split}/photos'`), or cut from one folder by `val_fraction`: an image
belongs to `val` if the first 8 bytes of sha256('SEED:ID'), as a big-endian
fraction of 2**64, are below `val_fraction`, else to `train`. Thus an image
keeps its split when others are added or removed.

The name of a TFDS config is a digest of the options and of the names and the
content of all files. A changed folder is another config and is prepared again;
one that was moved, copied or renamed is the same, however its path is spelled.
"""

import dataclasses
import functools
import hashlib
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Int16

from input_pipeline.builders import class_list, files, folder_state
from input_pipeline.sources import (
  archives,
  audit,
  image_files,
  mask_reader,
  masks,
  pairing,
  palettes,
  records,
)
from input_pipeline.sources.pairing import Listing
from runtime import errors

SPLIT = '{split}'
UNLABELED = 'unlabeled'  # Split of images without masks.


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageFolderOptions:
  """Locates images, and defines their splits.

  Attributes:
    source: the folder of the data set.
    images: folder of the images in `source`; '' is `source` itself. With
      `{split}` as one of its parts, each folder there is a split.
    val_fraction: fraction of the images that becomes `val`, in [0, 1).
    split_seed: seed that selects the images of `val`.
    on_bad_example: treatment of a bad file: 'error' refuses the data set,
      'skip' skips the file.
    reading: definition of the pixels of image files.
    image_suffix: end of all names of images that is no part of ids, as
      `_leftImg8bit.png`; '' if there is none.
  """

  source: str
  images: str = ''
  val_fraction: float = 0.0
  split_seed: int = 0
  on_bad_example: str = 'error'
  reading: image_files.ImageOptions = image_files.AS_STORED
  image_suffix: str = ''

  def __post_init__(self):
    if not self.source:
      raise errors.UserError('source is empty: give the folder of the images')
    if not 0 <= self.val_fraction < 1:
      raise errors.UserError(
        'val_fraction: expected 0 or more, and below 1, got '
        f'{self.val_fraction}'
      )
    if self.on_bad_example not in audit.ON_BAD_EXAMPLE:
      raise errors.UserError(
        f'on_bad_example: expected one of {audit.ON_BAD_EXAMPLE}, got '
        f'{self.on_bad_example!r}'
      )
    _check_pattern('images', self.images)
    if SPLIT in self.images and self.val_fraction:
      raise errors.UserError(
        f'val_fraction: expected 0, as images={self.images!r} has its splits '
        f'in folders, got {self.val_fraction}'
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageMaskFolderOptions(ImageFolderOptions):
  """Locates images and masks, and describes the values of the masks.

  Attributes:
    masks: folder of the masks in `source`, with `{split}` where `images` has
      it.
    classes: file in `source` with a class per line: `name`, `name R,G,B` or
      `name #rrggbb`. Line i, from 0, names value i of the masks.
    ignore: value, or color, of pixels without a class; None if there are none.
      A line of the class list with this value or color is not a class.
    without_mask: treatment of images that have no mask: 'error' refuses them,
      'unlabeled' makes them a split of this name.
    mask_codes: whether palette and gray masks are read by their values or by
      their colors, one of `mask_reader.CODES`.
    mask_suffix: end of all names of masks that is no part of ids, as
      `_mask.png`; '' if there is none. With one, masks may be in the folder of
      the images.
  """

  masks: str
  classes: str
  ignore: int | masks.Color | None = None
  without_mask: str = 'error'
  mask_codes: str = 'auto'
  mask_suffix: str = ''

  def __post_init__(self):
    super().__post_init__()
    if self.without_mask not in pairing.WITHOUT_MASK:
      raise errors.UserError(
        f'without_mask: expected one of {pairing.WITHOUT_MASK}, got '
        f'{self.without_mask!r}'
      )
    if self.mask_codes not in mask_reader.CODES:
      raise errors.UserError(
        f'mask_codes: expected one of {mask_reader.CODES}, got '
        f'{self.mask_codes!r}'
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
        f'masks: expected {SPLIT} in both images and masks or in neither, got '
        f'{self.masks!r} with images={self.images!r}'
      )
    images = pathlib.PurePath(self.images)
    within = pathlib.PurePath(self.masks).is_relative_to(images)
    if within and not self.mask_suffix:
      raise errors.UserError(
        'masks: expected a folder outside of the images, as every PNG there is '
        f'an image, got {self.masks!r} with images={self.images!r}: move the '
        'masks, or set mask_suffix to the end of their names'
      )
    _check_ignore(self.ignore)


@dataclasses.dataclass(eq=False)
class FolderConfig(tfds.core.BuilderConfig):
  """The content of a folder as a TFDS config.

  The name of the config contains a digest of the folder's content.

  Attributes:
    classes: class list of the masks; None for images without masks.
    unlabeled: whether some images have no mask while others have one.
  """

  # Without repr: TFDS logs configs, and there may be thousands of classes.
  classes: class_list.ClassList | None = dataclasses.field(
    default=None, repr=False
  )
  unlabeled: bool = False


def split_of_example(example_id: str, val_fraction: float, seed: int) -> str:
  """Chooses the split of an example, 'val' or 'train', by a hash of its id.

  Args:
    example_id: id of the example.
    val_fraction: fraction of the examples that becomes `val`, in [0, 1).
    seed: seed of the hash.
  """
  digest = hashlib.sha256(f'{seed}:{example_id}'.encode()).digest()
  position = int.from_bytes(digest[:8], 'big') / 2**64
  return 'val' if position < val_fraction else 'train'


class ImageFolder(files.FileBuilder):
  """Images of a folder and its subfolders, without labels.

  The id of an image is its path within the folder, without suffix, preceded by
  the name of its split if splits are folders.
  """

  VERSION = tfds.core.Version('1.1.0')
  remedy = audit.SKIP_REMEDY

  def __init__(
    self,
    options: ImageFolderOptions,
    *,
    config: FolderConfig | None = None,
    **kwargs: Any,
  ):
    """Lists the folder, unless its state is given.

    Args:
      options: location of the images, and definition of their splits.
      config: state of the folder that another builder has listed; a pickled
        builder contains it, so that other processes need not list the folder.
      **kwargs: `data_dir`, the folder of prepared records.

    Raises:
      UserError: a folder is missing or empty.
    """
    self._options = options
    self.on_bad_example = options.on_bad_example
    self._digests = folder_state.open_digest_cache(
      options.source, kwargs.get('data_dir')
    )
    self.image_options = options.reading
    super().__init__(config=config or self._config(), **kwargs)
    # TFDS pickles a builder as these arguments.
    self._original_state['options'] = options
    if self.is_prepared():  # The folder may have been moved since.
      self._digests.write()

  def schema(self) -> records.Schema:
    """Returns a schema without classes and without kinds of label."""
    return records.Schema((), (), labels=False, tags=False)

  def scan(self) -> Mapping[str, Listing]:
    """Lists the files of each split."""
    return _list_splits(self._options)

  def settings(self) -> Mapping[str, Any]:
    """Returns the options that determine records, beside files and classes."""
    return _settings(self._options)

  def _config(self) -> FolderConfig:
    """Describes the state of the folder."""
    listings = self.listings()
    classes = self._read_classes()
    name = folder_state.folder_state_digest(
      pathlib.Path(self._options.source).expanduser(),
      self.settings(),
      classes,
      listings,
      self._digests,
    )
    return FolderConfig(
      name=name, classes=classes, unlabeled=UNLABELED in listings
    )

  def _read_classes(self) -> class_list.ClassList | None:
    return None

  def _post_download_and_prepare_hook(self) -> None:
    super()._post_download_and_prepare_hook()
    self._digests.write()


class ImageMaskFolder(ImageFolder):
  """Images with masks of the same names, and a class list."""

  def __init__(self, options: ImageMaskFolderOptions, **kwargs: Any):
    super().__init__(options, **kwargs)

  def schema(self) -> records.Schema:
    """Returns the classes of the list, in its colors or in distinct ones."""
    classes = self.builder_config.classes
    colors = classes.colors or palettes.class_palette(classes.names)
    return records.Schema(classes.names, colors, labels=True, tags=True)

  def missing_labels(self) -> Mapping[str, Sequence[str]]:
    """Returns both kinds of label for the split 'unlabeled', if it exists."""
    unlabeled = self.builder_config.unlabeled
    return {UNLABELED: ('label', 'tags')} if unlabeled else {}

  def warnings(self) -> Sequence[str]:
    """Returns warnings, and notes on a class list of another format."""
    return [*self.builder_config.classes.notes, *super().warnings()]

  @functools.cached_property
  def _mask_reader(self) -> mask_reader.MaskReader:
    return self.builder_config.classes.reader(
      self._options.mask_codes, self._options.reading.follow_exif
    )

  def read_mask(self, file: archives.File) -> Int16[np.ndarray, 'H W']:
    """Reads class ids by the class list."""
    return self._mask_reader.read(file)

  def read_sample(self, source: pairing.Example) -> records.Sample:
    """Reads image and mask, and the colors of a palette that do not count."""
    classes = self.builder_config.classes
    if source.mask is None or classes.colors:
      return super().read_sample(source)
    stored: list[masks.StoredMask] = []

    def read_mask(file: archives.File) -> Any:
      stored.append(self._mask_reader.read_stored(file))
      return self._mask_reader.class_ids(stored[0])

    sample = audit.read_image_example(source, read_mask, self.image_options)
    colors = stored[0].palette_colors(classes.values[i] for i in sample.tags)
    traits = dataclasses.replace(sample.traits, palette=colors)
    return dataclasses.replace(sample, traits=traits)

  def _read_classes(self) -> class_list.ClassList:
    options = self._options
    path = pathlib.Path(options.source).expanduser() / options.classes
    return class_list.read_class_list(path, options.ignore)


def _check_pattern(field: str, pattern: str) -> None:
  """Checks that `{split}` is a whole part of a path, and only one."""
  parts = pathlib.PurePath(pattern).parts
  if pattern.count(SPLIT) != parts.count(SPLIT) or parts.count(SPLIT) > 1:
    raise errors.UserError(
      f'{field}: expected {SPLIT} once, as the whole name of a folder, got '
      f'{pattern!r}'
    )


def _check_ignore(ignore: Any) -> None:
  """Checks that `ignore` is a value, a color or None."""
  is_value = isinstance(ignore, int) and 0 <= ignore < 2**16
  is_color = (
    isinstance(ignore, tuple)
    and len(ignore) == 3
    and all(isinstance(part, int) and 0 <= part <= 255 for part in ignore)
  )
  if ignore is not None and not is_value and not is_color:
    raise errors.UserError(
      'ignore: expected a value of 0 to 65535, a color of three values of 0 to '
      f'255, or None, got {ignore!r}'
    )


def _list_splits(options: ImageFolderOptions) -> Mapping[str, Listing]:
  """Lists the files of each split."""
  source = pathlib.Path(options.source).expanduser()
  if not source.is_dir():
    there = 'is a file' if source.exists() else 'does not exist'
    raise errors.UserError(
      f'source: expected the folder of the images, got {source}, which {there}'
    )
  has_masks = isinstance(options, ImageMaskFolderOptions)
  mask_pattern = options.masks if has_masks else None
  without_mask = options.without_mask if has_masks else None
  endings = pairing.Endings(
    options.image_suffix, options.mask_suffix if has_masks else ''
  )

  def list_split(split: str, prefix: str = '') -> Listing:
    images, masks = (
      None if name is None else source / name.replace(SPLIT, split)
      for name in (options.images, mask_pattern)
    )
    return pairing.list_image_examples(
      images, masks, prefix, without_mask, endings
    )

  if SPLIT not in options.images:
    listings = {'train': list_split('')}
  else:
    listings = {
      split: list_split(split, f'{split}/')
      for split in _split_folders(source, options.images)
    }
    if mask_pattern is not None:
      listings = _warn_of_masks_alone(listings, source, mask_pattern)
  unlabeled = {}
  if without_mask == UNLABELED:
    listings, unlabeled = _separate_unlabeled(listings)
  if SPLIT not in options.images:
    # Only now: `val` is cut from the images that have masks.
    listings = _cut_val(listings['train'], options)
  return {**listings, **unlabeled}


def _separate_unlabeled(
  listings: Mapping[str, Listing],
) -> tuple[Mapping[str, Listing], Mapping[str, Listing]]:
  """Moves images without masks from their splits to one of their own.

  Returns:
    The splits of images with masks; and the split of the others, if any.
  """
  if UNLABELED in listings:
    raise errors.UserError(
      f'without_mask={UNLABELED}: expected no folder of this name at {SPLIT}, '
      'got one: rename it'
    )
  masked, unlabeled = {}, []
  for split, listing in listings.items():
    labeled = [example for example in listing.examples if example.mask]
    unlabeled += [example for example in listing.examples if not example.mask]
    masked[split] = dataclasses.replace(listing, examples=tuple(labeled))
  return masked, {UNLABELED: Listing(tuple(unlabeled))} if unlabeled else {}


def _warn_of_masks_alone(
  listings: Mapping[str, Listing], source: pathlib.Path, masks: str
) -> Mapping[str, Listing]:
  """Adds a warning of the splits that have masks and no folder of images."""
  warnings = tuple(
    errors.format_on_one_line(
      f'{source / masks.replace(SPLIT, split)}: masks of a split without a '
      'folder of images'
    )
    for split in _folders_at_split(source, masks)
    if split not in listings
  )
  first = next(iter(listings))
  changed = dataclasses.replace(
    listings[first], warnings=(*listings[first].warnings, *warnings)
  )
  return {**listings, first: changed}


def _folders_at_split(source: pathlib.Path, pattern: str) -> list[str]:
  """Returns the names at the place of `{split}` that lead to a folder."""
  parts = pathlib.PurePath(pattern).parts
  position = parts.index(SPLIT)
  above = source.joinpath(*parts[:position])
  below = parts[position + 1 :]
  return sorted(
    path.name
    for path in (above.iterdir() if above.is_dir() else ())
    if path.joinpath(*below).is_dir() and not path.name.startswith('.')
  )


def _split_folders(source: pathlib.Path, images: str) -> list[str]:
  """Returns the names of the splits, which are folders of images."""
  names = _folders_at_split(source, images)
  if not names:
    raise errors.UserError(
      f'images: expected a folder {source / images} for each split, got none'
    )
  for name in names:
    if not re.fullmatch(r'\w+', name) or name == 'all':
      raise errors.UserError(
        'images: expected splits named with letters, digits and _, and not '
        f"'all', got the folder {source / images.replace(SPLIT, name)}"
      )
  return names


def _cut_val(
  listing: Listing, options: ImageFolderOptions
) -> Mapping[str, Listing]:
  """Divides a listing into train and val; train keeps the problems."""
  if not options.val_fraction:
    return {'train': listing}
  cut = {'train': [], 'val': []}
  for example in listing.examples:
    split = split_of_example(
      example.id, options.val_fraction, options.split_seed
    )
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


def _settings(options: ImageFolderOptions) -> Mapping[str, Any]:
  """Returns the options that determine records, beside files and classes."""
  settings = {
    'on_bad_example': options.on_bad_example,
    'reading': dataclasses.asdict(options.reading),
    'split_seed': options.split_seed,
    'val_fraction': options.val_fraction,
  }
  if isinstance(options, ImageMaskFolderOptions):
    settings['mask_codes'] = options.mask_codes
  return settings
