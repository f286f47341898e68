"""The study that is killed, and what a run of it says."""

import re

NAME = "crash"
# Many short steps of every kind: segments of training, tiles of a surface, blocks of radii.
STUDY = f"""\
name = "{NAME}"
title = "A study to be killed"

[data]
dataset = "digits"
limit = 60

[[groups]]
name = "natural"

[model]
name = "mlp"

[model.settings]
sizes = [64, 8, 10]

[training]
epochs = 12
batch_size = 8
learning_rate = 0.2
networks = 3
match_loss = 1.5
segment_epochs = 1

[surface]
resolution = 8
tile = 4

[radius]
directions = 3
block = 1
protocols = ["crossing"]

[report]
quick = true
"""
HEAD = 5
"""Lines that a run says before it begins."""
LOST = re.compile(
    r"flatminima: .+: its worker process was lost after [\d.]+ s \(out of memory\?\); it is done"
    r" again"
)
"""What a run says of a worker that was killed at work; of one with nothing to do it is silent."""
