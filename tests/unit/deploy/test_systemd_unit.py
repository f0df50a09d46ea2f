"""deploy/systemd/dnstrail.service grants what the code asks for, and as much memory as the manifest."""

from configparser import ConfigParser
from pathlib import Path

import yaml

from agent.capture import privileges
from agent.cli import TRACE_SOCKET

ROOT = Path(__file__).parents[3]


def service() -> dict[str, str]:
    parser = ConfigParser(interpolation=None)
    parser.optionxform = str  # as written
    parser.read(ROOT / "deploy/systemd/dnstrail.service")
    return dict(parser["Service"])


def test_its_capabilities_are_those_that_the_code_asks_for():
    names = [one.name for one in privileges.CAPABILITIES]
    assert service()["CapabilityBoundingSet"].split() == names
    assert service()["AmbientCapabilities"].split() == names


def test_readers_meet_it_where_they_look_for_it():
    assert Path("/run") / service()["RuntimeDirectory"] == Path(TRACE_SOCKET).parent
    assert service()["RuntimeDirectoryMode"] == "0700"


def test_its_memory_is_that_of_the_manifest():
    (daemon_set,) = (
        one for one in yaml.safe_load_all((ROOT / "daemonset.yaml").read_text()) if one["kind"] == "DaemonSet"
    )
    (container,) = daemon_set["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["memory"] == f"{service()['MemoryMax']}i"
