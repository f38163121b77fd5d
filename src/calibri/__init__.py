"""Calibri: calibrate Diffusion Transformers.

Every command has a call of its name; ``help(calibri.calibrate)`` says more. ``dir`` lists classes.

Calibrate:
    plan(...)                           images, FLOPs, hours and memory of a run, before it
    calibrate(...)                      search, evaluate on held-out prompts, save
    status(run)                         where it stands, also while it runs
    resume(run)                         continue where a run stopped
    report(run)                         one HTML page

Use a calibration:
    load(pipe, calibration)             onto a loaded pipeline; set_strength, fuse, unload
    compare(pipe, calibration, prompts) one picture: original beside calibrated
    generate(pipeline, prompts, ...)    images, with it or without
    evaluate(calibration, ...)          original against calibrated on other prompts
    fuse(calibration, output, ...)      a diffusers folder with the scalars in its weights
    publish(calibration, repo_id, ...)  to the Hugging Face Hub
    export(calibration, output, ...)    for ComfyUI, PEFT or the authors' code
    import_(file, pipeline, ...)        a file of the authors
    extract(base, tuned, ...)           the scalars of a model that was fused
    gallery(calibrations, ...)          several of them on one HTML page
    study.create, serve, report         ask people, ``from calibri import study``
    preset(name, pipe, ...)             known guidance as coefficients

Look at a model:
    shapes_pipeline()                   folder of the shipped one, for diffusers
    inspect(pipeline, ...)              its sites, and the numbers a search has
    experiment(name, ...)               the paper's experiments, with intervals
    models()                            what diffusers has
    discover(transformer, run)          sites by measurement

Rewards:
    serve_reward(reward, ...)           over HTTP; the others are in ``calibri.rewards``

``calibrate``, ``plan`` and ``inspect`` take a configuration: a ``RunConfig``, a mapping, or the
``Path`` of a YAML file. Keys by name win over it: ``calibrate(search={"popsize": 24})``.
"""

import lazy_loader as _lazy_loader

# Names are imported on first use, so that ``import calibri`` and ``calibri --help`` do not wait for
# torch. What there is stands in ``__init__.pyi``, here and in every package. Without ``__all__``
# ``help(calibri)`` is the page above and not that of every class.

__getattr__, __dir__, _ = _lazy_loader.attach_stub(__name__, __file__)
