"""AXI4-Stream: TDATA, TKEEP and TLAST as the payload of an Amaranth stream, TVALID and TREADY as its handshake."""

from amaranth.lib import data, stream

__all__ = ["axi_stream_layout", "axi_stream_signature"]


def axi_stream_layout(stream_bits):
    """Layout of one beat: ``data``, one ``keep`` bit per byte, ``last``.

    Raises
    ------
    :exc:`ValueError`
        If ``stream_bits`` is not a positive multiple of 8.
    """
    if stream_bits < 8 or stream_bits % 8:
        raise ValueError(f"stream_bits must be a positive multiple of 8, not {stream_bits!r}")
    return data.StructLayout({"data": stream_bits, "keep": stream_bits // 8, "last": 1})


def axi_stream_signature(stream_bits):
    """Stream of :func:`axi_stream_layout`, seen from the sender: ``Out`` for ``m_axis``, ``In`` for ``s_axis``."""
    return stream.Signature(axi_stream_layout(stream_bits))
