"""The command line `radfm`, one module a command."""
