"""For torch.hub: ``torch.hub.load("OWNER/REPOSITORY", "afv_distance")``, or a checkout with ``source="local"``."""

dependencies = ["torch", "torchvision", "numpy", "scipy", "huggingface_hub", "safetensors", "PIL", "tqdm", "filelock"]

from afv_metric import AFVDistance as afv_distance  # noqa: E402, F401, N813
