"""ImageNet-S: a part of ImageNet with masks, for unsupervised segmentation.

S. Gao et al.: Large-scale unsupervised semantic segmentation, 2022. Read from
ImageNet (1k), the zip files of masks, and the official lists of classes and
names.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Int16

from input_pipeline.builders import files, imagenet
from input_pipeline.sources import archives, masks, pairing, records
from runtime import errors

# Classes of ImageNet that are merged into another class in ImageNet-S 919.
MERGED = {
  'n04356056': 'n04355933',  # sunglasses
  'n04493381': 'n02808440',  # bathtub
  'n03642806': 'n03832673',  # notebook computer
  'n04008634': 'n03773504',  # missile
  'n03887697': 'n15075141',  # toilet tissue
}
_NAME = re.compile(r'(?P<wnid>n\d{8})/(?P<stem>\w+)\.\w+')


@dataclasses.dataclass(eq=False)
class ImagenetSConfig(tfds.core.BuilderConfig):
  """The variant: its number of classes, and of images of each split."""

  num_classes: int = 0
  counts: Mapping[str, int] = dataclasses.field(default_factory=dict)


def _config(num_classes: int, *counts: int) -> ImagenetSConfig:
  splits = ('train', 'train_semi', 'val', 'test')
  return ImagenetSConfig(
    str(num_classes),
    num_classes=num_classes,
    counts=dict(zip(splits, counts, strict=True)),
  )


class ImagenetS(files.OfficialBuilder):
  """ImageNet-S with the splits train, train_semi, val and test.

  Class 0 is 'other', the others are in the order of the official list. Ids are
  'n01443537/ILSVRC2012_val_00000236', with the class after merging, as in the
  official folders. Only train_semi and val have masks; the tag of an image
  without a mask is its class.
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
    """Returns the official number of images of each split of this variant."""
    return self.builder_config.counts

  def schema(self) -> records.Schema:
    """Returns 'other' and the classes of the official list."""
    prepared = self.prepared_schema()
    if prepared:
      return prepared
    self.listings()
    classes = ('other', *self._wnids)
    return records.Schema(classes, masks.voc_palette(len(classes)), tags=True)

  def missing_labels(self) -> Mapping[str, Sequence[str]]:
    """Returns 'label' for train and test, of which no masks are published."""
    return dict.fromkeys(('train', 'test'), ('label',))

  def find_examples(
    self, sources: files.Files
  ) -> Mapping[str, pairing.Listing]:
    """Lists images and masks by the official lists."""
    size = self.builder_config.name
    self._wnids = files.read_official_list(
      self._list(sources, rf'ImageNetS_categories_im{size}\.txt')
    )
    if len(self._wnids) != self.builder_config.num_classes:
      raise errors.UserError(
        f'source: expected {size} classes in '
        f'ImageNetS_categories_im{size}.txt, got {len(self._wnids)}: download '
        'the list again'
      )
    train = files.match_and_group_source_files(sources, imagenet.TRAIN, 'wnid')
    val = files.match_source_files(sources, imagenet.VAL)
    self.require_files(
      {'train/n01440764/*.JPEG': train, 'ILSVRC2012_val_*.JPEG': val}
    )
    semi = self._list(
      sources,
      rf'(?:ImageNetS_im{size}_train_semi|ImageNetSemi_im{size}_train)\.txt',
    )
    mapping = rf'ImageNetS_im{size}_mapping_%s\.txt'
    lists = {
      'val': self._list(sources, mapping % 'val(?:idation)?'),
      'test': self._list(sources, mapping % 'test'),
    }
    train_files = {key: file for key, (file, _) in train.items()}
    return {
      'train': self._train(train),
      'train_semi': self._listed(
        semi, train_files, self._masks(sources, 'train-semi-segmentation')
      ),
      'val': self._listed(
        lists['val'], val, self._masks(sources, 'validation-segmentation')
      ),
      'test': self._listed(lists['test'], val, None),
    }

  def read_mask(self, file: archives.File) -> Int16[np.ndarray, 'H W']:
    """Reads class ids stored as R + 256 G, where 1000 is ignored."""
    pixels = masks.read_mask_pixels(file)
    if pixels.ndim != 3:
      raise errors.UserError(
        'expected RGB, got values: take the masks of the official zip'
      )
    wide = pixels.astype(np.int32)
    if wide[..., 2].any():
      raise errors.UserError('expected R + 256 G and B = 0, got blue pixels')
    num_classes = self.builder_config.num_classes + 1
    table = masks.make_code_table(
      range(num_classes), ignored=(masks.IMAGENET_S_IGNORED,)
    )
    return table.apply(wide[..., 0] + 256 * wide[..., 1])

  def _target(self, wnid: str) -> str:
    """Returns the class into which a class of ImageNet is merged."""
    if self.builder_config.num_classes < 919:
      return wnid
    return MERGED.get(wnid, wnid)

  def _numbers(self) -> Mapping[str, int]:
    return {wnid: i for i, wnid in enumerate(self._wnids, 1)}

  def _train(self, train: imagenet.Classified) -> pairing.Listing:
    """Lists the images of all classes and of those merged into them."""
    numbers = self._numbers()
    examples = []
    for key, (file, folder) in train.items():
      wnid = self._target(folder)
      if wnid in numbers:
        tags = (numbers[wnid],)
        examples.append(pairing.Example(f'{wnid}/{key}', file, tags=tags))
    examples.sort(key=lambda example: example.id)
    return pairing.Listing(tuple(examples))

  def _listed(
    self,
    names: archives.File,
    images: Mapping[str, archives.File],
    labels: Mapping[str, archives.File] | None,
  ) -> pairing.Listing:
    """Pairs the images and masks of a list.

    Args:
      names: list file. The last word of a line is the official name; lists of
        merged classes have the name in ImageNet before it.
      images: image files by their name without folder.
      labels: mask files by official name; None for images without masks.
    """
    examples, problems = [], []
    numbers = self._numbers()
    for line in files.read_official_list(names):
      match = _NAME.fullmatch(line.split()[-1])
      if match is None or match['wnid'] not in numbers:
        problems.append(
          errors.BadFile(names, f'expected lines CLASS/NAME, got {line!r}')
        )
        continue
      wnid, stem = match['wnid'], match['stem']
      name = f'{wnid}/{stem}'
      if stem not in images:
        problems.append(
          errors.BadFile(names, f'lists {line}, which has no image')
        )
      elif labels is not None and name not in labels:
        problems.append(errors.BadFile(images[stem], f'has no mask {name}.png'))
      else:
        mask = None if labels is None else labels[name]
        # Without a mask, the class of the folder is the only label.
        tags = (numbers[wnid],) if mask is None else None
        examples.append(pairing.Example(name, images[stem], mask, tags))
    return pairing.Listing(tuple(examples), tuple(problems))

  def _masks(self, sources: files.Files, folder: str) -> files.Files:
    size = self.builder_config.name
    labels = files.match_source_files(
      sources, rf'ImageNetS{size}/{folder}/(?P<id>n\d{{8}}/\w+)\.png'
    )
    self.require_files({f'ImageNetS{size}/{folder}/*/*.png': labels})
    return labels

  def _list(self, sources: files.Files, name: str) -> archives.File:
    lists = files.match_source_files(sources, rf'(?P<id>{name})')
    self.require_files({name.replace('\\', ''): lists})
    return next(iter(lists.values()))
