"""agent.kernel.symbols: which function a kernel address lies in."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.kernel.symbols import KALLSYMS, KernelSymbols

SAMPLE = """\
0000000000000000 A fixed_percpu_data
ffffffff81000000 T _text
ffffffff81000000 T _stext
ffffffff81000100 t nf_hook_slow.isra.0
ffffffff81000200 D jiffies
ffffffff81000300 W weak_one.constprop.0.isra.1.cold
ffffffff81000400 t .slowpath
ffffffff81000500 t udp_queue.part.0
ffffffff81000600 T _etext
ffffffffc0202000 t nf_confirm\t[nf_conntrack]
ffffffffc0201000 w ipt_do_table.llvm.12345\t[ip_tables]
"""


def symbols_of(tmp_path: Path, text: str | bytes) -> KernelSymbols:
    path = tmp_path / "kallsyms"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return KernelSymbols.load(path)


@pytest.mark.parametrize(
    ("address", "name"),
    [
        (0xFFFFFFFF81000100, "nf_hook_slow"),
        (0xFFFFFFFF810001FF, "nf_hook_slow"),
        (0xFFFFFFFF81000300, "weak_one"),
        (0xFFFFFFFF81000401, ".slowpath"),
        (0xFFFFFFFF81000501, "udp_queue"),
        (0xFFFFFFFFC0201FFF, "ipt_do_table"),
        (0xFFFFFFFFC0202000, "nf_confirm"),
    ],
)
def test_an_address_gets_the_plain_name_of_the_function_before_it(tmp_path, address, name):
    assert symbols_of(tmp_path, SAMPLE).name(address) == name


def test_data_symbols_are_passed_over(tmp_path):
    assert symbols_of(tmp_path, SAMPLE).name(0xFFFFFFFF81000200) == "nf_hook_slow"
    assert len(symbols_of(tmp_path, SAMPLE)) == 9


def test_of_several_names_at_one_address_the_first_is_given(tmp_path):
    assert symbols_of(tmp_path, SAMPLE).name(0xFFFFFFFF81000010) == "_text"


@pytest.mark.parametrize("address", [0, 1, 0xFFFFFFFF80FFFFFF, 0xFFFFFFFFC0202001, 2**64 - 1, 2**64, -1])
def test_an_address_outside_the_kernels_text_has_no_name(tmp_path, address):
    assert symbols_of(tmp_path, SAMPLE).name(address) is None


def test_hidden_addresses_make_the_symbols_unavailable(tmp_path):
    hidden = symbols_of(tmp_path, "0000000000000000 T _text\n0000000000000000 t kfree_skb\n")
    assert not hidden.available
    assert hidden.name(0xFFFFFFFF81000000) is None
    assert hidden.name(0) is None


@pytest.mark.parametrize("path", ["absent", "."])
def test_a_file_that_cannot_be_read_makes_the_symbols_unavailable(tmp_path, path):
    assert not KernelSymbols.load(tmp_path / path).available


def test_lines_of_another_shape_are_passed_over(tmp_path):
    text = b"\nzz T bad\nffffffff81000000\n1ffffffffffffffff0 T too_wide\n-5 T negative\nffffffff81000000 T good\xff\n"
    found = symbols_of(tmp_path, text)
    assert len(found) == 1
    assert found.name(0xFFFFFFFF81000000) == "good\\xff"


@given(data=st.binary(max_size=300))
def test_any_file_content_loads_without_an_error(tmp_path_factory, data):
    symbols = symbols_of(tmp_path_factory.mktemp("kallsyms"), data)
    assert symbols.available == bool(len(symbols))


def real() -> KernelSymbols:
    symbols = KernelSymbols.load()
    if not symbols.available:
        pytest.skip(f"{KALLSYMS} shows no addresses: CAP_SYSLOG is missing or kernel.kptr_restrict hides them")
    return symbols


def test_the_running_kernels_own_functions_are_found():
    symbols = real()
    fields = (line.split() for line in KALLSYMS.read_text().splitlines())
    at = {name: int(address, 16) for address, _, name, *_ in fields if name in {"kfree_skbmem", "icmp_rcv", "udp_rcv"}}
    if not at:
        pytest.skip("this kernel shows none of the functions looked for")
    for name, address in at.items():
        assert symbols.name(address) == name
        assert symbols.name(address + 1) == name
