"""Blocks of episodes, their heads, and a process's copy of both: numpy alone, and no database."""
