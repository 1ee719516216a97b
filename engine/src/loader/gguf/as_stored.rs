//! What a [`ModelSpec`] has to know of how the converter stores things.

use crate::model::spec::{ExpertStorage, FeedForwardSpec, MixerSpec, MlpLayout, ModelSpec, Rwkv6Layout};

/// The spec as the file stores it: gate and up apart, each expert by itself; the rotary factors that the converter has worked out; what
/// RWKV-6 adds to the residual stream halved again after every `rescale_every` layers.
///
/// # Errors
/// Factors that do not fit the heads.
pub fn apply(spec: &mut ModelSpec, rope_factors: Option<&[f32]>, rescale_every: usize) -> Result<(), String> {
    let split = |layout: &mut MlpLayout| {
        if *layout == MlpLayout::FusedGate {
            *layout = MlpLayout::Gated;
        }
    };
    for (index, layer) in spec.layers.iter_mut().enumerate() {
        let doubled = index.checked_div(rescale_every).map_or(1.0, |halvings| (halvings as f32).exp2());
        for part in &mut layer.parts {
            if let MixerSpec::Rwkv6(mixer) = &mut part.mixer {
                mixer.layout = Rwkv6Layout::Gguf;
                part.output_scale = doubled;
            }
        }
        match &mut layer.feed_forward {
            Some(FeedForwardSpec::Mlp(mlp)) => split(&mut mlp.layout),
            Some(FeedForwardSpec::Moe(moe)) => {
                split(&mut moe.expert.layout);
                moe.storage = ExpertStorage::Each;
                if let Some(shared) = &mut moe.shared {
                    split(&mut shared.mlp.layout);
                }
            }
            Some(FeedForwardSpec::ChannelMix(mix)) => mix.output_scale = doubled,
            None => {}
        }
        let Some(factors) = rope_factors else { continue };
        for part in &mut layer.parts {
            let MixerSpec::Attention(attention) = &mut part.mixer else { continue };
            let Some(rope) = &mut attention.rope else { continue };
            if factors.len() != rope.len() || factors.iter().any(|factor| *factor <= 0.0) {
                return Err(format!(
                    "rope_freqs.weight has {} factors, expected {} above 0",
                    factors.len(),
                    rope.len()
                ));
            }
            rope.iter_mut().zip(factors).for_each(|(frequency, factor)| *frequency /= factor);
        }
    }
    Ok(())
}
