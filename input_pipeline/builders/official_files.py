"""The files that the sites of published benchmarks distribute.

A data set whose files are missing is refused by them alone, without the import
of TFDS, which takes about as long as that of jax.
"""

import pathlib
from collections.abc import Mapping

from runtime import errors

_IMAGENET_1K = (
  'ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and '
  'ILSVRC2012_devkit_t12.tar.gz, or folders {train,val}/n01440764/*.JPEG'
)
_PASCAL_CONTEXT = (
  'VOCtrainval_03-May-2010.tar and the labels: trainval.tar.gz (of .mat files) '
  'or trainval_merged.json'
)
_CITYSCAPES = (
  'leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip, or their content'
)

# Archives or folders, for messages, by the names of data set and config; a data
# set with a default config has it at '', too.
LAYOUTS: Mapping[str, Mapping[str, str]] = {
  'camvid': {'': '{train,val}/{images,labels}'},
  'voc2012': {
    '': 'VOCtrainval_11-May-2012.tar and benchmark.tgz (of SBD), or their '
    'content'
  },
  'pascal_context': dict.fromkeys(('', '59', '60'), _PASCAL_CONTEXT),
  'ade20k': {'': 'ADEChallengeData2016.zip, or its content'},
  'cityscapes': {
    **dict.fromkeys(('', 'fine'), _CITYSCAPES),
    'coarse': 'leftImg8bit_trainextra.zip and gtCoarse.zip, or their content',
  },
  'gta5': {
    '': '01_images.zip to 10_images.zip and 01_labels.zip to 10_labels.zip'
  },
  'synthia': {
    '': 'RAND_CITYSCAPES/{RGB,GT/LABELS}/*.png, unpacked from '
    'SYNTHIA_RAND_CITYSCAPES.rar (by unrar)'
  },
  'imagenet': {
    **dict.fromkeys(('', '1k'), _IMAGENET_1K),
    '21k': 'a tar file of tar files of classes, those files (n01440764.tar), '
    'or folders n01440764/*.JPEG',
  },
  'imagenet_s': {
    size: 'ImageNet (its tar files, or {train,val}/n01440764/*.JPEG), '
    f'ImageNetS{size}-*.zip and the folder data/ of the ImageNet-S repository '
    '(categories, mapping, names)'
    for size in ('50', '300', '919')
  },
}


def require_official_source(name: str, layout: str, source: str) -> None:
  """Raises MissingInput unless the source is a folder or an archive.

  Args:
    name: name of the data set.
    layout: archives or folders of the data set, one of `LAYOUTS`.
    source: path of the folder or the archive; '' if none is given.
  """
  remedy = (
    f'give the folder of {name} ({layout}), or set SEG_DATA_DIR to the folder '
    f'that holds a folder {name}'
  )
  if not source:
    raise errors.MissingInput(f'source is empty: {remedy}')
  if not pathlib.Path(source).expanduser().exists():
    raise errors.MissingInput(
      errors.format_on_one_line(
        f'source: expected a folder or an archive, got {source}, which does '
        f'not exist: {remedy}'
      )
    )
