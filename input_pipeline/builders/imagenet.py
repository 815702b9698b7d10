"""ImageNet, with image-level labels: ILSVRC2012 (1k) and the full set (21k).

O. Russakovsky et al.: ImageNet large scale visual recognition challenge, 2015.
Read from the official tar files, without unpacking, or from folders of classes.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

import tensorflow_datasets as tfds

from input_pipeline.builders import files
from input_pipeline.sources import archives, masks, pairing, records
from runtime import errors

# The file name contains the class: a tar file of one class has no folders.
TRAIN = r'(?P<id>(?P<wnid>n\d{8})_\d+)\.(?:JPEG|jpe?g)'
VAL = r'(?:(?P<wnid>n\d{8})/)?(?P<id>ILSVRC2012_val_\d{8})\.(?:JPEG|jpe?g)'
ARCHIVES = (
  'ILSVRC2012_img_train*.tar',
  'ILSVRC2012_img_val*.tar',
  'ILSVRC2012_devkit*.tar.gz',
  'n[0-9]*.tar',
  'fall11_whole*.tar',
  'winter21_whole*.tar',
  'winter21_whole*.tar.gz',
)

# Images by name, with their classes; None where only the development kit has
# the class.
Classified = Mapping[str, tuple[archives.File, str | None]]


@dataclasses.dataclass(eq=False)
class ImagenetConfig(tfds.core.BuilderConfig):
  """The release, with the official number of images of each split."""

  counts: Mapping[str, int] = dataclasses.field(default_factory=dict)


class Imagenet(files.OfficialBuilder):
  """ImageNet with the split train, and for 1k val; without masks.

  Classes are the WordNet ids, sorted. Ids are 'n01440764/n01440764_10026'. The
  tag of an image is its class.
  """

  VERSION = tfds.core.Version('1.0.0')
  BUILDER_CONFIGS: ClassVar = [
    ImagenetConfig('1k', counts={'train': 1281167, 'val': 50000}),
    ImagenetConfig('21k', counts={'train': 12743321}),
  ]
  DEFAULT_BUILDER_CONFIG_NAME = '1k'
  patterns = ARCHIVES

  @property
  def counts(self) -> Mapping[str, int]:
    """Returns the official number of images of each split of this release."""
    return self.builder_config.counts

  def schema(self) -> records.Schema:
    """Returns the classes of prepared records, else those of the files."""
    return self.prepared_schema() or self._make_schema(self.wnids())

  def wnids(self) -> Sequence[str]:
    """Returns the WordNet ids of the classes, sorted."""
    self.listings()
    return self._wnids

  def find_examples(
    self, sources: files.Files
  ) -> Mapping[str, pairing.Listing]:
    """Lists the images by their classes."""
    train = files.match_and_group_source_files(sources, TRAIN, 'wnid')
    self.require_files({'n01440764/n01440764_10026.JPEG': train})
    self._wnids = sorted({wnid for _, wnid in train.values()})
    listings = {'train': self._listing(train)}
    if 'val' in self.counts:
      val = files.match_and_group_source_files(sources, VAL, 'wnid')
      self.require_files({'ILSVRC2012_val_00000001.JPEG': val})
      listings['val'] = self._listing(self._with_classes(sources, val))
    return listings

  def _listing(self, images: Classified) -> pairing.Listing:
    """Builds the examples, sorted by class and name."""
    numbers = {wnid: i for i, wnid in enumerate(self._wnids)}
    examples, problems = [], []
    for key in sorted(images, key=lambda key: (images[key][1], key)):
      file, wnid = images[key]
      if wnid in numbers:
        tags = (numbers[wnid],)
        examples.append(pairing.Example(f'{wnid}/{key}', file, tags=tags))
      else:
        reason = f'is of class {wnid}, of which train has no image'
        problems.append(errors.BadFile(file, reason))
    return pairing.Listing(tuple(examples), tuple(problems))

  def _with_classes(self, sources: files.Files, val: Classified) -> Classified:
    """Returns the images of val with classes, from folders or the kit."""
    if all(wnid for _, wnid in val.values()):
      return val
    truth = files.match_source_files(
      sources, r'data/(?P<id>ILSVRC2012_validation_ground_truth)\.txt'
    )
    meta = files.match_source_files(sources, r'data/(?P<id>meta)\.mat')
    self.require_files(
      {'ILSVRC2012_devkit_t12.tar.gz (the classes of val)': truth and meta}
    )
    (meta_file,), (truth_file,) = meta.values(), truth.values()
    try:
      synsets = files.read_mat_file(meta_file, 'synsets').ravel()
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
        f'has no class for some image of val ({error!r}): download '
        'ILSVRC2012_devkit_t12.tar.gz again',
      ) from error

  def _make_schema(self, wnids: Sequence[str]) -> records.Schema:
    return records.Schema(
      tuple(wnids), masks.voc_palette(len(wnids)), labels=False, tags=True
    )
