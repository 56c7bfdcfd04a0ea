"""OpenCV, or an error that says what its import is missing.

``opencv-python`` (which ``lvis`` requires, so the headless build cannot take its place) needs
system libraries that a bare Debian or Ubuntu without a display does not have.
"""

from __future__ import annotations

try:
    import cv2
except ImportError as error:
    raise ImportError(
        f"OpenCV cannot be imported: {error}. On a bare Debian or Ubuntu its system libraries "
        "are missing; install them: apt-get install -y libgl1 libglib2.0-0"
    ) from error

__all__ = ["cv2"]
