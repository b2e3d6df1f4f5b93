"""Transport to the hub: the bounded send queue, the sender thread, the resend buffer, the error boundary."""
