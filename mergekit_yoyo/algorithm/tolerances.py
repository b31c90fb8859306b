"""Every tolerance of the algorithm: where it comes from, and what it protects.

Nothing here is an option: these are the places where exact mathematics meets float64.
"""

# A residual is none (step 4 of the method, as published). Of the u_k, whose RMS is 1.
NO_RESIDUAL = 1e-7

# The inner products are float64, so that a squared length carries an error of 1e-16 to 1e-15 of
# the squares that were added up to it. Protects what is divided by such a length.
SQUARE_ROUND_OFF = 1e-15

# A length is the root of that: below this share of the largest length that entered the
# differences, a singular value is noise, and its direction rank loss. Protects step 7, which
# scales every direction to its own size, noise too.
ROUND_OFF = 1e-7

# Two points closer than this share of their spread are one point for the geometric median, whose
# distances come from the same Gram matrix (which resolves 1e-8). Protects Kuhn's test, which asks
# whether a point pulls itself.
SAME_POINT = 1e-7

# The geometric median has converged when a step moves it by less than this share of the spread:
# what the specification asks for.
MEDIAN_STEP = 1e-12
MEDIAN_ITERATIONS = 1000  # Newton's steps need about 5; only pathological inputs come near

# Newton's matrix on points that are nearly on a line is singular but for this ridge, relative to
# its largest part; the same share is the round-off that must not choose between two steps.
NEWTON_RIDGE = 1e-15

# A robust scale of zero would reject every input that is not exactly at zero: the specification's
# floor for s_j and s_g.
SCALE_FLOOR = 1e-12

# Weights of models that add up to half of all but for round-off (0.1 + 0.2 and 0.3) are half.
HALF_OF_WEIGHT = 1e-12

# Differences from a pivot drown where the pivot is this much longer than the shortest input, which
# no fine-tune is: another pivot is taken, at the cost of one pass more.
PIVOT_RATIO = 2.0

# Recall's trust has settled when no weight moves by more than this between two rounds.
TRUST_STEP = 1e-12
TRUST_ROUNDS = 100  # a few are usual

# A ridge far below this makes the factorization of recall's energies fail without a word.
LEAST_RIDGE = 1e-6

# The closed form of recall's strength is (K - 1) / (K - 2), K an effective number of models that
# need not be whole: bounded, and its denominator kept away from zero.
STRENGTH_BOUND = 3.0
STRENGTH_DENOMINATOR = 1e-3

# What rounding loses is measured on about as many elements of each problem: its root mean square is
# then known to 2 %, for about a hundredth of the time of the merge.
ROUNDING_SAMPLE = 2**12

# Recall in float32: in directions where nobody moved the ridge rho / in is all that the solve
# divides by, so that it enlarges round-off by in / rho times the longest row of a residual and the
# longest column of its energies, however few directions they have (`LinearInputs.enlarged`). Up to
# this the worst of residuals of rank 1, 4, 32 and full, of 3 to 8 models, was 1/27 of a step of
# bfloat16 (benchmarks/recall_precision.py; tests/test_recall.py asks for 1/20).
FLOAT32_ENLARGED = 40.0
# The squares of residuals must be far from the ends of float32's range (1e-38 to 1e38).
FLOAT32_SQUARES = (1e-20, 1e20)
