"""Alerts (`alerts`), and the files that are made of them (`rules`)."""
