"""Attaches to engines that are up: processes with the plugin (``processes``), servers by URL (``server``)."""
