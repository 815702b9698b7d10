"""A sample of the fuzzed inputs and configs: no traceback, no silent change."""

import pytest

from tests.support import runs

INPUTS, CONFIGS = range(120), range(40)


@pytest.fixture
def modules(monkeypatch):
  """Returns the modules of the fuzzer, which import one another as scripts."""
  monkeypatch.syspath_prepend(str(runs.ROOT / 'benchmarks'))
  import fuzz
  import fuzz_configs
  import fuzz_inputs

  return fuzz, fuzz_configs, fuzz_inputs


def test_inputs_are_read_or_refused_or_reported(modules, tmp_path):
  fuzz, _, fuzz_inputs = modules
  inputs = fuzz_inputs.Inputs(tmp_path)
  results = fuzz.run('input', inputs.run, INPUTS)
  assert results['faults'] == []
  # Else the mutations would be too weak, or too strong, to show anything.
  assert results['counts']['refused'] > len(INPUTS) // 4
  assert results['counts']['same'] > len(INPUTS) // 10
  assert results['counts']['reported'] > 0


@pytest.mark.slow
def test_configs_are_built_or_refused(modules):
  fuzz, fuzz_configs, _ = modules
  results = fuzz.run('config', fuzz_configs.run, CONFIGS)
  assert results['faults'] == []
  assert results['counts']['refused'] > len(CONFIGS) // 2
  assert results['counts']['accepted'] > 0
