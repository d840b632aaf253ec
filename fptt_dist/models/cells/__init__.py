"""The recurrent layers `(x, state) → (y, state)`: a file per layer or family. `fptt_dist.layers` lists all."""
