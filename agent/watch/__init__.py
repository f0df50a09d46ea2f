"""What happens on the node, shown to a person: lookups as they come, and what goes wrong most."""
