"""Tolerances of the DICOM reader, each with its reason and, where there is one, its source.

Positions and directions are decimal strings of at most 16 characters (DS, PS3.5 6.2), and scanners write fewer digits than
they know. So geometry is compared with tolerances and never by rounding: a value at the edge of a rounding step would fall
to both sides.
"""

# Two slices lie at one place if they are closer than this along the normal. The thinnest slices in use (OCT, micro-CT)
# lie 0.02 mm apart; writing the same place twice with three decimals errs by 0.001 mm at most.
SAME_PLACE_MM = 0.01
# … or closer than this share of a pixel, for objects that are smaller still.
SAME_PLACE_PIXELS = 0.1

# Largest difference of a direction cosine between slices of one stack: over 512 pixels it moves the far corner by half a
# pixel. Scanners write six decimals, some only four.
SAME_DIRECTION = 1e-3

# How far the product of row and column direction may be from 0, and their length from 1, before they are no orientation
# (PS3.3 C.7.6.2.1.1 wants orthonormal ones). Old writers round to two decimals.
ORTHONORMAL = 0.02

# Relative difference of pixel spacing within one stack: over 512 pixels it moves the far edge by half a pixel.
SAME_PIXEL_SPACING = 1e-3

# A stack is regular if every slice lies this close to an even grid, in steps. Positions written with one decimal at steps of
# 0.3 mm err by 0.05 mm, those in whole millimetres at steps of 2.5 mm by 0.5 mm: a sixth and a fifth of a step. (highdicom's
# default of 1 % refuses such files.)
EVEN_STEPS = 0.25
# … and if no gap is this many times as wide as another. Rounding makes 2 and 3 mm of 2.5 mm; a missing slice doubles a gap.
EVEN_GAP_RATIO = 1.75

# Gaps that differ by no more than this share are alike. Two grids of 3 mm that lie 1 mm apart leave gaps of 1 and 2 mm.
ALIKE_GAPS = 0.25

# Largest distance in the plane of a slice from the place that an upright stack gives it, in pixels, that is ignored: every
# voxel then lies within half a voxel of where its header says, and nothing is interpolated for less.
STRAIGHT_PIXELS = 0.4

# A step in the plane of more than this share of the image is no moved centre of reconstruction but another stack.
SAME_STACK_SHARE = 0.5


# Runs of at least so many equal wider gaps are an intended change of spacing; fewer are missing slices.
INTENDED_RUN = 3

# A stack falls into blocks (one per intervertebral disc, say) where gaps are at least this many steps wide …
BLOCK_GAP_STEPS = 3
# … and each block has at least so many slices.
BLOCK_SLICES = 3

# Slices that are acquired in packages, every second in each, leave gaps as wide as the slices: such parts are one volume.
# A part whose own step is at most this many slice thicknesses is complete in itself: two interleaved ones are two volumes.
COMPLETE_STEP_THICKNESSES = 1.5

# Relative difference up to which two numbers of a header (echo time, b-value) are the same number.
SAME_NUMBER = 1e-3
