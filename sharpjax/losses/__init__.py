"""Losses as callable pytrees: frozen statistics are leaves, the model is structure.

A loss is `loss(params, batch) -> scalar`, the mean over the batch. Pass it to a jitted function as
an argument: checkpoints with different statistics then share one compilation, and a population is a
`vmap` over a loss whose leaves have a leading axis. Closing over it, as `jax.jit(loss)` does, also
works, but compiles again for every loss and keeps its arrays alive.

Gauss-Newton and Fisher matrices need a loss in two parts, `outer_loss(model_fn(params, batch),
batch)`. `Classification` has both as properties; `CrossEntropy` and `SquaredError` are likelihoods
for any model. With many classes, a model can return `LinearLogits` instead of logits. Use
`cross_entropy` to build masked means. `Objective` is the loss that training minimises, with all
that a study may add to it, such as a `Teacher`. Separate functions compare a student's outputs and
features with those of its teacher.
"""

from sharpjax.losses.classification import Classification as Classification
from sharpjax.losses.classification import Logits as Logits
from sharpjax.losses.cross_entropy import cross_entropy as cross_entropy
from sharpjax.losses.divergences import dist_distillation as dist_distillation
from sharpjax.losses.divergences import distillation as distillation
from sharpjax.losses.divergences import hard_distillation as hard_distillation
from sharpjax.losses.divergences import jensen_shannon_distillation as jensen_shannon_distillation
from sharpjax.losses.divergences import logit_distillation as logit_distillation
from sharpjax.losses.divergences import reverse_distillation as reverse_distillation
from sharpjax.losses.divergences import standardised_distillation as standardised_distillation
from sharpjax.losses.features import attention_transfer as attention_transfer
from sharpjax.losses.features import feature_distillation as feature_distillation
from sharpjax.losses.features import similarity_distillation as similarity_distillation
from sharpjax.losses.likelihood import Batch as Batch
from sharpjax.losses.likelihood import CrossEntropy as CrossEntropy
from sharpjax.losses.likelihood import SquaredError as SquaredError
from sharpjax.losses.linear_logits import LinearLogits as LinearLogits
from sharpjax.losses.objective import Objective as Objective
from sharpjax.losses.rescaled import normalised_logits as normalised_logits
from sharpjax.losses.rescaled import tempered_logits as tempered_logits
from sharpjax.losses.teacher import Teacher as Teacher
from sharpjax.losses.teacher import check_teacher as check_teacher
from sharpjax.losses.teacher import num_models as num_models
