"""agent.kernel.btf: offsets, enums and tracepoint arguments from BTF built here and from the running kernel."""

import struct
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.kernel.btf import KERNEL_BTF, Btf, BtfError, load_kernel

INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF, CONST = 1, 2, 3, 4, 5, 6, 7, 8, 10
FUNC_PROTO, ENUM64 = 13, 19
U32, U64 = 1, 2  # ids of the types every Builder begins with


class Builder:
    """Writes BTF: every method adds one type and returns its id."""

    def __init__(self, base: "Builder | None" = None) -> None:
        self.types: list[bytes] = []
        self.strings = b"" if base else b"\0"
        self.first_id = base.first_id + len(base.types) if base else 1
        self.first_string = base.first_string + len(base.strings) if base else 0
        if base is None:
            self.integer("u32", 4)
            self.integer("u64", 8)

    def name(self, text: str) -> int:
        if not text:
            return 0
        offset = self.first_string + len(self.strings)
        self.strings += text.encode() + b"\0"
        return offset

    def add(self, kind: int, name: str, size_or_type: int, *words: int, entries: int = 0, flag: bool = False) -> int:
        info = kind << 24 | entries | flag << 31
        self.types.append(struct.pack(f"={3 + len(words)}I", self.name(name), info, size_or_type, *words))
        return self.first_id + len(self.types) - 1

    def integer(self, name: str, size: int, bits: int | None = None) -> int:
        return self.add(INT, name, size, bits or 8 * size)

    def composite(self, name: str, size: int, *members: tuple[str, int, int], kind: int = STRUCT, flag: bool = False):
        """Members are (name, type id, offset in bits)."""
        words = [word for member in members for word in (self.name(member[0]), *member[1:])]
        return self.add(kind, name, size, *words, entries=len(members), flag=flag)

    def tracepoint(self, name: str, arguments: int) -> int:
        words = [0, U64] * (arguments + 1)
        prototype = self.add(FUNC_PROTO, "", 0, *words, entries=arguments + 1)
        return self.add(TYPEDEF, f"btf_trace_{name}", self.add(PTR, "", prototype))

    def data(self) -> bytes:
        types = b"".join(self.types)
        header = struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(self.strings))
        return header + types + self.strings

    def btf(self, base: Btf | None = None) -> Btf:
        return Btf.from_bytes(self.data(), base)


def packet_types() -> Builder:
    """A small kernel: a packet with members two anonymous levels down, a bitfield, enums, a tracepoint."""
    b = Builder()
    ns = b.composite("ns", 8, ("pad", U32, 0), ("inum", U32, 32))
    net = b.composite("net", 16, ("id", U64, 0), ("ns", b.add(TYPEDEF, "ns_t", b.add(CONST, "", ns)), 64))
    inner = b.composite("", 8, ("low", U32, 0), ("high", U32, 32))
    union = b.composite("", 8, ("whole", U64, 0), ("", inner, 0), kind=UNION)
    flags = 32 | 3 << 24
    head = b.composite(
        "packet",
        64,
        ("len", U32, 0),
        ("flags", U32, flags),
        ("", b.add(CONST, "", union), 64),
        ("net", net, 128),
        ("dev", b.add(PTR, "", net), 256),
        ("name", b.add(ARRAY, "", 0, U32, U32, 4), 320),
        flag=True,
    )
    b.add(FWD, "elsewhere", 0)
    b.add(ENUM, "reason", 4, b.name("NONE"), 0, b.name("NO_SOCKET"), 3, entries=2)
    b.add(ENUM, "signed_reason", 4, b.name("BAD"), 0xFFFF_FFFF, entries=1, flag=True)
    b.add(ENUM64, "wide", 8, b.name("TOP"), 1, 2, entries=1)
    b.add(ENUM64, "signed_wide", 8, b.name("LEAST"), 0xFFFF_FFFE, 0xFFFF_FFFF, entries=1, flag=True)
    b.tracepoint("drop", 4)
    b.add(TYPEDEF, "btf_trace_not_one", head)
    return b


PACKET = packet_types().btf()


@pytest.mark.parametrize(
    ("path", "offset", "size"),
    [
        ("len", 0, 4),
        ("whole", 8, 8),
        ("low", 8, 4),
        ("high", 12, 4),
        ("net", 16, 16),
        ("net.ns.inum", 28, 4),
        ("dev", 32, struct.calcsize("P")),
        ("name", 40, 16),
    ],
)
def test_a_member_is_found_by_its_path_even_two_anonymous_levels_down(path, offset, size):
    assert PACKET.offset("packet", path) == offset
    assert PACKET.member_size("packet", path) == size


def test_size_and_presence_of_a_struct():
    assert PACKET.size("packet") == 64
    assert PACKET.has_struct("packet")
    assert not PACKET.has_struct("elsewhere")
    assert not PACKET.has_struct("pack")


@pytest.mark.parametrize(
    ("struct_name", "path", "message"),
    [
        ("packet", "missing", "struct packet of this kernel has no member missing"),
        ("packet", "dev.id", "a pointer or an array ends a path"),
        ("packet", "len.x", "has no member len.x"),
        ("packet", "flags", "packet.flags is a bitfield"),
        ("packet", "", "not the name"),
        ("packet", "net..inum", "not the name"),
        ("elsewhere", "x", "only declared here"),
        ("nowhere", "x", "no struct nowhere"),
        ("", "x", "not the name"),
    ],
)
def test_what_has_no_byte_offset_is_refused_with_the_reason(struct_name, path, message):
    with pytest.raises(BtfError, match=message):
        PACKET.offset(struct_name, path)


def test_a_bitfield_in_the_old_notation_is_refused_too():
    b = Builder()
    b.composite("old", 4, ("narrow", b.integer("bits", 4, bits=3), 0), ("odd", U32, 3))
    for path in ("narrow", "odd"):
        with pytest.raises(BtfError, match="bitfield"):
            b.btf().offset("old", path)


def test_a_definition_is_preferred_to_empty_ones_of_the_same_name():
    b = Builder()
    b.add(FWD, "twice", 0)
    b.composite("twice", 0)
    b.composite("twice", 12, ("x", U32, 64), kind=UNION)
    assert b.btf().size("twice") == 12
    assert b.btf().offset("twice", "x") == 8


def test_a_member_of_the_struct_itself_wins_over_one_of_an_anonymous_member():
    b = Builder()
    inner = b.composite("", 4, ("x", U32, 0))
    b.composite("outer", 8, ("", inner, 0), ("x", U32, 32))
    assert b.btf().offset("outer", "x") == 4


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("reason", {"NONE": 0, "NO_SOCKET": 3}),
        ("signed_reason", {"BAD": -1}),
        ("wide", {"TOP": (2 << 32) + 1}),
        ("signed_wide", {"LEAST": -2}),
    ],
)
def test_enums_of_both_widths_and_signs(name, values):
    assert PACKET.enum(name) == values


def test_an_unknown_enum_is_an_error():
    with pytest.raises(BtfError, match="no enum nothing"):
        PACKET.enum("nothing")


def test_tracepoint_arguments_are_counted_without_the_hidden_one():
    assert PACKET.has_tracepoint("drop")
    assert PACKET.tracepoint_args("drop") == 4


@pytest.mark.parametrize("name", ["absent", "not_one"])
def test_a_tracepoint_the_kernel_lacks_is_an_error(name):
    assert not PACKET.has_tracepoint(name)
    with pytest.raises(BtfError, match=f"no raw tracepoint {name}"):
        PACKET.tracepoint_args(name)


def test_a_module_continues_the_kernels_types_and_names():
    kernel = packet_types()
    module = Builder(kernel)
    # "first" lies at the very start of the module's names, where no NUL precedes it.
    module.composite("first", 8, ("x", U32, 32))
    inner = module.composite("", 16, ("net", 4, 0))
    module.composite("nf", 24, ("", inner, 64))
    on_top = module.btf(kernel.btf())
    assert on_top.offset("first", "x") == 4
    assert on_top.offset("nf", "net") == 8
    assert on_top.offset("packet", "high") == 12
    assert on_top.enum("reason")["NO_SOCKET"] == 3
    assert on_top.tracepoint_args("drop") == 4


def test_a_modules_type_may_bear_a_name_of_the_kernels_name_section():
    kernel = packet_types()
    module = Builder(kernel)
    elsewhere = kernel.strings.index(b"\0elsewhere\0") + 1
    high = kernel.strings.index(b"\0high\0") + 1
    module.types.append(struct.pack("=6I", elsewhere, STRUCT << 24 | 1, 8, high, U32, 32))
    on_top = module.btf(kernel.btf())
    assert on_top.has_struct("elsewhere")
    assert on_top.offset("elsewhere", "high") == 4


def test_a_module_without_names_of_its_own_loads():
    kernel = packet_types()
    assert Builder(kernel).btf(kernel.btf()).size("packet") == 64


def cyclic_typedef() -> Btf:
    b = Builder()
    b.add(TYPEDEF, "loop", 3)
    b.composite("user", 4, ("x", 3, 0))
    return b.btf()


def test_a_cycle_of_typedefs_is_an_error():
    with pytest.raises(BtfError, match="does not end"):
        cyclic_typedef().offset("user", "x")


def test_an_array_of_itself_is_an_error():
    b = Builder()
    b.composite("user", 4, ("x", b.add(ARRAY, "", 0, 3, U32, 2), 0))
    with pytest.raises(BtfError, match="does not end"):
        b.btf().member_size("user", "x")


def test_an_anonymous_struct_that_holds_itself_many_times_is_searched_in_finite_time():
    b = Builder()
    b.composite("", 4, *[("", 3, 0)] * 500)
    b.composite("user", 4, ("", 3, 0))
    began = time.monotonic()
    with pytest.raises(BtfError, match="no member"):
        b.btf().offset("user", "x")
    assert time.monotonic() - began < 1


def test_a_type_without_size_is_an_error():
    b = Builder()
    b.composite("user", 4, ("x", 0, 0))
    with pytest.raises(BtfError, match="has no size"):
        b.btf().member_size("user", "x")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "shorter than its header"),
        (bytes(24), "not BTF of this machine"),
        (packet_types().data()[:-1], "cut short"),
        (struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, 2, 2, 1) + bytes(3), "whole words"),
        (struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, 4, 4, 1) + bytes(5), "last type is cut short"),
        (struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, 12, 12, 1) + bytes(13), "unknown kind of type 0"),
        (struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, 0, 0, 1) + b"x", "begin and end in NUL"),
    ],
)
def test_data_that_are_not_sound_btf_are_refused_with_the_reason(data, message):
    with pytest.raises(BtfError, match=message):
        Btf.from_bytes(data)


def ask_everything(data: bytes, base: Btf | None = None) -> None:
    """Asks all questions; anything but an answer or a BtfError is a bug."""
    try:
        btf = Btf.from_bytes(data, base)
    except BtfError:
        return
    questions = [
        lambda: btf.offset("packet", "net.ns.inum"),
        lambda: btf.offset("packet", "high"),
        lambda: btf.member_size("packet", "name"),
        lambda: btf.size("packet"),
        lambda: btf.has_struct("elsewhere"),
        lambda: btf.tracepoint_args("drop"),
        *(lambda name=name: btf.enum(name) for name in ("reason", "signed_reason", "wide", "signed_wide")),
    ]
    for question in questions:
        try:
            question()
        except BtfError:
            continue


SOUND = packet_types().data()
EDITS = st.lists(st.tuples(st.integers(0, len(SOUND) - 1), st.integers(0, 255)), min_size=1, max_size=8)


@given(edits=EDITS, length=st.one_of(st.just(len(SOUND)), st.integers(0, len(SOUND))))
def test_corrupt_btf_never_raises_anything_but_btf_error(edits, length):
    data = bytearray(SOUND)
    for at, value in edits:
        data[at] = value
    ask_everything(bytes(data[:length]))
    ask_everything(bytes(data[:length]), PACKET)


@given(words=st.lists(st.tuples(st.integers(0, len(SOUND) // 4 - 1), st.integers(0, 40)), min_size=1, max_size=12))
def test_btf_with_wrong_but_plausible_type_ids_never_raises_anything_but_btf_error(words):
    data = bytearray(SOUND)
    for at, value in words:
        struct.pack_into("=I", data, 4 * at, value)
    ask_everything(bytes(data))


def test_a_missing_file_is_named_with_what_to_do(tmp_path):
    with pytest.raises(BtfError, match=rf"{tmp_path}/vmlinux: No such file.*CONFIG_DEBUG_INFO_BTF=y"):
        load_kernel(root=tmp_path)
    (tmp_path / "vmlinux").write_bytes(SOUND)
    with pytest.raises(BtfError, match=rf"{tmp_path}/nf_conntrack: No such file.*load the module"):
        load_kernel("nf_conntrack", root=tmp_path)


def test_a_corrupt_file_is_named(tmp_path):
    (tmp_path / "vmlinux").write_bytes(SOUND[:100])
    with pytest.raises(BtfError, match=f"{tmp_path}/vmlinux: corrupt BTF: cut short"):
        load_kernel(root=tmp_path)


def test_a_module_is_loaded_on_top_of_the_kernel(tmp_path):
    kernel = packet_types()
    module = Builder(kernel)
    module.composite("nf_conn", 8, ("status", U32, 32))
    (tmp_path / "vmlinux").write_bytes(kernel.data())
    (tmp_path / "nf_conntrack").write_bytes(module.data())
    btf = load_kernel("nf_conntrack", root=tmp_path)
    assert btf.offset("nf_conn", "status") == 4
    assert btf.offset("packet", "high") == 12


needs_kernel_btf = pytest.mark.skipif(
    not (KERNEL_BTF / "vmlinux").exists(), reason="this kernel has no BTF: /sys/kernel/btf/vmlinux is missing"
)


@pytest.fixture(scope="module")
def kernel() -> Btf:
    return load_kernel()


@needs_kernel_btf
def test_the_running_kernels_packet_layout_is_consistent(kernel):
    assert kernel.offset("sk_buff", "dev") == 2 * struct.calcsize("P")  # behind next and prev, since ever
    assert kernel.offset("sk_buff", "data") == kernel.offset("sk_buff", "head") + struct.calcsize("P")
    assert kernel.member_size("sk_buff", "network_header") == 2
    assert kernel.offset("sk_buff", "network_header") < kernel.size("sk_buff")
    assert kernel.member_size("net_device", "name") == 16


@needs_kernel_btf
def test_the_running_kernels_nested_members_add_up(kernel):
    assert kernel.offset("net", "ns.inum") == kernel.offset("net", "ns") + kernel.offset("ns_common", "inum")
    assert kernel.offset("sock", "__sk_common.skc_net.net") == kernel.offset("sock_common", "skc_net")
    assert kernel.offset("net_device", "nd_net.net") == kernel.offset("net_device", "nd_net")


@needs_kernel_btf
def test_the_running_kernels_tracepoints_have_their_known_leading_arguments(kernel):
    assert kernel.tracepoint_args("net_dev_queue") == 1
    assert kernel.tracepoint_args("netif_receive_skb") == 1
    assert kernel.tracepoint_args("kfree_skb") >= 2
    assert not kernel.has_tracepoint("dnstrail_has_no_tracepoint")


@needs_kernel_btf
def test_a_bitfield_of_the_running_kernel_is_refused(kernel):
    with pytest.raises(BtfError, match="bitfield"):
        kernel.offset("sk_buff", "pkt_type")


@needs_kernel_btf
def test_the_running_kernels_drop_reasons_have_names_if_kfree_skb_reports_them(kernel):
    if kernel.tracepoint_args("kfree_skb") < 3:
        pytest.skip("this kernel's kfree_skb gives no reason")
    assert "SKB_DROP_REASON_NO_SOCKET" in kernel.enum("skb_drop_reason")


@needs_kernel_btf
def test_every_module_on_this_machine_loads_on_top_of_the_kernel(kernel):
    modules = [path for path in Path(KERNEL_BTF).iterdir() if path.name != "vmlinux"]
    if not modules:
        pytest.skip("no module with BTF is loaded")
    for path in modules:
        assert Btf.from_file(path, kernel).size("sk_buff") == kernel.size("sk_buff")
