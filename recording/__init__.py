"""Raw venue messages on disk: our format, and readers of foreign captures. Never what a message says."""

from recording.capture import Capture, open_capture
from recording.events import (
    CaptureError,
    Closed,
    Configuration,
    Event,
    Gap,
    Opened,
    Received,
    Response,
    Sent,
)
from recording.reader import Report, read, verify
from recording.segment_reader import Damage
from recording.segments import Head
from recording.store import captures_in, new_folder
from recording.writer import Writer

__all__ = [
    "Capture",
    "CaptureError",
    "Closed",
    "Configuration",
    "Damage",
    "Event",
    "Gap",
    "Head",
    "Opened",
    "Received",
    "Report",
    "Response",
    "Sent",
    "Writer",
    "captures_in",
    "new_folder",
    "open_capture",
    "read",
    "verify",
]
