"""Small tensors that look like fine-tunes of one model, and the measure they are compared by."""

import torch

OUTLIERS = ("noise", "flipped", "x100")


def fine_tunes(count, difference, shape, *, seed=0, outlier=None, at=0, dtype=torch.float32):
    """`count` tensors that differ by `difference` of their norm; input `at` may be broken."""
    generator = torch.Generator().manual_seed(seed)

    def noise():
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    base = noise()
    tensors = [0.02 * (base + difference * noise()) for _ in range(count)]
    if outlier is not None:
        tensors[at] = {
            "noise": 0.02 * noise(),
            "flipped": -tensors[at],
            "x100": 100 * tensors[at],
        }[outlier]
    return [x.to(dtype) for x in tensors]


def relative_error(got, expected):
    """Relative L2 error in float64."""
    got, expected = (torch.as_tensor(x).double() for x in (got, expected))
    return float((got - expected).norm() / expected.norm())


def same_bits(got, expected):
    """Equal to the last bit, signs of zeros included."""
    return torch.equal(got, expected) and torch.equal(got.signbit(), expected.signbit())
