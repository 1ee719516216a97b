//! Mixture of experts: a router sends each token to a few of many MLPs (Shazeer et al. 2017).

use statescope_kernels::activation::sigmoid;
use statescope_kernels::linear::linear;
use statescope_kernels::matrix::Matrix;
use statescope_kernels::reduce::top_k;

use super::feed_forward::{Mlp, add};
use super::spec::{ExpertStorage, MlpLayout, MoeSpec, RouterSpec};
use crate::loader::LoadError;
use crate::loader::names::Names;
use crate::loader::weights::Scope;

/// Router, experts, and what every token passes.
pub struct Moe {
    spec: MoeSpec,
    /// `[E, d]`.
    router: Matrix,
    /// `[E]`, added to the scores for the choice alone.
    choice_bias: Option<Vec<f32>>,
    experts: Vec<Mlp>,
    shared: Option<Shared>,
    latent: Option<Latent>,
}

/// The expert that every token goes to.
struct Shared {
    mlp: Mlp,
    /// `[1, d]`: one number a token, through σ.
    gate: Option<Matrix>,
}

/// The routed experts' own, narrower width.
struct Latent {
    /// `[latent, d]`.
    down: Matrix,
    /// `[d, latent]`.
    up: Matrix,
}

impl Moe {
    pub fn load(spec: &MoeSpec, width: usize, layer: &Scope<'_>, names: &Names) -> Result<Self, LoadError> {
        let scope = layer.scope(names.moe);
        let inner_width = spec.latent_size.unwrap_or(width);
        let choice_bias = match spec.router {
            RouterSpec::Sigmoid { .. } => Some(scope.vector("router.e_score_correction_bias", spec.experts)?),
            _ => None,
        };
        let shared = match &spec.shared {
            None => None,
            Some(shared) => Some(Shared {
                mlp: Mlp::load(&shared.mlp, width, &layer.scope(names.shared_expert))?,
                gate: if shared.gated { Some(scope.matrix("shared_expert_gate.weight", 1, width)?) } else { None },
            }),
        };
        let latent = match spec.latent_size {
            None => None,
            Some(latent) => Some(Latent {
                down: scope.matrix("fc1_latent_proj.weight", latent, width)?,
                up: scope.matrix("fc2_latent_proj.weight", width, latent)?,
            }),
        };
        Ok(Self {
            router: scope.matrix("router.weight", spec.experts, width)?,
            choice_bias,
            experts: match spec.storage {
                ExpertStorage::Each => {
                    let expert = |e: usize| Mlp::load(&spec.expert, inner_width, &scope.scope(&format!("experts.{e}")));
                    (0..spec.experts).map(expert).collect::<Result<_, _>>()?
                }
                ExpertStorage::Stacked => stacked(spec, inner_width, &scope)?,
            },
            shared,
            latent,
            spec: spec.clone(),
        })
    }

    /// xs `[T, d]` → out `[T, d]`.
    pub fn forward(&self, xs: &[f32], out: &mut [f32]) {
        let (experts, width) = (self.spec.experts, self.router.cols());
        let rows = xs.len() / width;
        let mut logits = vec![0.0; rows * experts];
        linear(&self.router, None, xs, &mut logits);

        // Which tokens each expert gets, and how much they count.
        let mut routes: Vec<Vec<(usize, f32)>> = vec![Vec::new(); experts];
        for (token, logits) in logits.chunks_exact(experts).enumerate() {
            for (expert, weight) in route(&self.spec, logits, self.choice_bias.as_deref()) {
                routes[expert].push((token, weight));
            }
        }
        let latent = self.latent.as_ref().map(|latent| {
            let mut low = vec![0.0; rows * latent.down.rows()];
            linear(&latent.down, None, xs, &mut low);
            low
        });
        let inner = self.spec.latent_size.unwrap_or(width);
        let inputs = latent.as_deref().unwrap_or(xs);
        let mut sum = vec![0.0; rows * inner];
        for (expert, routed) in self.experts.iter().zip(&routes).filter(|(_, routed)| !routed.is_empty()) {
            let mut gathered: Vec<f32> =
                routed.iter().flat_map(|&(token, _)| &inputs[token * inner..(token + 1) * inner]).copied().collect();
            if rows > 1 {
                // The product of one row sums in another order than that of several: a token's bits must not depend on whether a later
                // one has the same expert.
                gathered.resize(routed.len().max(2) * inner, 0.0);
            }
            let mut made = vec![0.0; gathered.len()];
            expert.forward(&gathered, &mut made);
            for (&(token, weight), made) in routed.iter().zip(made.chunks_exact(inner)) {
                let sum = &mut sum[token * inner..(token + 1) * inner];
                sum.iter_mut().zip(made).for_each(|(sum, made)| *sum += weight * made);
            }
        }
        match &self.latent {
            Some(latent) => linear(&latent.up, None, &sum, out),
            None => out.copy_from_slice(&sum),
        }
        if let Some(shared) = &self.shared {
            let mut made = vec![0.0; xs.len()];
            shared.mlp.forward(xs, &mut made);
            if let Some(gate) = &shared.gate {
                let mut gates = vec![0.0; rows];
                linear(gate, None, xs, &mut gates);
                for (made, gate) in made.chunks_exact_mut(width).zip(gates) {
                    made.iter_mut().for_each(|x| *x *= sigmoid(gate));
                }
            }
            add(out, &made);
        }
    }
}

/// `gate_up_proj` `[E, 2I, d]` and `down_proj` `[E, d, I]`, cut into experts.
fn stacked(spec: &MoeSpec, width: usize, scope: &Scope<'_>) -> Result<Vec<Mlp>, LoadError> {
    let (experts, inner) = (spec.experts, spec.expert.intermediate_size);
    let gated = spec.expert.layout != MlpLayout::Plain;
    let first = if gated { 2 * inner } else { inner };
    let entry = scope.stacked_matrix("gate_up_proj.weight", experts, first, width)?;
    let down = scope.stacked_matrix("down_proj.weight", experts, width, inner)?;
    let rows =
        |matrix: &Matrix, start: usize, len: usize| matrix.pick_rows(std::slice::from_ref(&(start..start + len)));
    Ok((0..experts)
        .map(|e| {
            let gate = gated.then(|| rows(&entry, e * first, inner));
            let up = rows(&entry, e * first + first - inner, inner);
            Mlp::from_parts(&spec.expert, gate, up, rows(&down, e * width, width))
        })
        .collect())
}

/// The experts of a token and their weights.
fn route(spec: &MoeSpec, logits: &[f32], choice_bias: Option<&[f32]>) -> Vec<(usize, f32)> {
    let chosen = |scores: &[f32]| top_k(scores, spec.chosen).into_iter().map(|(e, _)| e as usize).collect::<Vec<_>>();
    match spec.router {
        RouterSpec::SoftmaxTopK { renormalise } => {
            let weights = softmax(logits);
            let picked: Vec<_> = chosen(&weights).into_iter().map(|e| (e, weights[e])).collect();
            if renormalise { normalised(picked, 0.0, 1.0) } else { picked }
        }
        RouterSpec::TopKSoftmax => {
            let picked = chosen(logits);
            let weights = softmax(&picked.iter().map(|&e| logits[e]).collect::<Vec<_>>());
            picked.into_iter().zip(weights).collect()
        }
        RouterSpec::Sigmoid { groups, chosen_groups, renormalise, scale } => {
            let weights: Vec<f32> = logits.iter().map(|&l| sigmoid(l)).collect();
            let bias = choice_bias.unwrap_or_default();
            let mut scores: Vec<f32> =
                weights.iter().enumerate().map(|(e, w)| w + bias.get(e).unwrap_or(&0.0)).collect();
            keep_best_groups(&mut scores, groups, chosen_groups);
            let picked: Vec<_> = chosen(&scores).into_iter().map(|e| (e, weights[e])).collect();
            if renormalise {
                normalised(picked, 1e-20, scale)
            } else {
                picked.into_iter().map(|(e, w)| (e, w * scale)).collect()
            }
        }
    }
}

/// −∞ for all experts outside the groups whose two best scores add up highest (DeepSeek-V3).
fn keep_best_groups(scores: &mut [f32], groups: usize, chosen: usize) {
    if chosen >= groups {
        return;
    }
    let width = scores.len() / groups;
    let best = |group: &[f32]| top_k(group, 2).into_iter().map(|(_, score)| score).sum::<f32>();
    let ranks: Vec<f32> = scores.chunks_exact(width).map(best).collect();
    let kept: Vec<usize> = top_k(&ranks, chosen).into_iter().map(|(group, _)| group as usize).collect();
    for (group, scores) in scores.chunks_exact_mut(width).enumerate() {
        if !kept.contains(&group) {
            scores.fill(f32::NEG_INFINITY);
        }
    }
}

fn normalised(picked: Vec<(usize, f32)>, floor: f32, scale: f32) -> Vec<(usize, f32)> {
    let sum: f32 = picked.iter().map(|(_, w)| w).sum::<f32>() + floor;
    picked.into_iter().map(|(e, w)| (e, w / sum * scale)).collect()
}

fn softmax(logits: &[f32]) -> Vec<f32> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f32> = logits.iter().map(|l| (l - max).exp()).collect();
    let sum: f32 = powers.iter().sum();
    powers.into_iter().map(|p| p / sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::spec::MlpSpec;

    fn spec(router: RouterSpec) -> MoeSpec {
        let expert = MlpSpec::swiglu(4, false);
        let (storage, shared, latent_size) = (ExpertStorage::Each, None, None);
        MoeSpec { experts: 4, chosen: 2, router, expert, storage, shared, latent_size }
    }

    #[test]
    fn routers_differ_in_what_they_divide_by() {
        let logits = [1.0, 3.0, 2.0, -1.0];
        let all = softmax(&logits);
        assert_eq!(
            route(&spec(RouterSpec::SoftmaxTopK { renormalise: false }), &logits, None),
            [(1, all[1]), (2, all[2])]
        );
        for router in [RouterSpec::SoftmaxTopK { renormalise: true }, RouterSpec::TopKSoftmax] {
            let routed = route(&spec(router), &logits, None);
            assert!((routed.iter().map(|r| r.1).sum::<f32>() - 1.0).abs() < 1e-6);
            assert!((routed[0].1 / routed[1].1 - 1f32.exp()).abs() < 1e-5);
        }
    }

    #[test]
    fn the_bias_decides_who_is_chosen_and_not_how_much_it_counts() {
        let router = RouterSpec::Sigmoid { groups: 2, chosen_groups: 1, renormalise: false, scale: 2.0 };
        // Group 1 wins through the bias of expert 3.
        let routed = route(&spec(router), &[2.0, 2.0, 0.0, 0.5], Some(&[0.0, 0.0, 0.0, 3.0]));
        assert_eq!(routed.iter().map(|r| r.0).collect::<Vec<_>>(), [3, 2]);
        assert_eq!(routed[0].1, 2.0 * sigmoid(0.5));
    }
}
