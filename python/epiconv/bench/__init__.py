"""Timing against PyTorch, torch.compile and cuDNN: `python -m epiconv.bench --help`.

`problems` says what is computed, `peers` how else it can be, `timing` measures, `accuracy` compares with
float64, `ceilings` knows what the card could do, `report` prints and stores, `publish` writes what documents
show.
"""
