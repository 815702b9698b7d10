"""Images of a folder with their masks, by the names of the files.

  listing = list_image_examples(images, masks)
  listing.examples  # With image and mask.
  listing.problems  # Images whose mask is missing, and what stands there.

An image and its mask have the same path without the suffix: `images/a/b.jpg`
and `masks/a/b.png`; or without endings that all of them have (`Endings`):
`a_leftImg8bit.png` and `a_gtFine_labelIds.png`.
"""

import collections
import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

from input_pipeline.sources import archives, image_ids, mask_search
from runtime import errors

IMAGE_SUFFIXES = (
  *('.jpg', '.jpeg', '.png'),
  *('.tif', '.tiff', '.bmp', '.webp', '.gif'),
)
MASK_SUFFIXES = ('.png', '.tif', '.tiff', '.bmp', '.gif')
# Endings of images that are no masks.
_LOSSY_SUFFIXES = ('.jpg', '.jpeg', '.webp')
_LOSSY = (
  'lossy compression changes the values of a mask: save it as PNG from its '
  'source'
)
_UNLABELED_OPTION = (
  '; to train on it without one: option unlabeled=same of a folder config, or '
  "field without_mask='unlabeled'"
)
# A summary names at most so many files.
_MAX_LISTED = 10
_LOOP = 'is a link to a folder that contains it'
NOT_UTF8 = 'its name is not UTF-8: rename it'
# Values of `without_mask`: refuse an image without a mask, or make it a part of
# the split 'unlabeled'.
WITHOUT_MASK = ('error', 'unlabeled')


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
  """Names the files of an image and its labels; none is opened.

  Attributes:
    id: official name of the image.
    image: image file, or a member of an archive.
    mask: mask file, or a member of an archive; None without a mask.
    tags: class ids of the whole image; None for those that occur in the mask.
  """

  id: str
  image: archives.File
  mask: archives.File | None = None
  tags: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Listing:
  """Lists the examples of a folder, by the names of its files.

  Attributes:
    examples: examples sorted by id, without repeated ids; each has a mask if
      masks are expected and must not be missing.
    problems: files that cannot be examples.
    warnings: harmless oddities, a line each.
    left_out: files that are no image or mask by their ending, and links that
      are not followed.
  """

  examples: tuple[Example, ...]
  problems: tuple[errors.BadFile, ...] = ()
  warnings: tuple[str, ...] = ()
  left_out: tuple[errors.BadFile, ...] = ()

  def summarize_left_out(self) -> list[str]:
    """Returns a line that counts the files left out and names some, if any."""
    if not self.left_out:
      return []
    listed = [str(problem.file) for problem in self.left_out[:_MAX_LISTED]]
    more = ', …' if len(self.left_out) > _MAX_LISTED else ''
    count = errors.format_count(len(self.left_out), 'file is', 'files are')
    reasons = 'for an ending of neither images nor masks'
    if any(problem.reason == _LOOP for problem in self.left_out):
      reasons += ', or as a link to a folder that contains it'
    return [
      errors.format_on_one_line(
        f'{count} left out {reasons}: {", ".join(listed)}{more}'
      )
    ]


@dataclasses.dataclass(frozen=True)
class Endings:
  """Ends of the names of images and masks that are no part of their ids.

  Attributes:
    image: end of all images, '_leftImg8bit.png', or without a suffix if there
      are several kinds of files, '_leftImg8bit'; '' if names have no such end.
    mask: end of all masks: '_mask.png', '_gtFine_labelIds.png', '_mask'.
  """

  image: str = ''
  mask: str = ''

  def __post_init__(self):
    for field, value in (
      ('image_suffix', self.image),
      ('mask_suffix', self.mask),
    ):
      if '/' in value:
        raise errors.UserError(
          f'{field}: expected the end of a file name, as _mask.png, got '
          f'{value!r}'
        )


@dataclasses.dataclass(frozen=True)
class _Content:
  """The files of a folder.

  Attributes:
    by_stem: files of the right kind, by their path without the ending.
    others: all others, with the reason.
  """

  by_stem: Mapping[str, list[pathlib.Path]]
  others: Sequence[errors.BadFile]


def list_image_examples(
  images: pathlib.Path,
  masks: pathlib.Path | None = None,
  prefix: str = '',
  without_mask: str | None = None,
  endings: Endings = Endings(),
) -> Listing:
  """Lists the images of a folder, with the masks of the same relative paths.

  Subfolders are included. Paths are compared without their endings, in the
  composed Unicode form. Hidden files are ignored. A folder may hold both images
  and masks if the masks have an ending of their own.

  Args:
    images: folder of files with `IMAGE_SUFFIXES`.
    masks: folder of files with `MASK_SUFFIXES`; None for images without masks.
    prefix: text that is prepended to every id.
    without_mask: treatment of images that have no mask: 'unlabeled' lists them
      as examples without a mask; 'error' and None make them problems, and the
      message of 'error' mentions this option. A file that seems to be the mask
      by its name makes the image a problem in any case.
    endings: ends of the names that are no part of ids.

  Raises:
    UserError: a folder is missing, holds no image, or holds masks of which none
      has the name of an image.
  """
  of_images = _read_folder(images, IMAGE_SUFFIXES, endings.image)
  of_masks = _Content({}, ())
  if masks is not None:
    of_masks = _read_folder(masks, MASK_SUFFIXES, endings.mask)
    if endings.mask:
      of_images, of_masks = _separate(of_images, of_masks)
  _require_images(images, of_images, endings.image)
  examples, problems, unpaired = _pair(of_images, of_masks, masks, prefix)
  if masks is not None:
    search = _search_masks(masks, unpaired, of_images, of_masks)
    for stem, path in unpaired.items():
      problem = _missing_mask(
        path, masks / stem, search.find(stem), without_mask, endings
      )
      if problem is None:
        examples.append(Example(prefix + stem, path))
      else:
        problems.append(problem)
    if of_masks.by_stem and examples and not any(e.mask for e in examples):
      _refuse_unrelated(examples[0], of_masks)
  refused = {problem.file for problem in problems}
  return Listing(
    tuple(sorted(examples, key=lambda example: example.id)),
    tuple(problems),
    tuple(_lone_masks(of_images, of_masks)),
    tuple(
      problem
      for problem in (*of_images.others, *of_masks.others)
      if problem.file not in refused
    ),
  )


def _pair(
  of_images: _Content,
  of_masks: _Content,
  masks: pathlib.Path | None,
  prefix: str,
) -> tuple[list[Example], list[errors.BadFile], dict[str, pathlib.Path]]:
  """Pairs images and masks of the same stem.

  Returns:
    The pairs, or all images without masks; the files that cannot be used; and
    images without a mask by their stems.
  """
  examples, problems = [], []
  unpaired: dict[str, pathlib.Path] = {}
  for stem, files in sorted(of_images.by_stem.items()):
    mask_files = of_masks.by_stem.get(stem, [])
    if len(files) > 1:
      # It is unknown to which of them the mask, or the id, belongs.
      problems += _duplicate_ids(stem, files)
    elif not is_utf8_file_name(stem):
      problems.append(errors.BadFile(files[0], NOT_UTF8))
    elif masks is None:
      examples.append(Example(prefix + stem, files[0]))
    elif len(mask_files) > 1:
      problems += _duplicate_ids(stem, mask_files)
    elif mask_files:
      examples.append(Example(prefix + stem, files[0], mask_files[0]))
    else:
      unpaired[stem] = files[0]
  return examples, problems, unpaired


def _search_masks(
  masks: pathlib.Path,
  unpaired: Mapping[str, pathlib.Path],
  of_images: _Content,
  of_masks: _Content,
) -> mask_search.MaskSearch:
  """Builds the search among the files that are masks of no image.

  Args:
    masks: folder of the masks.
    unpaired: images without a mask, by their stems.
    of_images: files of the folder of images.
    of_masks: files of the folder of masks.
  """
  lone = [
    path
    for stem, paths in of_masks.by_stem.items()
    if stem not in of_images.by_stem
    for path in paths
  ]
  others = [problem.file for problem in of_masks.others]
  return mask_search.MaskSearch(masks, unpaired, lone, others)


def _missing_mask(
  image: pathlib.Path,
  mask: pathlib.Path,
  candidate: mask_search.Candidate | None,
  without_mask: str | None,
  endings: Endings,
) -> errors.BadFile | None:
  """Returns the problem of an image without a mask.

  Args:
    image: the image.
    mask: path of the mask, without its ending.
    candidate: the file that seems to be the mask, if any.
    without_mask: as in `list_image_examples`.
    endings: endings of images and masks.

  Returns:
    The problem; None if the image may be unlabeled.
  """
  if candidate is None and without_mask == 'unlabeled':
    return None
  ending = endings.mask
  if not ending.lower().endswith(MASK_SUFFIXES):
    ending += '.png'
  reason = f'has no mask {mask}{ending}'
  if candidate is None:
    return errors.BadFile(
      image, reason + (_UNLABELED_OPTION if without_mask else '')
    )
  path, difference = candidate.file, candidate.difference
  if path.suffix.lower() in _LOSSY_SUFFIXES:
    return errors.BadFile(path, _LOSSY)
  if difference == mask_search.Difference.UPPER_CASE:
    advice = 'names must agree in upper and lower case'
  elif difference == mask_search.Difference.ENDING and not endings.mask:
    suffixes = f'set mask_suffix={candidate.mask_ending}'
    if candidate.image_ending:
      suffixes += f' and image_suffix={candidate.image_ending}{image.suffix}'
    advice = suffixes
  elif path.suffix.lower() not in MASK_SUFFIXES:
    advice = f'save it as one of {_wildcards(MASK_SUFFIXES)}'
  else:
    advice = f'expected the ending {ending}'
    if candidate.mask_ending and not candidate.image_ending:
      advice += f', or set mask_suffix={candidate.mask_ending}'
  return errors.BadFile(image, f'{reason}; {path} stands there: {advice}')


def _refuse_unrelated(example: Example, of_masks: _Content) -> None:
  """Raises UserError: there are masks, but none has the name of an image."""
  count = len(of_masks.by_stem)
  path = next(iter(of_masks.by_stem.values()))[0]
  raise errors.UserError(
    errors.format_on_one_line(
      f'masks: expected masks with the names of the images, as of '
      f'{example.image}, got {count:,} others, as {path}: rename them, or set '
      'mask_suffix to the end that all masks have, as _mask.png'
    )
  )


def _lone_masks(of_images: _Content, of_masks: _Content) -> list[str]:
  """Returns a line for each mask without an image, and a count of many."""
  lines = [
    f'{files[0]}: a mask without an image'
    for stem, files in sorted(of_masks.by_stem.items())
    if stem not in of_images.by_stem
  ]
  if len(lines) > _MAX_LISTED:
    left = len(lines) - _MAX_LISTED
    lines[_MAX_LISTED:] = [f'{left:,} more masks are without an image']
  return [errors.format_on_one_line(line) for line in lines]


def is_utf8_file_name(text: str) -> bool:
  """Returns whether a file name is valid UTF-8.

  Python represents bytes that cannot be decoded by lone surrogates.
  """
  return not any(0xD800 <= ord(character) <= 0xDFFF for character in text)


def _read_folder(
  folder: pathlib.Path, suffixes: tuple[str, ...], ending: str
) -> _Content:
  """Lists the files of a folder."""
  wildcards = f'*{ending}' if ending else _wildcards(suffixes)
  if not folder.is_dir():
    raise errors.UserError(
      errors.format_on_one_line(
        f'{folder}: expected a folder of {wildcards}, got '
        f'{_describe_no_folder(folder)}'
      )
    )
  files, others = collections.defaultdict(list), []
  paths, loops = archives.list_folder_files(folder)
  for path in paths:
    stem = _stem(path, folder, suffixes, ending)
    if stem is None:
      reason = f'expected {wildcards} by its ending'
      others.append(errors.BadFile(path, reason))
    else:
      files[stem].append(path)
  others += [errors.BadFile(path, _LOOP) for path in loops]
  return _Content(files, others)


def _describe_no_folder(path: pathlib.Path) -> str:
  """Describes what is at a path, or the folders beside it."""
  if path.exists():
    return 'a file: give the folder that holds it'
  beside = (
    sorted(
      each.name
      for each in path.parent.iterdir()
      if each.is_dir() and not each.name.startswith('.')
    )
    if path.parent.is_dir()
    else []
  )
  if not beside:
    return 'no such folder'
  names = ', '.join(beside[:_MAX_LISTED])
  more = ', …' if len(beside) > _MAX_LISTED else ''
  return f'no such folder; {path.parent} holds the folders {names}{more}'


def _stem(
  path: pathlib.Path,
  folder: pathlib.Path,
  suffixes: tuple[str, ...],
  ending: str,
) -> str | None:
  """Returns the path of a file in a folder without its ending; None if other.

  Suffixes are compared in lower case, other parts of the ending as they are.
  """
  end, suffix = ending, path.suffix.lower()
  if ending.lower().endswith(suffixes):
    end, _, kind = ending.rpartition('.')
    if suffix != f'.{kind.lower()}':
      return None
  elif suffix not in suffixes:
    return None
  stem = image_ids.compose_unicode(
    path.relative_to(folder).with_suffix('').as_posix()
  )
  end = image_ids.compose_unicode(end)
  shortened = stem.removesuffix(end) if end else stem
  if (end and shortened == stem) or not shortened.rpartition('/')[2]:
    return None
  return shortened


def _separate(
  of_images: _Content, of_masks: _Content
) -> tuple[_Content, _Content]:
  """Separates images and masks that may be in one folder."""
  masks = {path for paths in of_masks.by_stem.values() for path in paths}
  by_stem = {
    stem: kept
    for stem, paths in of_images.by_stem.items()
    if (kept := [path for path in paths if path not in masks])
  }
  images = {path for paths in by_stem.values() for path in paths}
  return (
    _Content(by_stem, [o for o in of_images.others if o.file not in masks]),
    dataclasses.replace(
      of_masks, others=[o for o in of_masks.others if o.file not in images]
    ),
  )


def _require_images(
  folder: pathlib.Path, content: _Content, ending: str
) -> None:
  """Raises UserError if a folder has no image."""
  if content.by_stem:
    return
  there = ''
  if content.others:
    there = f'; it holds {content.others[0].file.name}, …'
  expected = f'*{ending}' if ending else _wildcards(IMAGE_SUFFIXES)
  raise errors.UserError(
    errors.format_on_one_line(
      f'{folder}: expected images ({expected}), got none{there}'
    )
  )


def _wildcards(suffixes: Sequence[str]) -> str:
  """Formats suffixes as '*.jpg, *.png or *.gif'."""
  *first, last = (f'*{suffix}' for suffix in suffixes)
  return f'{", ".join(first)} or {last}'


def _duplicate_ids(
  stem: str, files: Sequence[pathlib.Path]
) -> list[errors.BadFile]:
  """Returns a problem for each of several files with one id."""
  names = ' and '.join(file.name for file in files)
  reason = f'{names} have the same id {stem!r}'
  if len({image_ids.compose_unicode(file.name) for file in files}) == 1:
    reason += ', as they differ only in the Unicode form'
  reason += ': rename one of them'
  return [errors.BadFile(file, reason) for file in files]
