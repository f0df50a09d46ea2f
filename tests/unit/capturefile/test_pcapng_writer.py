"""Our own capture files: read back by ourselves, by tcpdump and by tshark."""

from __future__ import annotations

import io
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import __version__
from agent.capturefile.pcap import MAX_FRAME_BYTES, MAX_TS_NS, Frame, PcapngWriter, read_frames
from agent.wire.packet import LinkType

NOW = 1763700000_352334704
# A query for example.org A as tcpdump would see it: IPv4, UDP, from port 42710 to 53.
QUERY = bytes.fromhex(
    "4500003900010000401100000a0000010a000002"  # IPv4
    "a6d6003500250000"  # UDP
    "8da301000001000000000000076578616d706c65036f72670000010001"
)


def frames(raw: bytes) -> list[Frame]:
    return list(read_frames(io.BytesIO(raw)))


def written(*packets: tuple[int, bytes, str, bool | None], snaplen: int = MAX_FRAME_BYTES) -> bytes:
    file = io.BytesIO()
    writer = PcapngWriter(file, snaplen=snaplen, hardware="arm64", system="Linux 6.18")
    numbers = [writer.add_interface("eth0"), writer.add_interface("vethc1", linktype=LinkType.ETHERNET)]
    for index, (ts_ns, data, comment, outbound) in enumerate(packets):
        writer.write(numbers[index % 2], ts_ns, data, comment=comment, outbound=outbound)
    assert writer.size == len(file.getvalue())
    return file.getvalue()


packets = st.tuples(
    st.integers(0, MAX_TS_NS),
    st.binary(max_size=100),
    st.text(max_size=50).filter(lambda text: not text.endswith("\0")),
    st.sampled_from([None, True, False]),
)


@given(st.lists(packets, max_size=10))
def test_what_is_written_is_read_back(packets):
    assert frames(written(*packets)) == [
        Frame(
            ts_ns,
            index % 2,
            ["eth0", "vethc1"][index % 2],
            [LinkType.RAW, LinkType.ETHERNET][index % 2],
            data,
            len(data),
            (comment,) if comment else (),
            outbound,
        )
        for index, (ts_ns, data, comment, outbound) in enumerate(packets)
    ]


def test_the_file_says_who_wrote_it():
    file = written()
    for text in (f"dnstrail {__version__}", "arm64", "Linux 6.18"):
        assert text.encode() in file


def test_packets_are_cut_to_the_snap_length_and_keep_their_own():
    (frame,) = frames(written((NOW, bytes(100), "", None), snaplen=64))
    assert (len(frame.data), frame.original_length) == (64, 100)
    file = io.BytesIO()
    writer = PcapngWriter(file)
    writer.write(writer.add_interface("eth0"), NOW, b"start", original_length=1500)
    assert frames(file.getvalue())[0][4:6] == (b"start", 1500)


def test_a_comment_that_is_too_long_is_cut_between_characters():
    (frame,) = frames(written((NOW, b"", "ä" * 40_000, None)))
    assert frame.comments == ("ä" * 32_767,)


def test_a_packet_of_an_unknown_interface_is_refused():
    with pytest.raises(ValueError, match="interface 0 is not described"):
        PcapngWriter(io.BytesIO()).write(0, NOW, b"")


def run_oracle(program: str, *arguments: str, file: bytes) -> list[str]:
    if not shutil.which(program):
        pytest.skip(f"{program} is not installed")
    done = subprocess.run([program, *arguments], input=file, capture_output=True, timeout=60, check=True)
    return done.stdout.decode().splitlines()


def for_oracle() -> bytes:
    """One interface: tcpdump reads no file whose interfaces differ in link type."""
    file = io.BytesIO()
    writer = PcapngWriter(file)
    number = writer.add_interface("eth0", description="netns 4026531840")
    writer.write(number, NOW, QUERY, comment="pod shop/cart", outbound=True)
    return file.getvalue()


def test_tcpdump_reads_our_files_with_all_nanoseconds():
    (line,) = run_oracle("tcpdump", "-r", "-", "-n", "-tt", "--nano", file=for_oracle())
    assert line.startswith("1763700000.352334704 ")
    assert "10.0.0.1.42710 > 10.0.0.2.53: 36259+ A? example.org. (29)" in line


def test_tshark_reads_our_files_with_comments_and_all_nanoseconds():
    fields = ["-e", "frame.time_epoch", "-e", "frame.comment", "-e", "frame.interface_name", "-e", "udp.dstport"]
    (line,) = run_oracle("tshark", "-r", "-", "-T", "fields", *fields, file=for_oracle())
    # Newer tshark shows the time as a date; what comes behind the seconds is the same.
    time, *others = line.split("\t")
    assert ".352334704" in time
    assert others == ["pod shop/cart", "eth0", "53"]
