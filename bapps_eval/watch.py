"""Agreement with people of a bundle in the making: the function by which a training run watches judged sets."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from afv_metric.bundles.bundle import Bundle
from afv_metric.fisher.forms import FORMS
from afv_metric.metric import AFVDistance
from bapps_eval.data import JudgedSet
from bapps_eval.metrics import Metric
from bapps_eval.run import measure, read_for
from bapps_eval.scores import score

__all__ = ["make_evaluation"]


def make_evaluation(judged: Sequence[JudgedSet], items: int = 100) -> Callable[[Bundle], dict[str, float]]:
    """Make the function that scores a bundle on judged sets, in every form; it meets no other process.

    Of each set at most so many items count; one whose groups would become too small to be ranked stays whole.

    Returns:
        From a bundle, whose device computes, to scores named ``FORM/SET`` and their means over sets ``FORM/mean``; an
        item that cannot be read or compared raises ValueError.
    """
    limited = [(one, one.limited(items)) for one in judged]
    sets = [some if some.measure == one.measure else one for one, some in limited]

    def evaluate(bundle: Bundle) -> dict[str, float]:
        device = str(next(bundle.discriminator.parameters()).device)
        metrics = [Metric(form, AFVDistance(bundle, form=form, check=False)) for form in FORMS]
        scores: dict[str, dict[str, float]] = {form: {} for form in FORMS}
        for one in read_for(metrics, sets):
            distances = np.empty((len(FORMS), len(one), len(one.images[0]) - 1))
            for found in measure(metrics, one, device=device, workers=0):
                for item in found:
                    if item.error:
                        raise ValueError(item.error)
                    distances[:, item.row] = item.distances
            for form, of_form in zip(FORMS, distances, strict=True):
                scores[form][one.name] = float(score(one, of_form))
        for values in scores.values():
            values["mean"] = sum(values.values()) / len(values)
        return {f"{form}/{name}": value for form, values in scores.items() for name, value in values.items()}

    return evaluate
