"""The digest of a user's folder, by which its prepared records are recognized.

It does not depend on where the folder is or how its path is spelled.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from input_pipeline.builders import class_list
from input_pipeline.sources import file_digests, pairing


def open_digest_cache(source: str, data_dir: Any) -> file_digests.DigestCache:
  """Returns the digests of the files of a source, beside prepared records."""
  if data_dir is None:
    return file_digests.DigestCache(None)
  path = os.path.abspath(pathlib.Path(source).expanduser())
  name = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
  return file_digests.DigestCache(
    pathlib.Path(data_dir) / '.digests' / f'{name}.json'
  )


def folder_state_digest(
  source: pathlib.Path,
  settings: Mapping[str, Any],
  classes: class_list.ClassList | None,
  listings: Mapping[str, pairing.Listing],
  digests: file_digests.DigestCache,
) -> str:
  """Computes a digest of what determines the records of a folder.

  Args:
    source: the folder.
    settings: options that determine its records.
    classes: class list of its masks; None without masks.
    listings: files of each split.
    digests: digests of the files that were read before.

  Returns:
    16 hexadecimal digits.
  """
  examples = [
    (split, example)
    for split, listing in listings.items()
    for example in listing.examples
  ]
  paths = [path for _, example in examples for path in _paths(example)]
  digest_of = dict(zip(paths, digests.digests(paths), strict=True))
  files = [
    (
      split,
      example.id,
      *((p.suffix.lower(), digest_of[p]) for p in _paths(example)),
    )
    for split, example in examples
  ]
  # A new bad file must be reported, so it makes another state, too.
  files += [
    (split, os.path.relpath(problem.file, source))
    for split, listing in listings.items()
    for problem in listing.problems
  ]
  # Prepared data sets are recognized by the digest of this text: its keys must
  # not change.
  state = {'code': _code(classes), 'files': files, **settings}
  text = json.dumps(state, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def _paths(example: pairing.Example) -> Iterator[Any]:
  """Yields the files of an example."""
  yield example.image
  if example.mask is not None:
    yield example.mask


def _code(classes: class_list.ClassList | None) -> Mapping[str, Any] | None:
  """Returns the settings of a class list that decide how masks are read."""
  if classes is None:
    return None
  fields = dataclasses.asdict(classes)
  del fields['notes']  # They name the path of the list.
  return fields
