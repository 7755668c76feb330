"""Bundles: versions in a file or a folder, for places that no network leads to.

An index, which is named by its own sha256, names every other byte: the manifests, the
signatures, and all files of models, each once and by its sha256. The same versions have
the same index in every form: a tar, the same members as files of a folder, and an OCI image
layout. So whatever was changed on the way is found.
"""

from mm_core.bundles.contents import Contents, gather
from mm_core.bundles.folder import write_folder
from mm_core.bundles.oci import write_oci
from mm_core.bundles.reading import Bundle, BundledVersion, Imported
from mm_core.bundles.tar import write_tar

__all__ = [
    "Bundle",
    "BundledVersion",
    "Contents",
    "Imported",
    "gather",
    "write_folder",
    "write_oci",
    "write_tar",
]
