"""What random words are for: every kind of draw has a number of its own, so that draws are independent.

The numbers never change, because a seed would draw something else. `csrc/philox.h` repeats the first two.
"""

WINDOW, COMBINATION, MARGINAL, CROP, COALITIONS, MIXER, ROTATION, AUGMENT, DROPPED_JOINTS, PARTNER = range(1, 11)
