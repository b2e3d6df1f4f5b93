"""Sending to the hub: the bounded queue, the sender thread, the resend buffer, the error boundary."""
