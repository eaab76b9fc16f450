"""Who is drawn: the laws, their candidates, the batch."""
