"""Networks: classifiers sized by the data, and the generator of synthetic images."""
