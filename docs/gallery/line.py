import flatminima as fm
from flatminima.report.networks import line_caption, line_figure

digits = fm.load_dataset("digits", limit=500)
model = {"name": "mlp", "settings": {"sizes": [64, 64, 10]}}
recipe = fm.Recipe(epochs=40, batch_size=16, learning_rate=0.1)
first, second = (fm.train(model, digits, recipe, seed=seed) for seed in (0, 1))

scape = fm.Landscape(fm.build_model("mlp", sizes=[64, 64, 10]), digits)
line = fm.loss_line(scape, first, second)
line = line.assign_attrs(networks=["seed 0", "seed 1"])
figure = line_figure(line)
caption = line_caption(line)
