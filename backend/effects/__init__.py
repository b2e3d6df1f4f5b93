"""What a switch did to the run: memory, estimate, words."""
