"""Training of the generative adversarial network whose discriminator is the metric: ``python -m afv_metric.train``."""
