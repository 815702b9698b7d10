"""Scores of each class in words and curves; warnings about trivial results."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int64

MAX_CURVES = 200
_LINE_LENGTH = 78
# Share of the pixels of one class from which a prediction counts as trivial.
_TRIVIAL_SHARE = 0.995
_REMEDY = 'train longer, with another learning rate, or on more labeled images'


def describe_classes(
  name: str, classes: Sequence[str], iou: Float[np.ndarray, 'C']
) -> list[str]:
  """Describes the IoU of every class, in percent, in lines of columns.

  Args:
    name: name of the evaluated split.
    classes: names of the classes.
    iou: IoU of each class; NaN where it neither occurs nor is predicted.
  """
  width = max(map(len, classes))
  cells = [
    f'{class_name:{width}} '
    + (f'{100 * value:5.1f}' if not np.isnan(value) else '    -')
    for class_name, value in zip(classes, iou, strict=True)
  ]
  count = max(1, _LINE_LENGTH // (len(cells[0]) + 4))
  rows = -(-len(cells) // count)
  return [
    f'{name}: IoU of each class in percent',
    *('    '.join(['', *cells[i::rows]]) for i in range(rows)),
  ]


def describe_trivial_result(
  name: str, classes: Sequence[str], confusion: Int64[np.ndarray, 'C C']
) -> list[str]:
  """Warns, in a line, of a result that one class everywhere would reach, too.

  Returns [] for any other result.

  Args:
    name: name of the evaluated split.
    classes: names of the classes.
    confusion: number of pixels by label (rows) and predicted class (columns).
  """
  labeled, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
  if (labeled > 0).sum() < 2:
    return []
  total = labeled.sum()
  top = int(predicted.argmax())
  if predicted[top] >= _TRIVIAL_SHARE * total:
    return [
      f'warning: {name}: predicts only `{classes[top]}` '
      f'({predicted[top] / total:.1%} of the pixels): {_REMEDY}'
    ]
  most = int(labeled.argmax())
  accuracy = np.diagonal(confusion).sum() / total
  if accuracy * total <= labeled[most]:
    return [
      f'warning: {name}: {accuracy:.1%} of the pixels are right, and '
      f'predicting `{classes[most]}` everywhere has '
      f'{labeled[most] / total:.1%}: {_REMEDY}'
    ]
  return []


def class_curves(
  name: str, classes: Sequence[str], values: Mapping[str, Any]
) -> dict[str, float]:
  """Returns the IoU of each class by its tag in TensorBoard.

  Args:
    name: name of the evaluated split.
    classes: names of the classes; there are no curves of more than
      `MAX_CURVES`.
    values: values of an evaluation; NaN is no point.
  """
  if 'iou' not in values or len(classes) > MAX_CURVES:
    return {}
  return {
    f'{name}_iou/{class_name}': float(value)
    for class_name, value in zip(classes, values['iou'], strict=True)
    if not np.isnan(value)
  }


def describe_evaluation(
  name: str, classes: Sequence[str], values: Mapping[str, Any]
) -> list[str]:
  """Describes the classes of an evaluation, and whether it is trivial.

  Args:
    name: name of the evaluated split.
    classes: names of the classes.
    values: values of the evaluation; those of images have no classes.
  """
  lines = []
  if 'iou' in values:
    lines += describe_classes(name, classes, values['iou'])
  if 'confusion' in values:
    lines += describe_trivial_result(name, classes, values['confusion'])
  return lines
