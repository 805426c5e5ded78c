"""Worlds for other runtimes than torch."""
