"""What a cluster or host takes: scripts for make, and the monitoring files with what generates them."""
