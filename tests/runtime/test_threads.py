"""Results of threads come in order, bounded ahead, with their errors."""

import threading

import pytest

from runtime import threads


def test_results_are_in_the_order_of_the_items():
  released = threading.Event()

  def function(i):
    if i == 0:  # Finishes after the next one has begun.
      assert released.wait(10)
    released.set()
    return i * i

  if threads.count_usable_cpus() == 1:
    released.set()
  assert list(threads.map_in_threads(function, range(40))) == [
    i * i for i in range(40)
  ]


def test_few_results_are_computed_ahead():
  begun = []

  def items():
    for i in range(10**6):
      begun.append(i)
      yield i

  results = threads.map_in_threads(lambda i: i, items())
  assert [next(results) for _ in range(3)] == [0, 1, 2]
  assert len(begun) <= 3 + 4 * threads.count_usable_cpus() + 1
  results.close()


def test_an_error_is_raised_at_its_place():
  results = threads.map_in_threads(lambda i: 1 // i, [1, 1, 0, 1])
  assert [next(results), next(results)] == [1, 1]
  with pytest.raises(ZeroDivisionError):
    next(results)
