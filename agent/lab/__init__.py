"""A node made of network namespaces, for the tests, the bench and the demo."""
