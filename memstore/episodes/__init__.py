"""Changes of episodes: they come, get new losses, and leave; and the log of these changes."""
