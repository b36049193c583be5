"""The only bridge between training and service: a training run becomes a bundle of ONNX graphs and a manifest."""
