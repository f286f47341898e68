import flatminima as fm
from flatminima.report.captions import training_caption
from flatminima.report.contents import read_study
from flatminima.report.training_curves import training_figure

study = read_study(fm.Store("results/mnist-paper"), "mnist-paper")
figure = training_figure([study])
caption = training_caption(study)
