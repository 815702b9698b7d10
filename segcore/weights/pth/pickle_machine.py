"""A machine that runs the pickles of torch files and can only build data.

  content = pickle_machine.run_pickle(file, names, resolve)

A pickle is a program: for Python's own reader, loading one may call anything
that can be imported. Here, a name stands for what a table of the caller holds
under it; a name that is not in the table is refused, and nothing is ever
imported. No method of an object is called, and no attribute is set.
"""

import io
import mmap
import pickletools
from collections.abc import Callable, Mapping
from typing import Any

_CONSTANTS = {'NONE': None, 'NEWTRUE': True, 'NEWFALSE': False}
_EMPTY = {'EMPTY_DICT': dict, 'EMPTY_LIST': list, 'EMPTY_SET': set}
# Opcodes whose argument is the value. Strings of Python 2 are taken as latin-1.
_LITERALS = (
  *('INT', 'BININT', 'BININT1', 'BININT2', 'LONG', 'LONG1', 'LONG4'),
  *('FLOAT', 'BINFLOAT', 'STRING', 'BINSTRING', 'SHORT_BINSTRING'),
  *('UNICODE', 'BINUNICODE', 'SHORT_BINUNICODE', 'BINUNICODE8'),
  *('BINBYTES', 'SHORT_BINBYTES', 'BINBYTES8', 'BYTEARRAY8'),
)
# Types of keys. A tuple of shared tuples could take for ever to hash.
_KEYS = (str, int, float, bytes, type(None))


class Refused(ValueError):
  """Raised for a pickle that does more than describe data."""


class Callee:
  """What a pickle may call, in place of the function or class that it names."""

  def __init__(self, build: Callable[..., Any]):
    self.build = build


class Stateful:
  """An object to which a pickle gives a state after building it."""

  def set_state(self, state: Any) -> None:
    """Stores the state that the pickle gives to this object."""
    raise NotImplementedError


def run_pickle(
  file: io.BytesIO | mmap.mmap,
  names: Mapping[str, Any],
  resolve: Callable[[Any], Any],
) -> Any:
  """Runs a pickle; the file is then at the byte after its end.

  Args:
    file: file whose position is the first byte of the pickle.
    names: `Callee` or constant that stands for each allowed name, as
      'collections.OrderedDict'.
    resolve: function that returns the object of a persistent id.

  Returns:
    The object that the pickle describes.

  Raises:
    Refused: it uses a name that is not allowed, or an opcode that state dicts
      do not need.
    ValueError, TypeError, LookupError: it is damaged.
  """
  machine = _Machine(names, resolve)
  for opcode, argument, _ in pickletools.genops(file):
    if opcode.name == 'STOP':
      return machine.pop()
    machine.step(opcode.name, argument)
  raise ValueError('the pickle has no end')


class _Machine:
  """The stack and the memo of a pickle that is being run."""

  def __init__(
    self, names: Mapping[str, Any], resolve: Callable[[Any], Any]
  ) -> None:
    self._names = names
    self._resolve = resolve
    self._stack: list[Any] = []
    self._marks: list[int] = []
    self._memo: dict[int, Any] = {}
    self._operations: dict[str, Callable[[Any], None]] = {
      'PROTO': lambda _: None,
      # Frames are a hint for buffering, and hold no data.
      'FRAME': lambda _: None,
      'MARK': lambda _: self._marks.append(len(self._stack)),
      'POP': lambda _: self.pop(),
      'POP_MARK': lambda _: self._pop_to_mark(),
      'DUP': lambda _: self._push(self._stack[-1]),
      'TUPLE': lambda _: self._push(tuple(self._pop_to_mark())),
      'TUPLE1': lambda _: self._push((self.pop(),)),
      'TUPLE2': lambda _: self._push(self._pop(2)),
      'TUPLE3': lambda _: self._push(self._pop(3)),
      'EMPTY_TUPLE': lambda _: self._push(()),
      'LIST': lambda _: self._push(self._pop_to_mark()),
      'DICT': lambda _: self._push(_set_items({}, self._pop_to_mark())),
      'FROZENSET': lambda _: self._push(_add(set(), self._pop_to_mark())),
      'APPEND': lambda _: _extend(*self._pop_container([self.pop()])),
      'APPENDS': lambda _: _extend(*self._pop_container(self._pop_to_mark())),
      'ADDITEMS': lambda _: _add(*self._pop_container(self._pop_to_mark())),
      'SETITEM': lambda _: _set_items(*self._pop_container(self._pop(2))),
      'SETITEMS': lambda _: _set_items(
        *self._pop_container(self._pop_to_mark())
      ),
      'GLOBAL': lambda text: self._push(self._named(*text.split(' ', 1))),
      'STACK_GLOBAL': lambda _: self._push(self._named(*self._pop(2))),
      # Calls: only a `Callee` of the table gets past `_call`.
      'REDUCE': lambda _: self._push(_call(*self._pop(2))),
      'NEWOBJ': lambda _: self._push(_call(*self._pop(2))),
      'BUILD': lambda _: _build(*self._pop_container(self.pop())),
      # torch saves storages apart: the pickle has their ids alone.
      'BINPERSID': lambda _: self._push(self._resolve(self.pop())),
      'MEMOIZE': lambda _: self._put(len(self._memo)),
      **dict.fromkeys(('PUT', 'BINPUT', 'LONG_BINPUT'), self._put),
      **dict.fromkeys(
        ('GET', 'BINGET', 'LONG_BINGET'), lambda i: self._push(self._memo[i])
      ),
      **dict.fromkeys(_LITERALS, self._push),
    }

  def step(self, opcode: str, argument: Any) -> None:
    """Carries out one opcode."""
    if opcode in _CONSTANTS:
      self._push(_CONSTANTS[opcode])
    elif opcode in _EMPTY:
      self._push(_EMPTY[opcode]())
    elif opcode in self._operations:
      self._operations[opcode](argument)
    else:
      # An allow-list: INST, OBJ, NEWOBJ_EX and the extension registry, by which
      # other calls are possible, end here.
      raise Refused(f'the opcode {opcode}')

  def pop(self) -> Any:
    """Removes and returns the top of the stack."""
    # Items below the last mark belong to an enclosing container.
    if len(self._stack) <= (self._marks[-1] if self._marks else 0):
      raise ValueError('the pickle takes more from its stack than there is')
    return self._stack.pop()

  def _pop(self, count: int) -> tuple[Any, ...]:
    # Through `pop`, which checks the marks: slicing would not.
    return tuple(self.pop() for _ in range(count))[::-1]

  def _pop_to_mark(self) -> list[Any]:
    mark = self._marks.pop()
    items = self._stack[mark:]
    del self._stack[mark:]
    return items

  def _pop_container(self, items: Any) -> tuple[Any, Any]:
    """Returns the object at the top, which stays there, and the items."""
    return self._stack[-1], items

  def _push(self, value: Any) -> None:
    self._stack.append(value)

  def _put(self, place: int) -> None:
    self._memo[place] = self._stack[-1]

  def _named(self, module: Any, name: Any) -> Any:
    # Never resolved by attributes: 'torch.os.system' is one unknown name.
    full = f'{module}.{name}'
    if full not in self._names:
      raise Refused(full)
    return self._names[full]


def _call(callee: Any, arguments: Any) -> Any:
  """Builds what stands for the result of a call."""
  if not isinstance(callee, Callee) or not isinstance(arguments, tuple):
    raise Refused(f'a call of {type(callee).__name__}')
  return callee.build(*arguments)


def _build(target: Any, state: Any) -> None:
  """Gives an object its state; attributes of mappings are left out."""
  # torch gives an OrderedDict a state, its `_metadata`: not needed, and setting
  # attributes that a file names is what this machine must not do.
  if isinstance(target, Stateful):
    target.set_state(state)
  elif not isinstance(target, dict):
    raise Refused(f'a state of {type(target).__name__}')


def _set_items(target: Any, items: Any) -> dict[Any, Any]:
  _require(target, dict)
  keys = items[::2]
  for key in keys:
    require_pickle_key(key)
  target.update(zip(keys, items[1::2], strict=True))
  return target


def _extend(target: Any, items: list[Any]) -> None:
  _require(target, list)
  target.extend(items)


def _add(target: Any, items: list[Any]) -> set[Any]:
  _require(target, set)
  for item in items:
    require_pickle_key(item)
  target.update(items)
  return target


def require_pickle_key(value: Any) -> None:
  """Raises Refused unless a value may be a key of a mapping or be in a set."""
  _require(value, _KEYS)


def _require(value: Any, expected: Any) -> None:
  if not isinstance(value, expected):
    raise Refused(f'a {type(value).__name__} where it does not belong')
