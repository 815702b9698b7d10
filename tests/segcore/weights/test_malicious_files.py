"""Weight files that try to run code, or to read or claim what they have not."""

import json
import pickle
import struct
import zipfile

import numpy as np
import pytest

from runtime import errors
from segcore.weights import load
from tests.support import torch_files
from tests.support.torch_files import Call, Name, call

SENTINEL = 'executed'
REFUSED = {}


def file(name, *words):
  """Registers a function that writes a file, and words of its refusal."""

  def register(write):
    REFUSED[write.__name__] = (name, write, words)
    return write

  return register


def command(path):
  return f'touch {path.parent / SENTINEL}'


def save_both(path, content):
  """Writes the zip format, or the one before it."""
  save = torch_files.save_zip if path.suffix == '.pth' else None
  (save or torch_files.save_legacy)(path, content)


@file('w.pth', 'os.system', 'nothing of it was executed')
def os_system(path):
  save_both(path, {'a': call('os.system', command(path))})


@file('w.pt', 'posix.system')
def os_system_in_the_old_format(path):
  save_both(path, {'a': call('posix.system', command(path))})


@file('w.pth', 'builtins.eval')
def builtins_eval(path):
  text = f'open({str(path.parent / SENTINEL)!r}, "w")'
  save_both(path, {'a': call('builtins.eval', text)})


@file('w.pt', 'builtins.exec')
def exec_in_the_first_pickle_of_an_old_file(path):
  text = f'open({str(path.parent / SENTINEL)!r}, "w")'
  torch_files.save_legacy(path, {}, magic=0)
  data, _ = torch_files.dumps(call('builtins.exec', text))
  path.write_bytes(data + path.read_bytes())


@file('w.pth', 'subprocess.Popen')
def nested_reduce(path):
  inner = call('subprocess.Popen', ['touch', str(path.parent / SENTINEL)])
  outer = call('torch._utils._rebuild_parameter', inner, True, {})
  save_both(path, {'state_dict': {'a': outer}})


@file('w.pth', 'builtins.getattr')
def chain_of_getattr(path):
  module = call('importlib.import_module', 'os')
  system = call('builtins.getattr', module, 'system')
  system = call('builtins.getattr', call('builtins.getattr', system, 'x'), 'y')
  save_both(path, {'a': Call(system, (command(path),))})


@file('w.pth', 'a call of ')
def call_of_what_a_call_returned(path):
  allowed = call('torch._utils._rebuild_parameter', 'text', True, {})
  save_both(path, {'a': Call(allowed, (command(path),))})


@file('w.pth', 'a state of')
def state_of_an_allowed_function(path):
  data = (
    b'\x80\x02ctorch._utils\n_rebuild_tensor_v2\n'
    b'N}X\x0c\x00\x00\x00__defaults__K\x01s\x86b.'
  )
  torch_files.write_zip(path, data)


@file('w.pth', 'the opcode INST')
def opcode_that_builds_instances(path):
  torch_files.write_zip(
    path, b"\x80\x02(S'" + command(path).encode() + b"'\nios\nsystem\n."
  )


@file('w.pth', '__main__.Network')
def whole_module(path):
  save_both(path, call('__main__.Network', state={'training': True}))


@file('w.pth', 'reaches beyond the 4 elements')
def huge_shape(path):
  storage = torch_files.Storage(np.ones(4, np.float32))
  shape, strides = (2**40, 2**20), (2**20, 1)
  save_both(path, {'a': torch_files.view(storage, shape, strides)})


@file('w.pth', 'its tensors have 4398046511104 bytes, the file ')
def huge_shape_of_one_element(path):
  storage = torch_files.Storage(np.ones(4, np.float32))
  save_both(path, {'a': torch_files.view(storage, (2**40,), (0,))})


@file('w.pth', 'expected an offset, a shape and strides of natural numbers')
def negative_strides(path):
  storage = torch_files.Storage(np.ones(4, np.float32))
  save_both(path, {'a': torch_files.view(storage, (2, 2), (-1000, 1))})


@file('w.pt', 'reaches beyond the 4 elements')
def offset_outside(path):
  storage = torch_files.Storage(np.ones(4, np.float32))
  save_both(path, {'a': torch_files.view(storage, (1,), (1,), 2**33)})


@file('w.pth', 'storage 0: expected 1099511627776 elements', '16 bytes')
def storage_larger_than_its_member(path):
  storage = torch_files.Storage(np.ones(4, np.float32), declared=2**40)
  save_both(path, {'a': torch_files.view(storage, (4,), (1,))})


@file('w.pt', 'storage 0: expected 1099511627776 elements, got 4')
def storage_larger_than_its_old_file(path):
  storage = torch_files.Storage(np.ones(4, np.float32), declared=2**40)
  save_both(path, {'a': torch_files.view(storage, (4,), (1,))})


@file('w.pth', "expected the key of a storage, got '../../../etc/passwd'")
def key_that_leads_out_of_the_archive(path):
  storage = torch_files.Storage(np.ones(4), key='../../../etc/passwd')
  data, _ = torch_files.dumps({'a': torch_files.view(storage, (4,), (1,))})
  torch_files.write_zip(path, data)


@file('w.pth', "the member '../../executed' is not allowed")
def member_that_leads_out_of_the_archive(path):
  content = torch_files.tensors({'a': np.ones(3)})
  torch_files.save_zip(path, content, extra={f'../../{SENTINEL}': b'x'})


@file('w.pth', 'is compressed')
def compressed_zeros(path):
  data, _ = torch_files.dumps(torch_files.tensors({'a': np.zeros(2**22)}))
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
    archive.writestr('archive/data.pkl', data)
    archive.writestr('archive/data/0', bytes(2**25))


@file('w.pth', 'a tuple where it does not belong')
def key_that_takes_for_ever_to_hash(path):
  # A pair of twice the same pair, and so on: 2**64 values from 64.
  pairs = b'0h\x00h\x00\x86q\x00' * 64
  torch_files.write_zip(path, b'\x80\x02})q\x00' + pairs + b'K\x01s.')


@file('w.npz', 'holds Python objects (a pickle)')
def objects_in_npz(path):
  class Evil:
    def __reduce__(self):
      import os

      return os.system, (command(path),)

  np.savez(path, **{'params/a': np.array([Evil()], object)})


def npy(shape, data, kind='<f4'):
  header = {'descr': kind, 'fortran_order': False, 'shape': shape}
  text = repr(header).encode()
  return b'\x93NUMPY\x01\x00' + struct.pack('<H', len(text)) + text + data


@file('w.npz', 'expected 4503599627370', 'got ')
def npz_of_a_huge_shape(path):
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('params/a.npy', npy((2**40, 2**10), bytes(16)))


@file('w.npz', 'its arrays have 268')
def npz_of_compressed_zeros(path):
  np.savez_compressed(path, **{'params/a': np.zeros(2**25)})


def safetensors_file(path, header, data):
  text = json.dumps(header).encode()
  path.write_bytes(struct.pack('<Q', len(text)) + text + data)


@file('w.safetensors', 'is not a readable .safetensors file')
def safetensors_header_longer_than_the_file(path):
  path.write_bytes(struct.pack('<Q', 2**60) + b'{}')


@file('w.safetensors', 'is not a readable .safetensors file')
def safetensors_offsets_outside(path):
  entry = {'dtype': 'F32', 'shape': [4], 'data_offsets': [4096, 4112]}
  safetensors_file(path, {'params/a': entry}, bytes(16))


@file('w.safetensors', 'is not a readable .safetensors file')
def safetensors_shape_larger_than_its_bytes(path):
  entry = {'dtype': 'F32', 'shape': [2**40], 'data_offsets': [0, 16]}
  safetensors_file(path, {'params/a': entry}, bytes(16))


@file('w.safetensors', 'is not a readable .safetensors file')
def pickle_called_safetensors(path):
  data, _ = torch_files.dumps(call('os.system', command(path)))
  path.write_bytes(data)


@pytest.mark.parametrize('name', REFUSED)
def test_malicious_files_are_refused_and_nothing_is_executed(tmp_path, name):
  file_name, write, words = REFUSED[name]
  write(tmp_path / file_name)
  with pytest.raises(errors.UserError) as caught:
    load.read_weight_variables(tmp_path / file_name)
  message = str(caught.value)
  assert '\n' not in message
  for word in (str(tmp_path / file_name), *words):
    assert word in message
  assert not (tmp_path / SENTINEL).exists()


def test_these_files_would_execute_code(tmp_path):
  """Else the tests above would show nothing."""
  data, _ = torch_files.dumps({'a': call('os.system', command(tmp_path / 'w'))})
  pickle.loads(data)
  assert (tmp_path / SENTINEL).exists()


def test_names_stand_for_themselves():
  data, _ = torch_files.dumps(Name('os', 'system'))
  assert b'cos\nsystem\n' in data
