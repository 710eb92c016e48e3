"""What is measured of verdicts and perturbations."""

__all__ = ["interval"]


def interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the exact (Clopper-Pearson) interval of a proportion.

    Example:
        >>> interval(0, 100)[1] < 0.037
        True

    Arguments:
        successes: How many of them.
        n: How many in all; of none nothing is known: (0, 1).
        confidence: The least probability with which the interval covers the truth.

    References:
        | The Use of Confidence or Fiducial Limits (Clopper and Pearson, 1934)
        | https://doi.org/10.1093/biomet/26.4.404
    """
    from scipy.stats import beta

    if n == 0:
        return 0.0, 1.0
    tail = (1 - confidence) / 2
    low = 0.0 if successes == 0 else float(beta.ppf(tail, successes, n - successes + 1))
    high = 1.0 if successes == n else float(beta.ppf(1 - tail, successes + 1, n - successes))
    return low, high
