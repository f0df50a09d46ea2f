"""The Kubernetes API as one node needs it: who has which address, which Service, which workload.

    API server ─► watch (a thread for each) ─► hand-over, bounded ─► mirror, indexes ─► `LiveCluster`, asked by sessions
                  list, watch, decode          filled by threads     the agent's own thread alone

With `--events`, `events.py` writes Events in a thread of its own.

Whatever happens to the API server, `LiveCluster` answers from memory at once. The `kubernetes` package gives
configuration, credentials and transport; objects are decoded in part, into small structs.
"""
