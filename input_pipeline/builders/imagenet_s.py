"""ImageNet-S: ImageNet with masks, for unsupervised segmentation.

S. Gao et al.: Large-scale unsupervised semantic segmentation, 2022. It is made
of ImageNet (1k), the mask zips, and the official lists of classes and names.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Int16

from input_pipeline.builders import files, imagenet
from input_pipeline.sources import archives, audit, masks, records
from runtime import errors

IGNORED = 1000
# Classes of ImageNet whose images belong to another class in ImageNet-S 919.
MERGED = {
  'n04356056': 'n04355933',  # sunglasses
  'n04493381': 'n02808440',  # bathtub
  'n03642806': 'n03832673',  # notebook computer
  'n04008634': 'n03773504',  # missile
  'n03887697': 'n15075141',  # toilet tissue
}
_NAME = re.compile(r'(?P<wnid>n\d{8})/(?P<stem>\w+)\.\w+')


@dataclasses.dataclass(eq=False)
class Config(tfds.core.BuilderConfig):
  """Which of the three: its number of classes and of images."""

  num_classes: int = 0
  counts: Mapping[str, int] = dataclasses.field(default_factory=dict)


def _config(num_classes: int, *counts: int) -> Config:
  splits = ('train', 'train_semi', 'val', 'test')
  return Config(
    str(num_classes),
    num_classes=num_classes,
    counts=dict(zip(splits, counts, strict=True)),
  )


class ImagenetS(files.Official):
  """ImageNet-S: train and test without masks, train_semi and val with.

  Class 0 is 'other', the others are in the order of the official list. Ids are
  'n01443537/ILSVRC2012_val_00000236', as the official folders have them, after
  merging. Tags of train are its class.
  """

  VERSION = tfds.core.Version('1.0.0')
  BUILDER_CONFIGS: ClassVar = [
    _config(50, 64431, 500, 752, 1682),
    _config(300, 384862, 3000, 4097, 9088),
    _config(919, 1183322, 9190, 12419, 27423),
  ]
  patterns = (*imagenet.ARCHIVES, 'ImageNetS*.zip')

  @property
  def counts(self) -> Mapping[str, int]:
    """Those of this size."""
    return self.builder_config.counts

  @property
  def layout(self) -> str:
    """ImageNet, masks and lists."""
    size = self.builder_config.name
    return (
      'ImageNet (its tar files, or {train,val}/n01440764/*.JPEG), '
      f'ImageNetS{size}-*.zip and the folder data/ of the ImageNet-S '
      'repository (categories, mapping, names)'
    )

  def contents(self) -> records.Contents:
    """'other', and the classes of the official list."""
    known = self.prepared_contents()
    if known:
      return known
    self.listings()
    classes = ('other', *self._wnids)
    return records.Contents(classes, masks.palette(len(classes)), tags=True)

  def lacks(self) -> Mapping[str, Sequence[str]]:
    """Masks of train do not exist, those of test are not public."""
    return dict.fromkeys(('train', 'test'), ('label',))

  def find(self, found: files.Files) -> Mapping[str, audit.Listing]:
    """Images and masks by the official lists."""
    size = self.builder_config.name
    self._wnids = files.read_list(
      self._list(found, rf'ImageNetS_categories_im{size}\.txt')
    )
    if len(self._wnids) != self.builder_config.num_classes:
      raise errors.UserError(
        f'source: ImageNetS_categories_im{size}.txt has '
        f'{len(self._wnids)} classes, expected {size}: get the list again'
      )
    train = files.pick_with(found, imagenet.TRAIN, 'wnid')
    val = files.pick(found, imagenet.VAL)
    for what, there in (
      ('train/n01440764/*.JPEG', train),
      ('ILSVRC2012_val_*.JPEG', val),
    ):
      if not there:
        raise self.missing(what)
    semi = self._list(
      found,
      rf'(?:ImageNetS_im{size}_train_semi|ImageNetSemi_im{size}_train)\.txt',
    )
    mapping = rf'ImageNetS_im{size}_mapping_%s\.txt'
    lists = {
      'val': self._list(found, mapping % 'val(?:idation)?'),
      'test': self._list(found, mapping % 'test'),
    }
    of_train = {key: file for key, (file, _) in train.items()}
    return {
      'train': self._train(train),
      'train_semi': self._listed(
        semi, of_train, self._masks(found, 'train-semi-segmentation')
      ),
      'val': self._listed(
        lists['val'], val, self._masks(found, 'validation-segmentation')
      ),
      'test': self._listed(lists['test'], val, None),
    }

  def read_mask(self, file: archives.File) -> Int16[np.ndarray, 'H W']:
    """R + 256 G, where 1000 is ignored."""
    pixels = masks.read_pixels(file)
    if pixels.ndim != 3:
      raise errors.UserError(
        'has values, expected RGB: take the masks of the official zip'
      )
    wide = pixels.astype(np.int32)
    if wide[..., 2].any():
      raise errors.UserError('has blue pixels, expected R + 256 G and B = 0')
    num_classes = self.builder_config.num_classes + 1
    table = masks.table_of(range(num_classes), ignored=(IGNORED,))
    return table.apply(wide[..., 0] + 256 * wide[..., 1])

  def _target(self, wnid: str) -> str:
    """The class of an ImageNet class."""
    if self.builder_config.num_classes < 919:
      return wnid
    return MERGED.get(wnid, wnid)

  def _numbers(self) -> Mapping[str, int]:
    return {wnid: i for i, wnid in enumerate(self._wnids, 1)}

  def _train(self, train: imagenet.Classified) -> audit.Listing:
    """The images of all listed classes and of those merged into them."""
    numbers = self._numbers()
    examples = []
    for key, (file, folder) in train.items():
      wnid = self._target(folder)
      if wnid in numbers:
        tags = (numbers[wnid],)
        examples.append(audit.Example(f'{wnid}/{key}', file, tags=tags))
    examples.sort(key=lambda example: example.id)
    return audit.Listing(tuple(examples))

  def _listed(
    self,
    names: archives.File,
    images: Mapping[str, archives.File],
    labels: Mapping[str, archives.File] | None,
  ) -> audit.Listing:
    """The images of a list; the name to have is the last of its line."""
    examples, problems = [], []
    numbers = self._numbers()
    for line in files.read_list(names):
      match = _NAME.fullmatch(line.split()[-1])
      if match is None or match['wnid'] not in numbers:
        problems.append(
          errors.BadFile(names, f'has the line {line!r}, expected CLASS/NAME')
        )
        continue
      wnid, stem = match['wnid'], match['stem']
      name = f'{wnid}/{stem}'
      if stem not in images:
        problems.append(errors.BadFile(names, f'lists {line}: no such image'))
      elif labels is not None and name not in labels:
        problems.append(errors.BadFile(images[stem], f'has no mask {name}.png'))
      else:
        mask = None if labels is None else labels[name]
        # Without a mask, the class of the folder is what is known.
        tags = (numbers[wnid],) if mask is None else None
        examples.append(audit.Example(name, images[stem], mask, tags))
    return audit.Listing(tuple(examples), tuple(problems))

  def _masks(self, found: files.Files, folder: str) -> files.Files:
    size = self.builder_config.name
    labels = files.pick(
      found, rf'ImageNetS{size}/{folder}/(?P<id>n\d{{8}}/\w+)\.png'
    )
    if not labels:
      raise self.missing(f'ImageNetS{size}/{folder}/*/*.png')
    return labels

  def _list(self, found: files.Files, name: str) -> archives.File:
    lists = files.pick(found, rf'(?P<id>{name})')
    if not lists:
      raise self.missing(name.replace('\\', ''))
    return next(iter(lists.values()))
