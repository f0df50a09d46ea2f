"""Who reads along: programs such as `dnstrail trace`, by a local socket of the running agent."""
