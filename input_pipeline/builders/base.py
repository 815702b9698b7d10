"""The TFDS builder that all data sets share.

A data set lists the sources of its records (`sources`) and reads the sample of
one (`read_sample`); checking, writing in shards and resuming after an
interruption are the same for all of them and implemented here.
"""

import functools
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

from input_pipeline.builders import shards
from input_pipeline.sources import (
  audit,
  class_counts,
  file_traits,
  fingerprints,
  image_files,
  records,
)
from runtime import errors

# Files beside the records: the report of the audit, and its counts.
REPORT = 'audit.txt'
COUNTS = 'counts.json'


class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Builds a data set of segmentation records with TFDS, without TensorFlow.

  A data set subclasses it, sets `VERSION`, and implements `schema`, `sources`
  and `read_sample`. Records are written to array_record files in the order of
  `sources`, so that index i of a split is the same image on every machine.

  Attributes:
    on_bad_example: treatment of a bad file: 'error' refuses the data set,
      'skip' skips the file.
    remedy: advice in the error message about a bad file.
    image_options: definition of the pixels of image files.
    jobs: greatest number of processes that write records.
  """

  on_bad_example = 'error'
  remedy = 'repair it'
  image_options = image_files.AS_STORED
  jobs = 1

  # TFDS would search beside the code for checksums of downloads, with a package
  # (importlib_resources) that it does not require.
  code_path = None

  def __init__(self, **kwargs):
    super().__init__(file_format='array_record', **kwargs)

  def schema(self) -> records.Schema:
    """Returns the classes, their colors and the kinds of label."""
    raise NotImplementedError

  def sources(self) -> Mapping[str, Sequence[Any]]:
    """Returns what each record is read from, in order, by split.

    A source is any value that `read_sample` and `stamp` take, such as an
    example with its files.
    """
    raise NotImplementedError

  def check_available(self) -> None:
    """Raises MissingInput if the files of the data set are absent."""

  def read_sample(self, source: Any) -> records.Sample:
    """Reads the sample of one source.

    Raises:
      BadFile: a file of the source cannot be used.
    """
    raise NotImplementedError

  def missing_labels(self) -> Mapping[str, Sequence[str]]:
    """Returns the kinds of label, 'label' or 'tags', that some splits lack."""
    return {}

  def stamp(self, source: Any) -> Any:
    """Returns a JSON value that changes when the record of a source changes."""
    return source

  def record_size(self, source: Any) -> int:
    """Estimates the size of the record of a source in bytes."""
    del source
    return 0

  def problems(self) -> Sequence[errors.BadFile]:
    """Returns files that are known to be bad before any is opened."""
    return ()

  def warnings(self) -> Sequence[str]:
    """Returns harmless oddities, a line each."""
    return ()

  def conclude(
    self,
    counts: Mapping[str, class_counts.ClassCounts],
    bad: Sequence[errors.BadFile],
    traits: file_traits.TraitCounter,
  ) -> audit.Audit:
    """Builds the result of reading all sources.

    Args:
      counts: numbers of images and labeled pixels of each split, by its name.
      bad: files that could not be used.
      traits: traits of the files of all splits.

    Raises:
      UserError: a file is bad and must not be skipped, or a split has no usable
        image.
    """
    return audit.conclude_audit(
      counts,
      [*self.problems(), *bad],
      self.schema().classes,
      warnings=[*self.warnings(), *traits.warnings(self.image_options)],
      on_bad_example=self.on_bad_example,
      remedy=self.remedy,
    )

  def check(self) -> tuple[audit.Audit, Mapping[str, fingerprints.ImageIndex]]:
    """Reads every source and writes nothing.

    Returns:
      The result, and the index of each split.

    Raises:
      UserError: a file is bad and must not be skipped, or a split has no usable
        image.
    """
    indices: dict[str, list[fingerprints.ImageIndex]] = {}
    traits = file_traits.TraitCounter()

    def add(split: str, sample: records.Sample) -> None:
      traits.add(sample.id, sample.traits)
      index = fingerprints.ImageIndex.from_sample(sample)
      indices.setdefault(split, []).append(index)

    num_classes = len(self.schema().classes)
    counts, bad = audit.count_source_classes(
      self.sources(), self.read_sample, num_classes, on_sample=add
    )
    result = self.conclude(counts, bad, traits)
    join = fingerprints.ImageIndex.join
    return result, {split: join(parts) for split, parts in indices.items()}

  def encode(self, sample: records.Sample) -> bytes:
    """Returns the serialized record of a sample."""
    schema = self._record_schema
    features = {
      'image': _bytes_feature(sample.image),
      'id': _bytes_feature(sample.id.encode()),
    }
    if schema.labels:
      features['label'] = _bytes_feature(
        b''
        if sample.label is None
        else records.encode_record_label(sample.label, len(schema.classes))
      )
    if schema.tags:
      tags = tf_feature_pb2.Int64List(value=sample.tags)
      features['tags'] = tf_feature_pb2.Feature(int64_list=tags)
    # TFDS encodes the same, but takes as long as for half of the label.
    example = tf_example_pb2.Example(
      features=tf_feature_pb2.Features(feature=features)
    )
    # Otherwise the order of the fields is another in every process.
    return example.SerializeToString(deterministic=True)

  @functools.cached_property  # Its colors may be chosen, or read from a file.
  def _record_schema(self) -> records.Schema:
    return self.schema()

  def _info(self) -> tfds.core.DatasetInfo:
    schema = self.schema()
    features: dict[str, Any] = {
      'image': tfds.features.Image(shape=(None, None, 3)),
      'id': tfds.features.Text(),
    }
    if schema.labels:
      features['label'] = tfds.features.Image(
        shape=(None, None, 1),
        dtype=records.record_label_dtype(len(schema.classes)),
        encoding_format='png',
      )
    if schema.tags:
      features['tags'] = tfds.features.Sequence(np.int32)
    missing = self.missing_labels()
    return tfds.core.DatasetInfo(
      builder=self,
      description=(type(self).__doc__ or self.name).strip(),
      features=tfds.features.FeaturesDict(features),
      disable_shuffling=True,
      # Stored beside the records: the keys must not change.
      metadata=tfds.core.MetadataDict(
        classes=list(schema.classes),
        palette=[list(color) for color in schema.palette],
        labels=schema.labels,
        tags=schema.tags,
        lacks={split: list(kinds) for split, kinds in missing.items()},
      ),
    )

  def shard_writer(self) -> shards.ShardWriter:
    """Creates the writer of the shards, for one process or several."""
    return shards.ShardWriter(self, self._parts_dir)

  def _generate_splits(self, dl_manager, download_config):
    """Writes the missing shards and moves all of them to their final place."""
    del dl_manager, download_config  # Nothing is downloaded.
    writer = self.shard_writer()
    writer.write(jobs=self.jobs)
    result = writer.conclude()
    folder = pathlib.Path(self.data_dir)
    (folder / REPORT).write_text(result.report() + '\n')
    class_counts.write_class_counts(folder / COUNTS, result.counts)
    writer.finish(folder)
    return [
      tfds.core.SplitInfo(
        name=split,
        shard_lengths=lengths,
        num_bytes=num_bytes,
        filename_template=self._get_filename_template(split),
      )
      for split, lengths, num_bytes in writer.lengths()
    ]

  def _log_download_bytes(self) -> None:
    """Logs nothing: TFDS would log a download of unknown size."""

  def _log_download_done(self) -> None:
    """Logs nothing: there is no download."""

  def _post_download_and_prepare_hook(self) -> None:
    shutil.rmtree(self._parts_dir, ignore_errors=True)

  @property
  def _parts_dir(self) -> pathlib.Path:
    """Returns the folder that keeps finished shards until all are written."""
    return pathlib.Path(self.data_dir_root) / '.parts' / self.info.full_name

  def _split_generators(self, dl_manager):
    raise NotImplementedError('records are written by _generate_splits')

  def _generate_examples(self, *args, **kwargs):
    raise NotImplementedError('records are written by _generate_splits')


def _bytes_feature(value: bytes) -> tf_feature_pb2.Feature:
  return tf_feature_pb2.Feature(
    bytes_list=tf_feature_pb2.BytesList(value=[value])
  )
