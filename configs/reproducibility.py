r"""Does registration keep its promises? (Mason-Williams et al., 2025, arXiv 2510.11595.)

    python launch.py --config=configs/reproducibility.py            # 10,000 studies an arm
    python launch.py --config=configs/reproducibility.py:quick      # 2,000
    python launch.py --config=configs/reproducibility.py --config.analysis.test=mann-whitney

Simulated studies, analysed by `sharpjax.protocol` as real ones are, to see three things that the
paper asks for and that can be tested without a library of papers: whether a registered analysis
keeps its false-positive rate where a flexible one does not (H4.3), whether planned power is reached
and small studies exaggerate (H4.4), and how biased a literature is that publishes only what is
significant (H4.5). H4.1 and H4.2 are about publications and are not run here.

`sharpjax.studies.reproducibility.plan` says what the arms are and which rows they write.

A trial with seeds 0 to 19, before the registration: 10,000 studies in each of eight arms took 45 s
on two shared cores on 2026-11-25 (28 s of processor time). A registered analysis rejected a true
null in .0502 +- .0021, the best of five metrics with a look after every seed from the fifth on in
.386; power planned as .8 was .804 +- .005; significant estimates of a true .5 were 1.12 times it
with 64 seeds a group and 2.97 times with 3; the pooled estimate was off by .000 +- .004 with all
studies in, by .607 +- .006 with the significant ones alone. The planned effect (.5, after 1.0,
whose planned power is .807) and the size of a registry (100, after 20, of which 6 in 500 published
nothing) were chosen in that trial; hence the other seeds here. `:quick` takes 10 s.
"""

from ml_collections import ConfigDict


def get_config(form: str = "") -> ConfigDict:
    config = ConfigDict()
    config.study = "reproducibility"
    config.seeds = tuple(range(20, 40))  # 0 to 19 were a trial, see above
    config.arms = {
        "registered": {},
        "flexible": {"design": {"metrics": 5}, "analysis": {"first_look": 5}},
        "metrics_only": {"design": {"metrics": 5}, "evaluate": {"each_study": False}},
        "looks_only": {"analysis": {"first_look": 5}, "evaluate": {"each_study": False}},
        "planned": {"design": {"effect": 0.5, "n": 0}},
        "small": {"design": {"effect": 0.5, "n": 3}},
        "complete": {"design": {"effect": 0.5}, "evaluate": {"each_study": False}},
        "significant_only": {
            "design": {"effect": 0.5},
            "analysis": {"publish": "significant"},
            "evaluate": {"each_study": False},
        },
    }
    config.simulate = {
        "studies": 500,  # simulated studies of one seed
        "registry": 100,  # studies that one registry pools
    }
    config.design = {
        "effect": 0.0,  # true difference of the two groups, in standard deviations
        "n": 10,  # seeds of each group; 0: as many as `power` needs
        "power": 0.8,
        "metrics": 1,  # all with the same effect
        "correlation": 0.5,  # between metrics
    }
    config.analysis = {
        "test": "welch",
        "alpha": 0.05,  # two-sided
        "first_look": 0,  # after so many seeds, and after every further one; 0: at n alone
        "publish": "all",  # 'significant': registries pool those alone
    }
    config.evaluate = {"each_study": True}  # a row for each study, not only for each seed
    if form not in FORMS:
        raise ValueError(
            f"unknown form '{form}' of configs/reproducibility.py; known: {', '.join(FORMS)}"
        )
    config.update(FORMS[form])
    return config


FORMS = {
    "": {},
    "quick": {"simulate": {"studies": 100}},
    "smoke": {"seeds": (0, 1), "simulate": {"studies": 20, "registry": 10}},
}
