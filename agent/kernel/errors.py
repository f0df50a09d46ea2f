"""What can keep the agent from capturing, each as one sentence with the remedy."""


class CaptureError(Exception):
    """Capture is impossible on this machine or in this process; the text says what to do."""
