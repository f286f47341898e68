import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn

import flatminima as fm
from flatminima.report.style import loss_colours
from flatminima.report.surfaces import contour_norm

digits = fm.load_dataset("digits", limit=500)


def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


recipe = fm.Recipe(epochs=40, learning_rate=0.1)
trained, rescaled = (fm.train(build, digits, recipe, seed=0).module(build) for _ in range(2))
with torch.no_grad():
    # The same function: one layer five times as large, the next a fifth.
    for tensor, factor in zip(rescaled.parameters(), (5, 5, 1 / 5, 1), strict=True):
        tensor *= factor

scape = fm.Landscape(build(), digits)
networks = {"as trained": trained, "layers rescaled": rescaled}
units = {"unit": "distance in weight space", "filter": "multiples of the weights"}
figure, panels = plt.subplots(2, 2, figsize=(7.6, 6.6), layout="constrained")
gaps = {}
for row, scaling, reach in zip(panels, units, (15, 1), strict=True):
    planes = []
    for axes, (name, network) in zip(row, networks.items(), strict=True):
        plane = fm.Subspace.random(network, 2, seed=0, scaling=scaling, orthogonal=True)
        surface = fm.loss_surface(scape, plane, resolution=31, extent=(-reach, reach))
        planes.append(surface.loss)
        filled = axes.contourf(
            surface.x, surface.y, surface.loss, np.linspace(0, 3.5**0.5, 20) ** 2,
            cmap=loss_colours(), norm=contour_norm(3.5), extend="max",
        )  # fmt: skip
        axes.plot(0, 0, "wo", mec="k")
        axes.set(aspect="equal", title=f'"{scaling}", {name}', xlabel=units[scaling])
    gaps[scaling] = float(abs(planes[0] - planes[1]).max())
bar = figure.colorbar(filled, ax=panels, shrink=0.6, ticks=[0, 0.1, 0.5, 1, 2, 3], format="%g")
bar.set_label("train loss (drawn up to 3.5)")
caption = (
    f"{len(digits)} digits, {surface.loss.size} points a plane. The two planes of a row differ in"
    f' loss by up to {gaps["unit"]:.3g} with "unit", and by {gaps["filter"]:.1g} with "filter".'
)
