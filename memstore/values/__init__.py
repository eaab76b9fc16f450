"""Values of users and of other libraries: made plain, shown in messages, and let go."""
