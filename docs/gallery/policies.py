import flatminima as fm
from flatminima.report.captions import planes_caption
from flatminima.report.contents import read_study
from flatminima.report.surfaces import contours_figure, policy_title

study = read_study(fm.Store("results/cifar10-small"), "cifar10-small")
planes = next(planes for planes in study.planes() if planes[0].group == "natural")
figure = contours_figure([(study, planes)], policy_title)
caption = planes_caption(study, planes)
