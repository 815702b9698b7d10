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

  assert list(threads.map_in_threads(function, range(40), 2)) == [
    i * i for i in range(40)
  ]


@pytest.mark.parametrize('num_threads', [1, 3])
def test_few_results_are_computed_ahead(num_threads):
  begun = []

  def items():
    for i in range(10**6):
      begun.append(i)
      yield i

  results = threads.map_in_threads(lambda i: i, items(), num_threads)
  assert [next(results) for _ in range(3)] == [0, 1, 2]
  assert len(begun) <= 3 + 4 * num_threads + 1
  results.close()


@pytest.mark.parametrize('num_threads', [None, 1, 2])
def test_an_error_is_raised_at_its_place(num_threads):
  results = threads.map_in_threads(lambda i: 1 // i, [1, 1, 0, 1], num_threads)
  assert [next(results), next(results)] == [1, 1]
  with pytest.raises(ZeroDivisionError):
    next(results)


def test_one_thread_is_that_of_the_caller():
  results = threads.map_in_threads(lambda _: threading.get_ident(), [0, 1], 1)
  assert {*results} == {threading.get_ident()}
