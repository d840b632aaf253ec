"""Networks as programs of other runtimes: a torch.export program, an ONNX model; both for windows of any length."""
