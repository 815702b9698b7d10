"""Options of a data set: its name, and where and how its files are."""

import dataclasses

from input_pipeline import folder_options
from input_pipeline.sources import image_files
from runtime import errors
from runtime import options as options_lib

# Module below input_pipeline.builders and class of each data set. A module is
# imported when its data set is opened: each needs other packages.
BUILDERS = {
  'shapes': ('shapes', 'Shapes'),
  'camvid': ('camvid', 'Camvid'),
  'voc2012': ('voc2012', 'Voc2012'),
  'pascal_context': ('pascal_context', 'PascalContext'),
  'ade20k': ('ade20k', 'Ade20k'),
  'cityscapes': ('cityscapes', 'Cityscapes'),
  'gta5': ('gta5', 'Gta5'),
  'synthia': ('synthia', 'Synthia'),
  'imagenet': ('imagenet', 'Imagenet'),
  'imagenet_s': ('imagenet_s', 'ImagenetS'),
  'image_folder': ('folders', 'ImageFolder'),
  'image_mask_folder': ('folders', 'ImageMaskFolder'),
  'image_tag_folder': ('tag_folders', 'ImageTagFolder'),
}


@dataclasses.dataclass(frozen=True)
class DataOptions:
  """Names a data set and locates its files.

  Attributes:
    name: name of a data set in docs/datasets.md: 'camvid', 'imagenet_s/50',
      'image_folder'.
    source: folder of the files the data set is made from; '' is
      $SEG_DATA_DIR/NAME.
    images: folder of the images in `source`; folders only.
    masks: folder of the masks in `source`; not of image_folder.
    tags: table of the labels of whole images, or folder of text files, in
      `source`; '' for a folder for each class; image_tag_folder only.
    classes: file with the class list; image_mask_folder only.
    ignore: value or color of pixels without a class, '255' or '255,255,255' or
      '#ffffff'; '' if there are none; image_mask_folder only.
    without_mask: treatment of images that have no mask: 'error' refuses them,
      'unlabeled' makes them a split of this name; image_mask_folder only.
    mask_codes: whether palette and gray masks are read by their 'values' or by
      their 'colors', or 'auto', if the class list has colors;
      image_mask_folder only.
    follow_exif: whether images are turned as their EXIF tag says; folders only.
    image_depth: bits of the values in images of 16 bits; folders only.
    max_megapixels: limit above which images are refused; folders only.
    image_suffix: end of all image names that is no part of ids, as
      '_leftImg8bit.png'; folders only.
    mask_suffix: end of all mask names, as '_mask.png'; image_mask_folder only.
    val_fraction: fraction of the images that becomes `val`; folders only.
    split_seed: seed that selects the images of `val`; folders only.
    on_bad_example: treatment of a bad file: 'error' refuses the data set,
      'skip' skips the file; folders only.
  """

  name: str
  source: str = options_lib.location_option(default='')
  images: str = options_lib.location_option(default='')
  masks: str = options_lib.location_option(default='')
  classes: str = options_lib.location_option(default='')
  ignore: str = ''
  without_mask: str = 'error'
  val_fraction: float = 0.0
  split_seed: int = 0
  on_bad_example: str = 'error'
  mask_codes: str = 'auto'
  follow_exif: bool = False
  image_depth: int = 16
  max_megapixels: int = image_files.MAX_MEGAPIXELS
  image_suffix: str = ''
  mask_suffix: str = ''
  tags: str = options_lib.location_option(default='')

  def __post_init__(self):
    name, slash, config = self.name.partition('/')
    if name not in BUILDERS or (slash and not config):
      raise errors.UserError(
        f'name: expected a data set of {", ".join(BUILDERS)}, got '
        f'{self.name!r}{options_lib.suggest_name(name, BUILDERS)}'
      )
    unread = folder_options.list_unread_fields(name)
    for field in dataclasses.fields(self):
      if field.name in unread and getattr(self, field.name) != field.default:
        raise errors.UserError(
          f'{field.name}: expected no value, as {name} does not read it, got '
          f'{getattr(self, field.name)!r}: remove it'
        )

  @property
  def reading(self) -> image_files.ImageOptions:
    """Returns the options that define the pixels of image files."""
    return image_files.ImageOptions(
      **{name: getattr(self, name) for name in folder_options.READING_FIELDS}
    )
