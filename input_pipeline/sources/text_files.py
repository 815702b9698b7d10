"""Text files as editors save them: UTF-8 or UTF-16, any ends of line."""

import codecs
import re

from runtime import errors

_BYTE_ORDER_MARK = '\ufeff'
_ENCODINGS = (
  (codecs.BOM_UTF8, 'utf-8-sig'),
  # Of little endian, the mark of UTF-32 begins with that of UTF-16.
  (codecs.BOM_UTF32_LE, 'utf-32'),
  (codecs.BOM_UTF32_BE, 'utf-32'),
  (codecs.BOM_UTF16_LE, 'utf-16'),
  (codecs.BOM_UTF16_BE, 'utf-16'),
)


def decode_text_file(data: bytes) -> str:
  r"""Decodes the text of a file; every end of line becomes '\n'.

  UTF-16, as the Notepad of Windows saves "Unicode", is recognized by its byte
  order mark; all else must be UTF-8.

  >>> decode_text_file('\ufeffa\r\nb'.encode('utf-16-le'))
  'a\nb'

  Raises:
    UserError: the bytes are no such text; the message does not name the file.
  """
  encoding = next(
    (name for mark, name in _ENCODINGS if data.startswith(mark)), 'utf-8'
  )
  try:
    text = data.decode(encoding)
  except UnicodeDecodeError:
    raise errors.UserError('is not UTF-8 text: save it as UTF-8') from None
  if '\0' in text:
    raise errors.UserError(
      'holds zero bytes, as UTF-16 without a byte order mark or a file that is '
      'no text would: save it as UTF-8 text'
    )
  # Files that were concatenated have marks within the text.
  text = text.replace(_BYTE_ORDER_MARK, '')
  return re.sub(r'\r\n?', '\n', text)
