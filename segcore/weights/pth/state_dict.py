"""The state dict in what a torch file holds, which may be a whole training."""

from collections.abc import Iterator, Mapping
from typing import Any

from segcore.weights.pth import tensors

# Names under which trainings save a network, the preferred ones first: results
# are published of the teacher, or of the averaged weights.
WRAPPERS = (
  *('teacher', 'teacher_state', 'ema', 'model_ema', 'state_dict_ema'),
  *('ema_state_dict', 'params_ema', 'state_dict', 'model_state_dict', 'model'),
  *('model_state', 'network', 'net', 'weights', 'params', 'student'),
)
# What trainings save in addition; never weights of a network.
_TRAINING = ('optimizer', 'scheduler', 'scaler', 'amp', 'loss')
_MAX_DEPTH = 6
_MAX_TENSORS = 100_000


def select_state_dict(
  content: Any,
) -> tuple[dict[str, tensors.Tensor], list[str]]:
  """Returns the tensors of the state dict in a file, and notes on the choice.

  Wrappers such as 'state_dict' or 'teacher' are opened, one in the other;
  mappings in the state dict itself are joined by dots, as torch does it.

  Args:
    content: unpickled content of the file.

  Returns:
    Tensor by name; and what was taken and left out, for the log.

  Raises:
    ValueError: there is no tensor under a name.
  """
  notes, path = [], []
  while isinstance(content, Mapping) and len(path) < _MAX_DEPTH:
    inside = [
      name
      for name in WRAPPERS
      if isinstance(content.get(name), Mapping)
      and _holds_tensors(content[name])
    ]
    if not inside:
      break
    # The first of the preferred names: a file may hold student and teacher.
    others = [str(name) for name in content if name != inside[0]]
    path.append(inside[0])
    if others:
      notes.append(f'left out {", ".join(others)}')
    content = content[inside[0]]
  if path:
    notes.insert(0, f'took {".".join(path)}')
  if isinstance(content, tensors.Tensor) or not isinstance(content, Mapping):
    raise ValueError(
      f'expected a state dict, tensors by name, got a {type(content).__name__}'
    )
  found, other = {}, []
  for name, value in _flatten(content, '', 0):
    if isinstance(value, tensors.Tensor):
      found[name] = value
    else:
      other.append(name)
    # Mappings that are shared can stand for very many names.
    if len(found) + len(other) > _MAX_TENSORS:
      raise ValueError(f'it holds more than {_MAX_TENSORS} values')
  if not found:
    raise ValueError(
      'expected a state dict, tensors by name, got '
      f'{", ".join(other[:5]) or "an empty mapping"}'
    )
  if other:
    notes.append(f'left out {", ".join(other[:5])}, which are no tensors')
  return found, notes


def _holds_tensors(content: Mapping[Any, Any]) -> bool:
  """Returns whether a mapping holds a tensor at its top, or in a wrapper."""
  if any(isinstance(value, tensors.Tensor) for value in content.values()):
    return True
  return any(
    isinstance(value, Mapping)
    and any(isinstance(x, tensors.Tensor) for x in value.values())
    for value in content.values()
  )


def _flatten(
  content: Mapping[Any, Any], prefix: str, depth: int
) -> Iterator[tuple[str, Any]]:
  """Yields names and values, without the parts of a training."""
  for key, value in content.items():
    name = f'{prefix}{key}'
    # Bounded, since a pickle can contain a mapping in itself.
    is_mapping = isinstance(value, Mapping) and depth < _MAX_DEPTH
    if is_mapping and not any(word in name for word in _TRAINING):
      yield from _flatten(value, f'{name}.', depth + 1)
    else:
      yield name, value
