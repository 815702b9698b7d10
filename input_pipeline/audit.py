"""The audit of a user's files before anything is prepared from them.

  listing = audit.list_examples(images, masks)
  found = audit.run({'train': listing.examples}, classes, read_mask)
  print(found.report())

Every image and every mask is decoded once, in threads; what is found is either
one error that names the first bad file, or the list of what is left out.
"""

import collections
import concurrent.futures
import dataclasses
import io
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import cv2
import numpy as np
import PIL.Image
import tqdm

from input_pipeline import errors
from input_pipeline.builders import records

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png')
MASK_SUFFIXES = ('.png',)
ON_BAD_EXAMPLE = ('error', 'skip')
SKIP_REMEDY = "mend or remove them, or set on_bad_example='skip'"

_ORIENTATION = 0x0112  # The EXIF tag; 5 to 8 turn the image by 90 degrees.


@dataclasses.dataclass(frozen=True)
class Example:
  """An image and, where there are any, its mask; not opened yet."""

  id: str
  image: pathlib.Path
  mask: pathlib.Path | None = None


@dataclasses.dataclass(frozen=True)
class Problem:
  """A file which cannot be used, and why."""

  file: pathlib.Path
  reason: str

  def __str__(self):
    return _line(f'{self.file}: {self.reason}')


@dataclasses.dataclass(frozen=True)
class Listing:
  """The files of a folder, by name only.

  Attributes:
    examples: sorted by id, no id twice, each with a mask if masks were asked.
    problems: files that can be no example.
    warnings: what is odd and does no harm, a line each.
  """

  examples: tuple[Example, ...]
  problems: tuple[Problem, ...] = ()
  warnings: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Counts:
  """What occurs in a split.

  Attributes:
    num_images: usable images.
    pixels: labelled pixels of each class, [C].
    images: images in which each class occurs, [C].
    ignored: pixels of no class.
  """

  num_images: int
  pixels: tuple[int, ...] = ()
  images: tuple[int, ...] = ()
  ignored: int = 0


@dataclasses.dataclass(frozen=True)
class Audit:
  """What the audit settled.

  Attributes:
    examples: the usable examples of each split.
    counts: what occurs in them.
    classes: names of the class ids; empty without masks.
    skipped: what was left out; empty unless that was asked for.
    warnings: what is odd and does no harm, a line each.
  """

  examples: Mapping[str, tuple[Example, ...]]
  counts: Mapping[str, Counts]
  classes: tuple[str, ...] = ()
  skipped: tuple[Problem, ...] = ()
  warnings: tuple[str, ...] = ()

  def report(self) -> str:
    """A table of the classes and what was left out; several lines of text."""
    lines = [
      f'{split}: {counts.num_images:,} images'
      for split, counts in self.counts.items()
    ]
    if self.classes:
      lines += ['', *self._table()]
    if self.warnings:
      lines += ['', *(f'warning: {warning}' for warning in self.warnings)]
    if self.skipped:
      lines += ['', f'{len(self.skipped):,} files are left out:']
      lines += [f'  {problem}' for problem in self.skipped]
    return '\n'.join(lines)

  def _table(self) -> Iterator[str]:
    """Pixels, their share and images of each class, split by split."""
    names = [*self.classes, '(ignored)']
    width = max(len(name) for name in [*names, 'class'])
    head = f'{"class":{width}}'
    for split in self.counts:
      head += f'  {split + " pixels":>15} {"share":>7} {"images":>9}'
    yield head
    for i, name in enumerate(names):
      row = f'{name:{width}}'
      for counts in self.counts.values():
        pixels = (*counts.pixels, counts.ignored)
        images = f'{counts.images[i]:,}' if i < len(self.classes) else ''
        share = pixels[i] / max(sum(pixels), 1)
        row += f'  {pixels[i]:>15,} {share:>7.2%} {images:>9}'
      yield row.rstrip()


def list_examples(
  images: pathlib.Path, masks: pathlib.Path | None = None, prefix: str = ''
) -> Listing:
  """Finds images, in subfolders too, and the mask of the same relative name.

  Names are compared without their suffix: `images/a/b.jpg` is the example
  `a/b`, whose mask is `masks/a/b.png`. Hidden files are passed over.

  Args:
    images: folder of JPEG and PNG files.
    masks: folder of PNG files; None for images without masks.
    prefix: put before every id.

  Raises:
    UserError: there is no such folder, or no image in it.
  """
  found = _find(images, IMAGE_SUFFIXES)
  if not found:
    raise errors.UserError(
      _line(f'{images}: found no image, expected *.jpg, *.jpeg or *.png')
    )
  masks_found = {} if masks is None else _find(masks, MASK_SUFFIXES)
  examples, problems = [], []
  for stem, files in sorted(found.items()):
    if len(files) > 1:
      # Which of them the mask, or the id, belongs to is not ours to guess.
      problems += _same_id(stem, files)
    elif not _is_utf8(stem):
      problems.append(Problem(files[0], 'its name is not UTF-8: rename it'))
    elif masks is None:
      examples.append(Example(prefix + stem, files[0]))
    elif stem not in masks_found:
      reason = f'has no mask {masks / stem}.png'
      problems.append(Problem(files[0], reason))
    elif len(masks_found[stem]) > 1:
      problems += _same_id(stem, masks_found[stem])
    else:
      examples.append(Example(prefix + stem, files[0], masks_found[stem][0]))
  warnings = tuple(
    _line(f'{files[0]}: a mask without an image')
    for stem, files in sorted(masks_found.items())
    if stem not in found
  )
  return Listing(tuple(examples), tuple(problems), warnings)


def run(
  examples: Mapping[str, Sequence[Example]],
  classes: Sequence[str] = (),
  read_mask: Callable[[pathlib.Path], np.ndarray] | None = None,
  *,
  problems: Sequence[Problem] = (),
  warnings: Sequence[str] = (),
  on_bad_example: str = 'error',
  remedy: str = SKIP_REMEDY,
) -> Audit:
  """Decodes all examples and counts the pixels of each class.

  Args:
    examples: of each split.
    classes: name of each class id.
    read_mask: from a file to class ids [H, W], negative where ignored; raises
      a UserError that says what is wrong with it, without the file's name.
    problems: files found to be bad already.
    warnings: to be reported, too.
    on_bad_example: 'error' refuses all for one bad file, 'skip' leaves it out.
    remedy: what the error advises.

  Raises:
    UserError: a file is bad and `on_bad_example` is 'error', or no example of
      a split is left.
  """
  if on_bad_example not in ON_BAD_EXAMPLE:
    raise errors.UserError(
      f'on_bad_example is {on_bad_example!r}: expected one of {ON_BAD_EXAMPLE}'
    )
  bad = list(problems)
  good, counts = {}, {}
  for split, listed in examples.items():
    kept = []
    pixels = np.zeros(len(classes) + 1, np.int64)  # The last: ignored.
    images = np.zeros_like(pixels)
    checks = _check_all(split, listed, len(classes), read_mask)
    for example, found in zip(listed, checks, strict=True):
      if isinstance(found, Problem):
        bad.append(found)
      else:
        kept.append(example)
        pixels += found
        images += found > 0
    good[split] = tuple(kept)
    counts[split] = Counts(
      num_images=len(kept),
      pixels=tuple(pixels[:-1].tolist()),
      images=tuple(images[:-1].tolist()),
      ignored=int(pixels[-1]),
    )
  bad.sort(key=lambda problem: str(problem.file))
  if bad and on_bad_example == 'error':
    raise errors.UserError(_summary(bad, remedy))
  for split, kept in good.items():
    if not kept:
      why = f'; {_summary(bad, "mend them")}' if bad else ''
      raise errors.UserError(f'no image of split {split!r} is usable{why}')
  absent = [
    f'class {name!r} occurs in no mask'
    for i, name in enumerate(classes)
    if not any(split.pixels[i] for split in counts.values())
  ]
  return Audit(
    examples=good,
    counts=counts,
    classes=tuple(classes),
    skipped=tuple(bad),
    warnings=(*warnings, *absent),
  )


def load(data: bytes, formats: Sequence[str]) -> PIL.Image.Image:
  """Decodes an image to its last byte, as it is stored: no mode is changed.

  Args:
    data: the encoded image.
    formats: names as PIL has them, 'JPEG' and 'PNG'; others are refused.

  Raises:
    UserError: what is wrong with it; without the file's name.
  """
  try:
    image = PIL.Image.open(io.BytesIO(data), formats=formats)
    image.load()
  except PIL.UnidentifiedImageError:
    kind = ' or '.join(formats)
    raise errors.UserError(
      f'is no {kind} file, or its head is damaged'
    ) from None
  except Exception as error:  # Damaged files make PIL raise anything.
    raise errors.UserError(_line(f'cannot be decoded: {error}')) from error
  # In a download that was padded with zeros PIL finds nothing missing. The end
  # marker cannot stand in compressed data, but does in thumbnails before them.
  if image.format != 'PNG' and data.rfind(b'\xff\xd9') < data.rfind(
    b'\xff\xda'
  ):
    raise errors.UserError('cannot be decoded: the JPEG has no end, cut off?')
  return image


def _line(text: str) -> str:
  """The text on one line, in characters that every terminal can print."""
  printable = text.encode('utf-8', 'backslashreplace').decode('utf-8')
  return ' '.join(printable.split())


def _is_utf8(text: str) -> bool:
  """Whether no undecodable byte of a file's name hides in it."""
  return not any(0xD800 <= ord(character) <= 0xDFFF for character in text)


def _find(
  folder: pathlib.Path, suffixes: Sequence[str]
) -> dict[str, list[pathlib.Path]]:
  """Files with one of these suffixes, below their name without it."""
  if not folder.is_dir():
    raise errors.UserError(_line(f'{folder}: there is no such folder'))
  found = collections.defaultdict(list)
  for where, folders, names in os.walk(folder, followlinks=True):
    folders[:] = sorted(name for name in folders if not name.startswith('.'))
    for name in sorted(names):
      path = pathlib.Path(where, name)
      if path.suffix.lower() in suffixes and not name.startswith('.'):
        stem = path.relative_to(folder).with_suffix('').as_posix()
        found[stem].append(path)
  return dict(found)


def _same_id(stem: str, files: Sequence[pathlib.Path]) -> list[Problem]:
  """A problem for each of several files of one id."""
  names = ' and '.join(file.name for file in files)
  return [Problem(file, f'{names} have the same id {stem!r}') for file in files]


def _summary(bad: Sequence[Problem], remedy: str) -> str:
  """The first problem, how many there are, and what to do."""
  count = f' (the first of {len(bad):,} bad files)' if len(bad) > 1 else ''
  return f'{bad[0]}{count}; {remedy}'


def _check_all(
  split: str,
  examples: Sequence[Example],
  num_classes: int,
  read_mask: Callable[[pathlib.Path], np.ndarray] | None,
) -> Iterator[np.ndarray | Problem]:
  """Checks examples in threads, with a progress bar on a terminal."""

  def check(example: Example) -> np.ndarray | Problem:
    return _check(example, num_classes, read_mask)

  # PIL and OpenCV let other threads run while they decode.
  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    yield from tqdm.tqdm(
      pool.map(check, examples),
      desc=f'checking {split}',
      total=len(examples),
      unit='image',
      disable=None,  # Silent where there is no terminal.
    )


def _check(
  example: Example,
  num_classes: int,
  read_mask: Callable[[pathlib.Path], np.ndarray] | None,
) -> np.ndarray | Problem:
  """Pixels of each class, then the ignored ones, [C+1]; or what is wrong."""
  file = example.image
  try:
    size = _check_image(file)
    if read_mask is None or example.mask is None:
      return np.zeros(num_classes + 1, np.int64)
    file = example.mask
    label = read_mask(file)
  except errors.UserError as error:
    return Problem(file, str(error))
  except OSError as error:
    return Problem(file, f'cannot be read: {error.strerror or error}')
  if label.shape != size:
    found, expected = (f'{w}x{h}' for h, w in (label.shape, size))
    reason = f'the mask is {found} pixels, its image {expected}'
    if label.shape == size[::-1] and _is_turned(example.image):
      reason += ' before the turn in its EXIF tag, which is not followed'
    return Problem(file, reason)
  ids = np.where(label < 0, num_classes, label)
  return np.bincount(ids.ravel(), minlength=num_classes + 1)


def _check_image(path: pathlib.Path) -> tuple[int, int]:
  """Height and width of an image that can be decoded to its end."""
  data = path.read_bytes()
  load(data, ('JPEG', 'PNG'))
  try:
    height, width, _ = records.decode_image(data).shape  # As training does.
  except (errors.UserError, cv2.error):
    raise errors.UserError('cannot be decoded by OpenCV') from None
  return height, width


def _is_turned(path: pathlib.Path) -> bool:
  """Whether the image has an EXIF tag that swaps height and width."""
  try:
    with PIL.Image.open(path) as image:
      return image.getexif().get(_ORIENTATION) in (5, 6, 7, 8)
  except Exception:  # Nobody promised that EXIF data is whole.
    return False
