"""The options of a user's folder, from the fields of `datasets.DataOptions`."""

import os
import pathlib
from typing import Any

from input_pipeline.builders import class_list
from input_pipeline.sources import image_ids

# Data sets that are a user's own folder.
FOLDERS = ('image_folder', 'image_mask_folder')

# Fields that both kinds of folders read as they are.
_FIELDS = (
  *('images', 'image_suffix', 'val_fraction', 'split_seed', 'on_bad_example'),
  'reading',
)
_MASK_FIELDS = (
  *('masks', 'mask_suffix', 'mask_codes', 'classes', 'without_mask'),
)


def make_folder_options(module: Any, options: Any, source: str) -> Any:
  """Builds the options of the builder of a folder.

  Args:
    module: the module `builders.folders`.
    options: the `DataOptions`.
    source: path of the folder.

  Raises:
    UserError: an option is wrong.
  """
  fields = {name: getattr(options, name) for name in _FIELDS}
  if options.name == 'image_folder':
    return module.ImageFolderOptions(source=source, **fields)
  fields |= {name: getattr(options, name) for name in _MASK_FIELDS}
  return module.ImageMaskFolderOptions(
    source=source,
    ignore=class_list.parse_ignored_mask_value(options.ignore),
    **fields,
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
