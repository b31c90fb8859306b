"""The centers: geometric median and the median by minima and maxima, against other methods."""

import numpy as np
import pytest
import torch
from reference import geometric_median as plain_weiszfeld

from mergekit_yoyo.algorithm.center import geometric_median, median_network
from mergekit_yoyo.algorithm.streaming import _median_into


def positions(points, found):
    return np.einsum("bk,bkr->br", found.weights, points)


def pull(points, y):
    """[B] norm of the sum of unit vectors from y to the points that are not at y."""
    difference = points - y[:, None]
    distance = np.linalg.norm(difference, axis=2, keepdims=True)
    at_point = distance <= 1e-12
    unit = np.where(at_point, 0, difference / np.where(at_point, 1, distance))
    return np.linalg.norm(unit.sum(1), axis=1)


@pytest.mark.parametrize("dimensions", [2, 3, 7])
@pytest.mark.parametrize("count", [3, 4, 5, 8, 20])
def test_optimality(count, dimensions):
    """0 is in the subdifferential of the sum of distances, which is convex: that is the optimum."""
    rng = np.random.default_rng(count * dimensions)
    points = rng.normal(size=(2000, count, dimensions)) + 3.0
    found = geometric_median(points)
    force = pull(points, positions(points, found))
    converged = found.status == "converged"
    at_point = found.status == "data_point"
    assert (converged | at_point).all()
    assert converged.any()
    assert force[converged].max() <= 1e-9
    assert (force[at_point] <= 1 + 1e-9).all()
    assert (np.sort(found.weights[at_point])[:, -1] == 1).all()
    np.testing.assert_allclose(found.weights.sum(1), 1, rtol=1e-14)
    assert found.iterations.max() <= 40  # Newton, damped where it overshoots
    assert (found.iterations[at_point] == 0).all()


def test_two_pairs_of_near_points():
    """The whole Newton step overshoots and Weiszfeld's crawls: 1000 of its steps are not enough."""
    points = np.array([[[1.440, -1.049], [-0.560, 1.612], [-0.412, 1.375], [0.720, -0.417]]])
    found = geometric_median(points)
    assert found.status == ["converged"]
    assert found.iterations < 20
    assert pull(points, positions(points, found)) <= 1e-12


@pytest.mark.parametrize("count", [2, 3, 4, 6])
def test_against_plain_weiszfeld(count):
    rng = np.random.default_rng(count)
    points = rng.normal(size=(20, count, 5))
    expected = np.array([plain_weiszfeld(p) for p in points])
    np.testing.assert_allclose(positions(points, geometric_median(points)), expected, atol=1e-11)


def one(points):
    points = np.array([points], dtype=float)
    found = geometric_median(points)
    return str(found.status[0]), positions(points, found)[0], found.weights[0]


def test_known_places():
    corner = np.array([np.cos(2 * np.pi / 3), np.sin(2 * np.pi / 3)])
    status, place, _ = one([[1, 0], corner, [corner[0], -corner[1]]])
    assert status == "converged"
    np.testing.assert_allclose(place, 0, atol=1e-12)  # Fermat's point of an equilateral triangle

    status, place, weights = one([[-5, 0], [0, 1], [5, 0]])  # an angle above 120 degrees
    assert status == "data_point"
    np.testing.assert_array_equal(weights, [0, 1, 0])
    status, place, _ = one([[-1, 0], [0, 1], [1, 0]])  # 90 degrees: y = 1 / sqrt 3
    assert status == "converged"
    np.testing.assert_allclose(place, [0, 1 / np.sqrt(3)], atol=1e-12)

    status, place, _ = one([[0, 0], [4, 1], [5, 5], [0, 3]])  # the diagonals' intersection
    assert status == "converged"
    np.testing.assert_allclose(place, [2, 2], atol=1e-12)


def test_points_on_one_line():
    direction = np.array([1.0, 2.0, -1.0])
    for places, middle in (
        ((3, 0, 1), 1),
        ((0, 10, 1, 2), 1.5),
        ((5, 4, 3, 2, 1, 0), 2.5),
        ((0, 0, 1, 1), 0.5),
        ((7, 7, 7, 2, 1), 7),
    ):
        status, place, _ = one(np.outer(places, direction) + 5)
        assert status == "midpoint"
        np.testing.assert_allclose(place, middle * direction + 5, atol=1e-12)
    status, place, weights = one([[1, 2], [3, 5]])
    assert status == "midpoint"
    np.testing.assert_array_equal(weights, [0.5, 0.5])
    status, place, _ = one([[1, 2], [1, 2], [1, 2]])
    np.testing.assert_allclose(place, [1, 2], atol=1e-12)


def test_copies_of_a_point_hold_it():
    status, _, weights = one([[1, 1], [0, 4], [1, 1], [5, 0]])
    assert status == "data_point"
    np.testing.assert_array_equal(weights, [0.5, 0, 0.5, 0])
    # three different pull harder than one
    _, _, weights = one([[0, 0], [1, 0], [1, 0.1], [1, -0.1]])
    np.testing.assert_array_equal(weights, [0, 1, 0, 0])


@pytest.mark.parametrize("below", [1e-2, 1e-5, 1e-8])
def test_close_to_a_data_point(below):
    """Just below 120 degrees the median leaves the corner, by less than `below`."""
    angle = 2 * np.pi / 3 - below
    points = np.array([[[0, 0], [1, 0], [np.cos(angle), np.sin(angle)]]])
    found = geometric_median(points)
    assert found.status == ["converged"]
    assert found.iterations < 20
    place = np.linalg.norm(positions(points, found))
    assert place == pytest.approx(below / np.sqrt(3), rel=0.02)


def test_starting_on_a_data_point_that_is_not_the_median():
    """The mean, where the iteration begins, is the first point: Vardi and Zhang's case."""
    points = np.array([[[0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 0, 1], [-3, -1, -1]]], dtype=float)
    assert (points.mean(1) == points[:, 0]).all()
    found = geometric_median(points)
    assert found.status == ["converged"]
    assert pull(points, positions(points, found)) <= 1e-10
    np.testing.assert_allclose(positions(points, found)[0], plain_weiszfeld(points[0]), atol=1e-11)


def test_scale_and_place_do_not_matter():
    points = np.random.default_rng(3).normal(size=(50, 5, 4))
    weights = geometric_median(points).weights
    for scale, shift in ((1e-6, 0.0), (1e6, 0.0), (1.0, 5.0)):
        np.testing.assert_allclose(
            geometric_median(scale * points + shift).weights, weights, atol=1e-9
        )


@pytest.mark.parametrize("count", range(1, 21))
def test_median_by_minima_and_maxima(count):
    rng = np.random.default_rng(count)
    values = np.concatenate(
        [rng.normal(size=(count, 2000)), rng.integers(0, 3, size=(count, 2000))], axis=1
    )
    units = torch.from_numpy(values)
    before = units.clone()
    center = torch.empty(values.shape[1], dtype=torch.float64)
    scratch = torch.empty(count + 2, values.shape[1], dtype=torch.float64)
    _median_into(center, units, scratch, np.ones(count))
    np.testing.assert_array_equal(center.numpy(), np.median(values, axis=0))
    assert torch.equal(units, before)


@pytest.mark.parametrize(("count", "operations"), [(1, 0), (2, 2), (3, 4), (5, 12), (8, 28)])
def test_operations_of_the_median(count, operations):
    network = median_network(count)
    assert sum(keep_min + keep_max for _, _, keep_min, keep_max in network) == operations
