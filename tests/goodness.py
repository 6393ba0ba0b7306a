"""Whether samples have a given distribution: Pearson's chi-square test, and that of the Kullback-Leibler divergence."""

import numpy as np

# So small that a sound test never fails by chance; a biased verifier must fall below it all the same.
ALPHA = 1e-6
LEAST_EXPECTED = 10


def chi_square(counts, probabilities):
    """p-value of Pearson's test. Both arrays have one entry an outcome; outcomes seldom expected are pooled."""
    observed, expected = _pooled(counts, probabilities)
    return _tail(((observed - expected) ** 2 / expected).sum(), len(observed))


def divergence(counts, probabilities):
    """p-value of twice the sample size times KL(samples || probabilities), the likelihood-ratio test; and that KL."""
    observed, expected = _pooled(counts, probabilities)
    seen = observed > 0
    nats = (observed[seen] * np.log(observed[seen] / expected[seen])).sum()
    return _tail(2 * nats, len(observed)), nats / observed.sum()


def _pooled(counts, probabilities):
    counts, expected = np.ravel(counts), counts.sum() * np.ravel(probabilities)
    often = expected >= LEAST_EXPECTED
    rest = counts[~often].sum(), expected[~often].sum()
    if rest[1] == 0:
        assert rest[0] == 0, "an impossible outcome"
        return counts[often], expected[often]
    return np.array([*counts[often], rest[0]]), np.array([*expected[often], rest[1]])


def _tail(statistic, outcomes):
    from scipy.stats import chi2

    return float(chi2.sf(statistic, outcomes - 1))
