"""The page: what goes on at this node, for a person with a browser."""
