"""Raw venue messages on disk: readers of the capture formats. Never what a message says."""

from recording.capture import Capture, open_capture
from recording.events import CaptureError, Configuration, Event, Opened, Received, Response, Sent

__all__ = [
    "Capture",
    "CaptureError",
    "Configuration",
    "Event",
    "Opened",
    "Received",
    "Response",
    "Sent",
    "open_capture",
]
