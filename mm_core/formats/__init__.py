"""What files are by their content, and what their headers say, without any of their libraries."""

from mm_core.formats.headers import read_header
from mm_core.formats.kinds import VAGUE, FileFormat, claimed_formats
from mm_core.formats.look import Inspected, identify, look_through
from mm_core.formats.pickles import Pickle
from mm_core.formats.safetensors import read_safetensors_header

__all__ = [
    "VAGUE",
    "FileFormat",
    "Inspected",
    "Pickle",
    "claimed_formats",
    "identify",
    "look_through",
    "read_header",
    "read_safetensors_header",
]
