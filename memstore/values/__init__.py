"""Values from users and from other libraries: converts them to plain values, and shows them in messages."""
