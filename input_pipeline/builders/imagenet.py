"""ImageNet: ILSVRC2012 (1k), and the full set (21k); images by class.

O. Russakovsky et al.: ImageNet large scale visual recognition challenge, 2015.
Either the official tar files, which are not unpacked, or folders of classes.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

import tensorflow_datasets as tfds

from input_pipeline.builders import files
from input_pipeline.sources import archives, audit, masks, records
from runtime import errors

# The name tells the class, also in a tar file of one class, without a folder.
TRAIN = r'(?P<id>(?P<wnid>n\d{8})_\d+)\.(?:JPEG|jpe?g)'
VAL = r'(?:(?P<wnid>n\d{8})/)?(?P<id>ILSVRC2012_val_\d{8})\.(?:JPEG|jpe?g)'
ARCHIVES = (
  *('ILSVRC2012_img_train*.tar', 'ILSVRC2012_img_val*.tar'),
  *('ILSVRC2012_devkit*.tar.gz', 'n[0-9]*.tar', 'fall11_whole*.tar'),
  *('winter21_whole*.tar', 'winter21_whole*.tar.gz'),
)

# Images by name, with their classes; None where only the kit knows.
Classified = Mapping[str, tuple[archives.File, str | None]]


@dataclasses.dataclass(eq=False)
class Config(tfds.core.BuilderConfig):
  """Which release: its number of images is what is checked."""

  counts: Mapping[str, int] = dataclasses.field(default_factory=dict)


class Imagenet(files.Official):
  """ImageNet without masks: train, and for 1k val.

  Classes are the WordNet ids, sorted. Ids are 'n01440764/n01440764_10026'; tags
  are the class.
  """

  VERSION = tfds.core.Version('1.0.0')
  BUILDER_CONFIGS: ClassVar = [
    Config('1k', counts={'train': 1281167, 'val': 50000}),
    Config('21k', counts={'train': 12743321}),
  ]
  DEFAULT_BUILDER_CONFIG_NAME = '1k'
  patterns = ARCHIVES

  @property
  def counts(self) -> Mapping[str, int]:
    """Those of the release."""
    return self.builder_config.counts

  @property
  def layout(self) -> str:
    """The archives of this release."""
    if self.builder_config.name == '21k':
      return (
        'a tar file of tar files of classes, those files (n01440764.tar), or '
        'folders n01440764/*.JPEG'
      )
    return (
      'ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and '
      'ILSVRC2012_devkit_t12.tar.gz, or folders {train,val}/n01440764/*.JPEG'
    )

  def contents(self) -> records.Contents:
    """The classes that were found, or that were prepared."""
    return self.prepared_contents() or self._contents_of(self.wnids())

  def wnids(self) -> Sequence[str]:
    """Names of the classes, sorted."""
    self.listings()
    return self._wnids

  def find(self, found: files.Files) -> Mapping[str, audit.Listing]:
    """Images by the folders they are in."""
    train = files.pick_with(found, TRAIN, 'wnid')
    if not train:
      raise self.missing('n01440764/n01440764_10026.JPEG')
    self._wnids = sorted({wnid for _, wnid in train.values()})
    listings = {'train': self._listing(train)}
    if 'val' in self.counts:
      val = files.pick_with(found, VAL, 'wnid')
      if not val:
        raise self.missing('ILSVRC2012_val_00000001.JPEG')
      listings['val'] = self._listing(self._with_classes(found, val))
    return listings

  def _listing(self, images: Classified) -> audit.Listing:
    """The images, sorted by class and name."""
    numbers = {wnid: i for i, wnid in enumerate(self._wnids)}
    examples, problems = [], []
    for key in sorted(images, key=lambda key: (images[key][1], key)):
      file, wnid = images[key]
      if wnid in numbers:
        tags = (numbers[wnid],)
        examples.append(audit.Example(f'{wnid}/{key}', file, tags=tags))
      else:
        reason = f'is of class {wnid}, of which train has no image'
        problems.append(errors.BadFile(file, reason))
    return audit.Listing(tuple(examples), tuple(problems))

  def _with_classes(self, found: files.Files, val: Classified) -> Classified:
    """Val by its folders, or by what the development kit says."""
    if all(wnid for _, wnid in val.values()):
      return val
    truth = files.pick(
      found, r'data/(?P<id>ILSVRC2012_validation_ground_truth)\.txt'
    )
    meta = files.pick(found, r'data/(?P<id>meta)\.mat')
    if not truth or not meta:
      raise self.missing(
        'ILSVRC2012_devkit_t12.tar.gz, which says the classes of val'
      )
    (meta_file,), (truth_file,) = meta.values(), truth.values()
    try:
      synsets = files.read_mat(meta_file, 'synsets').ravel()
      wnid_of = {
        int(synset['ILSVRC2012_ID'].item()): str(synset['WNID'].item())
        for synset in synsets
      }
      numbers = truth_file.read_bytes().decode().split()
      return {
        key: (file, wnid_of[int(numbers[int(key.rsplit('_', 1)[1]) - 1])])
        for key, (file, _) in val.items()
      }
    except errors.UserError as error:
      raise errors.BadFile(meta_file, str(error)) from error
    except (OSError, LookupError, ValueError) as error:
      raise errors.BadFile(
        truth_file,
        f'does not say the class of every image of val ({error!r}): get '
        'ILSVRC2012_devkit_t12.tar.gz again',
      ) from error

  def _contents_of(self, wnids: Sequence[str]) -> records.Contents:
    return records.Contents(
      tuple(wnids), masks.palette(len(wnids)), labels=False, tags=True
    )
