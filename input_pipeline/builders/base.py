"""The TFDS builder that all data sets share.

A data set says what each record is made of (`sources`) and how that is read
(`sample`); checking, writing in shards and going on after an interruption are
here, the same for all.
"""

import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import example_serializer

from input_pipeline.builders import shards as shards_lib
from input_pipeline.sources import audit, class_counts, fingerprints, records
from runtime import errors

# What the audit found, beside the records.
REPORT = 'audit.txt'
COUNTS = 'counts.json'


class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """A TFDS builder of segmentation records, without TensorFlow.

  A data set subclasses it, sets `VERSION`, and gives `contents`, `sources` and
  `sample`. Records are written to array_record files in the order of `sources`,
  so that index i of a split is the same image wherever it is prepared.

  Attributes:
    on_bad_example: 'error' refuses all for one bad file, 'skip' leaves it out.
    remedy: what is to be done about a bad file.
  """

  on_bad_example = 'error'
  remedy = 'mend it'

  # TFDS would look beside the code for checksums of downloads, with a package
  # (importlib_resources) that it does not ask for.
  code_path = None

  def __init__(self, **kwargs):
    super().__init__(file_format='array_record', **kwargs)

  def contents(self) -> records.Contents:
    """Classes, colors and which kinds of label there are."""
    raise NotImplementedError

  def sources(self) -> Mapping[str, Sequence[Any]]:
    """What each record is made of, split by split and in order."""
    raise NotImplementedError

  def require(self) -> None:
    """Raises Missing if what records are made of is not there at all."""

  def sample(self, source: Any) -> records.Sample:
    """What is in one source.

    Raises:
      BadFile: it cannot be used.
    """
    raise NotImplementedError

  def lacks(self) -> Mapping[str, Sequence[str]]:
    """Kinds of label, 'label' or 'tags', that only some splits do not have."""
    return {}

  def stamp(self, source: Any) -> Any:
    """What changes when the record of a source would; as JSON has it."""
    return source

  def size(self, source: Any) -> int:
    """Bytes its record will take, about."""
    del source
    return 0

  def problems(self) -> Sequence[errors.BadFile]:
    """Files that are known to be bad before any is opened."""
    return ()

  def warnings(self) -> Sequence[str]:
    """What is odd and does no harm, a line each."""
    return ()

  def settle(
    self,
    counts: Mapping[str, class_counts.ClassCounts],
    bad: Sequence[errors.BadFile],
  ) -> audit.Audit:
    """Judges what was found in all sources.

    Raises:
      UserError: a file is bad and none may be, or a split is left without
        images.
    """
    return audit.settle(
      counts,
      [*self.problems(), *bad],
      self.contents().classes,
      warnings=self.warnings(),
      on_bad_example=self.on_bad_example,
      remedy=self.remedy,
    )

  def check(self) -> tuple[audit.Audit, Mapping[str, fingerprints.ImageIndex]]:
    """Looks at every source and writes nothing.

    Returns:
      What was found, and the index of each split.

    Raises:
      UserError: as `settle` does.
    """
    indices: dict[str, list[fingerprints.ImageIndex]] = {}

    def see(split: str, sample: records.Sample) -> None:
      indices.setdefault(split, []).append(
        fingerprints.ImageIndex.from_sample(sample)
      )

    num_classes = len(self.contents().classes)
    counts, bad = audit.count(self.sources(), self.sample, num_classes, see)
    join = fingerprints.ImageIndex.join
    found = self.settle(counts, bad)
    return found, {split: join(parts) for split, parts in indices.items()}

  def encode(self, sample: records.Sample) -> bytes:
    """The serialized record of a sample."""
    contents = self.contents()
    record: dict[str, Any] = {'image': sample.image, 'id': sample.id}
    if contents.labels:
      record['label'] = (
        b''
        if sample.label is None
        else records.encode_label(sample.label, len(contents.classes))
      )
    if contents.tags:
      record['tags'] = list(sample.tags)
    features = self.info.features
    serializer = example_serializer.ExampleSerializer(
      features.get_serialized_info()
    )
    return serializer.serialize_example(features.encode_example(record))

  def _info(self) -> tfds.core.DatasetInfo:
    contents = self.contents()
    features: dict[str, Any] = {
      'image': tfds.features.Image(shape=(None, None, 3)),
      'id': tfds.features.Text(),
    }
    if contents.labels:
      features['label'] = tfds.features.Image(
        shape=(None, None, 1),
        dtype=records.label_dtype(len(contents.classes)),
        encoding_format='png',
      )
    if contents.tags:
      features['tags'] = tfds.features.Sequence(np.int32)
    return tfds.core.DatasetInfo(
      builder=self,
      description=(type(self).__doc__ or self.name).strip(),
      features=tfds.features.FeaturesDict(features),
      disable_shuffling=True,
      metadata=tfds.core.MetadataDict(
        classes=list(contents.classes),
        palette=[list(color) for color in contents.palette],
        labels=contents.labels,
        tags=contents.tags,
        lacks={split: list(kinds) for split, kinds in self.lacks().items()},
      ),
    )

  def shards(self) -> shards_lib.Shards:
    """The shards its records are made in, by one process or several."""
    return shards_lib.Shards(self, self._parts_dir)

  def _generate_splits(self, dl_manager, download_config):
    """Makes what shards are missing, and takes them over."""
    del dl_manager, download_config  # Nothing is downloaded.
    made = self.shards()
    made.write()
    found = made.settle()
    folder = pathlib.Path(self.data_dir)
    (folder / REPORT).write_text(found.report() + '\n')
    found.write(folder / COUNTS)
    made.finish(folder)
    return [
      tfds.core.SplitInfo(
        name=split,
        shard_lengths=lengths,
        num_bytes=num_bytes,
        filename_template=self._get_filename_template(split),
      )
      for split, lengths, num_bytes in made.lengths()
    ]

  def _log_download_bytes(self) -> None:
    """Says nothing: TFDS would tell of a download of unknown size."""

  def _log_download_done(self) -> None:
    """Says nothing."""

  def _post_download_and_prepare_hook(self) -> None:
    shutil.rmtree(self._parts_dir, ignore_errors=True)

  @property
  def _parts_dir(self) -> pathlib.Path:
    """Where shards are kept until all of them are there."""
    return pathlib.Path(self.data_dir_root) / '.parts' / self.info.full_name

  def _split_generators(self, dl_manager):
    raise NotImplementedError('records are written by _generate_splits')

  def _generate_examples(self, *args, **kwargs):
    raise NotImplementedError('records are written by _generate_splits')
