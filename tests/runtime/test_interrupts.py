"""Ctrl-C in this process, as signals."""

import os
import signal
import threading
import time

from runtime import console, interrupts


def wait_for(condition):
  deadline = time.monotonic() + 10
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.001)


def test_the_first_asks_and_the_second_ends_the_process(monkeypatch):
  lines, requests, exits = [], [], []
  monkeypatch.setattr(console, 'print_line', lines.append)
  monkeypatch.setattr(os, '_exit', exits.append)
  with interrupts.stopping_gently(lambda: requests.append(1), 'stopping'):
    signal.raise_signal(signal.SIGINT)
    # The block goes on: no exception is raised in it.
    wait_for(lambda: requests)
    assert (lines, exits) == (['stopping'], [])
    signal.raise_signal(signal.SIGINT)
    wait_for(lambda: exits)
  assert (len(requests), exits) == (1, [130])
  assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
  assert signal.set_wakeup_fd(-1) == -1


def test_other_handlers_and_threads_are_left_alone():
  kept = []

  def in_thread():
    with interrupts.stopping_gently(lambda: None, ''):
      kept.append(signal.getsignal(signal.SIGINT))

  thread = threading.Thread(target=in_thread)
  thread.start()
  thread.join()
  assert kept == [signal.default_int_handler]
  before = signal.signal(signal.SIGINT, signal.SIG_IGN)
  try:
    with interrupts.stopping_gently(lambda: None, ''):
      assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
  finally:
    signal.signal(signal.SIGINT, before)
