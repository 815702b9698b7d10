"""Storages and tensors of torch files, and the names their pickles may use.

A tensor is a view of a storage: an offset, a shape and strides, in elements.
They are checked against the size of the storage before any byte is read.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
from jaxtyping import Shaped

from segcore.weights.pth import pickle_machine
from segcore.weights.pth.pickle_machine import Callee, Stateful

_MAX_AXES = 32
_STORAGES = {
  'Float': np.float32,
  'Double': np.float64,
  'Half': np.float16,
  'BFloat16': ml_dtypes.bfloat16,
  'Long': np.int64,
  'Int': np.int32,
  'Short': np.int16,
  'Char': np.int8,
  'Byte': np.uint8,
  'Bool': np.bool_,
  'ComplexFloat': np.complex64,
  'ComplexDouble': np.complex128,
}
_DTYPES = {
  **{name: getattr(np, name) for name in ('float16', 'float32', 'float64')},
  **{f'int{bits}': np.dtype(f'i{bits // 8}') for bits in (8, 16, 32, 64)},
  **{f'uint{bits}': np.dtype(f'u{bits // 8}') for bits in (8, 16, 32, 64)},
  'bool': np.bool_,
  'complex64': np.complex64,
  'complex128': np.complex128,
  'bfloat16': ml_dtypes.bfloat16,
  'float8_e4m3fn': ml_dtypes.float8_e4m3fn,
  'float8_e4m3fnuz': ml_dtypes.float8_e4m3fnuz,
  'float8_e5m2': ml_dtypes.float8_e5m2,
  'float8_e5m2fnuz': ml_dtypes.float8_e5m2fnuz,
}


@dataclasses.dataclass(frozen=True)
class Storage:
  """Elements in a file, which are read when they are needed.

  Attributes:
    dtype: type of an element; uint8 if the pickle leaves it to the tensors.
    size: number of elements.
    read: function that returns all bytes.
    offset: number of elements before the first one, in what `read` returns.
  """

  dtype: np.dtype
  size: int
  read: Callable[[], bytes]
  offset: int = 0

  def part(self, offset: int, size: int) -> 'Storage':
    """Returns a view of consecutive elements.

    Args:
      offset: position of the first element in this storage.
      size: number of elements.
    """
    # A view of a view: checked against this one, which lies in the whole.
    check_storage_view(self.size, offset, (size,), (1,))
    return dataclasses.replace(self, size=size, offset=self.offset + offset)

  def of_type(self, dtype: np.dtype) -> 'Storage':
    """Returns the bytes as elements of another type."""
    # Only a whole untyped storage: a part's offset counts bytes, not elements.
    if self.dtype != np.uint8 or self.offset or self.size % dtype.itemsize:
      raise ValueError(f'{self.size} bytes are no array of {dtype}')
    return dataclasses.replace(
      self, dtype=dtype, size=self.size // dtype.itemsize
    )


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A view of a storage.

  Attributes:
    storage: storage of the elements.
    offset: position of the first element in the storage.
    shape: shape of the tensor.
    strides: elements between neighbors along each axis.
  """

  storage: Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]

  @property
  def num_bytes(self) -> int:
    """Returns the bytes of the tensor as an array of its own."""
    return math.prod(self.shape) * self.storage.dtype.itemsize

  def array(self, little_endian: bool = True) -> Shaped[np.ndarray, '...']:
    """Reads the elements.

    Args:
      little_endian: whether the bytes in the file are little-endian.

    Raises:
      ValueError: the tensor repeats elements of its storage.
    """
    storage = self.storage
    # With a stride of 0, a few bytes could stand for an array of any size.
    if math.prod(self.shape) > storage.size:
      raise ValueError(
        f'a tensor of shape {self.shape} repeats the {storage.size} elements '
        'of its storage'
      )
    dtype = storage.dtype
    if not little_endian:
      dtype = dtype.newbyteorder('>')
    elements = np.frombuffer(storage.read(), dtype)[storage.offset :]
    # `as_strided` checks nothing: `check_storage_view` has bounded the view.
    view = np.lib.stride_tricks.as_strided(
      elements[self.offset :],
      self.shape,
      [stride * dtype.itemsize for stride in self.strides],
      writeable=False,
    )
    # To the byte order of this machine.
    return view.astype(storage.dtype, copy=False)


def check_storage_view(
  size: int, offset: Any, shape: tuple[Any, ...], strides: tuple[Any, ...]
) -> None:
  """Checks that a view lies within a storage.

  Args:
    size: number of elements of the storage.
    offset: position of the first element in the storage.
    shape: shape of the view.
    strides: elements between neighbors along each axis.

  Raises:
    ValueError: it does not, or the numbers are not natural numbers.
  """
  # By `type`, since True is an int to `isinstance`.
  numbers = (offset, *shape, *strides)
  if any(type(n) is not int or n < 0 for n in numbers) or len(shape) != len(
    strides
  ):
    raise ValueError(
      'expected an offset, a shape and strides of natural numbers, got '
      f'{offset}, {shape} and {strides}'
    )
  if len(shape) > _MAX_AXES:
    raise ValueError(f'expected {_MAX_AXES} axes at most, got {len(shape)}')
  # A view without elements reads nothing, and may begin at the end.
  last = offset - 1
  if all(shape):
    steps = zip(shape, strides, strict=True)
    last = offset + sum((n - 1) * stride for n, stride in steps)
  if last >= size:
    raise ValueError(
      f'a tensor of shape {shape}, strides {strides} and offset '
      f'{offset} reaches beyond the {size} elements of its storage'
    )


def _tensor(
  storage: Any, offset: Any, shape: Any, strides: Any, *_: Any
) -> Tensor:
  if not isinstance(storage, Storage):
    raise ValueError('a tensor without a storage')
  check_storage_view(storage.size, offset, tuple(shape), tuple(strides))
  return Tensor(storage, offset, tuple(shape), tuple(strides))


def _tensor_of_type(
  storage: Any,
  offset: Any,
  shape: Any,
  strides: Any,
  grad: Any,
  hooks: Any,
  dtype: Any,
  *_: Any,
) -> Tensor:
  """Builds a tensor of a type for which torch has no class of storages."""
  if not isinstance(storage, Storage) or not isinstance(dtype, np.dtype):
    raise ValueError('a tensor without a storage, or without a type')
  return _tensor(storage.of_type(dtype), offset, shape, strides)


# Whether a parameter needs a gradient, and its hooks, are of no use here.
def _parameter(tensor: Any, *_: Any) -> Any:
  return tensor


class _NumpyType(Stateful):
  """The type of a numpy scalar."""

  def __init__(self, name: Any, *_: Any):
    # Numbers alone: elements of an array of objects are pointers.
    self.dtype = np.dtype(str(name))
    if self.dtype.kind not in 'biuf':
      raise pickle_machine.Refused(f'numpy values of type {name}')

  def set_state(self, state: Any) -> None:
    """Stores the byte order, which the pickle gives as the object's state."""
    if state[1] in ('<', '>'):
      self.dtype = self.dtype.newbyteorder(state[1])


def _numpy_scalar(kind: Any, data: Any = b'') -> bool | int | float:
  # Pickles of Python 2 write bytes as text.
  data = data.encode('latin-1') if isinstance(data, str) else data
  (value,) = np.frombuffer(data, kind.dtype)
  return value.item()


def _encode(text: str, encoding: str = 'latin1') -> bytes:
  """Stands for `_codecs.encode`, by which protocol 2 writes bytes."""
  if encoding not in ('latin1', 'latin-1'):
    raise ValueError(f'expected text in latin-1, got {encoding}')
  return text.encode('latin-1')


def _mapping(*arguments: Any) -> dict[Any, Any]:
  """Stands for the mappings of the standard library; drops a factory."""
  given = [x for x in arguments if isinstance(x, dict | list)]
  items: dict[Any, Any] = {}
  for argument in given:
    pairs = argument.items() if isinstance(argument, dict) else argument
    for key, value in pairs:
      # Before it is hashed: nested tuples could take for ever.
      pickle_machine.require_pickle_key(key)
      items[key] = value
  return items


def _set(items: Any = ()) -> set[Any]:
  for item in items:
    pickle_machine.require_pickle_key(item)
  return set(items)


def _storage_types() -> dict[str, np.dtype]:
  types = {
    f'{module}.{name}Storage': np.dtype(dtype)
    for module in ('torch', 'torch.cuda')
    for name, dtype in _STORAGES.items()
  }
  # For elements whose type has no class of storages: the tensor names it.
  untyped = ('torch', 'torch.storage', 'torch.cuda')
  return types | {f'{m}.UntypedStorage': np.dtype(np.uint8) for m in untyped}


# What each allowed name stands for.
NAMES = {
  **_storage_types(),
  **{f'torch.{name}': np.dtype(dtype) for name, dtype in _DTYPES.items()},
  'torch._utils._rebuild_tensor': Callee(_tensor),
  'torch._utils._rebuild_tensor_v2': Callee(_tensor),
  'torch._utils._rebuild_tensor_v3': Callee(_tensor_of_type),
  'torch._utils._rebuild_parameter': Callee(_parameter),
  'torch._utils._rebuild_parameter_with_state': Callee(_parameter),
  'torch.Size': Callee(lambda sizes=(): tuple(sizes)),
  # Of a device that this machine may not have.
  'torch.device': Callee(lambda *_: None),
  'collections.OrderedDict': Callee(_mapping),
  'collections.defaultdict': Callee(_mapping),
  'collections.Counter': Callee(_mapping),
  # The arguments of a training; they are left out.
  'argparse.Namespace': Callee(lambda: {}),
  **{
    f'{module}.{name}': None
    for module in ('builtins', '__builtin__')
    for name in ('dict', 'list', 'int', 'float')
  },
  **{f'{m}.set': Callee(_set) for m in ('builtins', '__builtin__')},
  '_codecs.encode': Callee(_encode),
  'numpy.dtype': Callee(_NumpyType),
  'numpy.core.multiarray.scalar': Callee(_numpy_scalar),
  'numpy._core.multiarray.scalar': Callee(_numpy_scalar),
}
