"""Numbers for Prometheus: what there is (`catalogue`), how it is counted (`tally`), how it is told (`collector`)."""
