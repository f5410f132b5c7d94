"""teach, train, compress, verify, evaluate, report: each turns sealed artifacts into the next one."""
