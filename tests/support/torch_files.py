"""Writes files as torch does, without torch: the zip format, and the older one.

  torch_files.save_zip(path, {'state_dict': torch_files.tensors(arrays)})

Pickles are written by Python's own pickler, so that opcodes and memo are those
of real files; names are written as they are given, so that none of what they
name has to exist.
"""

import collections
import dataclasses
import io
import pickle
import struct
import zipfile
from typing import Any

import numpy as np

STORAGES = {
  'float32': 'FloatStorage',
  'float64': 'DoubleStorage',
  'float16': 'HalfStorage',
  'bfloat16': 'BFloat16Storage',
  'int64': 'LongStorage',
  'int32': 'IntStorage',
  'int16': 'ShortStorage',
  'int8': 'CharStorage',
  'uint8': 'ByteStorage',
  'bool': 'BoolStorage',
  'complex64': 'ComplexFloatStorage',
  'complex128': 'ComplexDoubleStorage',
}
MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001


@dataclasses.dataclass(frozen=True)
class Name:
  """A name in a pickle: of a function, a class or a constant."""

  module: str
  name: str

  def __call__(self):
    raise AssertionError('only its name is written')


@dataclasses.dataclass(eq=False)
class Call:
  """A call in a pickle: of a name, or of the result of another call."""

  function: Any
  arguments: tuple[Any, ...]
  state: Any = None


@dataclasses.dataclass(eq=False)
class Storage:
  """A storage; `declared` is the size in the pickle, if it is a lie."""

  elements: np.ndarray
  declared: int | None = None
  kind: str = ''
  key: str = ''
  view: tuple[int, int] | None = None

  def persistent_id(self, legacy: bool) -> tuple[Any, ...]:
    kind = self.kind or STORAGES[str(self.elements.dtype)]
    size = self.elements.size if self.declared is None else self.declared
    module = 'torch.storage' if kind.startswith('Untyped') else 'torch'
    name = Name(module, kind)
    view = (('v', *self.view),) if self.view else (None,)
    return ('storage', name, self.key, 'cpu', size, *(view if legacy else ()))


def call(name: str, *arguments: Any, state: Any = None) -> Call:
  """Returns a call of 'module.name'."""
  return Call(Name(*name.rsplit('.', 1)), arguments, state)


def view(storage, shape, strides, offset=0) -> Call:
  """Returns a tensor, by all that describes it."""
  return call(
    'torch._utils._rebuild_tensor_v2',
    storage,
    offset,
    shape,
    strides,
    False,
    collections.OrderedDict(),
  )


def tensor(array: np.ndarray) -> Call:
  """Returns a contiguous tensor with a storage of its own."""
  array = np.array(array, order='C')
  strides = [s // array.itemsize for s in array.strides]
  storage = Storage(array.reshape(-1))
  return view(storage, tuple(map(int, array.shape)), tuple(strides))


def parameter(array: np.ndarray) -> Call:
  """Returns a tensor that is a parameter of a module."""
  return call(
    'torch._utils._rebuild_parameter',
    tensor(array),
    True,
    collections.OrderedDict(),
  )


def float8(array: np.ndarray) -> Call:
  """Returns a tensor of 8-bit floats, which have no class of storages."""
  storage = Storage(array.reshape(-1).view(np.uint8), kind='UntypedStorage')
  return call(
    'torch._utils._rebuild_tensor_v3',
    storage,
    0,
    array.shape,
    array.strides,
    False,
    collections.OrderedDict(),
    Name('torch', str(array.dtype)),
  )


def tensors(arrays) -> collections.OrderedDict:
  """Returns a state dict of arrays, with torch's attribute `_metadata`."""
  state = collections.OrderedDict(
    (name, tensor(np.asarray(x))) for name, x in arrays.items()
  )
  state._metadata = {'': {'version': 1}}
  return state


class _Pickler(pickle._Pickler):
  """Python's pickler; the C version cannot write names of what is absent."""

  dispatch = {**pickle._Pickler.dispatch}  # noqa: RUF012

  def __init__(self, file, protocol, legacy):
    super().__init__(file, protocol=protocol)
    self.legacy = legacy
    self.storages = {}

  def persistent_id(self, obj):
    if not isinstance(obj, Storage):
      return None
    self.storages.setdefault(id(obj), obj)
    obj.key = obj.key or str(len(self.storages) - 1)
    return obj.persistent_id(self.legacy)

  def reducer_override(self, obj):
    if isinstance(obj, Call):
      return (obj.function, obj.arguments, obj.state)
    return NotImplemented

  def save_name(self, obj):
    if self.proto < 4:
      self.write(pickle.GLOBAL + f'{obj.module}\n{obj.name}\n'.encode())
    else:
      self.save(obj.module)
      self.save(obj.name)
      self.write(pickle.STACK_GLOBAL)

  dispatch[Name] = save_name

  def save_reduce(self, func, args, state=None, *rest, obj=None, **fields):
    if not isinstance(obj, Call):
      super().save_reduce(func, args, state, *rest, obj=obj, **fields)
      return
    # As the method, which insists on a function that can be called.
    self.save(func)
    self.save(args)
    self.write(pickle.REDUCE)
    self.memoize(obj)
    if state is not None:
      self.save(state)
      self.write(pickle.BUILD)


def dumps(content, protocol=2, legacy=False):
  """Returns a pickle, and the storages that it names."""
  file = io.BytesIO()
  pickler = _Pickler(file, protocol, legacy)
  pickler.dump(content)
  return file.getvalue(), list(pickler.storages.values())


def save_zip(path, content, protocol=2, root='archive', big=False, extra=None):
  """Writes the format since torch 1.6; `extra` are further members."""
  data, storages = dumps(content, protocol)
  write_zip(path, data, storages, root, big, extra)


def write_zip(path, data, storages=(), root='archive', big=False, extra=None):
  """Writes an archive of a pickle and storages."""
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr(f'{root}/data.pkl', data)
    archive.writestr(f'{root}/byteorder', b'big' if big else b'little')
    for storage in storages:
      elements = storage.elements
      elements = elements.byteswap() if big else elements
      archive.writestr(f'{root}/data/{storage.key}', elements.tobytes())
    archive.writestr(f'{root}/version', b'3\n')
    for name, member in (extra or {}).items():
      archive.writestr(name, member)


def save_legacy(path, content, magic=MAGIC):
  """Writes the format before torch 1.6."""
  data, storages = dumps(content, legacy=True)
  info = {'protocol_version': VERSION, 'little_endian': True}
  with open(path, 'wb') as file:
    for header in (magic, VERSION, info):
      file.write(pickle.dumps(header, protocol=2))
    file.write(data)
    file.write(pickle.dumps([s.key for s in storages], protocol=2))
    for storage in storages:
      file.write(struct.pack('<q', storage.elements.size))
      file.write(storage.elements.tobytes())
