"""What the agent may do with the Kubernetes API, and why: the manifest's ClusterRole, as data.

Every request of this package names its rule here, so nothing is asked that is not listed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable


class Rule(NamedTuple):
    """One kind of objects."""

    group: str
    """API group; empty for the core."""
    resource: str
    verbs: tuple[str, ...]
    reason: str
    """What the agent cannot say without it."""
    required: bool = True
    """Without the others the agent does its work, less well: it says so and stays ready."""


PODS = Rule("", "pods", ("list", "watch"), "names pods and workloads by their addresses and UIDs")
SERVICES = Rule("", "services", ("list", "watch"), "names the Services that are asked, and asked for")
ENDPOINT_SLICES = Rule(
    "discovery.k8s.io",
    "endpointslices",
    ("list", "watch"),
    "names DNS servers; tells which endpoints are not ready or gone",
)
STATEFUL_SETS = Rule("apps", "statefulsets", ("list", "watch"), "the finding StatefulSetName", required=False)
JOBS = Rule("batch", "jobs", ("get",), "the CronJob behind a Job", required=False)

RULES = (PODS, SERVICES, ENDPOINT_SLICES, STATEFUL_SETS, JOBS)

EVENTS = Rule("", "events", ("create", "patch"), "says on pods and on the node why lookups fail", required=False)
"""The one right to write; only with `--events`."""


def cluster_role_rules(rules: Iterable[Rule] = RULES) -> list[dict[str, list[str]]]:
    """`rules` of a ClusterRole (rbac.authorization.k8s.io/v1) that allows this and nothing more."""
    return [{"apiGroups": [rule.group], "resources": [rule.resource], "verbs": list(rule.verbs)} for rule in rules]
