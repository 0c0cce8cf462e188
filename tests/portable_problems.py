"""Problems for the kernels that run on any card, each for a reason; `fuzz_conv.check` runs them."""

from fuzz_problems import problem

UP = {"transposed": True, "stride": 2, "begin": 1, "end": 1}
SAME = {"begin": 1, "end": 1}

ORDINARY = {
    "3x3": problem((2, 8, 13, 17), (24, 8, 3, 3), **SAME),
    # Odd extents leave a row and a column that no stride reaches.
    "stride 2": problem((2, 8, 14, 17), (24, 8, 3, 3), stride=2, **SAME),
    "a stem": problem((2, 3, 37, 41), (64, 3, 7, 7), stride=2, begin=3, end=3),
    "patches": problem((2, 3, 32, 32), (96, 3, 4, 4), stride=4),
    "a stride beyond the filter": problem((2, 8, 23, 26), (24, 8, 3, 2), stride=(5, 4)),
    "dilation 4": problem((2, 8, 19, 23), (24, 8, 3, 3), dilation=4, begin=4, end=4),
    "stride and dilation": problem((2, 8, 19, 23), (24, 8, 3, 3), stride=(2, 3), dilation=(3, 2)),
    # No taps to walk; with a stride most of the input is not read.
    "1x1": problem((2, 64, 9, 11), (130, 64, 1, 1)),
    "1x1, stride 2": problem((2, 64, 9, 11), (130, 64, 1, 1), stride=2),
    # gemm_k of less than a step, of no vector's width, and of a step and a bit.
    "one channel": problem((2, 1, 28, 28), (32, 1, 5, 5)),
    "one channel, one tap": problem((2, 1, 28, 28), (8, 1, 1, 1)),
    "three channels": problem((2, 3, 21, 22), (64, 3, 3, 3), **SAME),
    "nine channels": problem((3, 9, 11, 13), (31, 9, 3, 3)),
    "33 channels": problem((2, 33, 9, 11), (40, 33, 3, 3)),
    "one filter": problem((2, 64, 12, 12), (1, 64, 3, 3)),
    "a filter more than a tile": problem((2, 16, 9, 11), (129, 16, 3, 3)),
    # Tiles of several images, and those of one image.
    "one pixel": problem((17, 64, 1, 1), (130, 64, 1, 1)),
    "a filter as large as the image": problem((4, 32, 7, 7), (64, 32, 7, 7)),
    "tiles of each image": problem((3, 64, 30, 31), (200, 64, 3, 3), **SAME),
    "padding of other sizes": problem((2, 8, 9, 11), (24, 8, 3, 4), begin=(1, 1), end=(1, 2)),
    "padding behind alone": problem((2, 8, 9, 11), (24, 8, 3, 3), end=3),
    "padding beyond the filter": problem((2, 8, 5, 6), (24, 8, 2, 3), begin=4, end=5),
    "1-d": problem((3, 16, 100), (24, 16, 5), begin=2, end=2),
    "1-d, causal": problem((3, 16, 100), (24, 16, 3), dilation=4, begin=8),
    "1-d, of a wave": problem((1, 1, 40000), (8, 1, 80), stride=16),
    "3-d": problem((2, 8, 5, 9, 11), (24, 8, 3, 3, 3), **SAME),
    "3-d, strided": problem((1, 3, 9, 17, 19), (32, 3, 3, 5, 5), stride=(1, 2, 3), begin=(1, 2, 2), end=2),
    "3-d, dilated": problem((2, 9, 7, 12, 11), (24, 9, 3, 2, 3), dilation=(3, 4, 2), begin=1, end=(0, 2, 1)),
    "3-d, 1x1x1": problem((2, 32, 5, 6, 7), (64, 32, 1, 1, 1)),
    "depthwise": problem((2, 64, 14, 15), (64, 1, 3, 3), groups=64, **SAME),
    "depthwise, sparse": problem(
        (2, 33, 21, 20), (33, 1, 5, 5), groups=33, stride=2, dilation=2, begin=4, end=4
    ),
    "depthwise, 1-d": problem((2, 40, 50), (40, 1, 7), groups=40, begin=3, end=3),
    "depthwise, 3-d": problem((2, 16, 5, 6, 7), (16, 1, 3, 3, 3), groups=16, stride=2, **SAME),
    "depthwise, three filters a channel": problem((2, 8, 9, 11), (24, 1, 3, 3), groups=8),
    "groups of four": problem((2, 128, 14, 14), (128, 4, 3, 3), groups=32, **SAME),
    "groups of many": problem((2, 144, 9, 9), (160, 72, 3, 3), groups=2, stride=2),
    "groups of odd numbers": problem((2, 15, 9, 11), (21, 5, 3, 3), groups=3),
    # More than a dimension of a grid has.
    "70000 groups": problem((1, 70000, 5), (70000, 1, 3), groups=70000),
    "70000 images": problem((70000, 4, 3, 3), (8, 4, 3, 3)),
    # Sums that several blocks share.
    "split": problem((1, 512, 4, 4), (64, 512, 3, 3), **SAME),
    "split, groups": problem((1, 1024, 8, 8), (64, 512, 3, 3), groups=2, stride=2, **SAME),
    "split, one output": problem((1, 1000, 3), (1, 1000, 3)),
    "no images": problem((0, 8, 9, 11), (24, 8, 3, 3)),
}

TRANSPOSED = {
    "recipe": problem((2, 64, 16, 16), (64, 64, 3, 3), output_padding=1, **UP),
    "stride 1": problem((2, 8, 9, 11), (8, 24, 3, 3), transposed=True, begin=1, end=1),
    "stride (1, 2)": problem((2, 8, 9, 11), (8, 24, 3, 4), transposed=True, stride=(1, 2)),
    "stride (2, 1)": problem((2, 8, 9, 11), (8, 24, 3, 4), transposed=True, stride=(2, 1), end=(1, 0)),
    "stride (3, 4)": problem((2, 8, 9, 11), (8, 130, 5, 6), transposed=True, stride=(3, 4), begin=1, end=2),
    # Phases that no tap touches are bias and epilogue alone.
    "stride 5, three taps": problem((2, 8, 7, 9), (8, 24, 3, 2), transposed=True, stride=5, output_padding=4),
    "stride 6, one tap": problem((2, 8, 5, 6), (8, 24, 1, 1), transposed=True, stride=(6, 5), begin=1),
    "1x1, stride 2": problem((2, 64, 9, 11), (64, 130, 1, 1), transposed=True, stride=2, output_padding=1),
    "dilation": problem((2, 8, 9, 11), (8, 24, 3, 3), transposed=True, dilation=(2, 3), begin=2, end=2),
    # Where they have a common divisor all taps are of some phases.
    "dilation as the stride": problem((2, 8, 9, 11), (8, 24, 3, 3), transposed=True, stride=2, dilation=2),
    "dilation 6 of stride 4": problem(
        (2, 8, 5, 6), (8, 24, 3, 3), transposed=True, stride=4, dilation=6, output_padding=5
    ),
    "dilation and stride": problem(
        (2, 8, 7, 9), (8, 24, 3, 4), transposed=True, stride=(2, 3), dilation=(3, 2), begin=(3, 1), end=2
    ),
    # What is cropped is more than a tap reaches, and what crops one side only.
    "padding beyond the filter": problem(
        (2, 8, 9, 11), (8, 24, 3, 2), transposed=True, stride=2, begin=4, end=3
    ),
    "padding behind alone": problem((2, 8, 9, 11), (8, 24, 3, 3), transposed=True, stride=2, end=3),
    "padding before alone": problem((2, 8, 9, 11), (8, 24, 4, 4), transposed=True, stride=4, begin=3),
    "groups": problem((2, 12, 9, 11), (12, 8, 3, 3), groups=3, **UP),
    "depthwise": problem((2, 32, 9, 11), (32, 1, 4, 4), groups=32, **UP),
    "depthwise, two filters a channel": problem(
        (2, 9, 9, 11), (9, 2, 3, 3), transposed=True, groups=9, stride=3, dilation=2
    ),
    "1-d": problem((2, 64, 200), (64, 32, 16), transposed=True, stride=4, begin=6, end=6),
    "1-d, stride 5, groups": problem(
        (2, 12, 40), (12, 5, 4), transposed=True, groups=2, stride=5, dilation=3, output_padding=4
    ),
    "3-d": problem((2, 8, 4, 5, 6), (8, 24, 3, 3, 3), output_padding=1, **UP),
    "3-d, mixed": problem(
        *((2, 9, 3, 4, 5), (9, 24, 2, 3, 2)),
        **{"transposed": True, "stride": (1, 2, 3), "dilation": (2, 1, 2), "begin": (0, 1, 2)},
    ),
    "3-d, groups": problem((1, 32, 3, 5, 4), (32, 8, 2, 2, 2), transposed=True, groups=2, stride=2),
    "from one pixel": problem((17, 100, 1, 1), (100, 64, 4, 4), transposed=True),
    "to RGB": problem((2, 64, 16, 16), (64, 3, 4, 4), **UP),
    "one channel": problem((2, 1, 19, 23), (1, 1, 3, 3), transposed=True, stride=2),
    "split": problem((1, 512, 4, 4), (512, 64, 4, 4), **UP),
    "no images": problem((0, 8, 9, 11), (8, 24, 3, 3), transposed=True, stride=2),
}

# One of each rank and kind, for what does not depend on more.
FEW = {
    "1-d": problem((3, 16, 61), (24, 16, 5), stride=2, begin=2, end=2),
    "2-d": problem((3, 16, 11, 14), (24, 16, 3, 3), stride=2, **SAME),
    "3-d": problem((3, 16, 4, 7, 9), (24, 16, 3, 3, 3), stride=(1, 2, 1), **SAME),
    "1-d transposed": problem((3, 16, 31), (16, 24, 5), **UP),
    "2-d transposed": problem((3, 16, 7, 9), (16, 24, 3, 3), output_padding=1, **UP),
    "3-d transposed": problem((3, 16, 3, 4, 5), (16, 24, 3, 3, 3), **UP),
    "groups": problem((3, 16, 11, 14), (24, 8, 3, 3), groups=2, stride=2, **SAME),
}
