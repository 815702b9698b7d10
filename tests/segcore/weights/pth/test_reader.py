"""Files of torch: every format, type and view; damage is refused."""

import argparse
import collections

import jax
import ml_dtypes
import numpy as np
import pytest

from runtime import errors
from segcore.weights import load
from segcore.weights.pth import reader
from tests.segcore.weights.layouts import test_torchvision as resnets
from tests.support import torch_arithmetic, torch_files

SAVE = {'zip': torch_files.save_zip, 'legacy': torch_files.save_legacy}
formats = pytest.mark.parametrize('save', SAVE.values(), ids=SAVE)


def arrays():
  """An array of each type that torch has, and of odd shapes."""
  rng = np.random.default_rng(0)
  values = rng.integers(-3, 4, (2, 3, 4))
  result = {}
  for name in torch_files.STORAGES:
    dtype = getattr(ml_dtypes, name, None) or np.dtype(name)
    source = abs(values) if name == 'uint8' else values
    result[f'of.{name}'] = source.astype(dtype)
  return {
    **result,
    'scalar': np.array(7, np.int64),
    'empty': np.zeros((0, 3), np.float32),
    'kernel': rng.standard_normal((5, 4, 3, 3)).astype(np.float32),
  }


def assert_equal(actual, expected):
  assert list(actual) == list(expected)
  for name, value in expected.items():
    assert actual[name].dtype == value.dtype, name
    np.testing.assert_array_equal(actual[name], value, name)


@formats
def test_all_types_round_trip(tmp_path, save, capsys):
  save(tmp_path / 'w.pth', torch_files.tensors(arrays()))
  assert_equal(reader.read_torch_file(tmp_path / 'w.pth'), arrays())
  assert capsys.readouterr().out == ''


@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
def test_all_protocols_are_read(tmp_path, protocol):
  content = torch_files.tensors(arrays())
  torch_files.save_zip(tmp_path / 'w.pt', content, protocol, root='resnet')
  assert_equal(reader.read_torch_file(tmp_path / 'w.pt'), arrays())


def test_big_endian_files_are_read(tmp_path):
  expected = {'a': np.arange(6, dtype=np.float32).reshape(2, 3)}
  content = torch_files.tensors(expected)
  torch_files.save_zip(tmp_path / 'w.pth', content, big=True)
  assert_equal(reader.read_torch_file(tmp_path / 'w.pth'), expected)


@formats
def test_views_are_resolved(tmp_path, save):
  elements = np.arange(24, dtype=np.float32)
  storage = torch_files.Storage(elements)
  content = {
    'whole': torch_files.view(storage, (4, 6), (6, 1)),
    'transposed': torch_files.view(storage, (6, 4), (1, 6)),
    'part': torch_files.view(storage, (2, 2), (12, 3), 7),
    'last': torch_files.view(storage, (1,), (5,), 23),
    'none': torch_files.view(storage, (0, 9), (9, 1), 24),
    'repeated': torch_files.view(storage, (3, 2), (0, 1), 4),
  }
  save(tmp_path / 'w.pth', content)
  whole = elements.reshape(4, 6)
  expected = {
    'whole': whole,
    'transposed': whole.T,
    'part': np.array([[7, 10], [19, 22]], np.float32),
    'last': np.array([23], np.float32),
    'none': np.zeros((0, 9), np.float32),
    'repeated': np.array([[4, 5]] * 3, np.float32),
  }
  assert_equal(reader.read_torch_file(tmp_path / 'w.pth'), expected)


def test_views_of_storages_in_old_files(tmp_path):
  elements = np.arange(10, dtype=np.int16)
  storage = torch_files.Storage(elements, view=(4, 5))
  content = {'a': torch_files.view(storage, (2, 2), (2, 1), 1)}
  torch_files.save_legacy(tmp_path / 'w.pth', content)
  expected = {'a': np.array([[5, 6], [7, 8]], np.int16)}
  assert_equal(reader.read_torch_file(tmp_path / 'w.pth'), expected)


def test_floats_of_8_bits_and_parameters(tmp_path):
  small = np.array([[0.5, -2.0], [1.5, 0.0]], ml_dtypes.float8_e4m3fn)
  weight = np.ones((2, 2), np.float32)
  content = {
    'small': torch_files.float8(small),
    'weight': torch_files.parameter(weight),
  }
  torch_files.save_zip(tmp_path / 'w.bin', content)
  expected = {'small': small, 'weight': weight}
  assert_equal(reader.read_torch_file(tmp_path / 'w.bin'), expected)


def numpy_scalar(value):
  kind = torch_files.call('numpy.dtype', value.dtype.str[1:], False, True)
  kind.state = (3, '<', None, None, None, -1, -1, 0)
  data = torch_files.call(
    '_codecs.encode', value.tobytes().decode('latin-1'), 'latin1'
  )
  return torch_files.call('numpy.core.multiarray.scalar', kind, data)


def training(wrappers):
  """What a training saves beside its network."""
  moment = np.zeros(3, np.float32)
  return {
    'epoch': 3,
    'best': numpy_scalar(np.float64(76.5)),
    'args': torch_files.call('argparse.Namespace', state={'lr': 0.1}),
    'milestones': collections.Counter([30, 60]),
    'device': torch_files.call('torch.device', 'cuda', 0),
    'size': torch_files.call('torch.Size', (2, 3)),
    'seen': {1, 2},
    'optimizer': {'state': {0: {'exp_avg': torch_files.tensor(moment)}}},
    **wrappers,
  }


@formats
@pytest.mark.parametrize(
  ('wrap', 'taken'),
  [
    (lambda x: {'state_dict': x}, 'state_dict'),
    (lambda x: {'model': x}, 'model'),
    (lambda x: {'model_state_dict': x}, 'model_state_dict'),
    (lambda x: {'model': {'state_dict': x}}, 'model.state_dict'),
    (lambda x: {'student': {}, 'teacher': x}, 'teacher'),
    (
      lambda x: {
        'student': torch_files.tensors({'b': np.zeros(2)}),
        'teacher': x,
      },
      'teacher',
    ),
    (lambda x: {'state_dict': {}, 'ema': x}, 'ema'),
    (lambda x: {'student': x}, 'student'),
  ],
)
def test_wrappers_are_opened_and_named(tmp_path, capsys, save, wrap, taken):
  expected = {'a.weight': np.arange(4, dtype=np.float32)}
  save(tmp_path / 'w.pth.tar', training(wrap(torch_files.tensors(expected))))
  assert_equal(reader.read_torch_file(tmp_path / 'w.pth.tar'), expected)
  line = capsys.readouterr().out
  assert line.startswith(f'{tmp_path}/w.pth.tar: took {taken}; left out epoch')
  assert 'optimizer' in line


def test_nested_mappings_are_joined_by_dots(tmp_path):
  content = {
    'encoder': torch_files.tensors({'conv.weight': np.ones(2, np.float32)}),
    'head': torch_files.tensors({'bias': np.zeros(3, np.float32)}),
    'optimizer': {'state': torch_files.tensors({'x': np.zeros(1)})},
  }
  torch_files.save_zip(tmp_path / 'w.pth', content)
  names = [*reader.read_torch_file(tmp_path / 'w.pth')]
  assert names == ['encoder.conv.weight', 'head.bias']


@formats
@pytest.mark.parametrize(
  'prefix', ['', 'module.', 'module.encoder_q.', 'backbone.']
)
def test_a_resnet_is_read_whole(tmp_path, capsys, save, prefix):
  state = torch_arithmetic.resnet_state(stem='plain', classes=10)
  np.savez(tmp_path / 'w.npz', **state)
  expected = resnets._load(tmp_path / 'w.npz', 'plain')
  renamed = {f'{prefix}{name}': x for name, x in state.items()}
  if prefix == 'module.encoder_q.':
    renamed['module.queue'] = np.zeros((2, 5), np.float32)
  content = {'state_dict': torch_files.tensors(renamed), 'epoch': 200}
  save(tmp_path / 'w.pth.tar', content)
  capsys.readouterr()
  variables = resnets._load(tmp_path / 'w.pth.tar', 'plain')
  jax.tree.map(np.testing.assert_array_equal, variables, expected)
  out = capsys.readouterr().out
  assert 'took state_dict; left out epoch' in out
  assert not prefix or f'removed the prefix {prefix};' in out


@formats
def test_files_cut_anywhere_are_refused(tmp_path, save):
  whole, cut = tmp_path / 'w.pth', tmp_path / 'cut.pth'
  save(whole, training({'model': torch_files.tensors(arrays())}))
  data = whole.read_bytes()
  for length in np.linspace(0, len(data) - 1, 30, dtype=int):
    cut.write_bytes(data[:length])
    with pytest.raises(errors.BadFile, match='is not a readable file of torch'):
      reader.read_torch_file(cut)


@formats
def test_flipped_bits_raise_nothing_else(tmp_path, save):
  whole, damaged = tmp_path / 'w.pth', tmp_path / 'damaged.pth'
  save(whole, training({'model': torch_files.tensors(arrays())}))
  data, rng = whole.read_bytes(), np.random.default_rng(0)
  refused = 0
  for _ in range(60):
    changed = bytearray(data)
    changed[rng.integers(len(data))] ^= 1 << rng.integers(8)
    damaged.write_bytes(changed)
    try:
      values = reader.read_torch_file(damaged)
    except errors.BadFile:
      refused += 1
    else:
      assert all(isinstance(x, np.ndarray) for x in values.values())
  assert refused > 10


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (b'', 'it is empty'),
    (b'<!DOCTYPE html><html>', "it begins with b'<!DOCTYPE ht'"),
    (b'version https://git-lfs.github.com', 'neither a zip archive nor a pick'),
    (bytes(257) + b'ustar' + bytes(99), 'the tar format of torch before 0.1.1'),
    (torch_files.dumps({'a': 1})[0], 'a pickle, but not one of torch.save'),
    (torch_files.dumps(3.5)[0], 'a pickle, but not one of torch.save'),
  ],
)
def test_other_files_are_named(tmp_path, content, message):
  (tmp_path / 'w.pth').write_bytes(content)
  with pytest.raises(errors.UserError) as caught:
    load.read_weight_variables(tmp_path / 'w.pth')
  assert message in str(caught.value)
  assert str(tmp_path / 'w.pth') in str(caught.value)


@pytest.mark.parametrize(
  'content',
  [
    torch_files.tensor(np.ones(3)),
    [torch_files.tensor(np.ones(3))],
    {},
    {'a': 1, 'b': 'text'},
    argparse.Namespace(),
  ],
)
def test_files_without_a_state_dict_are_refused(tmp_path, content):
  torch_files.save_zip(tmp_path / 'w.pth', content)
  with pytest.raises(errors.BadFile, match='expected a state dict, tensors by'):
    reader.read_torch_file(tmp_path / 'w.pth')
