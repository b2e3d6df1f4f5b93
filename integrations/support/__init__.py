"""What the adapters share: installation on import, step counting, the table of frameworks, checks of their source."""
