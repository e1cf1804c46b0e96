"""Networks that benchmarks build: `small`, `convolutional`, `inverted` and `attention`."""
