"""Blocks of a config that experiments of several methods share.

A block states what an experiment chooses. Every other field has the default of
the options dataclass that the block is built into.
"""

import math
import pathlib
import re
from types import SimpleNamespace
from typing import Any

import ml_collections

# Ends the message about missing data sets or weights.
TINY_ADVICE = (
  'to run it now, on generated images, add the option tiny: CONFIG.py:tiny, '
  'or CONFIG.py:OPTIONS,tiny'
)
# Options that choose the labeled images.
LABELED = {
  'labels': 0,  # number of labeled images; 0: `fraction` or `list` decides
  'fraction': 0.0,  # share of the images that is labeled; 0: see `labels`
  'list': '',  # file with the names of the labeled images
  'seed': 0,  # of the choice of labeled images, and of the training on them
  'run': 0,  # another choice of labeled images with the same seed
  'cover': False,  # choose labeled images that show every class
  # Weights of the classes in the loss of labeled images, by their frequency.
  'class_weights': ['none', 'median', 'effective'],
}
# Another default: rare classes of photographs are learned better with weights.
WEIGHTED = {'class_weights': ['median', 'none', 'effective']}
# Options that describe a folder of images and masks.
FOLDER = {
  'source': '',  # folder that holds all of it
  'images': 'images',  # in the source
  'masks': 'masks',  # in the source; PNG, named as the images
  'image_suffix': '',  # end of all image names, as _leftImg8bit.png
  'mask_suffix': '',  # end of all mask names, as _mask.png
  'classes': 'classes.txt',  # in the source; a line each: name, name #rrggbb
  'ignore': '',  # value or color of pixels without a class: 255 or #ffffff
  # Share of the images set aside for evaluation; 0: folders `train` and `val`
  # of images and masks if there are, otherwise 0.2.
  'val_fraction': 0.0,
  'on_bad_example': ['error', 'skip'],
  # What palette and gray masks count by where the class list has colors.
  'mask_codes': ['auto', 'values', 'colors'],
  'follow_exif': False,  # turn images as viewers show them
  'image_depth': 16,  # bits of the values in images of 16 bits
  'max_megapixels': 178,  # larger images are refused
  # Images without masks that are trained on, too: a folder of them (in the
  # source, or an absolute path); or 'same', those of `images` without a mask.
  'unlabeled': '',
  'crop': '',  # LEAST-LARGEST share of an image that a crop shows; '': chosen
  'size': '',  # HEIGHTxWIDTH of crops, in pixels; '': chosen from the data
}
# Options of `FOLDER` that define the pixels of images.
_READING = ('follow_exif', 'image_depth', 'max_megapixels')
# Options of `FOLDER` that are no fields of the data set.
_NOT_OF_DATA = ('unlabeled', 'crop', 'size')
# Name in `images` and `masks` that stands for each folder of a split.
_SPLIT = '{split}'
_VAL_FRACTION = 0.2
# Names of folders that look like splits; `train` and `val` are taken as such.
_TRAIN_NAMES = ('train', 'training')
_OTHER_NAMES = ('val', 'valid', 'validation', 'dev', 'test', 'testing')
# Value of `unlabeled`, and the split that it makes.
_SAME_FOLDER, _UNLABELED = 'same', 'unlabeled'


def block(**fields: Any) -> ml_collections.ConfigDict:
  """Builds a block of a config; nested dicts become blocks too.

  A dict that occurs twice becomes two blocks, as a ConfigDict would make one of
  it: to override a field of one stage would change the other.
  """
  return ml_collections.ConfigDict(_copied(fields))


def _copied(value: Any) -> Any:
  if not hasattr(value, 'items'):
    return value
  return {name: _copied(field) for name, field in value.items()}


def adam(learning_rate: float, **fields: Any) -> dict[str, Any]:
  """Builds Adam with a cosine schedule; gradients are clipped to norm 1."""
  return {'learning_rate': learning_rate, 'clip_norm': 1.0, **fields}


def adamw(
  learning_rate: float, schedule: str, groups: tuple[Any, ...]
) -> dict[str, Any]:
  """Builds AdamW as for a pretrained MiT, with a linear decay of the rate.

  Args:
    learning_rate: learning rate of the encoder.
    schedule: 'warmed_poly', or 'switched_poly', whose rate drops to that of the
      decay after the warm-up.
    groups: groups of parameters.
  """
  return {
    'learning_rate': learning_rate,
    'schedule': schedule,
    'poly_power': 1.0,
    'warmup_steps': 1500,
    'warmup_start': 1e-6,
    'weight_decay': 0.01,
    'groups': groups,
  }


def encoder_start(encoder: str) -> dict[str, Any]:
  """Builds the start from the weights of an encoder, or random values if ''."""
  return {'path': encoder, 'take': ('encoder',)} if encoder else {}


def recipe(
  batch_size: int,
  num_steps: int,
  optimizer: dict[str, Any],
  evaluate_every: int = 0,
) -> dict[str, Any]:
  """Builds batch, length and optimizer of a training.

  Args:
    batch_size: images of a step, over all devices.
    num_steps: number of training steps.
    optimizer: fields of the optimizer.
    evaluate_every: number of steps between evaluations; 0 to evaluate after
      the last one only.
  """
  fields = {
    'batch_size': batch_size,
    'num_steps': num_steps,
    'optimizer': optimizer,
  }
  if evaluate_every:
    fields['evaluate_every'] = evaluate_every
  return fields


def num_steps(epochs: float, num_images: int, batch_size: int) -> int:
  """Computes the number of steps of some epochs; a partial batch is a step.

  >>> num_steps(100, 12_743_321, 512)
  2488930
  """
  return math.ceil(epochs * num_images / batch_size)


def subset(options: SimpleNamespace, labels: int = 0) -> dict[str, Any]:
  """Builds the choice of labeled images.

  Args:
    options: parsed options, among them those of `LABELED`.
    labels: number of images if no option gives it; 0 for all of them.
  """
  amounts = {
    name: getattr(options, name)
    for name in ('labels', 'fraction', 'list')
    if getattr(options, name)
  }
  if labels and not amounts:
    amounts = {'labels': labels}
  fields = {**amounts, 'seed': options.seed, 'run': options.run}
  return {**fields, 'cover': True} if options.cover else fields


def class_weights(options: SimpleNamespace) -> dict[str, Any]:
  """Builds the field of the class weights of the loss; {} for equal weights.

  Args:
    options: parsed options, among them those of `LABELED`.
  """
  if options.class_weights == 'none':
    return {}
  return {'class_weights': {'kind': options.class_weights}}


def encoder_group(
  options: SimpleNamespace, network: ml_collections.ConfigDict, factor: float
) -> dict[str, Any]:
  """Builds the field of an optimizer that scales the encoder's learning rate.

  Args:
    options: parsed options, among them `encoder_lr`.
    network: block of the network; nothing is built for a frozen encoder.
    factor: factor if the option does not give it.
  """
  factor = options.encoder_lr or factor
  if factor == 1.0 or network.encoder.get('frozen'):
    return {}
  return {'groups': (('^encoder/', factor, 1.0),)}


def folder(options: SimpleNamespace) -> dict[str, Any]:
  """Builds the data set of a folder of images and masks.

  Args:
    options: parsed options, among them those of `FOLDER`.

  Raises:
    ValueError: images and masks are divided into folders by other names than
      `train` and `val`, and no option says what they are.
  """
  _refuse_other_splits(options)
  fields = {n: getattr(options, n) for n in FOLDER if n not in _NOT_OF_DATA}
  given = given_folder_options(options)
  if has_split_folders(options):
    for name in ('images', 'masks'):
      fields[name] = f'{fields[name]}/{_SPLIT}'.lstrip('/')
  elif _SPLIT not in options.images and not options.val_fraction:
    fields['val_fraction'] = _VAL_FRACTION
  for name in ('mask_codes', *_READING):
    if name not in given:
      del fields[name]
  if options.unlabeled == _SAME_FOLDER:
    fields['without_mask'] = _UNLABELED
  return {'name': 'image_mask_folder', **fields}


def given_folder_options(options: SimpleNamespace) -> tuple[str, ...]:
  """Returns the options of a folder that differ from their defaults.

  Args:
    options: parsed options, among them some of those of `FOLDER`.
  """
  return tuple(
    name
    for name, default in FOLDER.items()
    if hasattr(options, name)
    and getattr(options, name)
    != (default[0] if isinstance(default, list) else default)
  )


def has_split_folders(options: SimpleNamespace) -> bool:
  """Returns whether images and masks are divided into `train` and `val`.

  Args:
    options: parsed options, among them those of `FOLDER`.
  """
  if options.val_fraction or _SPLIT in options.images or not options.source:
    return False
  source = pathlib.Path(options.source).expanduser()
  return all(
    (source / folder / split).is_dir()
    for folder in (options.images, options.masks)
    for split in ('train', 'val')
  )


def _refuse_other_splits(options: SimpleNamespace) -> None:
  """Refuses folders of splits that would be mixed, as train and valid."""
  if options.val_fraction or _SPLIT in options.images or not options.source:
    return
  if has_split_folders(options):
    return
  source = pathlib.Path(options.source).expanduser()
  common = set.intersection(
    *(
      {each.name for each in (source / folder).glob('*/')}
      for folder in (options.images, options.masks)
    )
  )
  train, other = (
    sorted(name for name in common if name.lower() in names)
    for names in (_TRAIN_NAMES, _OTHER_NAMES)
  )
  if train and other:
    raise ValueError(
      f'images, masks: expected the folders train and val, or no splits, got '
      f'{", ".join((*train, *other))} in {source}: rename what is trained on '
      'to train and what is evaluated to val, or divide all images anew by '
      f'val_fraction={_VAL_FRACTION}'
    )


def folder_notes(options: SimpleNamespace) -> tuple[str, ...]:
  """Returns the choices made for a folder, as lines for the user.

  Args:
    options: parsed options, among them those of `FOLDER`.
  """
  if not has_split_folders(options):
    return ()
  return (
    f'splits: the folders train and val of {options.images} and '
    f'{options.masks} (val_fraction={_VAL_FRACTION} divides all images anew)',
  )


def unlabeled_images(options: SimpleNamespace) -> dict[str, Any] | None:
  """Builds data set and split of images without masks; None if there are none.

  Args:
    options: parsed options, among them those of `FOLDER`.
  """
  if not options.unlabeled:
    return None
  if options.unlabeled == _SAME_FOLDER:
    return {'data': folder(options), 'split': _UNLABELED}
  data = {
    'name': 'image_folder',
    'source': options.source,
    'images': options.unlabeled,
    'on_bad_example': options.on_bad_example,
  }
  read = folder(options)
  data |= {name: read[name] for name in _READING if name in read}
  return {'data': data, 'split': 'train'}


def folder_crop(
  options: SimpleNamespace, size_multiple: int, max_area: float
) -> dict[str, Any]:
  """Builds the crop of a folder: by options, else chosen from its images.

  Args:
    options: parsed options, among them those of `FOLDER`.
    size_multiple: divisor of its sides, in pixels; of the network.
    max_area: largest share of an image that it shows if it is chosen.

  Raises:
    ValueError: an option has another form.
  """
  # (0, 0) leaves the choice; a command line can override it.
  fields = {
    'size': (0, 0),
    'area': (0.0, 0.0),
    'size_multiple': size_multiple,
    'max_area': max_area,
  }
  if options.size:
    fields['size'] = parse_size(options.size)
  if options.crop:
    fields['area'] = parse_range('crop', options.crop, '0.4-1')
  return {'name': 'fitted', **fields}


def parse_size(text: str) -> tuple[int, int]:
  """Parses the option size, HEIGHTxWIDTH in pixels.

  Args:
    text: value of the option.

  Raises:
    ValueError: the text has another form.
  """
  match = re.fullmatch(r'([1-9]\d*)x([1-9]\d*)', text)
  if not match:
    raise ValueError(
      f'config option size={text}: expected HEIGHTxWIDTH, as 96x144'
    )
  return int(match[1]), int(match[2])


def parse_range(option: str, text: str, example: str) -> tuple[float, float]:
  """Parses a range written LEAST-LARGEST.

  Args:
    option: name of the option, for the message.
    text: value of the option.
    example: valid value that the message shows.

  Raises:
    ValueError: the text has another form.
  """
  least, _, largest = text.partition('-')
  try:
    return float(least), float(largest)
  except ValueError:
    raise ValueError(
      f'config option {option}={text}: expected LEAST-LARGEST, as {example}'
    ) from None
