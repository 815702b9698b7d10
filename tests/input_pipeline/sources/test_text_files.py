import pytest

from input_pipeline.sources import text_files
from tests.support import messages


@pytest.mark.parametrize(
  'data',
  [
    b's00\r\ns02\r\n',
    b's00\rs02\r',
    b'\xef\xbb\xbfs00\ns02\n',
    's00\r\ns02\r\n'.encode('utf-16'),
    b'\xfe\xff' + 's00\ns02\n'.encode('utf-16-be'),
    's00\ns02\n'.encode('utf-32'),
    # `type a.txt b.txt > both.txt` keeps the marks of both.
    '\ufeffs00\r\n\ufeffs02\r\n'.encode(),
  ],
)
def test_text_of_every_editor_is_the_same(data):
  assert text_files.decode_text_file(data) == 's00\ns02\n'


@pytest.mark.parametrize(
  ('data', 'message'),
  [
    ('ähre'.encode('latin-1'), 'is not UTF-8 text: save it as UTF-8'),
    (b'\xff\xfea', 'is not UTF-8 text: save it as UTF-8'),
    ('s00'.encode('utf-16-le'), 'holds zero bytes, as UTF-16 without a byte'),
  ],
)
def test_other_bytes_are_refused(data, message):
  assert messages.message_of(text_files.decode_text_file, data).startswith(
    message
  )
