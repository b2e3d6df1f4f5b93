"""Commands on a live engine: flags, actions, timers and the checks before a switch."""
