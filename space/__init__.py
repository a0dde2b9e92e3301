"""The Space. On the Hub its folder is a repository of its own, so its modules import each other by their bare names."""
