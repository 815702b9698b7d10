import os

from input_pipeline.sources import file_digests


def test_a_file_is_read_again_if_its_size_or_time_changed(tmp_path):
  paths = [tmp_path / 'a', tmp_path / 'b', tmp_path / 'missing']
  for path in paths[:2]:
    path.write_text(path.name)
  saved = tmp_path / 'cache/digests.json'

  def digests():
    cache = file_digests.DigestCache(saved)
    result = cache.digests(paths)
    cache.write()
    return result

  first = digests()
  assert first[2] == '' and len({*first}) == 3
  assert digests() == first
  # What is known is believed: content of the same size and time.
  times = paths[0].stat().st_mtime_ns
  paths[0].write_text('b')
  os.utime(paths[0], ns=(times, times))
  assert digests() == first
  os.utime(paths[0], ns=(times + 1, times + 1))
  assert digests() == [first[1], first[1], '']
  # A damaged cache counts as empty.
  saved.write_text('[')
  assert digests() == [first[1], first[1], '']
  assert saved.read_text().startswith('{')


def test_a_cache_that_cannot_be_written_is_left_out(tmp_path, capsys):
  (tmp_path / 'a').write_text('a')
  (tmp_path / 'file').write_text('')
  cache = file_digests.DigestCache(tmp_path / 'file/digests.json')
  [digest] = cache.digests([tmp_path / 'a'])
  cache.write()
  again = file_digests.DigestCache(tmp_path / 'file/digests.json')
  again.digests([tmp_path / 'a'])
  again.write()
  # Once, though a run writes the cache several times.
  [line] = capsys.readouterr().out.splitlines()
  assert line.startswith(f'warning: cannot write {tmp_path}/file/digests.json:')
  assert line.endswith(
    'all files of the data set are read again by the next run'
  )
  assert file_digests.DigestCache(None).digests([tmp_path / 'a']) == [digest]
