import matplotlib.pyplot as plt
import numpy as np

import flatminima as fm
from flatminima.report.style import MARKER, loss_colours
from flatminima.training import TrainingRun

digits = fm.load_dataset("digits", limit=500)
model = {"name": "mlp", "settings": {"sizes": [64, 64, 10]}}
recipe = fm.Recipe(epochs=40, batch_size=16, learning_rate=0.05)
run = TrainingRun.start(model, digits, recipe, seed=0)
path = [run.minimum()]
while not run.finished:
    run.advance(1)
    path.append(run.minimum())

plane = fm.Subspace.principal(path)
scape = fm.Landscape(fm.build_model("mlp", sizes=[64, 64, 10]), digits)
surface = fm.loss_surface(scape, plane, resolution=41)

figure, axes = plt.subplots(figsize=(7.6, 4.1), layout="constrained")
levels = np.geomspace(surface.loss.min(), surface.loss.max(), 20)
filled = axes.contourf(surface.u, surface.v, surface.loss, levels, cmap=loss_colours(), norm="log")
u, v = plane.anchor_coordinates.T
axes.plot(u, v, "o-", color=MARKER, ms=4, lw=1)
for text, epoch in (("start", 0), (f"epoch {run.epoch}", -1)):
    axes.annotate(
        text, (u[epoch], v[epoch]), (0, 9), textcoords="offset points", ha="center",
        bbox={"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": "none"},
    )  # fmt: skip
axes.set(aspect="equal", xlabel="first component", ylabel="second component")
figure.colorbar(filled, label="train loss", ticks=[0.01, 0.03, 0.1, 0.3, 1], format="%g")

shares = [f"{100 * share:.1f} %" for share in plane.explained_variance_ratio]
caption = (
    f"{len(digits)} digits, a state after every epoch. The components hold {' and '.join(shares)}"
    f" of the squared distances from the last state; no state lies farther than"
    f" {max(plane.distance_of(state) for state in path):.2g} off the plane, along which the path"
    f" is {float(np.hypot(np.diff(u), np.diff(v)).sum()):.2g} long."
)
