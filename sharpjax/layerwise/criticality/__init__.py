"""Which layers a trained model can do without: each is replaced alone, and the model is tested.

    layers = criticality.layers_of(trained.params)
    drawn = criticality.Initialiser(model, (28, 28, 1))
    variants = criticality.variants(trained, drawn, layers, trials=10, key=key)
    effects = criticality.evaluate(model, trained, variants, {"image": images, "label": labels})
    criticality.judge(effects, "Dense_0", threshold=0.02).word    # "critical", "robust", ...

`trained` is `Weights(params, variables)`. Instead of `drawn`, use the weights at the start
(re-initialisation), those of any snapshot (rewinding), or 'zeros'.
"""

from sharpjax.layerwise.criticality.effects import Effect as Effect
from sharpjax.layerwise.criticality.effects import Effects as Effects
from sharpjax.layerwise.criticality.effects import evaluate as evaluate
from sharpjax.layerwise.criticality.judgement import Judgement as Judgement
from sharpjax.layerwise.criticality.judgement import judge as judge
from sharpjax.layerwise.criticality.layers import Layer as Layer
from sharpjax.layerwise.criticality.layers import layers_of as layers_of
from sharpjax.layerwise.criticality.module import Curve as Curve
from sharpjax.layerwise.criticality.module import ModuleCriticality as ModuleCriticality
from sharpjax.layerwise.criticality.module import interpolation as interpolation
from sharpjax.layerwise.criticality.module import module_criticality as module_criticality
from sharpjax.layerwise.criticality.norms import norms_of as norms_of
from sharpjax.layerwise.criticality.norms import recomputed as recomputed
from sharpjax.layerwise.criticality.norms import with_recomputed as with_recomputed
from sharpjax.layerwise.criticality.replacement import Initialiser as Initialiser
from sharpjax.layerwise.criticality.replacement import Source as Source
from sharpjax.layerwise.criticality.replacement import Variant as Variant
from sharpjax.layerwise.criticality.replacement import Weights as Weights
from sharpjax.layerwise.criticality.replacement import replaced as replaced
from sharpjax.layerwise.criticality.replacement import variants as variants
