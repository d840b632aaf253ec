"""The keys of the recurrent layers: a file per layer, of the same name as the layer's in `models/cells`."""
