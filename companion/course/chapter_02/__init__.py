"""Chapter 02, the VAE: latents that are drawn, and images drawn from the prior.

The reader does these exercises, in this order, the last two in the study 02b beside it, and plays with the explorers:

* 2.1 reparameterisation: a latent drawn from mean, log-variance and noise.
* 2.2 KL divergence of each latent number to the standard normal distribution.
* 2.3 the ELBO, in nats per image.
* 2.4 the log-mass of a bin under a logistic distribution, without a difference of probabilities.
* 2.5 the importance-weighted bound, from the logarithms of the weights.
* ``explorer.py``: a window on the latent plane, and the sweep of β_KL.
"""

from companion.course.chapter_02 import (
    exercise_2_1_reparameterize,
    exercise_2_2_kl_divergence,
    exercise_2_3_elbo,
    exercise_2_4_discretized_logistic,
    exercise_2_5_importance_weighted_bound,
)

EXERCISES = (
    exercise_2_1_reparameterize.EXERCISE,
    exercise_2_2_kl_divergence.EXERCISE,
    exercise_2_3_elbo.EXERCISE,
    exercise_2_4_discretized_logistic.EXERCISE,
    exercise_2_5_importance_weighted_bound.EXERCISE,
)
