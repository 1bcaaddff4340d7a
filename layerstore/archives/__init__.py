"""Archives of images: open whatever holds images (docker-archive, OCI layout), and write the same forms."""

from layerstore.archives.docker import DockerArchive, DockerImage
from layerstore.archives.layout import LayoutRoot, OciLayout
from layerstore.archives.member import MemberReader
from layerstore.archives.opening import ImageArchive, open_archive
from layerstore.archives.sink import FolderSink, ImageSink, TarSink

__all__ = [
    "DockerArchive",
    "DockerImage",
    "FolderSink",
    "ImageArchive",
    "ImageSink",
    "LayoutRoot",
    "MemberReader",
    "OciLayout",
    "TarSink",
    "open_archive",
]
