"""What the node knows beside the packets: processes, namespaces, local addresses."""
