"""The lab: a Kubernetes node in miniature, built from network namespaces on one machine.

Client pods look names up at the DNS Service's address; the node translates it to a server pod, as kube-proxy makes it;
server pods run dnsmasq and ask an upstream for names outside the cluster. Nothing of the machine's own network is
touched, and nothing remains: a lab whose process was killed is removed when the next one is built.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Self

from agent.lab import namespaces, translation, wiring, zones
from agent.lab.pods import DnsServer, Pod
from agent.lab.processes import LabError, Processes, require_root_and_tools, run, wait_until
from agent.lab.translation import Translation, Translator
from agent.lab.wiring import Link, Plug


class Lab:
    """A node with client pods, DNS server pods and an upstream; a context manager.

    Attributes:
        node: The node's own namespace; programs in it are what hostNetwork pods are on a real node.
        clients: The client pods.
        servers: The DNS server pods behind the Service.
        upstream: The DNS server they ask for names under upstream.test.
        translator: What holds the Service's rules: iptables-legacy, iptables-nft or nftables.
        port: Where the server pods listen.
    """

    node: Pod
    clients: list[Pod]
    servers: list[DnsServer]
    upstream: DnsServer
    translator: Translator

    def __init__(
        self,
        translation: Translation = "iptables",
        clients: int = 1,
        servers: int = 1,
        *,
        cache: bool = False,
        port: int = translation.DNS_PORT,
        link: Link = "veth",
    ) -> None:
        """Describe a lab; entering it builds it.

        Args:
            translation: By what the node translates the Service's addresses.
            clients: Number of client pods.
            servers: Number of DNS server pods; the node picks one at random per lookup.
            cache: Whether the server pods remember the upstream's answers.
            port: Where the server pods listen; the Service's port is 53 all the same.
            link: By what pods are connected. Those on the uplink reach the servers' own addresses, not the Service.
        """
        if not (1 <= clients <= wiring.MAX_PODS and 1 <= servers <= wiring.MAX_PODS):
            raise LabError(f"a lab has 1 to {wiring.MAX_PODS} clients and servers")
        self.id = namespaces.new_lab_id()
        self.processes = Processes()
        self._translation = translation
        self._cache = cache
        self.port = port
        self._link = link
        self._client_plugs = [wiring.client(self.id, number) for number in range(1, clients + 1)]
        self._server_plugs = [wiring.server(self.id, number) for number in range(1, servers + 1)]
        self._upstream_plug = wiring.upstream(self.id)
        self._cleanup = ExitStack()

    def __enter__(self) -> Self:
        require_root_and_tools()
        namespaces.sweep()
        with ExitStack() as stack:
            stack.callback(namespaces.remove, self.id)
            stack.callback(self.processes.close)
            self._build()
            self._cleanup = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    def _build(self) -> None:
        node = f"{self.id}-node"
        self._directory = namespaces.create(self.id, [node, *(plug.netns for plug in self._plugs)])
        self._wire(node)
        self.translator = self._install_rules(node)
        self._populate(node)
        self._start_servers()
        self._check_paths()

    @property
    def _plugs(self) -> list[Plug]:
        return [*self._client_plugs, *self._server_plugs, self._upstream_plug]

    def _wire(self, node: str) -> None:
        namespaces.set_sysctls(node, wiring.NODE_SYSCTLS)
        for plug in self._plugs:
            namespaces.set_sysctls(plug.netns, wiring.POD_SYSCTLS)
        self._connect(node, wiring.node_links(self._plugs, self._upstream_plug, self._link))
        if self._link in wiring.ON_UPLINK:
            pods = [plug for plug in self._plugs if plug is not self._upstream_plug]
            self._connect(node, wiring.uplink_links(pods, self._upstream_plug, self._link))
        for plug in self._plugs:
            _configure(plug.netns, wiring.pod_links(plug))
        if self._link in wiring.ON_UPLINK:
            for plug in self._plugs:
                _configure(plug.netns, wiring.neighbour_links([other for other in self._plugs if other is not plug]))

    def _connect(self, node: str, batch: str) -> None:
        """Make the devices.

        Raises:
            UnsupportedLinkError: There are none of this kind here.
        """
        done = run(["ip", "-netns", node, "-batch", "-"], stdin=batch, check=False)
        if done.returncode != 0:
            raise wiring.UnsupportedLinkError(f"no {self._link} here: {done.stderr.strip()}")

    def _install_rules(self, node: str) -> Translator:
        servers = [(plug.address, plug.address6) for plug in self._server_plugs]
        return translation.install(self._translation, str(namespaces.path_of(node)), servers, self.port)

    def _populate(self, node: str) -> None:
        self.node = self._pod(wiring.node(node))
        self.clients = [self._pod(plug) for plug in self._client_plugs]
        arguments = zones.server_arguments(self._upstream_plug.address, cache=self._cache, port=self.port)
        self.servers = [self._server(plug, arguments, self.port) for plug in self._server_plugs]
        self.upstream = self._server(self._upstream_plug, zones.upstream_arguments(), translation.DNS_PORT)
        for pod in (self.node, *self.clients, *self.servers, self.upstream):
            # As every pod has its pause container: what is read of a namespace is read of a process in it.
            pod.popen(["sleep", "infinity"])

    def _pod(self, plug: Plug) -> Pod:
        return Pod(
            name=plug.netns,
            netns_id=namespaces.path_of(plug.netns).stat().st_ino,
            address=plug.address,
            address6=plug.address6,
            interface=plug.interface,
            node_interface=plug.node_interface,
            directory=self._directory,
            processes=self.processes,
        )

    def _server(self, plug: Plug, arguments: Sequence[str], port: int) -> DnsServer:
        return DnsServer(**vars(self._pod(plug)), arguments=arguments, port=port)

    def _start_servers(self) -> None:
        servers = [*self.servers, self.upstream]
        for server in servers:
            server.launch()
        for server in servers:
            server.wait_ready()

    def _check_paths(self) -> None:
        """Wait until every link carries queries: the kernel enables a new link's queue a moment after it is up."""
        first_client, first_server = self.clients[0], self.servers[0]
        for server in (*self.servers, self.upstream):
            _wait_for_path(first_client, server)
        for client in self.clients[1:]:
            _wait_for_path(client, first_server)
        self.node.run(["conntrack", "--flush"])


def _configure(netns: str, batch: str) -> None:
    run(["ip", "-netns", netns, "-batch", "-"], stdin=batch)


def _wait_for_path(client: Pod, server: DnsServer) -> None:
    def replied() -> bool:
        return all(client.gets_reply_from(address, server.port) for address in (server.address, server.address6))

    wait_until(replied, f"a reply from {server.name} to reach {client.name}")
