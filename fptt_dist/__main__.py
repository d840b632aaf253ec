"""`python -m fptt_dist …` is `fptt-dist …`: what torchrun, sbatch and Ray start."""

from fptt_dist.cli import main

main()
