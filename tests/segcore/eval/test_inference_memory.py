"""Inference with many classes fits in memory."""

import os
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_919_classes_at_1000_by_1333_stay_under_2_gb():
  """Bounds the memory; the scores of all pixels would take 4.9 GB."""
  process = subprocess.run(
    [sys.executable, '-c', _LARGE],
    capture_output=True,
    text=True,
    check=True,
    # The flags of the tests make large programs slow.
    env={**os.environ, 'XLA_FLAGS': ''},
  )
  shape, peak = process.stdout.split('|')
  assert shape == '(1, 1024, 1344)'
  assert int(peak) * 1024 < 2e9


# The peak of getrusage may be that of the process which started it.
_LARGE = """
import pathlib, re, jax, numpy as np
from segcore.eval import inference, protocols
from tests.segcore.eval import test_inference as here

def coarse(images):
  return jax.random.normal(jax.random.PRNGKey(0), (1, 32, 42, 919))

protocol = protocols.ProtocolOptions(flip=True, average='probs')
predictor = inference.LabelMaps(here.FakeMethod(coarse), 919, protocol, 32)
image = np.zeros((1000, 1333, 3), np.uint8)
inputs = predictor.prepare([image], predictor.group((1000, 1333)))
maps = predictor(here.STATE, inputs)
shape = jax.block_until_ready(maps).shape
status = pathlib.Path('/proc/self/status').read_text()
print(shape, re.search(r'VmHWM:\\s+(\\d+) kB', status)[1], sep='|')
"""
