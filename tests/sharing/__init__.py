"""One database, many processes and threads at once: exactness, the law of the draw, handles, broken connections."""
