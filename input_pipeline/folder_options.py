"""The options of a user's folder, from the fields of `datasets.DataOptions`."""

import os
import pathlib
from typing import Any

from etils import epy

from input_pipeline.sources import image_ids

with epy.lazy_imports():
  from input_pipeline.builders import class_list

# Data sets that are a user's own folder.
FOLDERS = ('image_folder', 'image_mask_folder', 'image_tag_folder')
# Fields of `DataOptions` that define the pixels of image files.
READING_FIELDS = ('follow_exif', 'image_depth', 'max_megapixels')

# Fields that all kinds of folders read as they are.
_FIELDS = (
  *('images', 'image_suffix', 'val_fraction', 'split_seed', 'on_bad_example'),
  'reading',
)
# Fields of masks, which tagged images may have as well.
_MASK_FIELDS = ('masks', 'mask_suffix', 'mask_codes', 'classes', 'ignore')
_FOLDER_FIELDS = (
  *('images', 'image_suffix', *_MASK_FIELDS, 'without_mask', 'tags'),
  *(*READING_FIELDS, 'val_fraction', 'split_seed', 'on_bad_example'),
)
# Fields of `DataOptions` that a data set does not read; others read none of
# `_FOLDER_FIELDS`.
_UNREAD = {
  'shapes': ('source', *_FOLDER_FIELDS),
  'image_folder': (*_MASK_FIELDS, 'without_mask', 'tags'),
  'image_mask_folder': ('tags',),
  'image_tag_folder': ('without_mask', 'val_fraction', 'split_seed'),
}


def list_unread_fields(name: str) -> tuple[str, ...]:
  """Returns the names of the fields of `DataOptions` that a set ignores."""
  return _UNREAD.get(name, _FOLDER_FIELDS)


def make_folder_options(module: Any, options: Any, source: str) -> Any:
  """Builds the options of the builder of a folder.

  Args:
    module: the module of its builder, `builders.folders` or `tag_folders`.
    options: the `DataOptions`.
    source: path of the folder.

  Raises:
    UserError: an option is wrong.
  """
  fields = {name: getattr(options, name) for name in _FIELDS}
  if options.name == 'image_folder':
    return module.ImageFolderOptions(source=source, **fields)
  fields |= {name: getattr(options, name) for name in _MASK_FIELDS}
  fields['ignore'] = class_list.parse_ignored_mask_value(options.ignore)
  if options.name == 'image_tag_folder':
    return module.ImageTagFolderOptions(
      source=source, tags=options.tags, **fields
    )
  return module.ImageMaskFolderOptions(
    source=source, without_mask=options.without_mask, **fields
  )


def folder_id_rule(options: Any, source: str) -> image_ids.IdRule:
  """Returns how the ids of a folder's images relate to their paths.

  Args:
    options: the `DataOptions`; of other data sets, ids are official names.
    source: path of the folder.
  """
  if options.name not in FOLDERS:
    return image_ids.OFFICIAL
  path = pathlib.Path(source).expanduser() / options.images
  return image_ids.IdRule(os.path.abspath(path), options.image_suffix)
