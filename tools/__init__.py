"""What maintainers run: the survey of model zoos, the reference of the methods."""
