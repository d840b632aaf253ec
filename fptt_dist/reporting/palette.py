"""What all pictures of runs share: colours, lines, and what always predicting the mean gives."""

# Okabe & Ito's colours, told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", "-.", ":")
CHANCE = {"adding": 1.0 / 6.0}  # the metric of always predicting the targets' mean
