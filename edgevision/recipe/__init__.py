"""Recipes: a chain of stages in a TOML file, run by one command that goes on where it was stopped.

::

    seed = 0
    report = true

    [model]
    name = "repvgg_a0"                  # of the zoo, or: checkpoint = "runs/a0"

    [data]
    train = "folder:${EDGEVISION_DATA}/cifar10-jpeg/train.zip"
    test = "folder:${EDGEVISION_DATA}/cifar10-jpeg/test.zip"

    [[stage]]
    name = "base"
    kind = "train"                      # train, prune, distill, quantize, convert, bench
    epochs = 30

    [[stage]]
    name = "pruned"
    kind = "prune"
    macs = 0.5

Settings of stages are those of the verbs; a stage whose network is a detector takes `DetectionConfig`'s in the place of
`TrainConfig`'s, pictures with boxes, and is judged by mAP.

`edgevision.recipe.schema` says what may stand in it, `edgevision.recipe.run` runs it, `edgevision.recipe.state` keeps
what is done, and `edgevision.recipe.identity` says when a stage must run again.
"""
