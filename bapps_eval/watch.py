"""Agreement with people of a bundle in the making: what a training run is handed to watch judged sets with."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from afv_metric.bundles.bundle import Bundle
from afv_metric.fisher.forms import FORMS
from afv_metric.metric import AFVDistance
from bapps_eval.data import JudgedSet
from bapps_eval.loader import batches
from bapps_eval.scores import score

__all__ = ["make_evaluation"]

_PIXELS = 2**16  # of the pairs that are compared at a time, which bounds memory


def make_evaluation(judged: Sequence[JudgedSet], items: int = 100) -> Callable[[Bundle], dict[str, float]]:
    """Make the function that scores a bundle on judged sets, in every form; it meets no other process.

    Args:
        judged: Sets of images judged by people, all of other names.
        items: Largest number of items per set; a set whose groups would become too small to be ranked stays whole.

    Returns:
        From a bundle, whose device computes, to scores named ``FORM/SET`` and their means over sets ``FORM/mean``; an
        image that cannot be read raises ValueError.
    """
    sets = [_limited(one, items) for one in judged]

    @torch.no_grad()
    def evaluate(bundle: Bundle) -> dict[str, float]:
        device = next(bundle.discriminator.parameters()).device
        metrics = {form: AFVDistance(bundle, form=form).to(device) for form in FORMS}
        scores: dict[str, dict[str, float]] = {form: {} for form in FORMS}
        for one in sets:
            distances = {form: np.empty((len(one), len(one.images[0]) - 1)) for form in FORMS}
            for batch in batches(one, 64, device=device, workers=0):
                if batch.errors:
                    raise ValueError(next(iter(batch.errors.values())))
                # In [0, 1], where a bright image is no reason to warn.
                first, *others = ((images + 1) / 2 for images in batch.images)
                for form, metric in metrics.items():
                    metric.chunk_size = max(1, _PIXELS // first[0, 0].numel())
                    columns = [metric(first, other, normalize=True) for other in others]
                    distances[form][batch.rows] = torch.stack(columns, 1).cpu().numpy()
            for form in FORMS:
                scores[form][one.name] = float(score(one, distances[form])[one.measure])
        for values in scores.values():
            values["mean"] = sum(values.values()) / len(values)
        return {f"{form}/{name}": value for form, values in scores.items() for name, value in values.items()}

    return evaluate


def _limited(judged: JudgedSet, count: int) -> JudgedSet:
    some = judged.limited(count)
    return some if some.measure == judged.measure else judged
