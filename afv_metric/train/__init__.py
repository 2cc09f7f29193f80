"""Training of the adversarial energy model whose discriminator is the metric: ``python -m afv_metric.train``."""
