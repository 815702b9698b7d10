"""A user's own images with labels of whole images, and masks of a few.

  options = ImageTagFolderOptions(
    source='~/animals', images='photos', tags='tags.csv', classes='', masks=''
  )
  ImageTagFolder(options, data_dir=data_dir).download_and_prepare()

Class 0 is the background; the others are those of the tags, by name, or those
of a class list. Images that have a mask are the split `val`, on which a network
is evaluated; all others are `train`.
"""

import dataclasses
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from input_pipeline.builders import class_list, folders
from input_pipeline.sources import (
  image_ids,
  mask_reader,
  masks,
  pairing,
  palettes,
  records,
  tag_files,
)
from input_pipeline.sources.pairing import Listing
from runtime import errors

BACKGROUND = 'background'
# One number or several, as the files of detectors have: no names.
_NUMBERS = re.compile(r'[-+.\d\s]+(e[-+]?\d+)?', re.IGNORECASE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageTagFolderOptions(folders.ImageFolderOptions):
  """Locates images, their tags and, for the evaluation, some masks.

  Attributes:
    tags: table, or folder of text files, in `source` (see `tag_files`); ''
      where the images of a class are in a folder of its name.
    classes: file in `source` with a class per line, the background first; ''
      for the sorted names of the tags. Masks need it.
    masks: folder of masks in `source`; '' if there are none.
    ignore: value, or color, of pixels without a class; None if there are none.
    mask_codes: whether palette and gray masks are read by their values or by
      their colors, one of `mask_reader.CODES`.
    mask_suffix: end of all names of masks that is no part of ids.
  """

  tags: str
  classes: str
  masks: str
  ignore: int | masks.Color | None = None
  mask_codes: str = 'auto'
  mask_suffix: str = ''

  def __post_init__(self):
    super().__post_init__()
    if folders.SPLIT in self.images or self.val_fraction:
      raise errors.UserError(
        'images, val_fraction: expected neither {split} nor a fraction with '
        'tags, as images with a mask are the split val'
      )
    if self.masks and not self.classes:
      raise errors.UserError(
        'classes: expected a class list with masks, whose values it names, got '
        "''"
      )
    if self.mask_codes not in mask_reader.CODES:
      raise errors.UserError(
        f'mask_codes: expected one of {mask_reader.CODES}, got '
        f'{self.mask_codes!r}'
      )


class ImageTagFolder(folders.ImageFolder):
  """Images with tags, and a few with masks of the same names."""

  def __init__(self, options: ImageTagFolderOptions, **kwargs: Any):
    self._classes: class_list.ClassList | None = None
    super().__init__(options, **kwargs)

  def schema(self) -> records.Schema:
    """Returns the background and the classes of the tags."""
    classes = self.builder_config.classes
    colors = classes.colors or palettes.class_palette(classes.names)
    has_masks = bool(self._options.masks)
    return records.Schema(classes.names, colors, labels=has_masks, tags=True)

  def missing_labels(self) -> Mapping[str, Sequence[str]]:
    """Returns that images without a mask have tags alone."""
    return {'train': ('label',)} if self._options.masks else {}

  def warnings(self) -> Sequence[str]:
    """Returns warnings, and notes on a class list of another format."""
    return [*self.builder_config.classes.notes, *super().warnings()]

  def read_mask(self, file: Any) -> Any:
    """Reads class ids by the class list."""
    reader = self.builder_config.classes.reader(
      self._options.mask_codes, self._options.reading.follow_exif
    )
    return reader.read(file)

  def scan(self) -> Mapping[str, Listing]:
    """Lists images with their tags, and those with masks.

    Raises:
      UserError: a folder or file is missing, a tag is no class, or no image
        has tags.
    """
    options = self._options
    source = pathlib.Path(options.source).expanduser()
    images = source / options.images
    listing = pairing.list_image_examples(
      images,
      source / options.masks if options.masks else None,
      without_mask=folders.UNLABELED if options.masks else None,
      endings=pairing.Endings(options.image_suffix, options.mask_suffix),
    )
    tags, missing = tag_files.read_image_tags(
      source / options.tags if options.tags else None,
      images,
      [each.id for each in listing.examples],
    )
    self._classes = self._read_class_list(source, tags)
    tagged = [each for each in listing.examples if each.mask is None]
    problems = [missing[each.id] for each in tagged if each.id in missing]
    train = self._with_tags(tagged, tags)
    if not train:
      raise errors.UserError(
        errors.format_on_one_line(
          f'tags: expected tags of images in {images}, got none: '
          f'{(problems or ["all images have a mask"])[0]}'
        )
      )
    masked = tuple(each for each in listing.examples if each.mask is not None)
    return {
      'train': dataclasses.replace(
        listing,
        examples=train,
        problems=(*listing.problems, *problems),
      ),
      **({'val': Listing(masked)} if masked else {}),
    }

  def settings(self) -> Mapping[str, Any]:
    """Returns the options and tags that determine the records."""
    examples = self.listings()['train'].examples
    return {
      **super().settings(),
      'mask_codes': self._options.mask_codes,
      'tags': {each.id: each.tags for each in examples},
    }

  def _read_classes(self) -> class_list.ClassList:
    self.listings()
    return self._classes

  def _read_class_list(
    self, source: pathlib.Path, tags: tag_files.Tags
  ) -> class_list.ClassList:
    """Reads the class list, or makes one of the tags."""
    options = self._options
    if options.classes:
      classes = class_list.read_class_list(
        source / options.classes, options.ignore
      )
      later = [x for x in classes.names[1:] if x.casefold() == BACKGROUND]
      if later:
        raise errors.UserError(
          f'classes: expected the background in the first line of '
          f'{options.classes}, got {classes.names[0]!r} there, and '
          f'{later[0]!r} below'
        )
      return classes
    names = _class_names(tags)
    return class_list.ClassList(names, tuple(range(len(names))))

  def _with_tags(
    self, examples: Sequence[pairing.Example], tags: tag_files.Tags
  ) -> tuple[pairing.Example, ...]:
    """Returns the examples that have tags, with the ids of these."""
    names = self._classes.names
    id_of = {image_ids.compose_unicode(name): i for i, name in enumerate(names)}
    tagged = []
    for each in examples:
      if each.id not in tags:
        continue
      for name in tags[each.id]:
        if id_of.get(name) == 0 and name.casefold() != BACKGROUND:
          raise errors.UserError(
            errors.format_on_one_line(
              f'classes: expected the background in the first line of '
              f'{self._options.classes}, got {name!r}, which {each.image} has '
              f'as a tag: add a line {BACKGROUND} in front, or leave out tags '
              'of the background'
            )
          )
        if name not in id_of:
          raise errors.UserError(
            errors.format_on_one_line(
              f'tags: {each.image}: expected classes of the list, '
              f'{", ".join(names)}, got {name!r}'
            )
          )
      # Every image shows some background.
      present = sorted({0, *(id_of[name] for name in tags[each.id])})
      tagged.append(dataclasses.replace(each, tags=tuple(present)))
    return tuple(tagged)


def _class_names(tags: tag_files.Tags) -> tuple[str, ...]:
  """Returns the background and the sorted names of the tags.

  Raises:
    UserError: there is no name, one is a number, or two differ by case alone.
  """
  image_of = {name: each for each in tags for name in tags[each]}
  names = sorted(name for name in image_of if name != BACKGROUND)
  if tags and not names:
    raise errors.UserError(
      f'tags: expected the name of a class for some of the {len(tags):,} '
      'images, got none'
    )
  for name in names:
    if _NUMBERS.fullmatch(name):
      raise errors.UserError(
        errors.format_on_one_line(
          f'tags: {image_of[name]}: expected names of classes, got {name!r}: '
          'write the names (columns of 0 and 1, numbers of classes and boxes '
          'are not read), or set classes to a list that has such names'
        )
      )
  spelled = {BACKGROUND: BACKGROUND}
  for name in names:
    other = spelled.setdefault(name.casefold(), name)
    if other != name:
      raise errors.UserError(
        errors.format_on_one_line(
          f'tags: {image_of[name]}: expected one spelling of a class, got '
          f'{name!r} beside {other!r}: write them alike, or set classes to a '
          'list that has both'
        )
      )
  return (BACKGROUND, *names)
