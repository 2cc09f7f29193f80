"""Images: from files and tensors to what the networks take."""

from afv_metric.images.reading import ImageError, Reader, count_frames, percentile_range, read_image

__all__ = ["ImageError", "Reader", "count_frames", "percentile_range", "read_image"]
