"""What fuzzers make of good bytes: pieces cut out, put in, and written over, with what a reader takes note of."""

from hypothesis import strategies as st

pieces = st.binary(max_size=4) | st.sampled_from(
    [
        *(b"\x00", b"\x01", b"\xff", b"\x80", b"\x82", b"\x83", b"\x9d"),  # what EDF tells types and nil by
        *(b"\xff\xff", b"\x01\x00", b"\x00\x00\x00\x02", b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff"),  # lengths, counts
        *(b"/", b"*", b"\n", b"\x7f", b"\xc2\x80", b"\xc3", b"\xed\xa0\x80"),  # what no name holds; half of a character
        *(b"=", b"_", b":", b"+", b"-", b".", b"0x", b"p", b"e9", b"inf"),  # base64's end, and parts of numbers
    ]
)


@st.composite
def mutated(draw: st.DrawFn, written: st.SearchStrategy[bytes]) -> bytes:
    """Bytes that were `written` once, and were changed in up to three places."""
    result = draw(written)
    for _ in range(draw(st.integers(0, 3))):
        start, piece = draw(st.integers(0, len(result))), draw(pieces)
        end = start + draw(st.sampled_from([0, 1, len(piece), len(result)]))  # behind the end: cut off here
        result = result[:start] + piece + result[end:]
    return result
