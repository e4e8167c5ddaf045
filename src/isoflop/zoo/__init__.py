"""Which models of the libraries widen: a random sample, checked one by one."""
